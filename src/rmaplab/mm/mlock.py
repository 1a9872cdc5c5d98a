# SPDX-License-Identifier: GPL-2.0-or-later
"""mlock, mlock2, munlock, mlockall, munlockall: which pages stay in memory.

Models mm/mlock.c: do_mlock(), apply_vma_lock_flags(), apply_mlockall_flags(), mlock_fixup().

Locking: mmap_lock for writing; the lock of each VMA that changes.
"""

from __future__ import annotations

from typing import Final

from rmaplab.mm.abi import (
    EFAULT,
    EINVAL,
    ENOMEM,
    MCL_CURRENT,
    MCL_FUTURE,
    MCL_ONFAULT,
    MLOCK_ONFAULT,
)
from rmaplab.mm.gup import populate
from rmaplab.mm.locking import start_write, write_unlock
from rmaplab.mm.merge import attributes_of, modify
from rmaplab.mm.mmap import page_align
from rmaplab.mm.system import System
from rmaplab.mm.vma import (
    MM,
    PAGE_MASK,
    PAGE_SHIFT,
    TASK_SIZE,
    VM_DROPPABLE,
    VM_LOCKED,
    VM_LOCKONFAULT,
    VM_SPECIAL,
    VMA,
)

_LOCKED_MASK: Final = VM_LOCKED | VM_LOCKONFAULT
_ALL_BITS: Final = (1 << 64) - 1


def mlock(system: System, mm: MM, start: int, length: int, flags: int) -> int:
    """mlock2(2)."""
    if flags & ~MLOCK_ONFAULT:
        return -EINVAL
    system.mlocked = True
    vm_flags = VM_LOCKED | (VM_LOCKONFAULT if flags & MLOCK_ONFAULT else 0)
    start, end = _range(start, length)
    mm.mmap_lock.down_write()
    error = _apply_lock_flags(system, mm, start, end, vm_flags)
    write_unlock(mm)
    if error:
        return error
    error = populate(system, mm, start, end, ignore_errors=False)
    return -ENOMEM if error == -EFAULT else error


def munlock(system: System, mm: MM, start: int, length: int) -> int:
    """munlock(2)."""
    start, end = _range(start, length)
    mm.mmap_lock.down_write()
    error = _apply_lock_flags(system, mm, start, end, 0)
    write_unlock(mm)
    return error


def _range(start: int, length: int) -> tuple[int, int]:
    """The pages of [start, +length), by the arithmetic of an unsigned long: a length near its end comes to no pages."""
    length = page_align(length + (start & ~PAGE_MASK)) & _ALL_BITS
    start &= PAGE_MASK
    return start, (start + length) & _ALL_BITS


def mlockall(system: System, mm: MM, flags: int) -> int:
    """mlockall(2)."""
    if not flags or flags & ~(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) or flags == MCL_ONFAULT:
        return -EINVAL
    system.mlocked = True
    to_add = VM_LOCKED | (VM_LOCKONFAULT if flags & MCL_ONFAULT else 0)
    mm.mmap_lock.down_write()
    mm.def_flags &= ~_LOCKED_MASK
    if flags & MCL_FUTURE:
        mm.def_flags |= to_add
    if flags & MCL_CURRENT:
        _lock_all(system, mm, to_add)
    write_unlock(mm)
    if flags & MCL_CURRENT:
        populate(system, mm, 0, TASK_SIZE)
    return 0


def munlockall(system: System, mm: MM) -> int:
    """munlockall(2)."""
    mm.mmap_lock.down_write()
    mm.def_flags &= ~_LOCKED_MASK
    _lock_all(system, mm, 0)
    write_unlock(mm)
    return 0


def _lock_all(system: System, mm: MM, to_add: int) -> None:
    """apply_mlockall_flags(); an error leaves a VMA as it is."""
    at = 0
    vma = mm.tree.first_after(at)
    while vma is not None:
        result = _lock_range(system, vma, vma.start, vma.end, to_add)
        at = vma.end if result < 0 else result
        vma = mm.tree.first_after(at)


def _apply_lock_flags(system: System, mm: MM, start: int, end: int, vm_flags: int) -> int:
    if end < start:
        return -EINVAL
    at = start
    while at < end:
        vma = mm.tree.at(at)
        if vma is None:
            return -ENOMEM
        stop = min(vma.end, end)
        result = _lock_range(system, vma, at, stop, vm_flags)
        if result < 0:
            return result
        at = result if result > stop else stop
    return 0


def _lock_range(system: System, vma: VMA, start: int, end: int, to_add: int) -> int:
    """mlock_fixup(): where the VMA that holds the range now ends, or a negative errno."""
    old = vma.flags
    flags = old & ~_LOCKED_MASK | to_add
    if flags == old or old & VM_SPECIAL or vma.flags & VM_DROPPABLE:
        return vma.end
    new = attributes_of(vma)
    new.flags = flags
    changed = modify(system, vma, start, end, new)
    if isinstance(changed, int):
        return changed
    nr_pages = (end - start) >> PAGE_SHIFT
    if not flags & VM_LOCKED:
        changed.mm.locked_vm -= nr_pages
    elif not old & VM_LOCKED:
        changed.mm.locked_vm += nr_pages
    start_write(changed)
    changed.flags = new.flags
    return changed.end
