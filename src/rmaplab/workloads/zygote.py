# SPDX-License-Identifier: GPL-2.0-or-later
"""Apps forked from a warmed parent, as Android starts them.

The zygote has loaded and initialised what every app needs; an app is a fork of it that writes to a part
of that, maps memory of its own, and is killed and started again now and then.  Every VMA that the zygote
had faulted becomes a hierarchy that spans all apps: the case of the topic's reference [2].
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import ClassVar

from rmaplab.mm.abi import PROT_READ
from rmaplab.trace.events import Event
from rmaplab.workloads.workload import (
    PAGE,
    PRIVATE,
    Count,
    Pages,
    Percent,
    Processes,
    Workload,
    fork,
    leave,
    mmap,
    mprotect,
    places,
    start,
    warm,
    write,
)


class Zygote(Workload, frozen=True, kw_only=True):
    """Apps forked from a warmed parent; each copies a part, then works in private memory."""

    parameters: ClassVar[dict[str, str]] = {
        "apps": "apps that run at the same time",
        "restarts": "apps killed and started again",
        "vmas": "VMAs of the zygote, one page apart, all faulted",
        "pages": "pages a VMA of the zygote",
        "copies": "percent of the zygote's VMAs that an app writes to",
        "own_vmas": "VMAs that an app maps for itself",
        "own_pages": "pages of each",
    }

    apps: Processes = 24
    restarts: Count = 12
    vmas: Pages = 400
    pages: Pages = 8
    copies: Percent = 40
    own_vmas: Count = 60
    own_pages: Pages = 16

    def span(self) -> int:
        return max(self.vmas * (self.pages + 1), self.own_vmas * (self.own_pages + 1)) * PAGE

    def events(self) -> Iterator[Event]:
        random = Random(self.seed)
        areas = places(self.vmas, self.pages)
        own_step = (self.own_pages + 1) * PAGE
        yield start(1)
        yield from warm(1, areas, self.pages)

        def launch(app: int) -> Iterator[Event]:
            yield fork(1, app)
            for i in sorted(random.sample(range(self.vmas), self.vmas * self.copies // 100)):
                first = random.randrange(self.pages)
                yield write(app, areas[i] + first * PAGE, random.randint(1, self.pages - first))
            for i in range(self.own_vmas):
                addr = PRIVATE + i * own_step
                yield mmap(app, addr, self.own_pages)
                yield write(app, addr, self.own_pages)
                if i % 4 == 0 and self.own_pages > 1:  # generated code and constants become read-only
                    yield mprotect(app, addr, self.own_pages // 2, PROT_READ)

        running = list(range(2, self.apps + 2))
        for app in running:
            yield from launch(app)
        for app in range(self.apps + 2, self.apps + 2 + self.restarts):
            victim = random.randrange(len(running))
            yield leave(running[victim])
            running[victim] = app
            yield from launch(app)
