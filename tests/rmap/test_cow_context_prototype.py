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

from histories import random_history
from rmap.world import DISK, KEEP, LOW, MOVED, PAGE, READ_WRITE, Process, World
from rmaplab.check.histories import header
from rmaplab.mm.abi import MADV_MERGEABLE, MADV_WIPEONFORK, PROT_READ
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, REFERENCE
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


def records(world: World, process: Process) -> list[tuple[int, int, int]]:
    design = cast(CowContextPrototypeRmap, world.design(NAME))
    return design.context_of(process.mm).remaps.ranges()


def missed(world: World, pfn: int) -> set[tuple[Process, int]]:
    return world.maps(pfn) - world.finds(NAME, pfn)


# What holds


def test_a_page_that_everybody_has_where_its_index_says_is_found(world: World) -> None:
    process = world.spawn()
    addr = process.written(PAGE)
    page = process.pfn(addr)
    assert world.finds(NAME, page) == {(process, addr)}
    child = process.fork()
    grandchild = child.fork()
    assert world.order(NAME, page) == [process, grandchild, child]
    assert records(world, process) == []


def test_a_shared_page_is_found_where_a_child_moved_it(world: World) -> None:
    process = world.spawn()
    addr = process.written(PAGE)
    child = process.fork()
    process.fork()
    child.mremap(addr, PAGE, to=HIGH)
    page = process.pfn(addr)
    assert missed(world, page) == set()
    assert records(world, child) == [(addr >> 12, addr >> 12, (HIGH - addr) >> 12)]


def test_a_record_is_updated_by_a_second_move_and_gone_when_the_range_is_home(world: World) -> None:
    process = world.spawn()
    addr = process.written(PAGE)
    process.mremap(addr, PAGE, to=HIGH)
    process.mremap(HIGH, PAGE, to=LOWER)
    assert [offset for _, _, offset in records(world, process)] == [(LOWER - addr) >> 12]
    process.mremap(LOWER, PAGE, to=addr)
    assert records(world, process) == []


def test_every_private_file_mapping_with_a_copied_page_is_recorded_in_parent_and_child(
    before: World, world: World
) -> None:
    for kernel, recorded in ((before, True), (world, False)):
        process = kernel.spawn()
        addr = process.mmap(4 * PAGE, file=DISK)
        assert records(kernel, process) == []
        process.write(addr)
        child = process.fork()
        assert records(kernel, process) == records(kernel, child) == [(0, 3, addr >> 12)] * recorded


def test_a_walk_also_visits_vmas_that_never_had_an_anonymous_page(world: World) -> None:
    process = world.spawn()
    addr = process.written(PAGE)
    child = process.fork()
    other = process.fork()
    child.munmap(addr, PAGE)
    child.mmap(PAGE, at=addr)
    page = process.pfn(addr)
    assert world.maps(page) == {(process, addr), (other, addr)}
    assert (child, addr) in world.finds(NAME, page)
    assert (child, addr) not in world.finds("anon_vma", page)


# What its author lists as open


def test_open_a_shared_page_swapped_in_by_the_child_first(world: World) -> None:
    process = world.spawn()
    addr = process.written(PAGE)
    child = process.fork()
    world.machine.swap_out(process.mm, addr, 1)
    child.read(addr)
    process.read(addr)
    assert missed(world, process.pfn(addr)) == {(process, addr)}


def test_open_ksm_pages(world: World) -> None:
    process = world.spawn()
    one, other = process.mmap(PAGE), process.mmap(PAGE)
    for addr in (one, other):
        process.write(addr)
        process.madvise(addr, PAGE, MADV_MERGEABLE)
    world.machine.ksm_merge(process.mm, one, process.mm, other)
    assert missed(world, process.pfn(one)) == {(process, one), (process, other)}


# Findings: the walk stops too early


def test_finding_1_a_page_that_only_one_process_has_is_missed_once_it_moved(world: World) -> None:
    process = world.spawn()
    process.mremap(process.written(PAGE), PAGE, to=HIGH)
    assert records(world, process) != []  # it is recorded, but the walk ends before it looks
    assert missed(world, process.pfn(HIGH)) == {(process, HIGH)}


def test_finding_1_so_is_the_stack_of_every_process(world: World) -> None:
    process = world.spawn(MOVED)
    stack = process.stack
    assert missed(world, process.pfn(stack)) == {(process, stack)}


def test_finding_1_so_is_every_copied_page_of_a_private_file_mapping(before: World, world: World) -> None:
    for kernel in (before, world):
        process = kernel.spawn()
        addr = process.written(PAGE, file=DISK)
        assert missed(kernel, process.pfn(addr)) == ({(process, addr)} if kernel is before else set())


def test_finding_2_a_page_is_missed_in_the_child_once_the_parent_copied_it(world: World) -> None:
    process = world.spawn()
    addr = process.written(PAGE)
    child = process.fork()
    process.write(addr)
    assert missed(world, child.pfn(addr)) == {(child, addr)}


def test_finding_2_or_unmapped_it(world: World) -> None:
    process = world.spawn()
    addr = process.written(PAGE)
    child = process.fork()
    process.munmap(addr, PAGE)
    assert missed(world, child.pfn(addr)) == {(child, addr)}


def test_finding_2_unmapping_a_page_that_three_share_stops_short_of_the_last() -> None:
    world = World(NAME)
    process = world.spawn()
    addr = process.written(PAGE)
    first = process.fork()
    second = process.fork()
    second.write(addr)  # visited before `first`, and maps another page
    page = process.pfn(addr)
    assert world.machine.swap_out(process.mm, addr, 1) == 0
    assert world.maps(page) == {(first, addr)}


# Findings: records that are lost


def test_finding_3_a_smaller_offset_overwrites_the_one_that_it_is_sorted_before() -> None:
    assert insert_sorted([30], 20) == [20, 0]
    assert insert_sorted([10, 30, 40], 20) == [10, 20, 40, 40]
    assert insert_sorted([20], 30) == [20, 30]


def test_finding_3_two_ranges_of_the_same_page_offsets_the_second_moved_less_far(world: World) -> None:
    process = world.spawn()
    addr = process.written(PAGE)
    process.mremap(addr, PAGE, to=HIGH + PAGE)
    process.mmap(PAGE, at=addr)
    process.write(addr)
    process.mremap(addr, PAGE, to=HIGH - PAGE)
    child = process.fork()  # shared, so that the walk does not stop early
    page = process.pfn(HIGH + PAGE)
    assert world.maps(page) == {(process, HIGH + PAGE), (child, HIGH + PAGE)}
    assert missed(world, page) == {(process, HIGH + PAGE)}


def test_finding_3_part_of_a_moved_range_that_moves_further_up(world: World) -> None:
    process = world.spawn()
    process.mremap(process.written(2 * PAGE), 2 * PAGE, to=HIGH)
    process.fork()
    there = process.mremap(HIGH + PAGE, PAGE, to=2 * HIGH)
    assert missed(world, process.pfn(there)) == {(process, there)}


def test_finding_4_moving_part_of_a_recorded_range_and_keeping_it_mapped_moves_the_whole_record(
    world: World,
) -> None:
    process = world.spawn()
    process.mremap(process.written(2 * PAGE), 2 * PAGE, to=HIGH)
    process.fork()
    process.mremap(HIGH, PAGE, to=LOWER, flags=KEEP)
    rest = HIGH + PAGE
    assert missed(world, process.pfn(rest)) == {(process, rest)}


def test_finding_5_the_boundary_between_two_moved_vmas_moves_and_the_range_between_is_lost(
    world: World,
) -> None:
    process = world.spawn()
    process.mremap(process.written(3 * PAGE), 3 * PAGE, to=HIGH)
    process.fork()
    process.mprotect(HIGH + PAGE, 2 * PAGE, PROT_READ)
    process.mprotect(HIGH + PAGE, PAGE, READ_WRITE)
    assert process.vma(HIGH).nr_pages == 2
    between = HIGH + PAGE
    assert missed(world, process.pfn(between)) == {(process, between)}


def test_finding_6_a_moved_vma_that_fork_wiped_is_not_recorded_at_its_first_fault(world: World) -> None:
    process = world.spawn()
    process.mremap(process.written(PAGE), PAGE, to=HIGH)
    process.madvise(HIGH, PAGE, MADV_WIPEONFORK)
    child = process.fork()
    child.write(HIGH)
    assert records(world, child) == []
    assert missed(world, child.pfn(HIGH)) == {(child, HIGH)}


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
    parent = world.spawn()
    addr = parent.written(4 * PAGE)
    page = parent.pfn(addr)
    assert world.machine.folios.order.m[page] == 2
    child = parent.fork()
    child.munmap(addr, PAGE)
    mapcounts = [int(world.machine.folios.mapcount.m[page + i]) for i in range(4)]
    assert mapcounts == [1, 2, 2, 2]
    assert {process for process, _ in world.finds("cow_context_prototype", page)} == {parent, child}
