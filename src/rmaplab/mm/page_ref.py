# SPDX-License-Identifier: GPL-2.0-or-later
"""Folios for who comes by one without a reference to it: by its number, or through a word that leads there.

Models include/linux/page_ref.h (folio_try_get(), folio_put_testzero(), set_page_refcounted()), lru_add() and
__page_cache_release() of mm/folio.c.

The struct page stays when its folio is freed, and may be another folio's at once.  So whoever has only its number gets
a reference, if there are any, and then looks again whether it is still the folio that he meant.

Invariants: of pages that nobody comes by in this way, which are all but those of a few scenarios, nothing is kept.  The
references to the others are counted, one for each entry and one for each of `System.pins`.
"""

from __future__ import annotations

from typing import Final

from rmaplab.mm.folio import Folios
from rmaplab.sync.locks import Scheduler, SpinLock
from rmaplab.sync.order import ACQUIRE, FULL, PLAIN, atomic, atomic_inc, read_once, write_once
from rmaplab.sync.work import Ledger

PG_LRU: Final = 1


class Page:
    """Words of a struct page: _refcount, of a folio that one entry maps, flags, and mapping, as far as KSM has it.
    `exclusive` is PG_anon_exclusive, for who has no lock; who has one finds it in the entry."""

    def __init__(self, number: int) -> None:
        self.number: Final = number
        self.count = 1
        self.flags = PG_LRU
        self.mapping: object | None = None
        self.exclusive = True


class PageRefs:
    """The pages that somebody may come by without a reference."""

    def __init__(self, folios: Folios, scheduler: Scheduler | None, ledger: Ledger) -> None:
        self.folios: Final = folios
        self.scheduler: Final = scheduler
        self.pages: Final[dict[int, Page]] = {}
        self._ledger: Final = ledger
        self._zone_lock: SpinLock | None = None

    def watch(self, pfn: int) -> None:
        """Somebody may come by `pfn`, which is a folio on an LRU list."""
        self.pages[pfn] = Page(pfn)
        self._zone_lock = SpinLock(self._ledger.lock_class("zone lock"), self.scheduler)

    # Who comes by it

    def is_on_lru(self, pfn: int) -> bool:
        """folio_test_lru()"""
        page = self.pages[pfn]
        flags = read_once(self.scheduler, "folio_test_lru()", page, "flags", page.flags)
        return isinstance(flags, int) and flags & PG_LRU != 0

    def try_get(self, pfn: int) -> bool:
        """Is there a reference, so that the caller may have one, too (folio_try_get())?"""
        page = self.pages[pfn]
        atomic(self.scheduler, "folio_try_get()", page, "count", 0, FULL, bool)
        if page.count == 0:
            return False
        page.count += 1
        return True

    def locked(self, pfn: int) -> None:
        """folio_trylock() has set a bit of the same word that has PG_lru."""
        atomic(self.scheduler, "folio_trylock()", self.pages[pfn], "flags", 0, ACQUIRE)

    # Who frees it and hands it out

    def get(self, pfn: int) -> None:
        """One reference more, by who has one (folio_get())."""
        page = self.pages[pfn]
        atomic_inc(self.scheduler, "folio_get()", page, "count")
        page.count += 1

    def put(self, pfn: int, count: int = 1) -> bool:
        """So many references are given back; was the last among them (folio_put_testzero())?"""
        page = self.pages[pfn]
        atomic(self.scheduler, "folio_put_testzero()", page, "count")
        page.count -= count
        return page.count == 0

    def free(self, pfn: int) -> None:
        """The last one was (__page_cache_release(), free_unref_folios())."""
        page = self.pages[pfn]
        write_once(self.scheduler, "__folio_clear_lru()", page, "flags")
        page.flags = 0
        lock = self._lock()
        lock.lock()
        self.folios.free(pfn)
        lock.unlock()

    def alloc(self, index: int) -> int:
        """A folio of one page; nobody has a reference but the caller (rmqueue(), set_page_refcounted())."""
        lock = self._lock()
        lock.lock()
        pfn = self.folios.alloc(index)
        lock.unlock()
        page = self.pages.get(pfn)
        if page is not None:
            write_once(self.scheduler, "set_page_refcounted()", page, "count")
            page.count = 1
        return pfn

    def add_to_lru(self, pfn: int) -> None:
        """The folio is mapped, and can be reclaimed from now on (lru_add(), folio_batch_move_lru())."""
        page = self.pages.get(pfn)
        if page is not None:
            atomic(self.scheduler, "folio_test_clear_unevictable()", page, "flags")
            atomic(self.scheduler, "folio_set_lru()", page, "flags", 0, PLAIN)
            page.flags = PG_LRU

    def _lock(self) -> SpinLock:
        lock = self._zone_lock
        assert lock is not None  # watch() made it
        return lock
