# SPDX-License-Identifier: GPL-2.0-or-later
"""The files in fixtures/ and random_answers/, which kernel/fixtures.py wrote: read, and held against the model.

Where execve() puts a stack and mmap() a mapping is a matter of chance (address space randomisation), and so are the
values that follow from it: two files are compared without them.  Where reclaim puts pages in swap is another, which
decides whether small folios come back as large ones: only files that agree on that are compared.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

from rmaplab.check.histories import header
from rmaplab.kernel.answers import State, digest, folded, page_values, reachable
from rmaplab.kernel.driver import Setting
from rmaplab.kernel.isomorphism import refcount_of_model
from rmaplab.kernel.lockstep import answer, in_guest
from rmaplab.mm.folio import FOLIO_KSM
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import (
    LEAF_ENTRIES,
    PTE_ANON,
    PTE_EXCLUSIVE,
    PTE_FILE,
    PTE_GUARD,
    PTE_SHIFT,
    PTE_SWAP,
    PTE_WRITE,
    PTE_ZERO,
)
from rmaplab.mm.profile import Profile, profile_for
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import PAGE_SIZE
from rmaplab.mm.vmscan import PLACED
from rmaplab.rmap.anon_vma import AnonVma, AnonVmaChain, AnonVmaRmap, VmaFields
from rmaplab.sync.work import Tally
from rmaplab.trace.events import Event
from rmaplab.trace.play import Player

_LAST_PGOFF = (1 << 62) - 1
_CHANCE = re.compile(r"0x7[0-9a-f]{8,11}\b")
_PLACE = re.compile(rf"^swap_out .*flags={PLACED} offset=(.*)$", re.M)


def without_chance(text: str) -> str:
    """`text` without what differs from run to run, and without the comment."""
    return _CHANCE.sub("0x7…", _PLACE.sub("swap_out", text.partition("\n")[2]))


def places(text: str) -> list[int]:
    """Where in swap reclaim put runs of pages, as far as it matters to the largest folio that comes back."""
    return [int(place, 0) % (LEAF_ENTRIES // 2) for place in _PLACE.findall(text)]


def model_differs(
    path: Path, design: type[ReverseMap] = AnonVmaRmap, profile: Profile | None = None,
    kind: type[Machine] = Machine,
) -> list[str]:  # fmt: skip
    """Where the model does not say what the file says: lines of either, marked - (file) and + (model).  `profile`: in
    place of that of the kernel's release; `kind`: in place of the machine."""
    release, its, events, expected = read(path)
    machine = _machine(profile or profile_for(release)[0], design, its, kind)
    player = Player(machine, in_guest(header()), batch=False)
    in_exec = False
    for event in events:
        in_exec = event.op == "exec" or (in_exec and event.op == "fault")
        machine.large_folios = 0 if in_exec else its.large_folios  # what execve() builds has none
        got = player.do(event)
        if got != event.result:
            return [f"- {event}", f"+ result {got:#x}"]
    lines = of_model(machine)
    if lines == expected:
        return []
    return [f"- {line}" for line in expected if line not in lines] + [
        f"+ {line}" for line in lines if line not in expected
    ]


def read(path: Path) -> tuple[str, Setting, list[Event], list[str]]:
    """Release, setting, events, and lines of state of a file."""
    lines = path.read_text().splitlines()
    events = [parse_event(line) for line in lines[1:] if not line.startswith("|")]
    return *_title(lines[0]), events, [line for line in lines[1:] if line.startswith("|")]


def _title(line: str) -> tuple[str, Setting]:
    """Release and setting."""
    large = re.search(r"folios of up to (\d+) pages", line)
    order = int(large.group(1)).bit_length() - 1 if large else 0
    crowded = re.search(r"(\d+) mappings at most", line)
    return line.rpartition(" ")[2], Setting(order, int(crowded.group(1)) if crowded else 0)


def random_histories(path: Path) -> dict[str, list[str]]:
    """The lines of each history of a file, by its seed."""
    histories: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if line.startswith("# seed "):
            lines = histories.setdefault(re.split("[ ,]", line)[2], [])
        lines.append(line)
    return histories


def random_differs(lines: list[str], design: type[ReverseMap] = AnonVmaRmap) -> str:
    """Where the model first does not say what the lines of a random history say; empty: nowhere."""
    release, its = _title(lines[0])
    machine = _machine(profile_for(release)[0], design, its)
    player = Player(machine, in_guest(header()), batch=False)
    in_exec = False
    event = Event("mark", 0)
    for number, line in enumerate(lines[1:], 2):
        if line.startswith("| mmap_base "):
            machine.mm_of(event.pid).mmap_base = int(line.split()[2], 0)
        elif line.startswith("| "):
            if digest(of_model(machine)) != line[2:]:
                return f"line {number}, at or before {event}: another state"
        else:
            event = parse_event(line)
            in_exec = event.op == "exec" or (in_exec and event.op == "fault")
            machine.large_folios = 0 if in_exec else its.large_folios
            got = answer(player, event)
            if got != event.result:
                return f"line {number}, {event}: {got:#x}"
    return ""


def _machine(profile: Profile, design: type[ReverseMap], its: Setting, kind: type[Machine] = Machine) -> Machine:
    machine = kind(profile, [design], large_folios=its.large_folios)
    if its.mappings:
        machine.max_map_count = its.mappings
    return machine


def parse_event(line: str) -> Event:
    """The inverse of str(event)."""
    op, *parts = line.split()
    return Event(op, **{name: int(value, 0) for name, _, value in (part.partition("=") for part in parts)})


def of_model(machine: Machine) -> list[str]:
    """The lines of a machine that the anon_vma design leads."""
    design = cast(AnonVmaRmap, machine.leader)
    folios = machine.folios
    state = State()
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
                huge = " huge" * mm.page_table.is_huge(addr)
                if entry & PTE_ANON:
                    cached = folios.head.m[pfn] in machine.slot_of
                    exclusive, writable = entry & PTE_EXCLUSIVE != 0, entry & PTE_WRITE != 0
                    values = page_values(folios.mapcount.m[pfn], folios.order.m[pfn], exclusive, writable, cached)
                    ksm = folios.flags.m[pfn] & FOLIO_KSM != 0
                    state.page(addr, pfn, values + huge, folios.index.m[pfn], design.anchor.m[pfn], ksm)
                elif entry & PTE_SWAP:
                    state.entry(addr, f"swap {state.slots(pfn)}{' exclusive' if entry & PTE_EXCLUSIVE else ''}")
                elif entry & (PTE_ZERO | PTE_FILE):
                    state.entry(addr, ("zero" if entry & PTE_ZERO else "file") + huge)
                elif entry & PTE_GUARD:
                    state.entry(addr, "guard")
    tally = Tally("")

    def of_number(number: int) -> AnonVma:
        anon_vma = design.anon_vmas[number]
        assert anon_vma is not None
        return anon_vma

    for number in reachable(state, lambda a: (of_number(a).root.number, of_number(a).parent.number)):
        mine = of_number(number)
        tree = [named[cast(AnonVmaChain, node).vma.id] for node in mine.touching(0, _LAST_PGOFF, tally)]
        counts = (refcount_of_model(design, mine), mine.num_children, mine.num_active_vmas)
        state.anon_vma(number, mine.root.number, mine.parent.number, counts, tree)
    return folded(state.lines)
