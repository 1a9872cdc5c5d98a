# SPDX-License-Identifier: GPL-2.0-or-later
"""The output of `rmaplab scale`: tables, the lock report, a plot, a timeline."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from rmaplab.measure.scale import Law, LockFigures, Point
from rmaplab.measure.sources import Source
from rmaplab.output import write_output
from rmaplab.printable import plural
from rmaplab.sync.virtual import PICOSECONDS, VirtualTime
from rmaplab.terminal import Grid, print_fact

_PAIRS = 12  # of a waiter and a holder that are listed


class Inputs(msgspec.Struct, frozen=True):
    """What the figures depend on."""

    history: Source
    designs: list[str]
    profile: str
    costs: str
    cpus: list[int]
    timing: str
    large_folios: int
    seed: int


class Difference(msgspec.Struct, frozen=True):
    """Events of a run whose results are not those of the history."""

    design: str
    cpus: int
    events: int


class Fit(msgspec.Struct, frozen=True):
    """The Universal Scalability Law for one design; None where there were fewer than three points."""

    design: str
    law: Law | None


class Figures(msgspec.Struct, frozen=True):
    """All figures.

    unpriced:      kinds of work for which the cost profile has no cost, so that they took no time
    fewer_tasks:   numbers of CPUs that never had as many tasks: the others had nothing to do
    """

    points: list[Point]
    laws: list[Fit]
    unpriced: list[str]
    fewer_tasks: list[int]


class Scaling(msgspec.Struct, frozen=True):
    """What a series of runs found."""

    inputs: Inputs
    holds: bool
    figures: Figures
    differences: list[Difference]


def span(nanoseconds: float) -> str:
    """A time for people, as perf prints them: three digits and a unit."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.2f} {unit}"
    return f"{nanoseconds:.0f} ns"


def print_scaling(scaling: Scaling, out: Console) -> None:
    inputs = scaling.inputs
    print_fact("History", inputs.history.name, out)
    print_fact("Profile", f"{inputs.profile}; costs {inputs.costs}; timing {inputs.timing}", out)
    out.print()
    table = Grid(
        "CPUs, design", "ops/s", "speed-up", "work", "spin", "idle", "waited most for", left=("waited most for",)
    )
    first: dict[str, Point] = {}
    for point in scaling.figures.points:
        first.setdefault(point.design, point)
    points = sorted(scaling.figures.points, key=lambda point: (point.cpus, inputs.designs.index(point.design)))
    most_cpus = len(f"{points[-1].cpus:,}")
    for point in points:
        base = first[point.design]
        most = next((lock for lock in point.locks if lock.contended), None)
        used = point.utilisation
        table.add_row(
            f"{point.cpus:{most_cpus},} {point.design}",
            f"{point.throughput:,.0f}",
            f"{point.throughput / base.throughput * base.cpus:.2f}",
            f"{used.working:.1%}",
            f"{used.spinning:.1%}",
            f"{used.idle:.1%}",
            "" if most is None else f"{most.name} {_share(most, point):.1%}",
        )
    table.print(out)
    out.print()
    for cpus in scaling.figures.fewer_tasks:
        tasks = max(point.at_once for point in points if point.cpus == cpus)
        print_fact(
            "Idle", f"{cpus:,} CPUs have at most {plural(tasks, 'task')} at a time: {cpus - tasks:,} have none", out
        )
    for fit in scaling.figures.laws:
        if fit.law is not None:
            law = fit.law
            peak = f", most at {law.peak_cpus:,.0f} CPUs" if law.peak_cpus else ""
            print_fact(
                "Law",
                f"{fit.design}: {law.rate:,.0f} operations/s on one CPU, contention {law.contention:.4f},"
                f" coherency {law.coherency:.6f}{peak} (Universal Scalability Law, R2 {law.r_squared:.3f})",
                out,
            )
    most_shot = max(points, key=lambda point: point.shootdowns)
    if most_shot.shootdowns:
        print_fact(
            "TLB",
            f"at most {plural(most_shot.shootdowns, 'shootdown')}, of {most_shot.interrupts:,} CPUs, which took"
            f" {most_shot.shooting / most_shot.operations * 1e9:,.0f} ns per operation"
            f" ({most_shot.design} on {plural(most_shot.cpus, 'CPU')})",
            out,
        )
    if scaling.figures.unpriced:
        print_fact("Not timed", f"no cost for: {', '.join(scaling.figures.unpriced)}", out)
    for difference in scaling.differences:
        on = f"{difference.design} on {plural(difference.cpus, 'CPU')}"
        print_fact("Differs", f"{on}: {plural(difference.events, 'event')} had another result", out)


def _share(lock: LockFigures, point: Point) -> float:
    """Time waited for a lock, of all the time that CPUs had."""
    total = point.seconds * 1e9 * point.cpus
    return lock.waited / total if total else 0.0


def print_latencies(point: Point, out: Console) -> None:
    table = Grid("operation", "count", "mean", "p50", "p90", "p99", "max")
    for latency in point.latencies:
        times = (latency.mean, latency.p50, latency.p90, latency.p99, latency.max)
        table.add_row(latency.operation, f"{latency.count:,}", *(span(time) for time in times))
    out.print()
    table.print(out, f"{point.design} on {plural(point.cpus, 'CPU')}: latency by operation")


def print_lock_report(point: Point, out: Console) -> None:
    """As `perf lock contention` would: a line for each lock class, kind of taking and caller; then who waited for
    whom."""
    merged: dict[tuple[str, str, str], list[float]] = {}
    for entry in point.contention:
        row = merged.setdefault((entry.name, entry.type, entry.waiter), [0, 0.0, 0.0])
        row[0] += entry.count
        row[1] += entry.waited
        row[2] = max(row[2], entry.longest)
    waits = Grid("lock", "contended", "total wait", "max wait", "avg wait", "type", "caller", left=("type", "caller"))
    for (name, type_, waiter), (count, waited, longest) in sorted(merged.items(), key=lambda row: -row[1][1]):
        waits.add_row(name, f"{count:,.0f}", span(waited), span(longest), span(waited / count), type_, waiter)
    whom = Grid("lock", "waits", "total wait", "waiter", "holder", left=("waiter", "holder"))
    for entry in point.contention[:_PAIRS]:
        whom.add_row(entry.name, f"{entry.count:,}", span(entry.waited), entry.waiter, entry.holder)
    held = Grid("lock", "acquired", "contended", "held", "came from another CPU", "type", left=("type",))
    for lock in point.locks:
        held.add_row(
            lock.name, f"{lock.acquired:,}", f"{lock.contended:,}", span(lock.held), f"{lock.moved:,}", lock.type
        )
    on = f"{point.design} on {plural(point.cpus, 'CPU')}"
    for title, table in (("contention", waits), ("who waited for whom", whom), ("all locks", held)):
        if table.rows:
            out.print()
            table.print(out, f"{on}: {title}")


def draw(path: Path, scaling: Scaling) -> None:
    """Throughput over CPUs, a line for each design, with the fitted law and what would be linear."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "rmaplab"  # the same figures give the same file
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    points = scaling.figures.points
    for design in scaling.inputs.designs:
        own = [point for point in points if point.design == design]
        (line,) = axes.plot([p.cpus for p in own], [p.throughput for p in own], "o", label=design)
        law = next((fit.law for fit in scaling.figures.laws if fit.design == design), None)
        if law is not None:
            cpus = np.geomspace(own[0].cpus, own[-1].cpus, 100)
            axes.plot(cpus, [law.throughput(n) for n in cpus], "-", color=line.get_color(), linewidth=1)
    first = max(points, key=lambda point: point.throughput / point.cpus)
    every = np.array(sorted({point.cpus for point in points}), dtype=np.float64)
    axes.plot(every, every * first.throughput / first.cpus, ":", color="grey", label="linear", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(every, [f"{int(n)}" for n in every])
    axes.set_xlabel("CPUs")
    axes.set_ylabel("operations per second of virtual time")
    axes.set_title(scaling.inputs.history.name, fontsize=9, wrap=True)
    axes.grid(True, which="both", alpha=0.2)
    axes.legend()
    metadata: dict[str, Any] = {"Date": None} if path.suffix == ".svg" else {}
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:], metadata=metadata)
    plt.close(figure)
    write_output(path, drawn.getvalue())


def timeline(time: VirtualTime) -> bytes:
    """What happened when, in the JSON that Perfetto and chrome://tracing open: a row for each process, with its
    operations and, within them, its waits; and a row for each CPU."""
    events: list[dict[str, object]] = [
        {"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "processes"}},
        {"name": "process_name", "ph": "M", "pid": 2, "args": {"name": "CPUs"}},
    ]
    numbers: dict[str, int] = {}
    cpus: set[int] = set()
    for name, what, cpu, began, ended in time.figures.trace or ():
        number = numbers.get(name)
        if number is None:
            number = len(numbers) + 1
            numbers[name] = number
            events.append({"name": "thread_name", "ph": "M", "pid": 1, "tid": number, "args": {"name": name}})
        times = {"ts": began / PICOSECONDS / 1000, "dur": (ended - began) / PICOSECONDS / 1000}
        waits = what.startswith("waits for ")
        events.append(
            {"name": what, "cat": "wait" if waits else "operation", "ph": "X", "pid": 1, "tid": number, **times,
             "args": {"cpu": cpu}}
        )  # fmt: skip
        if not waits:
            if cpu not in cpus:
                cpus.add(cpu)
                events.append(
                    {"name": "thread_name", "ph": "M", "pid": 2, "tid": cpu, "args": {"name": f"CPU {cpu}"}}
                )
            events.append(
                {"name": f"{name}: {what}", "cat": "cpu", "ph": "X", "pid": 2, "tid": cpu, **times, "args": {}}
            )
    return msgspec.json.encode({"displayTimeUnit": "ns", "traceEvents": events})


def fewer_tasks(points: Sequence[Point]) -> list[int]:
    """Numbers of CPUs on which no design ever had as many tasks at one time."""
    most: dict[int, int] = {}
    for point in points:
        most[point.cpus] = max(point.at_once, most.get(point.cpus, 0))
    return [cpus for cpus, tasks in most.items() if tasks < cpus]


def widest(points: Sequence[Point]) -> list[Point]:
    """Each design's point on most CPUs."""
    last: dict[str, Point] = {}
    for point in points:
        if point.design not in last or point.cpus >= last[point.design].cpus:
            last[point.design] = point
    return list(last.values())
