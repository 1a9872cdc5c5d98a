# SPDX-License-Identifier: GPL-2.0-or-later
"""State that all of the machine shares: folios, swap, the designs that watch, and the counts of its work.

The functions of mm/ take a `System` first, as Linux's have its globals.  An event with more than one call site
has one method here that calls the designs.

Invariant: every design in `designs` has seen every event since the first; `leader` is one of them, and
the machine's own users of the reverse map (reclaim, migration) walk with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from mypy_extensions import mypyc_attr

from rmaplab.mm.abi import MAX_MAP_COUNT, MMAP_MIN_ADDR, STACK_LIMIT
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.folio import (
    FOLIO_DIRTY,
    FOLIO_PARTLY,
    FOLIO_WRITTEN,
    MAX_ORDER,
    Folios,
    Int64s,
    folio_mapcount,
)
from rmaplab.mm.locking import lock_of, start_write
from rmaplab.mm.mm_ids import MmIds
from rmaplab.mm.page_ref import PageRefs
from rmaplab.mm.pagetable import PTE_ANON, PTE_DIRTY, PTE_MIGRATION, Leaf, PageTable
from rmaplab.mm.profile import Profile
from rmaplab.mm.reverse_map import AddressSpaces, Attachment, ReverseMap
from rmaplab.mm.vma import MM, PAGE_SHIFT, VMA, File, pages_of, vma_lookup
from rmaplab.sync.fields import OF_PAGE, VERSION, WHOLE
from rmaplab.sync.locks import Rcu, RwSemaphore, Scheduler, SpinLock
from rmaplab.sync.order import atomic, atomic_inc, smp_store_release, write_once
from rmaplab.sync.work import Ledger

_CEILING: Final = 1 << 47  # above all VMAs (USER_PGTABLES_CEILING)


class SwapSlot:
    """A page's worth of swap.

    count:      how many entries refer to it
    cached_pfn: the page that caches it (0: none)
    place:      where it lies in swap
    written:    what it holds is not all zeroes
    zeroes:     its folio was, so that nothing of it was written out (swap_zeromap_folio_set())

    The users of a slot that was filled from a KSM page need not be related: who is not related to the page that
    caches it gets a copy (mm/ksm.c, ksm_might_need_to_copy()).
    """

    def __init__(self, place: int) -> None:
        self.place = place
        self.count = 0
        self.cached_pfn = 0
        self.from_ksm = False
        self.written = False
        self.zeroes = False


class _References(AddressSpaces):
    """References to address spaces; `late` are those whose last one a walk gave back."""

    def __init__(self, scheduler: Scheduler | None) -> None:
        self.scheduler: Final = scheduler
        self.late: list[MM] = []

    def get(self, mm: MM) -> bool:
        atomic(self.scheduler, "mm_users, mmget_not_zero()", mm.users_word, "count")
        if mm.users == 0:
            return False
        mm.users_word.count += 1
        return True

    def drop(self, mm: MM) -> bool:
        """One user less; was it the last?"""
        atomic(self.scheduler, "mm_users, mmput()", mm.users_word, "count")
        assert mm.users > 0, f"a reference to mm {mm.id} is given back that nobody had (mmput())"
        mm.users_word.count -= 1
        return mm.users == 0

    def put(self, mm: MM) -> None:
        if self.drop(mm):
            self.late.append(mm)


class _Prepared:
    """What waits for a VMA to be prepared."""

    def __init__(self, vma: VMA) -> None:
        self.vma: Final = vma

    def ready(self) -> bool:
        return self.vma.prepared


@mypyc_attr(allow_interpreted_subclasses=True)
class System:
    """State shared by all address spaces of one machine."""

    def __init__(
        self,
        profile: Profile,
        designs: Sequence[type[ReverseMap]],
        leader: int = 0,
        scheduler: Scheduler | None = None,
        large_folios: int = 0,
    ) -> None:
        if not designs:
            raise HistoryError("a machine needs at least one design to watch it")
        if not 0 <= leader < len(designs):
            raise HistoryError(f"leader {leader} is not one of the {len(designs)} designs")
        if not 0 <= large_folios <= MAX_ORDER:
            raise HistoryError(f"large folios of order {large_folios}: 0 (off) to {MAX_ORDER} is possible")
        self.profile: Final = profile
        self.scheduler: Final = scheduler
        self.large_folios = large_folios
        self.huge: Final = large_folios == MAX_ORDER  # may a leaf be huge?  False keeps the fast paths fast
        self.knows_contents: Final = large_folios > 0  # does it matter whether a page is all zeroes?
        self.folios: Final = Folios()
        self.spaces: Final = _References(scheduler)
        self.designs: Final[list[ReverseMap]] = [
            design(Attachment(slot, self.folios, profile, scheduler, self.spaces))
            for slot, design in enumerate(designs)
        ]
        self.max_map_count = MAX_MAP_COUNT  # sysctl vm.max_map_count: VMAs that a process may have
        self.mmap_min_addr = MMAP_MIN_ADDR  # sysctl vm.mmap_min_addr: no mapping begins below
        self.stack_limit = STACK_LIMIT  # RLIMIT_STACK: bytes
        self.leader: Final = self.designs[leader]
        # Those besides the leader that would have made the same VMAs so far; nobody asks where others run, too.
        self.agreeing = [] if scheduler is not None else [d for d in self.designs if d is not self.leader]
        self.spaces_under_rcu: Final = any(design.spaces_under_rcu for design in self.designs)
        self.tables_under_rcu: Final = any(design.tables_under_rcu for design in self.designs)
        self.entry_watchers: Final = [design for design in self.designs if design.watches_entries]
        self.mlocked = False  # was a VMA ever to be locked?  False keeps the fast paths fast
        self.guards = False  # was a guard region ever installed?  False keeps the fast paths fast
        self.nr_large = 0  # large folios allocated ever: 0 keeps the fast paths fast
        self.swap: Final[dict[int, SwapSlot]] = {}
        self.slot_of: Final[dict[int, int]] = {}  # pfn in the swap cache -> slot
        self.mm_ids: Final[dict[int, MmIds]] = {}  # of large folios, by first page, where the profile has them
        self.ksm_pages: Final[dict[int, list[tuple[MM, int]]]] = {}  # by pfn: where KSM mapped it, the newest last
        self.as_found = False  # KSM has merged as a real kernel's ksmd did (mm/ksm.py), and need not be complete
        self.pins: Final[dict[int, int]] = {}  # references to folios that are no mappings, by first page
        self.folio_locks: Final[dict[int, SpinLock]] = {}
        self._next_slot = 1
        self._free_slots: list[int] = []
        self._next_mm = 1
        self._next_vma = 1
        self._next_shmem = -1  # ids of files that only the machine knows are negative

        ledger = Ledger("machine")
        self.ledger: Final = ledger
        self.mmap_lock_class: Final = ledger.lock_class("mmap_lock")
        self.vma_lock_class: Final = ledger.lock_class("vma_lock")
        self.ptl_class: Final = ledger.lock_class("page_table_lock")
        self.folio_lock_class: Final = ledger.lock_class("folio lock", sleeps=True, tried=True)
        # Where nobody else is there, a lock only counts, and one stands for all.
        self._any_folio_lock: Final = SpinLock(self.folio_lock_class, None)
        self._any_vma_lock: Final = RwSemaphore(self.vma_lock_class, None)
        self.rcu: Final = Rcu(ledger, scheduler)
        self.refs: Final = PageRefs(self.folios, scheduler, ledger)
        self.vma_pool: Final = ledger.pool("vm_area_struct", profile.sizes["vm_area_struct"])
        # Where the per-VMA lock is an object of its own, each VMA has one.
        lock_size = profile.sizes.get("vma_lock", 0)
        self.vma_lock_pool: Final = ledger.pool("vma_lock", lock_size) if lock_size else None
        self.mm_pool: Final = ledger.pool("mm_struct", profile.sizes["mm_struct"])
        self.faults: Final = ledger.tally("faults")
        self.pages_zeroed: Final = ledger.tally("pages zeroed")
        self.pages_copied: Final = ledger.tally("pages copied")
        self.pages_reused: Final = ledger.tally("pages reused")
        self.entries_copied: Final = ledger.tally("entries copied at fork")
        self.entries_zapped: Final = ledger.tally("entries zapped")
        self.entries_moved: Final = ledger.tally("entries moved")
        self.entries_protected: Final = ledger.tally("entries protected")
        self.pages_freed: Final = ledger.tally("pages freed")
        self.tlb_flushes: Final = ledger.tally("tlb flushes")
        self.vma_tree_changes: Final = ledger.tally("vma tree changes")
        self.vmas_copied: Final = ledger.tally("vmas copied at fork")
        self.syscalls: Final = ledger.tally("syscalls")
        self.walks: Final = ledger.tally("rmap walks")
        self.walk_places: Final = ledger.tally("rmap places visited")
        self.walk_hits: Final = ledger.tally("rmap places that mapped")

    # Objects

    def new_mm(self) -> MM:
        """An address space with nothing in it (mm_init()); the designs are told by the caller."""
        rcu = self.rcu if self.huge and self.profile.reclaims_tables else None
        page_table = PageTable(self.ptl_class, self.scheduler, self.ledger, self.huge, rcu)
        mm = MM(self._next_mm, RwSemaphore(self.mmap_lock_class, self.scheduler), page_table)
        self._next_mm += 1
        mm.rmap = [None] * len(self.designs)
        self.mm_pool.alloc()
        return mm

    def new_vma(self, mm: MM, start: int, end: int, pgoff: int, flags: int, file: File | None) -> VMA:
        """A VMA that is in no tree yet."""
        vma = VMA(mm, self._next_vma, start, end, pgoff, flags, file)
        if self.profile.anon_pgoff:
            vma.anon_pgoff = start >> PAGE_SHIFT
        self._next_vma += 1
        vma.lock = (
            self._any_vma_lock if self.scheduler is None else RwSemaphore(self.vma_lock_class, self.scheduler)
        )
        vma.rmap = [None] * len(self.designs)
        self.vma_pool.alloc()
        if self.vma_lock_pool is not None:
            self.vma_lock_pool.alloc()
        return vma

    def copy_vma(self, mm: MM, vma: VMA, start: int, end: int, pgoff: int, anon_pgoff: int) -> VMA:
        """A VMA like `vma` but for its place (vm_area_dup()); not prepared, in no tree."""
        new = self.new_vma(mm, start, end, pgoff, vma.flags, vma.file)
        new.anon_pgoff = anon_pgoff
        new.policy = vma.policy
        new.uffd = vma.uffd
        new.name = vma.name
        return new

    def free_vma(self, vma: VMA) -> None:
        """Free a VMA that is in no tree, after a grace period (vm_area_free())."""
        vma.detached = True
        vma.prepared = False
        if self.scheduler is not None:
            self.scheduler.rcu_call("vm_area_struct", vma)
        self.vma_pool.free()
        if self.vma_lock_pool is not None:
            self.vma_lock_pool.free()

    def free_mm(self, mm: MM) -> None:
        """mmdrop() of the last reference but those of designs; after a grace period if walks find address spaces under
        RCU alone."""
        if self.scheduler is not None and not any(design.keeps_space(mm) for design in self.designs):
            if self.spaces_under_rcu:
                self.scheduler.rcu_call("mm_struct", mm.users_word)
            else:
                self.scheduler.free("mm_struct", mm.users_word)
        self.mm_pool.free()

    def free_page_tables(self, mm: MM, start: int, end: int, zapped: bool) -> None:
        """Free the leaves for [start, end), which is unmapped, but what neighbours need, and flush TLBs, once for this
        and for entries that were `zapped` (free_pgtables(), tlb_finish_mmu())."""
        below = mm.tree.last_from(start - 1)
        above = mm.tree.first_after(end)
        floor = 0 if below is None else below.end
        gone = mm.page_table.take_out(start, end, floor, _CEILING if above is None else above.start)
        if zapped or gone:
            self.flush_tlb(mm, freed_tables=len(gone) > 0)
        for leaf in gone:
            self.free_leaf(leaf)

    def free_leaf(self, leaf: Leaf, late: bool = False) -> None:
        """Free one that is in no page table any more (pte_free_tlb()); after a grace period if it is to be `late`, or
        if walks find page tables under RCU alone."""
        if self.scheduler is not None:
            if late or self.tables_under_rcu:
                self.scheduler.rcu_call("page table", leaf.lock)
            else:
                self.scheduler.free("page table", leaf.lock)

    def shared_memory(self) -> File:
        """A file behind a shared anonymous mapping (shmem_zero_setup())."""
        self._next_shmem -= 1
        return File(self._next_shmem, "", is_shmem=True)

    # TLBs

    def flush_tlb(self, mm: MM, count: int = 1, freed_tables: bool = False) -> None:
        """So many flushes of the entries of `mm` (flush_tlb_mm_range()).  What they take on this CPU is counted; what
        other CPUs have to do with it, a scheduler knows."""
        if count:
            self.tlb_flushes.count += count
            self.flush_entry(mm, freed_tables)

    def flush_entry(self, mm: MM, freed_tables: bool = False) -> None:
        """The same for an entry that a walk takes away, which counts as part of its visit (ptep_clear_flush())."""
        if self.scheduler is not None:
            self.scheduler.flush(mm.cpumask, freed_tables)

    def flush_later(self, mm: MM, entry: int) -> None:
        """The same as part of a batch (set_tlb_ubc_flush_pending())."""
        if self.scheduler is not None:
            self.scheduler.flush_later(mm.cpumask, entry & PTE_DIRTY != 0)

    def flush_deferred(self, if_dirty: bool = False) -> None:
        """try_to_unmap_flush(), try_to_unmap_flush_dirty()"""
        if self.scheduler is not None:
            self.scheduler.flush_deferred(if_dirty)

    # Changes that a reader without a lock may see

    def tree_changes(self, mm: MM, start: int, end: int, nr_stores: int = 1) -> None:
        """The VMAs of `mm` in [start, end) are about to be others, by so many stores (mas_store())."""
        self.vma_tree_changes.count += nr_stores
        if self.scheduler is not None:
            where = pages_of(start, end)
            smp_store_release(self.scheduler, "change VMA tree", mm.tree, VERSION, where, mm.users_word)

    def vma_changes(self, vma: VMA) -> None:
        """The bounds of `vma`, or whether it is in its tree, are about to change."""
        write_once(self.scheduler, "change VMA", vma, WHOLE)

    def mapcount_changes(self, pfn: int) -> None:
        """The number of entries that map `pfn` is about to change."""
        atomic(self.scheduler, "change mapcount", self.folios.mapcount, OF_PAGE, pfn)

    def mapcount_grows(self, pfn: int) -> None:
        """One more entry is about to map `pfn`, whatever others do."""
        atomic_inc(self.scheduler, "change mapcount", self.folios.mapcount, OF_PAGE, pfn)

    def mapped_first(self, pfn: int) -> None:
        """The first entry is about to map `pfn`, whose folio is fresh (folio_add_new_anon_rmap())."""
        if pfn in self.refs.pages:
            write_once(self.scheduler, "set mapcount", self.folios.mapcount, OF_PAGE, pfn)
        self.folios.mapcount.m[pfn] = 1

    def mapcount(self, head: int) -> int:
        """Entries that map the folio, for who holds no lock that keeps it (folio_mapcount())."""
        return folio_mapcount(self.scheduler, self.folios, head)

    # Folio lock and reference, as far as the users of the reverse map need them

    def lock_folio(self, head: int) -> None:
        """folio_lock(), for who holds a reference"""
        self._folio_lock(head).lock()

    def trylock_folio(self, head: int) -> bool:
        """folio_trylock(): False if somebody else has it locked"""
        locked = self._folio_lock(head).try_lock()
        if locked and head in self.refs.pages:
            self.refs.locked(head)
        return locked

    def unlock_folio(self, head: int) -> None:
        """folio_unlock()"""
        self._folio_lock(head).unlock()

    def assert_folio_locked(self, head: int) -> None:
        """The caller has it locked."""
        self._folio_lock(head).assert_held()

    def wait_for_folio(self, head: int) -> None:
        """Until nobody has it locked (folio_wait_locked()); the caller's reference is dropped."""
        self.lock_folio(head)
        self.unlock_folio(head)
        self.put_folio(head)

    def _folio_lock(self, head: int) -> SpinLock:
        if self.scheduler is None:
            return self._any_folio_lock
        lock = self.folio_locks.get(head)
        if lock is None:
            lock = SpinLock(self.folio_lock_class, self.scheduler, head)
            self.folio_locks[head] = lock
        return lock

    def new_folio(self, index: int) -> int:
        """A fresh folio of one page (folio_alloc()); its number."""
        return self.refs.alloc(index) if self.refs.pages else self.folios.alloc(index)

    def get_folio(self, head: int) -> None:
        """Keep the folio from being freed while its mappings change (folio_get())."""
        if head in self.refs.pages:
            self.refs.get(head)
        self.pins[head] = self.pins.get(head, 0) + 1

    def try_get_folio(self, head: int) -> bool:
        """The same for who has come by it without a reference; False: there was none to be had (folio_try_get())."""
        if not self.refs.try_get(head):
            return False
        self.pins[head] = self.pins.get(head, 0) + 1
        return True

    def put_folio(self, head: int) -> None:
        """folio_put()"""
        last = self.pins[head] == 1
        if last:
            del self.pins[head]
        else:
            self.pins[head] -= 1
        if head in self.refs.pages:
            self.put_counted(head)
        elif last:
            self.try_free(head)

    # Locking that a rule depends on

    def lock_vma_under_rcu(self, mm: MM, addr: int) -> VMA | None:
        """The VMA at `addr`, locked for reading; None if there is none, or it is changing (lock_vma_under_rcu())."""
        self.rcu.read_lock()
        vma = vma_lookup(self.scheduler, mm, addr)
        if vma is not None:
            if not lock_of(vma).try_down_read():
                vma = None
            elif vma.detached or not vma.start <= addr < vma.end:
                lock_of(vma).up_read()
                vma = None
        self.rcu.read_unlock()
        return vma

    def lock_to_move(self, vma: VMA, pfn: int) -> None:
        """UFFDIO_MOVE is about to take page `pfn` out of `vma`: no walk looks for it until unlock_moved()."""
        self.lock_folio(pfn)
        if self.profile.moves_under_anon_vma:
            for design in self.designs:
                design.move_lock(vma)

    def unlock_moved(self, vma: VMA, pfn: int) -> None:
        """It has moved."""
        if self.profile.moves_under_anon_vma:
            for design in self.designs:
                design.move_unlock(vma)
        self.unlock_folio(pfn)

    def keep_faults_out(self, vma: VMA) -> None:
        """fork is about to look at `vma` (vma_start_write() in dup_mmap()): until mmap_lock is given back, no
        fault prepares it or adds a page to it."""
        start_write(vma)

    # Asking the designs

    def can_merge(self, source: VMA | None, existing: VMA, growing: bool) -> bool:
        """Does the leader let a range become part of `existing` (ReverseMap.can_merge())?"""
        answer = self.leader.can_merge(source, existing, growing)
        if self.agreeing:
            self.agreeing = [d for d in self.agreeing if d.can_merge(source, existing, growing) == answer]
        return answer

    def can_join(self, prev: VMA, next: VMA) -> bool:
        """Does it let two VMAs become one with the range between them (ReverseMap.can_join())?"""
        answer = self.leader.can_join(prev, next)
        if self.agreeing:
            self.agreeing = [d for d in self.agreeing if d.can_join(prev, next) == answer]
        return answer

    # Telling the designs

    def prepare(self, vma: VMA) -> None:
        """`vma` is about to get an anonymous page (vmf_anon_prepare()).  The caller holds mmap_lock, for
        reading at least, so that the neighbours stay; two may come at the same time."""
        if not vma.prepared:
            if vma.preparing:
                assert self.scheduler is not None  # who else could have begun
                self.scheduler.wait("VMA to be prepared", vma, _Prepared(vma).ready)
                return
            self.assert_neighbours_stay(vma.mm)
            vma.preparing = True
            for design in self.designs:
                design.vma_prepare(vma)
            vma.prepared = True
            vma.preparing = False

    def assert_neighbours_stay(self, mm: MM) -> None:
        """mmap_assert_locked()"""
        mm.mmap_lock.assert_held()

    def tell_removed(self, vma: VMA) -> None:
        """`vma` is about to go, or has lost its pages: it is not prepared any more (unlink_anon_vmas())."""
        if vma.prepared:
            for design in self.designs:
                design.vma_removed(vma)
            vma.prepared = False

    def tell_entry_added(self, mm: MM, addr: int, entry: int) -> None:
        """To designs that watch entries: `entry` maps an anonymous page at `addr`, or will when its migration ends."""
        if self.entry_watchers and entry & (PTE_ANON | PTE_MIGRATION):
            for design in self.entry_watchers:
                design.entries_added(mm, addr, np.array([entry], dtype=np.int64))

    def tell_entry_removed(self, mm: MM, addr: int, entry: int) -> None:
        """To designs that watch entries: what `entry` mapped at `addr` is not mapped there any more."""
        if self.entry_watchers and entry & (PTE_ANON | PTE_MIGRATION):
            for design in self.entry_watchers:
                design.entries_removed(mm, addr, np.array([entry], dtype=np.int64))

    # Pages

    def large_mapped(self, mm: MM, head: int, count: int) -> None:
        """`count` more entries of `mm` map the large folio (folio_add_large_mapcount())."""
        if self.profile.mm_ids:
            ids = self.mm_ids.get(head)
            if ids is None:
                self.mm_ids[head] = ids = MmIds()
            ids.add(mm.id, count)

    def large_unmapped(self, mm: MM, head: int, count: int) -> None:
        """`count` entries of `mm` that mapped the large folio are gone (folio_sub_large_mapcount())."""
        ids = self.mm_ids.get(head)
        if ids is not None:
            ids.sub(mm.id, count)

    def large_among(self, pfns: Int64s) -> list[tuple[int, int]]:
        """The large folios among the folios of these pages, by first page, and how many of the pages are theirs."""
        heads, counts = np.unique(self.folios.head.v[pfns[self.folios.order.v[pfns] > 0]], return_counts=True)
        return list(zip(heads.tolist(), counts.tolist(), strict=True))

    def add_mapcount(self, mm: MM, pfn: int) -> None:
        """One more entry of `mm` maps `pfn` (folio_dup_anon_rmap_pte(), folio_add_anon_rmap_pte())."""
        folios = self.folios
        self.mapcount_grows(pfn)
        folios.mapcount.m[pfn] += 1
        if folios.order.m[pfn] > 0:
            self.large_mapped(mm, folios.head.m[pfn], 1)

    def add_mapcounts(self, mm: MM, pfns: Int64s, repeated: bool) -> None:
        """One more entry of `mm` maps each of these pages; `repeated` if a page may be among them twice (KSM)."""
        folios = self.folios
        if repeated:
            np.add.at(folios.mapcount.v, pfns, 1)
        else:
            folios.mapcount.v[pfns] += 1
        if self.nr_large:
            for head, count in self.large_among(pfns):
                self.large_mapped(mm, head, count)

    def release_page(self, mm: MM, pfn: int) -> None:
        """One entry of `mm` that mapped `pfn` is gone: the folio may be free now (folio_remove_rmap_pte())."""
        self.put_unmapped(pfn, self.drop_mapcount(mm, pfn))

    def put_unmapped(self, pfn: int, left: int) -> None:
        """An entry that mapped `pfn` is gone, of which `left` are left: its reference goes, too.  No page-table lock is
        held."""
        if pfn in self.refs.pages:
            self.put_counted(pfn)
        elif left == 0:
            self.try_free(self.folios.head.m[pfn])

    def drop_mapcount(self, mm: MM, pfn: int) -> int:
        """One entry of `mm` that mapped `pfn` is gone; returns how many are left.  put_unmapped() is next."""
        self.mapcount_changes(pfn)
        mapcount = self.folios.mapcount.m
        count: int = mapcount[pfn] - 1
        mapcount[pfn] = count
        if self.nr_large and self.folios.order.m[pfn]:
            head = self.folios.head.m[pfn]
            self.large_unmapped(mm, head, 1)
            if count == 0:
                self.note_torn(head)
        return count

    def note_torn(self, head: int) -> None:
        """A page of the large folio is mapped nowhere any more: it is split when something has a reason to, if others
        are mapped still and it is not in the swap cache (deferred_split_folio())."""
        folios = self.folios
        if not folios.flags.m[head] & FOLIO_PARTLY and head not in self.slot_of and folios.total_mapcount(head):
            folios.set_flag(head, FOLIO_PARTLY)

    def release_pages(self, mm: MM, pfns: Int64s, repeated: bool) -> None:
        """The same for many pages; `repeated` if a page may be among them twice (KSM)."""
        folios = self.folios
        mapcount = folios.mapcount.v
        if repeated:
            for pfn in pfns:
                self.release_page(mm, int(pfn))
            return
        counts = mapcount[pfns] - 1
        mapcount[pfns] = counts
        if self.mm_ids:
            for large, count in self.large_among(pfns):
                self.mm_ids[large].sub(mm.id, count)
        unmapped = pfns[counts == 0]
        if len(unmapped) == 0:
            return
        if self.nr_large == 0 and not self.slot_of and not self.pins:
            for design in self.designs:
                design.folios_freed(unmapped)
            self.pages_freed.count += len(unmapped)
            folios.free_run(unmapped)
        else:
            for pfn in unmapped:
                head: int = folios.head.m[pfn]
                if folios.order.m[head] > 0:
                    self.note_torn(head)
                if folios.order.m[head] >= 0:
                    self.try_free(head)

    def try_free(self, head: int) -> None:
        """Free the folio if nothing maps it and no swap entry wants it (folio_put(), __folio_put())."""
        folios = self.folios
        counted = head in self.refs.pages
        if folios.order.m[head] < 0 or folios.total_mapcount(head) != 0 or (head in self.pins and not counted):
            return
        if self.free_swap(head) and not counted:
            self.free_folio(head)

    def put_counted(self, head: int, count: int = 1) -> None:
        """The same for one whose references are counted: so many are given back."""
        if self.refs.put(head, count):
            self.free_folio(head)

    def free_folio(self, head: int) -> None:
        """Free the folio, which no task can reach any more (free_unref_folios())."""
        watched = head in self.refs.pages
        if self.scheduler is not None and not watched:
            self.scheduler.free("page", head)
        nr_pages = self.folios.nr_pages(head)
        self.pages_freed.count += nr_pages
        for design in self.designs:
            design.folio_freed(head, nr_pages)
        if self.ksm_pages:
            self.ksm_pages.pop(head, None)
        if nr_pages > 1:
            self.mm_ids.pop(head, None)
        if watched:
            self.refs.free(head)
        else:
            self.folios.free(head, self.scheduler is None or self.scheduler.reuses())

    # Swap

    def alloc_slots(self, count: int) -> int:
        """Room in swap to which no entry refers yet, in a row and aligned (cluster_alloc_swap_entry()); the number of
        the first slot."""
        if count == 1 and self._free_slots:
            first = self._free_slots.pop()
        else:
            first = -(-self._next_slot // count) * count
            self._free_slots += range(self._next_slot, first)
            self._next_slot = first + count
        for slot in range(first, first + count):
            self.swap[slot] = SwapSlot(slot)
        return first

    def add_to_swap(self, head: int) -> None:
        """Give the folio room in swap, a large one in a row (folio_alloc_swap())."""
        folios = self.folios
        nr_pages = folios.nr_pages(head)
        first = self.alloc_slots(nr_pages)
        written = [folios.flags.m[pfn] & FOLIO_WRITTEN != 0 for pfn in range(head, head + nr_pages)]
        zeroes = True not in written
        for i in range(nr_pages):
            slot = self.swap[first + i]
            slot.written = written[i]
            slot.zeroes = zeroes
            self.cache(first + i, head + i)
        folios.set_flag(head, FOLIO_DIRTY)

    def cache(self, slot: int, pfn: int) -> None:
        """`pfn` holds what `slot` holds (add_to_swap_cache())."""
        if pfn in self.refs.pages:
            self.refs.get(pfn)
        self.swap[slot].cached_pfn = pfn
        self.slot_of[pfn] = slot

    def uncache(self, head: int) -> None:
        """The folio leaves the swap cache (swap_cache_del_folio()); its slots go with their last entries."""
        for pfn in range(head, head + self.folios.nr_pages(head)):
            slot = self.slot_of.pop(pfn)
            self.folios.flags.m[pfn] |= FOLIO_DIRTY
            if pfn in self.refs.pages:
                write_once(self.scheduler, "__swap_table_set()", self.swap[slot], "cached_pfn")
            self.swap[slot].cached_pfn = 0
            if self.swap[slot].count == 0:
                self._free_slot(slot)
        if head in self.refs.pages:
            self.put_counted(head)

    def free_swap(self, head: int) -> bool:
        """The folio leaves the swap cache if no entry refers to any of it (folio_free_swap()).  Is it out of it?"""
        if head in self.slot_of:
            for pfn in range(head, head + self.folios.nr_pages(head)):
                if self.swap[self.slot_of[pfn]].count:
                    return False
            self.uncache(head)
        return True

    def put_slot(self, slot: int) -> None:
        """One entry that referred to `slot` is gone (free_swap_and_cache())."""
        swap_slot = self.swap[slot]
        swap_slot.count -= 1
        if swap_slot.count == 0:
            pfn = swap_slot.cached_pfn
            if pfn == 0:
                self._free_slot(slot)
            else:
                self.try_free(self.folios.head.m[pfn])

    def _free_slot(self, slot: int) -> None:
        del self.swap[slot]
        self._free_slots.append(slot)
