# SPDX-License-Identifier: GPL-2.0-or-later
"""How each design looks from outside: its objects as parts of a picture.

`view_of` knows the designs that come with rmaplab.  Any other may bring its own: a method
`explorer_view()` that returns a `View`.  One that does not is shown by what `footprint` says it holds,
and by its walks, which need nothing more.

Objects are called by the numbers that the design gives them (A1, C2): a number that is free may be used again.

Invariant: looking changes nothing, and counts nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import ClassVar, Final, NamedTuple, cast

import numpy as np

from rmaplab.explore.parts import Part
from rmaplab.mm.folio import FOLIO_KSM
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import PTE_ANON, PTE_MIGRATION, PTE_SHIFT
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import MM, PAGE_SHIFT, VMA
from rmaplab.rmap.anon_vma import AnonVma, AnonVmaChain, AnonVmaRmap, VmaFields
from rmaplab.rmap.anon_vma_lazy import AnonVmaLazyRmap, LazyFields, RootVma
from rmaplab.rmap.anonmm import AnonMM, AnonMMRmap
from rmaplab.rmap.context import ContextRmap, CowContext
from rmaplab.rmap.cow_context import CowContextRmap
from rmaplab.rmap.cow_context_prototype import CowContextPrototypeRmap
from rmaplab.rmap.interval_tree import IntervalNode
from rmaplab.rmap.pte_chain import PteChainRmap

MANY: Final = 24  # objects of one sort that are drawn one by one
TREES: Final = 8  # interval trees


class Scope(NamedTuple):
    """What a picture shows: VMAs, those that an operation touched first."""

    vmas: list[VMA]

    def mms(self) -> list[MM]:
        """Their address spaces, in the same order."""
        return list({vma.mm.id: vma.mm for vma in self.vmas}.values())


class View:
    """A design that nothing is known of but its interface: no objects to draw.

    about: what each sort of drawing shows, by the id of its group, in the order in which to draw them
    """

    about: ClassVar[dict[str, str]] = {}

    def parts(self, machine: Machine, scope: Scope) -> dict[str, Part]:
        """The design's objects by key, each after the one that it hangs under; where there are many, those
        that concern `scope`, and how many there are besides."""
        return {}

    def anchor(self, pfn: int) -> str:
        """Key of what the folio `pfn` points to."""
        return ""

    def key(self, thing: object) -> str:
        """Key of an object that the design stepped on, "" if it is none of the design's."""
        return ""

    def via(self, pfn: int, vma: VMA, addr: int) -> list[str]:
        """Keys of the objects that lead a walk for `pfn` to this place."""
        return []

    def locks(self) -> dict[int, str]:
        """What to call the locks of the design, by id()."""
        return {}

    def why_apart(self, prev: VMA, next: VMA) -> str:
        """Why the design keeps these two adjacent VMAs from being one; asked if it does."""
        return "the design says no"


def pages(first: int, last: int) -> str:
    """A closed range of page offsets."""
    return hexa(first) if first == last else f"{hexa(first)}–{hexa(last)}"


def hexa(number: int) -> str:
    return f"-0x{-number:x}" if number < 0 else f"0x{number:x}"


def signed(number: int) -> str:
    """A distance in pages."""
    return f"+{hexa(number)}" if number >= 0 else f"−0x{-number:x}"


def processes_of(machine: Machine) -> dict[int, list[int]]:
    """Pids by the id of the address space that they run in."""
    result: dict[int, list[int]] = {}
    for pid, process in machine.processes.items():
        result.setdefault(process.mm.id, []).append(pid)
    return result


def owner(pids: dict[int, list[int]], mm: MM | None) -> str:
    """Whose address space it is, in words."""
    if mm is None or mm.id not in pids:
        return "an address space that is gone" if mm is None or not mm.alive else f"address space {mm.id}"
    of = pids[mm.id]
    return f"process {of[0]}" if len(of) == 1 else f"processes {', '.join(map(str, of))}"


def more(group: str, kind: str, count: int) -> Part:
    """What stands for `count` objects that are not drawn."""
    return Part(
        group,
        kind,
        f"{count:,} more",
        [],
        f"{count:,} objects of this kind are not drawn, because they concern what is folded.",
        count=count,
    )


class AnonVmaView(View):
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

    def parts(self, machine: Machine, scope: Scope) -> dict[str, Part]:
        result: dict[str, Part] = {}
        pids = processes_of(machine)
        users: dict[str, list[str]] = {}
        chains: dict[str, Part] = {}
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
            chains[f"V{vma.id}"] = Part(
                "chains|Chains, one a VMA",
                "chain",
                f"V{vma.id}",
                [("new folios", name), ("linked", " ".join(map(self._name, chain)) or "to none")],
                f"V{vma.id} of {owner(pids, vma.mm)} has had anonymous pages, so it must be found from every"
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
            result[name] = Part(
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
        if len(kept) > TREES:
            trees = [anon_vma for anon_vma in linked.values() if self._name(anon_vma) in result][:TREES]
        for anon_vma in trees:
            self._tree(result, self._name(anon_vma), anon_vma, pids)
        if len(every) > len(trees):
            result["tree…"] = more("tree.…|Further interval trees", "anon_vma_chain", len(every) - len(trees))
        shown = sorted(list(chains.values())[:MANY], key=lambda part: part.area)
        result.update((f"chain.V{part.area}", part) for part in shown)
        if len(chains) > MANY:
            result["chain…"] = more("chains|Chains, one a VMA", "chain", len(chains) - MANY)
        return result

    def _tree(
        self, result: dict[str, Part], name: str, anon_vma: AnonVma, pids: dict[int, list[int]]
    ) -> None:
        todo: list[tuple[IntervalNode | None, str, str]] = [(anon_vma.rb_root, "", "")]
        while todo:
            node, above, side = todo.pop()
            if node is None:
                continue
            vma = cast(AnonVmaChain, node).vma
            key = f"{name}.V{vma.id}"
            result[key] = Part(
                f"tree.{name}|Interval tree of {name}",
                "anon_vma_chain",
                f"V{vma.id}",
                [("key", pages(node.first, node.last)), ("max", hexa(node.subtree_last))],
                f"Links V{vma.id} of {owner(pids, vma.mm)} with {name}: it may map folios that point to {name}.",
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
            id(anon_vma.rwsem): f"root rwsem of {self._name(anon_vma)}"
            for anon_vma in self.design.anon_vmas
            if anon_vma is not None and anon_vma.parent is anon_vma
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


class AnonVmaLazyView(AnonVmaView):
    """anon_vma_lazy: the same, and the VMAs that folios point to as long as there is no anon_vma."""

    about: ClassVar[dict[str, str]] = {
        "roots": "VMAs that folios point to as long as nobody forked. All entries for such a folio are in one address"
        " space, at its page offset plus what the root adds. A fork gives the root an anon_vma.",
        **AnonVmaView.about,
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

    def parts(self, machine: Machine, scope: Scope) -> dict[str, Part]:
        pids = processes_of(machine)
        mms = {mm.id for mm in scope.mms()}
        group = "roots|Root VMAs"
        # With a scheduler, what was freed keeps its number.
        roots = [root for root in self.lazy.roots if root is not None and (root.vmas or root.pins)]
        kept = [root for root in roots if root.mm.id in mms][:MANY] if len(roots) > MANY else roots
        result: dict[str, Part] = {}
        for root in kept:
            upgraded = root.anon_vma is not None and self._name(root.anon_vma)
            result[f"R{root.number}"] = Part(
                group,
                "root_vma",
                f"R{root.number}",
                [
                    ("is", f"V{root.vma.id}" if root.vma is not None else "gone, pinned"),
                    ("adds", signed(root.offset)),
                    ("anon_vma", upgraded or "none yet"),
                ],
                f"Folios that {owner(pids, root.mm)} mapped before it forked point here.",
                area=0 if root.vma is None else root.vma.id,
                mm=root.mm.id,
            )
        if len(kept) < len(roots):
            result["R…"] = more(group, "root_vma", len(roots) - len(kept))
        result.update(super().parts(machine, scope))
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


class ContextView(View):
    """Contexts: the tree of forks, and what each one's remap tree holds."""

    about: ClassVar[dict[str, str]] = {
        "ancestry": "One context an address space, below that of the process that forked it, the newest child"
        " first. A walk begins at the context that the folio points to and visits all below it.",
        "records": "Where a page offset is to be found if not at the address that it stands for: the"
        " distance in pages. Only what was moved is recorded.",
        "shifts": "Distance from vm_pgoff, an offset in the file, to the anonymous page offset, by which the"
        " copied pages of the mapping are found.",
    }

    def __init__(self, design: ContextRmap) -> None:
        self.design: Final = design

    def _name(self, context: CowContext) -> str:
        return f"C{context.number}"

    def key(self, thing: object) -> str:
        return self._name(thing) if isinstance(thing, CowContext) else ""

    def parts(self, machine: Machine, scope: Scope) -> dict[str, Part]:
        pids = processes_of(machine)
        result: dict[str, Part] = {}
        # With a scheduler, what was freed keeps its number.
        every = [context for context in self.design.contexts if context is not None and context.refcount > 0]
        kept: set[int] = {context.number for context in every}
        if len(every) > MANY:
            kept = set()
            for mm in scope.mms():
                context: CowContext | None = self.design.context_of(mm)
                while context is not None and context.number not in kept and len(kept) < MANY:
                    kept.add(context.number)
                    context = context.parent
        for top in every:
            if top.number in kept and (top.parent is None or top.parent.number not in kept):
                self._below(result, top, kept, pids)
        if len(every) > len(kept):
            result["…"] = more(
                "ancestry|Contexts, in the tree of forks", "cow_context", len(every) - len(kept)
            )
        if isinstance(self.design, CowContextRmap):
            for vma in sorted(scope.vmas, key=lambda vma: vma.id):
                shift = self.design.shift_of(vma)
                if vma.file is not None and shift is not None:
                    result[f"shift.V{vma.id}"] = Part(
                        "shifts|Shifts of file mappings",
                        "shift",
                        f"V{vma.id}",
                        [("shift", signed(shift))],
                        f"V{vma.id} of {owner(pids, vma.mm)} maps a file privately and has copied pages.",
                        area=vma.id,
                        mm=vma.mm.id,
                    )
        return result

    def _below(
        self, result: dict[str, Part], top: CowContext, kept: set[int], pids: dict[int, list[int]]
    ) -> None:
        """`top` and those of `kept` below it, the newest child first, as a walk finds them."""
        todo: list[tuple[CowContext, str]] = [(top, "")]
        while todo:
            context, above = todo.pop()
            name = self._name(context)
            mm = context.mm
            whose = "an exited process" if mm is None else owner(pids, mm)
            records = context.remaps.ranges()
            result[name] = Part(
                "ancestry|Contexts, in the tree of forks",
                "cow_context",
                name,
                [("of", whose), ("refs", str(context.refcount)), ("records", str(len(records)))],
                f"The address space of {whose}."
                if mm is not None
                else "Its address space is gone, but contexts below it are alive, and folios may point here.",
                above=above,
                mm=0 if mm is None else mm.id,
            )
            group = f"records.{name}|Remap tree of {name}"
            for first, last, offset in records[:MANY]:
                result[f"{name}@{first:x}{offset:+x}"] = Part(
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
            child = context.first_child
            while child is not None:
                if child.number in kept:
                    below.append((child, name))
                child = child.next_sibling
            todo += reversed(below)

    def _anchored(self, pfn: int) -> tuple[CowContext | None, int]:
        """The context that the folio points to, and the folio's page offset in this design's terms."""
        design = self.design
        if isinstance(design, CowContextRmap):
            return design.anchor_of(pfn)
        if isinstance(design, CowContextPrototypeRmap):
            return design.contexts[design.anchor.m[pfn]], int(design.folios.index.m[pfn])
        return None, 0

    def anchor(self, pfn: int) -> str:
        context, _ = self._anchored(pfn)
        return "" if context is None or self.design.folios.flags.m[pfn] & FOLIO_KSM else self._name(context)

    def via(self, pfn: int, vma: VMA, addr: int) -> list[str]:
        context = self.design.context_of(vma.mm)
        name = self._name(context)
        _, index = self._anchored(pfn)
        page = index + self._distance(pfn, addr, vma, index)
        offset = (addr >> PAGE_SHIFT) - page
        remaps = context.remaps
        i = bisect_right(remaps.firsts, page) - 1
        if i >= 0 and page <= remaps.lasts[i] and offset in remaps.entries[i].values:
            return [name, f"{name}@{remaps.firsts[i]:x}{offset:+x}"]
        return [name]

    def _distance(self, pfn: int, addr: int, vma: VMA, index: int) -> int:
        """Which page of the folio a place stands for: a later one if the VMA begins inside the folio."""
        design = self.design
        if addr != vma.start or design.folios.nr_pages(pfn) == 1:
            return 0
        shift = design.shift_of(vma) if isinstance(design, CowContextRmap) else 0
        return max(0, vma.pgoff + (shift or 0) - index)

    def locks(self) -> dict[int, str]:
        return {
            id(context.lock): f"lock of {self._name(context)}"
            for context in self.design.contexts
            if context is not None
        }

    def why_apart(self, prev: VMA, next: VMA) -> str:
        design = self.design
        if isinstance(design, CowContextRmap):
            below, above = design.shift_of(prev), design.shift_of(next)
            assert below is not None and above is not None
            return (
                "the anonymous page offsets do not go on from one to the other: the shifts are"
                f" {signed(below)} and {signed(above)}"
            )
        return super().why_apart(prev, next)


class AnonMMView(View):
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

    def parts(self, machine: Machine, scope: Scope) -> dict[str, Part]:
        pids = processes_of(machine)
        mms = {mm.id for mm in scope.mms()}
        result: dict[str, Part] = {}
        # With a scheduler, what was freed keeps its number.
        every = [
            anonmm
            for anonmm in self.design.anonmms
            if anonmm is not None and anonmm.head().count > 1 and anonmm.head().members.get(anonmm.number) is anonmm
        ]
        group = "family|Lists of address spaces, since exec"
        for anonmm in every:
            whose = "an exited process" if anonmm.mm is None else owner(pids, anonmm.mm)
            head = anonmm.head()
            result[self.key(anonmm)] = Part(
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
        odd = [(pfn, mm, at) for pfn, found in self.design.odd.items() for mm, at in found]
        for pfn, mm, at in [one for one in odd if one[1].id in mms][:MANY]:
            result[self._odd(pfn, mm, at << PAGE_SHIFT)] = Part(
                group,
                "odd entry",
                f"{pfn}",
                [("of", owner(pids, mm)), ("at", hexa(at << PAGE_SHIFT))],
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
        if (vma.mm, addr >> PAGE_SHIFT) in self.design.odd.get(pfn, []):
            return [member, self._odd(pfn, vma.mm, addr)]
        return [member]

    def locks(self) -> dict[int, str]:
        return {
            id(anonmm.lock): f"lock of the list of {self.key(anonmm)}"
            for anonmm in self.design.anonmms
            if anonmm is not None and anonmm.lock is not None
        }


class PteChainView(View):
    """pte_chain: for each page, the list of the entries that map it."""

    about: ClassVar[dict[str, str]] = {
        "lists": "For each page, what maps it, the newest first. One entry is pointed to by the page itself; for more"
        " it has chains, each of which has room for a few."
    }

    def __init__(self, design: PteChainRmap) -> None:
        self.design: Final = design

    def parts(self, machine: Machine, scope: Scope) -> dict[str, Part]:
        design = self.design
        pids = processes_of(machine)
        group = "lists|Lists of entries, one a page"
        pfns: dict[int, int] = {}  # with the address space that it was met in
        for vma in scope.vmas:
            table = vma.mm.page_table
            for addr in range(vma.start, min(vma.end, vma.start + (MANY << PAGE_SHIFT)), 1 << PAGE_SHIFT):
                entry = table.get(addr)
                if entry & (PTE_ANON | PTE_MIGRATION) and len(pfns) < MANY:
                    pfns.setdefault(entry >> PTE_SHIFT, vma.mm.id)
        result: dict[str, Part] = {}
        for pfn in sorted(pfns):
            places = []
            for number, addr in map(design.place_of, design.pointers(pfn)):
                mm = design.mms[number]
                places.append(f"{owner(pids, mm)} {hexa(addr)}")
            if places:
                some = "; ".join(places[:4]) + (f"; {len(places) - 4:,} more" if len(places) > 4 else "")
                result[f"P{pfn}"] = Part(
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
        return {id(lock): f"map lock of page {pfn}" for pfn, lock in self.design.locks.items()}


def view_of(design: ReverseMap) -> View:
    """How to look at `design`."""
    own = getattr(design, "explorer_view", None)
    if own is not None:
        view = own()
        assert isinstance(view, View)
        return view
    if isinstance(design, AnonVmaLazyRmap):
        return AnonVmaLazyView(design)
    if isinstance(design, AnonVmaRmap):
        return AnonVmaView(design)
    if isinstance(design, ContextRmap):
        return ContextView(design)
    if isinstance(design, AnonMMRmap):
        return AnonMMView(design)
    if isinstance(design, PteChainRmap):
        return PteChainView(design)
    return View()
