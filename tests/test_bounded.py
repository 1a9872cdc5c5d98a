# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/bounded.py: nothing of a command stays behind, whoever ends and however."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from bounded import Bounded

SCRIPTS = Path(__file__).parents[1] / "scripts"

# A command that never ends, nor does its child; it writes down the numbers of both.
LOOPS = """
import os, sys
child = os.fork()
if child:
    with open("pids.new", "w") as file:
        file.write(f"{os.getpid()} {child}")
    os.rename("pids.new", "pids")
while True:
    pass
"""

# Runs LOOPS as scripts/mutation.py runs a mutant, in the directory that it is told.
RUNNER = """
import os, sys
from pathlib import Path
from bounded import Bounded
sys.exit(Bounded().run([sys.executable, "-c", sys.argv[1]], 60.0, Path(sys.argv[2]), os.environ))
"""


def comes(what: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Does it come true in time?"""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except FileNotFoundError:
        return False
    return state != "Z"


def pids(directory: Path) -> list[int]:
    """Of LOOPS and its child, once both are there."""
    assert comes((directory / "pids").exists)
    return [int(word) for word in (directory / "pids").read_text().split()]


def test_a_command_that_takes_too_long_ends_with_its_children(tmp_path: Path) -> None:
    assert Bounded().run([sys.executable, "-c", LOOPS], 2.0, tmp_path, os.environ) == -signal.SIGKILL
    assert comes(lambda: not any(runs(pid) for pid in pids(tmp_path)))


def test_closing_ends_what_another_thread_runs_and_lets_nothing_begin(tmp_path: Path) -> None:
    bounded = Bounded()
    thread = Thread(target=bounded.run, args=([sys.executable, "-c", LOOPS], 60.0, tmp_path, os.environ))
    thread.start()
    looping = pids(tmp_path)
    bounded.close()
    thread.join(20.0)
    assert not thread.is_alive()
    assert comes(lambda: not any(runs(pid) for pid in looping))
    assert bounded.run(["true"], 5.0, tmp_path, os.environ) == -signal.SIGKILL


def test_a_runner_that_is_killed_leaves_no_command_behind(tmp_path: Path) -> None:
    runner = subprocess.Popen(
        [sys.executable, "-c", RUNNER, LOOPS, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(SCRIPTS)}
    )
    command, child = pids(tmp_path)
    try:
        runner.kill()
        runner.wait()
        assert comes(lambda: not runs(command))
        limit = Path(f"/proc/{child}/limits").read_text()
        assert "Max cpu time              61                   61" in limit, "its child ends by itself, then"
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("status", [0, 3])
def test_the_exit_status_is_passed_on(status: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", f"raise SystemExit({status})"]
    assert Bounded().run(command, 20.0, tmp_path, os.environ) == status


def test_a_command_gets_so_much_memory_and_no_more(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "bytearray(20 << 30)"]
    assert Bounded().run(command, 20.0, tmp_path, os.environ) == 1
