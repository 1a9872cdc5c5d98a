# SPDX-License-Identifier: GPL-2.0-or-later
"""Who gets a CPU, and what waking takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from rmaplab.sync.locks import RwSemaphore
from rmaplab.sync.virtual import PICOSECONDS, VirtualTime
from rmaplab.sync.work import LockClass
from sync.virtual.simulation import US, on, spend


def test_who_waits_for_a_cpu_waits_its_turn() -> None:
    time = on(2, {"context switch": 1.0, "wake up": 2.0}, slice=10 * US)
    ends: dict[str, int] = {}

    def task(name: str) -> Callable[[], None]:
        def body() -> None:
            for _ in range(10):
                time.begin("step")
                spend(time, 5 * US)
                time.end()
            ends[name] = time.clock()

        return body

    for i in range(6):
        time.spawn(str(i), task(str(i)))
    time.run()
    assert time.ended == pytest.approx(6 * 50 * US / 2, rel=0.01)
    assert min(ends.values()) > 120 * US  # nobody was let through to its end
    # Each slice of ten begins with a switch, and so does the rest of each task after its last one.
    assert sum(cpu.switching for cpu in time.cpus.all) == (2 * 2 + (6 * 6 - 2) * 1) * PICOSECONDS


def test_a_pinned_task_stays_where_it_is() -> None:
    time = on(2)
    for i in range(4):
        time.spawn(str(i), lambda: spend(time, 10 * US), cpu=1)
    time.run()
    assert time.ended == 40 * US
    assert time.cpus.all[0].task is None and time.cpus.all[0].idle == 0  # it never had anything to do


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


@pytest.mark.parametrize("waking", [0, 8])
@pytest.mark.parametrize("cpus", [1, 2])
def test_who_gives_a_lock_to_a_sleeper_pays_for_waking_it(waking: int, cpus: int) -> None:
    time = VirtualTime(cpus, lambda key: {"waking": waking * 1000.0}.get(key, 0.0))
    lock = RwSemaphore(LockClass("lock"), time)
    other = RwSemaphore(LockClass("other"), time)
    ended = []

    def writer() -> None:
        lock.down_write()
        spend(time, 10 * US)
        lock.up_write()
        spend(time, 5 * US)
        other.down_read()  # by now what was done to the first lock has taken place
        other.up_read()
        ended.append(time.clock())

    def reader() -> None:
        spend(time, US)
        lock.down_read()
        lock.up_read()

    time.spawn("writer", writer, 0)
    time.spawn("reader", reader, cpus - 1)
    time.run()
    # With one CPU nobody is asleep when the lock is given back: the reader has not begun.
    assert ended == [(15 + (waking if cpus == 2 else 0)) * US]


def test_who_wakes_a_sleeper_does_so_before_anything_else() -> None:
    """up_write() ends with rwsem_wake(), and that with wake_up_q(): 7 us here.  A writer that wants the lock again at
    once finds it given to the reader that it woke, and begins to spin for 10.5 us (rwsem_rspin_threshold()) only then.
    The reader runs 15 us after it was woken, and is done before that is over; so the writer does not sleep."""
    costs = {"wake up": 15_000.0, "waking": 7_000.0}
    time = VirtualTime(3, lambda key: costs.get(key, 0.0))
    lock = RwSemaphore(LockClass("lock"), time)
    other = RwSemaphore(LockClass("other"), time)
    got = []

    def writer() -> None:
        lock.down_write()
        spend(time, 10 * US)
        lock.up_write()
        lock.down_write()
        got.append(time.clock())
        lock.up_write()

    def reader() -> None:
        spend(time, US)
        lock.down_read()
        spend(time, US // 2)
        lock.up_read()

    def bystander() -> None:  # something always comes before what the writer does next
        for _ in range(100):
            spend(time, US // 2)
            other.down_read()
            other.up_read()

    time.spawn("writer", writer, 0)
    time.spawn("reader", reader, 1)
    time.spawn("bystander", bystander, 2)
    time.run()
    begun = 15 * US  # before it ran, each task was woken itself
    assert got == [begun + (10 + 15) * US + US // 2]
    assert time.cpus.all[0].idle == 0
