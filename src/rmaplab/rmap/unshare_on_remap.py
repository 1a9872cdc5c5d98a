# SPDX-License-Identifier: GPL-2.0-or-later
"""Design `unshare_on_remap`: CoW contexts without records, where mremap() copies what others map, too.

What the author of the CoW contexts announced (docs/kernels/rules.md): to copy what mremap() would have moved while it
is shared.  A page that its mover alone maps gets its new address.  So a page is at one address in all address spaces
that have it, and nothing needs to be recorded.  No code was published; the rules below are ours.

A design cannot make the machine copy.  So the entry of a shared page that moves is remembered as *odd*
(odd_entries.py), and the page counted as one that Linux would have copied.

Data
- the tree of contexts (context.py), without remap trees
- for each page, one number that holds its context and its address; for a VMA, whether it may have pages
- odd entries, by page

Invariants
- Subtree: that of `cow_context`.
- Address: an entry for a page, present or migrating, is at the page's address in an address space of the subtree, or
  it is odd.
- A page gets another address under the locks of both leaves, if its only entry moves, and no migration has it: then its
  mapcount does not say who has it.  In Linux, the folio lock would have to be had as well.

Hence a walk that looks, in each address space of the subtree, at the page's address and at its odd entries there finds
all.  It looks again where something moved meanwhile, and reads where the page is each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from mypy_extensions import mypyc_attr

from rmaplab.mm.folio import FOLIO_KSM, Int64s
from rmaplab.mm.geometry import Bounds
from rmaplab.mm.pagetable import LEAF_SHIFT, PTE_ANON, PTE_KSM, PTE_SHIFT
from rmaplab.mm.reverse_map import Attachment
from rmaplab.mm.takeover import TakenOver
from rmaplab.mm.vma import MM, PAGE_SHIFT, VMA, seen
from rmaplab.rmap.context import CowContext
from rmaplab.rmap.cow_context import CONTEXT_SHIFT, PGOFF_BIAS, PGOFF_MASK, CowContextRmap, Displaced
from rmaplab.rmap.odd_entries import OddEntries
from rmaplab.sync.fields import OF_PAGE
from rmaplab.sync.order import read_once
from rmaplab.sync.work import Tally


@mypyc_attr(allow_interpreted_subclasses=True)
class UnshareOnRemapRmap(CowContextRmap):
    """One context per address space, one address per page."""

    name = "unshare_on_remap"
    vma_fields = 0  # a flag says whether it may have pages
    watches_entries = True

    def __init__(self, attachment: Attachment) -> None:
        super().__init__(attachment)
        self.readdressed: Final[Tally] = self.ledger.tally("pages given a new address")
        self.copies: Final[Tally] = self.ledger.tally("pages that Linux would have copied")
        self.odd: Final = OddEntries(self.ledger, self.scheduler)

    # VMAs: the shift of `cow_context` is a flag

    def vma_prepare(self, vma: VMA) -> None:
        self._set_shift(vma, 0)

    def _places(self, vma: VMA, bounds: Bounds) -> list[Displaced]:
        """Nothing is recorded."""
        return []

    # Pages

    def _where(self, context: CowContext, vma: VMA, addr: int) -> int:
        """What a page at `addr` is to hold."""
        return (context.number << CONTEXT_SHIFT) + PGOFF_BIAS + (addr >> PAGE_SHIFT)

    def folio_migrated(self, old: int, new: int, nr_pages: int) -> None:
        super().folio_migrated(old, new, nr_pages)
        for i in range(nr_pages):
            self.odd.migrated(old + i, new + i)

    def folio_freed(self, pfn: int, nr_pages: int) -> None:
        super().folio_freed(pfn, nr_pages)
        self.odd.freed(np.arange(pfn, pfn + nr_pages))

    def folios_freed(self, pfns: Int64s) -> None:
        super().folios_freed(pfns)
        self.odd.freed(pfns)

    # Entries

    def entries_added(self, mm: MM, addr: int, entries: Int64s) -> None:
        for _, pfn, number in self._elsewhere(addr, entries):
            self.odd.add(mm, pfn, number)

    def entries_removed(self, mm: MM, addr: int, entries: Int64s) -> None:
        self.odd.removed(mm, addr, entries)

    def entries_moved(self, mm: MM, old: int, new: int, entries: Int64s) -> None:
        self.entries_removed(mm, old, entries)
        for entry, pfn, number in self._elsewhere(new, entries):
            if self._is_alone(entry, pfn):
                self._set(pfn)
                self.where.m[pfn] = self.where.m[pfn] & ~PGOFF_MASK | PGOFF_BIAS + number
                self.readdressed.count += 1
            else:
                self.copies.count += entry & PTE_ANON != 0
                self.odd.add(mm, pfn, number)

    def _is_alone(self, entry: int, pfn: int) -> bool:
        """Is that the only entry for `pfn`, as for copy-on-write (wp_can_reuse_anon_folio())?"""
        if not entry & PTE_ANON or pfn in self.held or pfn in self.odd.replaced.values():
            return False  # entries that wait for a migration are in no mapcount
        return bool(self.folios.mapcount.m[pfn] == 1)

    def _elsewhere(self, addr: int, entries: Int64s) -> list[tuple[int, int, int]]:
        """Those of `entries`, from `addr` on, that are not where their pages say; their pages, and where they are.
        A page of KSM has its places."""
        at, pfns = self.odd.pages(entries)
        numbers = at + (addr >> PAGE_SHIFT)
        apart = (self.where.v[pfns] & PGOFF_MASK) - PGOFF_BIAS != numbers
        apart &= (entries[at] & PTE_KSM) == 0
        return [(int(entries[at[i]]), int(pfns[i]), int(numbers[i])) for i in np.flatnonzero(apart)]

    # Memory that is there already

    def take_over(self, found: TakenOver) -> None:
        for known in found.vmas:
            known.vma.rmap[self.slot] = 0
        super(CowContextRmap, self).take_over(found)

    # The walk

    def walk(self, pfn: int) -> Iterator[tuple[VMA, int]]:
        self.walks.count += 1
        flags: int = self.folios.flags.m[pfn]
        if flags & FOLIO_KSM:
            yield from self._walk_ksm(pfn)
            return
        self.rcu.read_lock()
        try:
            top, _ = self._anchor_seen(pfn)
            if top is None or not self.stays(pfn, top):
                return
            nr_pages = self.folios.nr_pages(pfn)
            for context in self._parents_first(top):
                mm = self.get_mm(context)
                if mm is None:
                    continue
                try:
                    again = True
                    while again:
                        begun = context.moves.read_begin()
                        for first in self._firsts(mm, pfn, nr_pages):
                            yield from self._at(mm, first, nr_pages, 0)
                        again = context.moves.read_retry(begun)
                finally:
                    self.spaces.put(mm)
        finally:
            self.rcu.read_unlock()

    def _firsts(self, mm: MM, pfn: int, nr_pages: int) -> list[int]:
        """Where `mm` has the folio's first page, or would have it: one address, unless parts of a large folio moved or
        an entry is odd."""
        read_once(self.scheduler, "folio->mapping", self.where, OF_PAGE, self.where.m[pfn], pfn)
        if nr_pages == 1:
            found = [(self.where.m[pfn] & PGOFF_MASK) - PGOFF_BIAS]
        else:
            numbers = (self.where.v[pfn : pfn + nr_pages] & PGOFF_MASK) - PGOFF_BIAS - np.arange(nr_pages)
            found = [int(number) for number in np.unique(numbers)]
        odd = [number - i for i in range(nr_pages) for space, number in self.odd.of(pfn + i) if space is mm]
        return list(dict.fromkeys([*found, *odd]))

    def _at(self, mm: MM, first: int, nr_pages: int, offset: int) -> Iterator[tuple[VMA, int]]:
        """The VMAs from that page on that may have pages."""
        start = (first + offset) << PAGE_SHIFT
        for vma in self.vmas_at(mm, start, start + (nr_pages << PAGE_SHIFT)):
            if self._shift_seen(vma) is not None:
                self.places.count += 1
                yield vma, max(start, seen(self.scheduler, vma).start)

    # What the design says of itself

    def _stray_records(self, mm: MM) -> list[str]:
        """Its page table has no entry that is neither where its page says nor known to be odd."""
        said: list[str] = []
        for leaf_number, leaf in sorted(mm.page_table.leaves.items()):
            for _, pfn, number in self._elsewhere(leaf_number << LEAF_SHIFT, leaf.v):
                if (mm, number) not in self.odd.of(pfn):
                    addr = number << PAGE_SHIFT
                    said.append(f"mm {mm.id} has page {pfn} at {addr:#x}, where nothing says that it is")
        return said

    def audit(self, mms: Sequence[MM], peak_vmas: int) -> list[str]:
        """Besides, the odd entries are entries."""
        said = super().audit(mms, peak_vmas)
        for pfn, places in self.odd.places.items():
            for mm, number in places:
                entry = mm.page_table.get(number << PAGE_SHIFT)
                if mm not in mms or not entry & PTE_ANON or entry >> PTE_SHIFT != pfn:
                    at = number << PAGE_SHIFT
                    said.append(f"mm {mm.id} has no entry for page {pfn} at {at:#x}, where an odd one should be")
        return said
