# SPDX-License-Identifier: GPL-2.0-or-later
"""Plain calls as columns are told as calls one by one, whatever comes between them and however they are cut."""

import random
from typing import Any

import numpy as np
import pytest

from rmaplab.mm.abi import (
    MADV_COLD,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
)
from rmaplab.trace.batches import REGISTERS, Calls, Faults
from rmaplab.trace.calls import BY_NUMBER, CALLS
from rmaplab.trace.events import Event
from rmaplab.trace.reduce import Reducer
from rmaplab.trace.spaces import Range, Space
from rmaplab.trace.timeline import Timeline

A = 0x7F0000000000
HEAP = 0x555555559000
STACK = 0x7FFE00000000
PAGE = 4096
RW = PROT_READ | PROT_WRITE

_FORM = [("time", "i8"), ("effect", "i8"), ("cpu", "i8"), ("pid", "i4"), ("tid", "i4"), ("number", "i8"),
         ("result", "i8"),
         *((name, "u8") for name in REGISTERS)]  # fmt: skip

Row = tuple[int, ...]


def calls_of(rows: list[Row]) -> Calls:
    seen = np.array([tuple(row) for row in rows], dtype=_FORM)
    return Calls(seen, seen["effect"])


def row(time: int, tid: int, name: str, args: list[int], result: int = 0) -> Row:
    """A call that got its lock just before it returned; the registers beyond its parameters hold leftovers."""
    args = [*args, *[0xDEADBEEF00000021] * (6 - len(args))]
    return time, time - 3, time % 3, tid, tid, CALLS[name].number, result, *args


def random_call(rng: random.Random, time: int, heap: list[int]) -> Row:
    tid = rng.choice((5, 5, 5, 9, 77))  # 77 is a stranger
    addr, pages = A + rng.randrange(64) * PAGE, rng.randrange(1, 9)
    name = rng.choice(("mmap", "mmap", "mmap", "munmap", "munmap", "mprotect", "pkey_mprotect", "madvise", "brk",
                       "mremap", "mlock", "mlock2", "munlock"))  # fmt: skip
    if name == "mmap":
        flags = rng.choice((MAP_PRIVATE, MAP_PRIVATE, MAP_PRIVATE | MAP_GROWSDOWN, MAP_PRIVATE | MAP_FIXED))
        prot = rng.choice((0, PROT_READ, RW, RW, RW | 0x1000000))
        return row(time, tid, name, [0, pages * PAGE - 7, prot, flags | MAP_ANONYMOUS, 2**64 - 1, 77 << 12], addr)
    if name == "brk":
        heap[0] = rng.choice((heap[0], HEAP, heap[0] + PAGE + 100, max(HEAP, heap[0] - PAGE)))
        return row(time, 5, name, [rng.choice((0, heap[0], heap[0]))], heap[0])
    if name == "mremap":
        flags = rng.choice((0, MREMAP_MAYMOVE, MREMAP_MAYMOVE | MREMAP_FIXED, MREMAP_MAYMOVE | MREMAP_DONTUNMAP))
        new = pages if flags & MREMAP_DONTUNMAP else rng.randrange(1, 9)
        to = addr if not flags else A + rng.randrange(80, 140) * PAGE
        return row(time, tid, name, [addr, pages * PAGE, new * PAGE, flags, to], to)
    more = {"mprotect": [rng.choice((0, PROT_READ, RW))], "pkey_mprotect": [rng.choice((PROT_READ, RW)), 0],
            "madvise": [rng.choice((MADV_DONTNEED, MADV_COLD, MADV_HUGEPAGE))], "mlock2": [1]}  # fmt: skip
    return row(time, tid, name, [addr, pages * PAGE, *more.get(name, [])])


def started() -> Timeline:
    timeline = Timeline()
    timeline.named(1, 0, 5, 5, "sh", True)
    timeline.mapped(2, 0, 5, STACK, 0x21000, RW, 0x7FFFFFFDE000, "[stack]", "00:00 0 0")
    timeline.running(5)
    timeline.new_task(40, 0, 5, 9, 0)
    return timeline


def tell_one_by_one(timeline: Timeline, rows: list[Row]) -> None:
    for time, effect, cpu, pid, tid, number, result, *args in rows:
        timeline.returned(time, cpu, pid, tid, BY_NUMBER[number], list(args), result, effect)


def told(rows: list[Row], faults: list[Row], others: list[Row], window: int, columns: bool) -> list[Event]:
    timeline, reducer = started(), Reducer()
    for start in range(0, 30_000, window):
        part: Any = [row for row in rows if start <= row[0] < start + window]
        if columns:
            timeline.called(calls_of(part))
        else:
            tell_one_by_one(timeline, part)
        for at in [row[0] for row in others if start <= row[0] < start + window]:  # a file, and a fork of a short life
            timeline.mapped(at - 1, 0, 5, A + 200 * PAGE, PAGE, RW, 0, "/lib/x", f"08:00 {at} 0")
            timeline.returned(at, 0, 5, 5, CALLS["mmap"], [0, PAGE, RW, MAP_PRIVATE, 3, 0], A + 200 * PAGE, at - 2)
            timeline.new_task(at, 1, 5, 1000 + at, 0)
            timeline.gone(at, 1, 1000 + at)
        part = [row for row in faults if start <= row[0] < start + window]
        timeline.touched(Faults.of(part))
        timeline.tell(reducer, start + window - 5)
    timeline.tell(reducer)
    return list(reducer.events)


@pytest.mark.parametrize("seed", range(6))
def test_plain_calls_as_columns_are_told_as_calls_one_by_one(seed: int) -> None:
    rng = random.Random(seed)
    heap = [HEAP]
    rows = [row(100, 5, "brk", [0], HEAP)]
    rows += [random_call(rng, time, heap) for time in range(200, 25_000, 10)]
    faults: list[Row] = []
    others: list[Row] = []
    for time in range(200, 25_000, 10):
        addr = A + rng.randrange(140) * PAGE
        for j in range(rng.choice((0, 0, 1, 1, 2, 5))):  # a run, or where nothing may be touched
            faults.append((time + 1 + j, 0, rng.choice((5, 5, 5, 9)), addr + j * PAGE, rng.randrange(3)))
        if rng.random() < (0, 0.01, 0.2)[seed % 3]:
            others.append((time + 8,))
    if seed % 2:  # so many that they are looked at as columns, too
        faults += [(24_995 + i // 500, 0, 5, STACK + i % 33 * PAGE, 1) for i in range(2000)]
    expected = told(rows, faults, others, 30_000, False)
    assert {event.op for event in expected} >= {"mmap", "munmap", "mprotect", "madvise", "brk", "mremap", "mlock"}
    for window in (30_000, 1000, 70):
        assert told(rows, faults, others, window, True) == expected


@pytest.mark.parametrize(
    ("name", "args", "result", "plain"),
    [
        ("mmap", [0, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, 0, 0], A, True),
        ("mmap", [0, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, 0, 0], A, False),
        ("mmap", [0, PAGE, RW, MAP_PRIVATE, 3, 0], A, False),
        ("mmap", [0, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, 0, 0], -12, False),
        ("munmap", [A, PAGE], 0, True),
        ("mprotect", [A, PAGE, 0], -12, False),
        ("madvise", [A, PAGE, MADV_DONTNEED], 0, True),
        ("madvise", [A, PAGE, MADV_DONTFORK], 0, False),
        ("shmat", [1, A, 0], A, False),
        ("mlockall", [1], 0, False),
        ("execve", [0, 0], 0, False),
    ],
)
def test_what_is_plain_needs_no_more_than_its_registers(name: str, args: list[int], result: int, plain: bool) -> None:
    assert calls_of([row(10, 5, name, args, result)]).plain().tolist() == [plain]


def test_calls_that_come_too_late_are_noticed() -> None:
    timeline, reducer = started(), Reducer()
    timeline.tell(reducer, 1000)
    timeline.called(calls_of([row(900, 5, "munmap", [A, PAGE]), row(2000, 5, "munmap", [A, PAGE])]))
    assert timeline.late == 1 and timeline.locked


def test_ranges_that_may_be_used_alike_again_are_one() -> None:
    """So that a program that changes rights here and there does not leave a range for each page."""
    space = Space(0)
    space.insert(Range(0, 64 * PAGE, RW, True))
    for page in range(1, 63):
        assert space.protect(page * PAGE, (page + 1) * PAGE, PROT_READ) == []
    assert [(range.start, range.end) for range in space.ranges] == [
        (0, PAGE), (PAGE, 63 * PAGE), (63 * PAGE, 64 * PAGE)
    ]  # fmt: skip
    assert space.protect(0, 64 * PAGE, RW) == [(PAGE, 63 * PAGE)]
    assert len(space.ranges) == 1
