# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign loses nothing, does nothing twice, and ends with the same table, whatever happened on the way."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rmaplab.sweep import points
from rmaplab.sweep.workers import work

SPEC = """
name = "small"
[[compare]]
history = ["forkchain generations=4", "aim7 children=3 pages=20"]
designs = ["anon_vma", "cow_context"]
folios = 20
[[verify]]
designs = ["anon_vma", "cow_context"]
steps = 100
seed = "1..4"
[[race]]
scenario = "unmap / munmap in the child"
design = ["anon_vma", "cow_context"]
"""

# A design that waits for leave, or ends its process, where a file says so.
MINE = '''
import os, signal, time
from pathlib import Path
from rmaplab.rmap.anon_vma import AnonVmaRmap

class Mine(AnonVmaRmap):
    name = "mine"

    def __init__(self, attachment):
        super().__init__(attachment)
        once = Path(os.environ["DEATHS"])
        left = int(once.read_text()) if once.exists() else 0
        if left:
            once.write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)
'''


def sweep(directory: Path, output: str, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rmaplab", "sweep", "campaign.toml", "-o", output, "--json", *more],
        cwd=directory,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a campaign that ran through."""
    directory = tmp_path_factory.mktemp("whole")
    (directory / "campaign.toml").write_text(SPEC)
    done = sweep(directory, "whole", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["figures"]["done"] > 6
    return directory


def table(directory: Path) -> bytes:
    return (directory / "results.parquet").read_bytes()


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not what():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


def test_every_row_says_where_it_came_from(whole: Path) -> None:
    rows = pq.read_table(whole / "whole" / "results.parquet").to_pylist()
    assert {row["command"] for row in rows} == {"compare", "verify", "race"}
    assert all(row["key"] and row["version"] and row["history"] for row in rows)
    peak = {
        row["design"]: row["value"]
        for row in rows
        if row["history"].startswith("forkchain") and (row["group"], row["figure"]) == ("memory", "peak")
    }
    assert set(peak) == {"anon_vma", "cow_context"} and min(peak.values()) > 0


def test_a_second_run_does_nothing_again(whole: Path) -> None:
    before = table(whole / "whole")
    figures = json.loads(sweep(whole, "whole").stdout)["figures"]
    assert figures["done"] == 0 and figures["kept"] == figures["points"]
    assert table(whole / "whole") == before


def test_a_sweep_that_is_killed_goes_on_to_the_same_table(whole: Path) -> None:
    output = whole / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "rmaplab", "sweep", "campaign.toml", "-o", "killed", "--jobs", "1"],
        cwd=whole,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: any(output.glob("points/*.json")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = len(list(output.glob("points/*.json")))
    (output / "points" / "half.part").write_text("{")  # as a crash while writing leaves it
    done = sweep(whole, "killed")
    figures = json.loads(done.stdout)["figures"]
    assert 0 < kept < figures["points"]
    assert figures["kept"] >= kept and figures["kept"] + figures["done"] == figures["points"]
    assert table(output) == table(whole / "whole")
    assert not list(output.glob("**/*.part"))


def test_an_interrupted_sweep_says_how_to_go_on(whole: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "rmaplab", "sweep", "campaign.toml", "-o", "stopped", "--jobs", "1"],
        cwd=whole,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: any((whole / "stopped").glob("points/*.json")))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 2
    assert "the same command goes on from there" in said and "Traceback" not in said


def test_two_sweeps_do_not_work_in_one_directory(whole: Path) -> None:
    import fcntl

    with open(whole / "whole" / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = sweep(whole, "whole")
    assert done.returncode == 2 and "another sweep works in whole" in done.stderr


def mine(directory: Path, deaths: int) -> dict[str, str]:
    (directory / "mine.py").write_text(MINE)
    (directory / "campaign.toml").write_text(
        '[[compare]]\nhistory = "forkchain generations=3"\ndesigns = ["mine.py"]\n'
        '[[compare]]\nhistory = "forkchain generations=2"\ndesigns = ["anon_vma"]\n'
    )
    (directory / "deaths").write_text(str(deaths))
    return {"DEATHS": str(directory / "deaths")}


def test_a_worker_that_dies_loses_nothing(tmp_path: Path) -> None:
    done = sweep(tmp_path, "out", "--jobs", "1", **mine(tmp_path, deaths=2))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "deaths").read_text() == "0"


def test_a_point_on_which_worker_after_worker_dies_is_given_up_and_tried_again_next_time(tmp_path: Path) -> None:
    environment = mine(tmp_path, deaths=3)
    done = sweep(tmp_path, "out", "--jobs", "1", **environment)
    told = json.loads(done.stdout)
    assert done.returncode == 1
    assert told["figures"]["failed"] == 1 and told["figures"]["done"] == 1
    assert "3 processes died" in told["differences"][0]["what"]
    assert not (tmp_path / "out" / "results.parquet").exists()
    again = sweep(tmp_path, "out", "--jobs", "1", **environment)
    assert again.returncode == 0 and json.loads(again.stdout)["figures"]["kept"] == 1


def test_what_does_not_hold_is_told_and_decides_the_exit_status(tmp_path: Path) -> None:
    (tmp_path / "campaign.toml").write_text(
        '[[race]]\nscenario = "restore / fork of the child"\ndesign = "cow_context_prototype"\n'
    )
    done = sweep(tmp_path, "out")
    told = json.loads(done.stdout)
    assert done.returncode == 1 and not told["holds"]
    assert told["figures"]["failed"] == 0 and "path" in told["differences"][0]["what"]


def test_a_directory_of_something_else_is_refused(tmp_path: Path, whole: Path) -> None:
    (tmp_path / "campaign.toml").write_text('[[race]]\nscenario = "unmap / munmap in"\ndesign = "anon_vma"\n')
    assert sweep(tmp_path, "out").returncode == 0
    (kept,) = (tmp_path / "out" / "points").glob("*.json")
    kept.write_text("{}")
    done = sweep(tmp_path, "out")
    assert done.returncode == 2 and "was not written by rmaplab sweep" in done.stderr


def test_what_other_code_has_worked_out_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    point = points.Verify(designs=("anon_vma",), steps=1)
    key = point.key()
    monkeypatch.setattr(points, "version", lambda: "0.1.0+0badc0de")
    assert point.key() != key
    assert "install the same" in str(work(point, {}, "0.1.0+1e55c0de"))


# On a cluster


@contextmanager
def running(*command: str, cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def cluster(directory: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A Dask scheduler with two workers, on loopback: its address, and a worker that may be killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    worker = (
        sys.executable, "-m", "distributed.cli.dask_worker", address, "--host", "127.0.0.1", "--nthreads", "1",
        "--no-nanny", "--no-dashboard",
    )  # fmt: skip
    scheduler = (
        sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port),
        "--no-dashboard",
    )  # fmt: skip
    with running(*scheduler, cwd=directory):
        with running(*worker, cwd=directory), running(*worker, cwd=directory) as mortal:
            yield address, mortal


def test_a_cluster_that_loses_a_worker_gives_the_same_table(whole: Path, tmp_path: Path) -> None:
    with cluster(tmp_path) as (address, mortal):
        process = subprocess.Popen(
            [sys.executable, "-m", "rmaplab", "sweep", "campaign.toml", "-o", "cluster", "--scheduler", address],
            cwd=whole,
        )
        wait_for(lambda: any((whole / "cluster").glob("points/*.json")))
        assert not (whole / "cluster" / "results.parquet").exists()  # it dies in the middle
        mortal.kill()
        assert process.wait() == 0
    assert table(whole / "cluster") == table(whole / "whole")


def test_files_travel_to_the_cluster(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    here = tmp_path / "here"
    here.mkdir()
    environment = mine(here, deaths=0)
    with cluster(elsewhere) as (address, _):
        # The workers do not have it in their environment, so it is their design that has to find out.
        (here / "mine.py").write_text(MINE.replace('os.environ["DEATHS"]', repr(environment["DEATHS"])))
        done = sweep(here, "out", "--scheduler", address)
    assert done.returncode == 0, done.stderr


def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "campaign.toml").write_text('[[race]]\nscenario = "unmap / munmap in"\ndesign = "anon_vma"\n')
    done = sweep(tmp_path, "out", "--scheduler", "tcp://127.0.0.1:1")
    assert done.returncode == 2
    assert "no Dask scheduler answers at tcp://127.0.0.1:1" in done.stderr and "Traceback" not in done.stderr
