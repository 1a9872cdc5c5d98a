# SPDX-License-Identifier: GPL-2.0-or-later
"""Prices: how far counted work moves a clock.

Between two calls of the scheduler a task did work, which the watched ledgers (sync/work.py) counted.  Those counts
times the cost of a unit is the time that it took.

Invariant: every unit of work is charged once, to the task that did it or, for what a grace period frees, to `deferred`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mypy_extensions import i64

from rmaplab.sync.virtual.task import Task
from rmaplab.sync.work import Ledger, LockClass, Pool, Tally

PICOSECONDS: Final = 1000  # in a nanosecond
MICROSECOND: Final = 1000 * PICOSECONDS

HANDOVER: Final = "handover"
CONTEXT_SWITCH: Final = "context switch"
WAKE_UP: Final = "wake up"
WAKING: Final = "waking"
GRACE_PERIOD: Final = "grace period"
SHOOTDOWN: Final = "shootdown"
INTERRUPT: Final = "interrupt"
NODES: Final = (
    "interval tree nodes visited",
    "remap tree nodes visited",
)  # tallies of what moves with its lock

CostOf = Callable[
    [str], float
]  # nanoseconds per unit, by the key of a cost profile; 0 for what costs nothing


class _PricedTally:
    def __init__(self, tally: Tally, cost: i64) -> None:
        self.tally: Final = tally
        self.cost: Final[i64] = cost


class _PricedPool:
    def __init__(self, pool: Pool, alloc: i64, free: i64) -> None:
        self.pool: Final = pool
        self.both: Final[i64] = alloc + free
        self.free: Final[i64] = free


class _PricedLock:
    def __init__(self, lock_class: LockClass, cost: i64) -> None:
        self.lock_class: Final = lock_class
        self.cost: Final[i64] = cost


class Work:
    """Counted work as time.

    charged:  all work that was charged so far, in picoseconds
    deferred: of it, what grace periods did
    """

    def __init__(self, cost_of: CostOf) -> None:
        self.charged: i64 = 0
        self.deferred: i64 = 0
        self._cost_of: Final = cost_of
        self._ledgers: Final[list[Ledger]] = []
        self._entries = -1  # of the ledgers that have a price by now
        self._tallies: list[_PricedTally] = []
        self._pools: list[_PricedPool] = []
        self._locks: list[_PricedLock] = []
        self._node_tallies: list[Tally] = []
        self._nodes: i64 = 0  # visited so far, by all

    def price(self, key: str) -> int:
        """Picoseconds per unit."""
        return round(self._cost_of(key) * PICOSECONDS)

    def watch(self, ledger: Ledger) -> None:
        """Work that `ledger` counts takes time from now on."""
        self._ledgers.append(ledger)
        self.charged = self.total()

    def covers_nodes(self, lock_class: str) -> bool:
        """Do locks of this class protect trees whose visited nodes are counted?"""
        return any(
            lock_class in ledger.locks and any(name in ledger.tallies for name in NODES)
            for ledger in self._ledgers
        )

    def total(self) -> i64:
        """All work that was counted so far, in picoseconds."""
        entries = 0
        for ledger in self._ledgers:
            entries += ledger.entries
        if entries != self._entries:
            self._entries = entries
            self._price_all()
        total: i64 = 0
        for tally in self._tallies:
            total += i64(tally.tally.count) * tally.cost
        for lock in self._locks:
            total += i64(lock.lock_class.writes + lock.lock_class.reads) * lock.cost
        for pool in self._pools:
            total += i64(pool.pool.allocated) * pool.both - i64(pool.pool.live) * pool.free
        return total

    def _price_all(self) -> None:
        self._tallies = []
        self._pools = []
        self._locks = []
        self._node_tallies = []
        for ledger in self._ledgers:
            for name, tally in ledger.tallies.items():
                cost = self.price(name)
                if cost:
                    self._tallies.append(_PricedTally(tally, cost))
                if name in NODES:
                    self._node_tallies.append(tally)
            for name, pool in ledger.pools.items():
                alloc = self.price(f"alloc {name}")
                free = self.price(f"free {name}")
                if alloc or free:
                    self._pools.append(_PricedPool(pool, alloc, free))
            for name, lock_class in ledger.locks.items():
                cost = self.price(f"lock {name}")
                if cost:
                    self._locks.append(_PricedLock(lock_class, cost))

    def charge(self, task: Task) -> None:
        """Let the clock of `task`, which runs, show the work that was counted since somebody was charged."""
        total = self.total()
        task.time += total - self.charged
        self.charged = total
        nodes: i64 = 0
        for tally in self._node_tallies:
            nodes += i64(tally.count)
        task.nodes += nodes - self._nodes
        self._nodes = nodes
        if task.interrupted:
            task.time += task.interrupted
            task.interrupted = 0

    def defer(self) -> None:
        """A grace period did what was counted since somebody was charged."""
        total = self.total()
        self.deferred += total - self.charged
        self.charged = total
