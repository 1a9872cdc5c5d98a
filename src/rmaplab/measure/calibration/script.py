# SPDX-License-Identifier: GPL-2.0-or-later
"""One program for two players: a history for the model, and operations for player.c.

    >>> from rmaplab.mm.profile import PROFILES
    >>> script = Script("four faults")
    >>> script.map(ARENA, 4)
    >>> with script.timed():
    ...     script.write(ARENA, 4)
    >>> script.counts(PROFILES["6.12"])["pages zeroed"]
    4

Both do the same, in the same order, at the same addresses.  All processes run on one CPU: a child begins to run when
its parent waits for it, or it stays, asleep, until its parent ends, which waits for it to be ready.  So at any time one
process works, and the order of the history is that of the kernel.

Invariant: exactly one process of a script has timed parts, and what is counted is what the model does in them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rmaplab.measure.cost import add_counts, counts_of
from rmaplab.mm import abi
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import PTE_PRESENT, PTE_WRITE
from rmaplab.mm.profile import Profile
from rmaplab.mm.vma import PAGE_SIZE
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.trace.events import FAULT_WRITE, Event
from rmaplab.trace.history import FileEntry, Header, History
from rmaplab.trace.play import Player

ARENA: Final = 0x10_0000_0000  # bytes; nothing else is there
LEAF: Final = 512 * PAGE_SIZE  # bytes that one leaf of a page table maps
RW: Final = abi.PROT_READ | abi.PROT_WRITE
ANON: Final = abi.MAP_PRIVATE | abi.MAP_ANONYMOUS | abi.MAP_NORESERVE

# As in player.c.
(_MMAP, _MUNMAP, _MPROTECT, _MREMAP, _MADVISE, _MLOCK, _MUNLOCK, _WRITE, _READ, _FORK, _WAIT, _START, _STOP,
 _ROUND, _RECLAIM) = range(1, 16)  # fmt: skip
_OP: Final = struct.Struct("<7q")

# What player.c has of its own when it begins, as far as fork copies it: data, bss, the heap of the C library and
# the stack, with the pages that it touched (/proc/PID/smaps of a process that plays).
_OWN: Final = ((0x4C_0000, 6, 4), (0x4C_7000, 6, 6), (0x4D_0000, 34, 2))
_STACK: Final = (0x7FFC_0000_0000, 33 * PAGE_SIZE, 0x7FFF_FFFD_E000, 0x4F_0000)


class Script:
    """A program: `name`, and what it does."""

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self.reclaims = False  # needs a memory cgroup of its own
        self.racers: list[tuple[int, list[Event]]] = []  # the process and its turn, of each
        self._events: list[Event | bool] = []  # True and False: the timed part begins and ends
        self._ops: list[tuple[int, ...]] = []
        self._pid = 1
        self._next_pid = 2
        self._unwaited: list[list[Event | bool]] = []  # what children do who were not waited for
        self._staying: list[int] = []
        self._events.append(Event("exec", 1, _STACK[0], _STACK[1], offset=_STACK[2], addr2=_STACK[3]))
        for addr, pages, touched in _OWN:
            self._events.append(Event("mmap", 1, addr, pages * PAGE_SIZE, RW, ANON | abi.MAP_FIXED, result=addr))
            self._events.append(Event("fault", 1, addr, touched * PAGE_SIZE, flags=FAULT_WRITE))

    # System calls and accesses; addresses in bytes, lengths in pages.

    def map(self, addr: int, pages: int, prot: int = RW, flags: int = ANON, file: int = -1, offset: int = 0) -> None:
        length, flags = pages * PAGE_SIZE, flags | abi.MAP_FIXED
        self._event("mmap", addr, length, prot=prot, flags=flags, file=file, offset=offset, result=addr)
        self._op(_MMAP, addr, length, prot, flags, file, offset)

    def unmap(self, addr: int, pages: int) -> None:
        self._event("munmap", addr, pages * PAGE_SIZE)
        self._op(_MUNMAP, addr, pages * PAGE_SIZE)

    def protect(self, addr: int, pages: int, prot: int) -> None:
        self._event("mprotect", addr, pages * PAGE_SIZE, prot=prot)
        self._op(_MPROTECT, addr, pages * PAGE_SIZE, prot)

    def move(self, addr: int, pages: int, to: int) -> None:
        """mremap() to a place of one's own choice."""
        self.remap(addr, pages, pages, abi.MREMAP_MAYMOVE | abi.MREMAP_FIXED, to, to)

    def grow(self, addr: int, pages: int, new_pages: int) -> None:
        """mremap() that grows, or shrinks, in place."""
        self.remap(addr, pages, new_pages, 0, 0, addr)

    def remap(self, addr: int, pages: int, new_pages: int, flags: int, to: int, result: int) -> None:
        length, new_length = pages * PAGE_SIZE, new_pages * PAGE_SIZE
        self._event("mremap", addr, length, length2=new_length, flags=flags, addr2=to, result=result)
        self._op(_MREMAP, addr, length, new_length, flags, to, result)

    def advise(self, addr: int, pages: int, advice: int) -> None:
        self._event("madvise", addr, pages * PAGE_SIZE, flags=advice)
        self._op(_MADVISE, addr, pages * PAGE_SIZE, advice)

    def reclaim(self, addr: int, pages: int) -> None:
        """What reclaim does when memory is short, to pages that MADV_FREE gave up, and which are all that can be had.
        It asks whether they are in use, and unmaps them, by a walk each (shrink_folio_list())."""
        self.reclaims = True
        self._event("referenced", addr, pages * PAGE_SIZE)
        self._event("swap_out", addr, pages * PAGE_SIZE)
        self._op(_RECLAIM, addr, pages * PAGE_SIZE)

    def write(self, addr: int, pages: int = 1) -> None:
        self._event("fault", addr, pages * PAGE_SIZE, flags=FAULT_WRITE)
        self._op(_WRITE, addr, pages)

    def read(self, addr: int, pages: int = 1) -> None:
        self._event("fault", addr, pages * PAGE_SIZE)
        self._op(_READ, addr, pages)

    # Processes

    @contextmanager
    def child(self, stays: bool = False) -> Iterator[None]:
        """fork(2): inside, the child works.  It ends before the next `wait` returns, or stays for its parent's life."""
        assert stays or not self._unwaited, "wait for one child before the next is forked"
        parent, place = self._pid, len(self._ops)
        outside = self._events, self._unwaited, self._staying
        child = self._next_pid
        self._next_pid += 1
        self._event("fork", pid2=child)
        self._op(_FORK, 0, int(stays))
        self._pid, self._events, self._unwaited, self._staying = child, [], [], []
        yield
        if not stays:
            self.end()
        self._ops[place] = (_FORK, len(self._ops) - place - 1, int(stays))
        did = self._events
        self._pid, (self._events, self._unwaited, self._staying) = parent, outside
        if stays:
            self._events += did
            self._staying.append(child)
        else:
            self._unwaited.append(did)

    def wait(self) -> None:
        """For the end of the child that does not stay."""
        self._op(_WAIT)
        for did in self._unwaited:
            self._events += did
        self._unwaited.clear()

    def fork_and_exit(self) -> None:
        """A child that ends at once."""
        with self.child():
            pass
        self.wait()

    def end(self) -> None:
        """The process that works ends, and so do those that it made stay."""
        assert not self._unwaited, "wait for the children that do not stay"
        for pid in self._staying:
            self._events.append(Event("exit", pid))
        self._event("exit")

    # What is measured

    @contextmanager
    def timed(self) -> Iterator[None]:
        self._op(_START)
        self._events.append(True)
        yield
        self._op(_STOP)
        self._events.append(False)

    @contextmanager
    def racer(self) -> Iterator[None]:
        """A process that the first one forks when all is set up, and that does again and again what is inside
        (player.c, race)."""
        assert self._pid == 1 and not self._unwaited
        outside = self._events
        self._op(_ROUND)
        self._pid, self._events = self._next_pid, []
        self._next_pid += 1
        yield
        assert not self._unwaited and not self._staying, "what a racer forks ends with its turn"
        self.racers.append((self._pid, [event for event in self._events if isinstance(event, Event)]))
        self._pid, self._events = 1, outside

    # The two players

    def write_ops(self, path: Path) -> None:
        """For player.c."""
        path.write_bytes(b"".join(_OP.pack(*op, *[0] * (7 - len(op))) for op in self._ops))

    def history(self) -> History:
        """All of it, timed or not."""
        header = Header(recorder="rmaplab calibrate", command=self.name, files=[FileEntry(0)])
        return History(header, (event for event in self._events if isinstance(event, Event)))

    def counts(self, profile: Profile) -> dict[str, int]:
        """What the model counts in the timed parts, by the keys of a cost profile; anon_vma is the design."""
        machine = Machine(profile, [AnonVmaRmap])
        player = Player(machine, Header(recorder="", files=[FileEntry(0)]))
        ledgers = (machine.ledger, machine.leader.ledger)
        counts, before = dict[str, int](), dict[str, int]()
        for event in self._events:
            if isinstance(event, Event):
                player.play(faulting(machine, event))
                continue
            now = add_counts(counts_of(ledger) for ledger in ledgers)
            if event:
                before = now
            else:
                counts = add_counts([counts, {key: count - before.get(key, 0) for key, count in now.items()}])
        assert player.differences == [], f"{self.name}: {player.differences[0]}"
        return {key: count for key, count in counts.items() if count}

    def _event(self, op: str, addr: int = 0, length: int = 0, **fields: int) -> None:
        self._events.append(Event(op, self._pid, addr, length, **fields))

    def _op(self, *op: int) -> None:
        self._ops.append(op)


def faulting(machine: Machine, event: Event) -> Iterator[Event]:
    """`event`, if it is no fault, else the runs of its pages that cannot be accessed without one: a program touches
    pages, but only what the page table does not allow is a fault."""
    if event.op != "fault":
        yield event
        return
    table = machine.mm_of(event.pid).page_table
    wanted = PTE_WRITE if event.flags & FAULT_WRITE else PTE_PRESENT
    end = event.addr + event.length
    start = event.addr
    for addr in range(event.addr, end + PAGE_SIZE, PAGE_SIZE):
        if addr >= end or table.get(addr) & wanted:
            if start < addr:
                yield Event("fault", event.pid, start, addr - start, flags=event.flags)
            start = addr + PAGE_SIZE
