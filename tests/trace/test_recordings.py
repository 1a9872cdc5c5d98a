# SPDX-License-Identifier: GPL-2.0-or-later
"""The packaged recordings of real programs hold what they should, and replay to the mappings that the kernel had."""

from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest

from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import profile_for
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.trace.history import read_history
from rmaplab.trace.play import Player

RECORDINGS = Path(str(files("rmaplab") / "data" / "recordings"))
NAMES = ["example", "make", "pipeline", "pool", "postgresql", "redis"]


def test_all_are_there_with_their_origin() -> None:
    assert sorted(path.stem for path in RECORDINGS.glob("*.parquet")) == NAMES
    origin = (RECORDINGS / "ORIGIN.md").read_text()
    assert [line.split(".")[0] for line in sorted(origin.split("| ")) if ".parquet" in line] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_geometry_is_that_of_the_kernel_at_the_end_of_each_process(name: str) -> None:
    history = read_history(RECORDINGS / f"{name}.parquet")
    header = history.header
    assert header.complete and header.recorder == "perf" and header.faults == "recorded"
    assert header.seconds_unrecorded and header.seconds_unrecorded > 0
    assert header.skipped == {} and header.processes == {}
    assert not any(entry.name for entry in header.files if entry.kind == "file")
    counts = Counter(event.op for event in history)
    assert counts["mark"] == counts["exit"] == counts["fork"] + 1
    assert history.evidence == (
        f"order inferred, maps of {counts['mark']} of {counts['mark']} processes compared, "
        "all calls followed, nothing lost"
    )
    player = Player(Machine(profile_for(header.kernel)[0], [AnonVmaRmap]), header)
    player.play(history)
    assert player.marks == counts["mark"]
    assert [str(difference) for difference in player.geometry + player.differences] == []


def test_redis_writes_while_its_child_saves() -> None:
    history = read_history(RECORDINGS / "redis.parquet")
    saver = next(
        event.pid2 for event in history if event.op == "fork" and _never_executes(history, event.pid2)
    )
    events = list(history)
    begin = next(i for i, event in enumerate(events) if event.op == "fork" and event.pid2 == saver)
    end = next(i for i, event in enumerate(events) if event.op == "exit" and event.pid == saver)
    server = events[begin].pid
    copied = sum(e.length for e in events[begin:end] if e.op == "fault" and e.pid == server and e.flags)
    assert copied > 100 * 4096


def _never_executes(history: object, pid: int) -> bool:
    return not any(event.op == "exec" and event.pid == pid for event in history)  # type: ignore[attr-defined]
