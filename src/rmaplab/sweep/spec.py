# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign's specification: TOML in, points out.

    name = "which design wins where"

    [[compare]]
    history = ["zygote apps=8", "recordings/redis.parquet"]
    designs = ["anon_vma", "cow_context"]
    seed = "1..3"

Each `[[command]]` is a table of parameters of one point (the structs of points.py).  A list of values is an axis,
and so is "FIRST..LAST" for a number, and "all" where one design is wanted; the points are all combinations, the last
axis fastest.  Where a parameter is itself a list (`designs`, which watch in lockstep; "all" is every one), a list of
lists is the axis.  Files are named relative to the specification.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Final

import msgspec

from rmaplab.errors import CannotRun
from rmaplab.rmap import ALL, DESIGNS, specs
from rmaplab.sweep.errors import SweepError
from rmaplab.sweep.points import KINDS, Point

MAX_POINTS: Final = 100_000
_DESIGNS: Final = ("design", "designs")  # parameters
_RANGE: Final = re.compile(r"(\d+)\.\.(\d+)")


class Spec(msgspec.Struct, frozen=True):
    """A campaign: its name, its points in order, and where their files are."""

    name: str
    points: list[Point]
    directory: Path

    def find(self, name: str) -> str:
        """The path of what a point names, if that is a file; else the name."""
        path = self.directory / name
        return str(path) if path.is_file() else name


def read_spec(path: Path) -> Spec:
    """The campaign that a file specifies, its points checked.

    :raises SweepError: it is no such file, or a point in it makes no sense
    :raises OSError: it cannot be read
    """
    try:
        table = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SweepError(f"{path} is not TOML: {error}") from None
    name = table.pop("name", path.stem)
    if not isinstance(name, str):
        raise SweepError(f"{path}: `name` has to be text")
    spec = Spec(name, [], path.parent)
    for command, runs in table.items():
        if command not in KINDS:
            raise SweepError(f"{path}: there is no {command!r} to sweep over (there are {', '.join(KINDS)})")
        if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
            raise SweepError(f"{path}: write [[{command}]], with two brackets, for each table of parameters")
        for number, run in enumerate(runs, 1):
            where = f"{path}, [[{command}]] {number}"
            try:
                spec.points.extend(_with_files(point, spec) for point in _points(command, run))
            except (ValueError, CannotRun) as error:  # msgspec's and the scenarios' errors are such
                raise SweepError(f"{where}: {_plain(error)}") from None
    if not spec.points:
        raise SweepError(f"{path} has no point: begin with [[compare]] (or {', '.join(KINDS)})")
    seen: set[str] = set()
    once = [point for point in spec.points if not (point.key() in seen or seen.add(point.key()))]  # type: ignore[func-returns-value]
    spec = Spec(name, once, path.parent)
    recordings: dict[str, str] = {}  # digests by name: rows of a table know no more of a history than its name
    for point in spec.points:
        try:
            point.check(spec.find)
        except (ValueError, CannotRun) as error:  # workloads, recordings, designs have errors of their own
            raise SweepError(f"{path}: {point.title()}: {error}") from None
        for file, digest in point.files.items():
            name = Path(file).name
            if name == point.history_name() and recordings.setdefault(name, digest) != digest:
                raise SweepError(f"{path}: two recordings are called {name}: give one of them another name")
    return spec


def _points(command: str, run: dict[str, Any]) -> Iterator[Point]:
    kind = KINDS[command]
    axes = [_axis(kind, key, value) for key, value in run.items()]
    if prod(len(axis) for axis in axes) > MAX_POINTS:
        raise SweepError(f"it makes more than {MAX_POINTS:,} points")
    for values in product(*axes):
        point = msgspec.convert(dict(zip(run, values, strict=True)), kind)
        yield from point.expand()


def _axis(kind: type[Point], key: str, value: Any) -> Sequence[Any]:
    """The values that a parameter takes."""
    if key == "files":
        raise SweepError("files is not a parameter: it is computed")
    if isinstance(value, str):
        numbers = _RANGE.fullmatch(value)
        if numbers and kind.__annotations__.get(key, Point.__annotations__.get(key)) == "int":
            return range(int(numbers[1]), int(numbers[2]) + 1)
    if key in _DESIGNS:
        value = _named(value)
    if not isinstance(value, list):
        return [value]
    if key in kind.several and not any(isinstance(item, list) for item in value):
        return [value]
    if not value:
        raise SweepError(f"{key} has no value")
    return value


def _named(value: Any) -> Any:
    """Designs, where "all" is every one of them, as it is for --rmap."""
    if value == ALL:
        return list(DESIGNS)
    if isinstance(value, list):
        if ALL in value:
            return specs(value, ())
        return [_named(item) if isinstance(item, list) else item for item in value]
    return value


def _with_files(point: Point, spec: Spec) -> Point:
    files = {}
    for name in point.named_files():
        path = spec.directory / name
        if path.is_file():
            files[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return msgspec.structs.replace(point, files=files)


def _plain(error: Exception) -> str:
    """msgspec's sentences name a value by its path; the table is named before already."""
    return re.sub(r" - at `\$\.?([^`]*)`", r" (\1)", str(error)).replace(" ()", "").replace("`", "")
