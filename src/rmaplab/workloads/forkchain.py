# SPDX-License-Identifier: GPL-2.0-or-later
"""Fork, parent exits, and the child does the same: a daemon that detaches, for ever.

Before 7a3ef208e662 (3.19) each generation left an anon_vma behind and the hierarchy grew without
bound.  Since then a child takes over an ancestor's anon_vma that has nobody left.
"""

from __future__ import annotations

from typing import ClassVar

from rmaplab.trace.script import PAGE, Script
from rmaplab.workloads.workload import Pages, Processes, Workload, places, warm


class ForkChain(Workload, frozen=True, kw_only=True):
    """Each generation writes some of its pages, forks one child, and exits; the last one stays."""

    parameters: ClassVar[dict[str, str]] = {
        "generations": "processes, one after the other",
        "vmas": "VMAs of the first process, one page apart",
        "pages": "pages per VMA, all written by the first process",
        "writes": "pages of each VMA that each later generation writes",
    }

    generations: Processes = 500
    vmas: Pages = 20
    pages: Pages = 16
    writes: Pages = 2

    def span(self) -> int:
        return self.vmas * (self.pages + 1) * PAGE

    def tell(self, script: Script) -> None:
        areas = places(self.vmas, self.pages)
        process = script.spawn()
        warm(process, areas, self.pages)
        for _ in range(1, self.generations):
            child = process.fork()
            process.exit()
            for area in areas:
                child.write(area, min(self.writes, self.pages) * PAGE)
            process = child
