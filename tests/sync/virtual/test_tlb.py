# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is interrupted when entries are taken away, and who waits."""

from __future__ import annotations

from functools import partial

import pytest

from rmaplab.sync.locks import CpuMask, SpinLock
from rmaplab.sync.virtual import VirtualTime
from rmaplab.sync.work import LockClass
from sync.virtual.simulation import US, Costs, holding, on, spend

SHOTS: Costs = {"shootdown": 20_000.0, "waking": 5_000.0, "interrupt": 7_000.0}


def computing(time: VirtualTime, ends: list[int]) -> None:
    """10 us, in two parts: who is interrupted meanwhile needs longer."""
    lock = SpinLock(LockClass("own"), time)
    for _ in range(2):
        spend(time, 5 * US)
        holding(time, lock, 0)
    ends.append(time.clock())


def test_who_takes_entries_away_interrupts_who_runs_in_the_space_and_waits() -> None:
    time = on(4, SHOTS)
    space, other = CpuMask(), CpuMask()
    ends: list[int] = []
    flusher: list[int] = []

    def flush() -> None:
        spend(time, US)
        time.flush(space)
        flusher.append(time.clock())

    for its in (space, space, other):
        time.spawn("thread", partial(computing, time, ends), space=its)
    time.spawn("kswapd", flush)
    time.run()
    assert flusher == [US + 25 * US]  # the second target costs what it takes to interrupt another
    assert sorted(ends) == [10 * US, 17 * US, 17 * US]
    assert (time.tlbs.shootdowns, time.tlbs.interrupts, time.tlbs.shooting, time.cpus.spun) == (
        1,
        2,
        25 * US,
        25 * US,
    )


def test_a_process_of_one_thread_interrupts_nobody() -> None:
    time = on(2, SHOTS)
    spaces = [CpuMask(), CpuMask()]
    ends: list[int] = []

    def flush(space: CpuMask) -> None:
        spend(time, US)
        time.flush(space, freed_tables=True)
        ends.append(time.clock())

    for space in spaces:
        time.spawn("process", partial(flush, space), space=space)
    time.run()
    assert ends == [US, US] and time.tlbs.shootdowns == 0
    assert [space.cpus for space in spaces] == [[0], [1]]


@pytest.mark.parametrize("freed_tables", [False, True])
def test_an_idle_cpu_keeps_its_space_and_flushes_by_itself_unless_tables_were_freed(
    freed_tables: bool,
) -> None:
    time = on(2, SHOTS)
    space = CpuMask()

    def flush() -> None:
        spend(time, US)
        time.flush(space, freed_tables)
        assert space.cpus == [0]

    time.spawn("process", lambda: None, cpu=0, space=space)
    time.spawn("kswapd", flush, cpu=1)
    time.run()
    assert time.tlbs.shootdowns == (1 if freed_tables else 0)
    assert time.ended == (21 * US if freed_tables else US)


def test_a_cpu_forgets_a_space_when_it_runs_in_another() -> None:
    time = on(2, SHOTS)
    old, new = CpuMask(), CpuMask()

    def execute() -> None:
        time.runs_in(new)
        spend(time, 10 * US)

    def flush() -> None:
        spend(time, US)
        time.flush(old)

    time.spawn("process", execute, cpu=0, space=old)
    time.spawn("kswapd", flush, cpu=1)
    time.run()
    assert (old.cpus, new.cpus, time.tlbs.shootdowns) == ([], [0], 0)


@pytest.mark.parametrize("dirty", [False, True])
def test_deferred_flushes_are_one(dirty: bool) -> None:
    time = on(3, SHOTS)
    spaces = [CpuMask(), CpuMask()]
    ends: list[int] = []
    taken: list[int] = []

    def reclaim() -> None:
        spend(time, US)
        for space in (*spaces, spaces[0], CpuMask()):
            time.flush_later(space, dirty)
        taken.append(time.clock())
        time.flush_deferred(if_dirty=True)
        taken.append(time.clock())
        time.flush_deferred()
        time.flush_deferred()
        taken.append(time.clock())

    for space in spaces:
        time.spawn("process", partial(computing, time, ends), space=space)
    time.spawn("kswapd", reclaim)
    time.run()
    assert taken == [US, 26 * US if dirty else US, 26 * US]
    assert ends == [17 * US] * 2 and (time.tlbs.shootdowns, time.tlbs.interrupts) == (1, 2)
