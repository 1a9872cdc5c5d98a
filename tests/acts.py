# SPDX-License-Identifier: GPL-2.0-or-later
"""Single events in the words of trace/script.py, for tests that put them in a row, possible or not.

    [start(1), mmap(1, AREA, 2), write(1, AREA, 2), fork(1, 2), leave(7)]

Lengths are pages.
"""

from __future__ import annotations

from typing import Any

from rmaplab.trace.events import Event
from rmaplab.trace.script import PAGE, Process, Script


class _Act:
    """A process whose verbs return their event."""

    def __init__(self, pid: int) -> None:
        self.script = Script()
        self.process = Process(self.script, pid)

    @property
    def event(self) -> Event:
        (event,) = self.script.events
        return event


def start(pid: int) -> Event:
    act = _Act(pid)
    act.process.exec()
    return act.event


def fork(pid: int, child: int) -> Event:
    act = _Act(pid)
    act.process.fork(pid=child)
    return act.event


def leave(pid: int) -> Event:
    act = _Act(pid)
    act.process.exit()
    return act.event


def mmap(pid: int, addr: int, pages: int, **how: Any) -> Event:
    act = _Act(pid)
    act.process.mmap(pages * PAGE, at=addr, **how)
    return act.event


def mprotect(pid: int, addr: int, pages: int, prot: int) -> Event:
    act = _Act(pid)
    act.process.mprotect(addr, pages * PAGE, prot)
    return act.event


def move(pid: int, addr: int, pages: int, to: int) -> Event:
    act = _Act(pid)
    act.process.mremap(addr, pages * PAGE, to=to)
    return act.event


def write(pid: int, addr: int, pages: int) -> Event:
    act = _Act(pid)
    act.process.write(addr, pages * PAGE)
    return act.event
