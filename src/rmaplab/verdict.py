# SPDX-License-Identifier: GPL-2.0-or-later
"""When something may be said to hold: only if it was looked at.

A filter, a sample, a name, a time limit or a bound can leave nothing to look at, and nothing wrong is found there.  So
whatever comes to a verdict counts what it looked at, and asks here: over nothing there is no verdict.
"""

from __future__ import annotations

from rmaplab.errors import CannotRun


class NothingLookedAt(CannotRun):
    """What was asked for leaves nothing to look at, so nothing can be said about it."""


def judge(looked_at: int, wrong: bool, nothing: str) -> bool:
    """Whether what was looked at holds.

    looked_at: how many things were
    wrong:     whether something about them, or found on the way to them, does not hold
    nothing:   a clause for the case that there was none: why, and what to do

    >>> judge(3, False, "no scenario was tried")
    True

    :raises NothingLookedAt: there was nothing, and nothing is wrong
    """
    if not wrong and looked_at <= 0:
        raise NothingLookedAt(f"{nothing}; a verdict over nothing is none")
    return not wrong
