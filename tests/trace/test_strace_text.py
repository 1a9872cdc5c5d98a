# SPDX-License-Identifier: GPL-2.0-or-later
"""What the text of strace says about memory becomes events, whatever options it was made with."""

from collections import Counter
from pathlib import Path

import pytest

from rmaplab.mm.abi import CLONE_VFORK, CLONE_VM, MAP_ANONYMOUS, MAP_PRIVATE, MREMAP_MAYMOVE
from rmaplab.trace.events import FAULT_WRITE, Event
from rmaplab.trace.history import Header, History, HistoryFormatError
from rmaplab.trace.importing import import_text, open_history
from rmaplab.trace.reduce import SYNTHESIS, Reducer
from rmaplab.trace.strace import StraceText

FIXTURES = Path(__file__).parent / "fixtures"
START = '5 execve("/bin/sh", ["sh"], 0x7ffd /* 9 vars */) = 0\n5 brk(NULL) = 0x1000000\n'
A = 0x7F0000000000


def history(text: str) -> History:
    source = StraceText()
    source.read((START + text).splitlines())
    reducer = Reducer(synthesise=True)
    source.tell(reducer)
    return reducer.finish(Header(recorder="strace"))


def calls(text: str) -> list[Event]:
    return [event for event in list(history(text))[2:] if event.op != "fault"]


def test_flags_and_numbers_are_understood() -> None:
    text = f"5 mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = {A:#x}\n"
    text += f"5 mremap({A:#x}, 8192, 16384, MREMAP_MAYMOVE) = {A + 0x10000:#x} <0.000012>\n"
    first, second = calls(text)
    assert (first.length, first.prot, first.flags, first.result) == (8192, 3, MAP_PRIVATE | MAP_ANONYMOUS, A)
    assert (second.length2, second.flags, second.result) == (16384, MREMAP_MAYMOVE, A + 0x10000)


def test_a_call_in_two_parts_is_one() -> None:
    text = f"5 munmap({A:#x}, 4096 <unfinished ...>\n6 getpid() = 6\n5 <... munmap resumed>) = 0\n"
    assert [(event.op, event.addr) for event in calls(text)] == [("munmap", A)]


def test_a_child_is_there_before_its_first_line() -> None:
    text = '5 vfork( <unfinished ...>\n6 execve("/bin/true", ["true"], 0x1) = 0\n5 <... vfork resumed>) = 6\n'
    assert [(event.op, event.pid) for event in calls(text)] == [("fork", 5), ("exec", 6)]
    assert calls(text)[0].flags == CLONE_VM | CLONE_VFORK


@pytest.mark.parametrize("last", [6, 5], ids=["ended", "dying"])
def test_a_child_that_died_before_its_parent_heard_of_it_was_born_and_died(last: int) -> None:
    heard = "5 <... clone resumed>) = 6\n"
    lines = ["5 clone(flags=SIGCHLD <unfinished ...>\n", "6 exit_group(0) = ?\n", "6 +++ exited with 0 +++\n"]
    lines.insert(3 if last == 6 else 2, heard)
    again = "5 brk(NULL) = 0x1000000\n5 fork( <unfinished ...>\n6 munmap(0x1000, 4096) = 0\n5 <... fork resumed>) = 6\n"
    assert [(event.op, event.pid) for event in calls("".join(lines) + again)] == [
        ("fork", 5),
        ("exit", 6),
        ("fork", 5),
        ("munmap", 6),
    ]


def test_threads_belong_to_their_process() -> None:
    text = "5 clone3({flags=CLONE_VM|CLONE_THREAD|CLONE_SIGHAND, stack=0x7f} => {parent_tid=[8]}, 88) = 8\n"
    text += f"8 munmap({A:#x}, 4096) = 0\n8 exit(0) = ?\n8 +++ exited with 0 +++\n5 exit_group(0) = ?\n"
    assert [(event.op, event.pid) for event in calls(text)] == [("munmap", 5), ("exit", 5)]


def test_pid_namespaces_are_counted() -> None:
    source = StraceText()
    text = """\
5 unshare(CLONE_NEWIPC|CLONE_NEWPID) = 0
5 unshare(CLONE_NEWPID) = -1 EPERM (Operation not permitted)
5 clone(child_stack=NULL, flags=CLONE_NEWPID|SIGCHLD) = 6
5 clone(child_stack=NULL, flags=SIGCHLD) = 7
"""
    source.read((START + text).splitlines())
    source.tell(Reducer())
    assert source.pid_namespaces == 2


def test_in_another_pid_namespace_the_number_of_a_child_is_ours() -> None:
    text = "5 vfork( <unfinished ...>\n6 munmap(0x1000, 4096) = 0\n"
    text += "5 <... vfork resumed>) = 2 /* 6 in strace's PID NS */\n"
    assert [(event.op, event.pid, event.pid2) for event in calls(text)] == [("fork", 5, 6), ("munmap", 6, 0)]


def test_a_lock_on_the_program_shows_that_it_is_there() -> None:
    made = history("5 mlock(0x400000, 4096) = 0\n5 mlock(0x500000, 4096) = -1 ENOMEM (Cannot allocate memory)\n")
    assert [(event.op, event.addr, event.result) for event in made if event.op in ("mmap", "mlock")] == [
        ("mmap", 0x400000, 0x400000), ("mlock", 0x400000, 0), ("mlock", 0x500000, -12),
    ]  # fmt: skip


def test_a_32_bit_program_is_said_not_to_be_followed() -> None:
    text = """\
7 execve("/bin/sh", ["sh"], 0x7ffd /* 0 vars */) = 0
7 execve("/bin/old", ["old"], 0x7ffd /* 0 vars */) = 0
7 [ Process PID=7 runs in 32 bit mode. ]
7 mmap(NULL, 4096, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0xf7f00000
7 execve("/bin/sh", ["sh"], 0x7ffd /* 0 vars */) = 0
7 [ Process PID=7 runs in 64 bit mode. ]
7 exit_group(0) = ?
7 +++ exited with 0 +++
"""
    source, reducer = StraceText(), Reducer()
    source.read(text.splitlines())
    source.tell(reducer)
    assert [event.op for event in reducer.events] == ["exec", "exec", "exit", "exec", "exit"]
    assert reducer.finish(Header(recorder="strace")).header.unfollowed == {"a 32-bit program": 1}


def test_a_failed_exec_changes_nothing() -> None:
    assert calls('5 execve("/bin/no", ["no"], 0x1) = -1 ENOENT (No such file or directory)\n') == []


def test_files_are_told_apart_without_paths() -> None:
    text = ""
    for result in (3, 3):
        text += f'5 openat(AT_FDCWD, "x", O_RDONLY) = {result}\n'
        for length in (4096, 8192):
            text += f"5 mmap(NULL, {length}, PROT_READ, MAP_PRIVATE, 3, 0) = {A:#x}\n"
    assert [event.file for event in calls(text)] == [0, 0, 1, 1]


def test_system_v_memory_has_the_size_that_it_was_made_with() -> None:
    text = f"5 shmget(IPC_PRIVATE, 12288, IPC_CREAT|0600) = 4\n5 shmat(4, NULL, 0) = {A:#x}\n5 shmdt({A:#x}) = 0\n"
    attached, detached = calls(text)
    assert (attached.op, attached.length, attached.result) == ("mmap", 12288, A)
    assert (detached.op, detached.addr, detached.length) == ("munmap", A, 12288)


def test_faults_are_made_up_as_the_header_says() -> None:
    text = f"5 mmap(NULL, 8388608, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = {A:#x}\n5 fork() = 6\n"
    made = history(text)
    assert made.header.faults == SYNTHESIS
    first, *in_child = [
        event for event in made if event.op == "fault" and event.addr >= A and event.addr < A + 2**23
    ]
    assert (first.length, first.flags) == (256 * 4096, FAULT_WRITE)
    assert [(event.pid, event.addr, event.length) for event in in_child] == [(6, A, 4096)]


@pytest.mark.parametrize(
    ("prefix", "step"),
    [("", 1000), ("1795403929.00000{} ", 1000), ("23:59:59.00000{} ", 1000), ("     0.000001 ", 1000)],
)
def test_times_of_all_forms(prefix: str, step: int) -> None:
    source = StraceText()
    text = (START + f"5 munmap({A:#x}, 4096) = 0\n" * 2).splitlines()
    source.read(line.replace("5 ", "5 " + prefix.format(i), 1) for i, line in enumerate(text))
    reducer = Reducer()
    source.tell(reducer)
    assert [event.time for event in reducer.finish(Header(recorder="strace"))] == [0, 2 * step, 3 * step]


def test_midnight_is_not_the_end_of_time() -> None:
    source = StraceText()
    source.read(['5 23:59:59 execve("/bin/sh", ["sh"], 0x1) = 0', f"5 00:00:01 munmap({A:#x}, 4096) = 0"])
    reducer = Reducer()
    source.tell(reducer)
    assert [event.time for event in reducer.finish(Header(recorder="strace"))] == [0, 2 * 10**9]


# Real text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("strace-r.txt", {"exec": 2, "fork": 1, "exit": 2, "mmap": 20, "munmap": 2, "mprotect": 6, "brk": 1}),
        (
            "strace-tt-T-y.txt",
            {"exec": 2, "fork": 1, "exit": 2, "mmap": 20, "munmap": 2, "mprotect": 6, "brk": 1},
        ),
        (
            "strace-tt.txt",
            {"exec": 3, "fork": 2, "exit": 3, "mmap": 30, "munmap": 3, "mprotect": 9, "brk": 1},
        ),
        (
            "strace-plain.txt",
            {"exec": 2, "fork": 1, "exit": 2, "mmap": 40, "munmap": 7, "mprotect": 10, "brk": 6},
        ),
    ],
)
def test_real_text(name: str, expected: dict[str, int]) -> None:
    imported = open_history(FIXTURES / name)
    counts = Counter(event.op for event in imported)
    assert {op: counts[op] for op in expected} == expected
    assert imported.header.complete and imported.header.recorder == "import of strace"


def test_text_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("total 4\ndrwxr-xr-x 2 root root 4096 Nov 23 03:31 .\n")
    with pytest.raises(HistoryFormatError, match="shows no program from its start"):
        import_text(tmp_path / "x.txt")
