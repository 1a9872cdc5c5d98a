# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel's answers as text that can be reviewed, kept, and compared with.

An event is a line, and the state after it is a block of lines in which objects have names by order of
appearance: anon_vmas A1, A2, ..., pages p1, ..., swap slots s1, ...  The model's state can be written in the
same way, so that "the same text" means "isomorphic": see tests/kernel.

    exec pid=1 addr=0x7ffc... ...
    | 1: 0x7fff00000-0x7fff21000 pgoff 0x7ffffffdf rw- anon A1 chain A1
    |    0x7fff1f000 p1 mapcount 1 exclusive writable index 0x7fffffffe anon_vma A1
    | A1: root A1 parent A1 refcount 1 children 1 active 1 tree 1:0x7fff00000
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, cast

from rmaplab.kernel import snapshot as real
from rmaplab.kernel.isomorphism import belongs, refcount_of_kernel, refcount_of_model
from rmaplab.mm.folio import FOLIO_KSM
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import (
    PTE_ANON,
    PTE_EXCLUSIVE,
    PTE_FILE,
    PTE_GUARD,
    PTE_SHIFT,
    PTE_SWAP,
    PTE_WRITE,
    PTE_ZERO,
)
from rmaplab.mm.vma import PAGE_SIZE
from rmaplab.rmap.anon_vma import AnonVma, AnonVmaChain, AnonVmaRmap, VmaFields
from rmaplab.sync.work import Tally
from rmaplab.trace.events import Event

_FIELDS: Final = ("addr", "length", "prot", "flags", "addr2", "length2", "file", "offset", "pid2", "result")
_LAST_PGOFF: Final = (1 << 62) - 1


def event_line(event: Event) -> str:
    """`op pid=1 addr=0x... ...`, without fields that have their default."""
    parts = [event.op, f"pid={event.pid}"]
    for field in _FIELDS:
        value = getattr(event, field)
        if value != (-1 if field == "file" else 0):
            parts.append(f"{field}={value if -9 <= value <= 9 else hex(value)}")
    return " ".join(parts)


def parse_event(line: str) -> Event:
    """The inverse of event_line."""
    op, *parts = line.split()
    return Event(op, **{name: int(value, 0) for name, _, value in (part.partition("=") for part in parts)})


class _Names:
    """Names of objects, by order of appearance."""

    def __init__(self, prefix: str) -> None:
        self._prefix: Final = prefix
        self.known: Final[dict[int, str]] = {}

    def __call__(self, number: int) -> str:
        return self.known.setdefault(number, f"{self._prefix}{len(self.known) + 1}")


class _State:
    """State as lines: what kernel and model have in common."""

    def __init__(self) -> None:
        self.anon_vmas: Final = _Names("A")
        self.pages: Final = _Names("p")
        self.slots: Final = _Names("s")
        self.lines: Final[list[str]] = []

    def vma(
        self, pid: int, start: int, end: int, pgoff: int, anon_pgoff: int, flags: int, chain: list[int], own: int
    ) -> None:
        anonymous = f" anon {anon_pgoff:#x}" if anon_pgoff != pgoff else ""
        links = " ".join(self.anon_vmas(anon_vma) for anon_vma in chain)
        chains = f" anon {self.anon_vmas(own)} chain {links}" if chain else ""
        self.lines.append(f"| {pid}: {start:#x}-{end:#x} pgoff {pgoff:#x}{anonymous} flags {flags:#x}{chains}")

    def page(self, addr: int, number: int, values: str, index: int, anon_vma: int, ksm: bool) -> None:
        origin = "of KSM" if ksm else f"index {index:#x} anon_vma {self.anon_vmas(anon_vma)}"
        self.lines.append(f"|    {addr:#x} {self.pages(number)} {values} {origin}")

    def entry(self, addr: int, text: str) -> None:
        self.lines.append(f"|    {addr:#x} {text}")

    def anon_vma(self, number: int, root: int, parent: int, counts: tuple[int, int, int], tree: list[str]) -> None:
        names = self.anon_vmas
        self.lines.append(
            f"| {names(number)}: root {names(root)} parent {names(parent)} refcount {counts[0]} children {counts[1]}"
            f" active {counts[2]} tree {' '.join(tree)}"
        )


def render(events: Iterable[Event], snapshot: real.Snapshot, pids: Mapping[int, int]) -> str:
    """Events and the kernel's state after them."""
    return "\n".join([*map(event_line, events), *of_kernel(snapshot, pids)])


def of_kernel(snapshot: real.Snapshot, pids: Mapping[int, int]) -> list[str]:
    """The lines of a snapshot; `pids` are the history's processes and the kernel's."""
    state = _State()
    named: dict[int, str] = {}
    seen: set[int] = set()
    for pid, guest_pid in sorted(pids.items()):
        mm = snapshot.by_pid[guest_pid]
        if mm.address in seen:
            continue
        seen.add(mm.address)
        for vma in filter(belongs, mm.vmas):
            chain = [snapshot.avcs[avc].anon_vma for avc in reversed(vma.chain)]
            state.vma(pid, vma.start, vma.end, vma.pgoff, vma.anon_pgoff, vma.flags, chain, vma.anon_vma)
            named[vma.address] = f"{pid}:{vma.start:#x}"
            for addr in range(vma.start, vma.end, PAGE_SIZE):
                entry = mm.entries.get(addr)
                if entry is None:
                    continue
                if entry.kind == "anon":
                    page = snapshot.pages[entry.number]
                    values = _page_values(page.mapcount, page.order, entry.exclusive, entry.writable, page.swapcache)
                    state.page(addr, entry.number, values, page.index, page.anon_vma, page.ksm)
                elif entry.kind == "swap":
                    state.entry(addr, f"swap {state.slots(entry.number)}{' exclusive' if entry.exclusive else ''}")
                else:
                    state.entry(addr, entry.kind)
    for number in _reachable(state, lambda a: (snapshot.anon_vmas[a].root, snapshot.anon_vmas[a].parent)):
        its = snapshot.anon_vmas[number]
        tree = [named.get(snapshot.avcs[node.avc].vma, "?") for node in its.tree]
        refcount = refcount_of_kernel(snapshot, its)
        state.anon_vma(number, its.root, its.parent, (refcount, its.num_children, its.num_active_vmas), tree)
    return state.lines


def of_model(machine: Machine) -> list[str]:
    """The lines of a machine that the anon_vma design leads."""
    design = cast(AnonVmaRmap, machine.leader)
    folios = machine.folios
    state = _State()
    named: dict[int, str] = {}
    seen: set[int] = set()
    for pid in sorted(machine.processes):
        mm = machine.mm_of(pid)
        if mm.id in seen:
            continue
        seen.add(mm.id)
        for vma in mm.tree.to_list():
            fields = cast("VmaFields | None", vma.rmap[design.slot])
            chain = [] if fields is None else [avc.anon_vma.number for avc in fields.chain]
            own = 0 if fields is None or fields.anon_vma is None else fields.anon_vma.number
            state.vma(pid, vma.start, vma.end, vma.pgoff, vma.anon_pgoff, vma.flags, chain, own)
            named[vma.id] = f"{pid}:{vma.start:#x}"
            for addr in range(vma.start, vma.end, PAGE_SIZE):
                entry = mm.page_table.get(addr)
                pfn = entry >> PTE_SHIFT
                if entry & PTE_ANON:
                    cached = folios.head.m[pfn] in machine.slot_of
                    exclusive, writable = entry & PTE_EXCLUSIVE != 0, entry & PTE_WRITE != 0
                    values = _page_values(folios.mapcount.m[pfn], folios.order.m[pfn], exclusive, writable, cached)
                    ksm = folios.flags.m[pfn] & FOLIO_KSM != 0
                    state.page(addr, pfn, values, folios.index.m[pfn], design.anchor.m[pfn], ksm)
                elif entry & PTE_SWAP:
                    state.entry(addr, f"swap {state.slots(pfn)}{' exclusive' if entry & PTE_EXCLUSIVE else ''}")
                elif entry & (PTE_ZERO | PTE_FILE):
                    state.entry(addr, "zero" if entry & PTE_ZERO else "file")
                elif entry & PTE_GUARD:
                    state.entry(addr, "guard")
    tally = Tally("")

    def of_number(number: int) -> AnonVma:
        anon_vma = design.anon_vmas[number]
        assert anon_vma is not None
        return anon_vma

    for number in _reachable(state, lambda a: (of_number(a).root.number, of_number(a).parent.number)):
        mine = of_number(number)
        tree = [named[cast(AnonVmaChain, node).vma.id] for node in mine.touching(0, _LAST_PGOFF, tally)]
        counts = (refcount_of_model(design, mine), mine.num_children, mine.num_active_vmas)
        state.anon_vma(number, mine.root.number, mine.parent.number, counts, tree)
    return state.lines


def _page_values(mapcount: int, order: int, exclusive: bool, writable: bool, cached: bool) -> str:
    words = [f"mapcount {mapcount}", *([f"of {1 << order} pages"] if order else [])]
    flags = (("exclusive", exclusive), ("writable", writable), ("swapcache", cached))
    words += [word for word, holds in flags if holds]
    return " ".join(words)


def _reachable(state: _State, above: Callable[[int], tuple[int, int]]) -> list[int]:
    """All anon_vmas named so far, and those above them, in the order of their names."""
    done = 0
    while done < len(state.anon_vmas.known):
        for number in list(state.anon_vmas.known)[done:]:
            done += 1
            for other in above(number):
                state.anon_vmas(other)
    return list(state.anon_vmas.known)
