# SPDX-License-Identifier: GPL-2.0-or-later
"""madvise: a program's advice about a range; and prctl(PR_SET_VMA_ANON_NAME), which takes the same path.

Models mm/madvise.c: do_madvise(), madvise_walk_vmas(), madvise_vma_behavior(), madvise_free_pte_range().

Locking: mmap_lock, for writing where the advice changes VMAs, else for reading; of advice that drops or guards pages of
one VMA, that VMA's lock alone.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from rmaplab.mm import ksm, vmscan
from rmaplab.mm.abi import (
    EACCES,
    EAGAIN,
    EBADF,
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
)
from rmaplab.mm.folio import (
    FOLIO_DIRTY,
    FOLIO_LAZYFREE,
)
from rmaplab.mm.gup import populate_advised
from rmaplab.mm.huge_memory import seems_shared, split_cut
from rmaplab.mm.locking import lock_leaf, lock_new_leaf, lock_of, start_write, write_unlock
from rmaplab.mm.memory import zap_at, zap_range
from rmaplab.mm.merge import Attributes, attributes_of, modify
from rmaplab.mm.mmap import PMD_SIZE, page_align
from rmaplab.mm.pagetable import (
    LEAF_ENTRIES,
    PTE_ANON,
    PTE_DIRTY,
    PTE_GUARD,
    PTE_SHIFT,
    PTE_SWAP,
    PTE_YOUNG,
    Leaf,
)
from rmaplab.mm.rmap_walk import unevictable
from rmaplab.mm.swap import read_ahead
from rmaplab.mm.system import System
from rmaplab.mm.vma import (
    MM,
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_DROPPABLE,
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_IO,
    VM_LOCKED,
    VM_MAYBE_GUARD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_MERGEABLE,
    VM_NOHUGEPAGE,
    VM_PFNMAP,
    VM_RAND_READ,
    VM_SEQ_READ,
    VM_SHARED,
    VM_SPECIAL,
    VM_WIPEONFORK,
    VMA,
)

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


_SET_NAME: Final = -1  # no advice, but prctl(PR_SET_VMA_ANON_NAME)
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


# Which a VMA's own lock is enough for (get_lock_mode())
_VMA_ADVICE: Final = (MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_FREE, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE)

# vma_ksm_compatible()
_NOT_MERGEABLE: Final = VM_SHARED | VM_MAYSHARE | VM_SPECIAL | VM_HUGETLB | VM_DROPPABLE


def _end_of(start: int, length: int) -> int:
    """Where the pages of a range end, or -EINVAL (is_valid_madvise())."""
    if start & ~PAGE_MASK:
        return -EINVAL
    end = start + page_align(length)
    return -EINVAL if end >> 64 else end  # it wraps


def madvise(system: System, mm: MM, start: int, length: int, advice: int) -> int:
    """madvise(2)."""
    flag_advice = advice in _FLAG_ADVICE
    populating = advice == MADV_POPULATE_READ or advice == MADV_POPULATE_WRITE
    guarding = advice == MADV_GUARD_INSTALL or advice == MADV_GUARD_REMOVE
    if guarding and not system.profile.guard_regions:
        return -EINVAL
    if not flag_advice and not populating and not guarding and advice not in _RANGE_ADVICE:
        return -EINVAL
    end = _end_of(start, length)
    if end < 0 or end == start:
        return min(end, 0)
    if flag_advice:
        mm.mmap_lock.down_write()
    else:
        if advice in _VMA_ADVICE and system.profile.madvise_locks_vma:
            vma = _lock_single(system, mm, start, end, advice)
            if vma is not None:
                error = _advise_range(system, vma, start, end, advice)
                lock_of(vma).up_read()
                return min(error, 0)
        mm.mmap_lock.down_read()
    if populating and not system.profile.populates_past_holes:
        error = populate_advised(system, mm, start, end, advice == MADV_POPULATE_WRITE)
    else:
        error = _walk_vmas(system, mm, start, end, advice)
    if flag_advice:
        write_unlock(mm)
    else:
        mm.mmap_lock.up_read()
    return error


def _lock_single(system: System, mm: MM, start: int, end: int, advice: int) -> VMA | None:
    """The VMA that the range lies in, locked, if its lock is enough (try_vma_read_lock()): nothing is to be prepared,
    and no userfaultfd told."""
    vma = system.lock_vma_under_rcu(mm, start)
    if vma is None:
        return None
    prepares = advice == MADV_GUARD_INSTALL and vma.file is None and not vma.prepared
    if end > vma.end or vma.uffd or prepares:
        lock_of(vma).up_read()
        return None
    return vma


def _walk_vmas(system: System, mm: MM, start: int, end: int, advice: int, name: str = "") -> int:
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
        if advice == _SET_NAME:
            result = _advise_name(system, vma, at, stop, name)
        elif advice in _FLAG_ADVICE:
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
    if advice == MADV_DOFORK and flags & (VM_SPECIAL if system.profile.dofork_special else VM_IO):
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
            mark_lazyfree(system, mm, start, end)
        else:
            zap_range(system, mm, start, end, reclaims=True)
    elif advice == MADV_PAGEOUT:
        if vma.flags & (VM_LOCKED | VM_PFNMAP | VM_HUGETLB):
            return -EINVAL
        vmscan.page_out(system, mm, start, end)
    elif advice == MADV_WILLNEED:
        if vma.file is None:
            read_ahead(system, mm, start, end)
    elif advice == MADV_COLD:
        if vma.flags & (VM_LOCKED | VM_PFNMAP | VM_HUGETLB):
            return -EINVAL
        split_cut(system, mm, start, end)
    elif advice == MADV_POPULATE_READ or advice == MADV_POPULATE_WRITE:
        error = populate_advised(system, mm, start, end, advice == MADV_POPULATE_WRITE)
        if error:
            return error
    elif advice == MADV_GUARD_INSTALL:
        if vma.flags & (VM_LOCKED | VM_SPECIAL | VM_HUGETLB):
            return -EINVAL
        _install_guards(system, vma, start, end)
    elif advice == MADV_GUARD_REMOVE:
        if vma.flags & (VM_SPECIAL | VM_HUGETLB):
            return -EINVAL
        _remove_guards(mm, start, end)
    elif advice == MADV_COLLAPSE:
        # Nothing is collapsed here; without room for a folio of 2 MiB, not by Linux either (thp_vma_suitable_order()).
        if (vma.end & -PMD_SIZE) - vma.start < PMD_SIZE:
            return -EINVAL
    elif advice == MADV_REMOVE:
        if vma.flags & VM_LOCKED or vma.file is None:
            return -EINVAL
        if vma.flags & (VM_SHARED | VM_MAYWRITE) != VM_SHARED | VM_MAYWRITE:
            return -EACCES
    return end


def _install_guards(system: System, vma: VMA, start: int, end: int) -> None:
    """madvise_guard_install()"""
    page_table = vma.mm.page_table
    system.guards = True
    if system.profile.sticky_flags:
        vma.flags |= VM_MAYBE_GUARD
    if not vma.flags & VM_SHARED and (vma.file is None or not system.profile.sticky_flags):
        system.prepare(vma)
    zap_range(system, vma.mm, start, end)
    for addr in range(start, end, PAGE_SIZE):
        i = addr >> PAGE_SHIFT & (LEAF_ENTRIES - 1)
        leaf = lock_new_leaf(page_table, addr)
        while leaf.m[i] and not leaf.m[i] & PTE_GUARD:  # a fault came in between
            leaf.lock.unlock()
            zap_at(system, vma.mm, addr)
            leaf = lock_new_leaf(page_table, addr)
        if not leaf.m[i]:
            leaf.lock.assert_held()
            leaf.m[i] = PTE_GUARD
            leaf.used += 1
        leaf.lock.unlock()


def _remove_guards(mm: MM, start: int, end: int) -> None:
    """madvise_guard_remove()"""
    for number in mm.page_table.numbers(start, end):
        base, first, last = mm.page_table.part(number, start, end)
        for i in mm.page_table.leaves[number].present(first, last):
            leaf = lock_leaf(mm.page_table, base + (i << PAGE_SHIFT))
            if leaf is None:
                continue
            if leaf.m[i] & PTE_GUARD:
                leaf.lock.assert_held()
                leaf.m[i] = 0
                leaf.used -= 1
            leaf.lock.unlock()


def set_name(system: System, mm: MM, start: int, length: int, name: str) -> int:
    """prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME); "" takes a name away (madvise_set_anon_name())."""
    end = _end_of(start, length)
    if end < 0 or end == start:
        return min(end, 0)
    mm.mmap_lock.down_write()
    error = _walk_vmas(system, mm, start, end, _SET_NAME, name)
    write_unlock(mm)
    return error


def _advise_name(system: System, vma: VMA, start: int, end: int, name: str) -> int:
    """Where the VMA that holds the range now ends, or a negative errno (madvise_vma_anon_name())."""
    if vma.file is not None and not vma.file.is_anonymous:
        return -EBADF
    new = attributes_of(vma)
    new.name = name
    return _set_attributes(system, vma, start, end, new)


def mark_lazyfree(system: System, mm: MM, start: int, end: int) -> None:
    """MADV_FREE: present pages may be dropped while they stay clean, swapped ones go at once
    (madvise_free_pte_range())."""
    cut = split_cut(system, mm, start, end, frees=True)
    for number in mm.page_table.numbers(start, end):
        leaf = mm.page_table.leaves.get(number)
        if leaf is None:
            continue
        base, first, last = mm.page_table.part(number, start, end)
        last = cut.stops.get(number, last)
        for i in leaf.present(first, last):
            if system.nr_large and _mark_large_lazyfree(system, leaf, i, last):
                continue
            _mark_lazyfree_at(system, mm, base + (i << PAGE_SHIFT))


def _mark_large_lazyfree(system: System, leaf: Leaf, first: int, last: int) -> bool:
    """Give up the large folio that entries of `leaf` from number `first` on map, if they are all before number `last`;
    what is cut has been split.  Whether they belong to a large folio whose first page is there."""
    folios = system.folios
    entry: int = leaf.m[first]
    head = entry >> PTE_SHIFT
    if not entry & PTE_ANON or folios.order.m[head] == 0 or folios.head.m[head] != head:
        return False
    nr_pages = folios.nr_pages(head)
    if leaf.huge and seems_shared(system, head):
        return True
    kept = unevictable(system, head)
    leaf.lock.lock()
    entries = leaf.v[first : min(last, first + nr_pages)]
    whole = len(entries) == nr_pages and bool(((entries & PTE_ANON) != 0).all())
    whole = whole and bool(((entries >> PTE_SHIFT) == np.arange(head, head + nr_pages)).all())
    if whole and _cleaned(system, head):
        if not kept:
            folios.set_flag(head, FOLIO_LAZYFREE)
        entries &= ~(PTE_DIRTY | PTE_YOUNG)
    leaf.lock.unlock()
    return True


def _mark_lazyfree_at(system: System, mm: MM, addr: int) -> None:
    folios = system.folios
    entry: int = mm.page_table.get(addr)
    kept = entry & PTE_ANON != 0 and system.folios.mapcount.m[entry >> PTE_SHIFT] > 1  # the caller's own is not locked
    kept = kept and unevictable(system, entry >> PTE_SHIFT)
    leaf = lock_leaf(mm.page_table, addr)
    if leaf is None:
        return
    i = (addr >> PAGE_SHIFT) & (LEAF_ENTRIES - 1)
    entry = leaf.m[i]
    pfn = entry >> PTE_SHIFT
    if entry & PTE_ANON and folios.order.m[pfn] == 0 and _cleaned(system, pfn):
        if not kept:
            folios.flags.m[pfn] |= FOLIO_LAZYFREE
        leaf.lock.assert_held()
        leaf.m[i] = entry & ~(PTE_DIRTY | PTE_YOUNG)
    leaf.lock.unlock()
    if entry & PTE_SWAP:
        zap_at(system, mm, addr)


def _cleaned(system: System, head: int) -> bool:
    """Give up what swap has of the folio, and that it is dirty, if nothing else maps it.  Whether it could be, or
    there was nothing to give up, so that nobody asked who maps it."""
    folios = system.folios
    if head not in system.slot_of and not folios.flags.m[head] & FOLIO_DIRTY:
        return True
    if not system.trylock_folio(head):
        return False
    clean = system.mapcount(head) == folios.nr_pages(head) and system.free_swap(head)
    if clean:
        folios.clear_flag(head, FOLIO_DIRTY)
    system.unlock_folio(head)
    return clean
