# SPDX-License-Identifier: GPL-2.0-or-later
"""How `anonmm` looks: lists of address spaces, and the entries that are not where their page says."""

from __future__ import annotations

from typing import ClassVar, Final

from rmaplab.mm.picture import MANY, Item, Picture, Scope, hexa, more
from rmaplab.mm.vma import MM, PAGE_SHIFT, VMA
from rmaplab.rmap.anonmm import AnonMM, AnonMMRmap


class AnonMMPicture(Picture):
    """anonmm: lists of address spaces, and the entries that are not where their page says."""

    about: ClassVar[dict[str, str]] = {
        "family": "The address spaces that descend from one exec, in a list that its first one heads. A page points to"
        " one of them and has an address; a walk holds the head's lock and looks at that address in each.",
        "odd": "Entries at another address than their page says, because they moved while others mapped the page,"
        " or because KSM made them. Linux would have copied the page.",
    }

    def __init__(self, design: AnonMMRmap) -> None:
        self.design: Final = design

    def key(self, thing: object) -> str:
        return f"M{thing.number}" if isinstance(thing, AnonMM) else ""

    def items(self, scope: Scope) -> dict[str, Item]:
        mms = {mm.id for mm in scope.mms()}
        result: dict[str, Item] = {}
        # With a scheduler, what was freed keeps its number.
        every = [
            anonmm
            for anonmm in self.design.anonmms
            if anonmm is not None
            and anonmm.head().count > 1
            and anonmm.head().members.get(anonmm.number) is anonmm
        ]
        group = "family|Lists of address spaces, since exec"
        for anonmm in every:
            whose = "an exited process" if anonmm.mm is None else scope.whose(anonmm.mm)
            head = anonmm.head()
            result[self.key(anonmm)] = Item(
                group,
                "anonmm",
                self.key(anonmm),
                [("of", whose), ("refs", str(anonmm.count))],
                f"The address space of {whose}."
                if anonmm.mm is not None
                else "Its address space is gone, but pages point here, or it heads the list.",
                above="" if head is anonmm else self.key(head),
                mm=0 if anonmm.mm is None else anonmm.mm.id,
            )
        group = "odd|Entries that are not where their page says"
        odd = [(pfn, mm, at) for pfn, found in self.design.odd.places.items() for mm, at in found]
        for pfn, mm, at in [one for one in odd if one[1].id in mms][:MANY]:
            result[self._odd(pfn, mm, at << PAGE_SHIFT)] = Item(
                group,
                "odd entry",
                f"{pfn}",
                [("of", scope.whose(mm)), ("at", hexa(at << PAGE_SHIFT))],
                f"Page {pfn} says that it is elsewhere.",
                mm=mm.id,
            )
        shown = sum(key.startswith("odd.") for key in result)
        if shown < len(odd):
            result["odd…"] = more(group, "odd entry", len(odd) - shown)
        return result

    def _odd(self, pfn: int, mm: MM, addr: int) -> str:
        return f"odd.{pfn}.{mm.id}.{addr:x}"

    def anchor(self, pfn: int) -> str:
        return self.key(self.design.anonmms[self.design.owner.m[pfn]])

    def via(self, pfn: int, vma: VMA, addr: int) -> list[str]:
        member = self.key(self.design.anonmm_of(vma.mm))
        if (vma.mm, addr >> PAGE_SHIFT) in self.design.odd.of(pfn):
            return [member, self._odd(pfn, vma.mm, addr)]
        return [member]

    def locks(self) -> dict[int, str]:
        return {
            id(anonmm.lock): f"lock of the list of {self.key(anonmm)}"
            for anonmm in self.design.anonmms
            if anonmm is not None and anonmm.lock is not None
        }
