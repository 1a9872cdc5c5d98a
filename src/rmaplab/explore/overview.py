# SPDX-License-Identifier: GPL-2.0-or-later
"""A long history at a glance: where its steps begin, and its processes over time.

A film has a few hundred steps, and a history may have millions of events.  A step begins where something happens:
half of the steps begin at the events that matter most (births and ends of processes, then moves and reclaim, then other
changes of VMAs, then the turn of another process, then another operation), and the other half divide the longest of
these, again where most happens.  So a busy second does not take all steps, and a quiet hour is not one step.

Invariant: the same history gives the same steps, and every event is in exactly one.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmaplab.explore.parts import Life
from rmaplab.trace.events import OPS
from rmaplab.trace.history import History

LIVES: Final = 60  # processes that the overview shows one by one

_MATTERS: Final = {"exec": 5, "fork": 5, "exit": 5, "mremap": 4, "swap_out": 4, "migrate": 4, "ksm": 4, "uffd_move": 4}
_WEIGHT: Final = np.array([_MATTERS.get(op, 0 if op in ("fault", "mark") else 3) for op in OPS], dtype=np.int8)
_ANOTHER_PROCESS: Final = 2
_ANOTHER_OPERATION: Final = 1
TELLING: Final = 4  # events of this weight are described in words where they begin a step


def weight(op: str) -> int:
    """The weight of an operation in the overview: 0 (a fault) to 5 (a birth)."""
    return int(_WEIGHT[OPS.index(op)])


def cut(history: History, first: int, last: int, steps: int) -> list[int]:
    """Numbers of the last events of at most `steps` steps that events `first` to `last` (counted from 1) make up."""
    count = last - first + 1
    if count <= steps:
        return list(range(first, last + 1))
    ops = history.columns["op"][first - 1 : last]
    pids = history.columns["pid"][first - 1 : last]
    begins = _WEIGHT[ops]  # what is gained where a step begins with this event
    other = np.zeros(count, dtype=np.int8)
    other[1:] = np.where(
        pids[1:] != pids[:-1], _ANOTHER_PROCESS, np.where(ops[1:] != ops[:-1], _ANOTHER_OPERATION, 0)
    )
    gain = np.maximum(begins, other)
    chosen = {0, *_most(gain, steps // 2)}
    edges = sorted(chosen)
    ends = [*edges[1:], count]
    spans = list(zip(edges, ends, strict=True))
    while len(spans) < steps:
        at = max(range(len(spans)), key=lambda i: spans[i][1] - spans[i][0])
        begin, end = spans[at]
        if end - begin < 2:
            break
        middle = _best(gain[begin:end]) + begin
        spans[at : at + 1] = [(begin, middle), (middle, end)]
    return [first - 1 + end for _, end in spans]


def _most(gain: NDArray[np.int8], count: int) -> list[int]:
    """Positions of the `count` greatest gains; of equal ones, some all along."""
    found: list[int] = []
    for level in range(int(gain.max()), 0, -1):
        at = np.flatnonzero(gain == level)
        room = count - len(found)
        if len(at) > room:
            at = at[np.linspace(0, len(at) - 1, room).round().astype(np.int64)] if room else at[:0]
        found += at.tolist()
    return found


def _best(gain: NDArray[np.int8]) -> int:
    """Where to divide a step: at the greatest gain in its middle half."""
    quarter = len(gain) // 4
    low, high = max(1, quarter), max(2, len(gain) - quarter)
    part = gain[low:high]
    near = np.abs(np.arange(low, high) - len(gain) // 2)
    return low + int(np.lexsort((near, -part.astype(np.int64)))[0])


class _Process(NamedTuple):
    pid: int
    parent: int  # its number among all, -1: none
    born: int  # event


def lives(history: History, first: int, last: int) -> tuple[list[Life], int]:
    """The processes that live between events `first` and `last`, each after its parent and before its parent's younger
    children; and how many more there are.  Those with most events are shown, with their ancestors.
    """
    columns = history.columns
    op, pid, pid2 = columns["op"], columns["pid"], columns["pid2"]
    born = np.flatnonzero(np.isin(op, [OPS.index("exec"), OPS.index("fork"), OPS.index("exit")]))
    processes: list[_Process] = []
    ended: list[int] = []
    now: dict[int, int] = {}  # by pid: number of the process that has it
    for at in born.tolist():
        kind, who = OPS[op[at]], int(pid[at])
        if kind == "exit":
            number = now.pop(who, -1)
            if number >= 0:
                ended[number] = at + 1
            continue
        if kind == "fork":
            parent, who = now.get(who, -1), int(pid2[at])
        elif who in now:
            continue  # it executes another program
        else:
            parent = -1
        now[who] = len(processes)
        processes.append(_Process(who, parent, at + 1))
        ended.append(0)
    seen = [
        number
        for number, process in enumerate(processes)
        if process.born <= last and (ended[number] == 0 or ended[number] >= first)
    ]
    kept = _kept(processes, ended, seen, pid, len(history))
    children: dict[int, list[int]] = {}
    for number in kept:
        children.setdefault(processes[number].parent if processes[number].parent in kept else -1, []).append(number)
    result: list[Life] = []
    stack = [(number, 0) for number in reversed(children.get(-1, []))]
    while stack:
        number, depth = stack.pop()
        process = processes[number]
        parent = processes[process.parent].pid if process.parent >= 0 else 0
        result.append(Life(process.pid, parent, depth, process.born, ended[number]))
        stack += [(child, depth + 1) for child in reversed(children.get(number, []))]
    return result, len(seen) - len(result)


def _kept(
    processes: list[_Process], ended: list[int], seen: list[int], pid: NDArray[np.int32], count: int
) -> dict[int, None]:
    """Numbers of the processes to show, in the order of their births."""
    if len(seen) <= LIVES:
        return dict.fromkeys(seen)
    order = np.argsort(pid, kind="stable")
    sorted_pids = pid[order]

    def events(number: int) -> int:
        low, high = np.searchsorted(sorted_pids, [processes[number].pid, processes[number].pid + 1])
        of = order[low:high] + 1
        end = ended[number] or count
        return int(np.searchsorted(of, end, "right") - np.searchsorted(of, processes[number].born))

    kept: set[int] = set()
    for number in sorted(seen, key=lambda number: (-events(number), number)):
        line = [number]
        while processes[line[-1]].parent >= 0 and processes[line[-1]].parent not in kept:
            line.append(processes[line[-1]].parent)
        if len(kept) + len(line) > LIVES:
            break
        kept.update(line)
    return dict.fromkeys(number for number in seen if number in kept)
