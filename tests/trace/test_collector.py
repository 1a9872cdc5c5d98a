# SPDX-License-Identifier: GPL-2.0-or-later
"""The collector tells what it reads while the command runs, and nothing before what came first."""

import struct
import time
from collections.abc import Callable
from functools import partial
from time import sleep
from typing import IO, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmaplab.trace import collector
from rmaplab.trace.batches import Mappings
from rmaplab.trace.calls import CALLS
from rmaplab.trace.collector import Block, Collector, Records, Stream
from rmaplab.trace.reduce import Reducer
from rmaplab.trace.timeline import Timeline

SECOND = 1_000_000_000


class Fed:
    """A ring that a test writes times into."""

    descriptor = -1

    def __init__(self) -> None:
        self.records = b""

    def happens(self, at: int) -> None:
        self.records += struct.pack("<q", at)

    def drain(self, file: IO[bytes]) -> None:
        records, self.records = self.records, b""
        file.write(records)

    def close(self) -> None:
        pass


class Source:
    """One ring; `held`: when a lock was taken whose call has no record yet.

    early: how long before its record each call took effect, in ns
    """

    def __init__(self) -> None:
        self.ring = Fed()
        self.told: list[int] = []
        self.streams = [Stream(self.ring, self.decode)]
        self.held = 1 << 62
        self.early = 0
        self.timeline = Timeline()
        self.slow = 0.0  # seconds that telling of a record takes

    def decode(self, data: bytearray) -> list[Block]:
        times = np.frombuffer(bytes(data), dtype=np.int64)
        data.clear()
        return [Records([(time, self.tell) for time in times.tolist()], times, times - self.early)]

    def tell(self, time: int, act: object) -> None:
        sleep(self.slow)
        self.told.append(time)
        self.timeline.returned(time, 0, 5, 5, CALLS["munlockall"], [], 0, time - self.early)

    def settled(self, now: int) -> int:
        return min(now, self.held)

    def lost(self) -> int:
        return 0

    def close(self) -> None:
        pass


def within(seconds: float, what: Callable[[], Any]) -> bool:
    """Whether `what` becomes true in that time."""
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(what())


@pytest.fixture
def watched() -> Any:
    source = Source()
    collector = Collector(source, source.timeline, Reducer(), live=True)
    yield source
    collector.stop()


def test_what_happened_is_told_soon(watched: Source) -> None:
    now = time.monotonic_ns()
    watched.ring.happens(now)
    assert within(10, lambda: watched.told == [now])


def test_nothing_is_told_that_followed_a_lock_whose_call_has_not_returned(watched: Source) -> None:
    now = time.monotonic_ns()
    watched.held = now - SECOND
    watched.ring.happens(now - SECOND // 2)
    assert not within(0.5, lambda: watched.told)
    watched.ring.happens(now - SECOND)
    watched.held = 1 << 62
    assert within(10, lambda: watched.told == [now - SECOND, now - SECOND // 2])
    assert watched.timeline.late == 0


def test_a_lock_that_was_taken_long_ago_holds_nothing_up(watched: Source) -> None:
    """What takes a lock need not be a call that is followed: a stack that grows, say."""
    now = time.monotonic_ns()
    watched.held = now - 60 * SECOND
    watched.ring.happens(now - 6 * SECOND)
    assert within(10, lambda: watched.told == [now - 6 * SECOND])


def test_a_window_ends_before_a_call_that_has_its_lock_and_no_record() -> None:
    """Of the same window as what comes before it, by the time of its lock."""
    source = Source()
    source.early = SECOND // 20
    collector = Collector(source, source.timeline, Reducer(), live=True)
    for _ in range(100):
        source.ring.happens(time.monotonic_ns())
        time.sleep(0.005)
    collector.stop()
    assert len(source.told) == 100 and source.timeline.late == 0


def test_all_is_told_at_the_end_whatever_is_held() -> None:
    source = Source()
    collector = Collector(source, source.timeline, Reducer(), live=True)
    now = time.monotonic_ns()
    source.held = now - SECOND
    source.ring.happens(now)
    collector.stop()
    assert source.told == [now]


def test_memory_does_not_grow_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held is what a look at a ring brought, and a second of what came before."""
    monkeypatch.setattr(collector, "_WINDOW", 1 << 13)
    nr_records, a_look, a_second = 20_000, (1 << 13) // 8, 1000  # a record a millisecond
    source = Source()
    held: list[int] = []
    decode = source.decode

    def watched(data: bytearray) -> list[Block]:
        stream = source.streams[0]
        held.append(len(data) // 8 + sum(map(len, stream._held)) + len(source.timeline._seen))
        return decode(data)

    source.streams = [Stream(source.ring, watched)]
    begun = time.monotonic_ns() - nr_records * SECOND // a_second - SECOND
    source.ring.records = (begun + np.arange(nr_records) * (SECOND // a_second)).tobytes()
    Collector(source, source.timeline, Reducer(), live=True).stop()
    assert len(source.told) == nr_records
    assert len(held) >= 20 and max(held) <= a_look + 2 * a_second


def test_what_takes_long_after_the_end_says_how_far_it_is() -> None:
    source = Source()
    source.slow = 2.5
    collector = Collector(source, source.timeline, Reducer(), live=False)
    source.ring.happens(time.monotonic_ns())
    said: list[str] = []
    collector.stop(said.append)
    assert said[0] == "putting 0 MiB of events in order: 100%" and len(said) <= 3


FILES = [("", ""), ("[heap]", ""), ("/bin/a", "00:00 5 0"), ("/bin/b", "00:00 6 0")]
acts = st.lists(
    st.tuples(
        st.sampled_from(["mapped"] * 6 + ["mmap", "mprotect", "exec", "runs", "gone"]),
        st.integers(1, 3),  # of which task
        st.integers(0, len(FILES) - 1),
        st.integers(0, 40),  # how long before its return a call got the lock; 0: never
    ),
    max_size=60,
)


@given(acts)
def test_mappings_in_columns_tell_what_they_tell_one_by_one(acts: list[tuple[str, int, int, int]]) -> None:
    def begin() -> Timeline:
        timeline = Timeline()
        timeline.named(1, 0, 1, 1, "sh", True)
        timeline.running(1)
        for tid in (2, 3):
            timeline.flags_of_new_task(tid, 0, 1, tid, 17)
        return timeline

    def say(method: Callable[..., None], known: list[Any], *row: Any) -> None:
        method(*known)

    def told(timeline: Timeline) -> list[Any]:
        reducer = Reducer()
        timeline.tell(reducer)
        return list(reducer.events)

    alone, columns = begin(), begin()
    rows: list[Any] = []
    mappings: list[tuple[int, ...]] = []
    for number, (act, tid, file, held) in enumerate(acts):
        time, start = 100 + 10 * number, (number + 1) << 20
        if act == "mapped":
            alone.mapped(time, 0, tid, start, 4096, 3, 0, *FILES[file])
            mappings.append((time, 0, tid, start, 4096, 3, 0, file))
            continue
        says: dict[str, tuple[Any, ...]] = {
            "exec": ("named", time, 0, tid, tid, "b", True),
            "runs": ("running", tid),
            "gone": ("gone", time, 0, tid),
            "mmap": ("returned", time, 0, tid, tid, CALLS["mmap"], [0, 4096, 3, 2, 3, 0], start, held and time - held),
            "mprotect": (
                "returned", time, 0, tid, tid, CALLS["mprotect"], [start, 8192, 3], -13, held and time - held
            ),
        }  # fmt: skip
        name, *known = says[act]
        getattr(alone, name)(*known)
        rows.append((time, partial(say, getattr(columns, name), known)))
    matrix = np.array(mappings, dtype=np.int64).reshape(-1, 8).T
    collector._say(columns, rows, Mappings(matrix, FILES))
    assert told(columns) == told(alone)
