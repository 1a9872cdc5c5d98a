# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures of locks and operations.

Operations have numbers, 0 for none; all times are picoseconds.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import i64

from rmaplab.sync.virtual.task import Task


class HoldFigures:
    """For how long one operation held locks of one class."""

    def __init__(self) -> None:
        self.time: i64 = 0


class WaitFigures:
    """Waits of one operation for another, for one class of locks."""

    def __init__(self) -> None:
        self.count = 0
        self.total: i64 = 0
        self.longest: i64 = 0


class ClassFigures:
    """What was seen of the locks of one class.

    acquired:  times taken, also by a try; refused: tries in vain
    moved:     times that the cache line came from another CPU, and how long that took in all
    waits:     by whether for writing, operation that waited, and operation that had the lock when the wait began
    read, written: for how long each operation, by its number, held them
    covers_nodes: they protect trees whose nodes move with them
    """

    def __init__(self, name: str, type: str, covers_nodes: bool) -> None:
        self.name: Final = name
        self.type: Final = type
        self.covers_nodes: Final = covers_nodes
        self.acquired = 0
        self.refused = 0
        self.moved = 0
        self.moving: i64 = 0
        self.waits: Final[dict[tuple[bool, int, int], WaitFigures]] = {}
        self.read: Final[list[HoldFigures]] = []
        self.written: Final[list[HoldFigures]] = []

    def hold(self, write: bool, operation: int, time: i64) -> None:
        """An operation has had a lock of this class for so long; or it begins at `-time`, or ends at `time`."""
        held = self.written if write else self.read
        while operation >= len(held):
            held.append(HoldFigures())
        held[operation].time += time

    def wait(self, write: bool, operation: int, holder: int, time: i64) -> None:
        """An operation has waited so long for a lock that `holder` had."""
        key = (write, operation, holder)
        figures = self.waits.get(key)
        if figures is None:
            figures = WaitFigures()
            self.waits[key] = figures
        figures.count += 1
        figures.total += time
        if time > figures.longest:
            figures.longest = time


class Figures:
    """What was seen of all operations and classes of locks.

    operations: their names, by number; latencies: how long each took, each time
    classes:    of locks, by name, in the order in which they were first used
    lock_operations: times that a lock was taken or tried
    trace:      who did what on which CPU, from when to when, if that is kept
    """

    def __init__(self, trace: bool) -> None:
        self.operations: Final[list[str]] = [""]
        self.latencies: Final[list[list[int]]] = [[]]
        self.classes: Final[dict[str, ClassFigures]] = {}
        self.lock_operations = 0
        self.trace: Final[list[tuple[str, str, int, int, int]] | None] = [] if trace else None
        self._numbers: Final[dict[str, int]] = {"": 0}

    def number_of(self, operation: str) -> int:
        number = self._numbers.get(operation)
        if number is None:
            number = len(self.operations)
            self.operations.append(operation)
            self.latencies.append([])
            self._numbers[operation] = number
        return number

    def operation_ends(self, task: Task) -> None:
        """The operation of `task` ends at its time."""
        self.latencies[task.operation].append(task.time - task.began)
        if self.trace is not None:
            self.saw(task, self.operations[task.operation], task.began, task.time)

    def saw(self, task: Task, what: str, began: i64, ended: i64) -> None:
        """Note something for the timeline."""
        if self.trace is not None:
            self.trace.append((task.name, what, task.cpu, began, ended))
