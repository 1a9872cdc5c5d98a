# SPDX-License-Identifier: GPL-2.0-or-later
"""Design `anonmm`: one object per address space, in a list of all that descend from one exec; and a virtual address.

H. Dickins' reverse map of 2003 and 2004 ("rmap 10 add anonmm rmap", on the way to 2.6.7), which anon_vma replaced
before that was released; the ancestor of CoW contexts.  A page can only be mapped at one address, in the address
spaces that descend from one exec.  So a page holds that address, and the *anonmm* of the address space that had it
first; a walk looks at that address in the whole list.

mremap breaks this.  A page that one entry maps just gets its new address.  A page with more mappings was copied
for the process that moved it ("rmap 11 mremap moves"): a price that lists of entries do not have, and a reason why
anon_vma won.  A design cannot make the machine copy; so this one remembers the entry as *odd*, and
counts the pages that Linux would have copied.  The same list has the other entries that are not at the page's
address: those that KSM makes, and those that were in swap while a page moved (where 2.6.7 lost track).

Data
- `AnonMM`: the mm (None once it is gone), the head of its list, references (its mm, and each page that points to it;
  in the head also each of the others), and in the head the list: in order of fork.
- for each page: its anonmm, and its address.
- odd entries, by page.

Invariants
- An entry for a page (present or migrating) is at the page's address in an address space of the list that its anonmm
  is in, or it is odd and recorded.
- An anonmm stays while pages point to it, and its head while any is left.

Locking: the head's spin lock covers the list, and is held for a whole walk: forks and exits of the family wait for it,
and other walks.  PG_maplock, a bit in each page, covers its address and odd entries, and nests in the page-table lock.
2.6.7 tries the page-table locks during a walk and skips those that it does not get; our users wait for them.  The
walk misses a page that moves while it waits, which reclaim survives.  There was no migration to suffer from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, cast

import numpy as np
from mypy_extensions import mypyc_attr

from rmaplab.mm.folio import Column, Int64s
from rmaplab.mm.reverse_map import Attachment, ReverseMap, miscounted
from rmaplab.mm.vma import MM, PAGE_SHIFT, PAGE_SIZE, VMA, find_vmas, seen
from rmaplab.rmap.numbers import take_number
from rmaplab.rmap.odd_entries import OddEntries
from rmaplab.sync.locks import Rcu, SpinLock
from rmaplab.sync.work import LockClass, Pool, Tally

_ANONMM_SIZE: Final = (  # bytes of struct anonmm ("rmap 10 add anonmm rmap", 22 May 2004)
    4  # references: its mm, its head, and each page that points here
    + 4  # the lock of the list, used in the head: spinlock_t
    + 8  # the mm: struct mm_struct *
    + 8  # the head: struct anonmm *
    + 16  # its place in the list: struct list_head
)


class AnonMM:
    """struct anonmm: one address space in the list of those that descend from one exec."""

    def __init__(self, number: int, mm: MM, head: AnonMM | None, lock: SpinLock | None) -> None:
        self.number: Final = number  # what pages hold
        self.mm: MM | None = mm
        self.above: Final = head
        self.lock: Final = lock  # the head's is the one that is locked
        self.count = 1
        self.members: Final[dict[int, AnonMM]] = {}  # in the head: the list, itself first

    def head(self) -> AnonMM:
        """The one that heads the list, and has its lock."""
        return self if self.above is None else self.above


@mypyc_attr(allow_interpreted_subclasses=True)
class AnonMMRmap(ReverseMap):
    """A list of address spaces since exec, and a virtual address."""

    name = "anonmm"
    mm_fields = 8  # a pointer to the anonmm
    watches_entries = True
    tables_under_rcu = True  # 2.6 had one page_table_lock a mm_struct, which covered free_pgtables(), too
    drawn_by = "rmaplab.rmap.pictures.anonmm:AnonMMPicture"

    def __init__(self, attachment: Attachment) -> None:
        super().__init__(attachment)
        self.pool: Final[Pool] = self.ledger.pool("anonmm", _ANONMM_SIZE)
        self.head_lock_class: Final[LockClass] = self.ledger.lock_class("anonmm head lock")
        self.rcu: Final = Rcu(self.ledger, self.scheduler)
        self.walks: Final[Tally] = self.ledger.tally("walks")
        self.visited: Final[Tally] = self.ledger.tally("anonmms visited")
        self.look_ups: Final[Tally] = self.ledger.tally("vma tree nodes visited")
        self.places: Final[Tally] = self.ledger.tally("places visited")
        self.readdressed: Final[Tally] = self.ledger.tally("pages given a new address")
        self.copies: Final[Tally] = self.ledger.tally("pages that Linux would have copied")
        self.owner: Final[Column] = attachment.folios.column(np.int32)
        self.page_number: Final[Column] = attachment.folios.column(np.int64)  # address >> PAGE_SHIFT
        self.odd: Final = OddEntries(self.ledger, self.scheduler)
        self.anonmms: Final[list[AnonMM | None]] = [None]  # by number
        self.free_numbers: Final[list[int]] = []
        self.held: Final[dict[int, AnonMM]] = {}

    def anonmm_of(self, mm: MM) -> AnonMM:
        """mm->anonmm"""
        return cast(AnonMM, mm.rmap[self.slot])

    # An address space

    def mm_created(self, mm: MM) -> None:
        # exec_rmap()
        anonmm = self._new(mm, None)
        anonmm.count = 2  # its mm, and being the head
        anonmm.members[anonmm.number] = anonmm

    def mm_forked(self, parent: MM, child: MM) -> None:
        # dup_rmap(): at the end of the list, before its entries are copied
        head = self.anonmm_of(parent).head()
        anonmm = self._new(child, head)
        self._lock(head)
        head.count += 1
        self._assert_locked(head)
        head.members[anonmm.number] = anonmm
        self._unlock(head)

    def mm_gone(self, mm: MM) -> None:
        # exit_rmap()
        anonmm = self.anonmm_of(mm)
        self._lock(anonmm.head())
        self._assert_locked(anonmm.head())
        anonmm.mm = None
        self._unlock(anonmm.head())
        self._put(anonmm, 1)

    def _new(self, mm: MM, head: AnonMM | None) -> AnonMM:
        number = take_number(self.anonmms, self.free_numbers)
        lock = SpinLock(self.head_lock_class, self.scheduler) if head is None else None
        anonmm = AnonMM(number, mm, head, lock)
        self.anonmms[number] = anonmm
        self.pool.alloc()
        mm.rmap[self.slot] = anonmm
        return anonmm

    def _put(self, anonmm: AnonMM, references: int) -> None:
        """Some of its references are gone (free_anonmm()); the head has one for each of the others, too."""
        anonmm.count -= references
        head = anonmm.head()
        if anonmm is not head and anonmm.count == 0:
            self._lock(head)
            self._assert_locked(head)
            del head.members[anonmm.number]
            self._unlock(head)
            self._free(anonmm)
            head.count -= 1
        if head.count == 1:
            self._free(head)

    def _free(self, anonmm: AnonMM) -> None:
        self.pool.free()
        if self.scheduler is None:
            self.anonmms[anonmm.number] = None
            self.free_numbers.append(anonmm.number)
        else:
            self.scheduler.free("anonmm", anonmm)

    def _assert_locked(self, head: AnonMM) -> None:
        """The caller changes the list of a family."""
        lock = head.lock
        assert lock is not None
        lock.assert_held()

    def _lock(self, head: AnonMM) -> None:
        lock = head.lock
        assert lock is not None
        lock.lock()

    def _unlock(self, head: AnonMM) -> None:
        lock = head.lock
        assert lock is not None
        lock.unlock()

    # Folios

    def folio_mapped(self, vma: VMA, addr: int, pfn: int, nr_pages: int) -> None:
        # page_add_anon_rmap(), of a page that nothing maps yet
        addrs = np.arange(addr, addr + (nr_pages << PAGE_SHIFT), PAGE_SIZE)
        self.folios_mapped(vma, addrs, np.arange(pfn, pfn + nr_pages))

    def folios_mapped(self, vma: VMA, addrs: Int64s, pfns: Int64s) -> None:
        anonmm = self.anonmm_of(vma.mm)
        anonmm.count += len(pfns)
        self.odd.lock_class.writes += len(pfns)
        self.owner.v[pfns] = anonmm.number
        self.page_number.v[pfns] = addrs >> PAGE_SHIFT

    def folio_swapped_in(self, vma: VMA, addr: int, pfn: int, exclusive: bool) -> None:
        self.folio_mapped(vma, addr, pfn, 1)

    def folio_migrated(self, old: int, new: int, nr_pages: int) -> None:
        for i in range(nr_pages):
            number: int = self.owner.m[old + i]
            anonmm = self.anonmms[number]
            assert anonmm is not None  # `old` points to it
            anonmm.count += 1
            self.owner.m[new + i] = number
            self.page_number.m[new + i] = self.page_number.m[old + i]
            self.odd.migrated(old + i, new + i)

    def folio_freed(self, pfn: int, nr_pages: int) -> None:
        self.folios_freed(np.arange(pfn, pfn + nr_pages))

    def folios_freed(self, pfns: Int64s) -> None:
        self.odd.freed(pfns)
        owners = self.owner.v[pfns]
        for number in np.unique(owners).tolist():
            self._forget(number, int(np.count_nonzero(owners == number)))
        self.owner.v[pfns] = 0

    def _forget(self, number: int, nr_pages: int) -> None:
        """So many pages do not point to that anonmm any more (clear_page_anon())."""
        anonmm = self.anonmms[number]
        if anonmm is not None:  # else the page was read from swap, and never mapped
            self._put(anonmm, nr_pages)

    # Entries

    def entries_added(self, mm: MM, addr: int, entries: Int64s) -> None:
        # page_dup_rmap() and page_add_anon_rmap() note nothing: an entry is where its page says, or it is odd.
        for pfn, number in self._elsewhere(mm, addr, entries):
            self.odd.add(mm, pfn, number)

    def entries_removed(self, mm: MM, addr: int, entries: Int64s) -> None:
        self.odd.removed(mm, addr, entries)

    def entries_moved(self, mm: MM, old: int, new: int, entries: Int64s) -> None:
        # mremap_move_anon_rmap() in move_one_page()
        self.entries_removed(mm, old, entries)
        mapcount = self.folios.mapcount.m
        for pfn, number in self._elsewhere(mm, new, entries):
            owner = self.anonmms[self.owner.m[pfn]]
            if mapcount[pfn] == 1 and owner is not None and owner.head() is self.anonmm_of(mm).head():
                lock = self.odd.locks.of(pfn)
                lock.lock()
                lock.assert_held()
                self.page_number.m[pfn] = number
                lock.unlock()
                self.readdressed.count += 1
            else:
                self.copies.count += 1
                self.odd.add(mm, pfn, number)

    def _elsewhere(self, mm: MM, addr: int, entries: Int64s) -> list[tuple[int, int]]:
        """Pages of those entries, from `addr` of `mm` on, that are not where their page says: at another address,
        or (KSM) in another family; and where they are, in pages."""
        at, pfns = self.odd.pages(entries)
        numbers = at + (addr >> PAGE_SHIFT)
        apart = self.page_number.v[pfns] != numbers
        head = self.anonmm_of(mm).head()
        owners = self.owner.v[pfns]
        for owner in np.unique(owners).tolist():
            anonmm = self.anonmms[owner]
            if anonmm is None or anonmm.head() is not head:
                apart |= owners == owner
        elsewhere = np.flatnonzero(apart)
        return [(int(pfns[i]), int(numbers[i])) for i in elsewhere]

    # Counting again

    def audit(self, mms: Sequence[MM], peak_vmas: int) -> list[str]:
        """Every anonmm is one that its address space, a page or a migration refers to; a head, also the others."""
        said: list[str] = []
        reached: dict[int, AnonMM] = {}
        references: dict[int, int] = {}
        for user in [*[self.anonmm_of(mm) for mm in mms], *self.held.values()]:
            reached[user.number] = user
            references[user.number] = references.get(user.number, 0) + 1
        owners = self.owner.v[self.owner.v != 0]
        for number in np.unique(owners).tolist():
            anonmm = self.anonmms[number]
            if anonmm is None:
                said.append(f"pages point to anonmm {number}, which was freed")
                continue
            reached[number] = anonmm
            references[number] = references.get(number, 0) + int(np.count_nonzero(owners == number))
        for anonmm in list(reached.values()):
            head = anonmm.head()
            reached[head.number] = head
            if head is not anonmm:
                references[head.number] = references.get(head.number, 0) + 1
        miscounted(said, "anonmms in use", -1, self.pool.live, len(reached))
        for number, anonmm in reached.items():
            being_head = 1 if anonmm.head() is anonmm else 0
            found = references.get(number, 0) + being_head
            miscounted(said, "references to anonmm", number, anonmm.count, found)
            if being_head:
                others = [its for its in reached.values() if its.head() is anonmm]
                miscounted(said, "members of the list of anonmm", number, len(anonmm.members), len(others))
        return said

    # The walk

    def hold(self, pfn: int) -> None:
        anonmm = self.anonmms[self.owner.m[pfn]]
        assert anonmm is not None  # the folio is mapped
        anonmm.count += 1
        self.held[pfn] = anonmm

    def unhold(self, pfn: int) -> None:
        self._put(self.held.pop(pfn), 1)

    def _from(self, anonmm: AnonMM) -> list[AnonMM]:
        """The list, beginning with the one that the page points to: a page cannot come to an older address space
        by fork, but by swap it can."""
        members = list(anonmm.head().members.values())
        at = members.index(anonmm)
        return members[at:] + members[:at]

    def walk(self, pfn: int) -> Iterator[tuple[VMA, int]]:
        self.walks.count += 1
        anonmm = self.anonmms[self.owner.m[pfn]]
        if anonmm is None:
            return
        head = anonmm.head()
        nr_pages = self.folios.nr_pages(pfn)
        self.rcu.read_lock()
        self.touch("anonmm", anonmm)
        self.touch("anonmm", head)  # the lock is a part of it
        self._lock(head)
        try:
            for member in self._from(anonmm):
                self.visited.count += 1
                self.touch("anonmm", member)
                mm = member.mm
                if mm is not None and mm.page_table.leaves:  # mm->rss
                    for first in self._addresses(pfn, nr_pages):
                        yield from self._at(mm, first, nr_pages)
            for page in range(nr_pages):
                for mm, number in self.odd.of(pfn + page):
                    yield from self._at(mm, number - page, nr_pages)
        finally:
            self._unlock(head)
            self.rcu.read_unlock()

    def _addresses(self, pfn: int, nr_pages: int) -> list[int]:
        """Where the folio's first page is, or would be: one address, unless a part of a large folio was moved."""
        lock = self.odd.locks.of(pfn)
        lock.lock()
        first: int = self.page_number.m[pfn]
        found = [first]
        if nr_pages > 1:
            numbers = self.page_number.v[pfn : pfn + nr_pages] - np.arange(nr_pages)
            found = np.unique(numbers).tolist()
        lock.unlock()
        return found

    def _at(self, mm: MM, number: int, nr_pages: int) -> Iterator[tuple[VMA, int]]:
        """The VMAs of `mm` from that page on."""
        start = number << PAGE_SHIFT
        self.look_ups.count += mm.tree.levels()
        for vma in find_vmas(self.scheduler, mm, start, start + (nr_pages << PAGE_SHIFT)):
            then = seen(self.scheduler, vma)
            if vma.prepared:
                self.places.count += 1
                yield vma, start if start > then.start else then.start
