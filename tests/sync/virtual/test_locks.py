# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks in virtual time against what queueing theory says, and what a cache line costs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

import pytest

from rmaplab.sync.errors import Finding
from rmaplab.sync.locks import RwSemaphore, SpinLock
from rmaplab.sync.virtual import PICOSECONDS, VirtualTime
from rmaplab.sync.work import Ledger, LockClass, Tally
from sync.virtual.simulation import US, holding, on, one_after_another, queue, spend, waited

FEW = False  # fewer customers, where a bug that shows at once is looked for


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
                spend(time, int(random.expovariate(1 / (think * service))))
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

        def body(
            time: VirtualTime = time, lock: SpinLock | RwSemaphore = lock, rounds: int = 1280 // cpus
        ) -> None:
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
    assert time.figures.classes["lock"].moved == 39


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
            spend(time, US)
            lock.unlock()

        time.spawn("one", visit)
        time.spawn("two", visit)
        time.run()
        assert time.ended == 2 * US + lines * 100 * PICOSECONDS


def test_what_only_readers_had_does_not_move() -> None:
    """Nodes come from the last writer, once to each CPU that reads them, and to a writer that has no copy (w, r: the
    first CPU writes, reads; W, R: the second)."""
    for order, lines in (("wW", 1), ("rW", 0), ("rRw", 0), ("wR", 1), ("wRR", 1), ("wRrW", 1), ("wRwR", 2)):
        time = on(2, {"handover": 100.0})
        ledger = Ledger("test")
        nodes = ledger.tally("interval tree nodes visited")
        time.watch(ledger)
        lock = RwSemaphore(ledger.lock_class("lock"), time)

        def run(
            cpu: int, order: str = order, time: VirtualTime = time, nodes: Tally = nodes, lock: RwSemaphore = lock
        ) -> None:
            for number, who in enumerate(order):
                if who.isupper() == (cpu == 1):
                    time.sleep_until(10_000 * US * (number + 1))
                    write = who in "wW"
                    (lock.down_write if write else lock.down_read)()
                    nodes.count += 1000
                    (lock.up_write if write else lock.up_read)()

        time.spawn("lower", partial(run, 0), 0)
        time.spawn("upper", partial(run, 1), 1)
        time.run()
        moving = time.figures.classes["lock"].moving / (100 * PICOSECONDS)
        assert moving // 1000 == lines, order


def test_a_spin_lock_is_first_come_first_served() -> None:
    time = on(8)
    lock = SpinLock(LockClass("lock"), time)
    order: list[int] = []

    def task(number: int) -> None:
        spend(time, number * US)
        lock.lock()
        order.append(number)
        spend(time, 20 * US)
        lock.unlock()

    for number in (3, 1, 4, 0, 5, 2, 7, 6):
        time.spawn(str(number), partial(task, number))
    time.run()
    assert order == sorted(order)


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
