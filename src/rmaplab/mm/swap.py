# SPDX-License-Identifier: GPL-2.0-or-later
"""A fault on a swap entry, and the swap cache.

Models do_swap_page() of mm/memory.c, mm/swap_state.c (read_swap_cache_async()) and ksm_might_need_to_copy() of
mm/ksm.c.  system.py has the contents of slots and the references to them.

Locking: the folio that caches the slot is locked, then the leaf of the page table.
"""

from __future__ import annotations

from typing import Final, cast

from rmaplab.mm.folio import (
    FOLIO_ANON,
    FOLIO_DIRTY,
    FOLIO_KSM,
)
from rmaplab.mm.locking import lock_new_leaf
from rmaplab.mm.pagetable import (
    PTE_ANON,
    PTE_DIRTY,
    PTE_EXCLUSIVE,
    PTE_KSM,
    PTE_SHIFT,
    PTE_SOFT_CLEAN,
    PTE_SWAP,
    PTE_WRITE,
    PTE_YOUNG,
    Leaf,
)
from rmaplab.mm.rmap_walk import end_walk, unevictable
from rmaplab.mm.system import SwapSlot, System
from rmaplab.mm.vma import (
    MM,
    PAGE_SHIFT,
    VM_LOCKED,
    VM_SOFTDIRTY,
    VM_WRITE,
    VMA,
)
from rmaplab.sync.order import read_once

# How a fault ended; any other number is a folio that somebody else has locked.
AGAIN: Final = 0  # something came in between, and the access has to be tried again


DONE: Final = 1


def swap_in(system: System, vma: VMA, addr: int, i: int, entry: int, write: bool, may_retry: bool) -> int:
    """do_swap_page()"""
    slot_number = entry >> PTE_SHIFT
    system.prepare(vma)
    slot = system.swap.get(slot_number)
    if slot is None:
        return AGAIN  # the last entry that referred to it went meanwhile, and that was ours
    pgoff = vma.anon_pgoff + ((addr - vma.start) >> PAGE_SHIFT)
    direct = slot.cached_pfn == 0
    pfn = _read_swap(system, slot_number, pgoff)
    system.get_folio(pfn)
    if not may_retry:
        system.lock_folio(pfn)
    elif not system.trylock_folio(pfn):
        return pfn  # folio_lock_or_retry(): nobody waits for a folio with a VMA locked
    done = False
    if system.slot_of.get(pfn) == slot_number:
        mlocked = vma.flags & VM_LOCKED != 0 or (slot.count == 1 and unevictable(system, pfn))
        leaf = lock_new_leaf(vma.mm.page_table, addr)
        done = leaf.m[i] == entry
        if done and slot.from_ksm and _must_copy(system, vma, pfn, pgoff):
            _map_copy(system, vma, addr, leaf, i, slot_number, pgoff, write)
        elif done:
            _map_swapped(system, vma, addr, leaf, i, slot_number, pfn, write, direct, mlocked)
        leaf.lock.unlock()
    system.unlock_folio(pfn)
    system.put_folio(pfn)
    if done and (not write or vma.mm.page_table.get(addr) & (PTE_WRITE | PTE_EXCLUSIVE)):
        return DONE
    return AGAIN


def _read_swap(system: System, slot_number: int, pgoff: int) -> int:
    """The page that caches what `slot_number` holds, read in if it is not there (read_swap_cache_async())."""
    slot = system.swap[slot_number]
    if slot.cached_pfn == 0:
        pfn = system.folios.alloc(pgoff)
        system.folios.flags.m[pfn] = 0  # the first mapping decides
        system.cache(slot_number, pfn)
        system.pages_copied.count += 1
    return slot.cached_pfn


def get_cached(system: System, slot: SwapSlot) -> int:
    """The page that caches what `slot` holds, with a reference to it; 0 if there is none (swap_cache_get_folio()).  The
    caller has no lock that keeps it there, and it is one to which references are counted.  Where Linux would look once
    more, there is none by then."""
    pfn = cast(int, read_once(system.scheduler, "swap_table_get()", slot, "cached_pfn", slot.cached_pfn))
    if pfn == 0 or not system.try_get_folio(pfn):
        return 0
    if read_once(system.scheduler, "swap_table_get() again", slot, "cached_pfn", slot.cached_pfn) == pfn:
        return pfn
    system.put_folio(pfn)
    return 0


def read_ahead(system: System, mm: MM, start: int, end: int) -> None:
    """MADV_WILLNEED: what is in swap comes into the swap cache, mapped by nobody (swapin_walk_pmd_entry())."""
    for number in mm.page_table.numbers(start, end):
        _, first, last = mm.page_table.part(number, start, end)
        entries = mm.page_table.leaves[number].v[first:last]
        for entry in entries[entries & PTE_SWAP != 0].tolist():
            _read_swap(system, entry >> PTE_SHIFT, 0)


def _must_copy(system: System, vma: VMA, pfn: int, pgoff: int) -> bool:
    """Is the page that caches what KSM's page held somebody's who is not related to `vma`, or at another page
    offset (ksm_might_need_to_copy())?

    KSM's page itself, while it is in the swap cache, Linux maps wherever its entry is by then.  mremap() may have moved
    that, and then no walk finds the place until ksmd visits it.  As with pages that fork shared (ksm.py), histories do
    not do that: a place that no walk would find gets a copy."""
    flags: int = system.folios.flags.m[pfn]
    if flags & FOLIO_KSM:
        if system.as_found:
            return False
        there = vma.start + ((pgoff - vma.anon_pgoff) << PAGE_SHIFT)
        found = False
        walk = system.leader.walk(pfn)
        for known, addr in walk:
            if known.mm is vma.mm and addr == there:
                found = True
                break
        end_walk(walk)
        return not found
    if not flags & FOLIO_ANON:
        return False
    return system.folios.index.m[pfn] != pgoff or not system.leader.related(vma, pfn)


def _map_copy(
    system: System, vma: VMA, addr: int, leaf: Leaf, i: int, slot_number: int, pgoff: int, write: bool
) -> None:
    """Map a copy, for this entry alone, of what `slot_number` holds."""
    pfn = system.folios.alloc(pgoff)
    system.folios.flags.m[pfn] |= FOLIO_DIRTY
    system.pages_copied.count += 1
    for design in system.designs:
        design.folio_swapped_in(vma, addr, pfn, True)
    system.folios.mapcount.m[pfn] = 1
    flags = PTE_ANON | PTE_EXCLUSIVE | PTE_YOUNG | (PTE_DIRTY if write else leaf.m[i] & PTE_SOFT_CLEAN)
    if _maps_writable(system, vma, flags, write):
        flags |= PTE_WRITE
    leaf.lock.assert_held()
    leaf.m[i] = pfn << PTE_SHIFT | flags
    system.tell_entry_added(vma.mm, addr, leaf.m[i])
    system.put_slot(slot_number)


def _maps_writable(system: System, vma: VMA, entry: int, write: bool) -> bool:
    """May an exclusive page from swap be mapped writable at once (do_swap_page())?  For a read, not if the first
    write has to be seen (pte_needs_soft_dirty_wp())."""
    if not vma.flags & VM_WRITE:
        return False
    seen = vma.flags & VM_SOFTDIRTY != 0 or entry & PTE_SOFT_CLEAN == 0
    return write or (system.profile.swap_in_writable and seen)


def _map_swapped(
    system: System,
    vma: VMA,
    addr: int,
    leaf: Leaf,
    i: int,
    slot_number: int,
    pfn: int,
    write: bool,
    direct: bool,
    mlocked: bool,
) -> None:
    """Map `pfn`, which is locked and holds what `slot_number` holds; `leaf` is locked, too.  `direct`: it has just
    been read.  `mlocked`: this VMA or another that maps it is locked."""
    folios = system.folios
    entry: int = leaf.m[i]
    slot = system.swap[slot_number]
    ksm = folios.flags.m[pfn] & FOLIO_KSM != 0
    exclusive = not ksm and entry & PTE_EXCLUSIVE != 0
    slot.count -= 1
    alone = not ksm and folios.mapcount.m[pfn] == 0 and system.pins[pfn] == 1
    fresh = not folios.flags.m[pfn] & FOLIO_ANON
    uncaches = system.profile.swap_uncaches
    if slot.count == 0 and (mlocked or uncaches or (alone and (direct or write))):
        # should_try_to_free_swap(): no entry wants what is in swap.  Before `swap_uncaches`, the last entry's page does
        # not even get there when it is read from a synchronous device, as zram or a RAM disk is.
        system.uncache(pfn)
        exclusive = exclusive or (alone and not uncaches)
    if folios.mapcount.m[pfn] == 0 and fresh:
        folios.flags.m[pfn] = FOLIO_ANON
        folios.index.m[pfn] = vma.anon_pgoff + ((addr - vma.start) >> PAGE_SHIFT)
        for design in system.designs:
            design.folio_swapped_in(vma, addr, pfn, exclusive)
    flags = PTE_ANON | PTE_YOUNG | (PTE_KSM if ksm else 0) | entry & PTE_SOFT_CLEAN
    if write and not ksm:
        flags = flags & ~PTE_SOFT_CLEAN | PTE_DIRTY
    if exclusive:
        flags |= PTE_EXCLUSIVE
        if _maps_writable(system, vma, flags, write):
            flags |= PTE_WRITE
    system.mapcount_changes(pfn)
    folios.mapcount.m[pfn] += 1
    leaf.lock.assert_held()
    leaf.m[i] = pfn << PTE_SHIFT | flags
    system.tell_entry_added(vma.mm, addr, leaf.m[i])
