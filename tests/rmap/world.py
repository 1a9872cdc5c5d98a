# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine for statements about reverse maps: nothing may fail, and mappings lie apart unless a test says where.

    world = World("anon_vma")
    parent = world.spawn()
    addr = parent.mmap(4 * PAGE)
    parent.write(addr)
    child = parent.fork()
    assert world.finds("anon_vma", child.pfn(addr)) == {(parent, addr), (child, addr)}
"""

from __future__ import annotations

import world
from rmaplab.mm.abi import MAP_FIXED, MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE
from rmaplab.mm.pagetable import PTE_SHIFT
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import MM
from rmaplab.rmap import DESIGNS
from rmaplab.sync.locks import Scheduler
from rmaplab.trace.events import Event
from rmaplab.trace.script import PAGE, READ_WRITE
from world import DISK, MOVED, Process

__all__ = ["DISK", "KEEP", "LOW", "MOVED", "PAGE", "READ_WRITE", "Places", "Process", "World"]

KEEP = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP  # a move that leaves the source mapped
LOW = 0x10_0000_0000  # where mappings begin that no test puts anywhere

Places = set[tuple[Process, int]]


class World(world.World):
    """A machine with designs, by name or class."""

    def __init__(
        self,
        *designs: str | type[ReverseMap],
        kernel: str = REFERENCE,
        large_folios: int = 0,
        scheduler: Scheduler | None = None,
    ) -> None:
        classes = [DESIGNS[design] if isinstance(design, str) else design for design in designs]
        super().__init__(*classes, profile=PROFILES[kernel], large_folios=large_folios, scheduler=scheduler)
        self._next_addr = LOW

    def do(self, event: Event) -> int:
        if event.op == "mmap" and not event.addr:
            event.addr = self._next_addr
            event.flags |= MAP_FIXED
            self._next_addr += event.length + 16 * PAGE
        result = super().do(event)
        assert result >= 0, f"{event} returned {result}"
        return result

    def design(self, name: str) -> ReverseMap:
        return next(design for design in self.machine.designs if design.name == name)

    def process_of(self, mm: MM) -> Process:
        return Process(self, next(pid for pid, process in self.machine.processes.items() if process.mm is mm))

    def order(self, name: str, pfn: int) -> list[Process]:
        """The processes that a walk visits, in the order of the visit."""
        return [process for process, _ in self._walk(name, pfn)]

    def finds(self, name: str, pfn: int) -> Places:
        """The places that a walk of the folio of `pfn` visits."""
        return set(self._walk(name, pfn))

    def _walk(self, name: str, pfn: int) -> list[tuple[Process, int]]:
        head: int = self.machine.folios.head.m[pfn]
        return [(self.process_of(vma.mm), addr) for vma, addr in self.design(name).walk(head)]

    def maps(self, pfn: int) -> Places:
        """The places whose entries map page `pfn`."""
        return {
            (self.process_of(mm), addr)
            for mm in self.machine.mms.values()
            for addr, entry in zip(*(column.tolist() for column in mm.page_table.anon_entries()), strict=True)
            if entry >> PTE_SHIFT == pfn
        }
