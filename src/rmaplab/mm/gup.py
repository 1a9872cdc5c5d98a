# SPDX-License-Identifier: GPL-2.0-or-later
"""Faulting a range in without touching it.

Models mm/gup.c: mm_populate(), populate_vma_page_range(), faultin_page_range(); and madvise_populate() of mm/madvise.c.

Locking: mmap_lock for reading.  mprotect() holds it for writing already, and populates a VMA that it makes writable.
"""

from __future__ import annotations

from rmaplab.mm import memory
from rmaplab.mm.abi import (
    EFAULT,
    EINVAL,
    ENOMEM,
)
from rmaplab.mm.system import System
from rmaplab.mm.vma import (
    MM,
    PAGE_SHIFT,
    VM_ACCESS_FLAGS,
    VM_IO,
    VM_LOCKED,
    VM_LOCKONFAULT,
    VM_PFNMAP,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    VMA,
)


def populate(system: System, mm: MM, start: int, end: int, ignore_errors: bool = True) -> int:
    """Fault [start, end) in (mm_populate()); unless `ignore_errors`, as far as it goes (__mm_populate())."""
    if start >= end:
        return 0
    error = 0
    mm.mmap_lock.down_read()
    for vma in mm.tree.overlapping(start, end):
        if vma.flags & (VM_IO | VM_PFNMAP):
            continue  # there are no struct pages; what else is VM_SPECIAL has some
        error = populate_vma(system, vma, max(start, vma.start), min(end, vma.end))
        if error and not ignore_errors:
            break
        error = 0
    mm.mmap_lock.up_read()
    return error


def populate_vma(system: System, vma: VMA, start: int, end: int) -> int:
    """The part of it that lies in one VMA (populate_vma_page_range()).  The caller has mmap_lock, and none of the
    faults takes the VMA's."""
    if vma.flags & VM_LOCKED and vma.flags & VM_LOCKONFAULT:
        return 0
    if not vma.flags & VM_ACCESS_FLAGS:
        return -EFAULT
    write = vma.flags & (VM_WRITE | VM_SHARED) == VM_WRITE
    return memory.fault_vma(system, vma, start, (end - start) >> PAGE_SHIFT, write)


def populate_advised(system: System, mm: MM, start: int, end: int, write: bool) -> int:
    """madvise_populate(): like faults, but without dirtying or signals.  The caller has mmap_lock for reading."""
    at = start
    while at < end:
        vma = mm.tree.at(at)
        if vma is None:
            return -ENOMEM
        if vma.flags & (VM_IO | VM_PFNMAP):
            return -EINVAL
        if write:
            if not vma.flags & VM_WRITE:
                return -EINVAL
        elif not vma.flags & VM_READ:
            return -EINVAL
        stop = min(vma.end, end)
        error = memory.fault_vma(system, vma, at, (stop - at) >> PAGE_SHIFT, write)
        if error:
            return error
        at = stop
    return 0
