# SPDX-License-Identifier: GPL-2.0-or-later
"""The VMAs of an address space, by address.

Stands for the maple tree (lib/maple_tree.c): find by address, neighbours, ranges, and the highest or
lowest gap that fits.  The layout is two levels, as in `sortedcontainers`: a list of blocks, each of
at most 128 VMAs with their start addresses beside them, so that a look-up is two bisections and an
insertion moves at most a block.  Calls come in pairs, and a call looks at one place several times, and beside it: a
look-up begins where the last one ended.  Each block knows the largest gap *before* one of its VMAs, recomputed
only where a VMA was added, removed or changed since.

Invariants
- `_first[i]` is `_blocks[i].starts[0]`; `starts[j]` is `vmas[j].start`; both ascend; no block is empty.
- code that changes the `start` or `end` of a VMA in the tree calls `moved()` before the next look-up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Generic, TypeVar

_BLOCK: Final = 128
_LEAF_SLOTS: Final = 16  # of a maple_range_64 node, MAPLE_RANGE64_SLOTS
_BRANCH_SLOTS: Final = 10  # MAPLE_ARANGE64_SLOTS


class Range:
    """What a tree holds: [start, end), in bytes, with flags."""

    def __init__(self, start: int, end: int, flags: int) -> None:
        self.start = start
        self.end = end
        self.flags = flags


R = TypeVar("R", bound=Range)


class _Block(Generic[R]):
    def __init__(self, starts: list[int], vmas: list[R]) -> None:
        self.starts: Final = starts
        self.vmas: Final = vmas
        self.max_gap = -1  # bytes; -1: not known


def _last(starts: list[int], addr: int) -> int:
    """Where in `starts` the last is that is at or below `addr`, or -1.  Compiled, bisect() takes three times as long:
    each of its comparisons is one of Python's objects."""
    low = 0
    high = len(starts)
    while low < high:
        middle = (low + high) >> 1
        if addr < starts[middle]:
            high = middle
        else:
            low = middle + 1
    return low - 1


class VMATree(Generic[R]):
    """A sorted map from start address to VMA.  Those that have the flag `guarded` keep room free below themselves."""

    def __init__(self, guarded: int) -> None:
        self._guarded: Final = guarded
        self._first: list[int] = []
        self._blocks: list[_Block[R]] = []
        self._size = 0
        self._i = 0  # what _find() found last
        self._j = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[R]:
        for block in self._blocks:
            yield from block.vmas

    def levels(self) -> int:
        """Nodes that a look-up visits: the levels of a maple tree with so many VMAs, each with a gap beside it.  Its
        nodes are three quarters full, between the half that a split leaves and the whole that fork makes."""
        slots = 2 * self._size + 1
        room = _LEAF_SLOTS
        levels = 1
        while slots > room:  # the root may be full
            slots = -(-slots * 4 // (3 * room))
            room = _BRANCH_SLOTS
            levels += 1
        return levels

    def to_list(self) -> list[R]:
        """All VMAs, ascending."""
        result: list[R] = []
        for block in self._blocks:
            result.extend(block.vmas)
        return result

    def fill(self, vmas: list[R]) -> None:
        """Replace the contents by `vmas`, which ascend (fork copies the whole tree at once)."""
        self._first = []
        self._blocks = []
        self._size = len(vmas)
        for i in range(0, len(vmas), _BLOCK // 2):
            part = vmas[i : i + _BLOCK // 2]
            starts = [vma.start for vma in part]
            self._first.append(starts[0])
            self._blocks.append(_Block(starts, part))

    def frozen(self) -> VMATree[R]:
        """A copy that stays as it is: what a reader under RCU sees who came before a change."""
        copy: VMATree[R] = VMATree(self._guarded)
        if self._size:
            copy.fill(self.to_list())
        return copy

    def _find(self, addr: int) -> int:
        """Where in block `_i` the last VMA is that starts at or below `addr`; -1, and the first block, if none does.
        Mostly it is what was found last, or beside that."""
        i = self._i
        if i < len(self._blocks):
            starts = self._blocks[i].starts
            nr = len(starts)
            j = self._j
            if j < nr:
                if addr < starts[j]:
                    if j > 0 and starts[j - 1] <= addr:
                        self._j = j - 1
                        return j - 1
                else:
                    j += 1
                    if j < nr and starts[j] <= addr:
                        j += 1
                    if addr < starts[j] if j < nr else i + 1 == len(self._blocks) or addr < self._first[i + 1]:
                        self._j = j - 1
                        return j - 1
        i = _last(self._first, addr)
        if i < 0:
            self._i = self._j = 0
            return -1
        self._i = i
        self._j = _last(self._blocks[i].starts, addr)
        return self._j

    def at(self, addr: int) -> R | None:
        """The VMA that contains `addr`."""
        vma = self.last_from(addr)
        if vma is not None and addr < vma.end:
            return vma
        return None

    def last_from(self, addr: int) -> R | None:
        """The last VMA that starts at or below `addr`."""
        j = self._find(addr)
        return None if j < 0 else self._blocks[self._i].vmas[j]

    def first_after(self, addr: int) -> R | None:
        """The first VMA that ends above `addr` (find_vma())."""
        if not self._blocks:
            return None
        j = self._find(addr)
        i = self._i
        vmas = self._blocks[i].vmas
        if j >= 0 and addr < vmas[j].end:
            return vmas[j]
        j += 1
        if j < len(vmas):
            return vmas[j]
        i += 1
        return self._blocks[i].vmas[0] if i < len(self._blocks) else None

    def before(self, vma: R) -> R | None:
        """The VMA below `vma`."""
        return self.last_from(vma.start - 1)

    def after(self, vma: R) -> R | None:
        """The VMA above `vma`."""
        return self.first_after(vma.end)

    def overlapping(self, start: int, end: int) -> list[R]:
        """The VMAs that touch [start, end), ascending."""
        result: list[R] = []
        if start >= end or not self._blocks:
            return result
        j = max(self._find(start), 0)
        i = self._i
        block = self._blocks[i]
        while True:
            vmas = block.vmas
            nr = len(vmas)
            while j < nr:
                vma = vmas[j]
                if vma.start >= end:
                    return result
                if vma.end > start:
                    result.append(vma)
                j += 1
            i += 1
            if i == len(self._blocks):
                return result
            block = self._blocks[i]
            j = 0

    def insert(self, vma: R) -> None:
        """Add a VMA that overlaps none of the others."""
        start = vma.start
        self._size += 1
        if not self._blocks:
            self._first.append(start)
            self._blocks.append(_Block([start], [vma]))
            return
        j = self._find(start) + 1
        i = self._i
        block = self._blocks[i]
        block.starts.insert(j, start)
        block.vmas.insert(j, vma)
        block.max_gap = -1
        if j == 0:
            self._first[i] = start
        if len(block.starts) > _BLOCK:
            half = _BLOCK // 2
            upper = _Block(block.starts[half:], block.vmas[half:])
            del block.starts[half:]
            del block.vmas[half:]
            self._first.insert(i + 1, upper.starts[0])
            self._blocks.insert(i + 1, upper)
        elif j == len(block.starts) - 1:
            self._stale(i + 1)

    def remove(self, vma: R) -> None:
        """Take a VMA out.

        :raises KeyError: it is not in the tree
        """
        start = vma.start
        j = self._find(start)
        i = self._i
        block = self._blocks[i]
        if block.vmas[j] is not vma:
            raise KeyError(f"{vma!r} is not in the tree")
        self._size -= 1
        del block.starts[j]
        del block.vmas[j]
        block.max_gap = -1
        if not block.starts:
            del self._blocks[i]
            del self._first[i]
            self._stale(i)
        else:
            if j == 0:
                self._first[i] = block.starts[0]
            if j == len(block.starts):
                self._stale(i + 1)

    def moved(self, vma: R, old_start: int) -> None:
        """`vma` has new bounds, and had `old_start` before; its place among the others is the same."""
        j = self._find(old_start)
        i = self._i
        block = self._blocks[i]
        if block.vmas[j] is not vma:
            raise KeyError(f"{vma!r} is not in the tree at {old_start:#x}")
        if vma.start != old_start:
            block.starts[j] = vma.start
            if j == 0:
                self._first[i] = vma.start
        block.max_gap = -1
        if j == len(block.starts) - 1:
            self._stale(i + 1)

    def _stale(self, i: int) -> None:
        if i < len(self._blocks):
            self._blocks[i].max_gap = -1

    def _gap_of(self, i: int) -> int:
        """The largest gap before a VMA of block `i` (the gap before its first VMA included)."""
        block = self._blocks[i]
        if block.max_gap < 0:
            end = self._blocks[i - 1].vmas[-1].end if i else 0
            best = 0
            for vma in block.vmas:
                gap = vma.start - end
                if gap > best:
                    best = gap
                end = vma.end
            block.max_gap = best
        return block.max_gap

    def highest_gap(self, length: int, low: int, high: int, guard: int) -> int:
        """Highest address of a gap of `length` bytes within [low, high), or -1.

        `guard` bytes are kept free below a VMA that is `guarded`, as it grows downwards (mm/mmap.c
        unmapped_area_topdown()).
        Linux looks for room without them, and goes on below the guard once it has found some just under
        such a VMA: nothing above the guard is looked at again, not even between VMAs that lie in it.
        """
        limit = high
        above: R | None = None  # the VMA above the gap that is looked at
        i = len(self._blocks) - 1
        while i >= 0:
            block = self._blocks[i]
            top = limit if above is None or above.start > limit else above.start
            if top - block.vmas[-1].end < length and self._gap_of(i) < length:
                above = block.vmas[0]
            else:
                j = len(block.vmas) - 1
                while j >= 0:
                    vma = block.vmas[j]
                    top = limit if above is None or above.start > limit else above.start
                    bottom = vma.end if vma.end > low else low
                    if top - bottom >= length and above is not None and above.flags & self._guarded:
                        if above.start - guard < top:
                            limit = above.start - guard
                            top = limit
                    if top - bottom >= length:
                        return top - length
                    above = vma
                    if vma.start - low < length:
                        return -1
                    j -= 1
            if block.starts[0] - low < length:
                return -1
            i -= 1
        top = limit if above is None or above.start > limit else above.start
        if top - low >= length and above is not None and above.flags & self._guarded:
            if above.start - guard < top:
                top = above.start - guard
        if top - low >= length:
            return top - length
        return -1

    def lowest_gap(self, length: int, low: int, high: int, guard: int) -> int:
        """Lowest address of a gap of `length` bytes within [low, high), or -1 (bottom-up fallback)."""
        bottom = low
        for vma in self.overlapping(low, high):
            top = vma.start - (guard if vma.flags & self._guarded else 0)
            if top - bottom >= length:
                return bottom
            if vma.end > bottom:
                bottom = vma.end
        above = self.first_after(high - 1)
        if above is not None and above.flags & self._guarded and above.start - guard < high:
            high = above.start - guard
        if high - bottom >= length:
            return bottom
        return -1
