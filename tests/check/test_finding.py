# SPDX-License-Identifier: GPL-2.0-or-later
"""A finding comes with a history that is short, possible, and shows it."""

from __future__ import annotations

from acts import mmap
from rmaplab.check.finding import shortest_history
from rmaplab.check.lockstep import Checker
from rmaplab.measure.comparison import Plan, compare
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.rmap.cow_context_prototype import CowContextPrototypeRmap
from rmaplab.trace.events import Event
from rmaplab.trace.play import Player
from rmaplab.trace.script import PAGE
from rmaplab.workloads.remapper import Remapper
from rmaplab.workloads.workload import AREA

PROFILE = PROFILES[REFERENCE]
DESIGNS = [AnonVmaRmap, CowContextPrototypeRmap]
HISTORY = Remapper(buffers=3, growths=2, moves=10, children=2).history()


def quiet(what: str, done: int, total: int) -> None:
    pass


def test_of_a_page_that_moved_only_the_move_is_left() -> None:
    machine = Machine(PROFILE, DESIGNS)
    checker = Checker(machine)
    for played, event in Player(machine, HISTORY.header).steps(HISTORY):
        found = [
            difference
            for difference in checker.check(played - 1, event)
            if difference.kind == "incomplete" and difference.start < 0x7FF000000000  # not a stack
        ]
        if found:
            break
    shortest = shortest_history(HISTORY, found[0], lambda: Machine(PROFILE, DESIGNS))
    ops = [event.op for event in shortest]
    assert (ops[:2], ops[-1]) == (["exec", "mmap"], "mremap")
    assert ops.count("fault") == 1
    assert len(ops) <= 5


def test_every_first_miss_has_one_and_it_shows_the_miss() -> None:
    comparison = compare(HISTORY, Plan(list(DESIGNS), PROFILE, every=1, folios=0), quiet)
    first = next(d for d in comparison.differences if d.kind == "incomplete")
    assert first.design == "cow_context_prototype"
    assert [event.op for event in first.shortest] == ["exec"]
    machine = Machine(PROFILE, DESIGNS)
    Player(machine, HISTORY.header).play(first.shortest)
    assert any(difference.kind == "incomplete" for difference in Checker(machine).check(0))


def test_what_is_excused_is_counted_but_does_not_decide() -> None:
    plan = Plan(list(DESIGNS), PROFILE, excused=frozenset(["cow_context_prototype"]))
    excused, judged = (
        compare(HISTORY, plan, quiet),
        compare(HISTORY, plan._replace(excused=frozenset()), quiet),
    )
    assert excused.figures == judged.figures
    assert excused.figures.counted["incomplete cow_context_prototype"] > 0
    assert (excused.holds, judged.holds) == (True, False)


def test_a_line_leaves_out_what_says_nothing() -> None:
    assert str(Event("fork", 7, pid2=8)) == "fork pid=7 pid2=8"
    assert str(mmap(1, AREA, 2)) == (
        "mmap pid=1 addr=0x7f0000000000 length=0x2000 prot=3 flags=0x100022 result=0x7f0000000000"
    )
    assert str(Event("munmap", 1, PAGE, PAGE, result=-22)) == "munmap pid=1 addr=0x1000 length=0x1000 result=-22"
