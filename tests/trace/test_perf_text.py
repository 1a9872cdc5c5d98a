# SPDX-License-Identifier: GPL-2.0-or-later
"""What the text of perf script says about memory becomes events, in the order in which it took effect."""

import errno
from collections import Counter
from pathlib import Path

import pytest

from rmaplab.mm.abi import CLONE_VFORK, CLONE_VM, MAP_FIXED
from rmaplab.trace.events import FAULT_WRITE, Event
from rmaplab.trace.history import Header, History
from rmaplab.trace.importing import import_text
from rmaplab.trace.perf_text import PerfText
from rmaplab.trace.reduce import Reducer

FIXTURES = Path(__file__).parent / "fixtures"

# A program with a stack, a text segment and a heap.
START = """\
sh 5/5 [000] 1.000000000: PERF_RECORD_COMM exec: sh:5/5
sh 5/5 [000] 1.000000100: PERF_RECORD_MMAP2 5/5: [0x7ffe00000000(0x21000) @ 0x7ffffffde000 00:00 0 0]: rw-p [stack]
sh 5/5 [000] 1.000000200: PERF_RECORD_MMAP2 5/5: [0x400000(0x10000) @ 0 fe:00 7 0]: r-xp /bin/sh
sh 5/5 [000] 1.000000300: raw_syscalls:sys_exit: NR 59 = 0
sh 5/5 [000] 1.000000400: raw_syscalls:sys_enter: NR 12 (0, 0, 0, 0, 0, 0)
sh 5/5 [000] 1.000000500: raw_syscalls:sys_exit: NR 12 = 16777216
"""


def history(text: str, start: str = START) -> History:
    source = PerfText()
    source.read((start + text).splitlines())
    reducer = Reducer(names=True)
    source.tell(reducer)
    return reducer.finish(Header(recorder="perf"))


def after_start(text: str) -> list[Event]:
    return list(history(text))[2:]


def lines(*parts: str) -> str:
    """Lines at consecutive microseconds; each part is "tid what"."""
    return "".join(
        f"sh 5/{part.split(' ', 1)[0]} [001] 2.{i:06}: {part.split(' ', 1)[1]}\n"
        for i, part in enumerate(parts)
    )


def enter(tid: int, number: int, *args: int) -> str:
    words = ", ".join(f"{arg:x}" for arg in (*args, 0, 0, 0, 0, 0, 0)[:6])
    return f"{tid} raw_syscalls:sys_enter: NR {number} ({words})"


def leave(tid: int, number: int, result: int) -> str:
    return f"{tid} raw_syscalls:sys_exit: NR {number} = {result}"


def fault(tid: int, addr: int, error: int = 6, side: str = "user") -> str:
    return f"{tid} exceptions:page_fault_{side}: address={addr:#x} ip=0x1 error_code={error:#x}"


def mapped(tid: int, start: int, length: int, path: str = "//anon") -> str:
    return f"{tid} PERF_RECORD_MMAP2 5/{tid}: [{start:#x}({length:#x}) @ {start:#x} 00:00 0 0]: rw-p {path}"


def mmap(tid: int, length: int, result: int) -> list[str]:
    return [enter(tid, 9, 0, length, 3, 0x22), mapped(tid, result, length), leave(tid, 9, result)]


HEAP = 0x1000000
A = 0x7F0000000000


def test_exec_has_its_stack_its_segments_and_its_heap() -> None:
    exec_event, segment = list(history(""))
    assert exec_event == Event("exec", 5, 0x7FFE00000000, 0x21000, addr2=HEAP, offset=0x7FFFFFFDE000, cpu=0)
    assert (segment.op, segment.addr, segment.prot, segment.flags & MAP_FIXED) == (
        "mmap",
        0x400000,
        5,
        MAP_FIXED,
    )
    assert segment.time == 200


def test_a_first_segment_that_was_mapped_too_long_ends_where_the_next_begins() -> None:
    start = """\
sh 5/5 [000] 1.0: PERF_RECORD_COMM exec: sh:5/5
sh 5/5 [000] 1.1: PERF_RECORD_MMAP2 5/5: [0x400000(0x400000) @ 0 fe:00 7 0]: r--p /bin/sh
sh 5/5 [000] 1.2: PERF_RECORD_MMAP2 5/5: [0x401000(0x2000) @ 0x1000 fe:00 7 0]: r-xp /bin/sh
sh 5/5 [000] 1.3: PERF_RECORD_MMAP2 5/5: [0x500000(0x400000) @ 0 fe:00 8 0]: r-xp /lib/ld.so
sh 5/5 [000] 1.4: PERF_RECORD_MMAP2 5/5: [0x701000(0x2000) @ 0x1000 fe:00 8 0]: rw-p /lib/ld.so
"""
    lengths = [event.length for event in history("", start) if event.op == "mmap"]
    assert lengths == [
        0x1000,
        0x2000,
        0x2000,
        0x2000,
    ]  # with a hole, the page that both have a part of is the last


def test_faults_of_a_kind_that_touch_one_page_after_the_other_are_one_run() -> None:
    run = [fault(5, A + i * 4096) for i in range(3)]
    events = after_start(lines(*mmap(5, 0x8000, A), *run, fault(5, A + 0x3000, 4), fault(5, A + 0x7000)))
    assert [(event.addr - A, event.length, event.flags) for event in events[1:]] == [
        (0, 0x3000, FAULT_WRITE), (0x3000, 0x1000, 0), (0x7000, 0x1000, FAULT_WRITE),
    ]  # fmt: skip


def test_a_run_ends_where_something_else_happens() -> None:
    events = after_start(
        lines(*mmap(5, 0x8000, A), fault(5, A), *mmap(5, 0x1000, A - 0x1000), fault(5, A + 0x1000))
    )
    assert [event.op for event in events] == ["mmap", "fault", "mmap", "fault"]


def test_faults_of_the_kernel_on_user_addresses_count_and_others_do_not() -> None:
    events = after_start(
        lines(*mmap(5, 0x8000, A), fault(5, A, 2, "kernel"), fault(5, 0xFFFFFFFFFF600000, 2, "kernel"))
    )
    assert [(event.op, event.flags) for event in events[1:]] == [("fault", FAULT_WRITE)]


def test_an_access_that_was_not_allowed_is_marked() -> None:
    read_only = [enter(5, 9, 0, 0x1000, 1, 0x22), mapped(5, A, 0x1000), leave(5, 9, A)]
    events = after_start(lines(*read_only, fault(5, A, 7), fault(5, A, 4), fault(5, 0x10, 6)))
    assert [event.result for event in events[1:]] == [-errno.EFAULT, 0, -errno.EFAULT]


def test_a_stack_grows_and_has_a_limit() -> None:
    bottom = 0x7FFE00000000
    events = after_start(
        lines(fault(5, bottom - 0x3000), fault(5, bottom - 0x2000), fault(5, bottom - (16 << 20)))
    )
    assert [(event.addr, event.length, event.result) for event in events] == [
        (bottom - 0x3000, 0x2000, 0), (bottom - (16 << 20), 0x1000, -errno.EFAULT),
    ]  # fmt: skip


def test_fork_vfork_and_threads_differ() -> None:
    text = lines(
        "5 PERF_RECORD_FORK(6:6):(5:5)",
        "5 task:task_newtask: pid=6 comm=sh clone_flags=1200011 oom_score_adj=0",
        "5 PERF_RECORD_FORK(7:7):(5:5)",
        "5 task:task_newtask: pid=7 comm=sh clone_flags=4111 oom_score_adj=0",
        "5 PERF_RECORD_FORK(5:8):(5:5)",
        "5 task:task_newtask: pid=8 comm=sh clone_flags=3d0f00 oom_score_adj=0",
        "5 PERF_RECORD_FORK(9:9):(5:5)",  # no tracepoint: taken for a plain fork
        *mmap(8, 0x1000, A),
    )
    events = after_start(text)
    assert [(event.op, event.pid2, event.flags) for event in events[:3]] == [
        ("fork", 6, 0), ("fork", 7, CLONE_VM | CLONE_VFORK), ("fork", 9, 0),
    ]  # fmt: skip
    assert (events[3].op, events[3].pid) == ("mmap", 5)


def test_a_process_exits_with_its_last_thread() -> None:
    text = lines(
        "5 PERF_RECORD_FORK(5:8):(5:5)",
        "5 task:task_newtask: pid=8 comm=sh clone_flags=3d0f00 oom_score_adj=0",
        "5 PERF_RECORD_EXIT(5:5):(1:1)",
        *mmap(8, 0x1000, A),
        "8 PERF_RECORD_EXIT(5:8):(5:5)",
    )
    assert [event.op for event in after_start(text)] == ["mmap", "exit"]


def test_exec_by_a_thread_ends_the_others() -> None:
    text = lines(
        "5 PERF_RECORD_FORK(5:8):(5:5)",
        "5 task:task_newtask: pid=8 comm=sh clone_flags=3d0f00 oom_score_adj=0",
        "5 PERF_RECORD_EXIT(5:5):(1:1)",
        "5 PERF_RECORD_COMM exec: cat:5/5",
        "5 PERF_RECORD_EXIT(5:5):(1:1)",
    )
    assert [event.op for event in after_start(text)] == ["exec", "exit"]
    assert history(text).header.processes == {5: "cat"}


def test_what_munmap_frees_is_free_before_it_returns() -> None:
    """Thread 8 gets the place of a mapping whose unmapping has not returned yet."""
    text = lines(*mmap(5, 0x2000, A), enter(5, 11, A, 0x2000), *mmap(8, 0x2000, A), leave(5, 11, 0))
    start = START + "sh 5/5 [0] 1.1: PERF_RECORD_FORK(5:8):(5:5)\n"
    assert [event.op for event in list(history(text, start))[2:]] == ["mmap", "munmap", "mmap"]


def test_where_mremap_moved_from_is_free_before_it_returns() -> None:
    text = lines(
        *mmap(5, 0x2000, A),
        enter(5, 25, A, 0x2000, 0x4000, 1),
        *mmap(8, 0x2000, A),
        leave(5, 25, A + 0x100000),
    )
    start = START + "sh 5/5 [0] 1.1: PERF_RECORD_FORK(5:8):(5:5)\n"
    assert [event.op for event in list(history(text, start))[2:]] == ["mmap", "mremap", "mmap"]


def test_mappings_take_effect_where_the_kernel_says_so() -> None:
    """Thread 8 enters first and returns last, but its mapping was made second."""
    text = lines(
        enter(8, 9, 0, 0x1000, 3, 0x22),
        *mmap(5, 0x1000, A),
        mapped(8, A - 0x1000, 0x2000),
        leave(8, 9, A - 0x1000),
    )
    start = START + "sh 5/5 [0] 1.1: PERF_RECORD_FORK(5:8):(5:5)\n"
    assert [event.result for event in list(history(text, start))[2:]] == [A, A - 0x1000]


def test_calls_that_failed_changed_nothing_unless_they_may_fail_half_way() -> None:
    text = lines(
        enter(5, 9, 0, 0x1000, 3, 0x22), leave(5, 9, -12), enter(5, 10, A, 0x1000, 1), leave(5, 10, -12)
    )
    assert [(event.op, event.result) for event in after_start(text)] == [("mprotect", -errno.ENOMEM)]


def test_what_is_left_in_a_register_that_mlock_does_not_have_is_no_flag() -> None:
    calls = [enter(5, 149, A, 0x1000, 1), leave(5, 149, 0), enter(5, 149, A, 0x1000, 1 << 40), leave(5, 149, 0)]
    calls += [enter(5, 325, A, 0x1000, (7 << 32) + 1), leave(5, 325, 0)]
    events = after_start(lines(*mmap(5, 0x1000, A), *calls))
    assert [(event.op, event.flags) for event in events[1:]] == [("mlock", 0), ("mlock", 0), ("mlock", 1)]


def test_an_address_that_mremap_was_not_asked_for_is_none() -> None:
    """The C library passes whatever is in the register."""
    events = after_start(
        lines(*mmap(5, 0x1000, A), enter(5, 25, A, 0x1000, 0x2000, 1, 0xDEAD), leave(5, 25, A + 0x9000))
    )
    assert (events[1].op, events[1].addr2, events[1].result) == ("mremap", 0, A + 0x9000)


def test_mlock_that_a_limit_refused_changed_nothing() -> None:
    refused = [enter(5, 149, A, 0x1000), leave(5, 149, -errno.ENOMEM)]
    over_a_hole = [enter(5, 149, A, 0x2000), leave(5, 149, -errno.ENOMEM)]
    events = after_start(lines(*mmap(5, 0x1000, A), *refused, *over_a_hole))
    assert [(event.op, event.length) for event in events[1:]] == [("mlock", 0x2000)]


def test_mprotect_that_failed_at_a_hole_left_what_lies_behind_it() -> None:
    calls = [enter(5, 10, A, 0x3000, 1), leave(5, 10, -errno.ENOMEM)]
    events = after_start(
        lines(*mmap(5, 0x1000, A), *mmap(5, 0x1000, A + 0x2000), *calls, fault(5, A), fault(5, A + 0x2000))
    )
    assert [event.result for event in events if event.op == "fault"] == [-errno.EFAULT, 0]


def test_advice_that_this_kernel_does_not_know_is_dropped_and_other_that_failed_is_kept() -> None:
    calls: list[str] = []
    for advice in (14, 4):  # MADV_HUGEPAGE, MADV_DONTNEED
        calls += [enter(5, 28, A, 0x1000, advice), leave(5, 28, -errno.EINVAL)]
    events = after_start(lines(*mmap(5, 0x1000, A), *calls))
    assert [(event.op, event.flags, event.result) for event in events[1:]] == [("madvise", 4, -errno.EINVAL)]


def test_questions_to_brk_are_no_events() -> None:
    text = lines(
        enter(5, 12, HEAP + 0x5000), leave(5, 12, HEAP + 0x5000), enter(5, 12, 0), leave(5, 12, HEAP + 0x5000),
        enter(5, 12, 1 << 46), leave(5, 12, HEAP + 0x5000),
    )  # fmt: skip
    assert [(event.op, event.result) for event in after_start(text)] == [("brk", HEAP + 0x5000)]


def test_calls_without_an_event_are_counted() -> None:
    assert history(lines(enter(5, 237, A, 0x1000), leave(5, 237, 0))).header.skipped == {"mbind": 1}


def test_files_are_told_apart_and_shared_memory_is_known() -> None:
    paths = [
        "/lib/a.so",
        "/memfd:x (deleted)",
        "/dev/zero (deleted)",
        "/SYSV00000000 (deleted)",
        "/dev/dri/card0",
    ]
    text = ""
    for i, path in enumerate(paths):
        row = f"5 PERF_RECORD_MMAP2 5/5: [{A:#x}(0x1000) @ 0 00:01 {i} 0]: rw-s {path}"
        text += lines(enter(5, 9, 0, 0x1000, 3, 1, 3), row, leave(5, 9, A))
    assert [(entry.kind, entry.name) for entry in history(text).header.files[1:]] == list(
        zip(["file", "shmem", "shmem", "sysv", "device"], paths, strict=True)
    )


def test_what_was_lost_is_counted() -> None:
    source = PerfText()
    source.read(
        (START + lines("5 PERF_RECORD_LOST lost 7", "5 PERF_RECORD_LOST_SAMPLES lost 3")).splitlines()
    )
    assert source.timeline.lost == 10


def test_strangers_are_passed_over() -> None:
    text = "cat 77/77 [000] 3.0: raw_syscalls:sys_enter: NR 11 (1000, 1000, 0, 0, 0, 0)\nnonsense\n"
    text += (
        "cat 77/77 [000] 3.1: raw_syscalls:sys_exit: NR 11 = 0\ncat 77/77 [0] 3.2: sched:sched_switch: x\n"
    )
    assert after_start(text) == []


# Real text


@pytest.mark.parametrize("name", ["perf-script.txt", "perf-script-syscalls.txt"])
def test_real_text_of_a_shell_and_a_child(name: str) -> None:
    imported = import_text(FIXTURES / name, kernel="6.18.1")
    counts = Counter(event.op for event in imported)
    assert counts["exec"] == 2 and counts["fork"] == 1 and counts["exit"] == 2
    assert counts["mmap"] == 39 and counts["munmap"] == 2 and counts["mprotect"] == 6 and counts["brk"] == 1
    assert counts["fault"] > 100 and all(event.result >= 0 for event in imported)
    assert imported.header.complete and imported.header.kernel == "6.18.1"
    assert [entry.name for entry in imported.header.files if entry.kind == "file"] == [""] * 5
    assert (imported.header.faults == "recorded") == (name == "perf-script.txt")
