# SPDX-License-Identifier: GPL-2.0-or-later
"""mremap in all its variants."""

import pytest

from mm.space import ANON, DISK, FILE, MOVE, PAGE, RW, R, Space, at, begin, do
from rmaplab.mm.abi import (
    EFAULT,
    EINVAL,
    ENOMEM,
    EPERM,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
)
from rmaplab.mm.pagetable import PTE_EXCLUSIVE
from rmaplab.mm.vma import TASK_SIZE, VM_ACCOUNT, VM_IO, VM_LOCKED, VM_MIXEDMAP, File
from rmaplab.trace.events import Event

KEEP = MREMAP_DONTUNMAP


def entries(space: Space, first: int, pages: int) -> list[str]:
    return [space.entry(page) for page in range(first, first + pages)]


# In place


def test_the_same_length_changes_nothing(space: Space) -> None:
    space.mmap(4, 0)
    assert space.mremap(1, 2, 2) == 1
    assert space.vmas() == "0-4 rw"


def test_shrinking_unmaps_the_tail(space: Space) -> None:
    space.mmap(4, 0)
    space.write(0, 4)
    assert space.mremap(0, 4, 2) == 0
    assert space.vmas() == "0-2 rw"
    assert entries(space, 0, 4) == ["anon", "anon", "", ""]


def test_shrinking_may_unmap_more_than_the_vma(space: Space) -> None:
    space.mmap(2, 0)
    space.mmap(2, 2, R)
    assert space.mremap(0, 4, 1) == 0
    assert space.vmas() == "0-1 rw"


def test_growing_into_free_room(space: Space) -> None:
    space.mmap(2, 0)
    space.write(0, 2)
    assert space.mremap(0, 2, 5, flags=0) == 0
    assert space.vmas() == "0-5 rw"
    assert space.pgoff(4) == 4


def test_growing_up_to_a_like_vma_merges_with_it(space: Space) -> None:
    space.mmap(2, 0)
    space.mmap(2, 5)
    assert space.mremap(0, 2, 5, flags=0) == 0
    assert space.vmas() == "0-7 rw"


def test_only_the_end_of_a_vma_grows_in_place(space: Space) -> None:
    space.mmap(4, 0)
    assert space.mremap(0, 2, 6, flags=0) == -ENOMEM
    assert space.mremap(2, 2, 6, flags=0) == 2
    assert space.vmas() == "0-8 rw"


def test_growing_where_there_is_no_room(space: Space) -> None:
    space.mmap(2, 0)
    space.mmap(1, 3, R)
    assert space.mremap(0, 2, 4, flags=0) == -ENOMEM
    assert space.vmas() == "0-2 rw, 3-4 r"


def test_growing_elsewhere(space: Space) -> None:
    space.mmap(2, 0)
    space.write(0, 2)
    page = space.pfn(1)
    space.mmap(1, 2, R)
    top = space.mremap(0, 2, 4)
    assert top == (space.mm.mmap_base - at(0)) // PAGE - 4
    assert space.pfn(top + 1) == page
    assert entries(space, top, 4) == ["anon", "anon", "", ""]
    assert space.vmas() == "2-3 r"


def test_a_locked_vma_that_grows_is_populated(space: Space) -> None:
    space.mmap(2, 0)
    space.mlock(0, 2)
    assert space.mremap(0, 2, 4, flags=0) == 0
    assert entries(space, 0, 4) == ["anon"] * 4


# To another place


def test_a_move_takes_the_pages_along(space: Space) -> None:
    space.mmap(4, 0)
    space.write(0, 2)
    space.read(2)
    page = space.pfn(1)
    assert space.mremap(0, 4, to=10) == 10
    assert space.vmas() == "10-14 rw"
    assert entries(space, 10, 4) == ["anon", "anon", "zero", ""]
    assert space.pfn(11) == page
    assert entries(space, 0, 4) == [""] * 4


def test_a_prepared_vma_keeps_its_page_offset(space: Space) -> None:
    space.mmap(4, 0)
    space.write(3)
    space.mremap(0, 4, to=10)
    assert space.pgoff(10) == 0
    space.mremap(11, 2, to=20)
    assert (space.pgoff(10), space.pgoff(20), space.pgoff(13)) == (0, 1, 3)
    assert space.vmas() == "10-11 rw, 13-14 rw, 20-22 rw"


def test_an_unprepared_vma_gets_a_fresh_page_offset(space: Space) -> None:
    space.mmap(4, 0)
    space.read(0, 4)
    space.mremap(0, 4, to=10)
    assert space.pgoff(10) == 10


def test_a_file_mapping_keeps_its_offset(space: Space) -> None:
    space.mmap(4, 0, RW, FILE, DISK, 7)
    space.mremap(1, 2, to=10)
    assert space.pgoff(10) == 8


def test_a_move_replaces_what_is_at_the_target(space: Space) -> None:
    space.mmap(2, 0)
    space.write(0, 2)
    space.mmap(4, 10, R)
    space.read(10, 4)
    assert space.mremap(0, 2, to=11) == 11
    assert space.vmas() == "10-11 r, 11-13 rw, 13-14 r"


def test_a_move_that_shrinks_unmaps_the_rest(space: Space) -> None:
    space.mmap(4, 0)
    space.write(0, 4)
    assert space.mremap(0, 4, 2, flags=MREMAP_MAYMOVE | MREMAP_FIXED, to=10) == 10
    assert space.vmas() == "10-12 rw"


def test_a_move_that_grows(space: Space) -> None:
    space.mmap(2, 0)
    space.write(0, 2)
    assert space.mremap(0, 2, 4, flags=MREMAP_MAYMOVE | MREMAP_FIXED, to=10) == 10
    assert space.vmas() == "10-14 rw"
    assert entries(space, 10, 4) == ["anon", "anon", "", ""]


def test_a_move_out_of_the_middle_leaves_both_ends_accounted(space: Space) -> None:
    space.mmap(6, 0)
    space.mremap(2, 2, to=10)
    assert space.vmas() == "0-2 rw, 4-6 rw, 10-12 rw"
    assert all(space.vma(page).flags & VM_ACCOUNT for page in (0, 4, 10))


def test_there_and_back_is_one_vma_again(space: Space) -> None:
    space.mmap(6, 0)
    space.write(0, 6)
    space.mremap(2, 2, to=10)
    assert space.vmas() == "0-2 rw, 4-6 rw, 10-12 rw"
    space.mremap(10, 2, to=2)
    assert space.vmas() == "0-6 rw"


def test_shared_pages_stay_shared_when_one_side_moves(space: Space) -> None:
    space.mmap(2, 0)
    space.write(0, 2)
    child = space.fork()
    child.mremap(0, 2, to=10)
    assert child.pfn(10) == space.pfn(0)
    assert space.mapcount(0) == 2


# MREMAP_DONTUNMAP


def test_the_source_stays_mapped_and_empty(space: Space) -> None:
    space.mmap(3, 0)
    space.write(0, 3)
    assert space.mremap(0, 3, to=10, flags=MOVE | KEEP) == 10
    assert space.vmas() == "0-3 rw, 10-13 rw"
    assert entries(space, 0, 3) == [""] * 3
    assert entries(space, 10, 3) == ["anon"] * 3
    assert not space.vma(0).prepared


def test_an_emptied_source_takes_new_pages(space: Space) -> None:
    space.mmap(2, 0)
    space.write(0, 2)
    space.mremap(0, 2, to=10, flags=MOVE | KEEP)
    space.write(0, 2)
    assert space.pfn(0) != space.pfn(10)
    assert space.has(PTE_EXCLUSIVE, 0)


def test_dontunmap_of_a_part(space: Space) -> None:
    space.mmap(4, 0)
    space.write(0, 4)
    space.mremap(1, 2, to=10, flags=MOVE | KEEP)
    assert space.vmas() == "0-4 rw, 10-12 rw"
    assert entries(space, 0, 4) == ["anon", "", "", "anon"]


def test_dontunmap_without_a_place_finds_one(space: Space) -> None:
    space.mmap(2, 0)
    space.write(0, 2)
    top = space.mremap(0, 2, flags=MREMAP_MAYMOVE | KEEP)
    assert top == (space.mm.mmap_base - at(0)) // PAGE - 2
    assert space.vmas() == "0-2 rw"


def test_dontunmap_with_a_hint_below_the_lowest_address(model: Space) -> None:
    """mmap() raises such a hint (round_hint_to_min()), mremap() does not, and only root may map what lies there."""
    model.mmap(2, 0)
    event = Event("mremap", 1, at(0), PAGE, flags=MREMAP_MAYMOVE | KEEP, length2=PAGE, addr2=PAGE)
    assert do(model, event) == -EPERM
    model.machine.mmap_min_addr = 0
    assert do(model, event) == PAGE


def test_dontunmap_unlocks_the_source(space: Space) -> None:
    space.mmap(2, 0)
    space.mlock(0, 2)
    space.mremap(0, 2, to=10, flags=MOVE | KEEP)
    assert [bool(space.vma(page).flags & VM_LOCKED) for page in (0, 10)] == [False, True]


def test_dontunmap_compares_lengths_in_pages_since_6_17(space: Space) -> None:
    space.mmap(2, 0)
    event = Event("mremap", 1, at(0), 1, flags=MREMAP_MAYMOVE | MREMAP_FIXED | KEEP, length2=PAGE, addr2=at(10))
    assert do(space, event) == (-EINVAL if space.kernel == "6.12" else at(10))


def test_an_unprepared_source_does_not_merge_with_its_own_copy_in_6_12(model: Space) -> None:
    model.mmap(2, 0)
    model.mremap(0, 2, to=2, flags=MOVE | KEEP)
    assert model.vmas() == "0-2 rw, 2-4 rw"


# Old size 0


def test_old_size_0_maps_shared_memory_twice(space: Space) -> None:
    space.mmap(2, 0, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED)
    space.write(0, 2)
    assert space.mremap(0, 0, 2, flags=MREMAP_MAYMOVE | MREMAP_FIXED, to=10) == 10
    assert space.vmas() == "0-2 rw, 10-12 rw"
    assert space.vma(0).file is space.vma(10).file


def test_old_size_0_is_not_for_private_memory(space: Space) -> None:
    space.mmap(2, 0)
    assert space.mremap(0, 0, 2) == -EINVAL


# Many VMAs at once


def test_a_range_of_several_vmas_moves_at_once_since_6_17(space: Space) -> None:
    space.mmap(2, 0)
    space.mmap(2, 3, R)
    space.write(0, 2)
    result = space.mremap(0, 5, to=10)
    if space.kernel == "6.12":
        assert result == -EFAULT
    else:
        assert result == 10
        assert space.vmas() == "10-12 rw, 13-15 r"
        assert entries(space, 10, 2) == ["anon", "anon"]


# What is refused


@pytest.mark.parametrize(
    ("flags", "old", "new", "to", "error"),
    [
        pytest.param(8, 2, 2, 10, -EINVAL, id="unknown flag"),
        pytest.param(MREMAP_FIXED, 2, 2, 10, -EINVAL, id="fixed without the right to move"),
        pytest.param(KEEP, 2, 2, 10, -EINVAL, id="dontunmap without the right to move"),
        pytest.param(MREMAP_MAYMOVE | KEEP, 2, 3, 10, -EINVAL, id="dontunmap and another length"),
        pytest.param(MREMAP_MAYMOVE, 2, 0, 10, -EINVAL, id="nothing left"),
        pytest.param(MREMAP_MAYMOVE | MREMAP_FIXED, 2, 2, 1, -EINVAL, id="target overlaps the source"),
        pytest.param(MREMAP_MAYMOVE, 5, 6, 0, -EFAULT, id="beyond the end of the VMA"),
        pytest.param(MREMAP_MAYMOVE | MREMAP_FIXED, 5, 6, 10, -EFAULT, id="a move from beyond the end"),
    ],
)
def test_what_is_refused(space: Space, flags: int, old: int, new: int, to: int, error: int) -> None:
    space.mmap(4, 0)
    assert space.mremap(0, old, new, flags=flags, to=to) == error
    assert space.vmas() == "0-4 rw"


def test_what_is_not_mapped_cannot_move(space: Space) -> None:
    assert space.mremap(0, 2, 4) == -EFAULT
    assert space.mremap(0, 2, to=10) == -EFAULT


def test_addresses_have_to_be_aligned_and_in_the_address_space(space: Space) -> None:
    space.mmap(2, 0)
    fixed = MREMAP_MAYMOVE | MREMAP_FIXED
    for event in (
        Event("mremap", 1, at(0) + 1, PAGE, flags=fixed, length2=PAGE, addr2=at(10)),
        Event("mremap", 1, at(0), PAGE, flags=fixed, length2=PAGE, addr2=at(10) + 1),
        Event("mremap", 1, at(0), PAGE, flags=fixed, length2=2 * PAGE, addr2=TASK_SIZE - PAGE),
    ):
        assert do(space, event) == -EINVAL
    assert space.vmas() == "0-2 rw"


def test_a_failed_move_has_unmapped_its_target_in_6_12(space: Space) -> None:
    """mremap_to() unmaps first there, and looks at the source afterwards."""
    space.mmap(2, 0)
    space.mmap(4, 10, R, ANON)
    assert space.mremap(0, 3, 4, flags=MREMAP_MAYMOVE | MREMAP_FIXED, to=10) == -EFAULT
    assert space.vmas() == ("0-2 rw" if space.kernel == "6.12" else "0-2 rw, 10-14 r")


def test_a_move_onto_itself_finds_nothing_left_to_move(space: Space) -> None:
    """Where addr + old_len wraps around, the source may be in the target, which mremap_to() unmaps; since 6.17 it looks
    for the source at once, before 6.17 it unmaps the rest of the old range first."""
    space.mmap(4, 0)
    fixed = MREMAP_MAYMOVE | MREMAP_FIXED
    event = Event("mremap", 1, at(0), (1 << 64) - PAGE, flags=fixed, length2=2 * PAGE, addr2=at(0))
    assert do(space, event) == (-EINVAL if space.kernel == "6.12" else -EFAULT)
    assert space.vmas() == "2-4 rw"


def test_of_many_none_is_moved_after_one_that_cannot_be() -> None:
    """mm/mremap.c remap_move(): an error ends it, and leaves the rest where it was."""
    space = begin("6.18")
    space.mmap(1, 0, R)
    space.mmap(1, 1)
    below = space.machine.mmap_min_addr - PAGE
    event = Event("mremap", 1, at(0), 2 * PAGE, flags=MREMAP_MAYMOVE | MREMAP_FIXED, length2=2 * PAGE, addr2=below)
    assert do(space, event) == -EPERM
    assert space.vmas() == "0-1 r, 1-2 rw"
    space.close()


def test_a_file_that_looks_for_addresses_itself_moves_alone() -> None:
    """mm/mremap.c vma_multi_allowed(): the first ends it at once, a later one when its turn comes."""
    machine = begin("7.3").machine
    mm = machine.mm_of(1)
    file = File(1, "", searches=True)
    flags = MAP_PRIVATE | MAP_FIXED
    machine.mmap(mm, at(0), 2 * PAGE, RW, flags, file, 0)
    machine.mmap(mm, at(2), 2 * PAGE, RW, ANON, None, 0)
    machine.mmap(mm, at(4), 2 * PAGE, RW, flags, file, 0)
    move = MREMAP_MAYMOVE | MREMAP_FIXED
    assert machine.mremap(mm, at(0), 4 * PAGE, 4 * PAGE, move, at(20)) == -EFAULT
    assert mm.tree.at(at(20)) is None
    assert machine.mremap(mm, at(2), 4 * PAGE, 4 * PAGE, move, at(20)) == -EFAULT
    assert mm.tree.at(at(20)) is not None and mm.tree.at(at(2)) is None
    assert machine.mremap(mm, at(4), 2 * PAGE, 2 * PAGE, move, at(30)) == at(30)


@pytest.mark.parametrize("special", [VM_IO, VM_MIXEDMAP])
def test_a_drivers_mapping_may_grow_and_cannot(model: Space, special: int) -> None:
    """check_prep_vma() lets it pass, and then vma_merge_extend() merges nothing that is VM_SPECIAL."""
    device = File(7, "device", special=special)
    assert model.machine.mmap(model.mm, at(0), PAGE, RW, MAP_SHARED | MAP_FIXED, device, 0) == at(0)
    assert model.mremap(0, 1, 2) == -ENOMEM
    assert model.vmas() == "0-1 rw"
