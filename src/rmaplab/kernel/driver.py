# SPDX-License-Identifier: GPL-2.0-or-later
"""A history's events done in a guest, one at a time.

Each process of a history is a worker in the guest.  What an event asks is done with the system calls that a
program would use; two things need preparation or help:

- execve() puts stack and heap where it likes.  Their worker then moves the stack (mremap) to where the event
  wants it and sets the start of its heap (prctl), and what really happened, page offset included, becomes the
  event that the model plays, followed by the move.
- The folios that a user of the reverse map picks in the guest (reclaim, KSM) are picked by nobody's address.
  Events ask for the nearest that a program can ask for; see each below.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Final

from rmaplab.kernel.errors import GuestError
from rmaplab.kernel.guest import TOUCH, Guest
from rmaplab.kernel.snapshot import Mm
from rmaplab.mm.abi import CLONE_VM, MREMAP_FIXED, MREMAP_MAYMOVE
from rmaplab.trace.events import FAULT_WRITE, Event
from rmaplab.trace.history import FileEntry

_PR_SET_MM: Final = 35
_PR_SET_MM_START_BRK: Final = 6
_PR_SET_MM_BRK: Final = 7
_FIRST_FILE: Final = 600  # descriptor of the history's file 0
_FILE_SIZE: Final = 1 << 46
_ARGUMENTS: Final = 2  # pages at the end of a stack that a new program is taken to have touched
_PAGE: Final = 4096


class Driver:
    """Does events in `guest`.

    look: reads the memory of a process (by the guest's pid), which is needed after execve()
    """

    def __init__(self, guest: Guest, files: Mapping[int, FileEntry], look: Callable[[int], Mm]) -> None:
        self.guest: Final = guest
        self.slots: Final[dict[int, int]] = {}  # by the history's pid
        self.pids: Final[dict[int, int]] = {}  # the history's -> the guest's
        self._look: Final = look
        self._descriptors: Final[dict[int, int]] = {-1: -1}
        for entry in files.values():
            self._open(entry)
        self._acts: Final[Mapping[str, Callable[[Event], int]]] = {
            "exit": self._exit, "fork": self._fork, "mmap": self._mmap, "munmap": self._plain("munmap"),
            "mprotect": self._mprotect, "madvise": self._madvise, "mlock": self._mlock,
            "munlock": self._plain("munlock"), "mlockall": self._mlockall, "munlockall": self._munlockall,
            "mremap": self._mremap, "brk": self._brk, "fault": self._fault,
        }  # fmt: skip

    def known(self) -> frozenset[str]:
        """Operations that can be done."""
        return frozenset(self._acts) | {"exec"}

    def _open(self, entry: FileEntry) -> None:
        guest = self.guest
        if entry.kind == "shmem":
            descriptor = guest.syscall(0, "memfd_create", guest.poke(0, b"shmem\0"), 0)
        else:
            descriptor = guest.open(0, f"/files/{entry.id}", os.O_RDWR | os.O_CREAT)
        kept = _FIRST_FILE + entry.id
        if descriptor < 0 or guest.syscall(0, "dup2", descriptor, kept) != kept:
            raise GuestError(f"the guest cannot make file {entry.id} ({descriptor})")
        guest.syscall(0, "close", descriptor)
        if guest.syscall(0, "ftruncate", kept, _FILE_SIZE) != 0:
            raise GuestError(f"the guest cannot make file {entry.id} large")
        self._descriptors[entry.id] = kept

    def do(self, event: Event) -> list[Event]:
        """Do `event`.  Returns what happened, with results: one event, except after execve()."""
        if event.op == "exec":
            return self._exec(event)
        event.result = self._acts[event.op](event)
        return [event]

    def end(self) -> None:
        """Let all workers exit."""
        for pid in list(self.slots):
            self._exit(Event("exit", pid))

    # Processes

    def _exec(self, event: Event) -> list[Event]:
        guest, pid = self.guest, event.pid
        if pid in self.slots:
            guest.exec(self.slots[pid])
        else:
            self.slots[pid], self.pids[pid] = guest.spawn()
        slot = self.slots[pid]
        if event.addr2:
            for what in (_PR_SET_MM_BRK, _PR_SET_MM_START_BRK):
                result = guest.syscall(slot, "prctl", _PR_SET_MM, what, event.addr2, 0, 0)
                if result:
                    raise GuestError(f"the guest does not let its heap begin at {event.addr2:#x} ({result})")
        mm = self._look(self.pids[pid])
        stack = next(vma for vma in mm.vmas if vma.flags & 0x100)
        length = stack.end - stack.start
        start = Event("exec", pid, stack.start, length, offset=stack.pgoff * _PAGE, addr2=mm.start_brk)
        events = [start]
        touched = [Event("fault", pid, stack.end - _ARGUMENTS * _PAGE, _ARGUMENTS * _PAGE, flags=FAULT_WRITE)]
        touched += [
            Event("fault", pid, addr, _PAGE, flags=FAULT_WRITE)
            for addr in sorted(mm.entries)
            if stack.start <= addr < stack.end - _ARGUMENTS * _PAGE
        ]
        for fault in touched:
            events += self.do(fault)
        if event.addr and event.addr != stack.start:
            flags = MREMAP_MAYMOVE | MREMAP_FIXED
            move = Event("mremap", pid, stack.start, length, flags=flags, length2=length, addr2=event.addr)
            events += self.do(move)
        return events

    def _fork(self, event: Event) -> int:
        flags = event.flags & CLONE_VM  # a parent that waits for its child could do nothing more
        self.slots[event.pid2], self.pids[event.pid2] = self.guest.fork(self.slots[event.pid], flags)
        return 0

    def _exit(self, event: Event) -> int:
        self.guest.exit(self.slots.pop(event.pid), self.pids.pop(event.pid))
        return 0

    # System calls

    def _call(self, event: Event, name: str, *arguments: int) -> int:
        return self.guest.syscall(self.slots[event.pid], name, *arguments)

    def _plain(self, name: str) -> Callable[[Event], int]:
        return lambda event: self._call(event, name, event.addr, event.length)

    def _mmap(self, event: Event) -> int:
        descriptor = self._descriptors[event.file]
        return self._call(
            event, "mmap", event.addr, event.length, event.prot, event.flags, descriptor, event.offset
        )

    def _mprotect(self, event: Event) -> int:
        return self._call(event, "mprotect", event.addr, event.length, event.prot)

    def _madvise(self, event: Event) -> int:
        return self._call(event, "madvise", event.addr, event.length, event.flags)

    def _mlock(self, event: Event) -> int:
        return self._call(event, "mlock2", event.addr, event.length, event.flags)

    def _mlockall(self, event: Event) -> int:
        return self._call(event, "mlockall", event.flags)

    def _munlockall(self, event: Event) -> int:
        return self._call(event, "munlockall")

    def _mremap(self, event: Event) -> int:
        return self._call(event, "mremap", event.addr, event.length, event.length2, event.flags, event.addr2)

    def _brk(self, event: Event) -> int:
        return self._call(event, "brk", event.addr)

    def _fault(self, event: Event) -> int:
        write = int(event.flags & FAULT_WRITE != 0)
        return self.guest.call(self.slots[event.pid], TOUCH, event.addr, event.length, write)
