# SPDX-License-Identifier: GPL-2.0-or-later
"""What the design `cow_context` records, and what it need not record."""

from __future__ import annotations

import random
from typing import cast

import pytest

from histories import random_history
from rmap.world import DISK, LOW, MOVED, PAGE, Process, World
from rmaplab.check.histories import header
from rmaplab.mm.abi import PROT_READ
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.rmap.cow_context import CowContextRmap
from rmaplab.trace.play import Player


@pytest.fixture
def world() -> World:
    return World("cow_context")


def design(world: World) -> CowContextRmap:
    return cast(CowContextRmap, world.design("cow_context"))


def records(world: World, process: Process) -> list[tuple[int, int, int]]:
    return design(world).context_of(process.mm).remaps.ranges()


def test_a_context_is_as_large_as_its_fields() -> None:
    def size(kernel: str) -> int:
        return World("cow_context", kernel=kernel).design("cow_context").ledger.pools["cow_context"].size

    assert {kernel: size(kernel) for kernel in ("6.1", "6.12", "6.18")} == {
        "6.1": 96,  # its struct maple_tree has 24 bytes
        "6.12": 88,
        "6.18": 88,
    }


def test_nothing_is_recorded_or_allocated_for_vmas_that_stay(world: World) -> None:
    process = world.spawn()
    for _ in range(10):
        process.write(process.mmap(4 * PAGE), 4 * PAGE)
    child = process.fork()
    assert records(world, process) == records(world, child) == []
    assert {count.type: count.objects for count in design(world).footprint()} == {
        "cow_context": 2,
        "maple_node": 0,
    }


def test_a_private_file_mapping_needs_no_record(world: World) -> None:
    process = world.spawn()
    addr = process.written(4 * PAGE, file=DISK, offset=100 * PAGE)
    process.mprotect(addr + PAGE, PAGE, PROT_READ)
    child = process.fork()
    assert records(world, process) == records(world, child) == []
    assert world.finds("cow_context", process.pfn(addr)) == {(process, addr), (child, addr)}


def test_the_stack_that_exec_moved_is_recorded(world: World) -> None:
    process = world.spawn(MOVED)
    stack = process.vma(process.stack)
    assert records(world, process) == [
        (stack.pgoff, stack.pgoff + stack.nr_pages - 1, (stack.start >> 12) - stack.pgoff)
    ]


def test_a_record_comes_with_a_move_and_goes_when_the_range_is_home_again(world: World) -> None:
    process = world.spawn()
    addr = process.written(4 * PAGE)
    there = process.mremap(addr + PAGE, 2 * PAGE, to=LOW + (1 << 30))
    first = (addr >> 12) + 1
    assert records(world, process) == [(first, first + 1, (there - addr - PAGE) >> 12)]
    process.mremap(there, 2 * PAGE, to=addr + PAGE)
    assert records(world, process) == []


def test_unmapping_part_of_a_moved_range_removes_just_that_from_its_record(world: World) -> None:
    process = world.spawn()
    addr = process.written(6 * PAGE)
    there = process.mremap(addr, 6 * PAGE, to=LOW + (1 << 30))
    process.munmap(there + 2 * PAGE, 2 * PAGE)
    first = addr >> 12
    offset = (there - addr) >> 12
    assert records(world, process) == [(first, first + 1, offset), (first + 4, first + 5, offset)]


def test_one_page_offset_may_be_in_several_places(world: World) -> None:
    process = world.spawn()
    addr = process.mmap(PAGE)
    places = set()
    for i in range(3):
        process.write(addr)
        places.add(process.mremap(addr, PAGE, to=LOW + ((3 - i) << 30)))
        process.mmap(PAGE, at=addr)
    process.write(addr)
    assert [offset for _, _, offset in records(world, process)] == sorted((place - addr) >> 12 for place in places)
    # A walk for any of the four pages looks at all four places: they have the same context and page offset.
    assert world.finds("cow_context", process.pfn(addr)) == {(process, addr), *((process, at) for at in places)}


def test_vmas_merge_only_where_the_anonymous_page_offsets_go_on(world: World) -> None:
    process = world.spawn()
    below = process.mmap(2 * PAGE, file=DISK, offset=0 * PAGE)
    above = process.mmap(2 * PAGE, file=DISK, offset=2 * PAGE)
    process.write(below)
    process.write(above)
    process.mremap(above, 2 * PAGE, to=below + 2 * PAGE)
    assert process.vma(below).nr_pages == 2  # the file's offsets go on, theirs do not
    process.mremap(below + 2 * PAGE, 2 * PAGE, to=above)
    process.mremap(below, 2 * PAGE, to=above - 2 * PAGE)
    assert process.vma(above).nr_pages == 2


def test_a_forked_vma_may_grow_over_an_unprepared_one(world: World) -> None:
    # anon_vma forbids it, lest the range come under a lock that is shared; there is no such lock here.
    process = world.spawn()
    addr = process.written(PAGE)
    child = process.fork()
    child.mmap(PAGE, at=addr + PAGE)
    assert child.vma(addr).nr_pages == 2


def test_a_dead_parents_context_stays_for_its_children_and_goes_with_them(world: World) -> None:
    process = world.spawn()
    process.written(PAGE)
    child = process.fork()
    grandchild = child.fork()
    pool = design(world).context_pool
    process.exit()
    child.exit()
    assert pool.live == 3
    grandchild.exit()
    assert pool.live == 0
    assert design(world).memory.nodes.live == 0


def test_children_are_visited_newest_first_and_each_before_its_own(world: World) -> None:
    process = world.spawn()
    addr = process.written(PAGE)
    old = process.fork()
    new = process.fork()
    below_new = new.fork()
    assert world.order("cow_context", process.pfn(addr)) == [process, new, below_new, old]


def test_a_walk_shares_no_lock_with_a_fork_or_a_fault(world: World) -> None:
    process = world.spawn()
    addr = process.written(PAGE)
    process.fork()
    lock = design(world).lock_class
    before = lock.writes
    assert world.finds("cow_context", process.pfn(addr))
    assert (lock.writes, lock.reads) == (before, 0)


def test_vmas_below_their_own_page_offset_have_negative_displacements(world: World) -> None:
    process = world.spawn()
    there = process.mremap(process.written(2 * PAGE), 2 * PAGE, to=0x10000)
    assert world.finds("cow_context", process.pfn(there)) == {(process, there)}
    assert records(world, process)[0][2] < 0


@pytest.mark.parametrize("leader", ["cow_context", "anon_vma"])
@pytest.mark.parametrize("seed", range(4))
def test_records_say_exactly_which_vmas_are_displaced(seed: int, leader: str) -> None:
    designs = [CowContextRmap, AnonVmaRmap] if leader == "cow_context" else [AnonVmaRmap, CowContextRmap]
    machine = Machine(PROFILES[REFERENCE], designs)
    watched = cast(CowContextRmap, next(d for d in machine.designs if d.name == "cow_context"))
    player = Player(machine, header(), batch=False)
    for event in random_history(random.Random(seed), 150, designs):
        player.do(event)
        for mm in machine.mms.values():
            displaced = set()
            for vma in mm.tree:
                shift = watched.shift_of(vma)
                if shift is not None:
                    first = vma.anon_pgoff + shift
                    offset = (vma.start >> 12) - first
                    displaced |= {(first + i, offset) for i in range(vma.nr_pages) if offset}
            recorded = [
                (pgoff, offset)
                for first, last, offset in watched.context_of(mm).remaps.ranges()
                for pgoff in range(first, last + 1)
            ]
            assert sorted(recorded) == sorted(displaced)


def test_why_a_place_is_missed_tells_a_missing_record_from_all_else() -> None:
    world = World("cow_context")
    parent = world.spawn()
    home = parent.written(PAGE)
    design = world.design("cow_context")
    assert isinstance(design, CowContextRmap)
    no_record = "the VMA is displaced, and no record says so"
    assert design.why_missed(parent.pfn(home), parent.vma(home), home) != no_record
    away = parent.mremap(home, PAGE, to=LOW + 1000 * PAGE)
    moved = parent.vma(away)
    assert design.why_missed(parent.pfn(away), moved, away) != no_record
    design.context_of(parent.mm).remaps.clear()
    assert design.why_missed(parent.pfn(away), moved, away) == no_record
