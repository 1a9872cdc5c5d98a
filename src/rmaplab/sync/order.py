# SPDX-License-Identifier: GPL-2.0-or-later
"""Accesses to what others read or change without a common lock, by the kernel's names for how they are ordered.

Models include/asm-generic/rwonce.h, include/asm-generic/barrier.h, include/linux/rcupdate.h and the orders of
Documentation/atomic_t.txt.  Each access names itself (`what`) and its location: the `field` of `subject`
(fields.py; element `index` of it if that is OF_PAGE or OF_DESIGN), which is freed with `whole`, or itself.  Those of
one name are one *ordering*, which `race --barriers` takes away.

A function that loads is given the value as it is, which is the answer where nobody else runs.  One that stores comes
just before the statement that does, and is told nothing: a scheduler looks there afterwards.

Invariant: code between two announcements runs as one step (execution.py), so a store and its announcement are one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rmaplab.sync.locks import Scheduler

# How an access is ordered
PLAIN: Final = 0  # not at all, and what is reached through a pointer that was loaded so is not, either
ONCE: Final = 1  # not at all, but for what is reached through it (an address dependency)
ACQUIRE: Final = 2  # loads: before all that comes after it
RELEASE: Final = 3  # stores: after all that came before it
FULL: Final = 4  # atomics that return a value: both, and as smp_mb() on either side

# What a fence orders
READS: Final = 0
WRITES: Final = 1
ALL: Final = 2


def read_once(
    scheduler: Scheduler | None,
    what: str,
    subject: object,
    field: str,
    value: object,
    index: int = 0,
    whole: object = None,
) -> object:
    """READ_ONCE(); of a pointer it is rcu_dereference(), which is the same on all CPUs that Linux has."""
    return value if scheduler is None else scheduler.load(what, subject, field, index, ONCE, whole)


def read_plain(
    scheduler: Scheduler | None,
    what: str,
    subject: object,
    field: str,
    value: object,
    index: int = 0,
    whole: object = None,
) -> object:
    """A load that is not marked."""
    return value if scheduler is None else scheduler.load(what, subject, field, index, PLAIN, whole)


def smp_load_acquire(
    scheduler: Scheduler | None,
    what: str,
    subject: object,
    field: str,
    value: object,
    index: int = 0,
    whole: object = None,
) -> object:
    """smp_load_acquire()"""
    return value if scheduler is None else scheduler.load(what, subject, field, index, ACQUIRE, whole)


def write_once(
    scheduler: Scheduler | None, what: str, subject: object, field: str, index: int = 0, whole: object = None
) -> None:
    """WRITE_ONCE(), by the next statement."""
    if scheduler is not None:
        scheduler.store(what, subject, field, index, ONCE, whole)


def smp_store_release(
    scheduler: Scheduler | None, what: str, subject: object, field: str, index: int = 0, whole: object = None
) -> None:
    """smp_store_release(), which rcu_assign_pointer() is, by the next statement."""
    if scheduler is not None:
        scheduler.store(what, subject, field, index, RELEASE, whole)


def atomic(
    scheduler: Scheduler | None,
    what: str,
    subject: object,
    field: str,
    index: int = 0,
    order: int = FULL,
    succeeds: Callable[[object], bool] | None = None,
) -> None:
    """An atomic that returns a value, or decides by it, changes a number in the next statement: fully ordered, or as
    its suffix says (ACQUIRE, RELEASE, ONCE for _relaxed).  Unless the old value `succeeds` it is but a load."""
    if scheduler is not None:
        scheduler.update(what, subject, field, index, order, succeeds)


def atomic_inc(scheduler: Scheduler | None, what: str, subject: object, field: str, index: int = 0) -> None:
    """One that does not return a value (atomic_inc(), refcount_inc()): not ordered."""
    if scheduler is not None:
        scheduler.update(what, subject, field, index, PLAIN)


def alike(scheduler: Scheduler | None, subject: object, field: str, first: int, count: int) -> None:
    """The next statement changes `count` elements from `first` on as one with what was just announced: one word that
    counts for each of them (_entire_mapcount)."""
    if scheduler is not None:
        scheduler.alike(subject, field, first, count)


def depends(scheduler: Scheduler | None, what: str, subject: object) -> None:
    """What the caller has just loaded under the name `what` is the way to `subject`, by a number or through a part."""
    if scheduler is not None:
        scheduler.depends(what, subject)


def initialised(scheduler: Scheduler | None, what: str, subject: object, fields: str) -> None:
    """`subject` is fresh, and its `fields` (names, with blanks between) have just got their first values, by plain
    stores.  Who sees it before these finds there what was there before."""
    if scheduler is not None:
        scheduler.initialised(what, subject, fields)


def uses(scheduler: Scheduler | None, what: str, subject: object, field: str) -> None:
    """The caller is about to use a field that keeps its first value: a lock, say.  So nothing depends on when."""
    if scheduler is not None:
        scheduler.uses(what, subject, field)


def smp_mb(scheduler: Scheduler | None, what: str) -> None:
    """smp_mb()"""
    if scheduler is not None:
        scheduler.fence(what, ALL)


def smp_rmb(scheduler: Scheduler | None, what: str) -> None:
    """smp_rmb()"""
    if scheduler is not None:
        scheduler.fence(what, READS)


def smp_wmb(scheduler: Scheduler | None, what: str) -> None:
    """smp_wmb()"""
    if scheduler is not None:
        scheduler.fence(what, WRITES)
