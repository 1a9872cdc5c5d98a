# SPDX-License-Identifier: GPL-2.0-or-later
"""What the machine asks of a reverse map.

The machine tells a design every event at the place where Linux tells its own (the kernel function is
named with each), and asks it three questions.  A design sees VMAs, address spaces and folio columns; it
never changes them.  What it wants to remember it keeps in its slot of `VMA.rmap` and `MM.rmap`, and in
columns that it asks `Folios.column` for.

Anonymous pages only.  An event about pages names rows of `Folios`; every row of a large folio gets what
its folio gets, so that a folio can be split silently.

Order is part of the interface: "before" and "after" below are what the proofs of a design rest on.
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
        self.spaces: Final = attachment.spaces
        self.ledger: Final = Ledger(self.name)

    # Address spaces

    def mm_created(self, mm: MM) -> None:
        """A fresh, empty address space (mm_init(), from execve)."""

    def mm_forked(self, parent: MM, child: MM) -> None:
        """`child` begins as a copy of `parent`; it has no VMAs yet (dup_mmap(), at its start)."""

    def mm_gone(self, mm: MM) -> None:
        """All VMAs of `mm` are gone, and no walk may look into it any more (exit_mmap(), at its end)."""

    # VMAs

    def vma_prepare(self, vma: VMA) -> None:
        """`vma`, not prepared yet, is about to get its first anonymous page (__anon_vma_prepare())."""

    def vma_forked(self, parent: VMA, child: VMA) -> None:
        """`child` is the copy of the prepared `parent` in a forked address space; told before its
        entries are copied (anon_vma_fork(), in dup_mmap()).  Not told for VM_WIPEONFORK."""

    def vma_split(self, vma: VMA, new: VMA) -> None:
        """The prepared `vma` is about to lose the range of `new`, which has its geometry already
        (anon_vma_clone() in __split_vma()).  A geometry change follows, with `new` as `split_off`."""

    def vma_joined(self, vma: VMA, donor: VMA) -> None:
        """`vma`, not prepared, is about to grow over pages of the prepared `donor`, and becomes
        prepared through it (dup_anon_vma()).  A geometry change follows."""

    def geometry_begin(self, change: GeometryChange) -> None:
        """Bounds of VMAs are about to change (vma_prepare() in mm/vma.c).  Only told if one of them is prepared."""

    def geometry_end(self, change: GeometryChange) -> None:
        """They have changed (vma_complete())."""

    def vma_absorbed(self, vma: VMA, gone: VMA) -> None:
        """The prepared `gone` was merged into `vma`, which covers its range by now (anon_vma_merge())."""

    def vma_copied(self, source: VMA, new: VMA) -> None:
        """`new` is a fresh VMA that pages of the prepared `source` will move to (anon_vma_clone() in
        copy_vma()).  If pages move to a VMA that existed, nothing but a geometry change is told."""

    def vma_moved(self, source: VMA, target: VMA, source_addr: int, target_addr: int, nr_pages: int) -> None:
        """The entries of `nr_pages` pages are about to move from `source_addr` to `target_addr`
        (copy_vma() has returned, move_page_tables() comes next)."""

    def vma_removed(self, vma: VMA) -> None:
        """The prepared `vma` holds no anonymous pages any more: its entries are gone (unlink_anon_vmas(),
        from munmap, exit and MREMAP_DONTUNMAP)."""

    def need_move_locks(self, source: VMA, target: VMA, merged: bool) -> bool:
        """Might a walk miss entries that move from `source` to `target` meanwhile, so that it has to be told
        of each move?  `merged`: `target` was there before (copy_vma()'s need_rmap_locks)."""
        return False

    def move_lock(self, vma: VMA) -> None:
        """Some entries are about to move away from `vma` (take_rmap_locks())."""

    def move_unlock(self, vma: VMA) -> None:
        """They have moved (drop_rmap_locks())."""

    # Folios

    def folio_mapped(self, vma: VMA, addr: int, pfn: int, nr_pages: int) -> None:
        """The new pages pfn .. pfn+nr_pages-1 are about to be mapped at `addr` in `vma` alone
        (folio_add_new_anon_rmap(), exclusive)."""

    def folios_mapped(self, vma: VMA, addr: int, pfns: Int64s) -> None:
        """The same for many folios of order 0 at consecutive addresses, in one go."""
        for i in range(len(pfns)):
            self.folio_mapped(vma, addr + (i << 12), int(pfns[i]), 1)

    def folio_swapped_in(self, vma: VMA, addr: int, pfn: int, exclusive: bool) -> None:
        """The new page `pfn`, read from swap, is about to be mapped at `addr`; unless `exclusive`, other
        entries may refer to it (folio_add_new_anon_rmap() in do_swap_page())."""

    def folio_reused(self, vma: VMA, pfn: int, nr_pages: int) -> None:
        """Copy-on-write found pages pfn .. pfn+nr_pages-1 (one whole folio) mapped by `vma` alone and
        takes them over (folio_move_anon_rmap())."""

    def folio_moved(self, vma: VMA, addr: int, pfn: int) -> None:
        """UFFDIO_MOVE took the exclusive page `pfn` to `addr` in `vma`; its index changed
        (folio_move_anon_rmap() in mm/userfaultfd.c).  Told after `index` has its new value."""

    def folio_migrated(self, old: int, new: int, nr_pages: int) -> None:
        """Pages old.. are about to be replaced by new.., at the same places (folio_migrate_mapping():
        mapping and index are copied)."""

    def folio_freed(self, pfn: int, nr_pages: int) -> None:
        """Pages pfn .. pfn+nr_pages-1, one folio, are mapped nowhere any more and free."""

    def folios_freed(self, pfns: Int64s) -> None:
        """The same for many folios of order 0."""
        for i in range(len(pfns)):
            self.folio_freed(int(pfns[i]), 1)

    def ksm_added(self, vma: VMA, addr: int, pfn: int) -> None:
        """KSM is about to map its page `pfn` at `addr` in `vma` (stable_tree_append()).  Such a page has no
        index of its own: a walk goes by these places, and by the copies that forks made of them."""

    def ksm_removed(self, mm: MM, addr: int, pfn: int) -> None:
        """KSM forgets that place (remove_rmap_item_from_tree(): unmerged, changed, or `mm` gone)."""

    # Entries, told to designs with `watches_entries` alone, under the page-table lock.  Of `entries`, which follow
    # each other from an address on, those with PTE_ANON or PTE_MIGRATION are meant: the page has an entry there,
    # or had.  That an entry turns from the one into the other, or is protected, is not told.

    def entries_added(self, mm: MM, addr: int, entries: Int64s) -> None:
        """They are in the page table of `mm` by now (page_add_rmap() of 2.5: faults, swap-in, fork)."""

    def entries_removed(self, mm: MM, addr: int, entries: Int64s) -> None:
        """They were there, and are not any more (page_remove_rmap() of 2.5: copy-on-write, swap-out, unmap)."""

    def entries_moved(self, mm: MM, old: int, new: int, entries: Int64s) -> None:
        """They were at `old`, and are at `new` now (copy_one_pte() of mm/mremap.c in 2.5)."""
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
        """Would a walk for `pfn`, which is mapped or was, come by `vma`, which is prepared, if that has its page
        offset?  Asked when a page comes back from swap that KSM had merged (ksm_might_need_to_copy()); a copy
        is always safe."""
        return False

    def audit(self, mms: Sequence[MM]) -> list[str]:
        """Asked while nothing runs, `mms` being all that live: what is wrong with what the design holds and counts, a
        sentence each.  Its objects are those that VMAs, address spaces, folios and migrations refer to, and each
        reference is counted: what is allocated beyond that has leaked."""
        return []

    def hold(self, pfn: int) -> None:
        """The mapped folio is about to be unmapped and walked again: keep what the second walk needs, also if
        all that map it go meanwhile (folio_get_anon_vma() in migrate_folio_unmap())."""

    def unhold(self, pfn: int) -> None:
        """That walk is over (put_anon_vma())."""

    def walk(self, pfn: int) -> Iterator[tuple[VMA, int]]:
        """Places that may map the folio whose first page is `pfn`, in the order of the visit.

        Yields (vma, address): the address of the first page of the folio that the VMA covers.  May yield
        places that do not map it; must yield every place that does (rmap_walk()).
        """
        raise NotImplementedError(f"{self.name} does not say how to walk")

    def can_merge(self, source: VMA | None, existing: VMA, growing: bool) -> bool:
        """May a range become part of `existing`, everything else being equal?  `source` is the VMA that the
        range belongs to, or that mremap moves it from, or with `growing` the VMA that is to grow over the
        range, which is not mapped yet; None for a new mapping.  (is_mergeable_anon_vma())"""
        return True

    def can_join(self, prev: VMA, next: VMA) -> bool:
        """May `prev` and `next`, each of which could take in the range between them, become one?
        (are_anon_vmas_compatible())"""
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

    def stray_records(self, mm: MM, peak_vmas: int) -> list[str]:
        """Where what it remembers of `mm` is not what VMAs and entries say, though no walk need show it: a sentence
        each.  `peak_vmas`: how many VMAs there were in the machine at most at any moment."""
        return []
