# SPDX-License-Identifier: GPL-2.0-or-later
"""What commands write: whole or not at all, and nothing that is not theirs is replaced."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from rmaplab.output import CannotWrite, check_output, write_output


def test_a_file_is_replaced_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("before")
    path.chmod(0o600)
    write_output(path, "after")
    assert path.read_text() == "after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [*tmp_path.iterdir()] == [path]


def test_a_name_may_be_as_long_as_names_may_be(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_output(path, "x")
    assert [*tmp_path.iterdir()] == [path]


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "target", tmp_path / "link"
    link.symlink_to(target)
    for text in ("new", "again"):
        write_output(link, text)
        assert link.is_symlink()
        assert target.read_text() == text


def test_a_device_stays_one() -> None:
    before = os.stat(os.devnull)
    write_output(os.devnull, b"anything")
    assert os.stat(os.devnull).st_rdev == before.st_rdev
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_a_fifo_gets_it_all(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()
    write_output(path, "through")
    reader.join()
    assert read == ["through"]
    assert stat.S_ISFIFO(path.stat().st_mode)


@pytest.mark.parametrize("redirected", ["", " > file; cat file"])
def test_stdout_is_written_to(tmp_path: Path, redirected: str) -> None:
    code = "from rmaplab.output import write_output; write_output('/dev/stdout', 'hello')"
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    command = f'{sys.executable} -c "{code}"{redirected}'
    assert subprocess.check_output(command, shell=True, cwd=tmp_path, text=True, env=environment) == "hello"


def test_a_directory_is_refused(tmp_path: Path) -> None:
    for attempt in (check_output, lambda path: write_output(path, "x")):
        with pytest.raises(CannotWrite, match="is a directory"):
            attempt(tmp_path)
        with pytest.raises(CannotWrite, match="there is no directory"):
            attempt(tmp_path / "nowhere" / "f")


def test_what_a_full_disk_cannot_hold_leaves_no_file(tmp_path: Path) -> None:
    """Not an empty one either; what was there stays."""
    code = """
        import resource, signal, sys
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        from rmaplab.check import mutation
        mutation.look_for_all = lambda jobs, tell: []
        mutation.markdown = lambda verdicts, command: "a page " * 1000
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
        sys.argv = ["rmaplab", "verify", "--mutants", "-o", sys.argv[1]]
        from rmaplab.__main__ import main
        main()
    """
    for before in (None, "the page of last week"):
        path = tmp_path / "mutants.md"
        if before is not None:
            path.write_text(before)
        command = [sys.executable, "-B", "-c", textwrap.dedent(code), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert f"rmaplab: cannot write {path}: File too large; nothing was left there\n" in done.stderr
        assert [entry.read_text() for entry in tmp_path.iterdir()] == ([] if before is None else [before])


def test_a_disk_a_socket_and_a_circle_of_links_are_refused(tmp_path: Path) -> None:
    """Before there is something to write."""
    address = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(address))
        with pytest.raises(CannotWrite, match="it is a block device or a socket"):
            check_output(address)
    first, second = tmp_path / "first", tmp_path / "second"
    first.symlink_to(second)
    second.symlink_to(first)
    with pytest.raises(CannotWrite, match="Too many levels of symbolic links"):
        check_output(first)
    assert first.is_symlink() and second.is_symlink()
    disks = [path for path in Path("/dev").iterdir() if path.is_block_device()]
    for path in disks[:1]:
        with pytest.raises(CannotWrite, match="it is a block device or a socket"):
            check_output(path)


def test_a_full_disk_is_one_sentence() -> None:
    with pytest.raises(CannotWrite, match="cannot write /dev/full: No space left on device"):
        write_output("/dev/full", "x")
