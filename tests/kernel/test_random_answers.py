# SPDX-License-Identifier: GPL-2.0-or-later
"""The model gives the answers that real kernels gave to random histories (random_answers/), step by step.

If the model was wrong and is right now, a file that says otherwise cannot be: it has a kernel's own words.  To let the
kernels answer again, or new kernels: scripts/ask_kernels.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kernel.fixture_files import random_differs, random_histories
from rmaplab.check import mutants
from rmaplab.mm.reverse_map import ReverseMap

ANSWERS = {
    (path.stem, seed): lines
    for path in sorted((Path(__file__).parent / "random_answers").glob("*.txt"))
    for seed, lines in random_histories(path).items()
}


@pytest.mark.parametrize(("version", "seed"), ANSWERS)
def test_the_model_goes_where_the_kernel_went(version: str, seed: str) -> None:
    assert random_differs(ANSWERS[version, seed]) == ""


@pytest.mark.parametrize(
    "design", [mutants.KeyTooShort, mutants.NeverTakenOver, mutants.AnchorNotMigrated, mutants.SwappedInAsOwn]
)
def test_a_bug_that_is_put_back_goes_elsewhere(design: type[ReverseMap]) -> None:
    assert any(_differs(lines, design) for lines in ANSWERS.values())


def _differs(lines: list[str], design: type[ReverseMap]) -> bool:
    try:
        return random_differs(lines, design) != ""
    except Exception:  # a broken design may not even get to the end
        return True
