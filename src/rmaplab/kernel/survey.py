# SPDX-License-Identifier: GPL-2.0-or-later
"""Real programs' states, imported while they work: `rmaplab kernel userland`.

Each program of userland.py is run in a guest of its own, which is stopped at each of its moments and read
(importer.py).  A guest may be stopped while an instruction sequence that belongs together is half done (an anon_vma
is being unlinked, say): a rule that is broken then holds a moment later, so the guest runs on for a few
milliseconds and is read again.  A rule that never holds is reported.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

import msgspec

from rmaplab.kernel import userland
from rmaplab.kernel.guest import Guest
from rmaplab.kernel.importer import Finding, Reading, State
from rmaplab.kernel.lockstep import attach
from rmaplab.kernel.memory import BadAddress, Memory
from rmaplab.kernel.setup import Kernel

_TRIES: Final = 20
_PAUSE: Final = 0.003  # seconds between two of them


class Moment(msgspec.Struct, frozen=True):
    """A program's state at one moment.

    what:    what the program was doing
    tries:   how often the guest was stopped until nothing was half done
    seconds: of CPU that it took to read and walk it
    """

    program: str
    what: str
    tries: int
    seconds: float
    state: State


def survey(program: userland.Program, kernel: Kernel, say: Callable[[str], None]) -> list[Moment]:
    """Run the program and take its state at each of its moments.

    :raises KernelUnavailable: something is missing
    :raises GuestError: the program failed in the guest
    """
    with userland.running(program, kernel, say) as moments:
        found: list[Moment] = []
        memory: Memory | None = None
        for guest, what in moments:
            if memory is None:
                memory = Memory(attach(guest, kernel.vmlinux), guest.memory)
            found.append(_taken(program, what, guest, memory))
            say(f"  {found[-1].seconds:.1f} s to read and walk it, {found[-1].tries} times stopped")
        return found


def _taken(program: userland.Program, what: str, guest: Guest, memory: Memory) -> Moment:
    for tries in range(1, _TRIES + 1):
        started = time.process_time()
        try:
            state = Reading(memory.program, memory).examined()
        except BadAddress:
            if tries == _TRIES:
                raise
        else:
            if not state.problems or tries == _TRIES:
                return Moment(program.name, what, tries, time.process_time() - started, state)
        guest.let_go_on(_PAUSE)
    raise AssertionError("unreachable: the last try returns or raises")


# What is printed


def text(moments: Iterable[Moment]) -> str:
    """Everything, as text."""
    return "\n\n".join(f"{moment.program}, {moment.what}\n{moment.state.table()}" for moment in moments)


def markdown(moments: Sequence[Moment]) -> str:
    """Tables for a page: what was there, and then a table for each thing that designs are compared by."""
    designs = list(dict.fromkeys(finding.design for moment in moments for finding in moment.state.findings))
    tables = [
        _table(
            ["address spaces", "VMAs", "anon_vmas", "anonymous folios", "entries for them", "file entries",
             "swap entries", "parent lives / died / from chains / none", "KSM's, without a place"],
            moments, _there,
        )
    ]  # fmt: skip
    kinds = {design: _kinds(design, moments) for design in designs}
    on_the_way = [f"{design}: {', '.join(kinds[design])}" for design in designs]
    comparisons: list[tuple[str, list[str], Callable[[Finding], str]]] = [
        ("Places visited / longest walk", designs, lambda finding: f"{finding.places} / {finding.worst}"),
        ("Entries missed", designs, lambda finding: str(finding.missing)),
        ("Bytes held", designs, lambda finding: str(finding.held_bytes)),
        ("On the way", on_the_way, lambda finding: _work(finding, kinds[finding.design])),
    ]
    for what, columns, cell in comparisons:
        tables.append(f"{what}:\n\n{_table(columns, moments, partial(_cells, designs, cell))}")
    reasons: Counter[tuple[str, str]] = Counter()
    for moment in moments:
        for finding in moment.state.findings:
            reasons.update({(finding.design, reason): count for reason, count in finding.missed.items()})
    tables.append("\n".join(f"- {design} misses {n}: {reason}" for (design, reason), n in sorted(reasons.items())))
    return "\n\n".join(table for table in tables if table)


def _table(columns: Sequence[str], moments: Iterable[Moment], cells: Callable[[Moment], Sequence[str]]) -> str:
    lines = [["program and moment", *columns], ["---"] * (1 + len(columns))]
    lines += [[f"{moment.program}, {moment.what}", *cells(moment)] for moment in moments]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _there(moment: Moment) -> list[str]:
    state, a = moment.state, moment.state.ancestry
    first = state.findings[0] if state.findings else None
    return [
        f"{state.processes} + {state.in_between}" if state.in_between else str(state.processes),
        str(state.vmas), str(state.anon_vmas), *((str(first.folios), str(first.entries)) if first else "--"),
        str(state.entries.get("file", 0)), str(state.entries.get("swap", 0)),
        f"{a.living} / {a.dead} / {a.related} / {a.alone}", str(state.unplaced),
    ]  # fmt: skip


def _cells(designs: Iterable[str], cell: Callable[[Finding], str], moment: Moment) -> list[str]:
    findings = {finding.design: finding for finding in moment.state.findings}
    return [cell(findings[design]) if design in findings else "-" for design in designs]


def _kinds(design: str, moments: Iterable[Moment]) -> list[str]:
    """What the design's walks look at on the way to places."""
    found = [f.work for moment in moments for f in moment.state.findings if f.design == design]
    return [kind for kind in dict.fromkeys(kind for work in found for kind in work) if kind != "rcu read sections"]


def _work(finding: Finding, kinds: Iterable[str]) -> str:
    return " + ".join(str(finding.work.get(kind, 0)) for kind in kinds)
