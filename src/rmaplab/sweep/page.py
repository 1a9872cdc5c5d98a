# SPDX-License-Identifier: GPL-2.0-or-later
"""The report on a campaign: one self-contained HTML page, or Markdown.

Findings come first, then a plot and a table for each measure, then where every figure comes from (templates/
campaign.html and campaign.md).

Invariant: the same findings give the same bytes.
"""

from __future__ import annotations

from typing import Any, Final

from rmaplab.pages import WIDTH, looks, picture, render, short
from rmaplab.sweep.findings import (
    PROPOSAL,
    REFERENCE,
    TIE,
    Findings,
    Line,
    Table,
    losses,
    sentences,
    standings,
)

_PANELS: Final = 3  # side by side


def html(found: Findings) -> str:
    """The page, complete."""
    return render("campaign.html", **_content(found, plots=True))


def markdown(found: Findings, command: str) -> str:
    """The same as Markdown, without plots; `command` is what wrote it."""
    text = render("campaign.md", escape=False, command=command, **_content(found, plots=False))
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("#") and lines and lines[-1]:
            lines.append("")
        if line.strip() or (lines and lines[-1]):
            lines.append(line.rstrip())
    return "\n".join(lines).rstrip() + "\n"


def _points(line: Line) -> list[int]:
    return sorted({point for figure in line.figures.values() for point in figure.points})


def _content(found: Findings, plots: bool) -> dict[str, Any]:
    return {
        "found": found,
        "sentences": sentences(found),
        "standings": standings(found),
        "losses": losses(found),
        "tables": [(table, plot(table) if plots else "") for table in found.tables],
        "proposal": PROPOSAL,
        "reference": REFERENCE,
        "tie": f"{100 * TIE:g}",
        "points": _points,
    }


def plot(table: Table) -> str:
    """The table as a picture, a data: URL; "" if there is nothing to draw.

    Over the number of CPUs where that varies, a panel per history; else each design's figure over the reference's.
    """
    if any(line.cpus for line in table.lines):
        draw, rows = _draw_scaling, len({line.history for line in table.lines})
    else:
        draw, rows = _draw_ratios, sum(any(map(line.ratio, _rivals(table))) for line in table.lines)
    if not rows:
        return ""
    return picture(lambda figure: draw(table, figure))


def _rivals(table: Table) -> list[str]:
    return [design for design in table.designs if design != REFERENCE]


def _draw_ratios(table: Table, figure: Any) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    lines = [line for line in table.lines if any(map(line.ratio, _rivals(table)))]
    figure.set_size_inches(WIDTH, 1.0 + 0.28 * len(lines))
    axes = figure.subplots()
    for design in _rivals(table):
        shown = [(ratio, row) for row, line in enumerate(lines) if (ratio := line.ratio(design))]
        if shown:
            axes.plot(*zip(*shown, strict=True), linestyle="", **looks(design, table.designs))
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(lines)), [short(line.label, 60) for line in lines])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(f"{table.measure.name}, times that of {REFERENCE}")
    figure.legend(loc="outside upper right", ncols=4, frameon=False)


def _draw_scaling(table: Table, figure: Any) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    histories = list(dict.fromkeys(line.history for line in table.lines))
    nr_rows = (len(histories) + _PANELS - 1) // _PANELS
    figure.set_size_inches(WIDTH, 0.5 + 2.4 * nr_rows)
    panels = list(figure.subplots(nr_rows, _PANELS, squeeze=False).flat)
    known: dict[str, Any] = {}
    for history, axes in zip(histories, panels, strict=False):
        lines = sorted((line for line in table.lines if line.history == history), key=lambda line: line.cpus)
        for design in table.designs:
            shown = [(line.cpus, line.figures[design].value) for line in lines if design in line.figures]
            if shown:
                (known[design],) = axes.plot(*zip(*shown, strict=True), **looks(design, table.designs))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(short(history, 44), fontsize=9)
        axes.grid(alpha=0.3)
    for axes in panels[len(histories) :]:
        axes.set_axis_off()
    figure.supxlabel("CPUs", fontsize=9)
    figure.supylabel(f"{table.measure.name}, {table.measure.unit}", fontsize=9)
    figure.legend(known.values(), known.keys(), loc="outside upper right", ncols=4, frameon=False)
