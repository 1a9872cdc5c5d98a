# SPDX-License-Identifier: GPL-2.0-or-later
"""mmap, munmap, mprotect, brk and mlock: where things go, and what is refused."""

import pytest

from mm.space import ANON, DISK, FILE, PAGE, RW, N, R, Space, at, begin, do
from rmaplab.mm.abi import (
    EEXIST,
    EFAULT,
    EINVAL,
    ENOMEM,
    EOVERFLOW,
    EPERM,
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_DROPPABLE,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_LOCKED,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MCL_CURRENT,
    MCL_FUTURE,
    MCL_ONFAULT,
    MLOCK_ONFAULT,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
)
from rmaplab.mm.pagetable import LEAF_SHIFT, PTE_DIRTY
from rmaplab.mm.vma import (
    TASK_SIZE,
    VM_ACCOUNT,
    VM_DONTEXPAND,
    VM_DROPPABLE,
    VM_IO,
    VM_LOCKED,
    VM_LOCKONFAULT,
    VM_MIXEDMAP,
    VM_NORESERVE,
    VM_PFNMAP,
    File,
)
from rmaplab.trace.events import Event
from rmaplab.trace.history import Header
from rmaplab.trace.play import Player

HINT = MAP_PRIVATE | MAP_ANONYMOUS


# Placement


def test_a_free_hint_is_taken(space: Space) -> None:
    assert space.mmap(2, 7, flags=HINT) == 7


def test_a_hint_is_rounded_down_to_a_page(space: Space) -> None:
    assert do(space, Event("mmap", 1, at(7) + 100, PAGE, RW, HINT)) == at(7)


def test_an_occupied_hint_is_not_taken(space: Space) -> None:
    space.mmap(2, 7)
    assert space.mmap(2, 8, flags=HINT) != 8
    assert space.vmas() == "7-9 rw"


def test_without_a_hint_mappings_go_top_down_and_merge(space: Space) -> None:
    mm = space.machine.mm_of(1)
    first = space.mmap(2)
    second = space.mmap(3)
    assert first == (mm.mmap_base - at(0)) // PAGE - 2
    assert second == first - 3
    vma = mm.tree.at(at(second))
    assert vma is not None and vma.nr_pages == 5


def test_a_gap_that_fits_is_filled_from_above(space: Space) -> None:
    top = space.mmap(10)
    space.munmap(top + 2, 2)
    space.munmap(top + 6, 3)
    assert space.mmap(2, prot=R) == top + 7
    assert space.mmap(2, prot=R) == top + 2
    assert space.mmap(2, prot=R) == top - 2


def test_two_megabytes_are_placed_for_a_huge_page(space: Space) -> None:
    """thp_get_unmapped_area(): a multiple of 2 MiB without a hint goes to a multiple of 2 MiB, if there is room;
    other lengths go right below what is there."""
    first = space.mmap(1)
    assert space.mmap(513, prot=R) == first - 513
    assert at(space.mmap(512)) % (2 << 20) == 0
    assert at(space.mmap(1024)) % (2 << 20) == 0


def test_room_is_left_below_a_stack(space: Space) -> None:
    stack = space.mmap(2, flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN)
    assert space.mmap(2) == stack - 256 - 2


def test_a_fixed_mapping_replaces_what_is_there(space: Space) -> None:
    space.mmap(6, 0)
    space.write(0, 6)
    assert space.mmap(2, 2, R) == 2
    assert space.vmas() == "0-2 rw, 2-4 r, 4-6 rw"
    assert [space.entry(page) for page in range(6)] == ["anon", "anon", "", "", "anon", "anon"]


def test_noreplace_replaces_nothing(space: Space) -> None:
    space.mmap(2, 0)
    assert space.mmap(2, 1, flags=HINT | MAP_FIXED_NOREPLACE) == -EEXIST
    assert space.mmap(2, 2, flags=HINT | MAP_FIXED_NOREPLACE) == 2
    assert space.vmas() == "0-4 rw"


def test_populate_faults_everything_in(space: Space) -> None:
    space.mmap(3, 0, flags=ANON | MAP_POPULATE)
    assert [space.entry(page) for page in range(3)] == ["anon"] * 3
    space.mmap(2, 4, R, ANON | MAP_POPULATE)
    assert [space.entry(page) for page in (4, 5)] == ["zero"] * 2
    space.mmap(2, 8, N, ANON | MAP_POPULATE)
    assert space.entry(8) == ""


def test_populate_does_not_dirty_a_shared_mapping(model: Space) -> None:
    """It faults for writing only where that breaks copy-on-write (populate_vma_page_range())."""
    model.mmap(1, 0, RW, MAP_SHARED | MAP_FIXED | MAP_POPULATE, DISK)
    assert model.entry(0) == "file" and not model.has(PTE_DIRTY, 0)


def test_a_locked_mapping_is_populated(space: Space) -> None:
    space.mmap(2, 0, flags=ANON | MAP_LOCKED)
    assert space.entry(1) == "anon"
    assert space.vma(0).flags & VM_LOCKED


def test_what_is_accounted(space: Space) -> None:
    space.mmap(1, 0)
    space.mmap(1, 2, R)
    space.mmap(1, 4, flags=ANON | MAP_NORESERVE)
    assert [bool(space.vma(page).flags & VM_ACCOUNT) for page in (0, 2, 4)] == [True, False, False]
    assert space.vma(4).flags & VM_NORESERVE
    space.mprotect(2, 1, RW)
    assert space.vma(2).flags & VM_ACCOUNT


def test_droppable_is_bit_40() -> None:
    """include/linux/mm.h VM_DROPPABLE_BIT; bit 38 is VM_UFFD_MINOR's."""
    assert VM_DROPPABLE == 1 << 40


@pytest.mark.parametrize(
    ("special", "entry"), [(VM_DONTEXPAND, "file"), (VM_MIXEDMAP, "file"), (VM_PFNMAP, ""), (VM_IO, "")]
)
def test_a_drivers_mapping_is_populated_if_it_has_pages(model: Space, special: int, entry: str) -> None:
    """mm/gup.c __mm_populate() passes over VM_IO and VM_PFNMAP alone."""
    device = File(7, "device", special=special)
    flags = MAP_SHARED | MAP_FIXED | MAP_POPULATE
    assert model.machine.mmap(model.mm, at(0), PAGE, RW, flags, device, 0) == at(0)
    assert model.entry(0) == entry


def test_the_lowest_address_is_a_setting(model: Space) -> None:
    """sysctl vm.mmap_min_addr: 64 KiB where nobody set it otherwise."""
    low = Event("mmap", 1, 0x1000, PAGE, RW, ANON)
    assert do(model, low) == -EPERM
    player = Player(model.machine, Header(recorder="", mmap_min_addr=0x1000))
    assert player.do(low) == 0x1000


def test_below_the_lowest_address_root_may_map_and_that_is_in_the_history(model: Space) -> None:
    """CAP_SYS_RAWIO (security/commoncap.c cap_mmap_addr()).  A hint is no address."""
    player = Player(model.machine, Header(recorder=""))
    low = Event("mmap", 1, 0x1000, PAGE, RW, ANON, result=0x1000)
    moved = Event("mremap", 1, 0x1000, PAGE, flags=MREMAP_MAYMOVE | MREMAP_FIXED, length2=PAGE, addr2=0, result=0)
    hint = Event("mmap", 1, 0x2000, PAGE, RW, HINT, result=player.machine.mmap_min_addr)
    player.play([low, moved, hint])
    assert player.differences == [] and player.machine.mm_of(1).tree.at(0) is not None
    low.addr = 0x3000  # its result is of another
    player.play([low])
    assert [difference.got for difference in player.differences] == [-EPERM]


def test_how_many_vmas_there_may_be_is_a_setting(model: Space) -> None:
    """sysctl vm.max_map_count."""
    player = Player(model.machine, Header(recorder="", max_map_count=3))
    results = [player.do(Event("mmap", 1, at(2 * number), PAGE, RW, ANON)) for number in range(6)]
    assert results[0] == at(0) and results[-1] == -ENOMEM


def test_droppable_memory_is_private_and_never_locked(space: Space) -> None:
    assert space.mmap(1, 0, flags=MAP_DROPPABLE | MAP_ANONYMOUS | MAP_FIXED) == 0
    assert space.mmap(1, 1, flags=MAP_DROPPABLE | MAP_ANONYMOUS | MAP_FIXED | MAP_LOCKED) == -EINVAL
    assert space.mlock(0, 1) == 0
    assert space.vma(0).flags & (VM_DROPPABLE | VM_LOCKED) == VM_DROPPABLE, "passed over"


@pytest.mark.parametrize(
    ("event", "error"),
    [
        pytest.param(Event("mmap", 1, at(0), 0, RW, ANON), -EINVAL, id="no length"),
        pytest.param(Event("mmap", 1, at(0) + 1, PAGE, RW, ANON), -EINVAL, id="fixed and not aligned"),
        pytest.param(Event("mmap", 1, at(0), PAGE, RW, FILE, file=DISK, offset=100), -EINVAL, id="offset not aligned"),
        pytest.param(Event("mmap", 1, at(0), PAGE, RW, MAP_ANONYMOUS | MAP_FIXED), -EINVAL, id="neither kind"),
        pytest.param(Event("mmap", 1, 0, TASK_SIZE + PAGE, RW, HINT), -ENOMEM, id="larger than the address space"),
        pytest.param(Event("mmap", 1, 0, 2**64 - 1, RW, HINT), -ENOMEM, id="length wraps around"),
        pytest.param(Event("mmap", 1, TASK_SIZE - PAGE, 2 * PAGE, RW, ANON), -ENOMEM, id="fixed beyond the end"),
        pytest.param(
            Event("mmap", 1, at(0), PAGE, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN),
            -EINVAL,
            id="shared memory that grows down",
        ),
        pytest.param(
            Event("mmap", 1, at(0), PAGE, RW, FILE | MAP_GROWSDOWN, file=DISK), -EINVAL, id="file that grows down"
        ),
        pytest.param(
            Event("mmap", 1, at(0), 2 * PAGE, RW, FILE, file=DISK, offset=2**63 - PAGE), -EOVERFLOW, id="file too long"
        ),
        pytest.param(Event("munmap", 1, at(0) + 1, PAGE), -EINVAL, id="munmap not aligned"),
        pytest.param(Event("munmap", 1, at(0), 0), -EINVAL, id="munmap of nothing"),
        pytest.param(Event("munmap", 1, at(0), TASK_SIZE), -EINVAL, id="munmap beyond the end"),
        pytest.param(Event("mprotect", 1, at(0) + 1, PAGE, RW), -EINVAL, id="mprotect not aligned"),
        pytest.param(Event("mprotect", 1, at(0), PAGE, 0x40), -EINVAL, id="mprotect of unknown rights"),
        pytest.param(Event("mprotect", 1, at(0), PAGE, RW), -ENOMEM, id="mprotect of nothing mapped"),
        pytest.param(Event("madvise", 1, at(0) + 1, PAGE, flags=MADV_DONTNEED), -EINVAL, id="madvise not aligned"),
        pytest.param(Event("mlock", 1, at(0), PAGE), -ENOMEM, id="mlock of nothing mapped"),
        pytest.param(Event("mlock", 1, at(0), PAGE, flags=2), -EINVAL, id="mlock with unknown flags"),
        pytest.param(Event("munlock", 1, at(0), PAGE), -ENOMEM, id="munlock of nothing mapped"),
    ],
)
def test_what_is_refused(space: Space, event: Event, error: int) -> None:
    assert do(space, event) == error
    assert space.vmas() == ""


# munmap


def test_unmapping_the_middle_leaves_both_ends(space: Space) -> None:
    space.mmap(6, 0)
    space.write(0, 6)
    assert space.munmap(2, 2) == 0
    assert space.vmas() == "0-2 rw, 4-6 rw"
    assert [space.entry(page) for page in range(6)] == ["anon", "anon", "", "", "anon", "anon"]


def test_unmapping_spans_vmas_and_holes(space: Space) -> None:
    space.mmap(2, 0)
    space.mmap(2, 3, R)
    space.mmap(3, 6)
    assert space.munmap(1, 6) == 0
    assert space.vmas() == "0-1 rw, 7-9 rw"
    assert space.munmap(1, 6) == 0


def test_unmapped_pages_are_free(space: Space) -> None:
    space.mmap(4, 0)
    before = space.machine.folios.in_use
    space.write(0, 4)
    space.munmap(0, 4)
    assert space.machine.folios.in_use == before


# mprotect


def test_rights_change_up_to_the_first_hole(space: Space) -> None:
    space.mmap(2, 0)
    space.mmap(2, 3)
    assert space.mprotect(0, 5, R) == -ENOMEM
    assert space.vmas() == "0-2 r, 3-5 rw"


def test_no_length_changes_nothing(space: Space) -> None:
    assert space.mprotect(0, 0, R) == 0


def test_rights_taken_and_given_back_leave_exclusive_pages_writable(space: Space) -> None:
    space.mmap(2, 0)
    space.write(0)
    page = space.pfn(0)
    space.mprotect(0, 2, R)
    assert space.fault(0, write=True) == -EFAULT
    space.mprotect(0, 2, RW)
    assert space.fault(0, write=True) == 0
    assert space.pfn(0) == page


def test_giving_the_right_to_write_to_locked_private_memory_copies_what_is_mapped(space: Space) -> None:
    space.mmap(2, 0, R, FILE, DISK)
    space.mlock(0, 2)
    assert space.entry(0) == "file"
    space.mprotect(0, 2, RW)
    assert space.entry(0) == "anon"


# brk, where the witness needs its own


def test_the_heap_grows_shrinks_and_stops_at_a_neighbour(model: Space) -> None:
    mm = model.machine.mm_of(1)
    machine = model.machine
    mm.start_brk = mm.brk = at(10)
    assert machine.brk(mm, 0) == at(10)
    assert machine.brk(mm, at(12) + 5) == at(12) + 5
    assert model.vmas() == "10-13 rw"
    assert machine.brk(mm, at(14)) == at(14)
    assert model.vmas() == "10-14 rw"
    assert machine.brk(mm, at(11)) == at(11)
    assert model.vmas() == "10-11 rw"
    assert machine.brk(mm, at(9)) == at(11)
    model.mmap(1, 15, R)
    assert machine.brk(mm, at(15)) == at(11), "a page is left free above the heap"
    assert machine.brk(mm, at(14)) == at(14)


# Locking


def test_mlock_faults_pages_in_and_mlock_on_fault_does_not(space: Space) -> None:
    space.mmap(4, 0)
    assert space.mlock(0, 2) == 0
    assert space.entry(1) == "anon"
    assert space.mlock(2, 2, MLOCK_ONFAULT) == 0
    assert space.entry(2) == ""
    assert space.vma(2).flags & VM_LOCKONFAULT
    assert space.munlock(0, 4) == 0
    assert not space.vma(0).flags & VM_LOCKED


def test_a_lock_ends_at_a_hole(space: Space) -> None:
    space.mmap(2, 0)
    space.mmap(2, 3)
    assert space.mlock(0, 5) == -ENOMEM
    assert [bool(space.vma(page).flags & VM_LOCKED) for page in (0, 3)] == [True, False]


def test_mlockall_is_for_what_is_there_or_for_what_comes(model: Space) -> None:
    model.mmap(2, 0)
    assert model.mlockall(MCL_FUTURE) == 0
    model.mmap(2, 4)
    assert [bool(model.vma(page).flags & VM_LOCKED) for page in (0, 4)] == [False, True]
    assert model.entry(4) == "anon"
    assert model.mlockall(MCL_CURRENT | MCL_ONFAULT) == 0
    assert model.vma(0).flags & VM_LOCKONFAULT
    assert model.entry(0) == ""
    model.mmap(2, 8)
    assert not model.vma(8).flags & VM_LOCKED
    assert model.munlockall() == 0
    assert not any(vma.flags & VM_LOCKED for vma in model.mm.tree)


def test_mlockall_gives_no_right_that_was_not_there(model: Space) -> None:
    model.mmap(2, 0, N)
    flags = model.vma(0).flags
    assert model.mlockall(MCL_CURRENT | MCL_FUTURE) == 0
    model.mmap(2, 4, N)
    assert model.vma(0).flags == model.vma(4).flags == flags | VM_LOCKED


@pytest.mark.parametrize("flags", [0, MCL_ONFAULT, 8])
def test_mlockall_refuses(model: Space, flags: int) -> None:
    assert model.mlockall(flags) == -EINVAL


def test_a_heap_counts_as_locked_only_if_it_is() -> None:
    space = begin()
    process = space.at_home.process(1)
    mm = process.mm
    process.brk(mm.start_brk + 3 * PAGE)
    assert mm.brk == mm.start_brk + 3 * PAGE and mm.locked_vm == 0
    space.mlockall(MCL_FUTURE)
    process.brk(mm.start_brk + 5 * PAGE)
    assert mm.locked_vm == 2
    space.close()


@pytest.mark.parametrize("addr", [0x10000, TASK_SIZE - PAGE], ids=["lowest", "highest"])
def test_the_first_and_the_last_page_table_go_with_their_only_vma(addr: int) -> None:
    """mm/memory.c free_pgtables(): where no VMA is below or above, nothing there needs the table."""
    space = begin()
    process = space.at_home.process(1)
    process.warm(addr, PAGE)
    leaves = process.mm.page_table.leaves
    assert addr >> LEAF_SHIFT in leaves
    process.munmap(addr, PAGE)
    assert addr >> LEAF_SHIFT not in leaves
    space.close()
