# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables at work: faults, copying at fork, zapping.

Models mm/memory.c: handle_mm_fault() and its callees, copy_page_range(), unmap_page_range().  Whole leaves are
handled by NumPy, with the same result as entry by entry, in ascending order.

The exclusivity rule (mm/memory.c do_wp_page(), mm/rmap.c): a page is exclusive from its first mapping until fork
shares it or KSM takes it.  A write to an exclusive page reuses it.  A write to another page reuses it only if
it is a small folio, not KSM's, and this entry is the last that refers to it, in swap included; the folio
then moves to this VMA.  A page of a large folio that one address space alone maps is reused as well (`mm_ids`), and the
folio stays where it is.  Everything else copies.

Locking: page-table lock of the leaf around each change of entries; the fault path holds the VMA's lock.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from rmaplab.mm import huge_pmd
from rmaplab.mm.abi import EFAULT
from rmaplab.mm.errors import InvariantError
from rmaplab.mm.folio import (
    FOLIO_LAZYFREE,
    FOLIO_WRITTEN,
    MAX_ORDER,
    Int64s,
)
from rmaplab.mm.locking import lock_leaf, lock_new_leaf
from rmaplab.mm.pagetable import (
    LEAF_ENTRIES,
    LEAF_SHIFT,
    LEAF_SIZE,
    PTE_ANON,
    PTE_DIRTY,
    PTE_EXCLUSIVE,
    PTE_FILE,
    PTE_GUARD,
    PTE_KSM,
    PTE_MIGRATION,
    PTE_PRESENT,
    PTE_SHIFT,
    PTE_SOFT_CLEAN,
    PTE_SWAP,
    PTE_WRITE,
    PTE_YOUNG,
    PTE_ZERO,
    Leaf,
    PageTable,
)
from rmaplab.mm.swap import AGAIN, DONE, swap_in
from rmaplab.mm.system import System
from rmaplab.mm.vma import (
    MM,
    PAGE_SHIFT,
    PAGE_SIZE,
    VM_DROPPABLE,
    VM_NOHUGEPAGE,
    VM_SHARED,
    VM_WRITE,
    VMA,
)

_NEW: Final = PTE_ANON | PTE_WRITE | PTE_EXCLUSIVE | PTE_DIRTY | PTE_YOUNG
_NEW_READ_ONLY: Final = PTE_ANON | PTE_EXCLUSIVE | PTE_DIRTY | PTE_YOUNG
_SHARED: Final = ~(PTE_WRITE | PTE_EXCLUSIVE | PTE_YOUNG)  # what fork leaves of an entry, on both sides
_SHARED_LEAF: Final = np.array(_SHARED, dtype=np.int64)  # the same for NumPy, which converts an int each time
_LEAVES: Final = 64  # whose entries are counted in one go: NumPy takes longer to be called than to do 512
# What a run of entries needs
_EACH: Final = 0  # each is a case of its own
_MISSING: Final = 1  # a page of its own; where no anonymous page is needed, the zero page or the page cache
_THERE: Final = 2  # nothing: each allows the access

_BATCH: Final = 4  # shorter runs are quicker one by one
_FEW: Final = 32  # up to so many entries it is quicker to look at each than to have NumPy look at all
# Constants for NumPy, which takes longer to convert an int than to do a short run.
_SHIFT: Final = np.array(PTE_SHIFT, dtype=np.int64)
_PAGE_SHIFT: Final = np.array(PAGE_SHIFT, dtype=np.int64)
_NEW_RUN: Final = np.array(_NEW, dtype=np.int64)
_NEW_READ_ONLY_RUN: Final = np.array(_NEW_READ_ONLY, dtype=np.int64)
_WRITTEN: Final = np.array(PTE_WRITE | PTE_DIRTY | PTE_YOUNG, dtype=np.int64)
_READ: Final = np.array(PTE_YOUNG, dtype=np.int64)


def chunk(system: System) -> int:
    """How many entries go in one step, 0 for any number (Scheduler.chunk()).  A design that watches entries takes
    locks for each, and others may go on meanwhile."""
    if system.scheduler is None:
        return 0
    return 1 if system.entry_watchers else system.scheduler.chunk()


# Faults


def fault_vma(system: System, vma: VMA, addr: int, nr_pages: int, write: bool, may_retry: bool = False) -> int:
    """Touch `nr_pages` pages from `addr`, all in `vma`, whose flags allow it.  The caller keeps the VMA as it
    is: by its lock, or by mmap_lock.  Returns 0, or -EFAULT at a guard region; with `may_retry`,
    the number of a folio that somebody else has locked: whoever waits for that gives his own lock back first
    (VM_FAULT_RETRY), and then the reference to the folio that comes with it."""
    page_table = vma.mm.page_table
    end = addr + (nr_pages << PAGE_SHIFT)
    step = chunk(system)
    while addr < end:
        stop = min(end, (addr | (LEAF_SIZE - 1)) + 1)
        if step or system.guards or system.huge or stop - addr < _BATCH << PAGE_SHIFT:
            while addr < stop:
                busy = _fault_one(system, vma, addr, write, may_retry)
                if busy:
                    return busy
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
    seen = entries.tobytes() if system.scheduler is not None else b""  # as they are now: others may change them
    private = not vma.flags & VM_SHARED
    begin = 0
    for end, kind in _runs(system, entries, write, private):
        at = addr + (begin << PAGE_SHIFT)
        count = end - begin
        # In virtual time each access takes its turn at the lock.
        if kind == _EACH or count < _BATCH or (kind == _THERE and system.scheduler is not None):
            _fault_run(system, vma, at, count, write)
        elif kind == _MISSING and write and private:
            _new_pages(system, vma, page_table, at, first + begin, count, seen[8 * begin : 8 * end])
        else:
            there = kind == _THERE
            _no_page_run(system, vma, page_table, at, first + begin, count, seen[8 * begin : 8 * end], write, there)
        begin = end


def _runs(system: System, entries: Int64s, write: bool, private: bool) -> list[tuple[int, int]]:
    """Where runs of `entries` end that need the same, and what that is."""
    if write and private and system.large_folios:
        return [(len(entries), _EACH)]
    mapcount = system.folios.mapcount
    runs: list[tuple[int, int]] = []
    if len(entries) <= _FEW:
        last = _EACH
        end = 0
        for entry in entries.tolist():
            value: int = entry
            kind = _EACH
            if value == 0:
                kind = _MISSING
            elif value & PTE_PRESENT:
                if value & PTE_WRITE or not (write and private):
                    kind = _THERE
                elif not value & PTE_ANON:
                    kind = _MISSING
                elif not value & (PTE_EXCLUSIVE | PTE_KSM) and mapcount.m[value >> PTE_SHIFT] > 1:
                    kind = _MISSING
            if kind != last and end:
                runs.append((end, last))
            last = kind
            end += 1
        runs.append((end, last))
        return runs
    kinds = np.where(entries & PTE_PRESENT != 0, _THERE, _EACH)
    kinds[entries == 0] = _MISSING
    if write and private:
        # What needs a page of its own: nothing there, the zero page, the page cache, a shared page.
        kinds[(kinds == _THERE) & (entries & PTE_WRITE == 0)] = _MISSING
        anon = entries & (PTE_ANON | PTE_WRITE) == PTE_ANON
        if anon.any():
            pages = entries[anon]
            shared = (pages & (PTE_EXCLUSIVE | PTE_KSM) == 0) & (mapcount.v[pages >> PTE_SHIFT] > 1)
            kinds[anon] = np.where(shared, _MISSING, _EACH)
    for end in [*(np.flatnonzero(kinds[1:] != kinds[:-1]) + 1).tolist(), len(entries)]:
        runs.append((end, int(kinds[end - 1])))
    return runs


def _new_pages(
    system: System, vma: VMA, page_table: PageTable, addr: int, first: int, count: int, seen: bytes
) -> None:
    """Write faults that all need a new page each (do_anonymous_page(), do_cow_fault(), wp_page_copy()), where the
    entries `seen` are."""
    system.prepare(vma)
    leaf = _lock_run(system, page_table, addr, first, count, seen)
    if leaf is None:
        _fault_run(system, vma, addr, count, True)
        return
    system.faults.count += count
    entries = leaf.v[first : first + count]
    old = entries.copy()
    nr_old = int(np.count_nonzero(old))
    # What a file's page is copied from need not be mapped (do_cow_fault()).
    copied = 0
    if vma.file is not None:
        copied = count
    elif nr_old:
        copied = int(np.count_nonzero(old & PTE_ANON))
    system.pages_copied.count += copied
    system.pages_zeroed.count += count - copied
    leaf.lock.assert_held()
    entries[:] = _new_entries(system, vma, np.arange(addr, addr + (count << PAGE_SHIFT), PAGE_SIZE))
    leaf.used += count - nr_old
    for watcher in system.entry_watchers:
        watcher.entries_removed(vma.mm, addr, old)
        watcher.entries_added(vma.mm, addr, entries)
    leaf.lock.unlock()
    system.flush_tlb(vma.mm, nr_old)
    if copied and nr_old:
        shared = old[(old & PTE_ANON) != 0]
        if len(shared):
            system.release_pages(vma.mm, shared >> PTE_SHIFT, False)


def _new_entries(system: System, vma: VMA, addrs: Int64s) -> Int64s:
    """Entries for pages of `vma` at `addrs`, each of which gets a new folio, in this order."""
    folios = system.folios
    pfns = folios.alloc_run((addrs >> _PAGE_SHIFT) + (vma.anon_pgoff - (vma.start >> PAGE_SHIFT)))
    if vma.flags & VM_DROPPABLE:
        folios.flags.v[pfns] |= FOLIO_LAZYFREE
    for design in system.designs:
        design.folios_mapped(vma, addrs, pfns)
    folios.mapcount.v[pfns] = 1
    entries: Int64s = (pfns << _SHIFT) | (_NEW_RUN if vma.flags & VM_WRITE else _NEW_READ_ONLY_RUN)
    return entries


def new_pages(system: System, vma: VMA, addrs: list[int], least: int) -> int:
    """Write faults at `addrs`, one after the other: those, from the first on, that lie in `vma`, which is prepared, and
    find nothing mapped, if they are `least` or more; else none.  Returns how many.  Nobody else runs, or watches
    entries."""
    page_table = vma.mm.page_table
    found: list[Leaf] = []
    for addr in addrs:
        if not vma.start <= addr < vma.end:
            break
        leaf = page_table.leaf(addr)
        i = (addr >> PAGE_SHIFT) & (LEAF_ENTRIES - 1)
        if leaf.m[i]:
            break
        leaf.m[i] = PTE_ANON  # taken: it may come again
        found.append(leaf)
    count = len(found)
    if count < least:
        for leaf, addr in zip(found, addrs, strict=False):
            leaf.m[(addr >> PAGE_SHIFT) & (LEAF_ENTRIES - 1)] = 0
        return 0
    entries: list[int] = _new_entries(system, vma, np.array(addrs[:count], dtype=np.int64)).tolist()
    for leaf, addr, entry in zip(found, addrs, entries, strict=False):
        leaf.m[(addr >> PAGE_SHIFT) & (LEAF_ENTRIES - 1)] = entry
        leaf.used += 1
    system.faults.count += count
    system.ptl_class.writes += count
    (system.pages_zeroed if vma.file is None else system.pages_copied).count += count
    return count


def _lock_run(
    system: System, page_table: PageTable, addr: int, first: int, count: int, seen: bytes
) -> Leaf | None:
    """The leaf for `addr`, locked once for each of `count` entries from number `first` on; None, and not locked, if
    they are no longer as they were `seen`."""
    leaf = lock_new_leaf(page_table, addr)
    if system.scheduler is not None and leaf.v[first : first + count].tobytes() != seen:
        leaf.lock.unlock()
        return None
    leaf.lock.lock_class.writes += count - 1
    return leaf


def _no_page_run(
    system: System,
    vma: VMA,
    page_table: PageTable,
    addr: int,
    first: int,
    count: int,
    seen: bytes,
    write: bool,
    there: bool,
) -> None:
    """Accesses that the entries allow, if they are `there`; else faults that map the zero page or the page cache."""
    leaf = _lock_run(system, page_table, addr, first, count, seen)
    if leaf is None:
        _fault_run(system, vma, addr, count, write)
        return
    system.faults.count += count
    leaf.lock.assert_held()
    if there:
        leaf.v[first : first + count] |= _WRITTEN if write else _READ
    else:
        leaf.v[first : first + count] = _no_page_entry(vma, write)
        leaf.used += count
    leaf.lock.unlock()


def _fault_run(system: System, vma: VMA, addr: int, count: int, write: bool) -> None:
    for i in range(count):
        _fault_one(system, vma, addr + (i << PAGE_SHIFT), write, False)


def _no_page_entry(vma: VMA, write: bool) -> int:
    """What a fault maps where nothing is and no anonymous page is needed."""
    if vma.file is None:
        return PTE_ZERO | PTE_YOUNG
    if write:
        return PTE_FILE | PTE_WRITE | PTE_DIRTY | PTE_YOUNG
    return PTE_FILE | PTE_YOUNG




def _fault_one(system: System, vma: VMA, addr: int, write: bool, may_retry: bool) -> int:
    """One access: faults until the entry allows it (handle_pte_fault()).  Returns 0, or what fault_vma() does."""
    system.faults.count += 1
    while True:
        came = _fault_once(system, vma, addr, write, may_retry)
        if came != AGAIN:
            return 0 if came == DONE else came


def _fault_once(system: System, vma: VMA, addr: int, write: bool, may_retry: bool) -> int:
    """One fault: DONE, AGAIN, a negative errno, or the number of a locked folio."""
    page_table = vma.mm.page_table
    if system.huge and huge_pmd.fault(system, vma, addr, write):
        return DONE
    leaf = lock_new_leaf(page_table, addr)
    i = (addr >> PAGE_SHIFT) & (LEAF_ENTRIES - 1)
    entry: int = leaf.m[i]
    if leaf.huge and not entry & PTE_MIGRATION:  # since we looked (pte_offset_map_rw_nolock() finds no table)
        leaf.lock.unlock()
        return AGAIN
    if entry & PTE_SWAP:
        leaf.lock.unlock()
        return swap_in(system, vma, addr, i, entry, write, may_retry)
    if entry & PTE_GUARD:  # handle_pte_marker()
        leaf.lock.unlock()
        return -EFAULT
    if entry & PTE_MIGRATION:
        leaf.lock.unlock()
        _wait_for_migration(system, page_table, addr, entry)
        return AGAIN
    if write and not vma.flags & VM_SHARED and not entry & PTE_WRITE:
        if entry == 0:
            return DONE if _new_page(system, vma, addr, leaf, i, 0) else AGAIN
        return DONE if _write_protected(system, vma, addr, leaf, i, entry) else AGAIN
    if entry == 0:
        leaf.lock.assert_held()
        leaf.m[i] = _no_page_entry(vma, write)
        leaf.used += 1
    elif write:
        leaf.lock.assert_held()
        leaf.m[i] = entry | PTE_WRITE | PTE_DIRTY | PTE_YOUNG
    else:
        leaf.lock.assert_held()
        leaf.m[i] = entry | PTE_YOUNG
    leaf.lock.unlock()
    return DONE


class _EntryChanged:
    """What waits for a migration entry to be replaced."""

    def __init__(self, page_table: PageTable, addr: int, entry: int) -> None:
        self.page_table: Final = page_table
        self.addr: Final = addr
        self.entry: Final = entry

    def ready(self) -> bool:
        return self.page_table.get(self.addr) != self.entry


def _wait_for_migration(system: System, page_table: PageTable, addr: int, entry: int) -> None:
    """migration_entry_wait()"""
    if system.scheduler is None:
        raise InvariantError(
            f"address {addr:#x} waits for the migration of page {entry >> PTE_SHIFT}, which is over: a migration entry"
            " was not found and restored"
        )
    leaf = page_table.leaf(addr)
    system.scheduler.wait("the migration entry to go", leaf.lock, _EntryChanged(page_table, addr, entry).ready)


def _write_protected(system: System, vma: VMA, addr: int, leaf: Leaf, i: int, entry: int) -> bool:
    """A write to a present page of a private mapping that is not mapped writable (do_wp_page()).  `leaf` is
    locked, and unlocked on return."""
    if entry & PTE_ANON and (entry & PTE_EXCLUSIVE or _can_reuse(system, vma, entry >> PTE_SHIFT, entry)):
        system.pages_reused.count += 1
        flags = PTE_EXCLUSIVE | PTE_DIRTY | PTE_YOUNG
        if vma.flags & VM_WRITE:
            flags |= PTE_WRITE
        leaf.lock.assert_held()
        leaf.m[i] = entry & ~PTE_SOFT_CLEAN | flags
        leaf.lock.unlock()
        return True
    return _new_page(system, vma, addr, leaf, i, entry)


def _can_reuse(system: System, vma: VMA, pfn: int, entry: int) -> bool:
    """wp_can_reuse_anon_folio(); takes the folio over if so."""
    folios = system.folios
    if folios.order.m[pfn] > 0:
        return system.profile.mm_ids and _can_reuse_large(system, pfn)
    if entry & PTE_KSM or system.mapcount(pfn) != 1:
        return False
    if pfn in system.pins or not system.trylock_folio(pfn):
        return False
    alone = system.free_swap(pfn) and pfn not in system.pins and folios.mapcount.m[pfn] == 1
    if alone:
        system.assert_folio_locked(pfn)  # folio_move_anon_rmap()
        for design in system.designs:
            design.folio_reused(vma, pfn, 1)
    system.unlock_folio(pfn)
    return alone


def _can_reuse_large(system: System, pfn: int) -> bool:
    """__wp_can_reuse_large_anon_folio(): one page of a folio that this address space alone maps, and nobody else holds,
    becomes exclusive; of a single page that is left, a copy lets the folio go."""
    head: int = system.folios.head.m[pfn]
    if system.mapcount(head) <= 1 or system.mm_ids[head].shared:
        return False
    if head in system.slot_of:
        if not system.trylock_folio(head):
            return False
        system.free_swap(head)
        system.unlock_folio(head)
    if head in system.slot_of or head in system.pins:
        return False
    system.folios.exclusive.m[pfn] = True
    return True


def _new_page(system: System, vma: VMA, addr: int, leaf: Leaf, i: int, old: int) -> bool:
    """Give `addr` an anonymous page of its own, in place of `old`.  `leaf` is locked, and unlocked on
    return."""
    if not vma.prepared:
        leaf.lock.unlock()
        system.prepare(vma)
        return False
    folios = system.folios
    if old == 0 and system.large_folios and _new_large(system, vma, addr, leaf, i):
        leaf.lock.unlock()
        return True
    if old & PTE_ANON or vma.file is not None:  # do_cow_fault() copies what need not be mapped
        system.pages_copied.count += 1
    else:
        system.pages_zeroed.count += 1
    pfn = system.new_folio(vma.anon_pgoff + ((addr - vma.start) >> PAGE_SHIFT))
    if vma.flags & VM_DROPPABLE:  # never swap-backed (folio_add_new_anon_rmap())
        folios.flags.m[pfn] |= FOLIO_LAZYFREE
    if old & PTE_ANON:
        folios.flags.m[pfn] |= folios.flags.m[old >> PTE_SHIFT] & FOLIO_WRITTEN
    for design in system.designs:
        design.folio_mapped(vma, addr, pfn, 1)
    system.mapped_first(pfn)
    system.refs.add_to_lru(pfn)
    leaf.lock.assert_held()
    new = pfn << PTE_SHIFT | (_NEW if vma.flags & VM_WRITE else _NEW_READ_ONLY)
    leaf.m[i] = new
    left = 0
    if old == 0:
        leaf.used += 1
    else:
        system.flush_tlb(vma.mm)  # ptep_clear_flush() in wp_page_copy()
        if old & PTE_ANON:
            system.tell_entry_removed(vma.mm, addr, old)
            left = system.drop_mapcount(vma.mm, old >> PTE_SHIFT)
    system.tell_entry_added(vma.mm, addr, new)
    leaf.lock.unlock()
    if old & PTE_ANON:
        system.put_unmapped(old >> PTE_SHIFT, left)
    return True


def _new_large(system: System, vma: VMA, addr: int, leaf: Leaf, i: int) -> bool:
    """Map the largest folio that is aligned, lies in the VMA and finds nothing mapped (alloc_anon_folio());
    its order is 2 at least (THP_ORDERS_ALL_ANON).  `leaf` is locked."""
    if vma.file is not None or vma.flags & VM_NOHUGEPAGE or not system.profile.mthp:
        return False
    order = min(system.large_folios, MAX_ORDER - 1)
    while order > 1:
        nr_pages = 1 << order
        start = addr & ~((nr_pages << PAGE_SHIFT) - 1)
        first = i & ~(nr_pages - 1)
        if start >= vma.start and start + (nr_pages << PAGE_SHIFT) <= vma.end:
            if not leaf.v[first : first + nr_pages].any():
                break
        order -= 1
    if order < 2:
        return False
    huge_pmd.map_new(system, vma, start, order, leaf, first, whole=False)
    return True


def note_written(system: System, mm: MM, addr: int, nr_pages: int) -> None:
    """The program wrote to `nr_pages` pages from `addr`: what it never wrote to is zeroes."""
    folios = system.folios
    for i in range(nr_pages):
        entry = mm.page_table.get(addr + (i << PAGE_SHIFT))
        if entry & PTE_ANON:
            folios.flags.m[entry >> PTE_SHIFT] |= FOLIO_WRITTEN

# Zapping


def zap_range(system: System, mm: MM, start: int, end: int, reclaims: bool = False) -> None:
    """Remove all entries of [start, end), which stays mapped, but guard markers (zap_page_range_single()).  `reclaims`:
    leaves that are empty then go as well, where the kernel does that and where it shows (zap_pte_table_if_empty())."""
    if zap(system, mm, start, end, markers=False):
        system.flush_tlb(mm)
    if reclaims and system.huge and system.profile.reclaims_tables:
        for number in mm.page_table.numbers(-(-start // LEAF_SIZE) * LEAF_SIZE, end & -LEAF_SIZE):
            leaf = lock_leaf(mm.page_table, number << LEAF_SHIFT)
            if leaf is not None:
                empty = leaf.used == 0
                if empty:
                    mm.page_table.remove(number)
                leaf.lock.unlock()
                if empty:
                    system.free_leaf(leaf, late=True)


def unmap_region(system: System, mm: MM, vmas: list[VMA], start: int, end: int) -> None:
    """Remove all entries of [start, end), which was `vmas`, let the designs forget those, and only then free the page
    tables that no other VMA needs (unmap_region(), free_pgtables()): a walk that could visit a VMA has left by then,
    unless it relies on RCU alone."""
    zapped = zap(system, mm, start, end)
    for vma in vmas:
        system.tell_removed(vma)
    system.free_page_tables(mm, start, end, zapped)


def zap(system: System, mm: MM, start: int, end: int, markers: bool = True) -> bool:
    """Remove all entries of [start, end), guard markers only if so said (unmap_page_range(), zap_drop_markers()).  Were
    there any?  TLBs are the caller's."""
    leaves = mm.page_table.leaves
    removed: list[Int64s] = []
    zapped = False
    step = chunk(system) or (system.guards and not markers)
    together = _LEAVES if system.scheduler is None else 1  # nobody else looks at mapcounts meanwhile
    for number in mm.page_table.numbers(start, end):
        base, first, last = mm.page_table.part(number, start, end)
        leaf = leaves[number]
        if leaf.huge:
            zapped = True
            if last - first == LEAF_ENTRIES and huge_pmd.zap(system, mm, number, leaf):
                continue
            huge_pmd.split_at(system, mm, base)
        if step or last - first <= _BATCH:
            for i in leaf.present(first, last):
                zap_at(system, mm, base + (i << PAGE_SHIFT), markers)
                zapped = True
        else:
            there = _zap_leaf(system, mm, base, leaf, first, last)
            zapped = zapped or len(there) > 0
            removed.append(there)
            if len(removed) == together:
                _release_entries(system, mm, removed)
                removed = []
    if removed:
        _release_entries(system, mm, removed)
    return zapped


def zap_at(system: System, mm: MM, addr: int, markers: bool = True) -> None:
    """Remove the entry at `addr`, if there is one; a guard marker only if so said."""
    leaf = lock_leaf(mm.page_table, addr)
    if leaf is None:
        return
    i = (addr >> PAGE_SHIFT) & (LEAF_ENTRIES - 1)
    entry: int = leaf.m[i]
    left = -1
    if entry and (markers or not entry & PTE_GUARD):
        system.entries_zapped.count += 1
        leaf.lock.assert_held()
        leaf.m[i] = 0
        leaf.used -= 1
        system.tell_entry_removed(mm, addr, entry)
        if entry & PTE_ANON:
            left = system.drop_mapcount(mm, entry >> PTE_SHIFT)
    leaf.lock.unlock()
    if left >= 0:
        system.put_unmapped(entry >> PTE_SHIFT, left)
    elif entry & PTE_SWAP:
        system.put_slot(entry >> PTE_SHIFT)


def _zap_leaf(system: System, mm: MM, base: int, leaf: Leaf, first: int, last: int) -> Int64s:
    """Remove all entries of a part of the leaf at address `base`, and return those that were not none."""
    leaf.lock.lock()
    entries = leaf.v[first:last]
    there = entries.copy() if leaf.used == LEAF_ENTRIES else entries[entries != 0]
    gone = entries.copy() if system.entry_watchers else entries
    leaf.lock.assert_held()
    entries[:] = 0
    leaf.used -= len(there)
    for watcher in system.entry_watchers:
        watcher.entries_removed(mm, base + (first << PAGE_SHIFT), gone)
    leaf.lock.unlock()
    return there


def _release_entries(system: System, mm: MM, removed: list[Int64s]) -> None:
    """What entries that are gone mapped, or kept in swap, has one user less each."""
    entries = removed[0] if len(removed) == 1 else np.concatenate(removed)
    system.entries_zapped.count += len(entries)
    anon = entries[(entries & PTE_ANON) != 0]
    if len(anon):
        ksm = bool(system.ksm_pages) and bool((anon & PTE_KSM).any())
        system.release_pages(mm, anon >> PTE_SHIFT, ksm)
    if system.swap and len(anon) != len(entries):
        for entry in entries[(entries & PTE_SWAP) != 0]:
            system.put_slot(int(entry) >> PTE_SHIFT)


# Fork


def copy_vmas(system: System, source: MM, target: MM, run: list[VMA]) -> None:
    """Copy the entries of the VMAs of `source`, between which no other VMA lies, as one range: the same as VMA by VMA,
    for which Linux takes the lock of a leaf that two of them share twice."""
    leaves = source.page_table.leaves
    last = -1  # number of the leaf in which the one before ends
    for vma in run:
        first = vma.start >> LEAF_SHIFT
        if first == last and first in leaves:
            system.ptl_class.writes += 1
        last = (vma.end - 1) >> LEAF_SHIFT
    copy_page_range(system, source, target, run[0].start, run[-1].end)


def copy_page_range(system: System, source: MM, target: MM, start: int, end: int) -> None:
    """Copy the entries of [start, end), all of private mappings, write-protecting both sides
    (copy_page_range())."""
    target_table = target.page_table
    copied: list[Int64s] = []
    step = chunk(system)
    together = _LEAVES if system.scheduler is None else 1  # nobody else looks at mapcounts meanwhile
    for number in source.page_table.numbers(start, end):
        leaf = source.page_table.leaves[number]
        base, first, last = source.page_table.part(number, start, end)
        if leaf.huge:
            huge_pmd.copy(system, target, number, leaf, _SHARED)
            continue
        if step:
            target_table.leaf(base)  # copy_pte_range() makes it before it looks for entries
            for i in leaf.present(first, last):
                _copy_entry(system, source, target, base + (i << PAGE_SHIFT))
            continue
        leaf.lock.lock()
        if last - first == LEAF_ENTRIES:
            np.bitwise_and(leaf.v, _SHARED_LEAF, leaf.v)
            copy = leaf.v.copy()
            target_table.leaves[number] = target_table.new_leaf(copy, leaf.used)
        else:
            if last - first <= _FEW and not system.entry_watchers:
                few = _copy_few(leaf, target_table, base, first, last)
                leaf.lock.unlock()
                _share_few(system, target, few)
                continue
            copy = leaf.v[first:last]
            np.bitwise_and(copy, _SHARED_LEAF, copy)
            new = target_table.leaf(base)
            new.v[first:last] = copy
            new.used += int(np.count_nonzero(copy))
        for watcher in system.entry_watchers:
            watcher.entries_added(target, max(start, base), copy)
        leaf.lock.unlock()
        copied.append(copy)
        if len(copied) == together:
            _share_entries(system, target, copied)
            copied = []
    if copied:
        _share_entries(system, target, copied)


def copy_shared(source: MM, target: MM, start: int, end: int) -> None:
    """Copy the entries of [start, end), a shared mapping: they stay as they are, and none has an anonymous page."""
    for number in source.page_table.numbers(start, end):
        base, first, last = source.page_table.part(number, start, end)
        leaf = source.page_table.leaves[number]
        for i in leaf.present(first, last):
            target.page_table.set(base + (i << PAGE_SHIFT), leaf.m[i])


def _copy_few(leaf: Leaf, target_table: PageTable, base: int, first: int, last: int) -> list[int]:
    """Copy a few entries of `leaf`, which is locked, to the leaf of `target_table` at `base`.  Returns what is there
    by now."""
    m = leaf.m
    found: list[int] = []
    new = target_table.leaf(base)
    for i in range(first, last):
        entry: int = m[i]
        if entry:
            entry &= _SHARED
            m[i] = entry
            new.m[i] = entry
            new.used += 1
            found.append(entry)
    return found


def _share_few(system: System, target: MM, entries: list[int]) -> None:
    """_share_entries() of a few, none of which is none."""
    system.entries_copied.count += len(entries)
    mapcount = system.folios.mapcount.m
    exclusive = system.folios.exclusive.m if system.nr_large else None
    for entry in entries:
        if entry & PTE_ANON:
            if exclusive is None:
                mapcount[entry >> PTE_SHIFT] += 1
            else:
                system.add_mapcount(target, entry >> PTE_SHIFT)
                exclusive[entry >> PTE_SHIFT] = False
        elif entry & PTE_SWAP:
            system.swap[entry >> PTE_SHIFT].count += 1


def _share_entries(system: System, target: MM, copied: list[Int64s]) -> None:
    """What entries that were copied map, or keep in swap, has one user more each."""
    entries = copied[0] if len(copied) == 1 else np.concatenate(copied)
    entries = entries[entries != 0]
    system.entries_copied.count += len(entries)
    anon = entries[(entries & PTE_ANON) != 0] >> PTE_SHIFT
    if len(anon):
        system.add_mapcounts(target, anon, bool(system.ksm_pages))
        if system.nr_large:
            system.folios.exclusive.v[anon] = False
    if system.swap and len(anon) != len(entries):
        for entry in entries[(entries & PTE_SWAP) != 0]:
            system.swap[int(entry) >> PTE_SHIFT].count += 1


def _copy_entry(system: System, source: MM, target: MM, addr: int) -> None:
    """Copy the entry at `addr` as it is by now: present, swapped out or migrating (copy_pte_range())."""
    new = lock_new_leaf(target.page_table, addr)
    leaf = lock_leaf(source.page_table, addr)
    if leaf is not None:
        i = (addr >> PAGE_SHIFT) & (LEAF_ENTRIES - 1)
        entry: int = leaf.m[i]
        if entry:
            entry &= _SHARED
            system.entries_copied.count += 1
            if entry & PTE_ANON:
                system.add_mapcount(target, entry >> PTE_SHIFT)
                system.folios.exclusive.m[entry >> PTE_SHIFT] = False
            elif entry & PTE_SWAP:
                system.swap[entry >> PTE_SHIFT].count += 1
            leaf.lock.assert_held()
            leaf.m[i] = entry
            new.lock.assert_held()
            new.m[i] = entry
            new.used += 1
            system.tell_entry_added(target, addr, entry)
        leaf.lock.unlock()
    new.lock.unlock()


def access_error(vma: VMA, write: bool) -> int:
    """-EFAULT if `vma` does not allow the access (access_error() in arch/x86/mm/fault.c)."""
    if write:
        return 0 if vma.flags & VM_WRITE else -EFAULT
    return 0 if vma.flags & 0x7 else -EFAULT
