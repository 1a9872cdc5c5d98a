# SPDX-License-Identifier: GPL-2.0-or-later
"""What a campaign raises."""

from __future__ import annotations

from rmaplab.errors import CannotRun


class SweepError(CannotRun):
    """A specification, a directory of results or a cluster that cannot be used; the message says what to do."""
