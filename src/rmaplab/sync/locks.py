# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks and RCU, by the names and with the rules that Linux has for them.

Models include/linux/rwsem.h, include/linux/spinlock.h and include/linux/rcupdate.h as their users see
them.  Each lock belongs to a `LockClass`, which counts.  A lock without a scheduler does nothing but
count, which is right where one thing runs at a time: nobody could hold it.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import mypyc_attr

from rmaplab.sync.work import Ledger, LockClass


@mypyc_attr(allow_interpreted_subclasses=True)
class Scheduler:
    """Who decides what runs next: told of every operation on a lock, on RCU, and of every step.

    The methods of this base class let everything pass.  A scheduler for virtual time parks the caller
    of `acquire` until the lock is free; a checker picks another task at any of them.
    """

    def acquire(self, lock: object, write: bool) -> None:
        """The caller wants `lock`, exclusively if `write`."""

    def release(self, lock: object, write: bool) -> None:
        """The caller gives `lock` back."""

    def downgrade(self, lock: object) -> None:
        """The caller keeps `lock`, which it holds for writing, for reading."""

    def rcu_enter(self) -> None:
        """A read-side critical section begins."""

    def rcu_leave(self) -> None:
        """A read-side critical section ends."""

    def point(self, what: str, subject: object) -> None:
        """The caller is about to read or change shared state: another may go first."""

    def chunk(self) -> int:
        """How many page-table entries a long operation may do in one step (0: all of them)."""
        return 0


class RwSemaphore:
    """A reader-writer semaphore (struct rw_semaphore)."""

    def __init__(self, lock_class: LockClass, scheduler: Scheduler | None) -> None:
        self.lock_class: Final = lock_class
        self.scheduler: Final = scheduler

    def down_read(self) -> None:
        self.lock_class.reads += 1
        if self.scheduler is not None:
            self.scheduler.acquire(self, False)

    def up_read(self) -> None:
        if self.scheduler is not None:
            self.scheduler.release(self, False)

    def down_write(self) -> None:
        self.lock_class.writes += 1
        if self.scheduler is not None:
            self.scheduler.acquire(self, True)

    def up_write(self) -> None:
        if self.scheduler is not None:
            self.scheduler.release(self, True)

    def downgrade_write(self) -> None:
        if self.scheduler is not None:
            self.scheduler.downgrade(self)


class SpinLock:
    """A spin lock (spinlock_t)."""

    def __init__(self, lock_class: LockClass, scheduler: Scheduler | None) -> None:
        self.lock_class: Final = lock_class
        self.scheduler: Final = scheduler

    def lock(self) -> None:
        self.lock_class.writes += 1
        if self.scheduler is not None:
            self.scheduler.acquire(self, True)

    def unlock(self) -> None:
        if self.scheduler is not None:
            self.scheduler.release(self, True)


class Rcu:
    """Read-copy-update: readers run without a lock, and what they may see is freed after them.

    Counted in the ledger: `rcu read sections` and `rcu deferred frees`.  Without a scheduler nobody
    reads while another writes, so a deferred free may happen at once.
    """

    def __init__(self, ledger: Ledger, scheduler: Scheduler | None) -> None:
        self.scheduler: Final = scheduler
        self._sections: Final = ledger.tally("rcu read sections")
        self._frees: Final = ledger.tally("rcu deferred frees")

    def read_lock(self) -> None:
        self._sections.count += 1
        if self.scheduler is not None:
            self.scheduler.rcu_enter()

    def read_unlock(self) -> None:
        if self.scheduler is not None:
            self.scheduler.rcu_leave()

    def deferred_free(self) -> None:
        """Count an object handed to kfree_rcu() or call_rcu()."""
        self._frees.count += 1
