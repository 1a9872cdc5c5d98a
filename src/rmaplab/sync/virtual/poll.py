# SPDX-License-Identifier: GPL-2.0-or-later
"""Waits for events other than locks: a task looks, and looks again after a delay that doubles, up to a limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mypy_extensions import i64

from rmaplab.sync.virtual.core import Core
from rmaplab.sync.virtual.prices import MICROSECOND, PICOSECONDS
from rmaplab.sync.virtual.task import Task

LOOK_AGAIN: Final = 100 * PICOSECONDS
LOOK_AT_LEAST: Final = 10 * MICROSECOND


def poll(core: Core, task: Task, what: str, ready: Callable[[], bool], spins: bool) -> None:
    """`task` keeps its CPU (`spins`) or sleeps until `ready()`."""
    core.arrive(task)
    pause: i64 = LOOK_AGAIN
    while not ready():
        at = task.time + pause
        if spins:
            core.cpus.spun += pause
            task.time = at
            core.agenda.push(at, task)
            core.spin(task)
        else:
            task.might_sleep(what)
            core.sleep_until(task, at)
        if pause < LOOK_AT_LEAST:
            pause *= 2
