# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's perf events (perf_event_open(2), kernel/events/): what tasks do to memory, from rings to a Timeline.

Events collected, for a process and all its descendants:

- exceptions:page_fault_user and page_fault_kernel: every fault, with address and kind; the kernel's own faults on
  user addresses (copy_to_user()) are faults of the process, too;
- raw_syscalls:sys_enter and sys_exit of the calls in calls.py, with registers and results;
- mmap_lock:mmap_lock_acquire_returned, of writers: the order (timeline.py);
- task:task_newtask, which has the flags of fork, vfork, clone and clone3;
- perf's own records: COMM (exec's point of no return), MMAP2 (a VMA made by mmap, by exec's loader, or by the growth of
  a stack), FORK, EXIT, LOST.

Each CPU has two rings.  One has only faults, so all its records are alike, and a NumPy array of records is what it
holds; millions of faults are never looked at one by one.  The other has the rest.  While the command runs, a thread
moves the contents of the rings to temporary files without a name (so that nothing is left of them when we are killed).
They are read back in windows of time, so memory does not grow with the run.

Invariant: a window has all records of each ring up to its end; a Timeline gets the windows in order.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import re
import select
import struct
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from rmaplab.trace.calls import BY_NUMBER
from rmaplab.trace.reduce import CLONE_THREAD, Faults, Reducer
from rmaplab.trace.timeline import Timeline

__all__ = ["NotPermitted", "PerfEvents", "Spool"]

_TRACEFS: Final = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
_FAULTS: Final = ("exceptions:page_fault_user", "exceptions:page_fault_kernel")
_CALLS: Final = ("raw_syscalls:sys_enter", "raw_syscalls:sys_exit", "task:task_newtask")
_LOCK: Final = "mmap_lock:mmap_lock_acquire_returned"
_FOLLOWED: Final = "||".join(f"id=={number}" for number in sorted(BY_NUMBER))
_FILTERS: Final = {
    "exceptions:page_fault_kernel": "address<0x800000000000",
    "raw_syscalls:sys_enter": _FOLLOWED,
    "raw_syscalls:sys_exit": _FOLLOWED,
    _LOCK: "write==1&&success==1",
}

_SYS_PERF_EVENT_OPEN: Final = 298
_TYPE_TRACEPOINT: Final = 2
_SAMPLE: Final = 1 << 1 | 1 << 2 | 1 << 10  # PERF_SAMPLE_TID, TIME, RAW
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
_WHO: Final = struct.Struct("<iiQ")  # pid, tid, time: of samples at their start, of records at their end
_TASKS: Final = struct.Struct("<iiii")
_MAPPED: Final = struct.Struct("<iiQQQIIQQII")
_RAW: Final = 28  # where a sample's tracepoint data begin: header, who, size

_WINDOW: Final = 1 << 23  # bytes of a ring that are looked at at a time
_FAULT_ERROR_WRITE: Final = 2  # X86_PF_WRITE

_libc: Final = ctypes.CDLL(None, use_errno=True)


class NotPermitted(Exception):
    """This recorder may not run here."""


class Tracepoint:
    """One of the kernel's tracepoints: number, and where its fields are (events/*/format in tracefs)."""

    def __init__(self, tracefs: Path, name: str) -> None:
        directory = tracefs / "events" / name.replace(":", "/")
        self.number: Final = int((directory / "id").read_text())
        text = (directory / "format").read_text()
        found = re.findall(r"\sfield:[^;]*?(\w+)(?:\[\d+\])?;\s*offset:(\d+);\s*size:(\d+);", text)
        self.fields: Final = {name: (int(offset), int(size)) for name, offset, size in found}

    def offset(self, field: str) -> int:
        return self.fields[field][0]


def _tracefs() -> Path:
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


class _Ring:
    """A ring buffer that the kernel writes, and the file that it is emptied into."""

    def __init__(self, descriptor: int, size: int) -> None:
        rights = mmap.PROT_READ | mmap.PROT_WRITE
        self.descriptor: Final = descriptor
        self.file: Final[IO[bytes]] = tempfile.TemporaryFile(buffering=0)
        self._size: Final = size
        self._map: Final = mmap.mmap(descriptor, mmap.PAGESIZE + size, mmap.MAP_SHARED, rights)
        self._data: Final = memoryview(self._map)[mmap.PAGESIZE :]
        # data_head and data_tail of struct perf_event_mmap_page: up to where the kernel has written, and we have read.
        self._ends = memoryview(self._map)[1024:1040].cast("Q")

    def drain(self) -> None:
        """Move all that there is into the file.

        :raises OSError: the disk is full
        """
        head, tail = self._ends[0], self._ends[1]
        while tail < head:
            start = tail % self._size
            tail += self.file.write(self._data[start : min(start + head - tail, self._size)])
            self._ends[1] = tail

    def close(self) -> None:
        self._data.release()
        self._ends.release()
        self._map.close()


class PerfEvents:
    """Collects what process `pid` and its descendants do, from now.

    size: bytes of each ring, of which there are two a CPU

    :raises NotPermitted: this recorder may not run here; the message says why and what to do
    """

    def __init__(self, pid: int, size: int) -> None:
        tracefs = _tracefs()
        self._points: Final = {name: Tracepoint(tracefs, name) for name in (*_FAULTS, *_CALLS)}
        try:
            self._points[_LOCK] = Tracepoint(tracefs, _LOCK)
        except OSError:
            pass  # a kernel older than 5.11: the order is inferred
        self._descriptors: Final[list[int]] = []
        self._rings: Final[list[tuple[int, _Ring, _Ring]]] = []  # of a CPU: calls, faults
        self._failure: OSError | None = None
        try:
            for cpu in _online_cpus():
                calls = [name for name in (*_CALLS, _LOCK) if name in self._points]
                self._rings.append(
                    (cpu, self._ring(pid, cpu, size, calls), self._ring(pid, cpu, size, _FAULTS))
                )
        except OSError as error:
            self._close()
            raise NotPermitted(_reason(error)) from None
        self._stop: Final = os.eventfd(0, os.EFD_CLOEXEC)
        self._collector: Final = threading.Thread(target=self._collect, daemon=True)
        self._collector.start()

    def _ring(self, pid: int, cpu: int, size: int, names: Sequence[str]) -> _Ring:
        """A ring, with tracepoints that write to it."""
        ring: _Ring | None = None
        for name in names:
            flags = _INHERIT | _WATERMARK | _USE_CLOCKID
            if name == "raw_syscalls:sys_enter":
                flags |= _RECORDS
            if names is not _FAULTS:
                flags |= _SAMPLE_ID_ALL
            point = self._points[name]
            attr = _ATTR.pack(
                _TYPE_TRACEPOINT, _ATTR.size, point.number, 1, _SAMPLE, 0, flags, size // 4, 0, 0, 0, 0, 0, 0,
                _CLOCK_MONOTONIC, 0, 0, 0, 0,
            )  # fmt: skip
            descriptor = _libc.syscall(_SYS_PERF_EVENT_OPEN, attr, pid, cpu, -1, _CLOEXEC)
            if descriptor < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            self._descriptors.append(descriptor)
            if ring is None:
                ring = _Ring(descriptor, size)
            else:
                fcntl.ioctl(descriptor, _SET_OUTPUT, ring.descriptor)
            if name in _FILTERS:
                fcntl.ioctl(descriptor, _SET_FILTER, _FILTERS[name].encode() + b"\0")
        assert ring is not None
        return ring

    def _collect(self) -> None:
        poll = select.poll()
        poll.register(self._stop, select.POLLIN)
        rings = [ring for _, *both in self._rings for ring in both]
        for ring in rings:
            poll.register(ring.descriptor, select.POLLIN)
        while True:
            ready = poll.poll(200)
            try:
                for ring in rings:
                    ring.drain()
            except OSError as error:
                self._failure = error
                return
            for descriptor, events in ready:
                if descriptor == self._stop:
                    return
                if events & select.POLLHUP:  # nobody is left to watch
                    poll.unregister(descriptor)

    def stop(self) -> Spool:
        """Watch no longer; returns what was seen.

        :raises OSError: it could not be kept
        """
        os.eventfd_write(self._stop, 1)
        self._collector.join()
        os.close(self._stop)
        spool = Spool([(cpu, calls.file, faults.file) for cpu, calls, faults in self._rings], self._points)
        # The kernel waits for a grace period for each tracepoint that nobody uses any more: not at our expense.
        threading.Thread(target=self._close, daemon=True).start()
        if self._failure is not None:
            raise self._failure
        return spool

    def _close(self) -> None:
        for _, *both in self._rings:
            for ring in both:
                ring.close()
        for descriptor in self._descriptors:
            os.close(descriptor)


def _online_cpus() -> list[int]:
    cpus: list[int] = []
    for part in Path("/sys/devices/system/cpu/online").read_text().strip().split(","):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return cpus


def _reason(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return "perf events are not permitted: be root, or have root say sysctl kernel.perf_event_paranoid=-1"
    return f"perf events cannot be used ({error.strerror})"


class Spool:
    """What the rings held: for each CPU a file of records of calls, and one of faults."""

    def __init__(self, files: list[tuple[int, IO[bytes], IO[bytes]]], points: dict[str, Tracepoint]) -> None:
        self._files: Final = files
        self._points: Final = points

    @property
    def size(self) -> int:
        """Bytes of all records."""
        return sum(os.fstat(file.fileno()).st_size for _, *both in self._files for file in both)

    def tell(self, timeline: Timeline, reducer: Reducer) -> None:
        """Have `timeline` put it all in order, and `reducer` take it."""
        decoder = _Decoder(timeline, self._points)
        calls = [_Stream(_calls(file, cpu)) for cpu, file, _ in self._files]
        faults = [_Stream(decoder.faults(file, cpu)) for cpu, _, file in self._files]
        streams: list[_Stream] = [*calls, *faults]
        while any(not stream.over for stream in streams):
            # A window ends where the ring ends that has been read least far.
            end = min(stream.end for stream in streams if not stream.over)
            records = [record for stream in calls for block in stream.take(end) for record in block.tolist()]
            records.sort(key=lambda record: record[0])
            for record in records:
                decoder.take(*record)
            touched = Faults.joined([block for stream in faults for block in stream.take(end)])
            timeline.touched(touched[np.argsort(touched.time, kind="stable")])
            timeline.tell(reducer, timeline.settled(end + 1))
        timeline.tell(reducer)


_Record = tuple[int, int, int, int, int, bytes]  # time, cpu, pid, tid, type | misc << 16, contents


class _Records:
    """Records of calls, in the order of time."""

    def __init__(self, records: list[_Record]) -> None:
        self._records: Final = records
        self.time: Final = np.array([record[0] for record in records], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, which: slice) -> _Records:
        return _Records(self._records[which])

    def tolist(self) -> list[_Record]:
        return self._records


class _Stream:
    """The blocks of a ring (_Records or Faults), taken window by window.

    end:  up to when all is known; over: there are no more blocks
    """

    def __init__(self, blocks: Iterator[Any]) -> None:
        self._blocks: Final[Iterator[Any]] = blocks
        self._held: list[Any] = []
        self.end = 0
        self.over = False
        self._read()

    def _read(self) -> None:
        block = next(self._blocks, None)
        if block is None:
            self.over = True
        else:
            self.end = int(block.time[-1])
            self._held.append(block)

    def take(self, end: int) -> list[Any]:
        """What happened up to `end`; read on if that is all that was known."""
        taken: list[Any] = []
        held, self._held = self._held, []
        for block in held:
            place = int(np.searchsorted(block.time, end, side="right"))
            taken.append(block[:place])
            if place < len(block):
                self._held.append(block[place:])
        if self.end <= end and not self.over:
            self._read()
        return taken


def _parts(file: IO[bytes]) -> Iterator[bytearray]:
    """The file part by part; what the taker leaves in a part comes again at the start of the next."""
    file.seek(0)
    data = bytearray()
    while part := file.read(_WINDOW):
        data += part
        yield data


def _calls(file: IO[bytes], cpu: int) -> Iterator[_Records]:
    """What a ring of calls held."""
    header, who = _HEADER.unpack_from, _WHO.unpack_from
    for part in _parts(file):
        data = bytes(part)
        records: list[_Record] = []
        at, size = 0, len(data)
        while at + 8 <= size:
            kind, misc, length = header(data, at)
            if at + length > size:
                break
            if kind == _SAMPLE_RECORD:
                pid, tid, time = who(data, at + 8)
                records.append((time, cpu, pid, tid, kind, data[at + _RAW : at + length]))
            else:
                end = at + length - _WHO.size
                pid, tid, time = who(data, end)
                records.append((time, cpu, pid, tid, kind | misc << 16, data[at + 8 : end]))
            at += length
        del part[:at]
        if records:
            records.sort(key=lambda record: record[0])
            yield _Records(records)


class _Decoder:
    """Turns records into what a Timeline understands."""

    def __init__(self, timeline: Timeline, points: dict[str, Tracepoint]) -> None:
        self._timeline: Final = timeline
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
        self._acts: Final = {
            enter.number: self._entered,
            leave.number: self._left,
            new.number: self._flags,
        }
        if _LOCK in points:
            self._acts[points[_LOCK].number] = self._locked

    def take(self, time: int, cpu: int, pid: int, tid: int, kind: int, data: bytes) -> None:
        """Tell of a record."""
        timeline = self._timeline
        if kind == _SAMPLE_RECORD:
            self._acts[data[0] | data[1] << 8](time, cpu, pid, tid, data)
            return
        kind, misc = kind & 0xFFFF, kind >> 16
        if kind == _MMAP2_RECORD:
            _, _, start, length, offset, major, minor, inode, generation, prot, _ = _MAPPED.unpack_from(data)
            path = os.fsdecode(data[_MAPPED.size :].split(b"\0", 1)[0])
            key = f"{major:02x}:{minor:02x} {inode} {generation}"
            timeline.mapped(time, cpu, tid, start, length, prot, offset, path, key)
        elif kind == _FORK:
            child_pid, parent_pid, child, parent = _TASKS.unpack_from(data)
            timeline.new_task(time, cpu, parent, child, CLONE_THREAD if child_pid == parent_pid else 0)
        elif kind == _EXIT:
            timeline.gone(time, cpu, _TASKS.unpack_from(data)[2])
        elif kind == _COMM_RECORD:
            pid, tid = struct.unpack_from("<ii", data)
            comm = data[8:].split(b"\0", 1)[0].decode(errors="replace")
            timeline.named(time, cpu, pid, tid, comm, misc & _MISC_COMM_EXEC != 0)
        elif kind == _LOST:
            timeline.lost += struct.unpack_from("<QQ", data)[1]
        elif kind == _LOST_SAMPLES:
            timeline.lost += struct.unpack_from("<Q", data)[0]

    def _entered(self, time: int, cpu: int, pid: int, tid: int, data: bytes) -> None:
        call = BY_NUMBER.get(int.from_bytes(data[self._id : self._id + 8], "little"))
        if call is not None:
            self._timeline.enter(time, tid, call, list(struct.unpack_from("<6Q", data, self._args)))

    def _left(self, time: int, cpu: int, pid: int, tid: int, data: bytes) -> None:
        call = BY_NUMBER.get(int.from_bytes(data[self._exit_id : self._exit_id + 8], "little"))
        if call is not None:
            self._timeline.leave(time, cpu, pid, tid, call, struct.unpack_from("<q", data, self._ret)[0])

    def _flags(self, time: int, cpu: int, pid: int, tid: int, data: bytes) -> None:
        child, flags = (
            struct.unpack_from("<i", data, self._new_pid)[0],
            struct.unpack_from("<Q", data, self._clone_flags)[0],
        )
        self._timeline.flags_of_new_task(time, cpu, tid, child, flags)

    def _locked(self, time: int, cpu: int, pid: int, tid: int, data: bytes) -> None:
        self._timeline.lock(time, tid)

    def faults(self, file: IO[bytes], cpu: int) -> Iterator[Faults]:
        """What a ring of faults held."""
        for data in _parts(file):
            pieces: list[npt.NDArray[np.uint8]] = []
            at, size = 0, len(data)
            while at + 8 <= size:
                kind, _, length = _HEADER.unpack_from(data, at)
                if at + length > size:
                    break
                if kind == _SAMPLE_RECORD:
                    # As many as are alike: all, unless something was lost in between.
                    nr_records = (size - at) // length
                    piece = np.frombuffer(bytes(data[at : at + nr_records * length]), dtype=np.uint8)
                    piece = piece.reshape(nr_records, length)
                    other = np.flatnonzero((piece[:, :8] != piece[0, :8]).any(axis=1))
                    pieces.append(piece[: other[0]] if len(other) else piece)
                    length *= len(pieces[-1])
                elif kind in (_LOST, _LOST_SAMPLES):
                    self._timeline.lost += struct.unpack_from("<Q", data, at + (16 if kind == _LOST else 8))[
                        0
                    ]
                at += length
            del data[:at]
            if pieces:
                yield self._faults_of(np.concatenate(pieces), cpu)

    def _faults_of(self, records: npt.NDArray[np.uint8], cpu: int) -> Faults:
        def column(offset: int, kind: type[np.generic]) -> npt.NDArray[Any]:
            size = np.dtype(kind).itemsize
            return np.ascontiguousarray(records[:, offset : offset + size]).view(kind)[:, 0]

        write = (column(self._error_code, np.int64) & _FAULT_ERROR_WRITE != 0).astype(np.int8)
        cpus = np.full(len(records), cpu, dtype=np.int16)
        faults = Faults(
            column(16, np.int64), cpus, column(12, np.int32), column(self._address, np.uint64), write
        )
        return faults[np.argsort(faults.time, kind="stable")]
