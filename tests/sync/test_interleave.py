# SPDX-License-Identifier: GPL-2.0-or-later
"""The model checker on textbook races, whose numbers of interleavings are known."""

from __future__ import annotations

from collections.abc import Callable
from math import comb

import pytest

from rmaplab.sync.errors import Finding
from rmaplab.sync.execution import QUEUE
from rmaplab.sync.interleave import Execution, Scenario, estimate, explore, replay, wander
from rmaplab.sync.locks import Rcu, RwSemaphore, SpinLock
from rmaplab.sync.order import atomic_inc
from rmaplab.sync.work import Ledger, LockClass


class Cell:
    """A word of shared memory."""

    def __init__(self, value: int = 0) -> None:
        self.value = value


def load(execution: Execution, cell: Cell) -> int:
    execution.point("cell", cell, False)
    return cell.value


def store(execution: Execution, cell: Cell, value: int) -> None:
    execution.point("cell", cell, True)
    cell.value = value


def nothing() -> None:
    """A check that is satisfied with everything."""


def lost_update(execution: Execution) -> Callable[[], None]:
    cell = Cell()

    def increment() -> None:
        store(execution, cell, load(execution, cell) + 1)

    execution.add("one", increment)
    execution.add("two", increment)

    def check() -> None:
        assert cell.value == 2, f"an update was lost: {cell.value}"

    return check


def test_lost_update_has_six_interleavings_of_which_four_lose() -> None:
    outcome = explore(Scenario("lost update", lost_update), reduce=False, stop_at_first=False)
    assert (outcome.executions, len(outcome.failures), outcome.exhausted) == (6, 4, True)


def test_lost_update_has_four_orders_that_differ() -> None:
    outcome = explore(Scenario("lost update", lost_update), stop_at_first=False)
    assert (outcome.executions, len(outcome.failures), outcome.exhausted) == (4, 2, True)


def test_a_lock_around_the_update_loses_none() -> None:
    def build(execution: Execution) -> Callable[[], None]:
        cell = Cell()
        lock = SpinLock(LockClass("lock"), execution)

        def increment() -> None:
            lock.lock()
            store(execution, cell, load(execution, cell) + 1)
            lock.unlock()

        execution.add("one", increment)
        execution.add("two", increment)

        def check() -> None:
            assert cell.value == 2

        return check

    outcome = explore(Scenario("locked update", build), stop_at_first=False)
    assert (outcome.executions, outcome.failures) == (2, [])


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_steps_on_different_objects_have_one_order_that_differs(steps: int) -> None:
    def build(execution: Execution) -> Callable[[], None]:
        cells = [Cell(), Cell()]

        def writer(cell: Cell) -> Callable[[], None]:
            def body() -> None:
                for value in range(steps):
                    store(execution, cell, value)

            return body

        execution.add("one", writer(cells[0]))
        execution.add("two", writer(cells[1]))
        return nothing

    scenario = Scenario("independent", build)
    assert explore(scenario, reduce=False).executions == comb(2 * steps, steps)
    assert explore(scenario).executions == 1


@pytest.mark.parametrize("readers", [1, 2, 3])
def test_one_writer_among_readers_has_an_order_for_each_subset_that_goes_before(readers: int) -> None:
    def build(execution: Execution) -> Callable[[], None]:
        cell = Cell()
        execution.add("writer", lambda: store(execution, cell, 1))
        for number in range(readers):
            execution.add(f"reader {number}", lambda: nothing() if load(execution, cell) else None)
        return nothing

    assert explore(Scenario("readers", build)).executions == 2**readers


def opposite_orders(execution: Execution) -> Callable[[], None]:
    first = SpinLock(LockClass("first"), execution)
    second = SpinLock(LockClass("second"), execution)

    def nest(outer: SpinLock, inner: SpinLock) -> Callable[[], None]:
        def body() -> None:
            outer.lock()
            inner.lock()
            inner.unlock()
            outer.unlock()

        return body

    execution.add("one", nest(first, second))
    execution.add("two", nest(second, first))
    return nothing


def test_locks_in_opposite_orders_deadlock_in_one_of_three_orders() -> None:
    outcome = explore(Scenario("opposite orders", opposite_orders), stop_at_first=False)
    assert outcome.executions == 3
    assert [str(f.error) for f in outcome.failures] == [
        "deadlock: one waits for second and holds first; two waits for first and holds second"
    ]
    assert outcome.lock_order == {("first", "second"), ("second", "first")}


def test_a_reader_that_becomes_a_writer_waits_for_the_other_reader() -> None:
    def build(execution: Execution) -> Callable[[], None]:
        rwsem = RwSemaphore(LockClass("rwsem"), execution)
        other = RwSemaphore(LockClass("other"), execution)

        def body() -> None:
            rwsem.down_read()
            other.down_write()
            other.up_write()
            rwsem.up_read()
            rwsem.down_write()
            rwsem.up_write()

        execution.add("one", body)
        execution.add("two", body)
        return nothing

    outcome = explore(Scenario("inversion", build), stop_at_first=False)
    assert outcome.exhausted and outcome.failures == []

    def upgrade(execution: Execution) -> Callable[[], None]:
        rwsem = RwSemaphore(LockClass("rwsem"), execution)
        inner = RwSemaphore(LockClass("inner"), execution)

        def reader() -> None:
            rwsem.down_read()
            inner.down_write()
            inner.up_write()
            rwsem.up_read()

        def writer() -> None:
            inner.down_write()
            rwsem.down_write()
            rwsem.up_write()
            inner.up_write()

        execution.add("reader", reader)
        execution.add("writer", writer)
        return nothing

    failures = explore(Scenario("reader-writer inversion", upgrade), stop_at_first=False).failures
    assert [str(f.error).split(":")[0] for f in failures] == ["deadlock"]


def test_aba_fools_compare_and_swap() -> None:
    """A stack of two nodes: pop reads top and next, the other pops both and pushes the first again."""

    def build(execution: Execution) -> Callable[[], None]:
        top = Cell(1)
        following = {1: 2, 2: 0, 0: 0}
        popped: list[int] = []

        def compare_and_swap(old: int, new: int) -> bool:
            execution.point("top", top, True)
            if top.value != old:
                return False
            top.value = new
            return True

        def pop() -> int:
            old = load(execution, top)
            new = following[old]
            return old if compare_and_swap(old, new) else 0

        def victim() -> None:
            popped.append(pop())

        def rival() -> None:
            if pop() == 1 and pop() == 2:
                following[1] = load(execution, top)
                if compare_and_swap(following[1], 1):
                    popped.append(2)

        execution.add("victim", victim)
        execution.add("rival", rival)

        def check() -> None:
            assert not (2 in popped and top.value == 2), "node 2 was popped, and is on the stack"

        return check

    outcome = explore(Scenario("ABA", build), stop_at_first=False)
    assert [str(f.error).splitlines()[0] for f in outcome.failures] == ["node 2 was popped, and is on the stack"]


def reader_and_freer(grace_period: bool) -> Scenario:
    def build(execution: Execution) -> Callable[[], None]:
        pointer = Cell(1)
        thing = Cell(7)

        def reader() -> None:
            execution.rcu_enter()
            if load(execution, pointer):
                assert load(execution, thing) == 7
            execution.rcu_leave()

        def freer() -> None:
            store(execution, pointer, 0)
            if grace_period:
                execution.rcu_call("thing", thing)
            else:
                execution.free("thing", thing)

        execution.add("reader", reader)
        execution.add("freer", freer)
        return nothing

    return Scenario("reader and freer", build)


def test_a_free_without_a_grace_period_is_a_use_after_free() -> None:
    failures = explore(reader_and_freer(False), stop_at_first=False).failures
    assert failures
    assert {str(f.error) for f in failures} == {"use after free: reader cell after freer freed that thing"}


def test_a_grace_period_waits_for_the_reader() -> None:
    outcome = explore(reader_and_freer(True), stop_at_first=False)
    assert outcome.exhausted and outcome.failures == [] and outcome.executions > 1


def test_a_failure_replays_exactly() -> None:
    scenario = Scenario("lost update", lost_update)
    failure = explore(scenario).failures[0]
    again = replay(scenario, failure.path)
    assert again is not None
    assert [s.task for s in again.trace] == failure.path
    assert str(again.error).splitlines()[0] == str(failure.error).splitlines()[0]


def test_a_path_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        replay(Scenario("lost update", lost_update), [0, 0, 0])


def test_without_preemption_a_race_between_two_steps_is_not_seen() -> None:
    scenario = Scenario("lost update", lost_update)
    assert explore(scenario, reduce=False, preemptions=0, stop_at_first=False).failures == []
    assert explore(scenario, reduce=False, preemptions=1, stop_at_first=False).failures


def test_a_lock_given_back_by_who_does_not_hold_it_is_found() -> None:
    def build(execution: Execution) -> Callable[[], None]:
        lock = SpinLock(LockClass("lock"), execution)
        execution.add("one", lock.unlock)
        return nothing

    failure = explore(Scenario("unlock", build)).failures[0]
    assert isinstance(failure.error, Finding)
    assert "does not hold" in str(failure.error)


def test_a_lock_taken_twice_is_found() -> None:
    def build(execution: Execution) -> Callable[[], None]:
        lock = SpinLock(LockClass("lock"), execution)

        def body() -> None:
            lock.lock()
            lock.lock()

        execution.add("one", body)
        return nothing

    assert "waits for itself" in str(explore(Scenario("twice", build)).failures[0].error)


def mixed(rounds: int, reduce: bool, preemptions: int = -1) -> set[tuple[int, int]]:
    """What three tasks that read and write two cells can leave there."""
    seen: set[tuple[int, int]] = set()

    def build(execution: Execution) -> Callable[[], None]:
        cells = [Cell(1), Cell(2)]

        def mix(source: int, target: int, factor: int) -> Callable[[], None]:
            def body() -> None:
                for _ in range(rounds):
                    value = load(execution, cells[source])
                    store(execution, cells[target], value * factor + 1)

            return body

        execution.add("a", mix(0, 1, 2))
        execution.add("b", mix(1, 0, 3))
        execution.add("c", mix(0, 0, 5))
        return lambda: seen.add((cells[0].value, cells[1].value))

    assert explore(Scenario("mix", build), reduce=reduce, preemptions=preemptions).exhausted
    return seen


def test_reduction_finds_what_trying_everything_finds() -> None:
    assert mixed(1, reduce=True) == mixed(1, reduce=False)


@pytest.mark.parametrize("preemptions", [0, 1, 2])
def test_reduction_within_a_bound_finds_what_trying_everything_within_it_finds(preemptions: int) -> None:
    assert mixed(2, True, preemptions) >= mixed(2, False, preemptions)


def nested_readers(writer: bool) -> Scenario:
    """Two tasks that each hold one lock and want the other, the rwsem for reading alone; perhaps a writer."""

    def build(execution: Execution) -> Callable[[], None]:
        rwsem = RwSemaphore(LockClass("rwsem"), execution)
        lock = SpinLock(LockClass("lock", sleeps=True), execution)

        def outside() -> None:
            rwsem.down_read()
            lock.lock()
            lock.unlock()
            rwsem.up_read()

        def inside() -> None:
            lock.lock()
            rwsem.down_read()
            rwsem.up_read()
            lock.unlock()

        def write() -> None:
            rwsem.down_write()
            rwsem.up_write()

        execution.add("outside", outside)
        execution.add("inside", inside)
        if writer:
            execution.add("writer", write)
        return nothing

    return Scenario("nested readers", build)


def test_a_writer_that_waits_keeps_later_readers_out_and_may_close_a_circle() -> None:
    """Linux's rwsem is fair to writers: readers that nest with another lock in opposite orders are safe only as
    long as nobody wants to write."""
    two = explore(nested_readers(False), stop_at_first=False)
    assert (two.executions, two.failures, two.exhausted) == (2, [], True)
    three = explore(nested_readers(True), stop_at_first=False)
    assert three.exhausted
    assert [str(f.error) for f in three.failures] == [
        "deadlock: outside waits for lock and holds rwsem; inside waits for rwsem and holds lock;"
        " writer waits for rwsem"
    ]
    assert (three.executions, len(three.failures)) == (14, 1)


def test_the_writer_that_queues_first_is_the_first_to_write() -> None:
    def build(execution: Execution) -> Callable[[], None]:
        rwsem = RwSemaphore(LockClass("rwsem"), execution)
        wrote: list[str] = []

        def read() -> None:
            rwsem.down_read()
            rwsem.up_read()

        def write(name: str) -> Callable[[], None]:
            def body() -> None:
                rwsem.down_write()
                wrote.append(name)
                rwsem.up_write()

            return body

        execution.add("reader", read)
        for name in ("one", "two"):
            execution.add(name, write(name))

        def check() -> None:
            queued = [execution.tasks[step.task].name for step in execution.trace if step.kind == QUEUE]
            assert [name for name in wrote if name in queued] == queued

        return check

    outcome = explore(Scenario("hand-off", build), stop_at_first=False)
    assert outcome.exhausted and outcome.failures == []


def seen_release(tried: bool) -> Scenario:
    """Who holds a lock says so, and gives it back; another hears it, and tries the lock."""

    def build(execution: Execution) -> Callable[[], None]:
        lock = SpinLock(LockClass("lock", tried=tried), execution)
        said = Cell()
        heard: list[tuple[int, bool]] = []

        def holder() -> None:
            lock.lock()
            store(execution, said, 1)
            lock.unlock()

        def other() -> None:
            value = load(execution, said)
            got = lock.try_lock()
            heard.append((value, got))
            if got:
                lock.unlock()

        execution.add("holder", holder)
        execution.add("other", other)

        def check() -> None:
            assert heard != [(1, False)], "it was said, and the lock was not free"

        return check

    return Scenario("seen release", build)


def test_a_release_may_come_late_where_somebody_tries_the_lock() -> None:
    outcome = explore(seen_release(True), stop_at_first=False)
    assert [str(f.error).splitlines()[0] for f in outcome.failures] == ["it was said, and the lock was not free"]
    # The attempt comes before, within or after, if nothing was heard; within or after, if something was.
    assert outcome.executions == 5


def test_a_lock_whose_class_does_not_say_so_cannot_be_tried() -> None:
    failure = explore(seen_release(False)).failures[0]
    assert "was not declared so" in str(failure.error)


def test_a_part_is_gone_with_the_whole() -> None:
    def build(execution: Execution) -> Callable[[], None]:
        whole = Cell()
        part = Cell()

        def user() -> None:
            execution.point_in(whole, "part", part)
            execution.touch("whole", whole)

        execution.add("user", user)
        execution.add("freer", lambda: execution.free("thing", whole))
        return nothing

    outcome = explore(Scenario("part", build), stop_at_first=False)
    assert sorted(str(f.error) for f in outcome.failures) == [
        "use after free: user part after freer freed that thing",
        "use after free: user whole after freer freed that thing",
    ]
    assert (outcome.executions, outcome.exhausted) == (3, True)


@pytest.mark.parametrize(("adders", "orders"), [(2, 1), (3, 1)])
def test_counting_up_commutes(adders: int, orders: int) -> None:
    def build(execution: Execution) -> Callable[[], None]:
        cell = Cell()

        def add() -> None:
            atomic_inc(execution, "count", cell, "value")
            cell.value += 1

        for number in range(adders):
            execution.add(f"adder {number}", add)
        return nothing

    assert explore(Scenario("adders", build)).executions == orders


def test_random_walks_find_a_lost_update_and_their_path_replays() -> None:
    scenario = Scenario("lost update", lost_update)
    failure = wander(scenario, 50, 1).failures[0]
    again = replay(scenario, failure.path)
    assert again is not None and [s.task for s in again.trace] == failure.path
    assert [f.path for f in wander(scenario, 50, 1).failures] == [failure.path]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_number_of_orders_is_estimated(steps: int) -> None:
    def build(execution: Execution) -> Callable[[], None]:
        cells = [Cell(), Cell()]

        def writer(cell: Cell) -> Callable[[], None]:
            def body() -> None:
                for _ in range(steps):
                    store(execution, cell, 1)

            return body

        for cell in cells:
            execution.add("writer", writer(cell))
        return nothing

    exact = comb(2 * steps, steps)
    assert estimate(Scenario("orders", build), 3000, 1) == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("asleep", ["rwsem", "mutex", "wait", "might_sleep"])
@pytest.mark.parametrize(
    ("section", "where"),
    [("spin", "while it holds spin, a spin lock"), ("rcu", "within an RCU section"), ("semaphore", "")],
)
def test_nobody_may_sleep_under_a_spin_lock_or_in_an_rcu_section(asleep: str, section: str, where: str) -> None:
    """might_sleep(): also where nobody makes it wait."""

    def build(execution: Execution) -> Callable[[], None]:
        rwsem, mutex = RwSemaphore(LockClass("rwsem"), execution), SpinLock(LockClass("mutex", sleeps=True), execution)
        enter = {
            "spin": SpinLock(LockClass("spin"), execution).lock,
            "semaphore": RwSemaphore(LockClass("outer"), execution).down_read,
            "rcu": Rcu(Ledger("test"), execution).read_lock,
        }[section]
        sleep: Callable[[], object] = {
            "rwsem": rwsem.down_read,
            "mutex": mutex.lock,
            "wait": lambda: execution.wait("wait", rwsem, lambda: True),
            "might_sleep": lambda: execution.might_sleep("might_sleep"),
        }[asleep]
        execution.add("task", lambda: (enter(), sleep()))
        return nothing

    [failure] = explore(Scenario("sleeper", build)).failures
    expected = f"task may sleep for {asleep} {where}" if where else "task ends while it holds outer"
    assert str(failure.error) == expected
