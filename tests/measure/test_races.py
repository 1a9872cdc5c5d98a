# SPDX-License-Identifier: GPL-2.0-or-later
"""Relatives share a lock, strangers do not: on the kernel and in virtual time."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Final

import pytest

from rmaplab.measure.calibration import races
from rmaplab.measure.calibration.calibrate import rules
from rmaplab.measure.calibration.host import Host
from rmaplab.measure.calibration.program import Program
from rmaplab.measure.calibration.races import RACES, WRITERS, Race, simulate, turn_times, with_cost
from rmaplab.measure.cost import HANDOVER, WAKE_UP, WAKING, load_costs

COSTS = load_costs()
needs_two_cpus = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None or len(os.sched_getaffinity(0)) < 2,
    reason="needs Linux, a C compiler and two CPUs",
)


def shared(cost: float) -> float:
    (slow_down,) = simulate(WRITERS, with_cost(COSTS, HANDOVER, cost), rules(), 2).values()
    return slow_down


def test_strangers_do_not_meet() -> None:
    alone = turn_times(WRITERS.unrelated()[:1], COSTS, rules(), 2, WRITERS.watched)
    both = turn_times(WRITERS.unrelated(), COSTS, rules(), 2, WRITERS.watched)
    assert both == pytest.approx([alone[0], alone[0]], rel=0.01)


def test_relatives_slow_each_other_down_the_more_a_handover_costs() -> None:
    assert 1.02 < shared(5.0) < shared(50.0) < shared(200.0)


def test_the_handover_that_made_a_slow_down_is_found_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(races, "MOST", 128.0)
    monkeypatch.setattr(races, "STEPS", 5)
    slow_down = shared(40.0)
    assert shared(races.fit_handover(COSTS, slow_down, rules(), 2)) == pytest.approx(slow_down, rel=0.05)


def test_who_has_to_wake_others_loses_by_it() -> None:
    """In the race of a writer with a reader, who always sleeps when the lock is held."""
    reader = next(race for race in RACES if race.name == "munmap against reclaim").turns[1]
    race = WRITERS._replace(turns=[WRITERS.turns[0], reader])
    cheap, dear = (simulate(race, with_cost(COSTS, WAKING, cost), rules(), 2) for cost in (0.0, 10_000.0))
    assert dear["reclaim"] > cheap["reclaim"] > 1.0


MUNMAP: Final = next(race for race in RACES if race.name == "munmap against reclaim")


def test_racers_do_not_fall_into_step() -> None:
    """Even where each wake-up takes the same time, a little more of it is no more than a little more."""
    costs = [with_cost(with_cost(COSTS, WAKING, 7000), WAKE_UP, ns) for ns in (11_000, 11_200, 11_500)]
    found = [simulate(MUNMAP._replace(watched=10.0), its, rules(), 2)["reclaim"] for its in costs]
    assert max(found) < 1.25 * min(found)


def test_who_spins_out_the_time_of_waking_does_not_sleep() -> None:
    """rwsem_rspin_threshold(): a writer spins on one reader for 10.5 us.  It begins when it has woken that one, 7 us
    after it gave the lock back.  A reader who runs before that is over has to sleep for almost each page, as the
    writer is there again; one who is later finds the writer asleep, and takes the lock from page to page."""
    race = MUNMAP._replace(watched=10.0)
    costs = [with_cost(with_cost(COSTS, WAKING, 7000), WAKE_UP, ns) for ns in (14_000, 20_000)]
    spins, sleeps = (simulate(race, its, rules(), 2)["reclaim"] for its in costs)
    assert spins > 1.5 * sleeps


@needs_two_cpus
def test_who_wakes_is_busy_for_less_time_than_passes_until_the_sleeper_runs() -> None:
    with Host() as host:
        wake_ups = host.wake_ups()
        assert len(wake_ups) == 190 and wake_ups == sorted(wake_ups)
        assert 0 < host.primitive("waking") < wake_ups[-1]


def test_a_racers_turn_is_not_set_up() -> None:
    def set_up(script: Program) -> None:
        script.mmap(4, at=0)

    def turn(script: Program) -> None:
        script.write(0, 4)

    (script,) = Race("two", set_up, [("write", turn)] * 2, 1).related()
    assert [event.op for event in script.history()][-1] == "mmap"
    assert [(pid, [event.op for event in events]) for pid, events in script.racers] == [(2, ["fault"]), (3, ["fault"])]
