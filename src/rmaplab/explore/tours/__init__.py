# SPDX-License-Identifier: GPL-2.0-or-later
"""Guided tours: short histories with a few sentences a step.

Each tour is a file that has its events and its sentences side by side; addresses and sizes are chosen to be
read.  `TOURS` lists them in the order in which a newcomer would take them, and `RACES` those that are executions of
several CPUs instead of histories.
"""

from __future__ import annotations

from typing import Final

from rmaplab.explore.tours import fork_copy_fork, mremap_home, page_life, races, reuse, two_offsets
from rmaplab.explore.tours.race import RaceTour, Turn
from rmaplab.explore.tours.tour import Beat, Tour

__all__ = ["RACES", "TOURS", "Beat", "RaceTour", "Tour", "Turn"]

TOURS: Final[dict[str, Tour]] = {
    tour.name: tour
    for tour in (page_life.TOUR, fork_copy_fork.TOUR, reuse.TOUR, mremap_home.TOUR, two_offsets.TOUR)
}

RACES: Final[dict[str, RaceTour]] = {tour.name: tour for tour in races.RACES}
