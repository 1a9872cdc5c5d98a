# SPDX-License-Identifier: GPL-2.0-or-later
"""The world of a scenario: its machine, what its users do there, and the obligations at its end."""

from __future__ import annotations

from typing import Final

import msgspec

from rmaplab.check.obligations import first_broken
from rmaplab.mm.abi import EFAULT, MAP_FIXED
from rmaplab.mm.machine import Machine
from rmaplab.mm.migrate import migrate_folio, move, unmap
from rmaplab.mm.pagetable import PTE_ANON, PTE_SHIFT
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import MM
from rmaplab.mm.vmscan import referenced_folio, swap_out_folio
from rmaplab.sync.interleave import Execution
from rmaplab.trace import script
from rmaplab.trace.events import Event
from rmaplab.trace.history import Header
from rmaplab.trace.play import Player
from rmaplab.trace.script import PAGE, Layout, Process

HOME: Final = 0x10000000
AWAY: Final = 0x20000000
BEYOND: Final = 0x30000000
BARE: Final = Layout(stack=0x7FFFFFFF0000, length=PAGE, linked=0x7FFFFFFF0000, heap=0)


class Obligation(AssertionError):
    """An obligation that was broken.

    places: (mm id, address) of the entries by which it shows
    """

    def __init__(self, words: str, places: list[tuple[int, int]]) -> None:
        super().__init__(words)
        self.places: Final = places


class World(script.World):
    """The machine of a scenario, and the folio that it is about.

    events: operations of processes, in order, that set the world up; once it is, those since then
    """

    def __init__(
        self,
        execution: Execution | None,
        design: type[ReverseMap],
        machine: type[Machine] = Machine,
        large_folios: int = 0,
    ) -> None:
        super().__init__(BARE, MAP_FIXED)
        self.events: Final[list[Event]] = []
        self.machine: Final = machine(
            PROFILES[REFERENCE], [design], scheduler=execution, large_folios=large_folios
        )
        self.head = 0
        self.addr = HOME
        self.pinned = 0  # a page that somebody has pinned
        self.program: MM | None = None  # that process 3 is about to execute; the folio is of its stack
        self._player: Final = Player(self.machine, Header(recorder="race"))
        self._made = 0

    def do(self, event: Event) -> int:
        self.events.append(event)
        if event.op == "fault" and event.length == PAGE:
            # It may fail: another thread may have unmapped the page.
            event = msgspec.structs.replace(event, result=-EFAULT)
        return self._player.do(event)

    def number_of_name(self, name: str) -> int:
        raise NotImplementedError("no scenario gives names to mappings")

    def process(self, pid: int) -> Process:
        return Process(self, pid)

    def spawn(self, pid: int) -> Process:
        """A process with nothing mapped."""
        process = self.process(pid)
        process.exec()
        process.munmap(BARE.stack, BARE.length)
        return process

    def mm(self, pid: int) -> MM:
        return self.machine.mm_of(pid)

    def isolate(self) -> None:
        """Take a reference to the folio at `addr` of the program, or of process 1, or of process 2 if 1 has none."""
        for mm in (self.program, self.mm(1), self.mm(2)):
            entry = 0 if mm is None else mm.page_table.get(self.addr)
            if entry & PTE_ANON:
                self.head = entry >> PTE_SHIFT
                self.machine.get_folio(self.head)
                return
        raise AssertionError("the scenario has no folio to look for")

    # What users do, each in one task

    def look(self) -> None:
        referenced_folio(self.machine, self.head)

    def reclaim(self) -> None:
        swap_out_folio(self.machine, self.head, again=True)

    def migrate(self) -> None:
        migrate_folio(self.machine, self.head)

    def begin_migration(self) -> None:
        self.machine.lock_folio(self.head)
        self.machine.leader.hold(self.head)
        self._made = unmap(self.machine, self.head)
        self.machine.unlock_folio(self.head)

    def finish_migration(self) -> None:
        machine = self.machine
        machine.lock_folio(self.head)
        move(machine, self.head, self._made)
        machine.leader.unhold(self.head)
        machine.unlock_folio(self.head)
        machine.put_folio(self.head)

    def check(self) -> None:
        """The obligations."""
        broken = first_broken(self.machine)
        if broken is not None:
            raise Obligation(*broken)
