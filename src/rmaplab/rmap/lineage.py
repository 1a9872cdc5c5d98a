# SPDX-License-Identifier: GPL-2.0-or-later
"""Design `lineage`: who descends from a page's owner, since when, and a look at the entry before the VMA.

A successor of `cow_context` (see there, and mm/cow_context.c of the prototype): a folio points to the context of the
address space that first had it, and a walk goes down the tree of forks.  Seven things are new.

- *Epochs.*  A page knows how many forks its owner had made when it was mapped.  A child that was forked before has no
  entry for it.  So a page that came after its owner's last fork is looked for in one address space.
- *Entries first.*  A walk looks at the page-table entry, under the leaf lock, which it leaves to its user, and asks for
  the VMA only where the entry is one.  What it hands to its user maps the folio.
- *An end.*  The walk ends where it found the only entry, and goes on to the next address space where it found one.
- *A tree in each leaf.*  The page that holds a leaf of a page table (struct ptdesc) has words that no PTE table uses
  (pt_index, __page_mapping).  In them begins a red-black tree of the VMAs of this range of 2 MiB that walks came to: a
  node is three words of the VMA, which anon_vma has there for itself (anon_vma, anon_vma_chain) and this design does
  not.  A walk links what it had to look for in the address space's tree.  Forks do nothing for it, and nothing is
  allocated.
- *A wide VMA.*  A context remembers one VMA that got a page in another half of a leaf than where it begins, and fork
  its copy.  Of most leaves that say nothing it is the only VMA.
- *Heirs.*  A context without an address space and with one child makes room for it, and leads there.  When there are
  more of the dead than of the living, folios are pointed to the heirs, and the dead are freed.
- *No references.*  Page tables, VMAs and mm_structs outlive a grace period, and a walk is one RCU section.

Data
- for each page, its context, its anonymous page offset and its epoch: what `folio->mapping` and the 64 bits of
  `folio->index` have room for (45 bits of page offset with five-level page tables, 19 of epoch, which sticks at its
  greatest value).
- for each context: the epoch of its address space, and `born`, the epoch of its parent when it was forked.
- for each context, a remap tree: of page offsets that are not at the address that they say alone, *all* displacements
  at which this address space has them, 0 among them.
- the highest record, in nearly every process that of the stack, which exec moved, lies in the context, in no node.
- that 0 is among the displacements is a bit of the record: a VMA that moves needs no array while it is in both places.
- for each leaf that walks came to: the VMA that begins before it and has its first page, and a tree of those that begin
  in it.  So a VMA is in one tree at most.  The shift of `cow_context` is 0, for 7.3 has the anonymous page offset.

Invariants
- Index, Subtree: those of `cow_context`, with shift 0.
- Epoch: an entry in a child's subtree for a folio that points to the parent is of a page with an epoch of at most the
  child's `born`.  The epoch moves at the end of dup_mmap() only, with mmap_lock and all copied VMAs locked for writing:
  who maps a page in a copied VMA before the copy reads a value of at most `born`, and who reads a greater one comes
  after all copies.  What may be older than it looks (shared swap-in, memory taken over) has epoch 0; KSM pages have
  none.
- Order: children stand newest first, so `born` falls along the list, and a walk ends at the first that is too old.
- Records: page offsets without a record are at the address that they say.  Others are where the record says, and the
  record says all of it, before the first entry is there and until the last one is gone.
- Indices: whoever takes a VMA out of the address space's tree, or takes a range away from it, or lets it begin in
  another leaf, takes it out of the indices there afterwards, under the leaf locks.  A walk puts one in under the same
  lock, if it finds it in the address space's tree then.  So a VMA that is freed is in no index.  A walk that got it
  from one before is in its RCU section still; it checks the address space and the range, and asks the address space's
  tree if they are wrong.  VMAs do not overlap and do not pass each other, so the order in a tree is right; while bounds
  change, a search may miss, which is the same as not to be there.  A leaf that lies in a VMA which goes is out of the
  page table before that is freed, and needs no word.
- Wide: who lets a context remember a VMA has it locked, and who takes a VMA out of the address space has it locked for
  writing, and forgets it before it is freed.  At an exit, entries go before VMAs are freed, and a walk has one under
  the leaf lock.  A walk checks the address space and the range.
- End: with the leaf locked, its entry present and a mapcount of 1, nothing else maps the page.  What a fork copies from
  there later is as the walk's user left it; a user who did not get the leaf locked sees by `forks` what came between.
  Entries that wait for a migration are in no mapcount: a walk from a context that a migration holds ends nowhere early.
- Heirs: what points to a context that made room is in the subtree of its heir.  A grace period after it made room,
  nothing comes to point to it that does not.  So it may be freed, a grace period after all entries below the heir were
  visited, parents before children, and again where entries moved, if none waited for a migration and no migration
  holds it.

Proof that a walk is complete: every entry is in the subtree (Subtree), in no child that is left out (Epoch, Order), at
the index plus 0 or a recorded displacement (Index, Records), where the walk looks under the leaf lock, as the user of a
walk that yields every candidate would.  Parents before children, retries where entries move, a context held by a
migration, the check whether the folio is mapped: as in `cow_context`.

Locking: as there.  The leaf lock, which is innermost, covers the entries of the leaf and its index.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import ClassVar, Final, cast

import numpy as np
from mypy_extensions import mypyc_attr

from rmaplab.mm.folio import FOLIO_KSM, Column, Int64s, folio_mapcount
from rmaplab.mm.geometry import Bounds, GeometryChange, bounds_of
from rmaplab.mm.locking import lock_leaf
from rmaplab.mm.pagetable import (
    LEAF_ENTRIES,
    LEAF_SHIFT,
    LEAF_SIZE,
    PTE_ANON,
    PTE_KSM,
    PTE_MIGRATION,
    PTE_SHIFT,
    PTE_SWAP,
    Leaf,
)
from rmaplab.mm.reverse_map import Attachment
from rmaplab.mm.takeover import TakenOver
from rmaplab.mm.vma import MM, PAGE_SHIFT, PAGE_SIZE, VM_DONTCOPY, VM_WIPEONFORK, VMA, seen
from rmaplab.rmap.context import CowContext
from rmaplab.rmap.cow_context import CONTEXT_SHIFT, PGOFF_BIAS, PGOFF_MASK, CowContextRmap, Displaced
from rmaplab.rmap.interval_tree import IntervalNode, IntervalTree
from rmaplab.rmap.ksm_places import KsmPlace
from rmaplab.rmap.remap_tree import RemapTree
from rmaplab.sync.fields import OF_PAGE
from rmaplab.sync.locks import Data, SpinLock
from rmaplab.sync.order import (
    depends,
    initialised,
    read_once,
    smp_load_acquire,
    smp_store_release,
    write_once,
)
from rmaplab.sync.work import Tally

_LAST_EPOCH: Final = (1 << 19) - 1
HALF_SHIFT: Final = LEAF_SHIFT - 1  # one index covers half a leaf
MISSES: Final = 8  # walks that have to look elsewhere before a leaf that has a VMA takes in what they found
_ANY: Final = -1  # an epoch that no child is too old for


class Place(IntervalNode):
    """The three words of a VMA that are its place in the tree of the leaf in which it begins."""

    def __init__(self, vma: VMA) -> None:
        super().__init__()
        self.vma: Final = vma


class Index:
    """What one half of a leaf says of its VMAs that may have pages."""

    def __init__(self, leaf: Leaf) -> None:
        self.leaf: Final = leaf  # another that is made in its place says nothing
        self.before: VMA | None = None  # has the first page there, and begins before it: in the other half, or the leaf
        self.tree: Final = IntervalTree()  # those that begin in it
        self.places: Final[dict[int, Place]] = {}  # by VMA
        self.missed = 0  # walks that it said nothing to

    def vmas(self) -> list[VMA]:
        """All of them."""
        inside = [place.vma for place in self.places.values()]
        return inside if self.before is None else [self.before, *inside]


class Line(CowContext):
    """A context with its place in time, and the indices of its leaves, which lie in these."""

    def __init__(
        self, number: int, mm: MM, parent: CowContext | None, lock: SpinLock, remaps: RemapTree, born: int
    ) -> None:
        super().__init__(number, mm, parent, lock, remaps)
        self.forward: Line | None = None  # who took its place, or took the place of who did
        self.stands_for: Final[list[Line]] = []  # in whose place it stands, and to which folios may point
        self.settled = False  # it made room a grace period ago: no folio will point to it that does not now
        self.born = born
        self.forks = 0  # two for each fork that this address space made; odd while it makes one
        self.indices: Final[dict[int, Index]] = {}  # by address >> HALF_SHIFT
        self.wide: VMA | None = None  # one that got a page in another half than where it begins, or its copy

    @property
    def epoch(self) -> int:
        """How many forks this address space has made."""
        return min(self.forks >> 1, _LAST_EPOCH)


@mypyc_attr(allow_interpreted_subclasses=True)
class LineageRmap(CowContextRmap):
    """Contexts with epochs; entries are looked at first, and VMAs found by an index in the leaf."""

    name = "lineage"
    vma_fields = 24  # its place in the tree of a leaf: struct rb_node
    context_fields = 56  # forks, born; the wide VMA; the highest record; where the others begin and end
    highest_apart = True
    home_marked = True
    tries_locks = True
    dead_per_living: ClassVar[int] = 1  # contexts, before those of the dead are collected

    def __init__(self, attachment: Attachment) -> None:
        super().__init__(attachment)
        self._collecting = False
        self.since: Final[Column] = attachment.folios.column(np.int64)
        self.in_vain: Final[Tally] = self.ledger.tally("entries looked at in vain")
        self.searched: Final[Tally] = self.ledger.tally("interval tree nodes visited")  # those of leaves
        self.changed: Final[Tally] = self.ledger.tally("vma index entries changed")
        self.entries: Final[Tally] = self.ledger.tally("page-table entries looked at")
        self.living = 0  # contexts with an address space
        self.made_room: Final[list[Line]] = []  # that folios may still point to, the oldest first
        self._taking_over = False
        self._glances = False

    def line_of(self, mm: MM) -> Line:
        return cast(Line, mm.rmap[self.slot])

    def heir_of(self, context: CowContext) -> CowContext | None:
        line = cast(Line, context)
        return self._heir(line) if line in self.made_room else None

    # An address space

    def make_context(self, number: int, mm: MM, parent: CowContext | None, lock: SpinLock) -> CowContext:
        born = 0 if parent is None else cast(Line, parent).epoch
        line = Line(number, mm, parent, lock, self.new_remap_tree(), born)
        initialised(self.scheduler, "new context", line, "parent born forward")
        self.living += 1
        return line

    def mm_gone(self, mm: MM) -> None:
        self.living -= 1
        super().mm_gone(mm)
        self._collect()

    def mm_forked(self, parent: MM, child: MM) -> None:
        self._count_fork(self.line_of(parent))
        super().mm_forked(parent, child)

    def mm_fork_end(self, parent: MM, child: MM) -> None:
        self._count_fork(self.line_of(parent))

    def _count_fork(self, line: Line) -> None:
        write_once(self.scheduler, "next epoch", line, "forks")
        line.forks += 1

    def _forks(self, line: Line) -> int:
        return cast(int, read_once(self.scheduler, "epoch", line, "forks", line.forks))

    def put(self, context: CowContext) -> None:
        """In an RCU section: who has the last but one reference may find that another dropped the last meanwhile."""
        self.rcu.read_lock()
        super().put(context)
        self.rcu.read_unlock()

    def still_referred_to(self, context: CowContext) -> None:
        """What only a child refers to makes room.  Who finds its lock taken leaves that to the holder, who looks
        again."""
        while context.refcount == 1 and context.mm is None and context.first_child is not None:
            if self._make_room(cast(Line, context)):
                break

    def lock_parent(self, context: CowContext) -> CowContext | None:
        """The parent, locked; who takes a parent's place holds its lock."""
        while True:
            above = context.parent
            if above is None:
                return None
            above.lock.lock()
            if context.parent is above:
                return above
            above.lock.unlock()

    def _make_room(self, gone: Line) -> bool:
        """The only child of `gone`, whose address space is gone, takes its place.  Who has the lock of `gone` is about
        to drop the last reference, and then it goes altogether."""
        above = self.lock_parent(gone)
        done = True
        if gone.lock.try_lock():
            done = False
            child = cast("Line | None", gone.first_child)
            write_once(self.scheduler, "forward", gone, "forward")
            if gone.refcount == 1 and child is not None:
                # One step: whoever would hold it from now on (refcount_inc_not_zero()) is led to the heir.
                gone.refcount = 0
                gone.forward = child
                child.stands_for.extend([gone, *gone.stands_for])
                gone.stands_for.clear()
                self.made_room.append(gone)
                self._take_place(child, gone, above)
                self.rcu.call("links of a cow_context", Data(), partial(self._settle, gone))
                done = True
            gone.lock.unlock()
        if above is not None:
            above.lock.unlock()
        return done

    def _take_place(self, child: Line, gone: Line, above: CowContext | None) -> None:
        """`gone` keeps its own links, for who stands there.  Who climbs reads the parent before the sibling, and who
        reads a new `born` finds the new parent.  An heir without a parent waits for no lock when it goes, so that is
        the last word about it."""
        before = cast("Line | None", gone.previous_sibling)
        after = gone.next_sibling
        write_once(self.scheduler, "next sibling of the heir", child, "next_sibling")
        child.next_sibling = after
        child.previous_sibling = before
        smp_store_release(self.scheduler, "parent of the heir", child, "parent")
        child.parent = above
        if above is None:
            return
        smp_store_release(self.scheduler, "birth of the heir", child, "born")
        child.born = gone.born
        if before is not None:
            smp_store_release(self.scheduler, "link heir", before, "next_sibling")
            before.next_sibling = child
        else:
            smp_store_release(self.scheduler, "link heir", above, "first_child")
            above.first_child = child
        if after is not None:
            after.previous_sibling = child

    def _settle(self, gone: Line) -> None:
        gone.remaps.clear()
        gone.settled = True

    def stand_ins(self, context: CowContext) -> int:
        return len(cast(Line, context).stands_for)

    def _free(self, context: CowContext) -> None:
        line = cast(Line, context)
        for other in line.stands_for:
            super()._free(other)
        super()._free(context)

    def going(self, context: CowContext) -> None:
        for gone in cast(Line, context).stands_for:
            self.made_room.remove(gone)

    # The dead

    def _collect(self) -> None:
        """If there are more contexts of the dead than of the living, let folios point to the heirs of those that made
        room, the oldest first.  One task at a time does this (mutex_trylock())."""
        if self._collecting:
            return
        self._collecting = True
        tried: list[Line] = []
        for gone in list(self.made_room):
            if self.context_pool.live - self.living <= self.dead_per_living * self.living:
                break
            self.rcu.read_lock()  # until it holds the heir
            heir = self._heir(gone) if gone.settled and gone in self.made_room else None
            held = heir is not None and heir not in tried and heir.refcount != 0
            if heir is not None and held:
                heir.refcount += 1  # it stays, and does not make room
            self.rcu.read_unlock()
            if heir is not None and held:
                tried.append(heir)
                self._collect_for(heir)
                self.put(heir)
        self._collecting = False

    def _collect_for(self, heir: Line) -> None:
        old = [line for line in heir.stands_for if line.settled]
        for line in heir.stands_for:
            write_once(self.scheduler, "forward", line, "forward")
            line.forward = heir
        if self._point_to(heir, {line.number for line in old}):
            held = {self.where.m[pfn] >> CONTEXT_SHIFT for pfn in self.held}
            for line in old:
                if line.number not in held:
                    heir.stands_for.remove(line)
                    self.context_pool.free()
                    self.made_room.remove(line)
                    self.rcu.call("cow_context", line, partial(self._free, line))

    def _point_to(self, heir: Line, old: set[int]) -> bool:
        """Let each folio that is mapped and points to one of `old` point to `heir`, where all who map it are.  False if
        an entry waits for a migration, whose folio nobody finds by it."""
        numbers = np.array(sorted(old), dtype=np.int64)
        self.rcu.read_lock()
        try:
            for context in self._younger(heir, _ANY):
                mm = self._space(context)
                again = mm is not None
                while mm is not None and again:
                    begun = context.moves.read_begin()
                    for number in sorted(mm.page_table.leaves):
                        leaf = lock_leaf(mm.page_table, number << LEAF_SHIFT)
                        if leaf is not None:
                            done = self._point_leaf_to(leaf, heir, numbers)
                            leaf.lock.unlock()
                            if not done:
                                return False
                    again = context.moves.read_retry(begun)
        finally:
            self.rcu.read_unlock()
        return True

    def _point_leaf_to(self, leaf: Leaf, heir: Line, old: Int64s) -> bool:
        """The same of the pages of one leaf, which is locked: cmpxchg(folio->mapping), after the epoch in folio->index
        is 0.  A page of KSM points to its places."""
        self.entries.count += leaf.used
        if (leaf.v & PTE_MIGRATION).any():
            return False
        pfns = leaf.v[(leaf.v & (PTE_ANON | PTE_KSM)) == PTE_ANON] >> PTE_SHIFT
        self._point_pages_to(pfns, heir, old)
        if (leaf.v & PTE_SWAP).any():  # who faults there may find a folio in the swap cache (swap_cache_get_folio())
            self._point_pages_to(np.flatnonzero(self.folios.mapcount.v == 0), heir, old)
        return True

    def _point_pages_to(self, pfns: Int64s, heir: Line, old: Int64s) -> None:
        pfns = pfns[np.isin(self.where.v[pfns] >> CONTEXT_SHIFT, old)]
        if (self.folios.order.v[pfns] != 0).any():  # all rows of a large folio
            pfns = np.flatnonzero(np.isin(self.folios.head.v, self.folios.head.v[pfns]))
        for pfn in pfns.tolist():
            self._set(pfn)
        self.since.v[pfns] = 0
        self.where.v[pfns] = self.where.v[pfns] & PGOFF_MASK | heir.number << CONTEXT_SHIFT

    def _heir(self, gone: Line) -> Line:
        """Who has its place now."""
        at = gone
        while at.forward is not None:
            at = at.forward
        return at

    # VMAs

    def vma_prepare(self, vma: VMA) -> None:
        self._begin(vma)

    def vma_forked(self, parent: VMA, child: VMA) -> None:
        self._begin(child)
        line = self.line_of(child.mm)
        if parent is child:
            return  # taken over
        if parent is self.line_of(parent.mm).wide:
            self._set_wide(line, child)
        for first, last, offset in self._places(child, bounds_of(child)):
            if offset:  # its tree may not have those at home yet, which are copies of the parent's
                for other in self._at_home(parent.mm, first, last):
                    if not other.flags & (VM_WIPEONFORK | VM_DONTCOPY):
                        self._add(line, *_common(other, first, last), 0)

    def vma_joined(self, vma: VMA, donor: VMA) -> None:
        self._set_shift(vma, 0)

    def vma_copied(self, source: VMA, new: VMA) -> None:
        self._begin(new)

    def _begin(self, vma: VMA) -> None:
        """`vma` may have pages from now on.  Of two VMAs for the same page offsets the second finds the first: what
        says that a VMA may have pages, and its record, appear under one lock."""
        context = self.context_of(vma.mm)
        context.lock.lock()
        self._set_shift(vma, 0)
        self._record_locked(context, vma)
        context.lock.unlock()

    def geometry_end(self, change: GeometryChange) -> None:
        self._move_records(change)
        for i in range(len(change.vmas)):
            vma = change.vmas[i]
            self._moved_in_indices(vma, change.before[i], change.after[i])
            if self.line_of(vma.mm).wide is vma and vma.start >> HALF_SHIFT == vma.end - 1 >> HALF_SHIFT:
                self._set_wide(self.line_of(vma.mm), None)
        if change.split_off is not None:
            self._named_beside(change.vmas[0], change.split_off)
        self.context_of(change.vmas[0].mm).moves.write_end()

    def vma_absorbed(self, vma: VMA, gone: VMA) -> None:
        super().vma_absorbed(vma, gone)
        self._leave_indices(gone)

    def vma_removed(self, vma: VMA) -> None:
        super().vma_removed(vma)
        self._leave_indices(vma)

    # Records

    def _places(self, vma: VMA, bounds: Bounds) -> list[Displaced]:
        """Where its pages are, at home as well, if it may have any."""
        if self.shift_of(vma) is None:
            return []
        return [(bounds.anon_pgoff, bounds.last_anon_pgoff, (bounds.start >> PAGE_SHIFT) - bounds.anon_pgoff)]

    def _record(self, vma: VMA) -> None:
        context = self.context_of(vma.mm)
        context.lock.lock()
        self._record_locked(context, vma)
        context.lock.unlock()

    def _record_locked(self, context: CowContext, vma: VMA) -> None:
        """A displaced VMA is recorded, and along with it who else has its page offsets, at home; a VMA at home only
        where there are records."""
        for first, last, offset in self._places(vma, bounds_of(vma)):
            if offset:
                for other in self._at_home(vma.mm, first, last):
                    self._add_locked(context, *_common(other, first, last), 0)
                self._add_locked(context, first, last, offset)
            elif context.remaps.firsts:
                for low, high, at in context.remaps.ranges():
                    if at and low <= last and high >= first:
                        self._add_locked(context, max(low, first), min(high, last), 0)

    def _at_home(self, mm: MM, first: int, last: int) -> list[VMA]:
        """VMAs that may have pages of these page offsets at the address that they say."""
        there = self.vmas_at(mm, first << PAGE_SHIFT, (last + 1) << PAGE_SHIFT)
        return [vma for vma in there if self.shift_of(vma) is not None and vma.anon_pgoff == vma.start >> PAGE_SHIFT]

    def _add(self, context: CowContext, first: int, last: int, offset: int) -> None:
        context.lock.lock()
        self._add_locked(context, first, last, offset)
        context.lock.unlock()

    def _add_locked(self, context: CowContext, first: int, last: int, offset: int) -> None:
        self.records_change(context, "add record")
        context.lock.assert_held()
        context.remaps.add(first, last, offset)

    def _forget(self, context: CowContext, first: int, last: int, offset: int) -> None:
        """One that is at home alone needs no record."""
        context.lock.lock()
        tree = context.remaps
        if tree.firsts and tree.lasts[-1] >= first and tree.firsts[0] <= last:
            self.records_change(context, "remove record")
            context.lock.assert_held()
            tree.remove(first, last, offset)
            if offset:
                for low, high in _at_home_only(tree, first, last):
                    tree.remove(low, high, 0)
        context.lock.unlock()

    # Indices

    def _leave_indices(self, vma: VMA) -> None:
        """`vma` goes: no half of a leaf that stays says any more that it is there.  Those that lie in it are taken out
        before it is freed (free_pgtables(), remove_vma())."""
        mm = vma.mm
        if mm.users == 0:
            return
        if self.line_of(mm).wide is vma:
            self._set_wide(self.line_of(mm), None)
        there = _halves(mm, vma.start, vma.end)
        if vma.detached:
            stay = [addr >> LEAF_SHIFT for addr in (vma.start, vma.end) if addr & (LEAF_SIZE - 1)]
            indices = self.line_of(mm).indices
            lost: Iterable[int] = range(vma.start >> HALF_SHIFT, (vma.end - 1 >> HALF_SHIFT) + 1)
            if vma.nr_pages >> (HALF_SHIFT - PAGE_SHIFT) > len(indices):
                lost = [number for number in indices if vma.start <= number << HALF_SHIFT < vma.end]
            for number in lost:
                if number << HALF_SHIFT >> LEAF_SHIFT not in stay:  # its leaf is gone, or mremap() moved it elsewhere
                    indices.pop(number, None)
            there = [number for number in there if number << HALF_SHIFT >> LEAF_SHIFT in stay]
        self._leave(vma, there)

    def _moved_in_indices(self, vma: VMA, old: Bounds, new: Bounds) -> None:
        """It says no more that `vma` is there where that has lost its range, or begins in another half now."""
        lost = [number for number in _halves(vma.mm, old.start, old.end)
                if not new.start >> HALF_SHIFT <= number <= (new.end - 1) >> HALF_SHIFT]  # fmt: skip
        if old.start >> HALF_SHIFT != new.start >> HALF_SHIFT:
            lost += [number for number in (old.start >> HALF_SHIFT, new.start >> HALF_SHIFT) if number not in lost]
        self._leave(vma, lost)
        line = self.line_of(vma.mm)
        index = line.indices.get(new.start >> HALF_SHIFT)
        if index is not None and vma.id in index.places:  # the words hold no bounds
            index.places[vma.id].first, index.places[vma.id].last = new.start, new.end - 1

    def _leave(self, vma: VMA, there: list[int]) -> None:
        """These halves of leaves say no more that `vma` is there."""
        line = self.line_of(vma.mm)
        for number in dict.fromkeys(there):
            if number in line.indices:
                leaf = lock_leaf(vma.mm.page_table, number << HALF_SHIFT)
                if leaf is not None:
                    self._unname(line.indices[number], leaf, vma)
                    leaf.lock.unlock()

    def _named_beside(self, vma: VMA, new: VMA) -> None:
        """`new` was split from `vma`: it is named where that is."""
        line = self.line_of(vma.mm)
        number = new.start >> HALF_SHIFT
        if number in line.indices:
            leaf = lock_leaf(vma.mm.page_table, number << HALF_SHIFT)
            if leaf is not None:
                index = line.indices[number]
                if vma.id in index.places or index.before is vma:
                    self._name(line, number, leaf, new)
                leaf.lock.unlock()

    def _unname(self, index: Index, leaf: Leaf, vma: VMA) -> None:
        """The locked leaf says no more that `vma` is there."""
        leaf.lock.assert_held()
        place = index.places.pop(vma.id, None)
        if place is not None:
            index.tree.remove(place, self.searched)
            self.changed.count += 1
        elif index.before is vma:
            index.before = None
            self.changed.count += 1

    def _name(self, line: Line, number: int, leaf: Leaf, vma: VMA) -> None:
        """Let the locked leaf say that `vma` is in this half, or in both, if it begins before the leaf."""
        leaf.lock.assert_held()
        then = seen(self.scheduler, vma)
        if then.start >> LEAF_SHIFT != number >> 1:
            number &= ~1
        index = self._index(line, number, leaf)
        if then.start >> HALF_SHIFT != number:
            index.before = vma
        elif vma.id not in index.places:
            place = index.places[vma.id] = Place(vma)
            index.tree.insert(place, then.start, then.end - 1, self.searched)
        self.changed.count += 1

    def _index(self, line: Line, number: int, leaf: Leaf) -> Index:
        index = line.indices.get(number)
        if index is None or index.leaf is not leaf:
            index = line.indices[number] = Index(leaf)
        return index

    def _has_new_page(self, vma: VMA, addr: int) -> None:
        """A page of its own comes to `addr`: if it begins in this half of the leaf, which is locked, that says so."""
        number = addr >> HALF_SHIFT
        leaf = vma.mm.page_table.leaves.get(addr >> LEAF_SHIFT)
        if leaf is not None and not self._taking_over and vma.start >> HALF_SHIFT == number:
            line = self.line_of(vma.mm)
            if vma.id not in self._index(line, number, leaf).places:
                self._name(line, number, leaf, vma)

    def _is_wide(self, vma: VMA, addr: int) -> bool:
        """Is there no wide VMA yet, and does `vma` begin before the half around `addr`?"""
        return self.line_of(vma.mm).wide is None and vma.start >> HALF_SHIFT != addr >> HALF_SHIFT

    def _set_wide(self, line: Line, vma: VMA | None) -> None:
        """Who sets it has the VMA locked, and who takes that VMA out of the address space has it locked for writing."""
        smp_store_release(self.scheduler, "wide VMA", line, "wide")
        line.wide = vma
        self.changed.count += 1

    # Folios

    def _epoch(self, vma: VMA) -> int:
        return min(self._forks(self.line_of(vma.mm)) >> 1, _LAST_EPOCH)

    def folio_mapped(self, vma: VMA, addr: int, pfn: int, nr_pages: int) -> None:
        super().folio_mapped(vma, addr, pfn, nr_pages)
        self._has_new_page(vma, addr)
        if self._is_wide(vma, addr):
            self._set_wide(self.line_of(vma.mm), vma)
        self.since.v[pfn : pfn + nr_pages] = 0 if self._taking_over else self._epoch(vma)

    def folios_mapped(self, vma: VMA, addrs: Int64s, pfns: Int64s) -> None:
        super().folios_mapped(vma, addrs, pfns)
        if (addrs >> HALF_SHIFT == vma.start >> HALF_SHIFT).any():
            self._has_new_page(vma, vma.start)
        if self._is_wide(vma, int(addrs.max())):
            self._set_wide(self.line_of(vma.mm), vma)
        self.since.v[pfns] = self._epoch(vma)

    def folio_swapped_in(self, vma: VMA, addr: int, pfn: int, exclusive: bool) -> None:
        if exclusive:
            super().folio_swapped_in(vma, addr, pfn, exclusive)
            self.since.m[pfn] = self._epoch(vma)
            return
        self.rcu.read_lock()  # from here on the oldest does not settle, if it makes room
        where = self._where(self._oldest(self.line_of(vma.mm)), vma, addr)
        self._set(pfn)
        self.where.m[pfn] = where
        self.since.m[pfn] = 0
        self.rcu.read_unlock()

    def _oldest(self, line: Line) -> Line:
        """The context that all of its tree descend from."""
        at = line
        while True:
            above = self._parent(at)
            self.visited.count += 1
            if above is None:
                return self._heir(at)
            at = cast(Line, above)

    def folio_reused(self, vma: VMA, pfn: int, nr_pages: int) -> None:
        super().folio_reused(vma, pfn, nr_pages)
        self.since.v[pfn : pfn + nr_pages] = self._epoch(vma)

    def folio_moved(self, vma: VMA, addr: int, pfn: int) -> None:
        super().folio_moved(vma, addr, pfn)
        self.since.m[pfn] = self._epoch(vma)

    def folio_migrated(self, old: int, new: int, nr_pages: int) -> None:
        super().folio_migrated(old, new, nr_pages)
        since = self.since.v
        since[new : new + nr_pages] = since[old : old + nr_pages]

    # KSM

    def let_go(self, places: list[KsmPlace]) -> None:
        """More contexts of the dead than of the living may be left."""
        super().let_go(places)
        if places:
            self._collect()

    # Memory that is there already

    def take_over(self, found: TakenOver) -> None:
        for known in found.vmas:
            known.vma.rmap[self.slot] = 0
        self._taking_over = True
        try:
            super(CowContextRmap, self).take_over(found)
            for mm, _ in found.spaces:
                self.line_of(mm).forks = 0  # forks that are over
        finally:
            self._taking_over = False

    # Who stands for whom

    def stays(self, pfn: int, top: CowContext) -> bool:
        """As in `cow_context`, of the context that the folio points to itself, which is not looked at before."""
        if any(self.where.m[held] >> CONTEXT_SHIFT == top.number for held in self.held):
            return True
        return folio_mapcount(self.scheduler, self.folios, pfn) != 0

    def _bearer(self, first: Line) -> tuple[Line, bool]:
        """The context that stands for that one now, and whether it is another one."""
        at = first
        hops = 0
        while True:
            forward = cast("Line | None", read_once(self.scheduler, "context", at, "forward", at.forward))
            if forward is None:
                break
            at = forward
            hops += 1
        self.visited.count += hops
        if hops > 1 and not self._glances:  # whoever comes next has one step to go
            write_once(self.scheduler, "forward", first, "forward")
            first.forward = at
        return at, hops > 0

    def anchor_of(self, pfn: int) -> tuple[CowContext | None, int]:
        where: int = self.where.m[pfn]
        line = cast("Line | None", self.contexts[where >> CONTEXT_SHIFT])
        return None if line is None else self._heir(line), (where & PGOFF_MASK) - PGOFF_BIAS

    # The walk

    def _of_time(self, child: Line, top: CowContext, since: int) -> bool:
        """May `child`, found below `top`, have pages of `top` of that epoch?"""
        born = cast(int, smp_load_acquire(self.scheduler, "born", child, "born", child.born))
        return born >= since or self._parent(child) is not top  # it took a place meanwhile, and counts otherwise

    def _parent(self, context: CowContext) -> CowContext | None:
        above = smp_load_acquire(self.scheduler, "parent", context, "parent", context.parent)
        return cast("CowContext | None", above)

    def _younger(self, top: CowContext, since: int) -> Iterator[CowContext]:
        """`top` and all below it that may have a page of that epoch, each before its children."""
        at = top
        while True:
            yield at
            child = self.first_child(at)
            if child is not None and (at is not top or self._of_time(cast(Line, child), top, since)):
                at = child
                continue
            while at is not top:
                above = self._parent(at)
                sibling = self.next_sibling(at)
                if sibling is not None and (above is not top or self._of_time(cast(Line, sibling), top, since)):
                    at = sibling
                    break
                if above is None:
                    return  # `top` made room meanwhile
                at = above
            if at is top:
                return

    def walk(self, pfn: int) -> Iterator[tuple[VMA, int]]:
        return self._walk(pfn, False)

    def walk_locking(self, pfn: int) -> Iterator[tuple[VMA, int]]:
        return self._walk(pfn, True)

    def _walk(self, pfn: int, locking: bool) -> Iterator[tuple[VMA, int]]:
        """`locking`: the leaf of each place stays locked, for the caller."""
        self.walks.count += 1
        flags: int = self.folios.flags.m[pfn]
        if flags & FOLIO_KSM:
            yield from self._walk_ksm_at(pfn, locking)
            return
        self.rcu.read_lock()
        try:
            where = cast(int, read_once(self.scheduler, "folio->mapping", self.where, OF_PAGE, self.where.m[pfn], pfn))
            pointed_to = self.contexts[where >> CONTEXT_SHIFT]
            if pointed_to is None or not self.stays(pfn, pointed_to):
                return
            top, inherited = self._bearer(cast(Line, pointed_to))
            first = (where & PGOFF_MASK) - PGOFF_BIAS
            since: int = 0 if inherited else self.since.m[pfn]
            nr_pages = self.folios.nr_pages(pfn)
            everywhere = nr_pages > 1 or self.in_migration(top)
            for context in self._younger(top, since):
                mm = self._space(context)
                if mm is None:
                    continue
                line = cast(Line, context)
                again = True
                while again:
                    forks = self._forks(line)
                    begun = context.moves.read_begin()
                    found = alone = False
                    for offset in self._offsets(context, first, nr_pages):
                        start = (first + offset) << PAGE_SHIFT
                        for vma, addr, only in self._there(line, mm, pfn, nr_pages, start, locking):
                            found = True
                            alone = only
                            yield vma, addr
                        if found and not everywhere:
                            break  # an address space maps a page once
                    again = context.moves.read_retry(begun)
                if alone and not everywhere and self._unforked(line, forks):
                    return
        finally:
            self.rcu.read_unlock()

    def in_migration(self, top: CowContext) -> bool:
        """May entries for its pages wait for a migration, which no mapcount knows?"""
        return top in self.held.values()

    def _unforked(self, line: Line, forks: int) -> bool:
        """Has no fork copied an entry of that address space since it had made `forks`?"""
        return not forks & 1 and self._forks(line) == forks

    def glance(self, pfn: int) -> Iterator[tuple[VMA, int]]:
        """Without an index that was not there before."""
        self._glances = True
        try:
            yield from self.walk(pfn)
        finally:
            self._glances = False

    def _space(self, context: CowContext) -> MM | None:
        """Its address space, which stays as long as this RCU section; None if it is gone."""
        self.visited.count += 1
        return cast("MM | None", read_once(self.scheduler, "visit context", context, "mm", context.mm))

    def _offsets(self, context: CowContext, first: int, nr_pages: int) -> list[int]:
        """The displacements at which an address space may have these page offsets."""
        tree = self.records(context)
        others = len(tree.firsts) - tree.apart()
        # The context says itself what the highest record is, and where the others begin and end.
        if others < len(tree.firsts) and tree.lasts[others] >= first and tree.firsts[others] < first + nr_pages:
            if nr_pages == 1:
                return tree.entries[others].values
        elif others == 0 or tree.firsts[0] >= first + nr_pages or tree.lasts[others - 1] < first:
            return [0]
        found = tree.offsets(first, first + nr_pages - 1)
        if not found:
            return [0]
        if nr_pages > 1 and 0 not in found:
            return [0, *found]  # a part of them may have no record
        return found

    def _there(
        self, line: Line, mm: MM, pfn: int, nr_pages: int, start: int, locking: bool
    ) -> Iterator[tuple[VMA, int, bool]]:
        """The VMAs with entries for the folio from `start` on, and whether the entry there is all that maps it."""
        end = start + nr_pages * PAGE_SIZE
        at = start
        found = False
        while at < end:
            stop = min(end, (at >> LEAF_SHIFT) + 1 << LEAF_SHIFT)
            self.touch("mm_struct", mm.users_word)
            leaf = lock_leaf(mm.page_table, at)
            if leaf is None:
                at = stop
                continue
            at = self._hit(leaf, at, stop, pfn, nr_pages)
            vma = None
            alone = False
            if at < stop:
                vma = self._vma_at(line, mm, leaf, at)
                entry: int = leaf.m[at >> PAGE_SHIFT & (LEAF_ENTRIES - 1)]
                alone = entry & PTE_ANON != 0 and folio_mapcount(self.scheduler, self.folios, pfn) == 1
            else:
                leaf.lock.looked()
            if vma is None:
                leaf.lock.unlock()
                if at < stop:
                    at += PAGE_SIZE  # munmap() took the VMA out, and is about to take the entry away
                continue
            found = True
            self.places.count += 1
            then = seen(self.scheduler, vma)
            first = max(start, then.start)
            if locking and first >> LEAF_SHIFT == at >> LEAF_SHIFT:
                self.locked = leaf
            else:
                leaf.lock.unlock()
            yield vma, first, alone
            at = max(then.end, at + PAGE_SIZE)
        if not found:
            self.in_vain.count += 1

    def _hit(self, leaf: Leaf, at: int, stop: int, pfn: int, nr_pages: int) -> int:
        """The first address in [at, stop) with an entry that maps a page of the folio, or may be waiting for one;
        `stop` if there is none."""
        while at < stop:
            entry: int = leaf.m[at >> PAGE_SHIFT & (LEAF_ENTRIES - 1)]
            if entry & PTE_MIGRATION or (entry & PTE_ANON and pfn <= entry >> PTE_SHIFT < pfn + nr_pages):
                return at
            at += PAGE_SIZE
        return stop

    def _vma_at(self, line: Line, mm: MM, leaf: Leaf, addr: int) -> VMA | None:
        """The VMA with the entry at `addr`, whose leaf is locked: the one that the leaf says, or it says so next."""
        number = addr >> HALF_SHIFT
        vma = self._said(line, leaf, number, addr)
        if vma is not None:
            then = seen(self.scheduler, vma)
            if then.mm is mm and then.start <= addr < then.end and not then.detached:
                return vma
        vma = None if number in line.indices else self._wide(line)
        if vma is not None:
            self.searched.count += 1
            then = seen(self.scheduler, vma)
            if then.mm is mm and then.start <= addr < then.end and not then.detached:
                return vma
        for vma in self.vmas_at(mm, addr, addr + 1):
            then = seen(self.scheduler, vma)
            if self.shift_of(vma) is not None and then.start <= addr < then.end:
                if not self._glances:
                    self._missed(line, number, leaf, vma)
                return vma
        return None

    def _wide(self, line: Line) -> VMA | None:
        vma = cast("VMA | None", read_once(self.scheduler, "wide VMA", line, "wide", line.wide))
        if vma is not None:
            depends(self.scheduler, "wide VMA", vma)
        return vma

    def _said(self, line: Line, leaf: Leaf, number: int, addr: int) -> VMA | None:
        """Which VMA the locked leaf says is at `addr`, in that half: one that begins there, or what comes from before
        the half, or from before the leaf."""
        index = line.indices.get(number)
        if index is not None and index.leaf is leaf:
            node = index.tree.rb_root
            while node is not None:
                self.searched.count += 1
                vma = cast(Place, node).vma
                then = seen(self.scheduler, vma)
                if addr < then.start:
                    node = node.left
                elif addr >= then.end:
                    node = node.right
                else:
                    return vma
            if index.before is not None:
                self.searched.count += 1
                if addr < seen(self.scheduler, index.before).end:
                    return index.before
        if number & 1:
            below = line.indices.get(number - 1)
            if below is not None and below.leaf is leaf and below.before is not None:
                self.searched.count += 1
                return below.before
        return None

    def _missed(self, line: Line, number: int, leaf: Leaf, vma: VMA) -> None:
        """A walk had to look elsewhere for `vma`.  The first VMA of a half costs nothing to put in; of many, those that
        are looked for once would cost more than they save."""
        index = self._index(line, number, leaf)
        index.missed += 1
        if index.tree.rb_root is None or vma.start >> HALF_SHIFT != number or index.missed > MISSES:
            self._name(line, number, leaf, vma)

    def _walk_ksm_at(self, pfn: int, locking: bool) -> Iterator[tuple[VMA, int]]:
        places = self.ksm.newest_first(pfn)
        self.rcu.read_lock()
        try:
            for place in places:
                yield from self._ksm_there(cast(Line, place.anchor), pfn, place.addr, locking)
            for place in places:
                for context in self._younger(cast(CowContext, place.anchor), _ANY):
                    if context is not place.anchor:
                        yield from self._ksm_there(cast(Line, context), pfn, place.addr, locking)
        finally:
            self.rcu.read_unlock()

    def _ksm_there(self, line: Line, pfn: int, addr: int, locking: bool) -> Iterator[tuple[VMA, int]]:
        mm = self._space(line)
        if mm is not None:
            for vma, at, _ in self._there(line, mm, pfn, 1, addr, locking):
                yield vma, at

    # What the design says of itself

    def audit(self, mms: Sequence[MM], peak_vmas: int) -> list[str]:
        """Besides, fewer contexts without an address space than with one, or with a place of KSM or a migration that
        holds them."""
        said = super().audit(mms, peak_vmas)
        kept = {id(context) for context in [*self.placed(), *self.held.values()]}
        dead: set[int] = set()
        for mm in mms:
            at = self.context_of(mm).parent
            while at is not None and id(at) not in dead:
                if at.mm is None and id(at) not in kept:
                    dead.add(id(at))
                at = at.parent
        number = len(dead) + len(self.made_room)
        if number > len(mms) + len(kept):
            said.append(f"{number} contexts without an address space, and {len(mms)} with one")
        return said

    def _stray_records(self, mm: MM) -> list[str]:
        placed = [place for vma in mm.tree.to_list() for place in self._places(vma, bounds_of(vma))]
        displaced = [place for place in placed if place[2]]
        tree = self.context_of(mm).remaps
        wrong: list[str] = []
        recorded = {(pgoff, offset) for low, high, offset in tree.ranges() for pgoff in range(low, high + 1)}
        for first, last, offset in displaced:
            for pgoff in range(first, last + 1):
                if (pgoff, offset) in recorded:
                    recorded.discard((pgoff, offset))
                else:
                    wrong.append(f"mm {mm.id} has no record of page offset {pgoff:#x} at offset {offset:#x}")
        moved = {pgoff for first, last, _ in displaced for pgoff in range(first, last + 1)}
        for first, last, offset in placed:
            if offset == 0:
                for pgoff in moved.intersection(range(first, last + 1)):
                    if (pgoff, 0) in recorded:
                        recorded.discard((pgoff, 0))
                    else:
                        wrong.append(f"mm {mm.id} has no record that page offset {pgoff:#x} is at home as well")
        for pgoff, offset in sorted(recorded):
            wrong.append(f"mm {mm.id} has a record too many, of page offset {pgoff:#x} at offset {offset:#x}")
        wide = self.line_of(mm).wide
        if wide is not None and (wide.mm is not mm or mm.tree.at(wide.start) is not wide):
            wrong.append(f"mm {mm.id} has a wide VMA that is not there")
        for number, index in self.line_of(mm).indices.items():
            if mm.page_table.leaves.get(number << HALF_SHIFT >> LEAF_SHIFT) is not index.leaf:
                continue
            for vma in index.vmas():
                start, end = number << HALF_SHIFT, (number + 1) << HALF_SHIFT
                if vma.mm is not mm or mm.tree.at(vma.start) is not vma or vma.end <= start or vma.start >= end:
                    wrong.append(f"mm {mm.id} has a VMA in the index of leaf {number} that is not there")
                if (vma.start < start) != (vma is index.before):
                    wrong.append(f"mm {mm.id} has a VMA in the index of leaf {number} that begins in another one")
        return wrong


def _halves(mm: MM, start: int, end: int) -> list[int]:
    """Numbers of the halves of leaves that exist and touch [start, end)."""
    numbers = [2 * leaf + half for leaf in mm.page_table.numbers(start, end) for half in (0, 1)]
    return [number for number in numbers if start >> HALF_SHIFT <= number <= (end - 1) >> HALF_SHIFT]


def _common(vma: VMA, first: int, last: int) -> tuple[int, int]:
    """What of the page offsets first..last `vma` has, the first and the last."""
    return max(vma.anon_pgoff, first), min(vma.anon_pgoff + vma.nr_pages - 1, last)


def _at_home_only(tree: RemapTree, first: int, last: int) -> list[tuple[int, int]]:
    """Parts of first..last of which the tree says that they are at home, and nowhere else."""
    return [
        (max(low, first), min(high, last))
        for i, (low, high) in enumerate(zip(tree.firsts, tree.lasts, strict=True))
        if low <= last and high >= first and tree.entries[i].values == [0]
    ]
