# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors other than Linux's own, which are results (negative errno)."""

from __future__ import annotations

from rmaplab.errors import CannotRun


class HistoryError(CannotRun):
    """The history asks for something that cannot have happened (a child unknown, a fault outside any
    VMA), or the library was misused.  The message says what was wrong and what would be right."""


class InvariantError(AssertionError):
    """An invariant of the machine or of a design does not hold.  The message shows where."""
