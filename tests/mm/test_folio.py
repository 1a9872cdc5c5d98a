# SPDX-License-Identifier: GPL-2.0-or-later
"""Folios: runs are like one by one, rows are never handed out twice, large folios are aligned."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmaplab.mm.folio import FOLIO_ANON, FOLIO_KSM, MAX_ORDER, Folios


def state(folios: Folios) -> tuple[object, ...]:
    n = folios.rows
    columns = (folios.head, folios.order, folios.flags, folios.mapcount, folios.index)
    return (
        n,
        folios.in_use,
        folios.peak,
        folios.allocated,
        *(column.v[:n].tolist() for column in columns),
    )


@given(st.lists(st.tuples(st.sampled_from(("alloc", "free")), st.integers(1, 40)), max_size=40), st.integers(0, 99))
def test_runs_leave_the_state_that_one_by_one_leaves(work: list[tuple[str, int]], seed: int) -> None:
    rng = random.Random(seed)
    runs, singles = Folios(1024), Folios(1024)
    live: list[int] = []
    for what, count in work:
        if what == "alloc":
            index = rng.randrange(1 << 40)
            got = runs.alloc_run(np.arange(index, index + count)).tolist()
            assert got == [singles.alloc(index + i) for i in range(count)]
            live += got
        else:
            rng.shuffle(live)
            gone, live = live[:count], live[count:]
            runs.free_run(np.array(gone, dtype=np.int64))
            for pfn in gone:
                singles.free(pfn)
        assert state(runs) == state(singles)


@pytest.mark.parametrize("seed", range(4))
def test_no_row_is_in_two_folios(seed: int) -> None:
    rng = random.Random(seed)
    folios = Folios(600)
    mine = folios.column(np.int64)
    held: dict[int, int] = {}
    for _ in range(400):
        if rng.random() < 0.6:
            order = rng.choice((0, 0, 0, 1, 2, 4, MAX_ORDER))
            index = rng.randrange(1 << 40)
            head = folios.alloc_large(index, order) if order else folios.alloc(index)
            size = 1 << order
            assert head % size == 0
            assert head > 0
            for pfn in range(head, head + size):
                assert pfn not in held
                held[pfn] = head
                assert folios.head.m[pfn] == head
                assert folios.index.m[pfn] == index + pfn - head
                assert folios.flags.m[pfn] == FOLIO_ANON
            mine.v[head : head + size] = index
        elif held:
            head = held[rng.choice(sorted(held))]
            size = folios.nr_pages(head)
            folios.free(head)
            for pfn in range(head, head + size):
                del held[pfn]
        assert folios.in_use == len(held)
        assert sorted(held) == folios.live().tolist()
    assert folios.peak >= folios.in_use


def test_a_designs_column_grows_with_the_rows() -> None:
    folios = Folios(600)
    mine = folios.column(np.int64)
    first = folios.alloc(1)
    mine.m[first] = 77
    folios.alloc_run(np.arange(2, 5002))
    assert len(mine.v) == folios.rows >= 5512
    assert mine.m[first] == 77


def test_a_split_folio_keeps_what_its_pages_know() -> None:
    folios = Folios()
    head = folios.alloc_large(1000, 3)
    folios.mapcount.v[head : head + 8] = range(8)
    folios.set_flag(head, FOLIO_KSM)
    assert folios.total_mapcount(head) == 28
    folios.split(head)
    for i in range(8):
        assert folios.nr_pages(head + i) == 1
        assert folios.head.m[head + i] == head + i
        assert folios.index.m[head + i] == 1000 + i
        assert folios.total_mapcount(head + i) == i
        assert folios.flags.m[head + i] == FOLIO_ANON | FOLIO_KSM
    folios.clear_flag(head + 1, FOLIO_KSM)
    assert folios.flags.m[head + 1] == FOLIO_ANON
    assert folios.flags.m[head + 2] == FOLIO_ANON | FOLIO_KSM


def test_a_page_takes_few_bytes() -> None:
    folios = Folios()
    assert sum(column.v.itemsize for column in folios.columns) + folios._free.v.itemsize <= 24
