# SPDX-License-Identifier: GPL-2.0-or-later
"""Folios of 2 MiB that one entry of the level above the leaf maps.

Models mm/huge_memory.c: do_huge_pmd_anonymous_page(), do_huge_pmd_wp_page(), copy_huge_pmd(), zap_huge_pmd(),
move_huge_pmd(), __split_huge_pmd_locked() and vma_adjust_trans_huge(); and move_normal_pmd() of mm/mremap.c, which
matters here because a fault looks for a place where no leaf is.

Such a place is a leaf that is `huge`: the entry above and the page table that Linux keeps in reserve for it
(pgtable_trans_huge_deposit()) in one.  All its entries are what that entry says, so that whoever looks at single pages
need not know.  What differs is how it is counted (a large folio counts it once), that of the folio's pages only the
first is marked exclusive, and that all of it changes at once: who wants to change part of it splits it first.

Invariants
- the 512 entries of a huge leaf have the same flags, and map one folio from its first page on, or the zero page.
- it lies within one VMA: vma_adjust_trans_huge() splits what a new boundary would cut.
- once its entry is gone, so is the leaf: there is no empty huge leaf.

Locking: the leaf's lock, which stands for that of the level above where a leaf is; where it goes to or leaves, also
PageTable.pmd_lock, for who finds nothing there meanwhile.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from rmaplab.mm.folio import FOLIO_DIRTY, FOLIO_LAZYFREE, MAX_ORDER
from rmaplab.mm.locking import lock_leaf
from rmaplab.mm.pagetable import (
    LEAF_ENTRIES,
    LEAF_SHIFT,
    LEAF_SIZE,
    PTE_ANON,
    PTE_DIRTY,
    PTE_EXCLUSIVE,
    PTE_MIGRATION,
    PTE_SHIFT,
    PTE_WRITE,
    PTE_YOUNG,
    PTE_ZERO,
    Leaf,
)
from rmaplab.mm.system import System
from rmaplab.mm.vma import (
    MM,
    PAGE_SHIFT,
    VM_DROPPABLE,
    VM_NOHUGEPAGE,
    VM_STACK_INCOMPLETE_SETUP,
    VM_WRITE,
    VMA,
)
from rmaplab.sync.fields import OF_PAGE
from rmaplab.sync.order import alike

_NEW: Final = PTE_ANON | PTE_EXCLUSIVE | PTE_DIRTY | PTE_YOUNG


# Faults


def fault(system: System, vma: VMA, addr: int, write: bool) -> bool:
    """An access where no leaf is, or a huge one.  False: it needs an entry of its own
    (create_huge_pmd() and wp_huge_pmd(): VM_FAULT_FALLBACK)."""
    start = addr & -LEAF_SIZE
    leaf = lock_leaf(vma.mm.page_table, addr)
    while leaf is None:
        if system.large_folios < MAX_ORDER or not _fits(vma, start):
            return False
        if _create(system, vma, start, write):
            return True
        leaf = lock_leaf(vma.mm.page_table, addr)  # somebody was faster
    done = False
    if leaf.huge and not leaf.m[0] & PTE_MIGRATION:
        done = not write or leaf.m[0] & PTE_WRITE != 0 or _write_protected(system, vma, start, leaf)
        if done:
            leaf.lock.assert_held()
            leaf.v[:] |= PTE_YOUNG | (PTE_DIRTY if write else 0)
        else:
            split_locked(system, vma.mm, leaf)
    leaf.lock.unlock()
    return done


def _fits(vma: VMA, start: int) -> bool:
    """May one entry map the 2 MiB at `start` (thp_vma_allowable_order(), thp_vma_suitable_order())?"""
    if vma.file is not None or vma.flags & VM_NOHUGEPAGE or start < vma.start or start + LEAF_SIZE > vma.end:
        return False
    return vma.flags & VM_STACK_INCOMPLETE_SETUP != VM_STACK_INCOMPLETE_SETUP


def _create(system: System, vma: VMA, start: int, write: bool) -> bool:
    """do_huge_pmd_anonymous_page(): a folio where something writes, else the zero page.  False: there is a leaf now, of
    whatever kind."""
    system.prepare(vma)
    page_table = vma.mm.page_table
    leaf = page_table.new_leaf(np.zeros(LEAF_ENTRIES, dtype=np.int64), 0)
    leaf.huge = True
    leaf.lock.lock()
    first = page_table.install(start >> LEAF_SHIFT, leaf) is leaf
    if first and write:
        map_new(system, vma, start, MAX_ORDER, leaf, 0, whole=True)
    elif first:
        leaf.lock.assert_held()
        leaf.v[:] = PTE_ZERO | PTE_YOUNG
        leaf.used = LEAF_ENTRIES
    leaf.lock.unlock()
    return first


def map_new(system: System, vma: VMA, start: int, order: int, leaf: Leaf, first: int, whole: bool) -> None:
    """Map a new folio of `order` at `start`, where entry number `first` of `leaf` is, which is locked; by one entry if
    it is to be mapped `whole` (map_anon_folio_pmd_nopf(), or do_anonymous_page())."""
    folios = system.folios
    nr_pages = 1 << order
    pfn = folios.alloc_large(vma.anon_pgoff + ((start - vma.start) >> PAGE_SHIFT), order)
    system.nr_large += 1
    if vma.flags & VM_DROPPABLE:  # never swap-backed (folio_add_new_anon_rmap())
        folios.set_flag(pfn, FOLIO_LAZYFREE)
    system.pages_zeroed.count += nr_pages
    for design in system.designs:
        design.folio_mapped(vma, start, pfn, nr_pages)
    folios.mapcount.v[pfn : pfn + nr_pages] = 1
    system.large_mapped(vma.mm, pfn, 1 if whole else nr_pages)
    folios.exclusive.v[pfn : pfn + (1 if whole else nr_pages)] = True
    flags = _NEW | (PTE_WRITE if vma.flags & VM_WRITE else 0)
    leaf.lock.assert_held()
    entries = leaf.v[first : first + nr_pages]
    leaf.used += nr_pages - int(np.count_nonzero(entries))
    entries[:] = (np.arange(pfn, pfn + nr_pages, dtype=np.int64) << PTE_SHIFT) | flags
    for watcher in system.entry_watchers:
        watcher.entries_added(vma.mm, start, entries)


def _write_protected(system: System, vma: VMA, start: int, leaf: Leaf) -> bool:
    """do_huge_pmd_wp_page(): all of it becomes writable, or nothing.  `leaf` is locked."""
    folios = system.folios
    entry: int = leaf.m[0]
    head = entry >> PTE_SHIFT
    if entry & PTE_ZERO:
        if not system.profile.huge_zero_replaced:
            return False
        system.flush_tlb(vma.mm)
        map_new(system, vma, start, MAX_ORDER, leaf, 0, whole=True)
        return True
    if not entry & PTE_EXCLUSIVE:
        if system.mapcount(head) > LEAF_ENTRIES or head in system.pins or not system.trylock_folio(head):
            return False
        system.assert_folio_locked(head)  # folio_move_anon_rmap()
        for design in system.designs:
            design.folio_reused(vma, head, LEAF_ENTRIES)
        system.unlock_folio(head)
        folios.exclusive.m[head] = True
    system.pages_reused.count += LEAF_ENTRIES
    leaf.lock.assert_held()
    leaf.v[:] |= PTE_EXCLUSIVE | (PTE_WRITE if vma.flags & VM_WRITE else 0)
    return True


# Splitting


def split_locked(system: System, mm: MM, leaf: Leaf) -> None:
    """From now on each page of what the huge `leaf` maps has an entry of its own (__split_huge_pmd_locked())."""
    folios = system.folios
    entry: int = leaf.m[0]
    leaf.lock.assert_held()
    leaf.huge = False
    if not entry & PTE_ANON:
        return
    head = entry >> PTE_SHIFT
    if entry & PTE_DIRTY:
        folios.set_flag(head, FOLIO_DIRTY)
        if not system.profile.huge_split_dirty:
            leaf.v[:] &= ~PTE_DIRTY
    if entry & PTE_EXCLUSIVE:
        folios.exclusive.v[head : head + LEAF_ENTRIES] = True
    system.large_mapped(mm, head, LEAF_ENTRIES)
    system.large_unmapped(mm, head, 1)


def split_at(system: System, mm: MM, addr: int) -> None:
    """Split the leaf for `addr`, if it is there and huge (split_huge_pmd_address())."""
    leaf = mm.page_table.look_up(addr >> LEAF_SHIFT)
    if leaf is not None and leaf.huge:
        leaf.lock.lock()
        if leaf.huge:
            split_locked(system, mm, leaf)
        leaf.lock.unlock()


def adjust(system: System, vma: VMA, addr: int) -> None:
    """`addr` becomes a boundary of `vma` or its neighbour: nothing huge may lie across (vma_adjust_trans_huge())."""
    start = addr & -LEAF_SIZE
    if start != addr and vma.start <= start and start + LEAF_SIZE <= vma.end:
        split_at(system, vma.mm, addr)


# What happens to all of it at once


def zap(system: System, mm: MM, number: int, leaf: Leaf) -> bool:
    """Remove the leaf with that number and what it maps, if it is huge (zap_huge_pmd())."""
    leaf.lock.lock()
    if not leaf.huge:  # split before we had the lock
        leaf.lock.unlock()
        return False
    head: int = leaf.m[0] >> PTE_SHIFT
    left = remove(system, mm, number << LEAF_SHIFT, leaf)
    system.entries_zapped.count += LEAF_ENTRIES
    leaf.lock.unlock()
    if left == 0:
        system.try_free(head)
    return True


def remove(system: System, mm: MM, addr: int, leaf: Leaf) -> int:
    """The huge `leaf` at `addr`, which is locked, maps nothing any more, and goes (pmdp_huge_clear_flush(),
    zap_deposited_table()).  Returns how many entries of the folio are left, seen as one a page; 1 if it had none."""
    entries = leaf.v.copy()
    entry: int = leaf.m[0]
    leaf.lock.assert_held()
    leaf.v[:] = 0
    leaf.used = 0
    mm.page_table.remove(addr >> LEAF_SHIFT)
    for watcher in system.entry_watchers:
        watcher.entries_removed(mm, addr, entries)
    return unmapped(system, mm, entry >> PTE_SHIFT) if entry & PTE_ANON else 1


def unmapped(system: System, mm: MM, head: int) -> int:
    """An entry of `mm` that mapped all of the folio is gone (folio_remove_rmap_pmd()).  Returns how many entries are
    left, seen as one a page."""
    system.mapcount_changes(head)
    alike(system.scheduler, system.folios.mapcount, OF_PAGE, head + 1, LEAF_ENTRIES - 1)
    system.folios.mapcount.v[head : head + LEAF_ENTRIES] -= 1
    system.large_unmapped(mm, head, 1)
    if not system.folios.mapcount.v[head : head + LEAF_ENTRIES].all():
        system.note_torn(head)
    return system.folios.total_mapcount(head)


def mapped(system: System, mm: MM, head: int, exclusive: bool) -> None:
    """One more entry of `mm` maps all of the folio (folio_add_anon_rmap_pmd())."""
    system.mapcount_grows(head)
    alike(system.scheduler, system.folios.mapcount, OF_PAGE, head + 1, LEAF_ENTRIES - 1)
    system.folios.mapcount.v[head : head + LEAF_ENTRIES] += 1
    system.large_mapped(mm, head, 1)
    system.folios.exclusive.m[head] = exclusive


def copy(system: System, target: MM, number: int, leaf: Leaf, shared: int) -> None:
    """fork copies the huge `leaf`, and leaves what `shared` masks of its entries on both sides (copy_huge_pmd())."""
    leaf.lock.lock()
    leaf.lock.assert_held()
    leaf.v[:] &= shared
    new = target.page_table.new_leaf(leaf.v.copy(), LEAF_ENTRIES)
    new.huge = True
    new.lock.lock()
    target.page_table.install(number, new)
    system.entries_copied.count += LEAF_ENTRIES
    entry: int = leaf.m[0]
    if entry & PTE_ANON:
        mapped(system, target, entry >> PTE_SHIFT, False)
    for watcher in system.entry_watchers:
        watcher.entries_added(target, number << LEAF_SHIFT, new.v)
    new.lock.unlock()
    leaf.lock.unlock()


def move(system: System, mm: MM, old: int, new: int) -> bool:
    """mremap moves all that the leaf at `old` maps to `new`, a multiple of 2 MiB as well: the leaf goes there, huge or
    not, where none is (move_huge_pmd(), move_normal_pmd())."""
    page_table = mm.page_table
    leaf = page_table.leaves[old >> LEAF_SHIFT]
    if new >> LEAF_SHIFT in page_table.leaves:
        return False
    page_table.pmd_lock.lock()
    leaf.lock.lock()
    leaf.lock.assert_held()
    system.flush_tlb(mm)
    system.entries_moved.count += leaf.used
    page_table.move(old >> LEAF_SHIFT, new >> LEAF_SHIFT)
    for watcher in system.entry_watchers:
        watcher.entries_moved(mm, old, new, leaf.v)
    leaf.lock.unlock()
    page_table.pmd_lock.unlock()
    return True
