# SPDX-License-Identifier: GPL-2.0-or-later
"""What the rows of a campaign say: per measure and history a figure for each design, and which one is best.

A *measure* is a criterion for choosing a design.  Figures of several seeds become their median.  The
designs are compared with `anon_vma`, what Linux has; a design wins or loses where it differs by more than `TIE`.

Invariant: every figure names the points from which it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import pyarrow.parquet as pq

from rmaplab.sweep.campaign import RESULTS, Campaign, Plan, told_of
from rmaplab.sweep.errors import SweepError
from rmaplab.verdict import judge

REFERENCE: Final = "anon_vma"
PROPOSAL: Final = "cow_context"
TIE: Final = 0.02  # a difference of this share of the reference's figure, or less, is none

_COMPARED: Final = frozenset({"compare", "scale"})  # commands whose figures say how good a design is

Figures = Mapping[tuple[str, str], float]  # by group and name of a figure


class Measure(NamedTuple):
    """A criterion for choosing a design.

    name, unit, what: its name, its unit, and a sentence about it
    higher: more is better
    of:     its value from the figures of one point and design; None where they have none
    """

    name: str
    unit: str
    what: str
    higher: bool
    of: Callable[[Figures], float | None]


class Figure(NamedTuple):
    """A value, and the numbers of the points that it is the median of."""

    value: float
    points: tuple[int, ...]


class Line(NamedTuple):
    """One history's figures in one measure, by design; `cpus` is 0 where nothing was simulated."""

    history: str
    cpus: int
    figures: Mapping[str, Figure]

    @property
    def label(self) -> str:
        return f"{self.history}, {self.cpus} CPUs" if self.cpus else self.history

    def ratio(self, design: str) -> float | None:
        """The design's figure over the reference's; None if either is missing, or they cannot be divided."""
        mine, theirs = self.figures.get(design), self.figures.get(REFERENCE)
        if mine is None or theirs is None or theirs.value == 0:
            return None
        return mine.value / theirs.value


class Table(NamedTuple):
    """A measure with all histories that have it."""

    measure: Measure
    designs: list[str]
    lines: list[Line]

    def winner(self, line: Line) -> str:
        """Who is best in a line; "" where the best two are level."""
        best = sorted(line.figures, key=lambda design: line.figures[design].value, reverse=self.measure.higher)
        if len(best) < 2:
            return ""
        first, second = (line.figures[design].value for design in best[:2])
        return "" if abs(first - second) <= TIE * max(abs(first), abs(second)) else best[0]

    def outcome(self, line: Line, design: str) -> str:
        """ "better", "worse" or "level": a design against the reference; "" where that cannot be said."""
        mine, theirs = line.figures.get(design), line.figures.get(REFERENCE)
        if mine is None or theirs is None:
            return ""
        if abs(mine.value - theirs.value) <= TIE * abs(theirs.value):
            return "level"
        return "better" if (mine.value > theirs.value) == self.measure.higher else "worse"


class Differing(NamedTuple):
    """Something that does not hold, and the point where."""

    point: int
    title: str
    what: str


class Findings(NamedTuple):
    """What a campaign found.

    points: number, title and the columns that tell where a figure came from, by point
    undone: titles of points that are not done
    """

    plan: Plan
    points: list[dict[str, Any]]
    tables: list[Table]
    differences: list[Differing]
    undone: list[str]

    @property
    def holds(self) -> bool:
        wrong = bool(self.differences or self.undone)
        return judge(len(self.points), wrong, "no point of the campaign is done")


def _figure(group: str, name: str) -> Callable[[Figures], float | None]:
    return lambda figures: figures.get((group, name))


def _share(
    part_group: str, part: str, whole_group: str, whole: str, scale: float = 1
) -> Callable[[Figures], float | None]:
    def of(figures: Figures) -> float | None:
        above, below = figures.get((part_group, part)), figures.get((whole_group, whole))
        return None if above is None or not below else scale * above / below

    return of


def _complete(of: Callable[[Figures], float | None]) -> Callable[[Figures], float | None]:
    """A walk that misses a place is not a short walk."""
    return lambda figures: None if figures.get(("walks", "places missed")) else of(figures)


MEASURES: Final = (
    Measure("memory", "KiB", "peak of slab pages of its own objects", False, _figure("memory", "peak")),
    Measure("exclusive locks", "", "taken for the history", False, _figure("work", "exclusive locks")),
    Measure("shared locks", "", "taken for the history", False, _figure("work", "shared locks")),
    Measure("walk", "places", "visited per walk, on average", False,
            _complete(_share("walks", "places", "walks", "walks"))),
    Measure("longest walk", "places", "visited in the longest walk", False,
            _complete(_figure("walks", "places in the longest"))),
    Measure("missed", "places", "mappings that walks missed", False,
            _figure("walks", "places missed")),
    Measure("time", "ms", "of the reverse map's own work for the history, uncontended", False,
            _figure("time", "history")),
    Measure("time of a walk", "ns", "average, uncontended, with its purpose: taking the folio, and the page table of"
            " each place", False,
            _complete(_share("time", "walks and visits", "walks", "walks", 1e6))),
    Measure("to find the places", "ns", "the design's own share of that, on average; mostly by stand-in costs, so the"
            " weakest of these figures", False,
            _complete(_share("time", "walks", "walks", "walks", 1e6))),
    Measure("throughput", "operations/s", "in virtual time", True, _figure("scale", "throughput")),
    Measure("VMAs", "", "peak, by the merge rule of the design", False, _figure("VMAs", "peak")),
)  # fmt: skip


def findings(directory: Path) -> Findings:
    """What the campaign in `directory` found so far.

    :raises SweepError: it holds no campaign, or nothing is done
    """
    campaign = Campaign(directory)
    plan = campaign.plan()
    rows = _rows(campaign, plan)
    differences, undone = [], []
    points = []
    for number, point in enumerate(plan.points):
        outcome = campaign.outcome(point, plan.version)
        if outcome is None:
            undone.append(point.title())
            continue
        differences += [Differing(number, point.title(), what) for what in outcome.differences]
        points.append(told_of(number, point, outcome, plan.version) | {"title": point.title()})
    if not points:
        raise SweepError(f"no point in {directory} is done yet: run `rmaplab sweep`")
    return Findings(plan, points, tables(rows), differences, undone)


def _rows(campaign: Campaign, plan: Plan) -> list[dict[str, Any]]:
    """All rows: of the table if it is complete, else of the points that are done."""
    path = campaign.directory / RESULTS
    if path.is_file():
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    return list(campaign.rows(plan.points, plan.version))


def tables(rows: Iterable[Mapping[str, Any]]) -> list[Table]:
    """The measures that the rows have figures for."""
    figures: dict[tuple[str, int, str, int], dict[tuple[str, str], float]] = {}
    for row in rows:
        if row["design"] and row["command"] in _COMPARED:
            place = (row["history"], row["cpus"], row["design"], row["point"])
            figures.setdefault(place, {})[row["group"], row["figure"]] = row["value"]
    found = []
    for measure in MEASURES:
        values: dict[tuple[str, int], dict[str, list[tuple[float, int]]]] = {}
        for (history, cpus, design, point), of_point in figures.items():
            value = measure.of(of_point)
            if value is not None:
                values.setdefault((history, cpus), {}).setdefault(design, []).append((value, point))
        if not any(value for of_line in values.values() for of_design in of_line.values() for value, _ in of_design):
            continue  # nothing of the kind happened
        lines = [
            Line(history, cpus, {design: _median(of_design) for design, of_design in of_line.items()})
            for (history, cpus), of_line in values.items()
        ]
        designs = list(dict.fromkeys(design for line in lines for design in line.figures))
        found.append(Table(measure, designs, lines))
    return found


def _median(values: list[tuple[float, int]]) -> Figure:
    return Figure(median(value for value, _ in values), tuple(sorted({point for _, point in values})))


class Standing(NamedTuple):
    """How one design does against the reference in one measure: in how many lines it is better, level and worse, and
    its figure over the reference's (ratio and line: lowest and highest; None where they cannot be divided)."""

    measure: str
    design: str
    better: int
    level: int
    worse: int
    median: float | None
    lowest: tuple[float, str] | None
    highest: tuple[float, str] | None

    @property
    def lines(self) -> int:
        return self.better + self.level + self.worse


def standings(found: Findings) -> list[Standing]:
    """Every design but the reference, in every measure that both have."""
    told = []
    for table in found.tables:
        for design in table.designs:
            outcomes = [(outcome, line) for line in table.lines if (outcome := table.outcome(line, design))]
            if design == REFERENCE or not outcomes:
                continue
            better, level, worse = (
                sum(outcome == kind for outcome, _ in outcomes) for kind in ("better", "level", "worse")
            )
            ratios = sorted((ratio, line.label) for _, line in outcomes if (ratio := line.ratio(design)) is not None)
            middle = median(ratio for ratio, _ in ratios) if ratios else None
            ends = (ratios[0], ratios[-1]) if ratios else (None, None)
            told.append(Standing(table.measure.name, design, better, level, worse, middle, *ends))
    return told


def sentences(found: Findings) -> list[str]:
    """The proposal in each measure, in words."""
    return [_sentence(standing) for standing in standings(found) if standing.design == PROPOSAL]


def _sentence(of: Standing) -> str:
    if of.level == of.lines:
        return f"{of.measure}: {of.design} is level with {REFERENCE} on all {of.lines} histories."
    text = (
        f"{of.measure}: {of.design} is better than {REFERENCE} on {of.better} of {of.lines} histories,"
        f" level on {of.level}, worse on {of.worse}"
    )
    if of.lowest is not None and of.highest is not None:
        text += f"; median ratio to {REFERENCE}: {of.median:.2f}"
        if of.lowest != of.highest:
            text += f", from {of.lowest[0]:.2f} ({of.lowest[1]}) to {of.highest[0]:.2f} ({of.highest[1]})"
    return text + "."


def losses(found: Findings) -> list[tuple[Table, Line]]:
    """Where the proposal is worse than the reference, the worst first within each measure."""
    lost = []
    for table in found.tables:
        lines = [line for line in table.lines if table.outcome(line, PROPOSAL) == "worse"]
        lines.sort(key=lambda line: line.ratio(PROPOSAL) or float("inf"), reverse=not table.measure.higher)
        lost += [(table, line) for line in lines]
    return lost
