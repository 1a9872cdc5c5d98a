# SPDX-License-Identifier: GPL-2.0-or-later
"""A long history at a glance: where steps begin, whose lives are shown, where designs differ."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acts import fork, leave, mmap, start, write
from rmaplab.explore.film import shoot
from rmaplab.explore.overview import LIVES, cut, lives
from rmaplab.explore.parts import Shot
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.rmap import load
from rmaplab.trace.events import OPS, Event
from rmaplab.trace.history import Header, History
from rmaplab.workloads import workload
from rmaplab.workloads.workload import AREA


def history_of(*events: Event) -> History:
    return History(Header(recorder="a test"), events)


QUIET = [write(1, AREA + (i % 16) * 0x2000, 1) for i in range(900)]  # alike, and none goes on where another ended


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(OPS), st.integers(1, 4)), min_size=1, max_size=200),
    st.integers(1, 60),
    st.data(),
)
def test_every_event_is_in_exactly_one_step(events: list[tuple[str, int]], steps: int, data: st.DataObject) -> None:
    history = history_of(*(Event(op, pid) for op, pid in events))
    first = data.draw(st.integers(1, len(events)))
    last = data.draw(st.integers(first, len(events)))
    ends = cut(history, first, last, steps)
    assert len(ends) == min(steps, last - first + 1)
    assert all(a < b for a, b in pairwise([first - 1, *ends]))
    assert ends[-1] == last


def test_a_birth_begins_a_step() -> None:
    history = history_of(start(1), mmap(1, AREA, 32), *QUIET[:500], fork(1, 2), *QUIET[500:], leave(2))
    ends = cut(history, 1, len(history), 8)
    assert 502 in ends  # so that the fork, event 503, is the first of its step
    assert len(history) - 1 in ends


def test_a_busy_second_does_not_take_all_steps() -> None:
    busy = [event for pid in range(2, 200) for event in (fork(1, pid), leave(pid))]
    history = history_of(start(1), mmap(1, AREA, 32), *busy, *QUIET)
    ends = [0, *cut(history, 1, len(history), 40)]
    assert max(b - a for a, b in pairwise(ends)) < 150


def test_processes_stand_in_the_order_of_their_tree() -> None:
    history = history_of(start(1), fork(1, 2), fork(1, 3), fork(2, 4), leave(2), start(9), leave(3))
    found, more = lives(history, 1, len(history))
    assert [(life.pid, life.parent, life.depth, life.born, life.ended) for life in found] == [
        (1, 0, 0, 1, 0), (2, 1, 1, 2, 5), (4, 2, 2, 4, 0), (3, 1, 1, 3, 7), (9, 0, 0, 6, 0),
    ]  # fmt: skip
    assert more == 0


def test_a_number_that_is_used_again_is_another_process() -> None:
    history = history_of(start(1), fork(1, 2), leave(2), fork(1, 2), leave(2))
    found, _ = lives(history, 1, len(history))
    assert [(life.pid, life.born, life.ended) for life in found] == [(1, 1, 0), (2, 2, 3), (2, 4, 5)]


def test_of_many_processes_the_busiest_are_shown_with_their_ancestors() -> None:
    chain = [fork(pid, pid + 1) for pid in range(1, 20)]
    idle = [event for pid in range(100, 300) for event in (fork(1, pid), leave(pid))]
    work = [write(20, AREA + 0x2000 * i, 1) for i in range(50)]
    history = history_of(start(1), mmap(1, AREA, 200), *chain, *idle, *work)
    found, more = lives(history, 1, len(history))
    assert {life.pid for life in found} >= set(range(1, 21))
    assert len(found) == LIVES
    assert len(found) + more == 220


def test_a_window_shows_who_lived_in_it() -> None:
    history = history_of(start(1), fork(1, 2), leave(2), fork(1, 3), *QUIET[:3])
    found, _ = lives(history, 4, len(history))
    assert [life.pid for life in found] == [1, 3]


@pytest.mark.parametrize("steps", [30, 200])
def test_a_step_says_who_misses_what(steps: int) -> None:
    """The prototype of CoW contexts never finds pages of the stack, which execve() moved."""
    history = workload("bgsave", {"pages": "64"}).history()
    designs = [load("anon_vma"), load("cow_context_prototype")]
    film = shoot(history, designs, PROFILES[REFERENCE], shot=Shot(steps=steps))
    apart = [one for step in film.steps for one in step.apart]
    assert any(slot == 1 and missed for slot, missed, _ in apart)
    assert not any(slot == 0 and missed for slot, missed, _ in apart)
