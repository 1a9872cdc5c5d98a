# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory is short while relatives fork, unmap and exit: the contention that started the topic.

Apps forked from one zygote come and go and unmap parts of what they inherited; at the same time kswapd looks at the
zygote's pages, ages them and swaps some out, and kcompactd migrates others.  Each of these walks takes a lock that
an app needs, or takes none, depending on the design.  Apps that are unrelated have nothing to wait for.
"""

from __future__ import annotations

from random import Random
from typing import Annotated

from rmaplab.trace.script import PAGE, Script
from rmaplab.workloads.workload import Count, Flag, Pages, PerCpu, Workload, family, places, says, warm


class Pressure(Workload, frozen=True, kw_only=True):
    """Reclaim and compaction walk the pages of a zygote while its apps fork, write, unmap and exit."""

    processes: Annotated[
        PerCpu, says("app launchers that run at the same time (0: one for each CPU, 2 where nobody counts CPUs)")
    ] = 0
    related: Annotated[
        Flag, says("1: forked from the zygote whose pages are reclaimed; 0: each made its memory itself")
    ] = 1
    rounds: Annotated[Count, says("apps that each launcher forks, one after the other")] = 10
    vmas: Annotated[Pages, says("VMAs of the zygote, one page apart, all faulted")] = 50
    pages: Annotated[Pages, says("pages per VMA")] = 16
    writes: Annotated[Count, says("VMAs that an app writes to")] = 8
    unmaps: Annotated[Count, says("VMAs that an app unmaps before it exits")] = 4
    scans: Annotated[Count, says("acts of reclaim and compaction for each app")] = 4
    scan: Annotated[Pages, says("pages that each act is about")] = 8

    def span(self) -> int:
        return self.vmas * (self.pages + 1) * PAGE

    def tell(self, script: Script) -> None:
        random = Random(self.seed)
        areas = places(self.vmas, self.pages)
        zygote = script.spawn()
        warm(zygote, areas, self.pages)
        launchers = family(zygote, self.processes or 2, bool(self.related), areas, self.pages)
        zygote.mark()
        scan = min(self.scan, self.pages)
        few = min(4, self.pages) * PAGE
        acts = (zygote.referenced, zygote.migrate, zygote.referenced, zygote.swap_out)
        for _ in range(self.rounds):
            for launcher in launchers:
                app = launcher.fork()
                chosen = random.sample(range(self.vmas), min(self.vmas, self.writes + self.unmaps))
                for i in chosen[: self.writes]:
                    app.read(areas[i], few)
                    app.write(areas[i], few)
                for i in chosen[self.writes :]:
                    app.munmap(areas[i], self.pages * PAGE)
                for act in range(self.scans):
                    addr = areas[random.randrange(self.vmas)] + random.randrange(self.pages - scan + 1) * PAGE
                    acts[act % 4](addr, scan * PAGE)
                app.exit()
