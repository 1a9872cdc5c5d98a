# SPDX-License-Identifier: GPL-2.0-or-later
"""What reaches the terminal, whatever names, encodings and readers there are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from acts import fork, leave, mmap, start, write
from rmaplab.trace.history import Header, History, write_history
from rmaplab.workloads.workload import AREA

FULL = Path("/dev/full")
EVIL = "evil\x1b[31m\nsecond line\x07"


def shell(command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """`command` in bash, where `rmaplab` is the program."""
    paths = ":".join(path for path in sys.path if path)
    return subprocess.run(
        ["bash", "-c", f'rmaplab() {{ {sys.executable} -m rmaplab "$@"; }}\n{command}'],
        cwd=cwd, env={**os.environ, "PYTHONPATH": paths, **environment}, capture_output=True, check=False,
    )  # fmt: skip


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    events = [start(1), mmap(1, AREA, 8), write(1, AREA, 8), fork(1, 2), write(2, AREA, 2), leave(1)]
    path = tmp_path / "odd.parquet"
    write_history(path, History(Header(recorder="by\x1b]0;x\x07", command=EVIL), events))
    return path


def test_a_reader_that_leaves_is_no_verdict(tmp_path: Path) -> None:
    done = shell("rmaplab run aim7 children=30 --full | head -1; echo ${PIPESTATUS[0]}", tmp_path)
    assert done.stderr == b""
    assert done.stdout.splitlines()[-1] in (b"141", b"0")  # 0: all was in the pipe already
    much = shell("rmaplab verify --help | true; rmaplab race --list | head -1 >/dev/null; echo ok", tmp_path)
    assert (much.stdout, much.stderr) == (b"ok\n", b"")


@pytest.mark.parametrize(
    "command",
    [
        "rmaplab compare odd.parquet --full",
        "rmaplab show odd.parquet --at 4",
        "rmaplab scale storm rounds=1 vmas=2 --cpus 1,2 --lock-report",
        "rmaplab show fork-copy-fork --at 3",
        "rmaplab run --help",
    ],
)
@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["ascii", "C"],
)
def test_any_encoding_will_do(command: str, environment: dict[str, str], recording: Path) -> None:
    done = shell(command, recording.parent, **environment)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stdout.isascii()


@pytest.mark.parametrize(
    "command",
    ["compare odd.parquet --full", "replay odd.parquet", "scale odd.parquet --cpus 1", "show odd.parquet --at 2"],
)
def test_escape_codes_do_not_reach_the_terminal(command: str, recording: Path) -> None:
    done = shell(f"rmaplab {command}", recording.parent)
    assert done.returncode == 0, done.stderr
    for output in (done.stdout, done.stderr):
        assert not {0x1B, 0x07} & set(output)
    assert rb"evil\x1b[31m\nsecond line" in done.stdout


def test_streams_that_are_closed_are_no_traceback(recording: Path) -> None:
    """Nor does the recorded program write into what rmaplab has opened."""
    before = recording.read_bytes()
    for command, closed, status in (
        ("compare odd.parquet", "<&-", 0), ("compare odd.parquet", ">&-", 2), ("compare odd.parquet", "2>&-", 0),
        ("compare none.parquet", "2>&-", 2), ("compare none.parquet", "<&- >&- 2>&-", 2),
    ):  # fmt: skip
        done = shell(f"rmaplab {command} {closed}", recording.parent)
        assert done.returncode == status, (command, closed, done.stderr)
        assert done.stderr == (b"rmaplab: Bad file descriptor\n" if closed == ">&-" else b"")
    assert recording.read_bytes() == before
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        done = shell(f"rmaplab record -o new.parquet -- echo told {closed}", recording.parent)
        if b"neither perf" in done.stderr:
            pytest.skip("NOT TESTED: nothing can record here")
        assert b"Traceback" not in done.stderr
        again = shell("rmaplab replay new.parquet", recording.parent)
        assert again.returncode == 0, again.stderr


def test_a_name_that_is_not_utf8(recording: Path) -> None:
    name = os.fsencode(recording.parent) + b"/n\xff.parquet"
    os.rename(recording, name)
    done = shell("rmaplab compare n*.parquet --json -o $'p\\xfe.html'", recording.parent)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["holds"] is True
    assert b"p\xfe.html" in os.listdir(os.fsencode(recording.parent))
    refused = shell("rmaplab compare $'no\\xff.parquet'", recording.parent)
    assert (refused.returncode, refused.stderr.count(b"\n")) == (2, 1)


def test_a_parquet_file_that_is_no_history_is_one_sentence(recording: Path) -> None:
    table = pq.read_table(recording)
    pq.write_table(table.drop_columns(["op"]), recording.parent / "without.parquet")
    pq.write_table(pa.table({"a": [1]}), recording.parent / "other.parquet")
    for name, why in (("without", b"op is missing"), ("other", b"it has no `rmaplab` header")):
        done = shell(f"rmaplab replay {name}.parquet", recording.parent)
        assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
        assert why in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "race 'referenced / fork' --rmap anon_vma --report full",
        "scale storm rounds=1 vmas=2 --cpus 1 --trace full",
        "explore fork-copy-fork -o full",
        "report forkchain generations=2 -o full",
        "record -o full -- true",
    ],
)
def test_a_full_disk_is_one_sentence_and_the_device_stays(command: str, tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to(FULL)
    (tmp_path / "full.html").symlink_to(FULL)
    command = command.replace("report forkchain generations=2 -o full", "report forkchain generations=2 -o full.html")
    before = FULL.stat()
    done = shell(f"rmaplab {command}", tmp_path)
    if b"neither perf" in done.stderr:
        pytest.skip("NOT TESTED: nothing can record here")
    assert done.returncode == 2, done.stderr
    assert b"No space left on device" in done.stderr.splitlines()[-1]
    assert b"Traceback" not in done.stderr
    assert (FULL.stat().st_rdev, FULL.stat().st_ino) == (before.st_rdev, before.st_ino)
    assert (tmp_path / "full").is_symlink()
