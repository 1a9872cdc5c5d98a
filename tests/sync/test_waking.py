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
