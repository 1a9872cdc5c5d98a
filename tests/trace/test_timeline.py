# SPDX-License-Identifier: GPL-2.0-or-later
"""What was seen is told in the order in which it took effect; faults as columns are told as faults one by one."""

import errno
import os
import random

import numpy as np
import pytest

from rmaplab.mm.abi import CLONE_VFORK, CLONE_VM, PROT_EXEC, PROT_READ, PROT_WRITE
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.trace import elf
from rmaplab.trace.batches import ALLOCATED, LOCKED, Calls, Changes, Faults
from rmaplab.trace.calls import CALLS
from rmaplab.trace.events import Event
from rmaplab.trace.history import Header
from rmaplab.trace.play import Player
from rmaplab.trace.reduce import Reducer
from rmaplab.trace.timeline import CLONE_NEWPID, Timeline

A = 0x7F0000000000
STACK = 0x7FFE00000000
PAGE = 4096
RW = PROT_READ | PROT_WRITE


def started() -> Timeline:
    """Process 5 runs a program."""
    timeline = Timeline()
    timeline.named(1, 0, 5, 5, "sh", True)
    timeline.mapped(2, 0, 5, STACK, 0x21000, RW, 0x7FFFFFFDE000, "[stack]", "00:00 0 0")
    timeline.running(5)
    return timeline


def call(
    timeline: Timeline, tid: int, name: str, args: list[int], times: tuple[int, int, int], result: int = 0
) -> None:
    """Entered, with the lock, and back at `times`."""
    entry, lock, exit = times
    timeline.enter(entry, tid, CALLS[name], args + [0xDEAD] * (6 - len(args)))
    timeline.lock(lock, tid)
    timeline.leave(exit, 0, 5, tid, CALLS[name], result)


def mapped(timeline: Timeline, at: int, addr: int = A, pages: int = 4) -> None:
    call(timeline, 5, "mmap", [0, pages * PAGE, RW, 0x22, 2**64 - 1, 0], (at, at + 1, at + 2), addr)


def events(timeline: Timeline) -> list[Event]:
    reducer = Reducer()
    timeline.tell(reducer)
    return list(reducer.events)[1:]


def test_the_lock_says_whether_a_fork_or_an_unmapping_was_first() -> None:
    """munmap is entered before the fork and gets the lock after it: the child still has the mapping."""
    timeline = started()
    mapped(timeline, 10)
    timeline.new_task(20, 0, 5, 8, 0)
    timeline.flags_of_new_task(21, 0, 5, 8, CLONE_VM | 0x10000)  # a thread
    timeline.enter(30, 8, CALLS["munmap"], [A, PAGE, 0, 0, 0, 0])
    timeline.enter(31, 5, CALLS["fork"], [0] * 6)
    timeline.lock(32, 5)
    timeline.lock(33, 5)  # the child's
    timeline.lock(34, 8)
    timeline.leave(36, 1, 5, 8, CALLS["munmap"], 0)
    timeline.new_task(38, 0, 5, 9, 0)
    timeline.flags_of_new_task(39, 0, 5, 9, 0x11)
    assert [event.op for event in events(timeline)] == ["mmap", "fork", "munmap"]
    assert timeline.locked


def fault(tid: int = 5, ip: int = 100) -> tuple[int, int, int]:
    return tid, 1, ip


def locked(tid: int = 5, ip: int = 100) -> tuple[int, int, int]:
    return tid, LOCKED, ip


def page(tid: int = 5, ip: int = 100) -> tuple[int, int, int]:
    return tid, ALLOCATED, ip


@pytest.mark.parametrize(
    ("seen", "first"),
    [
        ({20: fault()}, "fault"),
        ({20: fault(), 22: locked()}, "fault"),
        ({20: fault(), 26: locked()}, "mprotect"),
        ({20: fault(), 22: locked(), 32: locked()}, "fault"),  # the first is the fault's
        ({20: fault(), 22: locked(), 32: page()}, "fault"),
        ({20: fault(), 26: page()}, "fault"),  # the other waits for the VMA
        ({20: fault(), 32: page()}, "mprotect"),
        ({20: fault(), 32: page(ip=200)}, "fault"),  # of a call's
        ({20: fault(), 21: fault(ip=200), 32: page()}, "fault"),
        ({20: fault(), 32: page(tid=8)}, "fault"),
        ({20: fault(), 22: fault(tid=8), 32: page(), 33: page(tid=8)}, "mprotect"),
        ({15: locked(), 20: fault()}, "fault"),
        ({26: fault(), 32: page()}, "mprotect"),
    ],
)
def test_a_fault_happens_when_it_goes_on(seen: dict[int, tuple[int, int, int]], first: str) -> None:
    """Another thread has the lock from 25 to 30, and changes what lies beside: whether they merge depends on who was
    first."""
    timeline = started()
    mapped(timeline, 10)
    timeline.new_task(13, 0, 5, 8, CLONE_VM | 0x10000)
    call(timeline, 8, "mprotect", [A, PAGE, PROT_READ], (24, 25, 30))
    columns = zip(*((time, 0, tid, A + PAGE, kind, 5, ip) for time, (tid, kind, ip) in seen.items()), strict=True)
    kinds = (np.int64, np.int16, np.int32, np.uint64, np.int8, np.int32, np.uint64)
    timeline.touched(Faults(*(np.array(column, dtype=kind) for column, kind in zip(columns, kinds, strict=True))))
    told = [event for event in events(timeline) if event.op != "mmap"]
    assert told[0].op == first and told[0].time < told[-1].time
    nr_faults = sum(kind < LOCKED for _, kind, _ in seen.values())
    assert sum(event.length for event in told if event.op == "fault") == nr_faults * PAGE


def test_a_change_of_another_address_space_is_not_waited_for() -> None:
    """Process 9 changes its own memory from 25 to 30, and process 5 from 40 to 50."""
    changes = Changes(Calls.joined([]), [(5, 40, 50), (9, 25, 30)])
    rows = [(20, 0, 5, A, 1), (60, 0, 5, 0, ALLOCATED), (21, 0, 9, A, 1), (61, 0, 9, 0, ALLOCATED)]
    faults = Faults.of(sorted(rows)).when_handled(lambda: changes)
    assert [(row[0], row[2]) for row in faults.rows()] == [(26, 9), (41, 5)]


def test_an_executable_stack_is_one_where_it_stays() -> None:
    """The kernel changes its rights before it moves it (fs/exec.c setup_arg_pages()), and tells of it there."""
    timeline = Timeline()
    timeline.named(1, 0, 5, 5, "old", True)
    timeline.mapped(2, 0, 5, 0x7FFFFFFFE000, PAGE, RW | PROT_EXEC, 0x7FFFFFFFE000, "//anon", "00:00 0 0")
    timeline.mapped(3, 0, 5, STACK, 0x21000, RW | PROT_EXEC, 0x7FFFFFFDE000, "[stack]", "00:00 0 0")
    timeline.mapped(4, 0, 5, A, PAGE, RW, A, "//anon", "00:00 0 0")
    timeline.running(5)
    reducer = Reducer()
    timeline.tell(reducer)
    assert [(event.op, event.addr, event.prot) for event in reducer.events] == [
        ("exec", STACK, 0), ("mprotect", STACK, RW | PROT_EXEC), ("mmap", A, RW),
    ]  # fmt: skip


def limited(timeline: Timeline, at: int, limit: int) -> None:
    """As BPF's programs tell of it; 0: as perf does."""
    for time, args in ((at, [0, 7, A, 0, 0, limit]), (at + 5, [0, 3, 0, 0, 0, 99]), (at + 8, [0, 3, A, 0, 0, limit])):
        if limit:
            timeline.returned(time, 0, 5, 5, CALLS["prlimit64"], args, 0, 0)
        else:
            timeline.enter(time, 5, CALLS["prlimit64"], [*args[:5], 0xDEAD])
            timeline.leave(time + 1, 0, 5, 5, CALLS["prlimit64"], 0)


@pytest.mark.parametrize(
    ("limit", "grown", "doubts"), [(16 << 20, True, 0), (4 << 20, False, 0), (0, True, 1)], ids=["more", "less", "?"]
)
def test_a_stack_has_the_limit_that_was_set(limit: int, grown: bool, doubts: int) -> None:
    """Also in a child, and in the program that it executes.  A replay honours it without being told of it."""
    timeline = started()
    mapped(timeline, 10)
    limited(timeline, 20, limit)
    timeline.new_task(40, 0, 5, 9, 0)
    timeline.named(50, 0, 9, 9, "program", True)
    timeline.mapped(51, 0, 9, STACK, 0x21000, RW, 0x7FFFFFFDE000, "[stack]", "00:00 0 0")
    timeline.running(9)
    for at, pid in ((60, 5), (70, 9)):
        timeline.touched(Faults.of([(at, 0, pid, STACK + 0x21000 - (12 << 20), 1)]))
    reducer = Reducer()
    timeline.tell(reducer)
    header = Header(recorder="bpf")
    timeline.vouch(header)
    history = reducer.finish(header)
    faults = [event.result for event in history if event.op == "fault"]
    assert faults == [0 if grown else -errno.EFAULT] * 2
    assert len(header.doubts) == doubts
    player = Player(Machine(PROFILES["6.18"], [AnonVmaRmap]), header)
    player.play(history)
    assert player.differences == []
    stack = player.machine.mm_of(9).tree.at(STACK)
    assert stack is not None and (stack.end - stack.start == 12 << 20) == grown


def test_without_locks_an_unmapping_counts_from_its_entry() -> None:
    timeline = started()
    mapped(timeline, 10)
    timeline.enter(30, 5, CALLS["munmap"], [A, PAGE, 0, 0, 0, 0])
    timeline.new_task(31, 0, 5, 9, 0)
    timeline.leave(36, 1, 5, 5, CALLS["munmap"], 0)
    assert [event.op for event in events(timeline)] == ["mmap", "munmap", "fork"]


def test_in_a_pid_namespace_a_fork_is_one_fork() -> None:
    """perf's record has the reader's number of the child, the tracepoint that of the initial namespace."""
    timeline = started()
    timeline.new_task(10, 0, 5, 6, 0)
    timeline.flags_of_new_task(11, 0, 5, 40006, CLONE_VM | CLONE_VFORK)
    timeline.new_task(20, 0, 5, 7, 0)
    timeline.flags_of_new_task(21, 0, 5, 40007, CLONE_NEWPID | 0x11)
    timeline.enter(25, 7, CALLS["unshare"], [CLONE_NEWPID, 0, 0, 0, 0, 0])
    timeline.gone(30, 0, 6)
    timeline.gone(31, 0, 7)
    assert [(event.op, event.pid, event.pid2, event.flags) for event in events(timeline)] == [
        ("fork", 5, 6, CLONE_VM | CLONE_VFORK), ("fork", 5, 7, 0), ("exit", 6, 0, 0), ("exit", 7, 0, 0),
    ]  # fmt: skip
    assert timeline.pid_namespaces == 2


def test_a_recording_says_what_it_did_not_follow() -> None:
    timeline = started()
    timeline.new_task(10, 0, 5, 6, 0)
    timeline.named(11, 0, 6, 6, "old", True)
    timeline.mapped(12, 0, 6, 0xFFFDD000, 0x21000, RW, 0xFFFDD000, "[stack]", "00:00 0 0")  # a 32-bit program
    timeline.running(6)
    timeline.enter(20, 6, CALLS["munmap"], [A, PAGE, 0, 0, 0, 0])  # mkdir, to this program
    timeline.leave(21, 0, 6, 6, CALLS["munmap"], 0)
    timeline.enter(30, 5, CALLS["ptrace"], [5, 6, 0, 0, 0, 0])
    timeline.leave(31, 0, 5, 5, CALLS["ptrace"], 0)
    timeline.enter(32, 5, CALLS["mbind"], [A, PAGE, 0, 0, 0, 0])
    timeline.leave(33, 0, 5, 5, CALLS["mbind"], 0)
    reducer = Reducer()
    timeline.tell(reducer)
    header = Header(recorder="perf")
    timeline.vouch(header)
    history = reducer.finish(header)
    assert [event.op for event in history][1:] == ["fork", "exit"]
    assert [doubt.split(" is")[0].split(" may")[0] for doubt in header.doubts] == [
        "a tracer that writes into another program (ptrace)", "a 32-bit program", "mbind",
    ]  # fmt: skip
    assert history.evidence.startswith("order inferred, maps of 0 of 2 processes compared, a tracer")
    assert Header(recorder="perf", lost=3).doubts == ["3 events were lost"]
    assert Header(recorder="perf").doubts == []


def test_what_an_mprotect_changed_before_it_failed_is_changed() -> None:
    """The third page belongs to a file that may not be written."""
    timeline = started()
    mapped(timeline, 10)
    for at, done in ((20, 2), (30, 0)):
        timeline.enter(at, 5, CALLS["mprotect"], [A, 4 * PAGE, PROT_READ, 0, 0, 0])
        timeline.lock(at + 1, 5)
        if done:
            timeline.mapped(at + 2, 0, 5, A, done * PAGE, PROT_READ, 0, "//anon", "00:00 0 0")
        timeline.leave(at + 3, 0, 5, 5, CALLS["mprotect"], -errno.EACCES)
    assert [(event.op, event.length, event.result) for event in events(timeline)][1:] == [("mprotect", 2 * PAGE, 0)]


def test_told_in_parts_it_is_the_same() -> None:
    def fill(timeline: Timeline, reducer: Reducer, parts: bool) -> list[int]:
        settled = []
        for i in range(20):
            at = 100 * (i + 1)
            mapped(timeline, at, A + i * 0x100000)
            timeline.touched(Faults.of([(at + 10 + j, 0, 5, A + i * 0x100000 + j * PAGE, 1) for j in range(4)]))
            timeline.enter(at + 50, 5, CALLS["munmap"], [A + i * 0x100000, PAGE, 0, 0, 0, 0])
            settled.append(timeline.settled(at + 60))
            if parts:
                timeline.tell(reducer, settled[-1])
            timeline.leave(at + 70, 0, 5, 5, CALLS["munmap"], 0)
        timeline.tell(reducer)
        return settled

    told = []
    for parts in (False, True):
        reducer = Reducer()
        # Not beyond a call that may yet take effect.
        assert all(until % 100 == 50 for until in fill(started(), reducer, parts))
        told.append(list(reducer.events))
    assert told[0] == told[1] and len(told[0]) == 61


@pytest.mark.parametrize("seed", range(8))
def test_faults_as_columns_are_told_as_faults_one_by_one(seed: int) -> None:
    rng = random.Random(seed)
    rows = []
    at = {5: A, 9: A}
    for time in range(1000, 4000):
        tid = rng.choice((5, 5, 5, 9, 77))  # 77 is a stranger
        addr = at.get(tid, A)
        write = rng.random() < 0.97
        if rng.random() < 0.02:  # elsewhere: the stack grows, a hole, a read-only page, the kernel's half
            addr = rng.choice((STACK - rng.randrange(1, 50) * PAGE, A - PAGE, A + 4000 * PAGE, 2**64 - PAGE))
        at[tid] = A + (addr - A + PAGE) % (4096 * PAGE) if A <= addr < A + 4096 * PAGE else A
        rows.append((time, rng.randrange(2), tid, addr + rng.randrange(PAGE), int(write)))
    told = []
    for step in (1, 7, 500, len(rows)):
        timeline = started()
        mapped(timeline, 10, A, 4096)
        call(timeline, 5, "mprotect", [A + 4000 * PAGE, 50 * PAGE, PROT_READ], (20, 21, 22))
        timeline.new_task(40, 0, 5, 9, 0)
        reducer = Reducer()
        timeline.tell(reducer)
        for i in range(0, len(rows), step):
            timeline.touched(Faults.of(rows[i : i + step]))
            timeline.tell(reducer)
        told.append(list(reducer.events))
    assert told[0] == told[1] == told[2] == told[3]
    assert {event.pid for event in told[0]} == {5, 9} and any(event.result < 0 for event in told[0])
    assert max(event.length for event in told[0] if event.op == "fault") > PAGE


def test_the_headers_of_a_program_say_how_long_a_segment_is() -> None:
    path = "/proc/self/exe"
    status = os.stat(path)
    key = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x} {status.st_ino} 0"
    first = elf.length_of_segment(path, key, 0)
    assert first > 0 and first % PAGE == 0
    assert elf.length_of_segment(path, "00:00 1 0", 0) == 0  # another file
    assert elf.length_of_segment("/nonexistent", key, 0) == 0


def test_columns_keep_their_types() -> None:
    joined = Faults.joined([Faults.of([(1, 0, 5, 2**64 - 1, 1)]), Faults.of([])])
    assert joined.addr.dtype == np.uint64 and joined.rows() == [(1, 0, 5, 2**64 - 1, 1)]
