# SPDX-License-Identifier: GPL-2.0-or-later
"""madvise: what each advice does to pages, flags and fork, and what it refuses."""

import pytest

from mm import space as module
from mm.space import DISK, FILE, RW, N, R, Space
from rmaplab.mm import abi
from rmaplab.mm.abi import MAP_ANONYMOUS, MAP_FIXED, MAP_SHARED
from rmaplab.mm.folio import FOLIO_DIRTY, FOLIO_LAZYFREE
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES
from rmaplab.mm.vma import VM_HUGEPAGE, VM_NOHUGEPAGE, VM_RAND_READ, VM_SEQ_READ

SHARED = MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED


def test_dontneed_drops_pages(space: Space) -> None:
    space.map(0, 4)
    space.write(0, 4)
    assert space.advise(1, 2, abi.MADV_DONTNEED) == 0
    assert [space.entry(page) for page in range(4)] == ["anon", "", "", "anon"]


def test_dontneed_shows_the_file_again(space: Space) -> None:
    space.map(0, 1, RW, FILE, DISK)
    space.write(0)
    space.advise(0, 1, abi.MADV_DONTNEED)
    space.read(0)
    assert space.entry(0) == "file"


def test_dontneed_in_the_child_leaves_the_parents_page(space: Space) -> None:
    space.map(0, 1)
    space.write(0)
    space.fork()
    space.advise(0, 1, abi.MADV_DONTNEED, pid=2)
    assert space.entry(0, 2) == ""
    assert space.mapcount(0) == 1


def test_locked_pages_are_needed(space: Space) -> None:
    space.map(0, 1)
    space.lock(0, 1)
    assert space.advise(0, 1, abi.MADV_DONTNEED) == "EINVAL"
    assert space.advise(0, 1, abi.MADV_DONTNEED_LOCKED) == 0
    assert space.entry(0) == ""


def test_free_marks_pages_that_reclaim_may_drop(model: Space) -> None:
    model.map(0, 2)
    model.write(0, 2)
    model.advise(0, 2, abi.MADV_FREE)
    page = model.pfn(0)
    assert model.machine.folios.flags.m[page] & FOLIO_LAZYFREE
    model.write(1)
    mm = model.machine.mm_of(1)
    model.machine.swap_out(mm, model.vma(0).start, 2)
    assert model.entry(0) == ""
    assert model.entry(1) != "", "written again, it is kept"


def test_free_is_for_private_anonymous_memory(space: Space) -> None:
    space.map(0, 1, RW, SHARED)
    space.map(2, 1, RW, FILE, DISK)
    assert space.advise(0, 1, abi.MADV_FREE) == "EINVAL"
    assert space.advise(2, 1, abi.MADV_FREE) == "EINVAL"


def test_a_hole_is_an_error_at_the_end_only(space: Space) -> None:
    space.map(0, 2)
    space.map(3, 2)
    space.write(0, 2)
    space.write(3, 2)
    assert space.advise(0, 5, abi.MADV_DONTNEED) == "ENOMEM"
    assert space.entry(0) == space.entry(4) == ""


def test_populate_faults_in_for_reading_or_writing(space: Space) -> None:
    space.map(0, 4)
    assert space.advise(0, 2, abi.MADV_POPULATE_READ) == 0
    assert space.advise(2, 2, abi.MADV_POPULATE_WRITE) == 0
    assert [space.entry(page) for page in range(4)] == ["zero", "zero", "anon", "anon"]


@pytest.mark.parametrize("kernel", PROFILES)
def test_every_kernel_populates_for_reading_or_writing(kernel: str) -> None:
    space = Space(kernel)
    space.map(0, 4)
    assert space.advise(0, 2, abi.MADV_POPULATE_READ) == 0
    assert space.advise(2, 2, abi.MADV_POPULATE_WRITE) == 0
    assert [space.entry(page) for page in range(4)] == ["zero", "zero", "anon", "anon"]
    space.close()


def test_populate_respects_rights_and_holes(space: Space) -> None:
    space.map(0, 2, R)
    space.map(4, 1, N)
    assert space.advise(0, 1, abi.MADV_POPULATE_WRITE) == "EINVAL"
    assert space.advise(4, 1, abi.MADV_POPULATE_READ) == "EINVAL"
    assert space.advise(0, 4, abi.MADV_POPULATE_READ) == "ENOMEM"
    assert space.entry(1) == "zero"


def test_dontfork_keeps_a_range_from_the_child(space: Space) -> None:
    space.map(0, 6)
    space.write(0, 6)
    space.advise(2, 2, abi.MADV_DONTFORK)
    space.fork()
    assert space.vmas(2) == "0-2 rw, 4-6 rw"
    space.advise(2, 2, abi.MADV_DOFORK)
    space.fork(1, 3)
    assert space.vmas(3) == "0-6 rw"


def test_wipeonfork_gives_the_child_the_range_without_the_pages(space: Space) -> None:
    space.map(0, 4)
    space.write(0, 4)
    space.advise(2, 2, abi.MADV_WIPEONFORK)
    space.fork()
    assert space.vmas(2) == "0-2 rw, 2-4 rw"
    assert [space.entry(page, 2) for page in range(4)] == ["anon", "anon", "", ""]
    assert not space.vma(2, 2).prepared
    space.write(2, pid=2)
    assert space.pfn(2, 1) != space.pfn(2, 2)


def test_wipeonfork_is_for_private_anonymous_memory(space: Space) -> None:
    space.map(0, 1, RW, SHARED)
    space.map(2, 1, RW, FILE, DISK)
    assert space.advise(0, 1, abi.MADV_WIPEONFORK) == "EINVAL"
    assert space.advise(2, 1, abi.MADV_WIPEONFORK) == "EINVAL"


def test_keeponfork_takes_wipeonfork_back(space: Space) -> None:
    space.map(0, 1)
    space.write(0)
    space.advise(0, 1, abi.MADV_WIPEONFORK)
    space.advise(0, 1, abi.MADV_KEEPONFORK)
    space.fork()
    assert space.entry(0, 2) == "anon"


def test_reading_habits_exclude_each_other(space: Space) -> None:
    space.map(0, 1)
    space.advise(0, 1, abi.MADV_RANDOM)
    assert space.vma(0).flags & (VM_RAND_READ | VM_SEQ_READ) == VM_RAND_READ
    space.advise(0, 1, abi.MADV_SEQUENTIAL)
    assert space.vma(0).flags & (VM_RAND_READ | VM_SEQ_READ) == VM_SEQ_READ
    space.advise(0, 1, abi.MADV_NORMAL)
    assert not space.vma(0).flags & (VM_RAND_READ | VM_SEQ_READ)


def test_huge_pages_wanted_and_not(model: Space) -> None:
    model.map(0, 1)
    model.advise(0, 1, abi.MADV_HUGEPAGE)
    assert model.vma(0).flags & (VM_HUGEPAGE | VM_NOHUGEPAGE) == VM_HUGEPAGE
    model.advise(0, 1, abi.MADV_NOHUGEPAGE)
    assert model.vma(0).flags & (VM_HUGEPAGE | VM_NOHUGEPAGE) == VM_NOHUGEPAGE


@pytest.mark.parametrize("advice", [abi.MADV_COLD, abi.MADV_WILLNEED])
def test_hints_change_nothing(space: Space, advice: int) -> None:
    space.map(0, 2, RW, FILE, DISK)
    space.write(0, 2)
    assert space.advise(0, 2, advice) == 0
    assert [space.entry(page) for page in range(2)] == ["anon", "anon"]


def test_remove_is_for_shared_memory_that_may_be_written(space: Space) -> None:
    space.map(0, 2)
    space.map(2, 2, RW, FILE, DISK)
    space.map(4, 2, RW, SHARED)
    assert space.advise(0, 2, abi.MADV_REMOVE) == "EINVAL"
    assert space.advise(2, 2, abi.MADV_REMOVE) == "EACCES"
    assert space.advise(4, 2, abi.MADV_REMOVE) == 0


def test_pageout_swaps_out_what_only_this_range_maps(model: Space) -> None:
    model.map(0, 2)
    model.write(0, 2)
    model.fork()
    model.write(1, pid=2)
    assert model.advise(0, 2, abi.MADV_PAGEOUT, pid=2) == 0
    assert [model.entry(page, 2) for page in range(2)] == ["anon", "swap"]


def test_an_unknown_advice_is_refused(space: Space) -> None:
    space.map(0, 1)
    assert space.advise(0, 1, 99) == "EINVAL"


def test_advice_about_nothing_is_taken(space: Space) -> None:
    assert space.advise(0, 0, abi.MADV_DONTNEED) == 0
    assert space.advise(0, 1, abi.MADV_DONTNEED) == "ENOMEM"


class Busy(Machine):
    """Somebody else has every folio locked."""

    def trylock_folio(self, head: int) -> bool:
        return False


@pytest.mark.parametrize("machine", [Machine, Busy])
def test_a_dirty_page_that_somebody_has_locked_is_not_given_up(
    machine: type[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only with the folio's lock can it be cleaned (madvise_free_pte_range())."""
    monkeypatch.setattr(module, "Machine", machine)
    space = Space()
    space.map(0, 1)
    space.write(0)
    space.machine.folios.set_flag(space.pfn(0), FOLIO_DIRTY)
    space.advise(0, 1, abi.MADV_FREE)
    given_up = space.machine.folios.flags.m[space.pfn(0)] & FOLIO_LAZYFREE != 0
    assert given_up == (machine is Machine)
    space.close()


def test_whatever_is_mapped_may_be_kept_on_fork(space: Space) -> None:
    """Only to wipe it takes private anonymous memory (madvise_vma_behavior())."""
    space.map(0, 1, RW, FILE, DISK)
    assert space.advise(0, 1, abi.MADV_WIPEONFORK) == "EINVAL"
    assert space.advise(0, 1, abi.MADV_KEEPONFORK) == 0
