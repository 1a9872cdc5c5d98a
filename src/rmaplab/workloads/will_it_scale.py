# SPDX-License-Identifier: GPL-2.0-or-later
"""The shapes of will-it-scale (by A. Blanchard), in process mode: one small loop in each process.

page_fault1 maps, writes every page and unmaps; mmap1 maps and unmaps untouched; brk1 grows the heap by a page and
shrinks it again; fork1 forks a child that exits at once, and waits for it.  None of them shares memory on purpose,
so they ought to scale; forked from one parent, they share what the parent had faulted.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from rmaplab.trace.script import PAGE, SMALL_PROGRAM, Script
from rmaplab.workloads.workload import PRIVATE, Count, Flag, Pages, PerCpu, Workload, family, places, warm


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
