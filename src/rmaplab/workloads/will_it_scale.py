# SPDX-License-Identifier: GPL-2.0-or-later
"""The shapes of will-it-scale (by A. Blanchard), in process mode: one small loop in each process.

page_fault1 maps, writes every page and unmaps; mmap1 maps and unmaps untouched; brk1 grows the heap by a page and
shrinks it again; fork1 forks a child that exits at once, and waits for it.  None of them shares memory on purpose,
so they ought to scale; forked from one parent, they share what the parent had faulted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Final, Literal

from rmaplab.trace.events import Event
from rmaplab.workloads.workload import (
    HEAP,
    PAGE,
    PRIVATE,
    Count,
    Flag,
    Pages,
    PerCpu,
    Workload,
    family,
    fork,
    leave,
    mark,
    mmap,
    munmap,
    places,
    start,
    warm,
    write,
)

_PARENT: Final = 1


class WillItScale(Workload, frozen=True, kw_only=True):
    """One small loop in each process: page_fault1, mmap1, brk1 or fork1."""

    parameters: ClassVar[dict[str, str]] = {
        "case": "page_fault1, mmap1, brk1 or fork1",
        "processes": "processes that loop (0: one for each CPU, 2 where nobody counts CPUs)",
        "related": "1: they were forked from one parent; 0: each was started by itself",
        "rounds": "times that each goes round",
        "pages": "pages of the mapping that page_fault1 and mmap1 make",
        "vmas": "VMAs that each process has besides, one page apart, all faulted",
    }

    case: Literal["page_fault1", "mmap1", "brk1", "fork1"] = "page_fault1"
    processes: PerCpu = 0
    related: Flag = 1
    rounds: Count = 50
    pages: Pages = 512
    vmas: Count = 20

    def span(self) -> int:
        return self.vmas * 2 * PAGE

    def events(self) -> Iterator[Event]:
        areas = places(self.vmas, 1)
        count = self.processes or 2
        processes = range(2, count + 2)
        yield start(_PARENT)
        if self.related:
            yield from warm(_PARENT, areas, 1)
        yield from family(_PARENT, processes, bool(self.related), areas, 1)
        yield mark(_PARENT)
        child = count + 2
        for _ in range(self.rounds):
            for pid in processes:
                if self.case == "fork1":
                    yield fork(pid, child)
                    yield leave(child)
                    child += 1
                elif self.case == "brk1":
                    yield Event("brk", pid, addr=HEAP + PAGE, result=HEAP + PAGE)
                    yield Event("brk", pid, addr=HEAP, result=HEAP)
                else:
                    yield mmap(pid, PRIVATE, self.pages)
                    if self.case == "page_fault1":
                        yield write(pid, PRIVATE, self.pages)
                    yield munmap(pid, PRIVATE, self.pages)
