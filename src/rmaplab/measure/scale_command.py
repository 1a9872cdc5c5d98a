# SPDX-License-Identifier: GPL-2.0-or-later
"""The command `rmaplab scale`; cli.py mounts it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console

import rmaplab
from rmaplab.errors import CannotRun
from rmaplab.measure import sources
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
    print_latencies,
    print_lock_report,
    print_scaling,
    timeline,
    widest,
)
from rmaplab.measure.sources import Source
from rmaplab.mm.profile import PROFILES, REFERENCE, Profile, profile_for
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.rmap import specs
from rmaplab.trace.history import Header
from rmaplab.trace.parallel import Parallel, take_apart
from rmaplab.verdict import judge
from rmaplab.workloads import FAMILIES

DESIGNS: Final = ("anon_vma", "cow_context")  # where nothing else was asked for
CPUS: Final = (1, 2, 4, 8, 16)
MAX_CPUS: Final = 4096

Job = Callable[[], int]


class ScaleError(CannotRun):
    """What was asked for cannot be run; the message says why."""


def mount(app: typer.Typer, design_of: Callable[[str], type[ReverseMap]]) -> None:
    """Add the command to `app`; `design_of` finds a design by what a user calls it."""

    @app.command("scale", short_help="Run a workload on 1 to 1024 simulated CPUs, in virtual time.")
    def _scale(
        what: Annotated[
            list[str],
            typer.Argument(
                metavar="F | WORKLOAD [NAME=VALUE]...",
                help="A recording, or a workload; a VALUE may be `cpus` or `N*cpus`.",
            ),
        ],
        cpus: Annotated[
            str, typer.Option(metavar="N,N,...", help="Numbers of CPUs; `...` doubles up to the next: 1,...,1024.")
        ] = ",".join(str(n) for n in CPUS),
        rmap: Annotated[
            list[str] | None,
            typer.Option("--rmap", metavar="DESIGN", help="A design: name, package.module:Class, or file. Repeatable."),
        ] = None,
        costs: Annotated[
            str, typer.Option(metavar="NAME|F", help="The cost profile (default: the one that is shipped).")
        ] = "",
        profile: Annotated[
            str,
            typer.Option(
                metavar="NAME",
                help=f"The kernel whose rules apply: {', '.join(PROFILES)} (default: the recording's, else"
                f" {REFERENCE}).",
            ),
        ] = "",
        timing: Annotated[
            str, typer.Option(metavar="fast|recorded", help="As fast as it goes, or no event before its recorded time.")
        ] = "fast",
        large_folios: Annotated[
            int, typer.Option(min=0, max=9, metavar="ORDER", help="Highest order of folios that faults allocate.")
        ] = 0,
        seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the workload.")] = 1,
        lock_report: Annotated[
            bool, typer.Option("--lock-report", help="Print, for the most CPUs, what `perf lock contention` would.")
        ] = False,
        latencies: Annotated[
            bool, typer.Option("--latencies", help="Print, for the most CPUs, how long each operation took.")
        ] = False,
        plot: Annotated[
            Path | None, typer.Option(metavar="F", help="Draw throughput over CPUs, as SVG or PNG by F's name.")
        ] = None,
        trace: Annotated[
            Path | None,
            typer.Option(metavar="F", help="Write a timeline of the last run, which Perfetto opens (ui.perfetto.dev)."),
        ] = None,
        json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    ) -> Job:
        """Run a workload as parallel programs on simulated CPUs, once for each design and number of CPUs.

        Time is virtual: it passes by counted work, at what a cost profile says that work costs, and by waiting for
        locks, CPUs and cache lines.  The same inputs give the same figures on any machine (docs/scaling.md).

        \b
        Examples:
          rmaplab scale storm --cpus 1,...,64 --lock-report
          rmaplab scale zygote apps=cpus --rmap cow_context --plot zygote.svg
          rmaplab scale redis.parquet --timing recorded --cpus 2 --trace redis.json
        """

        def job() -> int:
            counts = cpu_counts(cpus)
            if timing not in TIMINGS:
                raise ScaleError(f"there is no timing {timing!r}: it is fast or recorded")
            if plot is not None and plot.suffix not in (".svg", ".png"):
                raise ScaleError(f"{plot} is neither .svg nor .png, so it is not clear how to draw")
            designs = [design_of(spec) for spec in specs(rmap, DESIGNS)]
            names = [design.name for design in designs]
            if len(set(names)) < len(names):
                raise ScaleError(f"two of the designs have one name ({', '.join(names)}), so no table could tell them")
            cost_profile = load_costs(costs)
            points: list[Point] = []
            unpriced: set[str] = set()
            run: Run | None = None
            with Meter() as meter:
                for count in counts:
                    header, parallel, source = history_for(what, count, seed)
                    rules = _profile(profile, source)
                    plan = Plan(rules, cost_profile, timing, large_folios, trace is not None and count == counts[-1])
                    for design in designs:
                        run = Run(header, parallel, plan, design, count)
                        points.append(run.go(meter))
                        unpriced |= run.unpriced()
            assert run is not None
            scaling = Scaling(
                command="scale",
                version=f"{rmaplab.__version__} ({rmaplab.build_info()})",
                inputs=Inputs(source, names, rules.name, cost_profile.name, counts, timing, large_folios, seed),
                holds=judge(
                    min(point.operations for point in points),
                    any(point.differences for point in points),
                    "the history has nothing that a task could do",
                ),
                figures=Figures(points, _laws(names, points), sorted(unpriced)),
                differences=[Difference(p.design, p.cpus, p.differences) for p in points if p.differences],
            )
            if plot is not None:
                draw(plot, scaling)
            if trace is not None:
                trace.write_bytes(timeline(run.time))
            if json:
                print(msgspec.json.format(msgspec.json.encode(scaling), indent=2).decode())
            else:
                console = Console(highlight=False, markup=False)
                print_scaling(scaling, console)
                for point in widest(points):
                    if latencies:
                        print_latencies(point, console)
                    if lock_report:
                        print_lock_report(point, console)
            return 0 if scaling.holds else 1

        return job


def cpu_counts(text: str) -> list[int]:
    """ "1,2,...,16" as [1, 2, 4, 8, 16].

    :raises ScaleError: it is no such list
    """
    counts: list[int] = []
    doubling = False
    for word in text.split(","):
        word = word.strip()
        if word in ("...", "…") and counts and not doubling:
            doubling = True
            continue
        if not word.isdecimal() or not 1 <= int(word) <= MAX_CPUS:
            raise ScaleError(f"{word!r} is no number of CPUs: say --cpus 1,2,4 or --cpus 1,...,{1024}")
        if doubling:
            while counts[-1] * 2 < int(word):
                counts.append(counts[-1] * 2)
            doubling = False
        if counts and int(word) <= counts[-1]:
            raise ScaleError(f"numbers of CPUs go up, and {word} comes after {counts[-1]}")
        counts.append(int(word))
    if doubling:
        raise ScaleError("`...` needs a number of CPUs after it, to say how far to go")
    return counts


_PER_CPU: Final = re.compile(r"(?:(\d+)\*)?cpus")


def history_for(what: Sequence[str], cpus: int, seed: int) -> tuple[Header, Parallel, Source]:
    """The history for so many CPUs, taken apart; its name says which parameters go with the CPUs."""
    words = list(what)
    family = FAMILIES.get(words[0])
    if family is not None and getattr(family(), "processes", None) == 0:
        if not any(word.startswith("processes=") for word in words[1:]):
            words.append("processes=cpus")
    varying: dict[str, str] = {}
    for i, word in enumerate(words[1:], 1):
        name, equals, value = word.partition("=")
        match = _PER_CPU.fullmatch(value)
        if equals and match:
            varying[name] = value
            words[i] = f"{name}={int(match[1] or 1) * cpus}"
    history, source = sources.find(words, seed)
    named = source.name
    for name, value in varying.items():
        named = re.sub(rf"\b{re.escape(name)}=\d+", f"{name}={value}", named)
    source = msgspec.structs.replace(source, name=named)
    return history.header, take_apart(list(history), recorded=family is None), source


def _profile(name: str, source: Source) -> Profile:
    if not name:
        return profile_for(source.kernel)[0]
    if name not in PROFILES:
        raise ScaleError(f"there is no profile {name!r} (there are {', '.join(PROFILES)})")
    return PROFILES[name]


def _laws(names: Sequence[str], points: Sequence[Point]) -> list[Fit]:
    found = []
    for name in names:
        own = [point for point in points if point.design == name]
        found.append(Fit(name, fit([point.cpus for point in own], [point.throughput for point in own])))
    return found
