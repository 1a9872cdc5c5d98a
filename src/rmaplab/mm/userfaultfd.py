# SPDX-License-Identifier: GPL-2.0-or-later
"""UFFDIO_MOVE: a page moves to another address of its address space, and its page offset with it.

Models mm/userfaultfd.c move_pages() and what it calls.  Unlike mremap this changes the folio's index, so
only pages that are not shared may move.
"""

from __future__ import annotations

from rmaplab.mm.abi import EBUSY, EEXIST, EFAULT, EINVAL, ENOENT
from rmaplab.mm.huge_memory import split_folio
from rmaplab.mm.pagetable import (
    PTE_ANON,
    PTE_EXCLUSIVE,
    PTE_GUARD,
    PTE_KSM,
    PTE_SHIFT,
    PTE_SOFT_CLEAN,
    PTE_SWAP,
    PTE_WRITE,
    PTE_ZERO,
)
from rmaplab.mm.system import System
from rmaplab.mm.vma import (
    MM,
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    VM_ACCESS_FLAGS,
    VM_LOCKED,
    VM_SHARED,
    VM_WRITE,
    VMA,
)


def move(system: System, mm: MM, target: int, source: int, length: int) -> int:
    """UFFDIO_MOVE of [source, +length) to `target`.  Returns the bytes moved, or a negative errno if
    none were.  The registration of `target` with a userfaultfd is taken for granted."""
    if (target | source | length) & ~PAGE_MASK or length == 0:
        return -EINVAL
    mm.mmap_lock.down_read()
    result = _move(system, mm, target, source, length)
    mm.mmap_lock.up_read()
    return result


def _move(system: System, mm: MM, target: int, source: int, length: int) -> int:
    target_vma = mm.tree.at(target)
    if target_vma is None:
        return -ENOENT
    if not target_vma.flags & VM_SHARED:
        system.prepare(target_vma)  # find_vma_and_prepare_anon(): before anything is checked
    source_vma = mm.tree.at(source)
    if source_vma is None:
        return -ENOENT
    if source + length > source_vma.end or target + length > target_vma.end:
        return -EINVAL
    for vma in (source_vma, target_vma):
        if vma.file is not None or vma.flags & VM_SHARED:
            return -EINVAL
    if not source_vma.flags & VM_WRITE or (source_vma.flags ^ target_vma.flags) & (VM_ACCESS_FLAGS | VM_LOCKED):
        return -EINVAL
    moved = 0
    while moved < length:
        error = _move_one(system, target_vma, target + moved, source_vma, source + moved)
        if error:
            return moved if moved else error
        moved += PAGE_SIZE
    return moved


def _move_one(system: System, target_vma: VMA, target: int, source_vma: VMA, source: int) -> int:
    """move_present_pte(), move_swap_pte(), move_zeropage_pte()"""
    page_table = source_vma.mm.page_table
    entry = page_table.get(source)
    if page_table.get(target):
        return -EEXIST
    if entry == 0:
        return -ENOENT
    if entry & PTE_ANON:
        folios = system.folios
        pfn = entry >> PTE_SHIFT
        head: int = folios.head.m[pfn]
        if folios.order.m[head] > 0:
            # Asked of the first page, mapped or not, whichever page is to move; after the split, of that one.
            if not folios.exclusive.m[head]:
                return -EBUSY
            split_folio(system, head)
            return _move_one(system, target_vma, target, source_vma, source)
        if entry & PTE_KSM or not entry & PTE_EXCLUSIVE:
            return -EBUSY
        folios.index.m[pfn] = target_vma.anon_pgoff + ((target - target_vma.start) >> PAGE_SHIFT)
        for design in system.designs:
            design.folio_moved(target_vma, target, pfn)
        page_table.set(source, 0)
        entry = entry & ~PTE_SOFT_CLEAN | PTE_WRITE
        page_table.set(target, entry)
        system.tell_entry_removed(source_vma.mm, source, entry)
        system.tell_entry_added(target_vma.mm, target, entry)
    elif entry & PTE_SWAP:
        if not entry & PTE_EXCLUSIVE:
            return -EBUSY
        page_table.set(source, 0)
        page_table.set(target, entry & ~PTE_SOFT_CLEAN)
    elif entry & PTE_ZERO:
        page_table.set(source, 0)
        page_table.set(target, entry)
    elif entry & PTE_GUARD:
        return -EFAULT
    else:
        return -EBUSY
    return 0
