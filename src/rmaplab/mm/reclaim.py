# SPDX-License-Identifier: GPL-2.0-or-later
"""Users of the reverse map, part one: who looks whether a folio is in use, and who swaps it out.

Models mm/rmap.c folio_referenced() and try_to_unmap(), with what mm/vmscan.c shrink_folio_list() does around
it.  They walk with the leading design and believe it: a mapping that the walk misses leaves the folio
mapped, and the caller gives up.  A large folio is split before it is swapped out.
"""

from __future__ import annotations

import numpy as np

from rmaplab.mm.folio import FOLIO_LAZYFREE, FOLIO_REFERENCED
from rmaplab.mm.memory import anon_pfns
from rmaplab.mm.pagetable import PTE_ANON, PTE_DIRTY, PTE_EXCLUSIVE, PTE_SHIFT, PTE_SWAP, PTE_YOUNG
from rmaplab.mm.system import System
from rmaplab.mm.vma import MM, PAGE_SHIFT, VM_LOCKED, VMA


def mapped_addresses(system: System, vma: VMA, addr: int, head: int) -> list[int]:
    """Where `vma` maps pages of the folio that it would map from `addr` on (page_vma_mapped_walk())."""
    folios = system.folios
    nr_pages = folios.nr_pages(head)
    page_table = vma.mm.page_table
    found: list[int] = []
    end = min(vma.end, addr + (nr_pages << PAGE_SHIFT))
    while addr < end:
        entry = page_table.get(addr)
        if entry & PTE_ANON:
            pfn = entry >> PTE_SHIFT
            if head <= pfn < head + nr_pages:
                found.append(addr)
        addr += 1 << PAGE_SHIFT
    return found


def referenced(system: System, mm: MM, start: int, end: int) -> int:
    """Look at every mapping of the folios mapped in [start, end), and age it.  Returns how many entries had
    been used since the last time."""
    folios = system.folios
    total = 0
    for head in folio_heads(system, mm, start, end):
        mapcount = folios.total_mapcount(head)
        seen = 0
        system.walks.count += 1
        for vma, addr in system.leader.walk(head):
            system.walk_places.count += 1
            hits = mapped_addresses(system, vma, addr, head)
            if hits:
                system.walk_hits.count += 1
            for at in hits:
                entry = vma.mm.page_table.get(at)
                if entry & PTE_YOUNG:
                    total += 1
                    vma.mm.page_table.set(at, entry & ~PTE_YOUNG)
                seen += 1
            if seen == mapcount:
                break  # folio_referenced_one() stops the walk once every mapping was seen
        folios.set_flag(head, FOLIO_REFERENCED)
    return total


def folio_heads(system: System, mm: MM, start: int, end: int) -> list[int]:
    """First pages of the folios mapped in [start, end), each once, in the order of the range."""
    pfns = anon_pfns(mm, start, end)
    heads = system.folios.head.v[pfns]
    _, first = np.unique(heads, return_index=True)
    ordered: list[int] = heads[np.sort(first)].tolist()
    return ordered


def swap_out(system: System, mm: MM, start: int, end: int) -> int:
    """Reclaim the folios mapped in [start, end).  Returns how many pages could be freed."""
    freed = 0
    for head in folio_heads(system, mm, start, end):
        freed += swap_out_folio(system, head)
    return freed


def page_out(system: System, mm: MM, start: int, end: int) -> None:
    """MADV_PAGEOUT: reclaim what only this range maps (madvise_cold_or_pageout_pte_range())."""
    for head in folio_heads(system, mm, start, end):
        folios = system.folios
        if folios.total_mapcount(head) == folios.nr_pages(head) and folios.mapcount.m[head] == 1:
            swap_out_folio(system, head)


def swap_out_folio(system: System, head: int) -> int:
    folios = system.folios
    nr_pages = folios.nr_pages(head)
    if nr_pages > 1:
        folios.split(head)
        freed = 0
        for pfn in range(head, head + nr_pages):
            if folios.mapcount.m[pfn] > 0:
                freed += swap_out_folio(system, pfn)
            else:
                system.try_free(pfn)
        return freed
    lazyfree = folios.flags.m[head] & FOLIO_LAZYFREE != 0
    slot = -1
    if not lazyfree:
        cached = system.slot_of.get(head)
        slot = cached if cached is not None else system.alloc_slot(head in system.ksm_pages)
        if cached is None:
            system.cache(slot, head)
    _try_to_unmap(system, head, slot)
    if folios.mapcount.m[head] > 0:
        if slot >= 0 and system.swap[slot].count == 0:
            system.uncache(head)  # nothing was swapped out, no entry refers to the slot
        return 0
    if slot >= 0:
        system.uncache(head)
    system.free_folio(head)
    return 1


def _try_to_unmap(system: System, pfn: int, slot: int) -> None:
    """Replace the entries that map the small folio `pfn` by swap entries for `slot` (or by nothing if slot
    is -1: MADV_FREE), until none is left."""
    mapcount = system.folios.mapcount
    system.walks.count += 1
    for vma, addr in system.leader.walk(pfn):
        system.walk_places.count += 1
        page_table = vma.mm.page_table
        entry = page_table.get(addr)
        if not entry & PTE_ANON or entry >> PTE_SHIFT != pfn:
            continue
        system.walk_hits.count += 1
        if vma.flags & VM_LOCKED:
            return  # the folio goes to the unevictable list
        if slot < 0:
            if entry & PTE_DIRTY:
                system.folios.clear_flag(pfn, FOLIO_LAZYFREE)  # used again: swap-backed again
                return
            page_table.set(addr, 0)
        else:
            system.swap[slot].count += 1
            page_table.set(addr, slot << PTE_SHIFT | PTE_SWAP | entry & PTE_EXCLUSIVE)
        mapcount.m[pfn] -= 1
        if mapcount.m[pfn] == 0:
            return


