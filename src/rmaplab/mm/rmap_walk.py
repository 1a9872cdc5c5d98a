# SPDX-License-Identifier: GPL-2.0-or-later
"""The users' side of a walk: a visit to every entry that maps a folio, under the lock of its leaf.

Models rmap_walk() with struct rmap_walk_control (include/linux/rmap.h, mm/rmap.c) and page_vma_mapped_walk()
(mm/page_vma_mapped.c).  The leading design says where to look; a `Visit` says what to do there and when it has seen
enough.

Invariants: the task that begins a walk ends it, early or not, so that the design releases what it holds; each place
visited is counted, and each at which an entry was found.

Locking: the caller has the folio locked, and a reference to it; the design takes its own locks as it walks; the leaf's
lock is held while its entries are visited, all in one go.
"""

from __future__ import annotations

from collections.abc import Iterator

from rmaplab.mm import huge_pmd
from rmaplab.mm.locking import lock_leaf
from rmaplab.mm.pagetable import LEAF_ENTRIES, LEAF_SIZE, PTE_ANON, PTE_SHIFT, Leaf
from rmaplab.mm.system import System
from rmaplab.mm.vma import PAGE_SHIFT, PAGE_SIZE, VM_LOCKED, VMA


class Visit:
    """What a user of the reverse map does with the folio `head` of so many pages (struct rmap_walk_control).

    waits: where nothing maps a folio of 2 MiB, for who is moving an entry of that size just now (PVMW_SYNC)
    """

    waits = False

    def __init__(self, system: System, head: int) -> None:
        self.system = system
        self.head = head
        self.nr_pages = system.folios.nr_pages(head)

    def skips(self, vma: VMA) -> bool:
        """Is the VMA none of its business (rmap_walk_control.invalid_vma)?"""
        return False

    def wants(self, entry: int) -> bool:
        """Does the entry map a page of the folio (check_pte())?"""
        return entry & PTE_ANON != 0 and self.head <= entry >> PTE_SHIFT < self.head + self.nr_pages

    def entry(self, vma: VMA, addr: int, leaf: Leaf, i: int, entry: int) -> bool:
        """Entry number `i` of `leaf`, which is locked, maps a page of the folio at `addr`.  True ends the walk."""
        raise NotImplementedError

    def whole(self, vma: VMA, addr: int, leaf: Leaf) -> bool:
        """`leaf`, which is locked, maps all of the folio by one entry at `addr`.  True ends the walk.  Whoever does not
        know what to do with that has it split, and gets its entries (TTU_SPLIT_HUGE_PMD)."""
        huge_pmd.split_locked(self.system, vma.mm, leaf)
        return False

    def done(self) -> bool:
        """Has the walk seen enough?  Asked after each VMA, with nothing of the machine's locked."""
        return False


def rmap_walk(visit: Visit) -> int:
    """Visit every entry that maps the folio, until the visit has seen enough.  Returns how many were found."""
    system = visit.system
    system.walks.count += 1
    system.assert_folio_locked(visit.head)  # rmap_walk_anon()
    leader = system.leader
    walk = leader.walk_locking(visit.head)
    found = 0
    for vma, first in walk:
        locked = leader.locked
        leader.locked = None
        system.walk_places.count += 1
        if visit.skips(vma):
            if locked is not None:
                locked.lock.unlock()
            continue
        hits = 0
        over = False
        addr = first
        end = min(vma.end, first + (visit.nr_pages << PAGE_SHIFT))
        page_table = vma.mm.page_table
        while addr < end and not over:
            stop = min(end, (addr | (LEAF_SIZE - 1)) + 1)
            leaf = lock_leaf(page_table, addr) if locked is None else locked
            locked = None
            if leaf is None:
                if visit.waits and visit.nr_pages == LEAF_ENTRIES:  # sync_with_folio_pmd_zap()
                    page_table.pmd_lock.lock()
                    page_table.pmd_lock.unlock()
                addr = stop
                continue
            before = hits
            while addr < stop and not over:
                i = addr >> PAGE_SHIFT & (LEAF_ENTRIES - 1)
                entry: int = leaf.m[i]
                if visit.wants(entry):
                    if leaf.huge:
                        over = visit.whole(vma, addr, leaf)
                    if leaf.huge:  # not split
                        hits += 1
                        break
                    if not over:
                        hits += 1
                        over = visit.entry(vma, addr, leaf, i, entry)
                addr += PAGE_SIZE
            if hits == before:
                leaf.lock.looked()
            leaf.lock.unlock()
            addr = stop
        system.walk_hits.count += hits > 0
        found += hits
        if over or visit.done():
            end_walk(walk)
            break
    return found


def places(system: System, head: int) -> list[tuple[VMA, int]]:
    """Where the leader would look for the pages of the folio: VMAs and addresses, in its order.  For who looks on its
    own, and is not counted as a user."""
    system.walks.count += 1
    size = system.folios.nr_pages(head) << PAGE_SHIFT
    found: list[tuple[VMA, int]] = []
    for vma, first in system.leader.walk(head):
        found += [(vma, addr) for addr in range(first, min(vma.end, first + size), PAGE_SIZE)]
    return found


def unevictable(system: System, head: int) -> bool:
    """Does a locked VMA map a page of the folio (folio_test_mlocked())?"""
    if not system.mlocked:
        return False
    visit = Visit(system, head)
    return any(
        vma.flags & VM_LOCKED != 0 and visit.wants(vma.mm.page_table.get(addr)) for vma, addr in places(system, head)
    )


def end_walk(walk: Iterator[tuple[VMA, int]]) -> None:
    """Leave the walk before its end: the design gives back what it holds.  Compiled generators that are merely dropped
    do not."""
    close = getattr(walk, "close", None)
    if close is not None:
        close()
