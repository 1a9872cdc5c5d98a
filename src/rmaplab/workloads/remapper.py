# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that moves: buffers grown by realloc, and parts moved there and back.

glibc's realloc() grows a large block by mremap(MREMAP_MAYMOVE): in place while there is room above, else
by moving it.  A compacting collector moves ranges away and home again.  Both leave pages whose page
offset is not their address, which anon_vma gets for nothing and a remap-tracking design has to record.

A part is a quarter of a buffer, so that it never spans two VMAs, whatever has merged since.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import ClassVar, Final

from rmaplab.mm.abi import MREMAP_FIXED, MREMAP_MAYMOVE
from rmaplab.trace.events import Event
from rmaplab.workloads.workload import (
    AREA,
    AWAY,
    PAGE,
    PRIVATE,
    Count,
    Pages,
    Percent,
    Processes,
    Workload,
    fork,
    mmap,
    mremap,
    start,
    write,
)

_PARENT: Final = 1
_MOVE: Final = MREMAP_MAYMOVE | MREMAP_FIXED


class Remapper(Workload, frozen=True, kw_only=True):
    """Buffers grow by mremap, in place and by moving; then parts of them go away and come home."""

    parameters: ClassVar[dict[str, str]] = {
        "buffers": "buffers of the first process",
        "pages": "pages of a buffer at first, rounded up to a multiple of four",
        "growths": "times that each buffer doubles",
        "moves": "moves of a part, away or home",
        "home": "percent of moves that bring a part home, if one is away",
        "children": "children forked among the moves; all processes take turns with moves",
    }

    buffers: Processes = 64
    pages: Pages = 16
    growths: Count = 4
    moves: Count = 4000
    home: Percent = 50
    children: Count = 16

    def span(self) -> int:
        return self.buffers * self._spacing()

    def _spacing(self) -> int:
        """Bytes from a buffer's place to the next one's: what it grows to, and a page between."""
        return (((self.pages + 3) // 4 * 4 << self.growths) + 1) * PAGE

    def events(self) -> Iterator[Event]:
        random = Random(self.seed)
        spacing = self._spacing()
        nr_pages = (self.pages + 3) // 4 * 4
        yield start(_PARENT)
        base = AREA
        for i in range(self.buffers):
            yield mmap(_PARENT, base + i * spacing, nr_pages)
            yield write(_PARENT, base + i * spacing, nr_pages)
        for growth in range(self.growths):
            target = base
            if growth % 2:  # something is in the way: every other time the buffer has to move
                target = PRIVATE if base == AREA else AREA
            for i in range(self.buffers):
                old, new = base + i * spacing, target + i * spacing
                flags = MREMAP_MAYMOVE if new == old else _MOVE
                yield mremap(_PARENT, old, nr_pages, 2 * nr_pages, flags, new)
                yield write(_PARENT, new + nr_pages * PAGE, nr_pages)
            base = target
            nr_pages *= 2

        part = nr_pages // 4
        here = {_PARENT: [(i, quarter) for i in range(self.buffers) for quarter in range(4)]}
        gone: dict[int, list[tuple[int, int]]] = {_PARENT: []}
        fork_every = self.moves // (self.children + 1) + 1
        for move in range(self.moves):
            pid = random.randrange(1, len(here) + 1)
            homewards = random.randrange(100) < self.home
            if gone[pid] and (homewards or not here[pid]):
                which = gone[pid].pop(random.randrange(len(gone[pid])))
                here[pid].append(which)
                origin, goal = AWAY, base
            else:
                which = here[pid].pop(random.randrange(len(here[pid])))
                gone[pid].append(which)
                origin, goal = base, AWAY
            place = which[0] * spacing + which[1] * part * PAGE
            source, target = origin + place, goal + place
            yield mremap(pid, source, part, part, _MOVE, target)
            yield write(pid, target + random.randrange(part) * PAGE, 1)
            if move % fork_every == fork_every - 1:
                child = len(here) + 1
                yield fork(_PARENT, child)
                here[child], gone[child] = here[_PARENT].copy(), gone[_PARENT].copy()
