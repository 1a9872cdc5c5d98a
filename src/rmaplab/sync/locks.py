# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks and RCU, by the names and with the rules that Linux has for them.

Models include/linux/rwsem.h, include/linux/spinlock.h and include/linux/rcupdate.h as their users see
them.  Each lock belongs to a `LockClass`, which counts.  A lock without a scheduler only counts, which
is right where nothing is concurrent: no other task could hold it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mypy_extensions import i64, mypyc_attr

from rmaplab.sync.fields import OF_LEAF, OF_PAGE, OF_PMD, look
from rmaplab.sync.work import Ledger, LockClass


@mypyc_attr(allow_interpreted_subclasses=True)
class Scheduler:
    """Who decides what runs next: told of every operation on a lock, on RCU, and of every step.

    The methods of this base class let everything pass.  A scheduler for virtual time parks the caller
    of `acquire` until the lock is free; a checker picks another task at any of them.
    """

    def acquire(self, lock: object, write: bool) -> None:
        """The caller wants `lock`, exclusively if `write`."""

    def try_acquire(self, lock: object, write: bool) -> bool:
        """The caller takes `lock` if that needs no waiting."""
        return True

    def release(self, lock: object, write: bool) -> None:
        """The caller gives `lock` back."""

    def looked(self, lock: object) -> None:
        """The caller, about to give `lock` back, found nothing to do under it: all is as if it had not looked."""

    def downgrade(self, lock: object) -> None:
        """The caller keeps `lock`, which it holds for writing, for reading."""

    def is_locked(self, lock: object) -> bool:
        """Has anybody `lock`, which the caller does not have?  Who has it may give it back at once."""
        return False

    def assert_held(self, lock: object, write: bool) -> None:
        """The caller relies on `lock`, exclusively if `write`, which it has to hold (lockdep_assert_held())."""

    def might_sleep(self, what: str) -> None:
        """The caller may sleep, for `what`: it has no spin lock and is in no RCU section (might_sleep())."""

    def rcu_enter(self) -> None:
        """A read-side critical section begins."""

    def rcu_leave(self) -> None:
        """A read-side critical section ends."""

    def rcu_call(self, what: str, subject: object, then: Callable[[], None] | None = None) -> None:
        """`subject` is to be freed after a grace period, by `then` if that is given."""

    def free(self, what: str, subject: object) -> None:
        """`subject` is freed now."""

    def slab_free(self, what: str, subject: object, then: Callable[[], None]) -> None:
        """`subject` is freed now, and may be used again as another of its kind (which `then` allows), but stays
        one of its kind until a grace period has gone by (SLAB_TYPESAFE_BY_RCU)."""
        then()

    def point(self, what: str, subject: object, write: bool = False) -> None:
        """The caller is about to read (or, with `write`, to change) shared state: another may go first."""

    def point_in(self, whole: object, what: str, subject: object, write: bool = False) -> None:
        """The same, for a part of the object `whole`, with which it is freed."""
        self.point(what, subject, write)

    def load(self, what: str, subject: object, field: str, index: int, order: int, whole: object) -> object:
        """The caller reads what others may change meanwhile (order.py); `whole`: what the subject is freed with, None:
        it is freed itself."""
        self._point_at(what, subject, field, index, whole, False)
        return look(subject, field, index)

    def load_changed(self, what: str, subject: object, field: str, order: int, begun: int) -> bool:
        """Is a count that only grows, by one each time, another than `begun`, which the caller found there before?"""
        return self.load(what, subject, field, 0, order, None) != begun

    def store(self, what: str, subject: object, field: str, index: int, order: int, whole: object) -> None:
        """The caller is about to change what others may read meanwhile."""
        self._point_at(what, subject, field, index, whole, True)

    def _point_at(self, what: str, subject: object, field: str, index: int, whole: object, write: bool) -> None:
        if field == OF_PAGE:
            self.point(what, index, write)
        elif field == OF_LEAF or field == OF_PMD:
            pass  # the leaf's lock is taken next
        elif whole is None:
            self.point(what, subject, write)
        else:
            self.point_in(whole, what, subject, write)

    def update(
        self,
        what: str,
        subject: object,
        field: str,
        index: int,
        order: int,
        succeeds: Callable[[object], bool] | None = None,
    ) -> None:
        """The caller is about to change a number atomically (Documentation/atomic_t.txt), if the old one `succeeds`."""
        self._point_at(what, subject, field, index, None, True)

    def alike(self, subject: object, field: str, first: int, count: int) -> None:
        """The caller is about to change elements along with what it has just announced."""

    def initialised(self, what: str, subject: object, fields: str) -> None:
        """The fields of a fresh object have their first values."""

    def uses(self, what: str, subject: object, field: str) -> None:
        """The caller uses a field that keeps its first value."""

    def fence(self, what: str, kind: int) -> None:
        """smp_mb(), smp_rmb(), smp_wmb()"""

    def depends(self, what: str, subject: object) -> None:
        """What the caller loaded last, under the name `what`, led it to `subject`."""

    def reuses(self) -> bool:
        """May what is freed be handed out again?"""
        return True

    def touch(self, what: str, subject: object) -> None:
        """The caller uses `subject`, which must not have been freed; nothing else depends on when."""

    def wait(self, what: str, subject: object, ready: Callable[[], bool]) -> None:
        """The caller cannot go on until `ready()`, which looks at `subject`."""
        if not ready():
            raise RuntimeError(f"waiting for {what}, and nobody else runs who could bring it about")

    def wait_load(self, what: str, subject: object, field: str, ready: Callable[[], bool]) -> object:
        """The caller goes on with the value of a field once it is one that is `ready()`."""
        self.wait(what, subject, ready)
        return getattr(subject, field)

    def flush(self, space: CpuMask, freed_tables: bool = False) -> None:
        """Entries of an address space were taken away or lost rights: no TLB may have them afterwards."""

    def flush_later(self, space: CpuMask, dirty: bool) -> None:
        """The same, but the caller says when, by `flush_deferred`; `dirty`: what the entry mapped may have been
        written to."""

    def flush_deferred(self, if_dirty: bool = False) -> None:
        """What the caller deferred is done now (`if_dirty`: if any of it was dirty)."""

    def chunk(self) -> int:
        """How many page-table entries a long operation may do in one step (0: all of them)."""
        return 0


class CpuMask:
    """CPUs whose TLBs may hold entries of an address space (mm_cpumask()), where a scheduler knows CPUs."""

    def __init__(self) -> None:
        self.cpus: Final[list[int]] = []


@mypyc_attr(allow_interpreted_subclasses=True)
class Word:
    """A word of memory that several CPUs change, one after the other: a reference `count`.  `cpu` is the CPU whose
    cache has it (-1: none), `line_free` when a scheduler in virtual time lets the next CPU have it."""

    def __init__(self) -> None:
        self.cpu = -1
        self.line_free: i64 = 0
        self.count = 0


@mypyc_attr(allow_interpreted_subclasses=True)
class Data:
    """Memory that CPUs read and write.  `writer` is the CPU that wrote to it last (-1: none), `copies` are those whose
    caches have it as it is since, where a scheduler knows CPUs."""

    def __init__(self) -> None:
        self.writer = -1
        self.copies: Final[set[int]] = set()


class Lock:
    """What all locks have: a class that counts, a scheduler, what that remembers of the lock, and the object that it
    is a part of and is freed with (None: it stays)."""

    def __init__(self, lock_class: LockClass, scheduler: Scheduler | None, whole: object = None) -> None:
        self.lock_class: Final = lock_class
        self.scheduler: Final = scheduler
        self.whole: Final = whole
        self.state: object | None = None


class RwSemaphore(Lock):
    """A reader-writer semaphore (struct rw_semaphore)."""

    def down_read(self) -> None:
        self.lock_class.reads += 1
        if self.scheduler is not None:
            self.scheduler.acquire(self, False)

    def try_down_read(self) -> bool:
        self.lock_class.reads += 1
        return self.scheduler is None or self.scheduler.try_acquire(self, False)

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

    def is_locked(self) -> bool:
        """rwsem_is_locked()"""
        return self.scheduler is not None and self.scheduler.is_locked(self)

    def assert_held(self) -> None:
        """The caller holds it, for reading at least (rwsem_assert_held(), mmap_assert_locked())."""
        if self.scheduler is not None:
            self.scheduler.assert_held(self, False)

    def assert_held_write(self) -> None:
        """The caller holds it for writing (rwsem_assert_held_write(), mmap_assert_write_locked())."""
        if self.scheduler is not None:
            self.scheduler.assert_held(self, True)


class SpinLock(Lock):
    """A spin lock (spinlock_t); if its class `sleeps`, a lock that is exclusive and puts who waits to sleep."""

    def lock(self) -> None:
        self.lock_class.writes += 1
        if self.scheduler is not None:
            self.scheduler.acquire(self, True)

    def try_lock(self) -> bool:
        self.lock_class.writes += 1
        return self.scheduler is None or self.scheduler.try_acquire(self, True)

    def unlock(self) -> None:
        if self.scheduler is not None:
            self.scheduler.release(self, True)

    def looked(self) -> None:
        """The caller, who is about to give it back, found nothing to do: all is as if it had not looked."""
        if self.scheduler is not None:
            self.scheduler.looked(self)

    def assert_held(self) -> None:
        """The caller holds it (lockdep_assert_held())."""
        if self.scheduler is not None:
            self.scheduler.assert_held(self, True)


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

    def count_sections(self, count: int) -> None:
        """`count` sections, one after the other, of which nobody needs to know."""
        self._sections.count += count

    def call(self, what: str, subject: object, then: Callable[[], None] | None = None) -> None:
        """Free `subject`, by `then` if that is given, once all who may be looking at it have left (kfree_rcu(),
        call_rcu())."""
        self._frees.count += 1
        if self.scheduler is not None:
            self.scheduler.rcu_call(what, subject, then)
        elif then is not None:
            then()
