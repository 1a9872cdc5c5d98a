# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests with the same pages, which ksmd merges.

Each guest made its memory itself and forks helpers; ksmd merges pages of all guests with those of the first, before
and after.  A KSM page is found by its places, in as many hierarchies as there are guests, and below each of them.
"""

from __future__ import annotations

from random import Random
from typing import Annotated

from rmaplab.trace.script import PAGE, Script
from rmaplab.workloads.workload import Pages, Percent, Processes, Workload, family, places, says, warm


class Ksm(Workload, frozen=True, kw_only=True):
    """Pages of unrelated processes are merged; helpers are forked, write some of them, and exit."""

    guests: Annotated[Processes, says("processes that made their memory themselves")] = 8
    helpers: Annotated[Processes, says("children of each, of which two live at the same time")] = 10
    vmas: Annotated[Pages, says("VMAs of each guest, one page apart, all faulted")] = 16
    pages: Annotated[Pages, says("pages per VMA")] = 16
    same: Annotated[Percent, says("percent of the pages that are the same in all guests")] = 50
    writes: Annotated[Pages, says("pages that a helper writes, anywhere")] = 32

    def span(self) -> int:
        return self.vmas * (self.pages + 1) * PAGE

    def tell(self, script: Script) -> None:
        random = Random(self.seed)
        areas = places(self.vmas, self.pages)
        first = script.spawn()
        warm(first, areas, self.pages)
        guests = [first, *family(first, self.guests - 1, False, areas, self.pages)]
        pages = [area + i * PAGE for area in areas for i in range(self.pages)]
        alike = sorted(random.sample(pages, len(pages) * self.same // 100))
        for page in alike[: len(alike) // 2]:
            for guest in guests[1:]:
                guest.ksm(page, first, page)
        oldest = [guest.fork() for guest in guests]
        for page in alike[len(alike) // 2 :]:
            for guest in guests[1:]:
                guest.ksm(page, first, page)
        for _ in range(1, self.helpers):
            for i in random.sample(range(self.guests), self.guests):
                helper = guests[i].fork()
                for page in random.sample(pages, min(self.writes, len(pages))):
                    helper.write(page)
                oldest[i].exit()
                oldest[i] = helper
