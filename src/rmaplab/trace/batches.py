# SPDX-License-Identifier: GPL-2.0-or-later
"""Plain calls and faults, reduced as columns: no object is made for one of them.

A program may make a million of each in a second.  A call is *plain* if it succeeded, changes the address space of its
caller alone, and its registers tell all of it: an anonymous private mmap(), munmap(), mprotect(), brk(), mremap(),
mlock(), munlock(), and advice that changes nothing which a recorder has to remember.  Everything else (files, forks,
programs executed, calls that fail half-way) is told to the Reducer one by one, between them.

Invariant: the rows are those that would come of them one by one, in the order in which they took effect.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rmaplab.mm.abi import (
    MADV_DOFORK,
    MADV_DONTFORK,
    MAP_ANONYMOUS,
    MAP_GROWSDOWN,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MAP_TYPE,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    PROT_WRITE,
)
from rmaplab.mm.vma import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, TASK_SIZE
from rmaplab.trace.calls import BY_NUMBER, CALLS
from rmaplab.trace.events import FAULT_WRITE
from rmaplab.trace.history import CODE, Rows, empty_columns
from rmaplab.trace.spaces import Process, Range, page_align

__all__ = ["ALLOCATED", "LOCKED", "REGISTERS", "Batch", "Calls", "Changes", "Faults", "Mappings", "Run", "in_order"]

LOCKED, ALLOCATED = 3, 4  # what a row of Faults is that is none: see there

REGISTERS: Final = ("di", "si", "dx", "r10", "r8", "r9")  # of a system call's parameters

_MMAP, _MUNMAP, _BRK, _MREMAP = (CALLS[name].number for name in ("mmap", "munmap", "brk", "mremap"))
_MPROTECT, _PKEY_MPROTECT = CALLS["mprotect"].number, CALLS["pkey_mprotect"].number
_MADVISE: Final = CALLS["madvise"].number
_PLAIN: Final = (
    _MMAP, _MUNMAP, _BRK, _MREMAP, _MPROTECT, _PKEY_MPROTECT, _MADVISE,
    *(CALLS[name].number for name in ("mlock", "mlock2", "munlock")),
)  # fmt: skip
_SEEN: Final = np.dtype([("time", "i8"), ("cpu", "i8"), ("pid", "i4"), ("tid", "i4"), ("number", "i8"),
                         ("result", "i8"), *((name, "u8") for name in REGISTERS)])  # fmt: skip
_NEVER: Final = np.iinfo(np.int64).max
_FEW: Final = 128  # faults that are not worth arrays
_CHUNK: Final = 4096  # faults that become rows at a time


def in_order(times: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | slice:
    """The index by which `times` ascend; what is equal stays as it is."""
    if (times[1:] >= times[:-1]).all():
        return slice(None)
    index: npt.NDArray[np.int64] = np.argsort(times, kind="stable")
    return index


class Calls:
    """System calls that returned, as columns.

    seen:   has fields time (of the return), cpu, pid, tid, number, result, and REGISTERS
    effect: when they took effect
    """

    def __init__(self, seen: npt.NDArray[Any], effect: npt.NDArray[np.int64]) -> None:
        self.seen: Final = seen
        self.effect: Final = effect

    @classmethod
    def joined(cls, parts: Sequence[Calls]) -> Calls:
        """All of `parts`, in the order in which they took effect."""
        if not parts:
            return cls(np.empty(0, dtype=_SEEN), np.empty(0, dtype=np.int64))
        if len(parts) == 1:
            return parts[0][in_order(parts[0].effect)]
        effect = np.concatenate([part.effect for part in parts])
        return cls(np.concatenate([part.seen for part in parts]), effect)[in_order(effect)]

    @property
    def time(self) -> npt.NDArray[np.int64]:
        column: npt.NDArray[np.int64] = self.seen["time"]
        return column

    def __len__(self) -> int:
        return len(self.effect)

    def __getitem__(self, which: slice | npt.NDArray[Any]) -> Calls:
        return Calls(self.seen[which], self.effect[which])

    def plain(self) -> npt.NDArray[np.bool_]:
        """Which of them are plain."""
        seen = self.seen
        number, flags, advice = seen["number"], seen["r10"], seen["dx"] & np.uint64(0xFFFFFFFF)
        kind = flags & np.uint64(MAP_TYPE)
        mine = (flags & np.uint64(MAP_ANONYMOUS) != 0) & (kind != MAP_SHARED) & (kind != MAP_SHARED_VALIDATE)
        remembered = (advice == MADV_DONTFORK) | (advice == MADV_DOFORK)
        plain: npt.NDArray[np.bool_] = (
            (seen["result"] >= 0) & np.isin(number, _PLAIN)
            & ((number != _MMAP) | mine) & ((number != _MADVISE) | ~remembered)
        )  # fmt: skip
        return plain


class Changes:
    """Calls that had mmap_lock for writing, as columns, in the order in which they got it, process by process.

    locked, returned: when they got it, and when they were over
    """

    def __init__(self, calls: Calls, others: Sequence[tuple[int, int, int]]) -> None:
        """others: process, and these two, of those that are not among `calls`"""
        rows = np.array(others, dtype=np.int64).reshape(-1, 3)
        locking = calls.effect < calls.time
        pid = np.concatenate([calls.seen["pid"][locking], rows[:, 0]])
        locked = np.concatenate([calls.effect[locking], rows[:, 1]])
        order = np.lexsort((locked, pid))
        self._pid: Final = pid[order]
        self.locked: Final = locked[order]
        self.returned: Final = np.concatenate([calls.time[locking], rows[:, 2]])[order]

    def between(
        self, pid: npt.NDArray[np.int32], after: npt.NDArray[np.int64], before: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """From where to where in the columns those of each `pid` are that got the lock between these times."""
        start = min(self.locked.min(initial=_NEVER), after.min(initial=_NEVER))
        span = max(self.locked.max(initial=0), before.max(initial=0)) - start + 1
        _, rank = np.unique(np.concatenate([self._pid, pid]), return_inverse=True)
        rank = rank.astype(np.int64) * span - start
        mine, theirs = rank[: len(self._pid)] + self.locked, rank[len(self._pid) :]
        return np.searchsorted(mine, theirs + after, side="right"), np.searchsorted(mine, theirs + before)


class Faults:
    """Faults as columns, in the order in which they happened.

    write: 0 a read, 1 a write, 2 not known; no fault, but how task `tid` went on: LOCKED: it got
           mmap_lock for reading, ALLOCATED: it got a page
    pid:   the process of task `tid`
    ip:    the user's instruction; 0: not known, and a lock or page is known to be for the fault before it
    """

    def __init__(
        self,
        time: npt.NDArray[np.int64],
        cpu: npt.NDArray[np.int16],
        tid: npt.NDArray[np.int32],
        addr: npt.NDArray[np.uint64],
        write: npt.NDArray[np.int8],
        pid: npt.NDArray[np.int32] | None = None,
        ip: npt.NDArray[np.uint64] | None = None,
    ) -> None:
        self.time: Final = time
        self.cpu: Final = cpu
        self.tid: Final = tid
        self.addr: Final = addr
        self.write: Final = write
        self.pid: Final = tid if pid is None else pid
        self.ip: Final = np.zeros(len(time), dtype=np.uint64) if ip is None else ip

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, int, int, int]]) -> Faults:
        """Of rows of time, cpu, tid, addr and write."""
        columns = list(zip(*rows, strict=True)) or [()] * 5
        kinds = (np.int64, np.int16, np.int32, np.uint64, np.int8)
        return cls(*(np.array(column, dtype=kind) for column, kind in zip(columns, kinds, strict=True)))

    @classmethod
    def joined(cls, parts: Sequence[Faults]) -> Faults:
        """All of `parts`, one after the other."""
        if len(parts) == 1:
            return parts[0]
        parts = parts or [cls.of(())]
        return cls(*(np.concatenate(columns) for columns in zip(*(part._columns() for part in parts), strict=True)))

    def _columns(self) -> tuple[npt.NDArray[Any], ...]:
        return self.time, self.cpu, self.tid, self.addr, self.write, self.pid, self.ip

    @property
    def effect(self) -> npt.NDArray[np.int64]:
        return self.time

    def __len__(self) -> int:
        return len(self.time)

    def __getitem__(self, which: slice | npt.NDArray[Any]) -> Faults:
        return Faults(*(column[which] for column in self._columns()))

    def rows(self) -> list[tuple[int, int, int, int, int]]:
        """As `of` takes them."""
        return list(zip(*(column.tolist() for column in self._columns()[:5]), strict=True))

    def when_handled(self, changes: Callable[[], Changes]) -> Faults:
        """The faults alone, each when it took effect among `changes` of its address space that began later.

        A fault gives a VMA its anon_vma, by which VMAs that meet merge or do not, only with mmap_lock (mm/memory.c
        vmf_anon_prepare()).  One that had no need of it gets its page while it holds the VMA's own lock, which a change
        keeps until it is over (vma_end_write_all()).  So a change was first that got mmap_lock before the fault did, or
        that was over before the fault got its page.
        """
        is_fault = self.write < LOCKED
        if is_fault.all():
            return self
        order = np.lexsort((self.time, self.tid))
        first, second = order[:-1], order[1:]
        theirs = (
            is_fault[first] & ~is_fault[second] & (self.tid[first] == self.tid[second])
            & (self.ip[first] == self.ip[second])
        )  # fmt: skip
        fault, locked = first[theirs], self.write[second[theirs]] == LOCKED
        time, went_on = self.time.copy(), self.time[second[theirs]]
        known = changes()
        begin, end = known.between(self.pid[fault], time[fault], went_on)
        for i in np.flatnonzero(begin < end).tolist():
            earlier = np.flatnonzero(locked[i] | (known.returned[begin[i] : end[i]] < went_on[i]))
            if len(earlier):
                time[fault[i]] = known.locked[begin[i] + earlier[-1]] + 1
        faults = Faults(time, *self._columns()[1:])[is_fault]
        return faults[in_order(faults.time)]


class Mappings:
    """VMAs that were made or changed, as columns, in the order of time.

    columns: time, cpu, tid, start, length, prot, offset, and which of `files`
    files:   path and key of each
    """

    def __init__(self, columns: npt.NDArray[np.int64], files: Sequence[tuple[str, str]]) -> None:
        self.columns: Final = columns
        self.files: Final = files
        self.time: Final[npt.NDArray[np.int64]] = columns[0]
        self.effect: Final = self.time

    @classmethod
    def joined(cls, parts: Sequence[Mappings]) -> Mappings:
        """All of `parts`, in the order of time."""
        columns = [np.empty((8, 0), dtype=np.int64)]
        files: list[tuple[str, str]] = []
        for part in parts:
            columns.append(part.columns.copy())
            columns[-1][7] += len(files)
            files += part.files
        both = np.concatenate(columns, axis=1)
        return cls(both[:, in_order(both[0])], files)

    def __len__(self) -> int:
        return len(self.time)

    def __getitem__(self, which: slice | npt.NDArray[Any]) -> Mappings:
        return Mappings(self.columns[:, which], self.files)

    def last_of_each(self) -> Mappings:
        """Of each task the last."""
        _, place = np.unique(self.columns[2, ::-1], return_index=True)
        return self[np.sort(len(self) - 1 - place)]

    def rows(self) -> list[tuple[int, int, int, int, int, int, int, str, str]]:
        """Of time, cpu, tid, start, length, prot, offset, path and key."""
        return [(*what, *self.files[file]) for *what, file in zip(*self.columns.tolist(), strict=True)]


class Run:
    """The run of faults that was told last: `pid` touched pages up to `end`; 0: something else was told after it.

    nr_alone: events told one by one before it
    """

    def __init__(self) -> None:
        self.pid = 0
        self.end = 0
        self.write = False
        self.nr_alone = 0


class Batch:
    """Plain calls and faults of a window of time, in the order in which they took effect.

    Who has them says how far the reducer has come (`until`), so that what is told one by one comes in between.
    """

    def __init__(self, tasks: dict[int, Process], events: Rows, run: Run, calls: Calls, faults: Faults) -> None:
        self._tasks: Final = tasks
        self._events: Final = events
        self._run: Final = run
        self._runs_here = False  # the run is of this batch
        self._nr_rows = 0
        # Calls: the columns that decide, and how many faults come before each; then, whose each is (0: no row).
        self._calls: Final = calls
        self._call = 0
        self._pids: Final[list[int]] = []
        seen = calls.seen
        self._places: Final[list[int]] = np.searchsorted(faults.time, calls.effect).tolist()
        self._tid: Final[list[int]] = seen["tid"].tolist()
        self._number: Final[list[int]] = seen["number"].tolist()
        self._result: Final[list[int]] = seen["result"].tolist()
        self._di: Final[list[int]] = seen["di"].tolist()
        self._si: Final[list[int]] = seen["si"].tolist()
        self._dx: Final[list[int]] = seen["dx"].tolist()
        self._r10: Final[list[int]] = seen["r10"].tolist()
        # Faults, and the runs that they make: rows of time, cpu, pid, addr, number of pages, flags and result.
        self._faults: Final = faults
        self._fault = 0
        self._rows: list[tuple[int, int, int, int, int]] = []  # of a chunk
        self._chunk = -1
        self._made: list[tuple[int, int, int, int, int, int, int]] = []
        self._nr_pages = 0  # of the last of these
        self._parts: Final[list[npt.NDArray[Any]]] = []

    def until(self, nr_calls: int, nr_faults: int) -> None:
        """Take those calls and faults, counted from the first."""
        if self._events.nr_alone != self._run.nr_alone:
            self._run.pid = 0
            self._run.nr_alone = self._events.nr_alone
        known, process = -1, None
        while self._call < nr_calls:
            i = self._call
            place = self._places[i]
            if self._fault < place:
                self._take_faults(place)
            tid = self._tid[i]
            if tid != known:
                known, process = tid, self._tasks.get(tid)
            if process is not None and self._take_call(process, i):
                self._run.pid = 0
                self._nr_rows += 1
                self._pids.append(process.pid)
            else:
                self._pids.append(0)
            self._call += 1
        self._take_faults(nr_faults)
        self._events.nr_batched = self._nr_rows

    def _take_call(self, process: Process, i: int) -> bool:
        """Whether there is something to tell."""
        space, number, start = process.space, self._number[i], self._di[i]
        if number == _MMAP:
            start = self._result[i]
            end = start + page_align(self._si[i])
            space.insert(Range(start, end, self._dx[i] & 7, True, self._r10[i] & MAP_GROWSDOWN != 0))
        elif number == _MUNMAP:
            space.remove(start, start + page_align(self._si[i]))
        elif number == _MPROTECT or number == _PKEY_MPROTECT:
            space.protect(start, start + page_align(self._si[i]), self._dx[i] & 7)
        elif number == _BRK:
            return space.set_brk(start, self._result[i], self._events)
        elif number == _MREMAP:
            space.remap(start, self._si[i], self._dx[i], self._r10[i], self._result[i])
        return True

    # Faults

    def _take_faults(self, end: int) -> None:
        while end - self._fault > _FEW:
            self._take_many(end)
        while self._fault < end:
            i = self._fault
            self._fault = i + 1
            if i // _CHUNK != self._chunk:
                self._chunk = i // _CHUNK
                at = self._chunk * _CHUNK
                self._rows = self._faults[at : at + _CHUNK].rows()
            time, cpu, tid, addr, write = self._rows[i % _CHUNK]
            self._take_fault(time, cpu, tid, addr, write)

    def _take_single(self, i: int) -> bool:
        """One of many."""
        self._fault = i + 1
        time, cpu, tid, addr, write = self._faults[i : i + 1].rows()[0]
        return self._take_fault(time, cpu, tid, addr, write)

    def _take_fault(self, time: int, cpu: int, tid: int, addr: int, kind: int) -> bool:
        """Task `tid` (or the kernel on its behalf) touched `addr`.  Where it is not known whether it wrote, it did if
        it was allowed to.  Returns whether its stack grew."""
        process = self._tasks.get(tid)
        if process is None or addr >= TASK_SIZE:
            return False
        grown = False
        space = process.space
        range = space.at(addr)
        if range is None:
            grown = process.grow_stack(addr)
            range = space.at(addr)
        may_write = range is not None and range.prot & PROT_WRITE != 0
        write = may_write if kind > 1 else kind == 1
        allowed = range is not None and range.prot != 0 and (may_write or not write)
        addr &= PAGE_MASK
        run = self._run
        if (
            allowed and range is not None and run.pid == process.pid and run.end == addr and run.write == write
            and range.start < addr
        ):  # fmt: skip
            self._lengthen(1)
            return grown
        self._put_away()
        flags, result = FAULT_WRITE if write else 0, 0 if allowed else -errno.EFAULT
        self._made.append((time, cpu, process.pid, addr, 1, flags, result))
        self._nr_pages = 1
        self._nr_rows += 1
        self._runs_here = True
        run.pid, run.end, run.write = process.pid if allowed else 0, addr + PAGE_SIZE, write
        return grown

    def _lengthen(self, nr_pages: int) -> None:
        """The run that was told last goes on."""
        self._run.end += nr_pages << PAGE_SHIFT
        if self._runs_here:
            self._nr_pages += nr_pages
        elif nr_pages:
            self._events.lengthen(nr_pages << PAGE_SHIFT)

    def _put_away(self) -> None:
        """The last run has got its length."""
        if self._nr_pages > 1:
            time, cpu, pid, addr, _, flags, result = self._made[-1]
            self._made[-1] = time, cpu, pid, addr, self._nr_pages, flags, result
        self._nr_pages = 0

    def _take_many(self, end: int) -> None:
        """Take faults up to `end`, the plain ones (where something is mapped that allows it) by runs and the others one
        by one, until a stack grows."""
        first, self._fault = self._fault, end
        faults = self._faults[first:end]
        followed = faults.addr < TASK_SIZE
        tids = np.unique(faults.tid).tolist()
        strangers = [tid for tid in tids if tid not in self._tasks]
        if strangers:
            followed &= ~np.isin(faults.tid, strangers)
        which = np.flatnonzero(followed)
        nr_faults = len(which)
        if nr_faults < len(faults):
            faults = faults[which]
        addr = faults.addr & np.uint64(PAGE_MASK & 2**64 - 1)
        pid = np.zeros(nr_faults, dtype=np.int32)
        start = np.zeros(nr_faults, dtype=np.uint64)  # of the range
        plain = np.zeros(nr_faults, dtype=bool)
        write = faults.write == 1
        for tid in tids:
            process = self._tasks.get(tid)
            if process is None:
                continue
            mine = np.flatnonzero(faults.tid == tid)
            pid[mine] = process.pid
            starts, ends, prots = process.space.arrays()
            if len(starts):
                place = np.searchsorted(starts, addr[mine], side="right") - 1
                start[mine] = starts[place]
                plain[mine] = (
                    (place >= 0) & (addr[mine] < ends[place]) & (prots[place] != 0) & (faults.write[mine] < 2)
                    & (~write[mine] | (prots[place] & PROT_WRITE != 0))
                )  # fmt: skip
        begins = np.ones(nr_faults, dtype=bool)
        begins[1:] = (
            (pid[1:] != pid[:-1]) | (addr[1:] != addr[:-1] + np.uint64(PAGE_SIZE)) | (write[1:] != write[:-1])
            | (start[1:] == addr[1:])
        )  # fmt: skip
        at = 0
        for odd in [*np.flatnonzero(~plain).tolist(), nr_faults]:
            if odd - at > _FEW:
                # The first joins the run that came before, if it does; the last run may go on.
                self._take_single(first + int(which[at]))
                heads = np.flatnonzero(begins[at + 1 : odd]) + at + 1
                self._lengthen((int(heads[0]) if len(heads) else odd) - at - 1)
                if len(heads):
                    nr_pages = np.diff(np.append(heads, odd))
                    self._add_runs(faults, heads[:-1], nr_pages[:-1], pid, addr, write)
                    self._take_single(first + int(which[heads[-1]]))
                    self._lengthen(int(nr_pages[-1]) - 1)
            else:
                for i in which[at:odd].tolist():
                    self._take_single(first + i)
            if odd < nr_faults and self._take_single(first + int(which[odd])):
                return
            at = odd + 1
        self._fault = end

    def _add_runs(
        self, faults: Faults, heads: npt.NDArray[Any], nr_pages: npt.NDArray[Any], pid: npt.NDArray[Any],
        addr: npt.NDArray[Any], write: npt.NDArray[Any],
    ) -> None:  # fmt: skip
        """Runs of faults; `heads`: where each of them begins in the columns."""
        if len(heads):
            self._put_away()
            self._part()
            runs = np.zeros((7, len(heads)), dtype=np.int64)
            runs[:4] = faults.time[heads], faults.cpu[heads], pid[heads], addr[heads]
            runs[4:6] = nr_pages, write[heads] * FAULT_WRITE
            self._parts.append(runs)
            self._nr_rows += len(heads)
            self._run.pid = 0

    def _part(self) -> None:
        if self._made:
            self._parts.append(np.array(self._made, dtype=np.int64).T)
            self._made = []

    # Rows

    def close(self) -> None:
        """Let the rows have what was taken."""
        self._put_away()
        self._part()
        if not self._nr_rows:
            return
        pid = np.array(self._pids, dtype=np.int32)
        told = np.flatnonzero(pid)
        columns = _columns_of(self._calls[told], pid[told])
        if self._parts:
            time, cpu, pids, addr, nr_pages, flags, result = np.concatenate(self._parts, axis=1)
            runs = empty_columns(len(time))
            runs["op"][:] = CODE["fault"]
            for name, column in (
                ("time", time), ("cpu", cpu), ("pid", pids), ("addr", addr), ("length", nr_pages << PAGE_SHIFT),
                ("flags", flags), ("result", result),
            ):  # fmt: skip
                runs[name][:] = column
            order = in_order(np.concatenate([columns["time"], time]))
            columns = {name: np.concatenate([column, runs[name]])[order] for name, column in columns.items()}
        self._events.extend(columns)


def _columns_of(calls: Calls, pid: npt.NDArray[np.int32]) -> dict[str, npt.NDArray[Any]]:
    """The rows of plain calls, by the table of their parameters."""
    columns = empty_columns(len(calls))
    seen = calls.seen
    number = np.ascontiguousarray(seen["number"])
    columns["op"][:], columns["result"][:], columns["pid"][:] = _CODES[number], seen["result"], pid
    columns["time"][:], columns["cpu"][:] = calls.effect, seen["cpu"]
    for (register, field, mask), has_it in _FIELDS.items():
        which = has_it[number]
        if which.all():
            columns[field][:] = seen[register] & np.uint64(mask)
        elif which.any():
            columns[field][which] = seen[register][which] & np.uint64(mask)
    unplaced = (number == _MREMAP) & (columns["flags"] & (MREMAP_FIXED | MREMAP_DONTUNMAP) == 0)
    columns["addr2"][unplaced] = 0
    return columns


def _fields() -> dict[tuple[str, str, int], npt.NDArray[np.bool_]]:
    """By register, field that it becomes, and mask: which calls, by number, have such a parameter."""
    fields: dict[tuple[str, str, int], npt.NDArray[np.bool_]] = {}
    for number in _PLAIN:
        call = BY_NUMBER[number]
        for register, field, mask in zip(REGISTERS, call.parameters, call.masks, strict=False):
            mask = 7 if (number, field) == (_MMAP, "prot") else mask & 2**64 - 1
            if field not in ("", "file", "offset"):  # of memory without a file
                fields.setdefault((register, field, mask), np.zeros(max(_PLAIN) + 1, dtype=bool))[number] = True
    return fields


_CODES: Final = np.array(
    [CODE[BY_NUMBER[number].op] if number in _PLAIN else 0 for number in range(max(_PLAIN) + 1)], dtype=np.int8
)
_FIELDS: Final = _fields()
