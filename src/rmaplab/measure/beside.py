# SPDX-License-Identifier: GPL-2.0-or-later
"""Work in a process of its own, beside what this one does.

That process is forked, so it finds everything as it is here, and nothing is copied for it but what either changes.

Invariants
- What comes of it is what would have come of the same work done here.  A process that could not be forked, or in which
  the work raised anything, gives nothing: the work is then done here, where it raises the same, with its traceback.
- A process that runs other threads of Python is not forked: nobody would give back the locks that these hold.  Those of
  libraries that are loaded (OpenBLAS, jemalloc) are prepared for it, and work does not call into pyarrow.
- Who works for a process that has ended finds out when it next says how far it is, and ends, too.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from io import BufferedReader
from typing import Final, Generic, NoReturn, TypeVar

from rmaplab.errors import CannotRun

Told = Callable[[int], None]  # how much of it is done
T = TypeVar("T")


class Beside(Generic[T]):
    """`work`, which begins at once."""

    def __init__(self, what: str, work: Callable[[Told], T]) -> None:
        """`what` is it that the process does, for who asks why it ended."""
        self._what: Final = what
        self._work: Final = work
        self._pid = 0  # of the process, until it has been waited for
        self._pipe: BufferedReader | None = None  # what it says: (how much is done, None), and at last (-1, result)
        if threading.active_count() > 1:
            return
        _flush()
        here = os.getpid()
        ours, theirs = os.pipe()
        try:
            self._pid = os.fork()
            if not self._pid:
                os.close(ours)
                _do(work, theirs)
            self._pipe = open(ours, "rb")
        except OSError:  # there is no room for one more
            os.close(ours)
        finally:
            if os.getpid() != here:  # whatever happened there, also Ctrl-C
                os._exit(1)
            os.close(theirs)

    def runs(self) -> bool:
        """Is it still at work?"""
        return self._pid > 0 and os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def result(self, told: Told) -> T:
        """What comes of it; waits for that, and tells how far it is.

        :raises CannotRun: somebody killed the process
        """
        if self._pipe is None:
            return self._work(told)
        found: list[T] = []
        while not found:
            try:
                done, result = pickle.load(self._pipe)
            except (EOFError, pickle.UnpicklingError):  # it ended, perhaps in the middle of a word
                break
            if done < 0:
                found.append(result)
            else:
                told(done)
        status = self._wait()
        if found:
            return found[0]
        if status < 0:
            why = " (out of memory?)" if status == -signal.SIGKILL else ""
            raise CannotRun(f"the process that {self._what} was killed by signal {-status}{why}")
        return self._work(told)

    def stop(self) -> None:
        """Nobody wants its result, or it is there."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            self._wait()
        if self._pipe is not None:
            self._pipe.close()

    def _wait(self) -> int:
        """How the process ended: its exit status, or the signal that killed it, negative."""
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        return os.waitstatus_to_exitcode(status)


def _do(work: Callable[[Told], object], pipe: int) -> NoReturn:
    """What the forked process does."""
    gc.freeze()  # what it found is not searched for cycles: pages that nobody writes to stay shared
    os.write(pipe, pickle.dumps((-1, work(lambda done: _say(pipe, done)))))
    _flush()
    os._exit(0)


def _say(pipe: int, done: int) -> None:
    os.write(pipe, pickle.dumps((done, None)))


def _flush() -> None:
    """What is printed appears once."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
