# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes of one family, or of none, that fork and exit in a loop.

The measurement of KERNEL.md section 7: processes with some hundred faulted VMAs fork and exit in a loop.  Forked from
one zygote, each of their VMAs belongs to a hierarchy whose root lock all of them need, at each fork and at each exit;
unrelated, none of them shares anything.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    places,
    start,
    warm,
    write,
)

_ZYGOTE: Final = 1


class Storm(Workload, frozen=True, kw_only=True):
    """Processes fork children that write a little and exit, over and over."""

    parameters: ClassVar[dict[str, str]] = {
        "processes": "processes that fork, all at the same time (0: one for each CPU, 2 where nobody counts CPUs)",
        "related": "1: they were forked from one zygote; 0: each made its memory itself",
        "rounds": "children that each of them forks, one after the other",
        "vmas": "VMAs of each, one page apart, all faulted",
        "pages": "pages a VMA",
        "writes": "VMAs of which a child writes one page before it exits",
    }

    processes: PerCpu = 0
    related: Flag = 1
    rounds: Count = 10
    vmas: Pages = 100
    pages: Pages = 4
    writes: Count = 10

    def span(self) -> int:
        return self.vmas * (self.pages + 1) * PAGE

    def events(self) -> Iterator[Event]:
        areas = places(self.vmas, self.pages)
        count = self.processes or 2
        parents = range(2, count + 2)
        yield start(_ZYGOTE)
        if self.related:
            yield from warm(_ZYGOTE, areas, self.pages)
        yield from family(_ZYGOTE, parents, bool(self.related), areas, self.pages)
        yield mark(_ZYGOTE)
        child = count + 2
        for turn in range(self.rounds):
            for pid in parents:
                yield fork(pid, child)
                for i in range(min(self.writes, self.vmas)):
                    yield write(child, areas[(i + turn) % self.vmas], 1)
                yield leave(child)
                child += 1
