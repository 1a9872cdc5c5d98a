# SPDX-License-Identifier: GPL-2.0-or-later
"""Users of the reverse map, part two: migration.

Models mm/migrate.c (migrate_folio_unmap(), migrate_folio_move(), remove_migration_ptes()) and mm/rmap.c
try_to_migrate().  Every entry that maps the folio becomes a migration entry; the folio is copied; every
migration entry is found again and made to map the copy.  If the first walk leaves the folio mapped, the
migration is given up and the entries are restored.  There is no second chance for the second walk.
"""

from __future__ import annotations

from rmaplab.mm.errors import InvariantError
from rmaplab.mm.folio import FOLIO_DIRTY, FOLIO_PARTLY
from rmaplab.mm.huge_memory import partly_mapped, split_folio
from rmaplab.mm.locking import lock_leaf
from rmaplab.mm.pagetable import (
    LEAF_ENTRIES,
    PTE_ANON,
    PTE_DIRTY,
    PTE_EXCLUSIVE,
    PTE_FLAGS,
    PTE_MIGRATION,
    PTE_SHIFT,
)
from rmaplab.mm.rmap_walk import addresses, maps
from rmaplab.mm.system import System
from rmaplab.mm.vma import MM, PAGE_SHIFT
from rmaplab.mm.vmscan import isolate


def migrate(system: System, mm: MM, start: int, end: int) -> int:
    """Move the folios mapped in [start, end) elsewhere.  Returns how many pages moved."""
    moved = 0
    for head in isolate(system, mm, start, end):
        if partly_mapped(system, head):  # is split first (migrate_pages_batch())
            nr_pages = system.folios.nr_pages(head)
            split_folio(system, head)
            for pfn in range(head + 1, head + nr_pages):
                if system.folios.order.m[pfn] == 0:
                    system.get_folio(pfn)
                    moved += migrate_folio(system, pfn)
        moved += migrate_folio(system, head)
    return moved


def migrate_folio(system: System, head: int) -> int:
    """Move one folio (unmap_and_move()); the caller's reference is dropped."""
    moved = 0
    if system.trylock_folio(head):
        if head in system.ksm_pages or head in system.slot_of:
            # The stable node of KSM and the swap cache would have to follow; both are left to a later pass.
            moved = 0
        elif system.mapcount(head):  # else there is nothing to be found, and nothing to hold on to
            system.leader.hold(head)
            made = unmap(system, head)
            moved = move(system, head, made)
            system.leader.unhold(head)
        system.unlock_folio(head)
    system.put_folio(head)
    return moved


def unmap(system: System, head: int) -> int:
    """First half: replace what maps the folio, which is locked, by migration entries
    (migrate_folio_unmap(), try_to_migrate()).  Returns how many there were."""
    made = 0
    walk = system.begin_walk(head)
    for vma, first in walk:
        system.walk_places.count += 1
        hits = 0
        for addr in addresses(system, vma, first, head):
            leaf = lock_leaf(vma.mm.page_table, addr)
            if leaf is None:
                continue
            i = addr >> PAGE_SHIFT & (LEAF_ENTRIES - 1)
            entry: int = leaf.m[i]
            if maps(system, entry, head):
                leaf.m[i] = entry & ~PTE_ANON | PTE_MIGRATION
                if entry & PTE_DIRTY:
                    system.folios.set_flag(head, FOLIO_DIRTY)
                system.flush_entry(vma.mm)  # at once, under all locks: kcompactd and move_pages(2) defer nothing
                system.drop_mapcount(entry >> PTE_SHIFT)
                system.folios.exclusive.m[entry >> PTE_SHIFT] = False  # the entry keeps it
                hits += 1
            leaf.lock.unlock()
        system.walk_hits.count += hits > 0
        made += hits
        if system.mapcount(head) == 0:
            break
    system.end_walk(walk)
    return made


def move(system: System, head: int, made: int) -> int:
    """Second half: copy the folio, and find every migration entry again (migrate_folio_move()).  Returns
    the pages moved; none if the folio is still mapped."""
    folios = system.folios
    nr_pages = folios.nr_pages(head)
    if system.mapcount(head) != 0 or made == 0:
        _restore(system, head, head, made)
        return 0
    order: int = folios.order.m[head]
    index: int = folios.index.m[head]
    new = folios.alloc_large(index, order) if order else folios.alloc(index)
    # The pages may have come together by UFFDIO_MOVE or a split: each keeps its own index and flags.
    folios.index.v[new : new + nr_pages] = folios.index.v[head : head + nr_pages]
    folios.flags.v[new : new + nr_pages] = folios.flags.v[head : head + nr_pages]
    if order and system.profile.migrated_partly:
        folios.set_flag(new, FOLIO_PARTLY)
    system.get_folio(new)
    system.lock_folio(new)
    for design in system.designs:
        design.folio_migrated(head, new, nr_pages)
    _restore(system, head, new, made)
    system.pages_copied.count += nr_pages
    system.unlock_folio(new)
    system.put_folio(new)
    return nr_pages


def _restore(system: System, old: int, new: int, made: int) -> None:
    """Make every migration entry for the folio `old` map `new` (remove_migration_ptes())."""
    restored = 0
    walk = system.begin_walk(new)
    for vma, first in walk:
        system.walk_places.count += 1
        hits = 0
        for addr in addresses(system, vma, first, new):
            hits += _restore_at(system, vma.mm, addr, old, new)
        system.walk_hits.count += hits > 0
        restored += hits
    system.end_walk(walk)
    if restored < made and system.scheduler is None:
        raise InvariantError(
            f"{system.leader.name} found {made} entries of page {old} before its migration and {restored} after it:"
            " a process would wait for ever"
        )


def _restore_at(system: System, mm: MM, addr: int, old: int, new: int) -> int:
    """remove_migration_pte(): 1 if there was one."""
    leaf = lock_leaf(mm.page_table, addr)
    if leaf is None:
        return 0
    i = addr >> PAGE_SHIFT & (LEAF_ENTRIES - 1)
    entry: int = leaf.m[i]
    pfn = (entry >> PTE_SHIFT) + new - old
    found = entry & PTE_MIGRATION != 0 and new <= pfn < new + system.folios.nr_pages(new)
    if found:
        system.mapcount_grows(pfn)
        system.folios.mapcount.m[pfn] += 1
        system.folios.exclusive.m[pfn] = entry & PTE_EXCLUSIVE != 0
        leaf.m[i] = pfn << PTE_SHIFT | entry & PTE_FLAGS & ~PTE_MIGRATION | PTE_ANON
    leaf.lock.unlock()
    return 1 if found else 0
