# SPDX-License-Identifier: GPL-2.0-or-later
"""Equality of a kernel's state and the model's, up to the names of objects.

Addresses of structures, page frame numbers and swap slots differ between a kernel and the model; everything
else must not.  Processes correspond by history; from there every other correspondence follows, and each must be
one to one:

    process -> address space -> VMA (by start address) -> anon_vma (its own; then by position on its chain)
                                                       -> page (by address) -> anon_vma of its folio
                                                       -> swap slot (by address)

Compared are, of a VMA: range, page offset, flags, file, own anon_vma, the chain in its order; of an anon_vma:
root, parent, refcount, child and active counts, and the VMAs in its interval tree in their order; of an entry:
kind, page or slot, whether it is writable, whether it is one for 2 MiB; of a page: mapcount, exclusivity, index,
anon_vma, KSM, the folio's order, the page's place in it, whether its first page is exclusive, mapped or not, and which
address spaces it counts; of a swap slot: whether its entries are exclusive.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, cast

import msgspec

from rmaplab.kernel import snapshot as real
from rmaplab.kernel.guest import PROGRAM
from rmaplab.mm.folio import FOLIO_KSM
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import (
    PTE_ANON,
    PTE_EXCLUSIVE,
    PTE_FILE,
    PTE_GUARD,
    PTE_SHIFT,
    PTE_SWAP,
    PTE_WRITE,
    PTE_ZERO,
)
from rmaplab.mm.vma import MM, PAGE_SIZE, VMA
from rmaplab.rmap.anon_vma import AnonVma, AnonVmaChain, AnonVmaRmap, VmaFields
from rmaplab.sync.work import Tally

_LAST_PGOFF: Final = (1 << 62) - 1
_FLAG_NAMES: Final = {
    0x1: "READ", 0x2: "WRITE", 0x4: "EXEC", 0x8: "SHARED", 0x10: "MAYREAD", 0x20: "MAYWRITE", 0x40: "MAYEXEC",
    0x80: "MAYSHARE", 0x100: "GROWSDOWN", 0x400: "PFNMAP", 0x2000: "LOCKED", 0x4000: "IO", 0x8000: "SEQ_READ",
    0x10000: "RAND_READ", 0x20000: "DONTCOPY", 0x40000: "DONTEXPAND", 0x80000: "LOCKONFAULT",
    0x100000: "ACCOUNT", 0x200000: "NORESERVE", 0x400000: "HUGETLB", 0x2000000: "WIPEONFORK",
    0x4000000: "DONTDUMP", 0x8000000: "SOFTDIRTY", 0x10000000: "MIXEDMAP", 0x20000000: "HUGEPAGE",
    0x40000000: "NOHUGEPAGE", 0x80000000: "MERGEABLE",
}  # fmt: skip


class Difference(msgspec.Struct, frozen=True):
    """Something that the kernel and the model do not agree on.

    where:  process, VMA, page: what it is about
    what:   which property
    kernel, model: what either has
    """

    where: str
    what: str
    kernel: str
    model: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}\n  kernel: {self.kernel}\n  model:  {self.model}"


class _Found(Exception):
    def __init__(self, where: str, what: str, kernel: object, model: object) -> None:
        self.difference: Final = Difference(where, what, _text(kernel), _text(model))


def _text(value: object) -> str:
    return hex(value) if isinstance(value, int) and not isinstance(value, bool) and value > 9 else str(value)


class _OneToOne:
    """A correspondence between kernel addresses (or numbers) and the model's numbers."""

    def __init__(self, kind: str) -> None:
        self._kind: Final = kind
        self.to_model: Final[dict[int, int]] = {}
        self._to_kernel: Final[dict[int, int]] = {}

    def bind(self, where: str, what: str, kernel: int, model: int) -> bool:
        """Whether the pair is new.  :raises _Found: either side corresponds to something else already"""
        known = self.to_model.get(kernel)
        if known is None and model not in self._to_kernel:
            self.to_model[kernel] = model
            self._to_kernel[model] = kernel
            return True
        if known != model:
            before = self._to_kernel.get(model)
            raise _Found(
                where,
                what,
                f"{self._kind} {kernel:#x}" + ("" if known is None else f", which is the model's {known}"),
                f"{self._kind} {model}" + ("" if before is None else f", which is the kernel's {before:#x}"),
            )
        return False


def difference(machine: Machine, snapshot: real.Snapshot, pids: Mapping[int, int]) -> Difference | None:
    """The first difference between `snapshot` and `machine`, whose leader is the anon_vma design.

    pids: process of the history -> process of the kernel
    """
    try:
        _Comparison(machine, snapshot).compare(pids)
    except _Found as found:
        return found.difference
    return None


class _Comparison:
    def __init__(self, machine: Machine, snapshot: real.Snapshot) -> None:
        self._machine = machine
        self._design = cast(AnonVmaRmap, machine.leader)
        self._snapshot = snapshot
        self._tally = Tally("")
        self._mm_ids: Final = {mm.id: address for address, mm in snapshot.mms.items()}
        self._mms = _OneToOne("address space")
        self._files = _OneToOne("file")
        self._anon_vmas = _OneToOne("anon_vma")
        self._pages = _OneToOne("page")
        self._slots = _OneToOne("swap slot")
        self._vmas: dict[int, VMA] = {}  # kernel address -> VMA
        self._model_vmas: dict[int, int] = {}  # id -> kernel address
        self._model_anon_vmas: dict[int, AnonVma] = {}  # by number

    def compare(self, pids: Mapping[int, int]) -> None:
        if set(pids) != set(self._machine.processes):
            raise _Found("processes", "which live", sorted(pids), sorted(self._machine.processes))
        pairs: list[tuple[int, MM, real.Mm]] = []
        for pid, guest_pid in sorted(pids.items()):
            mm = self._machine.mm_of(pid)
            there = self._snapshot.by_pid.get(guest_pid)
            if there is None:
                raise _Found(f"process {pid}", "its memory", "none", mm)
            if self._mms.bind(f"process {pid}", "its address space", there.address, mm.id):
                pairs.append((pid, mm, there))
        for pid, mm, there in pairs:
            self._compare_vmas(pid, mm, there)
        for pid, mm, _ in pairs:
            self._compare_chains(pid, mm)
        for kernel, number in list(self._anon_vmas.to_model.items()):
            self._compare_anon_vma(self._snapshot.anon_vmas[kernel], self._model_anon_vmas[number])
        for pid, mm, there in pairs:
            self._compare_entries(pid, mm, there)

    # Geometry

    def _compare_vmas(self, pid: int, mm: MM, there: real.Mm) -> None:
        model = mm.tree.to_list()
        kernel = [vma for vma in there.vmas if belongs(vma)]
        ranges = [(vma.start, vma.end) for vma in kernel]
        expected = [(vma.start, vma.end) for vma in model]
        if ranges != expected:
            raise _Found(
                f"process {pid}", "its VMAs", _ranges(set(ranges) - set(expected), len(ranges)),
                _ranges(set(expected) - set(ranges), len(expected)),
            )  # fmt: skip
        for mine, its in zip(model, kernel, strict=True):
            where = _place(pid, mine)
            if its.pgoff != mine.pgoff:
                raise _Found(where, "page offset", its.pgoff, mine.pgoff)
            if its.anon_pgoff != mine.anon_pgoff:
                raise _Found(where, "page offset of anonymous pages", its.anon_pgoff, mine.anon_pgoff)
            if its.flags != mine.flags:
                raise _Found(where, "flags", _flags(its.flags, mine.flags), _flags(mine.flags, its.flags))
            if (its.inode != 0) != (mine.file is not None):
                raise _Found(where, "is a file mapping", its.inode != 0, mine.file is not None)
            if mine.file is not None:
                self._files.bind(where, "file", its.inode, mine.file.id)
            if (its.anon_vma != 0) != mine.prepared:
                raise _Found(where, "has an anon_vma", its.anon_vma != 0, mine.prepared)
            self._vmas[its.address] = mine
            self._model_vmas[mine.id] = its.address

    # The anon_vma graph

    def _compare_chains(self, pid: int, mm: MM) -> None:
        for vma in mm.tree.to_list():
            where = _place(pid, vma)
            its = self._snapshot.vmas[self._model_vmas[vma.id]]
            fields = cast("VmaFields | None", vma.rmap[self._design.slot])
            chain: list[AnonVmaChain] = [] if fields is None else fields.chain
            if len(its.chain) != len(chain):
                raise _Found(where, "links on its chain", len(its.chain), len(chain))
            if fields is None:
                continue
            assert fields.anon_vma is not None
            self._bind_anon_vma(where, "its own anon_vma", its.anon_vma, fields.anon_vma)
            for position, (address, avc) in enumerate(zip(reversed(its.chain), chain, strict=True)):
                anon_vma = self._snapshot.avcs[address].anon_vma
                self._bind_anon_vma(where, f"link {position} of its chain, from the oldest", anon_vma, avc.anon_vma)

    def _bind_anon_vma(self, where: str, what: str, kernel: int, model: AnonVma) -> None:
        if self._anon_vmas.bind(where, what, kernel, model.number):
            self._model_anon_vmas[model.number] = model
            its = self._snapshot.anon_vmas[kernel]
            self._bind_anon_vma(where, f"root above {what}", its.root, model.root)
            self._bind_anon_vma(where, f"parent above {what}", its.parent, model.parent)

    def _compare_anon_vma(self, its: real.AnonVma, mine: AnonVma) -> None:
        where = f"anon_vma {its.address:#x}, the model's {mine.number}"
        if self._anon_vmas.to_model.get(its.root) != mine.root.number:
            raise _Found(where, "root", its.root, mine.root.number)
        if self._anon_vmas.to_model.get(its.parent) != mine.parent.number:
            raise _Found(where, "parent", its.parent, mine.parent.number)
        refcounts = refcount_of_kernel(self._snapshot, its), refcount_of_model(self._design, mine)
        if refcounts[0] != refcounts[1]:
            raise _Found(where, "refcount, without those of KSM", *refcounts)
        if its.num_children != mine.num_children:
            raise _Found(where, "num_children", its.num_children, mine.num_children)
        if its.num_active_vmas != mine.num_active_vmas:
            raise _Found(where, "num_active_vmas", its.num_active_vmas, mine.num_active_vmas)
        tree = [self._snapshot.avcs[node.avc].vma for node in its.tree]
        expected = [cast(AnonVmaChain, node).vma for node in mine.touching(0, _LAST_PGOFF, self._tally)]
        found = [self._vmas[vma].id if vma in self._vmas else -1 for vma in tree]
        if found != [vma.id for vma in expected]:
            known = [repr(self._vmas[vma]) if vma in self._vmas else f"<VMA {vma:#x}>" for vma in tree]
            raise _Found(where, "VMAs in its tree, in order", known, expected)

    # Entries and pages

    def _compare_entries(self, pid: int, mm: MM, there: real.Mm) -> None:
        page_table = mm.page_table
        for vma in mm.tree.to_list():
            for addr in range(vma.start, vma.end, PAGE_SIZE):
                mine = page_table.get(addr)
                its = there.entries.get(addr)
                kind = _kind(mine)
                if its is None and mine == 0:
                    continue
                where = f"{_place(pid, vma)}, page {addr:#x}"
                if its is None or its.kind != kind:
                    raise _Found(where, "entry", "none" if its is None else its.kind, kind)
                if its.huge != page_table.is_huge(addr):
                    raise _Found(where, "an entry for 2 MiB maps it", its.huge, page_table.is_huge(addr))
                if its.writable != (mine & PTE_WRITE != 0) and kind != "file":
                    raise _Found(where, "writable", its.writable, mine & PTE_WRITE != 0)
                number = mine >> PTE_SHIFT
                if kind == "anon":
                    if self._pages.bind(where, "page", its.number, number):
                        self._compare_page(where, self._snapshot.pages[its.number], number)
                    if its.exclusive != (mine & PTE_EXCLUSIVE != 0):
                        raise _Found(where, "page is exclusive", its.exclusive, mine & PTE_EXCLUSIVE != 0)
                elif kind == "swap":
                    self._slots.bind(where, "swap slot", its.number, number)
                    if its.exclusive != (mine & PTE_EXCLUSIVE != 0):
                        raise _Found(where, "swapped page is exclusive", its.exclusive, mine & PTE_EXCLUSIVE != 0)

    def _compare_page(self, where: str, page: real.Page, pfn: int) -> None:
        folios = self._machine.folios
        if page.mapcount != folios.mapcount.m[pfn]:
            raise _Found(where, "mapcount", page.mapcount, folios.mapcount.m[pfn])
        ksm = folios.flags.m[pfn] & FOLIO_KSM != 0
        if page.ksm != ksm:
            raise _Found(where, "page of KSM", page.ksm, ksm)
        if page.order != folios.order.m[pfn]:
            raise _Found(where, "order of the folio", page.order, folios.order.m[pfn])
        if page.pfn - page.head != pfn - folios.head.m[pfn]:
            raise _Found(where, "place in the folio", page.pfn - page.head, pfn - folios.head.m[pfn])
        first = folios.exclusive.m[folios.head.m[pfn]]
        if page.order and page.first_exclusive != first:
            raise _Found(where, "first page of the folio is exclusive", page.first_exclusive, first)
        self._compare_mappers(where, page, folios.head.m[pfn])
        cached = folios.head.m[pfn] in self._machine.slot_of
        if page.swapcache != cached:
            raise _Found(where, "folio is in the swap cache", page.swapcache, cached)
        if cached:
            slot = self._machine.slot_of[pfn]
            self._slots.bind(where, "swap slot that the folio caches", page.swap, slot)
        if ksm:
            self._compare_places(where, page.pfn, pfn)
            return
        if page.index != folios.index.m[pfn]:
            raise _Found(where, "index", page.index, folios.index.m[pfn])
        anon_vma = self._anon_vmas.to_model.get(page.anon_vma)
        if anon_vma != self._design.anchor.m[pfn]:
            raise _Found(
                where, "anon_vma of the folio",
                f"{page.anon_vma:#x}, the model's {anon_vma}", f"{self._design.anchor.m[pfn]}",
            )  # fmt: skip


    def _compare_mappers(self, where: str, page: real.Page, head: int) -> None:
        """Which address spaces a large folio counts, and whether it takes itself for shared."""
        mine, counts = self._machine.mm_ids.get(head), page.counts
        if mine is None or counts is None:
            return
        slots = [(self._mms.to_model.get(self._mm_ids.get(id, 0), 0), count) for id, count in counts.slots]
        if slots != mine.slots():
            raise _Found(where, "address spaces that the folio counts, and how often", slots, mine.slots())
        if counts.shared != mine.shared:
            raise _Found(where, "folio may be mapped by several", counts.shared, mine.shared)

    def _compare_places(self, where: str, page: int, pfn: int) -> None:
        """Where KSM remembers to have mapped its page.  Either side may remember places that do not map it any
        more: ksmd has not come by since."""
        alive = self._machine.mms
        kernel = []
        for address, addr in reversed(self._snapshot.ksm_places[page]):
            mm = self._snapshot.mms.get(address)
            entry = None if mm is None else mm.entries.get(addr)
            if entry is not None and entry.kind == "anon" and entry.number == page:
                kernel.append((self._mms.to_model[address], hex(addr)))
        model = []
        for place in reversed(self._design.ksm.newest_first(pfn)):
            mine = place.mm.page_table.get(place.addr) if place.mm.id in alive else 0
            if mine & PTE_ANON and mine >> PTE_SHIFT == pfn:
                model.append((place.mm.id, hex(place.addr)))
        if kernel != model:
            raise _Found(where, "places that KSM remembers, the oldest first", kernel, model)


def refcount_of_kernel(snapshot: real.Snapshot, anon_vma: real.AnonVma) -> int:
    """Without the references of KSM, which may stay until ksmd comes by."""
    return anon_vma.refcount - snapshot.ksm_holds[anon_vma.address] - snapshot.ksm_unused[anon_vma.address]


def refcount_of_model(design: AnonVmaRmap, anon_vma: AnonVma) -> int:
    """The same: without KSM's references, and those of what KSM alone keeps."""
    by_ksm = [cast(AnonVma, place.anchor) for place in design.ksm.every()]
    held = {id(other): other for other in by_ksm}
    mine = sum(other is anon_vma for other in by_ksm)
    unused = sum(
        other.rb_root is None and other.root is anon_vma and other is not anon_vma for other in held.values()
    )
    return anon_vma.refcount - mine - unused


def belongs(vma: real.Vma) -> bool:
    """Whether a worker's VMA is part of the history; its program and what the kernel adds are not."""
    return not (PROGRAM[0] <= vma.start < PROGRAM[1] or vma.special or _is_vvar(vma))


def _is_vvar(vma: real.Vma) -> bool:
    return vma.flags & 0x4 == 0 and vma.flags & (0x400 | 0x4000) == 0x4400


def _kind(entry: int) -> str:
    if entry == 0:
        return "none"
    for bit, kind in ((PTE_ANON, "anon"), (PTE_ZERO, "zero"), (PTE_FILE, "file"), (PTE_SWAP, "swap"),
                      (PTE_GUARD, "guard")):
        if entry & bit:
            return kind
    return "other"


def _place(pid: int, vma: VMA) -> str:
    return f"process {pid}, VMA {vma.start:#x}-{vma.end:#x}"


def _flags(flags: int, other: int) -> str:
    """Flags that `other` has not."""
    names = [name for bit, name in _FLAG_NAMES.items() if flags & ~other & bit]
    rest = flags & ~other & ~sum(_FLAG_NAMES)
    return " ".join(names + ([hex(rest)] if rest else [])) or "(none that the other has not)"


def _ranges(ranges: Iterable[tuple[int, int]], total: int) -> str:
    listed = ", ".join(f"{start:#x}-{end:#x}" for start, end in sorted(ranges))
    return f"{listed or 'nothing that the other has not'} (of {total})"
