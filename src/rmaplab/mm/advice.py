# SPDX-License-Identifier: GPL-2.0-or-later
"""System calls that change what a range may do: mprotect, mlock, madvise, and naming.

Models mm/mprotect.c (do_mprotect_pkey(), mprotect_fixup()), mm/mlock.c (mlock_fixup() and its callers),
mm/madvise.c (do_madvise(), madvise_vma_behavior()) and prctl(PR_SET_VMA_ANON_NAME).  All of them come down
to merge.modify(), range by range, and then to what the new flags mean for the entries.
"""

from __future__ import annotations

from typing import Final

from rmaplab.mm import ksm, memory, reclaim
from rmaplab.mm.abi import (
    EACCES,
    EAGAIN,
    EFAULT,
    EINVAL,
    ENOMEM,
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DODUMP,
    MADV_DOFORK,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_HUGEPAGE,
    MADV_KEEPONFORK,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    MADV_NORMAL,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_RANDOM,
    MADV_REMOVE,
    MADV_SEQUENTIAL,
    MADV_UNMERGEABLE,
    MADV_WILLNEED,
    MADV_WIPEONFORK,
    MCL_CURRENT,
    MCL_FUTURE,
    MCL_ONFAULT,
    MLOCK_ONFAULT,
    PROT_EXEC,
    PROT_GROWSDOWN,
    PROT_GROWSUP,
    PROT_READ,
    PROT_SEM,
    PROT_WRITE,
)
from rmaplab.mm.locking import start_write, write_unlock
from rmaplab.mm.merge import Attributes, attributes_of, modify
from rmaplab.mm.mmap import page_align, populate
from rmaplab.mm.system import System
from rmaplab.mm.vma import (
    MM,
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    TASK_SIZE,
    VM_ACCESS_FLAGS,
    VM_ACCOUNT,
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_DROPPABLE,
    VM_GROWSDOWN,
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_IO,
    VM_LOCKED,
    VM_LOCKONFAULT,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_MERGEABLE,
    VM_NOHUGEPAGE,
    VM_NORESERVE,
    VM_PFNMAP,
    VM_RAND_READ,
    VM_READ,
    VM_SEQ_READ,
    VM_SHARED,
    VM_SPECIAL,
    VM_WIPEONFORK,
    VM_WRITE,
    VMA,
)

_LOCKED_MASK: Final = VM_LOCKED | VM_LOCKONFAULT


# mprotect


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
    changed.flags = flags
    memory.change_protection(system, changed, start, end)
    if old & (VM_WRITE | VM_SHARED | VM_LOCKED) == VM_LOCKED and flags & VM_WRITE:
        populate(system, changed.mm, start, end)
    return changed.end


# mlock


def mlock(system: System, mm: MM, start: int, length: int, flags: int) -> int:
    """mlock2(2)."""
    if flags & ~MLOCK_ONFAULT:
        return -EINVAL
    system.mlocked = True
    vm_flags = VM_LOCKED | (VM_LOCKONFAULT if flags & MLOCK_ONFAULT else 0)
    length = page_align(length + (start & ~PAGE_MASK))
    start &= PAGE_MASK
    mm.mmap_lock.down_write()
    error = _apply_lock_flags(system, mm, start, start + length, vm_flags)
    write_unlock(mm)
    if error:
        return error
    error = populate(system, mm, start, start + length)
    return -ENOMEM if error == -EFAULT else error


def munlock(system: System, mm: MM, start: int, length: int) -> int:
    """munlock(2)."""
    length = page_align(length + (start & ~PAGE_MASK))
    start &= PAGE_MASK
    mm.mmap_lock.down_write()
    error = _apply_lock_flags(system, mm, start, start + length, 0)
    write_unlock(mm)
    return error


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
        for vma in mm.tree.to_list():
            populate(system, mm, vma.start, vma.end)
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
    if end >= 1 << 64:
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
    changed.flags = flags
    return changed.end


# madvise

# What an advice adds to the flags and takes from them.
_FLAG_ADVICE: Final[dict[int, tuple[int, int]]] = {
    MADV_NORMAL: (0, VM_RAND_READ | VM_SEQ_READ),
    MADV_SEQUENTIAL: (VM_SEQ_READ, VM_RAND_READ),
    MADV_RANDOM: (VM_RAND_READ, VM_SEQ_READ),
    MADV_DONTFORK: (VM_DONTCOPY, 0),
    MADV_DOFORK: (0, VM_DONTCOPY),
    MADV_WIPEONFORK: (VM_WIPEONFORK, 0),
    MADV_KEEPONFORK: (0, VM_WIPEONFORK),
    MADV_DONTDUMP: (VM_DONTDUMP, 0),
    MADV_DODUMP: (0, VM_DONTDUMP),
    MADV_MERGEABLE: (VM_MERGEABLE, 0),
    MADV_UNMERGEABLE: (0, VM_MERGEABLE),
    MADV_HUGEPAGE: (VM_HUGEPAGE, VM_NOHUGEPAGE),
    MADV_NOHUGEPAGE: (VM_NOHUGEPAGE, VM_HUGEPAGE),
}
_RANGE_ADVICE: Final = (
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_PAGEOUT,
    MADV_COLD,
    MADV_WILLNEED,
    MADV_REMOVE,
    MADV_COLLAPSE,
)
# vma_ksm_compatible()
_NOT_MERGEABLE: Final = VM_SHARED | VM_MAYSHARE | VM_SPECIAL | VM_HUGETLB | VM_DROPPABLE


def madvise(system: System, mm: MM, start: int, length: int, advice: int) -> int:
    """madvise(2)."""
    flag_advice = advice in _FLAG_ADVICE
    populating = advice == MADV_POPULATE_READ or advice == MADV_POPULATE_WRITE
    guarding = advice == MADV_GUARD_INSTALL or advice == MADV_GUARD_REMOVE
    if guarding and not system.profile.guard_regions:
        return -EINVAL
    if not flag_advice and not populating and not guarding and advice not in _RANGE_ADVICE:
        return -EINVAL
    if start & ~PAGE_MASK:
        return -EINVAL
    if length > (1 << 64) - PAGE_SIZE:
        return -EINVAL
    end = start + page_align(length)
    if end >= 1 << 64:
        return -EINVAL
    if end == start:
        return 0
    if populating and not system.profile.populates_past_holes:
        return _populate_advised(system, mm, start, end, advice == MADV_POPULATE_WRITE)
    if flag_advice:
        mm.mmap_lock.down_write()
    else:
        mm.mmap_lock.down_read()
    error = _walk_vmas(system, mm, start, end, advice)
    if flag_advice:
        write_unlock(mm)
    else:
        mm.mmap_lock.up_read()
    return error


def _walk_vmas(system: System, mm: MM, start: int, end: int, advice: int) -> int:
    """Apply the advice VMA by VMA; holes are an error, but only in the end (madvise_walk_vmas())."""
    unmapped = 0
    at = start
    while at < end:
        vma = mm.tree.first_after(at)
        if vma is None or vma.start >= end:
            return -ENOMEM
        if at < vma.start:
            unmapped = -ENOMEM
            at = vma.start
        stop = min(vma.end, end)
        if advice in _FLAG_ADVICE:
            result = _advise_flags(system, vma, at, stop, advice)
        else:
            result = _advise_range(system, vma, at, stop, advice)
        if result < 0:
            return result
        at = result if result > stop else stop
    return unmapped


def _advise_flags(system: System, vma: VMA, start: int, end: int, advice: int) -> int:
    """Where the VMA that holds the range now ends, or a negative errno."""
    add, take = _FLAG_ADVICE[advice]
    flags = vma.flags
    if advice == MADV_DOFORK and flags & VM_IO:
        return -EINVAL
    if advice == MADV_WIPEONFORK and (vma.file is not None or flags & VM_SHARED):
        return -EINVAL
    if advice == MADV_KEEPONFORK and flags & VM_DROPPABLE:
        return -EINVAL
    if advice == MADV_DODUMP and flags & (VM_SPECIAL | VM_DROPPABLE):
        return -EINVAL
    if advice == MADV_MERGEABLE and flags & (_NOT_MERGEABLE | VM_MERGEABLE):
        return vma.end
    if advice == MADV_UNMERGEABLE:
        if not flags & VM_MERGEABLE:
            return vma.end
        ksm.unmerge_range(system, vma, start, end)
    new = attributes_of(vma)
    new.flags = flags & ~take | add
    return _set_attributes(system, vma, start, end, new)


def _set_attributes(system: System, vma: VMA, start: int, end: int, new: Attributes) -> int:
    """madvise_update_vma()"""
    if new.flags == vma.flags and new.name == vma.name:
        return vma.end
    changed = modify(system, vma, start, end, new)
    if isinstance(changed, int):
        return -EAGAIN if changed == -ENOMEM else changed
    start_write(changed)
    changed.flags = new.flags
    changed.name = new.name
    return changed.end


def _advise_range(system: System, vma: VMA, start: int, end: int, advice: int) -> int:
    """Advice about pages; returns `end` or a negative errno."""
    mm = vma.mm
    if advice == MADV_DONTNEED or advice == MADV_DONTNEED_LOCKED or advice == MADV_FREE:
        forbidden = VM_PFNMAP if advice == MADV_DONTNEED_LOCKED else VM_LOCKED | VM_PFNMAP
        if vma.flags & forbidden:
            return -EINVAL
        if advice == MADV_FREE:
            if vma.file is not None or vma.flags & VM_SHARED:
                return -EINVAL
            memory.mark_lazyfree(system, mm, start, end)
        else:
            memory.zap_range(system, mm, start, end)
    elif advice == MADV_PAGEOUT:
        if vma.flags & (VM_LOCKED | VM_PFNMAP | VM_HUGETLB):
            return -EINVAL
        memory.split_cut(system, mm, start, end)
        reclaim.page_out(system, mm, start, end)
    elif advice == MADV_WILLNEED:
        if vma.file is None:
            memory.read_ahead(system, mm, start, end)
    elif advice == MADV_COLD:
        if vma.flags & (VM_LOCKED | VM_PFNMAP | VM_HUGETLB):
            return -EINVAL
        memory.split_cut(system, mm, start, end)
    elif advice == MADV_POPULATE_READ or advice == MADV_POPULATE_WRITE:
        error = _populate_advised(system, mm, start, end, advice == MADV_POPULATE_WRITE)
        if error:
            return error
    elif advice == MADV_GUARD_INSTALL:
        # The guard markers themselves are not modelled: what they cover is empty, and touching it works.
        if vma.flags & (VM_LOCKED | VM_SPECIAL):
            return -EINVAL
        if not vma.flags & VM_SHARED:
            system.prepare(vma)
        memory.zap_range(system, mm, start, end)
    elif advice == MADV_REMOVE:
        if vma.flags & VM_LOCKED or vma.file is None:
            return -EINVAL
        if vma.flags & (VM_SHARED | VM_MAYWRITE) != VM_SHARED | VM_MAYWRITE:
            return -EACCES
    return end


def _populate_advised(system: System, mm: MM, start: int, end: int, write: bool) -> int:
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


def set_name(system: System, mm: MM, start: int, length: int, name: str) -> int:
    """prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME); "" takes a name away."""
    if start & ~PAGE_MASK:
        return -EINVAL
    end = start + page_align(length)
    if end > TASK_SIZE:
        return -EINVAL
    mm.mmap_lock.down_write()
    error = 0
    at = start
    while at < end:
        vma = mm.tree.first_after(at)
        if vma is None or vma.start >= end:
            error = -ENOMEM
            break
        if at < vma.start:
            error = -ENOMEM
            at = vma.start
        stop = min(vma.end, end)
        if vma.file is not None:
            error = -EINVAL
            break
        new = attributes_of(vma)
        new.name = name
        result = _set_attributes(system, vma, at, stop, new)
        if result < 0:
            error = result
            break
        at = result if result > stop else stop
    write_unlock(mm)
    return error
