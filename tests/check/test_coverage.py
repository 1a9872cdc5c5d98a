# SPDX-License-Identifier: GPL-2.0-or-later
"""A run of random histories says what it reached, and does not hold where an operation never does what it is for."""

from __future__ import annotations

import random
from io import StringIO

import pytest
from rich.console import Console

from rmaplab.check import verify as module
from rmaplab.check import verify_report
from rmaplab.check.coverage import CASES, ENOUGH, HOMECOMING, Reached, missing
from rmaplab.check.histories import OPERATIONS, Author, header
from rmaplab.check.lockstep import Checker
from rmaplab.check.verify import Plan, Verified, verify
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES
from rmaplab.mm.vma import MM, PAGE_SIZE, VM_WIPEONFORK
from rmaplab.rmap import DESIGNS
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.trace.events import FAULT_WRITE, Event
from rmaplab.trace.play import Player

NEWEST = "7.3" if "7.3" in PROFILES else "6.18"


class WipesTheOthers(Machine):
    """fork copies what MADV_WIPEONFORK names, and wipes all else."""

    def fork(self, pid: int, child_pid: int, flags: int = 0) -> MM:
        vmas = self.mm_of(pid).tree.to_list()
        for vma in vmas:
            vma.flags ^= VM_WIPEONFORK
        child = super().fork(pid, child_pid, flags)
        for vma in {*vmas, *child.tree.to_list()}:
            vma.flags ^= VM_WIPEONFORK
        return child


class FindsNothing(Machine):
    """Reclaim looks for no addresses."""

    def swap_out(self, mm: MM, addr: int, nr_pages: int, how: int = 0) -> int:
        return 0


class FindsNoEntries(Machine):
    """Nor does who asks for references."""

    def referenced(self, mm: MM, addr: int, nr_pages: int) -> int:
        return 0


def run(steps: int = ENOUGH, profile: str = "6.18") -> Verified:
    return verify(Plan(designs=("anon_vma",), steps=steps, every=250, profile=profile))


def test_every_operation_of_an_author_has_an_effect_to_wait_for() -> None:
    assert {*CASES} == {*OPERATIONS}


@pytest.mark.parametrize("profile", ["6.12", "6.18"])
def test_a_run_that_is_long_enough_reaches_everything(profile: str) -> None:
    found = run(profile=profile)
    assert found.holds and found.without_effect == []
    assert min(found.reached.values()) >= 5, found.reached
    assert found.reached.get(HOMECOMING, 0) >= 20 or profile == "6.12"


@pytest.mark.parametrize(
    ("machine", "cases"),
    [
        (WipesTheOthers, ["fork: shares pages", "fork: wipes a VMA"]),
        (FindsNothing, ["swap_out: takes pages to swap"]),
        (FindsNoEntries, ["referenced: finds entries"]),
    ],
)
def test_an_operation_without_effect_does_not_hold(
    machine: type[Machine], cases: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page tables agree with every walk all the while."""
    monkeypatch.setattr(module, "Machine", machine)
    found = run()
    assert found.failure is None and found.counts.folios
    assert found.without_effect == cases and not found.holds
    text = StringIO()
    verify_report.print_report(Plan(designs=("anon_vma",)), found, None, Console(file=text, width=100))
    assert cases[0] in text.getvalue() and "Verdict   does not hold" in text.getvalue()


def test_a_short_run_says_what_it_did_not_reach_and_holds() -> None:
    found = run(steps=100)
    assert found.holds and missing(found.reached)
    text = StringIO()
    verify_report.print_report(Plan(designs=("anon_vma",)), found, None, Console(file=text, width=100))
    assert "not reached in these 100 steps: " in text.getvalue() and "Verdict   holds" in text.getvalue()


def test_chance_alone_does_not_bring_pages_home_beside_untouched_memory() -> None:
    def reached(homing: float) -> dict[str, int]:
        author = Author(Machine(PROFILES["6.18"], [AnonVmaRmap]), random.Random(3), homing=homing)
        watched = Reached(author.machine)
        author.begin()
        for _ in range(1500):
            event = author.propose()
            if event is not None:
                watched.begin(event)
                author.play(event)
                watched.end(event)
        return watched.counts

    assert HOMECOMING not in reached(0.0)
    assert reached(0.4)[HOMECOMING] > 5


@pytest.mark.parametrize("kernel", ["6.18", NEWEST])
def test_the_shortest_way_home_into_an_unprepared_vma(kernel: str) -> None:
    """write P, mremap P to Q, map P+1, mremap Q to P: P+1 takes part in the anon_vma of what came home."""
    here, away = 0x10_0000_0000, 0x10_1000_0000
    machine = Machine(PROFILES[kernel], [DESIGNS["anon_vma"], DESIGNS["cow_context"]])
    player = Player(machine, header(), batch=False)
    reached = Reached(machine)
    for event in (
        Event("exec", 1, 0x7FF0_0000_0000, 3 * PAGE_SIZE, offset=0x7FF1_0000_0000),
        Event("mmap", 1, here, PAGE_SIZE, prot=3, flags=0x32),
        Event("fault", 1, here, PAGE_SIZE, flags=FAULT_WRITE),
        Event("mremap", 1, here, PAGE_SIZE, length2=PAGE_SIZE, flags=3, addr2=away),
        Event("mmap", 1, here + PAGE_SIZE, PAGE_SIZE, prot=3, flags=0x32),
        Event("mremap", 1, away, PAGE_SIZE, length2=PAGE_SIZE, flags=3, addr2=here),
    ):
        reached.begin(event)
        event.result = -14
        event.result = player.do(event)
        assert event.result >= 0
        reached.end(event)
    assert reached.counts.get(HOMECOMING) == 1
    vma = machine.mm_of(1).tree.at(here)
    assert vma is not None and vma.prepared and vma.nr_pages == 2
    assert [found.what for found in Checker(machine).check(0) if found.is_error] == []
