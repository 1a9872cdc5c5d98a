# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a VMA that a walk yields would map the pages of a folio.

Models page_vma_mapped_walk() of mm/page_vma_mapped.c.
"""

from __future__ import annotations

from rmaplab.mm.pagetable import (
    PTE_ANON,
    PTE_SHIFT,
)
from rmaplab.mm.system import System
from rmaplab.mm.vma import (
    PAGE_SHIFT,
    PAGE_SIZE,
    VM_LOCKED,
    VMA,
)


def addresses(system: System, vma: VMA, addr: int, head: int) -> range:
    """Where `vma` would map the pages of the folio, of which it covers the first at `addr`
    (page_vma_mapped_walk())."""
    end = min(vma.end, addr + (system.folios.nr_pages(head) << PAGE_SHIFT))
    return range(addr, end, 1 << PAGE_SHIFT)


def maps(system: System, entry: int, head: int) -> bool:
    """Does the entry map a page of the folio?"""
    return entry & PTE_ANON != 0 and head <= entry >> PTE_SHIFT < head + system.folios.nr_pages(head)


def unevictable(system: System, head: int) -> bool:
    """Does a locked VMA map a page of the folio (folio_test_mlocked())?"""
    if not system.mlocked:
        return False
    nr_pages = system.folios.nr_pages(head)
    walk = system.begin_walk(head)
    locked = False
    for vma, first in walk:
        if vma.flags & VM_LOCKED:
            for addr in range(first, min(vma.end, first + (nr_pages << PAGE_SHIFT)), PAGE_SIZE):
                entry = vma.mm.page_table.get(addr)
                locked = locked or (entry & PTE_ANON != 0 and head <= entry >> PTE_SHIFT < head + nr_pages)
    system.end_walk(walk)
    return locked
