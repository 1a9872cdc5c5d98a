# SPDX-License-Identifier: GPL-2.0-or-later
"""A task: a thread of control with a clock of its own.

Invariants
- The clock of a task never goes back.
- A holder of a spin lock, and a reader within an RCU section, never sleeps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from mypy_extensions import i64, trait

from rmaplab.sync.errors import Finding
from rmaplab.sync.locks import CpuMask
from rmaplab.sync.virtual.agenda import Event


@trait
class Owned:
    """What a task owns and others may spin for."""

    def owner_sleeps(self) -> None:
        """The owner gives up its CPU."""
        raise NotImplementedError


class Held:
    """Locks that a task holds: how many, how many of them are spin locks, and the semaphores held for writing."""

    def __init__(self) -> None:
        self.locks = 0
        self.spinlocks = 0
        self.semaphores: Final[list[Owned]] = []


class Reader:
    """What RCU knows of a task: how deep in sections it is, and when it entered and left the last one (or several that
    follow each other at once); `awaited`: a grace period waits for it."""

    def __init__(self) -> None:
        self.depth = 0
        self.entered: i64 = 0
        self.left: i64 = 0
        self.awaited = False


class Unflushed:
    """CPUs whose TLBs a task has yet to flush; `dirty`: what the entries mapped may have been written to."""

    def __init__(self) -> None:
        self.cpus: Final[list[int]] = []
        self.dirty = False


class Task(Event):
    """One thread of control, and the event that it goes on."""

    def __init__(self, name: str, body: Callable[[], None], pinned: int, space: CpuMask | None) -> None:
        super().__init__()
        self.name: Final = name
        self.body: Final = body
        self.green: Any = None  # the greenlet that runs `body`
        self.done = False
        self.time: i64 = 0  # its clock
        self.interrupted: i64 = 0  # time that other CPUs took, since it was last charged
        self.nodes: i64 = 0  # of trees, visited so far

        self.pinned: Final = pinned  # the only CPU where it may run (-1: any)
        self.cpu = -1  # where it runs or ran last
        self.running = False  # on a CPU
        self.ready_since: i64 = 0
        self.slice_began: i64 = 0
        self.asleep = False  # until somebody calls it
        self.woken = False  # somebody did, before it was asleep

        self.operation = 0  # what it is doing, by number
        self.began: i64 = 0  # to do that
        self.waits_for = ""  # the class of the lock that it waits for

        self.space = space  # the address space that it runs in; a kernel thread has none
        self.held: Final = Held()
        self.reader: Final = Reader()
        self.unflushed: Final = Unflushed()

    def might_sleep(self, what: str) -> None:
        """It is about to sleep (`what`), which is an error where Linux's might_sleep() would complain."""
        if self.held.spinlocks:
            raise Finding(f"{self.name} sleeps ({what}) while it holds a spin lock")
        if self.reader.depth:
            raise Finding(f"{self.name} sleeps ({what}) within an RCU section")
