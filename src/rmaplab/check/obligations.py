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
from rmaplab.mm.rmap_walk import places
from rmaplab.mm.vma import PAGE_SHIFT

Place = tuple[int, int]  # number of an mm_struct, address


def first_broken(machine: Machine) -> tuple[str, list[Place]] | None:
    """The first obligation that is broken, and the entries by which it shows; None if all hold."""
    machine.reap()
    maps: dict[int, list[Place]] = {}
    whole: dict[int, int] = {}  # by first page, entries that map a folio of 2 MiB
    waiting: list[Place] = []
    waits_for = swapped = 0
    for mm in machine.mms.values():
        for number, leaf in mm.page_table.leaves.items():
            present: list[int] = [0] if leaf.huge else leaf.v.nonzero()[0].tolist()
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
                    if leaf.huge:
                        whole[entry >> PTE_SHIFT] = whole.get(entry >> PTE_SHIFT, 0) + 1
    if waiting:
        words = f"{_words(waiting[0])} waits for page {waits_for} for ever: its migration entry was not found"
        return f"restored: {words}", waiting
    folios = machine.folios
    seen: dict[int, set[Place]] = {}  # by first page of a folio
    for pfn, mapping in maps.items():
        if folios.order.m[pfn] < 0:
            return f"counted: page {pfn} is free, and {_words(mapping[0])} maps it", mapping
        head: int = folios.head.m[pfn]
        count = len(mapping) if pfn == head else len(mapping) + whole.get(head, 0)
        mapcount: int = folios.mapcount.m[pfn]
        if mapcount != count:
            return f"counted: {count} entries map page {pfn}, whose mapcount is {mapcount}", mapping
        if head not in seen:
            seen[head] = {(vma.mm.id, addr) for vma, addr in places(machine, head)}
        for place in mapping:
            if place not in seen[head]:
                return f"found: {_words(place)} maps page {pfn}, but the walk never visits it", [place]
    said = [sentence for sentence, _ in leaks(machine)]
    used = seen.keys() | {int(folios.head.m[pfn]) for pfn in machine.slot_of}
    miscounted(said, "pages in use", -1, folios.in_use, sum(folios.nr_pages(head) for head in used))
    slots = 0
    for slot in machine.swap.values():
        slots += slot.count
    miscounted(said, "references to swap", -1, slots, swapped)
    return (f"leaked: {said[0]}", []) if said else None


def _words(place: Place) -> str:
    return f"address {place[1]:#x} of mm {place[0]}"
