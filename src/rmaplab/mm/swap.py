# SPDX-License-Identifier: GPL-2.0-or-later
"""A fault on a swap entry, and the swap cache.

Models do_swap_page() of mm/memory.c, mm/swap_state.c (read_swap_cache_async(), swapin_sync()) and
ksm_might_need_to_copy() of mm/ksm.c.  system.py has the contents of slots and the references to them.  Swap is a
synchronous device, as zram and RAM disks are: what lies there as it lies in memory comes back as one folio.

Invariant: all pages of a large folio are in the swap cache, or none.

Locking: the folio that caches the slot is locked, then the leaf of the page table.
"""

from __future__ import annotations

from typing import Final, cast

from rmaplab.mm.folio import (
    FOLIO_ANON,
    FOLIO_DIRTY,
    FOLIO_KSM,
    FOLIO_WRITTEN,
    MAX_ORDER,
)
from rmaplab.mm.locking import lock_leaf, lock_new_leaf
from rmaplab.mm.pagetable import (
    LEAF_ENTRIES,
    PTE_ANON,
    PTE_DIRTY,
    PTE_EXCLUSIVE,
    PTE_FLAGS,
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
    VM_NOHUGEPAGE,
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
    if direct:
        _read_swap(system, _row(system, vma, addr, i, entry))
    pfn = slot.cached_pfn
    head: int = system.folios.head.m[pfn]
    system.get_folio(head)
    if not may_retry:
        system.lock_folio(head)
    elif not system.trylock_folio(head):
        return head  # folio_lock_or_retry(): nobody waits for a folio with a VMA locked
    done = False
    if system.slot_of.get(pfn) == slot_number:
        mlocked = vma.flags & VM_LOCKED != 0 or (not direct and slot.count == 1 and unevictable(system, head))
        leaf = lock_new_leaf(vma.mm.page_table, addr)
        done = leaf.m[i] == entry
        nr_pages = _fitting(system, vma, addr, leaf, i, pfn) if done else 0
        if done and slot.from_ksm and _must_copy(system, vma, pfn, pgoff):
            _map_copy(system, vma, addr, leaf, i, slot_number, pgoff, write)
        elif done and not system.folios.flags.m[head] & FOLIO_ANON and nr_pages < system.folios.nr_pages(head):
            system.uncache(head)  # nobody's yet, and it does not fit any more
            done = False
        elif done:
            _map_swapped(system, vma, addr, leaf, i, pfn, nr_pages, write, direct, mlocked)
        leaf.lock.unlock()
    system.unlock_folio(head)
    system.put_folio(head)
    if done and (not write or vma.mm.page_table.get(addr) & (PTE_WRITE | PTE_EXCLUSIVE)):
        return DONE
    return AGAIN


def _row(system: System, vma: VMA, addr: int, i: int, entry: int) -> list[int]:
    """The slots to read in for `entry`, which has number `i` in its leaf: those of the largest aligned run around it
    that lies in swap as it does in memory, aligned alike, all or none of it zeroes, and nothing of it in the swap cache
    (thp_swapin_suitable_orders() and __swap_cache_add_check(); alloc_swap_folio()).  Before `swap_uncaches`, only for
    the last entry that refers to its slot: else what is read goes through the swap cache, page by page."""
    number = entry >> PTE_SHIFT
    slot = system.swap[number]
    if not system.large_folios or not system.profile.large_swap_in or vma.flags & VM_NOHUGEPAGE:
        return [number]
    if vma.file is not None or vma.uffd or (slot.count > 1 and not system.profile.swap_uncaches):
        return [number]
    leaf = lock_leaf(vma.mm.page_table, addr)
    found = [number]
    order = min(system.large_folios, MAX_ORDER - 1)
    while leaf is not None and order > 1 and len(found) == 1:
        nr_pages = 1 << order
        first = i & -nr_pages
        start = addr & -(nr_pages << PAGE_SHIFT)
        if vma.start <= start and start + (nr_pages << PAGE_SHIFT) <= vma.end:
            if (slot.place ^ addr >> PAGE_SHIFT) & (nr_pages - 1) == 0:
                entries: list[int] = leaf.m[first : first + nr_pages].tolist()
                if all(_belongs(system, entry, other, slot.place + j - i) for j, other in enumerate(entries, first)):
                    found = [other >> PTE_SHIFT for other in entries]
        order -= 1
    if leaf is not None:
        leaf.lock.unlock()
    return found


def _belongs(system: System, entry: int, other: int, place: int) -> bool:
    """May what `other` refers to be read with what `entry` does, if it lies at `place`?  Of what KSM had, the kernel
    asks no more, and may map it where no walk finds it (docs/findings/ksm-large-swap-in.md)."""
    if (entry ^ other) & PTE_FLAGS or not other & PTE_SWAP:
        return False
    slot = system.swap[other >> PTE_SHIFT]
    if slot.from_ksm and not system.as_found:
        return False
    zeroes = system.swap[entry >> PTE_SHIFT].zeroes
    return slot.place == place and slot.cached_pfn == 0 and slot.zeroes == zeroes


def _read_swap(system: System, slots: list[int]) -> None:
    """Read what the slots hold into the swap cache, as one folio (swap_cache_alloc_folio())."""
    folios = system.folios
    if len(slots) == 1:
        head = folios.alloc(0)
    else:
        head = folios.alloc_large(0, len(slots).bit_length() - 1)
        system.nr_large += 1
    for pfn, slot in enumerate(slots, head):
        folios.flags.m[pfn] = FOLIO_WRITTEN if system.swap[slot].written else 0  # the first mapping decides the rest
        system.cache(slot, pfn)
    system.pages_copied.count += len(slots)


def _fitting(system: System, vma: VMA, addr: int, leaf: Leaf, i: int, pfn: int) -> int:
    """How many entries of `leaf`, which is locked, come to map the folio of `pfn` when number `i` does: as many as it
    has pages, if these refer to all of it, are alike, and lie within the VMA; else one."""
    folios = system.folios
    head: int = folios.head.m[pfn]
    nr_pages = folios.nr_pages(head)
    if nr_pages == 1:
        return 1
    first = i - pfn + head
    start = addr - ((pfn - head) << PAGE_SHIFT)
    if first < 0 or first + nr_pages > LEAF_ENTRIES:
        return 1
    if start < vma.start or start + (nr_pages << PAGE_SHIFT) > vma.end:
        return 1
    alike = leaf.m[i] & PTE_FLAGS
    for j in range(nr_pages):
        if leaf.m[first + j] != system.slot_of[head + j] << PTE_SHIFT | alike:
            return 1
    return nr_pages


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
        for entry in mm.page_table.leaves[number].having(PTE_SWAP, first, last):
            if system.swap[entry >> PTE_SHIFT].cached_pfn == 0:
                _read_swap(system, [entry >> PTE_SHIFT])


def _must_copy(system: System, vma: VMA, pfn: int, pgoff: int) -> bool:
    """Is the page that caches what KSM's page held somebody's who is not related to `vma`, or at another page
    offset (ksm_might_need_to_copy())?

    KSM's page itself, while it is in the swap cache, Linux maps wherever its entry is by then.  mremap() may have moved
    that, and then no walk finds the place until ksmd visits it.  As with pages that fork shared (ksm.py), histories do
    not do that: a place that no walk would find gets a copy."""
    flags: int = system.folios.flags.m[pfn]
    if system.folios.order.m[pfn]:
        return False  # whatever it held
    if flags & FOLIO_KSM:
        if system.as_found:
            return False
        there = vma.start + ((pgoff - vma.anon_pgoff) << PAGE_SHIFT)
        walk = system.leader.walk(pfn)
        for known, addr in walk:
            if known.mm is vma.mm and addr == there:
                end_walk(walk)
                return False
        return True
    if not flags & FOLIO_ANON:
        return False
    return system.folios.index.m[pfn] != pgoff or not system.leader.related(vma, pfn)


def _map_copy(
    system: System, vma: VMA, addr: int, leaf: Leaf, i: int, slot_number: int, pgoff: int, write: bool
) -> None:
    """Map a copy, for this entry alone, of what `slot_number` holds."""
    pfn = system.folios.alloc(pgoff)
    system.folios.flags.m[pfn] |= FOLIO_DIRTY | (FOLIO_WRITTEN if system.swap[slot_number].written else 0)
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
    """May an exclusive page from swap be mapped writable at once (do_swap_page())?  Not if the first write has to be
    seen (pte_needs_soft_dirty_wp())."""
    if not vma.flags & VM_WRITE or not (write or system.profile.swap_in_writable):
        return False
    return vma.flags & VM_SOFTDIRTY != 0 or entry & PTE_SOFT_CLEAN == 0


def _map_swapped(
    system: System,
    vma: VMA,
    addr: int,
    leaf: Leaf,
    i: int,
    pfn: int,
    nr_pages: int,
    write: bool,
    direct: bool,
    mlocked: bool,
) -> None:
    """Map `pfn`, which number `i` of `leaf` refers to in swap, or the whole folio that it is a page of: `nr_pages`.
    Folio and leaf are locked.  `direct`: it has just been read.  `mlocked`: this VMA or another that maps it is locked.
    """
    folios = system.folios
    entry: int = leaf.m[i]
    head: int = folios.head.m[pfn]
    touched = pfn
    if nr_pages > 1:
        addr -= (pfn - head) << PAGE_SHIFT
        i -= pfn - head
        pfn = head
    ksm = folios.flags.m[head] & FOLIO_KSM != 0
    exclusive = not ksm and entry & PTE_EXCLUSIVE != 0
    for page in range(pfn, pfn + nr_pages):
        system.swap[system.slot_of[page]].count -= 1
    alone = not ksm and system.mapcount(head) == 0 and system.pins[head] == 1
    fresh = not folios.flags.m[head] & FOLIO_ANON
    uncaches = system.profile.swap_uncaches
    if direct and nr_pages > 1 and not uncaches:
        system.uncache(head)  # it was never there: a copy, whoever wants what is in swap beside
        exclusive = True
    elif uncaches or mlocked or (alone and (direct or write)):
        # should_try_to_free_swap(): no entry wants what is in swap.  Before `swap_uncaches`, the last entry's page does
        # not even get there when it is read from a synchronous device, as zram or a RAM disk is.
        freed = system.free_swap(head)
        exclusive = exclusive or (freed and alone and not uncaches)
    if fresh:
        index = vma.anon_pgoff + ((addr - vma.start) >> PAGE_SHIFT)
        for j in range(nr_pages):
            folios.flags.m[pfn + j] = folios.flags.m[pfn + j] & FOLIO_WRITTEN | FOLIO_ANON
            folios.index.m[pfn + j] = index + j
            for design in system.designs:
                design.folio_swapped_in(vma, addr + (j << PAGE_SHIFT), pfn + j, exclusive)
    flags = PTE_ANON | PTE_YOUNG | (PTE_KSM if ksm else 0) | entry & PTE_SOFT_CLEAN
    if exclusive:
        flags |= PTE_EXCLUSIVE
        if _maps_writable(system, vma, flags, write):
            flags |= PTE_WRITE
            if write:
                flags = flags & ~PTE_SOFT_CLEAN | PTE_DIRTY
    leaf.lock.assert_held()
    for j in range(nr_pages):
        its = flags
        if pfn + j == touched and write and not ksm:
            its = its & ~PTE_SOFT_CLEAN | PTE_DIRTY
            if exclusive and vma.flags & VM_WRITE:
                its |= PTE_WRITE  # do_wp_page() follows
        system.mapcount_changes(pfn + j)
        folios.mapcount.m[pfn + j] += 1
        leaf.m[i + j] = (pfn + j) << PTE_SHIFT | its
        system.tell_entry_added(vma.mm, addr + (j << PAGE_SHIFT), leaf.m[i + j])
    if folios.order.m[head]:
        system.large_mapped(vma.mm, head, nr_pages)
        if exclusive:
            folios.exclusive.v[pfn : pfn + nr_pages] = True
