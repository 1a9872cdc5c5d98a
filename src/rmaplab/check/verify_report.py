# SPDX-License-Identifier: GPL-2.0-or-later
"""The result of `rmaplab verify`, as one object for programs (`--json`) and as text for people."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from rmaplab.check.coverage import ENOUGH, missing
from rmaplab.check.finding import line
from rmaplab.check.histories import header
from rmaplab.check.verify import Failure, Plan, Verified
from rmaplab.rmap import load
from rmaplab.trace.history import History, write_history


def save(path: Path, plan: Plan, failure: Failure) -> None:
    """Write the history that failed, so that `rmaplab replay` plays it."""
    about = header()
    about.command = f"history {failure.history} of seed {plan.seed}, shortened"
    write_history(path, History(about, failure.events))


def replay_command(path: Path, plan: Plan, failure: Failure) -> str:
    """What to type to see the failure again."""
    words = ["rmaplab", "replay", str(path), "--check", "--every", "1", *_watched(plan, failure)]
    if failure.large_folios:
        words += ["--large-folios", str(failure.large_folios)]
    return shlex.join(words)


def explore_command(path: Path, plan: Plan, failure: Failure) -> str:
    """What to type to see it step by step, in a page."""
    page = path.with_suffix(".html")
    return shlex.join(["rmaplab", "explore", str(path), *_watched(plan, failure), "-o", str(page)])


def _watched(plan: Plan, failure: Failure) -> list[str]:
    specs = {load(spec).name: spec for spec in plan.designs}
    words = ["--profile", plan.profile]
    for name in failure.designs:
        words += ["--rmap", specs.get(name, name)]
    return words


def inputs(plan: Plan) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "history": f"random, {plan.length} events each",
        "designs": [design.name for design in plan.classes()],
        "profile": plan.profile,
        "seed": plan.seed,
        "steps": plan.steps,
        "seconds": plan.seconds,
        "every": plan.every,
        "pages": plan.pages,
        "large_folios": plan.large_folios,
    }


def figures(found: Verified) -> dict[str, Any]:
    """What was done."""
    return {
        "histories": found.histories,
        "steps": found.steps,
        "played in runs and one by one": found.compared,
        "seconds": round(found.seconds, 1),
        "checks": found.counts,
        "excused": found.excused,
        "reached": dict(sorted(found.reached.items())),
        "without effect": found.without_effect,
    }


def differences(found: Verified) -> list[dict[str, Any]]:
    """The failure, if there is one, and an example of what each excused design misses."""
    failed = [] if found.failure is None else [_difference(found.failure, error=True)]
    return failed + [_difference(example, error=False) for example in found.examples.values()]


def _difference(failure: Failure, error: bool) -> dict[str, Any]:
    return {**msgspec.to_builtins(failure), "error": error, "events": failure.events if error else []}


def print_text(plan: Plan, found: Verified, saved: Path | None, console: Console) -> None:
    """Tables that fit 100 columns, and the failure."""
    per_second = found.steps / found.seconds if found.seconds else 0
    console.print(
        f"Played  {found.steps:,} events in {found.histories:,} random histories, seed {plan.seed},"
        f" profile {plan.profile} ({per_second:,.0f} per second)",
        soft_wrap=True,
    )
    counts = found.counts
    console.print(
        f"Checked {counts.checks:,} moments: {counts.folios:,} folios walked in each design,"
        f" {counts.entries:,} page-table entries looked for",
        soft_wrap=True,
    )
    console.print(f"        {found.compared:,} events played once more in runs, and once page by page")
    console.print()
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("Walks", no_wrap=True)
    for column in ("walks", "places", "that map", "worst", "incomplete", "stale"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, walks in counts.designs.items():
        figures = (walks.walks, walks.places, walks.useful, walks.worst, walks.incomplete, walks.stale)
        table.add_row(name, *(f"{figure:,}" for figure in figures))
    console.print(table)
    console.print()
    if found.excused:
        console.print("Known to be incomplete, and no failure unless asked for by name:")
        for key, count in found.excused.items():
            console.print(f"  {key}, {count:,} times; first in history {found.examples[key].history}:")
            console.print(f"    {found.examples[key].what}", soft_wrap=True)
        console.print()
    not_reached = missing(found.reached) if counts.checks else []
    if not_reached:
        console.print(f"Not reached in these {found.steps:,} steps: {', '.join(not_reached)}", soft_wrap=True)
    if found.without_effect:
        console.print(f"Does not hold: {ENOUGH:,} steps reach all of that where each operation does what it is for.")
    if found.failure is None:
        if not found.without_effect:
            console.print("Holds.")
        return
    _print_failure(plan, found, found.failure, saved, console)


def _print_failure(plan: Plan, found: Verified, failure: Failure, saved: Path | None, console: Console) -> None:
    console.print(
        f"Does not hold: history {failure.history}, event {found.original - 1}; watched by"
        f" {', '.join(failure.designs)}"
        + (f", folios of up to {1 << failure.large_folios} pages" if failure.large_folios else "")
    )
    console.print(f"  {failure.kind}: {failure.what}", soft_wrap=True)
    console.print(f"\nThe shortest history found that shows it ({len(failure.events)} of {found.original} events):")
    for event in failure.events[:-1]:
        console.print(f"  {line(event)}", soft_wrap=True)
    for event in failure.events[-1:]:
        if failure.kind == "broken":  # it has no result
            console.print(f"  {line(msgspec.structs.replace(event, result=0))}: raises {failure.what}", soft_wrap=True)
        else:
            console.print(f"  {line(event)}", soft_wrap=True)
    if saved is not None:
        console.print(f"\nSaved in {saved}. To see it again:\n  {replay_command(saved, plan, failure)}", soft_wrap=True)
        if not failure.large_folios:
            console.print(f"To see it step by step:\n  {explore_command(saved, plan, failure)}", soft_wrap=True)
