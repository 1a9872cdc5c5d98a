# SPDX-License-Identifier: GPL-2.0-or-later
"""`rmaplab report`: the results of a sweep as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rmaplab.commands import options
from rmaplab.commands.envelope import print_json
from rmaplab.output import write_output
from rmaplab.sweep.findings import findings, sentences


def command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where `rmaplab sweep` kept its results.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PAGE", help="The HTML page to write (default: DIR/report.html)."),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="F", help="Write Markdown to F, instead of the page.")
    ] = None,
    json: options.Json = False,
) -> bool:
    """Write one self-contained page: findings first, then plots and tables, and where every figure comes from.

    \b
    Examples:
      rmaplab report results
      rmaplab report results --markdown results.md
    """
    from rmaplab.sweep import page  # what draws is slow to import

    found = findings(directory)
    if markdown is not None:
        path, text = markdown, page.markdown(found, f"rmaplab report {directory} --markdown {markdown}")
    else:
        path, text = output or directory / "report.html", page.html(found)
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
