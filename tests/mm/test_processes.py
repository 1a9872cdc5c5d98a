# SPDX-License-Identifier: GPL-2.0-or-later
"""exec, fork and exit."""

import pytest

from mm.space import ANON, DISK, FILE, PAGE, RW, R, Space, at
from rmaplab.mm.abi import CLONE_VFORK, CLONE_VM, MAP_ANONYMOUS, MAP_FIXED, MAP_LOCKED, MAP_SHARED
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.mm.vma import VM_LOCKED
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.trace.events import Event


def test_a_childs_vmas_are_its_parents(space: Space) -> None:
    space.map(0, 2)
    space.map(4, 2, R, FILE, DISK, 9)
    space.map(8, 2, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED)
    space.fork()
    assert space.vmas(2) == space.vmas(1)
    assert space.pgoff(4, 2) == 9


def test_a_child_inherits_no_locks(space: Space) -> None:
    space.map(0, 2, flags=ANON | MAP_LOCKED)
    space.fork()
    assert not space.vma(0, 2).flags & VM_LOCKED
    assert space.vma(0, 1).flags & VM_LOCKED


def test_only_vmas_with_anonymous_pages_have_their_entries_copied(space: Space) -> None:
    space.map(0, 2)
    space.read(0, 2)
    space.map(4, 2, R, FILE, DISK)
    space.read(4, 2)
    space.map(8, 2)
    space.read(8)
    space.write(9)
    space.fork()
    assert [space.entry(page, 2) for page in (0, 8, 9)] == ["", "zero", "anon"]
    assert not space.vma(0, 2).prepared


def test_forks_of_forks_share_one_page(space: Space) -> None:
    space.map(0, 1)
    space.write(0)
    space.fork(1, 2)
    space.fork(2, 3)
    space.fork(2, 4)
    assert space.mapcount(0) == 4
    space.exit(2)
    assert space.mapcount(0) == 3
    space.write(0, pid=4)
    assert space.mapcount(0) == 2


def test_what_a_child_does_to_its_vmas_is_its_own(space: Space) -> None:
    space.map(0, 4)
    space.write(0, 4)
    space.fork()
    space.unmap(1, 1, pid=2)
    space.protect(2, 1, R, pid=2)
    space.move(3, 1, 20, pid=2)
    assert space.vmas(1) == "0-4 rw"
    assert space.vmas(2) == "0-1 rw, 2-3 r, 20-21 rw"


@pytest.mark.parametrize("flags", [CLONE_VM, CLONE_VM | CLONE_VFORK])
def test_a_shared_address_space_lives_until_its_last_user_is_gone(model: Space, flags: int) -> None:
    model.map(0, 1)
    model.fork(1, 2, flags)
    model.write(0, pid=2)
    assert model.entry(0, 1) == "anon"
    model.exit(1)
    assert model.entry(0, 2) == "anon"
    model.exit(2)
    assert not model.machine.mms
    assert model.machine.folios.in_use == 0


def test_exec_after_vfork_leaves_the_parents_address_space_alone(model: Space) -> None:
    model.map(0, 1)
    model.write(0)
    model.fork(1, 2, CLONE_VM | CLONE_VFORK)
    model.do(Event("exec", 2, at(1000), 3 * PAGE, offset=at(2000)))
    assert model.entry(0, 1) == "anon"
    assert model.machine.mm_of(2) is not model.machine.mm_of(1)


def test_exit_frees_everything(model: Space) -> None:
    model.map(0, 8)
    model.write(0, 8)
    model.machine.swap_out(model.machine.mm_of(1), at(0), 4)
    model.exit(1)
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
        model.do(impossible)


def test_a_machine_needs_a_design() -> None:
    with pytest.raises(HistoryError, match="at least one design"):
        Machine(PROFILES[REFERENCE], [])
    with pytest.raises(HistoryError, match="leader 1 is not one of the 1 designs"):
        Machine(PROFILES[REFERENCE], [AnonVmaRmap], leader=1)
    with pytest.raises(HistoryError, match=r"0 \(off\) to 9"):
        Machine(PROFILES[REFERENCE], [AnonVmaRmap], large_folios=10)
