# SPDX-License-Identifier: GPL-2.0-or-later
"""Designs that take over memory which came to be without them: as complete as those that saw it come.

The histories are those that real kernels answered (fixtures).  All designs are there while one is played; then the
machine is written down as a kernel would show it (no design but anon_vma leaves a trace), and built again.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kernel.fixture_files import read
from rmaplab.check.histories import header
from rmaplab.check.truth import Truth
from rmaplab.kernel.columns import of
from rmaplab.kernel.consistency import problems
from rmaplab.kernel.importer import (
    DESIGNS,
    UNPLACED,
    Built,
    Finding,
    State,
    build,
    differences,
    examine,
)
from rmaplab.kernel.snapshot import AnonVma, Avc, Entry, Mm, Page, Snapshot, TreeNode, Vma
from rmaplab.kernel.survey import Moment, markdown
from rmaplab.mm.folio import FOLIO_KSM
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import LEAF_SHIFT, PTE_ANON, PTE_EXCLUSIVE, PTE_FILE, PTE_SHIFT, PTE_WRITE, PTE_ZERO
from rmaplab.mm.profile import profile_for
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.takeover import TakenOver
from rmaplab.mm.vma import MM, VMA
from rmaplab.rmap import EXCUSED
from rmaplab.rmap.anon_vma import AnonVma as Family
from rmaplab.rmap.anon_vma import AnonVmaChain, AnonVmaRmap
from rmaplab.rmap.anon_vma_lazy import AnonVmaLazyRmap
from rmaplab.rmap.anonmm import AnonMMRmap
from rmaplab.rmap.cow_context import CowContextRmap
from rmaplab.rmap.interval_tree import IntervalNode
from rmaplab.rmap.pte_chain import PteChainRmap
from rmaplab.trace.play import Player

NOWHERE = ("merged_and_found_nowhere", "merged_and_moved_over")  # a KSM page that no walk finds in Linux either
KINDS = ((PTE_ANON, "anon"), (PTE_ZERO, "zero"), (PTE_FILE, "file"))
FIXTURES = [path for kernel in ("6.12", "7.3")
            for path in sorted((Path(__file__).parent / "fixtures" / kernel).glob("*.txt"))]  # fmt: skip


def played(path: Path) -> Machine:
    """A machine after that history."""
    release, its, events, _ = read(path)
    machine = Machine(profile_for(release)[0], DESIGNS, large_folios=its.large_folios)
    if its.mappings:
        machine.max_map_count = its.mappings
    player = Player(machine, header(), batch=False)
    in_exec = False
    for event in events:
        in_exec = event.op == "exec" or (in_exec and event.op == "fault")
        machine.large_folios = 0 if in_exec else its.large_folios
        player.do(event)
    return machine


class Writer:
    """Writes a machine down as a kernel with anon_vma shows itself.  Addresses of objects count on from 0x1000."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.snapshot = machine, Snapshot()
        design = machine.designs[0]
        assert isinstance(design, AnonVmaRmap)
        self.design = design
        self.addresses: dict[object, int] = {}
        self.exclusive: set[int] = set()  # pages
        for mm in machine.mms.values():
            self.mm(mm)
        for address in list(self.snapshot.anon_vmas):
            self.tree(address)
        self.pages()

    def address(self, of: object) -> int:
        return self.addresses.setdefault(of, 0x1000 + 0x100 * len(self.addresses))

    def mm(self, mm: MM) -> None:
        its = Mm(self.address(mm), 0, 0, 0, 0)
        its.pids += [pid for pid, process in self.machine.processes.items() if process.mm is mm]
        self.snapshot.mms[its.address] = its
        for vma in mm.tree:
            its.vmas.append(self.vma(vma, its.address))
        for number, leaf in sorted(mm.page_table.leaves.items()):
            for i, entry in enumerate(leaf.v.tolist()):
                if entry:
                    kind = next((kind for bit, kind in KINDS if entry & bit), "swap")
                    its.entries[(number << LEAF_SHIFT) + (i << 12)] = Entry(
                        kind, entry >> PTE_SHIFT, bool(entry & PTE_WRITE), bool(entry & PTE_EXCLUSIVE)
                    )
                    if entry & PTE_ANON and entry & PTE_EXCLUSIVE:
                        self.exclusive.add(entry >> PTE_SHIFT)

    def vma(self, vma: VMA, mm: int) -> Vma:
        family = self.design.fields_of(vma)
        own = 0 if family is None or family.anon_vma is None else self.family(family.anon_vma)
        file = int(vma.file is not None)
        its = Vma(self.address(vma), mm, vma.start, vma.end, vma.pgoff, vma.flags, file, own, vma.anon_pgoff)
        its.inode = 0 if vma.file is None else vma.file.id
        self.snapshot.vmas[its.address] = its
        for link in reversed(family.chain if family is not None else []):
            avc = Avc(self.address(link), its.address, self.family(link.anon_vma))
            self.snapshot.avcs[avc.address] = avc
            its.chain.append(avc.address)
        return its

    def family(self, mine: Family) -> int:
        address = self.address(mine)
        if address not in self.snapshot.anon_vmas:
            self.snapshot.anon_vmas[address] = AnonVma(address, 0, 0, 0, 0, 0)
            self.snapshot.anon_vmas[address] = AnonVma(
                address, self.family(mine.root), self.family(mine.parent), mine.refcount, mine.num_children,
                mine.num_active_vmas,
            )  # fmt: skip
        return address

    def tree(self, address: int) -> None:
        mine = next(of for of, its in self.addresses.items() if its == address)
        assert isinstance(mine, Family)

        def number(node: IntervalNode | None) -> int:
            return 0 if node is None else self.address(node)

        for node in mine.touching(0, 1 << 60, self.design.ledger.tally("written")):
            assert isinstance(node, AnonVmaChain)
            its = TreeNode(self.address(node), number(node.left), number(node.right), int(node.subtree_last))
            self.snapshot.anon_vmas[address].tree.append(its)

    def pages(self) -> None:
        folios, design = self.machine.folios, self.design
        anchors = {mine.number: address for mine, address in self.addresses.items() if isinstance(mine, Family)}
        for folio in Truth(self.machine).mapped_folios():
            for pfn in {folio.head + page for _, _, page in folio.entries}:
                page = self.snapshot.pages[pfn] = Page(pfn, folio.head)
                page.order = folio.nr_pages.bit_length() - 1
                page.index, page.mapcount = int(folios.index.v[pfn]), int(folios.mapcount.v[pfn])
                page.exclusive = pfn in self.exclusive
                page.ksm = bool(folios.flags.v[folio.head] & FOLIO_KSM)
                page.anon_vma = 0 if page.ksm else anchors[int(design.anchor.v[pfn])]
                if page.ksm:
                    places = design.ksm.newest_first(pfn)
                    self.snapshot.ksm_places[pfn] = [(self.address(place.mm), place.addr) for place in places]
                    self.snapshot.ksm_owners[pfn] = [self.address(place.anchor) for place in places]


def taken_over(machine: Machine, designs: tuple[type[ReverseMap], ...] = DESIGNS) -> tuple[Built, list[str]]:
    """A machine made of what `machine` shows, and what is wrong with it."""
    snapshot = Writer(machine).snapshot
    columns = of(snapshot)
    built = build(snapshot, columns, {}, machine.profile, designs)
    return built, [*problems(snapshot, columns), *differences(built.machine, columns)]


def found(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.design: finding for finding in findings}


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: f"{path.parent.name} {path.stem}")
def test_whoever_takes_over_finds_all_that_is_mapped(path: Path) -> None:
    saw = played(path)
    seen = found(examine(saw))
    built, wrong = taken_over(saw)
    assert wrong == []
    now = found(examine(built.machine, built.unplaced))
    for name in now:
        if name not in EXCUSED:
            assert now[name].missing == seen[name].missing, name
            assert now[name].missed.keys() <= {UNPLACED}, name
    assert now["anon_vma"].missing == len(built.unplaced)  # what it is that the kernel itself misses
    assert any(seen[name].missed for name in seen if name not in EXCUSED) == (path.stem in NOWHERE)
    # What is not inferred is as if it had been seen; but what KSM alone refers to is not there.
    for name in ("anon_vma", "pte_chain"):
        assert (now[name].places, now[name].useful) == (seen[name].places, seen[name].useful), name
    if not any(event.op == "ksm" for event in read(path)[2]):
        assert now["anon_vma"].held == seen["anon_vma"].held
    # What left no trace is not there: never more than there was.  (pte_chain keeps a chain also for one entry.)  Only
    # anon_vma_lazy may have more, as it takes over anon_vmas at other moments than anon_vma, whose graph it gets.
    for name in ("anon_vma", "anonmm", "pte_chain"):
        assert all(count <= seen[name].held.get(of, 0) for of, count in now[name].held.items()), name
    assert now["pte_chain"].places == now["pte_chain"].useful


def test_lazy_knows_by_its_chain_whether_a_vma_came_about_by_fork() -> None:
    """Its new pages may go where those of a neighbour do only if it did not (AnonVmaLazyRmap._never_forked())."""
    path = next(path for path in FIXTURES if path.stem == "child_copies")
    built, _ = taken_over(played(path), (AnonVmaRmap, AnonVmaLazyRmap))
    eager, lazy = built.machine.designs
    assert isinstance(eager, AnonVmaRmap) and isinstance(lazy, AnonVmaLazyRmap)
    forked = {
        (mm.id, fields.forked, len(chain.chain) > 1)
        for mm in built.machine.mms.values()
        for vma in mm.tree
        if (fields := lazy._lazy(vma)) is not None and (chain := eager.fields_of(vma)) is not None
    }
    assert forked == {(1, False, False), (2, True, True)}


class WithoutEntries(PteChainRmap):
    """Takes over everything but the entries."""

    watches_entries = False


class NothingIsOdd(AnonMMRmap):
    """Takes each page to be at one address."""

    watches_entries = False


class LazyWhereMoved(AnonVmaLazyRmap):
    """Takes an anon_vma whose VMAs are at several offsets for one that nobody needed yet."""

    def _never_upgraded(self, found: TakenOver) -> set[int]:
        parents = {its.parent for i, its in enumerate(found.anon_vmas) if its.parent != i}
        return {known.own for known in found.vmas} - parents - {place.own for place in found.places}


class SpacesApart(CowContextRmap):
    """Nobody was forked from anybody."""

    def take_over_spaces(self, found: TakenOver) -> None:
        for mm, _ in found.spaces:
            self.mm_created(mm)


class ShallowTree(AnonVmaRmap):
    """Forgets the last VMA of each tree."""

    def take_over(self, found: TakenOver) -> None:
        super().take_over(found)
        for anon_vma in self.anon_vmas:
            nodes = [] if anon_vma is None else list(anon_vma.touching(0, 1 << 60, self.visited))
            if anon_vma is not None and nodes:
                anon_vma.remove(nodes[-1], self.visited)


class PlacesForgotten(AnonVmaRmap):
    """Does not ask where KSM has mapped its pages."""

    def take_over(self, found: TakenOver) -> None:
        places = found.places[:]
        found.places.clear()
        super().take_over(found)
        found.places.extend(places)


@pytest.mark.parametrize(
    "broken", [WithoutEntries, NothingIsOdd, LazyWhereMoved, SpacesApart, ShallowTree, PlacesForgotten]
)
def test_a_design_that_takes_over_less_misses_something(broken: type[ReverseMap]) -> None:
    for path in FIXTURES:
        built, _ = taken_over(played(path), (AnonVmaRmap, broken))
        if not examine(built.machine, built.unplaced)[1].holds:
            print(f"missed after {path.stem}")
            return
    pytest.fail("it finds all that is mapped after each history")


def test_tables_say_what_the_kernel_misses_and_who_else_does() -> None:
    path = next(path for path in FIXTURES if path.stem in NOWHERE)
    built, _ = taken_over(played(path))
    count = len(built.unplaced)
    findings = examine(built.machine, built.unplaced)
    state = State(
        "6.12.0", "6.12", [], 1, 0, 3, 3, {"anon": 7}, {}, [], built.ancestry, findings, len(built.unplaced)
    )
    assert state.holds
    assert f"({count} of these the kernel's own walk does not find)" in state.table()
    tables = markdown([Moment("redis", "at rest", 1, 0.0, state)])
    assert f"| redis, at rest | 1 | 3 | 3 | {findings[0].folios} | {findings[0].entries} |" in tables
    missed = [str(finding.missing) for finding in findings]
    assert f"Entries missed:\n\n| program and moment | {' | '.join(finding.design for finding in findings)} |" in tables
    assert f"| redis, at rest | {' | '.join(missed)} |" in tables
    assert f"- anon_vma misses {count}: {UNPLACED}" in tables
