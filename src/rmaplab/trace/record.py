# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a command, and record the memory history of it and all its children.

The recorder tries BPF programs first, then perf events: both show every fault.  Where neither is permitted, strace sees
the system calls, and faults are synthesised (reduce.SYNTHESIS).  Either way the history begins with the command's
exec and ends when the command has ended; a descendant that lives on is still alive at the end of the history.

A shell that first stops itself starts the command, so that the recorder watches before it runs.  It has a
process group of its own unless it shares a terminal with us, so a signal reaches all of it: the
first Ctrl-C is passed on, the second becomes SIGTERM, the third SIGKILL, and the recording is kept.
"""

from __future__ import annotations

import ctypes
import datetime
import os
import resource
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, Final

import msgspec

from rmaplab.errors import CannotRun
from rmaplab.mm.abi import MAP_ANONYMOUS, MAP_PRIVATE, MAX_MAP_COUNT, MMAP_MIN_ADDR, PROT_NONE
from rmaplab.mm.vma import PAGE_SIZE, TASK_SIZE
from rmaplab.output import check_output
from rmaplab.trace.bpf_events import BpfEvents
from rmaplab.trace.collector import Collector, Source
from rmaplab.trace.history import Header, History, MapsRow, write_history
from rmaplab.trace.perf_events import NotPermitted, PerfEvents
from rmaplab.trace.reduce import Reducer
from rmaplab.trace.strace import STRACE_OPTIONS, StraceText
from rmaplab.trace.timeline import Timeline
from rmaplab.trace.tracer import Tracer
from rmaplab.version import __version__

__all__ = ["RecordError", "Recording", "record"]

_RECORDERS: Final = ("bpf", "perf", "strace")  # in the order in which they are tried
_ATTEMPTS: Final = 3  # runs, each with a buffer eight times larger, before lost events are accepted
_TOTAL_BUFFER: Final = 64 << 20  # bytes, of all CPUs
_UNPRIVILEGED_BUFFER: Final = 256 << 10  # a ring, of which a CPU has two; kernel.perf_event_mlock_kb allows 516 KiB

Say = Callable[[str], None]


class RecordError(CannotRun):
    """Nothing was recorded; the message is one sentence that says why."""


class Recording(msgspec.Struct):
    """What `record` made.

    status: the command's exit status, or minus the signal that ended it
    """

    history: History
    status: int


def record(
    command: Sequence[str],
    output: str | os.PathLike[str],
    *,
    recorder: str = "auto",
    check: bool = False,
    names: bool = False,
    seconds_unrecorded: float | None = None,
    say: Say = lambda text: None,
    buffer: int | None = None,
) -> Recording:
    """Run `command`, record it, write the history to `output`.

    recorder: "bpf", "perf", "strace", or "auto": the first of these that is permitted
    check:    take /proc/PID/maps of each process at its end, too (not with strace)
    names:    keep names of files and processes, and the command line
    seconds_unrecorded: how long it runs without, for the header
    say:      is told in sentences what is going on
    buffer:   bytes of each ring buffer, at first (a power of two)

    :raises RecordError: no such command, no recorder that may run
    :raises CannotWrite: `output` cannot be written
    """
    if not command:
        raise RecordError("there is no command to record: give one after --")
    if shutil.which(command[0]) is None:
        raise RecordError(f"there is no command {command[0]!r} that can be run")
    check_output(output)
    header = Header(
        recorder="",
        rmaplab=__version__,
        kernel=os.uname().release,
        mmap_min_addr=_mmap_min_addr(),
        max_map_count=_sysctl("max_map_count", MAX_MAP_COUNT),
        command=shlex.join(command) if names else os.path.basename(command[0]),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds_unrecorded=seconds_unrecorded,
    )
    recording = _run(command, header, recorder, check, names, say, buffer)
    write_history(output, recording.history)
    return recording


def _sysctl(name: str, default: int) -> int:
    """vm.`name` of the running kernel."""
    try:
        return int(Path("/proc/sys/vm", name).read_text())
    except OSError:
        return default


def _mmap_min_addr() -> int:
    """Below which the running kernel places no mapping, in bytes.  CONFIG_LSM_MMAP_MIN_ADDR may be more than the sysctl
    says, and a hint is rounded up to it (mm/mmap.c round_hint_to_min())."""
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_size_t
    libc.mmap.argtypes = [ctypes.c_size_t, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    placed: int = libc.mmap(PAGE_SIZE, PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if placed == ctypes.c_size_t(-1).value:
        return _sysctl("mmap_min_addr", MMAP_MIN_ADDR)
    libc.munmap(ctypes.c_size_t(placed), ctypes.c_size_t(PAGE_SIZE))
    return placed if PAGE_SIZE < placed < 1 << 24 else _sysctl("mmap_min_addr", MMAP_MIN_ADDR)


def _run(
    command: Sequence[str],
    header: Header,
    recorder: str,
    check: bool,
    names: bool,
    say: Say,
    buffer: int | None,
) -> Recording:
    if recorder not in ("auto", *_RECORDERS):
        raise RecordError(f"there is no recorder {recorder!r}: say {', '.join(_RECORDERS)} or auto")
    if check and recorder == "strace":
        raise RecordError("--check needs bpf or perf: strace is the tracer already, and a process can have only one")
    refusals: dict[str, str] = {}
    for candidate in _RECORDERS if recorder == "auto" else [recorder]:
        if candidate == "strace":
            if check:
                raise RecordError(f"--check needs perf, which cannot record here: {refusals['perf']}")
            if refusals:
                say(f"perf cannot record here ({refusals['perf']}), so strace does, and faults are synthesised")
        try:
            if candidate == "strace":
                return _with_strace(command, header, names, say)
            return _with_events(candidate, command, header, check, names, say, buffer)
        except NotPermitted as error:
            refusals[candidate] = str(error)
    if recorder != "auto":
        raise RecordError(f"{recorder} cannot record here: {refusals[recorder]}")
    raise RecordError(f"neither perf ({refusals['perf']}) nor strace ({refusals['strace']}) can record here")


# The kernel's events


def _with_events(
    recorder: str, command: Sequence[str], header: Header, check: bool, names: bool, say: Say, buffer: int | None
) -> Recording:
    if os.uname().machine != "x86_64":
        raise NotPermitted(f"its fault events are read on x86-64 only, and this is {os.uname().machine}")
    if buffer is None:
        nr_rings = 2 if recorder == "bpf" else 2 * (os.cpu_count() or 1)
        share = max(_TOTAL_BUFFER // nr_rings, _UNPRIVILEGED_BUFFER) if os.geteuid() == 0 else _UNPRIVILEGED_BUFFER
        buffer = 1 << (share.bit_length() - 1)
    header.recorder = recorder
    for attempt in range(_ATTEMPTS):
        size = buffer << 3 * attempt
        run = _Run()
        timeline = Timeline()
        limit = resource.getrlimit(resource.RLIMIT_STACK)[0]
        stack_limit = TASK_SIZE if limit == resource.RLIM_INFINITY else min(limit, TASK_SIZE)
        reducer = Reducer(names=names, maps=run.maps, stack_limit=stack_limit)
        run.record(recorder, command, size, check, timeline, reducer, say)
        if not timeline.lost:
            break
        say(f"{recorder} lost {timeline.lost} events with buffers of {size >> 10} KiB")
        if run.interrupted or attempt == _ATTEMPTS - 1:
            say("the recording has holes, and its header says so")
            break
        say(f"running the command again with {size >> 7} KiB")
    if not len(reducer.events):
        raise RecordError(f"{recorder} saw nothing of {command[0]!r}: it ended before it was executed")
    timeline.vouch(header)
    return _finish(header, reducer, run)


class _Run:
    """How a run of the command went; `status`: as waitpid gives it."""

    def __init__(self, status: int = 0, seconds: float = 0.0, interrupted: bool = False) -> None:
        self.status = status
        self.seconds = seconds
        self.interrupted = interrupted
        self.maps: Final[dict[int, list[list[MapsRow]]]] = {}

    def record(
        self, recorder: str, command: Sequence[str], size: int, check: bool, timeline: Timeline, reducer: Reducer,
        say: Say,
    ) -> None:  # fmt: skip
        """Run it, and have its events collected."""
        child = _start_stopped(command)
        tracer = Tracer(say, self.maps)
        collector: Collector | None = None
        with _Signals(child.pid) as signals:
            try:
                events = BpfEvents if recorder == "bpf" else PerfEvents
                source: Source = events(child.pid, size, timeline)
                # The maps that a process has at its end come from another thread, and may come after its end.
                collector = Collector(source, timeline, reducer, live=not check)
                if check:
                    tracer.attach(child.pid)
            except BaseException as error:
                signals.send(signal.SIGKILL)
                child.wait()
                if collector is not None:
                    collector.stop()
                if isinstance(error, OSError):
                    raise RecordError(
                        f"--check needs ptrace, which is not permitted here: {error.strerror}"
                    ) from None
                raise
            begun = time.monotonic()
            os.kill(child.pid, signal.SIGCONT)
            _import_meanwhile("pyarrow.parquet")  # the history will be written with it
            self.status = tracer.wait(child.pid) if check else os.waitpid(child.pid, 0)[1]
            self.seconds = time.monotonic() - begun
        self.interrupted = signals.count > 0
        child.returncode = os.waitstatus_to_exitcode(self.status)
        try:
            collector.stop(say)
        except OSError as error:
            raise RecordError(
                f"what was seen could not be kept in {tempfile.gettempdir()}: {error.strerror} "
                "(set TMPDIR to a directory with more room)"
            ) from None


def _import_meanwhile(module: str) -> None:
    """Whoever needs it later finds out if it cannot be imported."""

    def load() -> None:
        with suppress(Exception):
            import_module(module)

    with suppress(RuntimeError):  # no room for a thread
        threading.Thread(target=load, daemon=True).start()


# strace


def _with_strace(command: Sequence[str], header: Header, names: bool, say: Say) -> Recording:
    strace = shutil.which("strace")
    if strace is None:
        raise NotPermitted("it is not installed (Debian: apt-get install strace)")
    probe = subprocess.run(
        [strace, "-o", os.devnull, "true"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode:
        raise NotPermitted(_first_sentence(probe.stderr))
    header.recorder = "strace"
    descriptor, path = tempfile.mkstemp(prefix="rmaplab-")
    with open(descriptor, errors="replace") as written:
        child = subprocess.Popen(
            [strace, *STRACE_OPTIONS, "-o", path, "--", *command],
            process_group=0 if _has_own_group() else None,
        )
        # As soon as strace has opened it, it needs no name; then nothing stays of it, whatever happens.
        while not os.fstat(descriptor).st_size and _runs(child.pid):
            time.sleep(0.005)
        os.unlink(path)
        with _Signals(child.pid) as signals:
            begun = time.monotonic()
            status = _wait(child.pid, descriptor, say)
            seconds = time.monotonic() - begun
        child.returncode = os.waitstatus_to_exitcode(status)
        text = StraceText()
        written.seek(0)
        text.read(written)
    reducer = Reducer(names=names, synthesise=True)
    text.tell(reducer)
    if not len(reducer.events):
        raise RecordError(f"strace saw nothing of {command[0]!r}")
    if reducer.alive and not signals.count:
        raise RecordError(
            f"what strace wrote to {tempfile.gettempdir()} ends before the program does: is the disk full? "
            "(set TMPDIR to a directory with more room)"
        )
    header.order = "inferred"
    header.pid_namespaces = text.pid_namespaces
    return _finish(header, reducer, _Run(status, seconds, signals.count > 0))


def _wait(pid: int, descriptor: int, say: Say) -> int:
    """Let strace `pid` end; returns its wait status.  Meanwhile `say` whether a program asks to be traced, in what it
    writes to `descriptor`."""
    watched = os.pidfd_open(pid)
    before, at = b"", 0
    while not select.select([watched], [], [], 0.2)[0]:
        while part := os.pread(descriptor, 1 << 20, at):
            at += len(part)
            if b"PTRACE_TRACEME" in before + part:
                say(
                    "a program asks for a tracer of its own (ptrace), and strace is one already: if it waits for that, "
                    "it waits for ever; Ctrl-C ends it, if need be at the third time"
                )
                at = 1 << 62
            before = part[-16:]
    os.close(watched)
    return os.waitpid(pid, 0)[1]


def _runs(pid: int) -> bool:
    """Whether our child `pid` has not ended yet; it is still to be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def _first_sentence(said: str) -> str:
    """What a program said when it failed, in a line."""
    return next((line.strip() for line in said.splitlines() if line.strip()), "it gave no reason")


# Both


def _finish(header: Header, reducer: Reducer, run: _Run) -> Recording:
    status = os.waitstatus_to_exitcode(run.status)
    header.ended = f"exit {status}" if status >= 0 else f"signal {-status}"
    header.seconds = round(run.seconds, 3)
    header.complete = not header.lost
    return Recording(reducer.finish(header), status)


def _has_own_group() -> bool:
    return not sys.stdin.isatty()


def _start_stopped(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """The command, or rather a shell that will become it at SIGCONT."""
    child = subprocess.Popen(
        ["/bin/sh", "-c", 'kill -STOP $$; exec "$@"', "sh", *command],
        process_group=0 if _has_own_group() else None,
    )
    os.waitpid(child.pid, os.WUNTRACED)
    return child


class _Signals:
    """While the command runs, SIGINT, SIGTERM and SIGHUP are for the command, if they are not ignored (nohup).

    count: signals that came
    """

    def __init__(self, pid: int) -> None:
        self.count = 0
        self._pid: Final = pid
        self._old: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            number = signal.SIGTERM if self.count == 2 else signal.SIGKILL
        if _has_own_group() or number != signal.SIGINT:  # else a Ctrl-C at the terminal has reached it, too
            self.send(number)

    def send(self, number: int) -> None:
        """Send a signal to the command, and to its children where they share a group that is not ours."""
        try:
            os.killpg(self._pid, number) if _has_own_group() else os.kill(self._pid, number)
        except ProcessLookupError:
            pass
