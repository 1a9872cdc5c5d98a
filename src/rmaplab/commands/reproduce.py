# SPDX-License-Identifier: GPL-2.0-or-later
"""`rmaplab reproduce`: published measurements repeated, the published figure beside ours."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from rmaplab.commands import options
from rmaplab.commands.envelope import print_json
from rmaplab.measure.cost import load_costs
from rmaplab.measure.progress import Meter
from rmaplab.measure.reproduce import REPRODUCTIONS, Figure, ReproduceError, Reproduction, chosen, reproduce
from rmaplab.terminal import Grid, console, print_fact, print_verdict


class Inputs(msgspec.Struct, frozen=True):
    """What the figures depend on, besides the version."""

    reproductions: list[str]
    costs: str


def command(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Which ones; --list prints their names.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Print the names, and where each was published.")] = False,
    costs: options.Costs = "",
    json: options.Json = False,
) -> bool:
    """Repeat published measurements: the published figure, ours, the ratio, and why they differ.

    Exit status 1: a figure is not within its bound (docs/published.md).

    \b
    Examples:
      rmaplab reproduce anon-vma-chains
      rmaplab reproduce --all --json
    """
    if list_:
        print("\n".join(REPRODUCTIONS))
        return True
    if bool(names) == all_:
        raise ReproduceError("name what to reproduce, or say --all (--list prints the names)")
    wanted = chosen(names or list(REPRODUCTIONS))
    profile = load_costs(costs)
    with Meter() as meter:
        found = [reproduce(name, profile, meter) for name in wanted]
    holds = all(one.holds for one in found)
    if json:
        wrong = [_beside(figure) for one in found for figure in one.figures if not figure.holds]
        print_json("reproduce", Inputs(wanted, profile.name), holds, [_as_json(one) for one in found], wrong)
    else:
        out = console()
        for one in found:
            _print(one, out)
        print_fact("Costs", f"{profile.name}, measured on Linux {profile.kernel}", out)
        print_verdict(holds, out)
    return holds


def _as_json(one: Reproduction) -> dict[str, Any]:
    """A reproduction as `--json` has it."""
    figures = [_beside(figure) for figure in one.figures]
    return {
        "name": one.name, "source": one.source, "said": one.said, "how": one.how, "figures": figures,
        "shown": dict(one.shown), "why": one.why, "holds": one.holds,
    }  # fmt: skip


def _beside(figure: Figure) -> dict[str, Any]:
    """A published figure, ours, and ours over it."""
    return {
        "what": figure.what, "published": sorted({figure.low, figure.high}), "ours": figure.ours, "unit": figure.unit,
        "ratio": figure.ratio, "bound": figure.bound, "holds": figure.holds,
    }  # fmt: skip


def _print(one: Reproduction, out: Console) -> None:
    out.print(one.name, style="bold")
    for label, text in (("Source", one.source), ("Said", one.said), ("Here", one.how)):
        print_fact(label, text, out)
    out.print()
    if one.figures:
        table = Grid("", "published", "ours", "ratio", "bound", "verdict", left=("verdict",))
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
        table.print(out)
        out.print()
    for what, value in one.shown:
        print_fact("", f"{what}: {value}", out)
    print_fact("Why", one.why, out)
    out.print()


def _bound(bound: str) -> str:
    kind, _, numbers = bound.partition(" ")
    if kind == "points":
        return f"{numbers} points"
    if kind == "times":
        return " to ".join(numbers.split())
    return bound or "-"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 100 else f"{value:,.4g}"
