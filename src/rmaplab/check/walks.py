# SPDX-License-Identifier: GPL-2.0-or-later
"""Walks compared with the truth: folios to walk again after a step, and the errors of their walks.

Walks cost more than all else in a check, and a step changes few of them.  `Changes` lists the folios whose walks a
step can have changed:

- whose entries differ from those of the check before, or whose row does in any column of `Folios`: the designs keep
  the targets of folios in such columns, too;
- those mapped, or visited by their last walk, in an address space that a step named, or that has other VMAs than
  before: there the designs got events about VMAs;
- KSM's pages, which have no place of their own;
- all, where an address space was created or freed: designs create and free shared objects then.

Why no error is missed: a walk goes from the folio's target, through the design's records of the VMAs and address
spaces that it ought to visit, which are those that map the folio.  Every event names the folio, or a VMA of an address
space that the system call named, or that differs afterwards.  A design with a bug may do
damage elsewhere, so every now and then a check walks all; and tests/check/test_walks.py compares the two,
without that net, over random histories, with right designs and with every mutant.  What a walk visits in vain
(`missing` and `additional`, which are no errors) may change unseen: a folio is not walked again because a VMA appears
in an address space that does not map it.

Nothing else is left out: page tables and invariants are read in full at each check (check/truth.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rmaplab.check.truth import MappedFolio, Place, Truth
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import PTE_SHIFT
from rmaplab.mm.vma import MM

_MM_SHIFT: Final = 48


class Tally:
    """What the walks of one design added up to: how many, the places they visited, how many of these map the folio,
    and the most that one walk visited."""

    def __init__(self) -> None:
        self.walks = 0
        self.places = 0
        self.useful = 0
        self.worst = 0
        self.lengths: Final[dict[int, int]] = {}


class Odd:
    """A folio with a walk that is incomplete or stale, or visits other VMAs than the reference's; all its walks, by
    design."""

    def __init__(self, folio: MappedFolio, walks: list[list[Place]]) -> None:
        self.folio: Final = folio
        self.walks: Final = walks


class Walker:
    """Walks folios in all designs of a machine.

    reference: place among the designs of the one that all others are compared with, -1 if there is none
    """

    def __init__(self, machine: Machine, reference: int) -> None:
        self.tallies: Final = [Tally() for _ in machine.designs]
        self.folios = 0
        self.entries = 0
        self.visited: Final[dict[int, set[int]]] = {}  # by mm: the folios whose walks went there
        self._designs: Final = machine.designs
        self._reference: Final = reference

    def walk(self, truth: Truth, chosen: Sequence[int]) -> list[Odd]:
        """Walk the folios with these numbers in `truth`; return those at which one has to look closer."""
        odd: list[Odd] = []
        for i in chosen:
            folio = truth.folio(i)
            self.folios += 1
            self.entries += len(folio.entries)
            walks: list[list[Place]] = []
            fine = True
            for design, tally in zip(self._designs, self.tallies, strict=True):
                places = list(design.walk(folio.head))
                walks.append(places)
                if not self._is_fine(folio, places, tally):
                    fine = False
            if fine and self._reference >= 0:
                expected = walks[self._reference]
                for places in walks:
                    if places != expected and not _same_vmas(places, expected):
                        fine = False
            if not fine:
                odd.append(Odd(folio, walks))
        return odd

    def _is_fine(self, folio: MappedFolio, places: list[Place], tally: Tally) -> bool:
        """Count the walk.  Is it complete, and none of its places stale?"""
        head = folio.head
        stale = False
        useful = 0
        for place in places:
            vma = place[0]
            id = vma.mm.id
            folios = self.visited.get(id)
            if folios is None:
                folios = set()
                self.visited[id] = folios
            folios.add(head)
            if is_stale(place):
                stale = True
            elif folio.mapped_at(place):
                useful += 1
        nr_places = len(places)
        tally.walks += 1
        tally.places += nr_places
        tally.lengths[nr_places] = tally.lengths.get(nr_places, 0) + 1
        tally.useful += useful
        if nr_places > tally.worst:
            tally.worst = nr_places
        if stale:
            return False
        if len(folio.entries) == 1 and useful:
            return True
        return not folio.unseen(places)


def is_stale(place: Place) -> bool:
    """Does the place no longer exist?"""
    vma, addr = place
    return vma.detached or not vma.mm.alive or not vma.start <= addr < vma.end


def _same_vmas(places: list[Place], expected: list[Place]) -> bool:
    return {id(vma) for vma, _ in places} == {id(vma) for vma, _ in expected}


class Changes:
    """The folios to walk again, and all of them at each `full`-th check.  Remembers the state of the machine at the
    previous check.

    folios:     numbers of the folios in the `Truth` that was looked at
    everything: whether these are all
    """

    def __init__(self, machine: Machine, walker: Walker, full: int) -> None:
        self._full: Final = full
        self._machine: Final = machine
        self._walker: Final = walker
        self._named: Final[set[int]] = set()  # mms that were named since the last check
        self._vmas: dict[int, list[int]] = {}  # by mm
        self._entries: dict[int, int] = {}  # by address space and address
        self._columns: list[bytes] = []
        self._checks = 0
        self._came_or_went = False
        self.folios: list[int] = []
        self.everything = True

    def name(self, pid: int) -> None:
        """An event may have concerned VMAs of this process."""
        process = self._machine.processes.get(pid)
        if process is not None:
            self._named.add(process.mm.id)

    def look(self, truth: Truth) -> None:
        """Determine what steps since the last call can have changed."""
        touched = self._touched(truth)
        changed = self._rows()
        changed |= set(self._machine.ksm_pages)
        for id in touched:
            changed |= self._walker.visited.pop(id, set())
        head_of = self._machine.folios.head.m
        now: dict[int, int] = {}
        before = self._entries
        for mm, addr, entry in truth.anon_entries():
            key = mm.id << _MM_SHIFT | addr
            now[key] = entry
            if before.pop(key, 0) != entry or mm.id in touched:
                head: int = head_of[entry >> PTE_SHIFT]
                changed.add(head)
        for entry in before.values():  # they are gone
            was: int = head_of[entry >> PTE_SHIFT]
            changed.add(was)
        self._entries = now
        self._checks += 1
        self.everything = self._came_or_went or not self._checks % self._full
        if self.everything:
            self.folios = list(range(len(truth)))
        else:
            self.folios = [i for i, head in enumerate(truth.heads) if head in changed]

    def _touched(self, truth: Truth) -> set[int]:
        """Address spaces that were named, or have other VMAs."""
        touched = set(self._named)
        self._named.clear()
        before = self._vmas
        self._vmas = {mm.id: _picture(mm) for mm in truth.mms}
        for id, vmas in self._vmas.items():
            if before.get(id) != vmas:
                touched.add(id)
        self._came_or_went = before.keys() != self._vmas.keys()
        return touched

    def _rows(self) -> set[int]:
        """First pages of the folios whose rows have changed."""
        changed: set[int] = set()
        folios = self._machine.folios
        columns = folios.columns
        now: list[bytes] = []
        for i in range(len(columns)):
            rows = columns[i].v[: folios.end]
            now.append(rows.tobytes())
            if i < len(self._columns) and self._columns[i] != now[i]:
                before = columns[i].parse(self._columns[i])
                nr = min(len(before), len(rows))
                for pfn in (rows[:nr] != before[:nr]).nonzero()[0].tolist():
                    head: int = folios.head.m[pfn]
                    changed.add(head)
        self._columns = now
        return changed


def _picture(mm: MM) -> list[int]:
    """The attributes of all VMAs that walks depend on."""
    picture: list[int] = []
    for vma in mm.tree.to_list():
        picture += (vma.id, vma.start, vma.end, vma.pgoff, vma.prepared)
    return picture
