# SPDX-License-Identifier: GPL-2.0-or-later
"""A check that faults in a batch and one by one come to the same.

The machine handles a run of faults a leaf of the page table at a time (mm/memory.c has no such thing), and the
player makes one run of many events.  Neither may show: `difference` plays a history once in runs as long as
possible and once page by page, and compares the whole state of the two machines, page numbers included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from rmaplab.mm.folio import FOLIO_ANON
from rmaplab.mm.machine import Machine
from rmaplab.mm.vma import PAGE_SIZE
from rmaplab.trace.events import Event
from rmaplab.trace.history import Header
from rmaplab.trace.play import Player


def one_by_one(events: Sequence[Event]) -> Iterator[Event]:
    """`events` with each run of faults as faults of one page each."""
    for event in events:
        if event.op != "fault" or event.result or event.length <= PAGE_SIZE:
            yield event
        else:
            for addr in range(event.addr, event.addr + event.length, PAGE_SIZE):
                yield msgspec.structs.replace(event, addr=addr, length=PAGE_SIZE)


def state_of(machine: Machine) -> dict[str, object]:
    """All state of a machine and its designs, by name."""
    folios = machine.folios
    live = folios.live()
    state: dict[str, object] = {
        "pages in use": live.tolist(),
        "swap": {slot: (held.count, held.cached_pfn) for slot, held in machine.swap.items()},
        "pages of KSM": set(machine.ksm_pages),
    }
    for name, column in (
        ("heads", folios.head), ("orders", folios.order), ("page flags", folios.flags),
        ("mapcounts", folios.mapcount), ("indices", folios.index),
    ):  # fmt: skip
        state[name] = column.v[live].tolist()
    for mm in machine.mms.values():
        state[f"VMAs of mm {mm.id}"] = [(v.start, v.end, v.pgoff, v.flags, v.prepared) for v in mm.tree]
        state[f"entries of mm {mm.id}"] = {
            number: leaf.v.tobytes() for number, leaf in mm.page_table.leaves.items() if leaf.used
        }
        state[f"totals of mm {mm.id}"] = (mm.total_vm, mm.locked_vm, mm.brk)
    heads = sorted(set(folios.head.v[live[folios.flags.v[live] & FOLIO_ANON != 0]].tolist()))
    for design in machine.designs:
        state[f"objects of {design.name}"] = [(count.type, count.objects) for count in design.footprint()]
        state[f"walks of {design.name}"] = {
            head: [(vma.mm.id, vma.start, addr) for vma, addr in design.walk(head)]
            for head in heads
            if folios.total_mapcount(head)
        }
    return state


def difference(events: Sequence[Event], header: Header, machine: Callable[[], Machine]) -> str:
    """The first difference after `events`, in a sentence; empty if there is none.  `machine` makes a new machine."""
    batched = Player(machine(), header)
    batched.play(events)
    single = Player(machine(), header, batch=False)
    single.play(one_by_one(events))
    left = state_of(batched.machine)
    right = state_of(single.machine)
    for what in [*left, *right]:
        if left.get(what) != right.get(what):
            return f"after {len(events)} events, the {what} depend on whether faults come in runs or one by one"
    return ""
