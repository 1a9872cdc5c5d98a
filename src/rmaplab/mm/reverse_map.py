# SPDX-License-Identifier: GPL-2.0-or-later
"""The interface between the machine and a reverse map.

The machine calls a design for every event, at the place where Linux calls its own reverse map (each method names the
kernel function), and asks it questions.  A design reads VMAs, address spaces and folio columns, and never changes them.
It keeps its state in its slot of `VMA.rmap` and `MM.rmap`, and in columns that it requests from `Folios.column`.

Events concern anonymous pages only.  An event about pages names rows of `Folios`; every row of a large folio gets the
value of its folio, so that a folio can be split without a call.

Order is part of the interface: the proofs of a design rest on "before" and "after" below.

Locks: each event lists the locks that its caller holds, as in Linux.  "mmap_lock" is that of the address space in
question, "VMA lock" the one in the VMA (vm_lock), "leaf lock" the page-table lock of the entries.  A task that holds
mmap_lock for writing and has called vma_start_write() keeps faults out of the VMA.  A design takes its own locks inside
these, and holds none when it returns, except between the two halves of a pair (geometry_begin(), move_lock()) and while
a walk is suspended.  Walks start at any time, on other CPUs: no lock listed here prevents them.  While execve creates
an address space, no other task knows it, and its mmap_lock is not taken.

Subclass `ReverseMap`, every design in rmap/, `Picture`, `IntervalNode`.  Public methods keep their meaning; those that
begin with an underscore are private to their file.  Other classes of mm/, rmap/ and sync/ are for use only: where they
are compiled, an interpreted class cannot inherit from them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from mypy_extensions import mypyc_attr

from rmaplab.mm.folio import Folios, Int64s
from rmaplab.mm.geometry import GeometryChange
from rmaplab.mm.pagetable import LEAF_SHIFT, Leaf
from rmaplab.mm.picture import Picture
from rmaplab.mm.profile import Profile
from rmaplab.mm.takeover import TakenOver
from rmaplab.mm.vma import MM, VMA
from rmaplab.sync.locks import Scheduler
from rmaplab.sync.work import Ledger


class AddressSpaces:
    """References to address spaces, for a walk that found one without a lock."""

    def get(self, mm: MM) -> bool:
        """Take a reference unless the last one is gone (mmget_not_zero())."""
        raise NotImplementedError

    def put(self, mm: MM) -> None:
        """Drop the reference; if it was the last one, the teardown happens elsewhere (mmput_async())."""
        raise NotImplementedError


class _CountedSpaces(AddressSpaces):
    """The same for one design, whose ledger counts the references: a walk pays for two atomic operations each."""

    def __init__(self, spaces: AddressSpaces, ledger: Ledger) -> None:
        self._spaces: Final = spaces
        self._ledger: Final = ledger

    def get(self, mm: MM) -> bool:
        got = self._spaces.get(mm)
        if got:
            self._ledger.tally("references to mm_structs").count += 1
        return got

    def put(self, mm: MM) -> None:
        self._spaces.put(mm)


@dataclass(eq=False)
class Attachment:
    """The parts of the machine that a design gets when it is attached.

    slot:      the design's place in VMA.rmap and MM.rmap
    folios:    the machine's folios; read `index` and `order`, ask for columns of your own
    profile:   the kernel's rules and object sizes
    scheduler: None, or the scheduler that decides what runs next (pass it to every lock)
    spaces:    references to address spaces, for walks that find them without a lock
    """

    slot: int
    folios: Folios
    profile: Profile
    scheduler: Scheduler | None
    spaces: AddressSpaces


@dataclass(eq=False)
class ObjectCount:
    """One line of a footprint: objects of a type, bytes they take, pages of the slabs that hold them."""

    type: str
    objects: int
    peak: int
    size: int
    slab_pages: int
    peak_pages: int

    @property
    def nbytes(self) -> int:
        """Bytes of the objects alone, without the free space of their slabs."""
        return self.objects * self.size


def miscounted(said: list[str], what: str, number: int, kept: int, found: int) -> None:
    """Append a sentence if the count `kept` differs from the number `found` (ReverseMap.audit()).  `number`: that of
    the object with the count, -1 where there is only one."""
    if kept != found:
        said.append(f"{what}{f' {number}' if number >= 0 else ''}: counted as {kept}, and there are {found}")


@mypyc_attr(allow_interpreted_subclasses=True)
class ReverseMap:
    """A design.  Subclass it, give it a `name`, and override the events that it needs."""

    name: ClassVar[str] = "unnamed"
    # Bytes of fields that it needs in each vm_area_struct and mm_struct (include/linux/mm_types.h), objects aside.
    vma_fields: ClassVar[int] = 0
    mm_fields: ClassVar[int] = 0
    watches_entries: ClassVar[bool] = False  # does it get events about entries? (most designs do not, and pay nothing)

    # What it is known to miss, in words; "" if it must be complete.  A miss by such a design is a finding, and a
    # failure only if the user selected the design by name.
    known_to_miss: ClassVar[str] = ""
    scans_memory: ClassVar[bool] = False  # are its walks so long that comparisons leave it out unless selected by name?
    drawn_by: ClassVar[str] = ""  # "package.module:Class", a Picture of it (mm/picture.py)

    # Objects that a walk may reach under RCU only, so that they are freed a grace period late.  The mm_struct, by a
    # pointer that is cleared when its last user goes: mmget_not_zero() looks into it (mmdrop() alone
    # frees it at once).  Page tables, where nothing else keeps munmap() from freeing them: anon_vma's walks have left
    # when the VMA is out of the tree (free_pgtables()); tlb_remove_table() waits for RCU only with room for a batch.
    spaces_under_rcu: ClassVar[bool] = False
    tables_under_rcu: ClassVar[bool] = False

    def __init__(self, attachment: Attachment) -> None:
        self.slot: Final = attachment.slot
        self.folios: Final = attachment.folios
        self.profile: Final = attachment.profile
        self.scheduler: Final = attachment.scheduler
        self.ledger: Final = Ledger(self.name)
        self.spaces: Final[AddressSpaces] = _CountedSpaces(attachment.spaces, self.ledger)
        self.locked: Leaf | None = None  # what walk_locking() hands over

    # Address spaces

    def mm_created(self, mm: MM) -> None:
        """A fresh, empty address space (mm_init(), from execve).  Locks: none, no other task knows it."""

    def mm_forked(self, parent: MM, child: MM) -> None:
        """`child` begins as a copy of `parent`; it has no VMAs yet (dup_mmap(), at its start).  Locks: mmap_lock of
        both for writing.  Faults under a VMA lock of the parent go on: each VMA is locked when fork reaches it."""

    def mm_fork_end(self, parent: MM, child: MM) -> None:
        """All VMAs and entries of `parent` are copied (dup_mmap(), at its end, where it calls ksm_fork() and
        khugepaged_fork()).  Locks: mmap_lock of both and the VMA locks of the parent for writing; they are released
        next, and faults go on."""

    def mm_gone(self, mm: MM) -> None:
        """The last user of `mm` is gone, with all its VMAs and entries (exit_mmap(), at its end).  Locks: none.

        No task can get a reference to `mm` any more (mmget_not_zero() fails).  But a walk under RCU may have found it
        before, and reads its count: objects that such a walk can still reach stay for a grace period
        (`spaces_under_rcu`, Rcu.call())."""

    # VMAs

    def vma_prepare(self, vma: VMA) -> None:
        """`vma`, not prepared yet, is about to get its first anonymous page (__anon_vma_prepare()).  Locks: mmap_lock
        for reading at least, so neighbours stay as they are; other VMAs may be prepared at the same time.  Of two
        tasks that prepare one VMA, the second waits for the first."""

    def vma_forked(self, parent: VMA, child: VMA) -> None:
        """`child` is the copy of the prepared `parent` in a forked address space; called before its entries are copied
        (anon_vma_fork(), in dup_mmap()).  Not called for VM_WIPEONFORK.  Locks: mmap_lock of both address spaces and
        the parent's VMA lock for writing."""

    def vma_split(self, vma: VMA, new: VMA) -> None:
        """The prepared `vma` is about to lose the range of `new`, which has its geometry already and is in no tree
        (anon_vma_clone() in __split_vma()).  A geometry change follows, with `new` as `split_off`.  Locks: mmap_lock
        for writing; not the VMA lock, so faults in `vma` go on."""

    def vma_joined(self, vma: VMA, donor: VMA) -> None:
        """`vma`, not prepared, is about to grow over pages of the prepared `donor`, and becomes prepared through it
        (dup_anon_vma()).  A geometry change follows.  Locks: mmap_lock and both VMA locks for writing."""

    def geometry_begin(self, change: GeometryChange) -> None:
        """Bounds of VMAs are about to change (vma_prepare() in mm/vma.c).  Only called if one is prepared.
        Locks: mmap_lock and the VMA locks of all VMAs of the change for writing."""

    def geometry_end(self, change: GeometryChange) -> None:
        """They have changed (vma_complete()).  Locks: the same."""

    def vma_absorbed(self, vma: VMA, gone: VMA) -> None:
        """The prepared `gone` was merged into `vma`, which covers its range by now (anon_vma_merge()); called after
        geometry_end().  Locks: mmap_lock and both VMA locks for writing."""

    def vma_copied(self, source: VMA, new: VMA) -> None:
        """`new` is a fresh VMA that pages of the prepared `source` will move to, in no tree yet (anon_vma_clone() in
        copy_vma()).  If pages move to an existing VMA, there is only a geometry change.  Locks: mmap_lock and
        the VMA lock of `source` for writing."""

    def vma_moved(self, source: VMA, target: VMA, source_addr: int, target_addr: int, nr_pages: int) -> None:
        """The entries of `nr_pages` pages are about to move from `source_addr` to `target_addr` (copy_vma() has
        returned, move_page_tables() comes next).  Locks: mmap_lock and both VMA locks for writing."""

    def vma_removed(self, vma: VMA) -> None:
        """The prepared `vma` holds no anonymous pages any more: its entries are gone (unlink_anon_vmas(), from
        munmap, exit and MREMAP_DONTUNMAP).  Locks: mmap_lock, from munmap() for reading perhaps.  There are no more
        faults: `vma` is out of the tree (`vma.detached`), its mm has no users, or its VMA lock is held for
        writing.  Page tables are freed after this."""

    def need_move_locks(self, source: VMA, target: VMA, merged: bool) -> bool:
        """Might a walk miss entries that move from `source` to `target` meanwhile, so that the design needs
        move_lock() around each move?  `merged`: `target` was there before (copy_vma()'s need_rmap_locks).  Locks: as
        vma_moved()."""
        return False

    def move_lock(self, vma: VMA) -> None:
        """Some entries are about to move away from `vma` (take_rmap_locks()).  Locks: as vma_moved(); the leaf locks
        are taken after this."""

    def move_unlock(self, vma: VMA) -> None:
        """They have moved (drop_rmap_locks()).  Locks: as vma_moved()."""

    # Folios

    def folio_mapped(self, vma: VMA, addr: int, pfn: int, nr_pages: int) -> None:
        """The new pages pfn .. pfn+nr_pages-1, one folio, are about to be mapped at `addr` in `vma` alone
        (folio_add_new_anon_rmap(), exclusive).  Locks: the VMA lock or mmap_lock for reading, and the leaf lock."""

    def folios_mapped(self, vma: VMA, addrs: Int64s, pfns: Int64s) -> None:
        """The same for many folios of order 0, each at an address of its own, in one go."""
        for addr, pfn in zip(addrs.tolist(), pfns.tolist(), strict=True):
            self.folio_mapped(vma, addr, pfn, 1)

    def folio_swapped_in(self, vma: VMA, addr: int, pfn: int, exclusive: bool) -> None:
        """The new page `pfn`, read from swap, is about to be mapped at `addr`; unless `exclusive`, other entries may
        refer to it (folio_add_new_anon_rmap() in do_swap_page()).  Of a large folio, once for each page.  Locks: the
        VMA lock or mmap_lock for reading, the folio lock and the leaf lock."""

    def folio_reused(self, vma: VMA, pfn: int, nr_pages: int) -> None:
        """Copy-on-write found pages pfn .. pfn+nr_pages-1 (one whole folio) mapped by `vma` alone and takes them over
        (folio_move_anon_rmap()).  Locks: the VMA lock or mmap_lock for reading, the folio lock and the leaf lock."""

    def folio_moved(self, vma: VMA, addr: int, pfn: int) -> None:
        """UFFDIO_MOVE took the exclusive page `pfn` to `addr` in `vma`; its index changed (folio_move_anon_rmap() in
        mm/userfaultfd.c).  Called after `index` has its new value.  Locks: both VMA locks or mmap_lock for reading, the
        folio lock and both leaf locks; Linux before 7.3 has the lock of the folio's anon_vma for writing, too."""

    def folio_migrated(self, old: int, new: int, nr_pages: int) -> None:
        """Pages old.. are about to be replaced by new.., at the same places (folio_migrate_mapping(): mapping and index
        are copied).  Migration entries stand for the old ones meanwhile.  Locks: both folio locks."""

    def folio_freed(self, pfn: int, nr_pages: int) -> None:
        """Pages pfn .. pfn+nr_pages-1, one folio, are mapped nowhere any more and free.  Locks: none, nobody has a
        reference.  A late walk may still have the number: it checks the mapcount."""

    def folios_freed(self, pfns: Int64s) -> None:
        """The same for many folios of order 0."""
        for i in range(len(pfns)):
            self.folio_freed(int(pfns[i]), 1)

    def ksm_added(self, vma: VMA, addr: int, pfn: int) -> None:
        """KSM is about to map its page `pfn` at `addr` in `vma` (stable_tree_append()).  Such a page has no index of
        its own: a walk visits these places, and the copies that forks made of them.  Locks: ksm_thread_mutex, the
        folio lock, and mmap_lock for reading, which keeps `vma` and the object that its new pages point to."""

    def ksm_removed(self, mm: MM, addr: int, pfn: int) -> None:
        """KSM forgets that place (remove_rmap_item_from_tree(): unmerged, changed, or `mm` gone).  Locks:
        ksm_thread_mutex and the folio lock."""

    # Entries, reported only to designs with `watches_entries`, under the leaf lock.  `entries` are consecutive from an
    # address on; those with PTE_ANON or PTE_MIGRATION count: the page has an entry there, or had.  There is no event
    # when an entry turns from one into the other, or is protected.

    def entries_added(self, mm: MM, addr: int, entries: Int64s) -> None:
        """They are now in the page table of `mm` (page_add_rmap() of 2.5: faults, swap-in, fork)."""

    def entries_removed(self, mm: MM, addr: int, entries: Int64s) -> None:
        """They are no longer there (page_remove_rmap() of 2.5: copy-on-write, swap-out, unmap)."""

    def entries_moved(self, mm: MM, old: int, new: int, entries: Int64s) -> None:
        """They moved from `old` to `new` (copy_one_pte() of mm/mremap.c in 2.5).  Locks: both leaf locks."""
        self.entries_removed(mm, old, entries)
        self.entries_added(mm, new, entries)

    # Memory that is there already

    def take_over(self, found: TakenOver) -> None:
        """The machine holds memory of a kernel that ran without this design: take the state that it would have.

        By default this calls the events that led there: address spaces and forks, then each VMA as if it had been
        forked from itself, folios as their makers mapped them, the places of KSM, and entries.  Override it if these
        are not enough, or include something that did not happen.
        """
        self.take_over_spaces(found)
        for known in found.vmas:
            self.vma_forked(known.vma, known.vma)
        for folio in found.folios:
            self.folio_mapped(folio.as_made(), folio.addr, folio.pfn, folio.nr_pages)
        for place in found.places:
            self.ksm_added(place.vma, place.addr, place.pfn)
        if self.watches_entries:
            for mm, _ in found.spaces:
                for number, leaf in mm.page_table.leaves.items():
                    self.entries_added(mm, number << LEAF_SHIFT, leaf.v)

    def take_over_spaces(self, found: TakenOver) -> None:
        """Call the events about address spaces and forks alone."""
        for mm, parent in found.spaces:
            if parent is None:
                self.mm_created(mm)
            else:
                self.mm_forked(parent, mm)

    # Announcements to the scheduler, where there is one (sync/locks.py), by walks and by the changes that they may meet

    def point(self, what: str, subject: object, write: bool = False) -> None:
        """Scheduler.point()"""
        if self.scheduler is not None:
            self.scheduler.point(what, subject, write)

    def touch(self, what: str, subject: object) -> None:
        """Scheduler.touch()"""
        if self.scheduler is not None:
            self.scheduler.touch(what, subject)

    def might_sleep(self, what: str) -> None:
        """Scheduler.might_sleep()"""
        if self.scheduler is not None:
            self.scheduler.might_sleep(what)

    # Questions

    def keeps_space(self, mm: MM) -> bool:
        """Does it still refer to the mm_struct, whose last user is gone (mmgrab())?  If so, it frees it later."""
        return False

    def related(self, vma: VMA, pfn: int) -> bool:
        """Would a walk for `pfn`, which is mapped or was, visit `vma`, which is prepared, if that has its page offset?
        Asked when a page comes back from swap that KSM had merged (ksm_might_need_to_copy()); a copy is always safe.
        Locks: the VMA lock or mmap_lock for reading, and the folio lock."""
        return False

    def hold(self, pfn: int) -> None:
        """The folio whose first page is `pfn` is about to be unmapped and walked again: keep what the second walk
        needs, even if all its mappings go meanwhile (folio_get_anon_vma() in migrate_folio_unmap()).  Locks: the folio
        lock.  Another task may have unmapped it since the caller looked: then there is nothing to keep."""

    def unhold(self, pfn: int) -> None:
        """That walk is over (put_anon_vma()).  Locks: the folio lock."""

    def walk(self, pfn: int) -> Iterator[tuple[VMA, int]]:
        """Places that may map the folio whose first page is `pfn`, in the order of the visit.

        Yields (vma, address): the address, in bytes, of the first page of the folio that the VMA covers.  May yield
        places that do not map it; must yield every place that does (rmap_walk()).  Locks: the folio lock, which the
        caller holds with a reference; no other.  At each place the caller takes the leaf lock, and releases it before
        it asks for the next.  It closes the iterator when it has seen enough; there a design releases what it holds
        (`finally`).
        """
        raise NotImplementedError(f"{self.name} does not say how to walk")

    def walk_locking(self, pfn: int) -> Iterator[tuple[VMA, int]]:
        """walk() for a caller who takes the leaf lock at each place.  A design that had it already may leave it to him:
        then `locked` is that leaf, until the caller, who does so at once, sets it to None.  Who overrides walk()
        of such a design overrides both."""
        return self.walk(pfn)

    def glance(self, pfn: int) -> Iterator[tuple[VMA, int]]:
        """The same for who only looks on, and may leave nothing behind that later walks would find."""
        return self.walk(pfn)

    def can_merge(self, source: VMA | None, existing: VMA, growing: bool) -> bool:
        """May a range become part of `existing`, everything else being equal?  `source` is the VMA that the range
        belongs to, or that mremap moves it from, or with `growing` the VMA that is to grow over the range, which is
        not mapped yet; None for a new mapping.  (is_mergeable_anon_vma())  The leader decides; where nothing is
        concurrent the others are asked whether they would have decided alike.  Locks: mmap_lock for writing."""
        return True

    def can_join(self, prev: VMA, next: VMA) -> bool:
        """May `prev` and `next`, each of which could take in the range between them, become one?
        (are_anon_vmas_compatible())  The leader decides, as above.  Locks: mmap_lock for writing."""
        return True

    # Self-description

    def footprint(self) -> list[ObjectCount]:
        """The objects of the design, one line per type."""
        return [
            ObjectCount(p.name, p.live, p.peak, p.size, p.slab_pages(p.live), p.slab_pages(p.peak))
            for p in self.ledger.pools.values()
        ]

    def picture(self) -> Picture:
        """How to draw what it holds: by the class that `drawn_by` names; the base class draws nothing."""
        if not self.drawn_by:
            return Picture(self)
        module, _, name = self.drawn_by.partition(":")
        picture = getattr(importlib.import_module(module), name)(self)
        assert isinstance(picture, Picture)
        return picture

    def why_missed(self, pfn: int, vma: VMA, addr: int) -> str:
        """Why a walk for the folio whose first page is `pfn` missed the entry at `addr` of `vma`, in words."""
        return "for another reason"

    def audit(self, mms: Sequence[MM], peak_vmas: int) -> list[str]:
        """Errors in what the design keeps, a sentence each, even if no walk shows them; called while nothing runs.  Its
        objects are those that VMAs, address spaces, folios and migrations refer to, each reference is counted, and what
        it records is what VMAs and entries say: anything beyond that has leaked.

        :param mms: all live address spaces
        :param peak_vmas: the greatest number of VMAs in the machine at any moment
        """
        return []
