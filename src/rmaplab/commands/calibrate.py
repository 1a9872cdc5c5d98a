# SPDX-License-Identifier: GPL-2.0-or-later
"""`rmaplab calibrate`: what work costs on the kernel of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console

from rmaplab.commands import options
from rmaplab.commands.envelope import print_json
from rmaplab.errors import CannotRun
from rmaplab.measure.cost import CostProfile, Residual, load_costs, write_costs
from rmaplab.measure.progress import Meter
from rmaplab.output import check_output
from rmaplab.printable import plural
from rmaplab.terminal import Grid, console, print_fact, print_verdict
from rmaplab.verdict import judge

if TYPE_CHECKING:
    from rmaplab.measure.calibration.calibrate import Prediction


class Inputs(msgspec.Struct, frozen=True):
    """What the figures depend on.  `profile`: the one that was checked, "" if it was measured for this."""

    machine: str
    kernel: str
    profile: str
    programs: list[str]
    repeats: int


class Figures(msgspec.Struct, frozen=True):
    """What was measured.

    costs:  the profile
    fitted: programs of the fit (none where a profile was given), held_out: the others; nanoseconds
    median: of predicted over measured, of those held out; None where nothing was checked
    contention: how many times slower relatives are than strangers in races; median of these
    """

    costs: CostProfile
    fitted: list[Residual]
    held_out: list[Residual]
    median: float | None
    contention: list[Residual]
    contention_median: float | None


class Told(msgspec.Struct, frozen=True):
    """What was measured, and whether it predicts the programs that were held out."""

    inputs: Inputs
    holds: bool
    figures: Figures
    differences: list[Residual]


def command(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="F", help="Write the cost profile to F (JSON).")
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Predict programs that the fit has not seen."),
    ] = False,
    costs: Annotated[
        str,
        typer.Option(
            metavar="NAME|F", help="With --check: a profile to check; none is measured."
        ),
    ] = "",
    programs: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT,...", help="Only programs whose names contain one of these."),
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, metavar="N", help="Runs of each program in each round.", hidden=True)
    ] = 5,
    json: options.Json = False,
) -> bool:
    """Measure what work costs in this machine's kernel, by small programs.

    The model counts the work of each program, the kernel runs it, and costs are fitted to both. --check predicts
    programs that the fit has not seen: predicted over measured has to be between 0.8 and 1.25 in the median, and
    between 0.5 and 2 for each. Needs a minute, a C compiler, and a machine without other load.

    \b
    Examples:
      rmaplab calibrate -o mine.json --check
      rmaplab calibrate --check --costs mine.json
      rmaplab compare sort.parquet --costs mine.json
    """
    if costs and not check:
        raise CannotRun("--costs names the profile that --check is to check")
    if costs and output is not None:
        raise CannotRun("a profile that exists is checked, and none written: leave out -o or --costs")
    if output is not None:
        check_output(output)
    told = _measure(load_costs(costs) if costs else None, check, options.listed(programs), repeats)
    if output is not None:
        write_costs(output, told.figures.costs)
    if json:
        print_json("calibrate", told.inputs, told.holds, told.figures, told.differences)
    else:
        _print(told, console())
    return told.holds


def _measure(given: CostProfile | None, check: bool, programs: Sequence[str], repeats: int) -> Told:
    from rmaplab.measure.calibration import calibrate as calibration
    from rmaplab.measure.calibration import races
    from rmaplab.measure.calibration.errors import CalibrationError
    from rmaplab.measure.calibration.host import Host, machine
    from rmaplab.measure.calibration.programs import FITTED, HELD_OUT

    found: Prediction | None = None
    raced: Prediction | None = None
    held_out = calibration.choose(HELD_OUT, programs) if check else []
    chosen = [race for race in races.RACES if check and calibration.is_wanted(race.name, programs)]
    fitted = calibration.choose(FITTED, programs) if given is None else []
    if check and not held_out and not chosen:
        raise CalibrationError(f"no program that is held out of the fit is called {' or '.join(programs)}")
    with Host() as host, Meter() as meter:
        told = partial(meter.tell, of="measurements")
        costs = given or calibration.calibrate(host, fitted, repeats, told)
        if check:
            if held_out:
                found = calibration.predict(costs, calibration.rows_of(host, held_out, repeats, told))
            if chosen and len(host.cpus) > 1:
                raced = calibration.predict_races(host, costs, chosen, repeats, told)
    names = [script.name for script in (*fitted, *held_out)] + [race.name for race in chosen]
    predictions = [prediction for prediction in (found, raced) if prediction is not None]
    return Told(
        Inputs(machine(), calibration.release(), given.name if given else "", names, repeats),
        # Without --check there is no question of a verdict: what was fitted is what there is.
        not check or judge(
            len(predictions), not all(p.holds for p in predictions), "races of two CPUs cannot be run on this machine"
        ),
        Figures(
            costs,
            costs.residuals if given is None else [],
            found.rows if found else [],
            found.median if found else None,
            raced.rows if raced else [],
            raced.median if raced else None,
        ),
        [row for prediction in predictions for row in prediction.outside],
    )


def _print(told: Told, out: Console) -> None:
    """The profile, and what it predicts."""
    from rmaplab.measure.calibration.calibrate import EACH, MEDIAN, Prediction

    figures, costs = told.figures, told.figures.costs
    print_fact("Machine", told.inputs.machine, out)
    print_fact("Kernel", told.inputs.kernel, out)
    print_fact("Profile", f"{costs.name}, of {costs.date}, for Linux {costs.kernel}", out)
    if not told.inputs.profile:
        table = Grid("cost", "ns per unit", "known from", left=("known from",))
        for key, cost in costs.costs.items():
            table.add_row(key, f"{cost:,.1f}", costs.origins.get(key, ""))
        out.print()
        table.print(out)
        out.print()
        fitted = Prediction(figures.fitted)
        print_fact(
            "Fitted",
            f"to {plural(len(fitted.rows), 'program')}: predicted over measured {fitted.median:.2f} in the median, from"
            f" {min(r.ratio for r in fitted.rows):.2f} to {max(r.ratio for r in fitted.rows):.2f}",
            out,
        )
        for group in costs.groups:
            print_fact("", f"not told apart: {', '.join(group)}", out)
    table = Grid("program held out", "measured, us", "predicted, us", "predicted / measured")
    for row in figures.held_out:
        table.add_row(row.program, f"{row.measured / 1e3:,.0f}", f"{row.predicted / 1e3:,.0f}", f"{row.ratio:.2f}")
    races = Grid("relatives against strangers", "times slower, measured", "predicted", "predicted / measured")
    for row in figures.contention:
        races.add_row(row.program, f"{row.measured:.2f}", f"{row.predicted:.2f}", f"{row.ratio:.2f}")
    for filled in (table, races):
        if filled.rows:
            out.print()
            filled.print(out)
    if not table.rows and not races.rows:
        return
    out.print()
    for what, found in (("programs", figures.median), ("races", figures.contention_median)):
        if found is not None:
            print_fact("Median", f"{found:.2f} of {what}, to be between {MEDIAN[0]} and {MEDIAN[1]}", out)
    for row in told.differences:
        print_fact("Outside", f"{row.program}: {row.ratio:.2f}, to be between {EACH[0]} and {EACH[1]}", out)
    print_verdict(told.holds, out)
