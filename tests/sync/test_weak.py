# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory model on the shapes that everybody knows: what a load may return, and which ordering forbids it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rmaplab.sync.errors import Finding
from rmaplab.sync.interleave import Execution, Scenario, explore
from rmaplab.sync.locks import Rcu, SpinLock
from rmaplab.sync.order import (
    atomic,
    initialised,
    read_once,
    read_plain,
    smp_load_acquire,
    smp_mb,
    smp_rmb,
    smp_store_release,
    smp_wmb,
    write_once,
)
from rmaplab.sync.weak import WeakExecution
from rmaplab.sync.work import Ledger, LockClass


class Cell:
    """A word of shared memory."""

    def __init__(self, value: Any = 0) -> None:
        self.value = value


def once(execution: Execution, cell: Cell, what: str = "load") -> Any:
    return read_once(execution, what, cell, "value", cell.value)


def put(execution: Execution, cell: Cell, value: Any, what: str = "store") -> None:
    write_once(execution, what, cell, "value")
    cell.value = value


Program = Callable[[Execution, list[Cell], dict[str, Any]], list[Callable[[], None]]]


def outcomes(program: Program, *names: str, weakened: frozenset[str] = frozenset(), reduce: bool = True) -> set[Any]:
    """What the registers `names` can hold together at the end."""
    seen: set[Any] = set()

    def build(execution: Execution) -> Callable[[], None]:
        cells = [Cell(), Cell()]
        registers: dict[str, Any] = {}
        for number, body in enumerate(program(execution, cells, registers)):
            execution.add(str(number), body)
        return lambda: seen.add(tuple(registers.get(name) for name in names))

    found = explore(
        Scenario("shape", build), reduce=reduce, stop_at_first=False, begin=lambda: WeakExecution(weakened)
    )
    assert found.exhausted
    if found.failures:
        raise found.failures[0].error
    return seen


def message_passing(write: str, read: str) -> Program:
    def program(e: Execution, cells: list[Cell], r: dict[str, Any]) -> list[Callable[[], None]]:
        data, flag = cells

        def writer() -> None:
            put(e, data, 1)
            if write == "release":
                smp_store_release(e, "publish", flag, "value")
            else:
                if write == "wmb":
                    smp_wmb(e, "wmb")
                write_once(e, "publish", flag, "value")
            flag.value = 1

        def reader() -> None:
            if read == "acquire":
                r["flag"] = smp_load_acquire(e, "look", flag, "value", flag.value)
            else:
                r["flag"] = once(e, flag)
                if read == "rmb":
                    smp_rmb(e, "rmb")
            r["data"] = once(e, data)

        return [writer, reader]

    return program


STALE = (1, 0)


@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("write", ["once", "wmb", "release"])
@pytest.mark.parametrize("read", ["once", "rmb", "acquire"])
def test_a_message_arrives_whole_only_if_both_sides_order_it(write: str, read: str, reduce: bool) -> None:
    seen = outcomes(message_passing(write, read), "flag", "data", reduce=reduce)
    assert {(0, 0), (0, 1), (1, 1)} <= seen
    assert (STALE in seen) is ("once" in (write, read))


@pytest.mark.parametrize(("taken", "write"), [("publish", "release"), ("wmb", "wmb"), ("look", "release")])
def test_an_ordering_that_is_taken_away_is_missed(taken: str, write: str) -> None:
    program = message_passing(write, "acquire")
    assert STALE in outcomes(program, "flag", "data", weakened=frozenset([taken]))


@pytest.mark.parametrize("fenced", [True, False])
def test_store_buffering_takes_full_barriers_to_forbid(fenced: bool) -> None:
    def program(e: Execution, cells: list[Cell], r: dict[str, Any]) -> list[Callable[[], None]]:
        def side(mine: Cell, other: Cell, name: str) -> Callable[[], None]:
            def body() -> None:
                put(e, mine, 1)
                if fenced:
                    smp_mb(e, "mb")
                r[name] = once(e, other)

            return body

        return [side(cells[0], cells[1], "a"), side(cells[1], cells[0], "b")]

    assert ((0, 0) in outcomes(program, "a", "b")) is not fenced


def test_a_task_does_not_see_a_location_go_back() -> None:
    def program(e: Execution, cells: list[Cell], r: dict[str, Any]) -> list[Callable[[], None]]:
        def reader() -> None:
            r["first"] = once(e, cells[0])
            r["second"] = once(e, cells[0])

        return [lambda: put(e, cells[0], 1), reader]

    assert outcomes(program, "first", "second") == {(0, 0), (0, 1), (1, 1)}


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("released", [True, False])
def test_a_fresh_object_is_seen_whole_through_a_release_and_a_dependency(marked: bool, released: bool) -> None:
    """b6ac0b3f6013: a plain store published an anon_vma whose fields were not there yet for other CPUs."""

    def program(e: Execution, cells: list[Cell], r: dict[str, Any]) -> list[Callable[[], None]]:
        pointer = cells[0]
        pointer.value = None

        def writer() -> None:
            fresh = Cell(7)
            initialised(e, "fill in", fresh, "value")
            (smp_store_release if released else write_once)(e, "publish", pointer, "value")
            pointer.value = fresh

        def reader() -> None:
            load = read_once if marked else read_plain
            fresh = load(e, "find", pointer, "value", pointer.value)
            if isinstance(fresh, Cell):
                r["value"] = once(e, fresh)

        return [writer, reader]

    if marked and released:
        assert outcomes(program, "value") == {(None,), (7,)}
    else:
        with pytest.raises(Finding, match="before it is initialised"):
            outcomes(program, "value")


def test_what_a_lock_covers_is_as_new_as_its_last_owner_left_it() -> None:
    def program(e: Execution, cells: list[Cell], r: dict[str, Any]) -> list[Callable[[], None]]:
        lock = SpinLock(LockClass("lock"), e)

        def writer() -> None:
            lock.lock()
            put(e, cells[0], 1)
            put(e, cells[1], 1)
            lock.unlock()

        def reader() -> None:
            lock.lock()
            r["a"] = once(e, cells[0])
            r["b"] = once(e, cells[1])
            lock.unlock()

        return [writer, reader]

    assert outcomes(program, "a", "b") == {(0, 0), (1, 1)}


def test_two_unordered_stores_are_a_race() -> None:
    def program(e: Execution, cells: list[Cell], r: dict[str, Any]) -> list[Callable[[], None]]:
        return [lambda: put(e, cells[0], 1), lambda: put(e, cells[0], 2)]

    with pytest.raises(Finding, match="nothing orders them"):
        outcomes(program)


def test_atomics_that_return_a_value_order_what_is_around_them() -> None:
    def program(e: Execution, cells: list[Cell], r: dict[str, Any]) -> list[Callable[[], None]]:
        count = Cell(1)

        def last(name: str, mine: Cell, other: Cell) -> Callable[[], None]:
            def body() -> None:
                put(e, mine, 1)
                atomic(e, "drop", count, "value")
                count.value -= 1
                if count.value < 0:
                    r[name] = once(e, other)

            return body

        return [last("a", cells[0], cells[1]), last("b", cells[1], cells[0])]

    assert outcomes(program, "a", "b") == {(1, None), (None, 1)}
    assert (0, None) in outcomes(program, "a", "b", weakened=frozenset(["drop"]))


def unlinked(free: Callable[[Execution, Rcu, Cell], None]) -> Program:
    """A cell is taken out and freed while somebody may be reading it in an RCU section."""

    def program(e: Execution, cells: list[Cell], r: dict[str, Any]) -> list[Callable[[], None]]:
        rcu = Rcu(Ledger("test"), e)
        old = Cell(0)
        pointer = cells[0]
        pointer.value = old

        def writer() -> None:
            put(e, pointer, None)
            free(e, rcu, old)

        def reader() -> None:
            rcu.read_lock()
            found = once(e, pointer)
            if found is not None:
                r["value"] = once(e, found)
            rcu.read_unlock()

        return [writer, reader]

    return program


def test_a_reader_that_a_grace_period_does_not_wait_for_sees_all_before_it() -> None:
    """tools/memory-model, RCU's guarantee: either the reader's section is over first, or it sees what came before."""
    later = unlinked(lambda e, rcu, old: rcu.call("old", old))
    assert outcomes(later, "value") == {(0,), (None,)}


def test_memory_that_is_freed_at_once_is_not_safe_in_a_section() -> None:
    with pytest.raises(Finding, match="use after free"):
        outcomes(unlinked(lambda e, rcu, old: e.free("old", old)), "value")


def test_it_matters_which_of_two_full_atomics_comes_first() -> None:
    """Whichever comes later finds what the other's task had stored before, though they are of different words: an order
    in which the reader's comes first has to be tried, too."""

    def program(e: Execution, cells: list[Cell], r: dict[str, Any]) -> list[Callable[[], None]]:
        data, flag = cells
        mine, its = Cell(), Cell()

        def writer() -> None:
            put(e, data, 1)
            atomic(e, "writer's", mine, "value")
            put(e, flag, 1)

        def reader() -> None:
            atomic(e, "reader's", its, "value")
            r["flag"] = once(e, flag)
            r["data"] = once(e, data)

        return [writer, reader]

    every = outcomes(program, "flag", "data", reduce=False)
    assert (1, 0) in every
    assert outcomes(program, "flag", "data") == every
