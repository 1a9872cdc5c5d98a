# SPDX-License-Identifier: GPL-2.0-or-later
"""Histories from the text of tools, made elsewhere.

The text of `perf script` and of `strace -f` holds neither the kernel that it was made on nor whether the
program was seen to its end; the caller can give the first; the second follows from the processes, all
of which must have exited.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Final

from rmaplab.trace.history import Header, History, HistoryFormatError, read_history
from rmaplab.version import __version__

__all__ = ["import_text", "open_history"]

_PERF_MARKS: Final = ("PERF_RECORD_", "raw_syscalls:sys_", "syscalls:sys_", "exceptions:page_fault_")


def open_history(path: str | os.PathLike[str]) -> History:
    """A history from a file of either sort: Parquet, or text.

    :raises HistoryFormatError: it is neither
    :raises OSError: there is no such file, or it may not be read
    """
    with open(path, "rb") as file:
        start = file.read(4096)
    if start[:4] != b"PAR1" and _is_text(start):
        return import_text(path)
    return read_history(path)


def import_text(path: str | os.PathLike[str], *, kernel: str = "") -> History:
    """A history from the text of `perf script` or `strace -f`.

    kernel: release of the kernel that it was made on

    :raises HistoryFormatError: nothing in it can be used; the message says what to do
    :raises OSError: there is no such file, or it may not be read
    """
    from rmaplab.trace.perf_text import PerfText  # recordings are read without
    from rmaplab.trace.reduce import Reducer
    from rmaplab.trace.strace import StraceText

    text = Path(path).read_text(errors="replace")
    lines = text.split("\n")
    is_perf = any(mark in line for mark in _PERF_MARKS for line in lines[:1000])
    source = PerfText() if is_perf else StraceText()
    reducer = Reducer(names=False, synthesise=not is_perf)
    try:
        source.read(lines)
        source.tell(reducer)
    except (ValueError, IndexError) as error:
        raise HistoryFormatError(
            f"{path} cannot be read as text of {'perf script' if is_perf else 'strace -f'} ({error}): "
            "make it again as docs/recording.md says"
        ) from None
    if not len(reducer.events):
        raise HistoryFormatError(
            f"{path} shows no program from its start, neither as text of perf script nor of strace -f: "
            "make it as docs/recording.md says"
        )
    lost = source.timeline.lost if isinstance(source, PerfText) else 0
    header = Header(
        recorder=f"import of {'perf script' if is_perf else 'strace'}",
        rmaplab=__version__,
        kernel=kernel,
        date=datetime.datetime.fromtimestamp(os.path.getmtime(path), datetime.UTC).isoformat(
            timespec="seconds"
        ),
        lost=lost,
        complete=not lost and not reducer.alive,
        order="inferred",
    )
    if isinstance(source, PerfText):
        source.timeline.vouch(header)
    if isinstance(source, PerfText) and source.kind_unknown:
        header.faults = "recorded without their kind: taken for writes where writing was allowed"
    return reducer.finish(header)


def _is_text(start: bytes) -> bool:
    return bool(start) and b"\0" not in start
