# SPDX-License-Identifier: GPL-2.0-or-later
"""The remap tree of a CoW context: page offsets that are not at the address that they say.

A range map from page offsets to sets of *offsets*: the distance, in pages, from the address that a page
offset stands for to the address at which an address space really has it.  In the kernel it is a maple tree
(lib/maple_tree.c) whose entries are a single offset, stored in place, or a small array of them.  Here it is
three parallel lists in order, searched by bisection; the nodes that a maple tree would have are counted.

Invariants
- `firsts[i] <= lasts[i] < firsts[i + 1]`; no entry is empty.
- after `add` and `remove`, no two entries that touch hold the same offsets.

Locking: changes under the context's lock; walks read under RCU.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

from rmaplab.sync.work import Ledger, Pool, Tally

_LEAF_SLOTS: Final = 16  # of a maple_leaf_64 node
_BRANCH_SLOTS: Final = 10  # of a maple_arange_64 node, which trees with MT_FLAGS_ALLOC_RANGE use
_ARRAY_HEADER: Final = 8  # two ints: used, room
_KMALLOC_SIZES: Final = (8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192)


class Offsets:
    """The offsets of one entry.  `room` is 0 for a single one, which is stored in place, else the number of
    offsets that the array has room for."""

    def __init__(self, values: list[int], room: int) -> None:
        self.values: Final = values
        self.room: Final = room


class RemapMemory:
    """What the remap trees of one design take: maple nodes and arrays of offsets.  `highest_apart`: the owner of a tree
    has room for its highest entry, if that needs no array, which takes no node then.  `home_marked`: that 0 is among
    the offsets is a bit of the entry, and takes no place in an array."""

    def __init__(
        self, ledger: Ledger, maple_node_size: int, highest_apart: bool = False, home_marked: bool = False
    ) -> None:
        self._ledger: Final = ledger
        self.home_marked: Final = home_marked
        self.highest_apart: Final = highest_apart
        self.nodes: Final[Pool] = ledger.pool("maple_node", maple_node_size)
        self.visited: Final[Tally] = ledger.tally("remap tree nodes visited")

    def array(self, room: int) -> Pool:
        """The cache for an array of `room` offsets."""
        size = _ARRAY_HEADER + 8 * room
        for bucket in _KMALLOC_SIZES:
            if size <= bucket:
                return self._ledger.pool(f"kmalloc-{bucket}", bucket)
        raise ValueError(f"an array of {room} offsets is larger than kmalloc() caches go")


class RemapTree:
    """A range map from page offset to a set of offsets."""

    def __init__(self, memory: RemapMemory) -> None:
        self.memory: Final = memory
        self.firsts: Final[list[int]] = []
        self.lasts: Final[list[int]] = []
        self.entries: Final[list[Offsets]] = []
        self.depth = 0  # levels of the maple tree
        self._nodes = 0

    def add(self, first: int, last: int, offset: int) -> None:
        """Page offsets first..last are to be found at `offset`, too."""
        self.split(first)
        self.split(last + 1)
        start = self.seek(first)
        i = start
        at = first
        while at <= last:
            if i < len(self.firsts) and self.firsts[i] == at:
                self.append(i, offset)
            else:
                end = last
                if i < len(self.firsts) and self.firsts[i] <= last:
                    end = self.firsts[i] - 1
                self.firsts.insert(i, at)
                self.lasts.insert(i, end)
                self.entries.insert(i, Offsets([offset], 0))
            at = self.lasts[i] + 1
            i += 1
        self.join(start - 1, i)
        self.account()

    def append(self, i: int, offset: int) -> None:
        """Entry `i` has `offset`, too."""
        entry = self.entries[i]
        if offset not in entry.values:
            self.put(i, sorted([*entry.values, offset]))

    def remove(self, first: int, last: int, offset: int) -> None:
        """Page offsets first..last are not at `offset` any more."""
        self.split(first)
        self.split(last + 1)
        start = self.seek(first)
        i = start
        while i < len(self.firsts) and self.firsts[i] <= last:
            values = self.entries[i].values
            if offset in values:
                if len(values) == 1:
                    self.delete(i)
                    continue
                self.put(i, [value for value in values if value != offset])
            i += 1
        self.join(start - 1, i)
        self.account()

    def offsets(self, first: int, last: int) -> list[int]:
        """All offsets at which some of the page offsets first..last are, ascending."""
        found: list[int] = []
        i = self.seek(first)
        start = i
        while i < len(self.firsts) and self.firsts[i] <= last:
            for value in self.entries[i].values:
                if value not in found:
                    found.append(value)
            i += 1
        self.memory.visited.count += (i - start) // _LEAF_SLOTS
        found.sort()
        return found

    def apart(self) -> int:
        """How many entries are in no node: one, or none (RemapMemory)."""
        return 1 if self.memory.highest_apart and self.entries and not self.entries[-1].room else 0

    def frozen(self) -> RemapTree:
        """A copy that stays as it is: what a reader under RCU sees who came before a change."""
        copy = RemapTree(self.memory)
        copy.firsts.extend(self.firsts)
        copy.lasts.extend(self.lasts)
        copy.entries.extend(self.entries)
        copy.depth = self.depth
        return copy

    def clear(self) -> None:
        """The context is freed."""
        while self.firsts:
            self.delete(len(self.firsts) - 1)
        self.account()

    def ranges(self) -> list[tuple[int, int, int]]:
        """(first, last, offset) of every offset of every entry: what a reader wants to see."""
        return [
            (self.firsts[i], self.lasts[i], value)
            for i in range(len(self.firsts))
            for value in self.entries[i].values
        ]

    # Single entries

    def seek(self, pgoff: int) -> int:
        """Number of the first entry that ends at or after `pgoff`."""
        self.memory.visited.count += self.depth
        i = bisect_right(self.firsts, pgoff) - 1
        if i >= 0 and self.lasts[i] >= pgoff:
            return i
        return i + 1

    def split(self, pgoff: int) -> None:
        """Let no entry span the boundary below `pgoff`."""
        i = self.seek(pgoff)
        if i < len(self.firsts) and self.firsts[i] < pgoff:
            entry = self.entries[i]
            if entry.room:
                self.memory.array(entry.room).alloc()
            self.firsts.insert(i + 1, pgoff)
            self.lasts.insert(i + 1, self.lasts[i])
            self.lasts[i] = pgoff - 1
            self.entries.insert(i + 1, Offsets(list(entry.values), entry.room))

    def put(self, i: int, values: list[int]) -> None:
        """Entry `i` holds `values` from now on, in an array that just fits a power of two."""
        placed = len(values)
        if placed > 1 and self.memory.home_marked and 0 in values:
            placed -= 1
        room = 0
        if placed > 1:
            room = 2
            while room < placed:
                room *= 2
        self.store(i, values, room)

    def store(self, i: int, values: list[int], room: int) -> None:
        """Entry `i` holds `values`, with that much room, from now on."""
        old = self.entries[i].room
        if old != room:
            if old:
                self.memory.array(old).free()
            if room:
                self.memory.array(room).alloc()
        self.entries[i] = Offsets(values, room)

    def delete(self, i: int) -> None:
        """Entry `i` goes."""
        room = self.entries[i].room
        if room:
            self.memory.array(room).free()
        del self.firsts[i]
        del self.lasts[i]
        del self.entries[i]

    def join(self, i: int, end: int) -> None:
        """Make one of neighbours from entry `i` to entry `end` that touch and say the same."""
        if i < 0:
            i = 0
        while i < end and i + 1 < len(self.firsts):
            if (
                self.lasts[i] + 1 == self.firsts[i + 1]
                and self.entries[i].values == self.entries[i + 1].values
            ):
                self.lasts[i] = self.lasts[i + 1]
                self.delete(i + 1)
                end -= 1
            else:
                i += 1

    def account(self) -> None:
        """Count the maple nodes: as full as they can be, and every entry with a gap beside it."""
        inside = len(self.firsts) - self.apart()
        slots = 2 * inside + 1
        nodes = 0
        depth = 0
        if inside:
            level = (slots + _LEAF_SLOTS - 1) // _LEAF_SLOTS
            nodes = level
            depth = 1
            while level > 1:
                level = (level + _BRANCH_SLOTS - 1) // _BRANCH_SLOTS
                nodes += level
                depth += 1
        if nodes > self._nodes:
            self.memory.nodes.alloc(nodes - self._nodes)
        elif nodes < self._nodes:
            self.memory.nodes.free(self._nodes - nodes)
        self._nodes = nodes
        self.depth = depth
