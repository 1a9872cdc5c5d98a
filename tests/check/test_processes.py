# SPDX-License-Identifier: GPL-2.0-or-later
"""Work in parts, done by one process or several."""

from __future__ import annotations

import os

import pytest

from rmaplab.check.processes import side_by_side
from rmaplab.errors import CannotRun


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_in_the_order_of_the_parts(jobs: int) -> None:
    told: list[tuple[int, int]] = []
    parts = [-3, 2, -1]
    assert side_by_side(abs, parts, jobs, lambda done, total: told.append((done, total)), abs) == [3, 2, 1]
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_worker_that_dies_is_one_sentence() -> None:
    with pytest.raises(CannotRun, match="a worker process died"):
        side_by_side(os._exit, [1, 1], 2, lambda done, total: None)


def test_what_a_part_raises_is_raised() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        side_by_side(int, ["1", "one"], 2, lambda done, total: None)
