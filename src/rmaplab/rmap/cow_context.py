# SPDX-License-Identifier: GPL-2.0-or-later
"""Design `cow_context`: CoW contexts, with an anonymous page offset for every VMA.

The idea of the prototype (see cow_context_prototype.py): a folio points to the context of the address space
that first had it, and carries a page offset.  To find the processes that inherited the folio, a walk looks, in
that context and all below it, at the address that the page offset stands for.  Only ranges that are *not* at
that address are recorded.

The difference: a MAP_PRIVATE mapping of a file needs no record either.  The index of its folios is not the
offset in the file, but an *anonymous page offset*, which begins as the address of the VMA, as that of an
anonymous VMA does, and stays with the VMA from its first page on.

Data
- for each page, one number that holds its context and its anonymous page offset.
- for each prepared VMA, its *shift*: what to add to vm_pgoff to get the anonymous page offset.  0 for
  anonymous memory.  It never changes while the VMA is prepared, because all changes of its geometry (split,
  merge, growth, mremap) keep vm_pgoff in step.
- for each context, a remap tree: the places of its *displaced* VMAs, that is, of those whose address is not the
  one that their anonymous page offset says.

Invariants
- Index: an entry at address `a` of a prepared VMA, present, swapped out or migrating, is for a page of index
  pgoff(a) + shift.  Fork, split, merge and move keep this true of the entry; a new page gets its index so.
- Subtree: all processes with an entry for a folio are in the subtree of the context that the folio points to.
- Records: the remap tree holds exactly the ranges and displacements of the prepared VMAs that are displaced.
- Neighbours: VMAs of one address space that could ever be merged by anon_vma's rule have the same shift: a
  VMA adopts the shift of a neighbour at its first page if mprotect() could merge them.

From these the walk is complete: any entry for the folio is in a context of the subtree (Subtree), at an
address that is its index plus the displacement of its VMA (Index), which is 0 or recorded (Records).

Locking: address spaces share nothing except the lists of children.  A context's lock covers its
remap tree, because munmap() removes records with mmap_lock held for reading only.  Walks run under RCU.
A record exists before the first entry is at its place, and until the last one is gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, cast

import numpy as np
from mypy_extensions import mypyc_attr

from rmaplab.mm.folio import FOLIO_KSM, Column, Int64s, folio_mapcount
from rmaplab.mm.geometry import Bounds, GeometryChange, bounds_of
from rmaplab.mm.reverse_map import Attachment
from rmaplab.mm.takeover import TakenOver
from rmaplab.mm.vma import MM, PAGE_SHIFT, VMA, seen
from rmaplab.rmap.context import ContextRmap, CowContext
from rmaplab.rmap.ksm_places import KsmPlace, KsmPlaces
from rmaplab.rmap.neighbours import mergeable_neighbours
from rmaplab.sync.fields import OF_DESIGN, OF_PAGE
from rmaplab.sync.order import depends, read_once, write_once

# What a page holds: number of the context << 40 | anonymous page offset + 2**39.  The bias is there because
# the page offset of a VMA that was moved up and then grew down may be negative.
CONTEXT_SHIFT: Final = 40
PGOFF_MASK: Final = (1 << CONTEXT_SHIFT) - 1
PGOFF_BIAS: Final = 1 << (CONTEXT_SHIFT - 1)


# (first, last, displacement): a range of anonymous page offsets, both ends included, and where it is.
Displaced = tuple[int, int, int]


@mypyc_attr(allow_interpreted_subclasses=True)
class CowContextRmap(ContextRmap):
    """One context per address space; records for displaced VMAs only."""

    name = "cow_context"
    vma_fields = 8  # the shift
    drawn_by = "rmaplab.rmap.pictures.cow_context:CowContextPicture"

    def __init__(self, attachment: Attachment) -> None:
        super().__init__(attachment)
        self.where: Final[Column] = attachment.folios.column(np.int64)
        self.ksm: Final = KsmPlaces()  # their anchors are contexts, which live as long as the places are remembered

    def shift_of(self, vma: VMA) -> int | None:
        return cast("int | None", vma.rmap[self.slot])

    # A VMA's first page

    def vma_prepare(self, vma: VMA) -> None:
        shift = 0
        if vma.file is not None:
            neighbours = self._shift_of_neighbour(vma)
            shift = (vma.start >> PAGE_SHIFT) - vma.anon_pgoff if neighbours is None else neighbours
        self._set_shift(vma, shift)
        self._record(vma)

    def _set_shift(self, vma: VMA, shift: int | None) -> None:
        write_once(self.scheduler, "set shift of VMA", vma, OF_DESIGN, self.slot)
        vma.rmap[self.slot] = shift

    def _shift_of_neighbour(self, vma: VMA) -> int | None:
        for neighbour in mergeable_neighbours(vma):
            shift = self.shift_of(neighbour)
            if shift is not None:
                return shift
        return None

    # Fork

    def vma_forked(self, parent: VMA, child: VMA) -> None:
        self._set_shift(child, self.shift_of(parent))
        self._record(child)

    # Split, merge, move: geometry

    def vma_split(self, vma: VMA, new: VMA) -> None:
        # The record of `vma` covers both.
        self._set_shift(new, self.shift_of(vma))

    def vma_joined(self, vma: VMA, donor: VMA) -> None:
        # `vma` has no pages yet, so it may as well be indexed as if it were part of `donor`.
        self._set_shift(vma, self.shift_of(donor))

    def need_move_locks(self, source: VMA, target: VMA, merged: bool) -> bool:
        return True

    def move_lock(self, vma: VMA) -> None:
        self.context_of(vma.mm).moves.write_begin()

    def move_unlock(self, vma: VMA) -> None:
        self.context_of(vma.mm).moves.write_end()

    def geometry_begin(self, change: GeometryChange) -> None:
        self.context_of(change.vmas[0].mm).moves.write_begin()

    def geometry_end(self, change: GeometryChange) -> None:
        self._move_records(change)
        self.context_of(change.vmas[0].mm).moves.write_end()

    def _move_records(self, change: GeometryChange) -> None:
        """What has a place now is recorded before the places that are no more are forgotten."""
        context = self.context_of(change.vmas[0].mm)
        before: list[Displaced] = []
        now: list[Displaced] = []
        for i in range(len(change.vmas)):
            vma = change.vmas[i]
            before += self._places(vma, change.before[i])
            now += self._places(vma, change.after[i])
            self._record(vma)
        if change.split_off is not None:
            now += self._places(change.split_off, bounds_of(change.split_off))
        if not before:
            return
        now.sort()
        for first, last, offset in before:
            for kept_first, kept_last, kept_offset in now:
                if kept_offset == offset and kept_last >= first and kept_first <= last:
                    if kept_first > first:
                        self._forget(context, first, kept_first - 1, offset)
                    first = kept_last + 1
            if first <= last:
                self._forget(context, first, last, offset)

    def vma_absorbed(self, vma: VMA, gone: VMA) -> None:
        # `vma` covers the range by now, with a record of its own that says the same.
        self._set_shift(gone, None)

    def vma_copied(self, source: VMA, new: VMA) -> None:
        self._set_shift(new, self.shift_of(source))
        self._record(new)

    # A VMA's end

    def vma_removed(self, vma: VMA) -> None:
        for first, last, offset in self._places(vma, bounds_of(vma)):
            self._forget(self.context_of(vma.mm), first, last, offset)
        self._set_shift(vma, None)

    # Records

    def _places(self, vma: VMA, bounds: Bounds) -> list[Displaced]:
        """Its places that are recorded if it is prepared and has these bounds: none, unless it is displaced."""
        shift = self.shift_of(vma)
        if shift is not None:
            first = bounds.anon_pgoff + shift
            offset = (bounds.start >> PAGE_SHIFT) - first
            if offset != 0:
                return [(first, bounds.last_anon_pgoff + shift, offset)]
        return []

    def _record(self, vma: VMA) -> None:
        context = self.context_of(vma.mm)
        for first, last, offset in self._places(vma, bounds_of(vma)):
            context.lock.lock()
            self.records_change(context, "add record")
            context.lock.assert_held()
            context.remaps.add(first, last, offset)
            context.lock.unlock()

    # Folios

    def folio_mapped(self, vma: VMA, addr: int, pfn: int, nr_pages: int) -> None:
        where = self._where(self.context_of(vma.mm), vma, addr)
        self._set(pfn)
        if nr_pages == 1:
            self.where.m[pfn] = where
        else:
            self.where.v[pfn : pfn + nr_pages] = np.arange(where, where + nr_pages)

    def folios_mapped(self, vma: VMA, addrs: Int64s, pfns: Int64s) -> None:
        where = self._where(self.context_of(vma.mm), vma, 0)
        self.where.v[pfns] = (addrs >> PAGE_SHIFT) + where

    def folio_swapped_in(self, vma: VMA, addr: int, pfn: int, exclusive: bool) -> None:
        # Others may have the same swap entry, and whoever faults it in next gets this folio without anybody
        # being told.  They inherited it as this one did, so all are below the oldest context.
        context = self.context_of(vma.mm)
        if not exclusive:
            context = context.top()
        self._set(pfn)
        self.where.m[pfn] = self._where(context, vma, addr)

    def folio_reused(self, vma: VMA, pfn: int, nr_pages: int) -> None:
        number = self.context_of(vma.mm).number
        self._set(pfn)
        if nr_pages == 1:
            held: int = self.where.m[pfn]
            self.where.m[pfn] = held & PGOFF_MASK | number << CONTEXT_SHIFT
            return
        where = self.where.v[pfn : pfn + nr_pages]
        where &= PGOFF_MASK
        where |= number << CONTEXT_SHIFT

    def folio_moved(self, vma: VMA, addr: int, pfn: int) -> None:
        self._set(pfn)
        self.where.m[pfn] = self._where(self.context_of(vma.mm), vma, addr)

    def _set(self, pfn: int) -> None:
        """What `pfn` holds is about to change (WRITE_ONCE(folio->mapping))."""
        write_once(self.scheduler, "set folio->mapping", self.where, OF_PAGE, pfn)

    def folio_migrated(self, old: int, new: int, nr_pages: int) -> None:
        where = self.where.v
        where[new : new + nr_pages] = where[old : old + nr_pages]

    def _where(self, context: CowContext, vma: VMA, addr: int) -> int:
        """What a page at `addr` of `vma`, which is prepared, is to hold."""
        pgoff = vma.anon_pgoff + cast(int, vma.rmap[self.slot]) + ((addr - vma.start) >> PAGE_SHIFT)
        return (context.number << CONTEXT_SHIFT) + PGOFF_BIAS + pgoff

    def anchor_of(self, pfn: int) -> tuple[CowContext | None, int]:
        where: int = self.where.m[pfn]
        return self.contexts[where >> CONTEXT_SHIFT], (where & PGOFF_MASK) - PGOFF_BIAS

    def _anchor_seen(self, pfn: int) -> tuple[CowContext | None, int]:
        """The same, for who walks under RCU (READ_ONCE(folio->mapping))."""
        where = cast(int, read_once(self.scheduler, "folio->mapping", self.where, OF_PAGE, self.where.m[pfn], pfn))
        context = self.contexts[where >> CONTEXT_SHIFT]
        if context is not None:
            depends(self.scheduler, "folio->mapping", context)
        return context, (where & PGOFF_MASK) - PGOFF_BIAS

    def _shift_seen(self, vma: VMA) -> int | None:
        """The shift, for who walks under RCU; None if the VMA had no pages then."""
        shift = read_once(self.scheduler, "shift of VMA", vma, OF_DESIGN, vma.rmap[self.slot], self.slot)
        return cast("int | None", shift)

    # KSM

    def ksm_added(self, vma: VMA, addr: int, pfn: int) -> None:
        context = self.context_of(vma.mm)
        context.refcount += 1
        self.ksm.add(pfn, KsmPlace(vma.mm, addr, context))

    def ksm_removed(self, mm: MM, addr: int, pfn: int) -> None:
        self.let_go(self.ksm.remove(pfn, mm, addr))

    def folio_freed(self, pfn: int, nr_pages: int) -> None:
        self.let_go(self.ksm.freed(pfn))

    def folios_freed(self, pfns: Int64s) -> None:
        self.let_go(self.ksm.all_freed(pfns))

    def let_go(self, places: list[KsmPlace]) -> None:
        """These places held contexts, and are gone."""
        for place in places:
            self.put(cast(CowContext, place.anchor))

    def placed(self) -> list[CowContext]:
        return [cast(CowContext, place.anchor) for place in self.ksm.every()]

    # Memory that is there already

    def take_over(self, found: TakenOver) -> None:
        for known in found.vmas:
            known.vma.rmap[self.slot] = known.shift
        super().take_over(found)

    # The walk

    def _parents_first(self, top: CowContext) -> Iterator[CowContext]:
        """`top` and all below it, each before its children.  A child is linked before an entry of its parent
        is copied.  So one that is not there when the list of children is looked at, after the parent was
        dealt with, can only get what was left there."""
        at = top
        while True:
            yield at
            child = self.first_child(at)
            if child is not None:
                at = child
                continue
            while at is not top:
                above = at.parent
                assert above is not None  # `at` is below `top`
                sibling = self.next_sibling(at)
                if sibling is not None:
                    at = sibling
                    break
                at = above
            if at is top:
                return

    def walk(self, pfn: int) -> Iterator[tuple[VMA, int]]:
        self.walks.count += 1
        flags: int = self.folios.flags.m[pfn]
        if flags & FOLIO_KSM:
            yield from self._walk_ksm(pfn)
            return
        self.rcu.read_lock()
        try:
            top, first = self._anchor_seen(pfn)
            if top is None or not self.stays(pfn, top):
                return
            nr_pages = self.folios.nr_pages(pfn)
            for context in self._parents_first(top):
                mm = self.get_mm(context)
                if mm is None:
                    continue
                try:
                    again = True
                    while again:
                        begun = context.moves.read_begin()
                        yield from self._at(mm, first, nr_pages, 0)
                        for offset in self.records(context).offsets(first, first + nr_pages - 1):
                            yield from self._at(mm, first, nr_pages, offset)
                        again = context.moves.read_retry(begun)
                finally:
                    self.spaces.put(mm)
        finally:
            self.rcu.read_unlock()

    def stays(self, pfn: int, top: CowContext) -> bool:
        """Will the context that the folio points to be there until the RCU section ends?  A folio that is mapped by now
        had it alive when the section began, and one that nothing maps may point to what is freed already
        (folio_get_anon_vma()), unless a migration holds it."""
        if top in self.held.values():
            return True
        return folio_mapcount(self.scheduler, self.folios, pfn) != 0

    def _at(self, mm: MM, first: int, nr_pages: int, offset: int) -> Iterator[tuple[VMA, int]]:
        """The VMAs that have page offsets from `first` on with this displacement."""
        start = (first + offset) << PAGE_SHIFT
        for vma in self.vmas_at(mm, start, start + (nr_pages << PAGE_SHIFT)):
            then = seen(self.scheduler, vma)
            shift = self._shift_seen(vma)
            if shift is not None and (then.start >> PAGE_SHIFT) - then.anon_pgoff - shift == offset:
                self.places.count += 1
                yield vma, start if start > then.start else then.start

    def _walk_ksm(self, pfn: int) -> Iterator[tuple[VMA, int]]:
        """Each place in its own address space first, then the same address in those forked from it: a KSM
        page does not move (mremap() unmerges it)."""
        places = self.ksm.newest_first(pfn)
        self.rcu.read_lock()
        try:
            for place in places:
                self.visited.count += 1
                yield from self._ksm_at(cast(CowContext, place.anchor), place.addr)
            for place in places:
                for context in self._parents_first(cast(CowContext, place.anchor)):
                    if context is not place.anchor:
                        yield from self._ksm_at(context, place.addr)
        finally:
            self.rcu.read_unlock()

    def _ksm_at(self, context: CowContext, addr: int) -> Iterator[tuple[VMA, int]]:
        mm = self.get_mm(context)
        if mm is not None:
            try:
                for vma in self.vmas_at(mm, addr, addr + 1):
                    if self.shift_of(vma) is not None:
                        self.places.count += 1
                        yield vma, addr
            finally:
                self.spaces.put(mm)

    # Merge rules

    def can_merge(self, source: VMA | None, existing: VMA, growing: bool) -> bool:
        # Where both have pages, the anonymous page offsets must go on from one to the other, too.  vm_pgoff
        # does already, so that is to say: the same shift.
        return source is None or self.can_join(source, existing)

    def can_join(self, prev: VMA, next: VMA) -> bool:
        shift = self.shift_of(prev)
        other = self.shift_of(next)
        return shift is None or other is None or shift == other

    # What the design says of itself

    def audit(self, mms: Sequence[MM], peak_vmas: int) -> list[str]:
        """Besides, exactly what is displaced is recorded.  A record too many costs a look-up in each walk and memory,
        but no walk shows it: no VMA is where it says."""
        said = super().audit(mms, peak_vmas)
        for mm in mms:
            said += self._stray_records(mm)
        return said

    def _stray_records(self, mm: MM) -> list[str]:
        displaced: list[Displaced] = []
        for vma in mm.tree.to_list():
            shift = self.shift_of(vma)
            if shift is not None and vma.start >> PAGE_SHIFT != vma.anon_pgoff + shift:
                first = vma.anon_pgoff + shift
                displaced.append((first, first + vma.nr_pages - 1, (vma.start >> PAGE_SHIFT) - first))
        expected = joined(displaced)
        recorded = joined(self.context_of(mm).remaps.ranges())
        wrong: list[str] = []
        for record in sorted(set(recorded) ^ set(expected)):
            first, last, offset = record
            has = "a record" if record in recorded else "no record"
            wrong.append(f"mm {mm.id} has {has} of page offsets {first:#x} to {last:#x} at offset {offset:#x}")
        return wrong


def joined(ranges: list[Displaced]) -> list[Displaced]:
    """The same, by offset, where those that touch or overlap are one."""
    result: list[Displaced] = []
    for first, last, offset in sorted(ranges, key=lambda one: (one[2], one[0])):
        if result and result[-1][2] == offset and first <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(last, result[-1][1]), offset)
        else:
            result.append((first, last, offset))
    return result
