# SPDX-License-Identifier: GPL-2.0-or-later
"""anon_vma_lazy: nothing is allocated until somebody forks, and VMAs are pinned for it."""

from __future__ import annotations

from typing import cast

import pytest

from rmap.world import PAGE, World
from rmaplab.mm.abi import PROT_EXEC, PROT_READ, PROT_WRITE
from rmaplab.rmap.anon_vma import AnonVmaRmap, VmaFields
from rmaplab.rmap.anon_vma_lazy import AnonVmaLazyRmap, LazyFields


def lazy(world: World) -> AnonVmaLazyRmap:
    return cast(AnonVmaLazyRmap, world.design("anon_vma_lazy"))


def held(design: AnonVmaRmap) -> tuple[int, int]:
    """anon_vmas and AVCs"""
    return design.anon_vma_pool.live, design.chain_pool.live


def test_what_is_never_forked_has_no_anon_vma() -> None:
    world = World("anon_vma_lazy")
    process = world.spawn()
    for _ in range(5):
        process.write(process.mmap(3 * PAGE), 3 * PAGE)
    assert held(lazy(world)) == (0, 0)


def test_fork_makes_one_anon_vma_for_parent_and_child() -> None:
    world = World("anon_vma", "anon_vma_lazy")
    process = world.spawn()  # its stack has pages, too
    process.write(process.mmap(PAGE))
    process.fork()
    assert held(cast(AnonVmaRmap, world.design("anon_vma"))) == (4, 6)
    assert held(lazy(world)) == (2, 4)


def test_a_child_that_forks_gets_its_own() -> None:
    world = World("anon_vma_lazy")
    process = world.spawn()
    addr = process.mmap(2 * PAGE)
    process.write(addr)
    child = process.fork()
    child.write(addr + PAGE)
    own = child.pfn(addr + PAGE)
    assert world.finds("anon_vma_lazy", own) == {(child, addr + PAGE)}
    grandchild = child.fork()
    assert lazy(world).anon_vma_pool.live == 4
    assert world.finds("anon_vma_lazy", own) == {(child, addr + PAGE), (grandchild, addr + PAGE)}


def test_an_upgrade_links_all_that_were_split_from_the_same_root() -> None:
    world = World("anon_vma_lazy")
    process = world.spawn()
    addr = process.written(3 * PAGE)
    process.mprotect(addr + PAGE, PAGE, PROT_READ)
    child = process.fork()
    for page in range(3):
        at = addr + page * PAGE
        assert world.finds("anon_vma_lazy", process.pfn(at)) == {(process, at), (child, at)}


def test_a_root_vma_is_pinned_by_what_was_split_from_it() -> None:
    world = World("anon_vma_lazy")
    process = world.spawn()
    addr = process.written(2 * PAGE)
    process.mprotect(addr, PAGE, PROT_READ)  # the upper part is a new VMA
    last = addr + PAGE
    process.munmap(addr, PAGE)
    assert lazy(world).pinned_pool.live == 1
    assert world.finds("anon_vma_lazy", process.pfn(last)) == {(process, last)}
    process.munmap(last, PAGE)
    assert lazy(world).pinned_pool.live == 0


def test_a_root_vma_is_pinned_by_children_that_map_its_pages() -> None:
    world = World("anon_vma_lazy")
    process = world.spawn()
    addr = process.written(PAGE)
    child = process.fork()
    world.process(1).exit()
    assert lazy(world).pinned_pool.live == 2  # with the stack's
    assert world.finds("anon_vma_lazy", child.pfn(addr)) == {(child, addr)}
    world.process(2).exit()
    assert lazy(world).pinned_pool.live == 0
    assert held(lazy(world)) == (0, 0)


def test_a_vma_that_took_over_what_it_inherited_is_still_no_neighbour_to_share_with() -> None:
    """An upgrade may leave one link where anon_vma has two; it must not lead to other merges."""
    world = World("anon_vma", "anon_vma_lazy")
    grandparent = world.spawn()
    inherited = grandparent.mmap(4 * PAGE)
    grandparent.write(inherited)
    process = grandparent.fork()
    grandparent.exit()
    process.fork()  # the upgrade takes over the grandparent's anon_vma, which nobody uses any more
    assert len(cast(LazyFields, process.vma(inherited).rmap[1]).chain) == 1
    assert len(cast(VmaFields, process.vma(inherited).rmap[0]).chain) == 2
    first, between = inherited - 2 * PAGE, inherited - PAGE
    process.mmap(PAGE, at=first, prot=PROT_READ | PROT_WRITE | PROT_EXEC)
    process.write(first)
    process.mmap(PAGE, at=between)
    process.write(between)  # shares with its lower neighbour
    process.mprotect(between, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC)
    assert process.vma(first) is process.vma(between)
    assert world.finds("anon_vma_lazy", process.pfn(between)) == {(process, between)}


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "6.18"])
def test_it_lets_the_same_vmas_merge(kernel: str) -> None:
    seen = []
    for name in ("anon_vma", "anon_vma_lazy"):
        world = World(name, kernel=kernel)
        process = world.spawn()
        addr = process.mmap(6 * PAGE)
        process.write(addr, 2 * PAGE)
        child = process.fork()
        for space in (process, child):
            space.mprotect(addr + PAGE, PAGE, PROT_READ)
            space.write(addr + 3 * PAGE)
            space.mprotect(addr + PAGE, PAGE, PROT_READ | PROT_WRITE)
            space.mremap(addr, PAGE, to=addr + 64 * PAGE)
            space.mremap(addr + 64 * PAGE, PAGE, to=addr)
        seen.append([[(vma.start, vma.end) for vma in space.mm.tree] for space in (process, child)])
    assert seen[0] == seen[1]


def test_an_mm_struct_that_no_root_keeps_any_more_has_leaked() -> None:
    world = World("anon_vma_lazy")
    design = lazy(world)
    parent = world.spawn()
    parent.write(parent.mmap(PAGE))
    mms, peak = list(world.machine.mms.values()), world.machine.vma_pool.peak
    assert design.audit(mms, peak) == []
    design.kept_pool.alloc()
    assert design.audit(mms, peak) == ["mm_structs kept by roots: counted as 1, and there are 0"]
