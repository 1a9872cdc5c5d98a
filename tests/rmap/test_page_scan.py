# SPDX-License-Identifier: GPL-2.0-or-later
"""page_scan visits what maps a folio, nothing else, and pays for it."""

from __future__ import annotations

import random
from typing import cast

import pytest

from histories import random_history
from rmap.world import LOW, PAGE, World
from rmaplab.check.histories import header
from rmaplab.check.truth import Truth
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.rmap.page_scan import PageScanRmap
from rmaplab.trace.play import Player


def test_it_visits_only_what_maps_the_page() -> None:
    world = World("page_scan")
    process = world.spawn()
    addr = process.written(PAGE)
    child = process.fork()
    old = process.pfn(addr)
    process.write(addr)
    assert world.finds("page_scan", old) == {(child, addr)}


def test_a_walk_looks_at_every_leaf_of_every_process() -> None:
    world = World("page_scan")
    design = cast(PageScanRmap, world.design("page_scan"))
    process = world.spawn()
    process.write(process.mmap(PAGE, at=LOW))
    process.write(process.mmap(PAGE, at=LOW + (1 << 30)))
    child = process.fork()
    leaves = len(process.mm.page_table.leaves) + len(child.mm.page_table.leaves)
    before = design.entries.count
    world.finds("page_scan", process.pfn(LOW))
    assert design.entries.count - before == 512 * leaves


@pytest.mark.parametrize("seed", range(3))
def test_every_place_of_every_walk_maps_the_folio(seed: int) -> None:
    machine = Machine(PROFILES[REFERENCE], [PageScanRmap], large_folios=3)
    player = Player(machine, header(), batch=False)
    for event in random_history(random.Random(seed), 120, [PageScanRmap]):
        player.do(event)
    for folio in Truth(machine).mapped_folios():
        places = list(machine.designs[0].walk(folio.head))
        assert folio.unseen(places) == []
        assert all(folio.mapped_at(place) for place in places)
