# SPDX-License-Identifier: GPL-2.0-or-later
"""Bugs, re-introduced: a check that cannot fail is worth nothing.

A `Mutant` is a design without one of its rules.  Some of the rules were once missing in Linux (docs/kernels/rules.md,
section 6, has the commits); the others are those that a new design would be most likely to miss.  `play`
plays random histories on a machine that the design and its mutant watch, and returns the first thing that
tells them apart: an entry that the mutant's walk does not find, a VMA that only one of the two visits, or a
record of the mutant that no VMA accounts for.
"""

from __future__ import annotations

import random
from typing import Final, cast

import msgspec

from rmaplab.check.histories import OPERATIONS, Author
from rmaplab.check.lockstep import Checker
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.folio import FOLIO_PARTLY, MAX_ORDER, Int64s
from rmaplab.mm.geometry import GeometryChange, bounds_of
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import LEAF_ENTRIES, LEAF_SHIFT
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import MM, PAGE_SHIFT, PAGE_SIZE, VMA
from rmaplab.printable import slug
from rmaplab.rmap import DESIGNS
from rmaplab.rmap.anon_vma import AnonVma, AnonVmaRmap, VmaFields
from rmaplab.rmap.cow_context import CowContextRmap
from rmaplab.rmap.cow_context_prototype import CowContextPrototypeRmap
from rmaplab.rmap.page_scan import PageScanRmap
from rmaplab.trace.events import Event


class Mutant(msgspec.Struct, frozen=True):
    """A design, or a machine, without one of its rules or orderings.

    rule:    what the mutant does not do
    shows:   as what kind of difference, "broken" if something raises, or "race"
    leads:   only where its own merges come true, so that no other design can watch
    origin:  the commit that brought the rule, where Linux once lacked it
    machine: on which it shows, if that is what lacks the rule
    scene:   for "race": the scenario that shows it (check/scenarios.py)
    memory:  for "race": the memory model
    weakened: the ordering that is taken away (sync/order.py), under weak memory
    profile, ops, pages, processes, large_folios: what random histories are best made of to show it
    """

    rule: str
    original: type[ReverseMap]
    mutated: type[ReverseMap]
    shows: str
    origin: str = ""
    leads: bool = False
    machine: type[Machine] = Machine
    scene: str = ""
    memory: str = "sc"
    weakened: str = ""
    profile: str = REFERENCE
    ops: tuple[str, ...] = OPERATIONS
    pages: int = 48
    processes: int = 6
    large_folios: int = 0

    @property
    def name(self) -> str:
        """The name of the class that breaks the rule, or of the design and the ordering that it lacks."""
        if self.weakened:
            return slug(f"{self._design} {self.weakened}")
        return (self.mutated if self.machine is Machine else self.machine).__name__

    @property
    def bug(self) -> str:
        """What is wrong with it."""
        if self.weakened:
            return f"{self._design}, {self.weakened}: ordering taken away"
        if self.machine is not Machine:
            return (self.machine.__doc__ or "").split(".")[0].replace("\n", " ")
        return self.mutated.name

    @property
    def _design(self) -> str:
        return next(name for name, design in DESIGNS.items() if design is self.original)

    def switched_off(self) -> Mutant:
        """The same search with the rule in place, which must find nothing."""

        if self.weakened:
            return msgspec.structs.replace(self, weakened="")

        class Unchanged(self.original):  # type: ignore[name-defined, misc]
            name = "unchanged"

        return msgspec.structs.replace(self, mutated=Unchanged, machine=Machine)

    def others(self) -> list[Mutant]:
        """Searches that must find nothing: the rule in place; without an ordering, also sequential consistency."""
        if self.weakened:
            return [self.switched_off(), msgspec.structs.replace(self, memory="sc")]
        return [self.switched_off()]

    def build(self) -> Machine:
        """A new machine that the mutant watches, with its original where both can."""
        designs: list[type[ReverseMap]] = [AnonVmaRmap, self.original, self.mutated]
        if self.leads:
            designs = [self.mutated]
        elif self.original is AnonVmaRmap:
            del designs[0]
        return self.machine(PROFILES[self.profile], designs, large_folios=self.large_folios)

    def names(self, machine: Machine) -> tuple[str, str]:
        """What the mutant and its original are called on `machine`; "" for what does not watch.  By instance:
        where designs are compiled, `name` of a class is a descriptor."""
        names = {type(design): design.name for design in machine.designs}
        return names[self.mutated], names.get(self.original, "")


class Caught(msgspec.Struct):
    """A random history, and how it shows the mutant; `what` is empty if it does not."""

    events: list[Event]
    what: str = ""


def play(mutant: Mutant, seed: int, steps: int, every: int = 2) -> Caught:
    """A random history of `steps` events, up to the first moment that shows the mutant."""
    machine = mutant.build()
    author = Author(machine, random.Random(seed), mutant.ops, mutant.pages, mutant.processes)
    mutated, original = mutant.names(machine)
    checker = Checker(machine, reference=original)
    caught = Caught([])
    for event in author.proposals(steps):
        caught.events.append(event)
        try:
            author.play(event)
            if len(caught.events) % every:
                continue
            differences = checker.check(len(caught.events) - 1, event)
        except (HistoryError, KeyboardInterrupt):
            raise
        except Exception as error:
            if mutant.shows == "broken":
                caught.what = f"{type(error).__name__}: {error}"
            return caught
        shown = [d.what for d in differences if d.design in (mutated, "") and d.kind == mutant.shows]
        if shown:
            caught.what = shown[0]
            return caught
    return caught



# anon_vma


class SplitWithoutClone(AnonVmaRmap):
    name = "anon_vma, chain not cloned at split"

    def vma_split(self, vma: VMA, new: VMA) -> None:
        _link_alone(self, new, _own_anon_vma(self, vma))


class JoinWithoutClone(AnonVmaRmap):
    name = "anon_vma, chain not imported by a VMA that grows over a prepared one"

    def vma_joined(self, vma: VMA, donor: VMA) -> None:
        self.vma_prepare(vma)


class CopyWithoutClone(AnonVmaRmap):
    name = "anon_vma, chain not cloned at mremap"

    def vma_copied(self, source: VMA, new: VMA) -> None:
        _link_alone(self, new, _own_anon_vma(self, source))


class ChildNotLinked(AnonVmaRmap):
    name = "anon_vma, child not linked at fork"

    def vma_forked(self, parent: VMA, child: VMA) -> None:
        self.vma_prepare(child)


class InheritedPointerKept(AnonVmaRmap):
    name = "anon_vma, inherited pointer kept at fork"

    def vma_forked(self, parent: VMA, child: VMA) -> None:
        self.vma_split(parent, child)


class NeighbourNotSingular(AnonVmaRmap):
    name = "anon_vma, neighbour's taken though its chain is not singular"

    def _shareable(self, vma: VMA) -> AnonVma | None:
        fields = self.fields_of(vma)
        return None if fields is None else fields.anon_vma


class KeysLeftBehind(AnonVmaRmap):
    name = "anon_vma, keys not changed with the geometry"

    def geometry_begin(self, change: GeometryChange) -> None:
        pass

    def geometry_end(self, change: GeometryChange) -> None:
        pass


class NotUnlinked(AnonVmaRmap):
    name = "anon_vma, chain not unlinked at munmap"

    def vma_removed(self, vma: VMA) -> None:
        pass


class SwappedInAsOwn(AnonVmaRmap):
    name = "anon_vma, page from swap never given to the root"

    def folio_swapped_in(self, vma: VMA, addr: int, pfn: int, exclusive: bool) -> None:
        super().folio_swapped_in(vma, addr, pfn, True)


class NotTakenOver(AnonVmaRmap):
    name = "anon_vma, page reused after copy-on-write left to its first owner"

    def folio_reused(self, vma: VMA, pfn: int, nr_pages: int) -> None:
        pass


class AnchorNotMigrated(AnonVmaRmap):
    name = "anon_vma, new page of a migration points nowhere"

    def folio_migrated(self, old: int, new: int, nr_pages: int) -> None:
        self.anchor.v[new : new + nr_pages] = 0


class KsmPlaceForgotten(AnonVmaRmap):
    name = "anon_vma, place of a KSM page not remembered"

    def ksm_added(self, vma: VMA, addr: int, pfn: int) -> None:
        pass


class RootKept(AnonVmaRmap):
    name = "anon_vma, root not put when one of its family is freed"

    def _free_with_root(self, anon_vma: AnonVma) -> None:
        self._free(anon_vma)


class KsmPlaceKept(AnonVmaRmap):
    name = "anon_vma, reference of a KSM place not put when the page is freed"

    def folio_freed(self, pfn: int, nr_pages: int) -> None:
        self.ksm.freed(pfn)


class DegreeConflated(AnonVmaRmap):
    """One count for children and VMAs: an anon_vma that one VMA uses, and that has no children, passes for one
    that can be taken over, and is taken twice."""

    name = "anon_vma, child count and active-VMA count conflated"

    def _clone(self, fields: VmaFields, vma: VMA, source: VmaFields) -> None:
        own = fields.anon_vma
        self._lock(source.chain[0].anon_vma)
        for link in source.chain:
            anon_vma = link.anon_vma
            self._link(fields, vma, anon_vma)
            degree = anon_vma.num_children + anon_vma.num_active_vmas
            if own is None and anon_vma is not source.anon_vma and degree < 2:
                own = anon_vma
        if own is not None:
            own.num_active_vmas += 1
            fields.anon_vma = own
        self._unlock(source.chain[0].anon_vma)


class NeverTakenOver(AnonVmaRmap):
    """Each fork makes an anon_vma, however many of its ancestors' nobody uses any more."""

    name = "anon_vma, none taken over at fork"

    def _clone(self, fields: VmaFields, vma: VMA, source: VmaFields) -> None:
        self._lock(source.chain[0].anon_vma)
        for link in source.chain:
            self._link(fields, vma, link.anon_vma)
        if fields.anon_vma is not None:
            fields.anon_vma.num_active_vmas += 1
        self._unlock(source.chain[0].anon_vma)


class MovedIntoUnprepared(AnonVmaRmap):
    """Pages that mremap() moves into an unprepared neighbour keep pointing to an anon_vma that their new VMA has
    no part in."""

    name = "anon_vma, chain not imported by an unprepared VMA that pages are moved into"

    def vma_joined(self, vma: VMA, donor: VMA) -> None:
        if donor.start == vma.end or donor.end == vma.start:
            super().vma_joined(vma, donor)
        else:
            self.vma_prepare(vma)


class KeyTooShort(AnonVmaRmap):
    name = "anon_vma, key that ends a page early after a change of geometry"

    def _put_back(self, fields: VmaFields, vma: VMA) -> None:
        last = vma.anon_pgoff + vma.nr_pages - 1
        for link in reversed(fields.chain):
            link.anon_vma.insert(link, vma.anon_pgoff, max(vma.anon_pgoff, last - 1), self.visited)


def _own_anon_vma(design: AnonVmaRmap, vma: VMA) -> AnonVma:
    anon_vma = cast(VmaFields, vma.rmap[design.slot]).anon_vma
    assert anon_vma is not None
    return anon_vma


def _link_alone(design: AnonVmaRmap, vma: VMA, anon_vma: AnonVma) -> None:
    """Link `vma` with the anon_vma that takes its new pages, and with none that it has pages of."""
    fields = VmaFields(anon_vma)
    vma.rmap[design.slot] = fields
    design._link(fields, vma, anon_vma)


# CoW contexts


class RemapNotRecorded(CowContextRmap):
    name = "cow_context, remap not recorded at mremap"

    def vma_copied(self, source: VMA, new: VMA) -> None:
        new.rmap[self.slot] = source.rmap[self.slot]


class HomecomingNotNoticed(CowContextRmap):
    name = "cow_context, record kept when the range comes home"

    def vma_removed(self, vma: VMA) -> None:
        vma.rmap[self.slot] = None


class ChildNotRecorded(CowContextRmap):
    name = "cow_context, displaced VMA of a child not recorded at fork"

    def vma_forked(self, parent: VMA, child: VMA) -> None:
        child.rmap[self.slot] = parent.rmap[self.slot]


class ContextNotLinked(CowContextRmap):
    name = "cow_context, child's context not linked at fork"

    def mm_forked(self, parent: MM, child: MM) -> None:
        self.mm_created(child)


class SplitNotRecorded(CowContextRmap):
    name = "cow_context, record of a split VMA cut to one half"

    def geometry_end(self, change: GeometryChange) -> None:
        change.split_off = None
        super().geometry_end(change)


class SharedSwapEntryOwned(CowContextRmap):
    name = "cow_context, page from a shared swap entry given to whoever reads it first"

    def folio_swapped_in(self, vma: VMA, addr: int, pfn: int, exclusive: bool) -> None:
        super().folio_swapped_in(vma, addr, pfn, True)


class RecordTooShort(CowContextRmap):
    name = "cow_context, record that ends a page early"

    def _record(self, vma: VMA) -> None:
        super()._record(vma)
        for first, last, offset in self._places(vma, bounds_of(vma)):
            if last > first:
                self._forget(self.context_of(vma.mm), last, last, offset)


class ContextKept(CowContextRmap):
    name = "cow_context, context not put with its address space"

    def mm_gone(self, mm: MM) -> None:
        self.context_of(mm).mm = None


class PrototypeRemapNotRecorded(CowContextPrototypeRmap):
    name = "cow_context_prototype, remap not recorded at mremap"

    def vma_copied(self, source: VMA, new: VMA) -> None:
        pass


class PrototypeHomecomingNotNoticed(CowContextPrototypeRmap):
    name = "cow_context_prototype, record kept when the range comes home"

    def vma_removed(self, vma: VMA) -> None:
        pass


class PrototypeChildNotRecorded(CowContextPrototypeRmap):
    name = "cow_context_prototype, displaced VMA of a child not recorded at fork"

    def vma_forked(self, parent: VMA, child: VMA) -> None:
        pass


# Page-table scan


class ChildNotScanned(PageScanRmap):
    name = "page_scan, page tables of forked children not looked at"

    def mm_forked(self, parent: MM, child: MM) -> None:
        pass

    def mm_gone(self, mm: MM) -> None:
        self.mms.pop(mm.id, None)


class MigrationForgotten(PageScanRmap):
    name = "page_scan, which page stands in for which not remembered during a migration"

    def folio_migrated(self, old: int, new: int, nr_pages: int) -> None:
        pass


# The machine


class SlotNotPut(Machine):
    """An entry that goes leaves its count on the swap slot behind."""

    def put_slot(self, slot: int) -> None:
        pass


class RowsAnywhere(Machine):
    """What lies anywhere in swap may be read as one folio."""

    def place_in_swap(self, mm: MM, addr: int, nr_pages: int, first: int) -> None:
        super().place_in_swap(mm, addr, nr_pages, addr >> PAGE_SHIFT)


class ContentsForgotten(Machine):
    """What comes back from swap seems to be zeroes."""

    def add_to_swap(self, head: int) -> None:
        super().add_to_swap(head)
        for slot in self.swap.values():
            slot.written = False


class ZeroesNotMarked(Machine):
    """What is all zeroes is read with the rest."""

    def add_to_swap(self, head: int) -> None:
        super().add_to_swap(head)
        for slot in self.swap.values():
            slot.zeroes = False


class SwapCacheLeftEarly(Machine):
    """A folio leaves the swap cache although entries refer to pages of it."""

    def free_swap(self, head: int) -> bool:
        if head in self.slot_of and self.folios.order.m[head]:
            self.uncache(head)
        return super().free_swap(head)


class TornInSwapCache(Machine):
    """A folio in the swap cache counts as partly mapped, too."""

    def note_torn(self, head: int) -> None:
        if self.folios.total_mapcount(head):
            self.folios.set_flag(head, FOLIO_PARTLY)


class HugeCountedByPage(Machine):
    """An entry that maps 2 MiB counts once for each page."""

    def large_mapped(self, mm: MM, head: int, count: int) -> None:
        whole = count == 1 and self.folios.order.m[head] == MAX_ORDER
        super().large_mapped(mm, head, LEAF_ENTRIES if whole else count)


class HugeNeverTorn(Machine):
    """A folio of 2 MiB is not split for the pages of it that were unmapped."""

    def note_torn(self, head: int) -> None:
        if self.folios.order.m[head] < MAX_ORDER:
            super().note_torn(head)


class HugeTakenOverInPart(AnonVmaRmap):
    """Of a folio that a write takes over whole, only the first page moves to the writer's anon_vma."""

    def folio_reused(self, vma: VMA, pfn: int, nr_pages: int) -> None:
        super().folio_reused(vma, pfn, 1)


class NeighboursTableFreed(Machine):
    """munmap frees each page table that it has taken entries from, also if another VMA has entries there."""

    def free_page_tables(self, mm: MM, start: int, end: int, zapped: bool) -> None:
        super().free_page_tables(mm, start, end, zapped)
        mm.page_table.take_out(start, end, 0, end + (1 << LEAF_SHIFT))


class TablesKept(Machine):
    """munmap frees no page tables."""

    def free_page_tables(self, mm: MM, start: int, end: int, zapped: bool) -> None:
        pass


class VmaKept(Machine):
    """A VMA of one page that goes is not freed, but at exit."""

    def free_vma(self, vma: VMA) -> None:
        alive = vma.mm.alive
        super().free_vma(vma)
        if alive and vma.end - vma.start == PAGE_SIZE:
            self.vma_pool.alloc()


class MapcountLate(Machine):
    """Who drops the last mapping is told the count of before."""

    def drop_mapcount(self, mm: MM, pfn: int) -> int:
        return super().drop_mapcount(mm, pfn) + 1


class ChildNotCounted(Machine):
    """Fork does not count the child among those that map a large folio."""

    def add_mapcounts(self, mm: MM, pfns: Int64s, repeated: bool) -> None:
        super().add_mapcounts(mm, pfns, repeated)
        for head, count in self.large_among(pfns):
            self.mm_ids[head].sub(mm.id, count)


MUTANTS: Final = (
    Mutant("a split clones the chain", AnonVmaRmap, SplitWithoutClone, "incomplete"),
    Mutant("growing over another imports its chain", AnonVmaRmap, JoinWithoutClone, "incomplete", "287d97ac0321"),
    Mutant("mremap's copy clones the chain", AnonVmaRmap, CopyWithoutClone, "incomplete"),
    Mutant("fork links the child", AnonVmaRmap, ChildNotLinked, "incomplete"),
    Mutant("fork drops the inherited pointer", AnonVmaRmap, InheritedPointerKept, "additional", "b800c91a0517"),
    Mutant(
        "only a singular chain is shared", AnonVmaRmap, NeighbourNotSingular, "incomplete", "d0e9fe1758f2", True,
        ops=("mmap", "mprotect", "fault", "fork", "exit"), pages=6, processes=3,
    ),
    Mutant(
        "children and active VMAs are counted apart", AnonVmaRmap, DegreeConflated, "incomplete", "2555283eb40d", True,
        ops=("mprotect", "fault", "fork", "exit"), pages=3, processes=4,
    ),
    Mutant(
        "fork takes over an unused anon_vma", AnonVmaRmap, NeverTakenOver, "leak", "7a3ef208e662",
        ops=("fault", "fork", "exit"), processes=2,
    ),
    Mutant(
        "mremap into an unprepared VMA imports the chain", AnonVmaRmap, MovedIntoUnprepared, "incomplete",
        "fixed early in 2026", profile="6.18", ops=("mmap", "munmap", "mremap", "fault"), pages=12,
    ),
    Mutant("keys end where the VMA ends", AnonVmaRmap, KeyTooShort, "incomplete"),
    Mutant("keys follow the geometry", AnonVmaRmap, KeysLeftBehind, "incomplete"),
    Mutant("munmap unlinks", AnonVmaRmap, NotUnlinked, "stale"),
    Mutant("a shared page from swap belongs to the root", AnonVmaRmap, SwappedInAsOwn, "incomplete"),
    Mutant("a reused page belongs to who reuses it", AnonVmaRmap, NotTakenOver, "additional"),
    Mutant("migration copies the mapping", AnonVmaRmap, AnchorNotMigrated, "incomplete"),
    Mutant("KSM remembers its places", AnonVmaRmap, KsmPlaceForgotten, "incomplete"),
    Mutant("a family refers to its root", AnonVmaRmap, RootKept, "leak"),
    Mutant("a KSM place refers to its anon_vma", AnonVmaRmap, KsmPlaceKept, "leak"),
    Mutant("mremap records the remap", CowContextRmap, RemapNotRecorded, "incomplete"),
    Mutant("coming home drops the record", CowContextRmap, HomecomingNotNoticed, "leak"),
    Mutant("fork records what is displaced", CowContextRmap, ChildNotRecorded, "incomplete"),
    Mutant("fork links the child's context", CowContextRmap, ContextNotLinked, "incomplete"),
    Mutant("a split keeps both halves recorded", CowContextRmap, SplitNotRecorded, "incomplete"),
    Mutant("a shared page from swap belongs to the oldest", CowContextRmap, SharedSwapEntryOwned, "incomplete"),
    Mutant("records end where the VMA ends", CowContextRmap, RecordTooShort, "leak"),
    Mutant("an address space puts its context", CowContextRmap, ContextKept, "leak"),
    Mutant("mremap records the remap", CowContextPrototypeRmap, PrototypeRemapNotRecorded, "missing"),
    Mutant("coming home drops the record", CowContextPrototypeRmap, PrototypeHomecomingNotNoticed, "additional"),
    Mutant("fork records what is displaced", CowContextPrototypeRmap, PrototypeChildNotRecorded, "missing"),
    Mutant("fork makes a child known", PageScanRmap, ChildNotScanned, "incomplete"),
    Mutant("a migration is remembered", PageScanRmap, MigrationForgotten, "broken", leads=True),
    Mutant("an entry that goes puts its slot", AnonVmaRmap, AnonVmaRmap, "invariant", machine=SlotNotPut, leads=True),
    Mutant("a page table goes with the last VMA in it", AnonVmaRmap, AnonVmaRmap, "invariant",
           machine=NeighboursTableFreed, leads=True),
    Mutant("a page table goes with its VMAs", AnonVmaRmap, AnonVmaRmap, "invariant", machine=TablesKept, leads=True),
    Mutant("a VMA that is gone is freed", AnonVmaRmap, AnonVmaRmap, "leak", machine=VmaKept, leads=True),
    Mutant("the last mapping frees", AnonVmaRmap, AnonVmaRmap, "invariant", machine=MapcountLate, leads=True),
    Mutant("a large folio counts who maps it", AnonVmaRmap, AnonVmaRmap, "invariant", machine=ChildNotCounted,
           leads=True, large_folios=4),
)
