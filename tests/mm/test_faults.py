# SPDX-License-Identifier: GPL-2.0-or-later
"""What an access does: new pages, copies, reuse, growth of stacks, and what gets a signal."""

import random

import pytest

from mm.space import ANON, DISK, FILE, MEMORY, PAGE, RW, N, R, Space, Witnessed, at
from rmaplab.check.histories import Author
from rmaplab.mm.abi import (
    EFAULT,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_SHARED,
    PROT_WRITE,
    STACK_LIMIT,
)
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import PTE_EXCLUSIVE, PTE_WRITE
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.trace.events import FAULT_WRITE

SHARED = MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED
STACK = ANON | MAP_GROWSDOWN


# Anonymous memory


def test_a_read_of_fresh_memory_maps_the_page_of_zeros(space: Space) -> None:
    space.mmap(2, 0)
    assert space.fault(0, write=False) == 0
    assert (space.entry(0), space.entry(1)) == ("zero", "")
    assert not space.vma(0).prepared


def test_a_write_makes_an_exclusive_page_with_the_page_offset_as_index(space: Space) -> None:
    space.mmap(2, 0)
    space.write(1)
    assert (space.entry(0), space.entry(1)) == ("", "anon")
    assert space.has(PTE_EXCLUSIVE, 1) and space.has(PTE_WRITE, 1)
    assert space.machine.folios.index.m[space.pfn(1)] == at(1) // PAGE
    assert space.vma(0).prepared


def test_a_write_replaces_the_page_of_zeros(space: Space) -> None:
    space.mmap(1, 0)
    space.read(0)
    space.write(0)
    assert space.entry(0) == "anon"


def test_a_page_of_a_moved_vma_has_the_index_of_where_it_was(space: Space) -> None:
    space.mmap(2, 0)
    space.write(0)
    space.mremap(0, 2, to=10)
    space.write(11)
    assert space.machine.folios.index.m[space.pfn(11)] == at(1) // PAGE


# Private mappings of files


@pytest.mark.parametrize("file", [DISK, MEMORY])
def test_a_private_file_page_is_the_page_caches_until_it_is_written(space: Space, file: int) -> None:
    space.mmap(2, 0, RW, FILE, file, 5)
    space.read(0)
    assert space.entry(0) == "file"
    assert not space.vma(0).prepared
    space.write(0)
    assert space.entry(0) == "anon"
    assert space.machine.folios.index.m[space.pfn(0)] == (at(0) // PAGE if space.kernel == "7.3" else 5)
    space.write(1)
    assert space.entry(1) == "anon"


def test_pages_of_shared_mappings_are_never_anonymous(space: Space) -> None:
    space.mmap(2, 0, RW, MAP_SHARED | MAP_FIXED, DISK)
    space.mmap(2, 4, RW, SHARED)
    for page in (0, 4):
        assert space.fault(page, write=True) == 0
        assert space.entry(page) == "file"
        assert not space.vma(page).prepared


# Copy-on-write


def test_fork_shares_pages_and_takes_the_right_to_write(space: Space) -> None:
    space.mmap(1, 0)
    space.write(0)
    child = space.fork()
    assert space.pfn(0) == child.pfn(0)
    for pid in (1, 2):
        assert not space.process(pid).has(PTE_EXCLUSIVE, 0)
        assert not space.process(pid).has(PTE_WRITE, 0)


def test_a_write_to_a_shared_page_copies_it(space: Space) -> None:
    space.mmap(1, 0)
    space.write(0)
    page = space.pfn(0)
    child = space.fork()
    child.write(0)
    assert space.pfn(0) == page
    assert child.pfn(0) != page
    assert child.has(PTE_EXCLUSIVE, 0)


def test_the_last_one_reuses_the_page(space: Space) -> None:
    space.mmap(1, 0)
    space.write(0)
    page = space.pfn(0)
    child = space.fork()
    child.write(0)
    assert not space.has(PTE_EXCLUSIVE, 0)
    space.write(0)
    assert space.pfn(0) == page
    assert space.has(PTE_EXCLUSIVE, 0)


def test_a_child_takes_over_what_its_parent_left(space: Space) -> None:
    space.mmap(1, 0)
    space.write(0)
    page = space.pfn(0)
    child = space.fork()
    space.munmap(0, 1) if isinstance(space.world, Witnessed) else space.exit()
    child.write(0)
    assert child.pfn(0) == page


def test_a_read_of_a_shared_page_changes_nothing(space: Space) -> None:
    space.mmap(1, 0)
    space.write(0)
    child = space.fork()
    child.read(0)
    assert space.mapcount(0) == 2


# Accesses that are not allowed


def test_what_gets_a_signal(space: Space) -> None:
    space.mmap(1, 0, N)
    space.mmap(1, 1, R)
    assert space.fault(0, write=False) == -EFAULT
    assert space.fault(1, write=True) == -EFAULT
    assert space.fault(1, write=False) == 0
    assert space.fault(5, write=False) == -EFAULT


def test_memory_that_may_be_written_may_be_read(space: Space) -> None:
    """x86 has no write-only pages."""
    space.mmap(1, 0, PROT_WRITE)
    assert space.fault(0, write=False) == 0


# Stacks


def test_a_stack_grows_to_where_it_is_touched(space: Space) -> None:
    space.mmap(2, 300, RW, STACK)
    space.write(300)
    assert space.fault(297, write=True) == 0
    assert space.vmas() == "297-302 rw"
    assert [space.entry(page) for page in (297, 298)] == ["anon", ""]
    assert space.pgoff(297) == 297


def test_a_moved_stack_grows_at_its_page_offset(space: Space) -> None:
    space.mmap(2, 300, RW, STACK)
    space.write(300)
    space.mremap(300, 2, to=400)
    space.write(399)
    assert space.pgoff(399) == 299
    assert space.machine.folios.index.m[space.pfn(399)] == at(299) // PAGE


def test_a_stack_keeps_its_distance_from_what_is_mapped_below(space: Space) -> None:
    space.mmap(1, 10)
    space.mmap(2, 300, RW, STACK)
    assert space.fault(267, write=True) == 0
    assert space.fault(266, write=True) == -EFAULT, "256 pages are left free"
    assert space.vmas() == "10-11 rw, 267-302 rw"


def test_a_mapping_without_rights_is_no_neighbour(space: Space) -> None:
    space.mmap(1, 290, N)
    space.mmap(2, 300, RW, STACK)
    assert space.fault(291, write=True) == 0
    assert space.vmas() == "290-291, 291-302 rw"


def test_a_stack_ends_at_its_limit(model: Space) -> None:
    pages = STACK_LIMIT // PAGE
    model.mmap(2, 300 + pages, RW, STACK)
    assert model.fault(302, write=True) == 0
    assert model.fault(301, write=True) == -EFAULT


def test_what_does_not_grow_down_does_not(space: Space) -> None:
    space.mmap(2, 300)
    assert space.fault(299, write=True) == -EFAULT


# Many at once


@pytest.mark.parametrize("large_folios", [0, 3])
@pytest.mark.parametrize("seed", range(4))
def test_a_run_of_faults_is_like_one_by_one(seed: int, large_folios: int) -> None:
    """Two machines go through one history; one touches runs of pages, the other page after page.  Entries,
    page numbers, mapcounts and counts of work are the same."""
    one, many = (Machine(PROFILES[REFERENCE], [AnonVmaRmap], large_folios=large_folios) for _ in range(2))
    author = Author(one, random.Random(seed))
    twin = Author(many, random.Random(0))
    twin.player.do(author.begin())
    for _ in range(250):
        event = author.propose()
        if event is None:
            continue
        if event.op == "fault":
            write = event.flags & FAULT_WRITE != 0
            pages = max(event.length // PAGE, 1)
            done = 0
            while done < pages and one.fault(one.mm_of(event.pid), event.addr + done * PAGE, write) == 0:
                done += 1
            assert many.fault_range(many.mm_of(event.pid), event.addr, pages, write) == done
        else:
            event.result = -1
            assert author.player.do(event) == twin.player.do(event)
        assert state(one) == state(many)


def state(machine: Machine) -> tuple[object, ...]:
    folios = machine.folios
    ledger = machine.ledger
    return (
        {
            pid: [(number, leaf.used, leaf.v.tolist()) for number, leaf in sorted(process.mm.page_table.leaves.items())]
            for pid, process in machine.processes.items()
        },
        folios.mapcount.v[: folios._next].tolist(),
        folios.index.v[: folios._next].tolist(),
        folios.flags.v[: folios._next].tolist(),
        {name: tally.count for name, tally in ledger.tallies.items()},
        {name: (lock.reads, lock.writes) for name, lock in ledger.locks.items()},
        {name: tally.count for name, tally in machine.leader.ledger.tallies.items()},
    )
