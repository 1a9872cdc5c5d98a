# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes of one family, or of none, that fork and exit in a loop.

The measurement in docs/kernels/rules.md, section 7: processes with some hundred faulted VMAs fork and exit in a loop.
Forked from one zygote, each of their VMAs belongs to a hierarchy whose root lock all of them need, at each fork and at
each exit; unrelated, none of them shares anything.
"""

from __future__ import annotations

from typing import Annotated

from rmaplab.trace.script import PAGE, Script
from rmaplab.workloads.workload import Count, Flag, Pages, PerCpu, Workload, family, places, says, warm


class Storm(Workload, frozen=True, kw_only=True):
    """Processes fork children that write a little and exit, over and over."""

    processes: Annotated[
        PerCpu, says("processes that fork, all at the same time (0: one for each CPU, 2 where nobody counts CPUs)")
    ] = 0
    related: Annotated[Flag, says("1: they were forked from one zygote; 0: each made its memory itself")] = 1
    rounds: Annotated[Count, says("children that each of them forks, one after the other")] = 10
    vmas: Annotated[Pages, says("VMAs of each, one page apart, all faulted")] = 100
    pages: Annotated[Pages, says("pages per VMA")] = 4
    writes: Annotated[Count, says("VMAs of which a child writes one page before it exits")] = 10

    def span(self) -> int:
        return self.vmas * (self.pages + 1) * PAGE

    def tell(self, script: Script) -> None:
        areas = places(self.vmas, self.pages)
        zygote = script.spawn()
        if self.related:
            warm(zygote, areas, self.pages)
        parents = family(zygote, self.processes or 2, bool(self.related), areas, self.pages)
        zygote.mark()
        for turn in range(self.rounds):
            for parent in parents:
                child = parent.fork()
                for i in range(min(self.writes, self.vmas)):
                    child.write(areas[(i + turn) % self.vmas])
                child.exit()
