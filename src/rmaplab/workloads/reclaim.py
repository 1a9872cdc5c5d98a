# SPDX-License-Identifier: GPL-2.0-or-later
"""A reclaimer among processes that fork, copy, move and exit: the reverse map's own customers at work.

Between the acts of a server and its workers a reclaimer asks which pages were referenced, swaps some out
and migrates others; later faults bring them back, also those that several processes had shared.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import ClassVar, Final

from rmaplab.mm.abi import MREMAP_FIXED, MREMAP_MAYMOVE
from rmaplab.trace.events import Event
from rmaplab.workloads.workload import (
    AWAY,
    PAGE,
    Count,
    Pages,
    Percent,
    Processes,
    Workload,
    fork,
    leave,
    mremap,
    places,
    read,
    reclaim,
    start,
    warm,
    write,
)

_SERVER: Final = 1


class Reclaim(Workload, frozen=True, kw_only=True):
    """Walks by a reclaimer (referenced, swap_out, migrate) among faults, forks, moves and exits."""

    parameters: ClassVar[dict[str, str]] = {
        "processes": "processes that run at the same time, all forked from the first",
        "steps": "acts; a third of them is the reclaimer's",
        "vmas": "VMAs of the first process, one page apart, all faulted",
        "pages": "pages a VMA",
        "scan": "pages that the reclaimer looks at in one act",
        "moved": "percent of the VMAs that the first process moved away before it forked",
    }

    processes: Processes = 16
    steps: Count = 3000
    vmas: Pages = 32
    pages: Pages = 64
    scan: Pages = 16
    moved: Percent = 25

    def span(self) -> int:
        return self.vmas * (self.pages + 1) * PAGE

    def events(self) -> Iterator[Event]:
        random = Random(self.seed)
        step = (self.pages + 1) * PAGE
        areas = list(places(self.vmas, self.pages))
        yield start(_SERVER)
        yield from warm(_SERVER, areas, self.pages)
        for i in range(self.vmas * self.moved // 100):
            yield mremap(
                _SERVER, areas[i], self.pages, self.pages, MREMAP_MAYMOVE | MREMAP_FIXED, AWAY + i * step
            )
            areas[i] = AWAY + i * step
        workers = list(range(2, self.processes + 1))
        newest = self.processes
        for pid in workers:
            yield fork(_SERVER, pid)

        def somewhere(at_most: int) -> tuple[int, int]:
            first = random.randrange(self.pages)
            return random.choice(areas) + first * PAGE, random.randint(1, min(at_most, self.pages - first))

        for act in range(self.steps):
            pid = random.choice([_SERVER, *workers])
            if act % 3 == 0:
                yield reclaim(
                    random.choice(("referenced", "swap_out", "migrate")), pid, *somewhere(self.scan)
                )
            elif act % 50 == 1 and workers:
                i = random.randrange(len(workers))
                newest += 1
                yield leave(workers[i])
                yield fork(_SERVER, newest)
                workers[i] = newest
            elif random.randrange(2):
                yield read(pid, *somewhere(8))
            else:
                yield write(pid, *somewhere(8))
