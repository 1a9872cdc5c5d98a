# SPDX-License-Identifier: GPL-2.0-or-later
"""Hypothesis strategies for histories (extra `test`).

    @given(histories(steps=40))
    def test_...(history: list[Event]) -> None: ...

The author's choices are drawn by Hypothesis, so that a failing history shrinks to few and simple events.
"""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from rmaplab.check.histories import OPERATIONS, random_history
from rmaplab.mm.profile import REFERENCE
from rmaplab.trace.events import Event


def histories(
    steps: int = 40, ops: Sequence[str] = OPERATIONS, pages: int = 24, kernel: str = REFERENCE
) -> SearchStrategy[list[Event]]:
    """Histories of up to `steps` events (see check/histories.py)."""
    return st.builds(
        lambda rng, length: random_history(rng, length, ops=ops, pages=pages, kernel=kernel),
        st.randoms(use_true_random=False),
        st.integers(1, steps),
    )
