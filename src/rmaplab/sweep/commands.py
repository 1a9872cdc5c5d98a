# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands `rmaplab sweep` and `rmaplab report`; cli.py mounts them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

import rmaplab
from rmaplab.measure.progress import Meter
from rmaplab.output import write_output
from rmaplab.sweep.campaign import Campaign
from rmaplab.sweep.errors import SweepError
from rmaplab.sweep.findings import Findings, findings, sentences
from rmaplab.sweep.points import Outcome, Point
from rmaplab.sweep.spec import Spec, read_spec
from rmaplab.sweep.workers import Result, on_cluster, on_this_machine
from rmaplab.verdict import judge

Job = Callable[[], int]

LISTED = 20  # differences in the text


class Inputs(msgspec.Struct, frozen=True):
    """What the result depends on; each point has its history, designs, profile and seed."""

    spec: str
    name: str
    points: int


class Figures(msgspec.Struct, frozen=True):
    """How much was done: points in all, done now, kept from before, and not done; rows of the table."""

    points: int
    done: int
    kept: int
    failed: int
    rows: int


class Difference(msgspec.Struct, frozen=True):
    """What does not hold, or could not be done, and the point where."""

    point: str
    what: str


class Told(msgspec.Struct, frozen=True):
    """What `--json` prints."""

    command: str
    version: str
    inputs: Inputs
    holds: bool
    figures: Figures
    differences: list[Difference]


class ReportFigures(msgspec.Struct, frozen=True):
    """The page, how many points it is about, and its findings in words."""

    page: str
    points: int
    findings: list[str]


class Reported(msgspec.Struct, frozen=True):
    """What `report --json` prints."""

    command: str
    version: str
    inputs: Inputs
    holds: bool
    figures: ReportFigures
    differences: list[Difference]


def mount(app: typer.Typer) -> None:
    """Add the commands to `app`."""

    @app.command("sweep", short_help="Work off a table of parameters, on all cores or on a cluster.")
    def _sweep(
        spec: Annotated[Path, typer.Argument(metavar="SPEC", help="What to do: a TOML file (docs/sweeps.md).")],
        output: Annotated[
            Path | None,
            typer.Option("--output", "-o", metavar="DIR", help="Where results are kept (default: SPEC without .toml)."),
        ] = None,
        jobs: Annotated[
            int, typer.Option(min=0, metavar="N", help="Processes that work (0: one for each CPU).")
        ] = 0,
        scheduler: Annotated[
            str, typer.Option(metavar="ADDRESS", help="A Dask scheduler, whose workers work instead.")
        ] = "",
        json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    ) -> Job:
        """Work off the points that SPEC stands for, and keep what comes of each in DIR.

        Whatever is interrupted or killed can be started again: what is done stays done, and the table that
        comes out (DIR/results.parquet) is the same, byte for byte.

        \b
        Examples:
          rmaplab sweep campaign.toml -o results
          rmaplab sweep campaign.toml -o results --scheduler tcp://127.0.0.1:8786
        """

        def job() -> int:
            what = read_spec(spec)
            told = _work_off(what, spec, Campaign(output or spec.with_suffix("")), jobs, scheduler)
            if json:
                print(msgspec.json.format(msgspec.json.encode(told), indent=2).decode())
            else:
                _print(told)
            return 0 if told.holds else 1

        return job

    @app.command("report", short_help="Write the report on a campaign: who wins where.")
    def _report(
        directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where `rmaplab sweep` kept its results.")],
        output: Annotated[
            Path | None,
            typer.Option("--output", "-o", metavar="PAGE", help="The HTML page to write (default: DIR/report.html)."),
        ] = None,
        markdown: Annotated[
            Path | None, typer.Option("--markdown", metavar="F", help="Write Markdown to F, instead of the page.")
        ] = None,
        json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    ) -> Job:
        """Write one self-contained page: findings first, then plots and tables, and where every figure comes from.

        \b
        Examples:
          rmaplab report results
          rmaplab report results --markdown results.md
        """

        def job() -> int:
            from rmaplab.sweep import page  # what draws is slow to import

            found = findings(directory)
            if markdown is not None:
                path, text = markdown, page.markdown(found, f"rmaplab report {directory} --markdown {markdown}")
            else:
                path, text = output or directory / "report.html", page.html(found)
            write_output(path, text)
            told = _reported(found, directory, path)
            if json:
                print(msgspec.json.format(msgspec.json.encode(told), indent=2).decode())
            else:
                for sentence in told.figures.findings:
                    print(sentence)
                print(f"wrote {path}")
            return 0 if told.holds else 1

        return job


def _reported(found: Findings, directory: Path, path: Path) -> Reported:
    differences = [Difference(differing.title, differing.what) for differing in found.differences]
    differences += [Difference(title, "is not done") for title in found.undone]
    figures = ReportFigures(str(path), len(found.points), sentences(found))
    inputs = Inputs(str(directory), found.plan.name, len(found.plan.points))
    return Reported("report", _version(), inputs, found.holds, figures, differences)


def _version() -> str:
    return f"{rmaplab.__version__} ({rmaplab.build_info()})"


def _work_off(spec: Spec, path: Path, campaign: Campaign, jobs: int, scheduler: str) -> Told:
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
    held = judge(len(outcomes), bool(differences), f"{path} stands for no point")
    return Told("sweep", _version(), inputs, held, figures, differences)


def _results(left: dict[int, Point], spec: Spec, jobs: int, scheduler: str) -> Iterator[Result]:
    if scheduler:
        return on_cluster(left, spec.find, scheduler)
    return on_this_machine(left, spec.find, jobs or len(os.sched_getaffinity(0)))


def _print(told: Told) -> None:
    console = Console(highlight=False, markup=False)
    figures = told.figures
    console.print(
        f"Sweep     {told.inputs.name}: {figures.points:,} points, {figures.done:,} done now,"
        f" {figures.kept:,} kept from before; {figures.rows:,} rows"
    )
    for difference in told.differences[:LISTED]:
        console.print(f"          {difference.point}: {difference.what}", soft_wrap=True)
    if len(told.differences) > LISTED:
        console.print(f"          and {len(told.differences) - LISTED:,} more (--json lists all)")
    if figures.failed:
        console.print(f"          {figures.failed:,} points could not be done; the same command tries them again")
    console.print(f"Verdict   {'holds' if told.holds else 'does not hold'}")
