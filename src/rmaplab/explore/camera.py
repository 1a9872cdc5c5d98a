# SPDX-License-Identifier: GPL-2.0-or-later
"""Takes a picture of a machine: everything in it, as parts by key.

What does not fit is folded: processes beyond a dozen into their parent's count, VMAs of an address
space and pages of a VMA into runs, places of a walk into a number.  The processes and the VMA
that an operation touched are never folded.

Invariant: a picture says only what is true.  What is folded is counted, and a cell of many pages describes its
first one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

import msgspec
import numpy as np

from rmaplab.explore.layout import fold, place
from rmaplab.explore.merging import backing, rights, why_apart
from rmaplab.explore.parts import (
    DOOMED,
    EXCLUSIVE,
    KSM,
    MISSED,
    WRITABLE,
    Answer,
    Area,
    Cell,
    Folded,
    Folio,
    Holding,
    Place,
    Process,
    Space,
    State,
    part_of,
)
from rmaplab.explore.witness import RCU, Witness
from rmaplab.mm.folio import (
    FOLIO_DIRTY,
    FOLIO_KSM,
    FOLIO_LAZYFREE,
    FOLIO_LOCKED,
    FOLIO_REFERENCED,
    Int64s,
)
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import (
    LEAF_SHIFT,
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
from rmaplab.mm.picture import Picture, Scope, hexa
from rmaplab.mm.vma import MM, PAGE_SHIFT, VMA
from rmaplab.sync.locks import RwSemaphore, SpinLock
from rmaplab.sync.work import Ledger

PROCESSES: Final = 12  # shown one by one


class Detail(NamedTuple):
    """How much is shown one by one: VMAs of an address space, cells of a VMA, folios that are asked for at a
    step, places of a walk."""

    areas: int
    cells: int
    walked: int
    places: int


FINE: Final = Detail(12, 24, 160, 32)
COARSE: Final = Detail(6, 16, 40, 16)  # for histories whose steps are many events each


_KINDS: Final = ((PTE_ANON, "A"), (PTE_MIGRATION, "M"), (PTE_SWAP, "S"), (PTE_ZERO, "Z"), (PTE_FILE, "F"))
_FLAGS: Final = (
    (FOLIO_KSM, "KSM"),
    (FOLIO_DIRTY, "dirty"),
    (FOLIO_LAZYFREE, "may be dropped"),
    (FOLIO_LOCKED, "locked"),
    (FOLIO_REFERENCED, "referenced"),
)


class Camera:
    """Looks at `machine`.  If its scheduler is a `Witness`, it names locks one by one, else by class.

    answers:   results of walks, equal ones once
    names:     what to call locks, by id(), that neither a design's view nor the machine has a name for
    doomed:    (mm id, address) of entries that a walk misses, with the page that they are for; marked wherever they
               are for it, once `came_true` as missed
    """

    def __init__(self, machine: Machine, process_names: dict[int, str], detail: Detail = FINE) -> None:
        self.machine: Final = machine
        self.detail: Final = detail
        self.witness: Final = machine.scheduler if isinstance(machine.scheduler, Witness) else None
        self.answers: Final[list[Answer]] = []
        self.names: dict[int, str] = {}
        self.doomed: dict[tuple[int, int], int] = {}
        self.came_true = False
        self.pictures: Final[list[Picture]] = [design.picture() for design in machine.designs]
        self._process_names: Final = process_names
        self._lock_names: Final[dict[int, str]] = {}  # by id(), of this moment
        self._numbers: Final[dict[bytes, int]] = {}  # of answers, by what they say

    # A picture

    def picture(self, busy: Collection[int], touched: int, unowned: Iterable[MM] = ()) -> State:
        """The state of everything.

        busy:    processes that are not to be folded
        touched: an address in theirs that is not to be folded either
        unowned: address spaces of no process, which a fork is making or an exit takes down
        """
        state: State = {}
        self._lock_names.clear()
        shown = self._processes(state, busy)
        mms = {self.machine.processes[pid].mm.id: self.machine.processes[pid].mm for pid in shown}
        vmas: list[VMA] = []
        for pid in sorted(shown, key=lambda pid: (pid not in busy, pid)):
            mm = mms.pop(self.machine.processes[pid].mm.id, None)
            if mm is not None:
                vmas += self._space(state, mm, touched if pid in busy else 0)
        for mm in unowned:
            vmas += self._space(state, mm, 0)
        self._folios(state)
        scope = Scope(vmas, pids_of(self.machine))
        for slot, (design, picture) in enumerate(zip(self.machine.designs, self.pictures, strict=True)):
            items = picture.items(scope)
            parts = fold({key: part_of(item) for key, item in items.items()}, {mm.id for mm in scope.mms()})
            place(parts)
            for key, part in parts.items():
                state[f"{slot}/{key}"] = part
                part.above = f"{slot}/{part.above}" if part.above else ""
            state[f"{slot}/"] = Holding(
                [(line.type, line.objects, line.nbytes) for line in design.footprint()]
            )
        return state

    def _processes(self, state: State, busy: Collection[int]) -> list[int]:
        processes = self.machine.processes
        shown = sorted(processes)
        if len(shown) > PROCESSES:
            first = [pid for pid in busy if pid in processes]
            first += [processes[pid].parent for pid in first if processes[pid].parent in processes]
            rest = (pid for pid in shown if pid not in first)
            shown = sorted({*first, *_some(rest, PROCESSES - len(set(first)))})
        for pid in shown:
            process = processes[pid]
            state[f"p{pid}"] = Process(pid, process.parent, process.mm.id, self._process_names.get(pid, ""))
        for pid, process in processes.items():
            if pid not in shown:
                key = f"+{process.parent}"
                folded = state.get(key)
                if not isinstance(folded, Folded):
                    folded = state[key] = Folded(process.parent, 0, 0, 0)
                folded.processes += 1
                folded.areas += len(process.mm.tree)
                folded.pages += _mapped(process.mm)
        return shown

    # Address spaces

    def _space(self, state: State, mm: MM, touched: int) -> list[VMA]:
        """Adds an address space.  Returns the VMAs that are shown, the touched one first."""
        vmas = mm.tree.to_list()
        at = mm.tree.at(touched) if touched else None
        ranked = sorted(vmas, key=lambda vma: (vma is not at, not vma.prepared, vma.start))[
            : self.detail.areas
        ]
        kept = {vma.id for vma in ranked}
        areas: list[int] = []
        before: VMA | None = None
        for vma in vmas:
            if vma.id in kept:
                areas.append(vma.id)
                state[f"V{vma.id}"] = self._area(vma, before)
            elif areas and areas[-1] < 0:
                areas[-1] -= 1
            else:
                areas.append(-1)
            before = vma
        pids = sorted(pid for pid, process in self.machine.processes.items() if process.mm is mm)
        state[f"m{mm.id}"] = Space(mm.id, pids, areas, _mapped(mm))
        return ranked

    def _area(self, vma: VMA, before: VMA | None) -> Area:
        cells, more = self._cells(vma)
        apart: list[str] = []
        if before is not None and before.end == vma.start:
            apart = why_apart(self.machine, self.pictures, before, vma)
        return Area(
            vma.id,
            vma.mm.id,
            vma.start,
            vma.end,
            vma.pgoff,
            rights(vma),
            backing(vma) if not vma.name else f"{backing(vma)} “{vma.name}”",
            vma.prepared,
            cells,
            more,
            apart,
            _why(vma),
        )

    def _cells(self, vma: VMA) -> tuple[list[Cell], int]:
        pages, entries = _entries(vma)
        if len(pages) == 0:
            return [], 0
        starts = np.arange(len(pages))
        if len(pages) > self.detail.cells:
            starts = self._runs(pages, entries)
        ends = np.append(starts[1:], len(pages))
        cells = [
            self._cell(vma, int(pages[start]), int(end - start), int(entries[start]))
            for start, end in zip(
                starts[: self.detail.cells].tolist(), ends[: self.detail.cells].tolist(), strict=True
            )
        ]
        return cells, sum(
            int(end - start)
            for start, end in zip(starts[self.detail.cells :], ends[self.detail.cells :], strict=True)
        )

    def _runs(self, pages: Int64s, entries: Int64s) -> Int64s:
        """Where pages begin that are not like the one before: another kind, not the next frame, or mapped
        more or less often."""
        flags = entries & (
            PTE_ANON | PTE_MIGRATION | PTE_SWAP | PTE_ZERO | PTE_FILE | PTE_KSM | PTE_WRITE | PTE_EXCLUSIVE
        )
        numbers = entries >> PTE_SHIFT
        anon = entries & PTE_ANON != 0
        counts = np.where(anon, self.machine.folios.mapcount.v[np.where(anon, numbers, 0)], 0)
        step = np.where(entries & (PTE_ANON | PTE_MIGRATION | PTE_SWAP) != 0, 1, 0)[1:]
        other = (
            (np.diff(pages) != 1)
            | (np.diff(flags) != 0)
            | (np.diff(numbers) != step)
            | (np.diff(counts) != 0)
        )
        return np.concatenate([np.zeros(1, dtype=np.int64), np.flatnonzero(other) + 1])

    def _cell(self, vma: VMA, page: int, count: int, entry: int) -> Cell:
        kind = next(letter for bit, letter in _KINDS if entry & bit)
        number = entry >> PTE_SHIFT
        missed = 0
        if self.doomed and self.doomed.get((vma.mm.id, vma.start + (page << PAGE_SHIFT))) == number:
            missed = MISSED if self.came_true else DOOMED
        head = int(self.machine.folios.head.m[number]) if kind in "AM" else 0
        if head and self.machine.folios.order.m[head] < 0:  # a race left an entry for a page that is free
            head = 0
        marks = (
            (WRITABLE if entry & PTE_WRITE else 0)
            | (EXCLUSIVE if entry & PTE_EXCLUSIVE else 0)
            | (KSM if entry & PTE_KSM else 0)
            | missed
        )
        return Cell(page, count, kind, number if kind in "AMS" else 0, head, marks)

    # Folios and what walks find

    def _folios(self, state: State) -> None:
        heads: dict[int, None] = {}
        for part in list(state.values()):
            if isinstance(part, Area):
                for cell in part.cells:
                    if cell.head:
                        heads[cell.head] = None
        for number, head in enumerate(heads):
            state[f"f{head}"] = self._folio(head, number < self.detail.walked)

    def _folio(self, head: int, walked: bool) -> Folio:
        folios = self.machine.folios
        flags: int = folios.flags.m[head]
        return Folio(
            head,
            folios.nr_pages(head),
            int(folios.index.m[head]),
            folios.total_mapcount(head),
            ", ".join(word for bit, word in _FLAGS if flags & bit),
            [f"{slot}/{key}" if (key := picture.anchor(head)) else "" for slot, picture in enumerate(self.pictures)],
            [self._ask(slot, head) for slot in range(len(self.pictures))] if walked else [],
        )

    def _ask(self, slot: int, head: int) -> tuple[int, int]:
        """Walk for a folio in a design: number of the answer, and page that its places count from."""
        design = self.machine.designs[slot]
        picture = self.pictures[slot]
        witness = self.witness or Witness()
        before = {name: tally.count for name, tally in design.ledger.tallies.items()}
        locks = {name: lock.reads + lock.writes for name, lock in design.ledger.locks.items()}
        places: list[Place] = []
        held: list[str] = []
        base = more = more_hits = 0
        witness.forget()
        witness.listening = True
        try:
            for vma, addr in design.glance(head):
                hit = maps_folio(self.machine, vma, addr, head)
                if len(places) == self.detail.places:
                    more += 1
                    more_hits += hit
                    continue
                page = (addr - vma.start) >> PAGE_SHIFT
                witness.listening = False
                if not places:
                    base = page
                    if self.witness is None:
                        held = _taken(design.ledger, locks, before)
                    else:
                        held = [self.lock_name(lock) for lock in witness.held]
                via = [f"{slot}/{key}" for key in picture.via(head, vma, addr)]
                places.append(Place(vma.id, page - base, hit, via))
                witness.listening = True
        finally:
            witness.listening = False
        trail = [f"{slot}/{name}" for thing in witness.points if (name := picture.key(thing))]
        work = [
            (name, tally.count - before.get(name, 0))
            for name, tally in design.ledger.tallies.items()
            if tally.count != before.get(name, 0)
        ]
        waits = [f"{who} holds {self.lock_name(lock)}" for lock, who in witness.waits]
        answer = Answer(places, held, list(dict.fromkeys(trail)), work, more, more_hits, waits)
        return self._number(answer), base

    def _number(self, answer: Answer) -> int:
        said = msgspec.msgpack.encode(answer)
        number = self._numbers.get(said)
        if number is None:
            number = self._numbers[said] = len(self.answers)
            self.answers.append(answer)
        return number

    # Locks

    def moved(self) -> None:
        """Something happened since the last picture: look for the locks again."""
        self._lock_names.clear()

    def lock_name(self, lock: object) -> str:
        """A lock in words: its class, and whose it is where that says something."""
        if isinstance(lock, str):
            return lock
        names = self._lock_names
        if not names:
            names.update(self.names)
            for picture in self.pictures:
                names.update(picture.locks())
            for pid, process in self.machine.processes.items():
                names[id(process.mm.mmap_lock)] = f"mmap_lock of process {pid}"
        name = names.get(id(lock))
        if name is not None:
            return name
        return lock.lock_class.name if isinstance(lock, RwSemaphore | SpinLock) else "a lock"


def maps_folio(machine: Machine, vma: VMA, addr: int, head: int) -> bool:
    """Is a page of the folio mapped at this place of a walk, which covers all pages of the folio from there on?"""
    nr_pages = machine.folios.nr_pages(head)
    for at in range(addr, min(addr + (nr_pages << PAGE_SHIFT), vma.end), 1 << PAGE_SHIFT):
        entry = vma.mm.page_table.get(at)
        if entry & (PTE_ANON | PTE_MIGRATION) and 0 <= (entry >> PTE_SHIFT) - head < nr_pages:
            return True
    return False


def pids_of(machine: Machine) -> dict[int, list[int]]:
    """Pids by the id of the address space that they run in."""
    result: dict[int, list[int]] = {}
    for pid, process in machine.processes.items():
        result.setdefault(process.mm.id, []).append(pid)
    return result


def _taken(ledger: Ledger, locks: dict[str, int], tallies: dict[str, int]) -> list[str]:
    """Classes of the locks that were taken since, and RCU."""
    taken = [name for name, lock in ledger.locks.items() if lock.reads + lock.writes > locks.get(name, 0)]
    sections = ledger.tallies.get("rcu read sections")
    if sections is not None and sections.count > tallies.get("rcu read sections", 0):
        taken.append(RCU)
    return taken


def _some(pids: Iterable[int], count: int) -> list[int]:
    return [pid for pid, _ in zip(pids, range(max(0, count)), strict=False)]


def _mapped(mm: MM) -> int:
    """Pages for which the page table of an address space has an entry."""
    return sum(leaf.used for leaf in mm.page_table.leaves.values())


def _entries(vma: VMA) -> tuple[Int64s, Int64s]:
    """Page numbers within `vma` that have an entry, and the entries."""
    table = vma.mm.page_table
    pages: list[Int64s] = []
    entries: list[Int64s] = []
    for number in table.numbers(vma.start, vma.end):
        base = number << LEAF_SHIFT
        low = max(0, vma.start - base) >> PAGE_SHIFT
        high = min(vma.end - base, 1 << LEAF_SHIFT) >> PAGE_SHIFT
        v = table.leaves[number].v[low:high]
        at = np.flatnonzero(v)
        pages.append(at + ((base - vma.start) >> PAGE_SHIFT) + low)
        entries.append(v[at])
    if not pages:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    return np.concatenate(pages), np.concatenate(entries)


def _why(vma: VMA) -> str:
    """How its page offset relates to its address."""
    home = vma.pgoff << PAGE_SHIFT
    if vma.file is not None:
        told = f"Its page offset counts pages of the file, from page {hexa(vma.pgoff)}."
    elif home == vma.start:
        told = "It is where its page offset says."
    else:
        told = (
            f"Its page offset stands for address {hexa(home)}: it was moved after its first page"
            " (execve does that to a stack), and the page offset stuck."
        )
    if vma.prepared:
        return told
    return f"{told} No anonymous page was ever in it, so no reverse map knows it."
