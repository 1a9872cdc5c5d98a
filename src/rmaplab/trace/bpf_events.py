# SPDX-License-Identifier: GPL-2.0-or-later
"""What tasks do to memory, seen by BPF programs at the kernel's tracepoints.

A record of perf's costs the recorded program a microsecond, and each event that a task has is made anew at each fork.
These programs cost a third of that (docs/decisions.md has the figures): they run in all tasks, look the task up in a
map of those that are followed, and write one small record for a fault, and one for a call, when it returns, with its
parameters, its result, and when it got mmap_lock for writing.  A fault of a task that shares its memory with others has
a second one when it gets mmap_lock for reading, or a page.  perf's own records of what was mapped, executed and
ended still come from perf_events.py.

The programs read nothing of the kernel's but the parameters of tracepoints and pt_regs, so they need no types, and of
the program's the limit that it sets (setrlimit(2)):

- page_fault_user and page_fault_kernel (arch/x86/include/asm/trace/exceptions.h): address, pt_regs, error code;
- mm_page_alloc (include/trace/events/kmem.h): page, order, gfp_flags;
- sys_exit (include/trace/events/syscalls.h): pt_regs, result;
- mmap_lock_acquire_returned (include/trace/events/mmap_lock.h): mm, its memcg's path before 6.13, write, success;
- task_newtask (include/trace/events/task.h): a child is followed before it runs;
- sched_process_exec (include/trace/events/sched.h): a thread that executes a program takes its leader's number;
- sched_process_exit: nobody is followed beyond its end, since its number may be given again.

Numbers of tasks are the initial PID namespace's.  So these programs are for a recorder that is in it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from rmaplab.mm.abi import CLONE_VM
from rmaplab.trace import bpf
from rmaplab.trace.batches import ALLOCATED, LOCKED, REGISTERS, Calls, Faults, in_order
from rmaplab.trace.calls import BY_NUMBER, CALLS, LOCKING_ADVICE
from rmaplab.trace.collector import Block, Records, Stream
from rmaplab.trace.perf_events import (
    NotPermitted,
    PerfEvents,
    Tracepoint,
    find_tracefs,
    perf_event_open,
)
from rmaplab.trace.timeline import Timeline

__all__ = ["BpfEvents"]

_INITIAL_NAMESPACE: Final = "pid:[4026531836]"  # PROC_PID_INIT_INO
_MOST_TASKS: Final = 1 << 16  # at a time
_SET_BPF: Final = 0x40042408  # PERF_EVENT_IOC_SET_BPF
_FAULT_ERROR_WRITE: Final = 2  # X86_PF_WRITE
_GOT_LOCK, _GOT_PAGE = 0x7FFFFFFE, 0x7FFFFFFF  # in place of an error code: how a fault went on
_MOVABLE: Final = 8  # ___GFP_MOVABLE, as pages of users are
_IP: Final = 128  # where pt_regs have it
_KEPT: Final = 40  # bytes that are remembered of a task: see _FOLLOWED

_FAULT: Final = np.dtype([("header", "u8"), ("time", "i8"), ("tid", "i4"), ("pid", "i4"), ("address", "u8"),
                          ("error", "u4"), ("cpu", "u4")])  # fmt: skip
# The registers lie as in pt_regs, from r10 to orig_ax; of a task that was made, `number` is -1, `result` its number,
# and `di` its clone_flags.
_CALL: Final = np.dtype([("header", "u8"), ("time", "i8"), ("tid", "i4"), ("pid", "i4"), ("result", "i8"),
                         ("locked", "i8"), ("r10", "u8"), ("r9", "u8"), ("r8", "u8"), ("cpu", "i8"), ("cx", "u8"),
                         ("dx", "u8"), ("si", "u8"), ("di", "u8"), ("number", "i8")])  # fmt: skip
# The same in the order of the parameters of _call().
_ROW: Final = np.dtype([("time", "i8"), ("act", "O"), *((name, _CALL[name]) for name in (
    "cpu", "pid", "tid", "number", "result", "locked", *REGISTERS))])  # fmt: skip
_MADVISE: Final = CALLS["madvise"].number
_HALF_WAY: Final = [call.number for call in CALLS.values() if call.half_way]  # these matter though they fail


def _with_map(call: str, name: str, key: int, value: int = 0) -> str:
    """A helper's call with a map; `key`, `value`: where they are on the stack."""
    given = f"r3 = r10\nr3 += -{value}\nr4 = 0\n" if value else ""
    return f"""
    r1 = map {name}
    r2 = r10
    r2 += -{key}
    {given}call map_{call}_elem
"""


# r7: process and task; -8: task; r9: what is remembered of a followed task: when it got a lock last, and before that;
# where the kernel keeps the user's registers, the user's instruction at the last fault that has not gone on, and
# whether the task shares its memory.
_FOLLOWED: Final = f"""
    call get_current_pid_tgid
    r7 = r0
    *(u32 *)(r10 - 8) = r0
    {_with_map("lookup", "followed", 8)}
    if r0 == 0 goto out
    r9 = r0
"""
_LEAVE: Final = """
out:
    r0 = 1  ; of a tracepoint that perf uses, too: go on
    exit
"""


def _output(size: int, then: str = "") -> str:
    """The `size` bytes at the end of the stack that is not _FOLLOWED's, with time and task at their start; `then`: what
    is done once they are in the ring, and leaves r0 alone."""
    return f"""
    *(u64 *)(r10 - {size}) = r7
    call ktime_get_ns
    *(u64 *)(r10 - {size + 8}) = r0
    r1 = map ring
    r2 = r10
    r2 += -{size + 8}
    r3 = {size}
    r4 = 1  ; BPF_RB_NO_WAKEUP
    call ringbuf_output
    {then}
    if r0 == 0 goto out
lost:
    r1 = 0
    *(u32 *)(r10 - 8) = r1
    {_with_map("lookup", "lost", 8)}
    if r0 == 0 goto out
    r1 = 1
    lock *(u64 *)(r0 + 0) += r1
    {_LEAVE}"""


def _instruction_to(at: int) -> str:
    """Where the user is goes to the stack; needs r9."""
    return f"""
    r1 = r10
    r1 += -{at}
    r2 = 8
    r3 = *(u64 *)(r9 + 16)
    r3 += {_IP}
    call probe_read_kernel  ; 0, where it cannot
"""


def _go_on(how: int) -> str:
    """A fault goes on, if it is for a fault that the task has what it has; needs r9."""
    return f"""
    r8 = *(u64 *)(r9 + 24)
    if r8 == 0 goto out
    {_instruction_to(24)}
    r1 = *(u64 *)(r10 - 24)
    if r1 != r8 goto out
    r1 = 0
    *(u64 *)(r9 + 24) = r1
    *(u64 *)(r10 - 24) = r1
    r1 = {how}
    *(u64 *)(r10 - 16) = r1
    {_output(32)}"""


def _fault(user: bool) -> str:
    """user: the fault is the user's, so that its registers are the user's"""
    keep = "r1 = *(u64 *)(r6 + 8)\n*(u64 *)(r9 + 16) = r1" if user else ""
    return f"""
    r6 = r1
    r8 = *(u64 *)(r6 + 0)
    r1 = r8
    r1 >>= 47
    if r1 != 0 goto out  ; the kernel's own memory
    {_FOLLOWED}
    r1 = *(u64 *)(r9 + 32)
    if r1 == 0 goto alone
    {keep}
    {_instruction_to(24)}
    r1 = *(u64 *)(r10 - 24)
    *(u64 *)(r9 + 24) = r1
alone:
    *(u64 *)(r10 - 24) = r8
    r1 = *(u64 *)(r6 + 16)
    *(u32 *)(r10 - 16) = r1
    call get_smp_processor_id
    *(u32 *)(r10 - 12) = r0
    {_output(32)}"""


def _lock(write: int) -> str:
    """write: number of that parameter of the tracepoint"""
    return f"""
    r2 = *(u64 *)(r1 + {8 * write + 8})
    r2 &= 255
    if r2 == 0 goto out
    r6 = *(u64 *)(r1 + {8 * write})
    r6 &= 255
    {_FOLLOWED}
    if r6 == 0 goto reader
    call ktime_get_ns
    r1 = *(u64 *)(r9 + 0)
    *(u64 *)(r9 + 8) = r1
    *(u64 *)(r9 + 0) = r0
    goto out
reader:
    {_go_on(_GOT_LOCK)}"""


_ALLOCATE: Final = f"""
    r2 = *(u64 *)(r1 + 16)
    r2 &= {_MOVABLE}
    if r2 == 0 goto out
    {_FOLLOWED}
    {_go_on(_GOT_PAGE)}"""


def _search(numbers: Sequence[int], name: str = "n") -> str:
    """Goes to `found` if r8 is one of `numbers`, which ascend, and to `out` if not."""
    if len(numbers) < 4:
        return "".join(f"if r8 == {number} goto found\n" for number in numbers) + "goto out\n"
    half = len(numbers) // 2
    low, high = _search(numbers[:half], f"{name}0"), _search(numbers[half:], f"{name}1")
    return f"if r8 > {numbers[half - 1]} goto {name}1\n{low}{name}1:\n{high}"


# What is remembered is forgotten when the record is in the ring, so that whoever finds nothing remembered finds that.
_FORGET: Final = """
    r1 = 0
    *(u64 *)(r9 + 0) = r1
    *(u64 *)(r9 + 8) = r1
"""


# What limit was set, in place of r9, which these calls do not have: its address is in si or in dx.
_LIMIT: Final = f"""
    if r8 == {CALLS["setrlimit"].number} goto second
    if r8 != {CALLS["prlimit64"].number} goto all
    r3 = *(u64 *)(r10 - 40)
    goto read
second:
    r3 = *(u64 *)(r10 - 32)
read:
    r1 = r10
    r1 += -72
    r2 = 8
    call probe_read_user  ; 0, where it cannot
all:
"""


def _return() -> str:
    return f"""
    r6 = r1
    r1 = r10
    r1 += -80
    r2 = 72
    r3 = *(u64 *)(r6 + 0)
    r3 += 56  ; r10
    call probe_read_kernel
    r8 = *(u64 *)(r10 - 16)
    {_search(sorted(BY_NUMBER))}
found:
    {_FOLLOWED}
    {_LIMIT}
    r1 = *(u64 *)(r6 + 8)
    *(u64 *)(r10 - 96) = r1
    r1 = *(u64 *)(r9 + 0)
    *(u64 *)(r10 - 88) = r1
    call get_smp_processor_id
    *(u64 *)(r10 - 56) = r0
    {_output(104, _FORGET)}"""


def _new_task(pid: int, clone_flags: int) -> str:
    """pid, clone_flags: where they are in the tracepoint's record"""
    zeros = "\n".join(f"*(u64 *)(r10 - {offset}) = r1" for offset in range(16, 88, 8))
    return f"""
    r6 = r1
    {_FOLLOWED}
    r1 = 0
    {zeros}
    r8 = *(u32 *)(r6 + {pid})
    *(u32 *)(r10 - 8) = r8
    r1 = *(u64 *)(r6 + {clone_flags})
    r1 &= {CLONE_VM}
    if r1 == 0 goto apart
    *(u64 *)(r10 - 48) = r1
    *(u64 *)(r9 + 32) = r1
apart:
    {_with_map("update", "followed", 8, 80)}
    if r0 != 0 goto lost
    *(u64 *)(r10 - 96) = r8
    r1 = *(u64 *)(r9 + 8)
    *(u64 *)(r10 - 88) = r1
    r1 = *(u64 *)(r6 + {clone_flags})
    *(u64 *)(r10 - 24) = r1
    call get_smp_processor_id
    *(u64 *)(r10 - 56) = r0
    r1 = -1
    *(u64 *)(r10 - 16) = r1
    {_output(104)}"""


_EXECUTE: Final = f"""
    r8 = *(u64 *)(r1 + 8)
    *(u32 *)(r10 - 16) = r8
    call get_current_pid_tgid
    *(u32 *)(r10 - 8) = r0
    r1 = *(u32 *)(r10 - 8)
    r2 = *(u32 *)(r10 - 16)
    if r1 == r2 goto out
    {_with_map("lookup", "followed", 16)}
    if r0 == 0 goto out
    r1 = 0
    *(u64 *)(r10 - 56) = r1
    *(u64 *)(r10 - 48) = r1
    *(u64 *)(r10 - 40) = r1
    *(u64 *)(r10 - 32) = r1
    *(u64 *)(r10 - 24) = r1
    {_with_map("update", "followed", 8, 56)}
    {_with_map("delete", "followed", 16)}
    {_LEAVE}"""


def _end(group_dead: bool) -> str:
    """The key of a leader whose threads live on stays: one of them may execute a program, and take its number.

    group_dead: the tracepoint tells of the end of the last one, as from 6.16.  Before, what a thread that executes a
                program touches on the way is missed
    """
    if not group_dead:
        return f"""{_FOLLOWED} {_with_map("delete", "followed", 8)} {_LEAVE}"""
    return f"""
    r6 = *(u64 *)(r1 + 8)
    r6 &= 255
    {_FOLLOWED}
    r7 >>= 32
    *(u32 *)(r10 - 16) = r7
    if r6 == 0 goto one
    {_with_map("delete", "followed", 16)}
one:
    r1 = *(u32 *)(r10 - 8)
    if r1 == r7 goto out
    {_with_map("delete", "followed", 8)}
    {_LEAVE}"""


class BpfEvents:
    """What process `pid` and its descendants do, from now, for a Collector.

    size:     bytes of each ring
    timeline: is told what is in them

    :raises NotPermitted: this recorder may not run here; the message says why
    """

    def __init__(self, pid: int, size: int, timeline: Timeline) -> None:
        if os.readlink("/proc/self/ns/pid") != _INITIAL_NAMESPACE:
            raise NotPermitted("its numbers of tasks are the initial PID namespace's, and this is another")
        self._timeline: Final = timeline
        self._descriptors: list[int] = []
        rings: list[bpf.BpfRing] = []
        records = PerfEvents(pid, max(size // 4, 4096), timeline, own=True)
        try:
            self._lost: Final = self._keep(bpf.create_map(bpf.ARRAY, 4, 8, 1))
            self._followed: Final = self._keep(bpf.create_map(bpf.HASH, 4, _KEPT, _MOST_TASKS, bpf.NO_PREALLOC))
            bpf.update(self._followed, pid.to_bytes(4, "little"), bytes(_KEPT))
            rings += [bpf.BpfRing(size, _CALL.itemsize), bpf.BpfRing(size, _FAULT.itemsize)]
            maps = {"lost": self._lost, "followed": self._followed, "ring": rings[0].map}
            self._attach(maps, rings[1].map)
        except OSError as error:
            for ring in rings:
                ring.close()
            records.close()
            self._close_descriptors()
            if error.errno in (errno.EACCES, errno.EPERM):
                raise NotPermitted("BPF programs are not permitted: be root") from None
            raise NotPermitted(f"BPF programs cannot be used ({error.strerror})") from None
        self._records: Final = records
        self._rings: Final = rings
        self.streams: Final = [*records.streams, Stream(rings[0], self._calls), Stream(rings[1], self._faults)]

    def _attach(self, maps: dict[str, int], faults: int) -> None:
        tracefs = find_tracefs()
        lock = Tracepoint(tracefs, "mmap_lock:mmap_lock_acquire_returned")
        new, end = Tracepoint(tracefs, "task:task_newtask"), Tracepoint(tracefs, "sched:sched_process_exit")
        followed = {
            "sys_exit": _return(),
            "sched_process_exec": _EXECUTE,
            "sched_process_exit": _end("group_dead" in end.fields),
        }
        faulting = {
            "page_fault_user": _fault(user=True),
            "page_fault_kernel": _fault(user=False),
            "mm_page_alloc": _ALLOCATE,
            "mmap_lock_acquire_returned": _lock(2 if "memcg_path" in lock.fields else 1),
        }
        for name, text in followed.items():
            self._raw(bpf.assemble(text, maps), name)
        for name, text in faulting.items():
            self._raw(bpf.assemble(text, {**maps, "ring": faults}), name)
        text = _new_task(new.offset("pid"), new.offset("clone_flags"))
        program = self._keep(bpf.load(bpf.TRACEPOINT, bpf.assemble(text, maps)))
        fcntl.ioctl(self._keep(perf_event_open(new, -1, 0)), _SET_BPF, program)

    def _raw(self, code: bytes, name: str) -> None:
        self._keep(bpf.attach_raw_tracepoint(name, self._keep(bpf.load(bpf.RAW_TRACEPOINT, code))))

    def _keep(self, descriptor: int) -> int:
        self._descriptors.append(descriptor)
        return descriptor

    def lost(self) -> int:
        """Events that did not fit into the rings."""
        return int.from_bytes(bpf.lookup(self._lost, bytes(4), 8), "little")

    def settled(self, now: int) -> int:
        """When the first of those locks was taken whose calls have no record yet; `now`: none was."""
        kept = np.frombuffer(bpf.values(self._followed, 4, _KEPT, _MOST_TASKS), dtype=np.uint64)
        locks = kept.reshape(-1, _KEPT // 8)[:, :2]
        return min(now, int(locks[locks > 0].min(initial=now)))

    def close(self) -> None:
        self._records.close()
        for ring in self._rings:
            ring.close()
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)

    def _calls(self, data: bytearray) -> Sequence[Block]:
        seen = _records(data, _CALL)
        seen = seen[(seen["result"] >= 0) | (seen["number"] < 0) | np.isin(seen["number"], _HALF_WAY)]
        # Who makes a task that shares its memory copies nothing, and most advice changes no VMA.
        shared = (seen["number"] < 0) & (seen["di"] & np.uint64(CLONE_VM) != 0)
        mild = (seen["number"] == _MADVISE) & ~np.isin(seen["dx"] & np.uint64(0xFFFFFFFF), list(LOCKING_ADVICE))
        seen["locked"][shared | mild] = 0
        calls = Calls(seen, np.where(seen["locked"], seen["locked"], seen["time"]))
        plain = calls.plain()
        other = calls[~plain]
        rows = np.empty(len(other), dtype=_ROW)
        for name in _ROW.names or ():
            rows[name] = self._call if name == "act" else other.seen[name]
        return calls[plain], Records(rows.tolist(), other.time, other.effect)

    def _call(
        self, time: int, act: object, cpu: int, pid: int, tid: int, number: int, result: int, locked: int, *args: int
    ) -> None:
        """Tell of a call that returned, or of a task that was made."""
        if number < 0:
            self._timeline.flags_of_new_task(locked or time, cpu, tid, result, args[0])
        else:
            self._timeline.returned(time, cpu, pid, tid, BY_NUMBER[number], list(args), result, locked)

    def _faults(self, data: bytearray) -> Sequence[Block]:
        seen = _records(data, _FAULT)
        error = seen["error"]
        write = (error & _FAULT_ERROR_WRITE != 0).astype(np.int8)
        write[error == _GOT_LOCK], write[error == _GOT_PAGE] = LOCKED, ALLOCATED
        return [Faults(seen["time"], seen["cpu"].astype(np.int16), seen["tid"], seen["address"], write, seen["pid"])]


def _records(data: bytearray, kind: np.dtype[np.void]) -> npt.NDArray[np.void]:
    """What there is of whole records at the start of `data`, in the order of time; they are removed."""
    size = len(data) // kind.itemsize * kind.itemsize
    seen = np.frombuffer(data[:size], dtype=kind)
    del data[:size]
    return seen[in_order(seen["time"])]
