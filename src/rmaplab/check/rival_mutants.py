# SPDX-License-Identifier: GPL-2.0-or-later
"""Bugs, re-introduced, of the designs that came before or beside today's (see mutants.py)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, cast

from rmaplab.check.mutants import Mutant
from rmaplab.mm.vma import VMA
from rmaplab.rmap.anon_vma import AnonVma
from rmaplab.rmap.anon_vma_lazy import AnonVmaLazyRmap, LazyFamily, RootVma

# anon_vma_lazy


class ChildOfALazyParent(AnonVmaLazyRmap):
    name = "anon_vma_lazy, fork without an upgrade of the parent"

    def vma_forked(self, parent: VMA, child: VMA) -> None:
        self.vma_prepare(child)


class MovedWhileLazy(AnonVmaLazyRmap):
    name = "anon_vma_lazy, mremap without an upgrade of the source"

    def vma_copied(self, source: VMA, new: VMA) -> None:
        self._copy_family(source, new)


class UpgradedAlone(AnonVmaLazyRmap):
    """The VMAs that were split from the one that is forked, or share its root VMA, are not linked."""

    name = "anon_vma_lazy, upgrade that forgets who has the same root VMA"

    def _upgrade(self, vma: VMA) -> None:
        family = self._lazy(vma)
        if family is None or family.anon_vma is not None or family.root is None:
            return
        root = family.root
        vmas = list(root.vmas)
        root.vmas[:] = [vma]
        super()._upgrade(vma)
        root.vmas[:] = vmas


class RootNotPinned(AnonVmaLazyRmap):
    name = "anon_vma_lazy, root VMA freed while others have it"

    def _unlink_all(self, vma: VMA) -> None:
        root = cast(LazyFamily, vma.rmap[self.slot]).root
        super()._unlink_all(vma)
        if root is not None and root.vma is None:
            self.roots[root.number] = None


class UpgradeNotNoticed(AnonVmaLazyRmap):
    name = "anon_vma_lazy, walk that does not look whether there was an upgrade meanwhile"

    def _walk_root(self, root: RootVma, pfn: int) -> Iterator[tuple[VMA, int]]:
        yield from super()._walk_root(root, pfn)
        self._at_root = root

    def _anon_vma_of(self, root: RootVma) -> AnonVma | None:
        return None if getattr(self, "_at_root", None) is root else super()._anon_vma_of(root)


RIVAL_MUTANTS: Final = (
    Mutant("fork upgrades the parent", AnonVmaLazyRmap, ChildOfALazyParent, "incomplete"),
    Mutant("mremap upgrades its source", AnonVmaLazyRmap, MovedWhileLazy, "incomplete"),
    Mutant("an upgrade links all that have the root", AnonVmaLazyRmap, UpgradedAlone, "incomplete"),
    Mutant("a root VMA stays while folios may point to it", AnonVmaLazyRmap, RootNotPinned, "incomplete"),
    Mutant(
        "a walk goes on where an upgrade went", AnonVmaLazyRmap, UpgradeNotNoticed, "race", scene="restore / first fork"
    ),
)
