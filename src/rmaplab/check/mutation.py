# SPDX-License-Identifier: GPL-2.0-or-later
"""The search for every re-introduced bug, for `rmaplab verify --mutants`.

A mutant counts as found if random histories, or the interleavings of its scenario, show it within the budget.  The
same search then runs with the mutation switched off, equally far, and must find nothing.  The evidence is made as
short as possible: a script of events, or a timeline of as few preemptions as it takes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import msgspec
from rich.console import Console

from rmaplab.check.lineage_mutants import LINEAGE_MUTANTS
from rmaplab.check.mutants import MUTANTS, Caught, Mutant, play
from rmaplab.check.processes import Told, side_by_side
from rmaplab.check.race import explain, timeline
from rmaplab.check.race_mutants import RACED, outcome
from rmaplab.check.rival_mutants import RIVAL_MUTANTS
from rmaplab.check.verify import search_for
from rmaplab.check.weak_mutants import WEAKENED
from rmaplab.terminal import Grid

STEPS: Final = 100_000  # of random histories, at most, until a mutant has to be found
INTERLEAVINGS: Final = 10_000  # of its scenario, at most
_LENGTH: Final = 300  # events of each history

ALL: Final[tuple[Mutant, ...]] = (*MUTANTS, *RIVAL_MUTANTS, *LINEAGE_MUTANTS, *RACED, *WEAKENED)


class Verdict(msgspec.Struct, frozen=True):
    """The result of the search for one mutant.

    bug:     what it is that is wrong; rule: what should be done instead
    by:      "verify" or "race", with the scenario
    after:   steps or interleavings; 0: not found
    what:    what was wrong, in a sentence
    shown:   the lines of the script, or of the timeline
    off:     what was found with the mutation switched off, in as many steps or interleavings: nothing, if right
    """

    mutant: str
    bug: str
    rule: str
    origin: str
    by: str
    after: int
    unit: str
    seconds: float
    what: str
    shown: list[str]
    off: str

    @property
    def holds(self) -> bool:
        return self.after > 0 and not self.off


def look_for(number: int) -> Verdict:
    """Mutant `number` of ALL."""
    mutant = ALL[number]
    begun = time.process_time()
    if mutant.shows == "race":
        return _race(mutant, begun)
    after, caught = _search(mutant, STEPS)
    if caught is None:
        return _verdict(mutant, "verify", 0, "steps", begun, "", [], "")
    seconds = time.process_time()
    machine = mutant.build()
    mutated, original = mutant.names(machine)
    search = search_for(mutant.shows, mutated, mutant.build, original)
    script = search.shortest(caught.events)
    what = search.shown(script)
    _, wrong = _search(mutant.switched_off(), after)
    shown = [*map(str, script)]
    return _verdict(mutant, "verify", after, "steps", begun - seconds, what, shown, "" if wrong is None else wrong.what)


def _search(mutant: Mutant, budget: int) -> tuple[int, Caught | None]:
    """Steps until a random history shows the mutant, and that history."""
    steps = seed = 0
    while steps < budget:
        caught = play(mutant, seed, min(_LENGTH, budget - steps))
        steps += len(caught.events)
        seed += 1
        if caught.what:
            return steps, caught
    return steps, None


def _race(mutant: Mutant, begun: float) -> Verdict:
    found = outcome(mutant, INTERLEAVINGS)
    seconds = time.process_time()
    by = f"race: {mutant.scene}"
    after = found.executions + found.pruned
    if not found.failures:
        return _verdict(mutant, by, 0, "interleavings", begun, "", [], "")
    failure = found.failures[0]
    for preemptions in (1, 2):
        fewer = outcome(mutant, INTERLEAVINGS, preemptions)
        if fewer.failures:
            failure = fewer.failures[0]
            break
    broken = explain(failure)
    wrong = ""
    for other in mutant.others():
        off = outcome(other, after)
        if off.failures:
            wrong = str(off.failures[0].error)
    shown = timeline(broken, failure.names)
    return _verdict(mutant, by, after, "interleavings", begun - seconds, broken.error, shown, wrong)


def _verdict(
    mutant: Mutant, by: str, after: int, unit: str, begun: float, what: str, shown: list[str], off: str
) -> Verdict:
    """`begun`: process time when the search began, or minus what it took."""
    seconds = -begun if begun < 0 else time.process_time() - begun
    return Verdict(
        mutant=mutant.name, bug=mutant.bug, rule=mutant.rule, origin=mutant.origin, by=by, after=after, unit=unit,
        seconds=seconds, what=what, shown=shown, off=off,
    )  # fmt: skip


def look_for_all(jobs: int, told: Told) -> list[Verdict]:
    """All mutants, in the order of ALL."""
    return side_by_side(look_for, range(len(ALL)), jobs, told)


# Telling


def print_table(verdicts: Sequence[Verdict], console: Console) -> None:
    table = Grid("mutant", "after", "CPU s", "found by", "re-introduces", left=("found by", "re-introduces"))
    for v in verdicts:
        after = f"{v.after:,} {v.unit}" if v.after else "NOT FOUND"
        table.add_row(v.mutant, after, f"{v.seconds:.1f}", v.by, v.bug)
    table.print(console)
    console.print()
    wrong = [v for v in verdicts if not v.holds]
    for v in wrong:
        said = f"found without the bug, too: {v.off}" if v.off else "nothing finds it: a hole in the checker"
        console.print(f"{v.mutant}: {said}", soft_wrap=True)
    if not wrong:
        console.print(f"All {len(verdicts)} are found, and none with the mutation switched off.")


def markdown(verdicts: Sequence[Verdict], command: str) -> str:
    """The page docs/mutants.md."""
    shipped = [v for v in verdicts if v.origin]
    own = [v for v in verdicts if not v.origin]
    text = [
        "# Bugs, put in on purpose",
        "",
        f"Written by `{command}`: do not edit.",
        "",
        "A check that cannot fail is worth nothing.  Each bug below is a design or a machine from which one rule was",
        "taken (`src/rmaplab/check/mutants.py`, `race_mutants.py`), and each has to be found: by random histories",
        f"(`rmaplab verify`) within {STEPS:,} steps, or by the interleavings of one scenario (`rmaplab race`) within",
        f"{INTERLEAVINGS:,}.  The same search with the mutation switched off, as far as it went with it, has to find",
        "nothing: that is the column `off`.  Seconds are of CPU time.  Where an ordering was taken away",
        "(`weak_mutants.py`), the interleavings are those of `race --memory weak`, and under sequential consistency",
        "nothing may be found, either.",
        "",
    ]
    for title, some in (("Bugs that shipped", shipped), ("Bugs of our own", own)):
        text += [f"## {title}", "", "| mutant | re-introduces | commit | found by | after | s | off |"]
        text.append("| --- | --- | --- | --- | ---: | ---: | --- |")
        for v in some:
            after = f"{v.after:,} {v.unit}" if v.after else "**not found**"
            off = f"**{v.off}**" if v.off else "nothing"
            mutant = f"[{v.mutant}](#{v.mutant.lower()})"
            text.append(f"| {mutant} | {v.bug} | {v.origin} | {v.by} | {after} | {v.seconds:.1f} | {off} |")
        text.append("")
    text += ["## What shows them", ""]
    for v in [*shipped, *own]:
        text += [f"### {v.mutant}", "", f"{v.bug}; the rule: {v.rule}.", "", v.what + ".", "", "```"]
        text += [*v.shown, "```", ""]
    return "\n".join(text).rstrip() + "\n"
