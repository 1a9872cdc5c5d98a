# SPDX-License-Identifier: GPL-2.0-or-later
"""What perf's own records tell, however many of them are alike."""

from __future__ import annotations

import random
import struct
from typing import Any, cast

import pytest

from rmaplab.trace.batches import Mappings
from rmaplab.trace.collector import Records
from rmaplab.trace.perf_events import _Decoder
from rmaplab.trace.reduce import Reducer
from rmaplab.trace.timeline import Timeline

Mapped = tuple[int, int, int, int, int, int, int, str, str]  # as Timeline.mapped() is told


class Told:
    """A timeline that remembers what it was told."""

    def __init__(self) -> None:
        self.mappings: list[Mapped] = []

    def mapped(self, *what: Any) -> None:
        self.mappings.append(cast(Mapped, what))


def record(told: Mapped) -> bytes:
    """An MMAP2 record (include/uapi/linux/perf_event.h)."""
    time, _, tid, start, length, prot, offset, path, key = told
    name = path.encode() if path else b"//anon"
    inode = int(key.split()[1]) if key else 0
    body = struct.pack("<iiQQQIIQQII", 1, tid, start, length, offset, 0, 0, inode, 0, prot, 2)
    body += name + bytes(8 - len(name) % 8) + struct.pack("<iiQ", 1, tid, time)
    return struct.pack("<IHH", 10, 0, 8 + len(body)) + body


@pytest.mark.parametrize("length", [1, 6, 8, 9, 15, 16, 17, 130, 1023, 1024, 1025, 3000])
def test_runs_of_records_are_told_as_each_alone(length: int) -> None:
    chosen = random.Random(length)
    mappings: list[Mapped] = []
    for i in range(8):
        # Files of the same length of name, and memory without one: of the next record, or of one some way off.
        files = [("", ""), ("/bin/a", "00:00 5 0"), ("/bin/b", "00:00 6 0")]
        file = files[i % 3]
        for _ in range(length if i % 2 else chosen.randint(1, 9)):
            start = chosen.randrange(1 << 35) << 12
            file = chosen.choice(files) if i == 5 else file
            mappings.append((len(mappings), 3, chosen.randint(1, 9), start, 4096, chosen.randint(0, 7), start, *file))
    told = Told()
    alone, alike = _Decoder(cast(Timeline, told), {}).calls(3, bytearray(b"".join(map(record, mappings))))
    assert isinstance(alone, Records) and isinstance(alike, Mappings)
    for row in alone.rows:
        row[1](*row)
    assert sorted(told.mappings + alike.rows()) == mappings
    assert length < 9 or len(alike) >= 4 * (length - 8)


def test_where_programs_watch_they_tell_of_forks() -> None:
    """FORK is written after the child has its copy, and another thread may have changed the memory in between; the
    programs know when the lock was taken."""
    body = struct.pack("<iiiiQ", 7, 5, 7, 5, 100) + struct.pack("<iiQ", 5, 5, 100)
    timeline, reducer = Timeline(), Reducer()
    timeline.named(1, 0, 5, 5, "sh", True)
    block, _ = _Decoder(timeline, {}).calls(3, bytearray(struct.pack("<IHH", 7, 0, 8 + len(body)) + body))
    assert isinstance(block, Records) and len(block) == 1
    timeline.flags_of_new_task(50, 0, 5, 7, 17)
    for row in block.rows:
        row[1](*row)
    timeline.tell(reducer)
    assert [event.time for event in reducer.events if event.op == "fork"] == [50]
