# SPDX-License-Identifier: GPL-2.0-or-later
"""Design `anon_vma`: the anonymous reverse map of Linux, after mm/rmap.c and mm/vma.c of 6.12.

A folio points to an *anon_vma*; an anon_vma knows, in an interval tree, every VMA that may map the folios
that point to it.  An *anon_vma_chain* (AVC) links the two: one for each pair of a VMA and an anon_vma.

    VMA ──▶ AVC ─▶ AVC ─▶ …        the VMA's chain: its own anon_vma last, the root first
             │      │
             ▼      ▼
        anon_vma  anon_vma ◀── folios that this VMA's process mapped first
         (root)                   (in the interval tree: this VMA, and those of its children)

Data
- `AnonVma`: an interval tree of AVCs, `root` and `parent` in the hierarchy that forks made of one VMA,
  `refcount` (one for being in use by VMAs, one for each anon_vma below a root, one for each KSM place),
  `num_children` (anon_vmas whose parent it is; a root is its own parent) and `num_active_vmas` (VMAs whose
  new pages go to it).
- `AnonVmaChain`: a node of one anon_vma's tree and a link of one VMA's chain.
- `VmaFields`: the fields of a VMA: the anon_vma for its new pages, and its chain.
- for each page, the number of the anon_vma that its folio points to.

Invariants
- A VMA that may map a folio of anon_vma A has an AVC to A.  That is the whole proof of completeness: a child
  gets an AVC for each of its parent's before a single entry is copied, a split or moved VMA for each of its
  source's, and an AVC goes away only when its VMA has no anonymous pages left.
- The key of an AVC is the range of page offsets of its VMA; so it is in no tree while the VMA's
  start, end or page offset changes.
- At equal keys a tree keeps the order of insertion: a parent is visited before its children, and the source
  of a move before its destination, unless `need_move_locks` says otherwise.
- While a folio is mapped, its anon_vma is alive.  An anchor is read for mapped folios only, so numbers of
  freed anon_vmas are reused without clearing anchors.

Locking: the rwsem of the *root* covers the trees and counters of the whole hierarchy: for reading while
walking, for writing while anything in it changes.  Chains are covered by mmap_lock.  A walk gets from the folio to the
lock under RCU, and checks afterwards that the folio is still mapped: see `_lock_mapped`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar, Final, cast

import numpy as np
from mypy_extensions import mypyc_attr

from rmaplab.mm.folio import FOLIO_KSM, Column, Int64s, folio_mapcount
from rmaplab.mm.geometry import GeometryChange
from rmaplab.mm.reverse_map import Attachment, ReverseMap, miscounted
from rmaplab.mm.takeover import FoundVma, TakenOver
from rmaplab.mm.vma import MM, PAGE_SHIFT, VMA
from rmaplab.rmap.interval_tree import IntervalNode, IntervalTree
from rmaplab.rmap.ksm_places import KsmPlace, KsmPlaces
from rmaplab.rmap.neighbours import mergeable_neighbours
from rmaplab.rmap.numbers import take_number
from rmaplab.sync.fields import OF_DESIGN, OF_PAGE
from rmaplab.sync.locks import Rcu, RwSemaphore
from rmaplab.sync.order import (
    atomic,
    atomic_inc,
    depends,
    initialised,
    read_once,
    smp_store_release,
    write_once,
)
from rmaplab.sync.work import LockClass, Pool, Tally

_LAST_PGOFF: Final = (1 << 62) - 1


class AnonVma(IntervalTree):
    """struct anon_vma: the VMAs that may map the folios which point here."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number: Final = number  # what folios hold
        self.root: AnonVma = self
        self.parent: AnonVma = self
        self.rwsem: RwSemaphore | None = None  # the root's, the only one that is ever locked
        self.refcount = 1
        self.num_children = 0
        self.num_active_vmas = 0


class AnonVmaChain(IntervalNode):
    """struct anon_vma_chain: one VMA in one anon_vma."""

    def __init__(self, vma: VMA, anon_vma: AnonVma) -> None:
        super().__init__()
        self.vma: Final = vma
        self.anon_vma: Final = anon_vma


class VmaFields:
    """The design's fields of struct vm_area_struct: `anon_vma` takes new pages of the VMA, `chain` links it to all
    that may have pages of it, the oldest first (anon_vma_chain, which Linux keeps newest first)."""

    def __init__(self, anon_vma: AnonVma | None) -> None:
        self.anon_vma = anon_vma
        self.chain: list[AnonVmaChain] = []


@mypyc_attr(allow_interpreted_subclasses=True)
class AnonVmaRmap(ReverseMap):
    """An anon_vma per VMA and process, an interval tree in each, one lock per hierarchy."""

    name = "anon_vma"
    vma_fields = 8 + 16  # anon_vma: a pointer; anon_vma_chain: a list_head
    drawn_by = "rmaplab.rmap.pictures.anon_vma:AnonVmaPicture"
    lock_name: ClassVar[str] = "anon_vma root rwsem"  # what covers the trees

    def __init__(self, attachment: Attachment) -> None:
        super().__init__(attachment)
        sizes = attachment.profile.sizes
        self.anchor: Final[Column] = attachment.folios.column(np.int32)
        self.anon_vma_pool: Final[Pool] = self.ledger.pool("anon_vma", sizes["anon_vma"])
        self.chain_pool: Final[Pool] = self.ledger.pool("anon_vma_chain", sizes["anon_vma_chain"])
        self.lock_class: Final[LockClass] = self.ledger.lock_class(self.lock_name, asked=True)
        self.visited: Final[Tally] = self.ledger.tally("interval tree nodes visited")
        self.reused: Final[Tally] = self.ledger.tally("anon_vmas reused")
        self.walks: Final[Tally] = self.ledger.tally("walks")
        self.places: Final[Tally] = self.ledger.tally("places visited")
        self.anon_vmas: Final[list[AnonVma | None]] = [None]  # by number; 0 is no anon_vma
        self.free_numbers: Final[list[int]] = []
        self.held: Final[dict[int, AnonVma]] = {}  # by pfn: kept for a second walk
        self.rcu: Final = Rcu(self.ledger, self.scheduler)
        self.ksm: Final = KsmPlaces()  # their anchors are AnonVmas

    # A VMA's first page

    def vma_prepare(self, vma: VMA) -> None:
        # __anon_vma_prepare(): share a neighbour's if the two may be merged again one day, so that
        # mprotect() to and fro does not leave them apart for good.
        anon_vma = self._neighbours_anon_vma(vma)
        if anon_vma is None:
            anon_vma = self._new_root_anon_vma()
        fields = VmaFields(anon_vma)
        self._lock(anon_vma)
        smp_store_release(self.scheduler, "publish vma->anon_vma", vma, OF_DESIGN, self.slot)
        vma.rmap[self.slot] = fields
        self._link(fields, vma, anon_vma)
        anon_vma.num_active_vmas += 1
        self._unlock(anon_vma)

    def _neighbours_anon_vma(self, vma: VMA) -> AnonVma | None:
        """find_mergeable_anon_vma(): the next VMA first, then the previous one."""
        for neighbour in mergeable_neighbours(vma):
            anon_vma = self._shareable(neighbour)
            if anon_vma is not None:
                return anon_vma
        return None

    def _shareable(self, vma: VMA) -> AnonVma | None:
        """reusable_anon_vma(): only that of a VMA with a single link.  One that was inherited would bring
        its parent's pages along, for which the other VMA has no AVC."""
        fields = cast(
            "VmaFields | None",
            read_once(self.scheduler, "neighbour's vma->anon_vma", vma, OF_DESIGN, vma.rmap[self.slot], self.slot),
        )
        if fields is not None and self._never_forked(fields):
            if fields.anon_vma is not None:
                depends(self.scheduler, "neighbour's vma->anon_vma", fields.anon_vma)
            return fields.anon_vma
        return None

    # Fork

    def vma_forked(self, parent: VMA, child: VMA) -> None:
        # anon_vma_fork().  The child starts without an anon_vma of its own, which tells the clone that it
        # may take over one that nobody uses any more.
        source = cast(VmaFields, parent.rmap[self.slot])
        inherited = source.anon_vma
        assert inherited is not None
        fields = VmaFields(None)
        child.rmap[self.slot] = fields
        self._clone(fields, child, source)
        if fields.anon_vma is not None:
            self.reused.count += 1
            return
        anon_vma = self._new_child_anon_vma(inherited)
        anon_vma.num_active_vmas = 1
        fields.anon_vma = anon_vma
        self._link_child(fields, child, anon_vma, inherited)

    def _link_child(self, fields: VmaFields, vma: VMA, anon_vma: AnonVma, parent: AnonVma) -> None:
        self._lock(anon_vma)
        self._link(fields, vma, anon_vma)
        parent.num_children += 1
        self._unlock(anon_vma)

    # Split, merge, move: geometry

    def vma_split(self, vma: VMA, new: VMA) -> None:
        self._clone_fields(vma, new)

    def vma_joined(self, vma: VMA, donor: VMA) -> None:
        self._clone_fields(donor, vma)

    def vma_copied(self, source: VMA, new: VMA) -> None:
        self._clone_fields(source, new)

    def _clone_fields(self, source: VMA, new: VMA) -> None:
        """`new` gets what `source` has: an anon_vma_clone() that is not a fork's."""
        original = cast(VmaFields, source.rmap[self.slot])
        fields = VmaFields(original.anon_vma)
        new.rmap[self.slot] = fields
        self._clone(fields, new, original)

    def geometry_begin(self, change: GeometryChange) -> None:
        # The keys are about to change, so all AVCs leave their trees (vma_prepare() of mm/vma.c).
        self._lock_geometry(change)
        for vma in change.vmas:
            fields = self.fields_of(vma)
            if fields is not None:
                self._take_out(fields)

    def geometry_end(self, change: GeometryChange) -> None:
        # vma_complete()
        for vma in change.vmas:
            fields = self.fields_of(vma)
            if fields is not None:
                self._put_back(fields, vma)
        self._unlock_geometry(change)

    def _lock_geometry(self, change: GeometryChange) -> None:
        rwsem = self._rwsem_of(change)
        if rwsem is not None:
            rwsem.down_write()

    def _unlock_geometry(self, change: GeometryChange) -> None:
        rwsem = self._rwsem_of(change)
        if rwsem is not None:
            rwsem.up_write()

    def _rwsem_of(self, change: GeometryChange) -> RwSemaphore | None:
        """The one to lock: of two VMAs, both are of one hierarchy, or one has no links."""
        for vma in change.vmas:
            fields = self.fields_of(vma)
            if fields is not None and fields.chain:
                return rwsem_of(fields.chain[0].anon_vma)
        return None

    def _take_out(self, fields: VmaFields) -> None:
        self._assert_locked(fields)
        for i in range(len(fields.chain) - 1, -1, -1):
            avc = fields.chain[i]
            avc.anon_vma.remove(avc, self.visited)

    def _put_back(self, fields: VmaFields, vma: VMA) -> None:
        self._assert_locked(fields)
        first = vma.anon_pgoff
        last = first + ((vma.end - vma.start) >> PAGE_SHIFT) - 1
        for i in range(len(fields.chain) - 1, -1, -1):
            avc = fields.chain[i]
            avc.anon_vma.insert(avc, first, last, self.visited)

    def need_move_locks(self, source: VMA, target: VMA, merged: bool) -> bool:
        # copy_vma(): the pages move into a VMA that existed.  If its key is not greater than the source's, a
        # walk may pass it first, then miss an entry that moved there from the source.
        return merged and target.pgoff <= source.pgoff

    def move_lock(self, vma: VMA) -> None:
        fields = self.fields_of(vma)
        if fields is not None and fields.anon_vma is not None:
            self._lock(fields.anon_vma)

    def move_unlock(self, vma: VMA) -> None:
        fields = self.fields_of(vma)
        if fields is not None and fields.anon_vma is not None:
            self._unlock(fields.anon_vma)

    # A VMA's end

    def vma_absorbed(self, vma: VMA, gone: VMA) -> None:
        self._unlink_all(gone)

    def vma_removed(self, vma: VMA) -> None:
        self._unlink_all(vma)

    def _unlink_all(self, vma: VMA) -> None:
        """unlink_anon_vmas()."""
        fields = cast(VmaFields, vma.rmap[self.slot])
        vma.rmap[self.slot] = None
        self._unlink_chain(fields)

    def _unlink_chain(self, fields: VmaFields) -> None:
        chain = fields.chain
        if not chain:
            return
        first = chain[0].anon_vma
        emptied: list[AnonVma] = []
        self._lock(first)
        self._assert_locked(fields)
        i = len(chain) - 1  # the newest first: a parent must be there when its child is freed
        while i >= 0:
            avc = chain[i]
            anon_vma = avc.anon_vma
            anon_vma.remove(avc, self.visited)
            if anon_vma.rb_root is None:
                anon_vma.parent.num_children -= 1
                emptied.append(anon_vma)
            i -= 1
        if fields.anon_vma is not None:
            fields.anon_vma.num_active_vmas -= 1
        self._unlock(first)
        # Freed only now: the last reference to a root may go with it, and its lock with that.  Those that were emptied
        # here, and no others: one that a relative empties meanwhile is that one's to put.
        for anon_vma in emptied:
            self._put(anon_vma)
        self._free_chain(chain)

    def _free_chain(self, chain: list[AnonVmaChain]) -> None:
        """anon_vma_chain_free(): they are in no tree any more."""
        self.chain_pool.free(len(chain))
        if self.scheduler is not None:
            for avc in chain:
                self.scheduler.free("anon_vma_chain", avc)

    # The links

    def fields_of(self, vma: VMA) -> VmaFields | None:
        """vma->anon_vma and vma->anon_vma_chain; None for a VMA that is not prepared."""
        return cast("VmaFields | None", vma.rmap[self.slot])

    def _link(self, fields: VmaFields, vma: VMA, anon_vma: AnonVma) -> None:
        """One more AVC.  The caller holds the root's lock."""
        rwsem_of(anon_vma).assert_held_write()
        avc = AnonVmaChain(vma, anon_vma)
        self.chain_pool.alloc()
        fields.chain.append(avc)
        first = vma.anon_pgoff
        anon_vma.insert(avc, first, first + ((vma.end - vma.start) >> PAGE_SHIFT) - 1, self.visited)

    def _clone(self, fields: VmaFields, vma: VMA, source: VmaFields) -> None:
        """anon_vma_clone(): an AVC of `vma` for each of `source`, the oldest first; the newest first, so that the chain
        is mirrored, where the profile says so.

        If `fields` has no anon_vma yet (a fork), it takes over one on the way that no VMA puts pages into
        and that has at most one child.  This bounds the chains of a process whose line of ancestors each
        forked once and went away; a root, its own child, is never taken.
        """
        root = source.chain[0].anon_vma
        self._lock(root)
        own = fields.anon_vma
        for link in source.chain[::-1] if self.profile.clone_reverses else source.chain:
            anon_vma = link.anon_vma
            self._link(fields, vma, anon_vma)
            if own is None and is_unused(anon_vma):
                own = anon_vma
        if own is not None:
            own.num_active_vmas += 1
            fields.anon_vma = own
        self._unlock(root)

    def _new_anon_vma(self) -> AnonVma:
        anon_vma = AnonVma(take_number(self.anon_vmas, self.free_numbers))
        self.anon_vmas[anon_vma.number] = anon_vma
        self.anon_vma_pool.alloc()
        return anon_vma

    def _new_root_anon_vma(self) -> AnonVma:
        anon_vma = self._new_anon_vma()
        anon_vma.rwsem = RwSemaphore(self.lock_class, self.scheduler)
        anon_vma.num_children = 1  # itself
        initialised(self.scheduler, "anon_vma_alloc()", anon_vma, "root refcount")
        return anon_vma

    def _new_child_anon_vma(self, parent: AnonVma) -> AnonVma:
        anon_vma = self._new_anon_vma()
        root = parent.root
        anon_vma.root = root
        anon_vma.rwsem = root.rwsem
        anon_vma.parent = parent
        initialised(self.scheduler, "anon_vma_alloc()", anon_vma, "root refcount")
        atomic_inc(self.scheduler, "get_anon_vma()", root, "refcount")
        root.refcount += 1  # the lock lives in the root
        return anon_vma

    def _get(self, anon_vma: AnonVma) -> bool:
        """Refer to it, unless nobody does any more (atomic_inc_not_zero())."""
        atomic(self.scheduler, "atomic_inc_not_zero() of anon_vma", anon_vma, "refcount")
        if anon_vma.refcount == 0:
            return False
        anon_vma.refcount += 1
        return True

    def _put(self, anon_vma: AnonVma) -> None:
        """put_anon_vma()."""
        if self._drop(anon_vma):
            self._free_with_root(anon_vma)

    def _drop(self, anon_vma: AnonVma) -> bool:
        """One reference less; True if it was the last."""
        atomic(self.scheduler, "put_anon_vma()", anon_vma, "refcount")
        anon_vma.refcount -= 1
        return anon_vma.refcount == 0

    def _free_with_root(self, anon_vma: AnonVma) -> None:
        """__put_anon_vma()."""
        root = anon_vma.root
        self._free(anon_vma)
        if root is not anon_vma and self._drop(root):
            self._free(root)

    def _free(self, anon_vma: AnonVma) -> None:
        """anon_vma_free(): a stale pointer may lead to a reused anon_vma at once, but to nothing else."""
        self.wait_for_walks(anon_vma)
        self.anon_vma_pool.free()
        if self.scheduler is None:
            self._forget(anon_vma.number)
        else:
            self.scheduler.slab_free("anon_vma", anon_vma, partial(self._forget, anon_vma.number))

    def wait_for_walks(self, anon_vma: AnonVma) -> None:
        """A walk that slept for the lock has given its reference up once it had it, and may be at it still.  Who drops
        the last reference sees that the lock is held, as each put_anon_vma() is fully ordered."""
        self.might_sleep("anon_vma_free()")
        if rwsem_of(anon_vma).is_locked():
            self._lock(anon_vma)
            self._unlock(anon_vma)

    def _forget(self, number: int) -> None:
        self.anon_vmas[number] = None
        self.free_numbers.append(number)

    def _assert_locked(self, fields: VmaFields) -> None:
        """The caller changes the trees that a VMA is in, which are all of one root (anon_vma_assert_locked())."""
        if fields.chain:
            rwsem_of(fields.chain[0].anon_vma).assert_held_write()

    def _lock(self, anon_vma: AnonVma) -> None:
        """anon_vma_lock_write()"""
        self._root_rwsem(anon_vma).down_write()

    def _unlock(self, anon_vma: AnonVma) -> None:
        rwsem_of(anon_vma).up_write()

    # Folios

    def folio_mapped(self, vma: VMA, addr: int, pfn: int, nr_pages: int) -> None:
        self._point(pfn, nr_pages, self._own(vma))

    def folios_mapped(self, vma: VMA, addrs: Int64s, pfns: Int64s) -> None:
        self.anchor.v[pfns] = self._own(vma).number

    def folio_swapped_in(self, vma: VMA, addr: int, pfn: int, exclusive: bool) -> None:
        # __folio_set_anon(): others may still refer to it in swap, in any process of the hierarchy, so unless
        # it is known to be this VMA's alone it belongs to the oldest.
        anon_vma = self._own(vma)
        if not exclusive:
            anon_vma = anon_vma.root
        self._point(pfn, 1, anon_vma)

    def folio_reused(self, vma: VMA, pfn: int, nr_pages: int) -> None:
        self._point(pfn, nr_pages, self._own(vma))

    def folio_moved(self, vma: VMA, addr: int, pfn: int) -> None:
        self._point(pfn, 1, self._own(vma))

    def folio_migrated(self, old: int, new: int, nr_pages: int) -> None:
        anchor = self.anchor.v
        anchor[new : new + nr_pages] = anchor[old : old + nr_pages]

    def folio_freed(self, pfn: int, nr_pages: int) -> None:
        for place in self.ksm.freed(pfn):
            self._put(cast(AnonVma, place.anchor))

    def folios_freed(self, pfns: Int64s) -> None:
        for place in self.ksm.all_freed(pfns):
            self._put(cast(AnonVma, place.anchor))

    def _own(self, vma: VMA) -> AnonVma:
        """The anon_vma for new pages of `vma`, which is prepared."""
        anon_vma = cast(VmaFields, vma.rmap[self.slot]).anon_vma
        assert anon_vma is not None
        return anon_vma

    def _point(self, pfn: int, nr_pages: int, anon_vma: AnonVma) -> None:
        """Let folio->mapping lead to it (__folio_set_anon(), folio_move_anon_rmap())."""
        write_once(self.scheduler, "set folio->mapping", self.anchor, OF_PAGE, pfn)
        if nr_pages == 1:
            self.anchor.m[pfn] = anon_vma.number
        else:
            self.anchor.v[pfn : pfn + nr_pages] = anon_vma.number

    # KSM

    def ksm_added(self, vma: VMA, addr: int, pfn: int) -> None:
        anon_vma = self._own(vma)
        atomic_inc(self.scheduler, "get_anon_vma()", anon_vma, "refcount")
        anon_vma.refcount += 1  # the place may outlive the VMA
        self.ksm.add(pfn, KsmPlace(vma.mm, addr, anon_vma))

    def ksm_removed(self, mm: MM, addr: int, pfn: int) -> None:
        for place in self.ksm.remove(pfn, mm, addr):
            self._put(cast(AnonVma, place.anchor))

    # Memory that is there already

    def take_over(self, found: TakenOver) -> None:
        """The graph is the kernel's, node by node."""
        self.take_over_spaces(found)
        self._take_over_graph(found, set())

    def _take_over_graph(self, found: TakenOver, unmade: set[int]) -> None:
        """Everything but the anon_vmas `unmade`, by position, which have no children."""
        made = [None if i in unmade else self._new_anon_vma() for i in range(len(found.anon_vmas))]
        for i, mine in enumerate(made):
            its = found.anon_vmas[i]
            root, parent = made[its.root], made[its.parent]
            if mine is None or root is None or parent is None:
                continue
            mine.root, mine.parent = root, parent
            if root.rwsem is None:
                root.rwsem = RwSemaphore(self.lock_class, None)
            mine.rwsem = root.rwsem
            mine.refcount += its.refcount - 1
            mine.num_children += its.num_children
            mine.num_active_vmas = its.num_active_vmas
        for i in unmade:
            root, parent = made[found.anon_vmas[i].root], made[found.anon_vmas[i].parent]
            if root is not None and parent is not None:  # else it is a root itself
                root.refcount -= 1
                parent.num_children -= 1
        links: dict[tuple[int, int], AnonVmaChain] = {}
        for known in found.vmas:
            fields = self._found_fields(known, made[known.own])
            for i in known.chain:
                anon_vma = made[i]
                if anon_vma is not None:
                    link = links[known.vma.id, i] = AnonVmaChain(known.vma, anon_vma)
                    fields.chain.append(link)
                    self.chain_pool.alloc()
        for i, mine in enumerate(made):
            if mine is not None:
                for vma in found.anon_vmas[i].tree:
                    mine.insert(links[vma.id, i], vma.anon_pgoff, vma.anon_pgoff + vma.nr_pages - 1, self.visited)
        for place in found.places:
            own = made[place.own]
            assert own is not None
            # Its reference is counted already.
            self.ksm.add(place.pfn, KsmPlace(place.vma.mm, place.addr, own))
        for folio in found.folios:
            anon_vma = made[folio.anon_vma] if folio.anon_vma >= 0 else None
            if anon_vma is not None:
                self._point(folio.pfn, folio.nr_pages, anon_vma)

    def _found_fields(self, known: FoundVma, own: AnonVma | None) -> VmaFields:
        """What a VMA has of it, without its links."""
        fields = VmaFields(own)
        known.vma.rmap[self.slot] = fields
        return fields

    # The walk

    def hold(self, pfn: int) -> None:
        """folio_get_anon_vma().  Nothing is held if what mapped the folio has gone since the caller looked."""
        self.rcu.read_lock()
        anon_vma = self._mapping(pfn)
        got = anon_vma is not None and self.is_mapped(pfn) and self._get(anon_vma)
        mapped = got and self.still_mapped(pfn)
        self.rcu.read_unlock()
        if got and anon_vma is not None:
            if mapped:
                self.held[pfn] = anon_vma
            else:
                self._put(anon_vma)

    def unhold(self, pfn: int) -> None:
        if pfn in self.held:
            self._put(self.held.pop(pfn))

    def walk(self, pfn: int) -> Iterator[tuple[VMA, int]]:
        self.walks.count += 1
        flags: int = self.folios.flags.m[pfn]
        return self._walk_ksm(pfn) if flags & FOLIO_KSM else self._walk_anon(pfn, None)

    def is_mapped(self, pfn: int) -> bool:
        """folio_mapped()"""
        if self.scheduler is None:
            return True  # nobody could have unmapped it since the caller looked
        return folio_mapcount(self.scheduler, self.folios, pfn) != 0

    def still_mapped(self, pfn: int) -> bool:
        """The same, for who has found the anon_vma, and locked it or got a reference: while the folio is mapped, it is
        not another one by now."""
        return self.is_mapped(pfn)

    def _mapping(self, pfn: int) -> AnonVma | None:
        """READ_ONCE(folio->mapping)"""
        number = read_once(self.scheduler, "folio->mapping", self.anchor, OF_PAGE, self.anchor.m[pfn], pfn)
        anon_vma = self.anon_vmas[cast(int, number)]
        if anon_vma is not None:
            depends(self.scheduler, "folio->mapping", anon_vma)
        return anon_vma

    def _root_rwsem(self, anon_vma: AnonVma) -> RwSemaphore:
        """That of READ_ONCE(anon_vma->root)"""
        root = cast(AnonVma, read_once(self.scheduler, "anon_vma->root", anon_vma, "root", anon_vma.root))
        return rwsem_of(root)

    def _lock_mapped(self, pfn: int) -> AnonVma | None:
        """folio_lock_anon_vma_read(): the anon_vma of a folio, its root locked for reading, or None if nothing maps the
        folio any more.

        A folio that is mapped after the lock was taken had its anon_vma alive all the time, and what maps it
        cannot leave the tree before the lock is given back.  Until then RCU keeps the anon_vma an anon_vma; to
        sleep for the lock takes a reference, which keeps the root as well.

        The folio is locked, so no reuse gives it to another anon_vma meanwhile (folio_move_anon_rmap()).  Before 7.3
        Linux walks folios that are not locked, too, and looks again; the machine has no such walk.
        """
        self.rcu.read_lock()
        anon_vma = self._mapping(pfn)
        if anon_vma is None or not self.is_mapped(pfn):
            self.rcu.read_unlock()
            return None
        rwsem = self._root_rwsem(anon_vma)
        if rwsem.try_down_read():
            self.touch("anon_vma", anon_vma.root)  # the lock is a part of it
            mapped = self.still_mapped(pfn)
            if not mapped:
                rwsem.up_read()
            self.rcu.read_unlock()
            return anon_vma if mapped else None
        got = self._get(anon_vma)
        mapped = got and self.still_mapped(pfn)
        self.rcu.read_unlock()
        if not mapped:
            if got:
                self._put(anon_vma)
            return None
        return anon_vma if self._lock_referenced(anon_vma) else None

    def _lock_referenced(self, anon_vma: AnonVma) -> bool:
        """Lock it for reading, and drop the reference that kept it until then.  False: that was the last one."""
        rwsem_of(anon_vma).down_read()
        if self._drop(anon_vma):
            rwsem_of(anon_vma).up_read()
            self._free_with_root(anon_vma)
            return False
        return True

    def _lock_for_walk(self, pfn: int) -> AnonVma | None:
        """rmap_walk_anon_lock()"""
        anon_vma = self._mapping(pfn)
        if anon_vma is not None and self.held and anon_vma in self.held.values():
            rwsem_of(anon_vma).down_read()  # the folio need not be mapped
            return anon_vma
        return self._lock_mapped(pfn)

    def _walk_anon(self, pfn: int, anon_vma: AnonVma | None) -> Iterator[tuple[VMA, int]]:
        """rmap_walk_anon(); `anon_vma`: the folio's, if the caller has locked it already.  Unlocks it."""
        if anon_vma is None:
            anon_vma = self._lock_for_walk(pfn)
        if anon_vma is None:
            return
        first: int = self.folios.index.m[pfn]
        last = first + self.folios.nr_pages(pfn) - 1
        try:
            rwsem_of(anon_vma).assert_held()
            self.touch("anon_vma", anon_vma)
            node = anon_vma.first_touching(first, last, self.visited)
            while node is not None:
                self.places.count += 1
                self.touch("anon_vma_chain", node)
                vma = cast(AnonVmaChain, node).vma
                distance = first - vma.anon_pgoff  # negative if the VMA covers only a later part of the folio
                yield vma, vma.start + (distance << PAGE_SHIFT if distance > 0 else 0)
                node = anon_vma.next_touching(node, first, last, self.visited)
        finally:
            rwsem_of(anon_vma).up_read()

    def _walk_ksm(self, pfn: int) -> Iterator[tuple[VMA, int]]:
        """rmap_walk_ksm(): each place in its own address space, then, in a second round, the same address
        in others of the hierarchy, in case they were forked since."""
        for search_new_forks in (False, True):
            for place in self.ksm.newest_first(pfn):
                anon_vma = cast(AnonVma, place.anchor)
                rwsem = rwsem_of(anon_vma)
                rwsem.down_read()
                try:
                    addr = place.addr
                    rwsem.assert_held()
                    for node in anon_vma.touching(0, _LAST_PGOFF, self.visited):
                        vma = cast(AnonVmaChain, node).vma
                        if vma.start <= addr < vma.end and (vma.mm is place.mm) != search_new_forks:
                            self.places.count += 1
                            yield vma, addr
                finally:
                    rwsem.up_read()

    def related(self, vma: VMA, pfn: int) -> bool:
        # ksm_might_need_to_copy(): the same root, and a page that one of the hierarchy reads goes to the root.
        anon_vma = self.anon_vmas[self.anchor.m[pfn]]
        return anon_vma is not None and anon_vma.root is self._own(vma).root

    # Counting again

    def audit(self, mms: Sequence[MM], peak_vmas: int) -> list[str]:
        """Every anon_vma is reached from a VMA, a place of KSM, a migration, or as the root of one that is.

        Chains are bounded by what was ever there at once.  An anon_vma is only made in a fork that finds none in the
        chain to take over, so all above the newest had, at that moment, a VMA that puts pages into them or a second
        child, which has a VMA somewhere below it: two links for each VMA, at most.
        """
        said: list[str] = []
        links = 0
        reached: dict[int, AnonVma] = {}
        linked: dict[int, int] = {}  # by number: AVCs, of which one reference speaks for all
        active: dict[int, int] = {}
        references: dict[int, int] = {}
        for mm in mms:
            for vma in mm.tree.to_list():
                fields = self.fields_of(vma)
                if fields is None:
                    continue
                own = fields.anon_vma
                if own is not None:
                    active[own.number] = active.get(own.number, 0) + 1
                links += len(fields.chain)
                if len(fields.chain) > 2 * peak_vmas:
                    said.append(
                        f"{vma!r} has {len(fields.chain)} links, of which {2 * peak_vmas} could be needed at most"
                    )
                for avc in fields.chain:
                    number = avc.anon_vma.number
                    reached[number] = avc.anon_vma
                    references[number] = 1
                    linked[number] = linked.get(number, 0) + 1
        others = [cast(AnonVma, place.anchor) for place in self.ksm.every()]
        for anon_vma in [*others, *self.held.values()]:
            reached[anon_vma.number] = anon_vma
            references[anon_vma.number] = references.get(anon_vma.number, 0) + 1
        for anon_vma in list(reached.values()):
            root = anon_vma.root
            if root is not anon_vma:
                reached[root.number] = root
                references[root.number] = references.get(root.number, 0) + 1
        children: dict[int, int] = {}
        for number in linked:
            parent = reached[number].parent
            children[parent.number] = children.get(parent.number, 0) + 1
        miscounted(said, "anon_vma_chains in use", -1, self.chain_pool.live, links)
        miscounted(said, "anon_vmas in use", -1, self.anon_vma_pool.live, len(reached))
        for number, anon_vma in reached.items():
            miscounted(said, "references to anon_vma", number, anon_vma.refcount, references[number])
            miscounted(said, "children of anon_vma", number, anon_vma.num_children, children.get(number, 0))
            miscounted(said, "active VMAs of anon_vma", number, anon_vma.num_active_vmas, active.get(number, 0))
            nodes = sum([1 for _ in anon_vma.touching(-_LAST_PGOFF, _LAST_PGOFF, Tally(""))])
            miscounted(said, "AVCs in the tree of anon_vma", number, nodes, linked.get(number, 0))
        return said

    # Merge rules

    def can_merge(self, source: VMA | None, existing: VMA, growing: bool) -> bool:
        # is_mergeable_anon_vma().  A VMA whose chain is not singular was forked: merging something into it
        # would put that under a lock which other processes use.
        fields = None if source is None else self.fields_of(source)
        there = self.fields_of(existing)
        if self.profile.relaxed_anon_merge:
            if fields is not None and there is None:
                return growing or self._never_forked(fields)  # who only grows hands no chain to anybody
            if fields is None and there is not None:
                return self._never_forked(there)
        elif fields is None and there is not None and self._never_forked(there):
            return True
        if fields is None or there is None:
            return fields is there
        return self._same(fields, there)

    def can_join(self, prev: VMA, next: VMA) -> bool:
        fields = self.fields_of(prev)
        beside = self.fields_of(next)
        return fields is None or beside is None or self._same(fields, beside)

    def _same(self, fields: VmaFields, other: VmaFields) -> bool:
        """Do new pages of the two go to the same place?"""
        return fields.anon_vma is other.anon_vma

    def _never_forked(self, fields: VmaFields) -> bool:
        """list_is_singular(): it has no links but that to its own anon_vma."""
        return len(fields.chain) == 1

    # What the design says of itself


def rwsem_of(anon_vma: AnonVma) -> RwSemaphore:
    """What covers its tree: the root's."""
    rwsem = anon_vma.rwsem
    assert rwsem is not None
    return rwsem


def is_unused(anon_vma: AnonVma) -> bool:
    """May a fork take it over?  No VMA puts pages into it, and it has at most one child."""
    return anon_vma.num_children < 2 and anon_vma.num_active_vmas == 0
