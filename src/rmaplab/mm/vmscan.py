# SPDX-License-Identifier: GPL-2.0-or-later
"""Users of the reverse map, part one: the check whether a folio is in use, and swap-out.

Models mm/rmap.c folio_referenced() and try_to_unmap(), with their caller, mm/vmscan.c
shrink_folio_list().  They walk with the leading design and believe it: a mapping that the walk misses leaves the folio
mapped, and the caller gives up.  A large folio is split before it is swapped out; a kernel that has room for all of it
in a row in swap, as is assumed here, splits only a partly mapped one, which leaves the same entries.  A folio that
MADV_FREE gave up is not split: its clean pages are freed up to the first dirty one, or the first batch that has one
(`batches`).

Locking: a user holds a reference to the folio and its lock, and takes the page-table lock at each place.
"""

from __future__ import annotations

from typing import Final

from rmaplab.mm import huge_pmd
from rmaplab.mm.folio import FOLIO_DIRTY, FOLIO_LAZYFREE, FOLIO_REFERENCED
from rmaplab.mm.gup_fast import try_share
from rmaplab.mm.huge_memory import batch, partly_mapped, split_cut, split_folio
from rmaplab.mm.pagetable import (
    LEAF_ENTRIES,
    PTE_ANON,
    PTE_DIRTY,
    PTE_EXCLUSIVE,
    PTE_SHIFT,
    PTE_SOFT_CLEAN,
    PTE_SWAP,
    PTE_WRITE,
    PTE_YOUNG,
    Leaf,
)
from rmaplab.mm.rmap_walk import Visit, rmap_walk
from rmaplab.mm.system import System
from rmaplab.mm.vma import MM, PAGE_SHIFT, PAGE_SIZE, VM_DROPPABLE, VM_LOCKED, VMA
from rmaplab.sync.fields import OF_ENTRY
from rmaplab.sync.order import write_once

# How a real kernel's reclaim took what MADV_FREE had given up, and was in use again:
ONCE: Final = 1  # reclaim did not visit it a second time
KEPT: Final = 2  # ageing had seen a dirty entry, which may be gone by now, so that nothing was dropped
PLACED: Final = 4  # it had taken them before, and what is in swap there lies in a row
_FREED_AT_ONCE: Final = 31  # PAGEVEC_SIZE: folios that are freed together, after TLBs are flushed for all of them


def isolate(system: System, mm: MM, start: int, end: int) -> list[int]:
    """First pages of the folios mapped in [start, end), each once, in the order of the range, and a
    reference to each (folio_isolate_lru())."""
    heads = folio_heads(system, mm, start, end)
    for head in heads:
        system.get_folio(head)
    return heads


def referenced(system: System, mm: MM, start: int, end: int) -> int:
    """Look at every mapping of the folios mapped in [start, end), and age it.  Returns how many entries had
    been used since the last time."""
    return sum(referenced_folio(system, head) for head in isolate(system, mm, start, end))


def referenced_folio(system: System, head: int) -> int:
    """The same for one folio (folio_referenced()); the caller's reference is dropped."""
    total = 0
    if system.trylock_folio(head):
        look = _Look(system, head)
        rmap_walk(look)
        total = look.used
        system.folios.set_flag(head, FOLIO_REFERENCED)
        system.unlock_folio(head)
    system.put_folio(head)
    return total


class _Look(Visit):
    """folio_referenced_one()"""

    def __init__(self, system: System, head: int) -> None:
        super().__init__(system, head)
        self.left = system.mapcount(head)
        self.used = 0

    def entry(self, vma: VMA, addr: int, leaf: Leaf, i: int, entry: int) -> bool:
        self.left -= 1
        if entry & PTE_YOUNG:
            self.used += 1
            leaf.lock.assert_held()
            leaf.m[i] = entry & ~PTE_YOUNG
        return False

    def whole(self, vma: VMA, addr: int, leaf: Leaf) -> bool:
        self.left -= LEAF_ENTRIES
        self.used += leaf.m[0] & PTE_YOUNG != 0
        leaf.lock.assert_held()
        leaf.v[:] &= ~PTE_YOUNG
        return False

    def done(self) -> bool:
        return self.left == 0


def folio_heads(system: System, mm: MM, start: int, end: int) -> list[int]:
    """First pages of the folios mapped in [start, end), each once, in the order of the range."""
    heads = system.folios.head.m
    found: dict[int, None] = {}
    for number in mm.page_table.numbers(start, end):
        _, first, last = mm.page_table.part(number, start, end)
        for entry in mm.page_table.leaves[number].having(PTE_ANON, first, last):
            found[heads[entry >> PTE_SHIFT]] = None
    return list(found)


def swap_out(system: System, mm: MM, start: int, end: int, how: int = 0) -> int:
    """Reclaim the folios mapped in [start, end).  Returns how many pages could be freed.  `how`: ONCE, KEPT"""
    freed = 0
    number = 0
    for head in isolate(system, mm, start, end):
        if how & KEPT and system.folios.flags.m[head] & FOLIO_LAZYFREE:
            system.folios.set_flag(head, FOLIO_DIRTY)
            system.folios.clear_flag(head, FOLIO_LAZYFREE)
        freed += swap_out_folio(system, head, not how & ONCE)
        number += 1
        if number % _FREED_AT_ONCE == 0:
            system.flush_deferred()
    system.flush_deferred()
    return freed


def place(system: System, mm: MM, start: int, end: int, first: int) -> None:
    """What is in swap in [start, end) lies there in a row, at place number `first`."""
    for addr in range(start, end, PAGE_SIZE):
        entry = mm.page_table.get(addr)
        if entry & PTE_SWAP:
            system.swap[entry >> PTE_SHIFT].place = first + ((addr - start) >> PAGE_SHIFT)


def page_out(system: System, mm: MM, start: int, end: int) -> None:
    """MADV_PAGEOUT: reclaim what only this range maps (madvise_cold_or_pageout_pte_range())."""
    left = split_cut(system, mm, start, end).left
    folios = system.folios
    for head in isolate(system, mm, start, end):
        if head not in left and system.mapcount(head) == folios.nr_pages(head) and folios.mapcount.m[head] == 1:
            swap_out_folio(system, head, False)
        else:
            system.put_folio(head)
    system.flush_deferred()


def swap_out_folio(system: System, head: int, again: bool) -> int:
    """Reclaim one folio, to which the caller has a reference that is dropped here (shrink_folio_list()).
    Returns how many pages became free.  `again`: reclaim visits it a second time, if need be."""
    folios = system.folios
    if not system.trylock_folio(head):
        system.put_folio(head)
        return 0
    nr_pages = folios.nr_pages(head)
    if nr_pages > 1 and folios.flags.m[head] & FOLIO_LAZYFREE:
        _try_to_unmap(system, head, -1)
        if system.mapcount(head) == 0 or folios.flags.m[head] & FOLIO_LAZYFREE or not again:
            freed = system.mapcount(head) == 0
            system.unlock_folio(head)
            system.put_folio(head)
            return nr_pages if freed else 0
    if nr_pages > 1:
        in_place = head not in system.slot_of and partly_mapped(system, head)
        if head not in system.slot_of and not in_place and system.profile.large_swap_in:
            system.add_to_swap(head)
        split_folio(system, head, in_place)
        system.unlock_folio(head)
        pages = [pfn for pfn in range(head, head + nr_pages) if pfn == head or folios.order.m[pfn] == 0]
        for pfn in pages[1:]:
            system.get_folio(pfn)
        return sum(swap_out_folio(system, pfn, again) for pfn in pages)
    was_mapped = system.mapcount(head) > 0
    if was_mapped:
        _unmap_folio(system, head, again)
    freed = was_mapped and system.mapcount(head) == 0
    if system.mapcount(head) == 0 and head in system.slot_of:
        system.uncache(head)  # what it held is in swap now
    system.unlock_folio(head)
    system.put_folio(head)
    return 1 if freed else 0


def _unmap_folio(system: System, pfn: int, again: bool) -> None:
    """Give a small folio room in swap, and replace what maps it by entries that refer to that."""
    if system.folios.flags.m[pfn] & FOLIO_LAZYFREE:
        _try_to_unmap(system, pfn, -1)
        if system.folios.flags.m[pfn] & FOLIO_LAZYFREE or not again:
            return
        # It was used again, and goes to swap at the next visit of reclaim.
    if pfn not in system.slot_of:
        system.add_to_swap(pfn)
    slot = system.slot_of[pfn]
    system.swap[slot].from_ksm |= pfn in system.ksm_pages
    locked = _try_to_unmap(system, pfn, slot)
    system.flush_deferred(if_dirty=True)  # nobody may write to it while it is written out
    if locked and system.swap[slot].count == 0:
        system.uncache(pfn)  # folio_free_swap(); what the walk merely did not find keeps its room in swap


class _Unmap(Visit):
    """try_to_unmap_one(): replaces the entries that map the folio by nothing if `slot` is -1 (MADV_FREE); those of a
    small one by swap entries for `slot`; until none is left.  `locked`: a locked VMA ended it."""

    def __init__(self, system: System, head: int, slot: int) -> None:
        super().__init__(system, head)
        self.slot = slot
        self.locked = False

    def entry(self, vma: VMA, addr: int, leaf: Leaf, i: int, entry: int) -> bool:
        system = self.system
        slot = self.slot
        if vma.flags & VM_LOCKED:
            self.locked = True  # the folio goes to the unevictable list
            return True
        if slot < 0:
            return self._free(vma, addr, leaf, i)
        watched = self.head in system.refs.pages
        if watched and entry & PTE_EXCLUSIVE and not try_share(system.refs, leaf, i):
            return True
        system.swap[slot].count += 1
        leaf.lock.assert_held()
        if watched:
            write_once(system.scheduler, "set_pte_at()", leaf, OF_ENTRY, i, leaf.lock)
        leaf.m[i] = slot << PTE_SHIFT | PTE_SWAP | entry & (PTE_EXCLUSIVE | PTE_SOFT_CLEAN)
        return self._gone(vma, addr, entry)

    def whole(self, vma: VMA, addr: int, leaf: Leaf) -> bool:
        if vma.flags & VM_LOCKED:
            self.locked = True
            return True
        if self.slot < 0 and self.system.profile.huge_lazyfree:
            return self._free_whole(vma, addr, leaf)
        return super().whole(vma, addr, leaf)

    def _free_whole(self, vma: VMA, addr: int, leaf: Leaf) -> bool:
        """All of it goes, or nothing (unmap_huge_pmd_locked())."""
        system = self.system
        if leaf.m[0] & PTE_DIRTY:
            system.folios.set_flag(self.head, FOLIO_DIRTY)
        if system.folios.flags.m[self.head] & FOLIO_DIRTY and not vma.flags & VM_DROPPABLE:
            system.folios.clear_flag(self.head, FOLIO_LAZYFREE)
            return True
        if system.pins[self.head] > 1:
            return True
        return huge_pmd.remove(system, vma.mm, addr, leaf) == 0

    def _free(self, vma: VMA, addr: int, leaf: Leaf, first: int) -> bool:
        """What MADV_FREE gave up goes, unless it is in use again (ttu_anon_lazyfree_folio())."""
        system = self.system
        head = self.head
        last = first + 1
        if system.profile.batches:
            last = min(LEAF_ENTRIES, first + ((vma.end - addr) >> PAGE_SHIFT))
            last = first + batch(system, leaf, first, last, PTE_WRITE | PTE_SOFT_CLEAN)
        leaf.lock.assert_held()
        entries: list[int] = leaf.m[first:last].tolist()
        dirty = any(entry & PTE_DIRTY for entry in entries)
        droppable = vma.flags & VM_DROPPABLE != 0  # goes although it was written to, and is never swap-backed
        pinned = system.pins[head] > 1
        if dirty:
            system.folios.set_flag(head, FOLIO_DIRTY)
        used = system.folios.flags.m[head] & FOLIO_DIRTY and not droppable
        if used or pinned:
            if dirty:
                leaf.v[first:last] |= PTE_DIRTY
            if used or not (droppable or system.profile.batches):
                system.folios.clear_flag(head, FOLIO_LAZYFREE)  # used again: swap-backed again
            return True
        leaf.v[first:last] = 0
        leaf.used -= last - first
        gone = False
        for i, entry in enumerate(entries):
            gone = self._gone(vma, addr + (i << PAGE_SHIFT), entry)
        return gone

    def _gone(self, vma: VMA, addr: int, entry: int) -> bool:
        """An entry is.  Was it the last that mapped the folio?"""
        system = self.system
        system.flush_later(vma.mm, entry)
        system.tell_entry_removed(vma.mm, addr, entry)
        left = system.drop_mapcount(vma.mm, entry >> PTE_SHIFT)
        if self.head in system.refs.pages:
            system.put_unmapped(self.head, left)
        return left == 0 and system.folios.total_mapcount(self.head) == 0


def _try_to_unmap(system: System, head: int, slot: int) -> bool:
    """try_to_unmap().  Returns whether a locked VMA ended it."""
    unmap = _Unmap(system, head, slot)
    rmap_walk(unmap)
    return unmap.locked
