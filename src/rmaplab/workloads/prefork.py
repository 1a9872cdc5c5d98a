# SPDX-License-Identifier: GPL-2.0-or-later
"""A server that forks its workers first and lets them serve, as Apache or PostgreSQL do.

Workers copy the pages that they write while the parent goes on writing its own, so pages of the same
VMA belong to different generations; workers are replaced after a number of requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import ClassVar

from rmaplab.trace.events import Event
from rmaplab.workloads.workload import (
    PAGE,
    PRIVATE,
    Count,
    Pages,
    Processes,
    Workload,
    fork,
    leave,
    mmap,
    munmap,
    places,
    read,
    start,
    warm,
    write,
)

_SERVER = 1


class Prefork(Workload, frozen=True, kw_only=True):
    """Workers copy pages while their parent goes on, and are replaced now and then."""

    parameters: ClassVar[dict[str, str]] = {
        "workers": "workers that run at the same time",
        "requests": "requests served by all workers together",
        "lifetime": "requests after which a worker is replaced",
        "vmas": "VMAs of the server, one page apart, all faulted",
        "pages": "pages a VMA",
        "scratch": "pages that a request maps, writes and unmaps",
    }

    workers: Processes = 32
    requests: Count = 4000
    lifetime: Processes = 100
    vmas: Pages = 50
    pages: Pages = 64
    scratch: Pages = 8

    def span(self) -> int:
        return self.vmas * (self.pages + 1) * PAGE

    def events(self) -> Iterator[Event]:
        random = Random(self.seed)
        areas = places(self.vmas, self.pages)

        def somewhere() -> tuple[int, int]:
            """A run of at most four pages in one of the server's VMAs."""
            first = random.randrange(self.pages)
            addr = areas[random.randrange(self.vmas)] + first * PAGE
            return addr, random.randint(1, min(4, self.pages - first))

        yield start(_SERVER)
        yield from warm(_SERVER, areas, self.pages)
        workers = list(range(2, self.workers + 2))
        served = [0] * self.workers
        newest = self.workers + 1
        for pid in workers:
            yield fork(_SERVER, pid)
        for request in range(self.requests):
            i = random.randrange(self.workers)
            pid = workers[i]
            yield read(pid, *somewhere())
            yield write(pid, *somewhere())
            yield mmap(pid, PRIVATE, self.scratch)
            yield write(pid, PRIVATE, self.scratch)
            yield munmap(pid, PRIVATE, self.scratch)
            if request % 8 == 0:
                yield write(_SERVER, *somewhere())
            served[i] += 1
            if served[i] == self.lifetime:
                newest += 1
                yield leave(pid)
                yield fork(_SERVER, newest)
                workers[i] = newest
                served[i] = 0
