# SPDX-License-Identifier: GPL-2.0-or-later
"""Users of the reverse map, part three: kernel samepage merging.

Models mm/ksm.c try_to_merge_two_pages(), stable_tree_append() and break_ksm().  There is no scanner: an event
requests each merge.  A KSM page belongs to no VMA: the reverse map knows it by the places where it was merged, and by
the copies that fork made of those.

Linux also takes pages that fork shared.  Its walk does not find their other mappings until ksmd visits these (never, if
that VMA is not mergeable), and neither would a walk of any other design.  So histories merge only pages that a single
entry maps, and a place is remembered while a copy of it that fork made is mapped.  Nor is such a place merged with its
page again: there is one rmap_item for an address, cmp_and_merge_page() drops its contents, including the anon_vma that
leads to the copies, and try_to_merge_with_ksm_page() takes that of the VMA which is there by then.  If that is another
one, Linux misses the copies until ksmd visits them.  Events with `AS_FOUND` replay the actions of a real kernel's ksmd
(rmaplab.kernel); from then on nothing is nicer than in that kernel.  `SPLIT` marks the large folios that it split on
the way, and `FORGET` its treatment of places that no longer hold.
"""

from __future__ import annotations

from typing import Final

from rmaplab.mm.abi import EBUSY, EINVAL
from rmaplab.mm.folio import FOLIO_DIRTY, FOLIO_KSM, FOLIO_LAZYFREE
from rmaplab.mm.huge_memory import split_folio
from rmaplab.mm.locking import lock_leaf, lock_new_leaf
from rmaplab.mm.memory import fault_vma
from rmaplab.mm.pagetable import (
    LEAF_ENTRIES,
    PTE_ANON,
    PTE_DIRTY,
    PTE_EXCLUSIVE,
    PTE_KSM,
    PTE_SHIFT,
    PTE_SOFT_CLEAN,
    PTE_SWAP,
    PTE_WRITE,
    PTE_YOUNG,
)
from rmaplab.mm.rmap_walk import end_walk, places
from rmaplab.mm.system import System
from rmaplab.mm.vma import MM, PAGE_SHIFT, VM_ACCESS_FLAGS, VM_MERGEABLE, VMA

AS_FOUND: Final = 1  # merge also pages that several entries map, or that are in the swap cache
SPLIT: Final = 4  # split the large folio at an address
BREAK: Final = 8  # take the page at an address, find nothing to merge it with after all, and give it back as a copy
FORGET: Final = 2  # a whole scan: forget every place that does not map its page any more


def merge_pages(system: System, mm: MM, addr: int, other_mm: MM, other_addr: int, how: int = 0) -> int:
    """Let `other_addr` map the page at `addr`, taken to have the same contents.  Returns 0, -EINVAL if
    one of them is not mergeable, -EBUSY if one of them is not an anonymous page (of one place alone)."""
    vma = mm.tree.at(addr)
    other_vma = other_mm.tree.at(other_addr)
    entry = mm.page_table.get(addr)
    if entry & PTE_SWAP and system.swap[entry >> PTE_SHIFT].cached_pfn in system.ksm_pages:
        # A page of KSM that nothing maps, and the swap cache keeps: its stable node is found, too.
        entry = system.swap[entry >> PTE_SHIFT].cached_pfn << PTE_SHIFT | PTE_ANON | PTE_KSM | PTE_YOUNG
    system.as_found = system.as_found or how & AS_FOUND != 0
    if vma is None or other_vma is None or not other_vma.flags & VM_MERGEABLE:
        return -EINVAL
    if not vma.flags & VM_MERGEABLE and not (how & AS_FOUND and entry & PTE_KSM):
        return -EINVAL  # what shares a page of KSM since a fork need not be mergeable
    other = other_mm.page_table.get(other_addr)
    if not entry & other & PTE_ANON:
        return -EBUSY
    pfn = entry >> PTE_SHIFT
    other_pfn = other >> PTE_SHIFT
    if pfn == other_pfn:
        if not (how & AS_FOUND and entry & PTE_KSM):
            return -EBUSY
        _remember(system, other_vma, other_addr, pfn)  # a copy that fork made gets a place of its own
        return 0
    if other & PTE_KSM and not how & AS_FOUND:
        return -EBUSY
    if not _takes(system, other_pfn, how) or not (entry & PTE_KSM or _takes(system, pfn, how)):
        return -EBUSY
    new = not entry & PTE_KSM
    if not new and not how & AS_FOUND and _known(system, other_mm, other_addr, pfn) and _copied(
        system, other_vma, other_addr, pfn
    ):
        return -EBUSY
    if new:
        _convert(system, mm, addr, pfn)
    _remember(system, other_vma, other_addr, pfn)
    if new:
        _remember(system, vma, addr, pfn)
    system.folios.mapcount.m[pfn] += 1
    # replace_page(): a new entry, which is neither dirty nor soft-dirty.
    entry = entry & ~(PTE_WRITE | PTE_EXCLUSIVE | PTE_DIRTY) | PTE_KSM | PTE_SOFT_CLEAN
    other_mm.page_table.set(other_addr, entry)
    system.flush_entry(other_mm)
    system.tell_entry_removed(other_mm, other_addr, other)
    system.tell_entry_added(other_mm, other_addr, entry)
    system.release_page(other_mm, other_pfn)
    return 0


def _takes(system: System, pfn: int, how: int) -> bool:
    """Is this a page to merge?"""
    folios = system.folios
    if how & AS_FOUND:
        return True
    return folios.mapcount.m[pfn] == 1 and folios.order.m[pfn] == 0 and pfn not in system.slot_of


def _convert(system: System, mm: MM, addr: int, pfn: int) -> None:
    """The page at `addr` becomes KSM's, in every entry that maps it (folio_set_stable_node())."""
    folios = system.folios
    where = [(mm, addr)]
    if folios.mapcount.m[pfn] > 1:
        where = [(vma.mm, there) for vma, there in places(system, pfn)]
    system.ksm_pages[pfn] = []
    folios.set_flag(pfn, FOLIO_KSM | FOLIO_DIRTY)
    folios.clear_flag(pfn, FOLIO_LAZYFREE)
    for its, there in where:
        leaf = lock_leaf(its.page_table, there)
        if leaf is None:
            continue
        i = there >> PAGE_SHIFT & (LEAF_ENTRIES - 1)
        entry: int = leaf.m[i]
        if entry & PTE_ANON and entry >> PTE_SHIFT == pfn:
            leaf.lock.assert_held()
            leaf.m[i] = entry & ~(PTE_WRITE | PTE_EXCLUSIVE | PTE_DIRTY) | PTE_KSM
            if entry & (PTE_WRITE | PTE_DIRTY):
                system.flush_entry(its)  # write_protect_page()
        leaf.lock.unlock()


def _remember(system: System, vma: VMA, addr: int, pfn: int) -> None:
    """stable_tree_append()"""
    _forget(system, vma.mm, addr, pfn)
    system.ksm_pages[pfn].append((vma.mm, addr))
    for design in system.designs:
        design.ksm_added(vma, addr, pfn)


def _forget(system: System, mm: MM, addr: int, pfn: int) -> None:
    """remove_rmap_item_from_tree()"""
    places = system.ksm_pages[pfn]
    for i in range(len(places)):
        its, there = places[i]
        if its is mm and there == addr:
            del places[i]
            for design in system.designs:
                design.ksm_removed(mm, addr, pfn)
            return


def _known(system: System, mm: MM, addr: int, pfn: int) -> bool:
    """Is it a place of the page, whether it maps it or not?"""
    return any(its is mm and there == addr for its, there in system.ksm_pages[pfn])


def _maps(mm: MM, addr: int, pfn: int) -> bool:
    entry = mm.page_table.get(addr)
    return entry & PTE_ANON != 0 and entry >> PTE_SHIFT == pfn


def forget_stale(system: System) -> int:
    """ksmd visited every mergeable VMA, and some places do not map their page any more (cmp_and_merge_page()), or do
    so in a VMA that it does not visit (scan_get_next_rmap_item(), remove_trailing_rmap_items()): mremap() put there,
    over the place, a copy that fork had made of another place.  Returns 0."""
    for pfn in list(system.ksm_pages):
        for mm, addr in list(system.ksm_pages[pfn]):
            vma = mm.tree.at(addr)
            if vma is None or not vma.flags & VM_MERGEABLE or not _maps(mm, addr, pfn):
                _forget(system, mm, addr, pfn)
    return 0


def split_at(system: System, mm: MM, addr: int) -> int:
    """try_to_merge_one_page() splits a large folio, and cmp_and_merge_page() one with two equal pages.  Returns 0."""
    entry = mm.page_table.get(addr)
    if entry & PTE_ANON and system.folios.order.m[entry >> PTE_SHIFT] > 0:
        split_folio(system, system.folios.head.m[entry >> PTE_SHIFT])
    return 0


def break_at(system: System, mm: MM, addr: int) -> int:
    """try_to_merge_two_pages() fails with the second page (it gave way to the zero page when its folio was split),
    and breaks the first (break_cow()).  Returns 0."""
    vma = mm.tree.at(addr)
    entry = mm.page_table.get(addr)
    if vma is not None and entry & PTE_ANON:
        _convert(system, mm, addr, entry >> PTE_SHIFT)  # what fork shares it with keeps it so, and no place is known
        unshare(system, vma, addr)
    return 0


def _copied(system: System, vma: VMA, addr: int, pfn: int) -> bool:
    """Does another address space, forked since, map the KSM page at the same address?"""
    walk = system.leader.walk(pfn)
    for other, there in walk:
        if there == addr and other.mm is not vma.mm and _maps(other.mm, addr, pfn):
            end_walk(walk)
            return True
    return False


def unmerge_range(system: System, vma: VMA, start: int, end: int) -> None:
    """Give every KSM page in [start, end) of `vma` back to it alone (unmerge_ksm_pages(), break_ksm())."""
    if not system.ksm_pages:
        return
    if system.as_found and not system.profile.unmerges_none and not vma.flags & VM_ACCESS_FLAGS:
        return
    page_table = vma.mm.page_table
    addr = start
    while addr < end:
        entry = page_table.get(addr)
        if entry & PTE_KSM and entry & PTE_ANON:
            unshare(system, vma, addr)
            pfn = entry >> PTE_SHIFT
            if pfn in system.ksm_pages and not _copied(system, vma, addr, pfn):
                _forget(system, vma.mm, addr, pfn)
        addr += 1 << PAGE_SHIFT


def unshare(system: System, vma: VMA, addr: int) -> None:
    """Give the shared page at `addr` a copy of its own, as break_ksm() does: by a write fault, or where the kernel
    knows FAULT_FLAG_UNSHARE without the right to write (wp_page_copy())."""
    kept = vma.mm.page_table.get(addr) & PTE_SOFT_CLEAN
    fault_vma(system, vma, addr, 1, True)
    if system.profile.ksm_unshares:
        leaf = lock_new_leaf(vma.mm.page_table, addr)
        i = addr >> PAGE_SHIFT & (LEAF_ENTRIES - 1)
        leaf.lock.assert_held()
        leaf.m[i] = leaf.m[i] & ~(PTE_WRITE | PTE_DIRTY) | kept
        leaf.lock.unlock()
