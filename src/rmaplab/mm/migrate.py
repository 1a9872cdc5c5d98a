# SPDX-License-Identifier: GPL-2.0-or-later
"""Users of the reverse map, part two: migration.

Models mm/migrate.c (migrate_folio_unmap(), migrate_folio_move(), remove_migration_ptes()) and mm/rmap.c
try_to_migrate().  Every entry that maps the folio becomes a migration entry; the folio is copied; every
migration entry is found again and made to map the copy.  If the first walk leaves the folio mapped, the
migration is abandoned and the entries are restored.  There is no second chance for the second walk.
"""

from __future__ import annotations

from rmaplab.mm import huge_pmd
from rmaplab.mm.errors import InvariantError
from rmaplab.mm.folio import FOLIO_DIRTY, FOLIO_PARTLY
from rmaplab.mm.huge_memory import partly_mapped, split_folio
from rmaplab.mm.pagetable import (
    PTE_ANON,
    PTE_DIRTY,
    PTE_EXCLUSIVE,
    PTE_FLAGS,
    PTE_MIGRATION,
    PTE_SHIFT,
    Leaf,
)
from rmaplab.mm.rmap_walk import Visit, rmap_walk
from rmaplab.mm.system import System
from rmaplab.mm.vma import MM, VM_GROWSDOWN, VM_STACK_INCOMPLETE_SETUP, VMA
from rmaplab.mm.vmscan import isolate


def migrate(system: System, mm: MM, start: int, end: int) -> int:
    """Move the folios mapped in [start, end) elsewhere.  Returns how many pages moved."""
    moved = 0
    for head in isolate(system, mm, start, end):
        if system.profile.migration_splits and partly_mapped(system, head):
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
        if head in system.ksm_pages or (head in system.slot_of and system.folios.order.m[head] == 0):
            # The stable node of KSM and the swap cache would have to follow; both are left to a later pass.
            moved = 0
        elif system.mapcount(head):  # else there is nothing to be found, and nothing to hold on to
            system.leader.hold(head)
            partly = partly_mapped(system, head)
            made = unmap(system, head)
            if not partly and not system.profile.migrated_partly:
                system.folios.clear_flag(head, FOLIO_PARTLY)
            moved = move(system, head, made)
            system.leader.unhold(head)
        system.unlock_folio(head)
    system.put_folio(head)
    return moved


class _Unmap(Visit):
    """try_to_migrate_one()"""

    def skips(self, vma: VMA) -> bool:
        """Entries of a stack that exec moves may be where no walk looks: a migration entry there would stay for ever
        (invalid_migration_vma(), vma_is_temporary_stack())."""
        return vma.flags & VM_STACK_INCOMPLETE_SETUP == VM_STACK_INCOMPLETE_SETUP and vma.flags & VM_GROWSDOWN != 0

    def entry(self, vma: VMA, addr: int, leaf: Leaf, i: int, entry: int) -> bool:
        system = self.system
        leaf.lock.assert_held()
        leaf.m[i] = entry & ~PTE_ANON | PTE_MIGRATION
        if entry & PTE_DIRTY:
            system.folios.set_flag(self.head, FOLIO_DIRTY)
        system.flush_entry(vma.mm)  # at once, under all locks: kcompactd and move_pages(2) defer nothing
        system.drop_mapcount(vma.mm, entry >> PTE_SHIFT)
        system.folios.exclusive.m[entry >> PTE_SHIFT] = False  # the entry keeps it
        return False

    def whole(self, vma: VMA, addr: int, leaf: Leaf) -> bool:
        """set_pmd_migration_entry()"""
        system = self.system
        if leaf.m[0] & PTE_DIRTY:
            system.folios.set_flag(self.head, FOLIO_DIRTY)
        leaf.lock.assert_held()
        leaf.v[:] ^= PTE_ANON | PTE_MIGRATION
        system.flush_entry(vma.mm)
        huge_pmd.unmapped(system, vma.mm, self.head)
        system.folios.exclusive.m[self.head] = False
        return False

    def done(self) -> bool:
        return self.system.mapcount(self.head) == 0


def unmap(system: System, head: int) -> int:
    """First half: replace what maps the folio, which is locked, by migration entries (migrate_folio_unmap(),
    try_to_migrate()).  Returns how many there were."""
    return rmap_walk(_Unmap(system, head))


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
    system.get_folio(new)
    system.lock_folio(new)
    for i in range(nr_pages if head in system.slot_of else 0):
        system.cache(system.slot_of.pop(head + i), new + i)
    for design in system.designs:
        design.folio_migrated(head, new, nr_pages)
    _restore(system, head, new, made)
    system.pages_copied.count += nr_pages
    system.unlock_folio(new)
    system.put_folio(new)
    return nr_pages


class _Restore(Visit):
    """remove_migration_pte(): entries for the folio `old` become entries that map `head`, page by page."""

    waits = True

    def __init__(self, system: System, old: int, new: int) -> None:
        super().__init__(system, new)
        self.old = old

    def wants(self, entry: int) -> bool:
        return entry & PTE_MIGRATION != 0 and self.old <= entry >> PTE_SHIFT < self.old + self.nr_pages

    def entry(self, vma: VMA, addr: int, leaf: Leaf, i: int, entry: int) -> bool:
        system = self.system
        pfn = (entry >> PTE_SHIFT) + self.head - self.old
        system.add_mapcount(vma.mm, pfn)
        system.folios.exclusive.m[pfn] = entry & PTE_EXCLUSIVE != 0
        leaf.lock.assert_held()
        leaf.m[i] = pfn << PTE_SHIFT | entry & PTE_FLAGS & ~PTE_MIGRATION | PTE_ANON
        return False

    def whole(self, vma: VMA, addr: int, leaf: Leaf) -> bool:
        """remove_migration_pmd()"""
        huge_pmd.mapped(self.system, vma.mm, self.head, leaf.m[0] & PTE_EXCLUSIVE != 0)
        leaf.lock.assert_held()
        leaf.v[:] += (self.head - self.old) << PTE_SHIFT
        leaf.v[:] ^= PTE_ANON | PTE_MIGRATION
        return False


def _restore(system: System, old: int, new: int, made: int) -> None:
    """Make every migration entry for the folio `old` map `new` (remove_migration_ptes())."""
    restored = rmap_walk(_Restore(system, old, new))
    if restored < made and system.scheduler is None:
        raise InvariantError(
            f"{system.leader.name} found {made} entries of page {old} before its migration and {restored} after it:"
            " a process would wait for ever"
        )
