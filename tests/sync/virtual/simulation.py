# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of virtual time share: simulations with made-up costs, and tasks that hold a lock for a while."""

from __future__ import annotations

from collections.abc import Callable

from rmaplab.sync.locks import RwSemaphore, SpinLock
from rmaplab.sync.virtual import PICOSECONDS, VirtualTime
from rmaplab.sync.virtual.cpus import SLICE
from rmaplab.sync.work import LockClass

US = 1000 * PICOSECONDS
Costs = dict[str, float]


def on(cpus: int, costs: Costs | None = None, slice: int = SLICE) -> VirtualTime:
    known = costs or {}
    return VirtualTime(cpus, lambda key: known.get(key, 0.0), slice)


def spend(time: VirtualTime, picoseconds: int) -> None:
    """The task works so long."""
    task = time.current
    assert task is not None
    task.time += picoseconds


def holding(time: VirtualTime, lock: SpinLock | RwSemaphore, picoseconds: int, write: bool = True) -> None:
    if isinstance(lock, SpinLock):
        lock.lock()
        spend(time, picoseconds)
        lock.unlock()
    elif write:
        lock.down_write()
        spend(time, picoseconds)
        lock.up_write()
    else:
        lock.down_read()
        spend(time, picoseconds)
        lock.up_read()


def one_after_another(*acts: Callable[[], object]) -> None:
    for act in acts:
        act()


def queue() -> LockClass:
    """A lock that puts who waits to sleep, first come, first served."""
    return LockClass("queue", sleeps=True)


def waited(time: VirtualTime, name: str) -> int:
    return sum(int(wait.total) for wait in time.figures.classes[name].waits.values())
