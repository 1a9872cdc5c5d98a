# SPDX-License-Identifier: GPL-2.0-or-later
"""How `cow_context` looks: contexts, and the shifts of file mappings."""

from __future__ import annotations

from typing import ClassVar, Final

from rmaplab.mm.picture import Item, Scope, signed
from rmaplab.mm.vma import VMA
from rmaplab.rmap.cow_context import CowContextRmap
from rmaplab.rmap.pictures.context import ContextPicture


class CowContextPicture(ContextPicture):
    """The tree of forks, remap trees and shifts."""

    about: ClassVar[dict[str, str]] = {
        **ContextPicture.about,
        "shifts": "Distance from vm_pgoff, an offset in the file, to the anonymous page offset, by which the"
        " copied pages of the mapping are found.",
    }

    def __init__(self, design: CowContextRmap) -> None:
        super().__init__(design)
        self.shifted: Final = design

    def items(self, scope: Scope) -> dict[str, Item]:
        result = super().items(scope)
        for vma in sorted(scope.vmas, key=lambda vma: vma.id):
            shift = self.shifted.shift_of(vma)
            if vma.file is not None and shift is not None:
                result[f"shift.V{vma.id}"] = Item(
                    "shifts|Shifts of file mappings",
                    "shift",
                    f"V{vma.id}",
                    [("shift", signed(shift))],
                    f"V{vma.id} of {scope.whose(vma.mm)} maps a file privately and has copied pages.",
                    area=vma.id,
                    mm=vma.mm.id,
                )
        return result

    def why_apart(self, prev: VMA, next: VMA) -> str:
        below, above = self.shifted.shift_of(prev), self.shifted.shift_of(next)
        assert below is not None and above is not None
        return (
            "the anonymous page offsets do not go on from one to the other: the shifts are"
            f" {signed(below)} and {signed(above)}"
        )
