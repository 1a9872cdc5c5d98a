# SPDX-License-Identifier: GPL-2.0-or-later
"""How `pte_chain` looks: for each page, the list of the entries that map it."""

from __future__ import annotations

from typing import ClassVar, Final

import numpy as np

from rmaplab.mm.pagetable import PTE_ANON, PTE_MIGRATION, PTE_SHIFT
from rmaplab.mm.picture import MANY, Item, Picture, Scope, hexa, more
from rmaplab.mm.vma import PAGE_SHIFT, VMA
from rmaplab.rmap.pte_chain import PteChainRmap


class PteChainPicture(Picture):
    """pte_chain: for each page, the list of the entries that map it."""

    about: ClassVar[dict[str, str]] = {
        "lists": "For each page, what maps it, the newest first. One entry is pointed to by the page itself; for more"
        " it has chains, each of which has room for a few."
    }

    def __init__(self, design: PteChainRmap) -> None:
        self.design: Final = design

    def items(self, scope: Scope) -> dict[str, Item]:
        design = self.design
        group = "lists|Lists of entries, one a page"
        pfns: dict[int, int] = {}  # with the address space that it was met in
        for vma in scope.vmas:
            table = vma.mm.page_table
            for addr in range(vma.start, min(vma.end, vma.start + (MANY << PAGE_SHIFT)), 1 << PAGE_SHIFT):
                entry = table.get(addr)
                if entry & (PTE_ANON | PTE_MIGRATION) and len(pfns) < MANY:
                    pfns.setdefault(entry >> PTE_SHIFT, vma.mm.id)
        result: dict[str, Item] = {}
        for pfn in sorted(pfns):
            places = []
            for number, addr in map(design.place_of, design.pointers(pfn)):
                mm = design.mms[number]
                places.append(f"{scope.whose(mm)} {hexa(addr)}")
            if places:
                some = "; ".join(places[:4]) + (f"; {len(places) - 4:,} more" if len(places) > 4 else "")
                result[f"P{pfn}"] = Item(
                    group,
                    "pte_list",
                    f"P{pfn}",
                    [("entries", some)],
                    f"{len(places):,} {'entry maps' if len(places) == 1 else 'entries map'} page {pfn}.",
                    mm=pfns[pfn],
                )
        left = int(np.count_nonzero(design.direct.v)) - len(result)
        if left > 0:
            result["P…"] = more(group, "pte_list", left)
        return result

    def anchor(self, pfn: int) -> str:
        return f"P{pfn}" if self.design.direct.m[pfn] else ""

    def via(self, pfn: int, vma: VMA, addr: int) -> list[str]:
        return [f"P{pfn}"]

    def locks(self) -> dict[int, str]:
        return {id(lock): f"map lock of page {pfn}" for pfn, lock in self.design.locks.used.items()}
