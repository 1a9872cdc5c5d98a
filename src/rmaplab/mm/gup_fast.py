# SPDX-License-Identifier: GPL-2.0-or-later
"""Pinning a page without any lock, against who takes its exclusivity away.

Models gup_fast_pte_range() and try_grab_folio_fast() of mm/gup.c (FOLL_PIN | FOLL_WRITE), folio_maybe_dma_pinned() of
include/linux/mm.h, and __folio_try_share_anon_rmap() of include/linux/rmap.h.

    who shares                    who pins
    clear the entry               read the entry
    full barrier                  pin the page
    is the page pinned?           full barrier
                                  is the entry as it was?

Invariant: a page that is pinned stays exclusive: either who shares sees the pin, or who pins sees that the entry went.

Locking: who shares has the page-table lock; who pins has interrupts off, which keeps the page table.
"""

from __future__ import annotations

from typing import Final, cast

from rmaplab.mm.page_ref import PageRefs
from rmaplab.mm.pagetable import LEAF_ENTRIES, LEAF_SHIFT, PTE_ANON, PTE_SHIFT, PTE_WRITE, Leaf, PageTable
from rmaplab.mm.system import System
from rmaplab.mm.vma import PAGE_SHIFT
from rmaplab.sync.fields import OF_ENTRY
from rmaplab.sync.order import atomic_inc, read_once, smp_mb, write_once

GUP_PIN_COUNTING_BIAS: Final = 1024


def pin_fast(system: System, page_table: PageTable, addr: int) -> int:
    """Pin the page that is mapped at `addr` to write to it; its number, 0 if that has to be done in another way."""
    refs = system.refs
    leaf = page_table.look_up(addr >> LEAF_SHIFT)
    if leaf is None:
        return 0
    i = addr >> PAGE_SHIFT & (LEAF_ENTRIES - 1)
    entry = _entry(refs, leaf, i)
    pfn = entry >> PTE_SHIFT
    if not entry & PTE_ANON or not entry & PTE_WRITE or not refs.try_get(pfn):
        return 0
    page = refs.pages[pfn]
    atomic_inc(refs.scheduler, "folio_ref_add()", page, "count")
    page.count += GUP_PIN_COUNTING_BIAS - 1
    smp_mb(refs.scheduler, "try_grab_folio_fast()")
    if _entry(refs, leaf, i) != entry:
        system.put_counted(pfn, GUP_PIN_COUNTING_BIAS)
        return 0
    return pfn


def _entry(refs: PageRefs, leaf: Leaf, i: int) -> int:
    return cast(int, read_once(refs.scheduler, "ptep_get_lockless()", leaf, OF_ENTRY, leaf.m[i], i, leaf.lock))


def try_share(refs: PageRefs, leaf: Leaf, i: int) -> bool:
    """Entry `i` of `leaf`, which is locked, is to map its page as an exclusive one no more: it is cleared.  False, and
    it is as it was, if the page is pinned."""
    scheduler = refs.scheduler
    entry: int = leaf.m[i]
    page = refs.pages[entry >> PTE_SHIFT]
    write_once(scheduler, "get_and_clear_ptes()", leaf, OF_ENTRY, i, leaf.lock)
    leaf.m[i] = 0
    smp_mb(scheduler, "folio_try_share_anon_rmap_pte()")
    count = cast(int, read_once(scheduler, "folio_maybe_dma_pinned()", page, "count", page.count))
    if count >= GUP_PIN_COUNTING_BIAS:
        write_once(scheduler, "set_pte_at()", leaf, OF_ENTRY, i, leaf.lock)
        leaf.m[i] = entry
        return False
    return True
