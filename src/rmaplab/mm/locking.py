# SPDX-License-Identifier: GPL-2.0-or-later
"""How an address space is locked: mmap_lock, the locks of its VMAs, the locks of its page tables.

Models include/linux/mmap_lock.h (mmap_lock), vma_start_write() and lock_vma_under_rcu() (include/linux/mm.h,
mm/memory.c), and pte_offset_map_lock() (mm/pgtable-generic.c).

Order, outermost first: mmap_lock, VMA lock, folio lock, the design's locks, page-table lock (mm/rmap.c, at its top).
"""

from __future__ import annotations

from rmaplab.mm.pagetable import LEAF_SHIFT, Leaf, PageTable
from rmaplab.mm.vma import MM, VMA
from rmaplab.sync.locks import RwSemaphore


def lock_of(vma: VMA) -> RwSemaphore:
    """The lock of a VMA that System.new_vma() made."""
    lock = vma.lock
    assert lock is not None  # System.new_vma() gave it one
    return lock


def start_write(vma: VMA) -> None:
    """Keep faults out of `vma` until mmap_lock, which is held for writing, is given back."""
    lock = vma.lock
    if lock is None:
        return
    if lock.scheduler is None or vma.write_locked:
        lock.lock_class.writes += 1
    else:
        lock.down_write()
        vma.write_locked = True
        vma.mm.write_locked.append(vma)


def assert_write_locked(vma: VMA) -> None:
    """The caller has called start_write(), and mmap_lock is held for writing since (vma_assert_write_locked())."""
    vma.mm.mmap_lock.assert_held_write()
    lock = vma.lock
    if lock is not None:
        lock.assert_held_write()


def end_write(mm: MM) -> None:
    """Let faults in again (vma_end_write_all())"""
    for vma in mm.write_locked:
        vma.write_locked = False
        lock_of(vma).up_write()
    mm.write_locked.clear()


def write_unlock(mm: MM) -> None:
    """mmap_write_unlock()"""
    if mm.write_locked:
        end_write(mm)
    mm.mmap_lock.up_write()


def write_downgrade(mm: MM) -> None:
    """mmap_write_downgrade()"""
    if mm.write_locked:
        end_write(mm)
    mm.mmap_lock.downgrade_write()


def lock_leaf(page_table: PageTable, addr: int) -> Leaf | None:
    """The leaf for `addr`, locked; None if there is none (pte_offset_map_lock())."""
    number = addr >> LEAF_SHIFT
    rcu = page_table.rcu
    while page_table.scheduler is not None:
        if rcu is not None:
            rcu.read_lock()
        leaf = page_table.look_up(number)
        if leaf is not None:
            leaf.lock.lock()
        if rcu is not None:
            rcu.read_unlock()  # whoever frees it has its lock until it is taken out
        if leaf is None or page_table.look_up(number) is leaf:
            return leaf
        leaf.lock.unlock()  # taken out, and perhaps made anew, before we had the lock
    leaf = page_table.leaves.get(number)
    if leaf is not None:
        leaf.lock.lock()
    return leaf


def lock_new_leaf(page_table: PageTable, addr: int) -> Leaf:
    """The leaf for `addr`, locked, made if there is none (pte_alloc_map_lock())."""
    while True:
        leaf = page_table.leaf(addr)
        if page_table.scheduler is None:
            leaf.lock.lock()
            return leaf
        locked = lock_leaf(page_table, addr)
        if locked is not None:
            return locked
