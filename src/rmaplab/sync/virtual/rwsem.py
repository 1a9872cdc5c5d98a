# SPDX-License-Identifier: GPL-2.0-or-later
"""rw_semaphore in virtual time, after Linux 6.12 (kernel/locking/rwsem.c).

- A reader takes a lock that no writer has or waits for.
- A writer that finds it taken spins while the owner runs on a CPU, one spinner at a time, the others behind it
  (osq_lock()), and takes it when it becomes free although others sleep in the queue; it gives up on readers after 10 to
  25 us, and on an owner that sleeps.
- Sleepers are woken in order, readers together (at most 256), a writer to try again; one that tries in vain after 4 ms
  gets the next turn by hand-off.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import i64

from rmaplab.sync.errors import Finding
from rmaplab.sync.virtual.agenda import Event
from rmaplab.sync.virtual.core import Core
from rmaplab.sync.virtual.figures import ClassFigures
from rmaplab.sync.virtual.locks import LockState, Waiter
from rmaplab.sync.virtual.prices import MICROSECOND
from rmaplab.sync.virtual.task import Owned, Task

HANDOFF_AFTER: Final = 4000 * MICROSECOND  # RWSEM_WAIT_TIMEOUT
WOKEN_AT_ONCE: Final = 256  # MAX_READERS_WAKEUP

# Which readers, or which waiter, a wake-up is for (enum rwsem_wake_type).
_ANY: Final = 0
_READERS: Final = 1
_READ_OWNED: Final = 2


class Semaphore(LockState):
    """Who holds a semaphore, who spins for it, and (`waiters`) who sleeps until it is free."""

    def __init__(self, core: Core, figures: ClassFigures, handover: i64) -> None:
        super().__init__(core, figures, handover)
        self.readers = 0
        self.reader_owned = False
        self.spinners: list[Waiter] | None = None  # the first looks at the owner, the others at each other
        self.no_spinning = False  # RWSEM_NONSPINNABLE
        self.deadline = 0  # number of the last time limit for spinning on readers
        self.handoff: Waiter | None = None

    def taken(self, task: Task) -> None:
        task.held.semaphores.append(self)

    def given(self, task: Task) -> None:
        _drop(task.held.semaphores, self)

    # Coming

    def grab(self, task: Task, write: bool) -> bool:
        if write:
            if self.writer is None and self.readers == 0 and self.handoff is None:
                # The fast path; or, with sleepers in the queue, a spinner that need not spin.
                if not self.waiters or (not self.no_spinning and not self.spinners):
                    self._own(task)
                    return True
            return False
        waiting = len(self.waiters) > 0
        if self.writer is not None or self.handoff is not None:
            return False
        if waiting and self.readers > 0:
            return False  # a stream of readers does not starve a writer
        self.readers += 1
        self.reader_owned = True
        if waiting:
            self._mark_wake(_READ_OWNED)
        if self.readers == 1:
            self._spin_on_readers()
        return True

    def try_grab(self, task: Task, write: bool) -> bool:
        if self.writer is not None or self.waiters or self.handoff is not None:
            return False
        if write:
            if self.readers:
                return False
            self.writer = task
            self.reader_owned = False
        else:
            self.readers += 1
            self.reader_owned = True
        return True

    def _own(self, task: Task) -> None:
        self.writer = task
        self.reader_owned = False
        self.no_spinning = False

    # Waiting

    def stand(self, waiter: Waiter) -> None:
        core = self.core
        task = waiter.task
        if waiter.write and self._may_spin(task):
            if self.spinners is None:
                self.spinners = []
            self.spinners.append(waiter)
            if len(self.spinners) == 1 and self.reader_owned and self.readers:
                self._spin_on_readers()
            core.spin(task)
        else:
            task.might_sleep(self.figures.name)
            self.enqueue(waiter)
            if waiter.granted or (waiter.write and self._try_queued(waiter)):
                return
            core.sleep(task)
        while not waiter.granted and not self._try_queued(waiter):
            waiter.woken = False
            core.sleep(task)

    def _may_spin(self, task: Task) -> bool:
        """rwsem_can_spin_on_owner()"""
        if self.no_spinning:
            return False
        owner = self.writer
        if owner is not None and not owner.running:
            return False
        return not self.core.cpus.need_resched(task)

    def _spin_on_readers(self) -> None:
        """Readers have the lock: who spins for writing does so for a limited time (rwsem_rspin_threshold())."""
        if self.spinners:
            self.deadline += 1
            limit = (20 + min(self.readers, 30)) * MICROSECOND // 2
            self.core.agenda.push(self.core.agenda.now + limit, _Deadline(self, self.deadline))

    def stop_spinning(self) -> None:
        """Those who spin join the queue and sleep."""
        spinners = self.spinners
        if not spinners:
            return
        self.spinners = None
        self.deadline += 1
        cpus = self.core.cpus
        for waiter in spinners:
            cpus.spin_until_now(waiter.task)
            self.enqueue(waiter)
            cpus.leave(waiter.task)

    def owner_sleeps(self) -> None:
        self.stop_spinning()  # nobody spins on an owner that sleeps

    def enqueue(self, waiter: Waiter) -> None:
        super().enqueue(waiter)
        if self.writer is None and len(self.waiters) > (1 if waiter.write else 0):
            # rwsem_cond_wake_waiter()
            self._mark_wake(_READERS if self.readers else _ANY)

    def _try_queued(self, waiter: Waiter) -> bool:
        """rwsem_try_write_lock(): a writer in the queue tries for itself."""
        if self.handoff is not None and self.handoff is not waiter:
            return False
        if self.writer is not None or self.readers:
            if self.core.agenda.now - waiter.since > HANDOFF_AFTER:
                self.handoff = self.waiters[0]
            return False
        self.handoff = None
        self.waiters.remove(waiter)
        self._own(waiter.task)
        return True

    # Going

    def pass_on(self, task: Task, write: bool, downgrade: bool) -> None:
        if write:
            self.writer = None
            if downgrade:
                self.readers += 1
                self.reader_owned = True
                if self.waiters:
                    self._mark_wake(_READ_OWNED)
                self._spin_on_readers()
                return
        else:
            if self.readers == 0:
                raise Finding(f"{task.name} gives back {self.figures.name}, which nobody holds for reading")
            self.readers -= 1
        if self.readers == 0:
            self._freed()

    def _freed(self) -> None:
        """Nobody has the semaphore now: who spins takes it, and who sleeps is woken (rwsem_wake())."""
        chosen = self.handoff
        if chosen is not None and chosen.write:
            self.handoff = None
            self.waiters.remove(chosen)
            self._own(chosen.task)
            self.grant(chosen)
            return
        if self.spinners and chosen is None:
            first = self.spinners.pop(0)
            self.deadline += 1
            self._own(first.task)
            self.grant(first)
        if self.waiters:
            if self.writer is None:
                self.no_spinning = False
            self._mark_wake(_ANY)

    def _mark_wake(self, kind: int) -> None:
        """rwsem_mark_wake()"""
        waiters = self.waiters
        first = waiters[0]
        if first.write:
            if kind == _ANY and not first.woken:
                first.woken = True
                self.core.cpus.make_ready(first.task)
            return
        if kind != _READ_OWNED and self.writer is not None:
            if self.core.agenda.now - first.since > HANDOFF_AFTER:
                self.handoff = first
            return
        granted: list[Waiter] = []
        left: list[Waiter] = []
        for waiter in waiters:
            if waiter.write or len(granted) == WOKEN_AT_ONCE:
                left.append(waiter)
            else:
                granted.append(waiter)
        self.waiters = left
        first_readers = self.readers == 0
        self.readers += len(granted)
        self.reader_owned = True
        self.handoff = None
        for waiter in granted:
            self.grant(waiter)
        if first_readers:
            self._spin_on_readers()


class _Deadline(Event):
    """A writer that spins on readers gives up, unless something changed meanwhile."""

    def __init__(self, state: Semaphore, number: int) -> None:
        super().__init__()
        self._state: Final = state
        self._number: Final = number

    def happen(self) -> None:
        state = self._state
        if self._number == state.deadline:
            state.no_spinning = True
            state.stop_spinning()


def _drop(held: list[Owned], state: Semaphore) -> None:
    """Take `state` out of what a task holds; mostly it was taken last, or first."""
    if held[-1] is state:
        held.pop()
        return
    for i in range(len(held)):
        if held[i] is state:
            del held[i]
            return
