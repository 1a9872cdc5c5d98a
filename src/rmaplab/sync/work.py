# SPDX-License-Identifier: GPL-2.0-or-later
"""Work is counted where it is done; time is derived elsewhere.

Three things are counted: how often a piece of work was done (`Tally`), how many objects of a type
live and were allocated (`Pool`, which packs them into slabs as SLUB does), and how often the locks of
a class were taken (`LockClass`).  A `Ledger` holds all counts of one participant: the machine has one,
and so has every design.

Slab geometry follows mm/slub.c, calculate_order(): the smallest order whose slab wastes at most a
sixteenth of itself, then an eighth, a quarter, a half, starting from an order that fits a minimum number
of objects.  That number grows with the CPUs of a machine, 4 * (fls(CPUs) + 1): the same cache may have
larger slabs on a larger machine.
"""

from __future__ import annotations

from typing import Final

PAGE_SIZE: Final = 4096
_SLUB_MAX_ORDER: Final = 3
_MIN_OBJECTS: Final = 16  # a machine with 4 to 7 CPUs


class Tally:
    """One kind of counted work: `name`, and how often it was done."""

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self.count = 0


def slab_order(size: int, min_objects: int = _MIN_OBJECTS) -> int:
    """Order of the slabs that hold objects of `size` bytes, as mm/slub.c calculate_order() picks it."""
    max_objects = (PAGE_SIZE << _SLUB_MAX_ORDER) // size
    if min_objects > max_objects:
        min_objects = max_objects
    if min_objects < 1:
        min_objects = 1
    lowest = 0
    while (PAGE_SIZE << lowest) < min_objects * size:
        lowest += 1
    for fraction in (16, 8, 4, 2):
        order = lowest
        while order <= _SLUB_MAX_ORDER:
            slab = PAGE_SIZE << order
            if slab % size <= slab // fraction:
                return order
            order += 1
    order = 0
    while (PAGE_SIZE << order) < size:
        order += 1
    return order


class Pool:
    """A slab cache: objects of one type and size.

    name:  the cache's name in /proc/slabinfo, or the type's name where Linux has no cache of its own
    size:  bytes an object takes in a slab (alignment included)
    live, peak, allocated: objects now, at most, and ever
    """

    def __init__(self, name: str, size: int) -> None:
        self.name: Final = name
        self.size: Final = size
        self.live = 0
        self.peak = 0
        self.allocated = 0
        order = slab_order(size)
        self.pages_per_slab: Final = 1 << order
        self.objects_per_slab: Final = (PAGE_SIZE << order) // size

    def alloc(self, count: int = 1) -> None:
        live = self.live + count
        self.live = live
        self.allocated += count
        if live > self.peak:
            self.peak = live

    def free(self, count: int = 1) -> None:
        self.live -= count
        if self.live < 0:
            raise AssertionError(f"{self.name}: more objects freed than allocated")

    def slab_pages(self, objects: int) -> int:
        """Pages of the slabs that `objects` objects fill when packed as densely as the cache can."""
        per_slab = self.objects_per_slab
        return (objects + per_slab - 1) // per_slab * self.pages_per_slab


class LockClass:
    """All locks of one kind: how often they were taken for writing (or exclusively) and for reading.

    sleeps: who has to wait for one gives up its CPU
    tried:  somebody tries them without waiting, and so may see one held
    asked:  somebody asks whether one is held (rwsem_is_locked())
    """

    def __init__(self, name: str, sleeps: bool = False, tried: bool = False, asked: bool = False) -> None:
        self.name: Final = name
        self.sleeps: Final = sleeps
        self.tried: Final = tried
        self.asked: Final = asked
        self.writes = 0
        self.reads = 0


class Ledger:
    """The counted work of one participant (the machine, or one design); `entries` grows whenever it comes to count
    other things than before."""

    def __init__(self, owner: str) -> None:
        self.owner: Final = owner
        self.entries = 0
        self.tallies: Final[dict[str, Tally]] = {}
        self.pools: Final[dict[str, Pool]] = {}
        self.locks: Final[dict[str, LockClass]] = {}

    def tally(self, name: str) -> Tally:
        if name not in self.tallies:
            self.tallies[name] = Tally(name)
            self.entries += 1
        return self.tallies[name]

    def forget(self, name: str) -> None:
        """Drop a tally, whose next count begins a new one."""
        del self.tallies[name]
        self.entries += 1

    def pool(self, name: str, size: int) -> Pool:
        if name not in self.pools:
            self.pools[name] = Pool(name, size)
            self.entries += 1
        return self.pools[name]

    def lock_class(self, name: str, sleeps: bool = False, tried: bool = False, asked: bool = False) -> LockClass:
        if name not in self.locks:
            self.locks[name] = LockClass(name, sleeps, tried, asked)
            self.entries += 1
        return self.locks[name]
