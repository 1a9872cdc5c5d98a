# SPDX-License-Identifier: GPL-2.0-or-later
"""Shared parts of the designs of 2.5 and 2.6 that record for each page where it is mapped: a lock per page, and
the page of an entry.

Models PG_maplock (include/linux/rmap-locking.h of 2.5).  2.5 had no migration entries: the rule for them is ours.

Locking: a page's lock nests in the page-table lock.
"""

from __future__ import annotations

from typing import Final

from rmaplab.mm.pagetable import PTE_MIGRATION, PTE_SHIFT
from rmaplab.sync.locks import Scheduler, SpinLock
from rmaplab.sync.work import LockClass


class PageLocks:
    """A bit lock in each page."""

    def __init__(self, lock_class: LockClass, scheduler: Scheduler | None) -> None:
        self._lock_class: Final = lock_class
        self._scheduler: Final = scheduler
        self._any: Final = SpinLock(lock_class, None)
        self.used: Final[dict[int, SpinLock]] = {}  # by pfn

    def of(self, pfn: int) -> SpinLock:
        """The lock of page `pfn`.  Without a scheduler nobody else is there, and one lock counts for all."""
        if self._scheduler is None:
            return self._any
        lock = self.used.get(pfn)
        if lock is None:
            lock = self.used[pfn] = SpinLock(self._lock_class, self._scheduler)
        return lock


def page_of(entry: int, replaced: dict[int, int]) -> int:
    """The page that the entry is for: while it is migrating, it still names the old one, which `replaced` has the new
    one for."""
    pfn = entry >> PTE_SHIFT
    return replaced.get(pfn, pfn) if entry & PTE_MIGRATION else pfn
