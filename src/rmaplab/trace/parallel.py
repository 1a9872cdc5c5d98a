# SPDX-License-Identifier: GPL-2.0-or-later
"""A history as parallel programs.

A history is one list of events.  Here it is taken apart into *strands*, each a thread of control that does its
events in their order: one for each process, and one for each kernel thread that uses the reverse map on its own
account (kswapd, which ages and swaps out; kcompactd, which migrates; ksmd).  Each node of memory has a kswapd and a
kcompactd (kswapd_run(), kcompactd_run()); pages are interleaved over the nodes by address.  Waits across strands:

- a process begins with the fork that made it; one that no fork made, with the run.
- a fork waits for an exit of the same parent's children that comes before it, if the parent did nothing between that
  child's fork and its exit (it waited: wait4()), or has done something since.  So a parent that replaces children
  never has many more of them than it had.
- an exit waits for its parent's earlier events: a process that kills another chooses the moment.
- a process that calls vfork(2) waits until its child calls execve(2) or exits.
- a kernel thread's next event waits for the process whose memory it is about.

All of these follow the order of the list, so nothing waits in a circle.

Set-up: events before the first `mark` of a workload, or, if it has none, before its first fork, happen before time
begins.  A recording has no set-up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rmaplab.mm.abi import CLONE_VFORK
from rmaplab.trace.events import OPERATIONS, Event

KERNEL_THREADS: Final = {
    operation.name: operation.actor
    for operation in OPERATIONS
    if operation.actor not in ("process", "recorder")
}
OF_NODES: Final = ("kswapd", "kcompactd")  # that each node has
CPUS_OF_NODE: Final = 8  # as where each L3 cache is a node
_INTERLEAVED: Final = 15  # 32 KiB of a node, then as much of the next


def nodes_of(cpus: int) -> int:
    """How many nodes so many CPUs have."""
    return -(-cpus // CPUS_OF_NODE)


class Step:
    """One event of a strand: its `number` in the history, what has to be done before it, and which strand it begins."""

    __slots__ = ("after", "begins", "event", "number")

    def __init__(self, number: int, event: Event) -> None:
        self.number = number
        self.event = event
        self.after: tuple[int, ...] = ()
        self.begins: Strand | None = None


class Strand:
    """A thread of control.  `pid` is its process, 0 for a kernel thread; `cpu` where it has to run (-1: anywhere)."""

    def __init__(self, name: str, pid: int) -> None:
        self.name: Final = name
        self.pid: Final = pid
        self.cpu = -1
        self.steps: Final[list[Step]] = []


class Parallel:
    """A history taken apart.

    set_up:  events before time begins, in order
    strands: that begin with the run; others are begun by a fork
    nr_steps: in all strands
    """

    def __init__(self, set_up: list[Event], strands: list[Strand], nr_steps: int) -> None:
        self.set_up: Final = set_up
        self.strands: Final = strands
        self.nr_steps: Final = nr_steps


def take_apart(events: Sequence[Event], *, recorded: bool, nodes: int = 1) -> Parallel:
    """The strands of a history on so many nodes of memory; `recorded` says that it is a recording."""
    cut = 0 if recorded else _set_up(events)
    begun: list[Strand] = []
    strands: dict[int | str, Strand] = {}
    parent_of: dict[int, int] = {}
    last_of: dict[int | str, int] = {}  # number of the last step of a strand
    exits: dict[int, list[int]] = {}  # by parent: exits of children that no fork has waited for yet
    waited: set[int] = set()  # exits that the parent waited for
    made_by: dict[int, int] = {}  # number of the step that made a process
    waits_for: dict[int, int] = {}  # child of vfork(2) -> its parent, which waits
    resumed: dict[int | str, int] = {}  # by parent: the child's step that let it go on

    for event in events[:cut]:
        if event.op == "fork":
            parent_of[event.pid2] = event.pid
    nr_steps = 0
    for number in range(cut, len(events)):
        event = events[number]
        if event.op == "mark":
            continue
        nr_steps += 1
        step = Step(number, event)
        key: int | str = KERNEL_THREADS.get(event.op, event.pid)
        if nodes > 1 and key in OF_NODES:
            key = f"{key}{(event.addr >> _INTERLEAVED) % nodes}"
        strand = strands.get(key)
        if strand is None:
            strand = Strand(key, 0) if isinstance(key, str) else Strand(f"process {key}", key)
            strands[key] = strand
            begun.append(strand)
        after: list[int] = []
        if isinstance(key, str):
            after += [made_by[pid] for pid in (event.pid, event.pid2) if pid in made_by]
        elif event.op == "fork":
            last = last_of.get(event.pid, -1)
            pending = exits.pop(event.pid, [])
            after += [exit for exit in pending if exit < last or exit in waited]
            exits[event.pid] = [exit for exit in pending if exit > last and exit not in waited]
            child = strands.get(event.pid2)
            if child is not None and child.steps:
                after.append(child.steps[-1].number)  # the number of a process that is gone is used again
            child = Strand(f"process {event.pid2}", event.pid2)
            strands[event.pid2] = child
            step.begins = child
            parent_of[event.pid2] = event.pid
            made_by[event.pid2] = number
            if event.flags & CLONE_VFORK:
                waits_for[event.pid2] = event.pid
        elif event.op == "exit":
            if event.pid in waits_for:
                resumed[waits_for.pop(event.pid)] = number
            parent = parent_of.get(event.pid, 0)
            if parent:
                exits.setdefault(parent, []).append(number)
                if last_of.get(parent, -1) > made_by.get(event.pid, -1):
                    after.append(last_of[parent])
                else:
                    waited.add(number)
        elif event.op == "exec":
            made_by.setdefault(event.pid, number)
            if event.pid in waits_for:
                resumed[waits_for.pop(event.pid)] = number
        if key in resumed and resumed[key] != number:
            after.append(resumed.pop(key))
        step.after = tuple(after)
        strand.steps.append(step)
        last_of[key] = number
    return Parallel(list(events[:cut]), begun, nr_steps)


def _set_up(events: Sequence[Event]) -> int:
    """How many events are set-up."""
    for number, event in enumerate(events):
        if event.op == "mark":
            return number
    for number, event in enumerate(events):
        if event.op == "fork":
            return number
    return 0
