# SPDX-License-Identifier: GPL-2.0-or-later
"""The command `rmaplab race`; cli.py mounts it."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

import rmaplab
from rmaplab.check.race import Broken, RaceError, Verdict, chosen, cpus, lock_cycle, run, run_path, timeline
from rmaplab.measure.progress import Meter
from rmaplab.mm.profile import REFERENCE
from rmaplab.rmap import load, specs

DESIGNS = ("anon_vma", "cow_context")  # where nothing else was asked for

Job = Callable[[], int]


class Inputs(msgspec.Struct, frozen=True):
    """What the verdicts depend on.  `preemptions` None: each scenario's own bound."""

    scenarios: list[str]
    designs: list[str]
    profile: str
    preemptions: int | None
    limit: int
    path: str


class Differences(msgspec.Struct, frozen=True):
    """An obligation that a design broke in a scenario."""

    scenario: str
    design: str
    broken: Broken


class Races(msgspec.Struct, frozen=True):
    """What `--json` prints."""

    command: str
    version: str
    inputs: Inputs
    holds: bool
    figures: list[Verdict]
    differences: list[Differences]


def mount(app: typer.Typer, check_design: Callable[[str], object]) -> None:
    """Add the command to `app`; `check_design` raises a clear error for what is no design."""

    @app.command("race", short_help="Try every interleaving of users of the reverse map and other CPUs.")
    def _race(
        scenarios: Annotated[
            list[str] | None, typer.Argument(metavar="[SCENARIO]...", help="Only those whose names contain this.")
        ] = None,
        rmap: Annotated[
            list[str] | None,
            typer.Option("--rmap", metavar="DESIGN", help="A design: name, package.module:Class, or file. Repeatable."),
        ] = None,
        preemptions: Annotated[
            int,
            typer.Option(
                min=-1,
                metavar="N",
                help="Take a CPU away at most N times (default: no bound for one operation, 2 for pairs).",
            ),
        ] = -1,
        limit: Annotated[
            int, typer.Option(min=0, metavar="N", help="Give a scenario up after N interleavings (0: never).")
        ] = 0,
        timelines: Annotated[
            int, typer.Option(min=0, metavar="N", help="Show the timelines of at most N failures of a design.")
        ] = 1,
        jobs: Annotated[int, typer.Option(min=1, metavar="N", help="How many scenarios to try side by side.")] = 1,
        path: Annotated[str, typer.Option(metavar="PATH", help="Replay this path of one scenario exactly.")] = "",
        show_names: Annotated[bool, typer.Option("--list", help="Print the names of all scenarios.")] = False,
        json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    ) -> Job:
        """Try every interleaving of users of the reverse map against what other CPUs do.

        A scenario is "USER / OPERATION": somebody who looks for references, unmaps, migrates or restores after
        migration, while other CPUs fault, fork, exit, unmap, protect or move. Its obligations are in
        docs/races.md. Memory model: sequential consistency plus RCU.

        \b
        Examples:
          rmaplab race --rmap cow_context "restore / "
          rmaplab race --rmap cow_context_prototype "unmap / fork of the child"
        """
        bound = preemptions if preemptions >= 0 else None

        def job() -> int:
            names = chosen(scenarios or [])
            if show_names:
                print("\n".join(names))
                return 0
            designs = specs(rmap, DESIGNS)
            for design in designs:
                check_design(design)
            if path:
                return _replay(names, designs, path)
            inputs = Inputs(names, designs, REFERENCE, bound, limit, path)
            verdicts = _try_all(inputs, jobs)
            races = Races(
                "race",
                rmaplab.__version__,
                inputs,
                all(v.holds for v in verdicts) and not lock_cycle(verdicts),
                verdicts,
                [Differences(v.scenario, v.design, b) for v in verdicts for b in v.broken],
            )
            if json:
                print(msgspec.json.format(msgspec.json.encode(races), indent=2).decode())
            else:
                _print(races, timelines)
            return 0 if races.holds else 1

        return job


def _one(work: tuple[str, str, int, int | None]) -> Verdict:
    name, design, limit, bound = work
    return run(name, load(design), limit=limit, preemptions=bound)


def _try_all(inputs: Inputs, jobs: int) -> list[Verdict]:
    work = [(name, design, inputs.limit, inputs.preemptions) for design in inputs.designs for name in inputs.scenarios]
    verdicts: list[Verdict] = []
    with Meter() as meter:
        if jobs == 1:
            for item in work:
                verdicts.append(_one(item))
                meter("scenarios", len(verdicts), len(work))
        else:
            with get_context("spawn").Pool(jobs) as pool:
                for verdict in pool.imap(_one, work):
                    verdicts.append(verdict)
                    meter("scenarios", len(verdicts), len(work))
    return verdicts


def _replay(names: list[str], designs: list[str], path: str) -> int:
    if len(names) != 1 or len(designs) != 1:
        raise RaceError(
            f"a path belongs to one scenario and one design, and here are {len(names)} and {len(designs)}: name them"
        )
    broken = run_path(names[0], load(designs[0]), path)
    if broken is None:
        print(f"{names[0]}, {designs[0]}: this path breaks nothing")
        return 0
    print("\n".join(timeline(broken, cpus(names[0]))))
    return 1


def _print(races: Races, timelines: int) -> None:
    console = Console(width=100, highlight=False, markup=False)
    for design in races.inputs.designs:
        verdicts = [v for v in races.figures if v.design == design]
        table = Table(box=None, pad_edge=False, title=f"{design}", title_justify="left")
        for heading in ("scenario", "bound", "interleavings", "cut short", "steps", "verdict"):
            table.add_column(heading, justify="left" if heading in ("scenario", "verdict") else "right")
        for v in verdicts:
            table.add_row(
                v.scenario,
                "none" if v.preemptions < 0 else str(v.preemptions),
                f"{v.interleavings:,}",
                f"{v.pruned:,}",
                f"{v.steps:,}",
                "BROKEN" if v.broken else "holds" if v.exhausted else "not finished",
            )
        console.print(table)
        failed = [v for v in verdicts if v.broken]
        console.print(
            f"\n{design}: {len(verdicts) - len(failed)} of {len(verdicts)} scenarios hold,"
            f" {sum(v.interleavings for v in verdicts):,} interleavings\n"
        )
        for v in failed[:timelines]:
            console.print(f"{v.scenario}: the first interleaving that breaks an obligation")
            for line in timeline(v.broken[0], v.cpus):
                console.print(line, soft_wrap=True)
            which = f'"{v.scenario}" --rmap {design} --path "{v.broken[0].path}"'
            console.print(f"     again:  rmaplab race {which}", soft_wrap=True)
            console.print(f"     see it: rmaplab explore {which} -o race.html\n", soft_wrap=True)
        for v in failed[timelines:]:
            console.print(f"{v.scenario}: {v.broken[0].error}", soft_wrap=True)
    cycle = lock_cycle(races.figures)
    if cycle:
        console.print(f"locks are taken in a circle: {' -> '.join(cycle)}", soft_wrap=True)
    console.print(f"Verdict   {'holds' if races.holds else 'does not hold'}")
