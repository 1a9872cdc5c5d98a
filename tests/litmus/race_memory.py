# SPDX-License-Identifier: GPL-2.0-or-later
"""Litmus tests on the memory that `race --memory weak` has (sync/memory.py, sync/weak.py).

Each location is an object with one field, each process a task, and each operation what sync/ offers for it; so the
views, and the reduction of orders with them, are held against herd7 as they are.

What sync/ does not offer is refused (`NotOffered`): atomics that return a value and are not fully ordered or may fail,
trylock, spin_is_locked(); and stores to one location that nothing orders, which the memory takes for a mistake of the
program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from litmus.operations import (
    ACQUIRE,
    MB,
    NORETURN,
    RELEASE,
    Fence,
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
from rmaplab.errors import CannotRun
from rmaplab.sync import order
from rmaplab.sync.errors import Finding
from rmaplab.sync.interleave import Execution, Scenario, explore
from rmaplab.sync.locks import SpinLock
from rmaplab.sync.memory import View, join
from rmaplab.sync.weak import WeakExecution
from rmaplab.sync.work import LockClass


class NotOffered(CannotRun):
    """The test has what sync/ has not: the message says what."""


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
        self.lock_class: Final = LockClass("spinlock_t")
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
            if isinstance(operation, Lock) and operation.tries:
                raise NotOffered("spin_trylock()")
            name = str(operation.location.number)
            lock = self.locks.get(name)
            if lock is None:
                lock = self.locks[name] = SpinLock(self.lock_class, execution)
            lock.lock() if isinstance(operation, Lock) else lock.unlock()
            return done
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
        if isinstance(operation, Update):
            return self.update(cell, operation)
        raise NotOffered("spin_is_locked()")

    def update(self, cell: _Cell, operation: Update) -> Value:
        if operation.order not in (MB, NORETURN):
            raise NotOffered("an atomic that returns a value and is not fully ordered")
        if operation.order == MB:
            order.atomic(self.execution, "atomic", cell, "value")
        else:
            order.atomic_inc(self.execution, "atomic", cell, "value")
        old = _number(cell.value)
        new = operation.change(old)
        if new is None:
            raise NotOffered("an atomic that fails")
        cell.value = self.stored(new)
        return Value(old, frozenset())

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
        elif kind != "barrier":
            raise NotOffered(kind)

    # Dependencies by numbers: a value knows its loads

    def loaded(self, number: int) -> frozenset[int]:
        self.loads.append(dict(self.execution.memory.tasks[number].last))
        return frozenset([len(self.loads) - 1])

    def leads(self, number: int, location: Value, cell: _Cell) -> None:
        """The loads that an address was computed from lead to its location."""
        if location.after:
            last: View = {}
            for load in location.after:
                join(last, self.loads[load])
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
        """:raises NotOffered: sync/ has not what the test asks for"""

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
            begin=lambda: WeakExecution(self.weakened, True),
        )
        for failure in found.failures:
            if isinstance(failure.error, Finding) and str(failure.error).startswith("deadlock"):
                continue
            if isinstance(failure.error, Finding):
                raise NotOffered(str(failure.error))
            raise failure.error
