# SPDX-License-Identifier: GPL-2.0-or-later
"""Design `page_scan`: no reverse map, but a scan of all page tables.

Linux did this up to 2.4 (mm/vmscan.c, swap_out()): to find the mappings of a page, it scanned the page
tables of all processes.  The design keeps no state for VMAs or folios, so it cannot be wrong: the other
designs are checked against it.

Data: the address spaces that are alive, and which pages stand in for which during a migration.

Invariant: every entry that maps a page is in the page table of an address space that is alive.

Locking: the page-table locks of the leaves that it reads; none of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from mypy_extensions import mypyc_attr

from rmaplab.mm.folio import Int64s
from rmaplab.mm.pagetable import LEAF_ENTRIES, LEAF_SHIFT, PTE_ANON, PTE_MIGRATION, PTE_SHIFT
from rmaplab.mm.reverse_map import Attachment, ReverseMap
from rmaplab.mm.vma import MM, PAGE_SHIFT, VMA
from rmaplab.sync.work import Tally


@mypyc_attr(allow_interpreted_subclasses=True)
class PageScanRmap(ReverseMap):
    """Every page table of every process."""

    name = "page_scan"
    scans_memory = True

    def __init__(self, attachment: Attachment) -> None:
        super().__init__(attachment)
        self.mms: Final[dict[int, MM]] = {}  # by id, the oldest first
        self.replaced: Final[dict[int, int]] = {}  # by pfn: the pfn that its migration entries still name
        self.walks: Final[Tally] = self.ledger.tally("walks")
        self.entries: Final[Tally] = self.ledger.tally("page-table entries looked at")
        self.places: Final[Tally] = self.ledger.tally("places visited")

    def mm_created(self, mm: MM) -> None:
        self.mms[mm.id] = mm

    def mm_forked(self, parent: MM, child: MM) -> None:
        self.mms[child.id] = child

    def mm_gone(self, mm: MM) -> None:
        del self.mms[mm.id]

    def folio_migrated(self, old: int, new: int, nr_pages: int) -> None:
        for i in range(nr_pages):
            self.replaced[new + i] = old + i

    def folio_freed(self, pfn: int, nr_pages: int) -> None:
        if self.replaced:
            for i in range(nr_pages):
                self._forget(pfn + i)

    def folios_freed(self, pfns: Int64s) -> None:
        if self.replaced:
            for i in range(len(pfns)):
                self._forget(int(pfns[i]))

    def _forget(self, pfn: int) -> None:
        """`pfn` is free: whether it was replaced or replaced another, no entry speaks of that any more."""
        self.replaced.pop(pfn, 0)
        for new, old in list(self.replaced.items()):
            if old == pfn:
                del self.replaced[new]

    def walk(self, pfn: int) -> Iterator[tuple[VMA, int]]:
        self.walks.count += 1
        nr_pages = self.folios.nr_pages(pfn)
        old = self.replaced.get(pfn, -1)
        for mm in list(self.mms.values()):
            leaves = mm.page_table.leaves
            seen: list[tuple[VMA, int]] = []
            for number in sorted(leaves):
                leaf = leaves.get(number)
                if leaf is None:  # it emptied while the caller dealt with an earlier place
                    continue
                self.entries.count += LEAF_ENTRIES
                for i in _matches(leaf.v, pfn, nr_pages, PTE_ANON | PTE_MIGRATION):
                    page = (leaf.m[i] >> PTE_SHIFT) - pfn
                    yield from self._place(mm, (number << LEAF_SHIFT) + (i << PAGE_SHIFT), page, seen)
                if old >= 0:
                    for i in _matches(leaf.v, old, nr_pages, PTE_MIGRATION):
                        page = (leaf.m[i] >> PTE_SHIFT) - old
                        yield from self._place(mm, (number << LEAF_SHIFT) + (i << PAGE_SHIFT), page, seen)

    def _place(self, mm: MM, addr: int, page: int, seen: list[tuple[VMA, int]]) -> Iterator[tuple[VMA, int]]:
        """The place of the folio whose page number `page` is mapped at `addr`, unless it was seen before."""
        vma = mm.tree.at(addr)
        if vma is None:
            return
        first = addr - (page << PAGE_SHIFT)
        place = (vma, first if first > vma.start else vma.start)
        if place not in seen:
            seen.append(place)
            self.places.count += 1
            yield place


def _matches(v: Int64s, pfn: int, nr_pages: int, kinds: int) -> list[int]:
    """Numbers of the entries in `v` of one of `kinds` that name one of the pages from `pfn` on."""
    page = (v >> PTE_SHIFT) - pfn
    found: list[int] = np.flatnonzero((page >= 0) & (page < nr_pages) & ((v & kinds) != 0)).tolist()
    return found
