# SPDX-License-Identifier: GPL-2.0-or-later
"""The answer of a walk: where each design looks for a page, and which of these places map it.

Invariant: an answer is of the moment at which it was asked for, and asking counts nothing in the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from rmaplab.explore.notebook import draw_walk
from rmaplab.library.memory import Page
from rmaplab.measure.figures import Work
from rmaplab.trace.script import Process


class Place(NamedTuple):
    """Where a walk looks for a page.

    process: in whose address space; with CLONE_VM, the first of its processes
    address: in bytes
    maps:    whether the entry there maps the page
    """

    process: Process
    address: int
    maps: bool

    def __repr__(self) -> str:
        return f"({self.process!r}, {self.address:#x}, {self.maps})"


class Walk(dict[str, list[Place]]):
    """The places that each design visits, in the order of its walk.

    page: the page that was looked for
    work: what each design counted on the way: tallies, and locks taken
    """

    def __init__(self, page: Page, places: Mapping[str, list[Place]], work: Mapping[str, Work]) -> None:
        super().__init__(places)
        self.page: Final = page
        self.work: Final = dict(work)

    def __str__(self) -> str:
        lines = [str(self.page)]
        for name, places in self.items():
            hits = sum(place.maps for place in places)
            lines.append(f"  {name} visits {len(places)}, {hits} of which {'maps' if hits == 1 else 'map'} it")
            lines += [f"    {number}. {self._words(place)}" for number, place in enumerate(places, 1)]
            lines.append(f"    {self.counted(name)}")
        return "\n".join(lines)

    def counted(self, design: str) -> str:
        """What the walk of `design` took, in words."""
        work = self.work[design]
        taken = [lock for lock in work.locks if lock.writes or lock.reads]
        took = [f"{lock.lock} {'exclusive' if lock.writes else 'shared'}" for lock in taken]
        tallies = [f"{name} {count:,}" for name, count in work.tallies.items() if count]
        return f"locks: {', '.join(took) or 'none'}; counted: {', '.join(tallies) or 'nothing'}"

    def _words(self, place: Place) -> str:
        return f"process {place.process.pid} at {place.address:#x}: {'maps it' if place.maps else 'does not map it'}"

    def _repr_svg_(self) -> str:
        rows: list[tuple[str, list[tuple[str, bool]], str]] = []
        for name, places in self.items():
            boxes = [(f"process {place.process.pid} {place.address:#x}", place.maps) for place in places]
            rows.append((name, boxes, self.counted(name)))
        return draw_walk(str(self.page), rows)
