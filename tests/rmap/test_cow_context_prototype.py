# SPDX-License-Identifier: GPL-2.0-or-later
"""What the prototype of May 2026 does.

The first part holds.  The second are findings: each test is the shortest history known after which a walk of
the prototype, as its source stands, misses an entry that maps the folio.  docs/designs/cow_context_prototype.md
explains them in the same order.
"""

from __future__ import annotations

import random
from typing import cast

import pytest

from rmap.world import LOW, RW, World
from rmaplab.check.histories import header, random_history
from rmaplab.mm.abi import MADV_MERGEABLE, MADV_WIPEONFORK, PROT_READ
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.mm.vma import MM, PAGE_SIZE
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.rmap.cow_context_prototype import (
    CowContextPrototypeRmap,
    RecordTree,
    insert_sorted,
)
from rmaplab.rmap.remap_tree import RemapMemory
from rmaplab.sync.work import Ledger
from rmaplab.trace.play import Player

NAME = "cow_context_prototype"
HIGH = LOW + (1 << 30)
LOWER = LOW - (1 << 30)


@pytest.fixture
def world() -> World:
    return World("anon_vma", NAME)  # anon_vma leads: the prototype ran beside it, too


@pytest.fixture
def before() -> World:
    """As it was published, for kernels whose VMAs have no page offset for anonymous pages."""
    return World("anon_vma", NAME, kernel="6.12")


def records(world: World, mm: MM) -> list[tuple[int, int, int]]:
    design = cast(CowContextPrototypeRmap, world.design(NAME))
    return design.context_of(mm).remaps.ranges()


def missed(world: World, pfn: int) -> set[tuple[MM, int]]:
    return world.maps(pfn) - world.finds(NAME, pfn)


# What holds


def test_a_page_that_everybody_has_where_its_index_says_is_found(world: World) -> None:
    mm = world.start()
    addr = world.map(mm)
    world.write(mm, addr)
    page = world.page(mm, addr)
    assert world.finds(NAME, page) == {(mm, addr)}
    child = world.fork(mm)
    grandchild = world.fork(child)
    assert world.order(NAME, page) == [mm, grandchild, child]
    assert records(world, mm) == []


def test_a_shared_page_is_found_where_a_child_moved_it(world: World) -> None:
    mm = world.start()
    addr = world.map(mm)
    world.write(mm, addr)
    child = world.fork(mm)
    world.fork(mm)
    world.move(child, addr, 1, HIGH)
    page = world.page(mm, addr)
    assert missed(world, page) == set()
    assert records(world, child) == [(addr >> 12, addr >> 12, (HIGH - addr) >> 12)]


def test_a_record_is_updated_by_a_second_move_and_gone_when_the_range_is_home(world: World) -> None:
    mm = world.start()
    addr = world.map(mm)
    world.write(mm, addr)
    world.move(mm, addr, 1, HIGH)
    world.move(mm, HIGH, 1, LOWER)
    assert [offset for _, _, offset in records(world, mm)] == [(LOWER - addr) >> 12]
    world.move(mm, LOWER, 1, addr)
    assert records(world, mm) == []


def test_every_private_file_mapping_with_a_copied_page_is_recorded_in_parent_and_child(
    before: World, world: World
) -> None:
    for kernel, recorded in ((before, True), (world, False)):
        mm = kernel.start()
        addr = kernel.map(mm, pages=4, file=kernel.file)
        assert records(kernel, mm) == []
        kernel.write(mm, addr)
        child = kernel.fork(mm)
        assert records(kernel, mm) == records(kernel, child) == [(0, 3, addr >> 12)] * recorded


def test_a_walk_also_visits_vmas_that_never_had_an_anonymous_page(world: World) -> None:
    mm = world.start()
    addr = world.map(mm)
    world.write(mm, addr)
    child = world.fork(mm)
    other = world.fork(mm)
    world.unmap(child, addr)
    world.map(child, 1, addr)
    page = world.page(mm, addr)
    assert world.maps(page) == {(mm, addr), (other, addr)}
    assert (child, addr) in world.finds(NAME, page)
    assert (child, addr) not in world.finds("anon_vma", page)


# What its author lists as open


def test_open_a_shared_page_swapped_in_by_the_child_first(world: World) -> None:
    mm = world.start()
    addr = world.map(mm)
    world.write(mm, addr)
    child = world.fork(mm)
    world.machine.swap_out(mm, addr, 1)
    world.read(child, addr)
    world.read(mm, addr)
    assert missed(world, world.page(mm, addr)) == {(mm, addr)}


def test_open_ksm_pages(world: World) -> None:
    mm = world.start()
    one, other = world.map(mm), world.map(mm)
    for addr in (one, other):
        world.write(mm, addr)
        world.machine.madvise(mm, addr, PAGE_SIZE, MADV_MERGEABLE)
    world.machine.ksm_merge(mm, one, mm, other)
    assert missed(world, world.page(mm, one)) == {(mm, one), (mm, other)}


# Findings: the walk stops too early


def test_finding_1_a_page_that_only_one_process_has_is_missed_once_it_moved(world: World) -> None:
    mm = world.start()
    addr = world.map(mm)
    world.write(mm, addr)
    world.move(mm, addr, 1, HIGH)
    assert records(world, mm) != []  # it is recorded, but the walk ends before it looks
    assert missed(world, world.page(mm, HIGH)) == {(mm, HIGH)}


def test_finding_1_so_is_the_stack_of_every_process(world: World) -> None:
    mm = world.start(moved_stack=True)
    stack = world.stack(mm)
    assert missed(world, world.page(mm, stack)) == {(mm, stack)}


def test_finding_1_so_is_every_copied_page_of_a_private_file_mapping(before: World, world: World) -> None:
    for kernel in (before, world):
        mm = kernel.start()
        addr = kernel.map(mm, file=kernel.file)
        kernel.write(mm, addr)
        assert missed(kernel, kernel.page(mm, addr)) == ({(mm, addr)} if kernel is before else set())


def test_finding_2_a_page_is_missed_in_the_child_once_the_parent_copied_it(world: World) -> None:
    mm = world.start()
    addr = world.map(mm)
    world.write(mm, addr)
    child = world.fork(mm)
    world.write(mm, addr)
    assert missed(world, world.page(child, addr)) == {(child, addr)}


def test_finding_2_or_unmapped_it(world: World) -> None:
    mm = world.start()
    addr = world.map(mm)
    world.write(mm, addr)
    child = world.fork(mm)
    world.unmap(mm, addr)
    assert missed(world, world.page(child, addr)) == {(child, addr)}


def test_finding_2_unmapping_a_page_that_three_share_stops_short_of_the_last() -> None:
    world = World(NAME)
    mm = world.start()
    addr = world.map(mm)
    world.write(mm, addr)
    first = world.fork(mm)
    second = world.fork(mm)
    world.write(second, addr)  # visited before `first`, and maps another page
    page = world.page(mm, addr)
    assert world.machine.swap_out(mm, addr, 1) == 0
    assert world.maps(page) == {(first, addr)}


# Findings: records that are lost


def test_finding_3_a_smaller_offset_overwrites_the_one_that_it_is_sorted_before() -> None:
    assert insert_sorted([30], 20) == [20, 0]
    assert insert_sorted([10, 30, 40], 20) == [10, 20, 40, 40]
    assert insert_sorted([20], 30) == [20, 30]


def test_finding_3_two_ranges_of_the_same_page_offsets_the_second_moved_less_far(world: World) -> None:
    mm = world.start()
    addr = world.map(mm)
    world.write(mm, addr)
    world.move(mm, addr, 1, HIGH + PAGE_SIZE)
    world.map(mm, 1, addr)
    world.write(mm, addr)
    world.move(mm, addr, 1, HIGH - PAGE_SIZE)
    child = world.fork(mm)  # shared, so that the walk does not stop early
    page = world.page(mm, HIGH + PAGE_SIZE)
    assert world.maps(page) == {(mm, HIGH + PAGE_SIZE), (child, HIGH + PAGE_SIZE)}
    assert missed(world, page) == {(mm, HIGH + PAGE_SIZE)}


def test_finding_3_part_of_a_moved_range_that_moves_further_up(world: World) -> None:
    mm = world.start()
    addr = world.map(mm, pages=2)
    world.write(mm, addr, 2)
    world.move(mm, addr, 2, HIGH)
    world.fork(mm)
    there = world.move(mm, HIGH + PAGE_SIZE, 1, 2 * HIGH)
    assert missed(world, world.page(mm, there)) == {(mm, there)}


def test_finding_4_moving_part_of_a_recorded_range_and_keeping_it_mapped_moves_the_whole_record(
    world: World,
) -> None:
    mm = world.start()
    addr = world.map(mm, pages=2)
    world.write(mm, addr, 2)
    world.move(mm, addr, 2, HIGH)
    world.fork(mm)
    world.move(mm, HIGH, 1, LOWER, keep=True)
    rest = HIGH + PAGE_SIZE
    assert missed(world, world.page(mm, rest)) == {(mm, rest)}


def test_finding_5_the_boundary_between_two_moved_vmas_moves_and_the_range_between_is_lost(
    world: World,
) -> None:
    mm = world.start()
    addr = world.map(mm, pages=3)
    world.write(mm, addr, 3)
    world.move(mm, addr, 3, HIGH)
    world.fork(mm)
    world.protect(mm, HIGH + PAGE_SIZE, 2, PROT_READ)
    world.protect(mm, HIGH + PAGE_SIZE, 1, RW)
    assert world.vma(mm, HIGH).nr_pages == 2
    between = HIGH + PAGE_SIZE
    assert missed(world, world.page(mm, between)) == {(mm, between)}


def test_finding_6_a_moved_vma_that_fork_wiped_is_not_recorded_at_its_first_fault(world: World) -> None:
    mm = world.start()
    addr = world.map(mm)
    world.write(mm, addr)
    world.move(mm, addr, 1, HIGH)
    world.machine.madvise(mm, HIGH, PAGE_SIZE, MADV_WIPEONFORK)
    child = world.fork(mm)
    world.write(child, HIGH)
    assert records(world, child) == []
    assert missed(world, world.page(child, HIGH)) == {(child, HIGH)}


# The record tree by itself


def test_removal_goes_for_the_whole_entry() -> None:
    tree = RecordTree(RemapMemory(Ledger("test"), 256))
    tree.add(0, 9, 5)
    tree.remove(3, 3, 5)
    assert tree.ranges() == []


def test_an_update_goes_for_the_whole_entry() -> None:
    tree = RecordTree(RemapMemory(Ledger("test"), 256))
    tree.add(0, 9, 5)
    assert tree.update(3, 3, 5, 6)
    assert tree.ranges() == [(0, 9, 6)]
    assert not tree.update(3, 3, 5, 6)


def test_entries_that_say_the_same_are_not_joined_and_appending_twice_changes_nothing() -> None:
    ledger = Ledger("test")
    tree = RecordTree(RemapMemory(ledger, 256))
    tree.add(0, 4, 5)
    tree.add(5, 9, 5)
    assert tree.ranges() == [(0, 4, 5), (5, 9, 5)]
    tree.add(0, 4, 5)
    assert tree.ranges() == [(0, 4, 5), (5, 9, 5)]
    assert ledger.pools["kmalloc-32"].live == 1  # room for two was made before it was found to be there
    tree.clear()
    assert ledger.pools["kmalloc-32"].live == 0


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_its_memory_is_accounted_for(seed: int) -> None:
    designs = [AnonVmaRmap, CowContextPrototypeRmap]
    machine = Machine(PROFILES[REFERENCE], designs)
    player = Player(machine, header(), batch=False)
    for event in random_history(random.Random(seed), 150, designs):
        player.do(event)
    for pid in list(machine.processes):
        machine.exit(pid)
    assert all(count.objects == 0 for count in machine.designs[1].footprint())


def test_a_large_folio_is_exclusive_if_all_of_its_pages_are() -> None:
    """The child gave up the first page alone: the walk does not end at the parent."""
    world = World("anon_vma", "cow_context_prototype", large_folios=2)
    parent = world.start()
    addr = world.map(parent, pages=4)
    world.write(parent, addr, 4)
    page = world.page(parent, addr)
    assert world.machine.folios.order.m[page] == 2
    child = world.fork(parent)
    world.unmap(child, addr)
    mapcounts = [int(world.machine.folios.mapcount.m[page + i]) for i in range(4)]
    assert mapcounts == [1, 2, 2, 2]
    assert {mm for mm, _ in world.finds("cow_context_prototype", page)} == {parent, child}
