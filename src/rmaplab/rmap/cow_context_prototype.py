# SPDX-License-Identifier: GPL-2.0-or-later
"""Design `cow_context_prototype`: CoW contexts as the prototype of May 2026 has them.

The model of what mm/cow_context.c of its author's branch project/cow-context *does*, with its hooks in mm/vma.c,
mm/rmap.c and mm/mremap.c, not of what it ought to do.  Where it misses something, so does this; docs/designs/
has the list.  Each method names the function that it models.

A folio points to the context of the address space that first had it, and its index is vm_pgoff-based, as
today.  A VMA whose address matches its page offsets (offset 0) needs nothing.  Any other VMA is *recorded* in its
context: these page offsets are at that offset, too.

Data
- for each page, the number of a context (folio->cow_context).
- for each context, a remap tree; its entries hold one offset in place, or a sorted array.
- nothing per VMA.  A MAP_PRIVATE file mapping is recorded like a moved one: its page offset is the file's.

Assumptions of the walk
- an exclusive folio points to the context of the one process that maps it, and sits at offset 0 there.
  Neither half is true: see `walk`.
- every VMA that is not at offset 0 and has anonymous pages is recorded.  `RecordTree` and the hooks do not
  quite keep this.

Locking: records are added and changed under mmap_lock, which remaps and forks assert to be held for writing, and
removed under a spin lock besides, since munmap() holds mmap_lock for reading only; a context's list of children has
another.  The walk runs under RCU and takes none.  A fault that prepares a VMA of a file adds its record, too, with
mmap_lock held for reading at most: only the maple tree's own lock around each store is between two of them,
so of two records that touch the same entry one may get lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, cast

import numpy as np
from mypy_extensions import mypyc_attr

from rmaplab.mm.folio import FOLIO_KSM, Column, Int64s, folio_mapcount
from rmaplab.mm.geometry import Bounds, GeometryChange, bounds_of
from rmaplab.mm.reverse_map import Attachment
from rmaplab.mm.vma import MM, PAGE_SHIFT, VMA, seen
from rmaplab.rmap.context import NOT_BELOW, ContextRmap, CowContext
from rmaplab.rmap.remap_tree import RemapTree

_UNSIGNED: Final = (1 << 64) - 1
_UNWRITTEN: Final = 0  # what an array slot holds that was never written, where the kernel zeroes its heap


class RecordTree(RemapTree):
    """The prototype's remap tree (add_new_remap()): entries are never joined, and cover more than they are asked to."""

    def append(self, i: int, offset: int) -> None:
        """append_remap_offset(): into an array of twice the room if there is none left, even if the offset
        turns out to be there already."""
        entry = self.entries[i]
        room = entry.room
        if room == 0:
            room = 2
        elif len(entry.values) == room:
            room *= 2
        self.store(i, insert_sorted(entry.values, offset), room)

    def join(self, i: int, end: int) -> None:
        """Entries stay apart."""

    def update(self, first: int, last: int, old: int, new: int) -> bool:
        """find_and_remap_existing(): wherever one of the page offsets first..last is at `old`, say `new`.
        The whole entry says so from then on, though it may begin before `first` or end after `last`, and
        an array is not sorted again.  False if there was none."""
        found = False
        i = self.seek(first)
        while i < len(self.firsts) and self.firsts[i] <= last:
            values = self.entries[i].values
            for k in range(len(values)):
                if values[k] == old:
                    values[k] = new
                    found = True
            i += 1
        return found

    def remove(self, first: int, last: int, offset: int) -> None:
        """find_and_unmap_existing(): drop the first `offset` from every entry that touches first..last.
        It goes for the whole entry."""
        i = self.seek(first)
        while i < len(self.firsts) and self.firsts[i] <= last:
            entry = self.entries[i]
            if offset in entry.values:
                entry.values.remove(offset)
                if not entry.values or entry.values == [_UNWRITTEN]:
                    self.delete(i)  # an offset of 0, stored in place, reads as an empty entry
                    continue
                if len(entry.values) == 1:
                    self.store(i, entry.values, 0)
            i += 1
        self.account()

    def collect(self, first: int, last: int) -> list[int]:
        """The offsets that walk_context() gathers in an array of its own, in the same way."""
        found: list[int] = []
        i = self.seek(first)
        while i < len(self.firsts) and self.firsts[i] <= last:
            for value in self.entries[i].values:
                found = insert_sorted(found, value)
            i += 1
        return found


def insert_sorted(values: list[int], new: int) -> list[int]:
    """__dynarray_append_value(): insert into an array sorted as unsigned numbers, unless it is there.

    Those that are greater have to make room, but the loop that moves them stops one too early: the first of
    them is not moved and gets overwritten.

    >>> insert_sorted([2, 4], 6)
    [2, 4, 6]
    >>> insert_sorted([4, 6], 2)
    [2, 6, 6]
    >>> insert_sorted([4], 2)
    [2, 0]
    """
    at = len(values)
    while at > 0:
        value = values[at - 1]
        if value == new:
            return values
        if value & _UNSIGNED < new & _UNSIGNED:
            break
        at -= 1
    if at == len(values):
        return [*values, new]
    rest = values[at + 1 :]
    return [*values[:at], new, rest[0] if rest else _UNWRITTEN, *rest]


def _offset(bounds: Bounds) -> int:
    """Distance in pages from the address that the page offset stands for to where it is."""
    return (bounds.start >> PAGE_SHIFT) - bounds.anon_pgoff


@mypyc_attr(allow_interpreted_subclasses=True)
class CowContextPrototypeRmap(ContextRmap):
    """One context per address space; records for every VMA whose address is not its page offset."""

    name = "cow_context_prototype"
    known_to_miss = "pages that one process maps and that are displaced or were inherited, and those of KSM"

    def __init__(self, attachment: Attachment) -> None:
        super().__init__(attachment)
        self.anchor: Final[Column] = attachment.folios.column(np.int32)

    def new_remap_tree(self) -> RemapTree:
        return RecordTree(self.memory)

    def records_of(self, context: CowContext) -> RecordTree:
        """Its remap tree, as the prototype's own."""
        return cast(RecordTree, context.remaps)

    # A VMA's first page

    def vma_prepare(self, vma: VMA) -> None:
        # __anon_vma_prepare(): only for files.  An anonymous VMA is taken to be at its page offset.
        if vma.file is not None:
            self._record(vma)

    # Fork

    def vma_forked(self, parent: VMA, child: VMA) -> None:
        # cow_context_do_fork()
        child.mm.mmap_lock.assert_held_write()
        self._record(child)
        if parent.file is not None:
            self._record(parent)

    # Split, merge, move: geometry

    def geometry_end(self, change: GeometryChange) -> None:
        # cow_context_vma_adjust(): remove, then add with the new geometry, one VMA after the other.
        context = self.context_of(change.vmas[0].mm)
        for i in range(len(change.vmas)):
            before = change.before[i]
            after = change.after[i]
            offset = _offset(before)
            if change.vmas[i].prepared and offset != 0:
                self._forget(context, before.anon_pgoff, before.last_anon_pgoff, offset)
                self.records_change(context, "add record")
                context.remaps.add(after.anon_pgoff, after.last_anon_pgoff, offset)
        if change.split_off is not None:
            self._remap(change.split_off, change.before[0].start)

    def vma_copied(self, source: VMA, new: VMA) -> None:
        # copy_vma() names the start of the source, also where only a later part of it moves.
        self._remap(new, source.start)

    def _remap(self, vma: VMA, old_start: int) -> None:
        """cow_context_do_remap(): `vma`, which is where it is now, was at `old_start`.  One that is home
        again is not to be recorded, and its old record left to whoever unmaps the source."""
        vma.mm.mmap_lock.assert_held_write()
        now = bounds_of(vma)
        offset = _offset(now)
        if offset != 0:
            context = self.context_of(vma.mm)
            records = self.records_of(context)
            self.records_change(context, "update record")
            old_offset = (old_start >> PAGE_SHIFT) - now.anon_pgoff
            if not records.update(now.anon_pgoff, now.last_anon_pgoff, old_offset, offset):
                records.add(now.anon_pgoff, now.last_anon_pgoff, offset)

    # A VMA's end

    def vma_removed(self, vma: VMA) -> None:
        # remove_vma().  The source of MREMAP_DONTUNMAP stays in its tree, and keeps what record it has.
        now = bounds_of(vma)
        offset = _offset(now)
        if vma.detached and offset != 0:
            self._forget(self.context_of(vma.mm), now.anon_pgoff, now.last_anon_pgoff, offset)

    # Records

    def _record(self, vma: VMA) -> None:
        """add_new_remap() for a VMA that has, or is about to have, anonymous pages.  It takes no lock of its own."""
        now = bounds_of(vma)
        offset = _offset(now)
        if offset != 0:
            context = self.context_of(vma.mm)
            self.records_change(context, "add record")
            context.remaps.add(now.anon_pgoff, now.last_anon_pgoff, offset)

    # Folios

    def folio_mapped(self, vma: VMA, addr: int, pfn: int, nr_pages: int) -> None:
        number = self.context_of(vma.mm).number
        if nr_pages == 1:
            self.anchor.m[pfn] = number
        else:
            self.anchor.v[pfn : pfn + nr_pages] = number

    def folios_mapped(self, vma: VMA, addrs: Int64s, pfns: Int64s) -> None:
        self.anchor.v[pfns] = self.context_of(vma.mm).number

    def folio_swapped_in(self, vma: VMA, addr: int, pfn: int, exclusive: bool) -> None:
        # __folio_set_anon(): whoever is first gets it, shared or not.
        self.folio_mapped(vma, addr, pfn, 1)

    def folio_reused(self, vma: VMA, pfn: int, nr_pages: int) -> None:
        # folio_move_anon_rmap()
        self.folio_mapped(vma, 0, pfn, nr_pages)

    def folio_moved(self, vma: VMA, addr: int, pfn: int) -> None:
        self.folio_mapped(vma, addr, pfn, 1)

    def folio_migrated(self, old: int, new: int, nr_pages: int) -> None:
        anchor = self.anchor.v
        anchor[new : new + nr_pages] = anchor[old : old + nr_pages]

    # The walk

    def walk(self, pfn: int) -> Iterator[tuple[VMA, int]]:
        # cow_context_walk(), walk_context().  In each context: offset 0 first; then, if nobody else mapped
        # the folio before and after that look, the end of the whole walk, found or not; else all that is
        # recorded.
        self.walks.count += 1
        flags: int = self.folios.flags.m[pfn]
        number: int = self.anchor.m[pfn]
        top = self.contexts[number]
        if top is None or flags & FOLIO_KSM:  # nothing is there for KSM yet
            return
        first: int = self.folios.index.m[pfn]
        nr_pages = self.folios.nr_pages(pfn)
        self.rcu.read_lock()
        try:
            for context in self._children_first(top):
                mm = self.get_mm(context)
                if mm is None:
                    continue
                try:
                    was_exclusive = self._exclusive(pfn, nr_pages)
                    yield from self._at(mm, first, nr_pages, 0)
                    if was_exclusive and self._exclusive(pfn, nr_pages):
                        return
                    self.records(context)
                    for offset in self.records_of(context).collect(first, first + nr_pages - 1):
                        yield from self._at(mm, first, nr_pages, offset)
                finally:
                    self.spaces.put(mm)
        finally:
            self.rcu.read_unlock()

    def _children_first(self, top: CowContext) -> Iterator[CowContext]:
        """traverse_contexts(): `top` first; then what is below it, depth first, the children of a context
        before itself."""
        yield top
        at = self._lowest_first(top)
        while at is not top:
            yield at
            sibling = self.next_sibling(at)
            if sibling is not None:
                at = self._lowest_first(sibling)
            else:
                above = at.parent
                assert above is not None  # `at` is below `top`
                at = above

    def _lowest_first(self, context: CowContext) -> CowContext:
        """Down along first children."""
        child = self.first_child(context)
        while child is not None:
            context = child
            child = self.first_child(context)
        return context

    def anchor_of(self, pfn: int) -> tuple[CowContext | None, int]:
        return self.contexts[self.anchor.m[pfn]], int(self.folios.index.m[pfn])

    def shift_of(self, vma: VMA) -> int | None:
        return 0

    def _exclusive(self, pfn: int, nr_pages: int) -> bool:
        """!folio_maybe_mapped_shared().  For a large folio Linux counts by process; here it is one whose
        pages are all mapped once, which only differs where two processes kept a part each."""
        if nr_pages == 1:
            return folio_mapcount(self.scheduler, self.folios, pfn) <= 1
        return int(self.folios.mapcount.v[pfn : pfn + nr_pages].max()) <= 1

    def _at(self, mm: MM, first: int, nr_pages: int, offset: int) -> Iterator[tuple[VMA, int]]:
        """walk_context_remap(): the VMAs there whose own offset is this one, prepared or not."""
        start = (first + offset) << PAGE_SHIFT
        for vma in self.vmas_at(mm, start, start + (nr_pages << PAGE_SHIFT)):
            then = seen(self.scheduler, vma)
            if (then.start >> PAGE_SHIFT) - then.anon_pgoff == offset:
                self.places.count += 1
                yield vma, start if start > then.start else then.start

    # What the design says of itself

    def why_missed(self, pfn: int, vma: VMA, addr: int) -> str:
        if self.folios.flags.m[pfn] & FOLIO_KSM:
            return "the page belongs to KSM, for which the design has nothing"
        why = super().why_missed(pfn, vma, addr)
        if why == NOT_BELOW or not self._exclusive(pfn, self.folios.nr_pages(pfn)):
            return why
        if _offset(bounds_of(vma)) != 0:
            return "mapped once, by a displaced VMA: the walk ends before it looks at records"
        return "mapped once, but not by whom the folio points to: the walk ends before it looks further down"
