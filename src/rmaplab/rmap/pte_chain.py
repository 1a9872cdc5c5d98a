# SPDX-License-Identifier: GPL-2.0-or-later
"""Design `pte_chain`: each page lists the entries that map it, after mm/rmap.c of 2.5 and of 2.6.0 to 2.6.6.

R. van Riel's reverse map of 2002.  It uses no VMAs and no page offsets: a page has pointers to the page-table
entries that map it, and a pointer to an entry determines address space and address.  The kernel calls
page_add_rmap() and page_remove_rmap() for each entry that is added and removed.

Data
- a page that one entry maps points to that entry (PageDirect).
- a page with more mappings points to a list of *chains*: nodes of one cache line with room for `slots` pointers
  each.  Only the first node has free slots.  A page that has once had a chain keeps one as long as it is mapped
  (page_referenced() makes a chain of one entry a pointer again; the model does not, since a design does not
  know which user walks).

Invariant: the list of a page has one pointer for each entry, present or migrating, that maps it, and no other.  So a
walk is exact: every place that it visits maps the page.

Locking: a bit lock in each page (PG_maplock) covers its list, and nests in the page-table lock.  A walk takes the
locks in the opposite order; 2.5 tries the page-table lock, and gives up if it does not get it.  Our users wait for
it; so a walk releases the page meanwhile, and looks again if an entry was added since.  Without the page's lock,
nothing keeps the entry, its page table and its mm_struct: so the walk runs under RCU, and mm_structs are freed after a
grace period.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, cast

import numpy as np
from mypy_extensions import mypyc_attr

from rmaplab.mm.folio import FOLIO_KSM, Column, Int64s
from rmaplab.mm.pagetable import PTE_ANON, PTE_MIGRATION, PTE_SHIFT
from rmaplab.mm.reverse_map import Attachment, ReverseMap, miscounted
from rmaplab.mm.vma import MM, PAGE_SHIFT, VMA, seen, vma_lookup
from rmaplab.rmap.numbers import take_number
from rmaplab.rmap.page_entries import PageLocks, page_of
from rmaplab.sync.locks import Rcu
from rmaplab.sync.work import LockClass, Pool, Tally

# A pointer to an entry: number of the address space << 36 | address >> PAGE_SHIFT.  0 is none.
_MM_SHIFT: Final = 36
_PAGE_MASK: Final = (1 << _MM_SHIFT) - 1
# Bytes of struct pte_chain (mm/rmap.c of 2.5): the address of the next and the index of the first used slot in one
# word, and as many pointers to entries as fill a cache line.
_CHAIN_SIZE: Final = 64
_CHAIN: Final = -1  # in place of a pointer: the page has a chain


@mypyc_attr(allow_interpreted_subclasses=True)
class PteChainRmap(ReverseMap):
    """A list of entries per page."""

    name = "pte_chain"
    watches_entries = True
    spaces_under_rcu = True  # _place()
    tables_under_rcu = True  # 2.5 had one page_table_lock a mm_struct, which covered free_pgtables(), too
    drawn_by = "rmaplab.rmap.pictures.pte_chain:PteChainPicture"

    def __init__(self, attachment: Attachment) -> None:
        super().__init__(attachment)
        self.slots: Final = (_CHAIN_SIZE - 8) // 8  # NRPTE
        self.pool: Final[Pool] = self.ledger.pool("pte_chain", _CHAIN_SIZE)
        self.lock_class: Final[LockClass] = self.ledger.lock_class("page map lock")
        self.rcu: Final = Rcu(self.ledger, self.scheduler)
        self.walks: Final[Tally] = self.ledger.tally("walks")
        self.places: Final[Tally] = self.ledger.tally("places visited")
        self.added: Final[Tally] = self.ledger.tally("pointers added")
        self.removed: Final[Tally] = self.ledger.tally("pointers removed")
        self.scanned: Final[Tally] = self.ledger.tally("chain slots looked at")
        self.direct: Final[Column] = attachment.folios.column(np.int64)
        self.additions: Final[Column] = attachment.folios.column(np.int32)  # ever, for a walk that looks again
        self.chains: Final[dict[int, list[int]]] = {}  # by pfn, the newest pointer last
        self.mms: Final[list[MM | None]] = [None]  # by number
        self.free_numbers: Final[list[int]] = []
        self.replaced: Final[dict[int, int]] = {}  # since a migration: page -> the page that has its list now
        self.locks: Final = PageLocks(self.lock_class, self.scheduler)

    # An address space

    def mm_created(self, mm: MM) -> None:
        number = take_number(self.mms, self.free_numbers)
        self.mms[number] = mm
        mm.rmap[self.slot] = number

    def mm_forked(self, parent: MM, child: MM) -> None:
        self.mm_created(child)

    def mm_gone(self, mm: MM) -> None:
        number = cast(int, mm.rmap[self.slot])
        self.mms[number] = None
        if self.scheduler is None:
            self.free_numbers.append(number)

    # Entries

    def entries_added(self, mm: MM, addr: int, entries: Int64s) -> None:
        self._change(mm, addr, entries, True)

    def entries_removed(self, mm: MM, addr: int, entries: Int64s) -> None:
        self._change(mm, addr, entries, False)

    def _change(self, mm: MM, addr: int, entries: Int64s, adds: bool) -> None:
        """Add the pointers of `entries`, from `addr` on, or remove them."""
        first = (cast(int, mm.rmap[self.slot]) << _MM_SHIFT) + (addr >> PAGE_SHIFT)
        if len(entries) == 1:
            self._change_one(int(entries[0]), first, adds)
            return
        at = np.flatnonzero((entries & (PTE_ANON | PTE_MIGRATION)) != 0)
        pfns = entries[at] >> PTE_SHIFT
        pointers = at + first
        if self._one_by_one(pfns):
            for i in range(len(pfns)):
                self._change_one(int(entries[at[i]]), int(pointers[i]), adds)
            return
        self.lock_class.writes += len(pfns)
        if adds:
            self.added.count += len(pfns)
            self.additions.v[pfns] += 1
            fresh = self.direct.v[pfns] == 0
            self.direct.v[pfns[fresh]] = pointers[fresh]
            for i in np.flatnonzero(~fresh).tolist():
                self._add_to_chain(int(pfns[i]), int(pointers[i]))
        else:
            self.removed.count += len(pfns)
            alone = self.direct.v[pfns] == pointers
            self.direct.v[pfns[alone]] = 0
            for i in np.flatnonzero(~alone).tolist():
                self._remove_from_chain(int(pfns[i]), int(pointers[i]))

    def _change_one(self, entry: int, pointer: int, adds: bool) -> None:
        if entry & (PTE_ANON | PTE_MIGRATION) == 0:
            return
        if adds:
            self._add(entry, pointer)
        else:
            self._remove(entry, pointer)

    def entries_moved(self, mm: MM, old: int, new: int, entries: Int64s) -> None:
        # 2.5 removes a pointer, and adds one.  A walk in between finds none, and would not look again.
        first = (cast(int, mm.rmap[self.slot]) << _MM_SHIFT) + (old >> PAGE_SHIFT)
        distance = (new - old) >> PAGE_SHIFT
        for i in np.flatnonzero((entries & (PTE_ANON | PTE_MIGRATION)) != 0).tolist():
            pfn = self._lock_page(int(entries[i]))
            self.removed.count += 1
            self.added.count += 1
            self.additions.m[pfn] += 1
            pointer = first + i
            if self.direct.m[pfn] == pointer:
                self.direct.m[pfn] = pointer + distance
            else:
                chain = self.chains[pfn]
                chain[chain.index(pointer)] = pointer + distance
                self.scanned.count += len(chain)
            self.locks.of(pfn).unlock()

    def _one_by_one(self, pfns: Int64s) -> bool:
        """False if all pages may be dealt with at once: nobody else is there, none has moved in a migration, and none
        is among them twice, as only KSM's can be."""
        alone = self.scheduler is None and not self.replaced
        return not alone or bool((self.folios.flags.v[pfns] & FOLIO_KSM).any())

    def _lock_page(self, entry: int) -> int:
        """The page in whose list the entry is, or should be, with its lock."""
        while True:
            pfn = page_of(entry, self.replaced)
            self.locks.of(pfn).lock()
            if page_of(entry, self.replaced) == pfn:
                return pfn
            self.locks.of(pfn).unlock()  # migrated before we had the lock

    def _add(self, entry: int, pointer: int) -> None:
        """page_add_rmap()."""
        self.added.count += 1
        pfn = self._lock_page(entry)
        self.additions.m[pfn] += 1
        if self.direct.m[pfn] == 0:
            self.direct.m[pfn] = pointer
        else:
            self._add_to_chain(pfn, pointer)
        self.locks.of(pfn).unlock()

    def _add_to_chain(self, pfn: int, pointer: int) -> None:
        self.locks.of(pfn).assert_held()
        direct: int = self.direct.m[pfn]
        if direct != _CHAIN:
            self.direct.m[pfn] = _CHAIN
            self.chains[pfn] = [direct, pointer]
            self.pool.alloc()
            return
        chain = self.chains[pfn]
        if len(chain) % self.slots == 0:
            self.pool.alloc()
        chain.append(pointer)

    def _remove(self, entry: int, pointer: int) -> None:
        """page_remove_rmap().  The list may be gone: a walk does not come to migration entries that munmap() is about
        to remove, and they may outlive the page."""
        self.removed.count += 1
        pfn = self._lock_page(entry)
        if self.direct.m[pfn] == pointer:
            self.direct.m[pfn] = 0
        elif pointer in self.chains.get(pfn, []):
            self._remove_from_chain(pfn, pointer)
        else:
            assert entry & PTE_MIGRATION  # every other entry is in the list of its page
        self.locks.of(pfn).unlock()

    def _remove_from_chain(self, pfn: int, pointer: int) -> None:
        """Look for it from the newest on, put the newest in its place, and free the first node if that
        was all it had."""
        self.locks.of(pfn).assert_held()
        chain = self.chains[pfn]
        place = chain[::-1].index(pointer)
        self.scanned.count += place + 1
        newest = chain.pop()
        if place:
            chain[len(chain) - place] = newest
        if len(chain) % self.slots == 0:
            self.pool.free()
            if not chain:
                del self.chains[pfn]
                self.direct.m[pfn] = 0

    # Folios

    def folio_migrated(self, old: int, new: int, nr_pages: int) -> None:
        # Entries that are migrating still name the old pages; whoever copies or removes them goes by the new ones.
        for i in range(nr_pages):
            self.locks.of(old + i).lock()
            self.locks.of(new + i).lock()
            self.locks.of(old + i).assert_held()
            self.locks.of(new + i).assert_held()
            self.direct.m[new + i] = self.direct.m[old + i]
            self.direct.m[old + i] = 0
            chain = self.chains.pop(old + i, None)
            if chain is not None:
                self.chains[new + i] = chain
            self.replaced[old + i] = new + i
            self.locks.of(new + i).unlock()
            self.locks.of(old + i).unlock()

    def folio_freed(self, pfn: int, nr_pages: int) -> None:
        for page in range(pfn, pfn + nr_pages):
            if self.scheduler is None:  # else munmap() may still have an entry for it, which the walk did not find
                self.replaced.pop(page, 0)
            if self.direct.m[page]:  # of migration entries that go later
                self.direct.m[page] = 0
                self.pool.free(-(-len(self.chains.pop(page, [])) // self.slots))

    def folios_freed(self, pfns: Int64s) -> None:
        if self.replaced:
            for i in range(len(pfns)):
                self.folio_freed(int(pfns[i]), 1)

    # The walk

    def pointers(self, pfn: int) -> list[int]:
        """What maps the page, the newest first."""
        direct: int = self.direct.m[pfn]
        if direct == _CHAIN:
            return self.chains[pfn][::-1]
        return [direct] if direct else []

    def place_of(self, pointer: int) -> tuple[int, int]:
        """Number of the address space, and the address."""
        return pointer >> _MM_SHIFT, (pointer & _PAGE_MASK) << PAGE_SHIFT

    def walk(self, pfn: int) -> Iterator[tuple[VMA, int]]:
        self.walks.count += 1
        nr_pages = self.folios.nr_pages(pfn)
        self.rcu.read_lock()
        try:
            again = True
            while again:
                visited: list[tuple[VMA, int]] = []
                begun = self._additions(pfn, nr_pages)
                for page in range(nr_pages):
                    lock = self.locks.of(pfn + page)
                    lock.lock()
                    pointers = self.pointers(pfn + page)
                    lock.unlock()
                    for pointer in pointers:
                        yield from self._place(pointer, page, visited)
                again = self._additions(pfn, nr_pages) != begun
        finally:
            self.rcu.read_unlock()

    def _additions(self, pfn: int, nr_pages: int) -> int:
        if self.scheduler is not None:
            self.locks.of(pfn).lock()
            self.locks.of(pfn).unlock()
        return int(self.additions.v[pfn : pfn + nr_pages].sum())

    def _place(self, pointer: int, page: int, visited: list[tuple[VMA, int]]) -> Iterator[tuple[VMA, int]]:
        """The place of the folio whose page number `page` is mapped by the entry, unless it was visited before."""
        self.scanned.count += 1
        mm = self.mms[pointer >> _MM_SHIFT]
        if mm is None:
            return  # gone, and its entries with it
        addr = (pointer & _PAGE_MASK) << PAGE_SHIFT
        vma = vma_lookup(self.scheduler, mm, addr)
        if vma is not None:  # else munmap() is at it
            first = addr - (page << PAGE_SHIFT)
            # An entry is where its pointer says, also while a split takes its place out of the VMA.
            start = min(seen(self.scheduler, vma).start, addr)
            place = (vma, first if first > start else start)
            if place not in visited:
                visited.append(place)
                self.places.count += 1
                yield place

    # What the design says of itself

    def audit(self, mms: Sequence[MM], peak_vmas: int) -> list[str]:
        """One pointer for each entry, and no more nodes than it takes to hold them."""
        said: list[str] = []
        nodes = 0
        direct = self.direct.v >> _MM_SHIFT
        pointers: dict[int, int] = {}
        for chain in self.chains.values():
            nodes += -(-len(chain) // self.slots)
            for pointer in chain:
                pointers[pointer >> _MM_SHIFT] = pointers.get(pointer >> _MM_SHIFT, 0) + 1
        for mm in mms:
            number = cast(int, mm.rmap[self.slot])
            listed = int(np.count_nonzero(direct == number)) + pointers.get(number, 0)
            miscounted(said, "pointers to entries of mm", mm.id, listed, len(mm.page_table.anon_entries()[0]))
        miscounted(said, "nodes of chains in use", -1, self.pool.live, nodes)
        return said
