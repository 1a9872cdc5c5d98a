# SPDX-License-Identifier: GPL-2.0-or-later
"""The output of `perf script`, read into a Timeline.

Such text is made elsewhere (docs/recording.md says how): with the tracepoints that perf_events.py uses, or instead of
raw_syscalls with syscalls:sys_enter_NAME, and instead of the fault tracepoints with the page-faults event, which has
the address (perf record -d) but not the kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from rmaplab.mm.abi import PROT_EXEC, PROT_READ, PROT_WRITE
from rmaplab.trace.batches import Faults
from rmaplab.trace.calls import BY_NUMBER, CALLS, Call
from rmaplab.trace.reduce import CLONE_THREAD, Reducer
from rmaplab.trace.timeline import Timeline

__all__ = ["PerfText"]

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
_LOCKED: Final = re.compile(r"write=true success=true")
_HEX: Final = re.compile(r"\s*(?:0x)?([0-9a-f]+)\b")

_FAULT_ERROR_WRITE: Final = 2  # X86_PF_WRITE
_UNKNOWN: Final = 2


class PerfText:
    """Reads the lines of `perf script`, in the order of their times, and tells a Reducer.

    timeline:     what they say
    kind_unknown: there were faults of which the text does not tell whether they wrote
    """

    def __init__(self) -> None:
        self.timeline: Final = Timeline()
        self.kind_unknown = False
        self._faults: list[tuple[int, int, int, int, int]] = []

    def read(self, lines: Iterable[str]) -> None:
        """Take in `lines`; those that are about something else are passed over."""
        for line in lines:
            match = _LINE.match(line)
            if match is None:
                continue
            time = int(match["seconds"]) * 1_000_000_000 + int(match["fraction"].ljust(9, "0")[:9])
            pid = int(match["pid"])
            self._line(time, int(match["cpu"] or -1), pid, int(match["tid"] or pid), match["rest"])

    def tell(self, reducer: Reducer) -> None:
        """Tell `reducer` all of it, in the order in which it took effect."""
        self._faults.sort(key=lambda fault: fault[0])
        self.timeline.touched(Faults.of(self._faults))
        self.timeline.tell(reducer)

    def _line(self, time: int, cpu: int, pid: int, tid: int, rest: str) -> None:
        timeline = self.timeline
        event, _, data = rest.partition(": ")
        if event.startswith("exceptions:page_fault_"):
            if event.endswith("user"):
                timeline.running(tid)
            fault = _FAULT.match(data)
            if fault is not None:
                write = int(fault[2], 16) & _FAULT_ERROR_WRITE != 0
                self._faults.append((time, cpu, tid, int(fault[1], 16), int(write)))
        elif event == "raw_syscalls:sys_enter":
            raw = _RAW_ENTER.match(data)
            if raw is not None:
                self._enter(time, tid, BY_NUMBER.get(int(raw[1])), [int(word, 16) for word in raw[2].split(",")])
        elif event == "raw_syscalls:sys_exit":
            raw = _RAW_EXIT.match(data)
            if raw is not None and int(raw[1]) in BY_NUMBER:
                timeline.leave(time, cpu, pid, tid, BY_NUMBER[int(raw[1])], int(raw[2]))
        elif event.startswith("syscalls:sys_enter_"):
            self._enter(time, tid, CALLS.get(event[19:]), [int(word, 16) for word in _ARGUMENT.findall(data)])
        elif event.startswith("syscalls:sys_exit_"):
            returned = _HEX.match(data)
            if returned is not None and event[18:] in CALLS:
                value = int(returned[1], 16)
                timeline.leave(time, cpu, pid, tid, CALLS[event[18:]], value - (value >> 63 << 64))
        elif event == "mmap_lock:mmap_lock_acquire_returned":
            if _LOCKED.search(data):
                timeline.lock(time, tid)
        elif event == "task:task_newtask":
            new = _NEWTASK.match(data)
            if new is not None:
                timeline.flags_of_new_task(time, cpu, tid, int(new[1]), int(new[2], 16))
        elif event.startswith("PERF_RECORD_FORK"):
            tasks = _TASKS.search(rest)
            if tasks is not None:
                child_pid, child, parent_pid, parent = (int(word) for word in tasks.groups())
                timeline.new_task(time, cpu, parent, child, CLONE_THREAD if child_pid == parent_pid else 0)
        elif event.startswith("PERF_RECORD_EXIT"):
            tasks = _TASKS.search(rest)
            if tasks is not None:
                timeline.gone(time, cpu, int(tasks[2]))
        elif event.startswith("PERF_RECORD_COMM"):
            comm = _EXECUTED.match(data)
            if comm is not None:
                timeline.named(time, cpu, int(comm[2]), int(comm[3]), comm[1], event.endswith("exec"))
        elif event.startswith("PERF_RECORD_MMAP2"):
            mapped = _MMAP.search(rest)
            if mapped is not None:
                start, length, offset = (int(mapped[word], 16) for word in ("start", "length", "offset"))
                perms = mapped["perms"]
                prot = PROT_READ * ("r" in perms) | PROT_WRITE * ("w" in perms) | PROT_EXEC * ("x" in perms)
                timeline.mapped(time, cpu, tid, start, length, prot, offset, mapped["path"], mapped["file"])
        elif event.startswith("PERF_RECORD_LOST"):
            timeline.lost += sum(int(count) for count in _LOST.findall(rest))
        elif event.startswith("page-faults"):
            addr = _HEX.match(data)
            if addr is not None:
                self.kind_unknown = True
                self._faults.append((time, cpu, tid, int(addr[1], 16), _UNKNOWN))

    def _enter(self, time: int, tid: int, call: Call | None, values: list[int]) -> None:
        if call is not None:
            self.timeline.enter(time, tid, call, values)
