# SPDX-License-Identifier: GPL-2.0-or-later
"""How CoW contexts look: the tree of forks, and what each one's remap tree holds."""

from __future__ import annotations

from bisect import bisect_right
from typing import ClassVar, Final

from rmaplab.mm.folio import FOLIO_KSM
from rmaplab.mm.picture import MANY, Item, Picture, Scope, hexa, more, pages, signed
from rmaplab.mm.vma import PAGE_SHIFT, VMA
from rmaplab.rmap.context import ContextRmap, CowContext


class ContextPicture(Picture):
    """Contexts: the tree of forks, and what each one's remap tree holds."""

    about: ClassVar[dict[str, str]] = {
        "ancestry": "One context an address space, below that of the process that forked it, the newest child"
        " first. A walk begins at the context that the folio points to and visits all below it.",
        "records": "Where a page offset is to be found if not at the address that it stands for: the"
        " distance in pages. Only what was moved is recorded.",
    }

    def __init__(self, design: ContextRmap) -> None:
        self.design: Final = design

    def _name(self, context: CowContext) -> str:
        return f"C{context.number}"

    def key(self, thing: object) -> str:
        return self._name(thing) if isinstance(thing, CowContext) else ""

    def items(self, scope: Scope) -> dict[str, Item]:
        result: dict[str, Item] = {}
        # With a scheduler, what was freed keeps its number.
        every = [
            context for context in self.design.contexts
            if context is not None and (context.refcount > 0 or self.design.heir_of(context) is not None)
        ]  # fmt: skip
        kept: set[int] = {context.number for context in every}
        if len(every) > MANY:
            kept = set()
            for mm in scope.mms():
                context: CowContext | None = self.design.context_of(mm)
                while context is not None and context.number not in kept and len(kept) < MANY:
                    kept.add(context.number)
                    context = context.parent
        for top in every:
            apart = top.refcount == 0 or top.parent is None or top.parent.number not in kept
            if top.number in kept and apart:
                self._below(result, top, kept, scope)
        if len(every) > len(kept):
            result["…"] = more(
                "ancestry|Contexts, in the tree of forks", "cow_context", len(every) - len(kept)
            )
        return result

    def _below(
        self, result: dict[str, Item], top: CowContext, kept: set[int], scope: Scope
    ) -> None:
        """`top` and those of `kept` below it, the newest child first, as a walk finds them."""
        todo: list[tuple[CowContext, str]] = [(top, "")]
        while todo:
            context, above = todo.pop()
            name = self._name(context)
            mm = context.mm
            whose = "an exited process" if mm is None else scope.whose(mm)
            records = context.remaps.ranges()
            heir = self.design.heir_of(context)
            result[name] = Item(
                "ancestry|Contexts, in the tree of forks",
                "cow_context",
                name,
                [("of", whose), ("refs", str(context.refcount)), ("records", str(len(records)))],
                f"The address space of {whose}."
                if mm is not None
                else "Its address space is gone, but contexts below it are alive, and folios may point here."
                if heir is None
                else f"Its address space is gone. Folios that point here are led to {self._name(heir)}.",
                above=above,
                mm=0 if mm is None else mm.id,
            )
            group = f"records.{name}|Remap tree of {name}"
            for first, last, offset in records[:MANY]:
                result[f"{name}@{first:x}{offset:+x}"] = Item(
                    group,
                    "record",
                    pages(first, last),
                    [("are at", signed(offset))],
                    f"{whose[0].upper()}{whose[1:]} has page offsets {pages(first, last)} at address"
                    f" {hexa((first + offset) << PAGE_SHIFT)} instead of {hexa(first << PAGE_SHIFT)}.",
                    mm=0 if mm is None else mm.id,
                )
            if len(records) > MANY:
                result[f"{name}@…"] = more(group, "record", len(records) - MANY)
            below = []
            child = context.first_child if heir is None else None
            while child is not None:
                if child.number in kept:
                    below.append((child, name))
                child = child.next_sibling
            todo += reversed(below)

    def anchor(self, pfn: int) -> str:
        context, _ = self.design.anchor_of(pfn)
        return "" if context is None or self.design.folios.flags.m[pfn] & FOLIO_KSM else self._name(context)

    def via(self, pfn: int, vma: VMA, addr: int) -> list[str]:
        context = self.design.context_of(vma.mm)
        name = self._name(context)
        _, index = self.design.anchor_of(pfn)
        page = index + self._distance(pfn, addr, vma, index)
        offset = (addr >> PAGE_SHIFT) - page
        remaps = context.remaps
        i = bisect_right(remaps.firsts, page) - 1
        if i >= 0 and page <= remaps.lasts[i] and offset in remaps.entries[i].values:
            return [name, f"{name}@{remaps.firsts[i]:x}{offset:+x}"]
        return [name]

    def _distance(self, pfn: int, addr: int, vma: VMA, index: int) -> int:
        """Which page of the folio a place stands for: a later one if the VMA begins inside the folio."""
        if addr != vma.start or self.design.folios.nr_pages(pfn) == 1:
            return 0
        return max(0, vma.anon_pgoff + (self.design.shift_of(vma) or 0) - index)

    def locks(self) -> dict[int, str]:
        return {
            id(context.lock): f"lock of {self._name(context)}"
            for context in self.design.contexts
            if context is not None
        }
