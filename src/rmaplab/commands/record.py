# SPDX-License-Identifier: GPL-2.0-or-later
"""`rmaplab record`: run a command, and keep the memory history of it and all its children."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from rmaplab.commands import options
from rmaplab.commands.envelope import print_json
from rmaplab.errors import CannotRun
from rmaplab.output import check_output
from rmaplab.printable import plural
from rmaplab.terminal import say
from rmaplab.trace.record import record


def command(
    context: typer.Context,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="F", help="The history to write (Parquet).", readable=False)
    ],
    names: options.Names = False,
    recorder: Annotated[
        str, typer.Option(metavar="bpf|perf|strace|auto", help="What watches the command (auto: the first permitted).")
    ] = "auto",
    check: Annotated[
        bool, typer.Option("--check", help="Take /proc/PID/maps of each process at its end, too.")
    ] = False,
    json: options.Json = False,
) -> int:
    """Run a command, and record the memory history of it and all its children.

    Exit status: that of the command (128 and the signal's number if a signal ended it), 1 if the recording cannot be
    vouched for, 2 if there is none.

    \b
    Example:
      rmaplab record -o sort.parquet -- sh -c 'ls -l / | sort'
    """
    argv: list[str] = context.obj
    if not argv:
        raise CannotRun("record needs a command, after --")
    check_output(output)
    with output_of_commands_to_stderr(json):
        recording = record(argv, output, recorder=recorder, check=check, names=names, say=say)
    history = recording.history
    summary = history.summary()
    header = history.header
    if json:
        inputs = {"history": {"name": header.command, "recorder": header.recorder}}
        figures = {**summary, "ended": header.ended, "evidence": history.evidence}
        print_json("record", inputs, not header.doubts, figures, header.doubts)
    else:
        say(
            f"recorded {plural(summary['events'], 'event')} of {plural(summary['processes'], 'process')} with"
            f" {header.recorder} in {output}; {argv[0]} ended with {header.ended}"
        )
        say(history.evidence)
    if header.doubts:
        return 1
    return recording.status if recording.status >= 0 else 128 - recording.status


@contextmanager
def output_of_commands_to_stderr(wanted: bool) -> Iterator[None]:
    """While inside, programs that are started find our stderr where they look for stdout."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
