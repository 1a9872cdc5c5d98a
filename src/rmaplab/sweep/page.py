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

from rmaplab.sweep.findings import PROPOSAL, REFERENCE, TIE, Findings, Line, Table, losses, sentences

_WIDTH: Final = 9.0  # inches of a plot
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
        "losses": losses(found),
        "tables": [(table, plot(table) if plots else "") for table in found.tables],
        "proposal": PROPOSAL,
        "reference": REFERENCE,
        "tie": f"{100 * TIE:g}",
    }


def plot(table: Table) -> str:
    """Each design's figure over the reference's, by history, as a data: URL; "" if there is nothing to draw."""
    ratios = [
        (line.label, {design: line.ratio(design) for design in table.designs if design != REFERENCE})
        for line in table.lines
    ]
    ratios = [(label, of_line) for label, of_line in ratios if any(of_line.values())]
    if not ratios:
        return ""
    # matplotlib takes a second to import, and most of the commands draw nothing.
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    with rc_context({"svg.hashsalt": "rmaplab", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(_WIDTH, 1.0 + 0.28 * len(ratios)), layout="constrained")
        axes = figure.subplots()
        rows = range(len(ratios))
        for i, design in enumerate(design for design in table.designs if design != REFERENCE):
            at = [(of_line.get(design), row) for row, (_, of_line) in zip(rows, ratios, strict=True)]
            shown = [(value, row) for value, row in at if value]
            axes.plot(
                [value for value, _ in shown],
                [row for _, row in shown],
                _MARKS[i % len(_MARKS)],
                color=_COLOURS[i % len(_COLOURS)],
                label=design,
            )
        axes.axvline(1, color="black", linewidth=1)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(list(rows), [label if len(label) < 60 else label[:57] + "..." for label, _ in ratios])
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel(f"{table.measure.name}, times that of {REFERENCE}")
        figure.legend(loc="outside upper right", ncols=4, frameon=False)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + b64encode(drawn.getvalue().encode()).decode()
