# SPDX-License-Identifier: GPL-2.0-or-later
"""When grace periods end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rmaplab.sync.locks import Rcu, SpinLock
from rmaplab.sync.virtual import PICOSECONDS
from rmaplab.sync.work import Ledger, LockClass
from sync.virtual.simulation import US, holding, on, spend


@pytest.mark.parametrize("length", [0.0, 500_000.0])
def test_a_grace_period_waits_for_the_readers_that_were_there(length: float) -> None:
    time = on(3, {"grace period": length})
    rcu = Rcu(Ledger("test"), time)
    freed: list[int] = []

    def reader(start: int, long: int) -> Callable[[], None]:
        def body() -> None:
            spend(time, start)
            rcu.read_lock()
            spend(time, long)
            rcu.read_unlock()

        return body

    def writer() -> None:
        spend(time, 100 * US)
        rcu.call("object", "subject", lambda: freed.append(int(time.clock())))
        spend(time, US)

    time.spawn("before", reader(50 * US, 300 * US))
    time.spawn("after", reader(200 * US, 5000 * US))
    time.spawn("writer", writer)
    time.run()
    assert freed == [max(350 * US, 100 * US + int(length) * PICOSECONDS)]
    assert time.rcu.most_held == {"object": 1} and time.rcu.held == {"object": 0}


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
        spend(time, 50 * US)
        rcu.call("object", "subject", lambda: freed.append(int(time.clock())))

    time.spawn("reader", reader)
    time.spawn("writer", writer)
    time.run()
    assert freed == [100 * US]
