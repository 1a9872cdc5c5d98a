# SPDX-License-Identifier: GPL-2.0-or-later
"""unshare_on_remap keeps no records: what moves alone gets its new address, and what is shared would be copied."""

from __future__ import annotations

from typing import cast

from rmap.world import PAGE, Process, World
from rmaplab.rmap.unshare_on_remap import UnshareOnRemapRmap

AWAY = 0x30_0000_0000


def design_of(world: World) -> UnshareOnRemapRmap:
    return cast(UnshareOnRemapRmap, world.design("unshare_on_remap"))


def family() -> tuple[World, Process, Process, int]:
    """A parent and a child with a page that they share."""
    world = World("anon_vma", "unshare_on_remap")
    parent = world.spawn()
    addr = parent.written(PAGE)
    return world, parent, parent.fork(), addr


def test_a_page_that_moves_alone_gets_its_new_address_and_no_record() -> None:
    world = World("unshare_on_remap")
    process = world.spawn()
    process.mremap(process.written(PAGE), PAGE, to=AWAY)
    child = process.fork()
    assert world.finds("unshare_on_remap", process.pfn(AWAY)) == {(process, AWAY), (child, AWAY)}
    design = design_of(world)
    assert (design.readdressed.count, design.copies.count, design.memory.nodes.peak) == (1, 0, 0)


def test_a_shared_page_that_moves_would_be_copied() -> None:
    world, parent, child, addr = family()
    child.mremap(addr, PAGE, to=AWAY)
    assert world.finds("unshare_on_remap", parent.pfn(addr)) == {(parent, addr), (child, AWAY)}
    assert design_of(world).copies.count == 1
    grandchild = child.fork()  # inherits what would be the copy
    assert world.finds("unshare_on_remap", parent.pfn(addr)) == {(parent, addr), (child, AWAY), (grandchild, AWAY)}
    child.munmap(AWAY, PAGE)
    assert world.finds("unshare_on_remap", parent.pfn(addr)) == {(parent, addr), (grandchild, AWAY)}


def test_what_was_shared_and_is_no_more_moves_without_a_copy() -> None:
    world, parent, child, addr = family()
    parent.munmap(addr, PAGE)
    child.mremap(addr, PAGE, to=AWAY)
    assert world.finds("unshare_on_remap", child.pfn(AWAY)) == {(child, AWAY)}
    assert design_of(world).copies.count == 0


def test_a_page_that_comes_home_leaves_nothing_behind() -> None:
    world = World("unshare_on_remap")
    process = world.spawn()
    addr = process.written(2 * PAGE)
    process.mremap(addr, PAGE, to=AWAY)
    process.mremap(AWAY, PAGE, to=addr)
    assert design_of(world).odd.places == {}
    assert world.finds("unshare_on_remap", process.pfn(addr)) == {(process, addr)}
