# SPDX-License-Identifier: GPL-2.0-or-later
"""From what a recorder sees to events: threads become processes, calls become operations.

A recorder calls a `Reducer` for what it saw, in the order in which it took effect: tasks started and gone,
programs executed, system calls that returned, faults.  The reducer keeps those that changed memory.  It
follows the processes whose exec it saw, and their descendants; it skips all others.

Rules
- A process exits when its last thread does: its address space is freed then.
- Calls that failed changed nothing and are dropped; but mprotect, madvise and mlock work their way through a
  range and may fail half-way, so these are kept.
- A fault that the address space did not allow ended in a signal or in EFAULT, and gets that result.
- Adjacent faults of a kind become one run, if nothing else happened between them.
- Plain calls and faults come as columns, and are told together (batches.py); the rules are the same.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

import msgspec

from rmaplab.mm.abi import (
    CLONE_VFORK,
    CLONE_VM,
    MADV_COLLAPSE,
    MADV_DOFORK,
    MADV_DONTFORK,
    MADV_HUGEPAGE,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    MADV_UNMERGEABLE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_TYPE,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    STACK_LIMIT,
)
from rmaplab.mm.vma import PAGE_MASK, PAGE_SIZE, TASK_SIZE
from rmaplab.trace.batches import Batch, Calls, Faults, Run
from rmaplab.trace.calls import CALLS, Call
from rmaplab.trace.events import FAULT_WRITE, Event
from rmaplab.trace.history import Checkpoint, FileEntry, Header, History, MapsRow, Rows
from rmaplab.trace.spaces import Process, Range, Space, page_align

CLONE_THREAD: Final = 0x10000
PR_SET_VMA: Final = 0x53564D41
SHM_RDONLY: Final = 0o10000
SHM_EXEC: Final = 0o100000
RLIMIT_STACK: Final = 3

SYNTHESIS: Final = (
    "synthesised: each private range that becomes writable is written at once, from its start, at most 256 "
    "pages; a forked child at once writes the first page of each of its private writable ranges"
)
_SYNTHETIC_PAGES: Final = 256
# Advice that a kernel may be built without (mm/madvise.c madvise_behavior_valid()).
_MAY_BE_MISSING: Final = frozenset((MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_COLLAPSE))


class Backing(msgspec.Struct, frozen=True):
    """What a mapping maps.  `key` is the same for the same file, `path` what the kernel calls it."""

    key: str
    path: str

    @property
    def kind(self) -> str:
        """As in FileEntry."""
        path = self.path
        if path == "[vdso]":
            return "vdso"
        if path.startswith("[v"):
            return "vvar"
        if path.startswith(("/dev/zero (deleted)", "/memfd:", "/dev/shm/", "/anon_hugepage")):
            return "shmem"
        if path.startswith("/SYSV"):
            return "sysv"
        if path.startswith(("anon_inode:", "/dev/")) and path != "/dev/zero":
            return "device"
        return "file"


class Particulars:
    """What a recorder knows of a call beside its registers and its result; as in Reducer.call."""

    def __init__(self, backing: Backing | None, length: int, label: str) -> None:
        self.backing: Final = backing
        self.length: Final = length
        self.label: Final = label


class Reducer:
    """Collects events.

    names:      keep the names of files and processes
    synthesise: faults are not observed; make them up, as SYNTHESIS says
    maps:       /proc/PID/maps at the end of each life of a pid
    stack_limit: RLIMIT_STACK of the first process
    """

    def __init__(
        self,
        *,
        names: bool = False,
        synthesise: bool = False,
        maps: dict[int, list[list[MapsRow]]] | None = None,
        stack_limit: int = STACK_LIMIT,
    ) -> None:
        self._first_limit: Final = stack_limit
        self._stack_limit = stack_limit  # the largest
        self.events: Final = Rows()
        self._names: Final = names
        self._synthesise: Final = synthesise
        self._maps: Final = {} if maps is None else maps
        self._tasks: Final[dict[int, Process]] = {}
        self._files: Final[dict[str, FileEntry]] = {}
        self._labels: Final[dict[str, int]] = {}
        self._texts: Final[list[str]] = []
        self._comms: Final[dict[int, str]] = {}
        self._checkpoints: Final[list[Checkpoint]] = []
        self._skipped: Final[dict[str, int]] = {}
        # What is more than an event of the call's parameters.
        self._acts: Final[dict[str, Callable[[Process, list[int], int, Particulars], None]]] = {
            name: getattr(self, f"_call_{what}")
            for what, names in (
                ("mmap", "mmap"), ("shmat", "shmat"), ("munmap", "munmap"), ("shmdt", "shmdt"), ("brk", "brk"),
                ("mprotect", "mprotect pkey_mprotect"), ("mremap", "mremap"), ("madvise", "madvise"),
                ("mlock", "mlock mlock2"), ("munlock", "munlock"), ("prctl", "prctl"), ("setrlimit", "setrlimit"),
                ("prlimit", "prlimit64"),
            )
            for name in names.split()
        }  # fmt: skip
        self._nr_threads = 0
        self._unfollowed: Final[dict[str, int]] = {}
        self._run: Final = Run()
        self._time = 0
        self._cpu = -1

    def at(self, time: int, cpu: int) -> None:
        """What is told next happened at `time` (ns, any origin) on `cpu`."""
        self._time = time
        self._cpu = cpu

    # Tasks

    def started(self, tid: int, child: int, flags: int) -> None:
        """Task `tid` made the task `child` with these clone flags."""
        parent = self._tasks.get(tid)
        if parent is None:
            return
        if flags & CLONE_THREAD:
            self._nr_threads += 1
            parent.tids.add(child)
            self._tasks[child] = parent
            return
        space = parent.space if flags & CLONE_VM else parent.space.copy()
        process = parent.made(child, space)
        self._tasks[child] = process
        self._emit("fork", parent, pid2=child, flags=flags & (CLONE_VM | CLONE_VFORK))
        if self._synthesise and not flags & CLONE_VM:
            for range in space.ranges:
                self._touch(process, range.start, min(range.end, range.start + PAGE_SIZE))

    def gone(self, tid: int) -> None:
        """Task `tid` is gone."""
        process = self._tasks.pop(tid, None)
        if process is None:
            return
        process.tids.discard(tid)
        if process.tids:
            return
        self._note_guess(process)
        lives = self._maps.get(process.pid)
        if lives:
            number = len(self._checkpoints)
            self._checkpoints.append(Checkpoint(number, process.pid, lives.pop(0)))
            self._emit("mark", process, offset=number)
        self._emit("exit", process)

    def process_gone(self, tid: int) -> None:
        """All threads of the process that `tid` belongs to are gone."""
        process = self._tasks.get(tid)
        if process is not None:
            for thread in sorted(process.tids):
                self.gone(thread)

    def named(self, tid: int, comm: str) -> None:
        """Task `tid` calls itself `comm`."""
        process = self._tasks.get(tid)
        if self._names and process is not None:
            self._comms[process.pid] = comm

    def executed(
        self, tid: int, pid: int, stack: int, length: int, offset: int, prot: int = PROT_READ | PROT_WRITE
    ) -> None:
        """Task `tid` of process `pid` runs a new program; `stack` and so on as in the exec event; `prot`: of it."""
        old = self._tasks.get(tid)
        if old is not None:
            pid = old.pid
            for thread in old.tids:
                self._tasks.pop(thread, None)
        if stack + length <= 1 << 32:
            # A 32-bit program: its calls have other numbers, and are not followed.  Nor is it, until it runs another.
            self._unfollowed["a 32-bit program"] = self._unfollowed.get("a 32-bit program", 0) + 1
            if old is not None:
                self._emit("exit", old)
            return
        space = Space(len(self.events))
        if old is not None:
            self._note_guess(old)
            process = old.made(pid, space)
        else:
            process = Process(pid, space, self._first_limit)
        self._tasks[pid] = process
        self._emit("exec", process, addr=stack, length=length, offset=offset)
        process.space.insert(Range(stack, stack + length, prot, True, grows_down=True))
        if prot & PROT_EXEC:
            self._emit("mprotect", process, addr=stack, length=length, prot=prot)
        self._touch(process, stack + length - 2 * PAGE_SIZE, stack + length)

    def _note_guess(self, process: Process) -> None:
        if process.guessed:
            what = "the limit that a program set for its stack (only bpf sees it)"
            self._unfollowed[what] = self._unfollowed.get(what, 0) + 1

    @property
    def alive(self) -> bool:
        """Is there a process that has not exited?"""
        return bool(self._tasks)

    def mapped_by_exec(
        self, tid: int, start: int, length: int, prot: int, offset: int, backing: Backing | None
    ) -> None:
        """Executing the program mapped this (what the ELF loader and the architecture do)."""
        process = self._tasks.get(tid)
        if process is None:
            return
        flags = MAP_PRIVATE | MAP_FIXED
        if backing is None:
            flags |= MAP_ANONYMOUS
            offset = 0
        file = -1 if backing is None else self._file(backing)
        self._emit(
            "mmap",
            process,
            addr=start,
            length=length,
            prot=prot,
            flags=flags,
            file=file,
            offset=offset,
            result=start,
        )
        process.space.insert(Range(start, start + length, prot, True))
        self._touch(process, start, start + length)

    def batch(self, calls: Calls, faults: Faults) -> Batch:
        """Plain calls and faults, to be told together with what is told one by one."""
        return Batch(self._tasks, self.events, self._run, calls, faults)

    def _touch(self, process: Process, start: int, end: int) -> None:
        """Synthesise faults, if that is asked for."""
        if not self._synthesise:
            return
        for range in process.space.within(start, end):
            if range.private and range.prot & PROT_WRITE:
                low = max(start, range.start)
                high = min(end, range.end, low + _SYNTHETIC_PAGES * PAGE_SIZE)
                self._emit("fault", process, addr=low, length=high - low, flags=FAULT_WRITE)

    # System calls

    def call(
        self,
        tid: int,
        name: str,
        args: list[int],
        result: int,
        backing: Backing | None = None,
        length: int = 0,
        label: str = "",
    ) -> None:
        """Task `tid` called `name`, which returned `result`.

        backing: what mmap or shmat mapped, where known
        length:  of what shmat mapped
        label:   the name that prctl gave a range, where known
        """
        process = self._tasks.get(tid)
        call = CALLS.get(name)
        if process is None or call is None:
            return
        registers = call.registers(args)
        if result < 0 and not (call.half_way and self._may_have_begun(process, call, registers, result)):
            return
        if call.skipped:
            self._skipped[name] = self._skipped.get(name, 0) + 1
        act = self._acts.get(name)
        if act is not None:
            act(process, registers, result, Particulars(backing, length, label))
        elif call.op not in ("", "exec", "fork"):
            self._emit_call(process, call.op, call.parameters, registers, result)

    def _emit_call(
        self, process: Process, op: str, parameters: tuple[str, ...], registers: list[int], result: int
    ) -> None:
        fields = {field: value for field, value in zip(parameters, registers, strict=False) if field}
        self._emit(op, process, **fields, result=result)

    def _may_have_begun(self, process: Process, call: Call, registers: list[int], result: int) -> bool:
        """Whether a call that failed may have done part of its work; the machine fails at the same place.  What it
        cannot know changed nothing: a limit, a kernel without that advice, a signal."""
        if result in (-errno.EINTR, -errno.EPERM, -errno.ENOSYS, -errno.EFAULT):
            return False
        if call.op == "madvise":
            return result != -errno.EINVAL or registers[2] not in _MAY_BE_MISSING
        if call.op == "mlock" and not self._synthesise:
            # ENOMEM is RLIMIT_MEMLOCK where nothing else stands in the way.
            start = registers[0] & PAGE_MASK
            end = start + page_align(registers[1] + (registers[0] & ~PAGE_MASK))
            if end >> 64:
                return False  # the limit comes first
            return any(start < end and not range.prot for range in process.space.within(start, end)) or bool(
                process.space.holes(start, end)
            )
        return True

    def _call_mmap(self, process: Process, registers: list[int], result: int, known: Particulars) -> None:
        addr, length, prot, flags, _, offset = (registers + [0] * 6)[:6]
        self._mmap(process, addr, length, prot, flags, offset, result, known.backing)

    def _call_shmat(self, process: Process, registers: list[int], result: int, known: Particulars) -> None:
        segment, _, flags = (registers + [0] * 3)[:3]
        prot = PROT_READ | (0 if flags & SHM_RDONLY else PROT_WRITE) | (PROT_EXEC if flags & SHM_EXEC else 0)
        backing = known.backing or Backing(f"sysv {segment}", "/SYSV")
        self._mmap(process, 0, known.length, prot, MAP_SHARED, 0, result, backing)

    def _call_munmap(self, process: Process, registers: list[int], result: int, known: Particulars) -> None:
        addr, length = registers[:2]
        self._emit("munmap", process, addr=addr, length=length)
        process.space.remove(addr, addr + page_align(length))

    def _call_shmdt(self, process: Process, registers: list[int], result: int, known: Particulars) -> None:
        range = process.space.at(registers[0])
        if range is not None:
            self._call_munmap(process, [registers[0], range.end - registers[0]], result, known)

    def _call_mprotect(self, process: Process, registers: list[int], result: int, known: Particulars) -> None:
        addr, length, prot = registers[:3]
        if result == -errno.EACCES:
            # Some file may not be written.  What lies before it was changed, and the kernel told of it.
            length, result = min(page_align(length), max(known.length, 0)), 0
            if not length:
                return
        end = addr + page_align(length)
        if result == 0:
            self._infer(process, addr, length)
        elif result == -errno.ENOMEM:  # it stops at the first hole
            end = next((start for start, _ in process.space.holes(addr, end)), end)
        self._emit("mprotect", process, addr=addr, length=length, prot=prot, result=result)
        for start, stop in process.space.protect(addr, end, prot & 7) if addr < end else ():
            self._touch(process, start, stop)

    def _call_mremap(self, process: Process, registers: list[int], result: int, known: Particulars) -> None:
        old, length, new_length, flags, to = [*registers, 0][:5]
        if not flags & (MREMAP_FIXED | MREMAP_DONTUNMAP):
            to = 0
        self._infer(process, old, length)
        self._emit(
            "mremap", process, addr=old, length=length, length2=new_length, flags=flags, addr2=to, result=result
        )
        process.space.remap(old, length, new_length, flags, result)
        fresh = 0 if flags & MREMAP_DONTUNMAP else page_align(length)
        self._touch(process, result + fresh, result + page_align(new_length))

    def _call_brk(self, process: Process, registers: list[int], result: int, known: Particulars) -> None:
        addr, old = registers[0], process.space.brk
        if process.space.set_brk(addr, result, self.events):
            self._emit("brk", process, addr=addr, result=result)
            self._touch(process, page_align(old), page_align(addr))

    def _call_madvise(self, process: Process, registers: list[int], result: int, known: Particulars) -> None:
        addr, length, advice = registers[:3]
        if result == 0:
            self._infer(process, addr, length)
        self._emit("madvise", process, addr=addr, length=length, flags=advice, result=result)
        if advice in (MADV_DONTFORK, MADV_DOFORK):  # with ENOMEM, all but the holes
            for range in process.space.pieces(addr, addr + page_align(length)) if length else ():
                range.dont_fork = advice == MADV_DONTFORK

    def _call_mlock(self, process: Process, registers: list[int], result: int, known: Particulars) -> None:
        addr, length, flags = [*registers, 0][:3]
        if result == 0:
            start = addr & PAGE_MASK
            self._infer(process, start, addr + length - start)
        self._emit("mlock", process, addr=addr, length=length, flags=flags, result=result)

    def _call_munlock(self, process: Process, registers: list[int], result: int, known: Particulars) -> None:
        addr, length = registers[:2]
        if result == 0:
            start = addr & PAGE_MASK
            self._infer(process, start, addr + length - start)
        self._emit("munlock", process, addr=addr, length=length, result=result)

    def _call_prctl(self, process: Process, registers: list[int], result: int, known: Particulars) -> None:
        option, _, addr, length, text = (registers + [0] * 5)[:5]
        if option != PR_SET_VMA:
            return
        key = known.label or (f"at {text:x}" if text else "")
        if key not in self._labels:
            self._labels[key] = len(self._labels)
            self._texts.append(key if self._names or not key else f"name {len(self._texts)}")
        self._emit("name", process, addr=addr, length=length, file=self._labels[key])

    def _call_setrlimit(self, process: Process, registers: list[int], result: int, known: Particulars) -> None:
        self._limit(process, registers[0], registers[1], (registers + [0] * 6)[5])

    def _call_prlimit(self, process: Process, registers: list[int], result: int, known: Particulars) -> None:
        whose = self._tasks.get(registers[0]) if registers[0] else process
        if whose is not None:
            self._limit(whose, registers[1], registers[2], (registers + [0] * 6)[5])

    def _limit(self, process: Process, resource: int, place: int, limit: int) -> None:
        """The limit at `place` is for `process` now; `limit`: what it is, 0: that is not known."""
        if resource == RLIMIT_STACK and place:
            process.limit_unknown = not limit
            process.stack_limit = min(limit, TASK_SIZE) or process.stack_limit
            self._stack_limit = max(self._stack_limit, process.stack_limit if limit else TASK_SIZE)

    def _mmap(
        self, process: Process, addr: int, length: int, prot: int, flags: int, offset: int, result: int,
        backing: Backing | None,
    ) -> None:  # fmt: skip
        private = flags & MAP_TYPE not in (MAP_SHARED, MAP_SHARED | MAP_PRIVATE)
        if flags & MAP_ANONYMOUS:
            offset = 0
            if private:
                backing = None
            elif backing is None:
                backing = Backing(f"shared {len(self._files)}", "/dev/zero (deleted)")
        elif backing is None:
            backing = Backing(f"unknown {len(self._files)}", "")
        file = -1 if backing is None else self._file(backing)
        self._emit(
            "mmap",
            process,
            addr=addr,
            length=length,
            prot=prot & 7,
            flags=flags,
            file=file,
            offset=offset,
            result=result,
        )
        end = result + page_align(length)
        process.space.insert(Range(result, end, prot & 7, private, grows_down=flags & MAP_GROWSDOWN != 0))
        self._touch(process, result, end)

    def _infer(self, process: Process, start: int, length: int) -> None:
        """strace does not see what exec maps.  A call that succeeded on a range of which nothing is known
        shows that something is there: take it for a private mapping of the program's file."""
        if self._synthesise:
            for at, end in process.space.holes(start, start + page_align(length)):
                self.mapped_by_exec(process.pid, at, end - at, PROT_READ | PROT_WRITE, 0, Backing("program", ""))

    def _file(self, backing: Backing) -> int:
        entry = self._files.get(backing.key)
        if entry is None:
            kind = backing.kind
            name = backing.path if self._names or kind in ("vdso", "vvar") else ""
            entry = FileEntry(len(self._files), kind, name)
            self._files[backing.key] = entry
        return entry.id

    def _emit(
        self, op: str, process: Process, addr: int = 0, length: int = 0, prot: int = 0, flags: int = 0, addr2: int = 0,
        length2: int = 0, file: int = -1, offset: int = 0, pid2: int = 0, result: int = 0,
    ) -> None:  # fmt: skip
        self.events.append(
            Event(
                op, process.pid, addr, length, prot, flags, addr2, length2, file, offset, pid2, result, self._time,
                self._cpu,
            )
        )  # fmt: skip

    def finish(self, header: Header) -> History:
        """The history of what was told, under `header`."""
        header.files = list(self._files.values())
        header.names = self._texts
        header.processes = self._comms
        header.checkpoints = self._checkpoints
        header.skipped = self._skipped
        header.stack_limit = self._stack_limit
        for process in {process.pid: process for process in self._tasks.values()}.values():
            self._note_guess(process)
        header.unfollowed |= self._unfollowed
        header.threads = self._nr_threads
        if self._synthesise:
            header.faults = SYNTHESIS
        columns = self.events.columns()
        columns["time"] -= columns["time"][:1]
        return History.of_columns(header, columns)

