# SPDX-License-Identifier: GPL-2.0-or-later
"""Hypothesis' stateful testing: a machine that Hypothesis drives, event by event.

    class Mine(Histories):
        designs = (AnonVmaRmap, MyRmap)

    TestMine = Mine.TestCase

Where the author of check/histories.py writes histories by the million, this one is for depth: each rule draws its
own few arguments, so Hypothesis can tell the parts of a history apart, reuses those that led somewhere, and shrinks a
failure event by event, and each event to the smallest addresses.  The failing history is printed in the words of
`rmaplab verify`.

Everything happens at 24 pages and in up to six processes; the truth is checked after every event.
"""

from __future__ import annotations

from typing import ClassVar

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from rmaplab.check.histories import ADVICE, ARENA, FILES, header
from rmaplab.check.lockstep import Checker
from rmaplab.mm import abi
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import PAGE_SHIFT, PAGE_SIZE
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.rmap.cow_context import CowContextRmap
from rmaplab.trace.events import FAULT_WRITE, Event
from rmaplab.trace.play import Player

PAGES = 24
PROCESSES = 6

_RW = abi.PROT_READ | abi.PROT_WRITE
addresses = st.integers(0, PAGES - 1).map(lambda page: ARENA + (page << PAGE_SHIFT))
lengths = st.integers(1, 6).map(lambda pages: pages * PAGE_SIZE)
rights = st.sampled_from((_RW, abi.PROT_READ, abi.PROT_NONE, _RW | abi.PROT_EXEC))
who = st.integers(0, PROCESSES - 1)  # the nth of those that live


class Histories(RuleBasedStateMachine):
    """Any history, checked after every event.

    designs: to watch, the one that merges least first; it leads
    large_folios: highest order of folios
    stack: address of the stack, the only VMA to begin with, which has a page
    """

    designs: ClassVar[tuple[type[ReverseMap], ...]] = (AnonVmaRmap, CowContextRmap)
    machine_class: ClassVar[type[Machine]] = Machine
    large_folios: ClassVar[int] = 0
    stack: ClassVar[int] = ARENA - (600 << PAGE_SHIFT)

    @initialize()
    def begin(self) -> None:
        self.machine = self.machine_class(PROFILES[REFERENCE], self.designs, large_folios=self.large_folios)
        self.player = Player(self.machine, header(), batch=False)
        self.checker = Checker(self.machine)
        self.events: list[Event] = []
        self.do(Event("exec", 1, addr=self.stack, length=4 * PAGE_SIZE, offset=ARENA + 8 * PAGE_SIZE))

    def do(self, event: Event) -> None:
        """Play an event, unless it is impossible now, and check everything."""
        try:
            event.result = self.player.do(event)
        except HistoryError:
            return
        self.events.append(event)
        note(str(event))
        wrong = [found.what for found in self.checker.check(len(self.events) - 1, event) if found.is_error]
        assert not wrong, "\n".join([*wrong, *(str(event) for event in self.events)])

    def pid(self, number: int) -> int:
        living = list(self.machine.processes)
        return living[number % len(living)]

    @rule(who=who, addr=addresses, length=lengths, prot=rights, file=st.sampled_from((-1, -1, 0, 1)))
    def mmap(self, who: int, addr: int, length: int, prot: int, file: int) -> None:
        kind = abi.MAP_PRIVATE | (abi.MAP_ANONYMOUS if file < 0 else 0)
        if file == 1:
            kind = abi.MAP_SHARED
        offset = 0 if file < 0 else addr - ARENA
        assert file < len(FILES)
        flags = kind | abi.MAP_FIXED
        self.do(Event("mmap", self.pid(who), addr, length, prot=prot, flags=flags, file=file, offset=offset))

    @rule(who=who, addr=addresses, length=lengths)
    def munmap(self, who: int, addr: int, length: int) -> None:
        self.do(Event("munmap", self.pid(who), addr, length))

    @rule(who=who, addr=addresses, length=lengths, prot=rights)
    def mprotect(self, who: int, addr: int, length: int, prot: int) -> None:
        self.do(Event("mprotect", self.pid(who), addr, length, prot=prot))

    @rule(who=who, addr=addresses, length=lengths, to=addresses, grown=st.integers(-2, 3), keep=st.booleans())
    def mremap(self, who: int, addr: int, length: int, to: int, grown: int, keep: bool) -> None:
        flags = abi.MREMAP_MAYMOVE | abi.MREMAP_FIXED
        new_length = max(PAGE_SIZE, length + grown * PAGE_SIZE)
        if keep:
            flags |= abi.MREMAP_DONTUNMAP
            new_length = length
        self.do(Event("mremap", self.pid(who), addr, length, flags=flags, length2=new_length, addr2=to))

    @rule(who=who, addr=addresses, length=lengths, advice=st.sampled_from(ADVICE))
    def madvise(self, who: int, addr: int, length: int, advice: int) -> None:
        self.do(Event("madvise", self.pid(who), addr, length, flags=advice))

    @rule(who=who, addr=addresses, length=lengths, lock=st.booleans())
    def mlock(self, who: int, addr: int, length: int, lock: bool) -> None:
        self.do(Event("mlock" if lock else "munlock", self.pid(who), addr, length))

    @rule(who=who, addr=addresses, pages=st.integers(1, 4), write=st.booleans())
    def touch(self, who: int, addr: int, pages: int, write: bool) -> None:
        for page in range(pages):  # each has a result of its own
            here = addr + page * PAGE_SIZE
            self.do(Event("fault", self.pid(who), here, PAGE_SIZE, flags=FAULT_WRITE if write else 0))

    @precondition(lambda self: len(self.machine.processes) < PROCESSES)
    @rule(who=who)
    def fork(self, who: int) -> None:
        child = 1 + max(event.pid2 or event.pid for event in self.events)
        self.do(Event("fork", self.pid(who), pid2=max(child, 1 + max(self.machine.processes))))

    @precondition(lambda self: len(self.machine.processes) > 1)
    @rule(who=who)
    def exit(self, who: int) -> None:
        self.do(Event("exit", self.pid(who)))

    @rule(who=who, addr=addresses, length=lengths, how=st.sampled_from(("swap_out", "migrate", "referenced")))
    def walk(self, who: int, addr: int, length: int, how: str) -> None:
        self.do(Event(how, self.pid(who), addr, length))

    @rule(who=who, addr=addresses, other=who, other_addr=addresses)
    def ksm(self, who: int, addr: int, other: int, other_addr: int) -> None:
        self.do(Event("ksm", self.pid(who), addr, pid2=self.pid(other), addr2=other_addr))

    @rule(who=who, to=addresses, source=addresses, length=lengths)
    def uffd_move(self, who: int, to: int, source: int, length: int) -> None:
        self.do(Event("uffd_move", self.pid(who), to, length, addr2=source))
