# SPDX-License-Identifier: GPL-2.0-or-later
"""`rmaplab sweep`: a table of parameters, run on all cores or on a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from rmaplab.commands import options
from rmaplab.commands.envelope import print_json
from rmaplab.measure.progress import Meter
from rmaplab.printable import plural
from rmaplab.sweep.campaign import Campaign
from rmaplab.sweep.errors import SweepError
from rmaplab.sweep.points import Outcome, Point
from rmaplab.sweep.spec import Spec, read_spec
from rmaplab.sweep.workers import Result, on_cluster, on_this_machine
from rmaplab.terminal import console, print_fact, print_verdict
from rmaplab.verdict import judge

LISTED = 20  # differences in the text


class Inputs(msgspec.Struct, frozen=True):
    """What the result depends on; each point names its history, designs, profile and seed."""

    spec: str
    name: str
    points: int


class Figures(msgspec.Struct, frozen=True):
    """Points: all, done now, kept from before, and failed; rows of the table."""

    points: int
    done: int
    kept: int
    failed: int
    rows: int


class Difference(msgspec.Struct, frozen=True):
    """What does not hold, or could not be done, and the point."""

    point: str
    what: str


class Told(msgspec.Struct, frozen=True):
    """What came of it."""

    inputs: Inputs
    holds: bool
    figures: Figures
    differences: list[Difference]


def command(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="The campaign: a TOML file (docs/sweeps.md).")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Where results are kept (default: SPEC without .toml)."),
    ] = None,
    jobs: options.Jobs = 0,
    scheduler: Annotated[
        str, typer.Option(metavar="ADDRESS", help="A Dask scheduler, whose workers do the points instead.")
    ] = "",
    json: options.Json = False,
) -> bool:
    """Run all points of SPEC, and keep the results in DIR.

    The same command continues a sweep that was interrupted or killed, and writes the same table
    (DIR/results.parquet), byte for byte.

    \b
    Examples:
      rmaplab sweep campaign.toml -o results
      rmaplab sweep campaign.toml -o results --scheduler tcp://127.0.0.1:8786
    """
    what = read_spec(spec)
    told = _do(what, spec, Campaign(output or spec.with_suffix("")), jobs, scheduler)
    if json:
        print_json("sweep", told.inputs, told.holds, told.figures, told.differences)
    else:
        _print(told)
    return told.holds


def _do(spec: Spec, path: Path, campaign: Campaign, jobs: int, scheduler: str) -> Told:
    outcomes: dict[int, Outcome] = {}
    failed: dict[int, str] = {}
    with campaign.begun(spec):
        for number, point in enumerate(spec.points):
            outcome = campaign.outcome(point)
            if outcome is not None:
                outcomes[number] = outcome
        kept = len(outcomes)
        left = {number: point for number, point in enumerate(spec.points) if number not in outcomes}
        try:
            with Meter() as meter:
                for number, result in _results(left, spec, jobs, scheduler):
                    if isinstance(result, str):
                        failed[number] = result
                    else:
                        campaign.keep(spec.points[number], result)
                        outcomes[number] = result
                    meter.tell(f"sweeping {spec.name}", len(outcomes) + len(failed), len(spec.points), "points")
        except KeyboardInterrupt:
            raise SweepError(
                f"interrupted: {len(outcomes)} of {len(spec.points)} points are kept in {campaign.directory};"
                " the same command goes on from there"
            ) from None
        if not failed:
            campaign.finish(spec)
    differences = [Difference(spec.points[number].title(), what) for number, what in sorted(failed.items())]
    for number, outcome in sorted(outcomes.items()):
        differences += [Difference(spec.points[number].title(), what) for what in outcome.differences]
    figures = Figures(
        points=len(spec.points),
        done=len(outcomes) - kept,
        kept=kept,
        failed=len(failed),
        rows=sum(len(outcome.rows) for outcome in outcomes.values()),
    )
    inputs = Inputs(str(path), spec.name, len(spec.points))
    held = judge(len(outcomes), bool(differences), f"{path} has no point")
    return Told(inputs, held, figures, differences)


def _results(left: dict[int, Point], spec: Spec, jobs: int, scheduler: str) -> Iterator[Result]:
    if scheduler:
        return on_cluster(left, spec.find, scheduler)
    return on_this_machine(left, spec.find, options.cpus_to_use(jobs))


def _print(told: Told) -> None:
    out = console()
    figures = told.figures
    print_fact(
        "Sweep",
        f"{told.inputs.name}: {plural(figures.points, 'point')}, {figures.done:,} done now, {figures.kept:,} kept from"
        f" before; {plural(figures.rows, 'row')}",
        out,
    )
    for difference in told.differences[:LISTED]:
        print_fact("", f"{difference.point}: {difference.what}", out)
    if len(told.differences) > LISTED:
        print_fact("", f"and {len(told.differences) - LISTED:,} more (--json lists all)", out)
    if figures.failed:
        print_fact("", f"{plural(figures.failed, 'point')} could not be done; the same command tries again", out)
    print_verdict(told.holds, out)
