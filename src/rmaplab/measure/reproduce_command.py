# SPDX-License-Identifier: GPL-2.0-or-later
"""The command `rmaplab reproduce`; cli.py mounts it."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import fill
from typing import Annotated

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table

import rmaplab
from rmaplab.measure.cost import load_costs
from rmaplab.measure.progress import Meter
from rmaplab.measure.reproduce import REPRODUCTIONS, Figure, ReproduceError, Reproduction, chosen, reproduce

Job = Callable[[], int]


class Inputs(msgspec.Struct, frozen=True):
    """What the figures depend on, besides the version."""

    reproductions: list[str]
    costs: str


class Beside(msgspec.Struct, frozen=True):
    """A published figure, ours, and ours over it."""

    what: str
    published: list[float]
    ours: float
    unit: str
    ratio: float
    bound: str
    holds: bool


class Told(msgspec.Struct, frozen=True):
    """A reproduction as `--json` has it."""

    name: str
    source: str
    said: str
    how: str
    figures: list[Beside]
    shown: dict[str, str]
    why: str
    holds: bool


class Reproduced(msgspec.Struct, frozen=True):
    """What `--json` prints."""

    command: str
    version: str
    inputs: Inputs
    holds: bool
    figures: list[Told]
    differences: list[Beside]


def mount(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @app.command("reproduce", short_help="Do published measurements again, and put the figures side by side.")
    def _reproduce(
        names: Annotated[
            list[str] | None, typer.Argument(metavar="[NAME]...", help="Which ones; --list prints their names.")
        ] = None,
        all_: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
        list_: Annotated[bool, typer.Option("--list", help="Print the names, and where each was published.")] = False,
        costs: Annotated[
            str, typer.Option(metavar="NAME|F", help="The cost profile (default: the one that is shipped).")
        ] = "",
        json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    ) -> Job:
        """Do published measurements again: the published figure, ours, the ratio, and why they differ where they do.

        Exit status 1 says that a figure is not within its bound (docs/published.md).

        \b
        Examples:
          rmaplab reproduce anon-vma-chains
          rmaplab reproduce --all --json
        """

        def job() -> int:
            if list_:
                print("\n".join(REPRODUCTIONS))
                return 0
            if bool(names) == all_:
                raise ReproduceError("name what to reproduce, or say --all (--list prints the names)")
            wanted = chosen(names or list(REPRODUCTIONS))
            profile = load_costs(costs)
            with Meter() as meter:
                found = [reproduce(name, profile, meter) for name in wanted]
            told = Reproduced(
                "reproduce",
                f"{rmaplab.__version__} ({rmaplab.build_info()})",
                Inputs(wanted, profile.name),
                all(one.holds for one in found),
                [_told(one) for one in found],
                [_beside(figure) for one in found for figure in one.figures if not figure.holds],
            )
            if json:
                print(msgspec.json.format(msgspec.json.encode(told), indent=2).decode())
            else:
                console = Console(highlight=False, markup=False)
                for one in found:
                    _print(one, console)
                console.print(f"Costs     {profile.name}, measured on Linux {profile.kernel}")
                console.print(f"Verdict   {'holds' if told.holds else 'does not hold'}")
            return 0 if told.holds else 1

        return job


def _beside(figure: Figure) -> Beside:
    return Beside(
        figure.what,
        [figure.low] if figure.low == figure.high else [figure.low, figure.high],
        figure.ours,
        figure.unit,
        figure.ratio,
        figure.bound,
        figure.holds,
    )


def _told(one: Reproduction) -> Told:
    figures = [_beside(figure) for figure in one.figures]
    return Told(one.name, one.source, one.said, one.how, figures, dict(one.shown), one.why, one.holds)


def _print(one: Reproduction, console: Console) -> None:
    console.print(one.name, style="bold")
    for label, text in (("Source", one.source), ("Said", one.said), ("Here", one.how)):
        _fact(label, text, console)
    console.print()
    if one.figures:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        table.add_column("", no_wrap=True)
        for heading in ("published", "ours", "ratio", "bound", ""):
            table.add_column(heading, justify="right", no_wrap=True)
        for figure in one.figures:
            published = _number(figure.low)
            if figure.low != figure.high:
                published += f" to {_number(figure.high)}"
            table.add_row(
                figure.what,
                f"{published} {figure.unit}",
                f"{_number(figure.ours)} {figure.unit}",
                f"{figure.ratio:.2f}" if figure.published else "-",
                _bound(figure.bound),
                ("holds" if figure.holds else "NOT") if figure.bound else "",
            )
        console.print(table)
        console.print()
    for what, value in one.shown:
        _fact("", f"{what}: {value}", console)
    _fact("Why", one.why, console)
    console.print()


def _bound(bound: str) -> str:
    kind, _, numbers = bound.partition(" ")
    if kind == "points":
        return f"{numbers} points"
    if kind == "times":
        return " to ".join(numbers.split())
    return bound or "-"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 100 else f"{value:,.4g}"


def _fact(label: str, text: str, console: Console) -> None:
    width = max(40, console.width - 1)
    console.print(
        fill(f"{label:9} {text}", width, subsequent_indent=" " * 10, break_on_hyphens=False, initial_indent="")
    )
