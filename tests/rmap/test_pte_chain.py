# SPDX-License-Identifier: GPL-2.0-or-later
"""pte_chain is exact, and pays for it with every entry."""

from __future__ import annotations

from typing import cast

import pytest

from rmap.world import PAGE, Process, World
from rmaplab.rmap.pte_chain import PteChainRmap


def chains(world: World) -> PteChainRmap:
    return cast(PteChainRmap, world.design("pte_chain"))


def family(world: World, children: int, pages: int) -> tuple[Process, int]:
    """A process without a stack, and its children, that share so many pages."""
    process = world.spawn()
    process.munmap(process.stack, PAGE)
    addr = process.written(pages * PAGE)
    for _ in range(children):
        process.fork()
    return process, addr


def test_a_page_that_one_entry_maps_takes_no_chain() -> None:
    world = World("pte_chain")
    family(world, 0, 100)
    assert chains(world).pool.allocated == 0


@pytest.mark.parametrize(("children", "nodes"), [(1, 1), (6, 1), (7, 2), (13, 2), (14, 3)])
def test_a_chain_has_seven_entries_a_node(children: int, nodes: int) -> None:
    world = World("pte_chain")
    family(world, children, 5)
    assert chains(world).pool.live == 5 * nodes
    assert chains(world).audit(list(world.machine.mms.values()), world.machine.vma_pool.peak) == []


def test_fork_adds_a_pointer_for_each_entry_that_it_copies() -> None:
    world = World("pte_chain")
    family(world, 3, 1000)
    assert chains(world).added.count == 1 + 4 * 1000  # the stack had a page


def test_a_walk_visits_what_maps_the_page_and_nothing_else() -> None:
    world = World("pte_chain")
    process, addr = family(world, 9, 1)
    page = process.pfn(addr)
    for pid in range(1, 6):
        world.process(pid).write(addr)
    assert world.finds("pte_chain", page) == world.maps(page)
    assert len(world.maps(page)) == 5


def test_exit_gives_the_nodes_back() -> None:
    world = World("pte_chain")
    family(world, 20, 3)
    for pid in range(2, 22):
        world.process(pid).exit()
    assert chains(world).pool.live == 3  # one entry each, in a chain: nobody makes it a pointer again
    world.process(1).exit()
    assert chains(world).pool.live == 0
