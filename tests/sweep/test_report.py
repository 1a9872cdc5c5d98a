# SPDX-License-Identifier: GPL-2.0-or-later
"""The report says who wins and who loses, where each figure comes from, and lets nothing in that would do harm."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from html import unescape
from pathlib import Path

import pytest

from rmaplab import pages
from rmaplab.sweep import points
from rmaplab.sweep.campaign import Plan
from rmaplab.sweep.findings import Findings, findings, losses, sentences, tables


def row(history: str, design: str, group: str, figure: str, value: float, point: int = 0) -> dict[str, object]:
    return {
        "command": "compare", "history": history, "cpus": 0, "design": design, "point": point,
        "group": group, "figure": figure, "value": value,
    }  # fmt: skip


def memory(history: str, values: dict[str, float], point: int = 0) -> list[dict[str, object]]:
    return [row(history, design, "memory", "peak", value, point) for design, value in values.items()]


def found(rows: Sequence[dict[str, object]]) -> Findings:
    return Findings(Plan("a campaign", "0", []), [], tables(rows), [], [])


def test_a_design_wins_where_it_is_smaller_and_loses_where_it_is_larger() -> None:
    what = found(
        [
            *memory("a", {"anon_vma": 100, "cow_context": 25}),
            *memory("b", {"anon_vma": 100, "cow_context": 300}, 1),
            *memory("c", {"anon_vma": 100, "cow_context": 101}, 2),
        ]
    )
    (table,) = what.tables
    assert [table.winner(line) for line in table.lines] == ["cow_context", "anon_vma", ""]
    (sentence,) = sentences(what)
    assert "better than anon_vma on 1 of 3 histories, level on 1, worse on 1" in sentence
    assert "from 0.25 (a) to 3.00 (b)" in sentence
    assert [line.history for _, line in losses(what)] == ["b"]


def test_several_seeds_become_their_median_and_every_point_is_named() -> None:
    rows = [
        row
        for point, value in enumerate((10, 30, 1000))
        for row in memory("a", {"anon_vma": 100, "cow_context": value}, point)
    ]
    (table,) = tables(rows)
    assert table.lines[0].figures["cow_context"] == (30, (0, 1, 2))


def test_a_walk_that_misses_places_is_no_short_walk() -> None:
    rows = [
        row("a", design, "walks", figure, value)
        for design, of_design in {
            "anon_vma": {"walks": 10, "places": 40, "places missed": 0},
            "cow_context_prototype": {"walks": 10, "places": 10, "places missed": 3},
        }.items()
        for figure, value in of_design.items()
    ]
    by_name = {table.measure.name: table for table in tables(rows)}
    assert set(by_name["walk"].lines[0].figures) == {"anon_vma"}
    assert by_name["missed"].winner(by_name["missed"].lines[0]) == "anon_vma"


def test_what_never_happened_is_no_measure() -> None:
    assert tables(memory("a", {"anon_vma": 0, "cow_context": 0})) == []


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("campaign")
    (directory / "c.toml").write_text(
        'name = "<script>alert(1)</script> & co"\n'
        '[[compare]]\nhistory = "forkchain generations=4"\ndesigns = ["anon_vma", "cow_context"]\nfolios = 20\n'
    )
    subprocess.run([sys.executable, "-m", "rmaplab", "sweep", "c.toml", "-o", "out"], cwd=directory, check=True)
    return directory


def report(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rmaplab", "report", *words], cwd=directory, capture_output=True, text=True, check=False
    )


def test_the_page_is_whole_and_loads_nothing(campaign: Path) -> None:
    done = report(campaign, "out", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    text = (campaign / told["figures"]["page"]).read_text()
    assert "<script" not in text and "&lt;script&gt;" in text
    assert not re.search(r'(src|href)="(?!data:image/svg\+xml;base64,|#point-\d+")', text)
    assert all(sentence in unescape(text) for sentence in told["figures"]["findings"])
    assert set(re.findall(r'href="#(point-\d+)"', text)) <= set(re.findall(r'id="(point-\d+)"', text))


def test_the_same_campaign_gives_the_same_page(campaign: Path) -> None:
    pages = []
    for name in ("one.html", "two.html"):
        assert report(campaign, "out", "-o", name).returncode == 0
        pages.append((campaign / name).read_bytes())
    assert pages[0] == pages[1]


def test_markdown_has_the_same_figures(campaign: Path) -> None:
    assert report(campaign, "out", "--markdown", "results.md").returncode == 0
    text = (campaign / "results.md").read_text()
    assert text.startswith("# ") and "## Memory" in text
    assert re.search(r"^\| forkchain generations=4 \| \*{0,2}\d+\*{0,2} \| \*{0,2}\d+\*{0,2} \|$", text, re.MULTILINE)


def test_what_older_code_worked_out_is_still_reported(campaign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = findings(campaign / "out")
    monkeypatch.setattr(points, "version", lambda: "0.2.0+00000000")
    after = findings(campaign / "out")
    assert after == before and after.points and not after.undone


def test_what_is_not_done_is_said(campaign: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[[race]]\nscenario = "unmap / munmap in"\ndesign = "anon_vma"\n')
    assert report(tmp_path, "nowhere").returncode == 2
    subprocess.run([sys.executable, "-m", "rmaplab", "sweep", "c.toml", "-o", "out"], cwd=tmp_path, check=True)
    for kept in (tmp_path / "out" / "points").iterdir():
        kept.unlink()
    (tmp_path / "out" / "results.parquet").unlink()
    done = report(tmp_path, "out")
    assert done.returncode == 2 and "no point in out is done yet" in done.stderr


@pytest.mark.parametrize(("value", "text"), [(0.25, "0.25"), (12.0, "12"), (1234.5, "1,234"), (0.123456, "0.123")])
def test_numbers_read_well(value: float, text: str) -> None:
    assert pages.number(value) == text
