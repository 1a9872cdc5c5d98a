# SPDX-License-Identifier: GPL-2.0-or-later
"""What the documentation shows is what happens.

Blocks of one page run in order, in one directory.  A `python` or `toml` block whose first line is a comment with a
file name becomes that file; other `python` blocks are run.  A `console` block holds commands after "$ " and what
they print on stdout, where a line `...` stands for any number of lines, and `...` within a line for
anything in it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rmaplab.measure.comparison import Plan, compare
from rmaplab.mm.profile import profile_for
from rmaplab.rmap import DESIGNS
from rmaplab.trace.history import read_history

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
_BLOCK = re.compile(r"^```(python|toml|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    """What stands in them; those of a Python session are test_examples.py's."""
    found = [(match[1], match[2]) for match in _BLOCK.finditer(page.read_text())]
    return [(kind, block) for kind, block in found if not block.startswith(">>> ")]


def commands(block: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with what it prints."""
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)
    assert parts[0] == "", "a console block begins with a command"
    return list(zip(parts[1::2], parts[2::2], strict=True))


def pattern(expected: str) -> re.Pattern[str]:
    """A regular expression for output that `...` abbreviates; spaces at the ends of lines do not matter."""
    text = ""
    for line in expected.splitlines():
        if line.strip() == "...":
            text += r"(?:.*\n)*?"
        else:
            text += ".*".join(re.escape(part) for part in line.rstrip().split("...")) + r"\n"
    return re.compile(text)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Where `rmaplab` is a command, and a line has 100 characters."""
    directory = tmp_path / "bin"
    directory.mkdir()
    # A page may set PYTHONPATH for a command; what these tests were started with has to stay on it.
    path = ":".join(path for path in sys.path if path)
    program = directory / "rmaplab"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{path}" exec {sys.executable} -m rmaplab "$@"\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}", "COLUMNS": "100"}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: str(page.name))
def test_examples_do_what_the_page_says(page: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    directory = tmp_path / "here"
    directory.mkdir()
    (directory / "src").symlink_to(ROOT / "src")
    names: dict[str, object] = {}
    status = 0
    for kind, block in blocks(page):
        named = re.match(r"# (\S+\.(?:py|toml))\n", block)
        if kind != "console" and named:
            (directory / named[1]).write_text(block)
        elif kind != "console":
            assert kind == "python", "a block of TOML begins with a comment that names its file"
            exec(compile(block, str(page), "exec"), names)
        else:
            for command, expected in commands(block):
                done = subprocess.run(
                    f"(exit {status}); {command}",
                    shell=True,
                    cwd=directory,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                status = done.returncode
                printed = "".join(line.rstrip() + "\n" for line in done.stdout.splitlines())
                assert pattern(expected).fullmatch(printed), f"$ {command}\n{printed}{done.stderr}"


def quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


_ROW = re.compile(r"^\| (\w+) \| " + r" \| ".join([r"([\d,]+)"] * 6) + r" \|$", re.MULTILINE)


@pytest.mark.parametrize("row", _ROW.findall((ROOT / "README.md").read_text()), ids=lambda row: row[0])
def test_the_table_of_results_is_what_comes_out(row: tuple[str, ...]) -> None:
    history = read_history(ROOT / f"src/rmaplab/data/recordings/{row[0]}.parquet")
    designs = [DESIGNS["anon_vma"], DESIGNS["cow_context"]]
    plan = Plan(designs, profile_for(history.header.kernel)[0], check=False, alone=False)
    figures = compare(history, plan, quiet).figures
    held = [4 * sum(o.peak_pages for o in design.objects) for design in figures.designs]
    taken = [sum(lock.writes for lock in design.work.locks) for design in figures.designs]
    found = (figures.machine.mms.made, figures.machine.vmas.peak, *held, *taken)
    assert row[1:] == tuple(f"{number:,}" for number in found)
