# SPDX-License-Identifier: GPL-2.0-or-later
"""The mappings in the page tables, with which every design is compared.

A reverse map answers "which entries map this folio?".  The page tables know: `Truth` reads them all, groups
their anonymous entries by folio, and is thereby the answer that no design may fall short of.  It shares no
code with any design.

Completeness: each entry that maps a page of a folio, present or under migration, is among the places of a walk of
that folio.  A place (VMA, address) stands for the pages of the folio from the first one that the VMA covers to the
last, as page_vma_mapped_walk() takes it (mm/page_vma_mapped.c, vma_address() in mm/internal.h).

The machine itself is checked, too (`invariants`): truth read from broken page tables would be none.

Both are read in full each time, by NumPy, which takes as long for a few pages as for a few thousand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from rmaplab.mm.folio import FOLIO_KSM, Int64s
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import (
    LEAF_ENTRIES,
    LEAF_SHIFT,
    PTE_ANON,
    PTE_EXCLUSIVE,
    PTE_FILE,
    PTE_GUARD,
    PTE_KSM,
    PTE_MIGRATION,
    PTE_SHIFT,
    PTE_SWAP,
    PTE_WRITE,
    PTE_ZERO,
    Leaf,
)
from rmaplab.mm.reverse_map import miscounted
from rmaplab.mm.vma import MM, PAGE_MASK, PAGE_SHIFT, VM_LOCKED, VMA

Place = tuple[VMA, int]
Bools = npt.NDArray[np.bool_]

_MM_SHIFT: Final = 48  # above any address: (address space, address) as one number
_LEAF_BITS: Final = 9  # of a place in a leaf
_FIRST: Final = 512  # pfn of the first row that is ever used (mm/folio.py)

_KINDS: Final = PTE_ANON | PTE_ZERO | PTE_FILE | PTE_SWAP | PTE_MIGRATION | PTE_GUARD


class MappedFolio:
    """A folio and every entry that maps a page of it.

    head:    pfn of its first page
    entries: (address space, address, which page of the folio), by address space and address
    """

    def __init__(self, head: int, nr_pages: int, entries: list[tuple[MM, int, int]]) -> None:
        self.head: Final = head
        self.nr_pages: Final = nr_pages
        self.entries: Final = entries

    def unseen(self, places: Sequence[Place]) -> list[tuple[MM, int, int]]:
        """The entries that no place of the walk covers."""
        if self.nr_pages == 1:
            seen = {vma.mm.id << _MM_SHIFT | addr for vma, addr in places}
            return [entry for entry in self.entries if entry[0].id << _MM_SHIFT | entry[1] not in seen]
        unseen: list[tuple[MM, int, int]] = []
        for entry in self.entries:
            for place in places:
                if self._covers(place, entry):
                    break
            else:
                unseen.append(entry)
        return unseen

    def mapped_at(self, place: Place) -> bool:
        """Does the place map a page of the folio?"""
        for entry in self.entries:
            if self._covers(place, entry):
                return True
        return False

    def _covers(self, place: Place, entry: tuple[MM, int, int]) -> bool:
        vma, first = place
        mm, addr, page = entry
        if vma.mm is not mm or not first <= addr < vma.end:
            return False
        distance = (addr - first) >> PAGE_SHIFT
        # The folio's beginning may lie below the VMA, so that the first page it covers is a later one.
        return distance <= page if first == vma.start else distance == page


class Truth:
    """All entries of all live address spaces at one moment.

    mms:     the address spaces, by id; `owner` are places in it
    leaves:  their leaves, by address space and address
    entries: all that are not none, in this order, with their `addrs`; `owner` has whose each is
    anon:    which of them stand for anonymous pages, present or under migration
    heads:   the first pages of the folios that these map, ascending
    """

    def __init__(self, machine: Machine) -> None:
        self._folios: Final = machine.folios
        self.mms: Final = [machine.mms[id] for id in sorted(machine.mms)]
        self.leaves: Final[list[tuple[MM, int, Leaf]]] = []
        owners: list[int] = []
        bases: list[int] = []
        for i, mm in enumerate(self.mms):
            leaves = mm.page_table.leaves
            for number in sorted(leaves):
                self.leaves.append((mm, number, leaves[number]))
                owners.append(i)
                bases.append(number << LEAF_SHIFT)
        columns = [leaf.v for _, _, leaf in self.leaves]
        table: Int64s = np.concatenate(columns) if columns else np.zeros(0, dtype=np.int64)
        at = (table != 0).nonzero()[0]  # NumPy is quicker at truth values than at numbers
        self.entries: Final[Int64s] = table[at]
        self.leaf_of: Final[Int64s] = at >> _LEAF_BITS
        self.owner: Final[Int64s] = np.array(owners, dtype=np.int64)[self.leaf_of]
        addrs: Int64s = np.array(bases, dtype=np.int64)[self.leaf_of]
        addrs += (at & (LEAF_ENTRIES - 1)) << PAGE_SHIFT
        self.addrs: Final = addrs
        self.anon: Final[Int64s] = (self.entries & (PTE_ANON | PTE_MIGRATION)).nonzero()[0]

        pfns: Int64s = self.entries[self.anon] >> PTE_SHIFT
        heads: Int64s = self._folios.head.v[pfns].astype(np.int64)
        order = heads.argsort(kind="stable")
        heads = heads[order]
        # Where a folio's first entry is, among those in `order`; and, one further, where the last one's end.
        edges: Int64s = np.empty(len(heads) + 1, dtype=np.int64)
        edges[0] = -1
        edges[1:] = heads
        first = (edges[1:] != edges[:-1]).nonzero()[0]
        self.heads: Final[list[int]] = heads[first].tolist()
        self._first: Final[list[int]] = [*first.tolist(), len(heads)]
        ordered = self.anon[order]
        self._owner: Final = self.owner[ordered].data
        self._addr: Final = addrs[ordered].data
        self._pfn: Final = pfns[order].data

    def __len__(self) -> int:
        """How many folios are mapped."""
        return len(self.heads)

    def folio(self, i: int) -> MappedFolio:
        """The i-th mapped folio, by pfn."""
        head = self.heads[i]
        entries: list[tuple[MM, int, int]] = []
        for j in range(self._first[i], self._first[i + 1]):
            owner: int = self._owner[j]
            addr: int = self._addr[j]
            pfn: int = self._pfn[j]
            entries.append((self.mms[owner], addr, pfn - head))
        return MappedFolio(head, self._folios.nr_pages(head), entries)

    def anon_entries(self) -> list[tuple[MM, int, int]]:
        """Address space, address and entry of all anonymous pages, present or under migration."""
        owners: list[int] = self.owner[self.anon].tolist()
        addrs: list[int] = self.addrs[self.anon].tolist()
        entries: list[int] = self.entries[self.anon].tolist()
        return [(self.mms[owners[i]], addrs[i], entries[i]) for i in range(len(entries))]

    def mapped_folios(self) -> Iterator[MappedFolio]:
        """Every folio that is mapped anywhere."""
        for i in range(len(self.heads)):
            yield self.folio(i)


def entry_name(entry: int) -> str:
    """What a page-table entry holds, in words."""
    if entry & PTE_ANON:
        return f"page {entry >> PTE_SHIFT}"
    if entry & PTE_MIGRATION:
        return f"a migration entry for page {entry >> PTE_SHIFT}"
    if entry & PTE_SWAP:
        return f"swap entry {entry >> PTE_SHIFT}"
    if entry & PTE_ZERO:
        return "the zero page"
    if entry & PTE_FILE:
        return "a page of the page cache"
    if entry & PTE_GUARD:
        return "a guard marker"
    return "nothing"


def invariants(machine: Machine, truth: Truth) -> list[str]:
    """Violated invariants of the machine, a sentence each."""
    wrong: list[str] = []
    _rows(machine, truth, wrong)
    for mm in truth.mms:
        _vmas(mm, machine.profile.dontunmap_apart, wrong)
    _leaves(truth, wrong)
    _entries(machine, truth, wrong)
    _swap(machine, truth, wrong)
    return wrong


def leaks(machine: Machine) -> list[tuple[str, str]]:
    """Objects that leaked and counts that are wrong, while nothing runs: a sentence each, with the name of the
    design that owns them, "" for the machine's own."""
    said: list[str] = []
    mms = [machine.mms[id] for id in sorted(machine.mms)]
    vmas = 0
    users: dict[int, int] = {}
    for process in machine.processes.values():
        users[process.mm.id] = users.get(process.mm.id, 0) + 1
    for mm in mms:
        vmas += len(mm.tree.to_list())
        miscounted(said, "users of mm", mm.id, mm.users, users.get(mm.id, 0))
    miscounted(said, "mm_structs in use", -1, machine.mm_pool.live, len(mms))
    miscounted(said, "vm_area_structs in use", -1, machine.vma_pool.live, vmas)
    if machine.vma_lock_pool is not None:
        miscounted(said, "vma_locks in use", -1, machine.vma_lock_pool.live, vmas)
    miscounted(said, "folios that somebody refers to besides those that map them", -1, len(machine.pins), 0)
    found = [(sentence, "") for sentence in said]
    for design in machine.designs:
        for sentence in design.audit(mms, machine.vma_pool.peak):
            found.append((f"{design.name}: {sentence}", design.name))
    return found


def _some(bad: Bools) -> list[int]:
    """Positions of the first few that are true."""
    found: list[int] = bad.nonzero()[0][:5].tolist()
    return found


def _rows(machine: Machine, truth: Truth, wrong: list[str]) -> None:
    """Compare the rows of the folio columns with the entries that map them."""
    folios = machine.folios
    entries = truth.entries[truth.anon]
    pfns = entries >> PTE_SHIFT
    end = folios.end
    counted = np.bincount(pfns, minlength=end)
    for i in _some((pfns < _FIRST) | (pfns >= end)):
        wrong.append(f"page {pfns[i]} is mapped, but there never was one of that number")
    counts = counted[_FIRST:end]
    orders = folios.order.v[_FIRST:end]
    heads = folios.head.v[_FIRST:end]
    mapcounts = folios.mapcount.v[_FIRST:end]
    live = orders >= 0
    mapped = counts > 0
    for i in _some((counts != mapcounts) & (live | mapped)):
        wrong.append(f"page {i + _FIRST} has mapcount {mapcounts[i]}, but {counts[i]} entries map it")
    for i in _some(mapped & ~live):
        wrong.append(f"page {i + _FIRST} is free, but {counts[i]} entries map it")
    nr_live = int(np.count_nonzero(live))
    if nr_live != folios.in_use:
        wrong.append(f"{folios.in_use} pages are said to be in use, {nr_live} are")
    off = np.arange(_FIRST, end) - heads
    bad = off != 0
    if machine.nr_large:
        sizes = 1 << np.maximum(orders, 0).astype(np.int64)
        bad = (heads & (sizes - 1) != 0) | (off < 0) | (off >= sizes) | (folios.order.v[heads] != orders)
    for i in _some(bad & live):
        wrong.append(f"page {i + _FIRST} of order {orders[i]} has head {heads[i]}")
    # In use and not mapped: only what swap holds.
    unmapped = live & ~mapped
    for head in set(heads[unmapped].tolist()):
        if folios.order.m[head] >= 0 and folios.total_mapcount(head) == 0 and head not in machine.slot_of:
            wrong.append(f"page {head} is in use, but neither mapped nor in the swap cache")

    exclusive = entries & PTE_EXCLUSIVE != 0
    for i in _some(exclusive & (counted[pfns] > 1)):
        wrong.append(f"page {pfns[i]} is exclusive, but {counted[pfns[i]]} entries map it")
    if machine.nr_large:
        other = (folios.order.v[pfns] > 0) & (folios.exclusive.v[pfns] != exclusive) & (entries & PTE_MIGRATION == 0)
        # Where one entry maps a folio whole, its first page stands for all (PageAnonExclusive()).
        huge = np.array([leaf.huge for _, _, leaf in truth.leaves], dtype=np.bool_)[truth.leaf_of[truth.anon]]
        other &= ~huge | (folios.head.v[pfns] == pfns)
        for i in _some(other):
            wrong.append(
                f"page {pfns[i]} of a large folio and the entry that maps it do not agree on whether it is exclusive"
            )
    _mm_ids(machine, wrong)
    for i in _some(entries & (PTE_WRITE | PTE_EXCLUSIVE) == PTE_WRITE):
        wrong.append(f"page {pfns[i]} is mapped writable by an entry that is not exclusive")
    of_ksm = entries & PTE_KSM != 0
    in_ksm = folios.flags.v[pfns] & FOLIO_KSM != 0
    for i in _some(in_ksm != of_ksm):
        wrong.append(f"page {pfns[i]} and an entry that maps it do not agree on whether it belongs to KSM")
    for i in _some(in_ksm & exclusive):
        wrong.append(f"page {pfns[i]} belongs to KSM, but an entry says that it is exclusive")


def _mm_ids(machine: Machine, wrong: list[str]) -> None:
    """What large folios remember of who maps them (mm/mm_ids.py)."""
    if not machine.mm_ids:
        return
    mapped: dict[int, Counter[int]] = {head: Counter() for head in machine.mm_ids}
    for mm in machine.mms.values():
        for leaf in mm.page_table.leaves.values():
            for head, count in machine.large_among(leaf.v[leaf.v & PTE_ANON != 0] >> PTE_SHIFT):
                if head in mapped:
                    mapped[head][mm.id] += 1 if leaf.huge else count
    for head, ids in machine.mm_ids.items():
        by_mm = mapped[head]
        if ids.mapcount != by_mm.total():
            wrong.append(f"large folio {head} counts {ids.mapcount} mappings, it has {by_mm.total()}")
        for number, count in ids.slots():
            if count > by_mm[number]:
                wrong.append(f"large folio {head} counts {count} mappings by mm {number}, it has {by_mm[number]}")
        if not ids.shared and len(by_mm) > 1:
            wrong.append(f"large folio {head} takes itself for one's alone, and {len(by_mm)} address spaces map it")


def _vmas(mm: MM, counts_locked: bool, wrong: list[str]) -> None:
    end = 0
    total = locked = 0
    for vma in mm.tree.to_list():
        if vma.start < end:
            wrong.append(f"{vma!r} begins below {end:#x}, where the VMA before it ends")
        if vma.start >= vma.end or (vma.start | vma.end) & ~PAGE_MASK:
            wrong.append(f"{vma!r} is empty or not page aligned")
        if vma.mm is not mm or vma.detached:
            wrong.append(f"{vma!r} is in the tree of mm {mm.id}, but belongs elsewhere")
        end = vma.end
        total += vma.nr_pages
        if vma.flags & VM_LOCKED:
            locked += vma.nr_pages
    if total != mm.total_vm:
        wrong.append(f"the VMAs of mm {mm.id} have {total} pages, total_vm is {mm.total_vm}")
    # Where MREMAP_DONTUNMAP does not split a locked VMA first, Linux unlocks more than it moves and counts it still.
    if counts_locked and locked != mm.locked_vm:
        wrong.append(f"the VMAs of mm {mm.id} have {locked} locked pages, locked_vm is {mm.locked_vm}")


def _leaves(truth: Truth, wrong: list[str]) -> None:
    counts: list[int] = np.bincount(truth.leaf_of, minlength=len(truth.leaves)).tolist()
    for count, (mm, number, leaf) in zip(counts, truth.leaves, strict=True):
        if count != leaf.used:
            wrong.append(f"leaf {number} of mm {mm.id} has {count} entries, `used` says {leaf.used}")
        vma = mm.tree.first_after(number << LEAF_SHIFT)
        if vma is None or vma.start >= number + 1 << LEAF_SHIFT:
            wrong.append(f"leaf {number} of mm {mm.id} is there, and no VMA is")
        elif leaf.huge:
            step = 1 << PTE_SHIFT if leaf.m[0] & (PTE_ANON | PTE_MIGRATION) else 0
            if (leaf.v != leaf.m[0] + np.arange(LEAF_ENTRIES, dtype=np.int64) * step).any():
                wrong.append(f"leaf {number} of mm {mm.id} is mapped by one entry, and its own are not alike")
            if vma.start > number << LEAF_SHIFT or vma.end < number + 1 << LEAF_SHIFT:
                wrong.append(f"leaf {number} of mm {mm.id} is mapped by one entry, and {vma!r} ends within it")


def _entries(machine: Machine, truth: Truth, wrong: list[str]) -> None:
    """Compare each entry with the VMA at its address and the page that it maps."""
    entries = truth.entries
    if len(entries) == 0:
        return
    kinds = entries & _KINDS
    for i in _some((kinds == 0) | (kinds & (kinds - 1) != 0)):
        mm, number, _ = truth.leaves[truth.leaf_of[i]]
        wrong.append(f"leaf {number} of mm {mm.id} has an entry of no kind or of two")
    # All VMAs of all address spaces in one row: (address space, address) as one number is ascending.
    bounds: list[int] = []
    for i, mm in enumerate(truth.mms):
        above = i << _MM_SHIFT
        for vma in mm.tree.to_list():
            offset = vma.anon_pgoff - (vma.start >> PAGE_SHIFT)
            bounds += (above | vma.start, above | vma.end, offset, vma.prepared)
    vmas = np.array(bounds, dtype=np.int64).reshape(-1, 4)
    keys = (truth.owner << _MM_SHIFT) | truth.addrs
    which = vmas[:, 0].searchsorted(keys, side="right") - 1
    outside = which < 0
    if len(vmas):
        outside |= keys >= vmas[which, 1]
    for i in _some(outside):
        mm, addr = truth.mms[truth.owner[i]], int(truth.addrs[i])
        wrong.append(f"{entry_name(int(entries[i]))} at {addr:#x} in mm {mm.id}, but no VMA")
    if len(outside.nonzero()[0]):
        return
    anon = truth.anon
    which = which[anon]
    pgoffs = (truth.addrs[anon] >> PAGE_SHIFT) + vmas[which, 2]
    pages = entries[anon]
    for j in _some(vmas[which, 3] == 0):
        mm, addr = truth.mms[truth.owner[anon[j]]], int(truth.addrs[anon[j]])
        wrong.append(f"an anonymous page at {addr:#x} in mm {mm.id}, whose VMA was never prepared for one")
    index = machine.folios.index.v[pages >> PTE_SHIFT]
    for j in _some((index != pgoffs) & (pages & PTE_KSM == 0)):
        mm, addr = truth.mms[truth.owner[anon[j]]], int(truth.addrs[anon[j]])
        wrong.append(
            f"page {pages[j] >> PTE_SHIFT} at {addr:#x} in mm {mm.id} has index {index[j]:#x}, "
            f"but its VMA has page offset {pgoffs[j]:#x} there"
        )


def _swap(machine: Machine, truth: Truth, wrong: list[str]) -> None:
    swapped = truth.entries[truth.entries & PTE_SWAP != 0]
    if len(swapped) == 0 and not machine.swap:
        return
    counted: dict[int, int] = {}
    for slot in (swapped >> PTE_SHIFT).tolist():
        counted[slot] = counted.get(slot, 0) + 1
    heads = {machine.folios.head.m[pfn] for pfn in machine.slot_of}
    cached = sum(machine.folios.nr_pages(head) for head in heads)
    if cached != len(machine.slot_of):
        wrong.append(f"{len(machine.slot_of)} pages are in the swap cache, of folios of {cached}")
    for slot in sorted(counted.keys() | machine.swap.keys()):
        held = machine.swap.get(slot)
        if held is None or held.count != counted.get(slot, 0):
            count = "is free" if held is None else f"counts {held.count}"
            wrong.append(f"swap slot {slot} {count}, but {counted.get(slot, 0)} entries refer to it")
        elif held.cached_pfn and machine.slot_of.get(held.cached_pfn) != slot:
            wrong.append(f"swap slot {slot} is cached by page {held.cached_pfn}, which does not say so")
