# SPDX-License-Identifier: GPL-2.0-or-later
"""Statements about mm/rmap.c: the objects, who links to whom, what is counted, when it goes away."""

from __future__ import annotations

from typing import cast

import pytest

from rmap.world import LOW, MOVED, PAGE, READ_WRITE, Process, World
from rmaplab.mm.abi import PROT_EXEC, PROT_READ
from rmaplab.rmap.anon_vma import AnonVma, AnonVmaRmap, VmaFields


@pytest.fixture
def world() -> World:
    return World("anon_vma")


def design(world: World) -> AnonVmaRmap:
    return cast(AnonVmaRmap, world.design("anon_vma"))


def fields(world: World, process: Process, addr: int) -> VmaFields:
    return cast(VmaFields, process.vma(addr).rmap[design(world).slot])


def anon_vma(world: World, process: Process, addr: int) -> AnonVma:
    own = fields(world, process, addr).anon_vma
    assert own is not None
    return own


def live(world: World) -> tuple[int, int]:
    """How many anon_vmas and AVCs there are."""
    return design(world).anon_vma_pool.live, design(world).chain_pool.live


def test_a_vma_gets_its_anon_vma_with_its_first_anonymous_page(world: World) -> None:
    process = world.spawn()
    before = live(world)
    addr = process.mmap(2 * PAGE)
    assert live(world) == before
    process.read(addr)  # the zero page
    process.write(addr, 2 * PAGE)
    assert live(world) == (before[0] + 1, before[1] + 1)
    root = anon_vma(world, process, addr)
    assert root.root is root.parent is root
    assert (root.refcount, root.num_children, root.num_active_vmas) == (1, 1, 1)


def test_a_neighbour_that_mprotect_could_merge_shares_its_anon_vma(world: World) -> None:
    process = world.spawn()
    addr = process.mmap(2 * PAGE)
    process.write(addr)
    process.mmap(PAGE, at=addr + 2 * PAGE, prot=READ_WRITE | PROT_EXEC)
    process.write(addr + 2 * PAGE)
    assert anon_vma(world, process, addr) is anon_vma(world, process, addr + 2 * PAGE)
    assert anon_vma(world, process, addr).num_active_vmas == 2


def test_a_neighbours_anon_vma_is_not_shared_if_it_was_forked(world: World) -> None:
    # d0e9fe1758f2: the other VMA would have no link to the ancestors.
    process = world.spawn()
    addr = process.mmap(2 * PAGE)
    process.write(addr)
    child = process.fork()
    child.mmap(PAGE, at=addr + 2 * PAGE, prot=READ_WRITE | PROT_EXEC)
    child.write(addr + 2 * PAGE)
    assert anon_vma(world, child, addr) is not anon_vma(world, child, addr + 2 * PAGE)


def test_a_child_links_to_its_ancestors_and_to_an_anon_vma_of_its_own(world: World) -> None:
    process = world.spawn()
    addr = process.written(PAGE)
    root = anon_vma(world, process, addr)
    child = process.fork()
    own = anon_vma(world, child, addr)
    assert [link.anon_vma for link in fields(world, child, addr).chain] == [root, own]
    assert own.parent is own.root is root
    assert (own.num_children, own.num_active_vmas) == (0, 1)
    assert root.num_children == 2  # itself and the child's
    assert root.num_active_vmas == 1
    assert root.refcount == 2


def test_a_walk_visits_the_parent_before_its_children(world: World) -> None:
    process = world.spawn()
    addr = process.written(PAGE)
    children = [process.fork() for _ in range(5)]
    assert world.order("anon_vma", process.pfn(addr)) == [process, *children]


def test_fork_takes_the_root_lock_twice_a_vma(world: World) -> None:
    process = world.spawn()
    for _ in range(3):
        process.write(process.mmap(PAGE))
    lock = design(world).lock_class
    writes = lock.writes
    process.fork()
    assert lock.writes - writes == 2 * 4  # the stack, too


def test_a_line_of_forks_whose_parents_exit_does_not_grow(world: World) -> None:
    # 7a3ef208e662
    process = world.spawn()
    addr = process.written(PAGE)
    peak = 0
    for _ in range(30):
        child = process.fork()
        process.exit()
        process = child
        peak = max(peak, len(fields(world, process, addr).chain))
    assert peak <= 3
    assert design(world).reused.count > 20


def test_an_anon_vma_with_two_children_is_not_reused(world: World) -> None:
    # 2555283eb40d: counting VMAs and children together lost a mapping.
    process = world.spawn()
    addr = process.written(PAGE)
    child = process.fork()
    middle = anon_vma(world, child, addr)
    one = child.fork()
    two = child.fork()
    child.munmap(addr, PAGE)
    assert middle.num_active_vmas == 0
    assert middle.num_children == 2
    grandchild = one.fork()
    assert anon_vma(world, grandchild, addr) is not middle
    two.munmap(addr, PAGE)
    assert middle.num_children == 1
    assert anon_vma(world, one.fork(), addr) is middle


def test_a_reused_anon_vma_keeps_the_pages_of_its_former_owner_in_sight(world: World) -> None:
    process = world.spawn()
    addr = process.mmap(2 * PAGE)
    process.write(addr)
    child = process.fork()
    child.write(addr + PAGE)
    grandchild = child.fork()
    child.exit()
    last = grandchild.fork()
    page = grandchild.pfn(addr + PAGE)
    assert world.finds("anon_vma", page) == {(grandchild, addr + PAGE), (last, addr + PAGE)}


@pytest.mark.parametrize("kernel", ["6.12", "7.3"])
def test_a_split_clones_the_chain_and_moves_the_keys(kernel: str) -> None:
    world = World("anon_vma", kernel=kernel)
    process = world.spawn()
    addr = process.written(4 * PAGE)
    child = process.fork()
    child.mprotect(addr + PAGE, PAGE, PROT_READ)
    original = [link.anon_vma for link in fields(world, child, addr + PAGE).chain]
    clone = original[::-1] if kernel == "7.3" else original
    for page, length, chain in ((0, 1, clone), (1, 1, original), (2, 2, clone)):
        links = fields(world, child, addr + page * PAGE).chain
        assert [link.anon_vma for link in links] == chain
        first = (addr >> 12) + page
        assert [(link.first, link.last) for link in links] == [(first, first + length - 1)] * 2
    assert anon_vma(world, child, addr).num_active_vmas == 3


def test_pages_swapped_in_by_one_of_many_belong_to_the_root(world: World) -> None:
    process = world.spawn()
    addr = process.written(PAGE)
    child = process.fork()
    child.write(addr)
    child.fork()
    assert world.machine.swap_out(child.mm, addr, 1) == 1
    child.read(addr)
    anchored = design(world).anon_vmas[design(world).anchor.m[child.pfn(addr)]]
    assert anchored is anon_vma(world, process, addr)


def test_everything_is_freed_when_the_last_process_exits(world: World) -> None:
    process = world.spawn(MOVED)
    for _ in range(4):
        process.write(process.mmap(3 * PAGE), 3 * PAGE)
    child = process.fork()
    child.mremap(child.vma(LOW).start, 2 * PAGE, to=LOW - 0x100000)
    grandchild = child.fork()
    process.exit()
    grandchild.exit()
    child.exit()
    assert live(world) == (0, 0)
    assert design(world).anon_vmas.count(None) == len(design(world).anon_vmas)


def test_the_root_stays_as_long_as_one_below_it(world: World) -> None:
    process = world.spawn()
    addr = process.written(PAGE)
    root = anon_vma(world, process, addr)
    child = process.fork()
    process.munmap(addr, PAGE)
    assert design(world).anon_vmas[root.number] is root
    child.munmap(addr, PAGE)
    assert design(world).anon_vmas[root.number] is None


def test_a_copy_lands_behind_its_source_or_moves_under_the_lock(world: World) -> None:
    # 38a76013ad80: a walk goes up through the page offsets, so it may miss what moves down past it.
    process = world.spawn()
    low = process.vma(process.mmap(PAGE))
    high = process.vma(process.mmap(PAGE))
    assert low.pgoff < high.pgoff
    assert design(world).need_move_locks(high, low, True)
    assert design(world).need_move_locks(low, low, True)
    assert not design(world).need_move_locks(low, high, True)
    assert not design(world).need_move_locks(high, low, False)  # a fresh copy is linked behind its source


def test_6_12_never_merges_a_prepared_range_into_an_unprepared_neighbour() -> None:
    for kernel, merges in (("6.12", False), ("6.18", True)):
        world = World("anon_vma", kernel=kernel)
        process = world.spawn()
        addr = process.mmap(PAGE)
        process.mmap(PAGE, at=addr + PAGE, prot=READ_WRITE | PROT_EXEC)
        process.write(addr)
        process.mprotect(addr, PAGE, READ_WRITE | PROT_EXEC)
        assert (process.vma(addr).nr_pages == 2) == merges


def test_an_unprepared_range_merges_into_a_prepared_neighbour_unless_that_was_forked() -> None:
    for kernel in ("6.12", "6.18"):
        world = World("anon_vma", kernel=kernel)
        process = world.spawn()
        addr = process.written(PAGE)
        process.mmap(PAGE, at=addr + PAGE)
        assert process.vma(addr).nr_pages == 2
        child = process.fork()
        child.mmap(PAGE, at=addr + 2 * PAGE)
        assert child.vma(addr).nr_pages == 2


def test_two_prepared_vmas_of_different_anon_vmas_stay_apart(world: World) -> None:
    process = world.spawn()
    addr = process.mmap(PAGE)
    process.mmap(PAGE, at=addr + 2 * PAGE)
    process.write(addr)
    process.write(addr + 2 * PAGE)
    process.mmap(PAGE, at=addr + PAGE)
    assert process.vma(addr).nr_pages == 2
    assert process.vma(addr + 2 * PAGE).nr_pages == 1
