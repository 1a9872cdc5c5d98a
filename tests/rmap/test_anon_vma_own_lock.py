# SPDX-License-Identifier: GPL-2.0-or-later
"""anon_vma_own_lock has the graph of anon_vma, and a lock in each anon_vma."""

from __future__ import annotations

from typing import cast

from rmap.world import PAGE, World
from rmaplab.rmap.anon_vma import AnonVmaRmap, rwsem_of


def test_each_anon_vma_has_a_lock_and_a_walk_takes_one() -> None:
    world = World("anon_vma_own_lock")
    parent = world.spawn()
    addr = parent.written(2 * PAGE)
    child = parent.fork()
    child.write(addr)
    design = cast(AnonVmaRmap, world.design("anon_vma_own_lock"))
    inherited, own = (design.anon_vmas[design.anchor.m[child.pfn(addr + i * PAGE)]] for i in (1, 0))
    assert inherited is not None and own is not None and own.parent is inherited
    assert rwsem_of(own) is not rwsem_of(inherited)
    taken = design.lock_class.reads
    assert world.finds("anon_vma_own_lock", child.pfn(addr)) == {(child, addr)}
    assert design.lock_class.reads == taken + 1


def test_a_change_of_bounds_takes_the_locks_of_the_whole_chain() -> None:
    world = World("anon_vma_own_lock")
    process = world.spawn()
    addr = process.written(2 * PAGE)
    for _ in range(3):
        process = process.fork()
    lock = cast(AnonVmaRmap, world.design("anon_vma_own_lock")).lock_class
    taken = lock.writes
    process.munmap(addr, PAGE)
    # The part that is split off: 4 links, and its own anon_vma; the bounds: 4; the end of that part: 4.
    assert lock.writes == taken + 4 + 1 + 4 + 4


def test_its_graph_is_that_of_anon_vma() -> None:
    world = World("anon_vma", "anon_vma_own_lock")
    parent = world.spawn()
    addr = parent.written(4 * PAGE)
    child = parent.fork()
    child.munmap(addr + PAGE, PAGE)
    child.fork().write(addr)
    first, second = (cast(AnonVmaRmap, world.design(name)) for name in ("anon_vma", "anon_vma_own_lock"))
    assert first.anon_vma_pool.live == second.anon_vma_pool.live
    assert first.chain_pool.live == second.chain_pool.live
    assert second.lock_class.writes > first.lock_class.writes
