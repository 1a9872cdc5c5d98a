# SPDX-License-Identifier: GPL-2.0-or-later
"""A comparison as one self-contained HTML page: findings in sentences, pictures, tables, and how to repeat it.

Invariant: the same report gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rmaplab.measure.answer import Column, checked, columns_of, findings, recorded
from rmaplab.measure.report import KINDS, Report
from rmaplab.pages import WIDTH, colour, looks, picture, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PROCESSES: Final = 24  # bars of VMAs by process; the rest is one more
_DIFFERENCES: Final = 3  # of a kind and design; --full and --json have more


class Picture(NamedTuple):
    """image: a data: URL; caption: what it shows, in a sentence that says how to read it"""

    title: str
    image: str
    caption: str


def page(report: Report, repeat: Sequence[str]) -> str:
    """The page; `repeat` are the commands that give the same figures again."""
    figures = report.figures
    columns = columns_of(report)
    names = [design.design for design in figures.designs]
    return render(
        "comparison.html",
        report=report,
        names=names,
        columns=columns,
        sentences=[*ratios(names, columns), *findings(report)],
        pictures=_pictures(report),
        locks=[
            (design.design, lock, sorted(by_op.items(), key=lambda item: -item[1]))
            for design in figures.designs
            for lock, by_op in sorted(design.operations.items())
        ],
        recorded=recorded(report),
        checked=checked(report),
        differences=[(d, KINDS[d.kind], [*map(str, d.shortest)]) for d in _first(report)],
        repeat=repeat,
    )


def _first(report: Report) -> list[Any]:
    """The differences to show: of each kind and design some, errors first."""
    shown: dict[tuple[str, str], list[Any]] = {}
    for difference in sorted(report.differences, key=lambda d: (not d.error, not d.shortest)):
        alike = shown.setdefault((difference.kind, difference.design), [])
        if len(alike) < _DIFFERENCES:
            alike.append(difference)
    return [difference for alike in shown.values() for difference in alike]


def ratios(names: Sequence[str], columns: Sequence[Column]) -> list[str]:
    """Each design against the first, in a sentence."""
    found = []
    for row, name in enumerate(names[1:], 1):
        parts = [
            f"{ratio} times the {column.name}" for column in columns if (ratio := column.ratio(column.values[row]))
        ]
        if parts:
            found.append(f"Compared with {names[0]}, {name} has {', '.join(parts)}")
    return found


def _pictures(report: Report) -> list[Picture]:
    figures = report.figures
    names = [design.design for design in figures.designs]
    found = []
    if figures.memory.events and figures.memory.designs:
        found.append(
            Picture(
                "Memory over events",
                picture(lambda figure: _draw_memory(report, figure)),
                "Bytes of each design's objects and of the fields that it adds to vm_area_struct and mm_struct.",
            )
        )
    if any(design.operations for design in figures.designs):
        found.append(
            Picture(
                "Exclusive locks by class and operation",
                picture(lambda figure: _draw_locks(report, figure)),
                "How often each lock was taken for writing, and which operations of the history took it.",
            )
        )
    if any(design.walks.lengths for design in figures.designs):
        found.append(
            Picture(
                "Lengths of walks",
                picture(lambda figure: _draw_lengths(report, names, figure)),
                "Of the folios that were checked: how many walks visited so many places. Left is better.",
            )
        )
    if figures.memory.processes:
        found.append(
            Picture(
                "VMAs by process",
                picture(lambda figure: _draw_processes(report, figure)),
                "At the moment with most VMAs, by the merge rule of the first design.",
            )
        )
    return found


def _axes(figure: Figure, height: float) -> Axes:
    figure.set_size_inches(WIDTH, height)
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return axes


def _draw_memory(report: Report, figure: Figure) -> None:
    memory = report.figures.memory
    names = [design.design for design in memory.designs]
    axes = _axes(figure, 3.2)
    for design in memory.designs:
        style = looks(design.design, names)
        del style["marker"], style["markersize"]
        axes.plot(memory.events, [held / 1024 for held in design.line], **style)
    axes.set_xlabel("events")
    axes.set_ylabel("KiB")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _draw_locks(report: Report, figure: Figure) -> None:
    rows = [
        (f"{design.design}: {lock}", by_op)
        for design in report.figures.designs
        for lock, by_op in sorted(design.operations.items())
    ]
    totals: dict[str, int] = {}
    for _, by_op in rows:
        for op, count in by_op.items():
            totals[op] = totals.get(op, 0) + count
    most = sorted(totals, key=lambda op: (-totals[op], op))[:5]
    axes = _axes(figure, 0.9 + 0.35 * len(rows))
    left = [0.0] * len(rows)
    for nth, op in enumerate([*most, ""]):
        counts = [sum(n for o, n in by_op.items() if (o == op if op else o not in most)) for _, by_op in rows]
        if any(counts):
            axes.barh(range(len(rows)), counts, left=left, color=colour(nth), label=op or "others")
            left = [a + b for a, b in zip(left, counts, strict=True)]
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("times taken")
    figure.legend(loc="outside upper right", ncols=6, frameon=False)


def _draw_lengths(report: Report, names: list[str], figure: Figure) -> None:
    from matplotlib.ticker import MaxNLocator

    axes = _axes(figure, 3.2)
    for nth, design in enumerate(report.figures.designs):
        lengths = design.walks.lengths
        style = looks(design.design, names)
        style["markersize"] += 3 * (len(names) - 1 - nth)  # the same figures are seen one within the other
        axes.plot([*lengths], [*lengths.values()], linestyle=":", linewidth=1, **style)
    axes.set_yscale("log")
    axes.set_xlabel("places visited")
    axes.set_ylabel("walks")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)


def _draw_processes(report: Report, figure: Figure) -> None:
    most = sorted(report.figures.memory.processes.items(), key=lambda item: (-item[1], item[0]))
    shown, rest = most[:_PROCESSES], most[_PROCESSES:]
    names = [str(pid) for pid, _ in shown]
    counts = [count for _, count in shown]
    if rest:
        names.append(f"{len(rest):,} more")
        counts.append(sum(count for _, count in rest))
    axes = _axes(figure, 2.6)
    axes.bar(range(len(names)), counts, color=colour(0))
    axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 8 else 0)
    axes.set_xlabel("process")
    axes.set_ylabel("VMAs")
