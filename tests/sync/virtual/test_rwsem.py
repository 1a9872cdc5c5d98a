# SPDX-License-Identifier: GPL-2.0-or-later
"""rw_semaphore in virtual time against Linux's own rules."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from rmaplab.sync.locks import RwSemaphore
from rmaplab.sync.virtual.rwsem import HANDOFF_AFTER
from rmaplab.sync.work import LockClass
from sync.virtual.simulation import US, holding, on, one_after_another, spend, waited


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
        spend(time, 250 * US)
        lock.down_write()
        got.append(time.clock())
        lock.up_write()

    for i in range(6):
        time.spawn(f"reader {i}", partial(one_after_another, partial(spend, time, i * 15 * US), reader))
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
        spend(time, 10 * US)
        lock.down_write()
        got.append(time.clock())
        lock.up_write()

    def owner() -> None:
        lock.down_write()
        time.sleep_until(100 * US)
        spend(time, 100 * US)
        lock.up_write()

    time.spawn("owner", owner)
    time.spawn("patient", patient)
    for name in ("greedy", "greedier"):
        time.spawn(name, partial(one_after_another, partial(spend, time, 120 * US), greedy))
    time.run()
    assert HANDOFF_AFTER < got[0] < HANDOFF_AFTER + 1000 * US


def test_a_writer_spins_while_the_owner_runs_and_sleeps_when_it_sleeps() -> None:
    time = on(2)
    lock = RwSemaphore(LockClass("lock"), time)

    def owner(pause: int) -> Callable[[], None]:
        def body() -> None:
            lock.down_write()
            spend(time, 50 * US)
            if pause:
                time.sleep_until(time.clock() + pause)
            lock.up_write()

        return body

    def other() -> None:
        spend(time, US)
        holding(time, lock, US)

    time.spawn("owner", owner(0))
    time.spawn("other", other)
    time.run()
    assert time.cpus.spun == 49 * US
    time = on(2)
    lock = RwSemaphore(LockClass("lock"), time)
    time.spawn("owner", owner(1000 * US))
    time.spawn("other", other)
    time.run()
    assert time.cpus.spun == 49 * US  # and not a thousand more
    assert waited(time, "lock") == 1049 * US


def test_readers_are_let_in_together_when_a_writer_downgrades() -> None:
    time = on(5)
    lock = RwSemaphore(LockClass("lock"), time)
    inside: list[int] = []

    def writer() -> None:
        lock.down_write()
        spend(time, 100 * US)
        lock.downgrade_write()
        spend(time, 100 * US)
        lock.up_read()

    def reader() -> None:
        spend(time, US)
        lock.down_read()
        inside.append(time.clock())
        spend(time, 100 * US)
        lock.up_read()

    time.spawn("writer", writer)
    for i in range(3):
        time.spawn(f"reader {i}", reader)
    time.run()
    assert inside == [100 * US] * 3
    assert time.ended == 200 * US
