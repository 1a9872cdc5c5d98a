# SPDX-License-Identifier: GPL-2.0-or-later
"""Real programs, recorded end to end, and held against what the kernel says of them."""

import errno
import os
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Final

import pytest

import rmaplab.example
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import profile_for
from rmaplab.output import CannotWrite
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.trace import perf_events
from rmaplab.trace.events import FAULT_WRITE
from rmaplab.trace.history import History, read_history
from rmaplab.trace.play import Player
from rmaplab.trace.record import RecordError, record
from rmaplab.trace.strace import StraceText

HERE = Path(__file__).parent
EXAMPLE = [sys.executable, "-S", str(Path(rmaplab.example.__file__))]


@cache
def refusal(recorder: str) -> str:
    """Why a recorder may not run here; empty if it may."""
    try:
        record(["true"], os.devnull, recorder=recorder)
    except RecordError as error:
        return str(error)
    return ""


@pytest.fixture(params=["bpf", "perf"])
def recorder(request: pytest.FixtureRequest) -> str:
    """Each of those that see every fault."""
    if refusal(request.param):
        pytest.skip(refusal(request.param))
    name: str = request.param
    return name


@pytest.fixture(params=["bpf", "perf", "strace"])
def any_recorder(request: pytest.FixtureRequest) -> str:
    if refusal(request.param):
        pytest.skip(refusal(request.param))
    name: str = request.param
    return name


@pytest.fixture
def strace() -> None:
    if refusal("strace"):
        pytest.skip(refusal("strace"))


def replayed(history: History) -> Player:
    machine = Machine(profile_for(history.header.kernel)[0], [AnonVmaRmap])
    player = Player(machine, history.header)
    player.play(history)
    return player


@pytest.mark.parametrize(
    "command", [EXAMPLE, [sys.executable, "-S", str(HERE / "torture.py")]], ids=["example", "torture"]
)
def test_the_machine_ends_with_the_mappings_that_the_kernel_had(
    tmp_path: Path, recorder: str, command: list[str]
) -> None:
    recording = record(command, tmp_path / "h.parquet", recorder=recorder, check=True)
    assert recording.status == 0
    history = read_history(tmp_path / "h.parquet")
    assert history.header.complete and history.header.ended == "exit 0"
    counts = Counter(event.op for event in history)
    assert counts["mark"] == counts["exit"] == counts["fork"] + 1 == len(history.header.checkpoints)
    player = replayed(history)
    assert player.marks == counts["mark"]
    assert [str(difference) for difference in player.geometry] == []
    assert [str(difference) for difference in player.differences] == []


def test_what_merges_while_another_thread_touches_it_merges_in_the_machine(tmp_path: Path, recorder: str) -> None:
    """A thread touches VMAs, one after the other, and another lets them merge with their neighbours: whether they do
    depends on who has mmap_lock first.  By the times at which faults are taken, hundreds differ on two CPUs."""
    program = """
        import ctypes, threading
        libc = ctypes.CDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        libc.mprotect.argtypes = libc.madvise.argtypes
        for _ in range(100):
            start = libc.mmap(None, 257 << 12, 3, 0x22, -1, 0)
            libc.mprotect(start + (256 << 12), 1 << 12, 0)
            pages = range(start, start + (256 << 12), 2 << 12)
            for page in pages:
                libc.madvise(page, 1 << 12, 16)  # MADV_DONTDUMP: a VMA of its own
            first = ctypes.c_char.from_address(start)
            thread = threading.Thread(target=ctypes.memset, args=(start, 1, 256 << 12))
            thread.start()
            while first.value == bytes(1):
                pass
            for page in pages[1:]:
                libc.madvise(page, 1 << 12, 17)  # MADV_DODUMP
            thread.join()
    """
    command = [sys.executable, "-S", "-c", textwrap.dedent(program)]
    player = replayed(record(command, tmp_path / "h", recorder=recorder, check=True).history)
    assert player.marks == 1
    assert [str(difference) for difference in player.geometry + player.differences] == []


def test_faults_have_their_kind_and_bad_ones_their_result(tmp_path: Path, recorder: str) -> None:
    program = """
        import ctypes, mmap
        libc = ctypes.CDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
        written = libc.mmap(0x500000000000, 64 << 12, 3, 0x100022, -1, 0)
        read = libc.mmap(0x510000000000, 64 << 12, 1, 0x100022, -1, 0)
        ctypes.memset(written, 1, 64 << 12)
        libc.memchr(ctypes.c_void_p(read), 1, ctypes.c_size_t(64 << 12))
        ctypes.memset(read, 1, 1)
    """
    command = [sys.executable, "-S", "-c", textwrap.dedent(program)]
    recording = record(command, tmp_path / "h.parquet", recorder=recorder)
    assert recording.status == -signal.SIGSEGV and recording.history.header.ended == "signal 11"
    seen = [
        (event.addr, event.length, event.flags, event.result)
        for event in recording.history
        if event.op == "fault" and event.addr >> 40 in (0x50, 0x51)
    ]
    assert seen == [
        (0x500000000000, 64 << 12, FAULT_WRITE, 0),
        (0x510000000000, 64 << 12, 0, 0),
        (0x510000000000, 1 << 12, FAULT_WRITE, -errno.EFAULT),
    ]


def test_names_are_kept_only_where_asked(tmp_path: Path, recorder: str) -> None:
    command = ["sh", "-c", "true; : a secret"]
    header = record(command, tmp_path / "a", recorder=recorder).history.header
    assert header.command == "sh" and header.processes == {}
    assert not any(entry.name for entry in header.files if entry.kind == "file")
    assert b"secret" not in (tmp_path / "a").read_bytes() and b"/lib" not in (tmp_path / "a").read_bytes()
    header = record(command, tmp_path / "b", recorder=recorder, names=True).history.header
    assert "a secret" in header.command and "sh" in header.processes.values()
    assert any(entry.name.endswith(".so.6") for entry in header.files)


ODD: Final = os.fsdecode(b"a\n\r\x0b\xe2\x80\xa8\xff\x1b[2J z")  # all that ends a line somewhere, and no UTF-8
SHOWN: Final = r"a\n\r\x0b\u2028\udcff\x1b[2J z"


def test_a_name_of_several_lines_that_is_not_utf_8_is_kept_in_one_line(tmp_path: Path, any_recorder: str) -> None:
    """Of the program, of its file, and of the recording."""
    recorder = any_recorder
    program, output = tmp_path / ODD, tmp_path / f"{ODD}.parquet"
    shutil.copy(shutil.which("true") or "/bin/true", program)
    checked = recorder != "strace"
    assert record([str(program)], output, recorder=recorder, check=checked, names=True).status == 0
    history = read_history(output)
    player = replayed(history)
    assert player.marks == checked and player.geometry == [] and player.differences == []
    header = history.header
    texts = [header.command, *header.processes.values(), *(entry.name for entry in header.files)]
    assert all(text.isprintable() for text in texts)
    if checked:
        assert SHOWN in header.command and list(header.processes.values()) == [SHOWN]
        assert str(tmp_path / SHOWN) in texts
    done = subprocess.run(
        [sys.executable, "-m", "rmaplab", "compare", output], env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout and SHOWN.encode() + b".parquet" in done.stdout


def test_a_task_whose_name_looks_like_a_line_of_its_status_is_known(tmp_path: Path, recorder: str) -> None:
    """The kernel escapes a newline in a name, and no other end of a line."""
    program = """
        import ctypes, threading
        libc = ctypes.CDLL(None)
        named = threading.Barrier(2)
        def work():
            libc.prctl(15, b"\\rTgid:\\t1\\r", 0, 0, 0)  # PR_SET_NAME
            named.wait()
        thread = threading.Thread(target=work)
        thread.start()
        named.wait()
        thread.join()
    """
    command = [sys.executable, "-S", "-c", textwrap.dedent(program)]
    history = record(command, tmp_path / "h", recorder=recorder, check=True).history
    player = replayed(history)
    assert player.marks == 1 and player.geometry == []


def test_a_process_that_ends_while_a_thread_of_it_ends_is_compared(tmp_path: Path, recorder: str) -> None:
    """The thread may be on its way already when it is killed, and then does not stop for who traces it."""
    program = """
        import os, _thread
        for i in range(60):
            if not os.fork():
                begun = _thread.allocate_lock()
                begun.acquire()
                for _ in range(3):
                    _thread.start_new_thread(begun.release if not _ else int, ())
                begun.acquire()
                for _ in range(i * 20):
                    pass
                os._exit(0)
            os.wait()
    """
    command = [sys.executable, "-S", "-c", textwrap.dedent(program)]
    history = record(command, tmp_path / "h", recorder=recorder, check=True).history
    assert "maps of 61 of 61 processes compared" in history.evidence
    player = replayed(history)
    assert player.marks == 61 and [str(difference) for difference in player.geometry] == []


def test_processes_that_nobody_could_look_at_are_counted(tmp_path: Path, recorder: str) -> None:
    """Those that live on when the command has ended have no end at which to compare them."""
    script = "for i in 1 2 3 4; do (:); done; for i in 1 2 3; do sleep 2 >/dev/null 2>&1 & done"
    history = record(["sh", "-c", script], tmp_path / "h", recorder=recorder, check=True).history
    assert "maps of 5 of 8 processes compared" in history.evidence
    done = subprocess.run(
        [sys.executable, "-m", "rmaplab", "compare", tmp_path / "h"], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    said = " ".join(done.stdout.split())
    assert "maps of 5 of 8 processes compared" in said, done.stderr


def test_memory_of_the_recorder_does_not_grow_with_the_number_of_faults(tmp_path: Path, recorder: str) -> None:
    """Half a million faults make a dozen events; a record of each has 24 bytes and more."""
    program = """
        import ctypes, mmap, sys
        for _ in range(int(sys.argv[1])):
            pages = mmap.mmap(-1, 1 << 27)
            pages.madvise(mmap.MADV_NOHUGEPAGE)
            ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(pages)), 1, 1 << 27)
            del pages
    """
    script = """
        import resource, sys
        from rmaplab.trace.record import record
        history = record(sys.argv[3:], sys.argv[1], recorder=sys.argv[2]).history
        print(history.summary()["faults"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    kilobytes = []
    for times in (1, 16):
        command = [sys.executable, "-S", "-c", textwrap.dedent(program), str(times)]
        recording = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "h"), recorder, *command]
        faults, peak = map(int, subprocess.run(recording, check=True, stdout=subprocess.PIPE).stdout.split())
        assert faults >= times << 15
        kilobytes.append(peak)
    assert kilobytes[1] < kilobytes[0] + 8_192


def test_lost_events_are_told_and_the_command_is_run_again(tmp_path: Path, recorder: str) -> None:
    said: list[str] = []
    program = "import mmap; [mmap.mmap(-1, 4096, 34)[0] for _ in range(6000)]"
    command = [sys.executable, "-S", "-c", program]
    header = record(command, tmp_path / "h", recorder=recorder, say=said.append, buffer=4096).history.header
    said = [text for text in said if not text.startswith("putting ")]  # on a busy machine
    assert (
        "with buffers of 4 KiB" in said[0]
        and "running the command again with 32 KiB" in said[1]
    )
    assert header.complete == (header.lost == 0)
    assert any("has holes" in text for text in said) == (header.lost > 0)


@pytest.mark.parametrize(
    ("recorder", "number"),
    [("bpf", signal.SIGINT), ("bpf", signal.SIGTERM), ("bpf", signal.SIGHUP), ("perf", signal.SIGINT),
     ("strace", signal.SIGINT), ("strace", signal.SIGHUP)],
)  # fmt: skip
def test_a_signal_ends_the_program_and_keeps_the_recording(
    tmp_path: Path, recorder: str, number: signal.Signals
) -> None:
    if refusal(recorder):
        pytest.skip(refusal(recorder))
    script = f"""
        from rmaplab.trace.record import record
        command = ["sh", "-c", "sleep 0; sleep 0; echo ready; while :; do sleep 0.1; done"]
        status = record(command, {str(tmp_path / "h")!r}, recorder={recorder!r}).status
        print("status", status)
    """
    recorder_process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert recorder_process.stdout is not None
    assert recorder_process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    recorder_process.send_signal(number)
    said, _ = recorder_process.communicate(timeout=60)
    assert said == f"status {-number}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["h"]
    history = read_history(tmp_path / "h")
    assert history.header.ended == f"signal {number.value}"
    counts = Counter(event.op for event in history)
    last = int(number == signal.SIGINT)  # else the shell does not wait for its last child
    assert counts["exec"] >= 3 and counts["fork"] + last <= counts["exit"] <= counts["fork"] + 1
    replayed(history)


@pytest.mark.usefixtures("strace")
def test_strace_makes_a_history_that_can_be_replayed(tmp_path: Path) -> None:
    history = record(EXAMPLE, tmp_path / "h", recorder="strace").history
    counts = Counter(event.op for event in history)
    assert counts["fork"] == 13 and counts["exit"] == 14 and counts["mremap"] == 16
    assert history.header.faults.startswith("synthesised: ")
    assert [str(difference) for difference in replayed(history).differences] == []


def test_without_perf_strace_is_taken_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strace = shutil.which("strace")
    if strace is None or refusal("strace"):
        pytest.skip("strace may not run here")
    (tmp_path / "bin").mkdir()
    for program in (strace, shutil.which("true")):
        assert program is not None
        (tmp_path / "bin" / Path(program).name).symlink_to(program)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(perf_events, "_TRACEFS", (tmp_path,))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    said: list[str] = []
    history = record(["true"], tmp_path / "h", say=said.append).history
    assert history.header.recorder == "strace"
    assert said == [
        f"perf cannot record here (the tracepoints in {tmp_path} may not be read: be root, or have root say "
        f"mount -o remount,mode=755 {tmp_path}), so strace does, and faults are synthesised"
    ]
    with pytest.raises(RecordError, match="--check needs perf, which cannot record here"):
        record(["true"], tmp_path / "h", check=True)
    (tmp_path / "bin" / "strace").unlink()
    with pytest.raises(RecordError, match=r"neither perf \(.*\) nor strace \(.*\) can record here"):
        record(["true"], tmp_path / "h")


def test_a_program_that_wants_to_be_traced_is_told_of(tmp_path: Path, any_recorder: str) -> None:
    program = """
        import ctypes, os, signal, time
        child = os.fork()
        if child == 0:
            ctypes.CDLL(None).ptrace(0, 0, 0, 0)  # PTRACE_TRACEME
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(0)
        time.sleep(0.5)
        os.kill(child, signal.SIGCONT)  # so that the test ends
        os.waitpid(child, 0)
    """
    said: list[str] = []
    command = [sys.executable, "-S", "-c", textwrap.dedent(program)]
    checked = any_recorder != "strace"
    assert record(command, tmp_path / "h", recorder=any_recorder, check=checked, say=said.append).status == 0
    assert len(said) == 1 and "it waits for ever" in said[0]
    assert ("has stopped itself" in said[0] and "--check traces it already" in said[0]) == checked


def test_a_process_whose_thread_executes_another_program_is_compared_at_its_end(tmp_path: Path, recorder: str) -> None:
    """The thread takes the number of the process; the first thread ends before."""
    program = """
        import os, threading
        for _ in range(3):
            threading.Thread(target=lambda: None).start()
        threading.Thread(target=lambda: os.execv("/bin/sh", ["sh", "-c", "exit 0"])).start()
        threading.Event().wait()
    """
    command = [sys.executable, "-S", "-c", textwrap.dedent(program)]
    history = record(command, tmp_path / "h", recorder=recorder, check=True).history
    assert [event.op for event in history].count("mark") == 1
    player = replayed(history)
    assert player.marks == 1 and player.geometry == []


_CONTAINER: Final = ["unshare", "-ipf", "--mount-proc"]


@pytest.mark.parametrize("inside", [False, True], ids=["program", "recorder"])
def test_in_a_container_each_fork_is_one(tmp_path: Path, recorder: str, inside: bool) -> None:
    """New PID and IPC namespaces, either for the program or for the recorder, too."""
    if subprocess.run([*_CONTAINER, "true"], check=False, capture_output=True).returncode:
        pytest.skip("unshare(1) may not make namespaces here")
    command = [sys.executable, "-S", str(HERE / "torture.py")]
    if inside:
        if recorder == "bpf":
            pytest.skip("its numbers of tasks are the initial namespace's")
        script = "import sys; from rmaplab.trace.record import record; "
        script += "record(sys.argv[3:], sys.argv[1], recorder=sys.argv[2], check=True)"
        program = [sys.executable, "-c", script, str(tmp_path / "h"), recorder, *command]
        subprocess.run([*_CONTAINER, *program], check=True)
    else:
        record([*_CONTAINER, *command], tmp_path / "h", recorder=recorder, check=True)
    history = read_history(tmp_path / "h")
    counts = Counter(event.op for event in history)
    assert counts["mark"] == counts["exit"] == counts["fork"] + 1
    assert history.header.doubts == [] and history.header.pid_namespaces == (0 if inside else 1)
    player = replayed(history)
    assert [str(difference) for difference in player.geometry + player.differences] == []


def test_a_stack_has_the_limit_that_its_program_set(tmp_path: Path, recorder: str) -> None:
    """BPF reads it; perf does not see it, and that is said where the stack is larger than it was allowed to be."""
    program = """
        import ctypes, resource
        end = next(int(line[13:25], 16) for line in open("/proc/self/maps") if line.endswith("[stack]\\n"))
        resource.setrlimit(resource.RLIMIT_STACK, (16 << 20, resource.getrlimit(resource.RLIMIT_STACK)[1]))
        ctypes.memset(end - (12 << 20), 1, 1)
    """
    beyond = "ctypes.memset(end - (24 << 20), 1, 1)" if recorder == "bpf" else ""
    command = ["bash", "-c", 'ulimit -S -s 8192; exec "$@"', "bash", sys.executable, "-S", "-c"]
    recording = record(
        [*command, textwrap.dedent(program) + beyond], tmp_path / "h", recorder=recorder, check=True
    )  # fmt: skip
    assert recording.status == (-signal.SIGSEGV if beyond else 0)
    player = replayed(recording.history)
    assert player.marks == 1 and player.geometry == [] and player.differences == []
    assert [doubt.split(" (")[0] for doubt in recording.history.header.doubts] == (
        [] if beyond else ["the limit that a program set for its stack"]
    )


def test_an_executable_stack_is_recorded_as_one(tmp_path: Path, recorder: str) -> None:
    """mov $60, %eax; xor %edi, %edi; syscall: exit(0); PT_GNU_STACK with all rights."""
    code = bytes.fromhex("b83c00000031ff0f05")
    start = 64 + 2 * 56
    parts = [
        struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, 0x400000 + start, 64, 0, 0, 64, 56, 2, 0, 0, 0),
        struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, start + len(code), start + len(code), 4096),
        struct.pack("<IIQQQQQQ", 0x6474E551, 7, 0, 0, 0, 0, 0, 16),
    ]
    program = tmp_path / "program"
    program.write_bytes(b"".join(parts) + code)
    program.chmod(0o755)
    recording = record([str(program)], tmp_path / "h", recorder=recorder, check=True)
    assert recording.status == 0
    player = replayed(recording.history)
    assert player.marks == 1 and [str(difference) for difference in player.geometry] == []
    assert any(row.perms == "rwxp" for row in recording.history.header.checkpoints[0].maps)


# A 32-bit program: ELF header, program header, and xor %eax,%eax; xor %ebx,%ebx; inc %eax; int $0x80: exit(0).
SMALL: Final = bytes.fromhex(
    "7f454c4601010100000000000000000002000300010000005480040834000000000000000000000034002000010000000000000001000000"
    "0000000000800408008004085d0000005d000000050000000010000031c031db40cd80000000"
)  # fmt: skip


def test_a_32_bit_program_is_said_not_to_be_followed(tmp_path: Path, any_recorder: str) -> None:
    program = tmp_path / "small"
    program.write_bytes(SMALL)
    program.chmod(0o755)
    try:
        subprocess.run([program], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this kernel runs no 32-bit programs")
    history = record(["sh", "-c", f"{program}; {program}; true"], tmp_path / "h", recorder=any_recorder).history
    assert history.header.unfollowed == {"a 32-bit program": 2}
    assert "a 32-bit program is not followed" in history.evidence
    assert [event.op for event in history].count("exit") == 3
    assert replayed(history).differences == []


@pytest.mark.usefixtures("strace")
def test_what_strace_could_not_write_is_no_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = StraceText.read

    def half(self: StraceText, lines: Iterable[str]) -> None:
        text = list(lines)
        read(self, text[: len(text) // 2])

    monkeypatch.setattr(StraceText, "read", half)
    with pytest.raises(RecordError, match="ends before the program does: is the disk full"):
        record(["true"], tmp_path / "h", recorder="strace")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_kept_is_no_recording(tmp_path: Path, recorder: str) -> None:
    script = """
        import resource, signal, sys
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
        from rmaplab.trace.record import RecordError, record
        try:
            record(["sh", "-c", "ls / >&2"], sys.argv[1], recorder=sys.argv[2])
        except RecordError as error:
            print(error)
    """
    command = [sys.executable, "-B", "-c", textwrap.dedent(script), str(tmp_path / "h"), recorder]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("what was seen could not be kept in ") and "set TMPDIR" in said
    assert list(tmp_path.iterdir()) == []


def test_a_recorder_that_is_killed_leaves_nothing(tmp_path: Path, any_recorder: str) -> None:
    script = "import sys; from rmaplab.trace.record import record; "
    script += "record(['sh', '-c', 'echo ready; sleep 1'], sys.argv[1], recorder=sys.argv[2])"
    killed = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "h"), any_recorder],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert killed.stdout is not None
    assert killed.stdout.readline() == "ready\n"
    time.sleep(0.2)
    killed.kill()
    killed.wait()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_recorded_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="there is no command 'no-such-command' that can be run"):
        record(["no-such-command"], tmp_path / "h")
    with pytest.raises(RecordError, match="there is no command to record"):
        record([], tmp_path / "h")
    with pytest.raises(RecordError, match="there is no recorder 'tape'"):
        record(["true"], tmp_path / "h", recorder="tape")
    with pytest.raises(CannotWrite, match="there is no directory"):
        record(["true"], tmp_path / "nowhere" / "h")
    with pytest.raises(CannotWrite, match="is a directory"):  # before the command is run
        record(["touch", str(tmp_path / "ran")], tmp_path)
    assert list(tmp_path.iterdir()) == []
