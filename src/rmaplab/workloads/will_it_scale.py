# SPDX-License-Identifier: GPL-2.0-or-later
"""The shapes of will-it-scale (by A. Blanchard), in process mode: one small loop in each process.

page_fault1 maps, writes every page and unmaps; mmap1 maps and unmaps untouched; brk1 grows the heap by a page and
shrinks it again; fork1 forks a child that exits at once, and waits for it.  None of them shares memory on purpose,
so they ought to scale; forked from one parent, they share what the parent had faulted.
"""

from __future__ import annotations

from typing import Annotated, Literal

from rmaplab.trace.script import PAGE, SMALL_PROGRAM, Script
from rmaplab.workloads.workload import (
    PRIVATE,
    Count,
    Flag,
    Pages,
    PerCpu,
    Workload,
    family,
    places,
    says,
    warm,
)


class WillItScale(Workload, frozen=True, kw_only=True):
    """One small loop in each process: page_fault1, mmap1, brk1 or fork1."""

    case: Annotated[
        Literal["page_fault1", "mmap1", "brk1", "fork1"], says("what each process does")
    ] = "page_fault1"
    processes: Annotated[PerCpu, says("processes that loop (0: one for each CPU, 2 where nobody counts CPUs)")] = 0
    related: Annotated[Flag, says("1: they were forked from one parent; 0: each was started by itself")] = 1
    rounds: Annotated[Count, says("times that each goes round")] = 50
    pages: Annotated[Pages, says("pages of the mapping that page_fault1 and mmap1 make")] = 512
    vmas: Annotated[Count, says("VMAs that each process has besides, one page apart, all faulted")] = 20

    def span(self) -> int:
        return self.vmas * 2 * PAGE

    def tell(self, script: Script) -> None:
        areas = places(self.vmas, 1)
        first = script.spawn()
        if self.related:
            warm(first, areas, 1)
        processes = family(first, self.processes or 2, bool(self.related), areas, 1)
        first.mark()
        length = self.pages * PAGE
        for _ in range(self.rounds):
            for process in processes:
                if self.case == "fork1":
                    process.fork().exit()
                elif self.case == "brk1":
                    process.brk(SMALL_PROGRAM.heap + PAGE)
                    process.brk(SMALL_PROGRAM.heap)
                else:
                    process.mmap(length, at=PRIVATE)
                    if self.case == "page_fault1":
                        process.write(PRIVATE, length)
                    process.munmap(PRIVATE, length)
