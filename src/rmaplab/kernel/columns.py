# SPDX-License-Identifier: GPL-2.0-or-later
"""All page-table entries of a snapshot, and the pages behind them, in columns.

A program has some thousand VMAs and some hundred thousand entries: the former are objects (snapshot.py), the
latter rows.  `read` takes page tables and struct pages from memory in blocks, whole tables and whole pages of
struct pages at a time; `of` makes the same columns of a snapshot that holds its entries as objects.

Invariants
- `Entries` ascend by address space (in the order of Snapshot.mms) and address; `Pages` ascend by pfn.
- Every entry has one kind.  ANON entries, and they alone, have a row in `Pages`, which `Entries.page` is the
  number of (-1 for others).

Models mm/memory.c copy_pte_range() and mm/pagewalk.c as to which entries there are; arch/x86/include/asm/
pgtable_64.h and pgtable-invert.h for what is in them; include/linux/page-flags.h and include/linux/mm.h
page_mapcount() for pages; pages.py for where they keep it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rmaplab.kernel.memory import PAGE_SIZE, PTE_FRAME, BadAddress, Memory
from rmaplab.kernel.pages import FolioCounts, PageLayout
from rmaplab.kernel.snapshot import PAGE_SHIFT, Snapshot

Bools = npt.NDArray[np.bool_]
Int8s = npt.NDArray[np.int8]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

# Kinds of entries.
ANON, ZERO, FILE, SWAP, HUGETLB, SPECIAL, EXEC, OTHER, GUARD = range(9)
KINDS: Final = ("anon", "zero", "file", "swap", "hugetlb", "special", "moving stack", "other", "guard")

_PRESENT: Final = 0x1
_WRITE: Final = 0x2
_USER_SLOTS: Final = 256  # of a top-level table: the lower half of the address space
_HUGE: Final = 0x80
_ALL: Final = 0xFFFF_FFFF_FFFF_FFFF
_PROTNONE: Final = 0x100
_SPECIAL: Final = 0x200  # _PAGE_SPECIAL: vm_normal_page() knows no page behind it
_SWAP_EXCLUSIVE: Final = 0x8
_SHIFTS: Final = (39, 30, 21)
_MAPPING_FLAGS: Final = 3
_VM_HUGETLB: Final = 0x400000
_VM_STACK_INCOMPLETE_SETUP: Final = 0x18000  # RAND_READ and SEQ_READ: execve() is still moving it
_SWAP_TYPES: Final = 22  # from here on: migration entries, markers, device memory, poisoned pages
_MARKERS: Final = 31  # SWP_PTE_MARKER
_GUARD_MARKER: Final = 4  # PTE_MARKER_GUARD


class Entries:
    """Page-table entries that are not none.

    mm:     position of the address space in Snapshot.mms
    vma:    position of the VMA among all of `Snapshot`, in the order of address spaces and addresses; -1: none
    number: pfn, or swap entry
    page:   row in Pages, of ANON entries
    """

    def __init__(
        self, mm: Int32s, addr: Int64s, kind: Int8s, number: Int64s, writable: Bools, exclusive: Bools
    ) -> None:
        self.mm: Final = mm
        self.addr: Final = addr
        self.kind: Final = kind
        self.number: Final = number
        self.writable: Final = writable
        self.exclusive: Final = exclusive  # of ANON entries: that of the page
        self.vma: Int64s = np.full(len(addr), -1, dtype=np.int64)
        self.page: Int64s = np.full(len(addr), -1, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.addr)


class Pages:
    """struct page of the anonymous pages that an entry maps; the fields are those of snapshot.Page, and `counts` by the
    first page of a folio."""

    def __init__(self, pfn: Int64s) -> None:
        n = len(pfn)
        self.pfn: Final = pfn
        self.head: Int64s = pfn.copy()
        self.order: Int8s = np.zeros(n, dtype=np.int8)
        self.anon_vma: Words = np.zeros(n, dtype=np.uint64)
        self.index: Int64s = np.zeros(n, dtype=np.int64)
        self.mapcount: Int64s = np.zeros(n, dtype=np.int64)
        self.exclusive: Bools = np.zeros(n, dtype=np.bool_)
        self.ksm: Bools = np.zeros(n, dtype=np.bool_)
        self.swapcache: Bools = np.zeros(n, dtype=np.bool_)
        self.counts: dict[int, FolioCounts] = {}

    def __len__(self) -> int:
        return len(self.pfn)


class Columns:
    """Entries and pages of one snapshot.

    vmas:  its VMAs in order, as Entries.vma counts them; first: where those of each address space begin
    """

    def __init__(self, snapshot: Snapshot, entries: Entries, pages: Pages) -> None:
        self.entries: Final = entries
        self.pages: Final = pages
        self.vmas: Final = [vma for mm in snapshot.mms.values() for vma in mm.vmas]
        self._set_vmas(snapshot)
        anon = entries.kind == ANON
        entries.page[anon] = np.searchsorted(pages.pfn, entries.number[anon])

    def _set_vmas(self, snapshot: Snapshot) -> None:
        entries = self.entries
        first = 0
        for i, mm in enumerate(snapshot.mms.values()):
            low, high = np.searchsorted(entries.mm, (i, i + 1))
            if high > low and mm.vmas:
                starts = np.array([vma.start for vma in mm.vmas], dtype=np.int64)
                ends = np.array([vma.end for vma in mm.vmas], dtype=np.int64)
                addrs = entries.addr[low:high]
                at = np.searchsorted(starts, addrs, side="right") - 1
                inside = (at >= 0) & (addrs < ends[at])
                entries.vma[low:high] = np.where(inside, at + first, -1)
            first += len(mm.vmas)


def of(snapshot: Snapshot) -> Columns:
    """The columns of a snapshot that was read with its entries."""
    kinds = {name: i for i, name in enumerate(KINDS)}
    rows = [
        (i, addr, kinds[entry.kind], entry.number, entry.writable, entry.exclusive)
        for i, mm in enumerate(snapshot.mms.values())
        for addr, entry in sorted(mm.entries.items())
    ]
    mm, addr, kind, number, writable, exclusive = zip(*rows, strict=True) if rows else ((),) * 6
    entries = Entries(
        np.array(mm, dtype=np.int32), np.array(addr, dtype=np.int64), np.array(kind, dtype=np.int8),
        np.array(number, dtype=np.int64), np.array(writable, dtype=np.bool_), np.array(exclusive, dtype=np.bool_),
    )  # fmt: skip
    pages = Pages(np.array(sorted(snapshot.pages), dtype=np.int64))
    for row, pfn in enumerate(pages.pfn.tolist()):
        page = snapshot.pages[pfn]
        pages.head[row], pages.order[row], pages.anon_vma[row] = page.head, page.order, page.anon_vma
        pages.index[row], pages.mapcount[row], pages.exclusive[row] = page.index, page.mapcount, page.exclusive
        pages.ksm[row], pages.swapcache[row] = page.ksm, page.swapcache
        if page.counts is not None:
            pages.counts[page.head] = page.counts
    return Columns(snapshot, entries, pages)


def read(memory: Memory, snapshot: Snapshot) -> Columns:
    """All entries of the address spaces of `snapshot`, which was read without."""
    tables = [_tables(memory, i, mm.pgd) for i, mm in enumerate(snapshot.mms.values())]
    mms = np.concatenate([mms for mms, _, _ in tables] or [np.zeros(0, dtype=np.int32)])
    addrs = np.concatenate([addrs for _, addrs, _ in tables] or [np.zeros(0, dtype=np.int64)])
    raw = np.concatenate([raw for _, _, raw in tables] or [np.zeros(0, dtype=np.uint64)])
    present = raw & _PRESENT != 0
    hidden = ~present & (raw & _PROTNONE != 0)  # PROT_NONE: the frame is stored inverted
    frames = np.where(hidden, ~raw, raw) & PTE_FRAME
    pfns = (frames >> PAGE_SHIFT).astype(np.int64)
    swap_type = (raw >> 59).astype(np.int64)
    swap_offset = ((~raw << 5) >> 14).astype(np.int64)
    kind = np.where(swap_type < _SWAP_TYPES, SWAP, OTHER).astype(np.int8)
    kind[(swap_type == _MARKERS) & (swap_offset & _GUARD_MARKER != 0)] = GUARD
    mapped = present | hidden
    kind[mapped] = FILE
    kind[mapped & (raw & _SPECIAL != 0)] = SPECIAL
    reader = PageReader(memory)
    kind[mapped & (pfns == reader.layout.zero_pfn)] = ZERO
    number = np.where(mapped, pfns, swap_type << 58 | swap_offset)
    entries = Entries(mms, addrs, kind, number, raw & _WRITE != 0, raw & _SWAP_EXCLUSIVE != 0)
    found, pages = reader.anonymous(np.unique(pfns[kind == FILE]))
    anon = (kind == FILE) & np.isin(pfns, found)
    entries.kind[anon] = ANON
    columns = Columns(snapshot, entries, pages)
    entries.exclusive[anon] = pages.exclusive[entries.page[anon]]
    flags = np.array([vma.flags for vma in columns.vmas], dtype=np.uint64)
    own = np.where(flags & _VM_STACK_INCOMPLETE_SETUP == _VM_STACK_INCOMPLETE_SETUP, EXEC, ANON)
    own[flags & _VM_HUGETLB != 0] = HUGETLB
    inside = np.flatnonzero(entries.vma >= 0)
    other = inside[(own[entries.vma[inside]] != ANON) & mapped[inside]]
    if not len(other):
        return columns
    entries.kind[other] = own[entries.vma[other]]
    entries.page[:] = -1
    return Columns(snapshot, entries, _without(pages, entries))


def _without(pages: Pages, entries: Entries) -> Pages:
    """Those pages that ANON entries are left for."""
    keep = np.isin(pages.pfn, entries.number[entries.kind == ANON])
    kept = Pages(pages.pfn[keep])
    for name in ("head", "order", "anon_vma", "index", "mapcount", "exclusive", "ksm", "swapcache"):
        setattr(kept, name, getattr(pages, name)[keep])
    heads = set(kept.head.tolist())
    kept.counts = {head: counts for head, counts in pages.counts.items() if head in heads}
    return kept


def _tables(memory: Memory, mm: int, pgd: int) -> tuple[Int32s, Int64s, Words]:
    """Everything in the page table at `pgd`: mm, address, entry; a huge entry as one for each of its pages."""
    level: list[tuple[int, int]] = [(0, pgd - memory.direct_map)]  # first address, physical address of the table
    addrs: list[Int64s] = []
    entries: list[Words] = []
    for shift in _SHIFTS:
        below: list[tuple[int, int]] = []
        for base, table in level:
            words = _words(memory, table)
            at = np.flatnonzero(words[: _USER_SLOTS if shift == 39 else None])
            for i, entry in zip(at.tolist(), words[at].tolist(), strict=True):
                addr = base + (i << shift)
                if entry & _HUGE and entry & (_PRESENT | _PROTNONE):
                    pages = np.arange(1 << shift - PAGE_SHIFT, dtype=np.uint64)
                    step: Words = pages << np.uint64(PAGE_SHIFT)
                    flags = np.uint64(entry & ~PTE_FRAME & ~_HUGE & _ALL)
                    first = (entry if entry & _PRESENT else ~entry) & PTE_FRAME & -(1 << shift)  # below are flags
                    frames: Words = step + np.uint64(first)
                    addrs.append(addr + step.astype(np.int64))
                    entries.append((frames if entry & _PRESENT else ~frames & np.uint64(PTE_FRAME)) | flags)
                elif entry & _PRESENT:
                    below.append((addr, entry & PTE_FRAME))
                else:  # a large folio under migration
                    addrs.append(np.array([addr], dtype=np.int64))
                    entries.append(np.array([entry], dtype=np.uint64))
        level = below
    for base, table in level:
        words = _words(memory, table)
        at = np.flatnonzero(words)
        addrs.append(base + (at.astype(np.int64) << PAGE_SHIFT))
        entries.append(words[at])
    if not addrs:
        return np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64)
    every = np.concatenate(addrs)
    order = np.argsort(every, kind="stable")
    return np.full(len(every), mm, dtype=np.int32), every[order], np.concatenate(entries)[order]


def _words(memory: Memory, physical: int) -> Words:
    return np.frombuffer(memory.read(memory.direct_map + physical, PAGE_SIZE), dtype="<u8").astype(np.uint64)


class PageReader:
    """Reads struct pages, a memory page of them at a time."""

    def __init__(self, memory: Memory) -> None:
        self._memory: Final = memory
        self.layout: Final = PageLayout(memory)

    def anonymous(self, pfns: Int64s) -> tuple[Int64s, Pages]:
        """Those of `pfns` (ascending) that are anonymous pages, and their rows."""
        layout = self.layout
        own = self._read(pfns, layout.dtype)
        heads = layout.heads_of(pfns, own["head"])
        of_head = own.copy()
        tail = heads != pfns
        of_head[tail] = self._read(heads[tail], layout.dtype)
        nr_pages = np.zeros(len(pfns), dtype=np.int64)
        large = tail & (of_head["flags"] & layout.head_flag != 0)
        nr_pages[large] = 1 << self._read(heads[large] + 1, layout.tail_dtype)["order"].astype(np.int64)
        wrong = (own["head"] & 1 != 0) & ~((heads < pfns) & (pfns < heads + nr_pages))
        for row in np.flatnonzero(wrong).tolist():
            raise BadAddress(f"page {pfns[row]:#x} says that it is a tail of {heads[row]:#x}, which has no such tail")
        anon = of_head["mapping"] & 1 != 0
        pages = Pages(pfns[anon])
        own, of_head = own[anon], of_head[anon]
        pages.head = heads[anon]
        mapping = of_head["mapping"]
        pages.ksm = mapping & _MAPPING_FLAGS == _MAPPING_FLAGS
        pages.anon_vma = mapping & ~np.uint64(_MAPPING_FLAGS)
        pages.index = of_head["index"].astype(np.int64) + pages.pfn - pages.head
        pages.exclusive = own["flags"] & layout.anon_exclusive != 0
        pages.swapcache = of_head["flags"] & layout.in_swapcache == layout.in_swapcache
        pages.mapcount = own["mapcount"].astype(np.int64) + 1
        large = of_head["flags"] & layout.head_flag != 0
        tails = self._read(pages.head[large] + 1, layout.tail_dtype)
        pages.order[large] = tails["order"]
        double = (tails["flags"] & layout.double_map != 0).astype(np.int64)
        whole = tails["whole"].astype(np.int64) + 1
        pages.mapcount[large] += whole - double
        # Where one entry maps a folio whole, its first page stands for all (PageAnonExclusive()).
        pages.exclusive[large] = np.where(
            whole > 0, of_head["flags"][large] & layout.anon_exclusive != 0, pages.exclusive[large]
        )
        for head, row in dict(zip(pages.head[large].tolist(), range(len(tails)), strict=True)).items():
            counts = layout.counts(tails[row])
            if counts is not None:
                pages.counts[head] = counts
        return pages.pfn, pages

    def _read(self, pfns: Int64s, dtype: Any) -> npt.NDArray[Any]:
        """struct pages of `pfns`."""
        result = np.zeros(len(pfns), dtype=dtype)
        per_block = PAGE_SIZE // self.layout.size
        blocks, which = np.unique(pfns // per_block, return_inverse=True)
        if len(blocks):
            start = self._memory.vmemmap
            data = b"".join(
                self._memory.read(start + block * per_block * self.layout.size, PAGE_SIZE) for block in blocks.tolist()
            )
            rows = np.frombuffer(data, dtype=dtype)
            result[:] = rows[which * per_block + pfns % per_block]
        return result
