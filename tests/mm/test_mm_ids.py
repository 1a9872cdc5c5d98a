# SPDX-License-Identifier: GPL-2.0-or-later
"""Which address spaces a large folio remembers, and what follows from it (include/linux/rmap.h, mm/memory.c)."""

from __future__ import annotations

import pytest

from mm.space import begin
from rmaplab.mm.abi import MADV_COLD, MADV_FREE, MADV_PAGEOUT
from rmaplab.mm.mm_ids import MmIds
from rmaplab.rmap.anon_vma import AnonVmaRmap


def test_a_third_address_space_is_not_counted_and_keeps_the_folio_shared() -> None:
    ids = MmIds()
    ids.add(1, 16)
    assert not ids.shared
    ids.add(2, 16)
    ids.add(3, 16)
    assert ids.slots() == [(1, 16), (2, 16)] and ids.mapcount == 48
    ids.sub(1, 16)
    ids.sub(2, 16)
    assert ids.slots() == [] and ids.shared  # 3 maps it alone, and nobody knows
    ids.sub(3, 8)
    assert ids.shared
    ids.sub(3, 8)
    assert not ids.shared


def test_a_slot_that_is_free_goes_to_who_maps_more_and_may_count_too_little() -> None:
    ids = MmIds()
    ids.add(1, 4)
    ids.add(2, 4)
    ids.add(3, 4)
    ids.sub(1, 4)
    ids.add(3, 1)
    assert ids.slots() == [(3, 1), (2, 4)]
    ids.sub(3, 2)  # takes more than was counted
    assert ids.slots() == [(2, 4)] and ids.shared
    ids.sub(3, 3)
    assert not ids.shared


@pytest.mark.parametrize(("kernel", "copies"), [("6.12", 1), ("7.3", 0)])
def test_a_large_folio_that_is_ones_alone_again_is_reused_since_6_15(kernel: str, copies: int) -> None:
    space = begin(kernel, large_folios=3)
    space.mmap(8, 0)
    space.write(0)
    child = space.fork()
    folio = space.pfn(0)
    space.exit()
    before = space.machine.pages_copied.count
    child.write(5)
    assert space.machine.pages_copied.count - before == copies
    assert (child.pfn(5) == folio + 5) is (copies == 0)
    space.close()


def test_a_large_folio_that_is_reused_stays_where_the_ancestor_had_it() -> None:
    space = begin("7.3", large_folios=3)
    space.mmap(8, 0)
    space.write(0)
    child = space.fork()
    space.exit()
    design = space.machine.leader
    assert isinstance(design, AnonVmaRmap)
    anchor = design.anchor.m[child.pfn(5)]
    child.write(5)
    assert design.anchor.m[child.pfn(5)] == anchor
    space.close()


def test_of_the_last_page_of_a_large_folio_a_write_makes_a_copy() -> None:
    space = begin("7.3", large_folios=3)
    space.mmap(8, 0)
    space.write(0)
    child = space.fork()
    child.exit()
    space.munmap(1, 7)
    page = space.pfn(0)
    space.write(0)
    assert space.pfn(0) != page
    space.close()


@pytest.mark.parametrize(("kernel", "order"), [("6.12", 0), ("7.3", 3)])
def test_advice_to_a_part_asks_who_maps_the_folio(kernel: str, order: int) -> None:
    space = begin(kernel, large_folios=3)
    space.mmap(8, 0)
    space.write(0, 8)
    child = space.fork()
    space.munmap(0, 4)
    child.munmap(4, 4)
    space.madvise(4, 2, MADV_COLD)  # 8 entries, the first page in one: before 6.15 that passes for one's alone
    assert space.machine.folios.order.m[space.pfn(6)] == order
    space.close()


@pytest.mark.parametrize(("kernel", "left"), [("6.12", [2, 3, 4, 5, 6, 7]), ("7.3", [0, 1, 2, 3, 4, 5, 6, 7])])
def test_what_was_freed_goes_in_batches_since_7_2(kernel: str, left: list[int]) -> None:
    space = begin(kernel, large_folios=3)
    space.mmap(8, 0)
    space.write(0, 8)
    space.madvise(0, 8, MADV_FREE)
    space.write(2)
    space.madvise(0, 8, MADV_PAGEOUT)
    assert [page for page in range(8) if space.entry(page) != ""] == left
    space.close()
