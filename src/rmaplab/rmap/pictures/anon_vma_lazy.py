# SPDX-License-Identifier: GPL-2.0-or-later
"""How `anon_vma_lazy` looks: as `anon_vma`, and the VMAs that folios point to as long as there is no anon_vma."""

from __future__ import annotations

from typing import ClassVar, Final

from rmaplab.mm.folio import FOLIO_KSM
from rmaplab.mm.picture import MANY, Item, Scope, more, signed
from rmaplab.mm.vma import VMA
from rmaplab.rmap.anon_vma import VmaFields
from rmaplab.rmap.anon_vma_lazy import AnonVmaLazyRmap, LazyFields, RootVma
from rmaplab.rmap.pictures.anon_vma import AnonVmaPicture


class AnonVmaLazyPicture(AnonVmaPicture):
    """anon_vma_lazy: the same, and the VMAs that folios point to as long as there is no anon_vma."""

    about: ClassVar[dict[str, str]] = {
        "roots": "VMAs that folios point to as long as nobody forked. All entries for such a folio are in one address"
        " space, at its page offset plus what the root adds. A fork gives the root an anon_vma.",
        **AnonVmaPicture.about,
    }

    def __init__(self, design: AnonVmaLazyRmap) -> None:
        super().__init__(design)
        self.lazy: Final = design

    def key(self, thing: object) -> str:
        return f"R{thing.number}" if isinstance(thing, RootVma) else super().key(thing)

    def _target(self, fields: VmaFields) -> str:
        if fields.anon_vma is None and isinstance(fields, LazyFields) and fields.root is not None:
            return f"R{fields.root.number}"
        return super()._target(fields)

    def items(self, scope: Scope) -> dict[str, Item]:
        mms = {mm.id for mm in scope.mms()}
        group = "roots|Root VMAs"
        # With a scheduler, what was freed keeps its number.
        roots = [root for root in self.lazy.roots if root is not None and (root.vmas or root.pins)]
        kept = [root for root in roots if root.mm.id in mms][:MANY] if len(roots) > MANY else roots
        result: dict[str, Item] = {}
        for root in kept:
            upgraded = root.anon_vma is not None and self._name(root.anon_vma)
            result[f"R{root.number}"] = Item(
                group,
                "root_vma",
                f"R{root.number}",
                [
                    ("is", f"V{root.vma.id}" if root.vma is not None else "gone, pinned"),
                    ("adds", signed(root.offset)),
                    ("anon_vma", upgraded or "none yet"),
                ],
                f"Folios that {scope.whose(root.mm)} mapped before it forked point here.",
                area=0 if root.vma is None else root.vma.id,
                mm=root.mm.id,
            )
        if len(kept) < len(roots):
            result["R…"] = more(group, "root_vma", len(roots) - len(kept))
        result.update(super().items(scope))
        return result

    def anchor(self, pfn: int) -> str:
        number: int = self.design.anchor.m[pfn]
        if number < 0 and not self.design.folios.flags.m[pfn] & FOLIO_KSM:
            return f"R{-number}"
        return super().anchor(pfn) if number >= 0 else ""

    def via(self, pfn: int, vma: VMA, addr: int) -> list[str]:
        number: int = self.design.anchor.m[pfn]
        root = self.lazy.roots[-number] if number < 0 else None
        if root is None:
            return super().via(pfn, vma, addr)
        if root.anon_vma is None:
            return [f"R{root.number}"]
        name = self._name(root.anon_vma)
        return [f"R{root.number}", name, f"{name}.V{vma.id}"]
