# SPDX-License-Identifier: GPL-2.0-or-later
"""A real kernel's state in the model, and every design's walks over it.

`build` turns a snapshot of all processes into a machine: address spaces, VMAs, page tables and folios as they are.
Then each design takes it over (ReverseMap.take_over()), and reaches the state that it would have had: `anon_vma` has
the graph as it is, `pte_chain` the entries as they are.  Facts that the others need and the kernel does not hold are
inferred:

- the parent of each process, and the first process of each folio: see ancestry.py.
- where a VMA was at first: its page offset says.  For a private mapping of a file, it is taken to be the address at
  which the oldest VMA of its family is.
- which anon_vmas would not have been made yet: see anon_vma_lazy.py.

`examine` walks every anonymous page in each design, and compares the places with the page tables.

Linux itself does not find all of KSM's: a page that fork shared becomes KSM's for all its mappers, but with a place for
one of them alone until ksmd visits the others (mm/ksm.c try_to_merge_one_page(), stable_tree_append()).  If that one
is a child, no walk leads to its parent.  The snapshot shows which entries these are, without any design's help.

A stopped guest may be in the middle of a fork or an exit.  Address spaces that no task has (yet, or any
more) are found through the VMAs in interval trees, and are part of the state, since their entries are counted.
"""

from __future__ import annotations

import logging
import socket
import traceback
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from rmaplab.check.truth import MappedFolio, Truth, invariants
from rmaplab.kernel import columns as rows
from rmaplab.kernel.ancestry import Ancestry, Tree
from rmaplab.kernel.columns import Columns
from rmaplab.kernel.consistency import problems
from rmaplab.kernel.errors import GuestError, KernelUnavailable
from rmaplab.kernel.identity import profile_of, release_of
from rmaplab.kernel.lockstep import Random, Witness
from rmaplab.kernel.memory import BadAddress, Memory, Record
from rmaplab.kernel.qmp import Monitor
from rmaplab.kernel.setup import Kernel, need_drgn
from rmaplab.kernel.snapshot import Mm, Reader, Snapshot, Vma
from rmaplab.mm.folio import FOLIO_KSM, Int64s
from rmaplab.mm.machine import Machine, Process
from rmaplab.mm.pagetable import (
    LEAF_ENTRIES,
    LEAF_SHIFT,
    PTE_ANON,
    PTE_EXCLUSIVE,
    PTE_FILE,
    PTE_GUARD,
    PTE_KSM,
    PTE_SHIFT,
    PTE_SWAP,
    PTE_WRITE,
    PTE_ZERO,
)
from rmaplab.mm.profile import Profile
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.takeover import FoundAnonVma, FoundFolio, FoundPlace, FoundVma, TakenOver
from rmaplab.mm.vma import MM, PAGE_SHIFT, PAGE_SIZE, VM_LOCKED, VMA, File
from rmaplab.rmap import DESIGNS as KNOWN
from rmaplab.verdict import judge

# All but page_scan, which is what the walks are held against.
DESIGNS: Final = tuple(design for design in KNOWN.values() if not design.scans_memory)

_PATIENCE: Final = 30.0  # seconds for a monitor's answer

UNPLACED: Final = "KSM knows no place yet that leads there: the kernel's own walk misses it, too"


class Finding(msgspec.Struct):
    """What one design's walks found in all.

    folios, entries: that there are; missed: entries that no place of a walk accounts for, by reason
    places: visited; useful: places that did map the folio; worst: places of the longest walk
    work: what was visited on the way, by kind; held: live objects by type, and held_bytes: their slab pages
    """

    design: str
    folios: int
    entries: int
    missed: dict[str, int]
    places: int
    useful: int
    worst: int
    work: dict[str, int]
    held: dict[str, int]
    held_bytes: int
    examples: list[str]
    known_to_miss: str = ""

    @property
    def missing(self) -> int:
        """Entries missed, for whatever reason."""
        return sum(self.missed.values())

    @property
    def holds(self) -> bool:
        """Nothing is missed but what the kernel misses, or the design is known to miss something."""
        return not self.missed.keys() - {UNPLACED} or self.known_to_miss != ""


class _Importer:
    def __init__(
        self,
        snapshot: Snapshot,
        columns: Columns,
        tree: Tree,
        profile: Profile,
        designs: Sequence[type[ReverseMap]],
    ) -> None:
        self.snapshot: Final = snapshot
        self.columns: Final = columns
        self.tree: Final = tree
        self.machine: Final = Machine(profile, designs)
        self.left_out: Final[Counter[str]] = Counter()
        self.mms: Final[dict[int, MM]] = {}  # kernel address -> MM; dead ones under negative numbers
        self.vmas: Final[dict[int, VMA]] = {}
        self.numbers: Final[dict[int, int]] = {}  # anon_vma -> its position in `found`
        self.found: Final = TakenOver()
        self.slots: Final[dict[int, int]] = {}  # swap entry -> the model's slot
        self.pfns: Int64s = np.zeros(len(columns.pages), dtype=np.int64)  # of each row of Pages, the model's

    def run(self) -> None:
        for address in self.tree.top_down():
            self._make_mm(address)
        for address, mm in self.snapshot.mms.items():
            self._make_vmas(mm, self.mms[address])
        self._find_vmas()
        self._make_folios()
        self._find_folios()
        for i, address in enumerate(self.snapshot.mms):
            self._make_entries(i, self.mms[address])
        for design in self.machine.designs:
            design.take_over(self.found)
        for address, mine in self.mms.items():
            if address < 0:
                for design in self.machine.designs:
                    design.mm_gone(mine)
                mine.alive = False
                del self.machine.mms[mine.id]

    # Address spaces

    def _make_mm(self, address: int) -> None:
        parent = self.tree.above.get(address)
        mine = self.machine.new_mm()
        self.mms[address] = mine
        self.found.spaces.append((mine, None if parent is None else self.mms[parent]))
        self.machine.mms[mine.id] = mine
        if address > 0:
            for pid in self.snapshot.mms[address].pids:
                self.machine.processes[pid] = Process(pid, mine, 0)

    def _make_vmas(self, mm: Mm, mine: MM) -> None:
        files: dict[int, File] = {}
        for vma in mm.vmas:
            file = files.setdefault(vma.inode, File(vma.inode, "")) if vma.inode else None
            copy = self.machine.new_vma(mine, vma.start, vma.end, vma.pgoff, vma.flags, file)
            copy.anon_pgoff = vma.anon_pgoff
            mine.tree.insert(copy)
            mine.total_vm += copy.nr_pages
            mine.locked_vm += copy.nr_pages if vma.flags & VM_LOCKED else 0
            self.vmas[vma.address] = copy

    def _find_vmas(self) -> None:
        """Prepared VMAs, and the anon_vma graph, as it is."""
        anon_vmas, avcs = self.snapshot.anon_vmas, self.snapshot.avcs
        self.numbers.update({address: i for i, address in enumerate(anon_vmas)})
        for its in anon_vmas.values():
            tree = [self.vmas[avcs[node.avc].vma] for node in its.tree]
            root, parent = self.numbers[its.root], self.numbers[its.parent]
            found = FoundAnonVma(root, parent, its.refcount, its.num_children, its.num_active_vmas, tree)
            self.found.anon_vmas.append(found)
        shifts: dict[int, int] = {}  # by root
        order = {address: i for i, address in enumerate(self.mms)}  # ancestors first
        prepared = [vma for vma in self.columns.vmas if vma.anon_vma]
        for vma in sorted(prepared, key=lambda vma: order[vma.mm]):
            copy = self.vmas[vma.address]
            copy.prepared = True
            family = anon_vmas[vma.anon_vma].root
            by_file = vma.inode and not self.snapshot.two_offsets
            shift = shifts.setdefault(family, (vma.start >> PAGE_SHIFT) - vma.pgoff if by_file else 0)
            chain = [self.numbers[avcs[avc].anon_vma] for avc in reversed(vma.chain)]
            self.found.vmas.append(FoundVma(copy, self.numbers[vma.anon_vma], chain, shift))

    # Folios

    def _make_folios(self) -> None:
        """A folio of ours for each of theirs, also for pages of large ones that nobody maps (of which alone it is not
        known whether they are exclusive)."""
        folios, pages = self.machine.folios, self.columns.pages
        single = pages.order == 0
        self.pfns[single] = folios.alloc_run(np.zeros(int(single.sum()), dtype=np.int64))
        large = np.flatnonzero(~single)
        heads, first = np.unique(pages.head[large], return_index=True)
        for head, row in zip(heads.tolist(), large[first].tolist(), strict=True):
            index = int(pages.index[row]) - (int(pages.pfn[row]) - head)
            mine = folios.alloc_large(index, int(pages.order[row]))
            members = large[pages.head[large] == head]
            self.pfns[members] = mine + pages.pfn[members] - head
        self.machine.nr_large += len(heads)
        folios.index.v[self.pfns] = pages.index
        folios.exclusive.v[self.pfns] = pages.exclusive
        entries = self.columns.entries
        anon = entries.kind == rows.ANON
        folios.mapcount.v[self.pfns] = np.bincount(entries.page[anon], minlength=len(pages))

    def _find_folios(self) -> None:
        """What each folio points to: its anon_vma, and who made it."""
        pages, folios = self.columns.pages, self.machine.folios
        for row in np.flatnonzero(pages.ksm).tolist():
            self._find_places(int(self.pfns[row]), int(pages.pfn[row]))
        for row, vma, addr, mappers in self._folios():
            head, nr_pages = int(folios.head.m[int(self.pfns[row])]), 1 << int(pages.order[row])
            if pages.ksm[row]:
                found = FoundFolio(head, nr_pages, vma, addr, vma.mm, -1)
            else:
                anon_vma = int(pages.anon_vma[row])
                maker = self.mms[self.tree.maker_of(anon_vma, mappers)]
                found = FoundFolio(head, nr_pages, vma, addr, maker, self.numbers.get(anon_vma, -1))
            self.found.folios.append(found)

    def _find_places(self, pfn: int, its_pfn: int) -> None:
        """Where KSM has mapped its page.  A place outlives its VMA and address space until ksmd comes by, and leads to
        who was forked from it."""
        self.machine.folios.set_flag(pfn, FOLIO_KSM)
        known: list[tuple[MM, int]] = []
        places = zip(self.snapshot.ksm_places[its_pfn], self.snapshot.ksm_owners[its_pfn], strict=True)
        for (address, addr), owner in reversed([*places]):
            maker = self.tree.maker.get(owner)
            if owner not in self.numbers or maker is None:
                self.left_out["place of KSM from which nobody was forked"] += 1
                continue
            mm = self.mms.get(address)
            vma = None if mm is None else mm.tree.at(addr)
            if mm is not None and vma is not None and vma.prepared:
                known.append((mm, addr))
            else:
                gone = self.mms[maker] if mm is None else mm
                vma = VMA(gone, 0, addr, addr + PAGE_SIZE, addr >> PAGE_SHIFT, 0, None)
                vma.rmap = [None] * len(self.machine.designs)
            self.found.places.append(FoundPlace(pfn, vma, addr, self.numbers[owner]))
        self.machine.ksm_pages[pfn] = known

    def unplaced(self) -> frozenset[tuple[int, int]]:
        """Entries of KSM's pages to which no place leads, followed as mm/ksm.c rmap_walk_ksm() does."""
        snapshot, entries, pages = self.snapshot, self.columns.entries, self.columns.pages
        addresses = list(snapshot.mms)
        unplaced: set[tuple[int, int]] = set()
        for row in np.flatnonzero(pages.ksm).tolist():
            pfn = int(pages.pfn[row])
            led: set[tuple[int, int]] = set()
            for (_, addr), owner in zip(snapshot.ksm_places[pfn], snapshot.ksm_owners[pfn], strict=True):
                tree = snapshot.anon_vmas[owner].tree if owner in snapshot.anon_vmas else []
                vmas = (snapshot.vmas[snapshot.avcs[node.avc].vma] for node in tree)
                led.update((vma.mm, addr) for vma in vmas if vma.start <= addr < vma.end)
            for at in np.flatnonzero(entries.page == row).tolist():
                mm, addr = addresses[int(entries.mm[at])], int(entries.addr[at])
                if (mm, addr) not in led:
                    unplaced.add((self.mms[mm].id, addr))
        return frozenset(unplaced)

    def _folios(self) -> Iterator[tuple[int, VMA, int, frozenset[int]]]:
        """For each mapped folio: a row of Pages, the first VMA that maps it, the address of its first page there,
        and all address spaces that map some of it."""
        entries, pages = self.columns.entries, self.columns.pages
        at = np.flatnonzero(entries.page >= 0)
        at = at[np.argsort(pages.head[entries.page[at]], kind="stable")]
        heads = pages.head[entries.page[at]]
        first = np.flatnonzero(np.diff(heads, prepend=-1))
        last = np.append(first[1:], len(at))
        addresses = list(self.snapshot.mms)
        mms = entries.mm[at].tolist()
        page, vma, addr = entries.page[at].tolist(), entries.vma[at].tolist(), entries.addr[at].tolist()
        alone = {i: frozenset({address}) for i, address in enumerate(addresses)}
        for i, j in zip(first.tolist(), last.tolist(), strict=True):
            row = page[i]
            distance = int(pages.pfn[row]) - int(heads[i])
            mappers = alone[mms[i]] if j == i + 1 else frozenset(addresses[mm] for mm in mms[i:j])
            copy = self.vmas[self.columns.vmas[vma[i]].address]
            yield row, copy, addr[i] - (distance << PAGE_SHIFT), mappers

    # Entries

    def _make_entries(self, i: int, mine: MM) -> None:
        entries = self.columns.entries
        low, high = np.searchsorted(entries.mm, (i, i + 1))
        kind, addr = entries.kind[low:high], entries.addr[low:high]
        value = np.zeros(high - low, dtype=np.int64)
        value[kind == rows.ZERO] = PTE_ZERO
        value[kind == rows.FILE] = PTE_FILE
        value[kind == rows.GUARD] = PTE_GUARD
        self.machine.guards |= bool((kind == rows.GUARD).any())
        anon = kind == rows.ANON
        flags = PTE_ANON | entries.writable[low:high] * PTE_WRITE | entries.exclusive[low:high] * PTE_EXCLUSIVE
        flags[anon] |= self.columns.pages.ksm[entries.page[low:high][anon]] * PTE_KSM
        value[anon] = (self.pfns[entries.page[low:high][anon]] << PTE_SHIFT) | flags[anon]
        for head, count in self.machine.large_among(self.pfns[entries.page[low:high][anon]]):
            self.machine.large_mapped(mine, head, count)  # who is not counted any more but took a slot is not known
        for at in np.flatnonzero(kind == rows.SWAP).tolist():
            slot = self._slot(int(entries.number[low + at]))
            value[at] = slot << PTE_SHIFT | PTE_SWAP | (PTE_EXCLUSIVE if entries.exclusive[low + at] else 0)
        for what in (rows.HUGETLB, rows.SPECIAL, rows.EXEC, rows.OTHER):
            self.left_out[rows.KINDS[what]] += int((kind == what).sum())
        table = mine.page_table
        numbers, first = np.unique(addr >> LEAF_SHIFT, return_index=True)
        for number, begin, end in zip(numbers.tolist(), first, np.append(first, len(addr))[1:], strict=True):
            v = np.zeros(LEAF_ENTRIES, dtype=np.int64)
            v[addr[begin:end] >> PAGE_SHIFT & LEAF_ENTRIES - 1] = value[begin:end]
            used = int(np.count_nonzero(v))
            if used:
                table.leaves[number] = table.new_leaf(v, used)

    def _slot(self, number: int) -> int:
        """The model's swap slot for a swap entry; one entry more refers to it."""
        slot = self.slots.get(number)
        if slot is None:
            slot = self.slots[number] = self.machine.alloc_slots(1)
        self.machine.swap[slot].count += 1
        return slot


class Built(NamedTuple):
    """A machine that holds what was read.

    ancestry: how it was found
    left_out: entries that the model has nothing for, by kind
    unplaced: entries, by number of their address space and address, that the kernel's own walk does not find
    """

    machine: Machine
    ancestry: Ancestry
    left_out: dict[str, int]
    unplaced: frozenset[tuple[int, int]]


def build(
    snapshot: Snapshot,
    columns: Columns,
    parents: dict[int, int],
    profile: Profile,
    designs: Sequence[type[ReverseMap]] = DESIGNS,
) -> Built:
    """The machine for `snapshot` and `columns`; `parents` has the parent's mm of each mm where that lives."""
    tree = Tree(snapshot, parents)
    importer = _Importer(snapshot, columns, tree, profile, designs)
    importer.run()
    left_out = {kind: count for kind, count in importer.left_out.items() if count}
    return Built(importer.machine, tree.found, left_out, importer.unplaced())


def differences(machine: Machine, columns: Columns) -> list[str]:
    """Where the machine that was built is not what was read: its own invariants, and the mapcounts."""
    wrong = [f"the model: {text}" for text in invariants(machine, Truth(machine))]
    counted = Counter(machine.folios.mapcount.v[machine.folios.live()].tolist())
    read = Counter(columns.pages.mapcount.tolist())
    for count in sorted(set(counted) | set(read) - {0}):
        if count and counted[count] != read[count]:
            wrong.append(f"{counted[count]} pages have mapcount {count} in the model, {read[count]} in the kernel")
    return wrong


def examine(machine: Machine, unplaced: frozenset[tuple[int, int]] = frozenset()) -> list[Finding]:
    """Walk every mapped anonymous folio in each design; `unplaced` as in Built."""
    truth = Truth(machine)
    folios = list(truth.mapped_folios())
    return [_examine(machine, design, folios, unplaced) for design in machine.designs]


def _examine(
    machine: Machine, design: ReverseMap, folios: list[MappedFolio], unplaced: frozenset[tuple[int, int]]
) -> Finding:
    before = {tally.name: tally.count for tally in design.ledger.tallies.values()}
    finding = Finding(design.name, len(folios), 0, {}, 0, 0, 0, {}, {}, 0, [], design.known_to_miss)
    for folio in folios:
        places = list(design.walk(folio.head))
        nr_places = len(places)
        finding.entries += len(folio.entries)
        finding.places += nr_places
        finding.worst = max(finding.worst, nr_places)
        if nr_places == 1 and len(folio.entries) == 1 and folio.nr_pages == 1:
            mm, addr, _ = folio.entries[0]
            vma, at = places[0]
            if at == addr and vma.mm is mm:
                finding.useful += 1
                continue
        finding.useful += sum(folio.mapped_at(place) for place in places)
        for mm, addr, _ in folio.unseen(places):
            if (mm.id, addr) in unplaced and not design.known_to_miss:
                reason = UNPLACED
            else:
                there = mm.tree.at(addr)
                reason = "no VMA is there" if there is None else design.why_missed(folio.head, there, addr)
            finding.missed[reason] = finding.missed.get(reason, 0) + 1
            if finding.missed[reason] == 1:
                finding.examples.append(f"mm {mm.id} address {addr:#x} of folio {folio.head}: {reason}")
    for tally in design.ledger.tallies.values():
        if tally.count > before.get(tally.name, 0) and tally.name not in ("walks", "places visited"):
            finding.work[tally.name] = tally.count - before.get(tally.name, 0)
    for pool in design.ledger.pools.values():
        if pool.live:
            finding.held[pool.name] = pool.live
            finding.held_bytes += pool.slab_pages(pool.live) << PAGE_SHIFT
    return finding


class State(msgspec.Struct):
    """An imported state, examined.

    processes: address spaces that tasks have; in_between: that a fork is making or an exit is taking down
    entries:   of page tables, by kind; left_out: those that the model has nothing for, by kind
    unplaced:  entries that the kernel's own walk does not find
    """

    release: str
    profile: str
    notes: list[str]
    processes: int
    in_between: int
    vmas: int
    anon_vmas: int
    entries: dict[str, int]
    left_out: dict[str, int]
    problems: list[str]
    ancestry: Ancestry
    findings: list[Finding]
    unplaced: int = 0

    @property
    def holds(self) -> bool:
        """Nothing is wrong with it, and the designs that are to be complete are, as far as the kernel is.

        :raises NothingLookedAt: no anonymous folio was walked
        """
        wrong = bool(self.problems) or not all(finding.holds for finding in self.findings)
        walked = max((finding.folios for finding in self.findings), default=0)
        return judge(walked, wrong, "no anonymous page was found in what was read")

    def table(self) -> str:
        """What there is to say, as text."""
        a = self.ancestry
        between = f" ({self.in_between} more are being forked or taken down)" if self.in_between else ""
        entries = ", ".join(f"{count} {kind}" for kind, count in self.entries.items())
        left_out = ", ".join(f"{count} {kind}" for kind, count in self.left_out.items()) or "nothing"
        lines = [
            f"{self.release}: {self.processes} address spaces{between}, {self.vmas} VMAs, {self.anon_vmas} anon_vmas",
            f"page-table entries: {entries}; left out: {left_out}",
            f"consistency: {len(self.problems)} problems" if self.problems else "consistency: nothing wrong",
            *self.problems[:10],
        ]
        if not self.findings:
            return "\n".join([*lines, "nothing was walked: there is no telling what a walk would meet"])
        lines += [
            f"{self.findings[0].folios} anonymous folios, which {self.findings[0].entries} entries map"
            + (f" ({self.unplaced} of these the kernel's own walk does not find)" if self.unplaced else ""),
            f"ancestry: {a.living} were forked from one that lives (of {a.untold} only anon_vmas tell), {a.dead} from"
            f" one that died, {a.related} more are related by what died, {a.alone} share nothing with"
            f" anybody above them; {a.ghosts} dead ones left a trace; {a.taken_over} anon_vmas were taken over",
            f"{'design':24}{'missed':>8}{'places':>10}{'useful':>9}{'worst':>7}{'bytes held':>12}  objects",
        ]
        for f in self.findings:
            held = ", ".join(f"{count} {name}" for name, count in f.held.items())
            useful = f"{100 * f.useful / f.places:.1f} %" if f.places else "-"
            lines.append(f"{f.design:24}{f.missing:8}{f.places:10}{useful:>9}{f.worst:7}{f.held_bytes:12}  {held}")
            lines.append(f"{'':24}on the way: " + ", ".join(f"{count} {name}" for name, count in f.work.items()))
            lines += [f"{'':24}missed {count}: {reason}" for reason, count in f.missed.items()]
        return "\n".join(lines)


class Everybody(Reader):
    """Reads all address spaces without their entries, and what lies between: see `everybody`."""

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory, lambda vma: False)
        self._place: Final = Record(memory.program, "struct vm_area_struct", "vm_start", "vm_end", "vm_mm")

    def everybody(self, tasks: list[tuple[int, int]]) -> tuple[Snapshot, int]:
        """The state of all tasks; with address spaces that no task has, because a fork has not finished or an
        exit has begun, and VMAs that have left their tree, because munmap() has not finished.  Second, how many
        such address spaces there are."""
        snapshot = self.read(tasks)
        known = len(snapshot.mms)
        while True:
            read = set(snapshot.anon_vmas)
            strangers = {avc.vma for avc in snapshot.avcs.values()} - set(snapshot.vmas)
            if sum(self._take_in(snapshot, vma) for vma in sorted(strangers)) == 0:
                return snapshot, len(snapshot.mms) - known
            for address in set(snapshot.anon_vmas) - read:
                self._read_tree(snapshot, snapshot.anon_vmas[address])

    def _take_in(self, snapshot: Snapshot, address: int) -> bool:
        """Whether a VMA that only an interval tree leads to has found a place."""
        if address in snapshot.vmas:
            return False  # came with its address space just now
        try:
            start, end, owner = self._place.at(self._memory, address)
            mm = snapshot.mms.get(owner)
            if mm is None:
                mm = self._read_mm(snapshot, owner)
                # The tree of one that is being forked begins as a copy of its parent's, VMAs and all (dup_mmap()).
                mm.vmas = [vma for vma in mm.vmas if vma.mm == owner]
                return True
            at = bisect_left(mm.vmas, end, key=lambda vma: vma.end)
            if start >= end or any(vma.start < end and vma.end > start for vma in mm.vmas[max(at - 1, 0) : at + 1]):
                return False
            mm.vmas.append(self._read_vma(snapshot, address))
            mm.vmas.sort(key=lambda vma: vma.start)
        except BadAddress:
            return False  # consistency.py will say so
        return True

    def read_places(self, snapshot: Snapshot, columns: Columns) -> None:
        """Where KSM remembers to have mapped its pages."""
        pages = columns.pages
        for row in np.flatnonzero(pages.ksm).tolist():
            if self._ksm is not None:
                pfn, node = int(pages.pfn[row]), int(pages.anon_vma[row])
                snapshot.ksm_places[pfn] = self._ksm.places(self._memory, node)
                snapshot.ksm_owners[pfn] = self._ksm.owners(self._memory, node)

    def _read_vma(self, snapshot: Snapshot, address: int) -> Vma:
        known = snapshot.vmas.get(address)
        return super()._read_vma(snapshot, address) if known is None else known


class Reading:
    """All that is read from a kernel that stands still."""

    def __init__(self, program: Any, memory: Memory) -> None:
        tasks, self.parents = everyone(program)
        reader = Everybody(memory)
        self.snapshot, self.in_between = reader.everybody(tasks)
        self.columns: Final = rows.read(memory, self.snapshot)
        reader.read_places(self.snapshot, self.columns)
        self.release: Final = release_of(program)
        self.profile, self.notes = profile_of(program)

    def examined(self) -> State:
        """What there is, and what walks over it find, if nothing is wrong with it."""
        snapshot, columns = self.snapshot, self.columns
        kinds = np.bincount(columns.entries.kind, minlength=len(rows.KINDS)).tolist()
        state = State(
            self.release, self.profile.name, self.notes, len(snapshot.mms) - self.in_between, self.in_between,
            len(snapshot.vmas), len(snapshot.anon_vmas),
            {kind: count for kind, count in zip(rows.KINDS, kinds, strict=True) if count},
            {}, problems(snapshot, columns), Ancestry(), [],
        )  # fmt: skip
        if not state.problems:
            built = build(snapshot, columns, self.parents, self.profile)
            state.ancestry, state.left_out, state.unplaced = built.ancestry, built.left_out, len(built.unplaced)
            state.problems = differences(built.machine, columns)
            state.findings = examine(built.machine, built.unplaced)
        return state


def read_guest(kernel: Kernel, seed: int, steps: int) -> State:
    """A guest of ours, after a random history."""
    with Witness(kernel) as witness:
        for found in Random(witness, seed).steps(steps):
            if found is not None:
                raise GuestError(f"the model is wrong before there is anything to import: {found.difference}")
        with witness.guest.stopped():
            return Reading(witness.memory.program, witness.memory).examined()


def read_source(source: str, vmlinux: Path | None) -> State:
    """A kernel that somebody else started, or what is left of one.  A guest is stopped meanwhile, if it runs.

    :raises KernelUnavailable: it cannot be read; the message says why
    """
    if vmlinux is not None and not vmlinux.is_file():
        raise KernelUnavailable(f"there is no file {vmlinux}.")
    path = Path(source)
    if source != "live" and not path.is_socket() and not path.is_file():
        raise KernelUnavailable(f"{source} is neither a socket, nor a file, nor 'live', nor 'guest'.")
    if not path.is_socket():
        return _read(source, vmlinux)
    with _stopped(path):
        return _read(source, vmlinux)


def _read(source: str, vmlinux: Path | None) -> State:
    need_drgn()
    import drgn

    logging.getLogger("drgn").setLevel(logging.CRITICAL)  # what matters of it is in the exceptions below
    program = drgn.Program()
    try:
        if source == "live":
            program.set_kernel()
        elif Path(source).is_socket():
            program.set_qemu_qmp(source)
        else:
            program.set_core_dump(source)
        program.load_debug_info([str(vmlinux)] if vmlinux is not None else None, default=vmlinux is None)
        memory = _memory_of(program, source, vmlinux)
        reading = Reading(program, memory)
    except KernelUnavailable:
        raise
    except drgn.MissingDebugInfoError as error:
        raise KernelUnavailable(
            f"there is no debug information for the kernel behind {source} ({_first_line(error)}): give --vmlinux."
        ) from None
    except (BadAddress, drgn.FaultError) as error:
        raise KernelUnavailable(
            f"{source} is damaged, or cut short, or changed while it was read ({_first_line(error)})."
        ) from None
    except OSError as error:
        raise KernelUnavailable(_unreadable(source, error)) from None
    except Exception as error:  # drgn raises a plain Exception, too; and damaged memory leads anywhere
        if _is_compressed(source):
            raise KernelUnavailable(
                f"{source} is compressed by kdump, in a way that this drgn cannot read ({_first_line(error)}): give an"
                " ELF dump (makedumpfile -E, or dump-guest-memory without a format)."
            ) from None
        raise KernelUnavailable(f"the kernel behind {source} cannot be read: {_first_line(error)}.") from None
    return reading.examined()


def _is_compressed(source: str) -> bool:
    """A dump as makedumpfile writes it, into a file or a pipe."""
    if not Path(source).is_file():
        return False
    with Path(source).open("rb") as file:
        return file.read(12).startswith((b"KDUMP   ", b"makedumpfile"))


def _memory_of(program: Any, source: str, vmlinux: Path | None) -> Memory:
    try:
        return Memory(program)
    except LookupError:
        raise KernelUnavailable(
            f"{vmlinux} is not the vmlinux of the kernel behind {source}: give that very kernel's, with --vmlinux."
        ) from None


def _unreadable(source: str, error: OSError) -> str:
    if source != "live":
        return f"the kernel behind {source} cannot be read: {_first_line(error)}."
    if isinstance(error, PermissionError):
        return f"only root may read this machine's kernel ({_first_line(error)}): run this as root, or give a dump."
    return f"this machine's kernel cannot be read ({_first_line(error)}): give a dump, or a guest's QMP socket."


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


@contextmanager
def _stopped(path: Path) -> Iterator[None]:
    """The guest behind a QMP socket stands still inside the with statement; it goes on if it ran before."""
    try:
        with _monitor(path) as monitor:
            ran = monitor.command("query-status")["running"]
            if ran:
                monitor.command("stop")
        try:
            yield
        except BaseException as error:
            # The socket has one client at a time, and the reader has it for as long as its frames live.
            failed: BaseException | None = error
            while failed is not None:
                traceback.clear_frames(failed.__traceback__)
                failed = failed.__context__
            raise
        finally:
            if ran:
                with _monitor(path) as monitor:
                    monitor.command("cont")
    except GuestError as error:
        raise KernelUnavailable(f"the guest behind {path} cannot be read: {error}.") from None


@contextmanager
def _monitor(path: Path) -> Iterator[Monitor]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_PATIENCE)
        try:
            connection.connect(str(path))
        except OSError as error:
            raise KernelUnavailable(f"nobody answers at {path}: {error}.") from None
        yield Monitor(connection)


def everyone(program: Any) -> tuple[list[tuple[int, int]], dict[int, int]]:
    """All tasks that lead a thread group, as (pid, address); and for each address space that of the parent
    process, where that lives and is not process 1, which adopts orphans."""
    from drgn.helpers.linux.pid import for_each_task

    tasks: list[tuple[int, int]] = []
    parents: dict[int, int] = {}
    for task in for_each_task(program):
        mm = task.mm.value_()
        if mm == 0 or task.pid.value_() != task.tgid.value_():
            continue
        tasks.append((task.pid.value_(), task.value_()))
        parent = task.real_parent
        parent_mm = parent.mm.value_()
        if parent_mm and parent_mm != mm and parent.pid.value_() != 1:
            parents[mm] = parent_mm
    return tasks, parents
