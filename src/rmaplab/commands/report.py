# SPDX-License-Identifier: GPL-2.0-or-later
"""`rmaplab report`: one page about a history, or about the results of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rmaplab.commands import options
from rmaplab.commands.compare import Asked
from rmaplab.commands.envelope import print_json
from rmaplab.errors import CannotRun
from rmaplab.measure import sources
from rmaplab.output import check_output, write_output
from rmaplab.sweep.findings import findings, sentences
from rmaplab.workloads import FAMILIES


def command(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR | F | WORKLOAD [NAME=VALUE]...",
            help="Where `rmaplab sweep` kept its results, or a history as of `rmaplab compare`.",
            hidden=True,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PAGE", help="The page to write (default: DIR/report.html, F.html)."),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="F", help="Of a sweep: write Markdown to F instead.")
    ] = None,
    rmap: options.Designs = None,
    profile: options.ProfileName = "",
    seed: options.Seed = 1,
    json: options.Json = False,
) -> bool:
    """Write one self-contained page about a sweep's results in DIR, or a history as of `rmaplab compare`: findings,
    then pictures and tables, and where every figure comes from.

    \b
    Examples:
      rmaplab report forkchain generations=20 -o forkchain.html
      rmaplab report results
      rmaplab report results --markdown results.md
    """
    if len(what) == 1 and Path(what[0]).is_dir():
        return _campaign(Path(what[0]), output, markdown, json)
    if what[0] not in FAMILIES and not Path(what[0]).exists():
        raise CannotRun(f"{what[0]} is no directory of `rmaplab sweep`, no recording and no workload (run --list)")
    if markdown is not None:
        raise CannotRun("--markdown is for the results of a sweep, a directory")
    page = output or Path(Path(what[0]).with_suffix(".html").name)
    asked = Asked(rmap=rmap, profile=profile, seed=seed, outputs=[page], json=json)
    return asked.compare("report", what, lambda: sources.find(what, seed))


def _campaign(directory: Path, output: Path | None, markdown: Path | None, json: bool) -> bool:
    from rmaplab.sweep import page  # what draws is slow to import

    path = markdown or output or directory / "report.html"
    check_output(path)
    found = findings(directory)
    if markdown is not None:
        text = page.markdown(found, f"rmaplab report {directory} --markdown {markdown}")
    else:
        text = page.html(found)
    write_output(path, text)
    said = sentences(found)
    if json:
        differences = [{"point": differing.title, "what": differing.what} for differing in found.differences]
        differences += [{"point": title, "what": "is not done"} for title in found.undone]
        inputs = {"spec": str(directory), "name": found.plan.name, "points": len(found.plan.points)}
        figures = {"page": str(path), "points": len(found.points), "findings": said}
        print_json("report", inputs, found.holds, figures, differences)
    else:
        print("\n".join(said))
        print(f"wrote {path}")
    return found.holds
