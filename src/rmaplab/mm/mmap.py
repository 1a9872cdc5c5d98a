# SPDX-License-Identifier: GPL-2.0-or-later
"""mmap, munmap, brk, and the growth of stacks.

Models mm/mmap.c (do_mmap(), mmap_region(), __get_unmapped_area(), brk, expand_downwards()) and the munmap
half of mm/vma.c (vms_gather_munmap_vmas(), vms_complete_munmap_vmas()).

Not modelled, because they affect neither geometry nor the reverse map: resource limits other than that of the
stack's size, memory commitment (the caller counts as privileged, and memory as plentiful), protection keys,
sealing, the rights with which a file was opened (a file may be mapped in every way).
"""

from __future__ import annotations

from typing import Final

from rmaplab.mm import memory
from rmaplab.mm.abi import (
    EEXIST,
    EINVAL,
    ENOMEM,
    EOPNOTSUPP,
    EOVERFLOW,
    EPERM,
    MAP_DROPPABLE,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_LOCKED,
    MAP_NONBLOCK,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MAP_STACK,
    MAP_TYPE,
    STACK_GUARD_GAP,
)
from rmaplab.mm.gup import populate
from rmaplab.mm.locking import start_write, write_downgrade, write_unlock
from rmaplab.mm.merge import Attributes, change_range, merge_new, split
from rmaplab.mm.system import System
from rmaplab.mm.vma import (
    MM,
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    TASK_SIZE,
    VM_ACCESS_FLAGS,
    VM_ACCOUNT,
    VM_DONTDUMP,
    VM_DROPPABLE,
    VM_GROWSDOWN,
    VM_LOCKED,
    VM_LOCKONFAULT,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_NOHUGEPAGE,
    VM_NORESERVE,
    VM_SHARED,
    VM_SOFTDIRTY,
    VM_SPECIAL,
    VM_WIPEONFORK,
    VM_WRITE,
    VMA,
    File,
)

PMD_SIZE: Final = 2 << 20
_MAY_ALL: Final = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
ULONG_MAX: Final = (1 << 64) - 1
_MAX_LFS_FILESIZE: Final = (1 << 63) - 1


def page_align(length: int) -> int:
    """Bytes, rounded up to whole pages (PAGE_ALIGN()); beyond 64 bits it does not wrap."""
    return (length + PAGE_SIZE - 1) & PAGE_MASK


def gap_start(vma: VMA) -> int:
    """Where the room that `vma` keeps below itself begins (vm_start_gap())."""
    if vma.flags & VM_GROWSDOWN:
        return max(vma.start - STACK_GUARD_GAP, 0)
    return vma.start


def mmap(
    system: System,
    mm: MM,
    addr: int,
    length: int,
    prot: int,
    flags: int,
    file: File | None,
    offset: int,
    at: int | None,
) -> int:
    """mmap(2).  Returns the address or a negative errno.

    `file` None means MAP_ANONYMOUS; `offset` is in bytes.  `at`, if given, is where the kernel placed the
    mapping in the history that is being replayed, and is taken where the kernel has the choice.
    """
    if offset & ~PAGE_MASK:
        return -EINVAL
    if length == 0:
        return -EINVAL
    if flags & MAP_FIXED_NOREPLACE:
        flags |= MAP_FIXED
    if not flags & MAP_FIXED:
        addr &= PAGE_MASK
        if 0 < addr < system.mmap_min_addr:
            addr = system.mmap_min_addr
    if length > TASK_SIZE and page_align(length) >> 64:  # it wraps
        return -ENOMEM
    length = page_align(length)
    pgoff = offset >> PAGE_SHIFT
    if len(mm.tree) > system.max_map_count:
        return -ENOMEM

    mm.mmap_lock.down_write()
    result = _map_locked(system, mm, addr, length, prot, flags, file, pgoff, at)
    # Asked to be locked; what cannot be, a droppable mapping, is populated all the same.
    populating = flags & (MAP_POPULATE | MAP_NONBLOCK) == MAP_POPULATE or flags & MAP_LOCKED or mm.def_flags & VM_LOCKED
    write_unlock(mm)
    if result >= 0 and populating:
        populate(system, mm, result, result + length)
    return result


def _map_locked(
    system: System,
    mm: MM,
    addr: int,
    length: int,
    prot: int,
    flags: int,
    file: File | None,
    pgoff: int,
    at: int | None,
) -> int:
    vm_flags = (prot & VM_ACCESS_FLAGS) | mm.def_flags | _MAY_ALL
    if flags & MAP_GROWSDOWN:
        vm_flags |= VM_GROWSDOWN
    if flags & MAP_LOCKED:
        system.mlocked = True
        vm_flags |= VM_LOCKED
    if flags & MAP_STACK and system.profile.stack_nohugepage:
        vm_flags |= VM_NOHUGEPAGE
    addr = _place(system, mm, addr, length, flags, file, at)
    if addr < 0:
        return addr
    if flags & MAP_FIXED_NOREPLACE and mm.tree.overlapping(addr, addr + length):
        return -EEXIST

    kind = flags & MAP_TYPE
    if file is not None:
        if not file.special and pgoff > (_MAX_LFS_FILESIZE - length) >> PAGE_SHIFT:
            return -EOVERFLOW  # file_mmap_ok()
        if kind == MAP_SHARED or kind == MAP_SHARED_VALIDATE:
            if kind == MAP_SHARED_VALIDATE and flags & MAP_FIXED_NOREPLACE:  # not in LEGACY_MAP_MASK
                return -EOPNOTSUPP
            vm_flags |= VM_SHARED | VM_MAYSHARE
        elif kind != MAP_PRIVATE:
            return -EINVAL
        if vm_flags & VM_GROWSDOWN:
            return -EINVAL
    elif kind == MAP_SHARED:
        if vm_flags & VM_GROWSDOWN:
            return -EINVAL
        pgoff = 0
        vm_flags |= VM_SHARED | VM_MAYSHARE
    elif kind == MAP_DROPPABLE or kind == MAP_PRIVATE:
        if kind == MAP_DROPPABLE:
            if not system.profile.droppable:
                return -EINVAL
            if flags & MAP_LOCKED or vm_flags & VM_GROWSDOWN:
                return -EINVAL
            vm_flags |= VM_DROPPABLE | VM_NORESERVE | VM_WIPEONFORK | VM_DONTDUMP
        pgoff = addr >> PAGE_SHIFT
    else:
        return -EINVAL
    if flags & MAP_NORESERVE:
        vm_flags |= VM_NORESERVE

    error = do_munmap(system, mm, addr, length)
    if error:
        return error
    if vm_flags & (VM_NORESERVE | VM_SHARED | VM_WRITE) == VM_WRITE:
        vm_flags |= VM_ACCOUNT
    _region(system, mm, addr, addr + length, vm_flags, file, pgoff)
    return addr


def _region(system: System, mm: MM, start: int, end: int, vm_flags: int, file: File | None, pgoff: int) -> None:
    """Map the empty range (mmap_region())."""
    nr_pages = (end - start) >> PAGE_SHIFT
    anon_pgoff = start >> PAGE_SHIFT if system.profile.anon_pgoff else pgoff
    vma = merge_new(system, mm, start, end, pgoff, anon_pgoff, Attributes(vm_flags, file))
    if vma is None and file is not None and file.special & ~vm_flags:
        # A driver's mmap handler changed the flags; with the new ones a merge may work.
        vm_flags |= file.special
        vma = merge_new(system, mm, start, end, pgoff, anon_pgoff, Attributes(vm_flags, file))
    if vma is None:
        if file is None and vm_flags & VM_SHARED:
            file = system.shared_memory()
        vma = system.new_vma(mm, start, end, pgoff, vm_flags, file)
        start_write(vma)
        system.tree_changes(mm, vma.start, vma.end)
        mm.tree.insert(vma)
    mm.total_vm += nr_pages
    if vma.flags & VM_LOCKED:
        if vma.flags & (VM_SPECIAL | VM_DROPPABLE):  # vma_supports_mlock()
            vma.flags &= ~(VM_LOCKED | VM_LOCKONFAULT)
        else:
            mm.locked_vm += nr_pages
    vma.flags |= VM_SOFTDIRTY


def _place(system: System, mm: MM, addr: int, length: int, flags: int, file: File | None, at: int | None) -> int:
    """__get_unmapped_area(): the address, or a negative errno."""
    if length > TASK_SIZE:
        return -ENOMEM
    if flags & MAP_FIXED:
        if addr > ULONG_MAX - 4095:
            return addr - (ULONG_MAX + 1)  # which looks like an error (IS_ERR_VALUE())
        if addr > TASK_SIZE - length:
            return -ENOMEM
        if addr & ~PAGE_MASK:
            return -EINVAL
        if addr < system.mmap_min_addr:
            return -EPERM
        return addr
    if at is not None:
        return at
    return unmapped_area(system, mm, addr, length, file, flags)


def unmapped_area(system: System, mm: MM, addr: int, length: int, file: File | None, flags: int) -> int:
    """Top-down placement with a hint (arch_get_unmapped_area_topdown(), thp_get_unmapped_area())."""
    if length > TASK_SIZE - system.mmap_min_addr:
        return -ENOMEM
    if addr:
        addr = page_align(addr)
        if addr <= TASK_SIZE - length:
            next = mm.tree.first_after(addr)
            if next is None or addr + length <= gap_start(next):
                return addr if addr >= system.mmap_min_addr else -EPERM  # security_mmap_addr(): mremap() rounds no hint
    guard = STACK_GUARD_GAP
    high = mm.mmap_base
    if system.profile.thp_placement and not addr and file is None and not flags & MAP_SHARED:
        if length % PMD_SIZE == 0:
            padded = mm.tree.highest_gap(length + PMD_SIZE, PAGE_SIZE, high, guard)
            if padded >= 0:
                below = -padded % PMD_SIZE
                return padded + (below if below else PMD_SIZE)
    found = mm.tree.highest_gap(length, PAGE_SIZE, high, guard)
    if found < system.mmap_min_addr:
        found = mm.tree.lowest_gap(length, page_align(TASK_SIZE // 3), TASK_SIZE, guard)
    if found < 0 or found > TASK_SIZE - length:
        return -ENOMEM
    return found


def munmap(system: System, mm: MM, addr: int, length: int) -> int:
    """munmap(2)."""
    if addr & ~PAGE_MASK or addr > TASK_SIZE or length > TASK_SIZE - addr:
        return -EINVAL
    length = page_align(length)
    if length == 0:
        return -EINVAL
    mm.mmap_lock.down_write()
    vmas = mm.tree.overlapping(addr, addr + length)
    if not vmas:
        write_unlock(mm)
        return 0
    error = unmap_locked(system, mm, addr, addr + length, vmas, True)
    if error:
        write_unlock(mm)
    else:
        mm.mmap_lock.up_read()
    return error


def do_munmap(system: System, mm: MM, addr: int, length: int) -> int:
    """Unmap whole pages, with mmap_lock held for writing (do_vmi_munmap())."""
    if addr > TASK_SIZE or length > TASK_SIZE - addr:
        return -EINVAL
    vmas = mm.tree.overlapping(addr, addr + length)
    return unmap_locked(system, mm, addr, addr + length, vmas, False) if vmas else 0


def unmap_locked(system: System, mm: MM, start: int, end: int, vmas: list[VMA], downgrade: bool) -> int:
    """Unmap [start, end), which `vmas` touch, with mmap_lock held for writing; with `downgrade` it is held
    for reading afterwards, unless there was an error."""
    first = vmas[0]
    if start > first.start:
        if end < first.end and len(mm.tree) >= system.max_map_count:
            return -ENOMEM
        split(system, first, start, True)
    last = vmas[-1]
    if end < last.end:
        split(system, last, end, False)
    nr_stores = 1  # one for the whole range (vms_clear_ptes() and vms_complete_munmap_vmas() come after it)
    for vma in vmas:
        start_write(vma)
        system.tree_changes(mm, vma.start, vma.end, nr_stores)
        nr_stores = 0
        mm.tree.remove(vma)
        system.vma_changes(vma)
        vma.detached = True
        nr_pages = vma.nr_pages
        mm.total_vm -= nr_pages
        if vma.flags & VM_LOCKED:
            mm.locked_vm -= nr_pages
    if downgrade:
        write_downgrade(mm)
    memory.unmap_region(system, mm, vmas, start, end)
    for vma in vmas:
        system.free_vma(vma)
    return 0


def brk(system: System, mm: MM, addr: int) -> int:
    """brk(2): the new end of the heap, or the old one if it cannot be changed."""
    mm.mmap_lock.down_write()
    old = mm.brk
    result = _brk_locked(system, mm, addr)
    locked = mm.def_flags & VM_LOCKED
    write_unlock(mm)
    if locked:
        populate(system, mm, page_align(old), page_align(result))
    return result


def _brk_locked(system: System, mm: MM, addr: int) -> int:
    old = mm.brk
    if addr < mm.start_brk:
        return old
    new_end = page_align(addr)
    old_end = page_align(old)
    if new_end == old_end:
        mm.brk = addr
        return addr
    if addr <= old:
        vmas = mm.tree.overlapping(new_end, old_end)
        if not vmas or unmap_locked(system, mm, new_end, old_end, vmas, False):
            return old
        mm.brk = addr
        return addr
    if addr >= TASK_SIZE:
        return old
    next = mm.tree.first_after(old_end)
    if next is not None and new_end + PAGE_SIZE > gap_start(next):
        return old
    if len(mm.tree) > system.max_map_count:
        return old
    flags = 0x3 | _MAY_ALL | VM_ACCOUNT | mm.def_flags
    pgoff = old_end >> PAGE_SHIFT
    attributes = Attributes(flags, None)
    vma = merge_new(system, mm, old_end, new_end, pgoff, pgoff, attributes, expand_only=True)
    if vma is None:
        vma = system.new_vma(mm, old_end, new_end, pgoff, flags, None)
        start_write(vma)
        system.tree_changes(mm, vma.start, vma.end)
        mm.tree.insert(vma)
    nr_pages = (new_end - old_end) >> PAGE_SHIFT
    mm.total_vm += nr_pages
    if flags & VM_LOCKED:
        mm.locked_vm += nr_pages
    vma.flags |= VM_SOFTDIRTY
    mm.brk = addr
    return addr


def expand_stack(system: System, mm: MM, addr: int) -> VMA | None:
    """Let the VMA above `addr` grow down to it, if it does that (expand_stack(), expand_downwards())."""
    vma = mm.tree.first_after(addr)
    if vma is None or not vma.flags & VM_GROWSDOWN:
        return None
    if grow_down(system, vma, addr & PAGE_MASK):
        return None
    return vma


def grow_down(system: System, vma: VMA, start: int) -> int:
    """expand_downwards(): 0 or a negative errno."""
    if start < system.mmap_min_addr:
        return -EPERM
    prev = vma.mm.tree.before(vma)
    if prev is not None and not prev.flags & VM_GROWSDOWN and prev.flags & VM_ACCESS_FLAGS:
        if start - prev.end < STACK_GUARD_GAP:
            return -ENOMEM
    grow = (vma.start - start) >> PAGE_SHIFT
    system.prepare(vma)
    if grow > vma.pgoff or vma.end - start > system.stack_limit:
        return -ENOMEM
    vma.mm.total_vm += grow
    if vma.flags & VM_LOCKED:
        vma.mm.locked_vm += grow
    # Not even a locked stack is populated by this: only find_extend_vma_locked() does, for get_user_pages().
    change_range(system, vma, start, vma.end, -grow)
    return 0


