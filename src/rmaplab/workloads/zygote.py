# SPDX-License-Identifier: GPL-2.0-or-later
"""Apps forked from a warmed parent, as Android starts them.

The zygote has loaded and initialised what every app needs; an app is a fork of it that writes to a part
of that, maps memory of its own, and is killed and started again now and then.  Every VMA that the zygote
had faulted becomes a hierarchy that spans all apps: the case of the topic's reference [2].
"""

from __future__ import annotations

from random import Random
from typing import Annotated

from rmaplab.mm.abi import PROT_READ
from rmaplab.trace.script import PAGE, Process, Script
from rmaplab.workloads.workload import PRIVATE, Count, Pages, Percent, Processes, Workload, places, says, warm


class Zygote(Workload, frozen=True, kw_only=True):
    """Apps forked from a warmed parent; each copies a part, then works in private memory."""

    apps: Annotated[Processes, says("apps that run at the same time")] = 24
    restarts: Annotated[Count, says("apps killed and started again")] = 12
    vmas: Annotated[Pages, says("VMAs of the zygote, one page apart, all faulted")] = 400
    pages: Annotated[Pages, says("pages per VMA of the zygote")] = 8
    copies: Annotated[Percent, says("percent of the zygote's VMAs that an app writes to")] = 40
    own_vmas: Annotated[Count, says("VMAs that an app maps for itself")] = 60
    own_pages: Annotated[Pages, says("pages of each")] = 16

    def span(self) -> int:
        return max(self.vmas * (self.pages + 1), self.own_vmas * (self.own_pages + 1)) * PAGE

    def tell(self, script: Script) -> None:
        random = Random(self.seed)
        areas = places(self.vmas, self.pages)
        length = self.own_pages * PAGE
        zygote = script.spawn()
        warm(zygote, areas, self.pages)

        def launch() -> Process:
            app = zygote.fork()
            for i in sorted(random.sample(range(self.vmas), self.vmas * self.copies // 100)):
                first = random.randrange(self.pages)
                app.write(areas[i] + first * PAGE, random.randint(1, self.pages - first) * PAGE)
            for i in range(self.own_vmas):
                addr = app.mmap(length, at=PRIVATE + i * (length + PAGE))
                app.write(addr, length)
                if i % 4 == 0 and self.own_pages > 1:  # generated code and constants become read-only
                    app.mprotect(addr, self.own_pages // 2 * PAGE, PROT_READ)
            return app

        running = [launch() for _ in range(self.apps)]
        for _ in range(self.restarts):
            victim = random.randrange(len(running))
            running[victim].exit()
            running[victim] = launch()
