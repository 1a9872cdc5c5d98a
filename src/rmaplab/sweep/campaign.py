# SPDX-License-Identifier: GPL-2.0-or-later
"""A directory in which a campaign's results are kept, point by point.

    DIR/campaign.json      the plan: name and points
    DIR/points/KEY.json    a point that is done, with its result
    DIR/results.parquet    all rows, once every point is done
    DIR/lock               held by the sweep that runs

Invariants
- A file is there complete or not at all: it is written beside its place and moved there.
- What is in DIR depends on the specification alone: not on the workers, on those that were killed, or on the
  order in which points were done.  So a campaign that was killed and started again ends with the same bytes.
"""

from __future__ import annotations

import fcntl
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from rmaplab.output import write_output
from rmaplab.sweep.errors import SweepError
from rmaplab.sweep.points import AnyPoint, Outcome, Point, version
from rmaplab.sweep.spec import Spec

RESULTS: Final = "results.parquet"

_SCHEMA: Final = pa.schema(
    [
        ("point", pa.int32()),  # number within the campaign, from 0
        ("key", pa.string()),
        ("command", pa.string()),
        ("history", pa.string()),
        ("sha256", pa.string()),  # of the recording, if it is one
        ("profile", pa.string()),
        ("costs", pa.string()),  # cost profile, where figures are times
        ("cpus", pa.int32()),  # simulated; 0 where nothing is
        ("seed", pa.int64()),
        ("version", pa.string()),
        ("design", pa.string()),
        ("group", pa.string()),
        ("figure", pa.string()),
        ("value", pa.float64()),
        ("unit", pa.string()),
    ]
)


class Plan(msgspec.Struct, frozen=True):
    """The points to do."""

    name: str
    version: str
    points: list[AnyPoint]


class Done(msgspec.Struct, frozen=True):
    """A point that is done."""

    point: AnyPoint
    version: str
    outcome: Outcome


class Campaign:
    """The directory of one campaign."""

    def __init__(self, directory: Path) -> None:
        self.directory: Final = directory
        self._points: Final = directory / "points"

    @contextmanager
    def begun(self, spec: Spec) -> Iterator[None]:
        """Hold the lock of the directory, and write the plan.  :raises SweepError: another sweep holds it"""
        self._points.mkdir(parents=True, exist_ok=True)
        with open(self.directory / "lock", "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise SweepError(
                    f"another sweep works in {self.directory}: wait for it, or name another directory"
                ) from None
            for left in self._points.glob("*.part"):
                left.unlink()
            points = [point for point in spec.points if isinstance(point, AnyPoint)]
            plan = Plan(spec.name, version(), points)
            write_output(self.directory / "campaign.json", msgspec.json.format(msgspec.json.encode(plan)) + b"\n")
            (self.directory / RESULTS).unlink(missing_ok=True)
            yield

    def plan(self) -> Plan:
        """:raises SweepError: no campaign was begun here"""
        try:
            return msgspec.json.decode((self.directory / "campaign.json").read_bytes(), type=Plan)
        except FileNotFoundError:
            raise SweepError(f"{self.directory} holds no campaign: `rmaplab sweep SPEC -o DIR` makes one") from None
        except msgspec.MsgspecError as error:
            raise SweepError(f"{self.directory}/campaign.json was not written by rmaplab sweep: {error}") from None

    def outcome(self, point: Point, made_by: str = "") -> Outcome | None:
        """The result of a point with that version of rmaplab; None if it is not done."""
        path = self._path(point, made_by)
        try:
            done = msgspec.json.decode(path.read_bytes(), type=Done)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise SweepError(f"{path} was not written by rmaplab sweep ({error}): remove it") from None
        return done.outcome

    def keep(self, point: Point, outcome: Outcome) -> None:
        assert isinstance(point, AnyPoint)
        done = Done(point, version(), outcome)
        write_output(self._path(point), msgspec.json.format(msgspec.json.encode(done)) + b"\n")

    def finish(self, spec: Spec) -> Path:
        """Write the table of all rows."""
        table = pa.Table.from_pylist(list(self.rows(spec.points)), schema=_SCHEMA)
        path = self.directory / RESULTS
        written = io.BytesIO()
        pq.write_table(table, written, compression="zstd")
        write_output(path, written.getvalue())
        return path

    def rows(self, points: Sequence[Point], made_by: str = "") -> Iterator[dict[str, object]]:
        """The rows of the points that are done, with the columns of the table."""
        for number, point in enumerate(points):
            outcome = self.outcome(point, made_by)
            if outcome is not None:
                told = told_of(number, point, outcome, made_by)
                for row in outcome.rows:
                    yield told | msgspec.structs.asdict(row)

    def _path(self, point: Point, made_by: str = "") -> Path:
        return self._points / f"{point.key(made_by)}.json"


def told_of(number: int, point: Point, outcome: Outcome, made_by: str = "") -> dict[str, object]:
    """The columns that all rows of a point share."""
    return {
        "point": number,
        "key": point.key(made_by),
        "command": type(point).__name__.lower(),
        "history": point.history_name(),
        "sha256": " ".join(point.files.values()),
        "profile": outcome.profile,
        "costs": outcome.costs,
        "cpus": point.nr_cpus(),
        "seed": point.seed,
        "version": made_by or version(),
    }
