# SPDX-License-Identifier: GPL-2.0-or-later
"""What the design `cow_context` records, and what it need not record."""

from __future__ import annotations

import random
from typing import cast

import pytest

from rmap.world import LOW, World
from rmaplab.check.histories import header, random_history
from rmaplab.mm.abi import PROT_READ
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.mm.vma import MM, PAGE_SIZE
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.rmap.cow_context import CowContextRmap
from rmaplab.trace.play import Player


@pytest.fixture
def world() -> World:
    return World("cow_context")


def design(world: World) -> CowContextRmap:
    return cast(CowContextRmap, world.design("cow_context"))


def records(world: World, mm: MM) -> list[tuple[int, int, int]]:
    return design(world).context_of(mm).remaps.ranges()


def test_a_context_is_as_large_as_its_fields() -> None:
    def size(kernel: str) -> int:
        return World("cow_context", kernel=kernel).design("cow_context").ledger.pools["cow_context"].size

    assert {kernel: size(kernel) for kernel in ("6.1", "6.12", "6.18")} == {
        "6.1": 96,  # its struct maple_tree has 24 bytes
        "6.12": 88,
        "6.18": 88,
    }


def test_nothing_is_recorded_or_allocated_for_vmas_that_stay(world: World) -> None:
    mm = world.start()
    for _ in range(10):
        world.write(mm, world.map(mm, pages=4), 4)
    child = world.fork(mm)
    assert records(world, mm) == records(world, child) == []
    assert {count.type: count.objects for count in design(world).footprint()} == {
        "cow_context": 2,
        "maple_node": 0,
    }


def test_a_private_file_mapping_needs_no_record(world: World) -> None:
    mm = world.start()
    addr = world.map(mm, pages=4, file=world.file, file_page=100)
    world.write(mm, addr, 4)
    world.protect(mm, addr + PAGE_SIZE, 1, PROT_READ)
    child = world.fork(mm)
    assert records(world, mm) == records(world, child) == []
    assert world.finds("cow_context", world.page(mm, addr)) == {(mm, addr), (child, addr)}


def test_the_stack_that_exec_moved_is_recorded(world: World) -> None:
    mm = world.start(moved_stack=True)
    stack = world.vma(mm, world.stack(mm))
    assert records(world, mm) == [
        (stack.pgoff, stack.pgoff + stack.nr_pages - 1, (stack.start >> 12) - stack.pgoff)
    ]


def test_a_record_comes_with_a_move_and_goes_when_the_range_is_home_again(world: World) -> None:
    mm = world.start()
    addr = world.map(mm, pages=4)
    world.write(mm, addr, 4)
    there = world.move(mm, addr + PAGE_SIZE, 2, LOW + (1 << 30))
    first = (addr >> 12) + 1
    assert records(world, mm) == [(first, first + 1, (there - addr - PAGE_SIZE) >> 12)]
    world.move(mm, there, 2, addr + PAGE_SIZE)
    assert records(world, mm) == []


def test_unmapping_part_of_a_moved_range_removes_just_that_from_its_record(world: World) -> None:
    mm = world.start()
    addr = world.map(mm, pages=6)
    world.write(mm, addr, 6)
    there = world.move(mm, addr, 6, LOW + (1 << 30))
    world.unmap(mm, there + 2 * PAGE_SIZE, 2)
    first = addr >> 12
    offset = (there - addr) >> 12
    assert records(world, mm) == [(first, first + 1, offset), (first + 4, first + 5, offset)]


def test_one_page_offset_may_be_in_several_places(world: World) -> None:
    mm = world.start()
    addr = world.map(mm)
    places = set()
    for i in range(3):
        world.write(mm, addr)
        places.add(world.move(mm, addr, 1, LOW + ((3 - i) << 30)))
        world.map(mm, 1, addr)
    world.write(mm, addr)
    assert [offset for _, _, offset in records(world, mm)] == sorted((place - addr) >> 12 for place in places)
    # A walk for any of the four pages looks at all four places: they have the same context and page offset.
    assert world.finds("cow_context", world.page(mm, addr)) == {(mm, addr), *((mm, at) for at in places)}


def test_vmas_merge_only_where_the_anonymous_page_offsets_go_on(world: World) -> None:
    mm = world.start()
    below = world.map(mm, pages=2, file=world.file, file_page=0)
    above = world.map(mm, pages=2, file=world.file, file_page=2)
    world.write(mm, below)
    world.write(mm, above)
    world.move(mm, above, 2, below + 2 * PAGE_SIZE)
    assert world.vma(mm, below).nr_pages == 2  # the file's offsets go on, theirs do not
    world.move(mm, below + 2 * PAGE_SIZE, 2, above)
    world.move(mm, below, 2, above - 2 * PAGE_SIZE)
    assert world.vma(mm, above).nr_pages == 2


def test_a_forked_vma_may_grow_over_an_unprepared_one(world: World) -> None:
    # anon_vma forbids it, lest the range come under a lock that is shared; there is no such lock here.
    mm = world.start()
    addr = world.map(mm)
    world.write(mm, addr)
    child = world.fork(mm)
    world.map(child, 1, addr + PAGE_SIZE)
    assert world.vma(child, addr).nr_pages == 2


def test_a_dead_parents_context_stays_for_its_children_and_goes_with_them(world: World) -> None:
    mm = world.start()
    addr = world.map(mm)
    world.write(mm, addr)
    child = world.fork(mm)
    grandchild = world.fork(child)
    pool = design(world).context_pool
    world.exit(mm)
    world.exit(child)
    assert pool.live == 3
    world.exit(grandchild)
    assert pool.live == 0
    assert design(world).memory.nodes.live == 0


def test_children_are_visited_newest_first_and_each_before_its_own(world: World) -> None:
    mm = world.start()
    addr = world.map(mm)
    world.write(mm, addr)
    old = world.fork(mm)
    new = world.fork(mm)
    below_new = world.fork(new)
    assert world.order("cow_context", world.page(mm, addr)) == [mm, new, below_new, old]


def test_a_walk_shares_no_lock_with_a_fork_or_a_fault(world: World) -> None:
    mm = world.start()
    addr = world.map(mm)
    world.write(mm, addr)
    world.fork(mm)
    lock = design(world).lock_class
    before = lock.writes
    assert world.finds("cow_context", world.page(mm, addr))
    assert (lock.writes, lock.reads) == (before, 0)


def test_vmas_below_their_own_page_offset_have_negative_displacements(world: World) -> None:
    mm = world.start()
    addr = world.map(mm, pages=2)
    world.write(mm, addr, 2)
    there = world.move(mm, addr, 2, 0x10000)
    assert world.finds("cow_context", world.page(mm, there)) == {(mm, there)}
    assert records(world, mm)[0][2] < 0


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
    parent = world.start()
    home = world.map(parent)
    world.write(parent, home)
    design = world.design("cow_context")
    assert isinstance(design, CowContextRmap)
    no_record = "the VMA is displaced, and no record says so"
    assert design.why_missed(world.page(parent, home), world.vma(parent, home), home) != no_record
    away = world.move(parent, home, 1, LOW + 1000 * PAGE_SIZE)
    moved = world.vma(parent, away)
    assert design.why_missed(world.page(parent, away), moved, away) != no_record
    design.context_of(parent).remaps.clear()
    assert design.why_missed(world.page(parent, away), moved, away) == no_record
