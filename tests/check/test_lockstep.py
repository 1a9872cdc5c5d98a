# SPDX-License-Identifier: GPL-2.0-or-later
"""The checker reports what is wrong where it is wrong, once, and counts it every time."""

from collections.abc import Callable, Iterator

import pytest

from histories import lockstep
from rmaplab.check.histories import header
from rmaplab.check.lockstep import Checker, Difference
from rmaplab.check.truth import Truth, invariants
from rmaplab.mm.abi import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import PTE_EXCLUSIVE, PTE_FILE, PTE_KSM, PTE_SHIFT, PTE_WRITE, PTE_ZERO
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import MM, VMA
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.rmap.cow_context import CowContextRmap
from rmaplab.rmap.page_scan import PageScanRmap
from rmaplab.trace.events import FAULT_WRITE, Event
from rmaplab.trace.play import Player

PAGE = 4096
BASE = 0x10_0000_0000
RW = PROT_READ | PROT_WRITE
FIXED = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
START = Event("exec", 1, BASE - 700 * PAGE, 3 * PAGE, offset=BASE - 100 * PAGE)
# A parent and its child share two pages; then the child copies the second.
SHARED = [
    START,
    Event("mmap", 1, BASE, 2 * PAGE, RW, FIXED),
    Event("fault", 1, BASE, 2 * PAGE, flags=FAULT_WRITE),
    Event("fork", 1, pid2=2),
    Event("fault", 2, BASE + PAGE, PAGE, flags=FAULT_WRITE),
]


class Blind(AnonVmaRmap):
    """Never looks into a second address space."""

    name = "blind"

    def walk(self, pfn: int) -> Iterator[tuple[VMA, int]]:
        for place in super().walk(pfn):
            yield place
            return


class Restless(AnonVmaRmap):
    """Looks one page further, too."""

    name = "restless"

    def walk(self, pfn: int) -> Iterator[tuple[VMA, int]]:
        for vma, addr in super().walk(pfn):
            yield vma, addr
            yield vma, addr + 64 * PAGE


def played(*designs: type[ReverseMap], history: list[Event] = SHARED) -> Machine:
    machine = Machine(PROFILES[REFERENCE], designs)
    player = Player(machine, header(), batch=False)
    for event in history:
        player.do(event)
    return machine


def test_right_designs_have_no_difference_but_in_what_they_visit_in_vain() -> None:
    machine = played(AnonVmaRmap, PageScanRmap, CowContextRmap)
    differences = Checker(machine).check(4, SHARED[4])
    assert [(d.kind, d.design, d.maps) for d in differences] == [("missing", "page_scan", False)]
    only = differences[0]
    # The parent's second page: the child's VMA is visited, and has a copy there.
    assert (only.pid, only.start, only.end, only.addr, only.folios) == (2, BASE, BASE + 2 * PAGE, BASE + PAGE, 1)
    assert not only.is_error
    assert "anon_vma visits 0x1000001000" in only.what and "has page" in only.what


def test_an_entry_that_a_walk_misses_is_incomplete_and_missing() -> None:
    differences = Checker(played(AnonVmaRmap, Blind)).check(4)
    # The stack's page and the first page are shared; the parent is found first.
    assert {(d.kind, d.pid, d.maps) for d in differences if d.start >= BASE} == {
        ("incomplete", 2, True),
        ("missing", 2, True),
        ("missing", 2, False),
    }
    assert all(d.design == "blind" for d in differences)


def test_a_place_outside_its_vma_is_stale() -> None:
    differences = Checker(played(AnonVmaRmap, Restless)).check(4)
    assert {d.kind for d in differences} == {"stale"}


def test_what_was_there_before_is_counted_but_not_listed_again() -> None:
    checker = Checker(played(AnonVmaRmap, Blind))
    first = checker.check(4)
    incomplete = checker.counts.designs["blind"].incomplete
    assert first and incomplete
    assert checker.check(5) == []
    assert checker.counts.designs["blind"].incomplete == 2 * incomplete
    assert checker.counts.checks == 2


def test_like_differences_of_one_vma_are_one() -> None:
    history = [*SHARED[:1], Event("mmap", 1, BASE, 20 * PAGE, RW, FIXED),
               Event("fault", 1, BASE, 20 * PAGE, flags=FAULT_WRITE), Event("fork", 1, pid2=2)]  # fmt: skip
    differences = [d for d in Checker(played(AnonVmaRmap, Blind, history=history)).check(3) if d.start == BASE]
    assert [(d.kind, d.folios) for d in differences] == [("incomplete", 20), ("missing", 20)]
    assert "(and 19 more folios)" in differences[0].what


def test_a_limit_is_kept_and_what_it_leaves_out_is_counted_and_comes_next() -> None:
    history = [START, Event("mmap", 1, BASE, 20 * PAGE, RW, FIXED),
               Event("fault", 1, BASE, 20 * PAGE, flags=FAULT_WRITE)]  # fmt: skip
    machine = played(AnonVmaRmap, history=history)
    total = len(Truth(machine))
    checker = Checker(machine, limit=5)
    checks = -(-total // 5)
    for step in range(checks):
        before = checker.counts.folios
        checker.check(step)
        assert checker.counts.folios - before <= 5
    assert checker.counts.folios == total
    assert checker.counts.folios + checker.counts.skipped == checks * total


def test_lockstep_checks_every_nth_event_and_the_last() -> None:
    machine = Machine(PROFILES[REFERENCE], [AnonVmaRmap, Blind])
    player = Player(machine, header(), batch=False)
    differences, counts = lockstep(machine, SHARED, lambda _, event: player.do(event), every=2)
    assert counts.checks == 3
    assert {d.step for d in differences} == {3, 4}
    assert next(d for d in differences if d.step == 3).event == SHARED[3]


def test_lockstep_stops_at_the_first_error_if_told_to() -> None:
    machine = Machine(PROFILES[REFERENCE], [AnonVmaRmap, Blind])
    player = Player(machine, header(), batch=False)
    differences, counts = lockstep(machine, SHARED, lambda _, event: player.do(event), go_on=False)
    assert counts.checks == 4
    assert {d.step for d in differences} == {3}


def test_a_large_folio_is_found_by_any_of_its_pages() -> None:
    """Split by munmap in the middle, a folio of 8 pages stays mapped by two VMAs, each from another page."""
    machine = Machine(PROFILES[REFERENCE], [AnonVmaRmap, PageScanRmap, CowContextRmap], large_folios=3)
    player = Player(machine, header(), batch=False)
    for event in (
        START,
        Event("mmap", 1, BASE, 8 * PAGE, RW, FIXED),
        Event("fault", 1, BASE, PAGE, flags=FAULT_WRITE),
        Event("fork", 1, pid2=2),
        Event("munmap", 1, BASE + 2 * PAGE, 3 * PAGE),
    ):
        player.do(event)
    truth = Truth(machine)
    folios = [folio for folio in truth.mapped_folios() if folio.nr_pages == 8]
    assert [len(folio.entries) for folio in folios] == [5 + 8]
    assert Checker(machine).check(0) == []


def test_a_page_of_a_large_folio_and_its_entry_agree_on_whether_it_is_exclusive() -> None:
    machine = Machine(PROFILES[REFERENCE], [AnonVmaRmap], large_folios=3)
    player = Player(machine, header(), batch=False)
    for event in (START, Event("mmap", 1, BASE, 8 * PAGE, RW, FIXED), Event("fault", 1, BASE, PAGE, flags=FAULT_WRITE)):
        player.do(event)
    assert invariants(machine, Truth(machine)) == []
    machine.folios.exclusive.m[machine.mm_of(1).page_table.get(BASE + 3 * PAGE) >> PTE_SHIFT] = False
    assert any("do not agree on whether it is exclusive" in wrong for wrong in invariants(machine, Truth(machine)))


# Each invariant of the machine, broken by hand.


def spoiled(how: Callable[[Machine, MM], None]) -> list[str]:
    machine = played(AnonVmaRmap)
    assert invariants(machine, Truth(machine)) == []
    how(machine, machine.mm_of(2))
    return invariants(machine, Truth(machine))


def entry_changed(bits: int) -> Callable[[Machine, MM], None]:
    def change(machine: Machine, mm: MM) -> None:
        mm.page_table.set(BASE, mm.page_table.get(BASE) ^ bits)

    return change


def mapcount_raised(machine: Machine, mm: MM) -> None:
    machine.folios.mapcount.m[mm.page_table.get(BASE) >> 12] += 1


def freed(machine: Machine, mm: MM) -> None:
    machine.folios.order.m[mm.page_table.get(BASE) >> 12] = -1


def head_lost(machine: Machine, mm: MM) -> None:
    machine.folios.head.m[mm.page_table.get(BASE) >> 12] += 1


def index_changed(machine: Machine, mm: MM) -> None:
    machine.folios.index.m[mm.page_table.get(BASE) >> 12] += 1


def used_lowered(machine: Machine, mm: MM) -> None:
    mm.page_table.leaf(BASE).used -= 1


def moved_out(machine: Machine, mm: MM) -> None:
    mm.page_table.set(BASE + 64 * PAGE, mm.page_table.get(BASE))
    mm.page_table.set(BASE, 0)


def vma_stretched(machine: Machine, mm: MM) -> None:
    vma = mm.tree.at(BASE)
    assert vma is not None
    vma.start -= 4096 * PAGE


def vma_cut(machine: Machine, mm: MM) -> None:
    vma = mm.tree.at(BASE)
    assert vma is not None
    vma.end -= 100


def locked_twice(machine: Machine, mm: MM) -> None:
    mm.locked_vm += 1


def vma_detached(machine: Machine, mm: MM) -> None:
    vma = mm.tree.at(BASE)
    assert vma is not None
    vma.detached = True


def vma_unprepared(machine: Machine, mm: MM) -> None:
    vma = mm.tree.at(BASE)
    assert vma is not None
    vma.prepared = False


def leaked(machine: Machine, mm: MM) -> None:
    machine.folios.alloc(7)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        (mapcount_raised, "has mapcount 3, but 2 entries"),
        (freed, "is free, but 2 entries map it"),
        (head_lost, "has head"),
        (index_changed, "but its VMA has page offset"),
        (used_lowered, "`used` says"),
        (moved_out, "but no VMA"),
        (vma_stretched, "begins below"),
        (vma_cut, "not page aligned"),
        (locked_twice, "have 0 locked pages, locked_vm is 1"),
        (vma_detached, "belongs elsewhere"),
        (vma_unprepared, "never prepared"),
        (leaked, "neither mapped nor in the swap cache"),
        (entry_changed(PTE_EXCLUSIVE), "is exclusive, but 2 entries"),
        (entry_changed(PTE_WRITE), "mapped writable by an entry that is not exclusive"),
        (entry_changed(PTE_KSM), "do not agree on whether it belongs to KSM"),
        (entry_changed(PTE_FILE), "of no kind or of two"),
        (entry_changed(PTE_ZERO), "of no kind or of two"),
    ],
)
def test_a_broken_machine_is_noticed(how: Callable[[Machine, MM], None], sentence: str) -> None:
    assert any(sentence in found for found in spoiled(how))


@pytest.mark.parametrize("change", [1, -1])
def test_a_swap_slot_with_the_wrong_count_is_noticed(change: int) -> None:
    machine = played(AnonVmaRmap)
    machine.swap_out(machine.mm_of(1), BASE, 1)
    assert invariants(machine, Truth(machine)) == []
    (slot,) = machine.swap.values()
    slot.count += change
    assert any("entries refer to it" in found for found in invariants(machine, Truth(machine)))


def test_shared_memory_has_no_anonymous_entries() -> None:
    history = [START, Event("mmap", 1, BASE, 2 * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED),
               Event("fault", 1, BASE, 2 * PAGE, flags=FAULT_WRITE)]  # fmt: skip
    machine = played(AnonVmaRmap, history=history)
    assert all(addr < BASE for folio in Truth(machine).mapped_folios() for _, addr, _ in folio.entries)


def test_differences_say_which_design() -> None:
    found: list[Difference] = Checker(played(AnonVmaRmap, Blind, Restless)).check(0)
    assert {d.design for d in found} == {"blind", "restless"}
