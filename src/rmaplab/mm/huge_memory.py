# SPDX-License-Identifier: GPL-2.0-or-later
"""Splitting of large folios.

Models mm/huge_memory.c (split_folio()), with try_to_map_unused_to_zeropage() of mm/migrate.c, and the
callers that split a folio because a range cuts it (mm/madvise.c).
"""

from __future__ import annotations

from rmaplab.mm import huge_pmd
from rmaplab.mm.folio import (
    FOLIO_DIRTY,
    FOLIO_PARTLY,
    FOLIO_WRITTEN,
    MAX_ORDER,
)
from rmaplab.mm.locking import lock_new_leaf
from rmaplab.mm.pagetable import (
    LEAF_ENTRIES,
    LEAF_SIZE,
    PTE_ANON,
    PTE_DIRTY,
    PTE_SHIFT,
    PTE_YOUNG,
    PTE_ZERO,
    Leaf,
)
from rmaplab.mm.rmap_walk import Visit, places
from rmaplab.mm.system import System
from rmaplab.mm.vma import (
    MM,
    PAGE_SHIFT,
    VM_LOCKED,
)


def partly_mapped(system: System, head: int) -> bool:
    """Was a page of the folio unmapped, or taken to be, while others stayed mapped (folio_test_partially_mapped())?"""
    return system.folios.flags.m[head] & FOLIO_PARTLY != 0


def split_folio(system: System, head: int, in_place: bool = True) -> None:
    """Split the large folio into its pages (mm/huge_memory.c __split_huge_page()).  Those that nothing maps are
    freed.  Those that were never written to give way to the zero page (mm/migrate.c try_to_map_unused_to_zeropage()),
    unless what is split is on its way to swap and not in_place.  Not where the VMA is locked: there the page is mapped,
    and locked from then on, which keeps it for all to whom the walk comes later (__folio_add_anon_rmap())."""
    folios = system.folios
    nr_pages = folios.nr_pages(head)
    visit = Visit(system, head)
    if folios.order.m[head] == MAX_ORDER:
        for vma, addr in places(system, head):
            if addr & (LEAF_SIZE - 1) == 0 and visit.wants(vma.mm.page_table.get(addr)):
                huge_pmd.split_at(system, vma.mm, addr)
    where = places(system, head) if in_place and system.profile.split_to_zero else []
    for vma, addr in where:
        entry = vma.mm.page_table.get(addr)
        if visit.wants(entry) and entry & PTE_DIRTY:
            folios.set_flag(head, FOLIO_DIRTY)
            break
    folios.split(head)
    system.mm_ids.pop(head, None)
    mlocked: set[int] = set()
    for vma, addr in where:
        entry = vma.mm.page_table.get(addr)
        pfn = entry >> PTE_SHIFT
        if not visit.wants(entry):
            continue
        if vma.flags & VM_LOCKED:
            mlocked.add(pfn)
        elif not folios.flags.m[pfn] & FOLIO_WRITTEN and pfn not in mlocked:
            leaf = lock_new_leaf(vma.mm.page_table, addr)
            leaf.lock.assert_held()
            leaf.m[addr >> PAGE_SHIFT & (LEAF_ENTRIES - 1)] = PTE_ZERO | PTE_YOUNG
            system.tell_entry_removed(vma.mm, addr, entry)
            system.drop_mapcount(vma.mm, pfn)
            leaf.lock.unlock()
    for pfn in range(head, head + nr_pages):
        folios.flags.m[pfn] &= ~FOLIO_PARTLY & 0xFF
        system.try_free(pfn)


class Cut:
    """What advice about a range has to leave out.

    left:  first pages of large folios that it leaves as they are
    stops: by number of a leaf, the entry at which it stopped
    """

    def __init__(self) -> None:
        self.left: set[int] = set()
        self.stops: dict[int, int] = {}


def split_cut(system: System, mm: MM, start: int, end: int, frees: bool = False) -> Cut:
    """Split the large folios of which [start, end) maps some pages and not all, unless others seem to map them,
    too (madvise_cold_or_pageout_pte_range(), or, if it `frees`, madvise_free_pte_range()).  One that a single entry
    maps whole is left alone if others seem to map it.  Before `mthp`, those with entries of their own are split in any
    case, and the first page that others map ends it for its leaf."""
    cut = Cut()
    if not system.nr_large:
        return cut
    folios = system.folios
    mthp = system.profile.mthp
    for number in mm.page_table.numbers(start, end):
        _, i, last = mm.page_table.part(number, start, end)
        leaf = mm.page_table.leaves[number]
        while i < last:
            entry: int = leaf.m[i]
            pfn = entry >> PTE_SHIFT
            head: int = folios.head.m[pfn] if entry & PTE_ANON else 0
            if head == 0 or folios.order.m[head] == 0:
                i += 1
                continue
            if not mthp and not leaf.huge and folios.mapcount.m[head if frees else pfn] != 1:
                cut.stops[number] = i
                rest = leaf.v[i:last]
                cut.left.update(folios.head.v[rest[rest & PTE_ANON != 0] >> PTE_SHIFT].tolist())
                break
            run = batch(system, leaf, i, last)
            i += run
            whole = run == folios.nr_pages(head)
            if whole and mthp and not leaf.huge:
                continue
            if _spares(system, leaf, head, frees):
                cut.left.add(head)
            elif not whole or not leaf.huge:
                split_folio(system, head)
    return cut


def _spares(system: System, leaf: Leaf, head: int, frees: bool) -> bool:
    """Does the advice leave the folio as it is, since others seem to map it?"""
    if not system.profile.mthp and not leaf.huge:
        return False
    if not system.profile.mthp and not frees:
        return system.folios.mapcount.m[head] > 1
    return seems_shared(system, head)


def batch(system: System, leaf: Leaf, first: int, last: int, respect: int = 0) -> int:
    """How many entries of `leaf`, from number `first` on and before `last`, map pages of one folio one after the other,
    and are alike in the flags `respect` (folio_pte_batch_flags())."""
    entry: int = leaf.m[first]
    pfn = entry >> PTE_SHIFT
    head: int = system.folios.head.m[pfn]
    end = min(last, first + head + system.folios.nr_pages(head) - pfn)
    i = first + 1
    while i < end:
        other: int = leaf.m[i]
        if not other & PTE_ANON or other >> PTE_SHIFT != pfn + i - first or (entry ^ other) & respect:
            break
        i += 1
    return i - first


def seems_shared(system: System, head: int) -> bool:
    """folio_maybe_mapped_shared(), before it folio_likely_mapped_shared()"""
    mapcount = system.mapcount(head)
    if mapcount <= 1:
        return False
    if system.profile.mm_ids:
        return system.mm_ids[head].shared
    return mapcount > system.folios.nr_pages(head) or system.folios.mapcount.m[head] > 1
