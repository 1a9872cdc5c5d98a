# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages of KSM and the swap cache, MADV_FREE, entries that go: every complete design watches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mm.space import Space, at, begin
from rmaplab.check.lockstep import Checker
from rmaplab.mm.abi import MADV_FREE, MADV_MERGEABLE, MADV_PAGEOUT, MLOCK_ONFAULT
from rmaplab.mm.folio import FOLIO_LAZYFREE
from rmaplab.mm.ksm import AS_FOUND
from rmaplab.mm.pagetable import LEAF_SHIFT, PTE_SHIFT
from rmaplab.rmap import DESIGNS

COMPLETE = tuple(design for name, design in DESIGNS.items() if name != "cow_context_prototype")


@pytest.fixture
def watched() -> Iterator[Space]:
    """Four pages that KSM may merge, and every complete design."""
    space = begin(designs=COMPLETE)
    space.mmap(4, 0)
    space.write(0, 4)
    space.madvise(0, 4, MADV_MERGEABLE)
    yield space
    assert [found.what for found in Checker(space.machine).check(0) if found.is_error] == []
    space.close()


def merge(space: Space, page: int, other: int, how: int = 0, other_pid: int = 1) -> int:
    machine = space.machine
    return machine.ksm_merge(machine.mm_of(1), at(page), machine.mm_of(other_pid), at(other), how)


def test_a_page_that_the_swap_cache_alone_holds_is_merged_with(watched: Space) -> None:
    """A locked VMA kept it mapped when it was swapped out, and then went."""
    machine = watched.machine
    watched.mlock(1, 1, MLOCK_ONFAULT)
    assert merge(watched, 0, 1) == 0
    page = watched.pfn(0)
    machine.swap_out(machine.mm_of(1), at(0), 1)
    assert (watched.entry(0), watched.entry(1)) == ("swap", "ksm")
    watched.munmap(1, 1)
    slot = machine.mm_of(1).page_table.get(at(0)) >> PTE_SHIFT
    assert machine.swap[slot].cached_pfn == page and machine.mapcount(page) == 0 and page in machine.ksm_pages
    assert merge(watched, 0, 2) == 0
    assert watched.entry(2) == "ksm" and watched.pfn(2) == page
    assert watched.entry(0) == "swap" and machine.mapcount(page) == 1


def test_a_page_that_was_given_up_and_then_merged_is_not_dropped(watched: Space) -> None:
    """The stable node takes the mark of MADV_FREE away: two want the page now (try_to_merge_one_page())."""
    watched.madvise(0, 1, MADV_FREE)
    assert watched.machine.folios.flags.m[watched.pfn(0)] & FOLIO_LAZYFREE
    assert merge(watched, 0, 1) == 0
    assert not watched.machine.folios.flags.m[watched.pfn(0)] & FOLIO_LAZYFREE
    watched.munmap(1, 1)  # MADV_PAGEOUT leaves alone what several entries map
    watched.madvise(0, 1, MADV_PAGEOUT)
    assert watched.entry(0) == "swap"


def test_an_entry_that_is_merged_away_is_told_of(watched: Space) -> None:
    """The page that it mapped is mapped elsewhere still, so that nobody forgets the pointer with the page."""
    child = watched.fork()
    page = watched.pfn(1)
    assert merge(watched, 0, 1, AS_FOUND) == 0
    assert watched.entry(1) == "ksm" and child.pfn(1) == page
    for design in watched.machine.designs:
        places = {(vma.mm.id, addr) for vma, addr in design.walk(page)}
        assert (watched.machine.mm_of(2).id, at(1)) in places, design.name
        if design.name == "pte_chain":
            assert len(places) == 1


def test_all_that_share_a_page_know_that_it_is_ksms(watched: Space) -> None:
    """Also where the walk comes by a process on the way that has no page table there: 2 was forked before the page was
    written, and page 24 begins another leaf."""
    watched.mmap(4, 22)
    watched.write(22)
    watched.madvise(22, 4, MADV_MERGEABLE)
    watched.fork()
    watched.write(24)
    watched.fork()
    page = watched.pfn(24)
    walked = [vma.mm for vma, addr in watched.machine.leader.walk(page)]
    assert walked == [watched.machine.mm_of(pid) for pid in (1, 2, 3)]
    assert at(24) >> LEAF_SHIFT not in watched.machine.mm_of(2).page_table.leaves
    assert merge(watched, 24, 0, AS_FOUND) == 0
    assert [watched.process(pid).entry(24) for pid in (1, 3)] == ["ksm", "ksm"]


def test_a_copy_of_what_ksm_had_merged_belongs_to_who_reads_it_from_swap(watched: Space) -> None:
    """It is no relative of the page in the swap cache, so nobody else can have the copy: walks look nowhere else."""
    machine = watched.machine
    other = watched.stranger()
    other.mmap(1, 20)
    other.write(20)
    child = other.fork()
    child.write(20)
    child.madvise(20, 1, MADV_MERGEABLE)
    assert merge(watched, 0, 20, other_pid=child.pid) == 0
    machine.swap_out(machine.mm_of(1), at(0), 1)
    assert (watched.entry(0), child.entry(20)) == ("swap", "swap")
    watched.read(0)
    child.read(20)
    assert child.entry(20) == "anon" and child.pfn(20) != watched.pfn(0)
    for design in machine.designs:
        if design.name in ("anon_vma", "cow_context"):
            assert [vma.mm for vma, _ in design.walk(child.pfn(20))] == [child.mm], design.name
