# SPDX-License-Identifier: GPL-2.0-or-later
"""The answer first: a screen on which no number is cut, in whatever width and encoding."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from rmaplab.measure import sources
from rmaplab.measure.answer import Column, columns_of, print_answer
from rmaplab.measure.comparison import Plan, compare, priced
from rmaplab.measure.cost import load_costs
from rmaplab.measure.report import Inputs, Report, print_report, sameness
from rmaplab.mm.profile import profile_for
from rmaplab.mm.vma import VMA
from rmaplab.rmap import DESIGNS
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.terminal import Grid, bar

RECORDINGS = Path(sources.__file__).parent.parent / "data" / "recordings"
ALL = ("anon_vma", "cow_context", "cow_context_prototype")


def quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def report_of(*names: str, excused: str = "cow_context_prototype") -> Report:
    history, source = sources.from_file(str(RECORDINGS / "pipeline.parquet"))
    profile = profile_for(source.kernel)[0]
    plan = Plan([DESIGNS[name] for name in names], profile, excused=frozenset([excused]))
    found = priced(compare(history, plan, quiet), load_costs(""))
    inputs = Inputs(source, list(names), names[0], profile.name, 0, 1, 0, 500, "default")
    return Report(inputs, found.holds, found.figures, found.differences)


@pytest.fixture(scope="module")
def report() -> Report:
    return report_of(*ALL)


def printed(report: Report, width: int, full: bool = False, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    out = Console(file=io.TextIOWrapper(raw, encoding), width=width, highlight=False, markup=False)
    if full:
        print_report(report, out)
    print_answer(report, "more", out)
    out.file.flush()
    return raw.getvalue().decode(encoding)


def numbers(report: Report) -> set[str]:
    return {column.figure(value) for column in columns_of(report) for value in column.values}


def test_it_is_one_screen(report: Report) -> None:
    lines = printed(report, 80).splitlines()
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("width", [100, 80, 60, 40, 20])
def test_no_number_is_cut(report: Report, width: int) -> None:
    words = set(printed(report, width).split())
    assert numbers(report) <= words


@pytest.mark.parametrize("width", [80, 60])
def test_tables_fold(report: Report, width: int) -> None:
    text = printed(report, width, full=True)
    assert "…" not in text
    tables = [line for line in text.splitlines() if not re.match(r"\s+(after event|0x|\w+ pid=)", line)]
    assert max(map(len, tables)) <= width
    assert f"{report.figures.machine.pages.made:,}" in text.split()


def test_it_says_who_misses_what_and_whether_that_matters(report: Report) -> None:
    text = " ".join(printed(report, 80).split())
    missed = report.figures.designs[2].walks.incomplete
    assert f"misses by cow_context_prototype ({missed:,} mappings, first after event" in text
    assert "affect the exit status only if it is selected with --rmap" in text
    assert "Verdict holds" in text
    assert "cow_context visits exactly the VMAs of anon_vma" in text
    selected = " ".join(printed(report_of("anon_vma", "cow_context_prototype", excused=""), 80).split())
    assert "Verdict does not hold" in selected
    assert f"cow_context_prototype misses {missed:,} mappings" in selected


def test_it_says_what_the_figures_are(report: Report) -> None:
    assert "Figures   ratios to anon_vma; time is derived from counted work, not measured\n" in printed(report, 80)


def test_it_says_how_the_vmas_of_walks_differ(report: Report) -> None:
    design = report.figures.designs[1]
    walks = msgspec.structs.replace(design.walks, additional=1200, additional_mapping=0, missing=3, missing_mapping=2)
    differs = sameness(msgspec.structs.replace(design, walks=walks))
    assert differs == (
        "1,200 VMAs that anon_vma does not (none of them maps the folio),"
        " and not 3 VMAs that anon_vma visits (of which 2 map the folio)"
    )


def test_it_says_what_was_checked_and_what_not(report: Report) -> None:
    text = " ".join(printed(report, 80).split())
    checks = report.figures.checks
    assert f"{checks.folios:,} folios walked at {checks.moments:,} moments" in text
    assert f"{checks.maps:,} address spaces" in text
    rest = report.figures.machine.mms.made - checks.maps
    assert (f"({rest:,} not compared)" in text) == (rest > 0)


def test_an_encoding_without_bars_has_plain_ones(report: Report) -> None:
    text = printed(report, 80, full=True, encoding="ascii")
    assert "####" in text


def test_ratios_are_to_the_first_design() -> None:
    column = Column("x", "", [4.0, 1.0, None])
    assert [column.ratio(value) for value in column.values] == ["1.00", "0.25", ""]
    assert Column("x", "", [0.0, 1.0]).ratio(1.0) == ""
    assert column.share(1.0) == 0.25


def test_a_bar_shows_the_least_bit() -> None:
    assert bar(1, 3) == "███"
    assert bar(0.001, 3) == "▏"
    assert bar(0, 3) == ""
    assert bar(0.5, 4, unicode=False) == "##"


def test_a_grid_repeats_its_first_column() -> None:
    raw = io.StringIO()
    grid = Grid("who", "one", "two")
    grid.add_row("me", "1,000,000", "2,000,000")
    grid.print(Console(file=raw, width=16))
    assert [line.split() for line in raw.getvalue().splitlines() if line and line[0] != "─"] == [
        ["who", "one"], ["me", "1,000,000"], ["who", "two"], ["me", "2,000,000"],
    ]  # fmt: skip


def test_a_grid_with_a_long_first_column_has_its_cells_on_lines_of_their_own() -> None:
    raw = io.StringIO()
    grid = Grid("scenario", "tried", "verdict", left=("verdict",))
    grid.add_row("exit of the parent + munmap in the child", "12", "holds")
    grid.print(Console(file=raw, width=50))
    assert [line.split() for line in raw.getvalue().splitlines()][-1] == ["12", "holds"]
    assert "exit of the parent + munmap in the child" in raw.getvalue().splitlines()


class Counts(AnonVmaRmap):
    """Does work of a kind that no cost profile knows."""

    name = "counts"

    def walk(self, pfn: int) -> Iterator[tuple[VMA, int]]:
        self.ledger.tally("VMAs looked at").count += 1
        yield from super().walk(pfn)


def test_it_says_what_has_no_cost() -> None:
    history, source = sources.from_file(str(RECORDINGS / "pipeline.parquet"))
    plan = Plan([DESIGNS["anon_vma"], Counts], profile_for(source.kernel)[0])
    found = priced(compare(history, plan, quiet), load_costs(""))
    inputs = Inputs(source, ["anon_vma", "counts"], "anon_vma", plan.profile.name, 0, 1, 0, 500, "default")
    text = " ".join(printed(Report(inputs, found.holds, found.figures, found.differences), 80).split())
    assert "time of counts is without what no cost is known for: VMAs looked at" in text
