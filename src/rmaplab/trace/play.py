# SPDX-License-Identifier: GPL-2.0-or-later
"""A history played on a machine: each event becomes the system call, fault or act that it records.

The kernel's answers are part of a history, and the machine has to give the same ones: an address, 0 or
an errno that differs is kept as a `Difference`.  Two answers are taken from the history instead of being
asked for: where the kernel was free to place a mapping, or let root place one, and failures whose cause lies outside
memory management (a file that may not be mapped, say), which changed nothing.

Consecutive faults of one process that touch consecutive pages are applied as one run, and so are those that write to
fresh pages, in any order.  They commute with nothing but themselves (a fault in another process may copy what this one
would have reused), so a run ends with the first event that is anything else.

A history is played by its columns; an event becomes an object where somebody asks for it.

Invariant: batched or one by one, the machine ends up in the same state, page numbers included.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from rmaplab.mm.abi import MAP_FIXED, MAP_FIXED_NOREPLACE, MREMAP_FIXED
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.machine import Machine
from rmaplab.mm.vma import MM, PAGE_SHIFT, PAGE_SIZE, VM_ACCESS_FLAGS, VM_WRITE, File
from rmaplab.mm.vmscan import PLACED
from rmaplab.trace.events import FAULT_WRITE, Event
from rmaplab.trace.history import FileEntry, Header, parts_of
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

_ALL: Final = 1 << 62  # events
_MANY: Final = 16  # faults that are worth arrays, and as many as it takes at a time
_MOST: Final = 1024


class Difference(msgspec.Struct, frozen=True):
    """An event whose result the machine does not reproduce.

    number: the event's place in its history, from 0
    got:    what the machine returned where the history has `event.result`
    """

    number: int
    event: Event
    got: int

    @property
    def what(self) -> str:
        event = self.event
        return (
            f"{event.op} of process {event.pid} at {event.addr:#x} returned "
            f"{_result(event.result)} when it was recorded and {_result(self.got)} here"
        )

    def __str__(self) -> str:
        return f"event {self.number}: {self.what}"


class GeometryDifference(msgspec.Struct, frozen=True):
    """A VMA of process `pid` that only /proc/PID/maps has, or only the machine, at `mark` event `number`."""

    number: int
    pid: int
    difference: MapsDifference

    @property
    def what(self) -> str:
        return f"process {self.pid}: {self.difference}"

    def __str__(self) -> str:
        return f"event {self.number}: {self.what}"


def _result(value: int) -> str:
    if value < 0:
        return f"-{errno.errorcode.get(-value, str(-value))}"
    return hex(value) if value else "0"


class _Part:
    """Some events of a history, one after the other, as a list for each field."""

    def __init__(self, fields: list[Any]) -> None:
        self.fields: Final = fields
        self.nr_rows: Final = len(fields[0])
        self.op: Final[list[str]] = fields[0]
        self.pid: Final[list[int]] = fields[1]
        self.addr: Final[list[int]] = fields[2]
        self.length: Final[list[int]] = fields[3]
        self.prot: Final[list[int]] = fields[4]
        self.flags: Final[list[int]] = fields[5]
        self.addr2: Final[list[int]] = fields[6]
        self.length2: Final[list[int]] = fields[7]
        self.file: Final[list[int]] = fields[8]
        self.offset: Final[list[int]] = fields[9]
        self.pid2: Final[list[int]] = fields[10]
        self.result: Final[list[int]] = fields[11]

    def event(self, row: int) -> Event:
        return Event(*[field[row] for field in self.fields])


class Watcher:
    """Somebody to be told of each step."""

    def look(self, op: str) -> None:
        """A step is about to be played, of one event or of a run of faults."""


class Player:
    """Plays events on `machine`.

    header:  says which files, names and checkpoints the events refer to
    batch:   apply faults on consecutive pages as one run; otherwise each page is touched by itself
    watcher: is told of each step
    """

    def __init__(
        self, machine: Machine, header: Header, *, batch: bool = True, watcher: Watcher | None = None
    ) -> None:
        self.machine: Final = machine
        machine.mmap_min_addr = header.mmap_min_addr
        machine.max_map_count = header.max_map_count or machine.max_map_count
        machine.stack_limit = header.stack_limit
        self._mmap_min_addr: Final = header.mmap_min_addr
        self._stack_limit: Final = header.stack_limit
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
        self._watcher: Final = Watcher() if watcher is None else watcher
        self._parts: Iterator[list[Any]] | None = None  # that are left
        self._part = _Part([[] for _ in Event.__struct_fields__])
        self._row = 0  # of the part: what is played next
        self._last_part = self._part
        self._last_row = 0
        self._last_length = 0  # of a run of faults: the sum
        # Faults that may need fresh pages: who touched a page in the last step (0: nobody), the row behind those of the
        # same process that write to a page each, and the row before which it is not worth to look for many.
        self._pid = 0
        self._writes_end = 0
        self._next_try = 0

    def open_file(self, entry: FileEntry) -> None:
        """Events may map this file from now on."""
        self._files[entry.id] = entry.open()

    def play(self, events: Iterable[Event]) -> None:
        """Play all of `events`.

        :raises HistoryError: an event is impossible; the message has its number
        :raises Exception: a design did; a note has the number and the event
        """
        self.begin(events)
        self.play_to(_ALL)

    def steps(self, events: Iterable[Event]) -> Iterator[tuple[int, Event]]:
        """Play `events`, and yield after each step the number of events played so far, and the step.

        A step is one event, or one run of faults (then the event is their sum).
        """
        self.begin(events)
        while self.step():
            yield self.played, self.last()

    def begin(self, events: Iterable[Event]) -> None:
        """Let `events` be those that step() and play_to() play."""
        self._parts = parts_of(events)
        self._row = self._part.nr_rows

    def play_to(self, played: int) -> bool:
        """Play steps until `played` events or more have been played.  False if there were not so many."""
        while self.played < played:
            if not self._write_to_many(played - self.played) and not self.step():
                return False
        return True

    def _write_to_many(self, most: int) -> bool:
        """Play the next events, at most so many, as one step, as far as they are faults that need fresh pages.  False
        if these are few: then it takes longer to call NumPy than to play them one by one."""
        row = self._row
        pid = self._pid
        if not pid or row < self._next_try or row == self._part.nr_rows:
            return False
        part = self._part
        end = self._writes_end
        if end <= row:
            end = row
            while (
                end < part.nr_rows and part.flags[end] == FAULT_WRITE and part.length[end] == PAGE_SIZE
                and part.pid[end] == pid and part.op[end] == "fault" and part.result[end] == 0
            ):  # fmt: skip
                end += 1
            self._writes_end = end
        end = min(end, row + most, row + _MOST)
        count = 0
        if end - row >= _MANY:
            self._watcher.look("fault")
            try:
                count = self.machine.fault_many(self.machine.mm_of(pid), part.addr[row:end], _MANY)
            except Exception as error:
                error.add_note(f"at event {self.played}, or at one of the {end - row - 1} after it: {part.event(row)}")
                raise
        if not count:
            self._next_try = row + _MANY
            return False
        self._row = row + count
        self.played += count
        self._last_part = part
        self._last_row = row + count - 1
        self._last_length = PAGE_SIZE
        return True

    def step(self) -> bool:
        """Play one step.  False if no event is left."""
        if self._row == self._part.nr_rows and not self._turn():
            return False
        part = self._part
        row = self._row
        op = part.op[row]
        self._watcher.look(op)
        length = part.length[row]
        result = part.result[row]
        self._last_part = part
        self._last_row = row
        self._row = row + 1
        nr_events = 1
        is_fault = op == "fault"
        if is_fault and result == 0 and self._batch:
            pid = part.pid[row]
            addr = part.addr[row]
            flags = part.flags[row]
            while self._row < self._part.nr_rows or self._turn():
                next = self._part
                i = self._row
                if (
                    next.addr[i] != addr + length
                    or next.op[i] != "fault"
                    or next.pid[i] != pid
                    or next.flags[i] != flags
                    or next.result[i]
                ):
                    break
                length += next.length[i]
                nr_events += 1
                self._row = i + 1
        self._last_length = length
        if result >= 0 or result not in _FROM_OUTSIDE:
            if result < 0 and is_fault and self._may_touch(part.pid[row], part.addr[row], part.flags[row]):
                self.machine.stack_limit = 0  # that stack did not grow: the process may have had a limit of its own
            try:
                got = self._do(part, row, length)
            except HistoryError as error:
                where = f"event {self.played}: {op} of process {part.pid[row]}: {error}"
                before = f" (it went another way before: {self.differences[0]})" if self.differences else ""
                raise HistoryError(f"{where}{before}") from None
            except Exception as error:
                error.add_note(f"at event {self.played}: {self.last()}")
                raise
            if result < 0:
                self.machine.stack_limit = self._stack_limit
            self._pid = part.pid[row] if is_fault and got == 0 and self._batch else 0
            if got != result:
                self.differences.append(Difference(self.played, self.last(), got))
        self.played += nr_events
        return True

    def _may_touch(self, pid: int, addr: int, flags: int) -> bool:
        """Would a stack that grew down to `addr` allow the access?  If not, it has grown, and the access failed."""
        process = self.machine.processes.get(pid)
        above = process.mm.tree.first_after(addr) if process is not None else None
        return above is not None and above.flags & (VM_WRITE if flags & FAULT_WRITE else VM_ACCESS_FLAGS) != 0

    def _turn(self) -> bool:
        """Go on with the next part, if there is one."""
        for fields in self._parts or ():
            self._part = _Part(fields)
            self._row = self._writes_end = self._next_try = 0
            return True
        self._parts = None
        return False

    def last(self) -> Event:
        """The last step that was played, as an event."""
        event = self._last_part.event(self._last_row)
        event.length = self._last_length
        return event

    def do(self, event: Event) -> int:
        """Do what `event` says, whatever its result was when it was recorded.  Returns the machine's.

        :raises HistoryError: the event is impossible
        """
        return self._do(_Part([[value] for value in msgspec.structs.astuple(event)]), 0, event.length)

    def _do(self, part: _Part, row: int, length: int) -> int:
        """One branch an operation of trace/events.py; those that are frequent come first.  `length`: of a run of
        faults, the sum."""
        machine = self.machine
        op = part.op[row]
        pid = part.pid[row]
        addr = part.addr[row]
        flags = part.flags[row]
        result = part.result[row]
        if op == "fault":
            return self._fault(machine.mm_of(pid), addr, length, flags & FAULT_WRITE != 0, result)
        if op == "mmap":
            fixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)
            at = None if result < 0 or fixed else result
            if fixed and addr == result:
                self._allow(result)
            file = self._file(part.file[row])
            got = machine.mmap(machine.mm_of(pid), addr, length, part.prot[row], flags, file, part.offset[row], at)
            machine.mmap_min_addr = self._mmap_min_addr
            return got
        if op == "munmap":
            return machine.munmap(machine.mm_of(pid), addr, length)
        if op == "mprotect":
            return machine.mprotect(machine.mm_of(pid), addr, length, part.prot[row])
        if op == "madvise":
            return machine.madvise(machine.mm_of(pid), addr, length, flags)
        if op == "brk":
            return machine.brk(machine.mm_of(pid), addr)
        if op == "mremap":
            addr2 = part.addr2[row]
            fixed = flags & MREMAP_FIXED
            at = None if result < 0 or fixed else result
            if fixed and addr2 == result:
                self._allow(result)
            got = machine.mremap(machine.mm_of(pid), addr, length, part.length2[row], flags, addr2, at)
            machine.mmap_min_addr = self._mmap_min_addr
            return got
        if op == "fork":
            machine.fork(pid, part.pid2[row], flags)
        elif op == "exit":
            machine.exit(pid)
        elif op == "exec":
            machine.exec(pid, addr, length, part.offset[row], part.addr2[row])
        elif op == "mlock":
            return machine.mlock(machine.mm_of(pid), addr, length, flags)
        elif op == "munlock":
            return machine.munlock(machine.mm_of(pid), addr, length)
        elif op == "mlockall":
            return machine.mlockall(machine.mm_of(pid), flags)
        elif op == "munlockall":
            return machine.munlockall(machine.mm_of(pid))
        elif op == "name":
            name = part.file[row]
            if not 0 <= name < len(self._names):
                raise HistoryError(f"name {name} is not among the history's {len(self._names)} names")
            return machine.set_name(machine.mm_of(pid), addr, length, self._names[name])
        elif op == "swap_out":
            if flags & PLACED:
                machine.place_in_swap(machine.mm_of(pid), addr, length >> PAGE_SHIFT, part.offset[row])
            else:
                machine.swap_out(machine.mm_of(pid), addr, length >> PAGE_SHIFT, flags)
        elif op == "migrate":
            machine.migrate(machine.mm_of(pid), addr, length >> PAGE_SHIFT)
        elif op == "referenced":
            machine.referenced(machine.mm_of(pid), addr, length >> PAGE_SHIFT)
        elif op == "ksm":
            machine.ksm_merge(machine.mm_of(pid), addr, machine.mm_of(part.pid2[row]), part.addr2[row], flags)
        elif op == "uffd_move":
            return machine.uffd_move(machine.mm_of(pid), addr, part.addr2[row], length)
        elif op == "mark":
            self._mark(pid, part.offset[row])
        else:
            raise HistoryError(f"there is no operation {op!r}")
        return 0

    def _allow(self, addr: int) -> None:
        """Let the next call map at `addr`, as the kernel did: root may below vm.mmap_min_addr (CAP_SYS_RAWIO)."""
        self.machine.mmap_min_addr = min(self._mmap_min_addr, addr)

    def _file(self, number: int) -> File | None:
        if number < 0:
            return None
        file = self._files.get(number)
        if file is None:
            raise HistoryError(f"file {number} is not among the history's {len(self._files)} files")
        return file

    def _fault(self, mm: MM, addr: int, length: int, write: bool, result: int) -> int:
        if result or length <= PAGE_SIZE:
            got = self.machine.fault(mm, addr, write)
            if got and not result and mm.tree.at(addr) is None:
                raise HistoryError(f"touches {addr:#x}, where nothing is mapped")
            return got
        end = addr + length
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

    def _mark(self, pid: int, number: int) -> None:
        checkpoint = self._checkpoints.get(number)
        if checkpoint is not None:
            self.marks += 1
            self.geometry.extend(
                GeometryDifference(self.played, pid, difference)
                for difference in compare_maps(checkpoint.maps, self.machine.mm_of(pid))
            )
