# SPDX-License-Identifier: GPL-2.0-or-later
"""The vocabulary for writing histories, and for a live machine: processes and their verbs.

    >>> script = Script()
    >>> parent = script.spawn()
    >>> addr = parent.mmap(4 * PAGE, at=0x7F0000000000)
    >>> parent.write(addr, 4 * PAGE)
    >>> child = parent.fork()
    >>> child.write(addr)
    >>> [event.op for event in script.events]
    ['exec', 'mmap', 'fault', 'fork', 'fault']

A `Process` is a handle.  Each of its verbs is one operation of trace/events.py, under the name that Linux has for it,
and makes one event, which its `World` takes: a `Script` records it with the result of success,
and rmaplab/library/machine.py executes it and returns the result.

Addresses and lengths are bytes, as in system calls.  Small histories are easier to read in pages: `in_pages(origin)` is
the same process with addresses that count pages from `origin`, and lengths in pages.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final, NamedTuple, Self

from rmaplab.mm.abi import (
    MAP_ANONYMOUS,
    MAP_FIXED_NOREPLACE,
    MAP_PRIVATE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
)
from rmaplab.mm.errors import HistoryError
from rmaplab.trace.events import FAULT_WRITE, Event
from rmaplab.trace.history import Header, History

PAGE: Final = 4096  # bytes
READ_WRITE: Final = PROT_READ | PROT_WRITE


class Layout(NamedTuple):
    """What execve(2) leaves; all in bytes.

    stack, length: of the stack's VMA, after it was moved down
    linked:        the address that its page offset stands for, where it was before
    heap:          where the heap begins
    """

    stack: int = 0x7FFC_6F8D_3000
    length: int = 0x21000
    linked: int = 0x7FFF_FFFD_E000
    heap: int = 0x5555_5555_9000


SMALL_PROGRAM: Final = Layout()  # as /proc/self/maps has it for a small program on 6.18


class World(ABC):
    """Takes the events of its processes.

    layout: of processes that begin
    fixed:  the flag of mappings that are asked for at an address, where no flags are given
    """

    def __init__(self, layout: Layout = SMALL_PROGRAM, fixed: int = MAP_FIXED_NOREPLACE) -> None:
        self.layout: Final = layout
        self.fixed: Final = fixed
        self._newest = 0  # pid

    @abstractmethod
    def do(self, event: Event) -> int:
        """`event` happens; what it returns, -errno where it failed and the world does not raise."""

    @abstractmethod
    def number_of_name(self, name: str) -> int:
        """What stands for `name` in `name` events."""

    def new_pid(self, wanted: int = 0) -> int:
        """`wanted`, or a pid above all others."""
        pid = wanted or self._newest + 1
        self._newest = max(self._newest, pid)
        return pid


class Process:
    """A process of `world`, by its pid."""

    def __init__(self, world: World, pid: int, origin: int = 0, unit: int = 1) -> None:
        self.world: Final = world
        self.pid = pid
        self._origin: Final = origin
        self._unit: Final = unit
        self._page: Final = PAGE // unit  # the length of a page

    def in_pages(self, origin: int) -> Self:
        """The same process, for who counts: addresses in pages from `origin` (bytes), lengths in pages."""
        return type(self)(self.world, self.pid, origin, PAGE)

    # Processes

    def exec(self, layout: Layout | None = None) -> None:
        """execve(2): a fresh address space that holds a stack."""
        stack, length, linked, heap = layout or self.world.layout
        self.world.do(Event("exec", self.pid, stack, length, offset=linked, addr2=heap))

    def fork(self, flags: int = 0, pid: int = 0) -> Self:
        """fork(2); with CLONE_VM the child shares the address space.

        :param pid: of the child; not given: a new one
        """
        child = self.world.new_pid(pid)
        self.world.do(Event("fork", self.pid, flags=flags, pid2=child))
        return type(self)(self.world, child, self._origin, self._unit)

    def exit(self) -> None:
        """The last thread is gone (exit_group(2))."""
        self.world.do(Event("exit", self.pid))

    # Mappings

    def mmap(
        self,
        length: int,
        at: int | None = None,
        prot: int = READ_WRITE,
        flags: int | None = None,
        file: int = -1,
        offset: int = 0,
    ) -> int:
        """mmap(2); returns the address.

        :param at: where: just there unless `flags` are given, which decide then; not given: where the kernel likes
        :param flags: MAP_*; not given: private, and anonymous unless there is a file
        :param file: number of a file of the history's header; `offset` in it
        """
        world = self.world
        addr = 0 if at is None else self._origin + at * self._unit
        if flags is None:
            flags = MAP_PRIVATE | (MAP_ANONYMOUS if file < 0 else 0) | (0 if at is None else world.fixed)
        event = Event(
            "mmap", self.pid, addr, length * self._unit, prot, flags,
            file=file, offset=offset * self._unit, result=addr,
        )  # fmt: skip
        return self._place(world.do(event))

    def warm(self, at: int, length: int) -> None:
        """Map anonymous memory at `at`, and write to all of it."""
        self.mmap(length, at)
        self.write(at, length)

    def munmap(self, addr: int, length: int) -> int:
        """munmap(2)"""
        return self._do("munmap", addr, length)

    def mprotect(self, addr: int, length: int, prot: int) -> int:
        """mprotect(2); `prot`: PROT_*"""
        return self._do("mprotect", addr, length, prot=prot)

    def madvise(self, addr: int, length: int, advice: int) -> int:
        """madvise(2); `advice`: MADV_*"""
        return self._do("madvise", addr, length, flags=advice)

    def mlock(self, addr: int, length: int, flags: int = 0) -> int:
        """mlock2(2); `flags`: 0 or MLOCK_ONFAULT"""
        return self._do("mlock", addr, length, flags=flags)

    def munlock(self, addr: int, length: int) -> int:
        """munlock(2)"""
        return self._do("munlock", addr, length)

    def mlockall(self, flags: int) -> int:
        """mlockall(2); `flags`: MCL_*"""
        return self.world.do(Event("mlockall", self.pid, flags=flags))

    def munlockall(self) -> int:
        """munlockall(2)"""
        return self.world.do(Event("munlockall", self.pid))

    def mremap(
        self, addr: int, length: int, new_length: int | None = None, to: int | None = None, flags: int | None = None
    ) -> int:
        """mremap(2); returns the address, which is `addr` still where nothing had to move.

        :param new_length: not given: as before
        :param to: just there, unless `flags` are given
        :param flags: MREMAP_*; not given: it may move, and does if there is a `to`
        """
        start = self._origin + addr * self._unit
        target = 0 if to is None else self._origin + to * self._unit
        if flags is None:
            flags = MREMAP_MAYMOVE if to is None else MREMAP_MAYMOVE | MREMAP_FIXED
        event = Event(
            "mremap", self.pid, start, length * self._unit, flags=flags, addr2=target,
            length2=(length if new_length is None else new_length) * self._unit, result=start if to is None else target,
        )  # fmt: skip
        return self._place(self.world.do(event))

    def brk(self, addr: int) -> int:
        """brk(2): the heap ends at `addr`; returns where it ends now."""
        end = self._origin + addr * self._unit
        return self._place(self.world.do(Event("brk", self.pid, end, result=end)))

    def set_name(self, addr: int, length: int, name: str) -> int:
        """prctl(2) PR_SET_VMA_ANON_NAME; "" takes a name away."""
        return self._do("name", addr, length, file=self.world.number_of_name(name))

    def uffd_move(self, to: int, source: int, length: int) -> int:
        """ioctl_userfaultfd(2) UFFDIO_MOVE: pages of `source` change their place, without a copy."""
        return self._do("uffd_move", to, length, addr2=self._origin + source * self._unit)

    # Accesses

    def write(self, addr: int, length: int | None = None) -> None:
        """Write to each page of a range, in order; one page unless there is a length."""
        self._do("fault", addr, length, flags=FAULT_WRITE)

    def read(self, addr: int, length: int | None = None) -> None:
        """Read from each page of a range."""
        self._do("fault", addr, length)

    # What users of the reverse map do to the folios that are mapped in a range

    def referenced(self, addr: int, length: int | None = None) -> None:
        """Ask whether they were accessed lately (folio_referenced())."""
        self._do("referenced", addr, length)

    def swap_out(self, addr: int, length: int | None = None, how: int = 0, offset: int = 0) -> None:
        """Reclaim them (try_to_unmap()); `how`, and `offset` in swap: see mm/vmscan.py."""
        self._do("swap_out", addr, length, flags=how, offset=offset)

    def migrate(self, addr: int, length: int | None = None) -> None:
        """Move them to other frames (try_to_migrate(), remove_migration_ptes())."""
        self._do("migrate", addr, length)

    def ksm(self, addr: int, other: Process, other_addr: int, how: int = 0) -> None:
        """KSM merges a page with one of `other`, as if their contents were the same; `how`: see mm/ksm.py."""
        same = other._origin + other_addr * other._unit
        self.world.do(
            Event("ksm", self.pid, self._origin + addr * self._unit, flags=how, addr2=same, pid2=other.pid)
        )

    def mark(self, number: int = 0) -> None:
        """A moment that somebody wants to find again: a checkpoint, or the end of set-up (see trace/parallel.py)."""
        self.world.do(Event("mark", self.pid, offset=number))

    def _do(self, op: str, addr: int, length: int | None, **fields: int) -> int:
        nr = self._page if length is None else length
        return self.world.do(Event(op, self.pid, self._origin + addr * self._unit, nr * self._unit, **fields))

    def _place(self, addr: int) -> int:
        return addr if addr < 0 else (addr - self._origin) // self._unit  # -errno stays what it is

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Process) and (self.world, self.pid) == (other.world, other.pid)

    def __hash__(self) -> int:
        return hash((id(self.world), self.pid))

    def __repr__(self) -> str:
        return f"<process {self.pid}>"


class Script(World):
    """A history in the making: events with the results that they have where all goes well."""

    def __init__(self, layout: Layout = SMALL_PROGRAM, fixed: int = MAP_FIXED_NOREPLACE) -> None:
        super().__init__(layout, fixed)
        self.events: Final[list[Event]] = []
        self.names: Final[list[str]] = []

    def spawn(self, pid: int = 0) -> Process:
        """A process that begins with execve(2)."""
        process = Process(self, self.new_pid(pid))
        process.exec()
        return process

    def do(self, event: Event) -> int:
        if event.op == "mmap" and not event.addr:
            raise HistoryError("mmap in a script says where: nobody is there who could choose an address")
        self.events.append(event)
        return event.result

    def number_of_name(self, name: str) -> int:
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)

    def __repr__(self) -> str:
        return f"<script of {len(self.events):,} events>"

    def history(self, header: Header) -> History:
        """What was written so far."""
        header.names = self.names
        return History(header, self.events)
