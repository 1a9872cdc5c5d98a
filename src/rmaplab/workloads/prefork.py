# SPDX-License-Identifier: GPL-2.0-or-later
"""A server that forks its workers first and lets them serve, as Apache or PostgreSQL do.

Workers copy the pages that they write while the parent goes on writing its own, so pages of the same
VMA belong to different generations; workers are replaced after a number of requests.
"""

from __future__ import annotations

from random import Random
from typing import Annotated

from rmaplab.trace.script import PAGE, Script
from rmaplab.workloads.workload import PRIVATE, Count, Pages, Processes, Workload, places, says, warm


class Prefork(Workload, frozen=True, kw_only=True):
    """Workers copy pages while their parent goes on, and are replaced now and then."""

    workers: Annotated[Processes, says("workers that run at the same time")] = 32
    requests: Annotated[Count, says("requests served by all workers together")] = 4000
    lifetime: Annotated[Processes, says("requests after which a worker is replaced")] = 100
    vmas: Annotated[Pages, says("VMAs of the server, one page apart, all faulted")] = 50
    pages: Annotated[Pages, says("pages per VMA")] = 64
    scratch: Annotated[Pages, says("pages that a request maps, writes and unmaps")] = 8

    def span(self) -> int:
        return self.vmas * (self.pages + 1) * PAGE

    def tell(self, script: Script) -> None:
        random = Random(self.seed)
        areas = places(self.vmas, self.pages)
        scratch = self.scratch * PAGE

        def somewhere() -> tuple[int, int]:
            """A run of at most four pages in one of the server's VMAs."""
            first = random.randrange(self.pages)
            addr = areas[random.randrange(self.vmas)] + first * PAGE
            return addr, random.randint(1, min(4, self.pages - first)) * PAGE

        server = script.spawn()
        warm(server, areas, self.pages)
        workers = [server.fork() for _ in range(self.workers)]
        served = [0] * self.workers
        for request in range(self.requests):
            i = random.randrange(self.workers)
            worker = workers[i]
            worker.read(*somewhere())
            worker.write(*somewhere())
            worker.warm(PRIVATE, scratch)
            worker.munmap(PRIVATE, scratch)
            if request % 8 == 0:
                server.write(*somewhere())
            served[i] += 1
            if served[i] == self.lifetime:
                worker.exit()
                workers[i] = server.fork()
                served[i] = 0
