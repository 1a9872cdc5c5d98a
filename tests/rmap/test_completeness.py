# SPDX-License-Identifier: GPL-2.0-or-later
"""What every reverse map owes: each statement is about Linux, and holds for each design that is complete."""

from __future__ import annotations

import random

import pytest

from histories import lockstep, random_history
from rmap.world import DISK, KEEP, LOW, MOVED, PAGE, READ_WRITE, World
from rmaplab.check.histories import header
from rmaplab.mm.abi import MADV_DONTFORK, MADV_MERGEABLE, MADV_WIPEONFORK, PROT_EXEC, PROT_READ
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.rmap import DESIGNS, EXCUSED
from rmaplab.trace.events import Event
from rmaplab.trace.play import Player

COMPLETE = tuple(name for name in DESIGNS if name not in EXCUSED)
design = pytest.mark.parametrize("name", COMPLETE)


def assert_complete(world: World, name: str) -> None:
    """The design finds every entry of every page that is mapped anywhere."""
    for process in world.machine.mms.values():
        for entry in process.page_table.anon_entries()[1].tolist():
            pfn = entry >> 12
            assert world.maps(pfn) <= world.finds(name, pfn)


@design
def test_a_child_forked_after_the_fault_sees_it(name: str) -> None:
    world = World(name)
    parent = world.spawn()
    addr = parent.written(PAGE)
    child = parent.fork()
    assert world.finds(name, parent.pfn(addr)) == {(parent, addr), (child, addr)}


@pytest.mark.parametrize("name", [name for name in COMPLETE if name != "anonmm"])  # which visits the whole family
def test_a_page_that_a_child_faulted_is_the_childs_alone(name: str) -> None:
    world = World(name)
    parent = world.spawn()
    addr = parent.mmap(2 * PAGE)
    parent.write(addr)
    child = parent.fork()
    child.write(addr + PAGE)
    assert world.finds(name, child.pfn(addr + PAGE)) == {(child, addr + PAGE)}


@design
def test_the_old_page_is_found_in_the_child_after_the_parent_copied_it(name: str) -> None:
    world = World(name)
    parent = world.spawn()
    addr = parent.written(PAGE)
    child = parent.fork()
    parent.write(addr)
    old = child.pfn(addr)
    assert parent.pfn(addr) != old
    assert (child, addr) in world.finds(name, old)


@design
def test_the_page_is_found_in_the_child_after_the_parent_unmapped_or_exited(name: str) -> None:
    world = World(name)
    parent = world.spawn()
    addr = parent.written(PAGE)
    child = parent.fork()
    grandchild = child.fork()
    parent.munmap(addr, PAGE)
    assert_complete(world, name)
    parent.exit()
    child.exit()
    assert world.finds(name, grandchild.pfn(addr)) == {(grandchild, addr)}


@design
def test_a_page_taken_over_by_copy_on_write_belongs_to_the_last_who_mapped_it(name: str) -> None:
    world = World(name)
    parent = world.spawn()
    addr = parent.written(PAGE)
    child = parent.fork()
    parent.munmap(addr, PAGE)
    kept = child.pfn(addr)
    child.write(addr)
    assert child.pfn(addr) == kept  # not copied: nobody else had it
    assert world.finds(name, kept) == {(child, addr)}


@design
def test_pages_are_found_where_they_were_moved(name: str) -> None:
    world = World(name)
    process = world.spawn()
    addr = process.written(4 * PAGE)
    process.mremap(addr + PAGE, 2 * PAGE, to=LOW - 0x100000)
    assert_complete(world, name)
    assert world.finds(name, process.pfn(LOW - 0x100000)) == {(process, LOW - 0x100000)}
    process.mremap(LOW - 0x100000, PAGE, to=LOW - 0x200000)
    process.mremap(LOW - 0x200000, PAGE, to=addr + PAGE)  # home again
    assert_complete(world, name)


@design
def test_a_child_may_move_what_it_shares(name: str) -> None:
    world = World(name)
    parent = world.spawn()
    addr = parent.written(3 * PAGE)
    child = parent.fork()
    there = child.mremap(addr, 2 * PAGE, to=LOW + (1 << 30))
    grandchild = child.fork()
    grandchild.mremap(there + PAGE, PAGE, to=LOW - (1 << 30))
    page = parent.pfn(addr + PAGE)
    assert world.maps(page) == {
        (parent, addr + PAGE),
        (child, there + PAGE),
        (grandchild, LOW - (1 << 30)),
    }
    assert_complete(world, name)


@design
def test_the_stack_that_exec_moved_is_found(name: str) -> None:
    world = World(name)
    process = world.spawn(MOVED)
    assert process.vma(process.stack).pgoff != process.stack >> 12
    assert_complete(world, name)
    child = process.fork()
    stack = process.stack
    assert world.finds(name, process.pfn(stack)) == {(process, stack), (child, stack)}


@design
def test_splits_and_merges_keep_every_page_in_sight(name: str) -> None:
    world = World(name)
    process = world.spawn()
    addr = process.written(6 * PAGE)
    process.fork()
    process.mprotect(addr + 2 * PAGE, 2 * PAGE, PROT_READ)
    assert_complete(world, name)
    process.munmap(addr + 5 * PAGE, PAGE)
    process.mprotect(addr + PAGE, 3 * PAGE, READ_WRITE)
    assert_complete(world, name)


@design
def test_the_boundary_between_two_moved_vmas_may_move(name: str) -> None:
    world = World(name)
    process = world.spawn()
    addr = process.mremap(process.written(6 * PAGE), 6 * PAGE, to=LOW - 0x100000)
    process.fork()
    process.mprotect(addr + 3 * PAGE, 3 * PAGE, PROT_READ)
    process.mprotect(addr + 3 * PAGE, PAGE, READ_WRITE)
    assert process.vma(addr).nr_pages == 4
    assert_complete(world, name)


@design
def test_copied_pages_of_a_private_file_mapping_are_found(name: str) -> None:
    world = World(name)
    process = world.spawn()
    addr = process.mmap(4 * PAGE, file=DISK, offset=7 * PAGE)
    process.write(addr + PAGE)
    child = process.fork()
    child.write(addr + 2 * PAGE)
    child.mremap(addr, 4 * PAGE, to=LOW + (1 << 30))
    assert_complete(world, name)
    assert world.maps(process.pfn(addr + PAGE)) == {
        (process, addr + PAGE),
        (child, LOW + (1 << 30) + PAGE),
    }


@design
def test_private_file_mappings_that_merge_long_after_one_was_moved_are_found(name: str) -> None:
    """They do until 7.3, where a file's mappings merge only if they were moved alike."""
    world = World("anon_vma", name, kernel="6.12") if name != "anon_vma" else World(name, kernel="6.12")
    process = world.spawn()
    here = process.written(2 * PAGE, file=DISK, offset=2 * PAGE)
    there = process.mremap(here, 2 * PAGE, to=LOW + (1 << 30))
    # What follows in the file, with other rights, gets a page of its own; then the rights become the same.
    above = process.mmap(2 * PAGE, at=there + 2 * PAGE, prot=READ_WRITE | PROT_EXEC, file=DISK, offset=4 * PAGE)
    process.write(above)
    process.mprotect(above, 2 * PAGE, READ_WRITE)
    assert process.vma(there).nr_pages == 4
    process.fork()
    assert_complete(world, name)


@design
def test_a_page_swapped_in_by_a_child_first_is_found_in_the_parent_later(name: str) -> None:
    world = World(name)
    parent = world.spawn()
    addr = parent.written(PAGE)
    child = parent.fork()
    grandchild = child.fork()
    assert world.machine.swap_out(parent.mm, addr, 1) == 1
    grandchild.read(addr)
    parent.read(addr)
    page = parent.pfn(addr)
    assert world.maps(page) == {(parent, addr), (grandchild, addr)}
    assert world.maps(page) <= world.finds(name, page)
    child.read(addr)
    assert world.finds(name, page) == {(parent, addr), (child, addr), (grandchild, addr)}


@design
def test_migration_finds_every_entry_twice(name: str) -> None:
    world = World(name)
    parent = world.spawn()
    addr = parent.written(PAGE)
    child = parent.fork()
    child.mremap(addr, PAGE, to=LOW - 0x100000)
    before = parent.pfn(addr)
    assert world.machine.migrate(parent.mm, addr, 1) == 1
    after = parent.pfn(addr)
    assert after != before
    assert world.maps(after) == {(parent, addr), (child, LOW - 0x100000)} == world.finds(name, after)


@design
def test_ksm_pages_are_found_in_unrelated_processes_and_in_their_children(name: str) -> None:
    world = World(name)
    one = world.spawn()
    other = world.spawn()
    addr = one.mmap(PAGE)
    other_addr = other.mmap(PAGE)
    for process, at in ((one, addr), (other, other_addr)):
        process.write(at)
        process.madvise(at, PAGE, MADV_MERGEABLE)
    assert world.machine.ksm_merge(one.mm, addr, other.mm, other_addr) == 0
    child = other.fork()
    page = one.pfn(addr)
    assert world.finds(name, page) == {(one, addr), (other, other_addr), (child, other_addr)}
    other.exit()
    assert world.maps(page) <= world.finds(name, page)
    child.mremap(other_addr, PAGE, to=LOW - 0x100000)  # unmerges
    assert_complete(world, name)


@design
def test_uffdio_move_gives_the_page_another_page_offset(name: str) -> None:
    world = World(name)
    process = world.spawn()
    source = process.mmap(PAGE)
    target = process.mmap(PAGE)
    process.write(source)
    page = process.pfn(source)
    assert process.uffd_move(target, source, PAGE) == PAGE
    assert process.pfn(target) == page
    process.munmap(source, PAGE)
    assert world.finds(name, page) == {(process, target)}


@design
def test_a_moved_vma_that_fork_wipes_is_found_after_its_first_fault_in_the_child(name: str) -> None:
    world = World(name)
    parent = world.spawn()
    there = parent.mremap(parent.written(2 * PAGE), 2 * PAGE, to=LOW - 0x100000)
    parent.madvise(there, 2 * PAGE, MADV_WIPEONFORK)
    child = parent.fork()
    child.write(there)
    child.fork()
    assert_complete(world, name)


@design
def test_what_fork_does_not_copy_is_not_looked_for(name: str) -> None:
    world = World(name)
    parent = world.spawn()
    addr = parent.written(PAGE)
    parent.madvise(addr, PAGE, MADV_DONTFORK)
    parent.fork()
    assert world.finds(name, parent.pfn(addr)) == {(parent, addr)}


@design
@pytest.mark.parametrize("kernel", PROFILES)
def test_the_source_of_dontunmap_starts_afresh(name: str, kernel: str) -> None:
    world = World(name, kernel=kernel)
    process = world.spawn()
    here = process.mremap(process.written(3 * PAGE), 3 * PAGE, to=LOW - 0x100000)
    process.mremap(here, 3 * PAGE, to=LOW - 0x200000, flags=KEEP)
    process.write(here, 3 * PAGE)
    process.fork()
    assert_complete(world, name)
    process.mremap(here, PAGE, to=LOW - 0x300000, flags=KEEP)
    process.write(here)
    assert_complete(world, name)


@design
def test_parts_of_large_folios_are_found_where_they_went(name: str) -> None:
    world = World(name, large_folios=4)
    process = world.spawn()
    addr = process.written(16 * PAGE, at=LOW)
    assert world.machine.folios.order.m[process.pfn(addr)] == 4
    child = process.fork()
    child.mremap(addr + 4 * PAGE, 4 * PAGE, to=LOW - 0x100000)
    process.munmap(addr, 2 * PAGE)
    page = process.pfn(addr + 5 * PAGE)
    places = world.finds(name, page)
    # A place is where the folio's first page that the VMA covers is.
    assert (process, addr + 2 * PAGE) in places
    assert (child, addr) in places
    assert (child, LOW - 0x100000) in places


def missed(designs: list[type[ReverseMap]], kernel: str, seed: int, events: int) -> list[str]:
    """What a random history shows."""
    history = random_history(random.Random(seed), events, designs, kernel=kernel)
    machine = Machine(PROFILES[kernel], designs)
    player = Player(machine, header(), batch=False)

    def play(_: Machine, event: Event) -> None:
        player.do(event)

    differences, _ = lockstep(machine, history, play, every=5)
    return [d.what for d in differences if d.is_error]


@design
@pytest.mark.parametrize("kernel", PROFILES)
@pytest.mark.parametrize("seed", range(4))
def test_no_entry_is_missed_in_random_histories(name: str, kernel: str, seed: int) -> None:
    assert missed([DESIGNS[name]], kernel, seed, 120) == []


@pytest.mark.parametrize("kernel", PROFILES)
@pytest.mark.parametrize("seed", range(4))
def test_cow_context_misses_nothing_while_anon_vma_decides_what_merges(kernel: str, seed: int) -> None:
    assert missed([DESIGNS["anon_vma"], DESIGNS["cow_context"]], kernel, 100 + seed, 150) == []


@pytest.mark.parametrize("name", DESIGNS)
def test_a_walk_counts_as_one(name: str) -> None:
    names = ("anon_vma", name) if name != "anon_vma" else (name,)
    world = World(*names)
    parent = world.spawn()
    addr = parent.written(PAGE)
    parent.fork()
    walks = world.design(name).ledger.tallies["walks"]
    before = walks.count
    assert len(world.finds(name, parent.pfn(addr))) == 2
    assert walks.count == before + 1
