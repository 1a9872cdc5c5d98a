# SPDX-License-Identifier: GPL-2.0-or-later
"""Statements about mm/rmap.c: the objects, who links to whom, what is counted, when it goes away."""

from __future__ import annotations

from typing import cast

import pytest

from rmap.world import LOW, RW, World
from rmaplab.mm.abi import PROT_EXEC, PROT_READ
from rmaplab.mm.vma import MM, PAGE_SIZE
from rmaplab.rmap.anon_vma import AnonVma, AnonVmaRmap, VmaFields


@pytest.fixture
def world() -> World:
    return World("anon_vma")


def design(world: World) -> AnonVmaRmap:
    return cast(AnonVmaRmap, world.design("anon_vma"))


def fields(world: World, mm: MM, addr: int) -> VmaFields:
    return cast(VmaFields, world.vma(mm, addr).rmap[design(world).slot])


def anon_vma(world: World, mm: MM, addr: int) -> AnonVma:
    own = fields(world, mm, addr).anon_vma
    assert own is not None
    return own


def live(world: World) -> tuple[int, int]:
    """How many anon_vmas and AVCs there are."""
    return design(world).anon_vma_pool.live, design(world).chain_pool.live


def test_a_vma_gets_its_anon_vma_with_its_first_anonymous_page(world: World) -> None:
    mm = world.start()
    before = live(world)
    addr = world.map(mm, pages=2)
    assert live(world) == before
    world.read(mm, addr)  # the zero page
    world.write(mm, addr, 2)
    assert live(world) == (before[0] + 1, before[1] + 1)
    root = anon_vma(world, mm, addr)
    assert root.root is root.parent is root
    assert (root.refcount, root.num_children, root.num_active_vmas) == (1, 1, 1)


def test_a_neighbour_that_mprotect_could_merge_shares_its_anon_vma(world: World) -> None:
    mm = world.start()
    addr = world.map(mm, pages=2)
    world.write(mm, addr)
    world.map(mm, 1, addr + 2 * PAGE_SIZE, prot=RW | PROT_EXEC)
    world.write(mm, addr + 2 * PAGE_SIZE)
    assert anon_vma(world, mm, addr) is anon_vma(world, mm, addr + 2 * PAGE_SIZE)
    assert anon_vma(world, mm, addr).num_active_vmas == 2


def test_a_neighbours_anon_vma_is_not_shared_if_it_was_forked(world: World) -> None:
    # d0e9fe1758f2: the other VMA would have no link to the ancestors.
    mm = world.start()
    addr = world.map(mm, pages=2)
    world.write(mm, addr)
    child = world.fork(mm)
    world.map(child, 1, addr + 2 * PAGE_SIZE, prot=RW | PROT_EXEC)
    world.write(child, addr + 2 * PAGE_SIZE)
    assert anon_vma(world, child, addr) is not anon_vma(world, child, addr + 2 * PAGE_SIZE)


def test_a_child_links_to_its_ancestors_and_to_an_anon_vma_of_its_own(world: World) -> None:
    mm = world.start()
    addr = world.map(mm)
    world.write(mm, addr)
    root = anon_vma(world, mm, addr)
    child = world.fork(mm)
    own = anon_vma(world, child, addr)
    assert [link.anon_vma for link in fields(world, child, addr).chain] == [root, own]
    assert own.parent is own.root is root
    assert (own.num_children, own.num_active_vmas) == (0, 1)
    assert root.num_children == 2  # itself and the child's
    assert root.num_active_vmas == 1
    assert root.refcount == 2


def test_a_walk_visits_the_parent_before_its_children(world: World) -> None:
    mm = world.start()
    addr = world.map(mm)
    world.write(mm, addr)
    children = [world.fork(mm) for _ in range(5)]
    assert world.order("anon_vma", world.page(mm, addr)) == [mm, *children]


def test_fork_takes_the_root_lock_twice_a_vma(world: World) -> None:
    mm = world.start()
    for _ in range(3):
        world.write(mm, world.map(mm))
    lock = design(world).lock_class
    writes = lock.writes
    world.fork(mm)
    assert lock.writes - writes == 2 * 4  # the stack, too


def test_a_line_of_forks_whose_parents_exit_does_not_grow(world: World) -> None:
    # 7a3ef208e662
    mm = world.start()
    addr = world.map(mm)
    world.write(mm, addr)
    peak = 0
    for _ in range(30):
        child = world.fork(mm)
        world.exit(mm)
        mm = child
        peak = max(peak, len(fields(world, mm, addr).chain))
    assert peak <= 3
    assert design(world).reused.count > 20


def test_an_anon_vma_with_two_children_is_not_reused(world: World) -> None:
    # 2555283eb40d: counting VMAs and children together lost a mapping.
    mm = world.start()
    addr = world.map(mm)
    world.write(mm, addr)
    child = world.fork(mm)
    middle = anon_vma(world, child, addr)
    one = world.fork(child)
    two = world.fork(child)
    world.unmap(child, addr)
    assert middle.num_active_vmas == 0
    assert middle.num_children == 2
    grandchild = world.fork(one)
    assert anon_vma(world, grandchild, addr) is not middle
    world.unmap(two, addr)
    assert middle.num_children == 1
    assert anon_vma(world, world.fork(one), addr) is middle


def test_a_reused_anon_vma_keeps_the_pages_of_its_former_owner_in_sight(world: World) -> None:
    mm = world.start()
    addr = world.map(mm, pages=2)
    world.write(mm, addr)
    child = world.fork(mm)
    world.write(child, addr + PAGE_SIZE)
    grandchild = world.fork(child)
    world.exit(child)
    last = world.fork(grandchild)
    page = world.page(grandchild, addr + PAGE_SIZE)
    assert world.finds("anon_vma", page) == {(grandchild, addr + PAGE_SIZE), (last, addr + PAGE_SIZE)}


@pytest.mark.parametrize("kernel", ["6.12", "7.3"])
def test_a_split_clones_the_chain_and_moves_the_keys(kernel: str) -> None:
    world = World("anon_vma", kernel=kernel)
    mm = world.start()
    addr = world.map(mm, pages=4)
    world.write(mm, addr, 4)
    child = world.fork(mm)
    world.protect(child, addr + PAGE_SIZE, 1, PROT_READ)
    original = [link.anon_vma for link in fields(world, child, addr + PAGE_SIZE).chain]
    clone = original[::-1] if kernel == "7.3" else original
    for page, length, chain in ((0, 1, clone), (1, 1, original), (2, 2, clone)):
        links = fields(world, child, addr + page * PAGE_SIZE).chain
        assert [link.anon_vma for link in links] == chain
        first = (addr >> 12) + page
        assert [(link.first, link.last) for link in links] == [(first, first + length - 1)] * 2
    assert anon_vma(world, child, addr).num_active_vmas == 3


def test_pages_swapped_in_by_one_of_many_belong_to_the_root(world: World) -> None:
    mm = world.start()
    addr = world.map(mm)
    world.write(mm, addr)
    child = world.fork(mm)
    world.write(child, addr)
    world.fork(child)
    assert world.machine.swap_out(child, addr, 1) == 1
    world.read(child, addr)
    anchored = design(world).anon_vmas[design(world).anchor.m[world.page(child, addr)]]
    assert anchored is anon_vma(world, mm, addr)


def test_everything_is_freed_when_the_last_process_exits(world: World) -> None:
    mm = world.start(moved_stack=True)
    for _ in range(4):
        world.write(mm, world.map(mm, pages=3), 3)
    child = world.fork(mm)
    world.move(child, world.vma(child, LOW).start, 2, LOW - 0x100000)
    grandchild = world.fork(child)
    world.exit(mm)
    world.exit(grandchild)
    world.exit(child)
    assert live(world) == (0, 0)
    assert design(world).anon_vmas.count(None) == len(design(world).anon_vmas)


def test_the_root_stays_as_long_as_one_below_it(world: World) -> None:
    mm = world.start()
    addr = world.map(mm)
    world.write(mm, addr)
    root = anon_vma(world, mm, addr)
    child = world.fork(mm)
    world.unmap(mm, addr)
    assert design(world).anon_vmas[root.number] is root
    world.unmap(child, addr)
    assert design(world).anon_vmas[root.number] is None


def test_a_copy_lands_behind_its_source_or_moves_under_the_lock(world: World) -> None:
    # 38a76013ad80: a walk goes up through the page offsets, so it may miss what moves down past it.
    mm = world.start()
    low = world.vma(mm, world.map(mm))
    high = world.vma(mm, world.map(mm))
    assert low.pgoff < high.pgoff
    assert design(world).need_move_locks(high, low, True)
    assert design(world).need_move_locks(low, low, True)
    assert not design(world).need_move_locks(low, high, True)
    assert not design(world).need_move_locks(high, low, False)  # a fresh copy is linked behind its source


def test_6_12_never_merges_a_prepared_range_into_an_unprepared_neighbour() -> None:
    for kernel, merges in (("6.12", False), ("6.18", True)):
        world = World("anon_vma", kernel=kernel)
        mm = world.start()
        addr = world.map(mm, pages=1)
        world.map(mm, 1, addr + PAGE_SIZE, prot=RW | PROT_EXEC)
        world.write(mm, addr)
        world.protect(mm, addr, 1, RW | PROT_EXEC)
        assert (world.vma(mm, addr).nr_pages == 2) == merges


def test_an_unprepared_range_merges_into_a_prepared_neighbour_unless_that_was_forked() -> None:
    for kernel in ("6.12", "6.18"):
        world = World("anon_vma", kernel=kernel)
        mm = world.start()
        addr = world.map(mm, pages=1)
        world.write(mm, addr)
        world.map(mm, 1, addr + PAGE_SIZE)
        assert world.vma(mm, addr).nr_pages == 2
        child = world.fork(mm)
        world.map(child, 1, addr + 2 * PAGE_SIZE)
        assert world.vma(child, addr).nr_pages == 2


def test_two_prepared_vmas_of_different_anon_vmas_stay_apart(world: World) -> None:
    mm = world.start()
    addr = world.map(mm, pages=1)
    world.map(mm, 1, addr + 2 * PAGE_SIZE)
    world.write(mm, addr)
    world.write(mm, addr + 2 * PAGE_SIZE)
    world.map(mm, 1, addr + PAGE_SIZE)
    assert world.vma(mm, addr).nr_pages == 2
    assert world.vma(mm, addr + 2 * PAGE_SIZE).nr_pages == 1
