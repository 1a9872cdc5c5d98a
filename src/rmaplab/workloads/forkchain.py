# SPDX-License-Identifier: GPL-2.0-or-later
"""Fork, parent exits, and the child does the same: a daemon that detaches, for ever.

Before 7a3ef208e662 (3.19) each generation left an anon_vma behind and the hierarchy grew without
bound.  Since then a child takes over an ancestor's anon_vma that has nobody left.
"""

from __future__ import annotations

from typing import Annotated

from rmaplab.trace.script import PAGE, Script
from rmaplab.workloads.workload import Pages, Processes, Workload, places, says, warm


class ForkChain(Workload, frozen=True, kw_only=True):
    """Each generation writes some of its pages, forks one child, and exits; the last one stays."""

    generations: Annotated[Processes, says("processes, one after the other")] = 500
    vmas: Annotated[Pages, says("VMAs of the first process, one page apart")] = 20
    pages: Annotated[Pages, says("pages per VMA, all written by the first process")] = 16
    writes: Annotated[Pages, says("pages of each VMA that each later generation writes")] = 2

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
