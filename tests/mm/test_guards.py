# SPDX-License-Identifier: GPL-2.0-or-later
"""Guard regions: markers in page tables that last until they are removed or unmapped (mm/madvise.c)."""

from __future__ import annotations

import pytest

from mm.space import RW, R, Space, at, begin
from rmaplab.mm.abi import (
    EFAULT,
    EINVAL,
    ENOMEM,
    MADV_DONTNEED,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MAP_FIXED,
    MAP_PRIVATE,
)
from rmaplab.mm.pagetable import PTE_GUARD
from rmaplab.mm.vma import PAGE_SHIFT, VM_DONTEXPAND, VM_IO, VM_MAYBE_GUARD, VM_MIXEDMAP, VM_PFNMAP, File


def guarded(space: Space, pid: int = 1) -> list[int]:
    """The pages that a marker guards."""
    table = space.machine.mm_of(pid).page_table
    return [page for page in range(32) if table.get(at(page)) & PTE_GUARD]


def a_guarded_space() -> Space:
    space = begin("7.3")
    space.mmap(8, 0)
    space.write(0, 8)
    assert space.madvise(2, 2, MADV_GUARD_INSTALL) == 0
    return space


def test_a_guard_takes_the_page_and_stops_who_touches_it() -> None:
    space = a_guarded_space()
    assert guarded(space) == [2, 3]
    assert space.machine.fault(space.mm, at(2), False) < 0
    assert space.machine.fault_range(space.mm, at(0), 8, True) == 2
    space.close()


@pytest.mark.parametrize("special", [VM_IO, VM_PFNMAP, VM_DONTEXPAND, VM_MIXEDMAP])
@pytest.mark.parametrize("advice", [MADV_GUARD_INSTALL, MADV_GUARD_REMOVE])
def test_a_drivers_mapping_has_no_guards(special: int, advice: int) -> None:
    """is_valid_guard_vma()"""
    space = begin("7.3")
    device = File(7, "device", special=special)
    assert space.machine.mmap(space.mm, at(0), 1 << PAGE_SHIFT, RW, MAP_PRIVATE | MAP_FIXED, device, 0) == at(0)
    assert space.madvise(0, 1, advice) == -EINVAL
    space.close()


def test_locked_memory_gets_no_guard_and_may_lose_one() -> None:
    """is_valid_guard_vma(): only the removal takes a VMA that is locked."""
    space = a_guarded_space()
    space.mlock(0, 2)
    assert space.madvise(0, 2, MADV_GUARD_INSTALL) == -EINVAL
    assert space.madvise(0, 2, MADV_GUARD_REMOVE) == 0
    space.close()


def test_a_guard_outlives_all_but_its_removal_and_munmap() -> None:
    space = a_guarded_space()
    space.madvise(0, 8, MADV_DONTNEED)
    space.mprotect(0, 8, R)
    space.mprotect(0, 8, RW)
    assert guarded(space) == [2, 3]
    space.munmap(3, 1)
    assert guarded(space) == [2]
    space.madvise(0, 3, MADV_GUARD_REMOVE)
    assert guarded(space) == []
    space.write(2)
    space.close()


def test_no_guard_is_moved_by_uffdio_move() -> None:
    """move_pages_ptes(): an entry that is neither a page nor swap nor a migration entry is nothing to move."""
    space = a_guarded_space()
    space.mmap(8, 16)
    assert space.uffd_move(16, 2, 1) == -EFAULT
    assert guarded(space) == [2, 3]
    space.close()


def test_a_guard_moves_and_is_inherited() -> None:
    space = a_guarded_space()
    space.fork()
    assert guarded(space, 2) == [2, 3]
    space.mremap(2, 2, to=20)
    assert guarded(space) == [20, 21]
    space.close()


def test_populating_goes_as_far_as_the_guard() -> None:
    space = a_guarded_space()
    space.madvise(0, 8, MADV_DONTNEED)
    assert space.madvise(0, 8, MADV_POPULATE_WRITE) == -EFAULT
    assert [space.entry(page) for page in (0, 1, 4)] == ["anon", "anon", ""]
    assert space.madvise(4, 4, MADV_POPULATE_READ) == 0
    assert space.mlock(0, 8) == -ENOMEM
    space.close()


def test_that_there_may_be_guards_is_united_in_a_merge() -> None:
    space = begin("7.3")
    space.mmap(2, 0)
    space.madvise(0, 1, MADV_GUARD_INSTALL)
    space.mmap(2, 2)
    vma = space.mm.tree.at(at(3))
    assert vma is not None and vma.flags & VM_MAYBE_GUARD and vma.end - vma.start == 4 << PAGE_SHIFT
    space.close()
