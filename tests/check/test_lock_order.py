# SPDX-License-Identifier: GPL-2.0-or-later
"""The order in which locks may be taken, after the comment at the top of mm/rmap.c."""

from __future__ import annotations

import pytest

from rmaplab.check.lock_order import AGAINST, NESTING, ORDER, Pair, complaints, cycle, out_of_order
from rmaplab.check.race import lock_complaints, run
from rmaplab.mm.vma import VMA
from rmaplab.rmap.cow_context import CowContextRmap
from rmaplab.sync.locks import SpinLock


def test_what_is_in_order_is_not_complained_of() -> None:
    pairs = [(held, taken) for i, held in enumerate(ORDER) for taken in ORDER[i + 1 :]]
    assert complaints(pairs) == []
    assert complaints([(lock, lock) for lock in NESTING]) == []
    assert complaints([*AGAINST]) == []
    assert all("circle" in said for pair in AGAINST for said in complaints([pair, pair[::-1]]))
    assert complaints([("folio lock", "some design's lock"), ("some design's lock", "page_table_lock")]) == []


@pytest.mark.parametrize(
    "pair",
    [
        ("page_table_lock", "anon_vma root rwsem"),
        ("anon_vma root rwsem", "folio lock"),
        ("vma_lock", "mmap_lock"),
        ("folio lock", "mmap_lock"),
        ("cow_context lock", "vma_lock"),
        ("anon_vma root rwsem", "anon_vma root rwsem"),
        ("page map lock", "page_table_lock"),
        ("page map lock", "anonmm head lock"),
    ],
)
def test_what_is_out_of_order_is_named(pair: Pair) -> None:
    assert out_of_order([pair, ("mmap_lock", "page_table_lock")]) == [pair]
    assert pair[1] in complaints([pair])[0]


def test_a_circle_of_a_designs_own_locks_is_found() -> None:
    assert cycle([("one", "two"), ("two", "three"), ("three", "one")]) == ["one", "two", "three", "one"]
    assert cycle([("one", "two"), ("one", "three"), ("two", "three"), ("one", "one")]) == []


class LocksASpaceOfItsOwn(CowContextRmap):
    """A design that takes a lock of the class of mmap_lock when a VMA is forked, with VMAs locked."""

    name = "an address space locked under locked VMAs"

    def vma_forked(self, parent: VMA, child: VMA) -> None:
        super().vma_forked(parent, child)
        lock = SpinLock(self.ledger.lock_class("mmap_lock"), self.scheduler)
        lock.lock()
        lock.unlock()


def test_a_design_that_locks_against_the_order_is_found_though_nothing_waits_for_ever() -> None:
    verdict = run("referenced / fork", LocksASpaceOfItsOwn)
    assert verdict.holds
    assert lock_complaints([verdict]) == [
        f"{verdict.design}: mmap_lock is taken while vma_lock is held: mm/rmap.c has them the other way round",
        f"{verdict.design}: locks are taken in a circle: mmap_lock -> vma_lock -> mmap_lock",
    ]
