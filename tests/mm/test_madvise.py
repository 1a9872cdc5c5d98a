# SPDX-License-Identifier: GPL-2.0-or-later
"""madvise: what each advice does to pages, flags and fork, and what it refuses."""

import pytest

import world
from mm.space import DISK, FILE, RW, N, R, Space, begin
from rmaplab.mm import abi
from rmaplab.mm.abi import EACCES, EINVAL, ENOMEM, MAP_ANONYMOUS, MAP_FIXED, MAP_SHARED
from rmaplab.mm.folio import FOLIO_DIRTY, FOLIO_LAZYFREE
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import PTE_WRITE
from rmaplab.mm.profile import PROFILES
from rmaplab.mm.vma import VM_HUGEPAGE, VM_NOHUGEPAGE, VM_RAND_READ, VM_SEQ_READ

SHARED = MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED


def test_dontneed_drops_pages(space: Space) -> None:
    space.mmap(4, 0)
    space.write(0, 4)
    assert space.madvise(1, 2, abi.MADV_DONTNEED) == 0
    assert [space.entry(page) for page in range(4)] == ["anon", "", "", "anon"]


def test_dontneed_shows_the_file_again(space: Space) -> None:
    space.mmap(1, 0, RW, FILE, DISK)
    space.write(0)
    space.madvise(0, 1, abi.MADV_DONTNEED)
    space.read(0)
    assert space.entry(0) == "file"


def test_dontneed_in_the_child_leaves_the_parents_page(space: Space) -> None:
    space.mmap(1, 0)
    space.write(0)
    child = space.fork()
    child.madvise(0, 1, abi.MADV_DONTNEED)
    assert child.entry(0) == ""
    assert space.mapcount(0) == 1


def test_locked_pages_are_needed(space: Space) -> None:
    space.mmap(1, 0)
    space.mlock(0, 1)
    assert space.madvise(0, 1, abi.MADV_DONTNEED) == -EINVAL
    assert space.madvise(0, 1, abi.MADV_DONTNEED_LOCKED) == 0
    assert space.entry(0) == ""


@pytest.mark.parametrize(("kernel", "writable"), [("6.1", False), ("6.12", True), ("7.3", True)])
def test_mprotect_takes_the_right_to_write_from_what_6_1_finds_clean(kernel: str, writable: bool) -> None:
    """Also where the VMA was writable before, and stays so; a kernel of 6.1 said it in lockstep."""
    space = begin(kernel)
    space.mmap(1, 0)
    space.write(0)
    space.madvise(0, 1, abi.MADV_FREE)
    assert space.has(PTE_WRITE, 0)
    space.mprotect(0, 1, abi.PROT_WRITE)
    assert space.has(PTE_WRITE, 0) == writable
    space.close()


def test_free_marks_pages_that_reclaim_may_drop(model: Space) -> None:
    model.mmap(2, 0)
    model.write(0, 2)
    model.madvise(0, 2, abi.MADV_FREE)
    page = model.pfn(0)
    assert model.machine.folios.flags.m[page] & FOLIO_LAZYFREE
    model.write(1)
    mm = model.machine.mm_of(1)
    model.machine.swap_out(mm, model.vma(0).start, 2)
    assert model.entry(0) == ""
    assert model.entry(1) != "", "written again, it is kept"


@pytest.mark.parametrize("advice", [abi.MADV_FREE, abi.MADV_WIPEONFORK])
def test_some_advice_is_for_private_anonymous_memory(space: Space, advice: int) -> None:
    space.mmap(1, 0, RW, SHARED)
    space.mmap(1, 2, RW, FILE, DISK)
    assert space.madvise(0, 1, advice) == -EINVAL
    assert space.madvise(2, 1, advice) == -EINVAL


def test_a_hole_is_an_error_at_the_end_only(space: Space) -> None:
    space.mmap(2, 0)
    space.mmap(2, 3)
    space.write(0, 2)
    space.write(3, 2)
    assert space.madvise(0, 5, abi.MADV_DONTNEED) == -ENOMEM
    assert space.entry(0) == space.entry(4) == ""


def test_populate_faults_in_for_reading_or_writing(space: Space) -> None:
    space.mmap(4, 0)
    assert space.madvise(0, 2, abi.MADV_POPULATE_READ) == 0
    assert space.madvise(2, 2, abi.MADV_POPULATE_WRITE) == 0
    assert [space.entry(page) for page in range(4)] == ["zero", "zero", "anon", "anon"]


@pytest.mark.parametrize("kernel", PROFILES)
def test_every_kernel_populates_for_reading_or_writing(kernel: str) -> None:
    space = begin(kernel)
    space.mmap(4, 0)
    assert space.madvise(0, 2, abi.MADV_POPULATE_READ) == 0
    assert space.madvise(2, 2, abi.MADV_POPULATE_WRITE) == 0
    assert [space.entry(page) for page in range(4)] == ["zero", "zero", "anon", "anon"]
    space.close()


def test_populate_respects_rights_and_holes(space: Space) -> None:
    space.mmap(2, 0, R)
    space.mmap(1, 4, N)
    assert space.madvise(0, 1, abi.MADV_POPULATE_WRITE) == -EINVAL
    assert space.madvise(4, 1, abi.MADV_POPULATE_READ) == -EINVAL
    assert space.madvise(0, 4, abi.MADV_POPULATE_READ) == -ENOMEM
    assert space.entry(1) == "zero"


def test_dontfork_keeps_a_range_from_the_child(space: Space) -> None:
    space.mmap(6, 0)
    space.write(0, 6)
    space.madvise(2, 2, abi.MADV_DONTFORK)
    child = space.fork()
    assert child.vmas() == "0-2 rw, 4-6 rw"
    space.madvise(2, 2, abi.MADV_DOFORK)
    second = space.fork()
    assert second.vmas() == "0-6 rw"


def test_wipeonfork_gives_the_child_the_range_without_the_pages(space: Space) -> None:
    space.mmap(4, 0)
    space.write(0, 4)
    space.madvise(2, 2, abi.MADV_WIPEONFORK)
    child = space.fork()
    assert child.vmas() == "0-2 rw, 2-4 rw"
    assert [child.entry(page) for page in range(4)] == ["anon", "anon", "", ""]
    assert not child.vma(2).prepared
    child.write(2)
    assert space.pfn(2) != child.pfn(2)


def test_keeponfork_takes_wipeonfork_back(space: Space) -> None:
    space.mmap(1, 0)
    space.write(0)
    space.madvise(0, 1, abi.MADV_WIPEONFORK)
    space.madvise(0, 1, abi.MADV_KEEPONFORK)
    child = space.fork()
    assert child.entry(0) == "anon"


def test_reading_habits_exclude_each_other(space: Space) -> None:
    space.mmap(1, 0)
    space.madvise(0, 1, abi.MADV_RANDOM)
    assert space.vma(0).flags & (VM_RAND_READ | VM_SEQ_READ) == VM_RAND_READ
    space.madvise(0, 1, abi.MADV_SEQUENTIAL)
    assert space.vma(0).flags & (VM_RAND_READ | VM_SEQ_READ) == VM_SEQ_READ
    space.madvise(0, 1, abi.MADV_NORMAL)
    assert not space.vma(0).flags & (VM_RAND_READ | VM_SEQ_READ)


def test_huge_pages_wanted_and_not(model: Space) -> None:
    model.mmap(1, 0)
    model.madvise(0, 1, abi.MADV_HUGEPAGE)
    assert model.vma(0).flags & (VM_HUGEPAGE | VM_NOHUGEPAGE) == VM_HUGEPAGE
    model.madvise(0, 1, abi.MADV_NOHUGEPAGE)
    assert model.vma(0).flags & (VM_HUGEPAGE | VM_NOHUGEPAGE) == VM_NOHUGEPAGE


@pytest.mark.parametrize("advice", [abi.MADV_COLD, abi.MADV_WILLNEED])
def test_hints_change_nothing(space: Space, advice: int) -> None:
    space.mmap(2, 0, RW, FILE, DISK)
    space.write(0, 2)
    assert space.madvise(0, 2, advice) == 0
    assert [space.entry(page) for page in range(2)] == ["anon", "anon"]


def test_remove_is_for_shared_memory_that_may_be_written(space: Space) -> None:
    space.mmap(2, 0)
    space.mmap(2, 2, RW, FILE, DISK)
    space.mmap(2, 4, RW, SHARED)
    assert space.madvise(0, 2, abi.MADV_REMOVE) == -EINVAL
    assert space.madvise(2, 2, abi.MADV_REMOVE) == -EACCES
    assert space.madvise(4, 2, abi.MADV_REMOVE) == 0


def test_pageout_swaps_out_what_only_this_range_maps(model: Space) -> None:
    model.mmap(2, 0)
    model.write(0, 2)
    child = model.fork()
    child.write(1)
    assert child.madvise(0, 2, abi.MADV_PAGEOUT) == 0
    assert [child.entry(page) for page in range(2)] == ["anon", "swap"]


def test_an_unknown_advice_is_refused(space: Space) -> None:
    space.mmap(1, 0)
    assert space.madvise(0, 1, 99) == -EINVAL


def test_advice_about_nothing_is_taken(space: Space) -> None:
    assert space.madvise(0, 0, abi.MADV_DONTNEED) == 0
    assert space.madvise(0, 1, abi.MADV_DONTNEED) == -ENOMEM


class Busy(Machine):
    """Somebody else has every folio locked."""

    def trylock_folio(self, head: int) -> bool:
        return False


@pytest.mark.parametrize("machine", [Machine, Busy])
def test_a_dirty_page_that_somebody_has_locked_is_not_given_up(
    machine: type[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only with the folio's lock can it be cleaned (madvise_free_pte_range())."""
    monkeypatch.setattr(world, "Machine", machine)
    space = begin()
    space.mmap(1, 0)
    space.write(0)
    space.machine.folios.set_flag(space.pfn(0), FOLIO_DIRTY)
    space.madvise(0, 1, abi.MADV_FREE)
    given_up = space.machine.folios.flags.m[space.pfn(0)] & FOLIO_LAZYFREE != 0
    assert given_up == (machine is Machine)
    space.close()


def test_whatever_is_mapped_may_be_kept_on_fork(space: Space) -> None:
    """Only to wipe it takes private anonymous memory (madvise_vma_behavior())."""
    space.mmap(1, 0, RW, FILE, DISK)
    assert space.madvise(0, 1, abi.MADV_WIPEONFORK) == -EINVAL
    assert space.madvise(0, 1, abi.MADV_KEEPONFORK) == 0


@pytest.mark.parametrize(
    ("kernel", "pages", "advice", "of_the_space", "of_vmas"),
    [
        ("7.3", 1, abi.MADV_DONTNEED, 0, 1),
        ("7.3", 2, abi.MADV_DONTNEED, 1, 1),  # another VMA is in the range, so the first is locked in vain
        ("7.3", 1, abi.MADV_COLD, 1, 0),
        ("7.3", 1, abi.MADV_GUARD_INSTALL, 0, 1),
        ("6.12", 1, abi.MADV_DONTNEED, 1, 0),
    ],
)
def test_advice_that_drops_pages_of_one_vma_locks_that_alone(
    kernel: str, pages: int, advice: int, of_the_space: int, of_vmas: int
) -> None:
    space = begin(kernel)
    space.mmap(1, 0)
    space.mmap(1, 1, R)
    space.write(0)
    locks = space.machine.ledger.locks
    before = [locks[name].reads for name in ("mmap_lock", "vma_lock")]
    space.madvise(0, pages, advice)
    after = [locks[name].reads for name in ("mmap_lock", "vma_lock")]
    assert [now - then for now, then in zip(after, before, strict=True)] == [of_the_space, of_vmas]
    space.close()
