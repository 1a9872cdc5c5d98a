# SPDX-License-Identifier: GPL-2.0-or-later
"""What every reverse map owes: each statement is about Linux, and holds for each design that is complete."""

from __future__ import annotations

import random

import pytest

from rmap.world import LOW, RW, World
from rmaplab.check.histories import header, random_history
from rmaplab.check.lockstep import lockstep
from rmaplab.mm.abi import MADV_DONTFORK, MADV_MERGEABLE, MADV_WIPEONFORK, PROT_EXEC, PROT_READ
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES
from rmaplab.mm.vma import MM, PAGE_SIZE
from rmaplab.rmap import DESIGNS
from rmaplab.trace.events import Event
from rmaplab.trace.play import Player

COMPLETE = ("anon_vma", "anon_vma_lazy", "cow_context", "anonmm", "pte_chain", "page_scan")
design = pytest.mark.parametrize("name", COMPLETE)


def assert_complete(world: World, name: str) -> None:
    """The design finds every entry of every page that is mapped anywhere."""
    for mm in world.machine.mms.values():
        for entry in mm.page_table.anon_entries()[1].tolist():
            pfn = entry >> 12
            assert world.maps(pfn) <= world.finds(name, pfn)


def written(world: World, mm: MM, pages: int) -> int:
    """A mapping whose pages are all there."""
    addr = world.map(mm, pages=pages)
    world.write(mm, addr, pages)
    return addr


@design
def test_a_child_forked_after_the_fault_sees_it(name: str) -> None:
    world = World(name)
    parent = world.start()
    addr = world.map(parent)
    world.write(parent, addr)
    child = world.fork(parent)
    assert world.finds(name, world.page(parent, addr)) == {(parent, addr), (child, addr)}


@pytest.mark.parametrize("name", [name for name in COMPLETE if name != "anonmm"])  # which visits the whole family
def test_a_page_that_a_child_faulted_is_the_childs_alone(name: str) -> None:
    world = World(name)
    parent = world.start()
    addr = world.map(parent, pages=2)
    world.write(parent, addr)
    child = world.fork(parent)
    world.write(child, addr + PAGE_SIZE)
    assert world.finds(name, world.page(child, addr + PAGE_SIZE)) == {(child, addr + PAGE_SIZE)}


@design
def test_the_old_page_is_found_in_the_child_after_the_parent_copied_it(name: str) -> None:
    world = World(name)
    parent = world.start()
    addr = world.map(parent)
    world.write(parent, addr)
    child = world.fork(parent)
    world.write(parent, addr)
    old = world.page(child, addr)
    assert world.page(parent, addr) != old
    assert (child, addr) in world.finds(name, old)


@design
def test_the_page_is_found_in_the_child_after_the_parent_unmapped_or_exited(name: str) -> None:
    world = World(name)
    parent = world.start()
    addr = world.map(parent)
    world.write(parent, addr)
    child = world.fork(parent)
    grandchild = world.fork(child)
    world.unmap(parent, addr)
    assert_complete(world, name)
    world.exit(parent)
    world.exit(child)
    assert world.finds(name, world.page(grandchild, addr)) == {(grandchild, addr)}


@design
def test_a_page_taken_over_by_copy_on_write_belongs_to_the_last_who_mapped_it(name: str) -> None:
    world = World(name)
    parent = world.start()
    addr = world.map(parent)
    world.write(parent, addr)
    child = world.fork(parent)
    world.unmap(parent, addr)
    kept = world.page(child, addr)
    world.write(child, addr)
    assert world.page(child, addr) == kept  # not copied: nobody else had it
    assert world.finds(name, kept) == {(child, addr)}


@design
def test_pages_are_found_where_they_were_moved(name: str) -> None:
    world = World(name)
    mm = world.start()
    addr = world.map(mm, pages=4)
    world.write(mm, addr, 4)
    world.move(mm, addr + PAGE_SIZE, 2, LOW - 0x100000)
    assert_complete(world, name)
    assert world.finds(name, world.page(mm, LOW - 0x100000)) == {(mm, LOW - 0x100000)}
    world.move(mm, LOW - 0x100000, 1, LOW - 0x200000)
    world.move(mm, LOW - 0x200000, 1, addr + PAGE_SIZE)  # home again
    assert_complete(world, name)


@design
def test_a_child_may_move_what_it_shares(name: str) -> None:
    world = World(name)
    parent = world.start()
    addr = world.map(parent, pages=3)
    world.write(parent, addr, 3)
    child = world.fork(parent)
    there = world.move(child, addr, 2, LOW + (1 << 30))
    grandchild = world.fork(child)
    world.move(grandchild, there + PAGE_SIZE, 1, LOW - (1 << 30))
    page = world.page(parent, addr + PAGE_SIZE)
    assert world.maps(page) == {
        (parent, addr + PAGE_SIZE),
        (child, there + PAGE_SIZE),
        (grandchild, LOW - (1 << 30)),
    }
    assert_complete(world, name)


@design
def test_the_stack_that_exec_moved_is_found(name: str) -> None:
    world = World(name)
    mm = world.start(moved_stack=True)
    assert world.vma(mm, world.stack(mm)).pgoff != world.stack(mm) >> 12
    assert_complete(world, name)
    child = world.fork(mm)
    stack = world.stack(mm)
    assert world.finds(name, world.page(mm, stack)) == {(mm, stack), (child, stack)}


@design
def test_splits_and_merges_keep_every_page_in_sight(name: str) -> None:
    world = World(name)
    mm = world.start()
    addr = world.map(mm, pages=6)
    world.write(mm, addr, 6)
    world.fork(mm)
    world.protect(mm, addr + 2 * PAGE_SIZE, 2, PROT_READ)
    assert_complete(world, name)
    world.unmap(mm, addr + 5 * PAGE_SIZE)
    world.protect(mm, addr + PAGE_SIZE, 3, RW)
    assert_complete(world, name)


@design
def test_the_boundary_between_two_moved_vmas_may_move(name: str) -> None:
    world = World(name)
    mm = world.start()
    addr = world.move(mm, written(world, mm, 6), 6, LOW - 0x100000)
    world.fork(mm)
    world.protect(mm, addr + 3 * PAGE_SIZE, 3, PROT_READ)
    world.protect(mm, addr + 3 * PAGE_SIZE, 1, RW)
    assert world.vma(mm, addr).nr_pages == 4
    assert_complete(world, name)


@design
def test_copied_pages_of_a_private_file_mapping_are_found(name: str) -> None:
    world = World(name)
    mm = world.start()
    addr = world.map(mm, pages=4, file=world.file, file_page=7)
    world.write(mm, addr + PAGE_SIZE)
    child = world.fork(mm)
    world.write(child, addr + 2 * PAGE_SIZE)
    world.move(child, addr, 4, LOW + (1 << 30))
    assert_complete(world, name)
    assert world.maps(world.page(mm, addr + PAGE_SIZE)) == {
        (mm, addr + PAGE_SIZE),
        (child, LOW + (1 << 30) + PAGE_SIZE),
    }


@design
def test_private_file_mappings_that_merge_long_after_one_was_moved_are_found(name: str) -> None:
    """They do until 7.3, where a file's mappings merge only if they were moved alike."""
    world = World("anon_vma", name, kernel="6.12") if name != "anon_vma" else World(name, kernel="6.12")
    mm = world.start()
    here = world.map(mm, pages=2, file=world.file, file_page=2)
    world.write(mm, here, 2)
    there = world.move(mm, here, 2, LOW + (1 << 30))
    # What follows in the file, with other rights, gets a page of its own; then the rights become the same.
    above = world.map(mm, 2, there + 2 * PAGE_SIZE, world.file, 4, prot=RW | PROT_EXEC)
    world.write(mm, above, 1)
    world.protect(mm, above, 2, RW)
    assert world.vma(mm, there).nr_pages == 4
    world.fork(mm)
    assert_complete(world, name)


@design
def test_a_page_swapped_in_by_a_child_first_is_found_in_the_parent_later(name: str) -> None:
    world = World(name)
    parent = world.start()
    addr = world.map(parent)
    world.write(parent, addr)
    child = world.fork(parent)
    grandchild = world.fork(child)
    assert world.machine.swap_out(parent, addr, 1) == 1
    world.read(grandchild, addr)
    world.read(parent, addr)
    page = world.page(parent, addr)
    assert world.maps(page) == {(parent, addr), (grandchild, addr)}
    assert world.maps(page) <= world.finds(name, page)
    world.read(child, addr)
    assert world.finds(name, page) == {(parent, addr), (child, addr), (grandchild, addr)}


@design
def test_migration_finds_every_entry_twice(name: str) -> None:
    world = World(name)
    parent = world.start()
    addr = world.map(parent)
    world.write(parent, addr)
    child = world.fork(parent)
    world.move(child, addr, 1, LOW - 0x100000)
    before = world.page(parent, addr)
    assert world.machine.migrate(parent, addr, 1) == 1
    after = world.page(parent, addr)
    assert after != before
    assert world.maps(after) == {(parent, addr), (child, LOW - 0x100000)} == world.finds(name, after)


@design
def test_ksm_pages_are_found_in_unrelated_processes_and_in_their_children(name: str) -> None:
    world = World(name)
    one = world.start()
    other = world.start()
    addr = world.map(one)
    other_addr = world.map(other)
    for mm, at in ((one, addr), (other, other_addr)):
        world.write(mm, at)
        assert world.machine.madvise(mm, at, PAGE_SIZE, MADV_MERGEABLE) == 0
    assert world.machine.ksm_merge(one, addr, other, other_addr) == 0
    child = world.fork(other)
    page = world.page(one, addr)
    assert world.finds(name, page) == {(one, addr), (other, other_addr), (child, other_addr)}
    world.exit(other)
    assert world.maps(page) <= world.finds(name, page)
    world.move(child, other_addr, 1, LOW - 0x100000)  # unmerges
    assert_complete(world, name)


@design
def test_uffdio_move_gives_the_page_another_page_offset(name: str) -> None:
    world = World(name)
    mm = world.start()
    source = world.map(mm)
    target = world.map(mm)
    world.write(mm, source)
    page = world.page(mm, source)
    assert world.machine.uffd_move(mm, target, source, PAGE_SIZE) == PAGE_SIZE
    assert world.page(mm, target) == page
    world.unmap(mm, source)
    assert world.finds(name, page) == {(mm, target)}


@design
def test_a_moved_vma_that_fork_wipes_is_found_after_its_first_fault_in_the_child(name: str) -> None:
    world = World(name)
    parent = world.start()
    there = world.move(parent, written(world, parent, 2), 2, LOW - 0x100000)
    assert world.machine.madvise(parent, there, 2 * PAGE_SIZE, MADV_WIPEONFORK) == 0
    child = world.fork(parent)
    world.write(child, there)
    world.fork(child)
    assert_complete(world, name)


@design
def test_what_fork_does_not_copy_is_not_looked_for(name: str) -> None:
    world = World(name)
    parent = world.start()
    addr = written(world, parent, 1)
    assert world.machine.madvise(parent, addr, PAGE_SIZE, MADV_DONTFORK) == 0
    world.fork(parent)
    assert world.finds(name, world.page(parent, addr)) == {(parent, addr)}


@design
@pytest.mark.parametrize("kernel", PROFILES)
def test_the_source_of_dontunmap_starts_afresh(name: str, kernel: str) -> None:
    world = World(name, kernel=kernel)
    mm = world.start()
    here = world.move(mm, written(world, mm, 3), 3, LOW - 0x100000)
    world.move(mm, here, 3, LOW - 0x200000, keep=True)
    world.write(mm, here, 3)
    world.fork(mm)
    assert_complete(world, name)
    world.move(mm, here, 1, LOW - 0x300000, keep=True)
    world.write(mm, here)
    assert_complete(world, name)


@design
def test_parts_of_large_folios_are_found_where_they_went(name: str) -> None:
    world = World(name, large_folios=4)
    mm = world.start()
    addr = world.map(mm, pages=16, at=LOW)
    world.write(mm, addr, 16)
    assert world.machine.folios.order.m[world.page(mm, addr)] == 4
    child = world.fork(mm)
    world.move(child, addr + 4 * PAGE_SIZE, 4, LOW - 0x100000)
    world.unmap(mm, addr, 2)
    page = world.page(mm, addr + 5 * PAGE_SIZE)
    places = world.finds(name, page)
    # A place is where the folio's first page that the VMA covers is.
    assert (mm, addr + 2 * PAGE_SIZE) in places
    assert (child, addr) in places
    assert (child, LOW - 0x100000) in places


@design
@pytest.mark.parametrize("kernel", PROFILES)
@pytest.mark.parametrize("seed", range(4))
def test_no_entry_is_missed_in_random_histories(name: str, kernel: str, seed: int) -> None:
    designs = [DESIGNS[name]]
    history = random_history(random.Random(seed), 120, designs, kernel=kernel)
    machine = Machine(PROFILES[kernel], designs)
    player = Player(machine, header(), batch=False)

    def play(_: Machine, event: Event) -> None:
        player.do(event)

    differences, _ = lockstep(machine, history, play, every=5)
    assert [d.what for d in differences if d.is_error] == []


@pytest.mark.parametrize("kernel", PROFILES)
@pytest.mark.parametrize("seed", range(4))
def test_cow_context_misses_nothing_while_anon_vma_decides_what_merges(kernel: str, seed: int) -> None:
    designs = [DESIGNS["anon_vma"], DESIGNS["cow_context"]]
    history = random_history(random.Random(100 + seed), 150, designs, kernel=kernel)
    machine = Machine(PROFILES[kernel], designs)
    player = Player(machine, header(), batch=False)

    def play(_: Machine, event: Event) -> None:
        player.do(event)

    differences, _ = lockstep(machine, history, play, every=5)
    assert [d.what for d in differences if d.is_error] == []


@pytest.mark.parametrize("name", DESIGNS)
def test_a_walk_counts_as_one(name: str) -> None:
    names = ("anon_vma", name) if name != "anon_vma" else (name,)
    world = World(*names)
    parent = world.start()
    addr = world.map(parent)
    world.write(parent, addr)
    world.fork(parent)
    walks = world.design(name).ledger.tallies["walks"]
    before = walks.count
    assert len(world.finds(name, world.page(parent, addr))) == 2
    assert walks.count == before + 1
