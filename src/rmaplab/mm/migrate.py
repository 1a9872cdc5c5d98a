# SPDX-License-Identifier: GPL-2.0-or-later
"""Users of the reverse map, part two: migration.

Models mm/migrate.c (migrate_folio_unmap(), migrate_folio_move(), remove_migration_ptes()) and mm/rmap.c
try_to_migrate().  Every entry that maps the folio becomes a migration entry; the folio is copied; every
migration entry is found again and made to map the copy.  If the first walk leaves the folio mapped, the
migration is given up and the entries are restored.  There is no second chance for the second walk.
"""

from __future__ import annotations

from rmaplab.mm.errors import InvariantError
from rmaplab.mm.pagetable import PTE_ANON, PTE_FLAGS, PTE_MIGRATION, PTE_SHIFT
from rmaplab.mm.reclaim import folio_heads, mapped_addresses
from rmaplab.mm.system import System
from rmaplab.mm.vma import MM, PAGE_SHIFT, VMA


def migrate(system: System, mm: MM, start: int, end: int) -> int:
    """Move the folios mapped in [start, end) elsewhere.  Returns how many pages moved."""
    moved = 0
    for head in folio_heads(system, mm, start, end):
        moved += migrate_folio(system, head)
    return moved


def migrate_folio(system: System, head: int) -> int:
    folios = system.folios
    nr_pages = folios.nr_pages(head)
    if head in system.ksm_pages or head in system.slot_of:
        # The stable node of KSM and the swap cache would have to follow; both are left to a later pass.
        return 0
    made = _try_to_migrate(system, head, nr_pages)
    if folios.total_mapcount(head) != 0:
        _restore(system, head, head, nr_pages, made)
        return 0
    order: int = folios.order.m[head]
    index: int = folios.index.m[head]
    new = folios.alloc_large(index, order) if order else folios.alloc(index)
    # The pages may have come together by UFFDIO_MOVE or a split: each keeps its own index and flags.
    folios.index.v[new : new + nr_pages] = folios.index.v[head : head + nr_pages]
    folios.flags.v[new : new + nr_pages] = folios.flags.v[head : head + nr_pages]
    for design in system.designs:
        design.folio_migrated(head, new, nr_pages)
    _restore(system, head, new, nr_pages, made)
    system.pages_copied.count += nr_pages
    for design in system.designs:
        design.folio_freed(head, nr_pages)
    folios.free(head)
    return nr_pages


def _try_to_migrate(system: System, head: int, nr_pages: int) -> int:
    """Replace entries by migration entries; returns how many."""
    mapcount = system.folios.mapcount
    made = 0
    system.walks.count += 1
    for vma, addr in system.leader.walk(head):
        system.walk_places.count += 1
        hits = mapped_addresses(system, vma, addr, head)
        if hits:
            system.walk_hits.count += 1
        page_table = vma.mm.page_table
        for at in hits:
            entry = page_table.get(at)
            page_table.set(at, entry & ~PTE_ANON | PTE_MIGRATION)
            mapcount.m[entry >> PTE_SHIFT] -= 1
            made += 1
        if system.folios.total_mapcount(head) == 0:
            break
    return made


def _restore(system: System, old: int, new: int, nr_pages: int, made: int) -> None:
    """Make every migration entry for pages old.. map new.. (remove_migration_ptes())."""
    restored = 0
    system.walks.count += 1
    for vma, addr in system.leader.walk(new):
        system.walk_places.count += 1
        count = _restore_in(system, vma, addr, old, new, nr_pages)
        if count:
            system.walk_hits.count += 1
        restored += count
    if restored < made and system.scheduler is None:
        raise InvariantError(
            f"{system.leader.name} found {made} entries of page {old} before its migration and {restored} after it:"
            " a process would wait for ever"
        )


def _restore_in(system: System, vma: VMA, addr: int, old: int, new: int, nr_pages: int) -> int:
    page_table = vma.mm.page_table
    mapcount = system.folios.mapcount
    end = min(vma.end, addr + (nr_pages << PAGE_SHIFT))
    restored = 0
    while addr < end:
        entry = page_table.get(addr)
        pfn = entry >> PTE_SHIFT
        if entry & PTE_MIGRATION and old <= pfn < old + nr_pages:
            pfn += new - old
            mapcount.m[pfn] += 1
            page_table.set(addr, pfn << PTE_SHIFT | entry & PTE_FLAGS & ~PTE_MIGRATION | PTE_ANON)
            restored += 1
        addr += 1 << PAGE_SHIFT
    return restored
