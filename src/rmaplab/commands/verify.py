# SPDX-License-Identifier: GPL-2.0-or-later
"""`rmaplab verify`: random histories on every design, checked against the page tables."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rmaplab.check import mutation, verify_report
from rmaplab.check.verify import Plan, verify
from rmaplab.commands import options
from rmaplab.commands.envelope import print_json
from rmaplab.measure.progress import Meter
from rmaplab.mm.profile import REFERENCE
from rmaplab.output import check_output, write_output
from rmaplab.rmap import DESIGNS, EXCUSED
from rmaplab.terminal import console
from rmaplab.verdict import judge


def command(
    rmap: options.Designs = None,
    profile: options.ProfileName = "",
    seed: options.Seed = 1,
    steps: Annotated[
        int, typer.Option(min=0, metavar="N", help="Events (0: 20,000, or until --time).")
    ] = 0,
    seconds: Annotated[
        float, typer.Option("--time", min=0, metavar="S", help="Start no new history after S seconds.")
    ] = 0,
    every: Annotated[
        int, typer.Option(min=0, metavar="N", help="Check after every N events.")
    ] = 1,
    pages: Annotated[
        int, typer.Option(min=0, max=2000, metavar="N", help="Pages of a history (0: various).", hidden=True)
    ] = 0,
    large_folios: Annotated[
        int, typer.Option(min=0, max=9, metavar="ORDER", help="Highest order of folios (0: various).", hidden=True)
    ] = 0,
    jobs: options.Jobs = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="F",
            help="Where to save a history that fails, or the page of --mutants.",
            hidden=True,
        ),
    ] = None,
    mutants: Annotated[
        bool, typer.Option("--mutants", help="Search for each re-introduced bug instead.")
    ] = False,
    json: options.Json = False,
) -> bool:
    """Check designs against the page tables in random histories.

    The same seed gives the same result on any number of CPUs. A history that fails is shortened, printed and saved
    for `rmaplab replay`.

    \b
    Examples:
      rmaplab verify --steps 2000
      rmaplab verify --time 600 --every 10
      rmaplab verify --rmap anon_vma,mine.py --seed 7
      rmaplab verify --mutants
    """
    cpus = options.cpus_to_use(jobs)
    if output is not None:
        check_output(output)
    if mutants:
        return _look_for_mutants(cpus, output, json)
    plan = Plan(
        designs=tuple(options.designs(rmap, list(DESIGNS)).values()),
        profile=options.profile(profile or REFERENCE).name,
        seed=seed,
        steps=steps or (0 if seconds else 20_000),
        seconds=seconds,
        every=every,
        pages=pages,
        large_folios=large_folios,
        jobs=cpus,
        excused=frozenset() if rmap else EXCUSED,
    )
    with Meter() as meter:
        found = verify(plan, meter.tell)
    saved = None
    if found.failure is not None:
        saved = output or Path("verify-failure.parquet")
        verify_report.save(saved, plan, found.failure)
    held = found.holds  # or nothing was looked at, and there is nothing to print
    if json:
        print_json(
            "verify",
            verify_report.inputs(plan),
            held,
            verify_report.figures(found),
            verify_report.differences(found),
            saved=None if saved is None else str(saved),
        )
    else:
        verify_report.print_report(plan, found, saved, console())
    return held


def _look_for_mutants(jobs: int, output: Path | None, json: bool) -> bool:
    with Meter() as meter:
        verdicts = mutation.look_for_all(jobs, partial(meter.tell, "looking for mutants", of="mutants"))
    if output is not None:
        write_output(output, mutation.markdown(verdicts, f"rmaplab verify --mutants -o {output}"))
    holds = judge(len(verdicts), not all(verdict.holds for verdict in verdicts), "no mutant was looked for")
    if json:
        inputs = {
            "history": "random",
            "mutants": [verdict.mutant for verdict in verdicts],
            "steps": mutation.STEPS,
            "interleavings": mutation.INTERLEAVINGS,
        }
        print_json("verify", inputs, holds, verdicts, [verdict for verdict in verdicts if not verdict.holds])
    else:
        mutation.print_table(verdicts, console())
    return holds
