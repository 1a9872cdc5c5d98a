# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands of which nothing stays behind, whatever they do and whoever ends.

A command gets a session of its own, so that all that it starts can be killed as one group; setpriv(1) has the kernel
kill the command when its parent dies, be it by SIGKILL; prlimit(1) gives each of its processes, also those that leave
the group, so much CPU time and memory and no more.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGKILL
from threading import Lock
from typing import Final

MEMORY: Final = 16 << 30  # bytes of address space per process; Arrow reserves some that it never uses


class Bounded:
    """Runs one command at a time, until it is closed."""

    def __init__(self) -> None:
        self._lock: Final = Lock()  # of what follows: one thread runs, another may close
        self._running: subprocess.Popen[bytes] | None = None
        self._closed = False

    def run(self, command: Sequence[str], seconds: float, directory: Path, environment: Mapping[str, str]) -> int:
        """The exit status of `command`; not 0 if it did not end within `seconds` or could not begin any more.

        :param seconds: that may pass; each process gets as much CPU time
        """
        bounds = ["setpriv", "--pdeathsig", "KILL", "prlimit", f"--cpu={int(seconds) + 1}", f"--as={MEMORY}"]
        with self._lock:
            if self._closed:
                return -SIGKILL
            self._running = running = subprocess.Popen(
                [*bounds, *command], cwd=directory, env=environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            running.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        with self._lock:
            status = running.poll()
            self._end()
        return -SIGKILL if status is None else status

    def close(self) -> None:
        """End what runs; from now on nothing begins."""
        with self._lock:
            self._closed = True
            self._end()

    def _end(self) -> None:
        """Kill what is left of the group."""
        if self._running is not None:
            try:
                os.killpg(self._running.pid, SIGKILL)
            except ProcessLookupError:
                pass  # all have gone
            self._running.wait()
            self._running = None
