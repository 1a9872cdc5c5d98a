# SPDX-License-Identifier: GPL-2.0-or-later
"""Bugs, re-introduced: a check that cannot fail is worth nothing.

A `Mutant` is a design from which one rule was taken.  Some of the rules were once missing in Linux (KERNEL.md,
section 6, has the commits); the others are those that a new design would be most likely to miss.  `hunt`
plays random histories on a machine that the design and its mutant watch, and returns the first thing that
tells them apart: an entry that the mutant's walk does not find, a VMA that only one of the two visits, or a
record of the mutant that no VMA accounts for.

`STALE_PGOFF` is a bug of the machine instead: the profile of a kernel in which a VMA that is moved before its
first fault keeps its page offset.
"""

from __future__ import annotations

import random
from typing import Final, cast

import msgspec

from rmaplab.check.histories import Author
from rmaplab.check.lockstep import Checker, Difference, Kind
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, Profile
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import MM, VMA
from rmaplab.rmap.anon_vma import AnonVma, AnonVmaRmap, Family
from rmaplab.rmap.cow_context import CowContextRmap
from rmaplab.rmap.cow_context_prototype import CowContextPrototypeRmap


class Mutant(msgspec.Struct, frozen=True):
    """A design without one of its rules.

    rule:   what the mutant does not do
    shows:  as what kind of difference
    leads:  only where its own merges come true, so that no other design can watch
    origin: the commit that brought the rule, where Linux once lacked it
    """

    rule: str
    original: type[ReverseMap]
    mutated: type[ReverseMap]
    shows: Kind
    origin: str = ""
    leads: bool = False


def hunt(mutant: Mutant, seed: int, steps: int, every: int = 2) -> list[Difference]:
    """What tells the mutant from the original in the way that it should, at the first moment that something
    does; nothing if a random history of `steps` events does not show it."""
    designs: list[type[ReverseMap]] = [AnonVmaRmap, mutant.original, mutant.mutated]
    if mutant.leads:
        designs = [mutant.mutated]
    elif mutant.original is AnonVmaRmap:
        del designs[0]
    machine = Machine(PROFILES["6.12"], designs)
    author = Author(machine, random.Random(seed))
    checker = Checker(machine, reference=mutant.original.name)
    author.begin()
    for step in range(1, steps):
        event = author.next()
        if step % every == 0:
            differences = checker.check(step, event)
            found = [d for d in differences if d.design == mutant.mutated.name and d.kind == mutant.shows]
            if found:
                return found
    return []


STALE_PGOFF: Final = Profile(
    "6.12 with stale page offsets", "", PROFILES["6.12"].sizes, fresh_pgoff=False
)

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
        family = self._family(vma)
        return None if family is None else family.anon_vma


class KeysLeftBehind(AnonVmaRmap):
    name = "anon_vma, keys not changed with the geometry"

    def geometry_begin(self, vma: VMA, neighbour: VMA | None) -> None:
        pass

    def geometry_end(self, vma: VMA, neighbour: VMA | None) -> None:
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


def _own_anon_vma(design: AnonVmaRmap, vma: VMA) -> AnonVma:
    anon_vma = cast(Family, vma.rmap[design.slot]).anon_vma
    assert anon_vma is not None
    return anon_vma


def _link_alone(design: AnonVmaRmap, vma: VMA, anon_vma: AnonVma) -> None:
    """Link `vma` with the anon_vma that takes its new pages, and with none that it has pages of."""
    family = Family(anon_vma)
    vma.rmap[design.slot] = family
    design._link(family, vma, anon_vma)


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

    def vma_split(self, vma: VMA, new: VMA) -> None:
        new.rmap[self.slot] = vma.rmap[self.slot]


class SharedSwapEntryOwned(CowContextRmap):
    name = "cow_context, page from a shared swap entry given to whoever reads it first"

    def folio_swapped_in(self, vma: VMA, addr: int, pfn: int, exclusive: bool) -> None:
        super().folio_swapped_in(vma, addr, pfn, True)


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


MUTANTS: Final = (
    Mutant("a split clones the chain", AnonVmaRmap, SplitWithoutClone, "incomplete"),
    Mutant("growing over another imports its chain", AnonVmaRmap, JoinWithoutClone, "incomplete", "287d97ac0321"),
    Mutant("mremap's copy clones the chain", AnonVmaRmap, CopyWithoutClone, "incomplete"),
    Mutant("fork links the child", AnonVmaRmap, ChildNotLinked, "incomplete"),
    Mutant("fork drops the inherited pointer", AnonVmaRmap, InheritedPointerKept, "additional", "b800c91a0517"),
    Mutant("only a singular chain is shared", AnonVmaRmap, NeighbourNotSingular, "incomplete", "d0e9fe1758f2", True),
    Mutant("keys follow the geometry", AnonVmaRmap, KeysLeftBehind, "incomplete"),
    Mutant("munmap unlinks", AnonVmaRmap, NotUnlinked, "stale"),
    Mutant("a shared page from swap belongs to the root", AnonVmaRmap, SwappedInAsOwn, "incomplete"),
    Mutant("a reused page belongs to who reuses it", AnonVmaRmap, NotTakenOver, "additional"),
    Mutant("migration copies the mapping", AnonVmaRmap, AnchorNotMigrated, "incomplete"),
    Mutant("KSM remembers its places", AnonVmaRmap, KsmPlaceForgotten, "incomplete"),
    Mutant("mremap records the remap", CowContextRmap, RemapNotRecorded, "incomplete"),
    Mutant("coming home drops the record", CowContextRmap, HomecomingNotNoticed, "record"),
    Mutant("fork records what is displaced", CowContextRmap, ChildNotRecorded, "incomplete"),
    Mutant("fork links the child's context", CowContextRmap, ContextNotLinked, "incomplete"),
    Mutant("a split keeps both halves recorded", CowContextRmap, SplitNotRecorded, "incomplete"),
    Mutant("a shared page from swap belongs to the oldest", CowContextRmap, SharedSwapEntryOwned, "incomplete"),
    Mutant("mremap records the remap", CowContextPrototypeRmap, PrototypeRemapNotRecorded, "missing"),
    Mutant("coming home drops the record", CowContextPrototypeRmap, PrototypeHomecomingNotNoticed, "additional"),
    Mutant("fork records what is displaced", CowContextPrototypeRmap, PrototypeChildNotRecorded, "missing"),
)
