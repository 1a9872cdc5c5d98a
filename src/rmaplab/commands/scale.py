# SPDX-License-Identifier: GPL-2.0-or-later
"""`rmaplab scale`: a workload on many simulated CPUs, in virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from rmaplab.commands import options
from rmaplab.commands.envelope import print_json
from rmaplab.errors import CannotRun, place_outside
from rmaplab.measure.cost import load_costs
from rmaplab.measure.progress import Meter
from rmaplab.measure.scale import TIMINGS, Plan, Point, Run, fit
from rmaplab.measure.scale_report import (
    Difference,
    Figures,
    Fit,
    Inputs,
    Scaling,
    draw,
    fewer_tasks,
    print_latencies,
    print_lock_report,
    print_scaling,
    timeline,
    widest,
)
from rmaplab.measure.sources import cpu_counts, history_for
from rmaplab.output import check_output, write_output
from rmaplab.printable import plural
from rmaplab.sync.errors import Finding
from rmaplab.terminal import console, say
from rmaplab.verdict import judge

DESIGNS: Final = ("anon_vma", "cow_context")  # where nothing else was asked for


def command(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="F | WORKLOAD [NAME=VALUE]...",
            help="A recording, or a workload; a VALUE may be `cpus` or `N*cpus`.", hidden=True,
        ),
    ],
    cpus: Annotated[
        list[str] | None,
        typer.Option(metavar="N,...", help="CPUs (default: 1,2,4,8,16; 1,...,64 doubles)."),
    ] = None,
    rmap: options.Designs = None,
    costs: options.Costs = "",
    profile: options.ProfileName = "",
    timing: Annotated[
        str, typer.Option(metavar="fast|recorded", help="fast, or no event before its recorded time.", hidden=True)
    ] = "fast",
    large_folios: options.LargeFolios = 0,
    seed: options.Seed = 1,
    lock_report: Annotated[
        bool, typer.Option("--lock-report", help="Print lock contention.")
    ] = False,
    latencies: Annotated[
        bool, typer.Option("--latencies", help="Print latencies.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="F", help="Draw throughput over CPUs: F.svg or F.png.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="F", help="Write a timeline of the last run for Perfetto.", hidden=True),
    ] = None,
    json: options.Json = False,
) -> bool:
    """Run a workload on simulated CPUs, once for each design and number of them.

    Time is virtual: it passes by counted work, at the costs of a profile, and by waiting for locks, CPUs and cache
    lines. The same inputs give the same figures on any machine (docs/scaling.md).

    \b
    Examples:
      rmaplab scale storm --cpus 1,...,8 --lock-report
      rmaplab scale zygote apps=cpus --rmap cow_context --plot zygote.svg
      rmaplab scale redis.parquet --timing recorded --cpus 2 --trace redis.json
    """
    counts = cpu_counts(",".join(options.listed(cpus)) or "1,...,16")
    if timing not in TIMINGS:
        raise CannotRun(f"there is no timing {timing!r}: it is fast or recorded")
    if plot is not None and plot.suffix not in (".svg", ".png"):
        raise CannotRun(f"{plot} is neither .svg nor .png, so it is not clear how to draw")
    for path in (plot, trace):
        if path is not None:
            check_output(path)
    found = options.designs(rmap, DESIGNS)
    names, designs = list(found), [options.design(spec) for spec in found.values()]
    cost_profile = load_costs(costs)
    points: list[Point] = []
    unpriced: set[str] = set()
    run: Run | None = None
    with Meter() as meter:
        for count in counts:
            header, parallel, source = history_for(what, count, seed)
            rules = options.profile(profile, source.kernel)
            plan = Plan(rules, cost_profile, timing, large_folios, trace is not None and count == counts[-1])
            for (name, spec), design in zip(found.items(), designs, strict=True):
                run = Run(header, parallel, plan, design, count)
                try:
                    points.append(run.go(meter))
                except Finding as error:
                    place = place_outside(error)
                    raise CannotRun(
                        f"{name} on {plural(count, 'CPU')}: {error}{place and f', {place}'}. What led there:"
                        f" rmaplab race --rmap {spec}"
                    ) from error
                unpriced |= run.unpriced()
    assert run is not None
    scaling = Scaling(
        inputs=Inputs(source, names, rules.name, cost_profile.name, counts, timing, large_folios, seed),
        holds=judge(
            min(point.operations for point in points),
            any(point.differences for point in points),
            "the history has nothing that a task could do",
        ),
        figures=Figures(points, _laws(names, points), sorted(unpriced), fewer_tasks(points)),
        differences=[Difference(p.design, p.cpus, p.differences) for p in points if p.differences],
    )
    if plot is not None:
        draw(plot, scaling)
        say(f"the picture is {plot}")
    if trace is not None:
        write_output(trace, timeline(run.time))
        say(f"the timeline is {trace}")
    if json:
        print_json("scale", scaling.inputs, scaling.holds, scaling.figures, scaling.differences)
    else:
        out = console()
        print_scaling(scaling, out)
        for point in widest(points):
            if latencies:
                print_latencies(point, out)
            if lock_report:
                print_lock_report(point, out)
    return scaling.holds


def _laws(names: Sequence[str], points: Sequence[Point]) -> list[Fit]:
    found = []
    for name in names:
        own = [point for point in points if point.design == name]
        found.append(Fit(name, fit([point.cpus for point in own], [point.throughput for point in own])))
    return found
