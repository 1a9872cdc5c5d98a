# SPDX-License-Identifier: GPL-2.0-or-later
"""A scheduler that records which locks are taken and what is accessed.

One task runs at a time, so there is nothing to decide.
"""

from __future__ import annotations

from rmaplab.sync.locks import Scheduler

RCU = "RCU read section"


class Witness(Scheduler):
    """Records locks and steps while `listening`.

    taken:  (lock, exclusively) in the order of acquisition
    held:   locks and RCU sections held now, the oldest first
    points: subjects of steps, in order
    waits:  (lock, who holds it) for locks that could not have been taken; nobody else runs, so none
    """

    def __init__(self) -> None:
        self.listening = False
        self.taken: list[tuple[object, bool]] = []
        self.held: list[object] = []
        self.points: list[object] = []
        self.waits: list[tuple[object, str]] = []

    def forget(self) -> None:
        self.taken.clear()
        self.points.clear()
        self.waits.clear()

    def acquire(self, lock: object, write: bool) -> None:
        if self.listening:
            self.taken.append((lock, write))
            self.held.append(lock)

    def try_acquire(self, lock: object, write: bool) -> bool:
        self.acquire(lock, write)
        return True

    def release(self, lock: object, write: bool) -> None:
        if self.listening and lock in self.held:
            self.held.remove(lock)

    def rcu_enter(self) -> None:
        if self.listening:
            self.held.append(RCU)

    def rcu_leave(self) -> None:
        if self.listening:
            self.held.remove(RCU)

    def point(self, what: str, subject: object, write: bool = False) -> None:
        if self.listening:
            self.points.append(subject)

    def point_in(self, whole: object, what: str, subject: object, write: bool = False) -> None:
        self.point(what, whole, write)
