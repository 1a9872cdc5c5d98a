# SPDX-License-Identifier: GPL-2.0-or-later
"""The case that brought anon_vma hierarchies: many children, each with its own copy of every page.

After the description in commit 5beb49305251 (2.6.34): 1000 children of one process, 1000 pages each in
one VMA, all copied.  With one anon_vma for all of them a walk for any one page looked into 1000
processes; with an anon_vma per child a child's page is found in one place, and only the parent's own
pages, at most 1/N of all, still lead to all N.
"""

from __future__ import annotations

from typing import Annotated

from rmaplab.trace.script import PAGE, Script
from rmaplab.workloads.workload import AREA, Pages, Processes, Workload, says


class Aim7(Workload, frozen=True, kw_only=True):
    """A parent writes all its pages and forks children, which write all of them, too."""

    children: Annotated[Processes, says("children that copy everything")] = 1000
    pages: Annotated[Pages, says("pages of the one VMA")] = 1000

    def span(self) -> int:
        return self.pages * PAGE

    def tell(self, script: Script) -> None:
        length = self.pages * PAGE
        parent = script.spawn()
        parent.warm(AREA, length)
        for _ in range(self.children):
            parent.fork().write(AREA, length)
