# SPDX-License-Identifier: GPL-2.0-or-later
"""Fork, parent exits, and the child does the same: a daemon that detaches, for ever.

Before 7a3ef208e662 (3.19) each generation left an anon_vma behind and the hierarchy grew without
bound.  Since then a child takes over an ancestor's anon_vma that has nobody left.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from rmaplab.trace.events import Event
from rmaplab.workloads.workload import (
    PAGE,
    Pages,
    Processes,
    Workload,
    fork,
    leave,
    places,
    start,
    warm,
    write,
)


class ForkChain(Workload, frozen=True, kw_only=True):
    """Each generation writes some of its pages, forks one child, and exits; the last one stays."""

    parameters: ClassVar[dict[str, str]] = {
        "generations": "processes in all",
        "vmas": "VMAs of the first process, one page apart",
        "pages": "pages a VMA, all written by the first process",
        "writes": "pages of each VMA that each later generation writes",
    }

    generations: Processes = 500
    vmas: Pages = 20
    pages: Pages = 16
    writes: Pages = 2

    def span(self) -> int:
        return self.vmas * (self.pages + 1) * PAGE

    def events(self) -> Iterator[Event]:
        areas = places(self.vmas, self.pages)
        yield start(1)
        yield from warm(1, areas, self.pages)
        for pid in range(1, self.generations):
            child = pid + 1
            yield fork(pid, child)
            yield leave(pid)
            for area in areas:
                yield write(child, area, min(self.writes, self.pages))
