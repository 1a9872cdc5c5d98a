# SPDX-License-Identifier: GPL-2.0-or-later
"""Real programs' states, imported while they work: `rmaplab kernel userland`.

Each program of userland.py is run in a guest of its own, which is stopped at each of its moments and read
(importer.py).  A guest may be stopped while an instruction sequence that belongs together is half done (an anon_vma
is being unlinked, say): what does not hold then holds a moment later, so the guest is let go on for a few
milliseconds and read again.  What never holds is reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
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


def markdown(moments: Iterable[Moment]) -> str:
    """Two tables for a page: what was there, and what each design did with it."""
    moments = list(moments)
    there = [
        "| program | moment | address spaces | VMAs | anonymous folios | mapped by entries | file, swap entries |"
        " parent lives / died / from chains / none | anon_vmas | taken over |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    walked = [
        "| program | moment | design | places visited | useful | longest walk | looked up on the way | entries missed |"
        " bytes held |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for moment in moments:
        state, a = moment.state, moment.state.ancestry
        name = f"| {moment.program} | {moment.what} "
        between = f" + {state.in_between}" if state.in_between else ""
        first = state.findings[0] if state.findings else None
        there.append(
            f"{name}| {state.processes}{between} | {state.vmas} | {first.folios if first else '-'} |"
            f" {first.entries if first else '-'} | {state.entries.get('file', 0)}, {state.entries.get('swap', 0)} |"
            f" {a.living} / {a.dead} / {a.related} / {a.alone} | {state.anon_vmas} | {a.taken_over} |"
        )
        for finding in state.findings:
            useful = f"{100 * finding.useful / finding.places:.1f} %" if finding.places else "-"
            walked.append(
                f"{name}| {finding.design} | {finding.places} | {useful} | {finding.worst} | {_work(finding)} |"
                f" {finding.missing} | {finding.held_bytes} |"
            )
    reasons: dict[str, int] = {}
    for moment in moments:
        for finding in moment.state.findings:
            for reason, count in finding.missed.items():
                line = f"{finding.design}: {reason}"
                reasons[line] = reasons.get(line, 0) + count
    why = [f"- {count} missed by {line}" for line, count in sorted(reasons.items())]
    return "\n".join([*there, "", *walked, "", *why])


def _work(finding: Finding) -> str:
    shown = ("interval tree nodes visited", "contexts visited", "vma tree look-ups", "remap tree nodes visited")
    words = {"interval tree nodes visited": "tree nodes", "contexts visited": "contexts", "vma tree look-ups": "VMA"}
    parts = [f"{finding.work[name]} {words.get(name, 'remap nodes')}" for name in shown if name in finding.work]
    return ", ".join(parts)
