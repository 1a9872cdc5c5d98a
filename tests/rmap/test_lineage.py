# SPDX-License-Identifier: GPL-2.0-or-later
"""How far the design `lineage` looks, and what it leaves behind."""

from __future__ import annotations

from typing import cast

import pytest

from rmap.world import LOW, MOVED, PAGE, Process, World
from rmaplab.check.race import run
from rmaplab.mm.abi import MADV_MERGEABLE
from rmaplab.mm.pagetable import Leaf
from rmaplab.mm.vma import VMA
from rmaplab.rmap.lineage import Line, LineageRmap

LEAF = 512 * PAGE


@pytest.fixture
def world() -> World:
    return World("lineage", kernel="7.3")


def design(world: World) -> LineageRmap:
    return cast(LineageRmap, world.design("lineage"))


def visited(world: World, process: Process, addr: int) -> int:
    """Address spaces that a walk for that page looks at."""
    before = design(world).visited.count
    list(design(world).walk(process.pfn(addr)))
    return design(world).visited.count - before


def named(world: World, process: Process) -> list[int]:
    """How many VMAs each half of a leaf names, from LOW on."""
    indices = design(world).line_of(process.mm).indices
    return [len(indices[number].vmas()) for number in sorted(indices) if 0 <= (number << 20) - LOW < 8 * LEAF]


def test_a_walk_for_a_page_that_its_owner_alone_maps_looks_at_one_address_space(world: World) -> None:
    parent = world.spawn()
    addr = parent.written(PAGE)
    children = [parent.fork() for _ in range(5)]
    assert visited(world, parent, addr) == 6
    for child in children:
        child.write(addr)
    assert visited(world, parent, addr) == 1


def test_who_is_forked_between_two_looks_is_visited(world: World) -> None:
    parent = world.spawn()
    addr = parent.written(PAGE)
    walk = iter(design(world).walk(parent.pfn(addr)))
    assert next(walk)[0].mm is parent.mm  # the only entry
    child = parent.fork()
    assert [vma.mm for vma, _ in walk] == [child.mm]


def test_a_leaf_names_each_vma_that_a_walk_came_to(world: World) -> None:
    process = world.spawn()
    addrs = [LOW + 2 * i * PAGE for i in range(20)]
    for i, addr in enumerate(addrs):
        process.write(process.mmap(PAGE, at=addr))
        list(design(world).walk(process.pfn(addr)))
        assert named(world, process) == [i + 1]
    looked, searched = design(world).look_ups.count, design(world).searched.count
    assert all(world.finds("lineage", process.pfn(addr)) == {(process, addr)} for addr in addrs)
    assert design(world).look_ups.count == looked
    assert design(world).searched.count - searched <= 20 * 5  # red-black: as deep as 20 nodes need


def test_of_leaves_that_say_nothing_the_wide_vma_is_thought_of_first(world: World) -> None:
    process = world.spawn()
    addr = process.mmap(4 * LEAF, at=LOW)
    for i in range(4):
        process.write(addr + i * LEAF)
    child = process.fork()
    looked = design(world).look_ups.count
    for i in range(1, 4):
        page = addr + i * LEAF
        assert world.finds("lineage", process.pfn(page)) == {(process, page), (child, page)}
    assert design(world).look_ups.count == looked
    child.munmap(addr, 4 * LEAF)
    assert design(world).line_of(child.mm).wide is None
    process.munmap(addr + LEAF // 4, 4 * LEAF)  # what is left is narrow
    assert design(world).line_of(process.mm).wide is None


def test_a_vma_that_begins_in_another_leaf_by_now_is_named_anew(world: World) -> None:
    process = world.spawn()
    addr = process.written(PAGE, at=LOW + LEAF)
    list(design(world).walk(process.pfn(addr)))
    index = design(world).line_of(process.mm).indices[addr >> 20]
    assert index.before is None and named(world, process) == [1]
    process.mmap(PAGE, at=LOW + LEAF - PAGE)  # the VMA grows down
    assert process.vma(addr).start == LOW + LEAF - PAGE and named(world, process) == [0]
    list(design(world).walk(process.pfn(addr)))
    assert index.before is process.vma(addr) and named(world, process) == [1]
    assert design(world).audit(list(world.machine.mms.values()), 100) == []


def test_of_a_vma_that_goes_only_leaves_that_stay_are_told(world: World) -> None:
    process = world.spawn()
    process.write(process.mmap(2 * LEAF, at=LOW + 16 * LEAF) + LEAF)  # the wide VMA is another one
    process.mmap(3 * LEAF, at=LOW + PAGE)
    for i in range(3):
        addr = LOW + PAGE + i * LEAF
        process.write(addr)
        list(design(world).walk(process.pfn(addr)))
    assert named(world, process) == [1, 1, 1]
    changed = design(world).changed.count
    process.munmap(LOW + PAGE, 3 * LEAF)
    assert design(world).changed.count == changed + 1  # the first, which another VMA might share; not those within


def test_a_leaf_that_moves_away_and_back_says_nothing_of_a_vma_that_is_gone() -> None:
    assert run("referenced / mremap of 2 MiB back", LineageRmap, preemptions=1).holds


def test_the_record_of_a_stack_needs_no_node(world: World) -> None:
    process = world.spawn(MOVED)
    process.write(process.mmap(PAGE))
    assert len(design(world).context_of(process.mm).remaps.ranges()) == 1
    assert not any(count.objects for count in design(world).footprint() if count.type == "maple_node")


def test_the_dead_that_a_page_of_ksm_held_do_not_outlive_it(world: World) -> None:
    """Found by `verify --rmap lineage --seed 9100 --every 20`."""
    parent = world.spawn()
    addr = parent.mmap(PAGE)
    parent.madvise(addr, PAGE, MADV_MERGEABLE)
    child = parent.fork()
    for process in (parent, child):
        process.write(addr)
    parent.ksm(addr, child, addr)
    parent.exit()
    grandchild = child.fork()
    child.exit()
    assert design(world).context_pool.live == 3
    grandchild.write(addr)
    assert design(world).context_pool.live <= 2


class WideAlone(LineageRmap):
    """Leaves say nothing, and any VMA with a page is a wide one."""

    name = "lineage, with a wide VMA and no indices"

    def _is_wide(self, vma: VMA, addr: int) -> bool:
        return self.line_of(vma.mm).wide is None

    def _has_new_page(self, vma: VMA, addr: int) -> None:
        pass

    def _missed(self, line: Line, number: int, leaf: Leaf, vma: VMA) -> None:
        pass


OTHERS = ["munmap", "munmap in the child", "fork", "mremap there and back", "exit of the child"]


@pytest.mark.parametrize("other", OTHERS)
def test_whoever_takes_the_wide_vma_away_meets_no_walk_that_believes_in_it(other: str) -> None:
    assert run(f"referenced / {other}", WideAlone, preemptions=1).holds


def test_a_walk_leaves_the_leaf_that_it_looked_at_to_its_user_locked(world: World) -> None:
    parent = world.spawn()
    addr = parent.written(PAGE)
    for _ in range(3):
        parent.fork()
    lock = world.machine.ledger.locks["page_table_lock"]
    before = lock.writes
    world.machine.referenced(parent.mm, addr, 1)
    assert world.machine.walk_hits.count == 4
    assert lock.writes - before == 4
