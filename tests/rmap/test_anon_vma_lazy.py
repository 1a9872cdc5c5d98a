# SPDX-License-Identifier: GPL-2.0-or-later
"""anon_vma_lazy: nothing is allocated until somebody forks, and VMAs are pinned for it."""

from __future__ import annotations

from typing import cast

import pytest

from rmap.world import World
from rmaplab.mm.abi import PROT_EXEC, PROT_READ, PROT_WRITE
from rmaplab.mm.vma import PAGE_SIZE
from rmaplab.rmap.anon_vma import AnonVmaRmap, VmaFields
from rmaplab.rmap.anon_vma_lazy import AnonVmaLazyRmap, LazyFields


def lazy(world: World) -> AnonVmaLazyRmap:
    return cast(AnonVmaLazyRmap, world.design("anon_vma_lazy"))


def held(design: AnonVmaRmap) -> tuple[int, int]:
    """anon_vmas and AVCs"""
    return design.anon_vma_pool.live, design.chain_pool.live


def test_what_is_never_forked_has_no_anon_vma() -> None:
    world = World("anon_vma_lazy")
    mm = world.start()
    for _ in range(5):
        world.write(mm, world.map(mm, pages=3), 3)
    assert held(lazy(world)) == (0, 0)


def test_fork_makes_one_anon_vma_for_parent_and_child() -> None:
    world = World("anon_vma", "anon_vma_lazy")
    mm = world.start()  # its stack has pages, too
    world.write(mm, world.map(mm))
    world.fork(mm)
    assert held(cast(AnonVmaRmap, world.design("anon_vma"))) == (4, 6)
    assert held(lazy(world)) == (2, 4)


def test_a_child_that_forks_gets_its_own() -> None:
    world = World("anon_vma_lazy")
    mm = world.start()
    addr = world.map(mm, pages=2)
    world.write(mm, addr)
    child = world.fork(mm)
    world.write(child, addr + PAGE_SIZE)
    own = world.page(child, addr + PAGE_SIZE)
    assert world.finds("anon_vma_lazy", own) == {(child, addr + PAGE_SIZE)}
    grandchild = world.fork(child)
    assert lazy(world).anon_vma_pool.live == 4
    assert world.finds("anon_vma_lazy", own) == {(child, addr + PAGE_SIZE), (grandchild, addr + PAGE_SIZE)}


def test_an_upgrade_links_all_that_were_split_from_the_same_root() -> None:
    world = World("anon_vma_lazy")
    mm = world.start()
    addr = world.map(mm, pages=3)
    world.write(mm, addr, 3)
    world.machine.mprotect(mm, addr + PAGE_SIZE, PAGE_SIZE, PROT_READ)
    child = world.fork(mm)
    for page in range(3):
        at = addr + page * PAGE_SIZE
        assert world.finds("anon_vma_lazy", world.page(mm, at)) == {(mm, at), (child, at)}


def test_a_root_vma_is_pinned_by_what_was_split_from_it() -> None:
    world = World("anon_vma_lazy")
    mm = world.start()
    addr = world.map(mm, pages=2)
    world.write(mm, addr, 2)
    world.machine.mprotect(mm, addr, PAGE_SIZE, PROT_READ)  # the upper part is a new VMA
    last = addr + PAGE_SIZE
    world.machine.munmap(mm, addr, PAGE_SIZE)
    assert lazy(world).pinned_pool.live == 1
    assert world.finds("anon_vma_lazy", world.page(mm, last)) == {(mm, last)}
    world.machine.munmap(mm, last, PAGE_SIZE)
    assert lazy(world).pinned_pool.live == 0


def test_a_root_vma_is_pinned_by_children_that_map_its_pages() -> None:
    world = World("anon_vma_lazy")
    mm = world.start()
    addr = world.map(mm)
    world.write(mm, addr)
    child = world.fork(mm)
    world.machine.exit(1)
    assert lazy(world).pinned_pool.live == 2  # with the stack's
    assert world.finds("anon_vma_lazy", world.page(child, addr)) == {(child, addr)}
    world.machine.exit(2)
    assert lazy(world).pinned_pool.live == 0
    assert held(lazy(world)) == (0, 0)


def test_a_vma_that_took_over_what_it_inherited_is_still_no_neighbour_to_share_with() -> None:
    """An upgrade may leave one link where anon_vma has two; it must not lead to other merges."""
    world = World("anon_vma", "anon_vma_lazy")
    grandparent = world.start()
    inherited = world.map(grandparent, pages=4)
    world.write(grandparent, inherited)
    mm = world.fork(grandparent)
    world.exit(grandparent)
    world.fork(mm)  # the upgrade takes over the grandparent's anon_vma, which nobody uses any more
    assert len(cast(LazyFields, world.vma(mm, inherited).rmap[1]).chain) == 1
    assert len(cast(VmaFields, world.vma(mm, inherited).rmap[0]).chain) == 2
    first, between = inherited - 2 * PAGE_SIZE, inherited - PAGE_SIZE
    world.map(mm, at=first, prot=PROT_READ | PROT_WRITE | PROT_EXEC)
    world.write(mm, first)
    world.map(mm, at=between)
    world.write(mm, between)  # shares with its lower neighbour
    world.protect(mm, between, 1, PROT_READ | PROT_WRITE | PROT_EXEC)
    assert world.vma(mm, first) is world.vma(mm, between)
    assert world.finds("anon_vma_lazy", world.page(mm, between)) == {(mm, between)}


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "6.18"])
def test_it_lets_the_same_vmas_merge(kernel: str) -> None:
    seen = []
    for name in ("anon_vma", "anon_vma_lazy"):
        world = World(name, kernel=kernel)
        mm = world.start()
        addr = world.map(mm, pages=6)
        world.write(mm, addr, 2)
        child = world.fork(mm)
        for space in (mm, child):
            world.machine.mprotect(space, addr + PAGE_SIZE, PAGE_SIZE, PROT_READ)
            world.write(space, addr + 3 * PAGE_SIZE)
            world.machine.mprotect(space, addr + PAGE_SIZE, PAGE_SIZE, PROT_READ | PROT_WRITE)
            world.machine.mremap(space, addr, PAGE_SIZE, PAGE_SIZE, 3, addr + 64 * PAGE_SIZE)
            world.machine.mremap(space, addr + 64 * PAGE_SIZE, PAGE_SIZE, PAGE_SIZE, 3, addr)
        seen.append([[(vma.start, vma.end) for vma in space.tree] for space in (mm, child)])
    assert seen[0] == seen[1]


def test_an_mm_struct_that_no_root_keeps_any_more_has_leaked() -> None:
    world = World("anon_vma_lazy")
    design = lazy(world)
    parent = world.start()
    world.write(parent, world.map(parent))
    mms, peak = list(world.machine.mms.values()), world.machine.vma_pool.peak
    assert design.audit(mms, peak) == []
    design.kept_pool.alloc()
    assert design.audit(mms, peak) == ["mm_structs kept by roots: counted as 1, and there are 0"]
