# SPDX-License-Identifier: GPL-2.0-or-later
"""Pinning a page without any lock, against who takes its exclusivity away.

Models gup_fast_pte_range() and try_grab_folio_fast() of mm/gup.c (FOLL_PIN, with or without FOLL_WRITE),
gup_must_unshare() of mm/internal.h, folio_maybe_dma_pinned() of include/linux/mm.h, __folio_try_share_anon_rmap() of
include/linux/rmap.h, and write_protect_page() of mm/ksm.c.

    who shares                    who pins
    clear the entry               read the entry
    full barrier                  pin the page
    is the page pinned?           full barrier
    it is exclusive no more       is the entry as it was?
    full barrier                  read barrier
    set the entry                 is the page exclusive?

The last question is asked by who pins to read: the entry that is set may look like the one that was cleared.

Invariant: a page that is pinned stays exclusive: either who shares sees the pin, or who pins sees that the entry went.

Locking: who shares has the page-table lock; who pins has interrupts off, which keeps the page table.
"""

from __future__ import annotations

from typing import Final, cast

from rmaplab.mm.page_ref import Page, PageRefs
from rmaplab.mm.pagetable import (
    LEAF_ENTRIES,
    LEAF_SHIFT,
    PTE_ANON,
    PTE_EXCLUSIVE,
    PTE_SHIFT,
    PTE_WRITE,
    Leaf,
    PageTable,
)
from rmaplab.mm.system import System
from rmaplab.mm.vma import PAGE_SHIFT
from rmaplab.sync.fields import OF_ENTRY
from rmaplab.sync.order import atomic_inc, read_once, smp_mb, smp_rmb, write_once

GUP_PIN_COUNTING_BIAS: Final = 1024


def pin_fast(system: System, page_table: PageTable, addr: int, write: bool = True) -> int:
    """Pin the page that is mapped at `addr`, to `write` to it or to read it; its number, 0 if that has to be done in
    another way."""
    refs = system.refs
    leaf = page_table.look_up(addr >> LEAF_SHIFT)
    if leaf is None:
        return 0
    i = addr >> PAGE_SHIFT & (LEAF_ENTRIES - 1)
    entry = _entry(refs, leaf, i)
    pfn = entry >> PTE_SHIFT
    if not entry & PTE_ANON or (write and not entry & PTE_WRITE) or not refs.try_get(pfn):
        return 0
    page = refs.pages[pfn]
    atomic_inc(refs.scheduler, "folio_ref_add()", page, "count")
    page.count += GUP_PIN_COUNTING_BIAS - 1
    smp_mb(refs.scheduler, "try_grab_folio_fast()")
    if _entry(refs, leaf, i) != entry or (not write and _must_unshare(refs, page)):
        system.put_counted(pfn, GUP_PIN_COUNTING_BIAS)
        return 0
    return pfn


def _entry(refs: PageRefs, leaf: Leaf, i: int) -> int:
    """The entry, which does not tell whether the page is exclusive."""
    entry = cast(int, read_once(refs.scheduler, "ptep_get_lockless()", leaf, OF_ENTRY, leaf.m[i], i, leaf.lock))
    return entry & ~PTE_EXCLUSIVE


def _must_unshare(refs: PageRefs, page: Page) -> bool:
    """gup_must_unshare()"""
    smp_rmb(refs.scheduler, "gup_must_unshare()")
    return not read_once(refs.scheduler, "PageAnonExclusive()", page, "exclusive", page.exclusive)


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
    write_once(scheduler, "ClearPageAnonExclusive()", page, "exclusive")
    page.exclusive = False
    smp_mb(scheduler, "__folio_try_share_anon_rmap()")
    return True


def write_protect(refs: PageRefs, page_table: PageTable, addr: int) -> None:
    """KSM is about to compare the page, which from now on is mapped read-only and as no exclusive one, unless it is
    pinned (write_protect_page())."""
    leaf = page_table.leaves[addr >> LEAF_SHIFT]
    i = addr >> PAGE_SHIFT & (LEAF_ENTRIES - 1)
    leaf.lock.lock()
    entry: int = leaf.m[i]
    if try_share(refs, leaf, i):
        write_once(refs.scheduler, "set_pte_at()", leaf, OF_ENTRY, i, leaf.lock)
        leaf.m[i] = entry & ~(PTE_WRITE | PTE_EXCLUSIVE)
    leaf.lock.unlock()
