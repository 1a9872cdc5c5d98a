# SPDX-License-Identifier: GPL-2.0-or-later
"""A store in memory that saves itself through fork, as Redis does with BGSAVE.

The parent is large and has few VMAs; the child only reads, and the parent copies what it writes
while the child lives.  After the child's exit the parent takes back, by reuse, pages that it wrote last.
"""

from __future__ import annotations

from random import Random
from typing import Annotated

from rmaplab.trace.script import PAGE, Script
from rmaplab.workloads.workload import AREA, Count, Pages, Percent, Processes, Workload, says


class BgSave(Workload, frozen=True, kw_only=True):
    """A large parent forks a reader and goes on writing; the reader exits; again."""

    pages: Annotated[Pages, says("pages of the parent's data")] = 200_000
    saves: Annotated[Processes, says("readers forked, one after the other")] = 5
    writes: Annotated[
        Count, says("short runs of pages that the parent writes during each save, and again after it")
    ] = 1000
    run: Annotated[Pages, says("pages per run")] = 4
    last: Annotated[
        Percent, says("percent of the last save after which the history ends (100: the reader has exited)")
    ] = 50

    def span(self) -> int:
        return self.pages * PAGE

    def tell(self, script: Script) -> None:
        random = Random(self.seed)
        run = min(self.run, self.pages)
        slices = 10
        store = script.spawn()

        def busy() -> None:
            for _ in range(self.writes // slices):
                store.write(AREA + random.randrange(self.pages - run + 1) * PAGE, run * PAGE)

        store.warm(AREA, self.pages * PAGE)
        for save in range(self.saves):
            reader = store.fork()
            upto = 0
            for part in range(slices):
                if save == self.saves - 1 and part * 100 >= self.last * slices:
                    return
                begin, upto = upto, self.pages * (part + 1) // slices
                if upto > begin:
                    reader.read(AREA + begin * PAGE, (upto - begin) * PAGE)
                busy()
            reader.exit()
            for _ in range(slices):
                busy()
