# SPDX-License-Identifier: GPL-2.0-or-later
"""The result of `rmaplab verify`, as one object for programs (`--json`) and as text for people."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from rmaplab.check.coverage import ENOUGH, missing
from rmaplab.check.histories import header
from rmaplab.check.verify import Failure, Plan, Verified
from rmaplab.printable import plural
from rmaplab.rmap import load
from rmaplab.terminal import Grid, print_fact, print_verdict
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


def print_report(plan: Plan, found: Verified, saved: Path | None, out: Console) -> None:
    """What was played and checked, a table of walks, and the failure."""
    per_second = found.steps / found.seconds if found.seconds else 0
    counts = found.counts
    histories = "1 random history" if found.histories == 1 else f"{found.histories:,} random histories"
    print_fact(
        "Played",
        f"{plural(found.steps, 'event')} in {histories}, seed {plan.seed},"
        f" profile {plan.profile} ({per_second:,.0f} per second)",
        out,
    )
    print_fact(
        "Checked",
        f"{plural(counts.checks, 'moment')}: {plural(counts.folios, 'folio')} walked in each design, {counts.entries:,}"
        f" page-table entries looked for; {plural(found.compared, 'event')} played once more in runs, and once page by"
        " page",
        out,
    )
    out.print()
    table = Grid("", "walks", "places", "that map", "worst", "incomplete", "stale")
    for name, walks in counts.designs.items():
        figures = (walks.walks, walks.places, walks.useful, walks.worst, walks.incomplete, walks.stale)
        table.add_row(name, *(f"{figure:,}" for figure in figures))
    table.print(out)
    out.print()
    for key, count in found.excused.items():
        example = found.examples[key]
        print_fact("Known", f"{key}, {count:,} times; first in history {example.history}: {example.what}", out)
    if found.excused:
        print_fact("", "(known to be incomplete, and no failure unless selected with --rmap)", out)
    not_reached = missing(found.reached) if counts.checks else []
    if not_reached:
        print_fact("Missing", f"not reached in these {found.steps:,} steps: {', '.join(not_reached)}", out)
    if found.without_effect:
        print_fact("", f"{ENOUGH:,} steps reach all of that where each operation does what it is for", out)
    if found.failure is not None:
        _print_failure(plan, found, found.failure, saved, out)
    print_verdict(found.failure is None and not found.without_effect, out)


def _print_failure(plan: Plan, found: Verified, failure: Failure, saved: Path | None, out: Console) -> None:
    folios = f", folios of up to {1 << failure.large_folios} pages" if failure.large_folios else ""
    print_fact(
        "Failure",
        f"history {failure.history}, event {found.original - 1}; watched by {', '.join(failure.designs)}{folios}",
        out,
    )
    print_fact("", f"{failure.kind}: {failure.what}", out)
    out.print(f"\nThe shortest history found that shows it ({len(failure.events)} of {found.original} events):")
    for event in failure.events[:-1]:
        out.print(f"  {event}", soft_wrap=True)
    for event in failure.events[-1:]:
        if failure.kind == "broken":  # it has no result
            out.print(f"  {msgspec.structs.replace(event, result=0)}: raises {failure.what}", soft_wrap=True)
        else:
            out.print(f"  {event}", soft_wrap=True)
    if saved is not None:
        out.print(f"\nSaved in {saved}. To see it again:\n  {replay_command(saved, plan, failure)}", soft_wrap=True)
        if not failure.large_folios:
            out.print(f"To see it step by step:\n  {explore_command(saved, plan, failure)}", soft_wrap=True)
    out.print()
