# SPDX-License-Identifier: GPL-2.0-or-later
"""The users of the reverse map: swap, migration, referenced, KSM, UFFDIO_MOVE, and large folios."""

import pytest

from mm.space import DISK, FILE, MOVE, PAGE, RW, N, R, Space, at, begin
from rmaplab.mm.abi import (
    EBUSY,
    EEXIST,
    EINVAL,
    ENOENT,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_MERGEABLE,
    MADV_UNMERGEABLE,
    MAP_FIXED,
    MAP_SHARED,
    MLOCK_ONFAULT,
    MREMAP_DONTUNMAP,
)
from rmaplab.mm.folio import FOLIO_DIRTY
from rmaplab.mm.huge_memory import split_folio
from rmaplab.mm.ksm import AS_FOUND, FORGET
from rmaplab.mm.pagetable import PTE_EXCLUSIVE, PTE_WRITE
from rmaplab.mm.profile import REFERENCE
from rmaplab.mm.vmscan import KEPT, ONCE
from rmaplab.rmap.cow_context import CowContextRmap


def swap_out(space: Space, page: int, pages: int = 1, pid: int = 1) -> int:
    return space.machine.swap_out(space.machine.mm_of(pid), at(page), pages)


def migrate(space: Space, page: int, pages: int = 1, pid: int = 1) -> int:
    return space.machine.migrate(space.machine.mm_of(pid), at(page), pages)


def merge(space: Space, page: int, other: int, pid: int = 1, other_pid: int = 1, how: int = 0) -> int:
    machine = space.machine
    return machine.ksm_merge(machine.mm_of(pid), at(page), machine.mm_of(other_pid), at(other), how)


@pytest.fixture
def shared(model: Space) -> Space:
    """Two pages that a parent, 1, and its child, 2, share."""
    model.mmap(2, 0)
    model.write(0, 2)
    model.fork()
    return model


# Swap


def test_a_page_goes_to_swap_and_comes_back_exclusive(model: Space) -> None:
    model.mmap(2, 0)
    model.write(0, 2)
    assert swap_out(model, 0) == 1
    assert [model.entry(page) for page in range(2)] == ["swap", "anon"]
    assert model.fault(0, write=True) == 0
    assert model.entry(0) == "anon"
    assert model.has(PTE_EXCLUSIVE, 0)
    assert not model.machine.swap


def test_swap_out_unmaps_a_page_everywhere(shared: Space) -> None:
    assert swap_out(shared, 0) == 1
    assert shared.entry(0) == shared.process(2).entry(0) == "swap"
    (slot,) = shared.machine.swap.values()
    assert slot.count == 2


@pytest.mark.parametrize(("kernel", "cached"), [("6.12", [0]), ("7.3", [])])
def test_readers_of_a_shared_swap_entry_get_one_page(kernel: str, cached: list[int]) -> None:
    """Which stays in the swap cache, in 7.3 until the last of them has read it."""
    space = begin(kernel)
    space.mmap(2, 0)
    space.write(0, 2)
    child = space.fork()
    swap_out(space, 0)
    child.read(0)
    space.read(0)
    assert space.pfn(0) == child.pfn(0)
    assert not space.has(PTE_EXCLUSIVE, 0)
    assert [slot.count for slot in space.machine.swap.values()] == cached
    space.close()


def test_a_writer_does_not_disturb_who_is_still_swapped_out(shared: Space) -> None:
    swap_out(shared, 0)
    shared.process(2).write(0)
    assert shared.entry(0) == "swap"
    shared.write(0)
    assert shared.pfn(0) != shared.process(2).pfn(0)


def test_fork_copies_swap_entries(model: Space) -> None:
    model.mmap(1, 0)
    model.write(0)
    swap_out(model, 0)
    child = model.fork()
    (slot,) = model.machine.swap.values()
    assert slot.count == 2
    model.munmap(0, 1)
    assert slot.count == 1
    child.exit()
    assert not model.machine.swap


def test_swap_entries_move_with_mremap(model: Space) -> None:
    model.mmap(2, 0)
    model.write(0, 2)
    swap_out(model, 0, 2)
    model.mremap(0, 2, to=10)
    assert [model.entry(page) for page in (0, 10, 11)] == ["", "swap", "swap"]
    model.read(10)
    assert model.machine.folios.index.m[model.pfn(10)] == at(0) >> 12


def test_locked_pages_are_not_swapped_out(model: Space) -> None:
    model.mmap(1, 0)
    model.mlock(0, 1)
    assert swap_out(model, 0) == 0
    assert model.entry(0) == "anon"


def test_a_page_that_somebody_locked_elsewhere_stays_mapped_there(shared: Space) -> None:
    shared.process(2).mprotect(0, 2, R)  # else mlock() would copy it
    shared.process(2).mlock(0, 1)
    page = shared.process(2).pfn(0)
    assert swap_out(shared, 0) == 0
    assert shared.process(2).pfn(0) == page
    shared.read(0)
    assert shared.pfn(0) == page


@pytest.mark.parametrize("kernel", ["6.12", "7.3"])
@pytest.mark.parametrize("locked", [False, True])
def test_a_page_that_somebody_locked_gives_its_swap_back_to_whoever_reads_it_last(kernel: str, locked: bool) -> None:
    """mm/memory.c should_try_to_free_swap(): VM_LOCKED here, or a folio that is mlocked, wherever; and since 7.2 always
    where swap is a synchronous device."""
    space = begin(kernel)
    space.mmap(2, 0)
    space.write(0, 2)
    child = space.fork()
    child.mprotect(0, 2, R)  # else mlock() would copy it
    swap_out(space, 0)
    child.read(0)
    if locked:
        child.mlock(0, 1)
    space.read(0)
    assert space.pfn(0) == child.pfn(0)
    assert (space.pfn(0) in space.machine.slot_of) == (kernel == "6.12" and not locked)
    space.close()


# Migration


def test_migration_replaces_a_page_everywhere(shared: Space) -> None:
    old = shared.pfn(0)
    assert migrate(shared, 0) == 1
    assert shared.pfn(0) == shared.process(2).pfn(0) != old
    assert shared.mapcount(0) == 2


def test_migration_remembers_that_an_entry_was_dirty(model: Space) -> None:
    """try_to_migrate_one(): folio_mark_dirty(), so that a page written after MADV_FREE is not dropped."""
    model.mmap(1, 0)
    model.write(0)
    model.madvise(0, 1, MADV_FREE)
    assert migrate(model, 0) == 1
    assert not model.machine.folios.flags.m[model.pfn(0)] & FOLIO_DIRTY
    model.write(0)
    assert migrate(model, 0) == 1
    assert model.machine.folios.flags.m[model.pfn(0)] & FOLIO_DIRTY


def test_an_exclusive_page_stays_exclusive_and_writable(model: Space) -> None:
    model.mmap(1, 0)
    model.write(0)
    old = model.pfn(0)
    index = model.machine.folios.index.m[old]
    assert migrate(model, 0) == 1
    assert model.pfn(0) != old
    assert model.has(PTE_EXCLUSIVE, 0) and model.has(PTE_WRITE, 0)
    assert model.machine.folios.index.m[model.pfn(0)] == index


def test_a_moved_page_is_found_by_migration(shared: Space) -> None:
    shared.process(2).mremap(0, 2, to=10)
    assert migrate(shared, 0) == 1
    assert shared.pfn(0) == shared.process(2).pfn(10)


def test_migration_has_nothing_to_do_where_nothing_is(model: Space) -> None:
    model.mmap(2, 0)
    model.read(0)
    assert migrate(model, 0, 2) == 0


# Referenced


def test_references_are_counted_once(shared: Space) -> None:
    machine = shared.machine
    shared.process(2).read(0)
    first = machine.referenced(machine.mm_of(1), at(0), 1)
    assert first >= 1
    assert machine.referenced(machine.mm_of(1), at(0), 1) == 0


# KSM


@pytest.fixture
def alike(model: Space) -> Space:
    """Two pages that KSM may merge."""
    model.mmap(4, 0)
    model.write(0, 4)
    model.madvise(0, 4, MADV_MERGEABLE)
    return model


def test_two_pages_become_one_that_nobody_may_write(alike: Space) -> None:
    gone = alike.pfn(1)
    assert merge(alike, 0, 1) == 0
    assert alike.pfn(0) == alike.pfn(1) != gone
    for page in (0, 1):
        assert alike.entry(page) == "ksm"
        assert not alike.has(PTE_EXCLUSIVE, page) and not alike.has(PTE_WRITE, page)


def test_a_write_to_a_ksm_page_copies_it_even_for_the_last(alike: Space) -> None:
    merge(alike, 0, 1)
    page = alike.pfn(0)
    alike.write(0)
    assert alike.entry(0) == "anon" and alike.pfn(0) != page
    alike.write(1)
    assert alike.entry(1) == "anon" and alike.pfn(1) != page


def test_unrelated_processes_share_a_ksm_page(alike: Space) -> None:
    other = alike.stranger()
    other.mmap(1, 20)
    other.write(20)
    other.madvise(20, 1, MADV_MERGEABLE)
    assert merge(alike, 0, 20, other_pid=other.pid) == 0
    assert alike.pfn(0) == other.pfn(20)
    other.exit()
    assert alike.mapcount(0) == 1


def test_unmergeable_gives_everybody_a_page_again(alike: Space) -> None:
    merge(alike, 0, 1)
    assert alike.madvise(0, 4, MADV_UNMERGEABLE) == 0
    assert alike.entry(0) == alike.entry(1) == "anon"
    assert alike.pfn(0) != alike.pfn(1)


@pytest.mark.parametrize(
    ("kernel", "how", "entry"), [("6.1", AS_FOUND, "ksm"), ("6.1", 0, "anon"), ("6.12", AS_FOUND, "anon")]
)
def test_what_no_access_is_allowed_to_stays_merged_in_6_1(kernel: str, how: int, entry: str) -> None:
    """break_ksm() finds nothing there with follow_page().  A page that the model merged by itself comes back: with a
    place that no walk finds it could say nothing of a design."""
    space = begin(kernel)
    space.mmap(2, 0)
    space.write(0, 2)
    space.madvise(0, 2, MADV_MERGEABLE)
    mm = space.machine.mm_of(1)
    assert space.machine.ksm_merge(mm, at(0), mm, at(1), how) == 0
    space.mprotect(0, 2, N)
    space.madvise(0, 2, MADV_UNMERGEABLE)
    assert [space.entry(page) for page in (0, 1)] == [entry, entry]
    space.close()


def emptied_place(space: Space) -> None:
    """Page 20 was merged with page 1, forked and moved away; a page that came later, of another anon_vma, is there now.
    What the child, 2, has there is a copy that the place of page 20 led to."""
    space.mmap(1, 20)
    space.write(20)
    space.madvise(20, 1, MADV_MERGEABLE)
    merge(space, 1, 20)
    space.fork()
    space.mremap(20, 1, to=30, flags=MOVE | MREMAP_DONTUNMAP)
    space.write(20)


def test_a_place_is_not_merged_again_while_a_child_has_a_copy(alike: Space) -> None:
    emptied_place(alike)
    assert merge(alike, 1, 20) == -EBUSY
    page = alike.process(2).pfn(20)
    assert (alike.machine.mm_of(2), at(20)) in {(vma.mm, addr) for vma, addr in alike.machine.leader.walk(page)}
    alike.process(2).exit()
    assert merge(alike, 1, 20) == 0, "nobody has a copy any more"


def test_who_looks_for_a_copy_of_a_ksm_page_gives_back_what_the_walk_held() -> None:
    """cow_context holds the address space that it looks into; a walk that was left half-way kept it for ever."""
    space = begin(designs=(CowContextRmap,))
    space.mmap(4, 0)
    space.write(0, 4)
    space.madvise(0, 4, MADV_MERGEABLE)
    merge(space, 1, 0)
    child = space.fork()
    child.mremap(0, 1, to=30)
    swap_out(space, 1)
    space.read(1)
    assert [space.machine.mm_of(pid).users for pid in (1, 2)] == [1, 1]
    space.close()


def test_linux_merges_it_and_misses_the_copy_until_ksmd_comes_by(alike: Space) -> None:
    """One rmap_item stands for an address: with the new place the anon_vma goes that led to the copies
    (mm/ksm.c cmp_and_merge_page(), try_to_merge_with_ksm_page())."""
    emptied_place(alike)
    machine = alike.machine
    assert machine.ksm_merge(machine.mm_of(1), at(1), machine.mm_of(1), at(20), AS_FOUND) == 0
    page = alike.process(2).pfn(20)
    assert machine.mm_of(2) not in {vma.mm for vma, addr in machine.leader.walk(page) if addr == at(20)}


def test_no_ksm_page_moves(alike: Space) -> None:
    """mremap() unmerges first: KSM finds its pages by address."""
    merge(alike, 0, 1)
    alike.mremap(0, 1, to=10)
    assert alike.entry(10) == "anon"
    assert alike.entry(1) == "ksm"


@pytest.mark.parametrize("mergeable", [True, False])
def test_ksmd_forgets_a_place_in_a_vma_that_it_does_not_visit(model: Space, mergeable: bool) -> None:
    """mm/ksm.c scan_get_next_rmap_item() passes VMAs that are not mergeable, also where they map the page."""
    model.mmap(4, 0)
    model.write(0, 4)
    child = model.fork()
    for space, page in ((model, 0), (model, 1), (child, 3)):
        space.madvise(page, 1, MADV_MERGEABLE)
    assert merge(model, 0, 1, how=AS_FOUND) == merge(model, 0, 3, other_pid=child.pid, how=AS_FOUND) == 0
    child.mremap(0, 1, to=3)  # the copy that fork made, over a place
    if mergeable:
        child.madvise(3, 1, MADV_MERGEABLE)
    assert child.pfn(3) == model.pfn(0)
    merge(model, 0, 0, how=FORGET)
    kept = [(place.id, addr) for place, addr in model.machine.ksm_pages[model.pfn(0)]]
    assert ((child.machine.mm_of(child.pid).id, at(3)) in kept) == mergeable
    assert len(kept) == 2 + mergeable


def test_ksm_pages_go_to_swap_and_come_back_apart(alike: Space) -> None:
    merge(alike, 0, 1)
    assert swap_out(alike, 0) == 1
    assert alike.entry(0) == alike.entry(1) == "swap"
    alike.write(0)
    alike.write(1)
    assert alike.entry(0) == alike.entry(1) == "anon"
    assert alike.pfn(0) != alike.pfn(1)


def test_a_ksm_page_that_stays_in_the_swap_cache_is_mapped_again_where_it_was(alike: Space) -> None:
    """mm/memory.c do_swap_page(), ksm_might_need_to_copy(): its own page needs no copy."""
    merge(alike, 0, 1)
    page = alike.pfn(1)
    alike.mprotect(1, 1, R)  # else mlock() would copy it
    alike.mlock(1, 1)
    assert swap_out(alike, 0) == 0
    assert alike.entry(0) == "swap" and alike.pfn(1) == page
    alike.read(0)
    assert alike.pfn(0) == page


@pytest.mark.parametrize("advised", [None, 0, 1])
@pytest.mark.parametrize("how", [0, AS_FOUND])
def test_only_what_is_advised_is_merged(model: Space, advised: int | None, how: int) -> None:
    model.mmap(2, 0)
    model.write(0, 2)
    if advised is not None:
        model.madvise(advised, 1, MADV_MERGEABLE)
    mm = model.machine.mm_of(1)
    assert model.machine.ksm_merge(mm, at(0), mm, at(1), how) == -EINVAL
    assert model.pfn(0) != model.pfn(1)


# UFFDIO_MOVE


def test_a_page_moves_and_its_index_with_it(model: Space) -> None:
    model.mmap(2, 0)
    model.mmap(2, 10)
    model.write(0, 2)
    page = model.pfn(1)
    assert model.uffd_move(10, 0, 2) == 2 * PAGE
    assert [model.entry(page) for page in (0, 1)] == ["", ""]
    assert model.pfn(11) == page
    assert model.machine.folios.index.m[page] == at(11) >> 12


@pytest.mark.parametrize(
    ("target", "source", "error"),
    [
        pytest.param(11, 0, -EEXIST, id="the target has a page"),
        pytest.param(10, 2, -ENOENT, id="the source has none"),
        pytest.param(10, 1, -EBUSY, id="the source is shared"),
        pytest.param(20, 0, -EINVAL, id="the target is a file's"),
        pytest.param(22, 0, -EINVAL, id="the target has other rights"),
        pytest.param(60, 0, -ENOENT, id="the target is not mapped"),
        pytest.param(0, 0, -EEXIST, id="the target is the source"),
    ],
)
def test_what_may_not_move(model: Space, target: int, source: int, error: int) -> None:
    model.mmap(3, 0)
    model.mmap(2, 10)
    model.mmap(1, 20, RW, FILE, DISK)
    model.mmap(1, 22, R)
    model.write(1)
    model.write(11)
    model.fork()
    model.write(11)
    model.write(0)
    assert model.uffd_move(target, source, 1) == error


def test_shared_memory_does_not_move(model: Space) -> None:
    model.mmap(1, 0, RW, MAP_SHARED | MAP_FIXED, DISK)
    model.mmap(1, 10)
    model.write(0)
    assert model.uffd_move(10, 0, 1) == -EINVAL


def test_a_page_in_swap_moves_too(model: Space) -> None:
    model.mmap(1, 0)
    model.mmap(1, 10)
    model.write(0)
    swap_out(model, 0)
    assert model.uffd_move(10, 0, 1) == PAGE
    assert [model.entry(page) for page in (0, 10)] == ["", "swap"]
    model.read(10)
    assert model.machine.folios.index.m[model.pfn(10)] == at(10) >> 12


# Large folios


def large(space: Space, page: int, pid: int = 1) -> int:
    """Pages of the folio mapped there."""
    return space.machine.folios.nr_pages(space.process(pid).pfn(page))


def a_large_space(kernel: str = REFERENCE) -> Space:
    space = begin(kernel, large_folios=3)
    space.mmap(16, 0)
    space.write(1)
    return space


def test_a_fault_may_bring_a_large_folio() -> None:
    space = a_large_space()
    assert large(space, 0) == 8
    assert [space.entry(page) for page in (0, 7, 8)] == ["anon", "anon", ""]
    assert space.pfn(7) - space.pfn(0) == 7
    space.close()


def test_a_large_folio_fits_into_its_vma_and_between_other_pages() -> None:
    space = begin(large_folios=3)
    space.mmap(6, 1)
    space.write(3)
    assert large(space, 3) < 8
    assert space.machine.folios.order.m[space.pfn(3)] >= 0
    space.close()


def test_a_part_that_is_unmapped_leaves_the_rest_mapped() -> None:
    space = a_large_space()
    space.munmap(2, 3)
    assert [space.entry(page) for page in range(8)] == ["anon"] * 2 + [""] * 3 + ["anon"] * 3
    assert large(space, 6) == 8
    in_use = space.machine.folios.in_use
    space.munmap(0, 16)
    assert space.machine.folios.in_use == in_use - 8
    space.close()


def test_copy_on_write_copies_one_page_of_a_large_folio() -> None:
    space = a_large_space()
    child = space.fork()
    child.write(3)
    assert large(space, 3, 2) == 1 or child.pfn(3) != space.pfn(3)
    assert space.pfn(4) == child.pfn(4)
    space.close()


def test_swap_out_splits_a_large_folio() -> None:
    space = a_large_space()
    space.write(0, 8)
    assert swap_out(space, 0, 8) == 8
    assert [space.entry(page) for page in range(8)] == ["swap"] * 8
    space.close()


def test_migration_takes_a_large_folio_as_a_whole() -> None:
    space = a_large_space()
    old = space.pfn(0)
    assert migrate(space, 0, 1) == 8
    assert large(space, 0) == 8
    assert space.pfn(0) != old
    space.close()


def test_the_first_page_decides_whether_a_large_folio_is_split_for_one_that_moves() -> None:
    space = a_large_space()
    space.mmap(2, 20)
    space.write(0, 8)
    space.madvise(0, 1, MADV_DONTNEED)
    assert space.machine.folios.exclusive.m[space.pfn(1) - 1]  # that was its first page, and nothing maps it any more
    page = space.pfn(5)
    assert space.uffd_move(20, 5, 1) != -EBUSY
    assert (space.pfn(20), large(space, 20), large(space, 6)) == (page, 1, 1)
    space.close()


def test_a_shared_first_page_keeps_an_exclusive_one_from_moving() -> None:
    space = a_large_space()
    space.mmap(2, 20)
    space.write(0, 8)
    space.madvise(4, 4, MADV_DONTFORK)
    child = space.fork()
    assert space.uffd_move(20, 5, 1) == -EBUSY
    assert large(space, 5) == 8
    child.exit()
    space.madvise(0, 1, MADV_DONTNEED)
    assert space.uffd_move(20, 5, 1) == -EBUSY
    space.close()


def test_a_large_folio_that_was_freed_goes_without_swap() -> None:
    space = a_large_space()
    space.madvise(0, 8, MADV_FREE)
    assert swap_out(space, 3) == 8
    assert [space.entry(page) for page in range(8)] == [""] * 8
    space.close()


def test_reclaim_drops_freed_pages_up_to_one_that_was_written_to_since() -> None:
    space = a_large_space("6.12")
    space.madvise(0, 8, MADV_FREE)
    space.write(2)
    assert space.machine.swap_out(space.mm, at(0), 1, ONCE) == 0
    assert [space.entry(page) for page in range(8)] == ["", ""] + ["anon"] * 6
    assert large(space, 2) == 8
    assert swap_out(space, 2) == 1  # it is split, and what was never written to gives way to the zero page
    assert [space.entry(page) for page in range(8)] == ["", "", "swap"] + ["zero"] * 5
    space.close()


def test_nothing_is_dropped_of_what_ageing_has_seen_in_use() -> None:
    space = a_large_space()
    space.madvise(0, 8, MADV_FREE)
    space.write(2)
    space.machine.swap_out(space.mm, at(0), 1, KEPT)
    assert [space.entry(page) for page in range(8)] == ["swap"] * 8
    space.close()


@pytest.mark.parametrize(("locked", "zeroes"), [(0, [1, 2]), (1, []), (2, [1])])
def test_zeroes_are_kept_for_all_to_whom_a_walk_comes_after_a_locked_vma(locked: int, zeroes: list[int]) -> None:
    space = a_large_space()
    if locked == 1:
        space.mlock(0, 8)
    child = space.fork()
    if locked == 2:
        child.mlock(0, 8, MLOCK_ONFAULT)
    machine = space.machine
    split_folio(machine, machine.folios.head.m[space.pfn(5)])
    assert [pid for pid in (1, 2) if space.process(pid).entry(5) == "zero"] == zeroes
    space.close()


def test_pages_that_a_split_finds_clean_go_without_swap() -> None:
    """mm/huge_memory.c __split_folio_to_order(): what a folio says of itself holds for its pages; only an entry that is
    dirty makes it dirty."""
    space = a_large_space()
    space.madvise(0, 8, MADV_FREE)
    split_folio(space.machine, space.pfn(0))
    assert large(space, 1) == 1
    swap_out(space, 0, 8)
    assert "swap" not in [space.entry(page) for page in range(8)]
    space.close()
