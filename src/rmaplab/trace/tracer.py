# SPDX-License-Identifier: GPL-2.0-or-later
"""A minimal ptrace(2) tracer: /proc/PID/maps of every process at its end.

PTRACE_O_TRACEEXIT stops each task early in do_exit() (kernel/exit.c), while its address space is still whole.
The tracer reads the maps there and lets the task go on; it changes nothing.  A process's address space is
at its end when its last thread stops, so nothing is read where others have still to come there.  A thread that is
already in do_exit() when exit_group() kills it does not stop (ptrace_stop() in kernel/signal.c), nor does it change
anything any more: who has been killed, or is past that point, is not waited for, and if it stops all the same, what is
read then counts.

Linux tells a tracer about tasks in the thread that attached, so all of this runs in one thread.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

from rmaplab.trace.history import MapsRow
from rmaplab.trace.maps import maps_of

_CONT: Final = 7
_DETACH: Final = 17
_SEIZE: Final = 0x4206
_INTERRUPT: Final = 0x4207
_LISTEN: Final = 0x4208
_FORK, _VFORK, _CLONE, _EXIT = 0x2, 0x4, 0x8, 0x40  # PTRACE_O_TRACE*
_EVENT_EXIT: Final = 6
_EVENTS_NEW: Final = (1, 2, 3)  # PTRACE_EVENT_FORK, VFORK, CLONE
_GETEVENTMSG: Final = 0x4201
_GETSIGINFO: Final = 0x4202
_EVENT_STOP: Final = 128
_WALL: Final = 0x40000000  # __WALL: threads, too
_EXITING: Final = 0x4  # PF_EXITING (include/linux/sched.h), which do_exit() sets after it has told the tracer
_LOOKS: Final = 100  # at threads that may be just before that: the process has called exit_group(), as a rule
_STOPPING: Final = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, tid: int, data: int = 0) -> bool:
    """False if the task is not there any more, or not stopped any more: it was killed."""
    if _libc.ptrace(request, tid, None, data) == 0:
        return True
    number = ctypes.get_errno()
    if number in (3, 5):  # ESRCH, EIO
        return False
    raise OSError(number, os.strerror(number))


def _pid_of(tid: int) -> int:
    """The process that task `tid` belongs to; itself, if it is gone."""
    try:
        status = Path(f"/proc/{tid}/status").read_bytes()
    except OSError:
        return tid
    return int(status.partition(b"\nTgid:")[2].split(None, 1)[0])


def _stops_no_more(pid: int, tid: int) -> bool:
    """Whether task `tid` of process `pid` has been killed, is past the point where it would stop, or is gone."""
    try:
        stat = Path(f"/proc/{pid}/task/{tid}/stat").read_bytes()
    except OSError:
        return True
    fields = stat.rpartition(b")")[2].split()  # the third and those that follow: Documentation/filesystems/proc.rst
    state, flags, pending = fields[0], int(fields[6]), int(fields[28])
    return state in b"ZX" or flags & _EXITING != 0 or pending >> (signal.SIGKILL - 1) & 1 != 0


def _is_from_itself(tid: int) -> bool:
    """Whether the signal that task `tid` is about to get is one that its process sent."""
    siginfo = (ctypes.c_int * 32)()
    if _libc.ptrace(_GETSIGINFO, tid, None, ctypes.addressof(siginfo)):
        return False
    return siginfo[4] == _pid_of(tid)  # si_pid


class Tracer:
    """Follows a process and all its descendants.

    maps: /proc/PID/maps at the end of each life of a pid, in order
    say:  is told in a sentence what may go wrong
    """

    def __init__(self, say: Callable[[str], None], maps: dict[int, list[list[MapsRow]]]) -> None:
        self._say: Final = say
        self.maps: Final = maps
        self._last: dict[int, list[MapsRow]] = {}  # by pid
        self._tasks: set[int] = set()
        self._running: dict[int, set[int]] = {}  # by pid: its tasks that have not come to their end

    def attach(self, pid: int) -> None:
        """Follow `pid`.

        :raises OSError: not permitted
        """
        _ptrace(_SEIZE, pid, _FORK | _VFORK | _CLONE | _EXIT)
        self._tasks.add(pid)
        self._running[pid] = {pid}

    def wait(self, pid: int) -> int:
        """Let all of them run until process `pid` has ended; returns its wait status.

        Descendants of `pid` that live on are left alone from then.
        """
        while True:
            tid, status = os.waitpid(-1, _WALL)
            if os.WIFSTOPPED(status):
                self._stopped(tid, status)
                continue
            self._tasks.discard(tid)
            if tid in self._last:
                self.maps.setdefault(tid, []).append(self._last.pop(tid))
            if tid == pid:
                self._leave()
                return status

    def _stopped(self, tid: int, status: int) -> None:
        self._tasks.add(tid)
        event = status >> 16
        number = os.WSTOPSIG(status)
        if event == _EVENT_EXIT:
            self._read_maps(tid)
        elif event in _EVENTS_NEW:
            child = ctypes.c_ulong()
            if _libc.ptrace(_GETEVENTMSG, tid, None, ctypes.addressof(child)) == 0:
                pid = _pid_of(child.value)
                if pid == child.value:
                    self._running[pid] = set()  # nothing is left of who had that number before
                self._running.setdefault(pid, set()).add(child.value)
        elif number == signal.SIGSTOP and event == 0 and _is_from_itself(tid):
            self._say(
                f"process {tid} has stopped itself: if it waits for a tracer of its own (ptrace), it waits for ever, "
                "because --check traces it already; Ctrl-C ends it"
            )
        if event == _EVENT_STOP and number in _STOPPING:
            _ptrace(_LISTEN, tid)
        else:
            _ptrace(_CONT, tid, 0 if event else number)

    def _read_maps(self, tid: int) -> None:
        pid = _pid_of(tid)
        running = self._running.get(pid, set())
        running.discard(tid)
        for _ in range(_LOOKS if tid == pid else 1):
            if all(_stops_no_more(pid, other) for other in running):
                break
            os.sched_yield()
        else:
            return
        try:
            rows = maps_of(tid)
        except OSError:
            return  # killed while it was stopped
        if rows:
            self._last[pid] = rows

    def _leave(self) -> None:
        for tid in self._tasks:
            if not _ptrace(_INTERRUPT, tid):
                continue
            try:
                _, status = os.waitpid(tid, _WALL)
            except ChildProcessError:
                continue
            if os.WIFSTOPPED(status):
                number = os.WSTOPSIG(status)
                _ptrace(_DETACH, tid, 0 if status >> 16 else number)
