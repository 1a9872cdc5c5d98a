# SPDX-License-Identifier: GPL-2.0-or-later
"""A minimal ptrace(2) tracer: /proc/PID/maps of every process at its end.

PTRACE_O_TRACEEXIT stops each task early in do_exit() (kernel/exit.c), while its address space is still whole.
The tracer reads the maps there and lets the task go on; it changes nothing.  A process's address space is
at its end when its last thread stops, so of several readings the last one counts.

Linux tells a tracer about tasks in the thread that attached, so all of this runs in one thread.
"""

from __future__ import annotations

import ctypes
import os
import signal
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
_EVENT_STOP: Final = 128
_WALL: Final = 0x40000000  # __WALL: threads, too
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


class Tracer:
    """Follows a process and all its descendants.

    maps: /proc/PID/maps at the end of each life of a pid, in order
    """

    def __init__(self) -> None:
        self.maps: Final[dict[int, list[list[MapsRow]]]] = {}
        self._last: dict[int, list[MapsRow]] = {}  # by pid
        self._tasks: set[int] = set()

    def attach(self, pid: int) -> None:
        """Follow `pid`.

        :raises OSError: not permitted
        """
        _ptrace(_SEIZE, pid, _FORK | _VFORK | _CLONE | _EXIT)
        self._tasks.add(pid)

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
        if event == _EVENT_STOP and number in _STOPPING:
            _ptrace(_LISTEN, tid)
        else:
            _ptrace(_CONT, tid, 0 if event else number)

    def _read_maps(self, tid: int) -> None:
        try:
            status = Path(f"/proc/{tid}/status").read_text(errors="replace")
            pid = int(status.split("\nTgid:", 1)[1].split(None, 1)[0])
            rows = maps_of(tid)
        except (OSError, IndexError):
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
