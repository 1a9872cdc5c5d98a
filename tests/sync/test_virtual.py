# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual time against what theory, arithmetic and Linux's own rules say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from random import Random

import pytest

from rmaplab.sync.errors import Finding
from rmaplab.sync.locks import CpuMask, Rcu, RwSemaphore, SequenceCount, SpinLock, Word
from rmaplab.sync.virtual import HANDOFF_AFTER, PICOSECONDS, SLICE, VirtualTime
from rmaplab.sync.work import Ledger, LockClass, Tally

US = 1000 * PICOSECONDS
FEW = False  # fewer customers, where a bug that shows at once is looked for
Costs = dict[str, float]


def on(cpus: int, costs: Costs | None = None, slice: int = SLICE) -> VirtualTime:
    known = costs or {}
    return VirtualTime(cpus, lambda key: known.get(key, 0.0), slice)


def holding(time: VirtualTime, lock: SpinLock | RwSemaphore, picoseconds: int, write: bool = True) -> None:
    if isinstance(lock, SpinLock):
        lock.lock()
        time.spend(picoseconds)
        lock.unlock()
    elif write:
        lock.down_write()
        time.spend(picoseconds)
        lock.up_write()
    else:
        lock.down_read()
        time.spend(picoseconds)
        lock.up_read()


def one_after_another(*acts: Callable[[], object]) -> None:
    for act in acts:
        act()


def queue() -> LockClass:
    """A lock that puts who waits to sleep, first come, first served."""
    return LockClass("queue", sleeps=True)


def waited(time: VirtualTime, name: str) -> int:
    number = time.class_numbers[name]
    return sum(int(wait.total) for key, wait in time.waits.items() if key[0] == number)


# Queueing theory


@pytest.mark.parametrize("make", [lambda: LockClass("queue"), queue], ids=["spinning", "sleeping"])
@pytest.mark.parametrize(("load", "customers"), [(0.5, 60_000), (0.8, 15_000)])
def test_a_lock_with_random_arrivals_is_an_m_m_1_queue(
    make: Callable[[], LockClass], load: float, customers: int
) -> None:
    """Poisson arrivals, exponential service: everybody waits as Lindley's recursion says, and, where there are enough
    of them to tell, load / (1 - load) services in the mean."""
    service = 1000 * PICOSECONDS
    tasks = 64
    random = Random(20)
    time = on(tasks)
    lock = SpinLock(make(), time)
    arrivals = []
    at = 0.0
    for _ in range(customers):
        at += random.expovariate(load / service)
        arrivals.append((int(at), int(random.expovariate(1 / service))))

    def customer(first: int) -> Callable[[], None]:
        def body() -> None:
            for arrives, takes in arrivals[first::tasks]:
                time.sleep_until(arrives)
                holding(time, lock, takes)

        return body

    for first in range(tasks):
        time.spawn(f"customer {first}", customer(first))
    time.run()
    total = left = 0
    for arrives, takes in arrivals:
        total += max(0, left - arrives)
        left = max(left, arrives) + takes
    assert waited(time, "queue") == total
    if load == 0.5:
        assert total / customers == pytest.approx(load / (1 - load) * service, rel=0.03)


def machine_repairman(machines: int, think: float, service: float) -> float:
    """Mean wait in the queue, by mean value analysis (Reiser and Lavenberg 1980), which is exact here."""
    length = 0.0
    for n in range(1, machines + 1):
        response = service * (1 + length)
        length = n / (think + response) * response
    return response - service


@pytest.mark.parametrize(("machines", "think"), [(4, 2.0), (16, 10.0), (16, 30.0)])
def test_tasks_that_compute_and_lock_are_machines_and_a_repairman(machines: int, think: float) -> None:
    service = 1000 * PICOSECONDS
    rounds = (20_000 if FEW else 120_000) // machines
    time = on(machines)
    lock = SpinLock(LockClass("repairman"), time)

    def machine(seed: int) -> Callable[[], None]:
        random = Random(seed)

        def body() -> None:
            for _ in range(rounds):
                time.spend(int(random.expovariate(1 / (think * service))))
                holding(time, lock, int(random.expovariate(1 / service)))

        return body

    for seed in range(machines):
        time.spawn(f"machine {seed}", machine(seed))
    time.run()
    expected = machine_repairman(machines, think * service, service)
    assert waited(time, "repairman") / (rounds * machines) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("cpus", [1, 8, 64])
def test_readers_without_writers_are_linear(cpus: int) -> None:
    time = on(cpus)
    lock = RwSemaphore(LockClass("lock"), time)

    def reader() -> None:
        for _ in range(100):
            holding(time, lock, 5 * US, write=False)

    for i in range(cpus):
        time.spawn(f"reader {i}", reader)
    time.run()
    assert time.ended == 100 * 5 * US  # so cpus * 100 sections took as long as 100


@pytest.mark.parametrize("kind", [SpinLock, RwSemaphore])
def test_a_global_locks_throughput_is_flat(kind: type[SpinLock | RwSemaphore]) -> None:
    seconds = []
    for cpus in (1, 2, 16, 128):
        time = on(cpus)
        lock = kind(LockClass("lock"), time)

        def body(time: VirtualTime = time, lock: SpinLock | RwSemaphore = lock, rounds: int = 1280 // cpus) -> None:
            for _ in range(rounds):
                holding(time, lock, US)

        for i in range(cpus):
            time.spawn(f"task {i}", body)
        time.run()
        seconds.append(int(time.ended))
    assert seconds == [1280 * US] * 4


def test_a_handed_over_lock_costs_its_cache_line_each_time() -> None:
    time = on(4, {"handover": 100.0})
    lock = SpinLock(LockClass("lock"), time)
    for i in range(4):
        time.spawn(f"task {i}", partial(one_after_another, *[partial(holding, time, lock, US)] * 10))
    time.run()
    assert time.ended == 40 * US + 39 * 100 * PICOSECONDS
    assert time.classes[0].moved == 39


def test_what_a_lock_protects_moves_with_it() -> None:
    """Three nodes visited under the lock are three lines more, if another CPU had it before, and it is the lock that
    covers them; and none if not."""
    for cpus, covers, lines in ((1, True, 0), (2, True, 4), (2, False, 1)):
        time = on(cpus, {"handover": 100.0})
        ledger = Ledger("test")
        nodes = ledger.tally("interval tree nodes visited")
        time.watch(ledger)
        lock = SpinLock((ledger if covers else Ledger("other")).lock_class("lock"), time)

        def visit(nodes: Tally = nodes, lock: SpinLock = lock, time: VirtualTime = time) -> None:
            lock.lock()
            nodes.count += 3
            time.spend(US)
            lock.unlock()

        time.spawn("one", visit)
        time.spawn("two", visit)
        time.run()
        assert time.ended == 2 * US + lines * 100 * PICOSECONDS


def test_a_spin_lock_is_first_come_first_served() -> None:
    time = on(8)
    lock = SpinLock(LockClass("lock"), time)
    order: list[int] = []

    def task(number: int) -> None:
        time.spend(number * US)
        lock.lock()
        order.append(number)
        time.spend(20 * US)
        lock.unlock()

    for number in (3, 1, 4, 0, 5, 2, 7, 6):
        time.spawn(str(number), partial(task, number))
    time.run()
    assert order == sorted(order)


# rw_semaphore


def test_a_stream_of_readers_does_not_starve_a_writer() -> None:
    """Readers overlap for ever, and take the lock again before a woken writer has got its CPU, until that asks for a
    hand-off."""
    time = on(8)
    lock = RwSemaphore(LockClass("lock"), time)
    got: list[int] = []

    def reader() -> None:
        while not got and time.clock() < 100_000 * US:
            holding(time, lock, 100 * US, write=False)

    def writer() -> None:
        time.spend(250 * US)
        lock.down_write()
        got.append(time.clock())
        lock.up_write()

    for i in range(6):
        time.spawn(f"reader {i}", partial(one_after_another, partial(time.spend, i * 15 * US), reader))
    time.spawn("writer", writer)
    time.run()
    assert 350 * US < got[0] < HANDOFF_AFTER + 600 * US


def test_who_is_passed_over_for_long_gets_the_lock_handed() -> None:
    """Writers that spin take the lock before one that sleeps, for 4 ms; then it is its turn."""
    time = on(4)
    lock = RwSemaphore(LockClass("lock"), time)
    got: list[int] = []

    def greedy() -> None:
        while not got:
            holding(time, lock, 50 * US)
            if time.clock() > 50_000 * US:
                raise AssertionError("starved")

    def patient() -> None:
        # It comes while the owner sleeps, so it does, too.
        time.spend(10 * US)
        lock.down_write()
        got.append(time.clock())
        lock.up_write()

    def owner() -> None:
        lock.down_write()
        time.sleep_until(100 * US)
        time.spend(100 * US)
        lock.up_write()

    time.spawn("owner", owner)
    time.spawn("patient", patient)
    for name in ("greedy", "greedier"):
        time.spawn(name, partial(one_after_another, partial(time.spend, 120 * US), greedy))
    time.run()
    assert HANDOFF_AFTER < got[0] < HANDOFF_AFTER + 1000 * US


def test_a_writer_spins_while_the_owner_runs_and_sleeps_when_it_sleeps() -> None:
    time = on(2)
    lock = RwSemaphore(LockClass("lock"), time)

    def owner(pause: int) -> Callable[[], None]:
        def body() -> None:
            lock.down_write()
            time.spend(50 * US)
            if pause:
                time.sleep_until(time.clock() + pause)
            lock.up_write()

        return body

    def other() -> None:
        time.spend(US)
        holding(time, lock, US)

    time.spawn("owner", owner(0))
    time.spawn("other", other)
    time.run()
    assert time.spun == 49 * US
    time = on(2)
    lock = RwSemaphore(LockClass("lock"), time)
    time.spawn("owner", owner(1000 * US))
    time.spawn("other", other)
    time.run()
    assert time.spun == 49 * US  # and not a thousand more
    assert waited(time, "lock") == 1049 * US


def test_readers_are_let_in_together_when_a_writer_downgrades() -> None:
    time = on(5)
    lock = RwSemaphore(LockClass("lock"), time)
    inside: list[int] = []

    def writer() -> None:
        lock.down_write()
        time.spend(100 * US)
        lock.downgrade_write()
        time.spend(100 * US)
        lock.up_read()

    def reader() -> None:
        time.spend(US)
        lock.down_read()
        inside.append(time.clock())
        time.spend(100 * US)
        lock.up_read()

    time.spawn("writer", writer)
    for i in range(3):
        time.spawn(f"reader {i}", reader)
    time.run()
    assert inside == [100 * US] * 3
    assert time.ended == 200 * US


# Work


def test_with_one_cpu_time_is_the_sum_of_work() -> None:
    costs: Costs = {"a": 3.0, "b": 0.5, "alloc thing": 40.0, "free thing": 30.0, "lock lock": 20.0}
    time = on(1, costs)
    ledger = Ledger("test")
    a, b, thing = ledger.tally("a"), ledger.tally("b"), ledger.pool("thing", 64)
    lock = RwSemaphore(ledger.lock_class("lock"), time)
    a.count += 1000  # before anybody looks
    time.watch(ledger)

    def task(seed: int) -> Callable[[], None]:
        random = Random(seed)

        def body() -> None:
            for _ in range(200):
                a.count += random.randrange(10)
                lock.down_read()
                thing.alloc()
                b.count += random.randrange(100)
                lock.up_read()
                lock.down_write()
                thing.free()
                lock.up_write()
                ledger.tally("seen late").count += 1

        return body

    costs["seen late"] = 7.0
    for seed in range(5):
        time.spawn(f"task {seed}", task(seed))
    time.run()
    work = (a.count - 1000) * 3 + b.count * 0.5 + thing.allocated * 70 + 2 * 1000 * 20 + 1000 * 7
    assert time.ended == work * PICOSECONDS


def test_who_waits_for_a_cpu_waits_its_turn() -> None:
    time = on(2, {"context switch": 1.0, "wake up": 2.0}, slice=10 * US)
    ends: dict[str, int] = {}

    def task(name: str) -> Callable[[], None]:
        def body() -> None:
            for _ in range(10):
                time.begin("step")
                time.spend(5 * US)
                time.end()
            ends[name] = time.clock()

        return body

    for i in range(6):
        time.spawn(str(i), task(str(i)))
    time.run()
    assert time.ended == pytest.approx(6 * 50 * US / 2, rel=0.01)
    assert min(ends.values()) > 120 * US  # nobody was let through to its end
    # Each slice of ten begins with a switch, and so does the rest of each task after its last one.
    assert sum(cpu.switching for cpu in time.cpus) == (2 * 2 + (6 * 6 - 2) * 1) * PICOSECONDS


def test_a_pinned_task_stays_where_it_is() -> None:
    time = on(2)
    for i in range(4):
        time.spawn(str(i), lambda: time.spend(10 * US), cpu=1)
    time.run()
    assert time.ended == 40 * US
    assert time.cpus[0].task is None and time.cpus[0].idle == 0  # it never had anything to do


def woken_after(spread: Sequence[float]) -> list[int]:
    """How long after it is woken a task runs, many times."""
    time = VirtualTime(2, lambda key: 1000.0 if key == "wake up" else 0.0, spread=spread)
    found: list[int] = []

    def sleeper() -> None:
        for i in range(1, 200):
            time.sleep_until(i * 10 * US)
            found.append(time.clock() - i * 10 * US)

    time.spawn("sleeper", sleeper)
    time.run()
    return found


def test_wake_ups_take_as_long_as_they_cost_or_are_spread_around_it() -> None:
    assert set(woken_after([])) == {US}
    found = woken_after([0.9, 1.0, 1.5])
    assert found == woken_after([0.9, 1.0, 1.5])
    assert all(50 < found.count(round(factor * US)) < 85 for factor in (0.9, 1.0, 1.5))


# TLBs

SHOTS: Costs = {"shootdown": 20_000.0, "waking": 5_000.0, "interrupt": 7_000.0}


def computing(time: VirtualTime, ends: list[int]) -> None:
    """10 us, in two parts: who is interrupted meanwhile needs longer."""
    lock = SpinLock(LockClass("own"), time)
    for _ in range(2):
        time.spend(5 * US)
        holding(time, lock, 0)
    ends.append(time.clock())


def test_who_takes_entries_away_interrupts_who_runs_in_the_space_and_waits() -> None:
    time = on(4, SHOTS)
    space, other = CpuMask(), CpuMask()
    ends: list[int] = []
    flusher: list[int] = []

    def flush() -> None:
        time.spend(US)
        time.flush(space)
        flusher.append(time.clock())

    for its in (space, space, other):
        time.spawn("thread", partial(computing, time, ends), space=its)
    time.spawn("kswapd", flush)
    time.run()
    assert flusher == [US + 25 * US]  # the second target costs what it takes to interrupt another
    assert sorted(ends) == [10 * US, 17 * US, 17 * US]
    assert (time.shootdowns, time.interrupts, time.shooting, time.spun) == (1, 2, 25 * US, 25 * US)


def test_a_process_of_one_thread_interrupts_nobody() -> None:
    time = on(2, SHOTS)
    spaces = [CpuMask(), CpuMask()]
    ends: list[int] = []

    def flush(space: CpuMask) -> None:
        time.spend(US)
        time.flush(space, freed_tables=True)
        ends.append(time.clock())

    for space in spaces:
        time.spawn("process", partial(flush, space), space=space)
    time.run()
    assert ends == [US, US] and time.shootdowns == 0
    assert [space.cpus for space in spaces] == [[0], [1]]


@pytest.mark.parametrize("freed_tables", [False, True])
def test_an_idle_cpu_keeps_its_space_and_flushes_by_itself_unless_tables_were_freed(freed_tables: bool) -> None:
    time = on(2, SHOTS)
    space = CpuMask()

    def flush() -> None:
        time.spend(US)
        time.flush(space, freed_tables)
        assert space.cpus == [0]

    time.spawn("process", lambda: None, cpu=0, space=space)
    time.spawn("kswapd", flush, cpu=1)
    time.run()
    assert time.shootdowns == (1 if freed_tables else 0)
    assert time.ended == (21 * US if freed_tables else US)


def test_a_cpu_forgets_a_space_when_it_runs_in_another() -> None:
    time = on(2, SHOTS)
    old, new = CpuMask(), CpuMask()

    def execute() -> None:
        time.runs_in(new)
        time.spend(10 * US)

    def flush() -> None:
        time.spend(US)
        time.flush(old)

    time.spawn("process", execute, cpu=0, space=old)
    time.spawn("kswapd", flush, cpu=1)
    time.run()
    assert (old.cpus, new.cpus, time.shootdowns) == ([], [0], 0)


@pytest.mark.parametrize("dirty", [False, True])
def test_deferred_flushes_are_one(dirty: bool) -> None:
    time = on(3, SHOTS)
    spaces = [CpuMask(), CpuMask()]
    ends: list[int] = []
    taken: list[int] = []

    def reclaim() -> None:
        time.spend(US)
        for space in (*spaces, spaces[0], CpuMask()):
            time.flush_later(space, dirty)
        taken.append(time.clock())
        time.flush_deferred(if_dirty=True)
        taken.append(time.clock())
        time.flush_deferred()
        time.flush_deferred()
        taken.append(time.clock())

    for space in spaces:
        time.spawn("process", partial(computing, time, ends), space=space)
    time.spawn("kswapd", reclaim)
    time.run()
    assert taken == [US, 26 * US if dirty else US, 26 * US]
    assert ends == [17 * US] * 2 and (time.shootdowns, time.interrupts) == (1, 2)


# RCU and what is no lock


@pytest.mark.parametrize("length", [0.0, 500_000.0])
def test_a_grace_period_waits_for_the_readers_that_were_there(length: float) -> None:
    time = on(3, {"grace period": length})
    rcu = Rcu(Ledger("test"), time)
    freed: list[int] = []

    def reader(start: int, long: int) -> Callable[[], None]:
        def body() -> None:
            time.spend(start)
            rcu.read_lock()
            time.spend(long)
            rcu.read_unlock()

        return body

    def writer() -> None:
        time.spend(100 * US)
        rcu.call("object", "subject", lambda: freed.append(int(time.now)))
        time.spend(US)

    time.spawn("before", reader(50 * US, 300 * US))
    time.spawn("after", reader(200 * US, 5000 * US))
    time.spawn("writer", writer)
    time.run()
    assert freed == [max(350 * US, 100 * US + int(length) * PICOSECONDS)]
    assert time.most_held == {"object": 1} and time.held == {"object": 0}


def test_a_grace_period_waits_for_a_reader_that_others_interrupt() -> None:
    """Within its section a reader takes locks, so that the grace period begins while it is there."""
    time = on(2)
    rcu = Rcu(Ledger("test"), time)
    lock = SpinLock(LockClass("lock"), time)
    freed: list[int] = []

    def reader() -> None:
        rcu.read_lock()
        for _ in range(100):
            holding(time, lock, US)
        rcu.read_unlock()

    def writer() -> None:
        time.spend(50 * US)
        rcu.call("object", "subject", lambda: freed.append(int(time.now)))

    time.spawn("reader", reader)
    time.spawn("writer", writer)
    time.run()
    assert freed == [100 * US]


def test_a_reader_of_a_sequence_count_spins_until_it_is_even() -> None:
    time = on(2)
    count = SequenceCount(time)
    seen: list[int] = []

    def writer() -> None:
        count.write_begin()
        time.spend(50 * US)
        time.clock()
        lock.lock()  # others get to see it odd
        time.spend(50 * US)
        lock.unlock()
        count.write_end()

    def reader() -> None:
        time.spend(10 * US)
        count.read_begin()
        seen.append(time.clock())

    lock = SpinLock(LockClass("lock"), time)
    time.spawn("writer", writer)
    time.spawn("reader", reader)
    time.run()
    assert 50 * US <= seen[0] <= 100 * US + 13 * US
    assert time.spun == seen[0] - 10 * US


def test_a_word_that_cpus_change_in_turn_moves_between_them() -> None:
    time = on(2, {"handover": 100.0})
    word = Word()

    def task() -> None:
        for _ in range(10):
            time.point("count", word, True)
            time.spend(US)
            time.sleep_until(time.clock() + US)

    time.spawn("one", task)
    time.spawn("two", task)
    time.run()
    assert time.ended >= 20 * US + 9 * 100 * PICOSECONDS


# What is forbidden


def test_nobody_can_go_on() -> None:
    time = on(2)
    one, two = SpinLock(LockClass("one"), time), SpinLock(LockClass("two"), time)

    def cross(first: SpinLock, second: SpinLock) -> Callable[[], None]:
        def body() -> None:
            first.lock()
            time.spend(US)
            second.lock()

        return body

    time.spawn("a", cross(one, two))
    time.spawn("b", cross(two, one))
    with pytest.raises(Finding, match="nobody can go on: a waits for two; b waits for one"):
        time.run()


def test_nobody_sleeps_with_a_spin_lock_or_in_an_rcu_section() -> None:
    for prepare in ("spin", "rcu"):
        time = on(2)
        spin, rwsem = SpinLock(LockClass("spin"), time), RwSemaphore(LockClass("rwsem"), time)
        rcu = Rcu(Ledger("test"), time)

        spoil = spin.lock if prepare == "spin" else rcu.read_lock
        time.spawn("holder", partial(holding, time, rwsem, 10 * US))
        time.spawn("sleeper", partial(one_after_another, spoil, partial(time.spend, US), rwsem.down_read))
        with pytest.raises(Finding, match=r"sleeper sleeps \(rwsem\)"):
            time.run()


def test_only_the_holder_gives_back() -> None:
    time = on(1)
    lock = SpinLock(LockClass("lock"), time)
    time.spawn("a", partial(one_after_another, lock.lock, lock.unlock, lock.unlock))
    with pytest.raises(Finding, match="a gives back lock, which it does not hold"):
        time.run()
    time = on(1)
    rwsem = RwSemaphore(LockClass("rwsem"), time)
    time.spawn("a", rwsem.up_read)
    with pytest.raises(Finding, match="a gives back rwsem, which nobody holds for reading"):
        time.run()


# Always the same


def random_run(cpus: int, seed: int) -> tuple[int, int, list[int]]:
    """Tasks that do anything at random; what came of it, and in which order each critical section ran."""
    costs = {"handover": 50.0, "context switch": 1000.0, "wake up": 2000.0, "grace period": 20_000.0}
    time = on(cpus, costs, slice=20 * US)
    spins = [SpinLock(LockClass("spin"), time) for _ in range(3)]
    rwsems = [RwSemaphore(LockClass("rwsem"), time) for _ in range(3)]
    mutex = SpinLock(queue(), time)
    rcu = Rcu(Ledger("test"), time)
    inside: dict[int, list[int]] = {}  # by lock: readers, writers
    order: list[int] = []

    def enter(lock: object, write: bool, number: int) -> None:
        there = inside.setdefault(id(lock), [0, 0])
        assert there[1] == 0 and not (write and there[0]), "two that exclude each other are inside"
        there[write] += 1
        order.append(number)

    def task(number: int) -> Callable[[], None]:
        random = Random(seed * 1000 + number)

        def body() -> None:
            for _ in range(60):
                time.begin("step")
                kind = random.randrange(6)
                time.spend(random.randrange(5 * US))
                if kind < 3:
                    locks: list[SpinLock | RwSemaphore] = [*spins, *rwsems, mutex]
                    lock = random.choice(locks)
                    write = isinstance(lock, SpinLock) or random.randrange(3) == 0
                    if isinstance(lock, SpinLock):
                        lock.lock()
                    elif write:
                        lock.down_write()
                    else:
                        lock.down_read()
                    enter(lock, write, number)
                    time.spend(random.randrange(10 * US))
                    if not (isinstance(lock, SpinLock) and not lock.lock_class.sleeps):
                        if random.randrange(2):
                            holding(time, spins[0], random.randrange(US))
                        if random.randrange(8) == 0:
                            time.sleep_until(time.clock() + random.randrange(100 * US))
                    inside[id(lock)][write] -= 1
                    if isinstance(lock, SpinLock):
                        lock.unlock()
                    elif not write:
                        lock.up_read()
                    elif random.randrange(3) == 0:
                        inside[id(lock)][0] += 1
                        lock.downgrade_write()
                        time.spend(random.randrange(10 * US))
                        time.clock()
                        inside[id(lock)][0] -= 1
                        lock.up_read()
                    else:
                        lock.up_write()
                elif kind == 3:
                    rcu.read_lock()
                    time.spend(random.randrange(10 * US))
                    rcu.read_unlock()
                elif kind == 4:
                    rcu.call("thing", body)
                elif rwsems[0].try_down_read():
                    enter(rwsems[0], False, number)
                    time.spend(random.randrange(US))
                    inside[id(rwsems[0])][False] -= 1
                    rwsems[0].up_read()
                time.end()

        return body

    for number in range(3 * cpus // 2 + 1):
        time.spawn(str(number), task(number))
    time.run()
    assert not any(time.held.values())
    return int(time.ended), time.lock_operations, order


@pytest.mark.parametrize("cpus", [1, 2, 7, 40])
def test_any_mixture_comes_to_its_end_excludes_and_is_the_same_again(cpus: int) -> None:
    for seed in range(12 if cpus < 40 else 3):
        once = random_run(cpus, seed)
        assert once == random_run(cpus, seed)
    assert math.isfinite(once[0])
