# SPDX-License-Identifier: GPL-2.0-or-later
"""The page of a comparison: complete in itself, the same each time, and readable on a telephone."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from rmaplab.commands.frame import run
from rmaplab.trace.history import read_history

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    assert run(["compare", "forkchain", "generations=5", "vmas=3", "-o", str(path)]) == 0
    return path


def test_it_says_what_was_found_and_how_to_repeat_it(page: Path, tmp_path: Path) -> None:
    text = page.read_text()
    for words in ("Holds", "Compared with anon_vma, cow_context has 0.", "Memory over events",
                  "Exclusive locks by class and operation",
                  "Lengths of walks", "VMAs by process", "How to repeat it", "cow_context visits exactly"):  # fmt: skip
        assert words in text
    (again,) = re.findall(r"rmaplab (compare [^<]*) -o page.html", text)
    assert run([*again.split(), "-o", str(tmp_path / "again.html")]) == 0
    figures = [re.findall(r'class="number">([^<]+)', of.read_text()) for of in (page, tmp_path / "again.html")]
    assert figures[0] == figures[1] != []


def test_it_is_the_same_each_time_and_loads_nothing(page: Path, tmp_path: Path) -> None:
    assert run(["report", "forkchain", "generations=5", "vmas=3", "-o", str(tmp_path / "b.html")]) == 0
    assert page.read_bytes() == (tmp_path / "b.html").read_bytes()
    text = page.read_text()
    assert "default-src 'none'" in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert text.count("data:image/svg+xml;base64,") == 4


def test_an_output_is_a_page_or_a_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = ["-o", str(tmp_path / "a.html"), "-o", str(tmp_path / "a.parquet")]
    assert run(["run", "forkchain", "generations=3", *both]) == 0
    assert "<!doctype html>" in (tmp_path / "a.html").read_text()
    assert len(read_history(tmp_path / "a.parquet")) > 0
    capsys.readouterr()
    assert run(["compare", "forkchain", "-o", str(tmp_path / "a.txt")]) == 2
    assert "end it in .html for a page, or in .parquet for the history" in capsys.readouterr().err


def test_what_a_name_holds_stays_text(tmp_path: Path) -> None:
    odd = tmp_path / "<b>odd.parquet"
    assert run(["run", "forkchain", "generations=3", "-o", str(odd)]) == 0
    assert run(["report", str(odd), "-o", str(tmp_path / "p.html")]) == 0
    assert "<b>odd" not in (tmp_path / "p.html").read_text()


@pytest.mark.skipif(
    CHROMIUM is None and "RMAPLAB_REQUIRE_BROWSER" not in os.environ,
    reason="NOT TESTED: the page, because there is no Chromium (apt-get install chromium)",
)
@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_the_window_and_is_accessible(page: Path, width: int) -> None:
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": width, "height": 900})
        complaints: list[str] = []
        tab.on("console", lambda message: complaints.append(message.text))
        tab.goto(page.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        assert complaints == []
        found = Axe().run(tab, options={"runOnly": ["wcag2a", "wcag2aa"]})
        assert found.violations_count == 0, found.generate_report()
        browser.close()
