# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs programs on this machine's kernel: compiles player.c, plays scripts with it, and takes their times.

A program is played several times, in turn with all others, so that a machine whose speed drifts does so for all of
them.  Its time is the least of the medians of a few rounds: a median keeps out what is rare, the least of several what
lasts (another program that ran for a while).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Final

from rmaplab.measure.calibration.cgroup import Group
from rmaplab.measure.calibration.errors import CalibrationError
from rmaplab.measure.calibration.program import Program

PRIMITIVES: Final = {
    "lock": "lock",
    "section": "rcu read sections",
    "look-up": "vma tree nodes visited",
    "object": "contexts visited",
    "cold-line": "cold line",
    "handover": "handover",
    "context-switch": "context switch",
    "waking": "waking",
    "shootdown": "shootdown",
    "interrupt": "interrupt",
    "grace-period": "grace period",
}  # what player.c calls it: the key of its cost
ROUNDS: Final = 3
_SOURCE: Final = Path(__file__).with_name("player.c")
_SECONDS: Final = 60  # that one run may take
_TRIES: Final = 20  # of a run whose time makes no sense

Progress = Callable[[str, int, int], None]


class Host:
    """A context manager: the compiled player, and where its scripts are."""

    def __init__(self) -> None:
        if platform.system() != "Linux" or platform.machine() != "x86_64":
            raise CalibrationError("calibration measures a Linux kernel on x86-64, and this is none")
        self._directory: Final = tempfile.TemporaryDirectory(prefix="rmaplab-calibrate-")
        self._place: Final = Path(self._directory.name)
        self._player: Final = self._place / "player"
        self.cpus: Final = sorted(os.sched_getaffinity(0))
        self._compile()
        self.group: Final = Group.make()  # the last, since nobody would remove it

    def _compile(self) -> None:
        compiler = os.environ.get("CC", "cc").split()
        if shutil.which(compiler[0]) is None:
            raise CalibrationError(
                f"calibration compiles a small C program, and there is no C compiler {compiler[0]!r}: install one"
                " (on Debian, apt-get install gcc libc6-dev), or name it in the environment variable CC"
            )
        command = [*compiler, "-O2", "-static", "-pthread", "-o", str(self._player), str(_SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            what = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
            raise CalibrationError(f"{' '.join(command[:3])} cannot compile the player: {what}")

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._directory.cleanup()
        if self.group is not None:
            self.group.remove()

    def able(self, scripts: Sequence[Program]) -> list[Program]:
        """Those that can be run here: who reclaims does so in a cgroup of our own, which not everybody may make."""
        return [script for script in scripts if not script.reclaims or self.group is not None]

    def times(
        self, scripts: Sequence[Program], repeats: int, progress: Progress, rounds: int = ROUNDS
    ) -> list[float]:
        """Nanoseconds that the timed parts of each script take."""
        paths = [self._write(number, script) for number, script in enumerate(scripts)]
        medians: list[list[float]] = [[] for _ in scripts]
        for turn in range(rounds):
            times: list[list[int]] = [[] for _ in scripts]
            for _ in range(repeats):
                for script, path, its in zip(scripts, paths, times, strict=True):
                    progress("timing programs", len(its) + turn * repeats, rounds * repeats)
                    its.append(self._play(script, path))
            for its, kept in zip(times, medians, strict=True):
                kept.append(median(its))
        return [min(kept) for kept in medians]

    def race(self, scripts: Sequence[Program], seconds: float) -> list[float]:
        """Nanoseconds that a turn of each racer takes while all of them run, each pinned to one CPU."""
        name = scripts[0].name
        paths = [str(self._write(number, script)) for number, script in enumerate(scripts)]
        printed = self._run(["race", str(len(self.cpus)), str(seconds), *paths], name)
        times = []
        for line in printed.splitlines():
            turns, ns = map(int, line.split())
            if not turns:
                raise CalibrationError(f"a racer of {name!r} did not come round in {seconds} s: is the machine busy?")
            times.append(ns / turns)
        return times

    def primitive(self, name: str) -> float:
        """Nanoseconds that one of PRIMITIVES takes."""
        cpu, other = self.cpus[0], self.cpus[-1]
        return median(float(self._run([name, str(cpu), str(other)], name)) for _ in range(ROUNDS))

    def wake_ups(self) -> list[float]:
        """Nanoseconds from waking a task on another CPU until it runs: 190 quantiles, since no two take the same; a
        fortieth at either end is left out, and of the others the median of several rounds is taken, since another
        program or a hypervisor may have had the CPU meanwhile."""
        cpu, other = str(self.cpus[0]), str(self.cpus[-1])
        rounds = [self._run(["wake-ups", cpu, other], "wake-ups").split() for _ in range(2 * ROUNDS)]
        return [median(map(float, quantile)) for quantile in zip(*rounds, strict=True)][5:-5]

    def _write(self, number: int, script: Program) -> Path:
        path = self._place / f"{number}.ops"
        script.write_ops(path)
        return path

    def _play(self, script: Program, path: Path) -> int:
        """Nanoseconds of one run.  The player takes off what the same call takes when there is nothing to do; where
        that took longer, others disturbed it, and it says nothing."""
        group = self.group if script.reclaims else None
        for _ in range(_TRIES):
            printed = self._run(["play", str(self.cpus[0]), str(path)], script.name, group).strip()
            if not printed.removeprefix("-").isdigit():
                raise CalibrationError(f"the program {script.name!r} printed {printed!r} where one time was to be")
            if int(printed) > 0:
                return int(printed)
        raise CalibrationError(
            f"the program {script.name!r} took less time than doing nothing, {_TRIES} times: is the machine busy?"
        )

    def _run(self, arguments: list[str], name: str, group: Group | None = None) -> str:
        environment = None if group is None else {**os.environ, **group.environment()}
        try:
            done = subprocess.run(
                [self._player, *arguments],
                capture_output=True,
                text=True,
                check=False,
                timeout=_SECONDS,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            raise CalibrationError(f"the program {name!r} has not ended after {_SECONDS} s") from None
        if done.returncode:
            raise CalibrationError(
                f"the kernel does not do what the program {name!r} asks of it: {done.stderr.strip() or done.returncode}"
            )
        return done.stdout


def machine() -> str:
    """This machine in a line: processor, number of CPUs, memory, and whether it is a virtual one."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    cpu = {key.strip(): value.strip() for key, value in fields.items()}
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / (1 << 20)
    name = f"{cpu.get('model name', 'x86-64')}, family {cpu.get('cpu family')}, model {cpu.get('model')}"
    virtual = ", a virtual machine" if "hypervisor" in cpu.get("flags", "").split() else ""
    return f"{name}, {os.cpu_count()} CPUs, {memory:.0f} GiB{virtual}"
