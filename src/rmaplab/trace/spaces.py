# SPDX-License-Identifier: GPL-2.0-or-later
"""A recorder's memory of an address space, needed to interpret what it sees.

The machine (mm/) knows how VMAs split and merge; a recorder only needs to tell whether an access was
allowed, where a range ends, and what a process has mapped that it may write to.  Private ranges that
touch and allow the same are one, so that there are no more of them than VMAs.

Invariant: ranges do not overlap, are page aligned, and ascend.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

import numpy as np
import numpy.typing as npt

from rmaplab.mm.abi import MREMAP_DONTUNMAP, PROT_READ, PROT_WRITE, STACK_GUARD_GAP
from rmaplab.mm.vma import PAGE_MASK, PAGE_SIZE, TASK_SIZE
from rmaplab.trace.history import Rows


class Range:
    """[start, end), mapped with `prot`."""

    def __init__(
        self, start: int, end: int, prot: int, private: bool, grows_down: bool = False, dont_fork: bool = False
    ) -> None:
        self.start = start
        self.end = end
        self.prot = prot
        self.private = private
        self.grows_down = grows_down
        self.dont_fork = dont_fork

    def of(self, start: int, end: int) -> Range:
        """The same from `start` to `end`."""
        return Range(start, end, self.prot, self.private, self.grows_down, self.dont_fork)


class Space:
    """An address space as a recorder sees it.  `born`: number of the event of the exec that made it, -1: a fork did."""

    def __init__(self, born: int) -> None:
        self.born = born
        self.ranges: list[Range] = []
        self._starts: list[int] = []
        self.brk = 0  # 0: not known yet

    def copy(self) -> Space:
        """The address space of a forked child."""
        child = Space(-1)
        child.ranges = [range.of(range.start, range.end) for range in self.ranges if not range.dont_fork]
        child._starts = [range.start for range in child.ranges]
        child.brk = self.brk
        return child

    def at(self, addr: int) -> Range | None:
        """The range that contains `addr`."""
        i = bisect_right(self._starts, addr) - 1
        if i >= 0 and addr < self.ranges[i].end:
            return self.ranges[i]
        return None

    def within(self, start: int, end: int) -> list[Range]:
        """The ranges that touch [start, end)."""
        i = max(bisect_right(self._starts, start) - 1, 0)
        found: list[Range] = []
        while i < len(self.ranges) and self.ranges[i].start < end:
            if self.ranges[i].end > start:
                found.append(self.ranges[i])
            i += 1
        return found

    def arrays(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        """Starts, ends and rights of the ranges."""
        return (
            np.array(self._starts, dtype=np.uint64),
            np.array([range.end for range in self.ranges], dtype=np.uint64),
            np.array([range.prot for range in self.ranges], dtype=np.int64),
        )

    def holes(self, start: int, end: int) -> list[tuple[int, int]]:
        """Where in [start, end) nothing is mapped."""
        found: list[tuple[int, int]] = []
        for range in self.within(start, end):
            if start < range.start:
                found.append((start, range.start))
            start = range.end
        if start < end:
            found.append((start, end))
        return found

    def insert(self, new: Range) -> None:
        """Map `new` over whatever was there."""
        i = self.remove(new.start, new.end)
        if i and _are_one(self.ranges[i - 1], new):
            self.ranges[i - 1].end = new.end
            return
        if i < len(self.ranges) and _are_one(new, self.ranges[i]):
            self.ranges[i].start = self._starts[i] = new.start
            return
        self.ranges.insert(i, new)
        self._starts.insert(i, new.start)

    def remove(self, start: int, end: int) -> int:
        """Unmap [start, end); returns how many ranges lie below it."""
        i = bisect_right(self._starts, start)
        if i == 0 or self.ranges[i - 1].end <= start:
            if i == len(self.ranges) or end <= self.ranges[i].start:
                return i  # nothing is there
        elif self.ranges[i - 1].start == start and self.ranges[i - 1].end == end:
            del self.ranges[i - 1]
            del self._starts[i - 1]
            return i - 1
        self._cut(start)
        self._cut(end)
        i = bisect_right(self._starts, start - 1)
        j = bisect_right(self._starts, end - 1)
        del self.ranges[i:j]
        del self._starts[i:j]
        return i

    def pieces(self, start: int, end: int) -> list[Range]:
        """The ranges of exactly [start, end), cut off from what surrounds them."""
        self._cut(start)
        self._cut(end)
        return self.within(start, end)

    def _cut(self, addr: int) -> None:
        range = self.at(addr)
        if range is not None and range.start < addr:
            upper = range.of(addr, range.end)
            range.end = addr
            i = bisect_right(self._starts, addr)
            self.ranges.insert(i, upper)
            self._starts.insert(i, addr)

    def protect(self, start: int, end: int, prot: int) -> list[tuple[int, int]]:
        """Let `prot` be allowed in [start, end); returns where there is something that could not be written before."""
        fresh: list[tuple[int, int]] = []
        for range in self.pieces(start, end):
            if not range.prot & PROT_WRITE:
                fresh.append((range.start, range.end))
            range.prot = prot
        first = max(bisect_right(self._starts, start) - 2, 0)
        joined = self.ranges[first : first + 1]
        i = first + 1
        while i < len(self.ranges) and self.ranges[i].start <= end:
            if _are_one(joined[-1], self.ranges[i]):
                joined[-1].end = self.ranges[i].end
            else:
                joined.append(self.ranges[i])
            i += 1
        if i - first > len(joined):
            self.ranges[first:i] = joined
            self._starts[first:i] = [range.start for range in joined]
        return fresh

    def set_brk(self, addr: int, result: int, events: Rows) -> bool:
        """brk(`addr`) returned `result`; returns whether the heap has another end.  The first answer is where the heap
        starts, which the kernel tells nowhere else: it belongs to the exec event."""
        if not self.brk:
            self.brk = result
            if self.born >= 0:
                events.correct(self.born, "addr2", result)
            return False
        if addr != result or addr == self.brk:
            return False  # a question, or refused
        old, new = page_align(self.brk), page_align(addr)
        if new > old:
            self.insert(Range(old, new, PROT_READ | PROT_WRITE, True))
        else:
            self.remove(new, old)
        self.brk = addr
        return True

    def remap(self, old: int, length: int, new_length: int, flags: int, new: int) -> None:
        """mremap() returned `new`."""
        keep = flags & MREMAP_DONTUNMAP != 0 or length == 0
        self.move(old, page_align(length), new, page_align(new_length), keep)

    def move(self, old: int, old_length: int, new: int, new_length: int, keep: bool) -> None:
        """mremap(): what lies at `old` goes to `new`, where it grows or is cut off.  Only what does not change
        its length may be several ranges, and the gaps in it stay gaps.  With `keep` the old ranges stay, too."""
        moved = self.pieces(old, old + old_length) if old_length else self.within(old, old + 1)
        copies = [range.of(max(range.start, old) - old + new, range.end - old + new) for range in moved]
        if not keep:
            self.remove(old, old + max(old_length, new_length if old == new else 0))
        for i, range in enumerate(copies):
            if old_length != new_length and i == len(copies) - 1:
                range.end = new + new_length
            range.end = min(range.end, new + new_length)
            if range.start < range.end:
                self.insert(range)

    def grow_stack(self, addr: int, limit: int) -> int:
        """Let the range above `addr` grow down to it if it does that, up to `limit` bytes.  Returns its new length; 0:
        it did not grow."""
        i = bisect_right(self._starts, addr)
        if i == len(self.ranges) or not self.ranges[i].grows_down:
            return 0
        range = self.ranges[i]
        start = addr & PAGE_MASK
        if i and self.ranges[i - 1].prot and start - self.ranges[i - 1].end < STACK_GUARD_GAP:
            return 0
        if range.end - start > limit:
            return 0
        range.start = start
        self._starts[i] = start
        return range.end - start


class Process:
    """A process as a recorder sees it: threads in an address space.

    stack_limit:   RLIMIT_STACK, as far as it is known
    limit_unknown: it was set since then, and what to was not seen
    guessed:       the stack grew beyond what is known
    """

    def __init__(self, pid: int, space: Space, stack_limit: int) -> None:
        self.pid: Final = pid
        self.space = space
        self.tids = {pid}
        self.stack_limit = stack_limit
        self.limit_unknown = False
        self.guessed = False

    def made(self, pid: int, space: Space) -> Process:
        """Its child, or itself when it has executed a program: limits stay."""
        process = Process(pid, space, self.stack_limit)
        process.limit_unknown = self.limit_unknown
        return process

    def grow_stack(self, addr: int) -> bool:
        """Let the stack grow down to `addr`, if it does."""
        length = self.space.grow_stack(addr, TASK_SIZE if self.limit_unknown else self.stack_limit)
        self.guessed |= length > self.stack_limit
        return length > 0


def _are_one(low: Range, high: Range) -> bool:
    return (
        low.end == high.start
        and low.private and high.private
        and low.prot == high.prot
        and low.dont_fork == high.dont_fork
        and not low.grows_down and not high.grows_down
    )  # fmt: skip


def page_align(length: int) -> int:
    return (length + PAGE_SIZE - 1) & PAGE_MASK
