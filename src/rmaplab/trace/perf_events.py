# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's perf events (perf_event_open(2), kernel/events/): what tasks do to memory, from rings to a Timeline.

Events collected, for a process and all its descendants:

- exceptions:page_fault_user and page_fault_kernel: every fault, with address and kind; the kernel's own faults on
  user addresses (copy_to_user()) are faults of the process, too;
- mmap_lock:mmap_lock_acquire_returned of readers, and kmem:mm_page_alloc: how a fault went on;
- raw_syscalls:sys_enter and sys_exit of the calls in calls.py, with registers and results;
- mmap_lock:mmap_lock_acquire_returned, of writers: the order (timeline.py);
- task:task_newtask, which has the flags of fork, vfork, clone and clone3;
- perf's own records: COMM (exec's point of no return), MMAP2 (a VMA made by mmap, by exec's loader, or by the growth of
  a stack), FORK, EXIT, LOST.

Each CPU has four rings.  One has only faults, one only readers' locks and one only pages, so all their records are
alike, and a NumPy array of records is what each holds; millions of faults are never looked at one by one.  They have
the user's instruction, by which a lock or a page is known to be for a fault.  The fourth has the rest.
bpf_events.py uses that for perf's own records alone, and sees the rest with programs of its own, at a third of the
cost, but needs more rights.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import re
import struct
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from rmaplab.trace.batches import ALLOCATED, LOCKED, Faults, Mappings, in_order
from rmaplab.trace.calls import BY_NUMBER
from rmaplab.trace.collector import Block, Records, Stream
from rmaplab.trace.reduce import CLONE_THREAD
from rmaplab.trace.timeline import Timeline

__all__ = ["NotPermitted", "PerfEvents", "Tracepoint", "find_tracefs", "perf_event_open"]

_TRACEFS: Final = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
_FAULTS: Final = ("exceptions:page_fault_user", "exceptions:page_fault_kernel")
_CALLS: Final = ("raw_syscalls:sys_enter", "raw_syscalls:sys_exit", "task:task_newtask")
_PAGE: Final = "kmem:mm_page_alloc"
_LOCK: Final = "mmap_lock:mmap_lock_acquire_returned"
_FOLLOWED: Final = "||".join(f"id=={number}" for number in sorted(BY_NUMBER))
_FILTERS: Final = {
    "exceptions:page_fault_kernel": "address<0x800000000000",
    _PAGE: "gfp_flags&8",  # ___GFP_MOVABLE, as pages of users are
    "raw_syscalls:sys_enter": _FOLLOWED,
    "raw_syscalls:sys_exit": _FOLLOWED,
}
_WRITERS, _READERS = (f"write=={write}&&success==1" for write in (1, 0))  # filters of _LOCK

_SYS_PERF_EVENT_OPEN: Final = 298
_TYPE_SOFTWARE, _TYPE_TRACEPOINT = 1, 2
_DUMMY: Final = 9  # PERF_COUNT_SW_DUMMY
_TIME: Final = 1 << 2  # PERF_SAMPLE_TIME
_SAMPLE: Final = 1 << 1 | _TIME | 1 << 10  # PERF_SAMPLE_TID, TIME, RAW
_REGISTERS: Final = 1 << 12  # PERF_SAMPLE_REGS_USER
_IP: Final = 1 << 8  # of registers: the instruction
# Bits of perf_event_attr (include/uapi/linux/perf_event.h).
_INHERIT, _MMAP, _COMM, _TASK, _WATERMARK = 1 << 1, 1 << 8, 1 << 9, 1 << 13, 1 << 14
_MMAP_DATA, _SAMPLE_ID_ALL, _MMAP2, _COMM_EXEC, _USE_CLOCKID = 1 << 17, 1 << 18, 1 << 23, 1 << 24, 1 << 25
_RECORDS: Final = _MMAP | _COMM | _TASK | _MMAP_DATA | _MMAP2 | _COMM_EXEC  # perf's own
_ATTR: Final = struct.Struct("<IIQQQQQIIQQQQIiQIHH")  # PERF_ATTR_SIZE_VER5
_CLOEXEC: Final = 8  # PERF_FLAG_FD_CLOEXEC
_SET_OUTPUT: Final = 0x2405
_SET_FILTER: Final = 0x40082406
_CLOCK_MONOTONIC: Final = 1

# Types of records, and a bit of `misc`.
_LOST, _COMM_RECORD, _EXIT, _FORK, _SAMPLE_RECORD, _MMAP2_RECORD, _LOST_SAMPLES = 2, 3, 4, 7, 9, 10, 13
_MISC_COMM_EXEC: Final = 1 << 13

_HEADER: Final = struct.Struct("<IHH")
_WHO: Final = struct.Struct("<iiQ")  # pid, tid, time: how samples begin; records have the time at their end
_CLOCK: Final = struct.Struct("<Q")
_TASKS: Final = struct.Struct("<iiii")
_MAPPED: Final = struct.Struct("<iiQQQIIQQII")
# Records of one length: so many make it worth looking for more.  These are looked at together, first so many, then so
# many times more as long as all of them are, up to so many.
_AHEAD, _FIRST, _TIMES, _MOST = 8, 16, 8, 1024
# Where an MMAP2 record has file and path; and where, and of which type: task, start, length, prot and offset.
_FILE: Final = (slice(40, 64), slice(72, -8))
_MAPPED_COLUMNS: Final = ((12, np.int32), (16, np.uint64), (24, np.uint64), (64, np.uint32), (32, np.uint64))
_RAW: Final = 28  # where a sample's tracepoint data begin: header, who, size

_FAULT_ERROR_WRITE: Final = 2  # X86_PF_WRITE

_libc: Final = ctypes.CDLL(None, use_errno=True)


class NotPermitted(Exception):
    """This recorder may not run here."""


class Tracepoint:
    """One of the kernel's tracepoints: number, and where its fields are (events/*/format in tracefs).

    filter: which of its events are wanted, in the kernel's notation
    """

    def __init__(self, tracefs: Path, name: str, filter: str = "") -> None:
        directory = tracefs / "events" / name.replace(":", "/")
        self.filter: Final = filter
        self.number: Final = int((directory / "id").read_text())
        text = (directory / "format").read_text()
        found = re.findall(r"\sfield:[^;]*?(\w+)(?:\[\d+\])?;\s*offset:(\d+);\s*size:(\d+);", text)
        self.fields: Final = {name: (int(offset), int(size)) for name, offset, size in found}

    def offset(self, field: str) -> int:
        return self.fields[field][0]


def find_tracefs() -> Path:
    """Where tracefs is; root may have to mount it.

    :raises NotPermitted: nowhere, or it may not be read
    """
    for attempt in range(2):
        for path in _TRACEFS:
            if os.access(path / "events/raw_syscalls/sys_enter/id", os.R_OK):
                return path
        if attempt == 0 and os.geteuid() == 0:
            _libc.mount(b"tracefs", str(_TRACEFS[0]).encode(), b"tracefs", 0, None)
    raise NotPermitted(f"the tracepoints in {_TRACEFS[0]} may not be read: be root, or have root say "
                       f"mount -o remount,mode=755 {_TRACEFS[0]}")  # fmt: skip


def perf_event_open(
    point: Tracepoint | None, pid: int, cpu: int, flags: int = 0, sample: int = 0, wakeup: int = 0
) -> int:
    """A descriptor of an event of `pid` (-1: of all) on `cpu`: a tracepoint, or one that never happens.

    flags:  bits of perf_event_attr
    sample: what a sample has; 0: there are no samples
    wakeup: bytes in the ring after which the descriptor is readable

    :raises OSError: not permitted
    """
    kind, number = (_TYPE_SOFTWARE, _DUMMY) if point is None else (_TYPE_TRACEPOINT, point.number)
    attr = _ATTR.pack(
        kind, _ATTR.size, number, 1, sample, 0, flags, wakeup, 0, 0, 0, 0, _IP if sample & _REGISTERS else 0, 0,
        _CLOCK_MONOTONIC, 0, 0, 0, 0,
    )
    descriptor: int = _libc.syscall(_SYS_PERF_EVENT_OPEN, attr, pid, cpu, -1, _CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return descriptor


class PerfRing:
    """A ring buffer of perf events; a ring of a size, in bytes, belongs to a descriptor."""

    def __init__(self, descriptor: int, size: int) -> None:
        rights = mmap.PROT_READ | mmap.PROT_WRITE
        self.descriptor: Final = descriptor
        self._size: Final = size
        self._map: Final = mmap.mmap(descriptor, mmap.PAGESIZE + size, mmap.MAP_SHARED, rights)
        self._data: Final = memoryview(self._map)[mmap.PAGESIZE :]
        # data_head and data_tail of struct perf_event_mmap_page: up to where the kernel has written, and we have read.
        self._ends = memoryview(self._map)[1024:1040].cast("Q")

    def drain(self, file: IO[bytes]) -> None:
        """Move all that there is into `file`.

        :raises OSError: the disk is full
        """
        head, tail = self._ends[0], self._ends[1]
        while tail < head:
            start = tail % self._size
            tail += file.write(self._data[start : min(start + head - tail, self._size)])
            self._ends[1] = tail

    def close(self) -> None:
        self._data.release()
        self._ends.release()
        self._map.close()


class PerfEvents:
    """What process `pid` and its descendants do, from now, for a Collector.

    size:     bytes of each ring, of which there are four a CPU
    timeline: is told what is in them
    own:      perf's own records only

    :raises NotPermitted: this recorder may not run here; the message says why and what to do
    """

    def __init__(self, pid: int, size: int, timeline: Timeline, own: bool = False) -> None:
        self._descriptors: Final[list[int]] = []
        self.streams: list[Stream] = []
        points: dict[str, Tracepoint] = {}
        if not own:
            tracefs = find_tracefs()
            names = (*_FAULTS, _PAGE, *_CALLS)
            points |= {name: Tracepoint(tracefs, name, _FILTERS.get(name, "")) for name in names}
            try:
                points |= {which: Tracepoint(tracefs, _LOCK, which) for which in (_WRITERS, _READERS)}
            except OSError:
                pass  # a kernel older than 5.11: the order is inferred
        decoder = _Decoder(timeline, points)
        try:
            for cpu in _online_cpus():
                calls: list[Tracepoint | None] = [points[name] for name in (*_CALLS, _WRITERS) if name in points]
                ring = self._ring(pid, cpu, size, calls or [None], _RECORDS | _SAMPLE_ID_ALL)
                self.streams.append(Stream(ring, partial(decoder.calls, cpu)))
                for which, kind in ((_FAULTS, 0), ((_READERS,), LOCKED), ((_PAGE,), ALLOCATED)):
                    alike = [points[name] for name in which if name in points]
                    if alike:
                        ring = self._ring(pid, cpu, size, alike, 0, _SAMPLE | _REGISTERS)
                        self.streams.append(Stream(ring, partial(decoder.faults, cpu, kind)))
        except OSError as error:
            self.close()
            raise NotPermitted(_reason(error)) from None

    def _ring(
        self, pid: int, cpu: int, size: int, points: Sequence[Tracepoint | None], flags: int, sample: int = _SAMPLE
    ) -> PerfRing:
        """A ring, with events that write to it; `flags`: of the first; `sample`: what samples have."""
        ring: PerfRing | None = None
        for point in points:
            flags |= _INHERIT | _WATERMARK | _USE_CLOCKID
            descriptor = perf_event_open(point, pid, cpu, flags, _TIME if point is None else sample, size // 4)
            self._descriptors.append(descriptor)
            if ring is None:
                ring = PerfRing(descriptor, size)
                flags &= ~_RECORDS
            else:
                fcntl.ioctl(descriptor, _SET_OUTPUT, ring.descriptor)
            if point is not None and point.filter:
                fcntl.ioctl(descriptor, _SET_FILTER, point.filter.encode() + b"\0")
        assert ring is not None
        return ring

    def settled(self, now: int) -> int:
        return now  # calls are told of when they are entered

    def lost(self) -> int:
        return 0  # records say so

    def close(self) -> None:
        for stream in self.streams:
            stream.ring.close()
        for descriptor in self._descriptors:
            os.close(descriptor)


def _online_cpus() -> list[int]:
    """Numbers of the CPUs that run."""
    cpus: list[int] = []
    for part in Path("/sys/devices/system/cpu/online").read_text().strip().split(","):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return cpus


def _reason(error: OSError) -> str:
    """Why perf events cannot be used, and what to do."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return "perf events are not permitted: be root, or have root say sysctl kernel.perf_event_paranoid=-1"
    return f"perf events cannot be used ({error.strerror})"


def _file(data: bytes) -> tuple[str, str]:
    """Path and key of what an MMAP2 record tells of, which follows its header."""
    if data.startswith(b"//anon", _MAPPED.size):
        return "", ""
    major, minor, inode, generation = _MAPPED.unpack_from(data)[5:9]
    path = os.fsdecode(data[_MAPPED.size : data.index(0, _MAPPED.size)])
    return path, f"{major:02x}:{minor:02x} {inode} {generation}"


def _column(records: npt.NDArray[np.uint8], offset: int, kind: type[np.generic]) -> npt.NDArray[Any]:
    """A field of records of one size, by where it is in each."""
    size = np.dtype(kind).itemsize
    return np.ascontiguousarray(records[:, offset : offset + size]).view(kind)[:, 0]


def _alike(data: bytes, at: int, length: int, cpu: int) -> Mappings:
    """Of MMAP2 records of `length` bytes, one after the other from `at` on, as many as there are."""
    nr_there = min((len(data) - at) // length, _MOST)
    nr_records = _FIRST
    while True:
        nr_records = min(nr_records, nr_there)
        records: npt.NDArray[np.uint8] = np.frombuffer(data, np.uint8, nr_records * length, at).reshape(-1, length)
        other = np.flatnonzero((records[:, :8] != records[0, :8]).any(axis=1))
        if len(other) or nr_records == nr_there:
            break
        nr_records *= _TIMES
    records = records[: other[0]] if len(other) else records
    columns = np.empty((8, len(records)), dtype=np.int64)
    columns[1] = cpu
    fields: list[tuple[int, type[np.generic]]] = [(length - 8, np.int64), *_MAPPED_COLUMNS]
    for i, (offset, kind) in zip((0, 2, 3, 4, 5, 6), fields, strict=True):
        columns[i] = _column(records, offset, kind)
    named = np.concatenate([records[:, part] for part in _FILE], axis=1)
    names: list[bytes] = named.view(f"V{named.shape[1]}")[:, 0].tolist() if (named != named[0]).any() else [b""]
    starts = {name: at + i * length for i, name in enumerate(names)}  # one of each file
    number = {name: i for i, name in enumerate(starts)}
    columns[7] = [number[name] for name in names]
    return Mappings(columns, [_file(data[start + 8 : start + length]) for start in starts.values()])


# Time, who takes it, cpu, pid, tid, type | misc << 16, contents.
_Record = tuple[int, Callable[..., None], int, int, int, int, bytes]


class _Decoder:
    """Turns records into what a Timeline understands."""

    def __init__(self, timeline: Timeline, points: dict[str, Tracepoint]) -> None:
        self._timeline: Final = timeline
        self._acts: Final[dict[int, Callable[..., None]]] = {}
        if not points:
            return
        fault = points["exceptions:page_fault_user"]
        self._address: Final = _RAW + fault.offset("address")
        self._error_code: Final = _RAW + fault.offset("error_code")
        enter, leave = points["raw_syscalls:sys_enter"], points["raw_syscalls:sys_exit"]
        new = points["task:task_newtask"]
        self._id: Final = enter.offset("id")
        self._args: Final = enter.offset("args")
        self._exit_id: Final = leave.offset("id")
        self._ret: Final = leave.offset("ret")
        self._new_pid: Final = new.offset("pid")
        self._clone_flags: Final = new.offset("clone_flags")
        self._acts.update({enter.number: self._entered, leave.number: self._left, new.number: self._flags})
        if _WRITERS in points:
            self._acts[points[_WRITERS].number] = self._locked

    def calls(self, cpu: int, part: bytearray) -> Sequence[Block]:
        """What a ring of calls held."""
        header, who, clock = _HEADER.unpack_from, _WHO.unpack_from, _CLOCK.unpack_from
        data = bytes(part)
        records: list[_Record] = []
        mapped: list[Mappings] = []
        at, size = 0, len(data)
        while at + 8 <= size:
            kind, misc, length = header(data, at)
            if at + length > size:
                break
            if kind == _MMAP2_RECORD and data.startswith(data[at : at + 8], at + _AHEAD * length):
                mapped.append(_alike(data, at, length, cpu))
                at += len(mapped[-1]) * length
                continue
            if kind == _SAMPLE_RECORD:
                pid, tid, time = who(data, at + 8)
                point = data[at + _RAW] | data[at + _RAW + 1] << 8
                records.append((time, self._acts[point], cpu, pid, tid, 0, data[at + _RAW : at + length]))
            else:
                pid, tid, _ = who(data, at + 8)
                (time,) = clock(data, at + length - 8)
                records.append((time, self._record, cpu, pid, tid, kind | misc << 16, data[at + 8 : at + length]))
            at += length
        del part[:at]
        records.sort(key=lambda record: record[0])
        times = np.array([record[0] for record in records], dtype=np.int64)
        return [Records(records, times, times), Mappings.joined(mapped)]

    def _record(self, time: int, act: object, cpu: int, pid: int, tid: int, kind: int, data: bytes) -> None:
        """Tell of one of perf's own records."""
        timeline = self._timeline
        kind, misc = kind & 0xFFFF, kind >> 16
        if kind == _MMAP2_RECORD:
            _, _, start, length, offset, _, _, _, _, prot, _ = _MAPPED.unpack_from(data)
            timeline.mapped(time, cpu, tid, start, length, prot, offset, *_file(data))
        elif kind == _FORK and self._acts:  # a source with programs of its own knows when the lock was taken
            child_pid, parent_pid, child, parent = _TASKS.unpack_from(data)
            timeline.new_task(time, cpu, parent, child, CLONE_THREAD if child_pid == parent_pid else 0)
        elif kind == _EXIT:
            timeline.gone(time, cpu, _TASKS.unpack_from(data)[2])
        elif kind == _COMM_RECORD:
            pid, tid = struct.unpack_from("<ii", data)
            comm = os.fsdecode(data[8:].split(b"\0", 1)[0])
            timeline.named(time, cpu, pid, tid, comm, misc & _MISC_COMM_EXEC != 0)
        elif kind == _LOST:
            timeline.lost += struct.unpack_from("<QQ", data)[1]
        elif kind == _LOST_SAMPLES:
            timeline.lost += struct.unpack_from("<Q", data)[0]

    def _entered(self, time: int, act: object, cpu: int, pid: int, tid: int, kind: int, data: bytes) -> None:
        call = BY_NUMBER.get(int.from_bytes(data[self._id : self._id + 8], "little"))
        if call is not None:
            self._timeline.enter(time, tid, call, list(struct.unpack_from("<6Q", data, self._args)))

    def _left(self, time: int, act: object, cpu: int, pid: int, tid: int, kind: int, data: bytes) -> None:
        call = BY_NUMBER.get(int.from_bytes(data[self._exit_id : self._exit_id + 8], "little"))
        if call is not None:
            self._timeline.leave(time, cpu, pid, tid, call, struct.unpack_from("<q", data, self._ret)[0])

    def _flags(self, time: int, act: object, cpu: int, pid: int, tid: int, kind: int, data: bytes) -> None:
        child, flags = (
            struct.unpack_from("<i", data, self._new_pid)[0],
            struct.unpack_from("<Q", data, self._clone_flags)[0],
        )
        self._timeline.flags_of_new_task(time, cpu, tid, child, flags)

    def _locked(self, time: int, act: object, cpu: int, pid: int, tid: int, kind: int, data: bytes) -> None:
        self._timeline.lock(time, tid)

    def faults(self, cpu: int, how: int, data: bytearray) -> Sequence[Block]:
        """What a ring of faults held, or of `how` they went on."""
        pieces: list[Faults] = []
        at, size = 0, len(data)
        while at + 8 <= size:
            kind, _, length = _HEADER.unpack_from(data, at)
            if at + length > size:
                break
            if kind == _SAMPLE_RECORD:
                # As many as are alike: all, unless something was lost in between, or a task has no registers.
                nr_records = (size - at) // length
                piece = np.frombuffer(bytes(data[at : at + nr_records * length]), dtype=np.uint8)
                piece = piece.reshape(nr_records, length)
                other = np.flatnonzero((piece[:, :8] != piece[0, :8]).any(axis=1))
                piece = piece[: other[0]] if len(other) else piece
                pieces.append(self._faults_of(piece, cpu, how))
                length *= len(piece)
            elif kind in (_LOST, _LOST_SAMPLES):
                self._timeline.lost += struct.unpack_from("<Q", data, at + (16 if kind == _LOST else 8))[0]
            at += length
        del data[:at]
        faults = Faults.joined(pieces)
        return [faults[in_order(faults.time)]]

    def _faults_of(self, records: npt.NDArray[np.uint8], cpu: int, how: int) -> Faults:
        nr_records, length = records.shape
        cpus = np.full(nr_records, cpu, dtype=np.int16)
        time, pid, tid = (_column(records, *field) for field in ((16, np.int64), (8, np.int32), (12, np.int32)))
        addr, ip = np.zeros((2, nr_records), dtype=np.uint64)
        registers = _RAW + int(_column(records, _RAW - 4, np.uint32)[0])  # of which sort, and the instruction
        if registers + 16 <= length:
            ip = _column(records, registers + 8, np.uint64)
        if how:
            return Faults(time, cpus, tid, addr, np.full(nr_records, how, dtype=np.int8), pid, ip)
        addr = _column(records, self._address, np.uint64)
        write = (_column(records, self._error_code, np.int64) & _FAULT_ERROR_WRITE != 0).astype(np.int8)
        return Faults(time, cpus, tid, addr, write, pid, ip)
