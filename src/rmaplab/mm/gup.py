# SPDX-License-Identifier: GPL-2.0-or-later
"""Faulting a range in without touching it.

Models mm/gup.c: mm_populate(), populate_vma_page_range(), faultin_page_range(); and madvise_populate() of mm/madvise.c.
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
)


def populate(system: System, mm: MM, start: int, end: int) -> int:
    """Fault [start, end) in, as far as it goes (mm_populate(), populate_vma_page_range())."""
    for vma in mm.tree.overlapping(start, end):
        if vma.flags & (VM_IO | VM_PFNMAP):
            continue  # there are no struct pages; what else is VM_SPECIAL has some
        low = max(start, vma.start)
        high = min(end, vma.end)
        if vma.flags & VM_LOCKED and vma.flags & VM_LOCKONFAULT:
            continue
        write = vma.flags & (VM_WRITE | VM_SHARED) == VM_WRITE
        if not vma.flags & VM_ACCESS_FLAGS:
            return -EFAULT
        memory.fault_vma(system, vma, low, (high - low) >> PAGE_SHIFT, write)
    return 0


def populate_advised(system: System, mm: MM, start: int, end: int, write: bool) -> int:
    """madvise_populate(): like faults, but without dirtying or signals."""
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
        memory.fault_vma(system, vma, at, (stop - at) >> PAGE_SHIFT, write)
        at = stop
    return 0
