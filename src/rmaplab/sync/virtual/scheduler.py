# SPDX-License-Identifier: GPL-2.0-or-later
"""The scheduler in virtual time, which dispatches each operation of a task to the part of the simulation concerned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, cast

from mypy_extensions import i64

from rmaplab.sync.fields import look
from rmaplab.sync.locks import CpuMask, Data, Lock, RwSemaphore, Scheduler, Word
from rmaplab.sync.seqcount import SequenceCount
from rmaplab.sync.virtual.agenda import Agenda
from rmaplab.sync.virtual.core import Core
from rmaplab.sync.virtual.cpus import SLICE, Call, Cpus
from rmaplab.sync.virtual.figures import ClassFigures, Figures
from rmaplab.sync.virtual.lines import comes, move
from rmaplab.sync.virtual.locks import FolioLock, LockState, SpinLock
from rmaplab.sync.virtual.poll import poll
from rmaplab.sync.virtual.prices import HANDOVER, CostOf, Work
from rmaplab.sync.virtual.rcu import GracePeriods
from rmaplab.sync.virtual.rwsem import Semaphore
from rmaplab.sync.virtual.task import Task
from rmaplab.sync.virtual.tlb import Tlbs
from rmaplab.sync.work import Ledger


class VirtualTime(Scheduler):
    """Tasks on `cpus` simulated CPUs.  Build what they share with it as the scheduler, `watch` the ledgers that
    count their work, `spawn` tasks, and `run`.  Until then, and afterwards, operations pass through.

    cost_of: nanoseconds per unit, by key: a tally's name, `alloc POOL`, `free POOL`, `lock CLASS`, and prices.py's
    slice:   picoseconds that a task may keep its CPU while others are ready
    trace:   keep what happened when, for a timeline
    spread:  how many times its cost a wake-up takes: one of these, at random for a seed that is always the same; () if
             all take as long
    """

    def __init__(
        self,
        cpus: int,
        cost_of: CostOf,
        slice: int = SLICE,
        trace: bool = False,
        spread: Sequence[float] = (),
    ) -> None:
        agenda = Agenda()
        self.work: Final = Work(cost_of)
        self.cpus: Final = Cpus(cpus, agenda, self.work, slice, spread)
        self.figures: Final = Figures(trace)
        self.core: Final = Core(agenda, self.work, self.cpus, self.figures)
        self.rcu: Final = GracePeriods(self.core)
        self.tlbs: Final = Tlbs(self.core)
        self._handover: Final[i64] = self.work.price(HANDOVER)

    # From outside

    def watch(self, ledger: Ledger) -> None:
        """Work that `ledger` counts takes time from now on."""
        self.work.watch(ledger)

    def spawn(self, name: str, body: Callable[[], None], cpu: int = -1, space: CpuMask | None = None) -> Task:
        """A task that begins now, on `cpu` alone or (-1) wherever there is room, in the address space `space`."""
        nr_cpus = len(self.cpus.all)
        if cpu >= nr_cpus:
            raise ValueError(f"{name} cannot run on CPU {cpu}: there are {nr_cpus}, counted from 0")
        task = Task(name, body, cpu, space)
        self.core.spawn(task, self.clock())
        return task

    def run(self) -> None:
        """Let all tasks run to their ends, and grace periods, too.

        :raises Finding: nobody can go on, or a rule of locking was broken
        """
        self.core.run()

    @property
    def ended(self) -> int:
        """When the last task came to its end."""
        return self.core.ended

    # What tasks say about themselves

    @property
    def current(self) -> Task | None:
        """The task that asks."""
        return self.core.current

    def clock(self) -> int:
        """The time of the task that asks, or of what happened last."""
        task = self.core.current
        if task is None:
            return self.core.agenda.now
        self.work.charge(task)
        return task.time

    def begin(self, operation: str) -> None:
        """The task begins an operation, whose latency is to be known."""
        task = self.core.current
        if task is not None:
            number = self.figures.number_of(operation)
            self.work.charge(task)
            task.operation = number
            task.began = task.time

    def end(self) -> None:
        """The operation is over; another task may get the CPU."""
        task = self.core.current
        if task is not None:
            self.work.charge(task)
            self.figures.operation_ends(task)
            task.operation = 0
            if self.cpus.need_resched(task):
                self.core.arrive(task)
                self.core.sleep_until(task, task.time)

    def sleep_until(self, time: int) -> None:
        """The task gives up its CPU until then."""
        task = self.core.current
        if task is not None:
            self.work.charge(task)
            if time > task.time:
                self.core.arrive(task)
                task.might_sleep("until a time")
                self.core.sleep_until(task, time)

    def sleep(self) -> None:
        """The task gives up its CPU until somebody calls `wake`."""
        task = self.core.current
        if task is not None:
            self.core.arrive(task)
            task.might_sleep("until it is woken")
            if task.woken:
                task.woken = False
                return
            task.asleep = True
            self.core.sleep(task)

    def wake(self, task: Task) -> None:
        """`task`, which sleeps, is to go on; if it does not sleep, its next sleep is over at once."""
        self.core.agenda.push(self.clock(), Call(self.cpus, task))

    def runs_in(self, space: CpuMask) -> None:
        """The task is in this address space from now on."""
        task = self.core.current
        if task is not None:
            self.tlbs.runs_in(task, space)

    # Locks

    def acquire(self, lock: object, write: bool) -> None:
        task = self.core.current
        if task is not None:
            self.core.arrive(task)
            self.figures.lock_operations += 1
            self._state(cast(Lock, lock)).acquire(task, write)

    def try_acquire(self, lock: object, write: bool) -> bool:
        task = self.core.current
        if task is None:
            return True
        self.core.arrive(task)
        self.figures.lock_operations += 1
        return self._state(cast(Lock, lock)).try_acquire(task, write)

    def release(self, lock: object, write: bool) -> None:
        task = self.core.current
        if task is not None:
            self.work.charge(task)
            self._state(cast(Lock, lock)).release(task, write)

    def downgrade(self, lock: object) -> None:
        task = self.core.current
        if task is not None:
            self.work.charge(task)
            self._state(cast(Lock, lock)).downgrade(task)

    def _state(self, lock: Lock) -> LockState:
        known = lock.state
        if known is not None:
            return cast(LockState, known)
        lock_class = lock.lock_class
        figures = self.figures.classes.get(lock_class.name)
        rwsem = isinstance(lock, RwSemaphore)
        if figures is None:
            kind = "rwsem" if rwsem else "folio lock" if lock_class.sleeps else "spinlock"
            figures = ClassFigures(lock_class.name, kind, self.work.covers_nodes(lock_class.name))
            self.figures.classes[lock_class.name] = figures
        state: LockState
        if rwsem:
            state = Semaphore(self.core, figures, self._handover)
        elif lock_class.sleeps:
            state = FolioLock(self.core, figures, self._handover)
        else:
            state = SpinLock(self.core, figures, self._handover)
        lock.state = state
        return state

    def might_sleep(self, what: str) -> None:
        task = self.core.current
        if task is not None:
            task.might_sleep(what)

    # RCU, TLBs, and what is no lock

    def rcu_enter(self) -> None:
        task = self.core.current
        if task is not None:
            self.rcu.enter(task)

    def rcu_leave(self) -> None:
        task = self.core.current
        if task is not None:
            self.rcu.leave(task)

    def rcu_call(self, what: str, subject: object, then: Callable[[], None] | None = None) -> None:
        task = self.core.current
        if task is not None:
            self.rcu.call(task, what, then)
        elif then is not None:
            then()

    def flush(self, space: CpuMask, freed_tables: bool = False) -> None:
        task = self.core.current
        if task is not None:
            self.tlbs.flush(task, space, freed_tables)

    def flush_later(self, space: CpuMask, dirty: bool) -> None:
        task = self.core.current
        if task is not None:
            self.tlbs.flush_later(task, space, dirty)

    def flush_deferred(self, if_dirty: bool = False) -> None:
        task = self.core.current
        if task is not None:
            self.tlbs.flush_deferred(task, if_dirty)

    def point(self, what: str, subject: object, write: bool = False) -> None:
        if write and isinstance(subject, Word):
            task = self.core.current
            if task is not None:
                if subject.cpu >= 0 and subject.cpu != task.cpu:
                    self.work.charge(task)
                move(subject, task, self._handover)

    def load(self, what: str, subject: object, field: str, index: int, order: int, whole: object) -> object:
        self._reach(subject if whole is None else whole, False)
        return look(subject, field, index)

    def store(self, what: str, subject: object, field: str, index: int, order: int, whole: object) -> None:
        self._reach(subject if whole is None else whole, True)

    def _reach(self, data: object, write: bool) -> None:
        """The task reads or changes `data`, which others read without a lock."""
        if isinstance(data, Data):
            task = self.core.current
            if task is not None and comes(data, task.cpu, write):
                task.time += self._handover

    def wait(self, what: str, subject: object, ready: Callable[[], bool]) -> None:
        if not ready():
            task = self.core.current
            if task is None:
                raise RuntimeError(f"waiting for {what}, and nobody else runs who could bring it about")
            poll(self.core, task, what, ready, isinstance(subject, SequenceCount))
