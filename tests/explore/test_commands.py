# SPDX-License-Identifier: GPL-2.0-or-later
"""`rmaplab explore` and `rmaplab show`: what they write, and how they fail."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from acts import fork, mmap, start, write
from rmaplab.commands.frame import main
from rmaplab.rmap import DESIGNS
from rmaplab.trace.events import Event
from rmaplab.trace.history import Header, History, write_history
from rmaplab.workloads.workload import AREA


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def rmaplab(*arguments: object) -> Done:
    """What the program does, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        main([str(argument) for argument in arguments])
    assert isinstance(end.value.code, int)
    return Done(end.value.code, out.getvalue(), err.getvalue())


def recording(path: Path) -> Path:
    header = Header(recorder="perf", command="fork-and-write", processes={1: "fork-and-write"})
    write_history(
        path, History(header, [start(1), mmap(1, AREA, 2), write(1, AREA, 2), fork(1, 2), write(2, AREA, 1)])
    )
    return path


def test_a_recording_becomes_a_page(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    done = rmaplab(
        "explore", recording(tmp_path / "r.parquet"), "--from", 2, "--to", 4, "-o", target, "--json"
    )
    assert done.returncode == 0
    told = json.loads(done.stdout)
    assert (told["command"], told["holds"], told["differences"]) == ("explore", True, [])
    assert told["inputs"]["history"] == "fork-and-write"
    assert told["figures"]["nbytes"] == target.stat().st_size
    assert (told["figures"]["first"], told["figures"]["last"], told["figures"]["steps"]) == (2, 4, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "r.parquet"]


def test_a_page_with_fewer_steps_than_events_says_so(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    done = rmaplab("explore", "forkchain", "generations=3", "--steps", 5, "-o", target)
    assert re.fullmatch(rf"{target}: 5 steps for [1-9]\d+ events, [\d,]+ bytes\n", done.stderr)


def test_the_same_input_gives_the_same_page(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert (
            rmaplab("explore", "forkchain", "generations=3", "pages=2", "-o", tmp_path / name).returncode == 0
        )
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_step_is_printed(tmp_path: Path) -> None:
    done = rmaplab("show", recording(tmp_path / "r.parquet"), "--at", 4, "--ask", f"2:{AREA:#x}")
    assert done.returncode == 0
    assert "Process 1 forks process 2." in done.stdout
    assert "Process 1 fork-and-write\n" in done.stdout
    assert "    2. process 2, V3, page 0, 0x7f0000000000: maps it\n" in done.stdout


def test_a_step_is_printed_for_programs(tmp_path: Path) -> None:
    done = rmaplab("show", recording(tmp_path / "r.parquet"), "--json", "--rmap", "cow_context")
    told = json.loads(done.stdout)
    assert told["figures"]["step"]["words"] == "Process 2 writes to 1 page at 0x7f0000000000."
    assert told["figures"]["state"]["V3"]["start"] == AREA
    assert told["inputs"]["designs"] == ["cow_context"]
    done = rmaplab("show", recording(tmp_path / "r.parquet"), "--json", "--rmap", "all")
    assert json.loads(done.stdout)["inputs"]["designs"] == list(DESIGNS)


def test_a_race_that_fails_is_looked_for_and_becomes_a_page(tmp_path: Path) -> None:
    target = tmp_path / "race.html"
    done = rmaplab(
        "explore", "restore / fork", "--rmap", "cow_context_prototype", "-o", target, "--json"
    )  # fmt: skip
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert not told["holds"]
    assert told["differences"][0].startswith("restored: address 0x10000000 of process 2 waits")
    assert told["figures"]["nbytes"] == target.stat().st_size
    assert told["figures"]["steps"] == told["figures"]["events"] + 1


def test_a_step_of_a_race_is_printed() -> None:
    done = rmaplab("show", "restore / fork", "--rmap", "anon_vma", "--path", "0x3 1x2 0x2", "--at", 5)
    assert done.returncode == 0
    assert done.stdout.startswith("restore / fork, step 5 of 7\nCPU 1, fork: takes mmap_lock of address space 3")
    assert "\nCPU 0 restore: holds lock of folio 512" in done.stdout
    told = json.loads(rmaplab("show", "race-fork", "--at", 2, "--json").stdout)
    assert told["holds"]
    assert told["figures"]["state"]["c0"]["holds"][-1] == "RCU read section"


def test_a_result_that_is_not_reproduced_is_said(tmp_path: Path) -> None:
    path = tmp_path / "wrong.parquet"
    unmap = Event(
        "munmap", 1, addr=AREA + 1, length=4096
    )  # an address that is no page's, yet recorded as done
    write_history(
        path, History(Header(recorder="perf", command="wrong"), [start(1), mmap(1, AREA, 2), unmap])
    )
    done = rmaplab("explore", path, "-o", tmp_path / "page.html", "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert not told["holds"]
    assert len(told["differences"]) == 1
    assert told["differences"][0].startswith("event 2: munmap of process 1")


def test_what_cannot_be_shown_is_said_in_a_sentence(tmp_path: Path) -> None:
    path = recording(tmp_path / "r.parquet")
    page = tmp_path / "page.html"
    for arguments, sentence in (
        (("show", path, "--at", "9"), "this history has 5 events, and none from 9 to 9"),
        (("show", path, "--ask", "here"), "'here' is not a page: say PID:ADDRESS"),
        (("show", path, "--ask", "7:0x1000"), "there is no process 7"),
        (("show", path, "--ask", "2:0x1000"), "process 2 has no anonymous page at 0x1000"),
        (("show", path, "--rmap", "nothing"), "no design is called 'nothing'"),
        (("show", path, "--profile", "2.4"), "there is no profile '2.4'"),
        (("explore", "no-such-tour", "-o", page), "'no-such-tour' is no file, tour, workload or race. Tours: page"),
        (("explore", path, "-o", tmp_path / "missing" / "page.html"), "there is no directory"),
        (("explore", path, "--from", "4", "--to", "2", "-o", page), "and none from 4 to 2"),
        (("explore", "restore / frok", "--rmap", "anon_vma", "-o", page), "no scenario called 'restore / frok'"),
        (("explore", "restore / fork", "-o", page), "a race is one design's: name it with --rmap"),
        (("show", "restore / fork", "--rmap", "anon_vma", "--path", "0x99"), "the path does not fit restore / fork"),
        (("show", "race-fork", "--at", "99"), "this race has 7 steps, and no step 99"),
        (("show", "race-fork", "--rmap", "anon_vma"), "has its design and its path"),
        (("explore", "race-fork", "--from", "2", "-o", page), "leave --from and --to out"),
    ):
        done = rmaplab(*arguments)
        assert done.returncode == 2
        assert sentence in done.stderr
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
    assert not page.exists()
