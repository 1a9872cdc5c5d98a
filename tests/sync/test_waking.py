# SPDX-License-Identifier: GPL-2.0-or-later
"""Who wakes a sleeper on another CPU is busy with it for a while: sending an interrupt is not free."""

from __future__ import annotations

import pytest

from rmaplab.sync.locks import RwSemaphore
from rmaplab.sync.virtual import PICOSECONDS, VirtualTime
from rmaplab.sync.work import LockClass

US = 1000 * PICOSECONDS


@pytest.mark.parametrize("waking", [0, 8])
@pytest.mark.parametrize("cpus", [1, 2])
def test_who_gives_a_lock_to_a_sleeper_pays_for_waking_it(waking: int, cpus: int) -> None:
    time = VirtualTime(cpus, lambda key: {"waking": waking * 1000.0}.get(key, 0.0))
    lock = RwSemaphore(LockClass("lock"), time)
    other = RwSemaphore(LockClass("other"), time)
    ended = []

    def writer() -> None:
        lock.down_write()
        time.spend(10 * US)
        lock.up_write()
        time.spend(5 * US)
        other.down_read()  # by now what was done to the first lock has taken place
        other.up_read()
        ended.append(time.clock())

    def reader() -> None:
        time.spend(US)
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
        time.spend(10 * US)
        lock.up_write()
        lock.down_write()
        got.append(time.clock())
        lock.up_write()

    def reader() -> None:
        time.spend(US)
        lock.down_read()
        time.spend(US // 2)
        lock.up_read()

    def bystander() -> None:  # something always comes before what the writer does next
        for _ in range(100):
            time.spend(US // 2)
            other.down_read()
            other.up_read()

    time.spawn("writer", writer, 0)
    time.spawn("reader", reader, 1)
    time.spawn("bystander", bystander, 2)
    time.run()
    begun = 15 * US  # before it ran, each task was woken itself
    assert got == [begun + (10 + 15) * US + US // 2]
    assert time.cpus[0].idle == 0
