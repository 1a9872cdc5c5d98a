# SPDX-License-Identifier: GPL-2.0-or-later
"""Litmus tests on the memory that `race --memory weak` has (sync/memory.py, sync/weak.py).

Each location is an object with one field, each process a task, and each operation what sync/ offers for it; so the
views, and the reduction of orders with them, are held against herd7 as they are.  Stores that race are no mistake here.

A lock has a word, too, which spin_is_locked() reads.  A trylock that fails finds the lock as it is, not as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from litmus.operations import (
    ACQUIRE,
    MB,
    NORETURN,
    ONCE,
    RELEASE,
    Fence,
    IsLocked,
    Lock,
    Number,
    Operation,
    Program,
    Read,
    Unlock,
    Update,
    Value,
    Write,
)
from rmaplab.sync import order
from rmaplab.sync.interleave import Execution, Scenario, explore
from rmaplab.sync.locks import SpinLock
from rmaplab.sync.memory import NOTHING, View, join
from rmaplab.sync.weak import WeakExecution
from rmaplab.sync.work import LockClass

_ORDERS: Final = {ONCE: order.ONCE, ACQUIRE: order.ACQUIRE, RELEASE: order.RELEASE, MB: order.FULL}


class _Cell:
    """A location."""

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self.value: Any = 0


class _Run:
    """One execution of a test."""

    def __init__(self, execution: WeakExecution, initial: Mapping[str, Number]) -> None:
        self.execution: Final = execution
        self.cells: Final[dict[str, _Cell]] = {}
        self.locks: Final[dict[str, SpinLock]] = {}
        self.words: Final[dict[str, _Cell]] = {}
        self.lock_class: Final = LockClass("spinlock_t", tried=True)
        self.loads: Final[list[View]] = []  # what came with each
        for name, number in initial.items():
            self.cell(name).value = self.stored(number)

    def cell(self, name: Number) -> _Cell:
        return self.cells.setdefault(str(name), _Cell(str(name)))

    def stored(self, number: Number) -> Any:
        """Pointers are objects here."""
        return self.cell(number) if isinstance(number, str) else number

    def state(self) -> dict[str, Number]:
        return {name: _number(cell.value) for name, cell in self.cells.items()}

    def task(self, number: int, program: Callable[[], Program]) -> Callable[[], None]:
        def body() -> None:
            running = program()
            result: Value | None = None
            while True:
                try:
                    operation = next(running) if result is None else running.send(result)
                except StopIteration:
                    return
                result = self.perform(number, operation)

        return body

    def perform(self, number: int, operation: Operation) -> Value:
        done = Value(0, frozenset())
        execution = self.execution
        if isinstance(operation, Fence):
            self.fence(operation.kind)
            return done
        if isinstance(operation, Lock | Unlock):
            return Value(self.lock(str(operation.location.number), operation), frozenset())
        if isinstance(operation, IsLocked):
            word = self.word(str(operation.location.number))
            value = order.read_once(execution, "load", word, "value", word.value)
            return Value(_number(value), self.loaded(number))
        cell = self.cell(operation.location.number)
        self.leads(number, operation.location, cell)
        if isinstance(operation, Read):
            load = order.smp_load_acquire if operation.order == ACQUIRE else order.read_once
            value = load(execution, "load", cell, "value", cell.value)
            return Value(_number(value), self.loaded(number))
        if isinstance(operation, Write):
            store = order.smp_store_release if operation.order == RELEASE else order.write_once
            store(execution, "store", cell, "value")
            cell.value = self.stored(operation.value.number)
            return done
        return self.update(number, cell, operation)

    def word(self, name: str) -> _Cell:
        return self.words.setdefault(name, _Cell(name))

    def lock(self, name: str, operation: Lock | Unlock) -> int:
        """Take or give back a lock.  Returns whether it was taken, or free."""
        lock = self.locks.setdefault(name, SpinLock(self.lock_class, self.execution))
        word = self.word(name)
        if isinstance(operation, Unlock):
            order.smp_store_release(self.execution, "unlock", word, "value")
            word.value = 0
            lock.unlock()
        elif operation.tries and not lock.try_lock():
            return 0
        else:
            if not operation.tries:
                lock.lock()
            order.write_once(self.execution, "lock", word, "value")
            word.value = 1
        return 1

    def update(self, number: int, cell: _Cell, operation: Update) -> Value:
        execution = self.execution
        if operation.order == NORETURN:
            order.atomic_inc(execution, "atomic", cell, "value")
        else:
            order.atomic(
                execution, "atomic", cell, "value", 0, _ORDERS[operation.order],
                lambda old: operation.change(_number(old)) is not None,
            )  # fmt: skip
        old = _number(execution.loaded(cell, "value", 0))
        new = operation.change(old)
        if new is not None:
            cell.value = self.stored(new)
        return Value(old, frozenset() if operation.order == NORETURN else self.loaded(number))

    def fence(self, kind: str) -> None:
        execution = self.execution
        if kind == "mb" or kind.startswith(("before-", "after-")):  # these are no stronger
            order.smp_mb(execution, "smp_mb()")
        elif kind == "rmb":
            order.smp_rmb(execution, "smp_rmb()")
        elif kind == "wmb":
            order.smp_wmb(execution, "smp_wmb()")
        elif kind == "rcu-lock":
            execution.rcu_enter()
        elif kind == "rcu-unlock":
            execution.rcu_leave()
        elif kind == "sync-rcu":
            execution.synchronize_rcu("synchronize_rcu()")

    # Dependencies by numbers: a value knows its loads

    def loaded(self, number: int) -> frozenset[int]:
        self.loads.append(self.execution.memory.tasks[number].last)
        return frozenset([len(self.loads) - 1])

    def leads(self, number: int, location: Value, cell: _Cell) -> None:
        """The loads that an address was computed from lead to its location."""
        if location.after:
            last = NOTHING
            for load in location.after:
                last = join(last, self.loads[load])
            self.execution.memory.tasks[number].last = last
            order.depends(self.execution, "load", cell)


def _number(value: Any) -> Number:
    return value.name if isinstance(value, _Cell) else value


class RaceMemory:
    """The memory of `race --memory weak` (operations.Memory).  `weakened`: names of orderings that are taken away:
    load, store, atomic, smp_mb(), smp_rmb(), smp_wmb()"""

    nothing: Final = frozenset[int]()

    def __init__(self, weakened: Sequence[str] = (), *, reduce: bool = True) -> None:
        self.weakened: Final = frozenset(weakened)
        self.reduce: Final = reduce

    def explore(
        self,
        initial: Mapping[str, Number],
        programs: Sequence[Callable[[], Program]],
        ended: Callable[[Mapping[str, Number]], None],
    ) -> None:
        def build(execution: Execution) -> Callable[[], None]:
            assert isinstance(execution, WeakExecution)
            run = _Run(execution, initial)
            for number, program in enumerate(programs):
                execution.add(f"P{number}", run.task(number, program))
            return lambda: ended(run.state())

        found = explore(
            Scenario("litmus", build),
            reduce=self.reduce,
            stop_at_first=False,
            begin=lambda: WeakExecution(self.weakened, True, True),
        )
        for failure in found.failures:
            if not str(failure.error).startswith("deadlock"):
                raise failure.error
