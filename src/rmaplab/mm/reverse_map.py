# SPDX-License-Identifier: GPL-2.0-or-later
"""What the machine asks of a reverse map.

The machine tells a design every event at the place where Linux tells its own (the kernel function is named with each),
and asks it questions.  A design sees VMAs, address spaces and folio columns; it never changes them.  What it wants to
remember it keeps in its slot of `VMA.rmap` and `MM.rmap`, and in columns that it asks `Folios.column` for.

Anonymous pages only.  An event about pages names rows of `Folios`; every row of a large folio gets what its folio gets,
so that a folio can be split silently.

Order is part of the interface: "before" and "after" below are what the proofs of a design rest on.

Locks: what the caller holds, as Linux does, is said with each event.  "mmap_lock" is that of the address space that
is told of, "VMA lock" the one in the VMA (vm_lock), "leaf lock" the page-table lock of the entries.  Whoever has
mmap_lock for writing and has called vma_start_write() keeps faults out of the VMA.  A design takes its own locks
inside these, and must not hold one when it returns, but between the two halves of a pair (geometry_begin(),
move_lock()) and while a walk is suspended.  Walks come at any time, from other CPUs: nothing that is held here keeps
them away.  While execve makes an address space nobody else knows it, and its mmap_lock is not taken.

To be subclassed: `ReverseMap`, every design in rmap/, `Picture`, `IntervalNode`.  Public methods keep their meaning;
those that begin with an underscore are a file's own business.  Other classes of mm/, rmap/ and sync/ are to be used:
where they are compiled, an interpreted class cannot inherit from them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import ClassVar, Final

from mypy_extensions import mypyc_attr

from rmaplab.mm.folio import Folios, Int64s
from rmaplab.mm.geometry import GeometryChange
from rmaplab.mm.pagetable import LEAF_SHIFT
from rmaplab.mm.picture import Picture
from rmaplab.mm.profile import Profile
from rmaplab.mm.takeover import TakenOver
from rmaplab.mm.vma import MM, VMA
from rmaplab.sync.locks import Scheduler
from rmaplab.sync.work import Ledger


class AddressSpaces:
    """How a walk keeps an address space that it found without a lock from going away."""

    def get(self, mm: MM) -> bool:
        """Take a reference unless the last one is gone (mmget_not_zero())."""
        raise NotImplementedError

    def put(self, mm: MM) -> None:
        """Give it back; what follows if it was the last one happens elsewhere (mmput_async())."""
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


class Attachment:
    """What a design gets from the machine that it is attached to.

    slot:      the design's place in VMA.rmap and MM.rmap
    folios:    the machine's folios; read `index` and `order`, ask for columns of your own
    profile:   the kernel's rules and object sizes
    scheduler: None, or who decides what runs next (pass it to every lock)
    spaces:    references to address spaces, for walks that find them without a lock
    """

    def __init__(
        self, slot: int, folios: Folios, profile: Profile, scheduler: Scheduler | None, spaces: AddressSpaces
    ) -> None:
        self.slot: Final = slot
        self.folios: Final = folios
        self.profile: Final = profile
        self.scheduler: Final = scheduler
        self.spaces: Final = spaces


class ObjectCount:
    """One line of a footprint: objects of a type, bytes they take, pages of the slabs that hold them."""

    def __init__(self, type: str, objects: int, peak: int, size: int, slab_pages: int, peak_pages: int) -> None:
        self.type: Final = type
        self.objects: Final = objects
        self.peak: Final = peak
        self.size: Final = size
        self.slab_pages: Final = slab_pages
        self.peak_pages: Final = peak_pages

    @property
    def nbytes(self) -> int:
        """Bytes of the objects alone, without what is left of their slabs."""
        return self.objects * self.size


def miscounted(said: list[str], what: str, number: int, kept: int, found: int) -> None:
    """Append what is wrong if `kept`, which somebody keeps count of, is not what there is (ReverseMap.audit()).
    `number`: of the object that is counted for, -1 where there is only one."""
    if kept != found:
        said.append(f"{what}{f' {number}' if number >= 0 else ''}: counted as {kept}, and there are {found}")


@mypyc_attr(allow_interpreted_subclasses=True)
class ReverseMap:
    """A design.  Subclass it, give it a `name`, and override what it needs to know."""

    name: ClassVar[str] = "unnamed"
    # Bytes of fields that it needs in each vm_area_struct and mm_struct (include/linux/mm_types.h), objects aside.
    vma_fields: ClassVar[int] = 0
    mm_fields: ClassVar[int] = 0
    watches_entries: ClassVar[bool] = False  # is it to be told of entries? (most designs are not, and pay nothing)

    # What it is known to miss, in words; "" if it must be complete.  What such a design misses is a finding, and a
    # failure only where somebody asked for the design by name.
    known_to_miss: ClassVar[str] = ""
    scans_memory: ClassVar[bool] = False  # is a walk so long that comparisons leave it out unless asked for by name?
    drawn_by: ClassVar[str] = ""  # "package.module:Class", a Picture of it (mm/picture.py)

    # What do walks come to under RCU alone, so that it has to be there for a grace period after it is given up?  The
    # mm_struct, by a pointer that is cleared when its last user goes: mmget_not_zero() looks into it (mmdrop() alone
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

    # Address spaces

    def mm_created(self, mm: MM) -> None:
        """A fresh, empty address space (mm_init(), from execve).  Locks: none, nobody else knows it."""

    def mm_forked(self, parent: MM, child: MM) -> None:
        """`child` begins as a copy of `parent`; it has no VMAs yet (dup_mmap(), at its start).  Locks: mmap_lock of
        both for writing.  Faults under a VMA lock of the parent go on: each VMA is locked when it is dealt with."""

    def mm_fork_end(self, parent: MM, child: MM) -> None:
        """All VMAs and entries of `parent` are copied (dup_mmap(), at its end, where it calls ksm_fork() and
        khugepaged_fork()).  Locks: mmap_lock of both and the VMA locks of the parent for writing; next they are given
        back, and faults go on."""

    def mm_gone(self, mm: MM) -> None:
        """The last user of `mm` has gone, and all its VMAs and entries (exit_mmap(), at its end).  Locks: none.

        Nobody gets a reference to `mm` any more (mmget_not_zero() fails).  But a walk that runs under RCU may have
        found it before, and looks at its count: what such a walk can still reach stays for a grace period
        (`spaces_under_rcu`, Rcu.call())."""

    # VMAs

    def vma_prepare(self, vma: VMA) -> None:
        """`vma`, not prepared yet, is about to get its first anonymous page (__anon_vma_prepare()).  Locks: mmap_lock
        for reading at least, so neighbours stay what they are; other VMAs may be prepared at the same time.  Of two
        that come for one VMA, the second waits for the first."""

    def vma_forked(self, parent: VMA, child: VMA) -> None:
        """`child` is the copy of the prepared `parent` in a forked address space; told before its entries are copied
        (anon_vma_fork(), in dup_mmap()).  Not told for VM_WIPEONFORK.  Locks: mmap_lock of both address spaces and the
        parent's VMA lock for writing."""

    def vma_split(self, vma: VMA, new: VMA) -> None:
        """The prepared `vma` is about to lose the range of `new`, which has its geometry already and is in no tree
        (anon_vma_clone() in __split_vma()).  A geometry change follows, with `new` as `split_off`.  Locks: mmap_lock
        for writing; not the VMA lock, so faults in `vma` go on."""

    def vma_joined(self, vma: VMA, donor: VMA) -> None:
        """`vma`, not prepared, is about to grow over pages of the prepared `donor`, and becomes prepared through it
        (dup_anon_vma()).  A geometry change follows.  Locks: mmap_lock and both VMA locks for writing."""

    def geometry_begin(self, change: GeometryChange) -> None:
        """Bounds of VMAs are about to change (vma_prepare() in mm/vma.c).  Only told if one of them is prepared.
        Locks: mmap_lock and the VMA locks of all VMAs of the change for writing."""

    def geometry_end(self, change: GeometryChange) -> None:
        """They have changed (vma_complete()).  Locks: the same."""

    def vma_absorbed(self, vma: VMA, gone: VMA) -> None:
        """The prepared `gone` was merged into `vma`, which covers its range by now (anon_vma_merge()); told after
        geometry_end().  Locks: mmap_lock and both VMA locks for writing."""

    def vma_copied(self, source: VMA, new: VMA) -> None:
        """`new` is a fresh VMA that pages of the prepared `source` will move to, in no tree yet (anon_vma_clone() in
        copy_vma()).  If pages move to a VMA that existed, nothing but a geometry change is told.  Locks: mmap_lock and
        the VMA lock of `source` for writing."""

    def vma_moved(self, source: VMA, target: VMA, source_addr: int, target_addr: int, nr_pages: int) -> None:
        """The entries of `nr_pages` pages are about to move from `source_addr` to `target_addr` (copy_vma() has
        returned, move_page_tables() comes next).  Locks: mmap_lock and both VMA locks for writing."""

    def vma_removed(self, vma: VMA) -> None:
        """The prepared `vma` holds no anonymous pages any more: its entries are gone (unlink_anon_vmas(), from
        munmap, exit and MREMAP_DONTUNMAP).  Locks: mmap_lock, from munmap() for reading perhaps.  No fault
        comes any more: `vma` is out of the tree (`vma.detached`), its mm has no users, or its VMA lock is held for
        writing.  Page tables are freed after this."""

    def need_move_locks(self, source: VMA, target: VMA, merged: bool) -> bool:
        """Might a walk miss entries that move from `source` to `target` meanwhile, so that the design has to be told of
        each move?  `merged`: `target` was there before (copy_vma()'s need_rmap_locks).  Locks: as vma_moved()."""
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

    def folios_mapped(self, vma: VMA, addr: int, pfns: Int64s) -> None:
        """The same for many folios of order 0 at consecutive addresses, in one go."""
        for i in range(len(pfns)):
            self.folio_mapped(vma, addr + (i << 12), int(pfns[i]), 1)

    def folio_swapped_in(self, vma: VMA, addr: int, pfn: int, exclusive: bool) -> None:
        """The new page `pfn`, read from swap, is about to be mapped at `addr`; unless `exclusive`, other entries may
        refer to it (folio_add_new_anon_rmap() in do_swap_page()).  Locks: the VMA lock or mmap_lock for reading, the
        folio lock and the leaf lock."""

    def folio_reused(self, vma: VMA, pfn: int, nr_pages: int) -> None:
        """Copy-on-write found pages pfn .. pfn+nr_pages-1 (one whole folio) mapped by `vma` alone and takes them over
        (folio_move_anon_rmap()).  Locks: the VMA lock or mmap_lock for reading, the folio lock and the leaf lock."""

    def folio_moved(self, vma: VMA, addr: int, pfn: int) -> None:
        """UFFDIO_MOVE took the exclusive page `pfn` to `addr` in `vma`; its index changed (folio_move_anon_rmap() in
        mm/userfaultfd.c).  Told after `index` has its new value.  Locks: both VMA locks or mmap_lock for reading, the
        folio lock and both leaf locks; Linux before 7.3 has the lock of the folio's anon_vma for writing, too."""

    def folio_migrated(self, old: int, new: int, nr_pages: int) -> None:
        """Pages old.. are about to be replaced by new.., at the same places (folio_migrate_mapping(): mapping and index
        are copied).  Migration entries stand for the old ones meanwhile.  Locks: both folio locks."""

    def folio_freed(self, pfn: int, nr_pages: int) -> None:
        """Pages pfn .. pfn+nr_pages-1, one folio, are mapped nowhere any more and free.  Locks: none, nobody has a
        reference.  A walk that came too late may still have the number: it asks for the mapcount."""

    def folios_freed(self, pfns: Int64s) -> None:
        """The same for many folios of order 0."""
        for i in range(len(pfns)):
            self.folio_freed(int(pfns[i]), 1)

    def ksm_added(self, vma: VMA, addr: int, pfn: int) -> None:
        """KSM is about to map its page `pfn` at `addr` in `vma` (stable_tree_append()).  Such a page has no index of
        its own: a walk goes by these places, and by the copies that forks made of them.  Locks: ksm_thread_mutex, the
        folio lock, and mmap_lock for reading, which keeps `vma` and what its new pages point to."""

    def ksm_removed(self, mm: MM, addr: int, pfn: int) -> None:
        """KSM forgets that place (remove_rmap_item_from_tree(): unmerged, changed, or `mm` gone).  Locks:
        ksm_thread_mutex and the folio lock."""

    # Entries, told to designs with `watches_entries` alone, under the leaf lock.  Of `entries`, which follow each other
    # from an address on, those with PTE_ANON or PTE_MIGRATION are meant: the page has an entry there, or had.  That an
    # entry turns from the one into the other, or is protected, is not told.

    def entries_added(self, mm: MM, addr: int, entries: Int64s) -> None:
        """They are in the page table of `mm` by now (page_add_rmap() of 2.5: faults, swap-in, fork)."""

    def entries_removed(self, mm: MM, addr: int, entries: Int64s) -> None:
        """They were there, and are not any more (page_remove_rmap() of 2.5: copy-on-write, swap-out, unmap)."""

    def entries_moved(self, mm: MM, old: int, new: int, entries: Int64s) -> None:
        """They were at `old`, and are at `new` now (copy_one_pte() of mm/mremap.c in 2.5).  Locks: both leaf locks."""
        self.entries_removed(mm, old, entries)
        self.entries_added(mm, new, entries)

    # Memory that is there already

    def take_over(self, found: TakenOver) -> None:
        """The machine holds memory of a kernel that ran without this design: come to the state that it would have.

        As it stands, what led there is told as events: address spaces and forks, then each VMA as if it had been
        forked from itself, folios as their makers mapped them, the places of KSM, and entries.  Override it
        if these do not say all, or say what did not happen.
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
        """The first part of it."""
        for mm, parent in found.spaces:
            if parent is None:
                self.mm_created(mm)
            else:
                self.mm_forked(parent, mm)

    # What a walk, or what it may meet, tells the scheduler, where there is one (sync/locks.py)

    def point(self, what: str, subject: object, write: bool = False) -> None:
        """Scheduler.point()"""
        if self.scheduler is not None:
            self.scheduler.point(what, subject, write)

    def point_in(self, whole: object, what: str, subject: object, write: bool = False) -> None:
        """Scheduler.point_in()"""
        if self.scheduler is not None:
            self.scheduler.point_in(whole, what, subject, write)

    def touch(self, what: str, subject: object) -> None:
        """Scheduler.touch()"""
        if self.scheduler is not None:
            self.scheduler.touch(what, subject)

    # Questions

    def keeps_space(self, mm: MM) -> bool:
        """Does it still refer to the mm_struct, whose last user is gone (mmgrab())?  Then it frees it, some time."""
        return False

    def related(self, vma: VMA, pfn: int) -> bool:
        """Would a walk for `pfn`, which is mapped or was, visit `vma`, which is prepared, if that has its page offset?
        Asked when a page comes back from swap that KSM had merged (ksm_might_need_to_copy()); a copy is always safe.
        Locks: the VMA lock or mmap_lock for reading, and the folio lock."""
        return False

    def hold(self, pfn: int) -> None:
        """The folio whose first page is `pfn` is about to be unmapped and walked again: keep what the second walk
        needs, also if all that map it go meanwhile (folio_get_anon_vma() in migrate_folio_unmap()).  Locks: the folio
        lock. Others may have unmapped it since the caller looked: then there is nothing to keep."""

    def unhold(self, pfn: int) -> None:
        """That walk is over (put_anon_vma()).  Locks: the folio lock."""

    def walk(self, pfn: int) -> Iterator[tuple[VMA, int]]:
        """Places that may map the folio whose first page is `pfn`, in the order of the visit.

        Yields (vma, address): the address, in bytes, of the first page of the folio that the VMA covers.  May yield
        places that do not map it; must yield every place that does (rmap_walk()).  Locks: the folio lock, which the
        caller has with a reference; no other.  At each place the caller takes the leaf lock, and gives it back before
        it asks for the next; it closes the iterator when it has seen enough, which is where a design gives back what
        it holds (`finally`).
        """
        raise NotImplementedError(f"{self.name} does not say how to walk")

    def can_merge(self, source: VMA | None, existing: VMA, growing: bool) -> bool:
        """May a range become part of `existing`, everything else being equal?  `source` is the VMA that the range
        belongs to, or that mremap moves it from, or with `growing` the VMA that is to grow over the range, which is
        not mapped yet; None for a new mapping.  (is_mergeable_anon_vma())  Only the leader is asked.  Locks:
        mmap_lock for writing."""
        return True

    def can_join(self, prev: VMA, next: VMA) -> bool:
        """May `prev` and `next`, each of which could take in the range between them, become one?
        (are_anon_vmas_compatible())  Only the leader is asked.  Locks: mmap_lock for writing."""
        return True

    # What the design says of itself

    def footprint(self) -> list[ObjectCount]:
        """What the design holds, a line a type."""
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

    def audit(self, mms: Sequence[MM]) -> list[str]:
        """Asked while nothing runs, `mms` being all that live: what is wrong with what the design holds and counts, a
        sentence each.  Its objects are those that VMAs, address spaces, folios and migrations refer to, and each
        reference is counted: what is allocated beyond that has leaked."""
        return []

    def stray_records(self, mm: MM, peak_vmas: int) -> list[str]:
        """Where what it remembers of `mm` is not what VMAs and entries say, though no walk need show it: a sentence
        each.  `peak_vmas`: how many VMAs there were in the machine at most at any moment."""
        return []
