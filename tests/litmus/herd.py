# SPDX-License-Identifier: GPL-2.0-or-later
"""herd7 as the judge of memory orders: the kernel's formal memory model (LKMM), asked about litmus tests.

herd7 tries every execution of a litmus test against the axioms in tools/memory-model of the kernel's sources.  It comes
from Debian's package herdtools7, which needs the C library of its own suite: both are unpacked side by side in the
user's cache, and nothing is installed.  The model comes from the cached tree of linux-source (native/build.py).

Two stricter models say what a model of ours may leave out.  NO_LOAD_BUFFERING adds one axiom: program order and
reads-from have no cycle together.  No model that runs programs step by step can show what this excludes, whatever it
lets each load return.  NO_OVERTAKING orders each store after all earlier loads of its process: that is what stays of
LKMM if stores execute in their turn, and dependencies of stores need not be known.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from rmaplab.errors import CannotRun
from rmaplab.kernel.errors import KernelUnavailable
from rmaplab.kernel.native.build import release_of, sources
from rmaplab.kernel.packages import Archive
from rmaplab.kernel.setup import cache
from rmaplab.kernel.versions import SUITES

VERSION: Final = "7.3"  # of the kernel whose model judges
_PACKAGES: Final = ("herdtools7", "libc6", "libgmp10")
_KEPT: Final = re.compile(
    r".*/(bin/herd7|share/herdtools7/herd/.*|ld-linux-x86-64\.so\.2|lib(?:c|m)\.so\.6|libgmp\.so\..*)"
)
_LOADER: Final = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
LKMM: Final = ""
NO_LOAD_BUFFERING: Final = "no load buffering"
NO_OVERTAKING: Final = "no overtaking"
_AXIOM: Final = "\nacyclic po | rf as no-load-buffering\n"
_ORDER: Final = ("let ppo = ", "let ppo = ([R] ; po ; [W]) | ")
_TOGETHER: Final = 100  # tests a run of herd7


class Answer(msgspec.Struct, frozen=True):
    """What herd7 says of a test.

    verdict:  "Never", "Sometimes" or "Always"
    positive: how many executions meet the condition
    negative: how many do not
    states:   the states in which it may end, each as pairs of a register or location and its value, by name
    """

    verdict: str
    positive: int
    negative: int
    states: list[list[tuple[str, int | str]]]


class Herd(msgspec.Struct, frozen=True):
    """A herd7 that runs here: the words that start it."""

    command: list[str]

    def ask(self, tests: Sequence[Path], model: Path, variant: str = LKMM) -> dict[str, Answer]:
        """What it says of each test, by the test's own name.

        model:   a folder as tools/memory-model is
        variant: LKMM, NO_LOAD_BUFFERING or NO_OVERTAKING

        :raises CannotRun: it refuses a test, or does not run here
        """
        answers: dict[str, Answer] = {}
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            for path in [*model.glob("*.cat"), *(model / f"linux-kernel.{kind}" for kind in ("bell", "cfg", "def"))]:
                shutil.copyfile(path, folder / path.name)
            cat = folder / "linux-kernel.cat"
            if variant == NO_LOAD_BUFFERING:
                cat.write_text(cat.read_text() + _AXIOM)
            elif variant == NO_OVERTAKING:
                text = cat.read_text()
                if text.count(_ORDER[0]) != 1:
                    raise CannotRun(f"{model / cat.name} does not say once what ppo is: it is no model of 7.3.")
                cat.write_text(text.replace(*_ORDER))
            for first in range(0, len(tests), _TOGETHER):
                asked = tests[first : first + _TOGETHER]
                answers.update(parse(self._run(folder, asked)))
                if len(answers) != first + len(asked):
                    raise CannotRun(f"herd7 answers {len(answers)} of {first + len(asked)} tests: their names differ?")
        return answers

    def _run(self, folder: Path, tests: Sequence[Path]) -> str:
        command = [*self.command, "-conf", "linux-kernel.cfg", *(str(path.resolve()) for path in tests)]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        complaints = [line for line in run.stderr.splitlines() if line.strip()]
        if run.returncode or complaints:
            raise CannotRun(f"herd7 does not answer: {(complaints or ['no reason given'])[0]}")
        return run.stdout


def parse(text: str) -> dict[str, Answer]:
    """What herd7 prints, test by test."""
    answers = {}
    for part in re.split(r"^Test ", text, flags=re.MULTILINE)[1:]:
        found = re.search(r"^Observation (\S+) (Never|Sometimes|Always) (\d+) (\d+)$", part, re.MULTILINE)
        if found is None:
            raise CannotRun(f"herd7 has no answer for {part.split()[0]}.")
        states = re.search(r"^States \d+\n(.*?)^(?:Ok|No)$", part, re.MULTILINE | re.DOTALL)
        lines = states[1].splitlines() if states is not None else []
        outcomes = sorted(map(_state, lines), key=str)
        answers[found[1]] = Answer(found[2], int(found[3]), int(found[4]), outcomes)
    return answers


def _state(line: str) -> list[tuple[str, int | str]]:
    """`1:r0=x; [x]=1;`"""
    pairs = re.findall(r"\[?([\w:]+)\]?=(\S+?);", line)
    return sorted((name, int(value) if re.fullmatch(r"-?\d+", value) else value) for name, value in pairs)


def installed() -> Herd | None:
    """herd7, if PATH or the cache has it."""
    program = shutil.which("herd7")
    if program is not None:
        return Herd([program])
    root = cache() / "herd"
    if not (root / "usr/bin/herd7").exists():
        return None
    return Herd([
        str(root / _LOADER), "--library-path", str(root / "usr/lib/x86_64-linux-gnu"), str(root / "usr/bin/herd7"),
        "-set-libdir", str(root / "usr/share/herdtools7/herd"),
    ])  # fmt: skip


def set_up(say: Callable[[str], None]) -> Herd:
    """herd7, fetched if it is not here.

    :raises KernelUnavailable: it cannot be had
    """
    there = installed()
    if there is None:
        try:
            _fetch(say)
        except KernelUnavailable as error:
            reason = str(error).split(": ")[0].rstrip(".")
            raise KernelUnavailable(
                f"herd7 cannot be fetched ({reason}): install herdtools7 so that herd7 is in PATH, or try again."
            ) from None
        there = installed()
        assert there is not None
    return there


def _fetch(say: Callable[[str], None]) -> None:
    archive = Archive(cache() / "apt", SUITES[VERSION])
    target = cache() / "herd"
    partial = target.with_name(".herd.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for name in _PACKAGES:
            path = archive.download(archive.search(f"^{name}$")[name], say)
            _unpack(path, partial)
            path.unlink()
        partial.rename(target)
    except OSError as error:
        raise KernelUnavailable(f"cannot write to {cache()} ({error.strerror or error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unpack(package: Path, target: Path) -> None:
    process = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process, tarfile.open(fileobj=process.stdout, mode="r|") as packed:
        packed.extraction_filter = lambda member, _: member  # apt has checked it; and 3.11.2 knows no `filter`
        packed.extractall(target, (member for member in packed if _KEPT.match(member.name)))
    if process.wait():
        package.unlink()
        raise KernelUnavailable(f"{package.name} could not be unpacked: it was removed, try again.")


def model(say: Callable[[str], None]) -> Path:
    """The folder of the kernel's model.

    :raises KernelUnavailable: there are no sources of that kernel
    """
    return sources(VERSION, say) / "tools" / "memory-model"


def kernel_tests(say: Callable[[str], None]) -> list[Path]:
    """The kernel's own litmus tests: those of its model, and those of its documentation.

    :raises KernelUnavailable: there are no sources of that kernel, or they lack tests
    """
    tree = sources(VERSION, say)
    found = sorted(
        [*tree.glob("tools/memory-model/litmus-tests/*.litmus"), *tree.glob("Documentation/litmus-tests/*/*.litmus")],
        key=lambda path: path.name,
    )
    if not found:
        raise KernelUnavailable(f"{tree} (Linux {release_of(tree)}) has no litmus tests: remove it and try again.")
    return found
