# SPDX-License-Identifier: GPL-2.0-or-later
"""mremap: grow and shrink in place, move, duplicate.

Models mm/mremap.c (mremap(), mremap_to(), move_vma(), vma_to_resize(), move_page_tables()) and copy_vma() of mm/vma.c.

A prepared VMA keeps its page offset when it moves; an anonymous one without pages gets a fresh one, which
lets it merge at its new place, even with itself.
"""

from __future__ import annotations

import numpy as np

from rmaplab.mm import huge_pmd, ksm
from rmaplab.mm.abi import (
    EFAULT,
    EINVAL,
    ENOMEM,
    EPERM,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
)
from rmaplab.mm.errors import InvariantError
from rmaplab.mm.gup import populate
from rmaplab.mm.locking import assert_write_locked, lock_leaf, lock_new_leaf, start_write, write_unlock
from rmaplab.mm.memory import chunk
from rmaplab.mm.merge import attributes_of, merge_new, split_checked
from rmaplab.mm.mmap import ULONG_MAX, do_munmap, page_align, unmap_locked, unmapped_area
from rmaplab.mm.pagetable import LEAF_ENTRIES, LEAF_SHIFT, LEAF_SIZE, PTE_SOFT_CLEAN, Leaf, PageTable
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.system import System
from rmaplab.mm.vma import (
    MM,
    PAGE_MASK,
    PAGE_SHIFT,
    TASK_SIZE,
    VM_DONTEXPAND,
    VM_LOCKED,
    VM_LOCKONFAULT,
    VM_MAYSHARE,
    VM_MERGEABLE,
    VM_PFNMAP,
    VM_SHARED,
    VMA,
)


def mremap(
    system: System, mm: MM, addr: int, old_len: int, new_len: int, flags: int, new_addr: int, at: int | None
) -> int:
    """mremap(2).  Returns the new address or a negative errno; `at` as in mmap(): it grows in place
    if that is `addr`, and nowhere else."""
    if flags & ~(MREMAP_FIXED | MREMAP_MAYMOVE | MREMAP_DONTUNMAP):
        return -EINVAL
    if flags & MREMAP_FIXED and not flags & MREMAP_MAYMOVE:
        return -EINVAL
    if flags & MREMAP_DONTUNMAP and not flags & MREMAP_MAYMOVE:
        return -EINVAL
    if addr & ~PAGE_MASK:
        return -EINVAL
    resized = old_len != new_len
    old_len = page_align(old_len) & ULONG_MAX
    new_len = page_align(new_len) & ULONG_MAX
    if system.profile.move_many:  # do_mremap() aligns the lengths before check_mremap_params() compares them
        resized = old_len != new_len
    if flags & MREMAP_DONTUNMAP and resized:
        return -EINVAL
    if new_len == 0:
        return -EINVAL
    if system.profile.move_many:
        # check_mremap_params() comes before the look for a VMA there.
        fixed = flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)
        if new_len > TASK_SIZE or (fixed and _check_target(addr, old_len, new_len, new_addr)):
            return -EINVAL
    mm.mmap_lock.down_write()
    if system.profile.remap_reserve and _exceeds(system, mm, 4 + (flags & MREMAP_DONTUNMAP != 0)):
        write_unlock(mm)
        return -ENOMEM
    result = _mremap_locked(system, mm, addr, old_len, new_len, flags, new_addr, at)
    vma = mm.tree.at(result) if result >= 0 and new_len > old_len else None
    locked = vma is not None and vma.flags & VM_LOCKED != 0
    write_unlock(mm)
    if locked:
        populate(system, mm, result + old_len, result + new_len)
    return result


def _mremap_locked(
    system: System, mm: MM, addr: int, old_len: int, new_len: int, flags: int, new_addr: int, at: int | None
) -> int:
    if system.profile.move_many and flags & MREMAP_FIXED and old_len == new_len:
        return _move_many(system, mm, addr, old_len, flags, new_addr)
    vma = mm.tree.at(addr)
    if vma is None:
        return -EFAULT
    if flags & (MREMAP_FIXED | MREMAP_DONTUNMAP):
        return _mremap_to(system, mm, addr, old_len, new_len, flags, new_addr, at)
    if old_len >= new_len:
        error = do_munmap(system, mm, addr + new_len, old_len - new_len) if old_len > new_len else 0
        return error or addr
    error = _check_resize(vma, addr, old_len, new_len, flags)
    if error:
        return error
    if old_len == vma.end - addr and at in (None, addr):
        end = vma.end + new_len - old_len
        if end <= TASK_SIZE and not mm.tree.overlapping(vma.end, end):
            return _expand(system, vma, addr, end)
    if not flags & MREMAP_MAYMOVE or at == addr:
        return -ENOMEM
    if at is None:
        map_flags = MAP_SHARED if vma.flags & VM_MAYSHARE else 0
        at = unmapped_area(system, mm, 0, new_len, vma.file, map_flags)
        if at < 0:
            return at
    return _move_vma(system, vma, addr, old_len, new_len, at, flags)


def _move_many(system: System, mm: MM, addr: int, length: int, flags: int, new_addr: int) -> int:
    """Move each VMA of a range, gaps kept (remap_move()); an error leaves moved what was moved."""
    at = addr
    seen = False
    end = addr + length
    while at < end or at == addr:
        vma = mm.tree.first_after(at)
        if vma is None or vma.start >= max(end, addr + 1):
            break
        if vma.start > addr and at == addr:
            return -EFAULT
        if not _may_be_one_of_many(vma) and (seen or vma.end < end):
            return -EFAULT
        seen = True
        start = max(at, vma.start)
        stop = min(end, vma.end)
        result = _mremap_to(system, mm, start, stop - start, stop - start, flags, new_addr + start - addr, None)
        if result < 0 or stop == end:
            return result if result < 0 else new_addr
        at = stop
    return new_addr if at > addr else -EFAULT


def _may_be_one_of_many(vma: VMA) -> bool:
    """vma_multi_allowed(): one that userfaultfd watches, or whose file looks for addresses itself, moves alone"""
    return not vma.uffd and (vma.file is None or not vma.file.searches)


def _exceeds(system: System, mm: MM, more: int) -> bool:
    """Would so many VMAs more be too many (check_map_count_against_split())?"""
    return len(mm.tree) + more > system.max_map_count


def _expand(system: System, vma: VMA, addr: int, end: int) -> int:
    """Grow where it is, taking in the next VMA if that fits (vma_merge_extend())."""
    start = vma.end
    pgoff = vma.pgoff + vma.nr_pages
    nr_pages = (end - start) >> PAGE_SHIFT
    anon_pgoff = vma.anon_pgoff + vma.nr_pages
    merged = merge_new(system, vma.mm, start, end, pgoff, anon_pgoff, attributes_of(vma), source=vma)
    if merged is None:
        return -ENOMEM
    vma.mm.total_vm += nr_pages
    if merged.flags & VM_LOCKED:
        vma.mm.locked_vm += nr_pages
    return addr


def _check_resize(vma: VMA, addr: int, old_len: int, new_len: int, flags: int) -> int:
    """vma_to_resize(): 0 or a negative errno."""
    if old_len == 0 and not vma.flags & (VM_SHARED | VM_MAYSHARE):
        return -EINVAL
    if flags & MREMAP_DONTUNMAP and vma.flags & (VM_DONTEXPAND | VM_PFNMAP):
        return -EINVAL
    if old_len > vma.end - addr:
        return -EFAULT
    if new_len == old_len:
        return 0
    pgoff = vma.pgoff + ((addr - vma.start) >> PAGE_SHIFT)
    if pgoff + (new_len >> PAGE_SHIFT) >= 1 << 64:
        return -EINVAL
    if vma.flags & (VM_DONTEXPAND | VM_PFNMAP):
        return -EFAULT
    return 0


def _check_target(addr: int, old_len: int, new_len: int, new_addr: int) -> int:
    """The new place is aligned, in the address space, and apart from the old one, whose end may wrap around."""
    if new_addr & ~PAGE_MASK or new_len > TASK_SIZE or new_addr > TASK_SIZE - new_len:
        return -EINVAL
    if (addr + old_len) & ULONG_MAX > new_addr and new_addr + new_len > addr:
        return -EINVAL
    return 0


def _mremap_to(
    system: System, mm: MM, addr: int, old_len: int, new_len: int, flags: int, new_addr: int, at: int | None
) -> int:
    error = _check_target(addr, old_len, new_len, new_addr)
    if error:
        return error
    if not system.profile.remap_reserve and _exceeds(system, mm, 6):
        return -ENOMEM
    if system.profile.move_many:
        # check_prep_vma() comes first there: what cannot be moved leaves its target mapped.
        vma = mm.tree.at(addr)
        if vma is None:
            return -EFAULT
        error = _check_resize(vma, addr, min(old_len, new_len), new_len, flags)
        if error:
            return error
    if flags & MREMAP_FIXED:
        if new_addr < system.mmap_min_addr:
            return -EPERM
        error = do_munmap(system, mm, new_addr, new_len)
        if error:
            return error
        if system.profile.move_many and mm.tree.at(addr) is None:  # the two overlap where addr + old_len wraps around
            return -EFAULT
    if old_len > new_len:
        error = do_munmap(system, mm, addr + new_len, old_len - new_len)
        if error:
            return error
        old_len = new_len
    vma = mm.tree.at(addr)
    if vma is None:
        return -EFAULT
    error = _check_resize(vma, addr, old_len, new_len, flags)
    if error:
        return error
    if not flags & MREMAP_FIXED:
        if at is None:
            map_flags = MAP_SHARED if vma.flags & VM_MAYSHARE else 0
            at = unmapped_area(system, mm, new_addr, new_len, vma.file, map_flags)
            if at < 0:
                return at
        new_addr = at
    return _move_vma(system, vma, addr, old_len, new_len, new_addr, flags)


def _move_vma(system: System, vma: VMA, old_addr: int, old_len: int, new_len: int, new_addr: int, flags: int) -> int:
    """Move [old_addr, +old_len) of `vma` to the empty [new_addr, +new_len) (move_vma())."""
    mm = vma.mm
    keep = flags & MREMAP_DONTUNMAP != 0
    splits_first = keep and vma.flags & VM_LOCKED != 0
    if _exceeds(system, mm, 2 + splits_first if system.profile.remap_reserve else 4):
        return -ENOMEM
    old_end = old_addr + old_len
    vm_flags = vma.flags
    if vm_flags & VM_MERGEABLE:
        # A KSM page is found by its address: none may move.
        ksm.unmerge_range(system, vma, old_addr, old_end)
    if splits_first and system.profile.dontunmap_apart:
        error = 0
        if vma.start != old_addr:
            error = split_checked(system, vma, old_addr, True)
        if not error and vma.end != old_end:
            error = split_checked(system, vma, old_end, False)
        if error:
            return error
    start_write(vma)

    new_vma, merged = _copy_vma(system, vma, old_addr, new_addr, new_len, keep)
    source = vma
    if vma.detached:
        source = new_vma  # an unprepared VMA merged with itself
    if new_vma.prepared:
        for design in system.designs:
            design.vma_moved(source, new_vma, old_addr, new_addr, old_len >> PAGE_SHIFT)
    move_page_tables(system, source, old_addr, new_vma, new_addr, old_len, merged)
    mm.total_vm += new_len >> PAGE_SHIFT

    if keep:
        source.flags &= ~(VM_LOCKED | VM_LOCKONFAULT)
        if source.start == old_addr and source.end == old_end:
            system.tell_removed(source)
            if system.profile.anon_pgoff:
                source.anon_pgoff = source.start >> PAGE_SHIFT
            if source.file is None and system.profile.dontunmap_apart:
                source.pgoff = source.anon_pgoff = source.start >> PAGE_SHIFT
        return new_addr

    # What is left of the source on either side keeps VM_ACCOUNT; Linux hides it during the unmapping
    # so that the moved part is not given back, which no merge can see.
    if old_len:
        vmas = mm.tree.overlapping(old_addr, old_end)
        if vmas:
            unmap_locked(system, mm, old_addr, old_end, vmas, False)
    if vm_flags & VM_LOCKED:
        mm.locked_vm += new_len >> PAGE_SHIFT
    return new_addr


def _copy_vma(
    system: System, vma: VMA, old_addr: int, addr: int, length: int, keep: bool
) -> tuple[VMA, bool]:
    """The VMA that covers [addr, +length) for pages of `vma`, and whether it was there before
    (copy_vma())."""
    distance = (old_addr - vma.start) >> PAGE_SHIFT
    pgoff = vma.pgoff + distance
    anon_pgoff = vma.anon_pgoff + distance
    not_with = None
    if not vma.prepared and system.profile.anon_pgoff:
        anon_pgoff = addr >> PAGE_SHIFT
    if vma.file is None and not vma.flags & VM_SHARED and not vma.prepared and system.profile.fresh_pgoff:
        pgoff = anon_pgoff = addr >> PAGE_SHIFT
        if keep and system.profile.dontunmap_apart:
            not_with = vma
    merged = merge_new(
        system, vma.mm, addr, addr + length, pgoff, anon_pgoff, attributes_of(vma), source=vma, copying=True,
        not_with=not_with,
    )  # fmt: skip
    if merged is not None:
        return merged, True
    new = system.copy_vma(vma.mm, vma, addr, addr + length, pgoff, anon_pgoff)
    if vma.prepared:
        for design in system.designs:
            design.vma_copied(vma, new)
        new.prepared = True
    start_write(new)
    system.tree_changes(vma.mm, new.start, new.end)
    vma.mm.tree.insert(new)
    return new, False


def move_page_tables(system: System, vma: VMA, old: int, new_vma: VMA, new: int, length: int, merged: bool) -> None:
    """Move the entries of `length` bytes at `old` to `new` (move_page_tables()).  `merged` says that `new_vma`
    was there before, so that a walk may come to it before it comes to `vma`.  The ranges may overlap if
    `new` is below `old` (an exec'd stack)."""
    if not (vma.start <= old and old + length <= vma.end and new_vma.start <= new and new + length <= new_vma.end):
        raise InvariantError(
            f"entries of {old:#x}-{old + length:#x} would move to {new:#x}, from {vma!r} to {new_vma!r}: no walk could"
            " find all of them meanwhile"
        )
    assert_write_locked(vma)
    assert_write_locked(new_vma)
    page_table = vma.mm.page_table
    step = chunk(system)
    locking: list[ReverseMap] = []
    if vma is not new_vma and new_vma.prepared:
        locking = [design for design in system.designs if design.need_move_locks(vma, new_vma, merged)]
    end = old + length
    if system.huge and _can_realign(system, vma, old, new_vma, new):
        old, new = old & -LEAF_SIZE, new & -LEAF_SIZE
    while old < end:
        stop = min(end, (old | (LEAF_SIZE - 1)) + 1, old + (new | (LEAF_SIZE - 1)) + 1 - new)
        leaf = page_table.leaves.get(old >> LEAF_SHIFT)
        if leaf is not None and system.huge and _move_leaf(system, vma, leaf, old, new, stop - old, locking):
            leaf = None
        if leaf is not None:
            if system.huge:
                page_table.leaf(new)  # pte_alloc(): there is no room for a folio of 2 MiB now, even if nothing moves
            first = (old >> PAGE_SHIFT) & (LEAF_ENTRIES - 1)
            count = (stop - old) >> PAGE_SHIFT
            if step:
                for i in leaf.present(first, first + count):
                    at = (i - first) << PAGE_SHIFT
                    _move_entries(system, page_table, old + at, new + at, 1, vma, locking)
            elif leaf.v[first : first + count].any():
                _move_entries(system, page_table, old, new, count, vma, locking)
        new += stop - old
        old = stop


def _can_realign(system: System, vma: VMA, old: int, new_vma: VMA, new: int) -> bool:
    """May the move begin at the boundaries of leaves below, so that the first leaf goes whole, since nothing else is
    mapped there (try_realign_addr())?  Where the source stays mapped, its leaf is gone then."""
    if not system.profile.realigns_moves or (old ^ new) & (LEAF_SIZE - 1) or old != vma.start or new != new_vma.start:
        return False
    tree = vma.mm.tree
    return not tree.overlapping(old & -LEAF_SIZE, old) and not tree.overlapping(new & -LEAF_SIZE, new)


def _move_leaf(
    system: System, vma: VMA, leaf: Leaf, old: int, new: int, length: int, locking: list[ReverseMap]
) -> bool:
    """Move a whole leaf, if that is what is to move (move_pgt_entry()); else a huge one is split.  Page tables move
    with the locks of the reverse map in any case (should_take_rmap_locks())."""
    moved = False
    if length == LEAF_SIZE:
        if vma.prepared and not leaf.huge:
            locking = system.designs
        for design in locking:
            design.move_lock(vma)
        moved = huge_pmd.move(system, vma.mm, old, new)
        for design in locking:
            design.move_unlock(vma)
    if leaf.huge and not moved:
        huge_pmd.split_at(system, vma.mm, old)
    return moved


def _move_entries(
    system: System, page_table: PageTable, old: int, new: int, count: int, vma: VMA, locking: list[ReverseMap]
) -> None:
    """Move `count` entries, all of one leaf and to one leaf (move_ptes())."""
    for design in locking:
        design.move_lock(vma)
    leaf = lock_leaf(page_table, old)
    if leaf is not None:
        system.flush_tlb(vma.mm)
        target = page_table.leaf(new)
        if target is not leaf:
            target = lock_new_leaf(page_table, new)
        first = (old >> PAGE_SHIFT) & (LEAF_ENTRIES - 1)
        new_first = (new >> PAGE_SHIFT) & (LEAF_ENTRIES - 1)
        entries = leaf.v[first : first + count] & ~PTE_SOFT_CLEAN  # move_soft_dirty_pte()
        used = int(np.count_nonzero(entries))
        system.entries_moved.count += used
        leaf.lock.assert_held()
        leaf.v[first : first + count] = 0
        leaf.used -= used
        target.lock.assert_held()
        target.v[new_first : new_first + count] = entries
        target.used += used
        for watcher in system.entry_watchers:
            watcher.entries_moved(vma.mm, old, new, entries)
        if target is not leaf:
            target.lock.unlock()
        leaf.lock.unlock()
    for design in locking:
        design.move_unlock(vma)
