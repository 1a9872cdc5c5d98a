# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel holds at one moment: address spaces, VMAs, the anon_vma graph, page tables, pages.

`Reader` reads it all from a kernel that stands still.  Objects are named by their kernel addresses; nothing is
interpreted here beyond what the structures say (see isomorphism.py for what it means, and consistency.py for
what must hold in it).

From include/linux/mm_types.h, include/linux/rmap.h, include/linux/page-flags.h, lib/maple_tree.c (reading only),
arch/x86/include/asm/pgtable_64.h (what swap entries look like).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from rmaplab.kernel.memory import (
    PTE_FRAME,
    BadAddress,
    Memory,
    Record,
    has_field,
    has_symbol,
    structure,
    symbol,
)
from rmaplab.kernel.pages import FolioCounts, PageLayout

PAGE_SHIFT: Final = 12
_ADDRESS_MAX: Final = (1 << 64) - 1
_PRESENT: Final = 0x1
_WRITE: Final = 0x2
_HUGE: Final = 0x80
_HUGE_PAGES: Final = 512
_PROTNONE: Final = 0x100
_MAPPING_ANON: Final = 1
_MAPPING_FLAGS: Final = 3  # PAGE_MAPPING_ANON and PAGE_MAPPING_MOVABLE; both: KSM
_STABLE_FLAG: Final = 0x200  # of an rmap_item's address: it is on a stable node (mm/ksm.c)
_FIRST_SPECIAL_SWAP_TYPE: Final = 22  # swap "types" from here on are migration, device, marker entries
_MARKER_SWAP_TYPE: Final = 31  # SWP_PTE_MARKER: the last of them all (include/linux/swap.h)
_GUARD_MARKER: Final = 4  # PTE_MARKER_GUARD (include/linux/swapops.h)


@dataclass(slots=True, eq=False)
class Avc:
    """struct anon_vma_chain"""

    address: int
    vma: int
    anon_vma: int


@dataclass(slots=True, eq=False)
class TreeNode:
    """An AVC in an interval tree: its children there (0: none) and the last page offset below it."""

    avc: int
    left: int
    right: int
    subtree_last: int


@dataclass(slots=True, eq=False)
class AnonVma:
    """struct anon_vma; `tree` has the nodes of its interval tree in order."""

    address: int
    root: int
    parent: int
    refcount: int
    num_children: int
    num_active_vmas: int
    tree: list[TreeNode] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Vma:
    """struct vm_area_struct; `chain` has its AVCs, the newest first.

    pgoff:      of `start`, in the file or as /proc/PID/maps shows it
    anon_pgoff: of `start`, for anonymous pages; a number of its own since 7.3, `pgoff` before
    attached:   it says itself that it is in its address space's tree (vm_refcnt, or `detached`)
    special:    the vDSO and its data
    """

    address: int
    mm: int
    start: int
    end: int
    pgoff: int
    flags: int
    file: int
    anon_vma: int
    anon_pgoff: int
    attached: bool = True
    inode: int = 0
    special: bool = False
    chain: list[int] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Page:
    """struct page of an anonymous page.

    head, order:     of its folio
    anon_vma:        what its folio points to (of a KSM page: its stable node)
    index:           its own page offset
    first_exclusive: about the first page of the folio, mapped or not
    swap:            the swap entry whose contents it caches
    counts:          of a large folio, where the kernel has them
    """

    pfn: int
    head: int
    order: int = 0
    anon_vma: int = 0
    index: int = 0
    mapcount: int = 0
    exclusive: bool = False
    first_exclusive: bool = False
    ksm: bool = False
    swapcache: bool = False
    swap: int = 0
    counts: FolioCounts | None = None


@dataclass(slots=True, eq=False)
class Entry:
    """A page-table entry that is not none.

    kind: "anon", "zero", "file", "swap", "guard", "other"
    number: pfn, or swap entry
    huge:   it is one of those that an entry for 2 MiB stands for
    """

    kind: str
    number: int
    writable: bool
    exclusive: bool
    huge: bool = False


@dataclass(slots=True, eq=False)
class Mm:
    """struct mm_struct, its VMAs in order, and by address the entries in those that were asked for.  `id` is what large
    folios call it by (mm_id; 0 where they do not)."""

    address: int
    pgd: int
    mmap_base: int
    start_brk: int
    brk: int
    id: int = 0
    pids: list[int] = field(default_factory=list)
    vmas: list[Vma] = field(default_factory=list)
    entries: dict[int, Entry] = field(default_factory=dict)


class Snapshot:
    """All of it."""

    def __init__(self) -> None:
        self.two_offsets = False  # a VMA has a page offset for anonymous pages beside that in the file
        self.mms: dict[int, Mm] = {}
        self.by_pid: dict[int, Mm] = {}
        self.vmas: dict[int, Vma] = {}
        self.avcs: dict[int, Avc] = {}
        self.anon_vmas: dict[int, AnonVma] = {}
        self.pages: dict[int, Page] = {}  # anonymous ones that an entry maps, by pfn
        # Of each KSM page in `pages`: where its stable node says that it is mapped (mm, address), the newest first.
        self.ksm_places: dict[int, list[tuple[int, int]]] = {}
        self.ksm_owners: dict[int, list[int]] = {}  # the anon_vma that each of them refers to, where it was asked for
        self.ksm_holds: Counter[int] = Counter()  # references that KSM has to anon_vmas, stale ones included
        self.ksm_unused: Counter[int] = Counter()  # by root: anon_vmas that nothing but such a reference keeps


class Reader:
    """Reads snapshots.

    wanted: which VMAs' page tables to read (default: all of them)
    """

    def __init__(self, memory: Memory, wanted: Callable[[Vma], bool] = lambda vma: True) -> None:
        program = memory.program
        self._memory: Final = memory
        self._wanted: Final = wanted
        self._task: Final = Record(program, "struct task_struct", "mm")
        identity = ["mm_id"] * has_field(program, "struct mm_struct", "mm_id")
        self._mm: Final = Record(
            program, "struct mm_struct", "mm_mt.ma_root", "pgd", "mmap_base", "start_brk", "brk", *identity
        )
        self._two_offsets: Final = has_field(program, "struct vm_area_struct", "__vm_anon_pgoff_lo")
        self._says_attached: Final = has_field(program, "struct vm_area_struct", "vm_refcnt")
        self._says_detached: Final = has_field(program, "struct vm_area_struct", "detached")
        self._vma: Final = Record(
            program, "struct vm_area_struct", "vm_start", "vm_end", "vm_pgoff", "vm_flags", "vm_file", "anon_vma",
            "anon_vma_chain.next", "vm_mm", "vm_ops", *["vm_refcnt"] * self._says_attached,
            *["detached"] * self._says_detached, *["__vm_anon_pgoff_lo", "__vm_anon_pgoff_hi"] * self._two_offsets,
        )  # fmt: skip
        self._chain_head: Final = self._vma.offset["anon_vma_chain.next"]
        self._file: Final = Record(program, "struct file", "f_inode")
        self._avc: Final = Record(
            program, "struct anon_vma_chain", "vma", "anon_vma", "same_vma.next", "rb.rb_left", "rb.rb_right",
            "rb_subtree_last",
        )  # fmt: skip
        self._same_vma: Final = self._avc.offset["same_vma.next"]
        self._rb: Final = self._avc.offset["rb.rb_left"] - _offset(program, "struct rb_node", "rb_left")
        self._anon_vma: Final = Record(
            program, "struct anon_vma", "root", "parent", "refcount", "num_children", "num_active_vmas",
            "rb_root.rb_root.rb_node",
        )  # fmt: skip
        self._node: Final = _maple_shapes(program)
        self.pages: Final = PageLayout(memory)
        self._ksm: Final = _KsmReader(program) if has_symbol(program, "ksm_mm_head") else None
        self._huge_zero: Final[int] = (
            symbol(program, "huge_zero_pfn").address_of_().value_() if has_symbol(program, "huge_zero_pfn") else 0
        )
        self._special_ops: Final[int] = symbol(program, "special_mapping_vmops").address_of_().value_()

    def offset(self, structure: str, field: str) -> int:
        """Where a field is: of "vma", "avc", "anon_vma", or (by the names of pages.FIELDS) of "page"."""
        offsets = {
            "vma": self._vma.offset, "avc": self._avc.offset, "anon_vma": self._anon_vma.offset,
            "page": self.pages.offset,
        }  # fmt: skip
        return offsets[structure][field]

    # All of it

    def read(self, tasks: Iterable[tuple[int, int]]) -> Snapshot:
        """The state of the tasks given as (pid, address of task_struct); kernel threads are passed over."""
        snapshot = Snapshot()
        snapshot.two_offsets = self._two_offsets
        for pid, task in tasks:
            (address,) = self._task.at(self._memory, task)
            if address == 0:
                continue
            mm = snapshot.mms.get(address)
            if mm is None:
                mm = self._read_mm(snapshot, address)
            mm.pids.append(pid)
            snapshot.by_pid[pid] = mm
        for anon_vma in list(snapshot.anon_vmas.values()):
            self._read_tree(snapshot, anon_vma)
        if self._ksm is not None:
            self._read_ksm(snapshot, self._ksm)
        return snapshot

    def _read_ksm(self, snapshot: Snapshot, ksm: _KsmReader) -> None:
        memory = self._memory
        for page in snapshot.pages.values():
            if page.ksm:
                snapshot.ksm_places[page.pfn] = ksm.places(memory, page.anon_vma)
        snapshot.ksm_holds = ksm.holds(memory)
        for address in snapshot.ksm_holds:
            root, *_, top = self._anon_vma.at(memory, address)
            if top == 0 and root != address:
                snapshot.ksm_unused[root] += 1

    def _read_mm(self, snapshot: Snapshot, address: int) -> Mm:
        root, pgd, mmap_base, start_brk, brk, *identity = self._mm.at(self._memory, address)
        mm = Mm(address, pgd, mmap_base, start_brk, brk, identity[0] if identity else 0)
        snapshot.mms[address] = mm
        for pointer in self._maple(root):
            vma = self._read_vma(snapshot, pointer)
            mm.vmas.append(vma)
            if self._wanted(vma):
                self._read_entries(snapshot, mm, vma.start, vma.end)
        return mm

    def _read_vma(self, snapshot: Snapshot, address: int) -> Vma:
        start, end, pgoff, flags, file, anon_vma, first, mm, ops, *more = self._vma.at(self._memory, address)
        anon_pgoff = more.pop() << 32 | more.pop() if self._two_offsets else pgoff
        vma = Vma(address, mm, start, end, pgoff, flags, file, anon_vma, anon_pgoff)
        if self._says_attached or self._says_detached:
            vma.attached = (more[0] != 0) == self._says_attached
        vma.special = ops == self._special_ops
        if file:
            (vma.inode,) = self._file.at(self._memory, file)
        snapshot.vmas[address] = vma
        head = address + self._chain_head
        while first != head:
            at = first - self._same_vma
            owner, anon, following, _, _, _ = self._avc.at(self._memory, at)
            vma.chain.append(at)
            if at in vma.chain[:-1]:
                break  # a damaged list that runs in a circle: consistency.py will say so
            snapshot.avcs.setdefault(at, Avc(at, owner, anon))
            if anon not in snapshot.anon_vmas:
                self.read_anon_vma(snapshot, anon)
            first = following
        if anon_vma and anon_vma not in snapshot.anon_vmas:
            self.read_anon_vma(snapshot, anon_vma)
        return vma

    def read_anon_vma(self, snapshot: Snapshot, address: int) -> None:
        """Add an anon_vma, and those above it, without their trees."""
        while address and address not in snapshot.anon_vmas:
            try:
                root, parent, refcount, children, active, _ = self._anon_vma.at(self._memory, address)
            except BadAddress:
                return  # who points there will not find it in the snapshot
            snapshot.anon_vmas[address] = AnonVma(address, root, parent, refcount, children, active)
            address = parent

    def _read_tree(self, snapshot: Snapshot, anon_vma: AnonVma) -> None:
        *_, node = self._anon_vma.at(self._memory, anon_vma.address)
        path: list[tuple[int, int, int]] = []  # AVC, its right child, its subtree_last; not visited yet
        lefts: dict[int, int] = {}
        seen: set[int] = set()
        while (node or path) and len(anon_vma.tree) < 1 << 20:
            if node:
                at = node - self._rb
                if at in seen:
                    break  # a damaged tree
                seen.add(at)
                try:
                    owner, anon, _, left, right, subtree_last = self._avc.at(self._memory, at)
                except BadAddress:
                    break
                if at not in snapshot.avcs:
                    snapshot.avcs[at] = Avc(at, owner, anon)
                lefts[at] = left
                path.append((at, right, subtree_last))
                node = left
            else:
                at, node, subtree_last = path.pop()
                left = lefts[at]
                anon_vma.tree.append(
                    TreeNode(at, left - self._rb if left else 0, node - self._rb if node else 0, subtree_last)
                )

    # The maple tree

    def _maple(self, root: int) -> Iterator[int]:
        """The entries of a maple tree, ascending."""
        if root & 3 != 2:  # xa_is_node(): a tree of one entry has it in place of a node
            if root:
                yield root
            return
        yield from self._maple_node(root, _ADDRESS_MAX)

    def _maple_node(self, entry: int, maximum: int) -> Iterator[int]:
        kind = entry >> 3 & 15
        record, nr_pivots, nr_slots = self._node[kind]
        values = record.at(self._memory, entry & ~0xFF)
        pivots, slots = values[:nr_pivots], values[nr_pivots:]
        for i in range(nr_slots):
            last = pivots[i] if i < nr_pivots else maximum
            if last == 0 and i > 0:
                last = maximum
            slot = slots[i]
            if kind == 1:
                if slot:
                    yield slot
            else:
                yield from self._maple_node(slot, last)
            if last >= maximum:
                return

    # Page tables

    def _read_entries(self, snapshot: Snapshot, mm: Mm, start: int, end: int) -> None:
        """Entries of [start, end) in `mm`, and the anonymous pages that they map."""
        memory = self._memory
        addr = start
        table = mm.pgd - memory.direct_map
        while addr < end:
            base = table
            entry = 0
            for shift in (39, 30, 21):
                entry = memory.word(memory.direct_map + base + (addr >> shift & 511) * 8)
                if not entry & _PRESENT or entry & _HUGE:
                    break
                base = entry & PTE_FRAME
            else:
                stop = min(end, (addr | 0x1FFFFF) + 1)
                entries = memory.table(base)
                for i in range(addr >> 12 & 511, (addr >> 12 & 511) + (stop - addr >> 12)):
                    if entries[i]:
                        at = (addr & ~0x1FFFFF) + (i << PAGE_SHIFT)
                        mm.entries[at] = self._entry(snapshot, entries[i])
                addr = stop
                continue
            stop = min(end, (addr | (1 << shift) - 1) + 1)
            if entry & _HUGE and entry & (_PRESENT | _PROTNONE):
                frame = (entry if entry & _PRESENT else ~entry) & PTE_FRAME & -(1 << shift)
                first = (frame >> 12) + (addr >> 12 & (1 << shift - 12) - 1)
                for i in range(stop - addr >> PAGE_SHIFT):
                    mm.entries[addr + (i << PAGE_SHIFT)] = self._present(snapshot, entry, first + i, True)
            addr = stop

    def _entry(self, snapshot: Snapshot, entry: int) -> Entry:
        if entry & _PRESENT:
            return self._present(snapshot, entry, (entry & PTE_FRAME) >> PAGE_SHIFT)
        if entry & _PROTNONE:  # the frame is stored inverted (arch/x86/include/asm/pgtable-invert.h)
            return self._present(snapshot, entry, (~entry & PTE_FRAME) >> PAGE_SHIFT)
        kind = entry >> 59
        offset = (~entry & _ADDRESS_MAX) << 5 & _ADDRESS_MAX
        number = kind << 58 | offset >> 14
        if kind < _FIRST_SPECIAL_SWAP_TYPE:
            return Entry("swap", number, False, entry & 8 != 0)
        guard = kind == _MARKER_SWAP_TYPE and offset >> 14 & _GUARD_MARKER
        return Entry("guard" if guard else "other", number, False, False)

    def _present(self, snapshot: Snapshot, entry: int, pfn: int, huge: bool = False) -> Entry:
        writable = entry & _WRITE != 0
        if pfn == self.pages.zero_pfn or (huge and self._is_huge_zero(pfn)):
            return Entry("zero", 0, writable, False, huge)
        page = snapshot.pages.get(pfn)
        if page is None:
            page = self._read_page(pfn)
            if page is None:
                return Entry("file", pfn, writable, False, huge)
            snapshot.pages[pfn] = page
        return Entry("anon", pfn, writable, page.first_exclusive if huge else page.exclusive, huge)

    def _is_huge_zero(self, pfn: int) -> bool:
        if not self._huge_zero:
            return False
        first = self._memory.word(self._huge_zero)
        return first <= pfn < first + _HUGE_PAGES

    def _read_page(self, pfn: int) -> Page | None:
        """The struct page of `pfn`, if it is anonymous."""
        memory, layout = self._memory, self.pages
        flags, info, mapping, index, mapcount, private = layout.record.at(memory, layout.address(pfn))
        page = Page(pfn, layout.head_of(pfn, info))
        page.mapcount = mapcount + 1
        page.exclusive = flags & layout.anon_exclusive != 0
        if info & 1:
            flags, _, mapping, index, _, private = layout.record.at(memory, layout.address(page.head))
            index += pfn - page.head
            nr_pages = 1 << layout.order(memory, page.head) if flags & layout.head_flag else 0
            if not page.head < pfn < page.head + nr_pages:
                raise BadAddress(f"page {pfn:#x} says that it is a tail of {page.head:#x}, which has no such tail")
        page.first_exclusive = flags & layout.anon_exclusive != 0
        if not mapping & _MAPPING_ANON:
            return None
        if flags & layout.head_flag:
            page.order = layout.order(memory, page.head)
            first_tail = layout.tail(memory, page.head)
            page.counts = layout.counts(first_tail)
            whole, double = layout.whole(first_tail)
            page.mapcount += whole - double
        page.ksm = mapping & _MAPPING_FLAGS == _MAPPING_FLAGS
        page.anon_vma = mapping & ~_MAPPING_FLAGS
        page.index = index
        page.swapcache = flags & layout.in_swapcache == layout.in_swapcache
        page.swap = private + (pfn - page.head) if page.swapcache else 0
        return page


class _KsmReader:
    """What KSM remembers (mm/ksm.c): stable nodes, and rmap_items, which are the places of their pages."""

    def __init__(self, program: Any) -> None:
        self._head: Final[int] = program["ksm_mm_head"].address_of_().value_()
        self._slot: Final = Record(program, "struct ksm_mm_slot", "slot.mm_node.next", "rmap_list")
        self._mm_node: Final = self._slot.offset["slot.mm_node.next"]
        self._item: Final = Record(
            program, "struct ksm_rmap_item", "rmap_list", "anon_vma", "mm", "address", "hlist.next"
        )
        self._hlist: Final = self._item.offset["hlist.next"]
        self._node: Final = Record(program, "struct ksm_stable_node", "hlist.first")

    def places(self, memory: Memory, node: int) -> list[tuple[int, int]]:
        """(mm, address) of what is on a stable node, the newest first."""
        places = []
        (at,) = self._node.at(memory, node) if node else (0,)
        while at:
            _, _, mm, address, at = self._item.at(memory, at - self._hlist)
            places.append((mm, address & -4096))
        return places

    def owners(self, memory: Memory, node: int) -> list[int]:
        """The anon_vmas of the same, which outlive address spaces."""
        owners = []
        (at,) = self._node.at(memory, node) if node else (0,)
        while at:
            _, anon_vma, _, _, at = self._item.at(memory, at - self._hlist)
            owners.append(anon_vma)
        return owners

    def holds(self, memory: Memory) -> Counter[int]:
        """How many references KSM has to each anon_vma, for all address spaces that it knows."""
        holds: Counter[int] = Counter()
        first, _ = self._slot.at(memory, self._head)
        at = first
        while at != self._head + self._mm_node:
            at, item = self._slot.at(memory, at - self._mm_node)
            while item:
                item, anon_vma, _, address, _ = self._item.at(memory, item)
                if address & _STABLE_FLAG:
                    holds[anon_vma] += 1
        return holds


def _offset(program: Any, type_name: str, path: str) -> int:
    return Record(program, type_name, path).offset[path]


def _maple_shapes(program: Any) -> dict[int, tuple[Record, int, int]]:
    """By enum maple_type: how to read a node, its number of pivots, and of slots."""
    shapes: dict[int, tuple[Record, int, int]] = {}
    for kind, name in ((1, "maple_range_64"), (2, "maple_range_64"), (3, "maple_arange_64")):
        record = _Words(program, f"struct {name}", "pivot", "slot")
        nr_pivots, nr_slots = record.lengths
        shapes[kind] = (record, nr_pivots, nr_slots)
    return shapes


class _Words(Record):
    """Arrays of words of a structure, one after the other."""

    def __init__(self, program: Any, type_name: str, *names: str) -> None:
        super().__init__(program, type_name, *names)
        kind = structure(program, type_name)
        self.lengths: Final = [int(kind.member(name).type.length) for name in names]
        firsts = [self.offset[name] // 8 for name in names]
        self._ranges: Final = [(at, at + length) for at, length in zip(firsts, self.lengths, strict=True)]
        self._nr_words: Final = self.size // 8

    def at(self, memory: Memory, address: int) -> tuple[int, ...]:
        words = memoryview(memory.read(address, self._nr_words * 8)).cast("Q")
        return tuple(word for first, last in self._ranges for word in words[first:last])
