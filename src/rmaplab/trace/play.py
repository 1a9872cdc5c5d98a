# SPDX-License-Identifier: GPL-2.0-or-later
"""A history played on a machine: each event becomes the system call, fault or act that it records.

The kernel's answers are part of a history, and the machine has to give the same ones: an address, 0 or
an errno that differs is kept as a `Difference`.  Two answers are taken from the history instead of being
asked for: where the kernel was free to place a mapping, and failures whose cause lies outside memory
management (a file that may not be mapped, say), which changed nothing.

Consecutive faults of one process that touch consecutive pages are applied as one run.  They commute with
nothing but themselves (a fault in another process may copy what this one would have reused), so a run
ends with the first event that is anything else.

Invariant: batched or one by one, the machine ends up in the same state, page numbers included.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

import msgspec

from rmaplab.mm.abi import MAP_FIXED, MAP_FIXED_NOREPLACE, MREMAP_FIXED
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.machine import Machine
from rmaplab.mm.vma import MM, PAGE_SHIFT, PAGE_SIZE, File
from rmaplab.trace.events import FAULT_WRITE, OPS, Event
from rmaplab.trace.history import FileEntry, Header
from rmaplab.trace.maps import MapsDifference, compare_maps

# Errors that a memory system call reports on behalf of somebody else: the file, limits, a signal.
_FROM_OUTSIDE: Final = frozenset(
    -number
    for number in (
        errno.EBADF,
        errno.EACCES,
        errno.EPERM,
        errno.ENODEV,
        errno.EAGAIN,
        errno.EINTR,
        errno.ENFILE,
        errno.ETXTBSY,
        errno.EOVERFLOW,
        errno.ENOSYS,
    )
)


class Difference(msgspec.Struct, frozen=True):
    """An event whose result the machine does not reproduce.

    number: the event's place in its history, from 0
    got:    what the machine returned where the history has `event.result`
    """

    number: int
    event: Event
    got: int

    def __str__(self) -> str:
        event = self.event
        return (
            f"event {self.number}: {event.op} of process {event.pid} at {event.addr:#x} returned "
            f"{_result(event.result)} when it was recorded and {_result(self.got)} here"
        )


class GeometryDifference(msgspec.Struct, frozen=True):
    """A VMA of process `pid` that only /proc/PID/maps has, or only the machine, at `mark` event `number`."""

    number: int
    pid: int
    difference: MapsDifference

    def __str__(self) -> str:
        return f"process {self.pid} at event {self.number}: {self.difference}"


def _result(value: int) -> str:
    if value < 0:
        return f"-{errno.errorcode.get(-value, str(-value))}"
    return hex(value) if value else "0"


class Player:
    """Plays events on `machine`.

    header: says which files, names and checkpoints the events refer to
    batch:  apply faults on consecutive pages as one run; otherwise each page is touched by itself
    """

    def __init__(self, machine: Machine, header: Header, *, batch: bool = True) -> None:
        self.machine: Final = machine
        machine.mmap_min_addr = header.mmap_min_addr
        self.differences: Final[list[Difference]] = []
        self.played = 0  # events
        self.geometry: Final[list[GeometryDifference]] = []
        self.marks = 0  # checkpoints that were compared
        self._files: Final[dict[int, File]] = {}
        for entry in header.files:
            self.open_file(entry)
        self._names: Final = header.names
        self._checkpoints: Final = {checkpoint.number: checkpoint for checkpoint in header.checkpoints}
        self._batch: Final = batch
        # One method an operation, of its name.
        self._acts: Final[Mapping[str, Callable[[Event], int]]] = {op: getattr(self, f"_{op}") for op in OPS}

    def open_file(self, entry: FileEntry) -> None:
        """Events may map this file from now on."""
        self._files[entry.id] = entry.open()

    def play(self, events: Iterable[Event]) -> None:
        """Play all of `events`.

        :raises HistoryError: an event is impossible; the message has its number
        """
        for _ in self.steps(events):
            pass

    def steps(self, events: Iterable[Event]) -> Iterator[tuple[int, Event]]:
        """Play `events`, and yield after each step the number of events played so far, and the step.

        A step is one event, or one run of faults (then the event is their sum).
        """
        run: Event | None = None  # faults that are not applied yet, as one event
        nr_run = 0
        for event in events:
            if run is not None:
                if (
                    event.op == "fault"
                    and event.addr == run.addr + run.length
                    and event.pid == run.pid
                    and event.flags == run.flags
                    and event.result == 0
                ):
                    if nr_run == 1:
                        run = _copy_of_fault(run)
                    run.length += event.length
                    nr_run += 1
                    continue
                self._step(run, nr_run)
                yield self.played, run
                run = None
            if self._batch and event.op == "fault" and event.result == 0:
                run = event
                nr_run = 1
            else:
                self._step(event, 1)
                yield self.played, event
        if run is not None:
            self._step(run, nr_run)
            yield self.played, run

    def do(self, event: Event) -> int:
        """Do what `event` says, whatever its result was when it was recorded.  Returns the machine's.

        :raises HistoryError: the event is impossible
        """
        act = self._acts.get(event.op)
        if act is None:
            raise HistoryError(f"there is no operation {event.op!r}")
        return act(event)

    def _step(self, event: Event, nr_events: int) -> None:
        if event.result not in _FROM_OUTSIDE:
            try:
                got = self.do(event)
            except HistoryError as error:
                where = f"event {self.played}: {event.op} of process {event.pid}: {error}"
                before = f" (it went another way before: {self.differences[0]})" if self.differences else ""
                raise HistoryError(f"{where}{before}") from None
            if got != event.result:
                self.differences.append(Difference(self.played, event, got))
        self.played += nr_events

    def _mm(self, event: Event) -> MM:
        return self.machine.mm_of(event.pid)

    # Processes

    def _exec(self, event: Event) -> int:
        self.machine.exec(event.pid, event.addr, event.length, event.offset, event.addr2)
        return 0

    def _fork(self, event: Event) -> int:
        self.machine.fork(event.pid, event.pid2, event.flags)
        return 0

    def _exit(self, event: Event) -> int:
        self.machine.exit(event.pid)
        return 0

    # System calls

    def _mmap(self, event: Event) -> int:
        chosen = event.result >= 0 and not event.flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)
        return self.machine.mmap(
            self._mm(event),
            event.addr,
            event.length,
            event.prot,
            event.flags,
            self._file(event.file),
            event.offset,
            event.result if chosen else None,
        )

    def _file(self, number: int) -> File | None:
        if number < 0:
            return None
        file = self._files.get(number)
        if file is None:
            raise HistoryError(f"file {number} is not among the history's {len(self._files)} files")
        return file

    def _munmap(self, event: Event) -> int:
        return self.machine.munmap(self._mm(event), event.addr, event.length)

    def _mprotect(self, event: Event) -> int:
        return self.machine.mprotect(self._mm(event), event.addr, event.length, event.prot)

    def _madvise(self, event: Event) -> int:
        return self.machine.madvise(self._mm(event), event.addr, event.length, event.flags)

    def _mlock(self, event: Event) -> int:
        return self.machine.mlock(self._mm(event), event.addr, event.length, event.flags)

    def _munlock(self, event: Event) -> int:
        return self.machine.munlock(self._mm(event), event.addr, event.length)

    def _mlockall(self, event: Event) -> int:
        return self.machine.mlockall(self._mm(event), event.flags)

    def _munlockall(self, event: Event) -> int:
        return self.machine.munlockall(self._mm(event))

    def _mremap(self, event: Event) -> int:
        chosen = event.result >= 0 and not event.flags & MREMAP_FIXED
        return self.machine.mremap(
            self._mm(event),
            event.addr,
            event.length,
            event.length2,
            event.flags,
            event.addr2,
            event.result if chosen else None,
        )

    def _brk(self, event: Event) -> int:
        return self.machine.brk(self._mm(event), event.addr)

    def _name(self, event: Event) -> int:
        if not 0 <= event.file < len(self._names):
            raise HistoryError(f"name {event.file} is not among the history's {len(self._names)} names")
        return self.machine.set_name(self._mm(event), event.addr, event.length, self._names[event.file])

    # Faults

    def _fault(self, event: Event) -> int:
        mm = self._mm(event)
        write = event.flags & FAULT_WRITE != 0
        if event.result or event.length <= PAGE_SIZE:
            got = self.machine.fault(mm, event.addr, write)
            if got and not event.result and mm.tree.at(event.addr) is None:
                raise HistoryError(f"touches {event.addr:#x}, where nothing is mapped")
            return got
        addr = event.addr
        end = event.addr + event.length
        got = 0
        while addr < end:
            nr_pages = (end - addr + PAGE_SIZE - 1) >> PAGE_SHIFT if self._batch else 1
            touched = self.machine.fault_range(mm, addr, nr_pages, write)
            addr += touched << PAGE_SHIFT
            if touched < nr_pages:  # this page cannot be; what the recording touched after it still can
                if mm.tree.at(addr) is None:
                    raise HistoryError(f"touches {addr:#x}, where nothing is mapped")
                got = -errno.EFAULT
                addr += PAGE_SIZE
        return got

    # Users of the reverse map

    def _swap_out(self, event: Event) -> int:
        self.machine.swap_out(self._mm(event), event.addr, event.length >> PAGE_SHIFT, event.flags)
        return 0

    def _migrate(self, event: Event) -> int:
        self.machine.migrate(self._mm(event), event.addr, event.length >> PAGE_SHIFT)
        return 0

    def _referenced(self, event: Event) -> int:
        self.machine.referenced(self._mm(event), event.addr, event.length >> PAGE_SHIFT)
        return 0

    def _ksm(self, event: Event) -> int:
        other = self.machine.mm_of(event.pid2)
        self.machine.ksm_merge(self._mm(event), event.addr, other, event.addr2, event.flags)
        return 0

    def _uffd_move(self, event: Event) -> int:
        return self.machine.uffd_move(self._mm(event), event.addr, event.addr2, event.length)

    def _mark(self, event: Event) -> int:
        checkpoint = self._checkpoints.get(event.offset)
        if checkpoint is not None:
            self.marks += 1
            self.geometry.extend(
                GeometryDifference(self.played, event.pid, difference)
                for difference in compare_maps(checkpoint.maps, self._mm(event))
            )
        return 0


def _copy_of_fault(event: Event) -> Event:
    """A fault of its own that may grow."""
    return Event("fault", event.pid, event.addr, event.length, 0, event.flags, time=event.time, cpu=event.cpu)
