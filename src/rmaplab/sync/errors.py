# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors that a checking scheduler raises."""

from __future__ import annotations


class Finding(AssertionError):
    """An execution broke a rule that holds for all code: a deadlock, a use after free, a lock that is given
    back by who does not hold it.  The message says who did what to which object."""
