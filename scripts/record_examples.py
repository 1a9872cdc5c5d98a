#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Record the programs whose recordings are packaged, end to end: `scripts/record_examples.py [-o DIRECTORY] [NAME…]`.

Each program is prepared in a directory of its own, run without a recorder (the fastest of five goes into the
header), and prepared and recorded again with --check.  --times measures again what the machine was too busy for.
ORIGIN.md is written beside the recordings.  Needs root (perf, and PostgreSQL's own user), and Debian's packages
make, gcc, redis-server, redis-tools and postgresql.  The servers listen on sockets in that directory only.
"""

from __future__ import annotations

import argparse
import glob
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from rmaplab.trace.history import History, read_history, write_history
from rmaplab.trace.record import record

RECORDINGS: Final = Path(__file__).resolve().parent.parent / "src" / "rmaplab" / "data" / "recordings"


class Program(msgspec.Struct):
    """What is recorded.

    what:    in a few words
    package: Debian's package whose version ORIGIN.md states, "" for Python
    prepare: fills a directory, and returns the command
    """

    what: str
    package: str
    prepare: Callable[[Path], list[str]]


def _pipeline(directory: Path) -> list[str]:
    return ["/bin/sh", "-c", "seq 1 400000 | sort -rn | awk '{ n += $1 % 7 } END { print n }'"]


_POOL: Final = """
import multiprocessing

def primes(limit):
    sieve = bytearray([1]) * limit
    for n in range(2, limit):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(range(n * n, limit, n)))
    return sum(sieve)

if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(sum(pool.map(primes, range(300_000, 340_000, 5_000))))
"""


def _pool(directory: Path) -> list[str]:
    (directory / "pool.py").write_text(_POOL)
    return [sys.executable, "-S", "-E", str(directory / "pool.py")]


def _make(directory: Path) -> list[str]:
    for name in ("left", "right"):
        functions = [
            f"static int {name}{i}(int n) {{ return n < 2 ? n : {name}{i}(n - 1) * {i} % 997; }}"
            for i in range(40)
        ]
        calls = " + ".join(f"{name}{i}(n)" for i in range(40))
        text = "\n".join(["#include <stdio.h>", *functions, f"int {name}(int n) {{ return {calls}; }}", ""])
        (directory / f"{name}.c").write_text(text)
    (directory / "main.c").write_text(
        "int left(int), right(int);\nint main(void) { return left(9) != right(9); }\n"
    )
    (directory / "Makefile").write_text(
        "main: main.o left.o right.o\n\tcc -o $@ $^\n%.o: %.c\n\tcc -O2 -c -o $@ $<\n"
    )
    return ["make", "-s", "-C", str(directory), "-j2", "main"]


_REDIS: Final = """
redis-server --port 0 --unixsocket redis.sock --save '' --daemonize no --logfile /dev/null --dir . &
until redis-cli -s redis.sock ping >/dev/null 2>&1; do kill -0 $! || exit 1; sleep 0.1; done
redis-benchmark -s redis.sock -q -c 4 -n 30000 -r 4000 -d 200 -t set >/dev/null
redis-cli -s redis.sock config set rdb-key-save-delay 100 >/dev/null
redis-cli -s redis.sock bgsave >/dev/null
redis-benchmark -s redis.sock -q -c 4 -n 30000 -r 4000 -d 200 -t set >/dev/null
while redis-cli -s redis.sock info persistence | grep -q rdb_bgsave_in_progress:1; do sleep 0.1; done
redis-cli -s redis.sock shutdown nosave
wait
"""


def _redis(directory: Path) -> list[str]:
    return ["/bin/sh", "-c", f"cd {directory}\n{_REDIS}"]


_POSTGRES: Final = """
cd {directory}
{bin}/postgres -D data -k {directory} -h '' -B 16MB -c fsync=off -c autovacuum=off -c max_wal_size=64MB \\
    -c log_min_messages=fatal &
until {bin}/pg_isready -q -h {directory}; do kill -0 $! || exit 1; sleep 0.1; done
{bin}/pgbench -h {directory} -c 2 -j 2 -t 400 -n postgres >/dev/null 2>&1
{bin}/pg_ctl -D data -s -m fast stop
wait
"""


def _postgres(directory: Path) -> list[str]:
    binaries = sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1]
    shutil.chown(directory, "postgres", "postgres")
    as_postgres = [
        "setpriv",
        "--reuid=postgres",
        "--regid=postgres",
        "--clear-groups",
        "--reset-env",
        "/bin/sh",
        "-ec",
    ]
    script = _POSTGRES.format(directory=directory, bin=binaries)
    lines = script.strip().splitlines()
    # The tables are made before, by a server of their own.
    prepare = [lines[0], f"{binaries}/initdb -D data -A trust -N >/dev/null", *lines[1:4]]
    prepare += [f"{binaries}/pgbench -h {directory} -i -q -s 1 postgres >/dev/null 2>&1", *lines[5:]]
    subprocess.run([*as_postgres, "\n".join(prepare)], check=True)
    return [*as_postgres, script]


def _example(directory: Path) -> list[str]:
    return [
        sys.executable,
        "-S",
        "-E",
        str(Path(__file__).resolve().parent.parent / "src" / "rmaplab" / "example.py"),
    ]


PROGRAMS: Final = {
    "example": Program("`rmaplab.example`, which forks, copies and remaps", "", _example),
    "pipeline": Program("a shell pipeline: seq, sort and awk", "dash", _pipeline),
    "pool": Program("a Python multiprocessing pool of two that sieves primes", "", _pool),
    "make": Program("make -j2 of a C program of three files", "gcc", _make),
    "redis": Program(
        "Redis: written to by redis-benchmark, before and during a BGSAVE", "redis-server", _redis
    ),
    "postgresql": Program("PostgreSQL: pgbench with two clients", "postgresql-15", _postgres),
}


def _in_directory(program: Program, run: Callable[[list[str]], None]) -> None:
    with tempfile.TemporaryDirectory(prefix="rmaplab-example-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        run(program.prepare(directory))


def _unrecorded(program: Program) -> float:
    """Seconds that it runs by itself: what a replay is held against, so the fastest of five."""
    seconds: list[float] = []

    def run(command: list[str]) -> None:
        begun = time.monotonic()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        seconds.append(round(time.monotonic() - begun, 3))

    for _ in range(5):
        _in_directory(program, run)
    return min(seconds)


def _record(program: Program, path: Path) -> History:
    seconds = _unrecorded(program)
    histories: list[History] = []

    def run(command: list[str]) -> None:
        recording = record(command, path, recorder="perf", check=True, say=print, seconds_unrecorded=seconds)
        if recording.status or not recording.history.header.complete:
            raise SystemExit(f"{path.stem} ended with {recording.history.header.ended}, or events were lost")
        histories.append(recording.history)

    _in_directory(program, run)
    return histories[0]


def _time(program: Program, path: Path) -> History:
    """A recording that exists, with the time measured again."""
    history = read_history(path)
    history.header.seconds_unrecorded = _unrecorded(program)
    write_history(path, history)
    return history


def _version(package: str) -> str:
    if not package:
        return f"Python {platform.python_version()}"
    version = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True, check=False
    ).stdout
    return f"{package} {version}"


def _origin(rows: list[str]) -> str:
    header = (
        "# Where these recordings come from\n\n"
        "Recordings of real programs, made for this project with `scripts/record_examples.py` (recorder perf, with\n"
        "--check).  They hold addresses, sizes and times, and neither names nor contents of files.  They are our\n"
        "own work, and under the project's licence, GPL-2.0-or-later.\n\n"
        "| recording | program | package | kernel | date | events | processes | ran, unrecorded |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
    )
    return header + "".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Record the programs whose recordings are packaged.")
    parser.add_argument("-o", "--output", type=Path, default=RECORDINGS, help="directory for the recordings")
    parser.add_argument("--times", action="store_true", help="only measure how long they run unrecorded")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"some of {', '.join(PROGRAMS)} (default: all)"
    )
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    origin = arguments.output / "ORIGIN.md"
    rows = dict.fromkeys(PROGRAMS, "")
    if origin.exists():
        for line in origin.read_text().splitlines(keepends=True):
            name = line.removeprefix("| ").split(" ", 1)[0].removesuffix(".parquet")
            if name in rows:
                rows[name] = line
    for name in arguments.names or PROGRAMS:
        program = PROGRAMS[name]
        history = (_time if arguments.times else _record)(program, arguments.output / f"{name}.parquet")
        header, summary = history.header, history.summary()
        rows[name] = (
            f"| {name}.parquet | {program.what} | {_version(program.package)} | {header.kernel} | {header.date} "
            f"| {summary['events']} | {summary['processes']} | {header.seconds_unrecorded} s |\n"
        )
        print(name, summary)
        origin.write_text(_origin(list(rows.values())))


if __name__ == "__main__":
    main()
