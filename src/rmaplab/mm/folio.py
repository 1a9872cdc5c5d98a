# SPDX-License-Identifier: GPL-2.0-or-later
"""Folios: anonymous memory as rows of columns.

Models struct page and struct folio (include/linux/mm_types.h).  A page is a row, its row number the
page frame number (pfn).  A folio of order n is 2**n consecutive rows that start at a multiple of 2**n; its
first row is the head.  Every row of a folio has its own `index`, so that a folio can be split without a
call to the designs.

Invariants
- `mapcount[pfn]` is the number of present page-table entries that map this very page.
- `index[pfn]` is the page offset at which the page was first mapped: pgoff of the VMA plus distance.
- a page that is exclusive (see pagetable.py) is mapped by exactly one entry.
- `exclusive[pfn]`, of a page of a large folio, is Linux's PageAnonExclusive(): what PTE_EXCLUSIVE of an entry that
  maps it says, and what the last such entry said once nothing maps it any more.  Of small folios it means nothing.
- a free row has order -1 and mapcount 0; one that was handed out as a folio of order 0 is its own head.

Locking: a row is changed under the page-table lock of an entry that maps it, or while nothing does.
"""

from __future__ import annotations

from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from rmaplab.sync.fields import OF_PAGE
from rmaplab.sync.locks import Scheduler
from rmaplab.sync.order import read_once

FOLIO_ANON: Final = 1
FOLIO_KSM: Final = 2
FOLIO_DIRTY: Final = 4  # not as it is in swap, found out when an entry that was dirty went, or swap gave it up
FOLIO_LAZYFREE: Final = 8  # not swap-backed: may be dropped, while it stays clean (MADV_FREE) or anyway (VM_DROPPABLE)
FOLIO_LOCKED: Final = 16  # in the hands of reclaim or migration
FOLIO_REFERENCED: Final = 32
FOLIO_WRITTEN: Final = 64  # where there are large folios: the program wrote to it, so it is not all zeroes
FOLIO_PARTLY: Final = 128  # of a large folio: passes for mapped in part, and is split when it is next migrated

MAX_ORDER: Final = 9

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]


class Column:
    """One value a page, growing with the number of rows; `v` is the NumPy array, `m` the same memory
    as a memoryview, which is quicker for single elements.  Both are replaced when the column grows, and
    rows that were never written take no memory."""

    def __init__(self, rows: int, dtype: Any) -> None:
        self._dtype: Final = dtype
        self.v: npt.NDArray[Any] = np.zeros(rows, dtype=dtype)
        self.m: memoryview = self.v.data

    def grow(self, rows: int) -> None:
        """Room for so many `rows`; what is there stays, and the rest is 0."""
        old = self.v
        new = np.zeros(rows, dtype=self._dtype)
        new[: len(old)] = old
        self.v = new
        self.m = new.data

    def parse(self, rows: bytes) -> npt.NDArray[Any]:
        """What `v[...].tobytes()` was made of."""
        return np.frombuffer(rows, dtype=self._dtype)


class Folios:
    """All anonymous memory of a machine."""

    def __init__(self, rows: int = 1024) -> None:
        self.rows = rows
        self.columns: Final[list[Column]] = []  # all there are, the designs' too
        self.head: Final = self.column(np.int32)  # pfn of the folio's first page
        self.order: Final = self.column(np.int8)  # of the folio, in every row of it; -1: free
        self.flags: Final = self.column(np.uint8)  # FOLIO_*, in every row of it
        self.mapcount: Final = self.column(np.int32)  # of this page
        self.index: Final = self.column(np.int64)  # of this page
        self.exclusive: Final = self.column(np.bool_)  # of this page, if its folio is large
        self._next = 512  # never used so far; low numbers are left free so that pfn 0 means none
        self._free: Final = Column(512, np.int32)  # order-0 rows, a stack
        self._nr_free = 0
        self._free_large: Final[list[list[int]]] = [[] for _ in range(MAX_ORDER + 1)]
        self.in_use = 0
        self.peak = 0
        self.allocated = 0

    def column(self, dtype: Any) -> Column:
        """A new column of the designer's own, zero everywhere."""
        column = Column(self.rows, dtype)
        self.columns.append(column)
        return column

    def _reserve(self, rows: int) -> None:
        if rows > self.rows:
            while self.rows < rows:
                self.rows *= 2
            for column in self.columns:
                column.grow(self.rows)

    def _count(self, nr_pages: int) -> None:
        self.in_use += nr_pages
        self.allocated += nr_pages
        if self.in_use > self.peak:
            self.peak = self.in_use

    def alloc(self, index: int) -> int:
        """A new anonymous folio of order 0, mapped nowhere yet.  Returns its pfn."""
        if self._nr_free:
            self._nr_free -= 1
            pfn: int = self._free.m[self._nr_free]
        else:
            pfn = self._next
            self._next = pfn + 1
            if pfn >= self.rows:
                self._reserve(pfn + 1)
            self.head.m[pfn] = pfn
        self.order.m[pfn] = 0
        self.flags.m[pfn] = FOLIO_ANON
        self.index.m[pfn] = index
        self._count(1)
        return pfn

    def alloc_run(self, indices: Int64s) -> Int64s:
        """A new folio of order 0 for each index.  Returns their pfns, which `alloc` would have handed out for one after
        the other."""
        count = len(indices)
        reused = count if count < self._nr_free else self._nr_free
        fresh = count - reused
        self._reserve(self._next + fresh)
        pfns = np.empty(count, dtype=np.int64)
        if reused:
            self._nr_free -= reused
            pfns[:reused] = self._free.v[self._nr_free : self._nr_free + reused][::-1]
        if fresh:
            pfns[reused:] = np.arange(self._next, self._next + fresh)
            self._next += fresh
            self.head.v[pfns[reused:]] = pfns[reused:]
        self.order.v[pfns] = 0
        self.flags.v[pfns] = FOLIO_ANON
        self.index.v[pfns] = indices
        self._count(count)
        return pfns

    def alloc_large(self, index: int, order: int) -> int:
        """A new anonymous folio of `order` (1 to 9), mapped nowhere yet.  Returns its head's pfn."""
        nr_pages = 1 << order
        if self._free_large[order]:
            pfn = self._free_large[order].pop()
        else:
            pfn = -(-self._next >> order) << order
            self._reserve(pfn + nr_pages)
            for skipped in range(self._next, pfn):  # to align; it goes to the order-0 stack
                self.head.m[skipped] = skipped
                self._push_free(skipped)
            self._next = pfn + nr_pages
        self.head.v[pfn : pfn + nr_pages] = pfn
        self.order.v[pfn : pfn + nr_pages] = order
        self.flags.v[pfn : pfn + nr_pages] = FOLIO_ANON
        self.exclusive.v[pfn : pfn + nr_pages] = False
        self.index.v[pfn : pfn + nr_pages] = np.arange(index, index + nr_pages)
        self._count(nr_pages)
        return pfn

    def _push_free(self, pfn: int) -> None:
        self.order.m[pfn] = -1
        self._reserve_stack(self._nr_free + 1)
        self._free.m[self._nr_free] = pfn
        self._nr_free += 1

    def _reserve_stack(self, size: int) -> None:
        capacity = len(self._free.m)
        if capacity < size:
            while capacity < size:
                capacity *= 2
            self._free.grow(capacity)

    def free(self, head: int, again: bool = True) -> None:
        """The folio whose first page is `head` is gone: nothing maps it and it is not in swap.  `again`: it may be
        handed out again."""
        order = self.order.m[head]
        nr_pages = 1 << order
        if order == 0 and again:
            self.flags.m[head] = 0
            self._push_free(head)
        else:
            self.order.v[head : head + nr_pages] = -1
            self.flags.v[head : head + nr_pages] = 0
            if again:
                self._free_large[order].append(head)
        self.in_use -= nr_pages

    def free_run(self, pfns: Int64s) -> None:
        """Free folios of order 0, as `free` for each of them in this order would."""
        count = len(pfns)
        self.order.v[pfns] = -1
        self.flags.v[pfns] = 0
        self._reserve_stack(self._nr_free + count)
        self._free.v[self._nr_free : self._nr_free + count] = pfns
        self._nr_free += count
        self.in_use -= count

    def nr_pages(self, pfn: int) -> int:
        """Pages of the folio that `pfn` belongs to."""
        order: int = self.order.m[pfn]
        return 1 << order

    def total_mapcount(self, head: int) -> int:
        """Entries that map any page of the folio (folio_mapcount())."""
        order: int = self.order.m[head]
        if order == 0:
            count: int = self.mapcount.m[head]
            return count
        return int(self.mapcount.v[head : head + (1 << order)].sum())

    def split(self, head: int) -> None:
        """Split a large folio into folios of order 0; every page keeps index, mapcount and anchors."""
        nr_pages = self.nr_pages(head)
        self.order.v[head : head + nr_pages] = 0
        self.head.v[head : head + nr_pages] = np.arange(head, head + nr_pages)

    def set_flag(self, head: int, flag: int) -> None:
        """Set a FOLIO_* flag of all pages of the folio."""
        nr_pages = self.nr_pages(head)
        if nr_pages == 1:
            self.flags.m[head] |= flag
        else:
            self.flags.v[head : head + nr_pages] |= flag

    def clear_flag(self, head: int, flag: int) -> None:
        """Clear a FOLIO_* flag of all pages of the folio."""
        end = head + self.nr_pages(head)
        self.flags.v[head:end] &= ~flag & 0xFF

    @property
    def end(self) -> int:
        """One above the highest pfn that was ever in use."""
        return self._next

    def live(self) -> Int64s:
        """The pfns of all pages in use."""
        orders = self.order.v[512 : self._next]
        return np.flatnonzero(orders >= 0) + 512


def folio_mapcount(scheduler: Scheduler | None, folios: Folios, head: int) -> int:
    """Entries that map the folio, for who holds no lock that keeps it (atomic_read(); a large folio's are as now)."""
    if scheduler is None or folios.order.m[head]:
        return folios.total_mapcount(head)
    return cast(int, read_once(scheduler, "read mapcount", folios.mapcount, OF_PAGE, 0, head))
