# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that fail half-way: what they did before they failed stays done, and the rest stays as it was.

Of the three VMAs or holes in a range, the second stops a call or lets it go on, by the call.
"""

import pytest

from mm.space import DISK, FILE, PAGE, RW, N, R, Space, at, do
from rmaplab.mm import abi
from rmaplab.mm.abi import EINVAL, ENOMEM
from rmaplab.mm.vma import VM_LOCKED, VM_RAND_READ, VM_WIPEONFORK
from rmaplab.trace.events import Event


@pytest.fixture
def holed(space: Space) -> Space:
    """Pages 0 to 2 and 4 to 6, written to; nothing at 2 and 3."""
    for page in (0, 4):
        space.mmap(2, page)
        space.write(page, 2)
    return space


def test_mprotect_stops_at_a_hole(holed: Space) -> None:
    assert holed.mprotect(1, 4, R) == -ENOMEM
    assert holed.vmas() == "0-1 rw, 1-2 r, 4-6 rw"


def test_mprotect_that_ends_in_a_hole_has_changed_what_is_there(holed: Space) -> None:
    assert holed.mprotect(4, 8, R) == -ENOMEM
    assert holed.vmas() == "0-2 rw, 4-6 r"


def test_mprotect_that_begins_in_a_hole_changes_nothing(holed: Space) -> None:
    assert holed.mprotect(3, 2, R) == -ENOMEM
    assert holed.vmas() == "0-2 rw, 4-6 rw"


def test_advice_about_flags_passes_over_a_hole_and_reports_it(holed: Space) -> None:
    assert holed.madvise(1, 4, abi.MADV_RANDOM) == -ENOMEM
    assert [bool(holed.vma(page).flags & VM_RAND_READ) for page in (0, 1, 4, 5)] == [False, True, True, False]


def test_dontneed_passes_over_a_hole_and_reports_it(holed: Space) -> None:
    assert holed.madvise(1, 4, abi.MADV_DONTNEED) == -ENOMEM
    assert [holed.entry(page) for page in (0, 1, 4, 5)] == ["anon", "", "", "anon"]


def test_dontneed_stops_at_what_is_locked(space: Space) -> None:
    space.mmap(6, 0)
    space.write(0, 6)
    space.mlock(2, 2)
    assert space.madvise(0, 6, abi.MADV_DONTNEED) == -EINVAL
    assert [space.entry(page) for page in range(6)] == ["", "", "anon", "anon", "anon", "anon"]
    assert space.madvise(0, 6, abi.MADV_DONTNEED_LOCKED) == 0
    assert [space.entry(page) for page in range(6)] == [""] * 6


def test_what_stops_a_call_counts_more_than_a_hole_before_it(holed: Space) -> None:
    holed.mlock(4, 1)
    assert holed.madvise(0, 6, abi.MADV_DONTNEED) == -EINVAL
    assert [holed.entry(page) for page in (0, 1, 4, 5)] == ["", "", "anon", "anon"]


@pytest.mark.parametrize("advice", [abi.MADV_FREE, abi.MADV_WIPEONFORK])
def test_advice_for_anonymous_memory_stops_at_a_file(space: Space, advice: int) -> None:
    space.mmap(2, 0)
    space.mmap(2, 2, RW, FILE, DISK)
    space.mmap(2, 4)
    space.write(0, 6)
    assert space.madvise(1, 5, advice) == -EINVAL
    if advice == abi.MADV_WIPEONFORK:
        assert [bool(space.vma(page).flags & VM_WIPEONFORK) for page in (0, 1, 2, 4)] == [False, True, False, False]


@pytest.mark.parametrize("advice", [abi.MADV_POPULATE_READ, abi.MADV_POPULATE_WRITE])
def test_populating_stops_at_what_cannot_be_touched(space: Space, advice: int) -> None:
    for page, prot in ((0, RW), (2, N), (4, RW)):
        space.mmap(2, page, prot)
    assert space.madvise(0, 6, advice) == -EINVAL
    assert [space.entry(page) != "" for page in range(6)] == [True, True, False, False, False, False]


@pytest.mark.parametrize("advice", [abi.MADV_POPULATE_READ, abi.MADV_POPULATE_WRITE])
def test_populating_stops_at_a_hole(space: Space, advice: int) -> None:
    space.mmap(2, 0)
    space.mmap(2, 4)
    assert space.madvise(1, 4, advice) == -ENOMEM
    assert [space.entry(page) != "" for page in (0, 1, 4, 5)] == [False, True, False, False]


def test_mlock_stops_at_a_hole_and_populates_nothing(space: Space) -> None:
    space.mmap(2, 0)
    space.mmap(2, 4)
    assert space.mlock(1, 4) == -ENOMEM
    assert [bool(space.vma(page).flags & VM_LOCKED) for page in (0, 1, 4)] == [False, True, False]
    assert [space.entry(page) for page in (0, 1, 4, 5)] == ["", "", "", ""]


def test_mlock_of_what_cannot_be_touched_locks_all_and_populates_what_comes_before(space: Space) -> None:
    for page, prot in ((0, RW), (2, N), (4, RW)):
        space.mmap(2, page, prot)
    assert space.mlock(0, 6) == -ENOMEM
    assert all(space.vma(page).flags & VM_LOCKED for page in (0, 2, 4))
    assert [space.entry(page) for page in range(6)] == ["anon", "anon", "", "", "", ""]


def test_munlock_stops_at_a_hole(holed: Space) -> None:
    holed.mlock(0, 2)
    holed.mlock(4, 2)
    assert holed.munlock(1, 4) == -ENOMEM
    assert [bool(holed.vma(page).flags & VM_LOCKED) for page in (0, 1, 4)] == [True, False, True]


@pytest.mark.parametrize("op", ["mlock", "munlock"])
def test_a_length_that_wraps_to_nothing_locks_nothing(space: Space, op: str) -> None:
    """mm/mlock.c do_mlock() aligns the length first: near the end of an unsigned long it comes to 0."""
    space.mmap(2, 0)
    assert do(space, Event(op, 1, at(0), (1 << 64) - 1)) == 0
    assert do(space, Event(op, 1, at(0), (1 << 64) - PAGE)) == -EINVAL
    assert not space.vma(0).flags & VM_LOCKED


def test_a_name_is_for_anonymous_memory_and_stops_at_a_file(model: Space) -> None:
    """mm/madvise.c madvise_vma_anon_name(); shared anonymous memory has a file that only the kernel knows."""
    model.mmap(1, 0)
    model.mmap(1, 1, flags=abi.MAP_SHARED | abi.MAP_ANONYMOUS | abi.MAP_FIXED)
    model.mmap(1, 2, RW, FILE, DISK)
    model.mmap(1, 3)
    machine = model.machine
    assert machine.set_name(machine.mm_of(1), at(0), 4 * PAGE, "heap") == -abi.EBADF
    assert [model.vma(page).name for page in range(4)] == ["heap", "heap", "", ""]


@pytest.mark.parametrize(
    ("start", "length", "pages"),
    [
        (1, PAGE - 1, [1]), (1, PAGE, [1, 2]), (PAGE - 1, 1, [1]), (PAGE - 1, 2, [1, 2]), (0, 1, [1]),
        (8, 2 * PAGE, [1, 2, 3]),
    ],
)
@pytest.mark.parametrize("op", ["mlock", "munlock"])
def test_each_page_that_a_range_touches_is_locked(
    space: Space, op: str, start: int, length: int, pages: list[int]
) -> None:
    """mm/mlock.c do_mlock(): from the page of the first byte to that of the last."""
    space.mmap(5, 0)
    if op == "munlock":
        space.mlock(0, 5)
    assert do(space, Event(op, 1, at(1) + start, length)) == 0
    assert [page for page in range(5) if bool(space.vma(page).flags & VM_LOCKED) is (op == "mlock")] == pages
