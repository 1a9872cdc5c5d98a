# SPDX-License-Identifier: GPL-2.0-or-later
"""What the page tables say, against which every design is held.

A reverse map answers "which entries map this folio?".  The page tables know: `Truth` reads them all, groups
their anonymous entries by folio, and is thereby the answer that no design may fall short of.  It shares no
code with any design.

Completeness (DESIGN.md, "What right means"): each entry that maps a page of a folio, present or under
migration, is among the places of a walk of that folio.  A place (VMA, address) stands for the pages of the
folio from the first one that the VMA covers to the last, as page_vma_mapped_walk() takes it
(mm/page_vma_mapped.c, vma_address() in mm/internal.h).

The machine itself is checked, too (`invariants`): truth read from broken page tables would be none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from rmaplab.mm.folio import FOLIO_KSM, Int64s
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import (
    PTE_ANON,
    PTE_EXCLUSIVE,
    PTE_FILE,
    PTE_KSM,
    PTE_MIGRATION,
    PTE_SHIFT,
    PTE_SWAP,
    PTE_WRITE,
    PTE_ZERO,
)
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import MM, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, VMA
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.rmap.cow_context import CowContextRmap

Place = tuple[VMA, int]

_KINDS = PTE_ANON | PTE_ZERO | PTE_FILE | PTE_SWAP | PTE_MIGRATION


class MappedFolio:
    """A folio and every entry that maps a page of it.

    head:    pfn of its first page
    entries: (address space, address, which page of the folio), by address space and address
    """

    __slots__ = ("entries", "head", "nr_pages")

    def __init__(self, head: int, nr_pages: int, entries: list[tuple[MM, int, int]]) -> None:
        self.head = head
        self.nr_pages = nr_pages
        self.entries = entries

    def unseen(self, places: Sequence[Place]) -> list[tuple[MM, int, int]]:
        """The entries that no place of a walk accounts for."""
        if self.nr_pages == 1:
            seen = {(vma.mm.id, addr) for vma, addr in places}
            return [entry for entry in self.entries if (entry[0].id, entry[1]) not in seen]
        return [entry for entry in self.entries if not any(self._covers(place, entry) for place in places)]

    def mapped_at(self, place: Place) -> bool:
        """Does the place map a page of the folio?"""
        return any(self._covers(place, entry) for entry in self.entries)

    def _covers(self, place: Place, entry: tuple[MM, int, int]) -> bool:
        vma, first = place
        mm, addr, page = entry
        if vma.mm is not mm or not first <= addr < vma.end:
            return False
        distance = (addr - first) >> PAGE_SHIFT
        # The folio's beginning may lie below the VMA, so that the first page it covers is a later one.
        return distance <= page if first == vma.start else distance == page


class Truth:
    """All anonymous entries of all live address spaces at one moment."""

    def __init__(self, machine: Machine) -> None:
        self._folios = machine.folios
        self._mms = [machine.mms[id] for id in sorted(machine.mms)]
        columns = [mm.page_table.anon_entries() for mm in self._mms]
        empty = [np.zeros(0, dtype=np.int64)]
        addrs = np.concatenate([addrs for addrs, _ in columns] or empty)
        entries = np.concatenate([entries for _, entries in columns] or empty)
        owner = np.repeat(np.arange(len(columns)), [len(addrs) for addrs, _ in columns])
        pfns = entries >> PTE_SHIFT
        heads = self._folios.head.v[pfns].astype(np.int64)
        order = np.argsort(heads, kind="stable")
        self.owner = owner[order]
        self.addrs: Int64s = addrs[order]
        self.entries: Int64s = entries[order]
        self.pfns: Int64s = pfns[order]
        self.heads, self._first, self._count = np.unique(heads[order], return_index=True, return_counts=True)

    def __len__(self) -> int:
        """How many folios are mapped."""
        return len(self.heads)

    def folio(self, i: int) -> MappedFolio:
        """The i-th mapped folio, by pfn."""
        head = int(self.heads[i])
        first = int(self._first[i])
        if self._count[i] == 1:
            entries = [self._entry(first, head)]
        else:
            entries = [self._entry(j, head) for j in range(first, first + int(self._count[i]))]
        return MappedFolio(head, self._folios.nr_pages(head), entries)

    def _entry(self, j: int, head: int) -> tuple[MM, int, int]:
        return self._mms[self.owner[j]], int(self.addrs[j]), int(self.pfns[j]) - head

    def mapped_folios(self) -> Iterator[MappedFolio]:
        """Every folio that is mapped anywhere."""
        for i in range(len(self)):
            yield self.folio(i)


def stray_records(design: ReverseMap, machine: Machine) -> list[str]:
    """Where what a design remembers is not what the VMAs say, a sentence each.

    In `cow_context`, a record too many costs a look-up in each walk and memory, but no walk shows it: no VMA is
    where it says.  The prototype's records are known to be inexact, and not looked at.

    In `anon_vma`, chains are bounded by what was ever there at once.  An anon_vma is only made in a fork that
    finds none in the chain to take over, so all above the newest had, at that moment, a VMA that puts pages into
    them or a second child, which has a VMA somewhere below it: two links for each VMA, at most.
    """
    wrong: list[str] = []
    mms = machine.mms.values()
    if isinstance(design, AnonVmaRmap):
        bound = 2 * machine.vma_pool.peak
        for mm in mms:
            for vma in mm.tree:
                family = design._family(vma)
                if family is not None and len(family.chain) > bound:
                    wrong.append(f"{vma!r} has {len(family.chain)} links, of which {bound} could be needed at most")
                    return wrong
    if not isinstance(design, CowContextRmap):
        return wrong
    for mm in mms:
        displaced: list[tuple[int, int, int]] = []
        for vma in mm.tree:
            shift = design.shift_of(vma)
            if shift is not None:
                first = vma.pgoff + shift
                displaced.append(((vma.start >> PAGE_SHIFT) - first, first, first + vma.nr_pages - 1))
        expected = _joined([found for found in displaced if found[0]])
        recorded = _joined([(offset, first, last) for first, last, offset in design.context_of(mm).remaps.ranges()])
        for offset, first, last in sorted(set(recorded) ^ set(expected)):
            has = "a record" if (offset, first, last) in recorded else "no record"
            wrong.append(f"mm {mm.id} has {has} of page offsets {first:#x} to {last:#x} at offset {offset:#x}")
    return wrong


def _joined(ranges: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """(offset, first, last), sorted, with those that touch or overlap made one."""
    joined: list[tuple[int, int, int]] = []
    for offset, first, last in sorted(ranges):
        if joined and joined[-1][0] == offset and first <= joined[-1][2] + 1:
            joined[-1] = (offset, joined[-1][1], max(last, joined[-1][2]))
        else:
            joined.append((offset, first, last))
    return joined


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
    return "nothing"


def invariants(machine: Machine, truth: Truth) -> list[str]:
    """What is wrong with the machine itself, a sentence each."""
    wrong: list[str] = []
    _pages(machine, truth, wrong)
    for mm in machine.mms.values():
        _vmas(mm, wrong)
        _entries(machine, mm, wrong)
    _swap(machine, wrong)
    return wrong


def _pages(machine: Machine, truth: Truth, wrong: list[str]) -> None:
    folios = machine.folios
    counted = np.bincount(truth.pfns, minlength=folios.rows)[: folios.rows]
    for pfn in np.flatnonzero(counted != folios.mapcount.v)[:5]:
        if folios.order.v[pfn] >= 0 or counted[pfn]:
            wrong.append(f"page {pfn} has mapcount {folios.mapcount.v[pfn]}, but {counted[pfn]} entries map it")
    for pfn in np.flatnonzero((counted > 0) & (folios.order.v < 0))[:5]:
        wrong.append(f"page {pfn} is free, but {counted[pfn]} entries map it")
    live = folios.live()
    if len(live) != folios.in_use:
        wrong.append(f"{folios.in_use} pages are said to be in use, {len(live)} are")
    orders = folios.order.v[live]
    heads = folios.head.v[live]
    off = live - heads
    bad = (heads & ((1 << orders.astype(np.int64)) - 1)) | (off < 0) | (off >= (1 << orders.astype(np.int64)))
    bad |= folios.order.v[heads] != orders
    for pfn in live[np.flatnonzero(bad)][:5]:
        wrong.append(f"page {pfn} of order {folios.order.v[pfn]} has head {folios.head.v[pfn]}")
    exclusive = truth.entries & PTE_EXCLUSIVE != 0
    for pfn in np.unique(truth.pfns[exclusive & (counted[truth.pfns] > 1)])[:5]:
        wrong.append(f"page {pfn} is exclusive, but {counted[pfn]} entries map it")
    in_ksm = folios.flags.v[truth.pfns] & FOLIO_KSM != 0
    for pfn in np.unique(truth.pfns[in_ksm != (truth.entries & PTE_KSM != 0)])[:5]:
        wrong.append(f"page {pfn} and an entry that maps it do not agree on whether it belongs to KSM")
    for pfn in np.unique(truth.pfns[in_ksm & exclusive])[:5]:
        wrong.append(f"page {pfn} belongs to KSM, but an entry says that it is exclusive")
    writable = (truth.entries & PTE_WRITE != 0) & ~exclusive
    for pfn in np.unique(truth.pfns[writable])[:5]:
        wrong.append(f"page {pfn} is mapped writable by an entry that is not exclusive")


def _vmas(mm: MM, wrong: list[str]) -> None:
    end = 0
    total = 0
    for vma in mm.tree:
        if vma.start < end:
            wrong.append(f"{vma!r} begins below {end:#x}, where the VMA before it ends")
        if vma.start >= vma.end or (vma.start | vma.end) & ~PAGE_MASK:
            wrong.append(f"{vma!r} is empty or not page aligned")
        if vma.mm is not mm or vma.detached:
            wrong.append(f"{vma!r} is in the tree of mm {mm.id}, but belongs elsewhere")
        end = vma.end
        total += vma.nr_pages
    if total != mm.total_vm:
        wrong.append(f"the VMAs of mm {mm.id} have {total} pages, total_vm is {mm.total_vm}")


def _entries(machine: Machine, mm: MM, wrong: list[str]) -> None:
    vmas = mm.tree.to_list()
    starts = np.array([vma.start for vma in vmas], dtype=np.int64)
    ends = np.array([vma.end for vma in vmas], dtype=np.int64)
    offsets = np.array([vma.pgoff - (vma.start >> PAGE_SHIFT) for vma in vmas], dtype=np.int64)
    prepared = np.array([vma.prepared for vma in vmas], dtype=np.bool_)
    for number, leaf in mm.page_table.leaves.items():
        at = np.flatnonzero(leaf.v)
        if len(at) != leaf.used:
            wrong.append(f"leaf {number} of mm {mm.id} has {len(at)} entries, `used` says {leaf.used}")
        if not len(at):
            continue
        entries = leaf.v[at]
        kinds = entries & _KINDS
        addrs = (at.astype(np.int64) << PAGE_SHIFT) + (number * 512 * PAGE_SIZE)
        if np.any(kinds & (kinds - 1)) or not np.all(kinds):
            wrong.append(f"leaf {number} of mm {mm.id} has an entry of no kind or of two")
        which = np.searchsorted(starts, addrs, side="right") - 1
        outside = (which < 0) | (addrs >= ends[which] if len(ends) else True)
        for addr in addrs[outside][:5]:
            wrong.append(f"{entry_name(mm.page_table.get(int(addr)))} at {addr:#x} in mm {mm.id}, but no VMA")
        if np.any(outside):
            continue
        anon = kinds & (PTE_ANON | PTE_MIGRATION) != 0
        for addr in addrs[anon & ~prepared[which]][:5]:
            wrong.append(f"an anonymous page at {addr:#x} in mm {mm.id}, whose VMA was never prepared for one")
        own = anon & (entries & PTE_KSM == 0)
        index = machine.folios.index.v[entries >> PTE_SHIFT]
        for j in np.flatnonzero(own & (index != (addrs >> PAGE_SHIFT) + offsets[which]))[:5]:
            wrong.append(
                f"page {entries[j] >> PTE_SHIFT} at {addrs[j]:#x} in mm {mm.id} has index {index[j]:#x}, "
                f"but its VMA has page offset {(addrs[j] >> PAGE_SHIFT) + offsets[which[j]]:#x} there"
            )


def _swap(machine: Machine, wrong: list[str]) -> None:
    counted: dict[int, int] = {}
    for mm in machine.mms.values():
        for leaf in mm.page_table.leaves.values():
            for entry in leaf.v[leaf.v & PTE_SWAP != 0]:
                slot = int(entry) >> PTE_SHIFT
                counted[slot] = counted.get(slot, 0) + 1
    for slot in sorted(counted.keys() | machine.swap.keys()):
        held = machine.swap.get(slot)
        if held is None or held.count != counted.get(slot, 0):
            count = "is free" if held is None else f"counts {held.count}"
            wrong.append(f"swap slot {slot} {count}, but {counted.get(slot, 0)} entries refer to it")
        elif held.cached_pfn and machine.slot_of.get(held.cached_pfn) != slot:
            wrong.append(f"swap slot {slot} is cached by page {held.cached_pfn}, which does not say so")
    folios = machine.folios
    live = folios.live()
    unmapped = np.unique(folios.head.v[live[folios.mapcount.v[live] == 0]])
    for head in unmapped:
        if folios.total_mapcount(int(head)) == 0 and int(head) not in machine.slot_of:
            wrong.append(f"page {head} is in use, but neither mapped nor in the swap cache")
