# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables at work: faults, copying at fork, moving, protecting, zapping.

Models mm/memory.c (handle_mm_fault() and what it calls, copy_page_range(), unmap_page_range()), mm/mprotect.c
(change_protection()) and mm/mremap.c (move_page_tables()).  Whole leaves are handled by NumPy; the result
is that of going entry by entry, in ascending order.

The exclusivity rule (mm/memory.c do_wp_page(), mm/rmap.c): a page is exclusive from its first mapping until fork
shares it or KSM takes it.  A write to an exclusive page reuses it.  A write to another page reuses it only if
it is a small folio, not KSM's, and this entry is the last that refers to it, in swap included; the folio
then moves to this VMA.  Everything else copies.

Locking: page-table lock of the leaf around each change of entries; the fault path holds the VMA's lock.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from rmaplab.mm.abi import EFAULT
from rmaplab.mm.errors import InvariantError
from rmaplab.mm.folio import FOLIO_ANON, FOLIO_LAZYFREE, Int64s
from rmaplab.mm.pagetable import (
    LEAF_ENTRIES,
    LEAF_SHIFT,
    PTE_ANON,
    PTE_DIRTY,
    PTE_EXCLUSIVE,
    PTE_FILE,
    PTE_KSM,
    PTE_MIGRATION,
    PTE_SHIFT,
    PTE_SWAP,
    PTE_WRITE,
    PTE_YOUNG,
    PTE_ZERO,
    Leaf,
    PageTable,
)
from rmaplab.mm.system import System
from rmaplab.mm.vma import MM, PAGE_SHIFT, PAGE_SIZE, VM_LOCKED, VM_SHARED, VM_WRITE, VMA

_NEW: Final = PTE_ANON | PTE_WRITE | PTE_EXCLUSIVE | PTE_DIRTY | PTE_YOUNG
_NEW_READ_ONLY: Final = PTE_ANON | PTE_EXCLUSIVE | PTE_DIRTY | PTE_YOUNG
_BATCH: Final = 4  # shorter runs are quicker one by one
_LEAF_SIZE: Final = 1 << LEAF_SHIFT


# Faults


def fault_vma(system: System, vma: VMA, addr: int, nr_pages: int, write: bool) -> int:
    """Touch `nr_pages` pages from `addr`, all in `vma`, whose flags allow it.  Returns 0 or -EFAULT."""
    page_table = vma.mm.page_table
    end = addr + (nr_pages << PAGE_SHIFT)
    while addr < end:
        stop = min(end, (addr | (_LEAF_SIZE - 1)) + 1)
        if stop - addr < _BATCH << PAGE_SHIFT:
            while addr < stop:
                _fault_one(system, vma, addr, write)
                addr += PAGE_SIZE
        else:
            _fault_leaf(system, vma, page_table, addr, stop, write)
            addr = stop
    return 0


def _fault_leaf(system: System, vma: VMA, page_table: PageTable, addr: int, stop: int, write: bool) -> None:
    """Faults of several pages within one leaf: runs that need the same are handled in one go."""
    leaf = page_table.leaf(addr)
    first = (addr >> PAGE_SHIFT) & (LEAF_ENTRIES - 1)
    last = first + ((stop - addr) >> PAGE_SHIFT)
    entries = leaf.v[first:last]
    private = not vma.flags & VM_SHARED
    if write and private and system.large_folios == 0:
        # What needs a page of its own: nothing there, the zero page, the page cache, a shared page.
        batch = entries & (PTE_ANON | PTE_SWAP | PTE_MIGRATION) == 0
        shared = entries & (PTE_ANON | PTE_EXCLUSIVE | PTE_KSM) == PTE_ANON
        if shared.any():
            batch[shared] = system.folios.mapcount.v[entries[shared] >> PTE_SHIFT] > 1
    elif write and private:
        batch = np.zeros(last - first, dtype=np.bool_)
    else:
        batch = entries == 0
    edges = np.flatnonzero(batch[1:] != batch[:-1]) + 1
    begin = 0
    base = addr
    for edge in [*edges.tolist(), last - first]:
        count = edge - begin
        at = base + (begin << PAGE_SHIFT)
        if count >= _BATCH and batch[begin]:
            if write and private:
                _new_pages(system, vma, page_table, at, first + begin, count)
            else:
                _no_page_run(system, vma, page_table, at, first + begin, count, write)
        else:
            for i in range(count):
                _fault_one(system, vma, at + (i << PAGE_SHIFT), write)
        begin = edge


def _new_pages(system: System, vma: VMA, page_table: PageTable, addr: int, first: int, count: int) -> None:
    """Write faults that all need a new page each (do_anonymous_page(), do_cow_fault(), wp_page_copy())."""
    lock = vma.lock
    system.faults.count += count
    if lock is not None:
        lock.lock_class.reads += count
    system.prepare(vma)
    leaf = page_table.leaf(addr)
    entries = leaf.v[first : first + count]
    old = entries.copy()
    pgoff = vma.pgoff + ((addr - vma.start) >> PAGE_SHIFT)
    pfns = system.folios.alloc_run(pgoff, count)
    nr_old = int(np.count_nonzero(old))
    copied = int(np.count_nonzero(old & (PTE_ANON | PTE_FILE)))
    system.pages_copied.count += copied
    system.pages_zeroed.count += count - copied
    for design in system.designs:
        design.folios_mapped(vma, addr, pfns)
    leaf.lock.lock_class.writes += count - 1
    leaf.lock.lock()
    system.folios.mapcount.v[pfns] = 1
    entries[:] = (pfns << PTE_SHIFT) | (_NEW if vma.flags & VM_WRITE else _NEW_READ_ONLY)
    leaf.used += count - nr_old
    leaf.lock.unlock()
    if copied:
        shared = old[(old & PTE_ANON) != 0]
        if len(shared):
            system.release_pages(shared >> PTE_SHIFT, False)


def _no_page_run(
    system: System, vma: VMA, page_table: PageTable, addr: int, first: int, count: int, write: bool
) -> None:
    """Faults on nothing that map the zero page or the page cache."""
    system.faults.count += count
    lock = vma.lock
    if lock is not None:
        lock.lock_class.reads += count
    leaf = page_table.leaf(addr)
    entry = _no_page_entry(vma, write)
    leaf.lock.lock_class.writes += count - 1
    leaf.lock.lock()
    leaf.v[first : first + count] = entry
    leaf.used += count
    leaf.lock.unlock()


def _no_page_entry(vma: VMA, write: bool) -> int:
    """What a fault maps where nothing is and no anonymous page is needed."""
    if vma.file is None:
        return PTE_ZERO | PTE_YOUNG
    if write:
        return PTE_FILE | PTE_WRITE | PTE_DIRTY | PTE_YOUNG
    return PTE_FILE | PTE_YOUNG




def _fault_one(system: System, vma: VMA, addr: int, write: bool) -> None:
    system.faults.count += 1
    lock = vma.lock
    if lock is not None:
        lock.down_read()
    leaf = vma.mm.page_table.leaf(addr)
    i = (addr >> PAGE_SHIFT) & (LEAF_ENTRIES - 1)
    entry: int = leaf.m[i]
    if entry & PTE_SWAP:
        _swap_in(system, vma, addr, leaf, i, entry, write)
    elif entry & PTE_MIGRATION:
        raise InvariantError(
            f"address {addr:#x} of mm {vma.mm.id} waits for the migration of page {entry >> PTE_SHIFT}, which is over:"
            " a migration entry was not found and restored"
        )
    elif entry == 0:
        if vma.flags & VM_SHARED or not write:
            leaf.lock.lock()
            leaf.m[i] = _no_page_entry(vma, write)
            leaf.used += 1
            leaf.lock.unlock()
        else:
            _new_page(system, vma, addr, leaf, i, 0)
    elif not write:
        leaf.m[i] = entry | PTE_YOUNG
    elif entry & PTE_WRITE:
        leaf.m[i] = entry | PTE_DIRTY | PTE_YOUNG
    elif vma.flags & VM_SHARED:
        leaf.m[i] = entry | PTE_WRITE | PTE_DIRTY | PTE_YOUNG
    else:
        _write_protected(system, vma, addr, leaf, i, entry)
    if lock is not None:
        lock.up_read()


def _write_protected(system: System, vma: VMA, addr: int, leaf: Leaf, i: int, entry: int) -> None:
    """A write to a present page of a private mapping that is not mapped writable (do_wp_page())."""
    if entry & PTE_ANON:
        pfn = entry >> PTE_SHIFT
        if entry & PTE_EXCLUSIVE or _can_reuse(system, vma, pfn, entry):
            system.pages_reused.count += 1
            flags = PTE_EXCLUSIVE | PTE_DIRTY | PTE_YOUNG
            if vma.flags & VM_WRITE:
                flags |= PTE_WRITE
            leaf.lock.lock()
            leaf.m[i] = entry | flags
            leaf.lock.unlock()
            return
    _new_page(system, vma, addr, leaf, i, entry)


def _can_reuse(system: System, vma: VMA, pfn: int, entry: int) -> bool:
    """wp_can_reuse_anon_folio(); takes the folio over if so."""
    folios = system.folios
    if entry & PTE_KSM or folios.mapcount.m[pfn] != 1 or folios.order.m[pfn] != 0:
        return False
    slot = system.slot_of.get(pfn)
    if slot is not None:
        if system.swap[slot].count > 0:
            return False
        system.uncache(pfn)
    for design in system.designs:
        design.folio_reused(vma, pfn, 1)
    return True


def _new_page(system: System, vma: VMA, addr: int, leaf: Leaf, i: int, old: int) -> None:
    """Give `addr` an anonymous page of its own, in place of `old`."""
    system.prepare(vma)
    folios = system.folios
    if old == 0 and system.large_folios and _new_large(system, vma, addr, leaf, i):
        return
    if old & (PTE_ANON | PTE_FILE):
        system.pages_copied.count += 1
    else:
        system.pages_zeroed.count += 1
    pfn = folios.alloc(vma.pgoff + ((addr - vma.start) >> PAGE_SHIFT))
    for design in system.designs:
        design.folio_mapped(vma, addr, pfn, 1)
    leaf.lock.lock()
    folios.mapcount.m[pfn] = 1
    leaf.m[i] = pfn << PTE_SHIFT | (_NEW if vma.flags & VM_WRITE else _NEW_READ_ONLY)
    if old == 0:
        leaf.used += 1
    leaf.lock.unlock()
    if old & PTE_ANON:
        system.release_page(old >> PTE_SHIFT)


def _new_large(system: System, vma: VMA, addr: int, leaf: Leaf, i: int) -> bool:
    """Map the largest folio that is aligned, lies in the VMA and finds nothing mapped
    (alloc_anon_folio())."""
    if vma.file is not None:
        return False
    order = system.large_folios
    while order > 0:
        nr_pages = 1 << order
        start = addr & ~((nr_pages << PAGE_SHIFT) - 1)
        first = i & ~(nr_pages - 1)
        if start >= vma.start and start + (nr_pages << PAGE_SHIFT) <= vma.end:
            entries = leaf.v[first : first + nr_pages]
            if not entries.any():
                break
        order -= 1
    if order == 0:
        return False
    folios = system.folios
    pfn = folios.alloc_large(vma.pgoff + ((start - vma.start) >> PAGE_SHIFT), order)
    system.nr_large += 1
    system.pages_zeroed.count += nr_pages
    for design in system.designs:
        design.folio_mapped(vma, start, pfn, nr_pages)
    leaf.lock.lock()
    folios.mapcount.v[pfn : pfn + nr_pages] = 1
    flags = _NEW if vma.flags & VM_WRITE else _NEW_READ_ONLY
    entries[:] = (np.arange(pfn, pfn + nr_pages, dtype=np.int64) << PTE_SHIFT) | flags
    leaf.used += nr_pages
    leaf.lock.unlock()
    return True


def _swap_in(system: System, vma: VMA, addr: int, leaf: Leaf, i: int, entry: int, write: bool) -> None:
    """do_swap_page()"""
    folios = system.folios
    slot_number = entry >> PTE_SHIFT
    slot = system.swap[slot_number]
    system.prepare(vma)
    pgoff = vma.pgoff + ((addr - vma.start) >> PAGE_SHIFT)
    if slot.from_ksm:
        # The other users of the slot need not be related to this one: a copy for this one alone.
        pfn = folios.alloc(pgoff)
        fresh = True
        exclusive = True
        system.put_slot(slot_number)
    else:
        pfn = slot.cached_pfn
        fresh = pfn == 0
        if fresh:
            pfn = folios.alloc(pgoff)
            system.cache(slot_number, pfn)
        exclusive = entry & PTE_EXCLUSIVE != 0
        slot.count -= 1
        if slot.count == 0 and folios.mapcount.m[pfn] == 0 and (write or exclusive or vma.flags & VM_LOCKED):
            # should_try_to_free_swap(): nobody else can want what is in swap.
            system.uncache(pfn)
            exclusive = True
    if fresh:
        system.pages_copied.count += 1
        for design in system.designs:
            design.folio_swapped_in(vma, addr, pfn, exclusive)
    flags = PTE_ANON | PTE_YOUNG | (PTE_DIRTY if write else 0)
    if exclusive:
        flags |= PTE_EXCLUSIVE
        if vma.flags & VM_WRITE:
            flags |= PTE_WRITE
    leaf.lock.lock()
    folios.mapcount.m[pfn] += 1
    leaf.m[i] = pfn << PTE_SHIFT | flags
    leaf.lock.unlock()
    if write and not exclusive:
        _write_protected(system, vma, addr, leaf, i, pfn << PTE_SHIFT | flags)


# Zapping


def zap_range(system: System, mm: MM, start: int, end: int) -> None:
    """Remove all entries of [start, end) (unmap_page_range())."""
    leaves = mm.page_table.leaves
    for number in mm.page_table.numbers(start, end):
        base = number << LEAF_SHIFT
        first = (start - base) >> PAGE_SHIFT if start > base else 0
        last = (end - base) >> PAGE_SHIFT if end < base + _LEAF_SIZE else LEAF_ENTRIES
        leaf = leaves[number]
        if last - first <= _BATCH:
            _zap_few(system, leaf, first, last)
        else:
            _zap_leaf(system, leaf, first, last)
        if leaf.used == 0:
            del leaves[number]


def _zap_few(system: System, leaf: Leaf, first: int, last: int) -> None:
    for i in range(first, last):
        entry: int = leaf.m[i]
        if entry:
            zap_entry(system, leaf, i, entry)


def zap_entry(system: System, leaf: Leaf, i: int, entry: int) -> None:
    """Remove one entry that is not none."""
    system.entries_zapped.count += 1
    leaf.lock.lock()
    leaf.m[i] = 0
    leaf.used -= 1
    leaf.lock.unlock()
    if entry & PTE_ANON:
        system.release_page(entry >> PTE_SHIFT)
    elif entry & PTE_SWAP:
        system.put_slot(entry >> PTE_SHIFT)


def _zap_leaf(system: System, leaf: Leaf, first: int, last: int) -> None:
    entries = leaf.v[first:last]
    there = entries[entries != 0]
    count = len(there)
    if count == 0:
        return
    system.entries_zapped.count += count
    leaf.lock.lock()
    entries[:] = 0
    leaf.used -= count
    leaf.lock.unlock()
    anon = there[(there & PTE_ANON) != 0]
    if len(anon):
        ksm = bool(system.ksm_pages) and bool((anon & PTE_KSM).any())
        system.release_pages(anon >> PTE_SHIFT, ksm)
    if system.swap and len(anon) != count:
        for entry in there[(there & PTE_SWAP) != 0]:
            system.put_slot(int(entry) >> PTE_SHIFT)


# Fork


def copy_page_range(system: System, source: MM, target: MM, start: int, end: int) -> None:
    """Copy the entries of [start, end), all of private mappings, write-protecting both sides
    (copy_page_range())."""
    mapcount = system.folios.mapcount
    keep = ~(PTE_WRITE | PTE_EXCLUSIVE | PTE_YOUNG)
    target_table = target.page_table
    for number in source.page_table.numbers(start, end):
        leaf = source.page_table.leaves[number]
        base = number << LEAF_SHIFT
        whole = start <= base and base + _LEAF_SIZE <= end
        leaf.lock.lock()
        if whole:
            leaf.v[:] &= keep
            copy = leaf.v.copy()
            used = leaf.used
            target_table.leaves[number] = target_table.new_leaf(copy, used)
        else:
            first = (start - base) >> PAGE_SHIFT if start > base else 0
            last = (end - base) >> PAGE_SHIFT if end < base + _LEAF_SIZE else LEAF_ENTRIES
            entries = leaf.v[first:last]
            entries &= keep
            copy = entries
            used = int(np.count_nonzero(copy))
            if used:
                new = target_table.leaf(base)
                new.v[first:last] = copy
                new.used += used
        leaf.lock.unlock()
        system.entries_copied.count += used
        anon = copy[(copy & PTE_ANON) != 0] >> PTE_SHIFT
        if len(anon):
            if system.ksm_pages:
                np.add.at(mapcount.v, anon, 1)
            else:
                mapcount.v[anon] += 1
        if system.swap and len(anon) != used:
            for entry in copy[(copy & PTE_SWAP) != 0]:
                system.swap[int(entry) >> PTE_SHIFT].count += 1


# mremap


def move_page_tables(system: System, vma: VMA, old: int, new_vma: VMA, new: int, length: int, locks: bool) -> None:
    """Move the entries of `length` bytes at `old` to `new` (move_page_tables()); with `locks`, walks are
    kept away meanwhile.  The ranges may overlap if `new` is below `old` (an exec'd stack)."""
    page_table = vma.mm.page_table
    end = old + length
    while old < end:
        stop = min(end, (old | (_LEAF_SIZE - 1)) + 1)
        new_stop = (new | (_LEAF_SIZE - 1)) + 1
        if new_stop - new < stop - old:
            stop = old + (new_stop - new)
        number = old >> LEAF_SHIFT
        leaf = page_table.leaves.get(number)
        if leaf is not None:
            first = (old >> PAGE_SHIFT) & (LEAF_ENTRIES - 1)
            count = (stop - old) >> PAGE_SHIFT
            entries = leaf.v[first : first + count].copy()
            used = int(np.count_nonzero(entries))
            if used:
                system.entries_moved.count += used
                if locks:
                    for design in system.designs:
                        design.move_lock(vma)
                target = page_table.leaf(new)
                leaf.lock.lock()
                leaf.v[first : first + count] = 0
                leaf.used -= used
                new_first = (new >> PAGE_SHIFT) & (LEAF_ENTRIES - 1)
                target.v[new_first : new_first + count] = entries
                target.used += used
                leaf.lock.unlock()
                if leaf.used == 0:
                    del page_table.leaves[number]
                if locks:
                    for design in system.designs:
                        design.move_unlock(vma)
        new += stop - old
        old = stop


# mprotect


def change_protection(system: System, vma: VMA, start: int, end: int) -> None:
    """Make the entries of [start, end) follow the flags of `vma` (change_protection())."""
    if vma.flags & VM_SHARED:
        writable = 0
    else:
        writable = PTE_EXCLUSIVE if vma.flags & VM_WRITE else 0
    page_table = vma.mm.page_table
    for number in page_table.numbers(start, end):
        base = number << LEAF_SHIFT
        first = (start - base) >> PAGE_SHIFT if start > base else 0
        last = (end - base) >> PAGE_SHIFT if end < base + _LEAF_SIZE else LEAF_ENTRIES
        leaf = page_table.leaves[number]
        entries = leaf.v[first:last]
        system.entries_protected.count += int(np.count_nonzero(entries))
        leaf.lock.lock()
        if writable:
            # can_change_pte_writable(): a write to an exclusive page would reuse it anyway.
            both = PTE_ANON | PTE_EXCLUSIVE
            entries[(entries & both) == both] |= PTE_WRITE
        else:
            entries &= ~PTE_WRITE
        leaf.lock.unlock()


def mark_lazyfree(system: System, mm: MM, start: int, end: int) -> None:
    """MADV_FREE: present pages may be dropped while they stay clean, swapped ones go at once
    (madvise_free_pte_range())."""
    folios = system.folios
    for number in mm.page_table.numbers(start, end):
        base = number << LEAF_SHIFT
        leaf = mm.page_table.leaves[number]
        first = (start - base) >> PAGE_SHIFT if start > base else 0
        last = (end - base) >> PAGE_SHIFT if end < base + _LEAF_SIZE else LEAF_ENTRIES
        for i in np.flatnonzero(leaf.v[first:last]).tolist():
            entry: int = leaf.m[first + i]
            if entry & PTE_SWAP:
                zap_entry(system, leaf, first + i, entry)
            elif entry & PTE_ANON and not entry & PTE_KSM:
                pfn = entry >> PTE_SHIFT
                if folios.mapcount.m[pfn] == 1 and folios.order.m[pfn] == 0:
                    slot = system.slot_of.get(pfn)
                    if slot is not None:
                        if system.swap[slot].count > 0:
                            continue
                        system.uncache(pfn)
                    folios.flags.m[pfn] = FOLIO_ANON | FOLIO_LAZYFREE
                    leaf.m[first + i] = entry & ~(PTE_DIRTY | PTE_YOUNG)
        if leaf.used == 0:
            del mm.page_table.leaves[number]


def anon_pfns(mm: MM, start: int, end: int) -> Int64s:
    """The anonymous pages that [start, end) maps, by ascending address."""
    found: list[Int64s] = []
    for number in mm.page_table.numbers(start, end):
        base = number << LEAF_SHIFT
        first = (start - base) >> PAGE_SHIFT if start > base else 0
        last = (end - base) >> PAGE_SHIFT if end < base + _LEAF_SIZE else LEAF_ENTRIES
        entries = mm.page_table.leaves[number].v[first:last]
        found.append(entries[(entries & PTE_ANON) != 0] >> PTE_SHIFT)
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def access_error(vma: VMA, write: bool) -> int:
    """-EFAULT if `vma` does not allow the access (access_error() in arch/x86/mm/fault.c)."""
    if write:
        return 0 if vma.flags & VM_WRITE else -EFAULT
    return 0 if vma.flags & 0x7 else -EFAULT
