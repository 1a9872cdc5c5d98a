# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks in virtual time: the base of all, spin locks and folio locks.

- spinlock_t (kernel/locking/qspinlock.c): first come, first served; a waiter keeps its CPU.
- the folio lock (mm/filemap.c folio_lock()): first come, first served; a waiter sleeps.

The protected data follows its last writer: each node of a design's trees that is visited under a lock of that design
takes a hand-over if another CPU had the lock for writing since this one had it.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import i64

from rmaplab.sync.errors import Finding
from rmaplab.sync.locks import Data, Word
from rmaplab.sync.virtual.agenda import Event
from rmaplab.sync.virtual.core import Core
from rmaplab.sync.virtual.figures import ClassFigures
from rmaplab.sync.virtual.lines import comes, move
from rmaplab.sync.virtual.task import Owned, Task


class Waiter:
    """A task that waits for a lock since a time; `holder` is the operation of who had it when the wait began."""

    def __init__(self, task: Task, write: bool, holder: int) -> None:
        self.task: Final = task
        self.write: Final = write
        self.since: Final[i64] = task.time
        self.holder: Final = holder
        self.granted = False
        self.woken = False


_NOBODY: Final[list[Waiter]] = []  # waits for most locks


class LockState(Word, Owned):
    """Who holds a lock and who waits for it; lives in the lock, and is a word that CPUs change in turn.

    This base class knows what it is to hold one; subclasses decide who gets it (`grab`, `stand`, `pass_on`).
    """

    def __init__(self, core: Core, figures: ClassFigures, handover: i64) -> None:
        super().__init__()
        self.core: Final = core
        self.figures: Final = figures  # of its class
        self.handover: Final[i64] = handover
        self.writer: Task | None = None
        self.waiters = _NOBODY  # in the order in which they came
        self.holder = 0  # operation of who took it last
        self.since: i64 = 0  # when the writer took it
        self.data: Final = Data() if figures.covers_nodes else None
        self.fetching: Final[dict[Task, int]] = {}  # who finds the data elsewhere, and the nodes visited before

    # Who gets it

    def grab(self, task: Task, write: bool) -> bool:
        """`task` has come and takes the lock if it need not wait."""
        raise NotImplementedError

    def try_grab(self, task: Task, write: bool) -> bool:
        """The same for somebody who would not wait."""
        return self.grab(task, write)

    def stand(self, waiter: Waiter) -> None:
        """Wait until the lock is granted."""
        raise NotImplementedError

    def pass_on(self, task: Task, write: bool, downgrade: bool) -> None:
        """`task` does not have the lock any more, or (`downgrade`) only for reading: who is next?"""
        raise NotImplementedError

    def taken(self, task: Task) -> None:
        """`task` holds it for writing."""

    def given(self, task: Task) -> None:
        """`task` does not hold it for writing any more."""

    def owner_sleeps(self) -> None:
        """Nobody cares."""

    def enqueue(self, waiter: Waiter) -> None:
        """`waiter` goes to the end of the queue."""
        if self.waiters is _NOBODY:
            self.waiters = []
        self.waiters.append(waiter)

    def grant(self, waiter: Waiter) -> None:
        """`waiter`, which is in no queue any more, has the lock from now on, and may go on."""
        task = waiter.task
        waiter.granted = True
        if task.running:
            self.core.cpus.spin_until_now(task)
            self.core.agenda.push(task.time, task)
        elif not waiter.woken:
            self.core.cpus.make_ready(task)

    # Having it

    def acquire(self, task: Task, write: bool) -> None:
        if not self.grab(task, write):
            waiter = Waiter(task, write, self.holder)
            task.waits_for = self.figures.name
            self.stand(waiter)
            task.waits_for = ""
            self._note_wait(waiter)
        self._take(task, write)

    def try_acquire(self, task: Task, write: bool) -> bool:
        if not self.try_grab(task, write):
            self._touch(task)
            self.figures.refused += 1
            return False
        self._take(task, write)
        return True

    def release(self, task: Task, write: bool) -> None:
        task.held.locks -= 1
        if self.fetching and task in self.fetching:
            moving = (task.nodes - i64(self.fetching.pop(task))) * self.handover
            task.time += moving
            self.figures.moving += moving
        if write:
            if self.writer is not task:
                raise Finding(f"{task.name} gives back {self.figures.name}, which it does not hold")
            self.given(task)
            self.figures.hold(True, task.operation, task.time - self.since)
        else:
            self._touch(task)
            self.figures.hold(False, task.operation, task.time)
        self._give(task, write, False)

    def downgrade(self, task: Task) -> None:
        if self.writer is not task:
            raise Finding(f"{task.name} downgrades {self.figures.name}, which it does not hold")
        self.given(task)
        self.figures.hold(True, task.operation, task.time - self.since)
        self.figures.hold(False, task.operation, -task.time)
        self._give(task, True, True)

    def _take(self, task: Task, write: bool) -> None:
        """`task` has the lock."""
        self._touch(task)
        figures = self.figures
        figures.acquired += 1
        self.holder = task.operation
        task.held.locks += 1
        if self.data is not None and comes(self.data, task.cpu, write):
            self.fetching[task] = task.nodes
        if write:
            self.since = task.time
            self.taken(task)
        else:
            figures.hold(False, task.operation, -task.time)

    def _touch(self, task: Task) -> None:
        """`task` changes the lock's cache line."""
        before = task.time
        if move(self, task, self.handover):
            self.figures.moved += 1
            self.figures.moving += task.time - before

    def _give(self, task: Task, write: bool, downgrade: bool) -> None:
        """The lock is given back at the time of `task`: at once if nothing comes before that."""
        agenda = self.core.agenda
        if agenda.due(task.time):
            agenda.push(task.time, Release(self, task, write, downgrade))
        else:
            agenda.now = task.time
            self.released(task, write, downgrade)

    def released(self, task: Task, write: bool, downgrade: bool) -> None:
        """It is given back now, and who gets it is woken by `task`."""
        cpus = self.core.cpus
        cpus.waker = task
        self.pass_on(task, write, downgrade)
        cpus.waker = None

    def _note_wait(self, waiter: Waiter) -> None:
        task = waiter.task
        figures = self.core.figures
        self.figures.wait(waiter.write, task.operation, waiter.holder, task.time - waiter.since)
        if figures.trace is not None:
            what = f"waits for {self.figures.name} ({figures.operations[waiter.holder]})"
            figures.saw(task, what, waiter.since, task.time)


class Release(Event):
    """A lock is given back, or kept for reading only."""

    def __init__(self, state: LockState, task: Task, write: bool, downgrade: bool) -> None:
        super().__init__()
        self._state: Final = state
        self._task: Final = task
        self._write: Final = write
        self._downgrade: Final = downgrade

    def happen(self) -> None:
        self._state.released(self._task, self._write, self._downgrade)


class FolioLock(LockState):
    """First come, first served; who waits sleeps."""

    def grab(self, task: Task, write: bool) -> bool:
        if self.writer is not None or self.waiters:
            return False
        self.writer = task
        return True

    def stand(self, waiter: Waiter) -> None:
        task = waiter.task
        task.might_sleep(self.figures.name)
        self.enqueue(waiter)
        self.core.sleep(task)

    def pass_on(self, task: Task, write: bool, downgrade: bool) -> None:
        self.writer = None
        if self.waiters:
            first = self.waiters.pop(0)
            self.writer = first.task
            self.grant(first)


class SpinLock(FolioLock):
    """First come, first served; who waits keeps its CPU."""

    def stand(self, waiter: Waiter) -> None:
        self.enqueue(waiter)
        self.core.spin(waiter.task)

    def taken(self, task: Task) -> None:
        task.held.spinlocks += 1

    def given(self, task: Task) -> None:
        task.held.spinlocks -= 1
