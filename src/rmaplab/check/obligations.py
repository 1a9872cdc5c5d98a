# SPDX-License-Identifier: GPL-2.0-or-later
"""What has to be true of a machine when all CPUs of a scenario have finished.

- restored: no process waits for a migration entry that no task will replace.
- counted: each page's mapcount is the number of entries that map it, and no entry maps a free page.  A walk that
  missed a mapping has left the folio mapped, and its caller has given up.
- found: at rest, the design finds every mapping of every folio.
- leaked: all allocated objects can be reached, and reference counts match the references: a walker that drops the
  last reference to an object frees it.
"""

from __future__ import annotations

from rmaplab.check.truth import leaks
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import LEAF_SHIFT, PTE_ANON, PTE_MIGRATION, PTE_SHIFT, PTE_SWAP
from rmaplab.mm.reverse_map import miscounted
from rmaplab.mm.vma import PAGE_SHIFT

Place = tuple[int, int]  # number of an mm_struct, address


def first_broken(machine: Machine) -> tuple[str, list[Place]] | None:
    """The first obligation that is broken, and the entries by which it shows; None if all hold."""
    machine.reap()
    maps: dict[int, list[Place]] = {}
    waiting: list[Place] = []
    waits_for = swapped = 0
    for mm in machine.mms.values():
        for number, leaf in mm.page_table.leaves.items():
            present: list[int] = leaf.v.nonzero()[0].tolist()
            for i in present:
                entry: int = leaf.m[i]
                place = (mm.id, (number << LEAF_SHIFT) + (i << PAGE_SHIFT))
                if entry & PTE_MIGRATION:
                    if not waiting:
                        waits_for = entry >> PTE_SHIFT
                    waiting.append(place)
                if entry & PTE_SWAP:
                    swapped += 1
                if entry & PTE_ANON:
                    maps.setdefault(entry >> PTE_SHIFT, []).append(place)
    if waiting:
        words = f"{_words(waiting[0])} waits for page {waits_for} for ever: its migration entry was not found"
        return f"restored: {words}", waiting
    folios = machine.folios
    for pfn, places in maps.items():
        if folios.order.m[pfn] < 0:
            return f"counted: page {pfn} is free, and {_words(places[0])} maps it", places
        mapcount: int = folios.mapcount.m[pfn]
        if mapcount != len(places):
            return f"counted: {len(places)} entries map page {pfn}, whose mapcount is {mapcount}", places
        seen: set[Place] = set()
        for vma, addr in machine.leader.walk(pfn):
            seen.add((vma.mm.id, addr))
        for place in places:
            if place not in seen:
                return f"found: {_words(place)} maps page {pfn}, but the walk never visits it", [place]
    said = [sentence for sentence, _ in leaks(machine)]
    miscounted(said, "pages in use", -1, folios.in_use, len(maps.keys() | machine.slot_of.keys()))
    slots = 0
    for slot in machine.swap.values():
        slots += slot.count
    miscounted(said, "references to swap", -1, slots, swapped)
    return (f"leaked: {said[0]}", []) if said else None


def _words(place: Place) -> str:
    return f"address {place[1]:#x} of mm {place[0]}"
