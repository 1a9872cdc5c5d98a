# SPDX-License-Identifier: GPL-2.0-or-later
"""What perf sees: the text of `perf script`, turned into a history.

The recorder (record.py) has perf collect, for a process and all its descendants,

- exceptions:page_fault_user and page_fault_kernel: every fault, with address and kind; the kernel's own
  faults on user addresses (copy_to_user()) are faults of the process, too;
- raw_syscalls:sys_enter and sys_exit of the calls in calls.py, with arguments and results;
- task:task_newtask, which has the flags of fork, vfork, clone and clone3;
- perf's own records: COMM (exec's point of no return), MMAP2 (a VMA made by mmap, by exec's loader, or by the
  growth of a stack), EXIT, LOST.

Text made elsewhere may instead have syscalls:sys_enter_NAME tracepoints and the page-faults event; the latter
tells the address (perf record -d) but not the kind.

When did it happen?  Faults: at their time.  A call: somewhere between its entry and its exit, and threads
may race.  mmap and mprotect tell through MMAP2, which the kernel writes while it holds the mmap_lock.
munmap counts from its entry: what it frees is free for others before it returns.  mremap counts from its
exit, unless another thread got something where it moved from.  exec counts from COMM.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from rmaplab.mm.abi import PROT_EXEC, PROT_READ, PROT_WRITE
from rmaplab.mm.vma import PAGE_SIZE
from rmaplab.trace.calls import BY_NUMBER
from rmaplab.trace.reduce import CLONE_THREAD, Backing, Reducer
from rmaplab.trace.spaces import page_align

__all__ = ["EVENTS", "SCRIPT_OPTIONS", "PerfText", "perf_filter"]

EVENTS: Final = (
    "exceptions:page_fault_user",
    "exceptions:page_fault_kernel",
    "task:task_newtask",
    "raw_syscalls:sys_enter",
    "raw_syscalls:sys_exit",
)

# How to have `perf script` print what PerfText reads.
SCRIPT_OPTIONS: Final = (
    "--show-task-events",
    "--show-mmap-events",
    "--show-lost-events",
    "--ns",
    "-F",
    "comm,pid,tid,cpu,time,event,trace",
)

_LINE: Final = re.compile(
    r"\s*(?:(?P<comm>\S.*?)\s+)?(?P<pid>-?\d+)(?:/(?P<tid>-?\d+))?\s+(?:\[(?P<cpu>\d+)\]\s+)?"
    r"(?P<seconds>\d+)\.(?P<fraction>\d+):\s+(?:\d+\s+)?(?P<rest>\S.*)"
)
_MMAP: Final = re.compile(
    r"\S+ \[(?P<start>0x[0-9a-f]+|0)\((?P<length>0x[0-9a-f]+|0)\) @ (?P<offset>0x[0-9a-f]+|0)"
    r" (?P<file>[0-9a-f]+:[0-9a-f]+ \d+ \d+)\]: (?P<perms>[-rwxsp]{4}) ?(?P<path>.*)"
)
_TASKS: Final = re.compile(r"\((-?\d+):(-?\d+)\):\((-?\d+):(-?\d+)\)")
_LOST: Final = re.compile(r"lost (\d+)")
_EXECUTED: Final = re.compile(r"(.*):(-?\d+)/(-?\d+)$")
_FAULT: Final = re.compile(r"address=(?:0x)?([0-9a-f]+) .*error_code=(?:0x)?([0-9a-f]+)")
_RAW_ENTER: Final = re.compile(r"NR (-?\d+) \(([^)]*)\)")
_RAW_EXIT: Final = re.compile(r"NR (-?\d+) = (-?\d+)")
_ARGUMENT: Final = re.compile(r": (?:0x)?([0-9a-f]+)")
_NEWTASK: Final = re.compile(r"pid=(\d+) .*clone_flags=(?:0x)?([0-9a-f]+)")
_HEX: Final = re.compile(r"\s*(?:0x)?([0-9a-f]+)\b")

_FAULT_ERROR_WRITE: Final = 2  # X86_PF_WRITE
_FREES_AT_ENTRY: Final = frozenset(("munmap", "shmdt"))


def perf_filter() -> str:
    """The filter of raw_syscalls events that lets the calls of calls.py pass."""
    return "||".join(f"id=={number}" for number in BY_NUMBER)


class _Call(msgspec.Struct):
    """A system call that has not returned.  `effect`: time and line at which it is known to have happened."""

    name: str
    args: list[int]
    entry: tuple[int, int]
    effect: tuple[int, int] | None = None
    backing: Backing | None = None
    length: int = 0


class _Segment(msgspec.Struct):
    """Something that exec mapped."""

    start: int
    length: int
    prot: int
    offset: int
    backing: Backing | None


class _Exec(msgspec.Struct):
    """An exec, from its point of no return to the new program's first step."""

    pid: int
    stack: tuple[int, int, int] = (0x7FFFFFFDE000, 0x21000, 0x7FFFFFFDE000)
    segments: list[_Segment] = []


class _Fork(msgspec.Struct):
    child: int
    flags: int


class _Placement(msgspec.Struct):
    """Where a call of process `pid` got memory."""

    pid: int
    effect: tuple[int, int]
    start: int
    end: int


class _Fault(msgspec.Struct):
    addr: int
    write: bool | None


class _Returned(msgspec.Struct):
    call: _Call
    result: int


class _Gone(msgspec.Struct):
    pass


_Seen = _Exec | _Segment | _Fork | _Fault | _Returned | _Gone | str  # str: a new name


class PerfText:
    """Reads the lines of `perf script`, in the order of their times, and tells a Reducer.

    lost:         events that perf says it lost
    kind_unknown: there were faults of which the text does not tell whether they wrote
    """

    def __init__(self) -> None:
        self.lost = 0
        self.kind_unknown = False
        self._lines = 0
        self._seen: list[tuple[int, int, int, int, _Seen]] = []  # time, line, cpu, tid, what
        self._calls: dict[int, _Call] = {}  # by tid
        self._execs: dict[int, _Exec] = {}  # by tid
        self._forks: dict[int, _Fork] = {}  # by tid of the child
        self._recent: list[_Placement] = []

    def read(self, lines: Iterable[str]) -> None:
        """Take in `lines`; those that are about something else are passed over."""
        for line in lines:
            match = _LINE.match(line)
            if match is None:
                continue
            self._lines += 1
            fraction = match["fraction"]
            time = int(match["seconds"]) * 1_000_000_000 + int(fraction.ljust(9, "0")[:9])
            pid = int(match["pid"])
            tid = int(match["tid"] or pid)
            self._line(time, int(match["cpu"] or -1), pid, tid, match["rest"])

    def tell(self, reducer: Reducer) -> None:
        """Tell `reducer` all of it, in the order in which it took effect."""
        self._seen.sort(key=lambda seen: seen[:2])
        for time, _, cpu, tid, what in self._seen:
            reducer.at(time, cpu)
            if isinstance(what, _Fault):
                reducer.fault(tid, what.addr, what.write)
            elif isinstance(what, _Returned):
                call = what.call
                reducer.call(tid, call.name, call.args, what.result, call.backing, call.length)
            elif isinstance(what, _Segment):
                if what.length > 0:
                    reducer.mapped_by_exec(tid, what.start, what.length, what.prot, what.offset, what.backing)
            elif isinstance(what, _Exec):
                reducer.executed(tid, what.pid, *what.stack)
            elif isinstance(what, _Fork):
                reducer.started(tid, what.child, what.flags)
            elif isinstance(what, _Gone):
                reducer.gone(tid)
            else:
                reducer.named(tid, what)

    def _line(self, time: int, cpu: int, pid: int, tid: int, rest: str) -> None:
        now = (time, self._lines)
        event, _, data = rest.partition(": ")
        if event.startswith("exceptions:page_fault_"):
            if event.endswith("user"):
                self._execs.pop(tid, None)
            fault = _FAULT.match(data)
            if fault is not None:
                write = int(fault[2], 16) & _FAULT_ERROR_WRITE != 0
                self._add(now, cpu, tid, _Fault(int(fault[1], 16), write))
        elif event == "raw_syscalls:sys_enter":
            raw = _RAW_ENTER.match(data)
            if raw is not None and int(raw[1]) in BY_NUMBER:
                args = [int(word, 16) for word in raw[2].split(",")]
                self._enter(now, tid, BY_NUMBER[int(raw[1])].name, args)
        elif event == "raw_syscalls:sys_exit":
            raw = _RAW_EXIT.match(data)
            if raw is not None and int(raw[1]) in BY_NUMBER:
                self._return(now, cpu, pid, tid, BY_NUMBER[int(raw[1])].name, int(raw[2]))
        elif event.startswith("syscalls:sys_enter_"):
            self._enter(now, tid, event[19:], [int(word, 16) for word in _ARGUMENT.findall(data)])
        elif event.startswith("syscalls:sys_exit_"):
            returned = _HEX.match(data)
            if returned is not None:
                value = int(returned[1], 16)
                self._return(now, cpu, pid, tid, event[18:], value - (value >> 63 << 64))
        elif event == "task:task_newtask":
            new = _NEWTASK.match(data)
            if new is not None:
                self._new_task(now, cpu, tid, int(new[1]), int(new[2], 16))
        elif event.startswith("PERF_RECORD_FORK"):
            tasks = _TASKS.search(rest)
            if tasks is not None:
                child_pid, child, parent_pid, parent = (int(word) for word in tasks.groups())
                self._new_task(now, cpu, parent, child, CLONE_THREAD if child_pid == parent_pid else None)
        elif event.startswith("PERF_RECORD_EXIT"):
            tasks = _TASKS.search(rest)
            if tasks is not None:
                self._add(now, cpu, int(tasks[2]), _Gone())
        elif event.startswith("PERF_RECORD_COMM"):
            comm = _EXECUTED.match(data)
            if comm is not None:
                if event.endswith("exec"):
                    self._execs[tid] = _Exec(int(comm[2]))
                    self._add(now, cpu, tid, self._execs[tid])
                self._add(now, cpu, int(comm[3]), comm[1])
        elif event.startswith("PERF_RECORD_MMAP2"):
            mapped = _MMAP.search(rest)
            if mapped is not None:
                self._mapped(now, cpu, tid, mapped)
        elif event.startswith("PERF_RECORD_LOST"):
            self.lost += sum(int(count) for count in _LOST.findall(rest))
        elif event.startswith("page-faults"):
            addr = _HEX.match(data)
            if addr is not None:
                self.kind_unknown = True
                self._add(now, cpu, tid, _Fault(int(addr[1], 16), None))

    def _add(self, when: tuple[int, int], cpu: int, tid: int, what: _Seen) -> None:
        self._seen.append((*when, cpu, tid, what))

    def _new_task(self, now: tuple[int, int], cpu: int, tid: int, child: int, flags: int | None) -> None:
        """perf's FORK record comes first, the tracepoint with the flags follows; one may be missing."""
        known = self._forks.get(child)
        if known is not None and flags is not None:
            known.flags = flags
            del self._forks[child]
            return
        call = self._calls.get(tid)
        fork = _Fork(child, flags or (call.args[0] if call is not None and call.name == "clone" else 0))
        self._forks[child] = fork
        self._add(now, cpu, tid, fork)

    def _enter(self, now: tuple[int, int], tid: int, name: str, args: list[int]) -> None:
        self._execs.pop(tid, None)
        self._calls[tid] = _Call(name, args, now)

    def _return(self, now: tuple[int, int], cpu: int, pid: int, tid: int, name: str, result: int) -> None:
        self._execs.pop(tid, None)
        call = self._calls.pop(tid, None)
        if call is None or call.name != name:
            return  # entered before the recording began, or exec's return in the new program
        effect = call.effect or (call.entry if name in _FREES_AT_ENTRY else now)
        if result >= 0 and name == "mremap":
            start, end = call.args[0], call.args[0] + page_align(call.args[1])
            for other in self._recent:
                if (
                    other.pid == pid
                    and call.entry < other.effect < effect
                    and other.start < end
                    and start < other.end
                ):
                    effect = (other.effect[0], other.effect[1] - 1)
            self._placed(pid, effect, result, page_align(call.args[2]))
        elif result >= 0 and name == "mmap":
            self._placed(pid, effect, result, page_align(call.args[1]))
        self._add(effect, cpu, tid, _Returned(call, result))

    def _placed(self, pid: int, effect: tuple[int, int], start: int, length: int) -> None:
        self._recent.append(_Placement(pid, effect, start, start + length))
        if len(self._recent) > 128:
            del self._recent[:64]

    def _mapped(self, now: tuple[int, int], cpu: int, tid: int, mapped: re.Match[str]) -> None:
        path = mapped["path"]
        anonymous = path.startswith("//") or path in ("[heap]", "[stack]", "")
        backing = None if anonymous else Backing(mapped["file"] if path[0] != "[" else path, path)
        start, length, offset = (int(mapped[word], 16) for word in ("start", "length", "offset"))
        executing = self._execs.get(tid)
        if executing is not None:
            if path == "[stack]":
                executing.stack = (start, length, offset)
                return
            perms = mapped["perms"]
            prot = PROT_READ * ("r" in perms) | PROT_WRITE * ("w" in perms) | PROT_EXEC * ("x" in perms)
            segment = _Segment(start, length, prot, offset, backing)
            for earlier in executing.segments:
                _trim(earlier, segment)
            executing.segments.append(segment)
            self._add(now, cpu, tid, segment)
            return
        call = self._calls.get(tid)
        if call is not None:
            call.effect = now
            call.backing = backing
            call.length = length


def _trim(first: _Segment, next: _Segment) -> None:
    """The loader maps the first segment of a file as long as all of them, to find a place, and unmaps what
    is too much (fs/binfmt_elf.c elf_load()); perf tells only the former.  The next segment shows where it
    ends: right there, or, if there is a hole, in the page of the file where the next begins."""
    if not first.start < next.start < first.start + first.length:
        return
    end = next.start
    if first.backing is not None and first.backing == next.backing:
        end = min(end, first.start + next.offset - first.offset + PAGE_SIZE)
    first.length = end - first.start
