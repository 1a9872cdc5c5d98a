# SPDX-License-Identifier: GPL-2.0-or-later
"""What all refusals have in common; and how a mistake in code reads in one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from traceback import FrameSummary, extract_tb
from typing import Final

_PACKAGE: Final = Path(__file__).resolve().parent


class CannotRun(Exception):
    """What was asked for could not be done; the message is one sentence that says why and what to do.

    The command line prints it and ends with status 2, as it does where a user's design raises anything else; what is
    left is a mistake in rmaplab, and is shown with its traceback.
    """


def in_a_line(error: Exception) -> str:
    """What `error` says, in one line.

    The rules that rmaplab checks raise exceptions of its own, whose sentences are enough.  One of Python's is a mistake
    in code: its class, and the function that made it, in a design's own file if it comes from there.
    """
    said = (str(error).splitlines() or [""])[0]
    if type(error).__module__ != "builtins":
        return said or type(error).__name__
    frames = extract_tb(error.__traceback__)
    words = f"{type(error).__name__}: {said}" if said else type(error).__name__
    for frame in (_outside(frames) or frames)[-1:]:
        words += f", {_place(frame)}"
    return words


def place_outside(error: Exception) -> str:
    """Where in a design's own file `error` came about; "" if no such file had to do with it."""
    for frame in _outside(extract_tb(error.__traceback__))[-1:]:
        return _place(frame)
    return ""


def _outside(frames: Sequence[FrameSummary]) -> list[FrameSummary]:
    """Those of a user's files; where there are none, those of other packages."""
    foreign = [frame for frame in frames if not is_ours(frame.filename)]
    return [frame for frame in foreign if not _is_installed(frame.filename)] or foreign


def is_ours(filename: str) -> bool:
    """Is it a file of rmaplab?  Compiled modules name theirs as mypyc was given it."""
    source = Path(filename)
    return source.parts[:2] == ("src", "rmaplab") or source.resolve().is_relative_to(_PACKAGE)


def _is_installed(filename: str) -> bool:
    """Is it a file of Python's, or of a package that is installed?"""
    from sysconfig import get_path  # no command needs it that ends well

    places = [get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    return filename.startswith("<") or any(Path(filename).is_relative_to(place) for place in places)


def _place(frame: FrameSummary) -> str:
    return f"in {frame.name}(), line {frame.lineno} of {Path(frame.filename).name}"
