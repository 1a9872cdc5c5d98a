# SPDX-License-Identifier: GPL-2.0-or-later
"""Histories by name: a workload with its parameters, or a file."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from rmaplab.errors import CannotRun
from rmaplab.printable import printable
from rmaplab.trace.history import Header, History
from rmaplab.trace.importing import open_history
from rmaplab.trace.parallel import Parallel, nodes_of, take_apart
from rmaplab.workloads import FAMILIES, WorkloadError, workload

MAX_CPUS: Final = 4096


class Source(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a history came from.

    name:     the workload with its parameters, or the program that was recorded
    sha256:   of a recording's file
    recorder, kernel, faults, lost: from the recording's header
    ended:    how the recorded command ended
    evidence: what the recording can vouch for
    """

    name: str
    recorder: str
    kernel: str = ""
    faults: str = ""
    lost: int = 0
    sha256: str = ""
    evidence: str = ""
    ended: str = ""


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


def _is_program(path: str) -> bool:
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(4).startswith((b"\x7fELF", b"#!")) or path.endswith(".py")


def from_workload(name: str, parameters: Sequence[str], seed: int) -> tuple[History, Source]:
    if name not in FAMILIES and ("/" in name or name.endswith(".parquet")):
        raise WorkloadError(f"there is no file {name}")
    if name not in FAMILIES and shutil.which(name):
        raise WorkloadError(f"{name} is a command, not a workload: rmaplab record -o F -- CMD records one")
    values: dict[str, str] = {"seed": str(seed)}
    for parameter in parameters:
        key, equals, value = parameter.partition("=")
        if not equals:
            raise WorkloadError(f"{parameter!r} is no parameter: say NAME=VALUE")
        values[key] = value
    history = workload(name, values).history()
    return history, Source(history.header.command, history.header.recorder)


def from_file(path: str) -> tuple[History, Source]:
    if _is_program(path):
        raise WorkloadError(f"{path} is a program, not a recording: rmaplab record -o F -- CMD records one")
    history = open_history(path)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    header = history.header
    name = f"{Path(path).name}, a recording of {header.command}" if header.command else Path(path).name
    return history, Source(
        printable(name),
        printable(header.recorder),
        printable(header.kernel),
        printable(header.faults),
        header.lost,
        digest,
        printable(history.evidence),
        printable(header.ended),
    )


def cpu_counts(text: str) -> list[int]:
    """ "1,2,...,16" as [1, 2, 4, 8, 16].

    :raises CannotRun: it is no such list
    """
    counts: list[int] = []
    doubling = False
    for word in text.split(","):
        word = word.strip()
        if word in ("...", "…") and counts and not doubling:
            doubling = True
            continue
        if not word.isdecimal() or not 1 <= int(word) <= MAX_CPUS:
            raise CannotRun(f"{word!r} is no number of CPUs: say --cpus 1,2,4 or --cpus 1,...,{1024}")
        if doubling:
            while counts[-1] * 2 < int(word):
                counts.append(counts[-1] * 2)
            doubling = False
        if counts and int(word) <= counts[-1]:
            raise CannotRun(f"numbers of CPUs go up, and {word} comes after {counts[-1]}")
        counts.append(int(word))
    if doubling:
        raise CannotRun("`...` needs a number of CPUs after it, to say how far to go")
    return counts


_PER_CPU: Final = re.compile(r"(?:(\d+)\*)?cpus")


def history_for(what: Sequence[str], cpus: int, seed: int) -> tuple[Header, Parallel, Source]:
    """The history for so many CPUs, taken apart; its name says which parameters go with the CPUs."""
    words = list(what)
    family = FAMILIES.get(words[0])
    if family is not None and getattr(family(), "processes", None) == 0:
        if not any(word.startswith("processes=") for word in words[1:]):
            words.append("processes=cpus")
    varying: dict[str, str] = {}
    for i, word in enumerate(words[1:], 1):
        name, equals, value = word.partition("=")
        match = _PER_CPU.fullmatch(value)
        if equals and match:
            varying[name] = value
            words[i] = f"{name}={int(match[1] or 1) * cpus}"
    history, source = find(words, seed)
    named = source.name
    for name, value in varying.items():
        named = re.sub(rf"\b{re.escape(name)}=\d+", f"{name}={value}", named)
    source = msgspec.structs.replace(source, name=named)
    parallel = take_apart(list(history), recorded=family is None, nodes=nodes_of(cpus))
    return history.header, parallel, source
