# SPDX-License-Identifier: GPL-2.0-or-later
"""anonmm looks at one address in every address space of the family; mremap is its weakness."""

from __future__ import annotations

from typing import cast

from rmap.world import World
from rmaplab.mm.abi import MREMAP_FIXED, MREMAP_MAYMOVE
from rmaplab.mm.vma import MM, PAGE_SIZE
from rmaplab.rmap.anonmm import AnonMMRmap

MOVE = MREMAP_MAYMOVE | MREMAP_FIXED
AWAY = 0x30_0000_0000


def anonmm(world: World) -> AnonMMRmap:
    return cast(AnonMMRmap, world.design("anonmm"))


def one_page(world: World) -> tuple[MM, int]:
    mm = world.start()
    addr = world.map(mm)
    world.write(mm, addr)
    return mm, addr


def test_a_page_that_one_entry_maps_gets_a_new_address() -> None:
    world = World("anonmm")
    mm, addr = one_page(world)
    world.machine.mremap(mm, addr, PAGE_SIZE, PAGE_SIZE, MOVE, AWAY)
    assert world.finds("anonmm", world.page(mm, AWAY)) == {(mm, AWAY)}
    assert (anonmm(world).readdressed.count, anonmm(world).copies.count) == (1, 0)


def test_a_shared_page_that_moves_would_have_been_copied() -> None:
    world = World("anonmm")
    mm, addr = one_page(world)
    child = world.fork(mm)
    world.machine.mremap(child, addr, PAGE_SIZE, PAGE_SIZE, MOVE, AWAY)
    assert world.finds("anonmm", world.page(mm, addr)) >= {(mm, addr), (child, AWAY)}
    assert anonmm(world).copies.count == 1
    grandchild = world.fork(child)  # inherits the odd entry
    assert world.finds("anonmm", world.page(mm, addr)) >= {(mm, addr), (child, AWAY), (grandchild, AWAY)}


def test_a_walk_visits_the_whole_family() -> None:
    world = World("anonmm")
    mm, addr = one_page(world)
    for _ in range(10):
        world.fork(mm)
    world.write(mm, addr)  # a page that nobody else has
    before = anonmm(world).visited.count
    list(world.design("anonmm").walk(world.page(mm, addr)))
    assert anonmm(world).visited.count - before == 11


def test_an_exec_begins_a_new_family() -> None:
    world = World("anonmm")
    mm, addr = one_page(world)
    world.start()
    before = anonmm(world).visited.count
    list(world.design("anonmm").walk(world.page(mm, addr)))
    assert anonmm(world).visited.count - before == 1


def test_an_anonmm_stays_while_pages_point_to_it() -> None:
    world = World("anonmm")
    mm, addr = one_page(world)
    child = world.fork(mm)
    world.machine.exit(1)
    assert anonmm(world).pool.live == 2  # the child's pages are its parent's
    assert world.finds("anonmm", world.page(child, addr)) == {(child, addr)}
    world.machine.exit(2)
    assert anonmm(world).pool.live == 0
