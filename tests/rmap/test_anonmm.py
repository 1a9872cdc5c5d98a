# SPDX-License-Identifier: GPL-2.0-or-later
"""anonmm looks at one address in every address space of the family; mremap is its weakness."""

from __future__ import annotations

from typing import cast

from rmap.world import PAGE, Process, World
from rmaplab.mm.abi import MREMAP_FIXED, MREMAP_MAYMOVE
from rmaplab.mm.migrate import move, unmap
from rmaplab.rmap.anonmm import AnonMMRmap

MOVE = MREMAP_MAYMOVE | MREMAP_FIXED
AWAY = 0x30_0000_0000


def anonmm(world: World) -> AnonMMRmap:
    return cast(AnonMMRmap, world.design("anonmm"))


def one_page(world: World) -> tuple[Process, int]:
    process = world.spawn()
    addr = process.written(PAGE)
    return process, addr


def test_a_page_that_one_entry_maps_gets_a_new_address() -> None:
    world = World("anonmm")
    process, addr = one_page(world)
    process.mremap(addr, PAGE, to=AWAY)
    assert world.finds("anonmm", process.pfn(AWAY)) == {(process, AWAY)}
    assert (anonmm(world).readdressed.count, anonmm(world).copies.count) == (1, 0)


def test_a_shared_page_that_moves_would_have_been_copied() -> None:
    world = World("anonmm")
    process, addr = one_page(world)
    child = process.fork()
    child.mremap(addr, PAGE, to=AWAY)
    assert world.finds("anonmm", process.pfn(addr)) >= {(process, addr), (child, AWAY)}
    assert anonmm(world).copies.count == 1
    grandchild = child.fork()  # inherits the odd entry
    assert world.finds("anonmm", process.pfn(addr)) >= {(process, addr), (child, AWAY), (grandchild, AWAY)}


def test_an_odd_entry_that_goes_during_a_migration_is_forgotten() -> None:
    world = World("anonmm")
    process, addr = one_page(world)
    child = process.fork()
    child.mremap(addr, PAGE, to=AWAY)
    head = process.pfn(addr)
    assert anonmm(world).odd.places
    assert world.machine.trylock_folio(head)
    made = unmap(world.machine, head)
    child.munmap(AWAY, PAGE)  # a migration entry
    assert not anonmm(world).odd.places
    assert move(world.machine, head, made - 1) == 1  # the entry that went is not waited for
    assert world.finds("anonmm", process.pfn(addr)) == {(process, addr)}


def test_a_walk_visits_the_whole_family() -> None:
    world = World("anonmm")
    process, addr = one_page(world)
    for _ in range(10):
        process.fork()
    process.write(addr)  # a page that nobody else has
    before = anonmm(world).visited.count
    list(world.design("anonmm").walk(process.pfn(addr)))
    assert anonmm(world).visited.count - before == 11


def test_an_exec_begins_a_new_family() -> None:
    world = World("anonmm")
    process, addr = one_page(world)
    world.spawn()
    before = anonmm(world).visited.count
    list(world.design("anonmm").walk(process.pfn(addr)))
    assert anonmm(world).visited.count - before == 1


def test_an_anonmm_stays_while_pages_point_to_it() -> None:
    world = World("anonmm")
    process, addr = one_page(world)
    child = process.fork()
    world.process(1).exit()
    assert anonmm(world).pool.live == 2  # the child's pages are its parent's
    assert world.finds("anonmm", child.pfn(addr)) == {(child, addr)}
    world.process(2).exit()
    assert anonmm(world).pool.live == 0
