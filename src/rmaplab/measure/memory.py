# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory over a history: that of each design at a number of moments, and its cost or saving elsewhere.

A design's memory is its own objects, and the fields that it needs in the structures of others: anon_vma has 24 bytes
in each vm_area_struct that CoW contexts do without, except for 8 (`vma_fields`, `mm_fields` of the design).  Elsewhere
is the effect of its merge rule: with fewer VMAs there are fewer vm_area_structs, per-VMA locks and nodes of maple
trees.

Moments are evenly spread over the history, in events; peaks are the greatest of these.  (Peaks by type of object are
exact; see figures.py.)  Bytes are those of objects, without what slabs waste.
"""

from __future__ import annotations

from typing import Final

import msgspec

from rmaplab.mm.machine import Machine
from rmaplab.mm.reverse_map import ReverseMap

MOMENTS: Final = 200  # at most, of one history
_LEAF: Final = 16  # entries of a maple leaf (MAPLE_RANGE64_SLOTS)
_INNER: Final = 10  # of a node above (MAPLE_ARANGE64_SLOTS)


class Held(msgspec.Struct, frozen=True):
    """What a design holds at one moment, in bytes.

    event:   number of events played; processes (address spaces), vmas, pages: that there are
    objects: by type; fields: in vm_area_struct and mm_struct
    """

    event: int
    processes: int
    vmas: int
    pages: int
    objects: dict[str, int]
    fields: int

    @property
    def total(self) -> int:
        return sum(self.objects.values()) + self.fields


class DesignMemory(msgspec.Struct, frozen=True):
    """A design's memory over a history.

    peak, end: at the moment when it holds most, and at the end
    line:      bytes in all at each moment (`Memory.events` says when)
    """

    design: str
    vma_fields: int
    mm_fields: int
    peak: Held
    end: Held
    line: list[int]


class Vmas(msgspec.Struct, frozen=True):
    """VMAs as one merge rule makes them, at the moment with most of them.

    struct_bytes: of vm_area_struct and, where it is an object of its own, the per-VMA lock
    nodes: of the maple trees, as few as can hold them; node_bytes: of these
    """

    design: str
    vmas: int
    struct_bytes: int
    nodes: int
    node_bytes: int


class Memory(msgspec.Struct, frozen=True):
    """events: played at each moment; vmas: for each design that played alone, or led

    processes: VMAs of each process, by pid, at the moment with most VMAs
    """

    events: list[int]
    designs: list[DesignMemory]
    vmas: list[Vmas]
    processes: dict[int, int] = {}


def maple_nodes(vmas: int) -> int:
    """Nodes of a maple tree that holds so many VMAs, as few as can be."""
    count = -(-vmas // _LEAF)
    nodes = count
    while count > 1:
        count = -(-count // _INNER)
        nodes += count
    return nodes


def held(design: ReverseMap, event: int, processes: int, vmas: int, pages: int) -> Held:
    """What `design` holds now."""
    objects = {o.type: o.nbytes for o in design.footprint() if o.objects}
    return Held(event, processes, vmas, pages, objects, design.vma_fields * vmas + design.mm_fields * processes)


class Sampler:
    """Looks at a machine while a history of `total` events is played on it."""

    def __init__(self, machine: Machine, total: int) -> None:
        self._machine: Final = machine
        self._every: Final = max(1, -(-total // MOMENTS))
        self.due = self._every  # events played when it is time to look
        self._total: Final = total
        self._events: Final[list[int]] = []
        self._lines: Final[dict[str, list[int]]] = {design.name: [] for design in machine.designs}
        self._peaks: Final[dict[str, Held]] = {}
        self._ends: Final[dict[str, Held]] = {}
        self._most: tuple[int, int] = (0, 0)  # VMAs, and maple nodes
        self._processes: dict[int, int] = {}

    def look(self, played: int) -> None:
        """`played` events have been played; it may be time to look."""
        if played < self.due and played < self._total:
            return
        self.due = played // self._every * self._every + self._every
        machine = self._machine
        vmas = machine.vma_pool.live
        if vmas > self._most[0]:
            self._most = (vmas, sum(maple_nodes(len(mm.tree)) for mm in machine.mms.values()))
            self._processes = {pid: len(process.mm.tree) for pid, process in sorted(machine.processes.items())}
        self._events.append(played)
        for design in machine.designs:
            now = held(design, played, len(machine.mms), vmas, machine.folios.in_use)
            self._lines[design.name].append(now.total)
            self._ends[design.name] = now
            peak = self._peaks.get(design.name)
            if peak is None or now.total > peak.total:
                self._peaks[design.name] = now

    def vmas(self, design: ReverseMap) -> Vmas:
        """VMAs by the rule of the machine's leader, which is also that of `design`."""
        sizes = self._machine.profile.sizes
        vmas, nodes = self._most
        return Vmas(
            design.name,
            vmas,
            vmas * (sizes["vm_area_struct"] + sizes.get("vma_lock", 0)),
            nodes,
            nodes * sizes["maple_node"],
        )

    def memory(self, alone: list[Vmas]) -> Memory:
        """All that was seen; `alone` are the VMAs of the designs that played by themselves."""
        designs = [
            DesignMemory(
                design.name,
                design.vma_fields,
                design.mm_fields,
                self._peaks[design.name],
                self._ends[design.name],
                self._lines[design.name],
            )
            for design in self._machine.designs
            if design.name in self._ends
        ]
        return Memory(self._events, designs, [self.vmas(self._machine.leader), *alone], self._processes)


def curve(line: list[int], width: int = 32) -> str:
    """A line as a row of bars, each the greatest of its part; the highest is the highest of all.

    >>> curve([0, 1, 2, 4, 8, 8, 0], 7)
    ' ▁▂▄██ '
    """
    bars = " ▁▂▃▄▅▆▇█"
    highest = max(line, default=0)
    if not highest:
        return ""
    width = min(width, len(line))
    parts = [line[i * len(line) // width : (i + 1) * len(line) // width] for i in range(width)]
    return "".join(bars[-(-max(part) * 8 // highest)] for part in parts)
