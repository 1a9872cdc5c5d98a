# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory is short while relatives fork, unmap and exit: the contention that started the topic.

Apps forked from one zygote come and go and unmap parts of what they inherited; at the same time kswapd looks at the
zygote's pages, ages them and swaps some out, and kcompactd migrates others.  Each of these walks takes a lock that
an app needs, or takes none, depending on the design.  Apps that are unrelated have nothing to wait for.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import ClassVar, Final

from rmaplab.trace.events import Event
from rmaplab.workloads.workload import (
    PAGE,
    Count,
    Flag,
    Pages,
    PerCpu,
    Workload,
    family,
    fork,
    leave,
    mark,
    munmap,
    places,
    read,
    reclaim,
    start,
    warm,
    write,
)

_ZYGOTE: Final = 1


class Pressure(Workload, frozen=True, kw_only=True):
    """Reclaim and compaction walk the pages of a zygote while its apps fork, write, unmap and exit."""

    parameters: ClassVar[dict[str, str]] = {
        "processes": "app launchers that run at the same time (0: one for each CPU, 2 where nobody counts CPUs)",
        "related": "1: forked from the zygote whose pages are reclaimed; 0: each made its memory itself",
        "rounds": "apps that each launcher forks, one after the other",
        "vmas": "VMAs of the zygote, one page apart, all faulted",
        "pages": "pages a VMA",
        "writes": "VMAs that an app writes to",
        "unmaps": "VMAs that an app unmaps before it exits",
        "scans": "acts of reclaim and compaction for each app",
        "scan": "pages that each act is about",
    }

    processes: PerCpu = 0
    related: Flag = 1
    rounds: Count = 10
    vmas: Pages = 50
    pages: Pages = 16
    writes: Count = 8
    unmaps: Count = 4
    scans: Count = 4
    scan: Pages = 8

    def span(self) -> int:
        return self.vmas * (self.pages + 1) * PAGE

    def events(self) -> Iterator[Event]:
        random = Random(self.seed)
        areas = places(self.vmas, self.pages)
        count = self.processes or 2
        launchers = range(2, count + 2)
        yield start(_ZYGOTE)
        yield from warm(_ZYGOTE, areas, self.pages)
        yield from family(_ZYGOTE, launchers, bool(self.related), areas, self.pages)
        yield mark(_ZYGOTE)
        scan = min(self.scan, self.pages)
        app = count + 2
        for _ in range(self.rounds):
            for pid in launchers:
                yield fork(pid, app)
                chosen = random.sample(range(self.vmas), min(self.vmas, self.writes + self.unmaps))
                for i in chosen[: self.writes]:
                    yield read(app, areas[i], min(4, self.pages))
                    yield write(app, areas[i], min(4, self.pages))
                for i in chosen[self.writes :]:
                    yield munmap(app, areas[i], self.pages)
                for act in range(self.scans):
                    addr = areas[random.randrange(self.vmas)] + random.randrange(self.pages - scan + 1) * PAGE
                    yield reclaim(
                        ("referenced", "migrate", "referenced", "swap_out")[act % 4], _ZYGOTE, addr, scan
                    )
                yield leave(app)
                app += 1
