# SPDX-License-Identifier: GPL-2.0-or-later
"""RCU in virtual time: readers, grace periods, and objects that wait for them (kernel/rcu/tree.c, seen from far away).

A grace period ends when all sections that had begun before it are over, and not before its usual length has passed.
The objects that it frees are held until then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mypy_extensions import i64

from rmaplab.sync.errors import Finding
from rmaplab.sync.virtual.agenda import Event
from rmaplab.sync.virtual.core import Core
from rmaplab.sync.virtual.prices import GRACE_PERIOD
from rmaplab.sync.virtual.task import Task


class _Deferred:
    """What is freed after a grace period."""

    def __init__(self, what: str, then: Callable[[], None] | None) -> None:
        self.what: Final = what
        self.then: Final = then


class GracePeriods:
    """Grace periods, one at a time: while one runs, what is deferred waits for the next.

    count:     how many began
    held:      objects that wait now, by type; most_held: at most
    """

    def __init__(self, core: Core) -> None:
        self.count = 0
        self.held: Final[dict[str, int]] = {}
        self.most_held: Final[dict[str, int]] = {}
        self._core: Final = core
        self._length: Final[i64] = core.work.price(GRACE_PERIOD)
        self._for_next: list[_Deferred] = []
        self._for_this: list[_Deferred] = []
        self._asked = False  # for the next to begin
        self._runs = False
        self._ends: i64 = 0
        self._readers = 0  # that it waits for

    def enter(self, task: Task) -> None:
        reader = task.reader
        if reader.depth == 0 and reader.left <= self._core.agenda.now:
            reader.entered = task.time
        reader.depth += 1

    def leave(self, task: Task) -> None:
        reader = task.reader
        if reader.depth == 0:
            raise Finding(f"{task.name} leaves an RCU section that it is not in")
        reader.depth -= 1
        if reader.depth == 0:
            self._core.work.charge(task)
            reader.left = task.time
            if reader.awaited:
                reader.awaited = False
                if task.time > self._ends:
                    self._ends = task.time
                self._readers -= 1
                self._end_if_possible()

    def call(self, task: Task, what: str, then: Callable[[], None] | None) -> None:
        """Do `then` after a grace period."""
        self._core.work.charge(task)
        self._for_next.append(_Deferred(what, then))
        held = self.held.get(what, 0) + 1
        self.held[what] = held
        if held > self.most_held.get(what, 0):
            self.most_held[what] = held
        if not self._runs and not self._asked:
            self._asked = True
            self._core.agenda.push(task.time, _Begin(self))

    def begin(self) -> None:
        """Whoever is in a section now has to leave it first."""
        now = self._core.agenda.now
        self._asked = False
        self._runs = True
        self.count += 1
        self._for_this = self._for_next
        self._for_next = []
        self._ends = now + self._length
        self._readers = 0
        for cpu in self._core.cpus.all:
            task = cpu.task
            if task is not None and task.reader.entered <= now:
                if task.reader.depth:
                    task.reader.awaited = True
                    self._readers += 1
                elif task.reader.left > self._ends:
                    self._ends = task.reader.left
        self._end_if_possible()

    def end(self) -> None:
        """All readers have left: free what waited."""
        core = self._core
        self._runs = False
        current = core.current
        core.current = None
        for deferred in self._for_this:
            self.held[deferred.what] -= 1
            if deferred.then is not None:
                deferred.then()
        core.current = current
        self._for_this = []
        core.work.defer()
        if self._for_next:
            self.begin()

    def _end_if_possible(self) -> None:
        if self._readers == 0:
            self._core.agenda.push(self._ends, _End(self))


class _Begin(Event):
    """A grace period begins."""

    def __init__(self, periods: GracePeriods) -> None:
        super().__init__()
        self._periods: Final = periods

    def happen(self) -> None:
        self._periods.begin()


class _End(Event):
    """A grace period is over."""

    def __init__(self, periods: GracePeriods) -> None:
        super().__init__()
        self._periods: Final = periods

    def happen(self) -> None:
        self._periods.end()
