# SPDX-License-Identifier: GPL-2.0-or-later
"""The work of a comparison as time: the counts of the machine and of each design, priced by a cost profile.

It is the time of one CPU without contention.  Virtual time covers several CPUs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from rmaplab.measure.cost import CostProfile, Time, counts_of_work, price
from rmaplab.measure.figures import DesignFigures, MachineFigures, Objects


class DesignTime(msgspec.Struct, frozen=True):
    """What a design's work takes: for the history, and for the checker's walks (`walk_work`).

    visits: what any user of the reverse map does besides in as many walks of as many places: take the folio, and
            look into the page table of each place.  It depends on the design by the number of places only
    """

    design: str
    history: Time
    walks: Time
    visits: Time

    @property
    def whole_walks(self) -> float:
        """Nanoseconds of the walks and of what they are for."""
        return self.walks.ns + self.visits.ns


class Times(msgspec.Struct, frozen=True):
    """Derived times, nanoseconds.

    costs, kernel, machine_measured: the profile, and what it was measured on
    machine: work that is no design's, for the history
    """

    costs: str
    kernel: str
    machine_measured: str
    machine: Time
    designs: list[DesignTime]


def times(costs: CostProfile, machine: MachineFigures, designs: Sequence[DesignFigures]) -> Times:
    """Price what was counted."""
    return Times(
        costs=costs.name,
        kernel=costs.kernel,
        machine_measured=costs.machine,
        machine=price(costs, counts_of_work(machine.work, _live(machine.objects))),
        designs=[
            DesignTime(
                design.design,
                price(costs, counts_of_work(design.work, _live(design.objects))),
                price(costs, counts_of_work(design.walk_work)),
                price(costs, _visits(design)),
            )
            for design in designs
        ],
    )


def _visits(design: DesignFigures) -> dict[str, int]:
    walks = design.walks
    return {
        "rmap walks": walks.walks,
        "rmap places visited": walks.places,
        "rmap places that mapped": walks.useful,
    }


def _live(objects: Iterable[Objects]) -> dict[str, int]:
    return {o.type: o.at_end for o in objects}
