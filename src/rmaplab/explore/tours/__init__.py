# SPDX-License-Identifier: GPL-2.0-or-later
"""Guided tours: short histories, and races, with a few sentences per step.

Each tour is a page of its own (NAME.md) that has what happens and the sentences side by side; addresses and sizes are
chosen to be read.  `TOURS` lists those that are histories in the order in which a newcomer would take them, `RACES`
those that are executions of several CPUs: what the race checker found, and bugs of Linux that it finds again.
"""

from __future__ import annotations

from typing import Final

from rmaplab.explore.tours.race import RaceTour, Turn, read_race
from rmaplab.explore.tours.tour import Beat, Tour, read_tour

__all__ = ["RACES", "TOURS", "Beat", "RaceTour", "Tour", "Turn"]

TOURS: Final[dict[str, Tour]] = {
    name: read_tour(name) for name in ("page-life", "fork-copy-fork", "reuse", "mremap", "two-offsets")
}

RACES: Final[dict[str, RaceTour]] = {
    name: read_race(name)
    for name in (
        "race-migration", "race-fork", "race-mremap", "race-mremap-retry", "race-destination-first",
        "race-rmap-locks", "race-first-faults", "race-fork-fault", "race-fresh-anon-vma",
    )
}  # fmt: skip
