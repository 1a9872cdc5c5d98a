# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine in a test: the words of trace/script.py, with what a test looks at afterwards.

    world = World(AnonVmaRmap)
    parent = world.spawn()
    addr = parent.mmap(4 * PAGE, at=0x7F00_0000_0000)
    parent.write(addr)
    child = parent.fork()
    assert child.pfn(addr) == parent.pfn(addr)

A system call that fails returns -errno, as in Linux; an access that gets a signal fails the test, unless it is
`Process.fault()`, which says so.  tests/mm/space.py and tests/rmap/world.py add what their tests need.
"""

from __future__ import annotations

import errno
from typing import Self

from rmaplab.check.histories import header
from rmaplab.mm.abi import MAP_FIXED
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import PTE_ANON, PTE_FILE, PTE_KSM, PTE_MIGRATION, PTE_SHIFT, PTE_SWAP, PTE_ZERO
from rmaplab.mm.profile import PROFILES, REFERENCE, Profile
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import MM, VMA
from rmaplab.sync.locks import Scheduler
from rmaplab.trace import script
from rmaplab.trace.events import FAULT_WRITE, Event
from rmaplab.trace.play import Player
from rmaplab.trace.script import PAGE, Layout

# A stack where its page offset says, and one that exec moved down.
HOME = Layout(0x7FFF_FFFF_E000, PAGE, 0x7FFF_FFFF_E000, 0x5555_5555_0000)
MOVED = HOME._replace(stack=HOME.stack - 5 * PAGE)
DISK, MEMORY = 0, 1  # files, of which the second is shared memory


class Process(script.Process):
    """A process of a `World`, and what is there of it."""

    @property
    def machine(self) -> Machine:
        return self.at_home.machine

    @property
    def at_home(self) -> World:
        assert isinstance(self.world, World)
        return self.world

    @property
    def mm(self) -> MM:
        """Its address space."""
        return self.machine.mm_of(self.pid)

    @property
    def stack(self) -> int:
        """Its stack's last page, in bytes."""
        return self.mm.start_stack - PAGE

    def process(self, pid: int) -> Self:
        """Another one, who counts as this one does."""
        return type(self)(self.world, pid, self._origin, self._unit)

    def fault(self, addr: int, write: bool) -> int:
        """An access to one page; what the fault returns."""
        return self.at_home.play(Event("fault", self.pid, self.address(addr), PAGE, flags=FAULT_WRITE * write))

    def written(self, length: int, at: int | None = None, file: int = -1, offset: int = 0) -> int:
        """A mapping whose pages were all written to."""
        addr = self.mmap(length, at, file=file, offset=offset)
        self.write(addr, length)
        return addr

    def address(self, addr: int) -> int:
        """`addr` in bytes."""
        return self._origin + addr * self._unit

    def vma(self, addr: int) -> VMA:
        vma = self.mm.tree.at(self.address(addr))
        assert vma is not None, f"nothing is mapped at {self.address(addr):#x}"
        return vma

    def entry(self, addr: int) -> str:
        """What the page table has: "", "anon", "ksm", "zero", "file", "swap", "migration"."""
        entry = self.mm.page_table.get(self.address(addr))
        if entry & PTE_KSM:
            return "ksm"
        for kind, name in (
            (PTE_ANON, "anon"),
            (PTE_ZERO, "zero"),
            (PTE_FILE, "file"),
            (PTE_SWAP, "swap"),
            (PTE_MIGRATION, "migration"),
        ):
            if entry & kind:
                return name
        return ""

    def has(self, bit: int, addr: int) -> bool:
        """Is a PTE_* flag set there?"""
        return self.mm.page_table.get(self.address(addr)) & bit != 0

    def pfn(self, addr: int) -> int:
        """The anonymous page mapped there."""
        entry = self.mm.page_table.get(self.address(addr))
        assert entry & PTE_ANON, f"no anonymous page at {self.address(addr):#x}"
        return entry >> PTE_SHIFT

    def mapcount(self, addr: int) -> int:
        count: int = self.machine.folios.mapcount.m[self.pfn(addr)]
        return count


class World(script.World):
    """A machine that `designs` watch, the first of which leads."""

    def __init__(
        self,
        *designs: type[ReverseMap],
        profile: Profile = PROFILES[REFERENCE],
        large_folios: int = 0,
        layout: Layout = HOME,
        scheduler: Scheduler | None = None,
    ) -> None:
        super().__init__(layout, fixed=MAP_FIXED)
        self.machine = Machine(profile, designs, large_folios=large_folios, scheduler=scheduler)
        self.player = Player(self.machine, header(), batch=False)

    def spawn(self, layout: Layout | None = None) -> Process:
        """A process fresh from exec."""
        process = Process(self, self.new_pid())
        process.exec(layout)
        return process

    def process(self, pid: int) -> Process:
        return Process(self, pid)

    def play(self, event: Event) -> int:
        """Do what `event` says; what it returns."""
        event.result = -errno.EFAULT  # the player takes no answer from the event
        return self.player.do(event)

    def do(self, event: Event) -> int:
        if event.op != "fault":
            return self.play(event)
        for addr in range(event.addr, event.addr + event.length, PAGE):
            assert self.play(Event("fault", event.pid, addr, PAGE, flags=event.flags)) == 0, f"a signal at {addr:#x}"
        return 0

    def number_of_name(self, name: str) -> int:
        return header().names.index(name)
