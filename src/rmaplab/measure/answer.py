# SPDX-License-Identifier: GPL-2.0-or-later
"""The answer of a comparison: one screen of 24 lines and 80 columns that says what to do next.

It says whether the history holds; the mappings that each design misses; its costs, as figures, as ratios to the first
design and as bars; the meaning of these figures; the extent of recording and checks; and where the rest is.  The page
(page.py) shows `columns_of`, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from rich.console import Console

from rmaplab.measure.report import ERROR_KINDS, KINDS, REFERENCE, Report, sameness
from rmaplab.mm.profile import profile_for
from rmaplab.printable import plural
from rmaplab.terminal import Grid, bar, has_unicode, print_fact, print_text, print_verdict

_WIDTH: Final = 80  # columns at most: lines that the eye can follow
_LONGEST_BAR: Final = 10
_SHORTEST_BAR: Final = 3
_OF_THE_KERNEL: Final = ("result", "geometry")  # kinds of differences that another kernel's rules may make
_SHOWN: Final = 3  # errors in words; --full has more


class Column(NamedTuple):
    """One measure of each design; None where a design has none.

    name, unit: what it is, and in what; digits: after the decimal point
    """

    name: str
    unit: str
    values: list[float | None]
    digits: int = 0

    def figure(self, value: float | None) -> str:
        return "-" if value is None else f"{value:,.{self.digits}f}"

    def ratio(self, value: float | None) -> str:
        """`value` over the first design's."""
        first = self.values[0]
        return "" if value is None or not first else f"{value / first:.2f}"

    def share(self, value: float | None) -> float:
        """`value` over the greatest one."""
        return (value or 0) / (max(v or 0 for v in self.values) or 1)


def columns_of(report: Report) -> list[Column]:
    """What the designs are compared by: less is better in each."""
    figures = report.figures
    names = [design.design for design in figures.designs]
    held = {design.design: design.peak.total / 1024 for design in figures.memory.designs}
    locks = [float(sum(lock.writes for lock in design.work.locks)) for design in figures.designs]
    found = [
        Column("peak memory", "KiB", [held.get(name) for name in names], 1),
        Column("exclusive locks", "", [*locks]),
    ]
    times = [] if figures.times is None else figures.times.designs
    walks = [design.walks for design in figures.designs]
    walked = any(w.walks for w in walks)
    if times:
        found.append(_time("time", [time.history.ns for time in times]))
    if times and walked:
        each = [t.whole_walks / w.walks if w.walks else None for t, w in zip(times, walks, strict=True)]
        found.append(_time("time per walk", each))
    if walked:
        found.append(Column("places per walk", "", [w.places / w.walks if w.walks else None for w in walks], 2))
    return found


def _time(name: str, values: Sequence[float | None]) -> Column:
    """Nanoseconds, in the greatest unit of which the greatest is at least ten, so that the others still have digits."""
    most = max((value or 0 for value in values), default=0)
    unit, size = next(((u, s) for u, s in (("s", 1e9), ("ms", 1e6), ("us", 1e3)) if most >= 10 * s), ("ns", 1.0))
    return Column(name, unit, [None if value is None else value / size for value in values], 1)


def print_answer(report: Report, rest: str, out: Console) -> None:
    """Print it; `rest` says where more is."""
    out.width = min(out.width, _WIDTH)
    source, figures = report.inputs.history, report.figures
    print_fact("History", source.name, out)
    machine = figures.machine
    peak = f"at peak {plural(machine.vmas.peak, 'VMA')}, {plural(machine.pages.peak, 'page')}"
    print_fact("", f"{plural(machine.events, 'event')}; {peak}; rules of Linux {report.inputs.profile}", out)
    print_verdict(report.holds, out)
    for sentence in findings(report):
        print_fact("", sentence, out)
    _print_errors(report, out)
    out.print()
    _print_columns([design.design for design in figures.designs], columns_of(report), out)
    out.print()
    explained = _explained(report)
    if explained:
        print_fact("Figures", explained, out)
    print_fact("Recorded", recorded(report), out)
    print_fact("Checked", checked(report), out)
    print_fact("More", rest, out)


def _explained(report: Report) -> str:
    """What the numbers above are."""
    parts = [] if len(report.figures.designs) == 1 else [f"ratios to {report.figures.designs[0].design}"]
    if report.figures.times is not None:
        parts.append("time is derived from counted work, not measured")
        for design in report.figures.times.designs:
            gaps = sorted(design.history.gaps | design.walks.gaps)
            if gaps:
                parts.append(f"time of {design.design} is without what no cost is known for: {', '.join(gaps)}")
    return "; ".join(parts)


def findings(report: Report) -> list[str]:
    """Who misses what, in sentences."""
    found = []
    counted = report.figures.counted
    for kind, title in KINDS.items():
        for key, total in counted.items():
            of, _, who = key.partition(" ")
            if of == kind and kind in ERROR_KINDS and kind != "incomplete":
                found.append(f"{title}{f' ({who})' if who else ''}: {total:,}")
    for design in report.figures.designs:
        missed = design.walks.incomplete
        if not missed:
            continue
        differences = [d for d in report.differences if d.kind == "incomplete" and d.design == design.design]
        since = f", first after event {differences[0].event:,}" if differences else ""
        if differences and not any(d.error for d in differences):
            found.append(
                f"misses by {design.design} ({plural(missed, 'mapping')}{since}) affect the exit status only if it is"
                " selected with --rmap"
            )
        else:
            folios = plural(report.figures.checks.folios, "folio")
            found.append(f"{design.design} misses {plural(missed, 'mapping')} of {folios}{since}")
    for design in report.figures.designs:
        if REFERENCE in report.inputs.designs and design.design != REFERENCE:
            if design.walks.walks and not design.walks.incomplete:
                found.append(f"{design.design} visits {sameness(design)}")
    return found


def _print_errors(report: Report, out: Console) -> None:
    errors = [difference for difference in report.differences if difference.error]
    kernel, rules = report.inputs.history.kernel, report.inputs.profile
    if kernel and profile_for(kernel)[0].name != rules and any(d.kind in _OF_THE_KERNEL for d in errors):
        print_text(f"played by the rules of {rules}, not of Linux {kernel}, which may be why:", 10, out)
    for difference in errors[:_SHOWN]:
        print_text(f"after event {difference.event:,}: {difference.what}", 10, out)
    if len(errors) > _SHOWN:
        print_text("--full lists more, and the shortest history that shows it", 10, out)


def _print_columns(names: list[str], columns: Sequence[Column], out: Console) -> None:
    """Figures, ratios and bars; the bars take what room is left in tables that fold."""
    unicode = has_unicode(out)
    cells = [[f"{column.figure(v)} {column.ratio(v):>6}" for v in column.values] for column in columns]
    width = max(len(name) for name in names)
    narrow = [max(len(cell) for cell in column) + _SHORTEST_BAR + 4 for column in cells]
    fitting = 0
    while fitting < len(narrow) and width + sum(narrow[: fitting + 1]) <= out.width:
        fitting += 1
    left = out.width - width - sum(narrow[:fitting])
    length = min(_LONGEST_BAR, _SHORTEST_BAR + left // max(1, fitting)) if fitting else 0
    table = Grid("", *(f"{column.name}{f', {column.unit}' if column.unit else ''}" for column in columns))
    for row, name in enumerate(names):
        line = [name]
        for column, texts in zip(columns, cells, strict=True):
            drawn = bar(column.share(column.values[row]), length, unicode)
            line.append(f"{texts[row]} {drawn:{length}}" if length else texts[row])
        table.add_row(*line)
    table.print(out, gap=False)


def recorded(report: Report) -> str:
    """Where the history comes from, and what it can vouch for."""
    source = report.inputs.history
    if not source.sha256:
        return f"nothing: a built-in workload, seed {report.inputs.seed}"
    parts = (
        f"with {source.recorder}" if source.recorder else "",
        f"on Linux {source.kernel}" if source.kernel else "",
        f"faults {source.faults}" if source.faults not in ("", "recorded") else "",
        f"{plural(source.lost, 'event')} lost" if source.lost else "",
        f"the command's end: {source.ended}" if source.ended not in ("", "exit 0") else "",
    )
    return ", ".join(part for part in parts if part) + (f"; {source.evidence}" if source.evidence else "")


def checked(report: Report) -> str:
    """What was looked at, and what not."""
    checks, counted = report.figures.checks, report.figures.counted
    parts = []
    if report.inputs.history.sha256:
        wrong = f": {counted['result']:,} not" if "result" in counted else ""
        parts.append(f"results of {plural(checks.results, 'event')}{wrong} as recorded")
        others = max(0, report.figures.machine.mms.made - checks.maps)
        wrong = f"{plural(counted['geometry'], 'VMA')} not" if "geometry" in counted else "all VMAs"
        if checks.maps:
            rest = f" ({others:,} not compared)" if others else ""
            parts.append(f"{plural(checks.maps, 'address space')}{rest}: {wrong} as in /proc/PID/maps")
        else:
            parts.append("no /proc/PID/maps to compare with (record --check)")
    if checks.moments:
        skipped = f" ({checks.skipped:,} mapped but not sampled)" if checks.skipped else ""
        parts.append(f"{plural(checks.folios, 'folio')} walked at {plural(checks.moments, 'moment')}{skipped}")
    else:
        parts.append("no walks (--check)")
    return "; ".join(parts)
