# SPDX-License-Identifier: GPL-2.0-or-later
"""Odd entries: those that are not where their page says, for designs that would have Linux copy a page first.

A design whose pages have one address (anonmm, unshare_on_remap) needs mremap() to copy what others map too.  It cannot
make the machine copy, so it remembers such an entry as odd, and counts the page that Linux would have copied.  The
same list has entries that were in swap while their page moved.

Invariant: an entry (present or migrating) is where its page says, or in this list, by page.

Locking: PG_maplock, a bit in each page, covers its address and its odd entries, and nests in the page-table lock.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from rmaplab.mm.folio import Int64s
from rmaplab.mm.pagetable import PTE_ANON, PTE_MIGRATION, PTE_SHIFT
from rmaplab.mm.vma import MM, PAGE_SHIFT
from rmaplab.rmap.page_entries import PageLocks, page_of
from rmaplab.sync.locks import Scheduler
from rmaplab.sync.work import Ledger


class OddEntries:
    """By page: the address spaces that have it elsewhere, and where, as address >> PAGE_SHIFT."""

    def __init__(self, ledger: Ledger, scheduler: Scheduler | None) -> None:
        self.lock_class: Final = ledger.lock_class("page map lock")
        self.locks: Final = PageLocks(self.lock_class, scheduler)
        self.places: Final[dict[int, list[tuple[MM, int]]]] = {}
        self.replaced: Final[dict[int, int]] = {}  # during a migration: page -> the page that stands for it

    def pages(self, entries: Int64s) -> tuple[Int64s, Int64s]:
        """Which of `entries` are for anonymous pages, and for which."""
        at = np.flatnonzero((entries & (PTE_ANON | PTE_MIGRATION)) != 0)
        if self.replaced:
            return at, np.array([page_of(int(entries[i]), self.replaced) for i in at], dtype=np.int64)
        return at, entries[at] >> PTE_SHIFT

    def of(self, pfn: int) -> list[tuple[MM, int]]:
        """Those of one page."""
        return list(self.places.get(pfn, [])) if self.places else []

    def add(self, mm: MM, pfn: int, number: int) -> None:
        """The entry for `pfn` at page `number` of `mm` is odd."""
        lock = self.locks.of(pfn)
        lock.lock()
        lock.assert_held()
        self.places.setdefault(self.replaced.get(pfn, pfn), []).append((mm, number))
        lock.unlock()

    def removed(self, mm: MM, addr: int, entries: Int64s) -> None:
        """`entries`, from `addr` of `mm` on, are no more."""
        if self.places:
            for i in np.flatnonzero((entries & (PTE_ANON | PTE_MIGRATION)) != 0).tolist():
                self._remove(mm, page_of(int(entries[i]), self.replaced), (addr >> PAGE_SHIFT) + i)

    def _remove(self, mm: MM, pfn: int, number: int) -> None:
        if (mm, number) in self.places.get(pfn, []):
            lock = self.locks.of(pfn)
            lock.lock()
            lock.assert_held()
            page = self.replaced.get(pfn, pfn)  # a migration may have begun meanwhile
            self.places[page].remove((mm, number))
            if not self.places[page]:
                del self.places[page]
            lock.unlock()

    def migrated(self, old: int, new: int) -> None:
        """Page `new` stands for `old`, which entries name until the migration is over."""
        found = self.places.pop(old, None)
        if found is not None:
            self.places[new] = found
        self.replaced[old] = new

    def freed(self, pfns: Int64s) -> None:
        """No entry names these pages any more."""
        if self.replaced:
            for pfn in pfns.tolist():
                self.replaced.pop(pfn, 0)
