# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's events, in the order in which they took effect.

A source (bpf_events.py and perf_events.py read the kernel's ring buffers, perf_text.py what `perf script` printed)
reports what it saw and when: calls entered and left, faults, tasks made and gone, programs executed, and what was
mapped.  A fault happens when it is taken, or after what another thread changed meanwhile (Faults.when_handled()).  A
call takes effect somewhere between its entry and its exit, and meanwhile other threads of its address space may do
something, or a fork on another CPU copy what they still have.

- Known: a task that changes an address space, or copies it (dup_mmap() in mm/mmap.c), holds its mmap_lock for
  writing.  The tracepoint mmap_lock:mmap_lock_acquire_returned says when a call got it, which is the order among all
  of them.
- Inferred, where there is no such tracepoint: mmap, mprotect and brk tell through the MMAP2 record, which the kernel
  writes while it holds the lock; munmap counts from its entry: what it frees is free for others before it returns;
  mremap counts from its exit, unless another thread got something where it moved from.
- exec counts from its COMM record, the point of no return; what it maps is told by MMAP2 until the new program's first
  step.

Identifiers of tasks are those that the reader of the events sees, in its own PID namespace.  The tracepoints' own `pid`
fields are of another (the initial one), so that a task made is known by perf's FORK record, and the tracepoint with the
flags, which the same parent hits right after it, adds the flags.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from rmaplab.mm.abi import CLONE_VM, PROT_READ, PROT_WRITE
from rmaplab.mm.vma import PAGE_SIZE
from rmaplab.trace import elf
from rmaplab.trace.batches import Calls, Changes, Faults, Mappings
from rmaplab.trace.calls import Call
from rmaplab.trace.history import Header
from rmaplab.trace.reduce import Backing, Reducer
from rmaplab.trace.spaces import page_align

__all__ = ["Timeline"]

CLONE_NEWPID: Final = 0x20000000

_POKES: Final = (4, 5)  # PTRACE_POKETEXT, PTRACE_POKEDATA
_OWN_RECORDS: Final = ("exec", "fork")  # told by records of their own
_FREES_AT_ENTRY: Final = frozenset(("munmap", "shmdt"))
_LIMITS: Final = frozenset(("setrlimit", "prlimit64"))
_STACK: Final = (0x7FFFFFFDE000, 0x21000, 0x7FFFFFFDE000, PROT_READ | PROT_WRITE)  # of an exec that did not tell


class _Entered:
    """A call that has not returned.  `effect`: when it is known to have happened; `locked`: from the lock."""

    def __init__(self, call: Call, args: list[int], entry: int) -> None:
        self.call: Final = call
        self.args: Final = args
        self.entry: Final = entry
        self.effect = -1
        self.locked = False


class _Mapped:
    """What a task mapped, or where it changed rights, since its last call returned."""

    def __init__(self, time: int, start: int, length: int, prot: int, offset: int, backing: Backing | None) -> None:
        self.time: Final = time
        self.start: Final = start
        self.length = length
        self.prot: Final = prot
        self.offset: Final = offset
        self.backing: Final = backing


class _Exec:
    """An exec, from its point of no return to the new program's first step, and what it mapped.

    moved: the stack is where it stays
    """

    def __init__(self, pid: int) -> None:
        self.pid: Final = pid
        self.stack = _STACK
        self.moved = False
        self.segments: Final[list[_Mapped]] = []


class _Fork:
    def __init__(self, child: int, flags: int) -> None:
        self.child: Final = child
        self.flags = flags


class _Placement:
    """Where a call of process `pid` got memory."""

    def __init__(self, pid: int, effect: int, start: int, end: int) -> None:
        self.pid: Final = pid
        self.effect: Final = effect
        self.start: Final = start
        self.end: Final = end


class _Returned:
    """A call that returned; `mapped`: by it, where that is known."""

    def __init__(self, call: Call, args: list[int], result: int, mapped: _Mapped | None) -> None:
        self.call: Final = call
        self.args: Final = args
        self.result: Final = result
        self.backing: Final = None if mapped is None else mapped.backing
        # Of an mprotect() that fails half-way, how far it came; of the others, what was mapped.
        self.length = 0
        if mapped is not None:
            self.length = mapped.length + (mapped.start - args[0] if call.op == "mprotect" else 0)


class _Gone:
    pass


_Seen = _Exec | _Mapped | _Fork | _Returned | _Gone | str  # str: a new name


class Timeline:
    """Takes in what a source saw, in the order of its times (ns), and tells a Reducer.

    lost:   events that the source knows it lost
    locked: there were events of mmap_lock: the order is known
    pid_namespaces: that were made
    pokes:  how often a tracer wrote into its tracee's memory
    late:   how often something was known only when what came after it had been told
    """

    def __init__(self) -> None:
        self.lost = 0
        self.locked = False
        self.pid_namespaces = 0
        self.pokes = 0
        self.late = 0
        self._told = 0  # all up to this time
        self._number = 0
        self._seen: list[tuple[int, int, int, int, _Seen]] = []  # time, number, cpu, tid, what
        self._plain: list[Calls] = []
        self._faults: list[Faults] = []
        self._changes: list[tuple[int, int, int]] = []  # process, when it got mmap_lock, when it was over
        self._calls: dict[int, _Entered] = {}  # by tid
        self._mapped: dict[int, _Mapped] = {}  # by tid
        self._execs: dict[int, _Exec] = {}  # by tid
        self._unflagged: dict[int, _Fork] = {}  # by tid of the parent: a fork whose flags are still to come
        self._recent: list[_Placement] = []

    # What a source says

    def touched(self, faults: Faults) -> None:
        """Faults, and pages that they got, with times that ascend."""
        if len(faults):
            self._faults.append(faults)

    def called(self, calls: Calls) -> None:
        """Plain calls, as `returned` for each of them."""
        self.locked = True
        self.late += int(np.count_nonzero(calls.effect < self._told))
        self._plain.append(calls)

    def running(self, tid: int) -> None:
        """Task `tid` runs in user space: its exec is over."""
        self._execs.pop(tid, None)

    def enter(self, time: int, tid: int, call: Call, registers: list[int]) -> None:
        """Task `tid` enters `call`."""
        self._execs.pop(tid, None)
        self._mapped.pop(tid, None)
        if not self._is_noted(call, registers):
            known = registers[:4] if call.name in _LIMITS else registers  # nobody read the limit
            self._calls[tid] = _Entered(call, known, time)

    def _is_noted(self, call: Call, registers: list[int]) -> bool:
        """Whether `call` changes no memory of its own, and is only counted."""
        if call.op:
            return False
        if call.name == "ptrace":
            self.pokes += registers[0] in _POKES
        elif call.name == "unshare":
            self.pid_namespaces += registers[0] & CLONE_NEWPID != 0
        else:
            return False
        return True

    def returned(
        self, time: int, cpu: int, pid: int, tid: int, call: Call, registers: list[int], result: int, locked: int
    ) -> None:
        """Task `tid` returns from `call`, of which nothing was said before; `locked`: when it got mmap_lock for
        writing, 0: never."""
        self.locked = True
        self._execs.pop(tid, None)
        mapped = self._mapped.pop(tid, None)
        if locked:
            self._changes.append((pid, locked, time))
        if call.op in _OWN_RECORDS or self._is_noted(call, registers):
            return
        if mapped is not None and not 0 < locked < mapped.time:
            mapped = None  # of something else
        self._add(locked or time, cpu, tid, _Returned(call, registers, result, mapped))

    def lock(self, time: int, tid: int) -> None:
        """Task `tid` got an mmap_lock for writing.  Its own comes first: fork takes the child's inside it."""
        self.locked = True
        entered = self._calls.get(tid)
        if entered is not None and not entered.locked:
            entered.effect, entered.locked = time, True

    def leave(self, time: int, cpu: int, pid: int, tid: int, call: Call, result: int) -> None:
        """Task `tid` of process `pid` returns from `call`."""
        self._execs.pop(tid, None)
        entered = self._calls.pop(tid, None)
        mapped = self._mapped.pop(tid, None)
        if entered is None or entered.call is not call:
            return  # entered before the recording began
        if entered.locked:
            self._changes.append((pid, entered.effect, time))
        if call.op in _OWN_RECORDS:
            return
        if mapped is not None and entered.locked and mapped.time < entered.effect:
            mapped = None
        returned = _Returned(call, entered.args, result, mapped)
        if entered.effect < 0:
            entered.effect = entered.entry if call.name in _FREES_AT_ENTRY else time
        if result >= 0 and call.op in ("mmap", "mremap") and not entered.locked:
            self._place(pid, entered, result, returned.length)
        self._add(entered.effect, cpu, tid, returned)

    def new_task(self, time: int, cpu: int, tid: int, child: int, flags: int) -> None:
        """Task `tid` makes the task `child`, by perf's FORK record."""
        entered = self._calls.get(tid)
        if entered is not None and entered.call.op == "fork":
            if entered.call.name == "clone" and not flags:
                flags = entered.args[0] & 0xFFFFFFFF
            if entered.locked and not flags & CLONE_VM:
                time = entered.effect
            entered.effect = time
        fork = _Fork(child, flags)
        self._unflagged[tid] = fork
        self._add(time, cpu, tid, fork)

    def flags_of_new_task(self, time: int, cpu: int, tid: int, child: int, flags: int) -> None:
        """Task `tid` made a task with these flags, by the tracepoint, which comes after the record, if that does."""
        self.pid_namespaces += flags & CLONE_NEWPID != 0
        known = self._unflagged.pop(tid, None)
        if known is not None:
            known.flags = flags
        else:
            self.new_task(time, cpu, tid, child, flags)
            del self._unflagged[tid]

    def gone(self, time: int, cpu: int, tid: int) -> None:
        """Task `tid` is gone."""
        self._calls.pop(tid, None)
        self._mapped.pop(tid, None)
        self._execs.pop(tid, None)
        self._unflagged.pop(tid, None)
        self._add(time, cpu, tid, _Gone())

    def named(self, time: int, cpu: int, pid: int, tid: int, comm: str, executes: bool) -> None:
        """Task `tid` of process `pid` calls itself `comm`, because it `executes` that or for another reason."""
        if executes:
            self._execs[tid] = _Exec(pid)
            self._add(time, cpu, tid, self._execs[tid])
        self._add(time, cpu, tid, comm)

    def mapped(
        self, time: int, cpu: int, tid: int, start: int, length: int, prot: int, offset: int, path: str, key: str
    ) -> None:
        """A VMA of the address space of task `tid` was made or changed; `key` tells its file from others."""
        anonymous = path.startswith("//") or path in ("[heap]", "[stack]", "")
        backing = None if anonymous else Backing(key if path[0] != "[" else path, path)
        executing = self._execs.get(tid)
        if executing is not None:
            if path == "[stack]":
                executing.stack = (start, length, offset, prot)
                executing.moved = True
                return
            if backing is None and not executing.moved and not executing.segments:
                return  # the stack before it moves: setup_arg_pages() changes its rights there
            segment = _Mapped(time, start, length, prot, offset, backing)
            for earlier in executing.segments:
                _trim(earlier, segment)
            executing.segments.append(segment)
            self._add(time, cpu, tid, segment)
            return
        entered = self._calls.get(tid)
        if entered is not None and not entered.locked:
            entered.effect = time
        self._mapped[tid] = _Mapped(time, start, length, prot, offset, backing)

    def mapped_all(self, mappings: Mappings) -> None:
        """As `mapped` for each of them; nothing else was said meanwhile."""
        if not self._execs and not self._calls:
            mappings = mappings.last_of_each()  # only what a call mapped last is asked for
        for row in mappings.rows():
            self.mapped(*row)

    # What a reducer is told

    def settled(self, time: int) -> int:
        """Up to when nothing can come any more, if all before `time` was said."""
        waiting = [
            entered.entry for entered in self._calls.values() if entered.effect < 0 and entered.call.op != "exec"
        ]
        known = [entered.effect for entered in self._calls.values() if 0 <= entered.effect < time]
        return min([time, *waiting, *known])

    def vouch(self, header: Header) -> None:
        """Say in `header` what was seen, and what was not."""
        header.lost = self.lost
        header.order = "locks" if self.locked and not self.late else "inferred"
        header.pid_namespaces = self.pid_namespaces
        if self.pokes:
            header.unfollowed["a tracer that writes into another program (ptrace)"] = self.pokes

    def tell(self, reducer: Reducer, until: int | None = None) -> None:
        """Tell `reducer` what took effect before `until`, or all of it, in that order."""
        self._seen.sort()  # no two have the same number
        seen, calls, faults = self._seen, Calls.joined(self._plain), Faults.joined(self._faults)
        self._seen, self._plain, self._faults = [], [], []
        faults = faults.when_handled(partial(Changes, calls, self._changes))
        if until is not None:
            self._told = max(self._told, until)
            nr_seen = next((i for i, item in enumerate(seen) if item[0] >= until), len(seen))
            nr_calls, nr_faults = int(np.searchsorted(calls.effect, until)), int(np.searchsorted(faults.time, until))
            seen, self._seen = seen[:nr_seen], seen[nr_seen:]
            if nr_calls < len(calls):
                calls, self._plain = calls[:nr_calls], [calls[nr_calls:]]
            faults, self._faults = faults[:nr_faults], [faults[nr_faults:]]
            self._changes = [change for change in self._changes if change[1] >= until]
        batch = reducer.batch(calls, faults)
        times: npt.NDArray[np.int64] = np.array([item[0] for item in seen], dtype=np.int64)
        before = np.searchsorted(calls.effect, times).tolist(), np.searchsorted(faults.time, times).tolist()
        for nr_calls, nr_faults, (time, _, cpu, tid, what) in zip(*before, seen, strict=True):
            batch.until(nr_calls, nr_faults)
            reducer.at(time, cpu)
            self._tell(reducer, tid, what)
        batch.until(len(calls), len(faults))
        batch.close()

    def _tell(self, reducer: Reducer, tid: int, what: _Seen) -> None:
        if isinstance(what, _Returned):
            reducer.call(tid, what.call.name, what.args, what.result, what.backing, what.length)
        elif isinstance(what, _Mapped):
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

    def _add(self, time: int, cpu: int, tid: int, what: _Seen) -> None:
        self._number += 1
        if time < self._told:
            self.late += 1
        self._seen.append((time, self._number, cpu, tid, what))

    def _place(self, pid: int, entered: _Entered, result: int, length: int) -> None:
        """Order is inferred: what another thread got where this mremap moved from came later."""
        start = entered.args[0]
        if entered.call.op == "mremap":
            end = start + page_align(entered.args[1])
            for other in self._recent:
                if (
                    other.pid == pid and entered.entry < other.effect < entered.effect
                    and other.start < end and start < other.end
                ):  # fmt: skip
                    entered.effect = other.effect - 1
        length = page_align(entered.args[2] if entered.call.op == "mremap" else length)
        self._recent.append(_Placement(pid, entered.effect, result, result + length))
        if len(self._recent) > 128:
            del self._recent[:64]


def _trim(first: _Mapped, next: _Mapped) -> None:
    """The loader maps the first segment of a file as long as all of them, to find a place, and unmaps what
    is too much (fs/binfmt_elf.c elf_load()); perf tells only the former.  The file's headers say how long it is.
    Where they cannot be read, the next segment shows where it ends: right there, or, if there is a hole, in the page
    of the file where the next begins."""
    if not first.start < next.start < first.start + first.length:
        return
    end = next.start
    if first.backing is not None and first.backing == next.backing:
        length = elf.length_of_segment(first.backing.path, first.backing.key, first.offset)
        end = min(end, first.start + (length or next.offset - first.offset + PAGE_SIZE))
    first.length = end - first.start
