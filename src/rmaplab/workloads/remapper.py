# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that moves: buffers grown by realloc, and parts moved there and back.

glibc's realloc() grows a large block by mremap(MREMAP_MAYMOVE): in place while there is room above, else
by moving it.  A compacting collector moves ranges away and home again.  Both leave pages whose page
offset is not their address, which anon_vma gets for nothing and a remap-tracking design has to record.

A part is a quarter of a buffer, so that it never spans two VMAs, whatever has merged since.
"""

from __future__ import annotations

from random import Random
from typing import Annotated

from rmaplab.mm.abi import MREMAP_MAYMOVE
from rmaplab.trace.script import PAGE, Process, Script
from rmaplab.workloads.workload import AREA, AWAY, PRIVATE, Count, Pages, Percent, Processes, Workload, says


class Remapper(Workload, frozen=True, kw_only=True):
    """Buffers grow by mremap, in place and by moving; then parts of them go away and come home."""

    buffers: Annotated[Processes, says("buffers of the first process")] = 64
    pages: Annotated[Pages, says("pages of a buffer at first, rounded up to a multiple of four")] = 16
    growths: Annotated[Count, says("times that each buffer doubles")] = 4
    moves: Annotated[Count, says("moves of a part, away or home")] = 4000
    home: Annotated[Percent, says("percent of moves that bring a part home, if one is away")] = 50
    children: Annotated[Count, says("children forked among the moves; all processes take turns with moves")] = 16

    def span(self) -> int:
        return self.buffers * self._spacing()

    def _spacing(self) -> int:
        """Bytes from a buffer's place to the next one's: what it grows to, and a page between."""
        return (((self.pages + 3) // 4 * 4 << self.growths) + 1) * PAGE

    def tell(self, script: Script) -> None:
        random = Random(self.seed)
        spacing = self._spacing()
        length = (self.pages + 3) // 4 * 4 * PAGE
        parent = script.spawn()
        base = AREA
        for i in range(self.buffers):
            parent.warm(base + i * spacing, length)
        for growth in range(self.growths):
            target = base
            if growth % 2:  # something is in the way: every other time the buffer has to move
                target = PRIVATE if base == AREA else AREA
            for i in range(self.buffers):
                old, new = base + i * spacing, target + i * spacing
                parent.mremap(old, length, 2 * length, to=new, flags=MREMAP_MAYMOVE if new == old else None)
                parent.write(new + length, length)
            base = target
            length *= 2

        part = length // 4
        processes = [parent]
        here = {parent: [(i, quarter) for i in range(self.buffers) for quarter in range(4)]}
        gone: dict[Process, list[tuple[int, int]]] = {parent: []}
        fork_every = self.moves // (self.children + 1) + 1
        for move in range(self.moves):
            process = processes[random.randrange(len(processes))]
            homewards = random.randrange(100) < self.home
            if gone[process] and (homewards or not here[process]):
                which = gone[process].pop(random.randrange(len(gone[process])))
                here[process].append(which)
                origin, goal = AWAY, base
            else:
                which = here[process].pop(random.randrange(len(here[process])))
                gone[process].append(which)
                origin, goal = base, AWAY
            place = which[0] * spacing + which[1] * part
            process.mremap(origin + place, part, to=goal + place)
            process.write(goal + place + random.randrange(part // PAGE) * PAGE)
            if move % fork_every == fork_every - 1:
                child = parent.fork()
                processes.append(child)
                here[child], gone[child] = here[parent].copy(), gone[parent].copy()
