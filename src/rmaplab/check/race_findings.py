# SPDX-License-Identifier: GPL-2.0-or-later
"""`rmaplab race --report`: which obligations a design breaks, each with a minimal timeline.

One cause may hide another: where a walk ends too early, nothing is learnt about the order of the rest.  So a design
may have *stages* (`STAGES`): itself, then itself with one cause after the other fixed, as little as will do.  A cause
breaks the scenarios that its stage breaks and the next one does not.

A timeline is minimal in how often a CPU is taken away, then in its steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from rmaplab.check.processes import Told, side_by_side
from rmaplab.check.race import Broken, cpus, explain, timeline
from rmaplab.check.scenarios import scenario
from rmaplab.mm.folio import FOLIO_KSM
from rmaplab.mm.geometry import GeometryChange
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import VMA
from rmaplab.rmap import load
from rmaplab.rmap.context import CowContext
from rmaplab.rmap.cow_context_prototype import CowContextPrototypeRmap
from rmaplab.sync.interleave import explore

_LIMIT: Final = 400  # interleavings that are tried with each bound before the next
_BOUNDS: Final = (0, 1, 2)


class Finding(msgspec.Struct, frozen=True):
    """A scenario that a stage of a design breaks.  `preemptions`: how often a CPU has to be taken away for it, 0: no
    concurrency is needed; `also`: other obligations that it breaks with as many."""

    scenario: str
    obligation: str
    preemptions: int
    broken: Broken
    also: list[str]


class Stage(msgspec.Struct, frozen=True):
    """A design with some causes put right.

    cause:  what the next stage puts right
    listed: what of that the design's author lists as open (docs/kernels/rules.md, section 3), by what a scenario's
            name contains
    """

    design: type[ReverseMap]
    cause: str
    listed: dict[str, str] = {}


def look(name: str, design: type[ReverseMap]) -> Finding | None:
    """The failure of the scenario that takes the fewest preemptions, and of these the fewest steps."""
    what = scenario(name, design)
    for bound in _BOUNDS:
        # Of orders that are the same the reduction tries one, which may take more preemptions than another.
        found = explore(what, reduce=bound > 1, limit=_LIMIT, preemptions=bound, stop_at_first=False).failures
        if found:
            break
    if not found:
        return None
    fewest = min(failure.preemptions for failure in found)
    found = [failure for failure in found if failure.preemptions == fewest]
    broken = explain(min(found, key=lambda failure: len(failure.path)))
    kind = obligation(broken)
    others = {obligation(explain(failure)) for failure in found} - {kind}
    return Finding(name, kind, fewest, broken, sorted(others))


def obligation(broken: Broken) -> str:
    """The obligation that the sentence begins with (check/scenarios.py), "safe" if it breaks a rule that holds
    throughout."""
    word = broken.error.partition(":")[0]
    return word if word in ("restored", "counted", "found", "leaked") else "safe"


# The prototype


class NoEarlyEnd(CowContextPrototypeRmap):
    """The prototype, whose walk goes on when the folio is exclusive."""

    name = "cow_context_prototype, without the early end"

    def _exclusive(self, pfn: int, nr_pages: int) -> bool:
        return False


class ParentsFirst(NoEarlyEnd):
    """The same, which visits each context before those below it."""

    name = "cow_context_prototype, without the early end, parents first"

    def _children_first(self, top: CowContext) -> Iterator[CowContext]:
        yield top
        child = self.first_child(top)
        while child is not None:
            yield from self._children_first(child)
            child = self.next_sibling(child)


class LooksAgain(ParentsFirst):
    """The same, which looks at an address space again where entries or VMAs moved meanwhile."""

    name = "cow_context_prototype, without the early end, parents first, looking again"

    def need_move_locks(self, source: VMA, target: VMA, merged: bool) -> bool:
        return True

    def move_lock(self, vma: VMA) -> None:
        self.context_of(vma.mm).moves.write_begin()

    def move_unlock(self, vma: VMA) -> None:
        self.context_of(vma.mm).moves.write_end()

    def geometry_begin(self, change: GeometryChange) -> None:
        self.move_lock(change.vmas[0])
        super().geometry_begin(change)

    def geometry_end(self, change: GeometryChange) -> None:
        super().geometry_end(change)
        self.move_unlock(change.vmas[0])

    def walk(self, pfn: int) -> Iterator[tuple[VMA, int]]:
        top, _ = self.anchor_of(pfn)
        flags: int = self.folios.flags.m[pfn]
        if top is None or flags & FOLIO_KSM:
            return
        first: int = self.folios.index.m[pfn]
        nr_pages = self.folios.nr_pages(pfn)
        self.rcu.read_lock()
        try:
            for context in self._children_first(top):
                mm = self.get_mm(context)
                if mm is None:
                    continue
                try:
                    again = True
                    while again:
                        begun = context.moves.read_begin()
                        yield from self._at(mm, first, nr_pages, 0)
                        self.records(context)
                        for offset in self.records_of(context).collect(first, first + nr_pages - 1):
                            yield from self._at(mm, first, nr_pages, offset)
                        again = context.moves.read_retry(begun)
                finally:
                    self.spaces.put(mm)
        finally:
            self.rcu.read_unlock()


_FORK: Final = "a fork concurrent with an unmap"
_OPEN: Final = {
    "KSM": "KSM",
    "swap-in": "swap-in of a shared entry",
    "unmap / fork": _FORK,
    "unmap / first fork": _FORK,
    "migrate / fork": f"nearest: {_FORK}",
    "migrate / first fork": f"nearest: {_FORK}",
}

STAGES: Final[dict[str, tuple[Stage, ...]]] = {
    "cow_context_prototype": (
        Stage(
            CowContextPrototypeRmap,
            "The walk ends at a context that it comes to while the folio is mapped once, whether it was found there or"
            " not (findings 1 and 2 below need no concurrency; here is what they do to those who walk)",
            _OPEN,
        ),
        Stage(
            NoEarlyEnd,
            "A context is visited after its children, so that one which forks between the two has a child that is"
            " visited too early or not at all",
            _OPEN,
        ),
        Stage(
            ParentsFirst,
            "Entries move within an address space from where the walk has yet to look to where it has looked",
            {**_OPEN, "mremap": "nearest: a VMA found under RCU is not stable"},
        ),
        Stage(LooksAgain, "What is left", _OPEN),
    ),
}


def stages(design: type[ReverseMap]) -> tuple[Stage, ...]:
    return STAGES.get(design.name, (Stage(design, "What it breaks"),))


def look_for_all(design: str, scenarios: Sequence[str], jobs: int, told: Told) -> list[list[Finding]]:
    """The findings of each stage of the design."""
    work = [(design, number, name) for number in range(len(stages(load(design)))) for name in scenarios]
    found: list[list[Finding]] = [[] for _ in stages(load(design))]
    for (_, number, _), finding in zip(work, side_by_side(_look, work, jobs, told), strict=True):
        if finding is not None:
            found[number].append(finding)
    return found


def _look(work: tuple[str, int, str]) -> Finding | None:
    design, number, name = work
    return look(name, stages(load(design))[number].design)


def markdown(design: str, found: Sequence[Sequence[Finding]], command: str) -> str:
    """The page."""
    name = load(design).name
    text = [
        f"# What `{name}` breaks while other CPUs go on",
        "",
        f"Written by `{command}`: do not edit.",
        "",
        "Each scenario is a user of the reverse map against what another CPU does; docs/races.md says what each owes.",
        "`switches` is how often a CPU has to be taken away for it: with 0, one thing after the other is enough. One",
        "cause hides another, so each section puts right what the one before it found, and looks again. For each",
        "obligation that a section breaks there is one timeline: of those with the fewest switches, the shortest.",
        f"Looked at: at most {_LIMIT} interleavings with each of {', '.join(map(str, _BOUNDS))} switches.",
        "",
    ]
    for number, (stage, findings) in enumerate(zip(stages(load(design)), found, strict=True), 1):
        text += [f"## {number}. {stage.design.name}", ""]
        if not findings:
            text += ["Breaks nothing.", ""]
            continue
        gone = {f.scenario for f in found[number]} if number < len(found) else set()
        text += [f"{stage.cause}.", ""]
        text += ["| scenario | breaks | switches | steps | its author lists | also in the next section |"]
        text += ["| --- | --- | ---: | ---: | --- | --- |"]
        for f in findings:
            listed = next((what for part, what in stage.listed.items() if part in f.scenario), "no")
            kinds = ", ".join([f.obligation, *f.also])
            still = "yes" if f.scenario in gone else ""
            text.append(
                f"| {f.scenario} | {kinds} | {f.preemptions} | {len(f.broken.timeline)} | {listed} | {still} |"
            )
        text.append("")
        for kind in sorted({f.obligation for f in findings}):
            some = [f for f in findings if f.obligation == kind and f.scenario not in gone]
            best = min(
                some or [f for f in findings if f.obligation == kind],
                key=lambda f: (f.preemptions, len(f.broken.timeline)),
            )
            text += [f"### {kind}: {best.scenario}", "", "```"]
            text += [line.rstrip() for line in timeline(best.broken, cpus(best.scenario))]
            text += ["", f"path: {best.broken.path}", "```", ""]
    return "\n".join(text).rstrip() + "\n"
