# SPDX-License-Identifier: GPL-2.0-or-later
"""A store in memory that saves itself through fork, as Redis does with BGSAVE.

The parent is large and has few VMAs; the child only reads, and the parent copies what it writes
while the child lives.  After the child's exit the parent takes back, by reuse, pages that it wrote last.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import ClassVar

from rmaplab.trace.events import Event
from rmaplab.workloads.workload import (
    AREA,
    PAGE,
    Count,
    Pages,
    Percent,
    Processes,
    Workload,
    fork,
    leave,
    mmap,
    read,
    start,
    write,
)


class BgSave(Workload, frozen=True, kw_only=True):
    """A large parent forks a reader and goes on writing; the reader exits; again."""

    parameters: ClassVar[dict[str, str]] = {
        "pages": "pages of the parent's data",
        "saves": "readers forked, one after the other",
        "writes": "short runs of pages that the parent writes during each save, and again after it",
        "run": "pages a run",
        "last": "percent of the last save after which the history ends (100: the reader has exited)",
    }

    pages: Pages = 200_000
    saves: Processes = 5
    writes: Count = 1000
    run: Pages = 4
    last: Percent = 50

    def span(self) -> int:
        return self.pages * PAGE

    def events(self) -> Iterator[Event]:
        random = Random(self.seed)
        run = min(self.run, self.pages)
        slices = 10

        def busy() -> Iterator[Event]:
            for _ in range(self.writes // slices):
                yield write(1, AREA + random.randrange(self.pages - run + 1) * PAGE, run)

        yield start(1)
        yield mmap(1, AREA, self.pages)
        yield write(1, AREA, self.pages)
        for save in range(self.saves):
            reader = save + 2
            yield fork(1, reader)
            upto = 0
            for part in range(slices):
                if save == self.saves - 1 and part * 100 >= self.last * slices:
                    return
                begin, upto = upto, self.pages * (part + 1) // slices
                if upto > begin:
                    yield read(reader, AREA + begin * PAGE, upto - begin)
                yield from busy()
            yield leave(reader)
            for _ in range(slices):
                yield from busy()
