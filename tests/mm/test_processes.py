# SPDX-License-Identifier: GPL-2.0-or-later
"""exec, fork and exit."""

import pytest

from mm.space import ANON, DISK, FILE, PAGE, RW, R, Space, at, do
from rmaplab.mm.abi import CLONE_VFORK, CLONE_VM, MAP_ANONYMOUS, MAP_FIXED, MAP_LOCKED, MAP_SHARED
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.mm.vma import VM_LOCKED
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.trace.events import Event


def test_a_childs_vmas_are_its_parents(space: Space) -> None:
    space.mmap(2, 0)
    space.mmap(2, 4, R, FILE, DISK, 9)
    space.mmap(2, 8, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED)
    child = space.fork()
    assert child.vmas() == space.vmas()
    assert child.pgoff(4) == 9


def test_a_child_inherits_no_locks(space: Space) -> None:
    space.mmap(2, 0, flags=ANON | MAP_LOCKED)
    child = space.fork()
    assert not child.vma(0).flags & VM_LOCKED
    assert space.vma(0).flags & VM_LOCKED


def test_only_vmas_with_anonymous_pages_have_their_entries_copied(space: Space) -> None:
    space.mmap(2, 0)
    space.read(0, 2)
    space.mmap(2, 4, R, FILE, DISK)
    space.read(4, 2)
    space.mmap(2, 8)
    space.read(8)
    space.write(9)
    child = space.fork()
    assert [child.entry(page) for page in (0, 8, 9)] == ["", "zero", "anon"]
    assert not child.vma(0).prepared


def test_forks_of_forks_share_one_page(space: Space) -> None:
    space.mmap(1, 0)
    space.write(0)
    child = space.fork()
    child.fork()
    third = child.fork()
    assert space.mapcount(0) == 4
    child.exit()
    assert space.mapcount(0) == 3
    third.write(0)
    assert space.mapcount(0) == 2


def test_what_a_child_does_to_its_vmas_is_its_own(space: Space) -> None:
    space.mmap(4, 0)
    space.write(0, 4)
    child = space.fork()
    child.munmap(1, 1)
    child.mprotect(2, 1, R)
    child.mremap(3, 1, to=20)
    assert space.vmas() == "0-4 rw"
    assert child.vmas() == "0-1 rw, 2-3 r, 20-21 rw"


@pytest.mark.parametrize("flags", [CLONE_VM, CLONE_VM | CLONE_VFORK])
def test_a_shared_address_space_lives_until_its_last_user_is_gone(model: Space, flags: int) -> None:
    model.mmap(1, 0)
    child = model.fork(flags)
    child.write(0)
    assert model.entry(0) == "anon"
    model.exit()
    assert child.entry(0) == "anon"
    child.exit()
    assert not model.machine.mms
    assert model.machine.folios.in_use == 0


def test_exec_after_vfork_leaves_the_parents_address_space_alone(model: Space) -> None:
    model.mmap(1, 0)
    model.write(0)
    child = model.fork(CLONE_VM | CLONE_VFORK)
    child.exec()
    assert model.entry(0) == "anon"
    assert child.mm is not model.mm


def test_exit_frees_everything(model: Space) -> None:
    model.mmap(8, 0)
    model.write(0, 8)
    model.machine.swap_out(model.mm, at(0), 4)
    model.exit()
    assert model.machine.folios.in_use == 0
    assert not model.machine.swap
    assert model.machine.vma_pool.live == 0
    assert all(pool.live == 0 for pool in model.machine.leader.ledger.pools.values())


def test_a_new_program_has_a_stack_that_moved_and_kept_its_page_offset() -> None:
    machine = Machine(PROFILES[REFERENCE], [AnonVmaRmap])
    mm = machine.exec(1, 0x7FFC_6F8D_3000, 0x21000, 0x7FFF_FFFD_E000, 0x5555_5555_9000)
    (stack,) = mm.tree
    assert (stack.start, stack.end) == (0x7FFC_6F8D_3000, 0x7FFC_6F8F_4000)
    assert stack.pgoff == 0x7FFF_FFFD_E000 >> 12
    addrs, entries = mm.page_table.anon_entries()
    assert len(addrs) > 0
    for addr, entry in zip(addrs.tolist(), entries.tolist(), strict=True):
        assert stack.start <= addr < stack.end
        assert machine.folios.index.m[entry >> 12] == stack.pgoff + ((addr - stack.start) >> 12)


@pytest.mark.parametrize(
    "impossible",
    [
        Event("fork", 7, pid2=8),
        Event("fork", 1, pid2=1),
        Event("exit", 7),
        Event("munmap", 7, at(0), PAGE),
        Event("exec", 2, at(9), PAGE, offset=at(0)),
        Event("exec", 2, at(0) + 1, PAGE, offset=at(9)),
    ],
)
def test_what_cannot_have_happened_is_refused_with_a_sentence(model: Space, impossible: Event) -> None:
    with pytest.raises(HistoryError, match=r"\w+ \w+ \w+"):
        do(model, impossible)


def test_a_machine_needs_a_design() -> None:
    with pytest.raises(HistoryError, match="at least one design"):
        Machine(PROFILES[REFERENCE], [])
    with pytest.raises(HistoryError, match="leader 1 is not one of the 1 designs"):
        Machine(PROFILES[REFERENCE], [AnonVmaRmap], leader=1)
    with pytest.raises(HistoryError, match=r"0 \(off\) to 9"):
        Machine(PROFILES[REFERENCE], [AnonVmaRmap], large_folios=10)


def test_who_is_asked_for_is_who_there_is_now() -> None:
    """A process that has just been asked for execs, exits, and its number is another's."""
    machine = Machine(PROFILES[REFERENCE], [AnonVmaRmap])
    stack = (0x7FFC_0000_0000, 0x21000, 0x7FFC_0000_0000, 0)
    first = machine.exec(1, *stack)
    assert machine.mm_of(1) is first
    second = machine.exec(1, *stack)
    assert machine.mm_of(1) is second is not first
    child = machine.fork(1, 2)
    assert (machine.mm_of(2), machine.mm_of(1)) == (child, second)
    machine.exit(1)
    with pytest.raises(HistoryError, match="there is no process 1: it was never started, or it has exited"):
        machine.mm_of(1)
    again = machine.fork(2, 1)
    assert machine.mm_of(1) is again
