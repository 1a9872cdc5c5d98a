# SPDX-License-Identifier: GPL-2.0-or-later
"""One program for two players: a history for the model, and operations for player.c.

    >>> from rmaplab.mm.profile import PROFILES
    >>> program = Program("four faults")
    >>> program.mmap(4, at=0)
    0
    >>> with program.timed():
    ...     program.write(0, 4)
    >>> program.counts(PROFILES["7.3"])["pages zeroed"]
    4

Its words are those of trace/script.py.  Both do the same, in the same order, at the same addresses.  All processes run
on one CPU: a child begins to run when its parent waits for it, or it stays, asleep, until its parent ends, which waits
for it to be ready.  So at any time one process works, and the order of the history is that of the kernel.

Invariant: exactly one process of a program has timed parts, and what is counted is what the model does in them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rmaplab.measure.cost import add_counts, counts_of
from rmaplab.mm import abi
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import PTE_PRESENT, PTE_WRITE
from rmaplab.mm.profile import Profile
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.trace.events import FAULT_WRITE, Event
from rmaplab.trace.history import FileEntry, Header, History
from rmaplab.trace.play import Player
from rmaplab.trace.script import PAGE, Layout, Process, World

ARENA: Final = 0x10_0000_0000  # bytes; nothing else is there
LEAF: Final = 512  # pages that one leaf of a page table maps

# As in player.c.
_FORK, _WAIT, _START, _STOP, _ROUND, _RECLAIM = range(10, 16)
_OP: Final = struct.Struct("<7q")
_OPS: Final[dict[str, tuple[int, tuple[str, ...]]]] = {  # those that are one event, and its fields
    "mmap": (1, ("addr", "length", "prot", "flags", "file", "offset")),
    "munmap": (2, ("addr", "length")),
    "mprotect": (3, ("addr", "length", "prot")),
    "mremap": (4, ("addr", "length", "length2", "flags", "addr2", "result")),
    "madvise": (5, ("addr", "length", "flags")),
    "mlock": (6, ("addr", "length")),
    "munlock": (7, ("addr", "length")),
}
_WRITE, _READ = 8, 9

# What player.c has of its own when it begins, as far as fork copies it: data, bss, the heap of the C library and
# the stack, with the pages that it touched (/proc/PID/smaps of a process that plays).
_OWN: Final = ((0x4C_0000, 6, 4), (0x4C_7000, 6, 6), (0x4D_0000, 34, 2))
_LAYOUT: Final = Layout(0x7FFC_0000_0000, 33 * PAGE, 0x7FFF_FFFD_E000, 0x4F_0000)


class _Tape(World):
    """What happens in the order in which it does: as events, and as operations of player.c."""

    def __init__(self) -> None:
        super().__init__(_LAYOUT, abi.MAP_FIXED | abi.MAP_NORESERVE)
        self.events: list[Event | bool] = []  # True and False: the timed part begins and ends
        self.ops: Final[list[tuple[int, ...]]] = []

    def do(self, event: Event) -> int:
        self.events.append(event)
        if event.op == "fault":
            self.ops.append((_WRITE if event.flags & FAULT_WRITE else _READ, event.addr, event.length // PAGE))
        elif event.op in _OPS:
            code, fields = _OPS[event.op]
            self.ops.append((code, *(getattr(event, field) for field in fields)))
        return event.result

    def number_of_name(self, name: str) -> int:
        raise HistoryError("player.c gives no names to mappings")


class Program(Process):
    """A program: `name`, and what the process of it that works now does, in pages from ARENA on."""

    def __init__(self, name: str) -> None:
        tape = _Tape()
        super().__init__(tape, tape.new_pid(), ARENA, PAGE)
        self.name: Final = name
        self.reclaims = False  # needs a memory cgroup of its own
        self.racers: list[tuple[int, list[Event]]] = []  # the process and its turn, of each
        self._tape: Final = tape
        self._unwaited: list[list[Event | bool]] = []  # what children do who were not waited for
        self._staying: list[Process] = []
        self.exec()
        own = Process(tape, self.pid)
        for addr, pages, touched in _OWN:
            own.mmap(pages * PAGE, at=addr)
            own.write(addr, touched * PAGE)
        tape.ops.clear()

    def reclaim(self, addr: int, pages: int) -> None:
        """What reclaim does when memory is short, to pages that MADV_FREE gave up, and which are all that can be had.
        It asks whether they are in use, and unmaps them, by a walk each (shrink_folio_list())."""
        self.reclaims = True
        self.referenced(addr, pages)
        self.swap_out(addr, pages)
        self._tape.ops.append((_RECLAIM, ARENA + addr * PAGE, pages * PAGE))

    # Processes

    @contextmanager
    def child(self, stays: bool = False) -> Iterator[None]:
        """fork(2): inside, the child works.  It ends before the next `wait` returns, or stays for its parent's life."""
        assert stays or not self._unwaited, "wait for one child before the next is forked"
        tape, place = self._tape, len(self._tape.ops)
        child = Process(tape, self.pid).fork()
        tape.ops.append(())  # its length is not known yet
        outside = self.pid, tape.events, self._unwaited, self._staying
        self.pid, tape.events, self._unwaited, self._staying = child.pid, [], [], []
        yield
        if not stays:
            self.end()
        tape.ops[place] = (_FORK, len(tape.ops) - place - 1, int(stays))
        did = tape.events
        self.pid, tape.events, self._unwaited, self._staying = outside
        if stays:
            tape.events += did
            self._staying.append(child)
        else:
            self._unwaited.append(did)

    def wait(self) -> None:
        """For the end of the child that does not stay."""
        self._tape.ops.append((_WAIT,))
        for did in self._unwaited:
            self._tape.events += did
        self._unwaited.clear()

    def fork_and_exit(self) -> None:
        """A child that ends at once."""
        with self.child():
            pass
        self.wait()

    def end(self) -> None:
        """The process that works ends, and so do those that it made stay."""
        assert not self._unwaited, "wait for the children that do not stay"
        for process in self._staying:
            process.exit()
        self.exit()

    # What is measured

    @contextmanager
    def timed(self) -> Iterator[None]:
        tape = self._tape
        tape.ops.append((_START,))
        tape.events.append(True)
        yield
        tape.ops.append((_STOP,))
        tape.events.append(False)

    @contextmanager
    def racer(self) -> Iterator[None]:
        """A process that the first one forks when all is set up, and that does again and again what is inside
        (player.c, race)."""
        assert self.pid == 1 and not self._unwaited
        tape = self._tape
        outside = tape.events
        tape.ops.append((_ROUND,))
        self.pid, tape.events = tape.new_pid(), []
        yield
        assert not self._unwaited and not self._staying, "what a racer forks ends with its turn"
        self.racers.append((self.pid, [event for event in tape.events if isinstance(event, Event)]))
        self.pid, tape.events = 1, outside

    # The two players

    def write_ops(self, path: Path) -> None:
        """For player.c."""
        path.write_bytes(b"".join(_OP.pack(*op, *[0] * (7 - len(op))) for op in self._tape.ops))

    def history(self) -> History:
        """All of it, timed or not."""
        header = Header(recorder="rmaplab calibrate", command=self.name, files=[FileEntry(0)])
        return History(header, (event for event in self._tape.events if isinstance(event, Event)))

    def counts(self, profile: Profile) -> dict[str, int]:
        """What the model counts in the timed parts, by the keys of a cost profile; anon_vma is the design."""
        machine = Machine(profile, [AnonVmaRmap])
        player = Player(machine, Header(recorder="", files=[FileEntry(0)]))
        ledgers = (machine.ledger, machine.leader.ledger)
        counts, before = dict[str, int](), dict[str, int]()
        for event in self._tape.events:
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
    for addr in range(event.addr, end + PAGE, PAGE):
        if addr >= end or table.get(addr) & wanted:
            if start < addr:
                yield Event("fault", event.pid, start, addr - start, flags=event.flags)
            start = addr + PAGE
