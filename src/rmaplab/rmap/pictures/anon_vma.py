# SPDX-License-Identifier: GPL-2.0-or-later
"""How `anon_vma` looks: the hierarchy, an interval tree for each anon_vma, and each VMA's chain."""

from __future__ import annotations

from typing import ClassVar, Final, cast

from rmaplab.mm.folio import FOLIO_KSM
from rmaplab.mm.picture import MANY, Item, Picture, Scope, hexa, more, pages
from rmaplab.mm.vma import VMA
from rmaplab.rmap.anon_vma import AnonVma, AnonVmaChain, AnonVmaRmap, VmaFields
from rmaplab.rmap.interval_tree import IntervalNode

_TREES: Final = 8  # interval trees that are shown


class AnonVmaPicture(Picture):
    """anon_vma: the hierarchy, an interval tree for each anon_vma, and each VMA's chain."""

    about: ClassVar[dict[str, str]] = {
        "hierarchy": "Each anon_vma under the one of the VMA that it was forked from. A walk of any folio in a"
        " family, and any change to its trees, takes the lock of the family's root.",
        "tree": "The VMAs that may map folios which point to this anon_vma, ordered by page offset. “max” is"
        " the greatest last page offset of the node and all below it: a search skips a subtree that ends too"
        " early.",
        "chains": "For each VMA that has had a page: the anon_vma that its new folios will point to, and all"
        " that it is linked to, because older folios of its pages may point there.",
    }

    def __init__(self, design: AnonVmaRmap) -> None:
        self.design: Final = design

    def _name(self, anon_vma: AnonVma) -> str:
        return f"A{anon_vma.number}"

    def key(self, thing: object) -> str:
        return self._name(thing) if isinstance(thing, AnonVma) else ""

    def _target(self, fields: VmaFields) -> str:
        """What new folios of a VMA point to."""
        assert fields.anon_vma is not None
        return self._name(fields.anon_vma)

    def items(self, scope: Scope) -> dict[str, Item]:
        result: dict[str, Item] = {}
        users: dict[str, list[str]] = {}
        chains: dict[str, Item] = {}
        linked: dict[int, AnonVma] = {}
        for vma in scope.vmas:
            fields = cast("VmaFields | None", vma.rmap[self.design.slot])
            if fields is None:
                continue
            name = self._target(fields)
            users.setdefault(name, []).append(f"V{vma.id}")
            chain = [avc.anon_vma for avc in fields.chain]
            for anon_vma in chain:
                while anon_vma.number not in linked:
                    linked[anon_vma.number] = anon_vma
                    anon_vma = anon_vma.parent
            chains[f"V{vma.id}"] = Item(
                "chains|Chains, one a VMA",
                "chain",
                f"V{vma.id}",
                [("new folios", name), ("linked", " ".join(map(self._name, chain)) or "to none")],
                f"V{vma.id} of {scope.whose(vma.mm)} has had anonymous pages, so it must be found from every"
                " anon_vma that one of its folios may point to.",
                area=vma.id,
                mm=vma.mm.id,
            )
        every = [anon_vma for anon_vma in self.design.anon_vmas if anon_vma is not None]
        kept = every
        if len(every) > MANY:
            kept = sorted(list(linked.values())[:MANY], key=lambda anon_vma: anon_vma.number)
        for anon_vma in kept:
            name = self._name(anon_vma)
            root = anon_vma.parent is anon_vma
            used = users.get(name, [])
            why = (
                f"The new folios of {', '.join(used[:4])}{' and others' if len(used) > 4 else ''} point here."
                if used
                else "No VMA shown here puts new folios here; it is there for the folios that point to it, and for"
                " those below."
            )
            result[name] = Item(
                "hierarchy|Hierarchy of anon_vmas",
                "anon_vma",
                name,
                [
                    ("refs", str(anon_vma.refcount)),
                    ("children", str(anon_vma.num_children)),
                    ("active", str(anon_vma.num_active_vmas)),
                ],
                f"{'The root of a family.' if root else f'Made by a fork, below {self._name(anon_vma.parent)}.'} {why}",
                above="" if root else self._name(anon_vma.parent),
            )
        if len(every) > len(kept):
            result["…"] = more("hierarchy|Hierarchy of anon_vmas", "anon_vma", len(every) - len(kept))
        trees = kept
        if len(kept) > _TREES:
            trees = [anon_vma for anon_vma in linked.values() if self._name(anon_vma) in result][:_TREES]
        for anon_vma in trees:
            self._tree(result, self._name(anon_vma), anon_vma, scope)
        if len(every) > len(trees):
            result["tree…"] = more("tree.…|Further interval trees", "anon_vma_chain", len(every) - len(trees))
        shown = sorted(list(chains.values())[:MANY], key=lambda part: part.area)
        result.update((f"chain.V{part.area}", part) for part in shown)
        if len(chains) > MANY:
            result["chain…"] = more("chains|Chains, one a VMA", "chain", len(chains) - MANY)
        return result

    def _tree(
        self, result: dict[str, Item], name: str, anon_vma: AnonVma, scope: Scope
    ) -> None:
        todo: list[tuple[IntervalNode | None, str, str]] = [(anon_vma.rb_root, "", "")]
        while todo:
            node, above, side = todo.pop()
            if node is None:
                continue
            vma = cast(AnonVmaChain, node).vma
            key = f"{name}.V{vma.id}"
            result[key] = Item(
                f"tree.{name}|Interval tree of {name}",
                "anon_vma_chain",
                f"V{vma.id}",
                [("key", pages(node.first, node.last)), ("max", hexa(node.subtree_last))],
                f"Links V{vma.id} of {scope.whose(vma.mm)} with {name}: it may map folios that point to {name}.",
                above=above,
                side=side,
                area=vma.id,
                mm=vma.mm.id,
            )
            todo.append((node.right, key, "r"))
            todo.append((node.left, key, "l"))

    def anchor(self, pfn: int) -> str:
        anon_vma = self.design.anon_vmas[self.design.anchor.m[pfn]]
        if anon_vma is None or self.design.folios.flags.m[pfn] & FOLIO_KSM:
            return ""
        return self._name(anon_vma)

    def via(self, pfn: int, vma: VMA, addr: int) -> list[str]:
        anchor = self.anchor(pfn)
        return [anchor, f"{anchor}.V{vma.id}"] if anchor else []

    def locks(self) -> dict[int, str]:
        return {
            id(anon_vma.rwsem): f"{self.design.lock_name.removeprefix('anon_vma ')} of {self._name(anon_vma)}"
            for anon_vma in self.design.anon_vmas
            if anon_vma is not None and (anon_vma.parent is anon_vma or anon_vma.rwsem is not anon_vma.root.rwsem)
        }

    def why_apart(self, prev: VMA, next: VMA) -> str:
        slot = self.design.slot
        below = cast("VmaFields | None", prev.rmap[slot])
        above = cast("VmaFields | None", next.rmap[slot])
        if below is not None and above is not None:
            return (
                f"both have pages, of different anon_vmas: V{prev.id}'s is {self._target(below)},"
                f" V{next.id}'s is {self._target(above)}"
            )
        had, has = (prev, below) if above is None else (next, above)
        linked = 0 if has is None else len(has.chain)
        return (
            f"V{had.id} has pages and is linked to {linked} anon_vmas: it was forked, and to join it a VMA without"
            " pages would have to come under a lock that other processes use"
            if linked > 1
            else f"a range with pages does not join a VMA that has had none (only V{had.id} has)"
        )
