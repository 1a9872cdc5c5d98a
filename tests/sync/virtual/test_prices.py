# SPDX-License-Identifier: GPL-2.0-or-later
"""Counted work as time."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from rmaplab.sync.locks import RwSemaphore
from rmaplab.sync.virtual import PICOSECONDS
from rmaplab.sync.work import Ledger
from sync.virtual.simulation import Costs, on


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
