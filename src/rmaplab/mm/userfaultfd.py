# SPDX-License-Identifier: GPL-2.0-or-later
"""UFFDIO_MOVE: a page moves to another address of its address space, and its page offset with it.

Models mm/userfaultfd.c move_pages() and what it calls.  Unlike mremap this changes the folio's index, so
only pages that are not shared may move.

Locking: both VMAs for reading; per page its folio, which keeps walks away that would look for it at the old page
offset, and both leaves.
"""

from __future__ import annotations

from typing import Final

from rmaplab.mm import huge_pmd
from rmaplab.mm.abi import EBUSY, EEXIST, EFAULT, EINVAL, ENOENT
from rmaplab.mm.huge_memory import split_folio
from rmaplab.mm.locking import lock_leaf, lock_of
from rmaplab.mm.pagetable import (
    LEAF_ENTRIES,
    LEAF_SHIFT,
    LEAF_SIZE,
    PTE_ANON,
    PTE_DIRTY,
    PTE_EXCLUSIVE,
    PTE_GUARD,
    PTE_KSM,
    PTE_SHIFT,
    PTE_SOFT_CLEAN,
    PTE_SWAP,
    PTE_WRITE,
    PTE_ZERO,
    Leaf,
    PageTable,
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

_AGAIN: Final = 1  # somebody changed an entry in between, or a folio was split


def move(system: System, mm: MM, target: int, source: int, length: int) -> int:
    """UFFDIO_MOVE of [source, +length) to `target`.  Returns the bytes moved, or a negative errno if
    none were.  The registration of `target` with a userfaultfd is taken for granted."""
    if (target | source | length) & ~PAGE_MASK or length == 0:
        return -EINVAL
    vmas = _lock_vmas(system, mm, target, source)
    if vmas is None:
        return -ENOENT
    result = _move(system, *vmas, target, source, length)
    for vma in dict.fromkeys(reversed(vmas)):  # uffd_move_unlock()
        lock_of(vma).up_read()
    return result


def _lock_vmas(system: System, mm: MM, target: int, source: int) -> tuple[VMA, VMA] | None:
    """The VMAs at both places, locked for reading, the first of them prepared before anything is checked; None if there
    is none at one of them (uffd_move_lock())."""
    vma = system.lock_vma_under_rcu(mm, target)
    if vma is not None:
        if vma.prepared or vma.flags & VM_SHARED:
            other = vma if vma.start <= source < vma.end else system.lock_vma_under_rcu(mm, source)
            if other is not None:
                return vma, other
        lock_of(vma).up_read()
    mm.mmap_lock.down_read()
    vma, other = mm.tree.at(target), mm.tree.at(source)
    if vma is not None and not vma.flags & VM_SHARED:
        system.prepare(vma)  # find_vma_and_prepare_anon()
    found = None if vma is None or other is None else (vma, other)
    if found is not None:
        for its in dict.fromkeys(found):
            lock_of(its).down_read()  # nobody has it for writing while mmap_lock is held
    mm.mmap_lock.up_read()
    return found


def _move(system: System, target_vma: VMA, source_vma: VMA, target: int, source: int, length: int) -> int:
    if source + length > source_vma.end or target + length > target_vma.end:
        return -EINVAL
    for vma in (source_vma, target_vma):
        if vma.file is not None or vma.flags & VM_SHARED:
            return -EINVAL
    if not source_vma.flags & VM_WRITE or (source_vma.flags ^ target_vma.flags) & (VM_ACCESS_FLAGS | VM_LOCKED):
        return -EINVAL
    moved = 0
    while moved < length:
        if system.huge and source_vma.mm.page_table.is_huge(source + moved):
            error = _move_huge(system, target_vma, target + moved, source_vma, source + moved, length - moved)
            step = LEAF_SIZE
        else:
            error = _move_one(system, target_vma, target + moved, source_vma, source + moved)
            step = PAGE_SIZE
        if error == _AGAIN:
            continue
        if error:
            return moved if moved else error
        moved += step
    return moved


def _move_huge(system: System, target_vma: VMA, target: int, source_vma: VMA, source: int, left: int) -> int:
    """What one entry maps moves whole, if all of it is to move and fits, else it is split.  0, a negative errno, or
    _AGAIN (move_pages_huge_pmd())."""
    folios = system.folios
    mm = source_vma.mm
    leaf = mm.page_table.leaves[source >> LEAF_SHIFT]
    entry: int = leaf.m[0]
    if mm.page_table.is_huge(target):
        return -EEXIST
    if entry & (PTE_ZERO | PTE_EXCLUSIVE) == 0:
        return -EBUSY
    if (source | target) & (LEAF_SIZE - 1) or left < LEAF_SIZE or target >> LEAF_SHIFT in mm.page_table.leaves:
        huge_pmd.split_at(system, mm, source)
        return _AGAIN
    head = entry >> PTE_SHIFT
    if entry & PTE_ANON:
        system.get_folio(head)
        system.lock_to_move(source_vma, head)
        first = target_vma.anon_pgoff + ((target - target_vma.start) >> PAGE_SHIFT)
        for i in range(LEAF_ENTRIES):  # folio_move_anon_rmap()
            folios.index.m[head + i] = first + i
            for design in system.designs:
                design.folio_moved(target_vma, target + (i << PAGE_SHIFT), head + i)
        leaf.v[:] |= PTE_WRITE | PTE_DIRTY
    huge_pmd.move(system, mm, source, target)
    if entry & PTE_ANON:
        system.unlock_moved(source_vma, head)
        system.put_folio(head)
    return 0


def _move_one(system: System, target_vma: VMA, target: int, source_vma: VMA, source: int) -> int:
    """0, a negative errno, or _AGAIN (move_pages_ptes())."""
    page_table = source_vma.mm.page_table
    entry = page_table.get(source)
    if page_table.get(target):
        return -EEXIST
    if system.huge and source >> LEAF_SHIFT in page_table.leaves:
        page_table.leaf(target)  # there from now on, whatever comes: no huge one will be made
    if entry == 0:
        return -ENOENT
    if entry & PTE_ANON:
        return _move_page(system, target_vma, target, source_vma, source, entry)
    if entry & PTE_GUARD:
        return -EFAULT
    if not entry & PTE_ZERO and entry & (PTE_SWAP | PTE_EXCLUSIVE) != PTE_SWAP | PTE_EXCLUSIVE:
        return -EBUSY
    leaves = _lock_leaves(page_table, source, target)
    stable = page_table.get(source) == entry and page_table.get(target) == 0
    if stable:
        _move_entry(page_table, source, target, entry if entry & PTE_ZERO else entry & ~PTE_SOFT_CLEAN)
    _unlock_leaves(leaves)
    return 0 if stable else _AGAIN


def _move_page(system: System, target_vma: VMA, target: int, source_vma: VMA, source: int, entry: int) -> int:
    """move_present_ptes()"""
    folios = system.folios
    pfn = entry >> PTE_SHIFT
    head: int = folios.head.m[pfn]
    if folios.order.m[head] > 0:
        # Asked of the first page, mapped or not, whichever page is to move; after the split, of that one.
        if not folios.exclusive.m[head]:
            return -EBUSY
        split_folio(system, head)
        return _AGAIN
    if entry & PTE_KSM or not entry & PTE_EXCLUSIVE:
        return -EBUSY
    system.get_folio(pfn)
    system.lock_to_move(source_vma, pfn)
    new = entry & ~PTE_SOFT_CLEAN | PTE_WRITE
    page_table = source_vma.mm.page_table
    leaves = _lock_leaves(page_table, source, target)
    stable = page_table.get(source) == entry and page_table.get(target) == 0
    if stable:
        system.assert_folio_locked(pfn)  # folio_move_anon_rmap()
        folios.index.m[pfn] = target_vma.anon_pgoff + ((target - target_vma.start) >> PAGE_SHIFT)
        for design in system.designs:
            design.folio_moved(target_vma, target, pfn)
        _move_entry(page_table, source, target, new)
        system.tell_entry_removed(source_vma.mm, source, new)
        system.tell_entry_added(target_vma.mm, target, new)
    _unlock_leaves(leaves)
    system.unlock_moved(source_vma, pfn)
    system.put_folio(pfn)
    return 0 if stable else _AGAIN


def _lock_leaves(page_table: PageTable, source: int, target: int) -> list[Leaf]:
    """The leaves of both places, locked (double_pt_lock()); without that of the source if it is gone."""
    page_table.leaf(target)
    numbers = sorted({source >> LEAF_SHIFT, target >> LEAF_SHIFT})
    return [leaf for number in numbers if (leaf := lock_leaf(page_table, number << LEAF_SHIFT)) is not None]


def _unlock_leaves(leaves: list[Leaf]) -> None:
    for leaf in leaves:
        leaf.lock.unlock()


def _move_entry(page_table: PageTable, source: int, target: int, new: int) -> None:
    """What is at `source` becomes the entry `new` at `target`, where nothing is."""
    page_table.set(source, 0)
    page_table.set(target, new)
