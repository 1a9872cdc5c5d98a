# SPDX-License-Identifier: GPL-2.0-or-later
"""Folios of 2 MiB that one entry maps: what makes them, what splits them, and what all of them at once goes through."""

from __future__ import annotations

import pytest

from rmaplab.check.truth import Truth, invariants
from rmaplab.mm import abi
from rmaplab.mm.folio import MAX_ORDER
from rmaplab.mm.pagetable import LEAF_SHIFT, PTE_EXCLUSIVE, PTE_WRITE
from rmaplab.mm.profile import PROFILES
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.rmap.cow_context import CowContextRmap
from rmaplab.rmap.lineage import LineageRmap
from rmaplab.rmap.pte_chain import PteChainRmap
from world import Process, World

ARENA = 0x10_0000_0000
WHOLE = 512  # pages
KEEP = abi.MREMAP_MAYMOVE | abi.MREMAP_FIXED | abi.MREMAP_DONTUNMAP


def begin(version: str = "7.3", large_folios: int = MAX_ORDER) -> Process:
    """A process with 4 MiB, at pages 0 to 1023."""
    designs = (AnonVmaRmap, CowContextRmap, PteChainRmap) + ((LineageRmap,) if version == "7.3" else ())
    world = World(*designs, profile=PROFILES[version], large_folios=large_folios)
    process = world.spawn().in_pages(ARENA)
    process.mmap(2 * WHOLE, at=0)
    return process


def huge(process: Process, page: int) -> bool:
    """Does one entry map the 2 MiB?  Asked after everything else was checked."""
    assert invariants(process.machine, Truth(process.machine)) == []
    return process.mm.page_table.is_huge(process.address(page))


def test_a_write_maps_2_mib_where_they_fit() -> None:
    process = begin()
    process.write(5)
    assert huge(process, 5) and process.pfn(511) == process.pfn(0) + 511
    process.munmap(1000, 24)
    process.write(600)
    assert not huge(process, 600)


def test_only_folios_of_2_mib_are_mapped_so() -> None:
    process = begin(large_folios=4)
    process.write(5)
    assert not huge(process, 5)


def test_before_other_sizes_came_what_does_not_fit_is_a_page() -> None:
    process = begin("6.1")
    process.munmap(1000, 24)
    process.write(600)
    assert process.machine.folios.nr_pages(process.pfn(600)) == 1


def test_advice_against_huge_pages_is_heard() -> None:
    process = begin()
    process.madvise(0, WHOLE, abi.MADV_NOHUGEPAGE)
    process.write(5)
    assert not huge(process, 5)


def test_a_read_maps_the_zero_page_of_2_mib_and_prepares_the_vma() -> None:
    process = begin()
    process.read(5)
    assert huge(process, 5) and process.entry(511) == "zero" and process.vma(0).prepared


@pytest.mark.parametrize(("version", "whole"), [("7.3", True), ("6.12", False), ("6.1", False)])
def test_a_write_to_that_zero_page_gets_2_mib_or_splits_it(version: str, whole: bool) -> None:
    process = begin(version)
    process.read(5)
    process.write(6)
    assert huge(process, 5) == whole
    assert process.entry(6) == "anon" and process.entry(511) == ("anon" if whole else "zero")


def test_fork_shares_it_whole_and_a_write_splits_it_on_the_side_of_the_writer() -> None:
    parent = begin()
    parent.write(0)
    child = parent.fork()
    assert huge(child, 0) and parent.mapcount(3) == 2 and not parent.has(PTE_WRITE, 3)
    child.write(3)
    assert huge(parent, 0) and not huge(child, 0)
    assert child.pfn(3) != parent.pfn(3) and child.pfn(4) == parent.pfn(4)


def test_who_alone_has_it_takes_it_over_whole() -> None:
    parent = begin()
    parent.write(0)
    child = parent.fork()
    page = parent.pfn(0)
    parent.exit()
    child.write(3)
    assert huge(child, 3) and child.pfn(0) == page and child.has(PTE_EXCLUSIVE, 511)


def test_a_folio_counts_such_an_entry_once() -> None:
    parent = begin()
    parent.write(0)
    ids = parent.machine.mm_ids[parent.pfn(0)]
    assert ids.mapcount == 1
    child = parent.fork()
    child.munmap(0, 12)
    assert ids.slots() == [(parent.mm.id, 1), (child.mm.id, 500)] and ids.shared


@pytest.mark.parametrize(
    "cut",
    [
        lambda process: process.munmap(100, 5), lambda process: process.mprotect(100, 5, abi.PROT_READ),
        lambda process: process.mlock(100, 5), lambda process: process.madvise(100, 5, abi.MADV_DONTFORK),
        lambda process: process.madvise(100, 5, abi.MADV_DONTNEED), lambda process: process.mremap(100, 5, to=5000),
    ],
    ids=["munmap", "mprotect", "mlock", "MADV_DONTFORK", "MADV_DONTNEED", "mremap"],
)  # fmt: skip
def test_what_is_done_to_a_part_splits_the_entry_and_not_the_folio(cut: object) -> None:
    process = begin()
    process.write(0)
    assert callable(cut)
    cut(process)
    assert not huge(process, 0)
    assert process.machine.folios.order.m[process.pfn(0)] == MAX_ORDER and process.has(PTE_EXCLUSIVE, 511)


def test_dropped_whole_it_makes_room_for_another() -> None:
    process = begin()
    process.write(0)
    process.madvise(0, WHOLE, abi.MADV_DONTNEED)
    assert process.address(0) >> LEAF_SHIFT not in process.mm.page_table.leaves
    process.write(0)
    assert huge(process, 0)


@pytest.mark.parametrize(("version", "whole"), [("7.3", True), ("6.12", False)])
def test_a_leaf_that_is_emptied_makes_room_where_the_kernel_frees_it(version: str, whole: bool) -> None:
    process = begin(version)
    process.write(0)
    process.madvise(5, 1, abi.MADV_DONTNEED)
    process.madvise(0, WHOLE, abi.MADV_DONTNEED)
    process.write(0)
    assert huge(process, 0) == whole


def test_moved_by_2_mib_it_stays_whole_and_else_it_is_split() -> None:
    process = begin()
    process.write(0)
    process.write(WHOLE)
    process.mremap(0, WHOLE, to=8 * WHOLE)
    process.mremap(WHOLE, WHOLE, to=16 * WHOLE + 1)
    assert huge(process, 8 * WHOLE) and process.has(PTE_WRITE, 8 * WHOLE + 5)
    assert not huge(process, 17 * WHOLE) and process.entry(16 * WHOLE + 1) == "anon"


@pytest.mark.parametrize(("version", "below", "whole"), [("7.3", 0, True), ("7.3", 10, False), ("6.1", 0, False)])
def test_a_leaf_is_gone_with_all_that_is_mapped_there(version: str, below: int, whole: bool) -> None:
    process = begin(version)
    process.munmap(below, 100 - below)
    process.write(100)
    process.mremap(100, 900, to=4 * WHOLE + 100, flags=KEEP)
    process.mmap(100 - below, at=below)
    process.write(0)
    assert huge(process, 0) == whole
    assert process.entry(4 * WHOLE + 100) == "anon"


def test_migrated_it_stays_whole_for_all_who_map_it() -> None:
    parent = begin()
    parent.write(0)
    child = parent.fork()
    page = parent.pfn(0)
    assert parent.machine.migrate(parent.mm, parent.address(7), 1) == WHOLE
    assert huge(parent, 0) and huge(child, 0) and parent.pfn(0) == child.pfn(0) != page


def test_swap_takes_its_pages_one_by_one() -> None:
    process = begin()
    process.write(0)
    process.madvise(0, WHOLE, abi.MADV_PAGEOUT)
    assert not huge(process, 0) and process.entry(0) == process.entry(511) == "swap"


@pytest.mark.parametrize("advice", [abi.MADV_PAGEOUT, abi.MADV_FREE, abi.MADV_COLD])
def test_advice_leaves_it_alone_while_it_is_shared(advice: int) -> None:
    parent = begin()
    parent.write(0)
    child = parent.fork()
    for pages in (5, WHOLE):
        child.madvise(0, pages, advice)
    assert huge(parent, 0) and huge(child, 0)


def test_a_look_at_who_uses_it_sees_one_entry() -> None:
    parent = begin()
    parent.write(0)
    parent.fork().read(1)
    assert parent.machine.referenced(parent.mm, parent.address(0), 1) == 1


def test_uffdio_move_takes_it_whole_or_splits_the_folio() -> None:
    process = begin()
    process.mmap(2 * WHOLE, at=8 * WHOLE)
    process.write(0)
    process.write(WHOLE)
    assert process.uffd_move(8 * WHOLE, 0, WHOLE) == WHOLE << 12
    process.uffd_move(9 * WHOLE, WHOLE, 1)
    assert huge(process, 8 * WHOLE) and process.entry(0) == ""
    assert not huge(process, WHOLE) and process.machine.folios.nr_pages(process.pfn(9 * WHOLE)) == 1
    assert process.entry(WHOLE + 1) == "zero"  # never written to
