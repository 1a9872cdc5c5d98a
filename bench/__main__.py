# SPDX-License-Identifier: GPL-2.0-or-later
"""The harness: measures ratios in one run, writes build/bench.json and prints a table.

Everything that is compared is run in turn (A B A B ...), each time in a process of its own, and the ratio
is taken pair by pair: the machine's speed may drift, the ratio does not.  What is compared with the
kernel or with a program is elapsed time; the model with itself, processor time.  The median over the pairs is
what is written down.  Beside each figure of the compiled model stands that of the interpreted one.

Exit status 0 if all bars hold, 1 if one does not, 2 if it could not run.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import msgspec
from rich.console import Console

import rmaplab
from bench.cases import PLAIN
from rmaplab.terminal import Grid, console
from rmaplab.trace.history import read_history

ROOT = Path(__file__).resolve().parent.parent
KERNEL = ROOT / "build" / "kernel"
PAIRS = 5
INTERPRETED = ", interpreted"  # ends the name of a row that stands beside another
Measurement = Callable[[], float]
progress = Console(stderr=True)


class Row(msgspec.Struct):
    """A line of the result.  A row without a bar is there to compare with."""

    name: str
    value: float
    unit: str
    bar: str | None
    holds: bool | None
    how: str


class Result(msgspec.Struct):
    """What a case prints (bench/cases.py)."""

    build: str
    values: list[float]


def kernel(case: str, size: int, rounds: int) -> Measurement:
    """Seconds that this machine's kernel takes."""

    def measure() -> float:
        done = subprocess.run(
            [KERNEL, case, str(size), str(rounds)], check=True, stdout=subprocess.PIPE, text=True
        )
        return median(int(line) for line in done.stdout.split()) / 1e9

    return measure


def model(case: str, argument: int | Path, rounds: int, interpreted: bool = False) -> Measurement:
    """What the model takes; interpreted, it is imported from src/, where nothing is compiled."""
    environment = dict(os.environ)
    if interpreted:
        environment["PYTHONPATH"] = str(ROOT / "src")

    def measure() -> float:
        done = subprocess.run(
            [sys.executable, "-m", "bench.cases", case, str(argument), str(rounds)],
            check=True,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        result = msgspec.json.decode(done.stdout, type=Result)
        if interpreted and result.build != "interpreted":
            raise RuntimeError("src/ holds compiled modules: remove them, the two builds are to be compared")
        return median(result.values)

    return measure


def in_turn(*measurements: Measurement, pairs: int = PAIRS) -> list[list[float]]:
    """Each measurement's values, `pairs` of them, taken in turn."""
    values: list[list[float]] = [[] for _ in measurements]
    for _ in range(pairs):
        for measurement, its in zip(measurements, values, strict=True):
            its.append(measurement())
    return values


def ratio(above: list[float], below: list[float]) -> float:
    return median(a / b for a, b in zip(above, below, strict=True))


def at_most(name: str, value: float, unit: str, bar: float, how: str) -> Row:
    return Row(name, value, unit, f"<= {bar:g}", value <= bar, how)


def at_least(name: str, value: float, unit: str, bar: float, how: str) -> Row:
    return Row(name, value, unit, f">= {bar:g}", value >= bar, how)


def beside(name: str, value: float, unit: str, how: str) -> Row:
    return Row(name, value, unit, None, None, how)


def pages_that_fit(wanted: int) -> int:
    """`wanted`, or as many pages as fit well into the memory that is free."""
    available = int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024
    return min(wanted, available * 6 // 10 // 4096)


def fork_rows(case: str, size: int, what: str, bar: float, rounds: int) -> list[Row]:
    """Fork and exit of a process, against the kernel's own time."""
    ours, theirs, slow = in_turn(
        model(case, size, rounds), kernel(case, size, rounds), model(case, size, 3, interpreted=True)
    )
    how = (
        f"anon_vma alone, fork and exit of a process with {what}, over the kernel's time for the same; "
        f"medians of {PAIRS} runs in turn: model {median(ours) * 1e3:.3g} ms, kernel {median(theirs) * 1e3:.3g} ms"
    )
    name = f"fork+exit, {what}: model / kernel"
    return [
        at_most(name, ratio(ours, theirs), "times", bar, how),
        beside(
            f"{name}{INTERPRETED}", ratio(slow, theirs), "times", f"interpreted {median(slow) * 1e3:.3g} ms"
        ),
    ]


def fork_pages_rows() -> list[Row]:
    pages = pages_that_fit(1_000_000)
    return fork_rows("fork_pages", pages, f"{pages} pages in a VMA", 0.5, 5)


def fork_lockstep_rows(size: int) -> list[Row]:
    both, theirs = in_turn(model("fork_vmas_lockstep", size, 15), kernel("fork_vmas", size, 15), pairs=3)
    how = "as above, with anon_vma and cow_context in lockstep"
    return [beside(f"fork+exit, {size} VMAs, two designs: model / kernel", ratio(both, theirs), "times", how)]


def page_rows() -> list[Row]:
    size = pages_that_fit(3_000_000)
    value = model("page_bytes", size, 1)()
    how = f"growth of resident memory by {size} pages written in one VMA, two designs watching, over their number"
    return [at_most("memory of a mapped page", value, "bytes", 48, how)]


def event_rows() -> list[Row]:
    few, many = 1500, 15000
    one, ten = in_turn(model("events", few, 3), model("events", many, 1))
    slow_one, slow_ten = in_turn(model("events", few, 1, True), model("events", many, 1, True), pairs=1)
    how = (
        f"prefork with {few} and {many} requests, two designs in lockstep: ten times the ratio of seconds an "
        f"event; {median(ten) * 1e6:.3g} us an event"
    )
    name = "ten times the events"
    return [
        at_most(name, 10 * ratio(ten, one), "times the time", 11, how),
        beside(f"{name}{INTERPRETED}", 10 * ratio(slow_ten, slow_one), "times the time",
               f"{median(slow_ten) * 1e6:.3g} us an event"),
    ]  # fmt: skip


def vma_rows() -> list[Row]:
    few, many = 2000, 20000
    rows = []
    for case, what in (
        ("mmap", "mmap and munmap of a page"),
        ("mprotect", "mprotect there and back"),
        ("mremap", "mremap there and back"),
        ("fault", "mmap, first write and munmap of a page"),
    ):
        small, large = in_turn(model(case, few, 5), model(case, many, 5))
        slow_small, slow_large = in_turn(model(case, few, 3, True), model(case, many, 3, True), pairs=1)
        how = (
            f"{what} at a random place among {many} and among {few} VMAs of one address space, two designs in "
            f"lockstep: {median(large) * 1e6:.3g} and {median(small) * 1e6:.3g} us"
        )
        name = f"ten times the VMAs: {case}"
        rows += [
            at_most(name, ratio(large, small), "times an operation", 1.5, how),
            beside(f"{name}{INTERPRETED}", ratio(slow_large, slow_small), "times an operation",
                   f"{median(slow_large) * 1e6:.3g} and {median(slow_small) * 1e6:.3g} us"),
        ]  # fmt: skip
    return rows


def verify_rows() -> list[Row]:
    rows = []
    for every, what, bar in ((0, "no truth", 50_000), (1, "truth after every step", 2_000)):
        ours, slow = in_turn(model("verify", every, 2), model("verify", every, 1, interpreted=True), pairs=3)
        name = f"verify, {what}"
        how = "random histories of some 200 pages, written and played, two designs in lockstep, on one core"
        rows += [
            at_least(name, 1 / median(ours), "steps/s", bar, how),
            beside(f"{name}{INTERPRETED}", 1 / median(slow), "steps/s", how),
        ]
    return rows


def race_rows() -> list[Row]:
    how = "all interleavings of four scenarios of one operation, with anon_vma and with cow_context, on one core"
    rows = []
    for case, name, bar in (
        ("race", "race, whole scenarios", 10_000),
        ("race_weak", "race under weak memory, whole scenarios", 2_000),
    ):
        ours, slow = in_turn(model(case, 1, 2), model(case, 1, 1, interpreted=True), pairs=3)
        rows += [
            at_least(name, 1 / median(ours), "interleavings/s", bar, how),
            beside(f"{name}{INTERPRETED}", 1 / median(slow), "interleavings/s", how),
        ]
    for number in range(len(PLAIN)):
        how = f"all interleavings of “{PLAIN[number]}” with anon_vma, over those that reduction leaves: both counted"
        rows.append(beside(f"race, reduction: {PLAIN[number]}", model("race_reduction", number, 1)(), "times", how))
    return rows


def scale_rows() -> list[Row]:
    """Virtual time: what a lock costs, what CPUs cost, and a long run."""
    few, many, slow = in_turn(
        model("locks", 16, 2), model("locks", 1024, 2), model("locks", 16, 1, interpreted=True), pairs=3
    )
    how = "on 16 simulated CPUs, one core: each takes a lock of its own, and every tenth time one that all share"
    rows = [
        at_least("virtual time: lock operations", 1 / median(few), "1/s", 300_000, how),
        beside(f"virtual time: lock operations{INTERPRETED}", 1 / median(slow), "1/s", how),
        at_most("virtual time: 1024 CPUs over 16, a lock operation", ratio(many, few), "times", 2, how),
    ]
    few, many = in_turn(model("storm", 16, 1), model("storm", 1024, 1), pairs=3)
    how = (
        "a storm of 2048 forks and exits of 20 VMAs, anon_vma, spread over 16 and over 1024 processes and CPUs: "
        f"{median(few) * 1e6:.3g} and {median(many) * 1e6:.3g} us an operation"
    )
    rows.append(at_most("virtual time: 1024 CPUs over 16, an operation", ratio(many, few), "times", 2, how))
    seconds = model("zygote", 1_000_000, 1)()
    how = "zygote of 400 VMAs on 256 simulated CPUs, anon_vma, processor time of the run"
    rows.append(at_most("virtual time: a million operations", seconds, "s", 60, how))
    return rows


def recorder() -> Any:
    """scripts/record_examples.py, which knows how to run the programs whose recordings are packaged."""
    spec = importlib.util.spec_from_file_location("record_examples", ROOT / "scripts" / "record_examples.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def program(examples: Any, name: str) -> Measurement:
    """Seconds that the program runs here, by itself."""

    def measure() -> float:
        seconds: list[float] = []

        def run(command: list[str]) -> None:
            start = perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
            seconds.append(perf_counter() - start)

        with tempfile.TemporaryDirectory(prefix="rmaplab-bench-") as directory:
            Path(directory).chmod(0o755)
            run(examples.PROGRAMS[name].prepare(Path(directory)))
        return seconds[0]

    return measure


_FAULTS = """
import ctypes, mmap
for _ in range(8):
    pages = mmap.mmap(-1, 1 << 30)
    pages.madvise(mmap.MADV_NOHUGEPAGE)
    ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(pages)), 1, 1 << 30)
    del pages
"""
_CALLS = "import mmap\nfor _ in range(500_000): mmap.mmap(-1, 4096, 34).close()"
_SUBSHELLS = "i=0; while [ $i -lt 5000 ]; do (true); i=$((i+1)); done"


_HEAP = """
import mmap
pages = mmap.mmap(-1, 1 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
pages.madvise(mmap.MADV_NOHUGEPAGE)
for i in range(1 << 18):
    pages[(i * 99991 & 262143) << 12] = 1
"""


def record_rows() -> list[Row]:
    """What recording a program takes, and what replaying the recording takes, over the program by itself."""

    def seconds(*command: str) -> Measurement:
        def measure() -> float:
            begun = perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            return perf_counter() - begun

        return measure

    with tempfile.TemporaryDirectory() as directory:
        recorder = [
            sys.executable, "-m", "rmaplab", "record", "--recorder", "auto", "-o", f"{directory}/h.parquet", "--",
        ]  # fmt: skip
        if subprocess.run([*recorder, "true"], check=False, capture_output=True).returncode:
            progress.print("neither BPF nor perf is permitted here, so what recording takes is not measured")
            return []
        replayer = [
            sys.executable, "-m", "rmaplab", "replay", f"{directory}/h.parquet", "--rmap", "anon_vma,cow_context",
        ]  # fmt: skip
        at_once = median(seconds(*recorder, "true")() for _ in range(PAIRS))
        rows = [at_most("record of a program that ends at once", at_once, "s", 0.5, "rmaplab record -- true, elapsed")]
        for what, bar, command in (
            ("half a second of nothing", 0, ["sleep", "0.5"]),
            ("2 million faults", 2, [sys.executable, "-S", "-c", _FAULTS]),
            ("262,144 faults in no order", 0, [sys.executable, "-S", "-c", _HEAP]),
            ("5,000 subshells", 2, ["sh", "-c", _SUBSHELLS]),
            ("1,000,000 mmap and munmap", 2, [sys.executable, "-S", "-c", _CALLS]),
        ):
            recorded, bare, replayed = in_turn(
                seconds(*recorder, *command), seconds(*command), seconds(*replayer), pairs=3
            )
            how = f"rmaplab record ({median(recorded):.3g} s) over the program by itself ({median(bare):.3g} s)"
            name, value = f"record of {what}: recorded / bare", ratio(recorded, bare)
            rows.append(at_most(name, value, "times", bar, how) if bar else beside(name, value, "times", how))
            how = (
                f"rmaplab replay of the recording, two designs in lockstep, start-up included "
                f"({median(replayed):.3g} s), over the program by itself ({median(bare):.3g} s)"
            )
            rows.append(at_most(f"replay of {what}: replayed / bare", ratio(replayed, bare), "times", 1, how))
    return rows


def replay_rows() -> list[Row]:
    """Replays of the packaged recordings, against the programs themselves where they can be run here."""
    rows = []
    examples = recorder()
    for path in sorted((Path(rmaplab.__file__).parent / "data" / "recordings").glob("*.parquet")):
        fast, slow = model("replay", path, 3), model("replay", path, 1, interpreted=True)
        try:
            ours, interpreted, theirs = in_turn(fast, slow, program(examples, path.stem), pairs=3)
            where = "here, in turn with the replays"
        except (OSError, LookupError, subprocess.CalledProcessError):
            recorded = read_history(path).header.seconds_unrecorded
            if recorded is None:
                continue
            ours, interpreted = in_turn(fast, slow, pairs=3)
            theirs = [recorded] * 3
            where = "when it was recorded: it cannot be run here"
        how = (
            f"the program by itself ({median(theirs):.3g} s, {where}) over reading and replaying its recording with "
            f"anon_vma and cow_context in lockstep ({median(ours):.3g} s)"
        )
        name = f"replay of {path.stem}: program / model"
        value = ratio(theirs, ours)
        if path.stem == "example":  # written to do nothing but memory operations
            rows.append(beside(name, value, "times", how))
        else:
            rows.append(at_least(name, value, "times", 3, how))
        how = f"the same with the interpreted model ({median(interpreted):.3g} s)"
        rows.append(beside(f"{name}{INTERPRETED}", ratio(theirs, interpreted), "times", how))
    return rows


def explore_rows() -> list[Row]:
    """The explorer's page, in Chromium (bench/explore.py)."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.explore"], check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    found = msgspec.json.decode(done.stdout, type=dict[str, float])
    what = "page of a history of 200 steps in 10 processes, two designs, in Chromium"
    return [
        at_most("page: size", found["nbytes"] / 1e6, "MB", 3, what),
        at_most("page: ready to be used", found["ready"], "s", 2, f"{what}: from the file to the first step"),
        at_most("page: a step", found["step"] * 1e3, "ms", 50, f"{what}: drawn and laid out, median of all"),
        at_most("page: a million events", found["opens"], "s", 10, "the page of a workload of a million events"),
        beside("page: a million events, written", found["writes"], "s", "CPU time to make it, all told"),
    ]


def kernel_rows() -> list[Row]:
    """The start of a guest and a step in lockstep with it, for each kernel that is in the cache."""
    from rmaplab.kernel import lockstep, setup
    from rmaplab.kernel.errors import KernelUnavailable
    from rmaplab.kernel.versions import VERSIONS

    rows = []
    for version in VERSIONS:
        try:
            started = perf_counter()
            with lockstep.Witness(setup.need(version)) as witness:
                start = perf_counter() - started
                seconds = []
                history = lockstep.Random(witness, 1)
                started = perf_counter()
                for found in history.steps(400):
                    if found is not None:
                        raise RuntimeError(f"kernel {version} and the model differ: {found.difference}")
                    seconds.append(perf_counter() - started)
                    started = perf_counter()
                history.end()
        except KernelUnavailable as error:
            progress.print(f"[bold red]SKIPPED[/]: a step in lockstep with kernel {version}: {error}", soft_wrap=True)
            continue
        how = (
            "one event done in the guest (QEMU, TCG) and in the model, all state read and compared; median of 400"
            f" random steps, the longest {max(seconds) * 1e3:.3g} ms"
        )
        rows.append(at_most(f"lockstep with {version}: a step", median(seconds) * 1e3, "ms", 15, how))
        how = "QEMU begun, the kernel booted to its init, drgn attached with the debug information; once"
        rows.append(at_most(f"lockstep with {version}: start of the guest", start, "s", 5, how))
    return rows


def table(rows: list[Row]) -> Grid:
    """The compiled model's figures, with those of the interpreted one in a column of their own."""
    slow = {row.name.removesuffix(INTERPRETED): row for row in rows if row.name.endswith(INTERPRETED)}
    result = Grid("figure", "value", "interpreted", "unit", "bar", "holds", left=("unit", "bar", "holds"))
    for row in rows:
        if not row.name.endswith(INTERPRETED):
            other = f"{slow[row.name].value:.3g}" if row.name in slow else ""
            holds = {True: "yes", False: "NO", None: ""}[row.holds]
            result.add_row(row.name, f"{row.value:.3g}", other, row.unit, row.bar or "", holds)
    return result


PARTS: dict[str, tuple[str, Callable[[], list[Row]]]] = {
    "replay": ("replays of recorded programs", replay_rows),
    "record": ("recording, and replays of what was recorded", record_rows),
    "fork-vmas": ("fork of many VMAs", lambda: fork_rows("fork_vmas", 1000, "1000 VMAs of a page", 1.5, 15)),
    "fork-lockstep": ("fork of many VMAs, two designs", lambda: fork_lockstep_rows(1000)),
    "fork-pages": ("fork of many pages", fork_pages_rows),
    "memory": ("memory", page_rows),
    "events": ("ten times the events", event_rows),
    "vmas": ("ten times the VMAs", vma_rows),
    "verify": ("random histories", verify_rows),
    "race": ("interleavings", race_rows),
    "scale": ("virtual time", scale_rows),
    "page": ("the explorer's page", explore_rows),
    "kernel": ("lockstep with real kernels", kernel_rows),
}


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure how fast the model is, write build/bench.json and print a table.  All of it takes half\n"
        "an hour on an otherwise idle machine; --only measures a part, and then writes only that.",
        epilog="parts:\n"
        + "\n".join(f"  {name:14} {what}" for name, (what, _) in PARTS.items())
        + "\n\nexample:\n  python -m bench --only verify --only race",
    )
    parser.add_argument(
        "--only", action="append", choices=PARTS, metavar="PART", help="measure this part; may be repeated"
    )
    return parser.parse_args(words)


def main() -> int:
    chosen = arguments().only or list(PARTS)
    KERNEL.parent.mkdir(exist_ok=True)
    compiler = os.environ.get("CC", "cc").split()  # it may be "ccache gcc"
    try:
        subprocess.run([*compiler, "-O2", "-o", KERNEL, ROOT / "bench" / "kernel.c"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"bench needs a C compiler for the programs that time the kernel: {error}", file=sys.stderr)
        return 2
    if "page" in chosen and shutil.which("chromium") is None:
        print("bench measures the explorer's page in Chromium: apt-get install chromium", file=sys.stderr)
        return 2
    rows: list[Row] = []
    for what, part in map(PARTS.__getitem__, chosen):
        progress.print(f"measuring {what}")
        rows += part()
        # After each part, so that an interrupted run keeps what it measured.
        (ROOT / "build" / "bench.json").write_bytes(msgspec.json.format(msgspec.json.encode(rows)) + b"\n")
    title = f"rmaplab {rmaplab.__version__}, {rmaplab.build_info()}"
    table(rows).print(console(None if sys.stdout.isatty() else 120), title)
    return 0 if all(row.holds is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
