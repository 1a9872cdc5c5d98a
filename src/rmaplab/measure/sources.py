# SPDX-License-Identifier: GPL-2.0-or-later
"""Histories by what a user calls them: a workload with its parameters, or a file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from rmaplab.trace.history import History
from rmaplab.trace.importing import open_history
from rmaplab.workloads import FAMILIES, WorkloadError, workload


class Source(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a history came from.

    name:     the workload with its parameters, or the program that was recorded
    sha256:   of a recording's file
    recorder, kernel, faults, lost: from the recording's header
    evidence: what the recording can vouch for
    """

    name: str
    recorder: str
    kernel: str = ""
    faults: str = ""
    lost: int = 0
    sha256: str = ""
    evidence: str = ""


def find(what: Sequence[str], seed: int) -> tuple[History, Source]:
    """A workload with its parameters (as ["zygote", "apps=50"]), or a recording (as ["redis.parquet"]).

    :raises WorkloadError: it is neither, or the parameters do not fit
    :raises HistoryFormatError: the file holds no history
    :raises OSError: the file may not be read
    """
    if what[0] in FAMILIES or not os.path.exists(what[0]):
        return from_workload(what[0], what[1:], seed)
    if len(what) > 1:
        raise WorkloadError(f"a recording has no parameters, so {what[1]!r} means nothing after {what[0]}")
    return from_file(what[0])


def from_workload(name: str, parameters: Sequence[str], seed: int) -> tuple[History, Source]:
    if name not in FAMILIES and ("/" in name or name.endswith(".parquet")):
        raise WorkloadError(f"there is no file {name}")
    values: dict[str, str] = {"seed": str(seed)}
    for parameter in parameters:
        key, equals, value = parameter.partition("=")
        if not equals:
            raise WorkloadError(f"{parameter!r} is no parameter: say NAME=VALUE")
        values[key] = value
    history = workload(name, values).history()
    return history, Source(history.header.command, history.header.recorder)


def from_file(path: str) -> tuple[History, Source]:
    history = open_history(path)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    header = history.header
    name = f"{Path(path).name}, a recording of {header.command}" if header.command else Path(path).name
    return history, Source(name, header.recorder, header.kernel, header.faults, header.lost, digest, history.evidence)
