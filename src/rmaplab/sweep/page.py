# SPDX-License-Identifier: GPL-2.0-or-later
"""The report on a campaign: one self-contained HTML page, or Markdown.

Findings come first, then a plot and a table for each measure, then where every figure comes from.  The templates
are templates/report.html and report.md; Jinja2 escapes what goes into HTML, and the page's content security
policy lets it load nothing and run nothing.  Plots are SVG that matplotlib draws, embedded as images.

Invariant: the same findings give the same bytes.
"""

from __future__ import annotations

import io
from base64 import b64encode
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

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

_WIDTH: Final = 9.0  # inches of a plot
_PANELS: Final = 3  # side by side
_COLOURS: Final = ("#0b66c3", "#c2560c", "#6b2fa0", "#0a7d33", "#a3193f", "#555555")
_MARKS: Final = ("o", "s", "^", "D", "v", "P")


def html(found: Findings) -> str:
    """The page, complete."""
    return _environment(True).get_template("report.html").render(_content(found, plots=True))


def markdown(found: Findings, command: str) -> str:
    """The same as Markdown, without plots; `command` is what wrote it."""
    text = _environment(False).get_template("report.md").render(_content(found, plots=False), command=command)
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("#") and lines and lines[-1]:
            lines.append("")
        if line.strip() or (lines and lines[-1]):
            lines.append(line.rstrip())
    return "\n".join(lines).rstrip() + "\n"


def _environment(escape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("rmaplab.sweep"), autoescape=escape, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["number"] = number
    environment.filters["ratio"] = lambda value: "" if value is None else f"{value:.2f}"
    environment.filters["points"] = _points
    environment.filters["capitalize_first"] = lambda text: text[:1].upper() + text[1:]
    environment.filters["truncate_words"] = lambda text, length: " ".join(word[:length] for word in text.split())
    return environment


def number(value: float) -> str:
    """A figure as text: whole numbers whole, others with three digits that say something."""
    if value == round(value):
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


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
    }


def plot(table: Table) -> str:
    """The table as a picture, a data: URL; "" if there is nothing to draw.

    Over the number of CPUs where that varies, a panel a history; else each design's figure over the reference's.
    """
    if any(line.cpus for line in table.lines):
        draw, rows = _draw_scaling, len({line.history for line in table.lines})
    else:
        draw, rows = _draw_ratios, sum(any(map(line.ratio, _rivals(table))) for line in table.lines)
    if not rows:
        return ""
    # matplotlib takes a second to import, and most of the commands draw nothing.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "rmaplab", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(layout="constrained")
        draw(table, figure)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + b64encode(drawn.getvalue().encode()).decode()


def _rivals(table: Table) -> list[str]:
    return [design for design in table.designs if design != REFERENCE]


def _looks(design: str, designs: list[str]) -> dict[str, Any]:
    """A design's colour and mark; its name is its label."""
    number = designs.index(design)
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "marker": _MARKS[number % len(_MARKS)],
        "markersize": 5,
        "label": design,
    }


def _draw_ratios(table: Table, figure: Any) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    lines = [line for line in table.lines if any(map(line.ratio, _rivals(table)))]
    figure.set_size_inches(_WIDTH, 1.0 + 0.28 * len(lines))
    axes = figure.subplots()
    for design in _rivals(table):
        shown = [(ratio, row) for row, line in enumerate(lines) if (ratio := line.ratio(design))]
        if shown:
            axes.plot(*zip(*shown, strict=True), linestyle="", **_looks(design, table.designs))
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(lines)), [_short(line.label, 60) for line in lines])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(f"{table.measure.name}, times that of {REFERENCE}")
    figure.legend(loc="outside upper right", ncols=4, frameon=False)


def _draw_scaling(table: Table, figure: Any) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    histories = list(dict.fromkeys(line.history for line in table.lines))
    nr_rows = (len(histories) + _PANELS - 1) // _PANELS
    figure.set_size_inches(_WIDTH, 0.5 + 2.4 * nr_rows)
    panels = list(figure.subplots(nr_rows, _PANELS, squeeze=False).flat)
    known: dict[str, Any] = {}
    for history, axes in zip(histories, panels, strict=False):
        lines = sorted((line for line in table.lines if line.history == history), key=lambda line: line.cpus)
        for design in table.designs:
            shown = [(line.cpus, line.figures[design].value) for line in lines if design in line.figures]
            if shown:
                (known[design],) = axes.plot(*zip(*shown, strict=True), **_looks(design, table.designs))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(_short(history, 44), fontsize=9)
        axes.grid(alpha=0.3)
    for axes in panels[len(histories) :]:
        axes.set_axis_off()
    figure.supxlabel("CPUs", fontsize=9)
    figure.supylabel(f"{table.measure.name}, {table.measure.unit}", fontsize=9)
    figure.legend(known.values(), known.keys(), loc="outside upper right", ncols=4, frameon=False)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
