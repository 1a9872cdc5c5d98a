# SPDX-License-Identifier: GPL-2.0-or-later
"""The reduction held against plain depth-first search, on programs that Hypothesis makes up."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rmaplab.sync.errors import Finding
from rmaplab.sync.fields import VERSION, part
from rmaplab.sync.interleave import Execution, Scenario, explore, wander
from rmaplab.sync.locks import RwSemaphore, SpinLock
from rmaplab.sync.order import (
    ONCE,
    atomic,
    read_once,
    smp_load_acquire,
    smp_mb,
    smp_rmb,
    smp_store_release,
    write_once,
)
from rmaplab.sync.seqcount import SequenceCount
from rmaplab.sync.weak import WeakExecution
from rmaplab.sync.work import LockClass

# A program is a few tasks; a task a few operations, each on one of two of its kind.
OPERATIONS = (
    "load",
    "store",
    "add",
    "spin",
    "unspin",
    "read",
    "write",
    "release",
    "try",
    "rcu",
    "call",
    "use",
    "wait",
    "find",
    "find all",
    "put",
    "put all",
)
Program = list[list[tuple[str, int]]]
T = TypeVar("T")


class Cell:
    def __init__(self) -> None:
        self.value = 0


def holds_something(cell: Cell) -> bool:
    return cell.value != 0


class Table:
    """Two rows, either of which one may look at or change alone."""

    def __init__(self) -> None:
        self.rows = [0, 0]

    def frozen(self) -> Table:
        """A copy that stays as it is."""
        copy = Table()
        copy.rows = list(self.rows)
        return copy


class Shared:
    """What the tasks of a program share."""

    def __init__(self, execution: Execution) -> None:
        self.cells = [Cell(), Cell()]
        self.spins = [SpinLock(LockClass(f"spin {i}"), execution) for i in range(2)]
        self.rwsems = [RwSemaphore(LockClass(f"rwsem {i}"), execution) for i in range(2)]
        self.tried = [SpinLock(LockClass(f"tried {i}", tried=True), execution) for i in range(2)]
        self.things = [Cell(), Cell()]
        self.table = Table()
        self.seen: dict[int, list[int]] = {}


def body(
    execution: Execution, shared: Shared, number: int, program: list[tuple[str, int]]
) -> Callable[[], None]:
    def run() -> None:
        spins: list[SpinLock] = []
        rwsems: list[tuple[RwSemaphore, bool]] = []
        seen: list[int] = []
        shared.seen[number] = seen
        inside = False
        for what, i in program:
            cell = shared.cells[i]
            if what == "load":
                execution.point("cell", cell)
                seen.append(cell.value)
            elif what == "store":
                execution.point("cell", cell, True)
                cell.value = 10 * (number + 1) + len(seen)
            elif what == "add":
                execution.point("cell", cell, True)
                cell.value += 1
            elif what == "spin" and shared.spins[i] not in spins:
                shared.spins[i].lock()
                spins.append(shared.spins[i])
            elif what == "unspin" and spins:
                spins.pop().unlock()
            elif what in ("read", "write") and shared.rwsems[i] not in [rwsem for rwsem, _ in rwsems]:
                if what == "read":
                    shared.rwsems[i].down_read()
                else:
                    shared.rwsems[i].down_write()
                rwsems.append((shared.rwsems[i], what == "write"))
            elif what == "release" and rwsems:
                rwsem, write = rwsems.pop()
                if write:
                    rwsem.up_write()
                else:
                    rwsem.up_read()
            elif what == "try" and shared.tried[i] not in spins:
                got = shared.tried[i].try_lock()
                seen.append(int(got))
                if got:
                    spins.append(shared.tried[i])
            elif what == "rcu":
                if inside:
                    execution.rcu_leave()
                else:
                    execution.rcu_enter()
                inside = not inside
            elif what == "call" and number == 0:
                execution.rcu_call("thing", shared.things[i])
            elif what == "use":
                execution.touch("thing", shared.things[i])
            elif what == "wait":
                execution.wait("cell", cell, partial(holds_something, cell))
                seen.append(cell.value)
            elif what.startswith("find"):
                row = 0 if what == "find all" else part(i, i)
                read_once(execution, "table", shared.table, VERSION, shared.table, row)
                seen.extend(shared.table.rows if what == "find all" else [shared.table.rows[i]])
            elif what.startswith("put"):
                row = 0 if what == "put all" else part(i, i)
                if what == "put as another":  # a mistake
                    row = part(1 - i, 1 - i)
                smp_store_release(execution, "table", shared.table, VERSION, row)
                for at in range(2):
                    if at == i or what == "put all":
                        shared.table.rows[at] += 10 * (number + 1) + len(seen)
        if inside:
            execution.rcu_leave()
        while spins:
            spins.pop().unlock()
        while rwsems:
            rwsem, write = rwsems.pop()
            if write:
                rwsem.up_write()
            else:
                rwsem.up_read()

    return run


def outcomes(
    program: Program, *, reduce: bool, preemptions: int = -1, walks: int = 0, limit: int = 3000
) -> tuple[set[str], int]:
    """What can come of it: every set of values seen with what the cells hold in the end, and every error."""
    found: set[str] = set()

    def build(execution: Execution) -> Callable[[], None]:
        shared = Shared(execution)
        for number, operations in enumerate(program):
            execution.add(f"task {number}", body(execution, shared, number, operations))

        def check() -> None:
            found.add(f"{sorted(shared.seen.items())} {[cell.value for cell in shared.cells]} {shared.table.rows}")

        return check

    scenario = Scenario("made up", build)
    if walks:
        outcome = wander(scenario, walks, 1, stop_at_first=False)
    else:
        outcome = explore(scenario, reduce=reduce, preemptions=preemptions, stop_at_first=False, limit=limit)
    for failure in outcome.failures:
        assert isinstance(failure.error, Finding)
        found.add(str(failure.error))
    return found, outcome.executions if walks or outcome.exhausted else -1


def assert_same(reduced: set[str], plain: set[str]) -> None:
    """Every good end, and errors if there are any; an error ends its run, so that of several that do not hang together
    the one may hide the other."""
    ends = {outcome for outcome in plain if outcome.startswith("[")}
    assert ends == {outcome for outcome in reduced if outcome.startswith("[")}
    assert reduced <= plain and bool(reduced - ends) == bool(plain - ends)


def assert_among(few: set[str], many: set[str]) -> None:
    """Every good end of `few` is one of `many`, and if there are errors in `few`, there are in `many`."""
    ends = {outcome for outcome in few if outcome.startswith("[")}
    assert ends <= many
    assert few == ends or any(not outcome.startswith("[") for outcome in many)


operation = st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 1))
programs = st.lists(st.lists(operation, min_size=1, max_size=4), min_size=2, max_size=3)


def test_a_change_that_is_told_of_another_row_hides_what_it_does_to_this_one() -> None:
    for what, hidden in [("put", False), ("put all", False), ("put as another", True)]:
        program = [[(what, 0)], [("find", 0)]]
        plain, _ = outcomes(program, reduce=False)
        reduced, _ = outcomes(program, reduce=True)
        assert reduced < plain if hidden else reduced == plain


@given(programs)
@settings(max_examples=60, deadline=None)
def test_what_reduction_leaves_out_changes_nothing(program: Program) -> None:
    plain, number = outcomes(program, reduce=False)
    if number < 0:
        return  # too many to try them all
    reduced, fewer = outcomes(program, reduce=True)
    assert_same(reduced, plain)
    assert fewer <= number


@given(programs, st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_what_reduction_within_a_bound_leaves_out_changes_nothing(program: Program, preemptions: int) -> None:
    plain, number = outcomes(program, reduce=False, preemptions=preemptions)
    if number < 0:
        return
    reduced, _ = outcomes(program, reduce=True, preemptions=preemptions)
    assert_among(plain, reduced)
    whole, number = outcomes(program, reduce=False)
    if number >= 0:
        assert_among(reduced, whole)


@given(programs)
@settings(max_examples=15, deadline=None)
def test_random_walks_come_by_nothing_that_cannot_be(program: Program) -> None:
    plain, number = outcomes(program, reduce=False)
    if number >= 0:
        assert outcomes(program, reduce=True, walks=40)[0] <= plain


# Sequence counts: a writer changes two cells under one; a reader looks at one or both until they did not change, or
# notes what it sees on the way.


class Plain:
    """What reads a sequence count again is a load like any other."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self.count = SequenceCount(execution, "count")

    def changed(self, begun: int) -> bool:
        smp_rmb(self.execution, "count: read_seqcount_retry()")
        found = read_once(self.execution, "sequence count", self.count, "sequence", self.count.sequence)
        return found != begun


class Counted(Plain):
    """As the kernel's name for it has it: it only learns whether the count changed."""

    def changed(self, begun: int) -> bool:
        return self.count.read_retry(begun)


class Careless(Plain):
    """A mistake: the search believes that the count had changed twice before, and once more than that."""

    def changed(self, begun: int) -> bool:
        self.execution.load_changed("sequence count", self.count, "sequence", ONCE, begun - 2)
        return self.count.sequence != begun


class Secretive(Counted):
    """A mistake: who notes what it sees says that it did nothing."""

    def changed(self, begun: int) -> bool:
        self.execution.looked(self)
        return super().changed(begun)


# For an execution, what a task does, given its number and its operations, and what there is to be seen at the end.
Play = Callable[[Execution], tuple[Callable[[int, list[T]], None], Callable[[], str]]]


def ends_of(
    program: list[list[T]], play: Play[T], *, reduce: bool, preemptions: int, limit: int,
    begin: Callable[[], Execution],
) -> tuple[set[str], int, set[str]]:  # fmt: skip
    """What can be seen at the end; of how many executions, -1: too many to try them all; what broke."""
    found: set[str] = set()

    def build(execution: Execution) -> Callable[[], None]:
        task, end = play(execution)
        for number, operations in enumerate(program):
            execution.add(f"task {number}", partial(task, number, operations))
        return lambda: found.add(end())

    outcome = explore(
        Scenario("made up", build), reduce=reduce, preemptions=preemptions, stop_at_first=False, limit=limit,
        begin=begin,
    )  # fmt: skip
    number = outcome.executions if outcome.exhausted else -1
    return found, number, {str(failure.error) for failure in outcome.failures}


def reads_and_writes(
    program: list[list[str]], kind: type[Plain], begin: type[Execution], *, reduce: bool, preemptions: int = -1
) -> tuple[set[str], int]:
    def play(execution: Execution) -> tuple[Callable[[int, list[str]], None], Callable[[], str]]:
        cells = [Cell(), Cell()]
        note = Cell()
        counted = kind(execution)
        lock = SpinLock(LockClass("writers"), execution)
        seen: dict[int, list[object]] = {}

        def load(cell: Cell) -> int:
            return cast(int, read_once(execution, "cell", cell, "value", cell.value))

        def task(number: int, operations: list[str]) -> None:
            mine = seen.setdefault(number, [])
            for what in operations:
                if what == "change":
                    lock.lock()
                    counted.count.write_begin()
                    for cell in cells:
                        write_once(execution, "cell", cell, "value")
                        cell.value += 1 + number
                    counted.count.write_end()
                    lock.unlock()
                elif what == "load":
                    mine.append((load(cells[0]), load(note)))
                else:
                    changed = True
                    while changed:
                        begun = counted.count.read_begin()
                        found = [load(cell) for cell in cells[: 1 + (what != "look")]]
                        if what == "look and note":
                            atomic(execution, "note", note, "value", order=ONCE)
                            note.value += found[0] + found[1]
                        changed = counted.changed(begun)
                    mine.append(found)

        return task, lambda: f"{sorted(seen.items())} {[cell.value for cell in (*cells, note)]}"

    found, number, broken = ends_of(
        program, play, reduce=reduce, preemptions=preemptions, limit=1000, begin=begin
    )
    assert not broken
    return found, number


of_counts = st.lists(
    st.lists(st.sampled_from(["change", "look", "look at both", "look and note", "load"]), min_size=1, max_size=2),
    min_size=2,
    max_size=2,
)


@pytest.mark.parametrize("begin", [Execution, WeakExecution])
@given(of_counts, st.integers(-1, 2))
@settings(max_examples=15, deadline=None)
def test_a_reader_that_starts_again_need_not_see_each_change(
    begin: type[Execution], program: list[list[str]], preemptions: int
) -> None:
    plain, number = reads_and_writes(program, Plain, begin, reduce=False, preemptions=preemptions)
    if number < 0:
        return
    reduced, fewer = reads_and_writes(program, Counted, begin, reduce=True, preemptions=preemptions)
    assert plain <= reduced if preemptions >= 0 else reduced == plain and fewer <= number


def test_it_leaves_out_what_does_not_matter_and_no_more() -> None:
    program = [["change", "change"], ["look at both"]]
    plain, number = reads_and_writes(program, Plain, Execution, reduce=True)
    counted, fewer = reads_and_writes(program, Counted, Execution, reduce=True)
    assert counted == plain and (number, fewer) == (107, 3)
    careless, _ = reads_and_writes(program, Careless, Execution, reduce=True)
    assert careless < plain


def test_who_looks_again_after_it_acted_is_not_as_if_it_had_waited() -> None:
    program = [["change"], ["look and note"]]
    plain, _ = reads_and_writes(program, Plain, Execution, reduce=False)
    assert reads_and_writes(program, Counted, Execution, reduce=True)[0] == plain
    assert reads_and_writes(program, Secretive, Execution, reduce=True)[0] < plain


# Weak memory: rows of one table, each change of which is published, and a cell that is written and read beside it.

of_rows = st.lists(
    st.lists(
        st.tuples(
            st.sampled_from(["look", "look at all", "acquire by a look", "change", "change all", "load", "store"]),
            st.integers(0, 1),
        ),
        min_size=1,
        max_size=4,
    ),
    min_size=2,
    max_size=3,
)


def looks_and_changes(
    program: Program, *, apart: bool, reduce: bool = True, preemptions: int = -1, weakened: frozenset[str] = frozenset()
) -> tuple[set[str], int]:
    """What readers of a table can see; `apart`: a row is looked at and changed as such, not as the whole table."""

    def play(execution: Execution) -> tuple[Callable[[int, list[tuple[str, int]]], None], Callable[[], str]]:
        table = Table()
        cells = [Cell(), Cell()]
        lock = SpinLock(LockClass("writers"), execution)
        seen: dict[int, list[object]] = {}

        def task(number: int, operations: list[tuple[str, int]]) -> None:
            mine = seen.setdefault(number, [])
            for what, i in operations:
                where = part(i, i) if apart and "all" not in what else 0
                if "look" in what:
                    load = smp_load_acquire if what.startswith("acquire") else read_once
                    rows = cast(Table, load(execution, "look", table, VERSION, table, where)).rows
                    mine.append(list(rows) if "all" in what else rows[i])
                elif what.startswith("change"):
                    lock.lock()
                    smp_store_release(execution, "change", table, VERSION, where)
                    for row in range(2):
                        if row == i or "all" in what:
                            table.rows[row] += number + 1
                    lock.unlock()
                elif what == "load":
                    mine.append(read_once(execution, "load", cells[i], "value", cells[i].value))
                elif number == 0:
                    write_once(execution, "store", cells[i], "value")
                    cells[i].value += 1

        return task, lambda: f"{sorted(seen.items())} {table.rows}"

    found, number, broken = ends_of(
        program, play, reduce=reduce, preemptions=preemptions, limit=1000, begin=partial(WeakExecution, weakened)
    )
    return found | broken, number


@given(of_rows, st.integers(-1, 2))
@settings(max_examples=40, deadline=None)
def test_rows_that_are_told_apart_show_what_the_whole_table_shows(program: Program, preemptions: int) -> None:
    plain, number = looks_and_changes(program, apart=False, reduce=False, preemptions=preemptions)
    if number < 0:
        return
    reduced, fewer = looks_and_changes(program, apart=True, preemptions=preemptions)
    assert plain <= reduced if preemptions >= 0 else reduced == plain and fewer <= number


def test_who_looks_at_one_row_does_not_care_when_the_other_changed() -> None:
    program = [[("store", 0), ("change", 0), ("store", 1)], [("load", 1), ("acquire by a look", 1), ("load", 0)]]
    plain, number = looks_and_changes(program, apart=False)
    reduced, fewer = looks_and_changes(program, apart=True)
    assert reduced == plain and fewer < number


@pytest.mark.parametrize("taken", ["look", "change"])
def test_without_its_ordering_a_change_concerns_whoever_looks_at_the_table(taken: str) -> None:
    """The row that one looks at may be in the node that the change of another made anew."""
    program = [[("change", 0)], [("look", 1)]]
    broken = looks_and_changes(program, apart=True, weakened=frozenset([taken]))[0]
    assert any("before it is initialised" in outcome for outcome in broken)


# Weak memory: what loads may return, within a bound on preemptions.

of_cells = st.lists(
    st.lists(
        st.tuples(
            st.sampled_from(["load", "acquire", "store", "own", "publish", "add", "barrier", "locked", "rcu", "call"]),
            st.integers(0, 2),
        ),
        min_size=1,
        max_size=4,
    ),
    min_size=2,
    max_size=3,
)


def loads_and_stores(program: Program, *, reduce: bool, preemptions: int) -> tuple[set[str], int]:
    """What tasks can load.  A cell is stored to under a lock, or by one task alone."""

    def play(execution: Execution) -> tuple[Callable[[int, list[tuple[str, int]]], None], Callable[[], str]]:
        cells = [Cell(), Cell(), Cell()]
        owned = [Cell(), Cell(), Cell()]
        count = Cell()
        writers, lock = SpinLock(LockClass("writers"), execution), SpinLock(LockClass("lock"), execution)
        seen: dict[int, list[int]] = {}

        def load(cell: Cell) -> int:
            return cast(int, read_once(execution, "load", cell, "value", cell.value))

        def task(number: int, operations: list[tuple[str, int]]) -> None:
            mine = seen.setdefault(number, [])
            inside = False
            for what, i in operations:
                cell, own = cells[i], owned[i]
                if what == "load":
                    mine += [load(cell), load(own)]
                elif what == "acquire":
                    mine.append(cast(int, smp_load_acquire(execution, "acquire", own, "value", own.value)))
                elif what == "store":
                    writers.lock()
                    write_once(execution, "store", cell, "value")
                    cell.value += number + 1
                    writers.unlock()
                elif what == "own" and i == number:
                    write_once(execution, "own", own, "value")
                    own.value += 10
                elif what == "publish" and i == number:
                    smp_store_release(execution, "publish", own, "value")
                    own.value += 10
                elif what == "add":
                    atomic(execution, "add", count, "value", order=ONCE)
                    count.value += 1
                elif what == "barrier":
                    smp_mb(execution, "barrier")
                elif what == "locked":
                    lock.lock()
                    mine.append(load(own))
                    lock.unlock()
                elif what == "rcu":
                    if inside:
                        execution.rcu_leave()
                    else:
                        execution.rcu_enter()
                    inside = not inside
                elif what == "call" and number == 0:
                    execution.rcu_call("thing", object())
            if inside:
                execution.rcu_leave()

        return task, lambda: f"{sorted(seen.items())} {[cell.value for cell in (*cells, *owned, count)]}"

    found, number, broken = ends_of(
        program, play, reduce=reduce, preemptions=preemptions, limit=2000, begin=WeakExecution
    )
    assert not broken
    return found, number


# Who loads an old value under a lock after the other is through takes no preemption; who loads before it stores does.
OLD_UNDER_A_LOCK: Program = [
    [("locked", 0), ("locked", 0), ("locked", 1), ("locked", 0), ("locked", 1)],
    [("locked", 0), ("publish", 0), ("publish", 1), ("publish", 1)],
]


@given(of_cells, st.integers(0, 2))
@example(OLD_UNDER_A_LOCK, 0)
@settings(max_examples=40, deadline=None)
def test_old_values_within_a_bound_are_found(program: Program, preemptions: int) -> None:
    plain, number = loads_and_stores(program, reduce=False, preemptions=preemptions)
    if number < 0:
        return
    reduced, _ = loads_and_stores(program, reduce=True, preemptions=preemptions)
    assert plain <= reduced
    whole, number = loads_and_stores(program, reduce=False, preemptions=-1)
    if number >= 0:
        assert reduced <= whole


def test_a_search_within_a_bound_ends_where_one_without_would_go_on() -> None:
    """Four stores and four loads can be mixed in 70 ways.  The bound is looked at before a path is followed to its end,
    so what takes one more preemption is tried as well."""
    program: Program = [[("store", 0)] * 4, [("load", 0)] * 4]
    plain = [outcomes(program, reduce=False, preemptions=bound)[1] for bound in range(6)]
    assert plain == [2, 8, 26, 44, 62, 68]
    assert [outcomes(program, reduce=True, preemptions=bound)[1] for bound in range(5)] == plain[1:]


def test_who_waits_for_a_lock_is_not_preempted() -> None:
    program: Program = [[("spin", 0), ("store", 0), ("unspin", 0), ("store", 1)], [("spin", 0), ("store", 0)]]
    assert outcomes(program, reduce=True, preemptions=0)[1] == 2
