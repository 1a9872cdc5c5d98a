# SPDX-License-Identifier: GPL-2.0-or-later
"""Bugs, re-introduced, of the rival designs, older and newer (see mutants.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, cast

from rmaplab.check.mutants import Mutant
from rmaplab.mm.folio import Int64s
from rmaplab.mm.pagetable import PTE_ANON, PTE_SHIFT
from rmaplab.mm.vma import MM, VMA
from rmaplab.rmap.anon_vma import AnonVma
from rmaplab.rmap.anon_vma_lazy import AnonVmaLazyRmap, LazyFields, RootVma
from rmaplab.rmap.anon_vma_own_lock import AnonVmaOwnLockRmap
from rmaplab.rmap.anonmm import AnonMM, AnonMMRmap
from rmaplab.rmap.pte_chain import PteChainRmap
from rmaplab.rmap.unshare_on_remap import UnshareOnRemapRmap

# anon_vma_lazy


class ChildOfALazyParent(AnonVmaLazyRmap):
    name = "anon_vma_lazy, fork without an upgrade of the parent"

    def vma_forked(self, parent: VMA, child: VMA) -> None:
        self.vma_prepare(child)


class MovedWhileLazy(AnonVmaLazyRmap):
    name = "anon_vma_lazy, mremap without an upgrade of the source"

    def vma_copied(self, source: VMA, new: VMA) -> None:
        self._clone_fields(source, new)


class UpgradedAlone(AnonVmaLazyRmap):
    """The VMAs that were split from the one that is forked, or share its root VMA, are not linked."""

    name = "anon_vma_lazy, upgrade that forgets who has the same root VMA"

    def _upgrade(self, vma: VMA) -> None:
        fields = self._lazy(vma)
        if fields is None or fields.anon_vma is not None or fields.root is None:
            return
        root = fields.root
        vmas = list(root.vmas)
        root.vmas[:] = [vma]
        super()._upgrade(vma)
        root.vmas[:] = vmas


class RootNotPinned(AnonVmaLazyRmap):
    name = "anon_vma_lazy, root VMA freed while others have it"

    def _unlink_all(self, vma: VMA) -> None:
        root = cast(LazyFields, vma.rmap[self.slot]).root
        super()._unlink_all(vma)
        if root is not None and root.vma is None:
            self.roots[root.number] = None


class UpgradeNotNoticed(AnonVmaLazyRmap):
    name = "anon_vma_lazy, walk that does not look whether there was an upgrade meanwhile"

    def _walk_root(self, root: RootVma, pfn: int) -> Iterator[tuple[VMA, int]]:
        yield from super()._walk_root(root, pfn)
        self._left: RootVma | None = root

    def _anon_vma_of(self, root: RootVma) -> AnonVma | None:
        anon_vma = super()._anon_vma_of(root)
        if getattr(self, "_left", None) is root:  # the second question of a walk
            self._left = None
            return None
        return anon_vma


# anonmm


class OddNotRecorded(AnonMMRmap):
    name = "anonmm, shared page that mremap moves not recorded as odd"

    def entries_moved(self, mm: MM, old: int, new: int, entries: Int64s) -> None:
        super().entries_moved(mm, old, new, entries)
        self.entries_removed(mm, new, entries)


class AddressKept(AnonMMRmap):
    name = "anonmm, page keeps its address when mremap moves it"

    def entries_moved(self, mm: MM, old: int, new: int, entries: Int64s) -> None:
        pass


class OwnerAlone(AnonMMRmap):
    name = "anonmm, walk that looks at the page's own address space alone"

    def _from(self, anonmm: AnonMM) -> list[AnonMM]:
        return [anonmm]


class ListedLate(AnonMMRmap):
    """A walk passes the child, and then fork copies what the walk has yet to deal with."""

    name = "anonmm, child's anonmm at the beginning of the list"

    def _from(self, anonmm: AnonMM) -> list[AnonMM]:
        return super()._from(anonmm)[::-1]


class FreedWithSpace(AnonMMRmap):
    """The pages that point to it, and the list of its head, are left with what is gone."""

    name = "anonmm, freed with its address space though pages point to it"

    def mm_gone(self, mm: MM) -> None:
        super().mm_gone(mm)
        if self.scheduler is not None:
            self.scheduler.free("anonmm", self.anonmm_of(mm))


# unshare_on_remap


class AddressStays(UnshareOnRemapRmap):
    name = "unshare_on_remap, page keeps its address when mremap moves it"

    def entries_moved(self, mm: MM, old: int, new: int, entries: Int64s) -> None:
        pass


class AloneDuringMigration(UnshareOnRemapRmap):
    """The entries that wait for it are in no mapcount."""

    name = "unshare_on_remap, page with one mapping moved during its migration"

    def _is_alone(self, entry: int, pfn: int) -> bool:
        return entry & PTE_ANON != 0 and bool(self.folios.mapcount.m[pfn] == 1)


# anon_vma_own_lock


class NewestLocked(AnonVmaOwnLockRmap):
    """As 2.6.34 did, which 2.6.36 mended with the root's lock."""

    name = "anon_vma_own_lock, bounds changed with the lock of the VMA's own anon_vma alone"

    def _linked(self, vmas: Sequence[VMA]) -> list[AnonVma]:
        return super()._linked(vmas)[-1:]

# pte_chain


class ForkAddsNothing(PteChainRmap):
    name = "pte_chain, entries copied by fork not added"

    def entries_added(self, mm: MM, addr: int, entries: Int64s) -> None:
        pfns = entries[(entries & PTE_ANON) != 0] >> PTE_SHIFT
        if not len(pfns) or not self.direct.v[pfns].all():
            super().entries_added(mm, addr, entries)


class NewestLost(PteChainRmap):
    name = "pte_chain, pointer that takes a removed one's place lost"

    def _remove_from_chain(self, pfn: int, pointer: int) -> None:
        newest = self.chains[pfn][-1]
        super()._remove_from_chain(pfn, pointer)
        if pointer != newest and self.direct.m[pfn]:
            super()._remove_from_chain(pfn, newest)


class MoveForgotten(PteChainRmap):
    name = "pte_chain, list not changed when mremap moves an entry"

    def entries_moved(self, mm: MM, old: int, new: int, entries: Int64s) -> None:
        pass


class MovedInTwoSteps(PteChainRmap):
    """As 2.5 did it, which had no migration that could miss the entry."""

    name = "pte_chain, pointer removed first and added later when mremap moves an entry"

    def entries_moved(self, mm: MM, old: int, new: int, entries: Int64s) -> None:
        self.entries_removed(mm, old, entries)
        self.entries_added(mm, new, entries)


class ListedSpaceFreed(PteChainRmap):
    name = "pte_chain, mm_struct freed without a grace period"
    spaces_under_rcu = False


RIVAL_MUTANTS: Final = (
    Mutant("fork upgrades the parent", AnonVmaLazyRmap, ChildOfALazyParent, "incomplete"),
    Mutant("mremap upgrades its source", AnonVmaLazyRmap, MovedWhileLazy, "incomplete"),
    Mutant("an upgrade links all that have the root", AnonVmaLazyRmap, UpgradedAlone, "incomplete"),
    Mutant("a root VMA stays while folios may point to it", AnonVmaLazyRmap, RootNotPinned, "incomplete"),
    Mutant(
        "a walk goes on where an upgrade went", AnonVmaLazyRmap, UpgradeNotNoticed, "race", scene="restore / first fork"
    ),
    Mutant("a shared page that is moved is odd", AnonMMRmap, OddNotRecorded, "incomplete"),
    Mutant("a page that is moved gets its address", AnonMMRmap, AddressKept, "incomplete"),
    Mutant("a walk goes through the whole list", AnonMMRmap, OwnerAlone, "incomplete"),
    Mutant("the parent comes before its child", AnonMMRmap, ListedLate, "race", scene="restore / fork"),
    Mutant(
        "an anonmm stays while pages point to it", AnonMMRmap, FreedWithSpace, "race",
        scene="referenced / exit of the parent",
    ),
    Mutant("a page that is moved gets its address, or is odd", UnshareOnRemapRmap, AddressStays, "incomplete"),
    Mutant(
        "a page that is migrated stays where it is", UnshareOnRemapRmap, AloneDuringMigration, "race",
        scene="restore / mremap away",
    ),
    Mutant(
        "who changes bounds has all locks of the chain", AnonVmaOwnLockRmap, NewestLocked, "race",
        scene="restore / munmap in the child",
    ),
    Mutant("fork adds the entries that it copies", PteChainRmap, ForkAddsNothing, "incomplete"),
    Mutant("the newest takes the place of what is removed", PteChainRmap, NewestLost, "incomplete"),
    Mutant("mremap changes the list", PteChainRmap, MoveForgotten, "incomplete"),
    Mutant(
        "a moved entry is never out of the list", PteChainRmap, MovedInTwoSteps, "race", scene="restore / mremap away"
    ),
    Mutant(
        "an mm_struct is freed after a grace period", PteChainRmap, ListedSpaceFreed, "race",
        scene="restore / exit of the child",
    ),
)  # fmt: skip
