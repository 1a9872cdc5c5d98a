# SPDX-License-Identifier: GPL-2.0-or-later
"""Users of the reverse map, part four: who goes through memory by page frame numbers.

Models mm/page_idle.c page_idle_get_folio() and page_idle_clear_pte_refs(); compaction and memory failure come by folios
likewise.  A folio that is on an LRU list, before and after a reference to it was got, has all that a walk needs.
"""

from __future__ import annotations

from rmaplab.mm.system import System
from rmaplab.mm.vmscan import referenced_folio


def clear_references(system: System, pfn: int) -> int:
    """Look at every mapping of the folio with that number, and age it.  Returns how many entries had been used."""
    refs = system.refs
    if not refs.is_on_lru(pfn) or not system.try_get_folio(pfn):
        return 0
    if not refs.is_on_lru(pfn) or not system.mapcount(pfn):
        system.put_folio(pfn)
        return 0
    return referenced_folio(system, pfn)
