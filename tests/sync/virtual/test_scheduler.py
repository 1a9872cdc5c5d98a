# SPDX-License-Identifier: GPL-2.0-or-later
"""What is no lock, what is forbidden, and that any run comes to its end and is the same again."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from random import Random

import pytest

from rmaplab.sync.errors import Finding
from rmaplab.sync.locks import Rcu, RwSemaphore, SpinLock, Word
from rmaplab.sync.seqcount import SequenceCount
from rmaplab.sync.virtual import PICOSECONDS
from rmaplab.sync.work import Ledger, LockClass
from sync.virtual.simulation import US, holding, on, one_after_another, queue, spend


def test_a_reader_of_a_sequence_count_spins_until_it_is_even() -> None:
    time = on(2)
    count = SequenceCount(time, "")
    seen: list[int] = []

    def writer() -> None:
        count.write_begin()
        spend(time, 50 * US)
        time.clock()
        lock.lock()  # others get to see it odd
        spend(time, 50 * US)
        lock.unlock()
        count.write_end()

    def reader() -> None:
        spend(time, 10 * US)
        count.read_begin()
        seen.append(time.clock())

    lock = SpinLock(LockClass("lock"), time)
    time.spawn("writer", writer)
    time.spawn("reader", reader)
    time.run()
    assert 50 * US <= seen[0] <= 100 * US + 13 * US
    assert time.cpus.spun == seen[0] - 10 * US


def test_a_word_that_cpus_change_in_turn_moves_between_them() -> None:
    time = on(2, {"handover": 100.0})
    word = Word()

    def task() -> None:
        for _ in range(10):
            time.point("count", word, True)
            spend(time, US)
            time.sleep_until(time.clock() + US)

    time.spawn("one", task)
    time.spawn("two", task)
    time.run()
    assert time.ended >= 20 * US + 9 * 100 * PICOSECONDS


def test_nobody_can_go_on() -> None:
    time = on(2)
    one, two = SpinLock(LockClass("one"), time), SpinLock(LockClass("two"), time)

    def cross(first: SpinLock, second: SpinLock) -> Callable[[], None]:
        def body() -> None:
            first.lock()
            spend(time, US)
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
        time.spawn("sleeper", partial(one_after_another, spoil, partial(spend, time, US), rwsem.down_read))
        with pytest.raises(Finding, match=r"sleeper sleeps \(rwsem\)"):
            time.run()

        time = on(1)
        spin, rcu = SpinLock(LockClass("spin"), time), Rcu(Ledger("test"), time)
        spoil = spin.lock if prepare == "spin" else rcu.read_lock
        time.spawn("sleeper", partial(one_after_another, spoil, partial(time.might_sleep, "memory")))
        with pytest.raises(Finding, match=r"sleeper sleeps \(memory\)"):
            time.run()


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
                spend(time, random.randrange(5 * US))
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
                    spend(time, random.randrange(10 * US))
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
                        spend(time, random.randrange(10 * US))
                        time.clock()
                        inside[id(lock)][0] -= 1
                        lock.up_read()
                    else:
                        lock.up_write()
                elif kind == 3:
                    rcu.read_lock()
                    spend(time, random.randrange(10 * US))
                    rcu.read_unlock()
                elif kind == 4:
                    rcu.call("thing", body)
                elif rwsems[0].try_down_read():
                    enter(rwsems[0], False, number)
                    spend(time, random.randrange(US))
                    inside[id(rwsems[0])][False] -= 1
                    rwsems[0].up_read()
                time.end()

        return body

    for number in range(3 * cpus // 2 + 1):
        time.spawn(str(number), task(number))
    time.run()
    assert not any(time.rcu.held.values())
    return int(time.ended), time.figures.lock_operations, order


@pytest.mark.parametrize("cpus", [1, 2, 7, 40])
def test_any_mixture_comes_to_its_end_excludes_and_is_the_same_again(cpus: int) -> None:
    for seed in range(12 if cpus < 40 else 3):
        once = random_run(cpus, seed)
        assert once == random_run(cpus, seed)
    assert math.isfinite(once[0])
