# SPDX-License-Identifier: GPL-2.0-or-later
"""Which VMAs merge and how one is split: the cases of mm/vma.c, one by one."""

import pytest

from mm.space import ANON, DISK, FILE, MEMORY, PAGE, RW, RX, N, R, Space, at, begin, do
from rmaplab.mm.abi import (
    MADV_DOFORK,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_MERGEABLE,
    MADV_WIPEONFORK,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_SHARED,
)
from rmaplab.mm.errors import InvariantError
from rmaplab.mm.merge import change_range
from rmaplab.mm.mremap import move_page_tables
from rmaplab.mm.vma import VM_ACCOUNT, VM_SOFTDIRTY
from rmaplab.trace.events import Event

# A new range between two VMAs (vma_merge_new_range())


def test_a_new_range_joins_both_neighbours(space: Space) -> None:
    space.mmap(4, 0)
    space.mmap(4, 8)
    space.mmap(4, 4)
    assert space.vmas() == "0-12 rw"


def test_a_new_range_joins_the_vma_below(space: Space) -> None:
    space.mmap(4, 0)
    space.mmap(4, 8, R)
    space.mmap(4, 4)
    assert space.vmas() == "0-8 rw, 8-12 r"


def test_a_new_range_joins_the_vma_above(space: Space) -> None:
    space.mmap(4, 0, R)
    space.mmap(4, 8)
    space.mmap(4, 4)
    assert space.vmas() == "0-4 r, 4-12 rw"


def test_a_new_range_between_strangers_stays_by_itself(space: Space) -> None:
    space.mmap(4, 0, R)
    space.mmap(4, 8, R)
    space.mmap(4, 4)
    assert space.vmas() == "0-4 r, 4-8 rw, 8-12 r"


def test_a_range_that_does_not_touch_stays_by_itself(space: Space) -> None:
    space.mmap(4, 0)
    space.mmap(4, 5)
    assert space.vmas() == "0-4 rw, 5-9 rw"


# A range whose attributes change (vma_merge_existing_range()): whole, its head, its tail, its middle


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize(
    ("below", "middle", "above", "first", "pages", "result"),
    [
        pytest.param(RW, R, RW, 4, 4, "0-12 rw", id="whole, joins both"),
        pytest.param(RW, R, RX, 4, 4, "0-8 rw, 8-12 rx", id="whole, joins below"),
        pytest.param(RX, R, RW, 4, 4, "0-4 rx, 4-12 rw", id="whole, joins above"),
        pytest.param(RX, R, RX, 4, 4, "0-4 rx, 4-8 rw, 8-12 rx", id="whole, joins none"),
        pytest.param(RW, R, RX, 4, 2, "0-6 rw, 6-8 r, 8-12 rx", id="head, joins below"),
        pytest.param(RX, R, RX, 4, 2, "0-4 rx, 4-6 rw, 6-8 r, 8-12 rx", id="head, joins none"),
        pytest.param(RX, R, RW, 6, 2, "0-4 rx, 4-6 r, 6-12 rw", id="tail, joins above"),
        pytest.param(RX, R, RX, 6, 2, "0-4 rx, 4-6 r, 6-8 rw, 8-12 rx", id="tail, joins none"),
        pytest.param(RW, R, RW, 5, 2, "0-4 rw, 4-5 r, 5-7 rw, 7-8 r, 8-12 rw", id="middle, joins none"),
    ],
)
def test_a_range_that_changes_its_rights(
    space: Space, below: int, middle: int, above: int, first: int, pages: int, result: str, prepared: bool
) -> None:
    space.mmap(12, 0)
    if prepared:
        space.write(0, 12)
    space.mprotect(0, 4, below)
    space.mprotect(8, 4, above)
    space.mprotect(4, 4, middle)
    space.mprotect(first, pages, RW)
    assert space.vmas() == result


def test_rights_that_span_vmas_merge_them_one_after_the_other(space: Space) -> None:
    for i, prot in enumerate((R, RW, RX, RW, R)):
        space.mmap(2, 2 * i, prot)
    space.mprotect(1, 8, RX)
    assert space.vmas() == "0-1 r, 1-9 rx, 9-10 r"
    space.mprotect(0, 10, RW)
    assert space.vmas() == "0-10 rw"


# What has to be equal


def test_files_merge_where_the_offset_goes_on(space: Space) -> None:
    space.mmap(2, 0, RW, FILE, DISK, 10)
    space.mmap(2, 2, RW, FILE, DISK, 12)
    space.mmap(2, 4, RW, FILE, DISK, 15)
    space.mmap(2, 6, RW, FILE, MEMORY, 17)
    assert space.vmas() == "0-4 rw, 4-6 rw, 6-8 rw"


def test_a_file_does_not_merge_with_anonymous_memory_or_with_a_shared_mapping(space: Space) -> None:
    space.mmap(2, 0, RW, FILE, DISK, 0)
    space.mmap(2, 2, RW, MAP_SHARED | MAP_FIXED, DISK, 2)
    space.mmap(2, 4)
    assert space.vmas() == "0-2 rw, 2-4 rw, 4-6 rw"


def test_shared_file_mappings_merge(space: Space) -> None:
    space.mmap(2, 0, RW, MAP_SHARED | MAP_FIXED, DISK, 0)
    space.mmap(2, 2, RW, MAP_SHARED | MAP_FIXED, DISK, 2)
    assert space.vmas() == "0-4 rw"


@pytest.mark.parametrize("advice", [MADV_DONTFORK, MADV_WIPEONFORK, MADV_DONTDUMP, MADV_MERGEABLE])
def test_an_advice_splits_and_keeps_apart(space: Space, advice: int) -> None:
    space.mmap(6, 0)
    space.madvise(2, 2, advice)
    assert space.vmas() == "0-2 rw, 2-4 rw, 4-6 rw"
    space.madvise(4, 2, advice)
    assert space.vmas() == "0-2 rw, 2-6 rw"
    space.mmap(2, 6)
    assert space.vmas() == "0-2 rw, 2-6 rw, 6-8 rw"


def test_an_advice_taken_back_merges(space: Space) -> None:
    space.mmap(6, 0)
    space.madvise(2, 2, MADV_DONTFORK)
    space.madvise(2, 2, MADV_DOFORK)
    assert space.vmas() == "0-6 rw"


def test_a_lock_splits_and_unlock_merges(space: Space) -> None:
    space.mmap(6, 0)
    space.mlock(2, 2)
    assert space.vmas() == "0-2 rw, 2-4 rw, 4-6 rw"
    space.munlock(2, 2)
    assert space.vmas() == ("0-2 rw, 2-4 rw, 4-6 rw" if space.kernel == "6.12" else "0-6 rw")


def test_a_stack_does_not_merge_with_what_does_not_grow(space: Space) -> None:
    space.mmap(2, 0)
    space.mmap(2, 2, RW, ANON | MAP_GROWSDOWN)
    assert space.vmas() == "0-2 rw, 2-4 rw"


def test_names_keep_apart(model: Space) -> None:
    model.mmap(4, 0)
    name = Event("name", 1, model.vma(0).start, 2 * 4096, file=1)
    assert do(model, name) == 0
    assert model.vmas() == "0-2 rw, 2-4 rw"
    name.file = 0
    do(model, name)
    assert model.vmas() == "0-4 rw"


def test_a_prepared_vma_that_moved_keeps_its_page_offset_and_merges_only_where_that_goes_on(space: Space) -> None:
    space.mmap(2, 0)
    space.write(0)
    space.mmap(2, 20)
    space.mremap(0, 2, to=22)
    assert space.pgoff(22) == 0
    assert space.vmas() == "20-22 rw, 22-24 rw"
    space.mremap(22, 2, to=0)
    space.mmap(2, 2)
    assert space.vmas() == "0-4 rw, 20-22 rw"


def test_an_unprepared_vma_that_moved_merges_with_its_new_neighbours(space: Space) -> None:
    space.mmap(2, 0)
    space.mmap(2, 20)
    space.mmap(2, 24)
    space.mremap(0, 2, to=22)
    assert space.vmas() == "20-26 rw"
    assert space.pgoff(22) == 22


# The reverse map has a say (is_mergeable_anon_vma())


def test_an_unprepared_range_merges_into_a_prepared_vma(space: Space) -> None:
    space.mmap(2, 4)
    space.write(4)
    space.mmap(2, 2)
    space.mmap(2, 6)
    assert space.vmas() == "2-8 rw"


def test_a_prepared_range_merges_into_an_unprepared_vma_since_6_16(space: Space) -> None:
    space.mmap(2, 2)
    space.write(2)
    space.mprotect(2, 2, R)
    space.mmap(2, 0)
    space.mprotect(2, 2, RW)
    assert space.vmas() == ("0-2 rw, 2-4 rw" if space.kernel == "6.12" else "0-4 rw")


def test_two_that_were_prepared_apart_stay_apart(space: Space) -> None:
    space.mmap(2, 0)
    space.write(0)
    space.mmap(2, 4)
    space.write(4)
    space.mmap(2, 2)
    assert space.vmas() == "0-4 rw, 4-6 rw"


def test_a_first_fault_beside_a_prepared_vma_makes_them_mergeable(space: Space) -> None:
    """__anon_vma_prepare() shares the neighbour's anon_vma with what mprotect() could make equal."""
    space.mmap(4, 0)
    space.mprotect(2, 2, N)
    space.write(0)
    space.mprotect(0, 2, R)
    space.mprotect(2, 2, RW)
    assert space.vmas() == "0-2 r, 2-4 rw"
    space.write(2)
    space.mprotect(0, 2, RW)
    assert space.vmas() == "0-4 rw"


def test_an_inherited_vma_takes_nothing_in(space: Space) -> None:
    space.mmap(2, 0)
    space.write(0)
    child = space.fork()
    child.mmap(2, 2)
    assert child.vmas() == "0-2 rw, 2-4 rw"
    space.mmap(2, 2)
    assert space.vmas() == "0-4 rw"


def test_an_inherited_vma_that_was_split_is_made_one_again(space: Space) -> None:
    space.mmap(6, 0)
    space.write(0)
    child = space.fork()
    child.mprotect(2, 2, R)
    assert child.vmas() == "0-2 rw, 2-4 r, 4-6 rw"
    child.mprotect(2, 2, RW)
    assert child.vmas() == "0-6 rw"


def test_an_inherited_vma_does_not_lend_its_anon_vma_to_a_neighbour(space: Space) -> None:
    space.mmap(2, 0)
    space.write(0)
    space.mmap(2, 2, R)
    child = space.fork()
    child.mprotect(2, 2, RW)
    child.write(2)
    child.mprotect(0, 2, R)
    child.mprotect(0, 2, RW)
    assert child.vmas() == "0-2 rw, 2-4 rw"


def test_the_6_1_rule_prefers_the_vma_above() -> None:
    """__mmap_region() of 6.1 looks above first, so that of two which cannot be one the upper one grows."""
    for name, result in (("6.1", "0-2 rw, 2-6 rw"), ("6.12", "0-4 rw, 4-6 rw")):
        space = begin(name)
        for page in (0, 4):
            space.mmap(2, page)
            space.write(page)
        space.mmap(2, 2)
        assert space.vmas() == result
        space.close()




# What cannot be


def test_a_vma_of_no_length_is_seen_at_once() -> None:
    model = begin()
    model.mmap(2, 0)
    vma = model.vma(0)
    with pytest.raises(InvariantError, match="would get the range"):
        change_range(model.machine, vma, vma.end, vma.end)


@pytest.mark.parametrize(("low", "high"), [(2, 0), (0, 2)])
def test_a_stack_that_moves_has_to_be_covered_from_the_new_place_to_the_old(low: int, high: int) -> None:
    """fs/exec.c setup_arg_pages(), relocate_vma_down(): until the entries have moved, the VMA has both ranges."""
    model = begin()
    model.mmap(4, 4)
    model.write(4, 4)
    vma = model.vma(4)
    change_range(model.machine, vma, at(low), at(8 - high))
    with pytest.raises(InvariantError, match="no walk could find all of them"):
        move_page_tables(model.machine, vma, at(4), vma, at(0), 4 * PAGE, False)


# Flags that stick


@pytest.mark.parametrize(("kernel", "dirty"), [("6.18", False), ("7.3", True)])
@pytest.mark.parametrize("changed", [0, 4])
def test_of_two_vmas_that_become_one_soft_dirty_sticks(kernel: str, dirty: bool, changed: int) -> None:
    """VM_SOFTDIRTY never kept VMAs apart; 7.3 unites it (VMA_STICKY_FLAGS, vma_merge_existing_range()), where the flags
    that the caller asked for won before."""
    space = begin(kernel)
    space.mmap(4, 0, R if changed == 0 else RW)
    space.mmap(4, 4, R if changed == 4 else RW)
    space.vma(changed).flags &= ~VM_SOFTDIRTY  # /proc/PID/clear_refs
    space.mprotect(changed, 4, RW)
    assert space.vmas() == "0-8 rw"
    assert (space.vma(0).flags & VM_SOFTDIRTY != 0) is dirty
    space.close()


def test_what_was_never_accounted_stays_so_without_the_right_to_write(space: Space) -> None:
    """mm/mprotect.c mprotect_fixup() accounts for private memory when it becomes writable.  Memory that was not, and of
    which the rights change, merges with such memory."""
    space.mmap(4, 0, R)
    space.mmap(4, 4, N)
    space.mprotect(0, 4, N)
    assert space.vmas() == "0-8"
    assert not space.vma(0).flags & VM_ACCOUNT
