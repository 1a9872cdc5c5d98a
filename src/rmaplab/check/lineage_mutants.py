# SPDX-License-Identifier: GPL-2.0-or-later
"""Bugs, re-introduced, of the design `lineage` (see mutants.py)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, cast

from rmaplab.check.mutants import Mutant
from rmaplab.mm.folio import Int64s
from rmaplab.mm.geometry import Bounds, bounds_of
from rmaplab.mm.pagetable import LEAF_ENTRIES, PTE_ANON, PTE_SHIFT, Leaf
from rmaplab.mm.vma import MM, PAGE_SHIFT, PAGE_SIZE, VMA
from rmaplab.rmap.context import CowContext
from rmaplab.rmap.cow_context import CowContextRmap
from rmaplab.rmap.lineage import HALF_SHIFT, Line, LineageRmap
from rmaplab.sync.locks import SpinLock

# Epochs


class BornTooEarly(LineageRmap):
    name = "lineage, child that takes itself for one of the last epoch"

    def make_context(self, number: int, mm: MM, parent: CowContext | None, lock: SpinLock) -> CowContext:
        context = super().make_context(number, mm, parent, lock)
        cast(Line, context).born -= 1
        return context


class EpochOfTheWrongLine(LineageRmap):
    """The epoch is that of the page's owner, and says nothing of its children's children."""

    name = "lineage, walk that leaves out grandchildren by their parents' epochs"

    def _younger(self, top: CowContext, since: int) -> Iterator[CowContext]:
        yield top
        child = self.first_child(top)
        while child is not None:
            if cast(Line, child).born >= since:
                yield from self._younger(child, since)
            child = self.next_sibling(child)


class SharedSwapEntryYoung(LineageRmap):
    name = "lineage, page from a shared swap entry that is as young as its reader"

    def folio_swapped_in(self, vma: VMA, addr: int, pfn: int, exclusive: bool) -> None:
        super().folio_swapped_in(vma, addr, pfn, exclusive)
        self.since.m[pfn] = self._epoch(vma)


class ReusedKeepsEpoch(LineageRmap):
    """It was counted by another owner."""

    name = "lineage, reused page that keeps the epoch of who had it before"

    def folio_reused(self, vma: VMA, pfn: int, nr_pages: int) -> None:
        CowContextRmap.folio_reused(self, vma, pfn, nr_pages)


class EpochNotMigrated(LineageRmap):
    name = "lineage, migration that does not copy the epoch"

    def folio_migrated(self, old: int, new: int, nr_pages: int) -> None:
        CowContextRmap.folio_migrated(self, old, new, nr_pages)


class KsmPageYoung(LineageRmap):
    """A KSM page is as old as the oldest page that was merged."""

    name = "lineage, walk of a KSM page that leaves out who was forked before its last place"

    def ksm_added(self, vma: VMA, addr: int, pfn: int) -> None:
        super().ksm_added(vma, addr, pfn)
        self.since.m[pfn] = self._epoch(vma) + 1

    def _younger(self, top: CowContext, since: int) -> Iterator[CowContext]:
        return super()._younger(top, cast(Line, top).epoch if since < 0 else since)


class EpochBeforeFork(LineageRmap):
    """A thread that faults in a VMA which fork has not locked yet reads the new one."""

    name = "lineage, epoch that moves when fork begins"

    def mm_forked(self, parent: MM, child: MM) -> None:
        super().mm_forked(parent, child)
        super().mm_fork_end(parent, child)

    def mm_fork_end(self, parent: MM, child: MM) -> None:
        pass


# Records


class HomeNotRecorded(LineageRmap):
    name = "lineage, record of a move that hides who is at home"

    def _add_locked(self, context: CowContext, first: int, last: int, offset: int) -> None:
        if offset:
            super()._add_locked(context, first, last, offset)


class NewcomerNotRecorded(LineageRmap):
    name = "lineage, VMA that comes where another moved away, and is not recorded"

    def _record_locked(self, context: CowContext, vma: VMA) -> None:
        if any(offset for _, _, offset in self._places(vma, bounds_of(vma))):
            super()._record_locked(context, vma)


class HomeNotInherited(LineageRmap):
    name = "lineage, child that inherits the record of a move alone"

    def _add(self, context: CowContext, first: int, last: int, offset: int) -> None:
        pass


class MoveNotRecorded(LineageRmap):
    name = "lineage, remap not recorded at mremap"

    def vma_copied(self, source: VMA, new: VMA) -> None:
        self._set_shift(new, 0)


class HomeRecordKept(LineageRmap):
    name = "lineage, record of who is at home kept without a move"

    def _forget(self, context: CowContext, first: int, last: int, offset: int) -> None:
        if offset:
            context.lock.lock()
            self.records_change(context, "remove record")
            context.remaps.remove(first, last, offset)
            context.lock.unlock()


class LargeFolioHalfRecorded(LineageRmap):
    name = "lineage, walk of a large folio that looks where a part of it was moved, alone"

    def _offsets(self, context: CowContext, first: int, nr_pages: int) -> list[int]:
        return super()._offsets(context, first, 1)


# Entries and indices


class IndexNotChecked(LineageRmap):
    name = "lineage, index believed without a look at the VMA"

    def _vma_at(self, line: Line, mm: MM, leaf: Leaf, addr: int) -> VMA | None:
        index = line.indices.get(addr >> HALF_SHIFT)
        if index is None or index.leaf is not leaf:
            return super()._vma_at(line, mm, leaf, addr)
        vmas = sorted(index.vmas(), key=lambda vma: vma.start, reverse=True)
        return next((vma for vma in vmas if vma.start <= addr), None)


class IndexNotLeft(LineageRmap):
    name = "lineage, VMA that is unmapped and stays in the index of a leaf that stays"

    def vma_removed(self, vma: VMA) -> None:
        CowContextRmap.vma_removed(self, vma)


class IndexNotLeftAtSplit(LineageRmap):
    name = "lineage, VMA that stays in the index of a range that it lost"

    def _moved_in_indices(self, vma: VMA, old: Bounds, new: Bounds) -> None:
        pass


class WideNotLeft(LineageRmap):
    name = "lineage, VMA that is unmapped and remembered as the wide one"

    def _leave_indices(self, vma: VMA) -> None:
        line = self.line_of(vma.mm)
        wide = line.wide
        super()._leave_indices(vma)
        line.wide = wide


class WideNotChecked(LineageRmap):
    name = "lineage, wide VMA believed without a look at it"

    def _vma_at(self, line: Line, mm: MM, leaf: Leaf, addr: int) -> VMA | None:
        wide = None if addr >> HALF_SHIFT in line.indices else line.wide
        return super()._vma_at(line, mm, leaf, addr) if wide is None else wide


class MigrationOverlooked(LineageRmap):
    name = "lineage, look at an entry that takes a migration for nothing"

    def _hit(self, leaf: Leaf, at: int, stop: int, pfn: int, nr_pages: int) -> int:
        while at < stop:
            entry: int = leaf.m[at >> PAGE_SHIFT & (LEAF_ENTRIES - 1)]
            if entry & PTE_ANON and pfn <= entry >> PTE_SHIFT < pfn + nr_pages:
                return at
            at += PAGE_SIZE
        return stop


# The end of a walk


class MigrationUncounted(LineageRmap):
    name = "lineage, walk that ends at the only entry, although others wait for a migration"

    def in_migration(self, top: CowContext) -> bool:
        return False


class EndsAtFirstEntry(LineageRmap):
    name = "lineage, walk that takes each entry for the only one"

    def _there(
        self, line: Line, mm: MM, pfn: int, nr_pages: int, start: int, locking: bool
    ) -> Iterator[tuple[VMA, int, bool]]:
        for vma, addr, _ in super()._there(line, mm, pfn, nr_pages, start, locking):
            yield vma, addr, True


# Heirs


class NoRoomMade(LineageRmap):
    name = "lineage, dead context with one child that stays"

    def _make_room(self, gone: Line) -> bool:
        return True


class HeirKeepsBirth(LineageRmap):
    """It was forked from the dead, whose forks its new parent has not counted."""

    name = "lineage, heir with an epoch of the parent that is gone"

    def _take_place(self, child: Line, gone: Line, above: CowContext | None) -> None:
        born = child.born
        super()._take_place(child, gone, above)
        child.born = min(born, child.born)


class InheritedKeepsEpoch(LineageRmap):
    """A page of the dead has an epoch of the dead, which says nothing of the heir's children."""

    name = "lineage, page of the dead whose epoch is taken for one of the heir"

    def _bearer(self, first: Line) -> tuple[Line, bool]:
        return super()._bearer(first)[0], False


class NeverCollected(LineageRmap):
    name = "lineage, contexts of the dead that stay as long as an heir"

    def _collect(self) -> None:
        pass


class CollectedUnseen(LineageRmap):
    name = "lineage, context that is freed while folios point to it"
    dead_per_living = 0

    def _point_to(self, heir: Line, old: set[int]) -> bool:
        return True


class CollectedAtTheTop(LineageRmap):
    """The heir's children have them, too."""

    name = "lineage, folios pointed to the heir where it maps them itself alone"
    dead_per_living = 0

    def _point_leaf_to(self, leaf: Leaf, heir: Line, old: Int64s) -> bool:
        if heir.mm is not None and leaf not in heir.mm.page_table.leaves.values():
            return True
        return super()._point_leaf_to(leaf, heir, old)


class CollectedKeepsEpoch(LineageRmap):
    name = "lineage, folio that is pointed to the heir and keeps the epoch of the dead"
    dead_per_living = 0

    def _point_leaf_to(self, leaf: Leaf, heir: Line, old: Int64s) -> bool:
        kept = self.since.v.copy()
        done = super()._point_leaf_to(leaf, heir, old)
        self.since.v[:] = kept
        return done


class SwapCacheOverlooked(LineageRmap):
    name = "lineage, folio in the swap cache that is not pointed to the heir"
    dead_per_living = 0

    def _point_pages_to(self, pfns: Int64s, heir: Line, old: Int64s) -> None:
        super()._point_pages_to(pfns[self.folios.mapcount.v[pfns] > 0], heir, old)


class KeptTooLong(LineageRmap):
    name = "lineage, contexts of the dead that outlive their heir"

    def _free(self, context: CowContext) -> None:
        cast(Line, context).stands_for.clear()
        super()._free(context)


# Order


class MovedUnnoticed(LineageRmap):
    name = "lineage, walk not repeated where entries moved"

    def need_move_locks(self, source: VMA, target: VMA, merged: bool) -> bool:
        return False


class ChildrenBefore(LineageRmap):
    name = "lineage, children visited before their parent"

    def _younger(self, top: CowContext, since: int) -> Iterator[CowContext]:
        child = self.first_child(top)
        while child is not None:
            yield from self._younger(child, 0)
            child = self.next_sibling(child)
        yield top


class MigratedUnheld(LineageRmap):
    name = "lineage, context not held between the two walks of a migration"

    def hold(self, pfn: int) -> None:
        pass

    def stays(self, pfn: int, top: CowContext) -> bool:
        return True


class UnmappedUnnoticed(LineageRmap):
    name = "lineage, walk that does not ask whether the folio is mapped still"

    def stays(self, pfn: int, top: CowContext) -> bool:
        return True


class SpaceNotLate(LineageRmap):
    name = "lineage, mm_struct freed without a grace period"
    spaces_under_rcu = False


class TablesNotLate(LineageRmap):
    name = "lineage, page table freed without a grace period"
    tables_under_rcu = False


def _verify(rule: str, mutated: type[LineageRmap], shows: str = "incomplete", **how: int) -> Mutant:
    return Mutant(rule, LineageRmap, mutated, shows, large_folios=how.get("large_folios", 0))


def _race(rule: str, mutated: type[LineageRmap], scene: str) -> Mutant:
    return Mutant(rule, LineageRmap, mutated, "race", scene=scene)


LINEAGE_MUTANTS: Final = (
    _verify("a child has the epoch of its parent", BornTooEarly),
    _verify("an epoch is about the owner's children", EpochOfTheWrongLine),
    _verify("a shared page from swap is of any age", SharedSwapEntryYoung),
    _verify("a page has the epoch of its owner", ReusedKeepsEpoch),
    _verify("migration copies the epoch", EpochNotMigrated),
    _verify("a KSM page is of any age", KsmPageYoung),
    _race("the epoch moves when all entries are copied", EpochBeforeFork,
          "referenced / reuse + fork of the child"),
    _verify("a record says all places", HomeNotRecorded),
    _verify("who comes home is recorded where others are", NewcomerNotRecorded),
    _verify("a child inherits all of a record", HomeNotInherited),
    _verify("mremap records the remap", MoveNotRecorded),
    _verify("what is at home alone has no record", HomeRecordKept, "leak"),
    _verify("a part of a large folio may have no record", LargeFolioHalfRecorded, large_folios=4),
    _verify("what an index says is checked", IndexNotChecked),
    _verify("a VMA that goes leaves the indices", IndexNotLeft, "leak"),
    _verify("a VMA is in the indices of where it is", IndexNotLeftAtSplit, "leak"),
    _verify("a VMA that goes is no wide one", WideNotLeft, "leak"),
    _verify("the wide VMA is not everywhere", WideNotChecked),
    _race("what waits for a migration is looked for", MigrationUncounted, "restore / mremap back + copy"),
    _verify("a page may have more than one entry", EndsAtFirstEntry),
    _verify("of the dead, none has one child", NoRoomMade, "leak"),
    _verify("an heir is born when the dead was", HeirKeepsBirth),
    _verify("pages of the dead are of any age", InheritedKeepsEpoch),
    _verify("there are no more dead than living", NeverCollected, "leak"),
    _verify("folios point to the heir before the dead is freed", CollectedUnseen),
    _verify("a page of the dead may be mapped by any below the heir", CollectedAtTheTop),
    _verify("a page that is pointed to the heir is of any age", CollectedKeepsEpoch),
    _verify("a folio in the swap cache is mapped again", SwapCacheOverlooked),
    _verify("the dead go with the last heir", KeptTooLong, "leak"),
    _race("a migration entry is an entry", MigrationOverlooked, "restore / copy"),
    _race("walks look again where entries moved", MovedUnnoticed, "restore / mremap back"),
    _race("a parent comes before its children", ChildrenBefore, "restore / fork of the child"),
    _race("a migration holds the context", MigratedUnheld, "restore / exit of the parent + exit of the child"),
    _race("who is mapped nowhere is not looked for", UnmappedUnnoticed,
          "referenced / exit of the parent + exit of the child"),
    _race("an mm_struct is freed after a grace period", SpaceNotLate, "restore / exit of the child"),
    _race("page tables are freed after a grace period", TablesNotLate, "unmap / munmap with its page table"),
)  # fmt: skip
