# SPDX-License-Identifier: GPL-2.0-or-later
"""Bugs, re-introduced, that need two CPUs to show: a lock, an order, a retry or a grace period less.

Each is a `Mutant` (check/mutants.py) with the scenario that shows it; `outcome` tries that scenario's interleavings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, cast

from rmaplab.check.mutants import Mutant
from rmaplab.check.race import Model, name_ordering
from rmaplab.check.scenarios import scenario
from rmaplab.mm.geometry import GeometryChange, bounds_of
from rmaplab.mm.locking import lock_of
from rmaplab.mm.machine import Machine
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import MM, PAGE_SHIFT, VM_STACK_INCOMPLETE_SETUP, VMA, vma_lookup
from rmaplab.mm.vma_lock import Area, Space, VmaLocks
from rmaplab.rmap.anon_vma import AnonVma, AnonVmaChain, AnonVmaRmap, VmaFields
from rmaplab.rmap.anon_vma_lazy import AnonVmaLazyRmap
from rmaplab.rmap.context import CowContext
from rmaplab.rmap.cow_context import CowContextRmap
from rmaplab.sync.interleave import Outcome, Scenario, explore
from rmaplab.sync.locks import RwSemaphore

# anon_vma


class MovesWithoutLock(AnonVmaRmap):
    name = "anon_vma, entries moved without the rmap lock into a VMA that was there"

    def need_move_locks(self, source: VMA, target: VMA, merged: bool) -> bool:
        return False


class DestinationFirst(AnonVmaRmap):
    name = "anon_vma, destination of a move visited before its source"

    def vma_copied(self, source: VMA, new: VMA) -> None:
        super().vma_copied(source, new)
        _put_last(self, source)  # behind `new`


class ChildFirst(AnonVmaRmap):
    name = "anon_vma, child visited before its parent"

    def vma_forked(self, parent: VMA, child: VMA) -> None:
        super().vma_forked(parent, child)
        _put_last(self, parent)


class LinkedWithoutLock(AnonVmaRmap):
    """A fresh anon_vma is nobody else's, or so it seems: a neighbour may have found it already."""

    name = "anon_vma, a fresh one linked without its lock"

    def vma_prepare(self, vma: VMA) -> None:
        if self._neighbours_anon_vma(vma) is not None:
            super().vma_prepare(vma)
            return
        anon_vma = self._new_anon_vma()
        rwsem = RwSemaphore(self.lock_class, self.scheduler)
        anon_vma.rwsem = rwsem
        anon_vma.num_children = 1
        anon_vma.num_active_vmas = 1
        fields = VmaFields(anon_vma)
        link = AnonVmaChain(vma, anon_vma)
        self.chain_pool.alloc()
        fields.chain.append(link)
        vma.rmap[self.slot] = fields
        # To insert is to read and to write; what somebody inserts in between is lost.
        tree = anon_vma.rb_root
        if self.scheduler is not None:
            self.scheduler.point("insert into the tree", rwsem, True)
        anon_vma.rb_root = tree
        anon_vma.insert(link, vma.anon_pgoff, vma.anon_pgoff + vma.nr_pages - 1, self.visited)


class MappedNotAsked(AnonVmaRmap):
    name = "anon_vma, walk that does not ask again whether the folio is mapped"

    def still_mapped(self, pfn: int) -> bool:
        return True


class SleptWithoutReference(AnonVmaRmap):
    name = "anon_vma, walk that sleeps for the root's lock without a reference"

    def _lock_mapped(self, pfn: int) -> AnonVma | None:
        self.rcu.read_lock()
        anon_vma: AnonVma | None = self.anon_vmas[self.anchor.m[pfn]]
        mapped = self.is_mapped(pfn)
        self.rcu.read_unlock()
        if anon_vma is None or not mapped:
            return None
        rwsem = anon_vma.rwsem
        assert rwsem is not None
        rwsem.down_read()
        self.touch("anon_vma", anon_vma.root)
        return anon_vma


class NotFreedByWalk(AnonVmaRmap):
    """It dropped the last reference while it slept: whoever unlinked the anon_vma left it to the walk."""

    name = "anon_vma, walk that drops the last reference and frees nothing"

    def _lock_referenced(self, anon_vma: AnonVma) -> bool:
        rwsem = anon_vma.rwsem
        assert rwsem is not None
        rwsem.down_read()
        if self._drop(anon_vma):
            rwsem.up_read()
            return False
        return True


class FreedUnderWalk(AnonVmaRmap):
    name = "anon_vma, freed without a look whether a walk has the lock"

    def wait_for_walks(self, anon_vma: AnonVma) -> None:
        pass


class PutWithinRcu(AnonVmaRmap):
    """Who drops the last reference may have to sleep for a walk that has the lock."""

    name = "anon_vma, reference that came too late dropped within the RCU section"

    def hold(self, pfn: int) -> None:
        self.rcu.read_lock()
        anon_vma: AnonVma | None = self.anon_vmas[self.anchor.m[pfn]]
        if anon_vma is not None and self.is_mapped(pfn) and self._get(anon_vma):
            if self.still_mapped(pfn):
                self.held[pfn] = anon_vma
            else:
                self._put(anon_vma)
        self.rcu.read_unlock()


class PreparedWithPage(AnonVmaRmap):
    """The first page of a VMA needs its anon_vma, and not before; but its page table is locked by then."""

    name = "anon_vma, VMA prepared when its first page is mapped"

    def vma_prepare(self, vma: VMA) -> None:
        pass

    def folio_mapped(self, vma: VMA, addr: int, pfn: int, nr_pages: int) -> None:
        if self.fields_of(vma) is None:
            super().vma_prepare(vma)
        super().folio_mapped(vma, addr, pfn, nr_pages)


def _has_pages(mm: MM) -> bool:
    """Does the page table of `mm` have entries?  Locks each leaf to read it."""
    found = False
    for leaf in mm.page_table.leaves.values():
        leaf.lock.lock()
        found = found or leaf.used > 0
        leaf.lock.unlock()
    return found


class ForkedWithoutPages(AnonVmaRmap):
    """fork has nothing to copy then, unless another thread faults before its VMA is locked."""

    name = "anon_vma, child not linked where its parent had no pages when fork began"

    def mm_forked(self, parent: MM, child: MM) -> None:
        self._nothing_to_share = not _has_pages(parent)

    def vma_forked(self, parent: VMA, child: VMA) -> None:
        if self._nothing_to_share:
            self.vma_prepare(child)
        else:
            super().vma_forked(parent, child)


class ChainFreedFirst(AnonVmaRmap):
    name = "anon_vma, AVCs freed before they leave the trees"

    def _unlink_chain(self, fields: VmaFields) -> None:
        if self.scheduler is not None:
            for avc in fields.chain:
                self.scheduler.free("anon_vma_chain", avc)
        super()._unlink_chain(fields)

    def _free_chain(self, chain: list[AnonVmaChain]) -> None:
        self.chain_pool.free(len(chain))


class WalkWithoutLock(AnonVmaRmap):
    name = "anon_vma, walk without the root's lock"

    def walk(self, pfn: int) -> Iterator[tuple[VMA, int]]:
        anon_vma: AnonVma | None = self.anon_vmas[self.anchor.m[pfn]]
        if anon_vma is None:
            return
        first: int = self.folios.index.m[pfn]
        node = anon_vma.first_touching(first, first, self.visited)
        while node is not None:
            vma = cast(AnonVmaChain, node).vma
            yield vma, vma.start + ((first - vma.anon_pgoff) << PAGE_SHIFT)
            node = anon_vma.next_touching(node, first, first, self.visited)


class GeometryWithoutLock(AnonVmaRmap):
    """What the lock would have put in order has to be told to the checker: it is named by the lock that it lacks."""

    name = "anon_vma, geometry changed without the root's lock"

    def geometry_begin(self, change: GeometryChange) -> None:
        self._changes("take out of the trees", change)
        for vma in change.vmas:
            if (fields := self.fields_of(vma)) is not None:
                self._take_out(fields)

    def geometry_end(self, change: GeometryChange) -> None:
        self._changes("put back into the trees", change)
        for vma in change.vmas:
            if (fields := self.fields_of(vma)) is not None:
                self._put_back(fields, vma)

    def _changes(self, what: str, change: GeometryChange) -> None:
        rwsem = self._rwsem_of(change)
        if rwsem is not None:
            self.point(what, rwsem, True)


def _put_last(design: AnonVmaRmap, vma: VMA) -> None:
    """Remove the VMA from its trees and insert it again."""
    unchanged = GeometryChange([vma], [bounds_of(vma)], [])
    design.geometry_begin(unchanged)
    design.geometry_end(unchanged)


# CoW contexts


class NoRetryAfterMove(CowContextRmap):
    name = "cow_context, walk not repeated where entries moved"

    def need_move_locks(self, source: VMA, target: VMA, merged: bool) -> bool:
        return False


class ChildrenFirst(CowContextRmap):
    name = "cow_context, children visited before their parent"

    def _parents_first(self, top: CowContext) -> Iterator[CowContext]:
        child = self.first_child(top)
        while child is not None:
            yield from self._parents_first(child)
            child = self.next_sibling(child)
        yield top


class LinkedWithPages(CowContextRmap):
    """The same as ForkedWithoutPages above."""

    name = "cow_context, child's context not linked where its parent had no pages when fork began"

    def mm_forked(self, parent: MM, child: MM) -> None:
        if _has_pages(parent):
            super().mm_forked(parent, child)
        else:
            self.mm_created(child)


class NotHeld(CowContextRmap):
    name = "cow_context, context not held between the two walks of a migration"

    def hold(self, pfn: int) -> None:
        pass

    def unhold(self, pfn: int) -> None:
        pass

    def stays(self, pfn: int, top: CowContext) -> bool:
        return True


class UnmappedNotNoticed(CowContextRmap):
    name = "cow_context, walk that does not ask whether the folio is mapped still"

    def stays(self, pfn: int, top: CowContext) -> bool:
        return True


class NoGracePeriod(CowContextRmap):
    name = "cow_context, context freed without a grace period"

    def put(self, context: CowContext) -> None:
        gone: CowContext | None = context
        while gone is not None:
            gone.refcount -= 1
            if gone.refcount:
                return
            above = gone.parent
            if above is not None:
                above.lock.lock()
                self._unlink(gone, above)
                above.lock.unlock()
            if self.scheduler is not None:
                self.scheduler.free("cow_context", gone)
            gone = above


class KsmWalkWithoutRcu(CowContextRmap):
    """Contexts of places are referred to; their address spaces, and contexts below them, are not."""

    name = "cow_context, walk of a KSM page outside of RCU"

    def _walk_ksm(self, pfn: int) -> Iterator[tuple[VMA, int]]:
        places = [(cast(CowContext, place.anchor), place.addr) for place in self.ksm.newest_first(pfn)]
        for context, addr in places:
            yield from self._ksm_at(context, addr)
        for top, addr in places:
            for context in self._parents_first(top):
                if context is not top:
                    yield from self._ksm_at(context, addr)


class SpaceFreedAtOnce(CowContextRmap):
    """The context's pointer is cleared first; who has read it before that is not waited for."""

    name = "cow_context, mm_struct freed without a grace period"
    spaces_under_rcu = False


class TablesFreedAtOnce(CowContextRmap):
    """Nothing keeps munmap() from it but the grace period: no walk has locked the VMA out."""

    name = "cow_context, page table freed without a grace period"
    tables_under_rcu = False


class RecordedLate(CowContextRmap):
    """The record of a moved VMA comes after the first entries, not before."""

    name = "cow_context, remap recorded after entries moved"

    def vma_copied(self, source: VMA, new: VMA) -> None:
        new.rmap[self.slot] = source.rmap[self.slot]
        self._late = new

    def move_unlock(self, vma: VMA) -> None:
        super().move_unlock(vma)
        self._record(self._late)


# The machine


class MovedWithoutFolioLock(Machine):
    """UFFDIO_MOVE gives a page another page offset while a walk looks for it at the old one."""

    def lock_to_move(self, vma: VMA, pfn: int) -> None:
        pass

    def unlock_moved(self, vma: VMA, pfn: int) -> None:
        pass


class WalkWithoutFolioLock(Machine):
    """folio_referenced() of an anonymous folio, as before 7.3."""

    def trylock_folio(self, head: int) -> bool:
        return True

    def unlock_folio(self, head: int) -> None:
        pass


class TablesFreedFirst(Machine):
    """munmap frees page tables and then lets the designs forget the VMA, under which walks still come by."""

    def tell_removed(self, vma: VMA) -> None:
        self.free_page_tables(vma.mm, vma.start, vma.end, False)
        super().tell_removed(vma)


class ReferenceIgnored(Machine):
    """The last mapping frees the page, also if reclaim or a migration has it in hand."""

    def try_free(self, head: int) -> None:
        held = self.pins.pop(head, 0)
        super().try_free(head)
        if held:
            self.pins[head] = held


class TemporaryStacksMigrated(Machine):
    """Migration does not leave alone the stack that an exec under way has still to move."""

    def begin_exec(self, stack_start: int, stack_len: int, stack_offset: int) -> MM:
        mm = super().begin_exec(stack_start, stack_len, stack_offset)
        for vma in mm.tree.to_list():
            vma.flags &= ~VM_STACK_INCOMPLETE_SETUP
        return mm


class FaultsDuringFork(Machine):
    """fork leaves the VMAs of the parent unlocked, and a fault under such a lock may prepare its VMA.

    fork asks twice whether a VMA is prepared: before it tells the designs (anon_vma_fork()) and before it copies
    the entries (vma_needs_copy()).  Nothing orders that with the fault, so each is told to the checker.
    """

    def keep_faults_out(self, vma: VMA) -> None:
        self._forked = vma
        self._point("read vma->anon_vma", vma, False)

    def tree_changes(self, mm: MM, start: int, end: int, nr_stores: int = 1) -> None:
        super().tree_changes(mm, start, end, nr_stores)
        self._point("read vma->anon_vma", getattr(self, "_forked", mm), False)

    def prepare(self, vma: VMA) -> None:
        self._point("write vma->anon_vma", vma, True)
        super().prepare(vma)

    def assert_neighbours_stay(self, mm: MM) -> None:
        """It does not ask that they do."""

    def _point(self, what: str, subject: object, write: bool) -> None:
        if self.scheduler is not None:
            self.scheduler.point(what, subject, write)

    def _lock_vma(self, mm: MM, addr: int, write: bool) -> VMA | None:
        vma = vma_lookup(self.scheduler, mm, addr)
        if vma is None or not lock_of(vma).try_down_read():
            return None
        return vma


class PreparedBeforeLocked(Machine):
    """A fault asks whether a VMA is prepared before it locks it (each side is told to the checker)."""

    def tell_removed(self, vma: VMA) -> None:
        self._point(vma, True)
        super().tell_removed(vma)

    def _lock_vma(self, mm: MM, addr: int, write: bool) -> VMA | None:
        vma = vma_lookup(self.scheduler, mm, addr)
        if vma is None:
            return None
        self._point(vma, False)
        if not vma.prepared:
            return None
        return self.lock_vma_under_rcu(mm, addr)

    def _point(self, vma: VMA, write: bool) -> None:
        if self.scheduler is not None:
            self.scheduler.point("vma->anon_vma", vma, write)


class ForeignSpaceNotHeld(VmaLocks):
    def give_back(self, vma: Area, other: Space) -> None:
        self.end_read(vma, other)


class SpacesNotHeld(Machine):
    """Who locked a VMA that is another mm's by now gives it back without holding that."""

    vma_locks = ForeignSpaceNotHeld


def scene(mutant: Mutant) -> Scenario:
    """The scenario that shows the mutant."""
    return scenario(mutant.scene, mutant.mutated, mutant.machine)


def outcome(mutant: Mutant, limit: int, preemptions: int = -1) -> Outcome:
    """Try the scenario of the mutant, up to the first interleaving that fails, or `limit` of them."""
    memory = Model(mutant.memory, [mutant.weakened] if mutant.weakened else [])
    found = explore(scene(mutant), limit=limit, preemptions=preemptions, begin=memory.begin)
    for failure in found.failures:
        if not failure.names:
            raise failure.error  # the scenario could not be set up, and shows nothing
        name_ordering(failure, scene(mutant), memory)
    return found


def _raced(
    rule: str, original: type[ReverseMap], mutated: type[ReverseMap], scene: str, origin: str = "",
    machine: type[Machine] = Machine,
) -> Mutant:  # fmt: skip
    return Mutant(rule, original, mutated, "race", origin, scene=scene, machine=machine)


class LazyTablesFreedAtOnce(AnonVmaLazyRmap):
    """As anon_vma does it, whose walks have a lock that munmap() waits for."""

    name = "anon_vma_lazy, page table freed without a grace period"
    tables_under_rcu = False


class SpaceNotKept(AnonVmaLazyRmap):
    name = "anon_vma_lazy, mm_struct freed while a root refers to it"

    def keeps_space(self, mm: MM) -> bool:
        return False


RACED: Final = (
    _raced("the source of a move comes first", AnonVmaRmap, DestinationFirst, "restore / mremap away", "948f017b093a"),
    _raced("moves into a VMA take the lock", AnonVmaRmap, MovesWithoutLock, "restore / mremap that merges",
           "38a76013ad80"),
    _raced("also a fresh anon_vma is locked", AnonVmaRmap, LinkedWithoutLock,
           "first fault below / first fault above", "d9d332e0874f"),
    _raced("fork keeps faults out", AnonVmaRmap, AnonVmaRmap, "fork / first fault in another thread", "fb49c455323f",
           FaultsDuringFork),
    _raced("a fault asks under the VMA's lock whether it is prepared", AnonVmaRmap, AnonVmaRmap,
           "mremap that keeps its source / write", "657b5146955e", PreparedBeforeLocked),
    _raced("a VMA of another mm is given back while that mm is held", AnonVmaRmap, AnonVmaRmap,
           "lock_vma_under_rcu / munmap, mmap of another, and its exit", "9bbffee67ffd", SpacesNotHeld),
    _raced("who drops a reference is in no RCU section", AnonVmaRmap, PutWithinRcu, "migrate / munmap before any fork",
           "fixed in 3.16"),
    _raced("a VMA is prepared before its page table is locked", AnonVmaRmap, PreparedWithPage,
           "first fault below / first fault above"),
    _raced("the parent comes before its child", AnonVmaRmap, ChildFirst, "restore / fork"),
    _raced("fork links the child also where it finds no pages", AnonVmaRmap, ForkedWithoutPages,
           "referenced / fault after madvise + fork of the child"),
    _raced("a walk locks the root", AnonVmaRmap, WalkWithoutLock, "restore / mprotect that splits"),
    _raced("who has the lock asks again whether the folio is mapped", AnonVmaRmap, MappedNotAsked,
           "referenced / exit of the parent + exit of the child", "f18194275c39"),
    _raced("an anon_vma waits for who has its lock", AnonVmaRmap, FreedUnderWalk,
           "referenced / exit of the parent + exit of the child"),
    _raced("who sleeps for the lock has a reference", AnonVmaRmap, SleptWithoutReference,
           "referenced / exit of the parent + exit of the child"),
    _raced("who drops the last reference frees", AnonVmaRmap, NotFreedByWalk,
           "referenced / exit of the parent + exit of the child"),
    _raced("AVCs are freed when no tree has them", AnonVmaRmap, ChainFreedFirst, "referenced / exit of the child"),
    _raced("geometry changes under the lock", AnonVmaRmap, GeometryWithoutLock, "restore / mprotect that splits"),
    _raced("where entries moved, look again", CowContextRmap, NoRetryAfterMove, "restore / mremap back"),
    _raced("the parent comes before its child", CowContextRmap, ChildrenFirst, "restore / fork"),
    _raced("fork links the child also where it finds no pages", CowContextRmap, LinkedWithPages,
           "referenced / fault after madvise + fork of the child"),
    _raced("a migration holds the context", CowContextRmap, NotHeld,
           "restore / exit of the parent + exit of the child"),
    _raced("what nothing maps points nowhere", CowContextRmap, UnmappedNotNoticed,
           "referenced / exit of the parent + exit of the child"),
    _raced("a context is freed after a grace period", CowContextRmap, NoGracePeriod, "restore / exit of the child"),
    _raced("an mm_struct is freed after a grace period", CowContextRmap, SpaceFreedAtOnce,
           "restore / exit of the child"),
    _raced("a walk of a KSM page is an RCU section", CowContextRmap, KsmWalkWithoutRcu,
           "referenced / KSM page's exit of a sharer"),
    _raced("a page table is freed after a grace period", CowContextRmap, TablesFreedAtOnce,
           "restore / munmap with its page table"),
    _raced("page tables go after VMAs", AnonVmaRmap, AnonVmaRmap, "restore / munmap with its page table",
           machine=TablesFreedFirst),
    _raced("UFFDIO_MOVE has the folio locked", AnonVmaRmap, AnonVmaRmap, "unmap / UFFDIO_MOVE",
           machine=MovedWithoutFolioLock),
    _raced("walks have the folio locked", AnonVmaRmap, AnonVmaRmap, "referenced / UFFDIO_MOVE",
           machine=WalkWithoutFolioLock),
    _raced("a reference keeps a page", AnonVmaRmap, AnonVmaRmap, "unmap / munmap + exit of the child",
           machine=ReferenceIgnored),
    _raced("migration leaves temporary stacks alone", AnonVmaRmap, AnonVmaRmap, "migrate / exec", "a8bef8ff6ea1",
           TemporaryStacksMigrated),
    _raced("the record comes before the entries", CowContextRmap, RecordedLate, "restore / mremap away"),
    _raced("a page table is freed after a grace period", AnonVmaLazyRmap, LazyTablesFreedAtOnce,
           "unmap / munmap before any fork"),
    _raced("a root keeps its mm_struct", AnonVmaLazyRmap, SpaceNotKept,
           "referenced / exit of the parent + exit of the child"),
)  # fmt: skip
