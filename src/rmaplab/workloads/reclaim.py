# SPDX-License-Identifier: GPL-2.0-or-later
"""A reclaimer among processes that fork, copy, move and exit: the reverse map's own customers at work.

Between the acts of a server and its workers a reclaimer asks which pages were referenced, swaps some out
and migrates others; later faults bring them back, also those that several processes had shared.
"""

from __future__ import annotations

from random import Random
from typing import Annotated

from rmaplab.trace.script import PAGE, Script
from rmaplab.workloads.workload import AWAY, Count, Pages, Percent, Processes, Workload, places, says, warm


class Reclaim(Workload, frozen=True, kw_only=True):
    """Walks by a reclaimer (referenced, swap_out, migrate) among faults, forks, moves and exits."""

    processes: Annotated[Processes, says("processes that run at the same time, all forked from the first")] = 16
    steps: Annotated[Count, says("acts; a third of them is the reclaimer's")] = 3000
    vmas: Annotated[Pages, says("VMAs of the first process, one page apart, all faulted")] = 32
    pages: Annotated[Pages, says("pages per VMA")] = 64
    scan: Annotated[Pages, says("pages that the reclaimer looks at in one act")] = 16
    moved: Annotated[Percent, says("percent of the VMAs that the first process moved away before it forked")] = 25

    def span(self) -> int:
        return self.vmas * (self.pages + 1) * PAGE

    def tell(self, script: Script) -> None:
        random = Random(self.seed)
        step = (self.pages + 1) * PAGE
        areas = list(places(self.vmas, self.pages))
        server = script.spawn()
        warm(server, areas, self.pages)
        for i in range(self.vmas * self.moved // 100):
            areas[i] = server.mremap(areas[i], self.pages * PAGE, to=AWAY + i * step)
        workers = [server.fork() for _ in range(self.processes - 1)]

        def somewhere(at_most: int) -> tuple[int, int]:
            first = random.randrange(self.pages)
            addr = random.choice(areas) + first * PAGE
            return addr, random.randint(1, min(at_most, self.pages - first)) * PAGE

        for act in range(self.steps):
            process = random.choice([server, *workers])
            if act % 3 == 0:
                random.choice((process.referenced, process.swap_out, process.migrate))(*somewhere(self.scan))
            elif act % 50 == 1 and workers:
                i = random.randrange(len(workers))
                workers[i].exit()
                workers[i] = server.fork()
            elif random.randrange(2):
                process.read(*somewhere(8))
            else:
                process.write(*somewhere(8))
