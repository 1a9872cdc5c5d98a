# SPDX-License-Identifier: GPL-2.0-or-later
"""Users of the reverse map, part three: kernel samepage merging.

Models mm/ksm.c try_to_merge_two_pages(), stable_tree_append() and break_ksm().  Who wants two pages merged says
so (there is no scanner).  A KSM page belongs to no VMA: the reverse map knows it by the places where it was
merged, and by the copies that fork made of those.

Narrower than Linux in two points, where no walk would find what maps a page until ksmd comes by: only a page
that a single entry maps is merged, while Linux also takes pages that fork shared; and a place is remembered
while a copy of it that fork made is mapped.
"""

from __future__ import annotations

from rmaplab.mm.abi import EBUSY, EINVAL
from rmaplab.mm.folio import FOLIO_KSM, FOLIO_LAZYFREE
from rmaplab.mm.memory import fault_vma
from rmaplab.mm.pagetable import PTE_ANON, PTE_EXCLUSIVE, PTE_KSM, PTE_SHIFT, PTE_WRITE
from rmaplab.mm.system import System
from rmaplab.mm.vma import MM, PAGE_SHIFT, VM_MERGEABLE, VMA


def merge_pages(system: System, mm: MM, addr: int, other_mm: MM, other_addr: int) -> int:
    """Let `other_addr` map the page at `addr`, taken to have the same contents.  Returns 0, -EINVAL if
    one of them is not mergeable, -EBUSY if one of them is not an anonymous page of one place alone."""
    vma = mm.tree.at(addr)
    other_vma = other_mm.tree.at(other_addr)
    if vma is None or other_vma is None or not vma.flags & other_vma.flags & VM_MERGEABLE:
        return -EINVAL
    entry = mm.page_table.get(addr)
    other = other_mm.page_table.get(other_addr)
    if not entry & other & PTE_ANON or other & PTE_KSM:
        return -EBUSY
    pfn = entry >> PTE_SHIFT
    other_pfn = other >> PTE_SHIFT
    if pfn == other_pfn or not _alone(system, other_pfn):
        return -EBUSY
    if not entry & PTE_KSM:
        if not _alone(system, pfn):
            return -EBUSY
        for design in system.designs:
            design.ksm_added(vma, addr, pfn)
        system.ksm_pages.add(pfn)
        system.folios.set_flag(pfn, FOLIO_KSM)
        system.folios.clear_flag(pfn, FOLIO_LAZYFREE)
        entry = entry & ~(PTE_WRITE | PTE_EXCLUSIVE) | PTE_KSM
        mm.page_table.set(addr, entry)
    for design in system.designs:
        design.ksm_added(other_vma, other_addr, pfn)
    system.folios.mapcount.m[pfn] += 1
    other_mm.page_table.set(other_addr, entry)
    system.release_page(other_pfn)
    return 0


def _alone(system: System, pfn: int) -> bool:
    folios = system.folios
    return folios.mapcount.m[pfn] == 1 and folios.order.m[pfn] == 0 and pfn not in system.slot_of


def _copied(system: System, vma: VMA, addr: int, pfn: int) -> bool:
    """Does another address space, forked since, map the KSM page at the same address?"""
    for other, other_addr in system.leader.walk(pfn):
        if other_addr == addr and other.mm is not vma.mm:
            entry = other.mm.page_table.get(addr)
            if entry & PTE_ANON and entry >> PTE_SHIFT == pfn:
                return True
    return False


def unmerge_range(system: System, vma: VMA, start: int, end: int) -> None:
    """Give every KSM page in [start, end) of `vma` back to it alone (unmerge_ksm_pages(), break_ksm())."""
    if not system.ksm_pages:
        return
    page_table = vma.mm.page_table
    addr = start
    while addr < end:
        entry = page_table.get(addr)
        if entry & PTE_KSM and entry & PTE_ANON:
            fault_vma(system, vma, addr, 1, True)
            pfn = entry >> PTE_SHIFT
            if pfn in system.ksm_pages and not _copied(system, vma, addr, pfn):
                for design in system.designs:
                    design.ksm_removed(vma.mm, addr, pfn)
        addr += 1 << PAGE_SHIFT
