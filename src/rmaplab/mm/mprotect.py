# SPDX-License-Identifier: GPL-2.0-or-later
"""mprotect: the rights of a range.

Models mm/mprotect.c: do_mprotect_pkey(), mprotect_fixup(), change_protection().

Locking: mmap_lock for writing; the lock of each VMA that changes; the lock of each leaf while its entries change.
"""

from __future__ import annotations

import numpy as np

from rmaplab.mm.abi import (
    EACCES,
    EINVAL,
    ENOMEM,
    PROT_EXEC,
    PROT_GROWSDOWN,
    PROT_GROWSUP,
    PROT_READ,
    PROT_SEM,
    PROT_WRITE,
)
from rmaplab.mm.gup import populate_vma
from rmaplab.mm.huge_memory import batch
from rmaplab.mm.locking import start_write, write_unlock
from rmaplab.mm.merge import attributes_of, modify
from rmaplab.mm.mmap import page_align
from rmaplab.mm.pagetable import (
    PTE_ANON,
    PTE_DIRTY,
    PTE_EXCLUSIVE,
    PTE_SOFT_CLEAN,
    PTE_WRITE,
    PTE_YOUNG,
    Leaf,
)
from rmaplab.mm.system import System
from rmaplab.mm.vma import (
    MM,
    PAGE_MASK,
    VM_ACCESS_FLAGS,
    VM_ACCOUNT,
    VM_GROWSDOWN,
    VM_HUGETLB,
    VM_LOCKED,
    VM_NORESERVE,
    VM_SHARED,
    VM_SOFTDIRTY,
    VM_WRITE,
    VMA,
)


def mprotect(system: System, mm: MM, start: int, length: int, prot: int) -> int:
    """mprotect(2)."""
    grows = prot & (PROT_GROWSDOWN | PROT_GROWSUP)
    prot &= ~(PROT_GROWSDOWN | PROT_GROWSUP)
    if grows == PROT_GROWSDOWN | PROT_GROWSUP:
        return -EINVAL
    if start & ~PAGE_MASK:
        return -EINVAL
    if length == 0:
        return 0
    end = start + page_align(length)
    if end >= 1 << 64:
        return -ENOMEM
    if prot & ~(PROT_READ | PROT_WRITE | PROT_EXEC | PROT_SEM):
        return -EINVAL
    mm.mmap_lock.down_write()
    error = _mprotect_locked(system, mm, start, end, prot & VM_ACCESS_FLAGS, grows)
    write_unlock(mm)
    return error


def _mprotect_locked(system: System, mm: MM, start: int, end: int, prot: int, grows: int) -> int:
    vmas = mm.tree.overlapping(start, end)
    if not vmas:
        return -ENOMEM
    first = vmas[0]
    if grows & PROT_GROWSDOWN:
        if not first.flags & VM_GROWSDOWN:
            return -EINVAL
        start = first.start
    else:
        if first.start > start:
            return -ENOMEM
        if grows & PROT_GROWSUP:
            return -EINVAL
    at = start
    while at < end:
        vma = mm.tree.at(at)
        if vma is None:
            return -ENOMEM
        flags = prot | (vma.flags & ~VM_ACCESS_FLAGS)
        if prot & ~(flags >> 4) & VM_ACCESS_FLAGS:
            return -EACCES
        stop = min(vma.end, end)
        result = _protect_range(system, vma, at, stop, flags)
        if result < 0:
            return result
        at = result if result > stop else stop
    return 0


def _protect_range(system: System, vma: VMA, start: int, end: int, flags: int) -> int:
    """mprotect_fixup(): where the VMA that holds the range now ends, or a negative errno."""
    old = vma.flags
    if flags == old:
        return vma.end
    if flags & VM_WRITE:
        if not old & (VM_ACCOUNT | VM_WRITE | VM_HUGETLB | VM_SHARED | VM_NORESERVE):
            flags |= VM_ACCOUNT
    elif old & VM_ACCOUNT and vma.file is None and not vma.prepared and system.profile.unaccount_unprepared:
        flags &= ~VM_ACCOUNT
    new = attributes_of(vma)
    new.flags = flags
    changed = modify(system, vma, start, end, new)
    if isinstance(changed, int):
        return changed
    start_write(changed)
    changed.flags = new.flags
    change_protection(system, changed, start, end)
    if old & (VM_WRITE | VM_SHARED | VM_LOCKED) == VM_LOCKED and flags & VM_WRITE:
        populate_vma(system, changed, start, end)
    return changed.end


def change_protection(system: System, vma: VMA, start: int, end: int) -> None:
    """Make the entries of [start, end) follow the flags of `vma` (change_protection())."""
    if vma.flags & VM_SHARED:
        writable = 0
    else:
        writable = PTE_EXCLUSIVE if vma.flags & VM_WRITE else 0
    page_table = vma.mm.page_table
    protected = 0
    for number in page_table.numbers(start, end):
        _, first, last = page_table.part(number, start, end)
        leaf = page_table.leaves.get(number)
        if leaf is None:
            continue
        leaf.lock.lock()
        entries = leaf.v[first:last]
        used = int(np.count_nonzero(entries))
        system.entries_protected.count += used
        protected += used
        if system.nr_large and system.profile.batches:
            _merge_dirty(system, leaf, first, last)
        # pte_modify() takes the right to write from all; can_change_pte_writable() gives it back to some: a write to
        # an exclusive page would reuse it anyway.
        entries &= ~PTE_WRITE
        if writable and (system.profile.huge_writable or not leaf.huge):
            all_of = PTE_ANON | PTE_EXCLUSIVE | (0 if system.profile.clean_writable else PTE_DIRTY)
            none_of = 0 if vma.flags & VM_SOFTDIRTY else PTE_SOFT_CLEAN
            entries[(entries & (all_of | none_of)) == all_of] |= PTE_WRITE
        leaf.lock.unlock()
    if protected:
        system.flush_tlb(vma.mm)


def _merge_dirty(system: System, leaf: Leaf, first: int, last: int) -> None:
    """Of entries of a large folio that are handled as one, all are dirty if one is (modify_prot_start_ptes())."""
    i = first
    while i < last:
        run = batch(system, leaf, i, last, PTE_WRITE | PTE_SOFT_CLEAN) if leaf.m[i] & PTE_ANON else 1
        for flag in (PTE_DIRTY, PTE_YOUNG):
            if run > 1 and (leaf.v[i : i + run] & flag).any():
                leaf.v[i : i + run] |= flag
        i += run
