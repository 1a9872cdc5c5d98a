# SPDX-License-Identifier: GPL-2.0-or-later
"""The page in a real browser: it says and lights what Python says, in every step of every tour.

Needs Chromium (Debian's package); where there is none the tests are skipped, unless RMAPLAB_REQUIRE_BROWSER is
set, as it is where changes are accepted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from acts import mmap, start, write
from rmaplab.check.race import read_path
from rmaplab.check.scenarios import scenario
from rmaplab.explore import text
from rmaplab.explore.film import shoot
from rmaplab.explore.html import page
from rmaplab.explore.parts import (
    DOOMED,
    EXCLUSIVE,
    KSM,
    MISSED,
    Area,
    Cell,
    Film,
    Folio,
    Shot,
    Space,
    State,
    states,
)
from rmaplab.explore.race import by, shoot_race, shoot_tour
from rmaplab.explore.tours import RACES, TOURS
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import PTE_ANON, PTE_MIGRATION, PTE_SHIFT
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.printable import plural, printable
from rmaplab.rmap import DESIGNS, load
from rmaplab.sync.interleave import Execution, perform
from rmaplab.trace.events import Event
from rmaplab.trace.history import FileEntry, Header, History, read_history
from rmaplab.trace.play import Player
from rmaplab.workloads import workload
from rmaplab.workloads.workload import AREA

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
pytestmark = pytest.mark.skipif(
    CHROMIUM is None and "RMAPLAB_REQUIRE_BROWSER" not in os.environ,
    reason="NOT TESTED: the page, because there is no Chromium (apt-get install chromium)",
)


def face_in_words(cell: Cell, state: State) -> str:
    """What a cell says to a reader of the screen."""
    which = f"page {cell.page}" if cell.count == 1 else f"pages {cell.page} to {cell.page + cell.count - 1}"
    plain = {"": "not mapped", "more": "folded", "Z": "the zero page", "F": "page cache"}.get(cell.kind)
    if plain:
        return f"{which}: {plain}"
    if cell.kind == "S":
        return f"{which}: in swap slot {cell.pfn}"
    folio = state.get(f"f{cell.head}")
    shared = f", mapped {plural(folio.mapcount, 'time')}" if isinstance(folio, Folio) else ""
    how = ", merged by KSM" if cell.marks & KSM else ", exclusive" if cell.marks & EXCLUSIVE else ""
    migrating = " under migration" if cell.kind == "M" else ""
    missed = ", missed" if cell.marks & MISSED else ", will be missed" if cell.marks & DOOMED else ""
    return f"{which}: folio {cell.pfn}{migrating}{shared}{how}{', writable' if cell.marks & 1 else ''}{missed}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Opened:
    """A page in the browser, and everything that it complained about or asked for."""

    def __init__(self, browser: Any, path: Path, film: Film, **how: Any) -> None:
        path.write_text(page(film), encoding="utf-8")
        context = browser.new_context(**{"reduced_motion": "reduce", **how})
        self.tab = context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []  # that were answered
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.tab.on("requestfinished", lambda request: self.requests.append(request.url))
        self.tab.goto(path.as_uri())
        self.tab.wait_for_selector("html[data-ready]")

    def words(self, selector: str) -> list[str]:
        """What the visible elements say, a text each, spaces made single."""
        found: list[str] = self.tab.eval_on_selector_all(
            selector, "all => all.map(one => one.innerText.replace(/\\s+/g, ' ').trim())"
        )
        return found

    def badges(self, slot: int) -> list[tuple[int, int, bool]]:
        """The places that are lit for a design: (VMA, page, hit), in their order."""
        found = self.tab.eval_on_selector_all(
            f'.badge[data-slot="{slot}"]',
            "all => all.map(({dataset: d}) => [Number(d.order), Number(d.vma), Number(d.page), d.hit === 'true'])",
        )
        return [(vma, number, hit) for _, vma, number, hit in sorted(found)]


def tour_film(name: str) -> Film:
    if name in RACES:
        return shoot_tour(RACES[name], load(RACES[name].design))
    tour = TOURS[name]
    return shoot(tour.history(), [load(name) for name in tour.designs], PROFILES[REFERENCE], tour=tour)


def one(line: str) -> str:
    return " ".join(line.split())


def cells(state: State) -> list[tuple[Cell, Area]]:
    return [(cell, part) for part in state.values() if isinstance(part, Area) for cell in part.cells]


@pytest.mark.parametrize("name", [*TOURS, *RACES])
def test_a_tour_steps_through_and_says_what_the_text_says(browser: Any, tmp_path: Path, name: str) -> None:
    film = tour_film(name)
    opened = Opened(browser, tmp_path / "tour.html", film)
    for number, state in enumerate(states(film)):
        step = film.steps[number]
        seen = opened.tab.evaluate(EVERYTHING, len(film.designs))
        assert seen["words"] == [one(step.words)]
        assert seen["say"] == [one(step.say)]
        assert seen["wrong"] == [text.wrong_line(step.wrong) if step.wrong else ""]
        cpus = [one(line).replace(": ", " ", 1) for line in list(text.cpus(state))[1:]]
        assert seen["lanes"][: len(cpus)] == cpus
        assert seen["did"] == ([one(line) for line in step.did or [step.words]] if film.cpus else [])
        spaces = sorted(
            (part for part in state.values() if isinstance(part, Space)),
            key=lambda space: space.pids or [text.UNOWNED + space.id],
        )
        areas = [area for space in spaces for id in space.areas if isinstance(area := state.get(f"V{id}"), Area)]
        cells = [cell for area in areas for cell in text.all_cells(area)]
        assert seen["spaces"] == [text.space_title(state, space) for space in spaces]
        assert seen["apart"] == [reason for area in areas for reason in area.apart]
        assert seen["areas"] == [text.area_line(area) for area in areas]
        assert seen["faces"] == [text.face(cell, state) for cell in cells]
        assert [label.removesuffix("; ask who maps it") for label in seen["labels"]] == [
            face_in_words(cell, state) for cell in cells
        ]
        for slot, design in enumerate(film.designs):
            told = [line.strip() for line in text.structures(state, slot, design)]
            holding, captions, drawn = seen["designs"][slot]
            assert holding == told[0].removeprefix(f"{design.name} ")
            captions = [line.removesuffix(" ?") for line in captions]
            drawn = [label.partition(" ")[2] for label in drawn]  # without its kind
            told = [line.removeprefix("left ").removeprefix("right ") for line in told[1:]]
            assert sorted(captions + drawn) == sorted(told)
        said = [one(line) for line in text.changes(film, number)]
        assert seen["changes"] == [line[2:] for line in said if line[:2] in ("+ ", "± ", "− ")]
        if number < len(film.steps) - 1:
            opened.tab.keyboard.press("ArrowRight")
    assert opened.words("#where") == [f"step {len(film.steps) - 1} of {len(film.steps) - 1}"]
    assert opened.complaints == []


# What stands on the page: texts as they are seen, spaces made single, and labels.
EVERYTHING = """(designs) => {
  const all = (selector, what) => [...document.querySelectorAll(selector)].map(what);
  const single = (one) => one.textContent.replace(/\\s+/g, ' ').trim(); // also of what is out of sight
  const words = (selector) => all(selector, (one) => one.innerText.replace(/\\s+/g, ' ').trim());
  return {
    words: words('#words'), say: words('#say'), wrong: words('#wrong'), lanes: words('#race .lane'),
    did: words('#race [aria-current] span:not(.number)'), spaces: all('.space h3', single),
    changes: words('#changes li'),
    apart: all('.apart li', (one) => one.textContent), areas: all('.area h4', (one) => one.textContent),
    faces: all('.cell:not(.sample)', (one) => one.firstChild.data),
    labels: all('.cell:not(.sample)', (one) => one.ariaLabel),
    designs: [...Array(designs).keys()].map((slot) => [
      words(`[data-slot="${slot}"] .holding`)[0], words(`[data-slot="${slot}"] figcaption`),
      all(`[data-slot="${slot}"] .part`, (one) => one.ariaLabel)]),
  };
}"""


@pytest.mark.parametrize("name", TOURS)
def test_clicking_a_page_lights_what_the_walk_returns_in_its_order(
    browser: Any, tmp_path: Path, name: str
) -> None:
    """In every design there is, held against walks made afresh, on a machine that no camera ever looked at."""
    history = TOURS[name].history()
    designs = [load(name) for name in DESIGNS]
    film = shoot(history, designs, PROFILES[REFERENCE], tour=TOURS[name])
    opened = Opened(browser, tmp_path / "tour.html", film)
    machine = Machine(PROFILES[REFERENCE], designs)
    player = Player(machine, history.header, batch=False)
    asked = 0
    for number, _ in player.steps(history):
        opened.tab.keyboard.press("ArrowRight")
        state = states(film)[number]
        heads = {cell.head for cell, _ in cells(state) if cell.head}
        found = opened.tab.evaluate(CLICK, sorted(heads))
        for head, (said, lit, told, summaries) in zip(sorted(heads), found, strict=True):
            folio = state[f"f{head}"]
            assert isinstance(folio, Folio)
            assert one(said) == text.folio_line(film, folio)
            for slot, design in enumerate(machine.designs):
                walked = [
                    [vma.id, (addr - vma.start) >> 12, maps(vma.mm.page_table.get(addr), head)]
                    for vma, addr in design.walk(head)
                ]
                assert lit[slot] == walked
                assert told[slot] == list(text.walk_lines(film, state, folio, slot))
                assert summaries[slot] == text.walk_summary(film, folio, slot)
            asked += 1
    assert asked > 5
    assert opened.complaints == []


def test_in_a_race_a_click_lights_what_the_walk_returns_at_that_moment(browser: Any, tmp_path: Path) -> None:
    """Held against walks made in an execution that no camera looks at, between the same steps."""
    name, design = "restore / mremap back", load("cow_context")
    path = shoot_tour(RACES["race-mremap-retry"], design).path
    film = shoot_race(name, design, path)
    found: list[dict[int, list[list[object]]]] = []

    def plan(execution: Execution) -> Iterator[int]:
        machine = execution.subject.machine  # type: ignore[attr-defined]
        for number, choice in enumerate([*read_path(path), -1]):
            heads = {cell.head for cell, _ in cells(states(film)[number]) if cell.head}
            found.append(
                {
                    head: [
                        [vma.id, (addr - vma.start) >> 12, maps(vma.mm.page_table.get(addr), head)]
                        for vma, addr in machine.leader.walk(head)
                    ]
                    for head in heads
                }
            )
            yield choice

    assert perform(scenario(name, design), by(plan)) is None
    opened = Opened(browser, tmp_path / "race.html", film)
    for walks in found:
        heads = sorted(walks)
        for head, (_, lit, _, _) in zip(heads, opened.tab.evaluate(CLICK, heads), strict=True):
            assert lit[0] == walks[head]
        opened.tab.keyboard.press("ArrowRight")
    assert len(found) == len(film.steps)
    assert opened.complaints == []


# Clicks a page of each folio; for each of them: what is said of it, and by design the places that are lit, what is
# said of the places, and what of the walk.
CLICK = """(heads) => heads.map((head) => {
  document.querySelector(`[data-ask="f${head}"]`).click();
  const walks = [...document.querySelectorAll('[data-walk]')];
  const lit = walks.map((_, slot) =>
    [...document.querySelectorAll(`.badge[data-slot="${slot}"]`)]
      .sort((a, b) => a.dataset.order - b.dataset.order)
      .map(({ dataset: d }) => [Number(d.vma), Number(d.page), d.hit === 'true']));
  return [document.querySelector('#asked > p').textContent, lit,
    walks.map((walk) => [...walk.querySelectorAll('li')].map((item) => item.textContent)),
    walks.map((walk) => walk.querySelector('p').textContent)];
})"""


def maps(entry: int, pfn: int) -> bool:
    return bool(entry & (PTE_ANON | PTE_MIGRATION)) and entry >> PTE_SHIFT == pfn


HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!--<script>",
    '"><svg onload=alert(1)>',
    "$film ${style} {{constructor.constructor('alert(1)')()}}",
    "javascript:alert(1)",
    "\u2028\u2029\u202e\0 &lt;b&gt;",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_in_a_recording_stay_text(browser: Any, tmp_path: Path, name: str) -> None:
    header = Header(
        recorder=name, command=name, files=[FileEntry(0, name=name)], names=[name], processes={1: name}
    )
    history = History(
        header,
        [
            start(1),
            mmap(1, AREA, 2),
            write(1, AREA, 2),
            Event("name", 1, addr=AREA, length=8192, file=0),
            mmap(1, AREA + 0x10000, 2, flags=0x100002, file=0),
            write(1, AREA + 0x10000, 1),
        ],
    )
    film = shoot(history, [load("anon_vma")], PROFILES[REFERENCE])
    opened = Opened(browser, tmp_path / "hostile.html", film)
    opened.tab.keyboard.press("End")
    assert opened.tab.text_content("#title") == printable(name)
    assert name in opened.tab.text_content("#spaces")
    assert opened.tab.evaluate("document.querySelectorAll('script').length") == 2
    assert (
        opened.tab.evaluate("document.querySelectorAll('#spaces img, #spaces script, #spaces svg').length")
        == 0
    )
    assert opened.complaints == []
    assert len(opened.requests) == 1


def test_the_page_may_load_nothing(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path / "tour.html", tour_film("page-life"))
    for attempt in (
        "fetch('https://example.org/').catch(() => 'refused')",
        "new Promise(r => { const i = new Image(); i.onerror = () => r('refused'); i.src = 'file:///etc/hostname'; })",
        "(() => { const s = document.createElement('script'); s.textContent = 'window.hit = 1';"
        " document.body.append(s); return window.hit ? 'ran' : 'refused'; })()",
    ):
        assert opened.tab.evaluate(attempt) == "refused"
    assert len(opened.requests) == 1


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["mremap", "race-mremap"])
def test_it_fits_its_width_and_is_accessible(
    browser: Any, tmp_path: Path, width: int, scheme: str, name: str
) -> None:
    """Contrast at every step, also in drawings, which axe-core does not look into; the rest of its rules in the
    middle and at the end."""
    film = tour_film(name)
    opened = Opened(
        browser, tmp_path / "tour.html", film, viewport={"width": width, "height": 800}, color_scheme=scheme
    )
    opened.tab.evaluate("document.getElementById('legend').open = true")
    for number in range(len(film.steps)):
        assert opened.tab.evaluate("document.documentElement.scrollWidth") <= width
        low = opened.tab.evaluate(CONTRAST)
        assert low == []
        if number in (len(film.steps) // 2, len(film.steps) - 1):
            found = Axe().run(opened.tab).response["violations"]
            assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found] == []
        opened.tab.keyboard.press("ArrowRight")


# Texts whose contrast with what is behind them is below 4.5 to 1 (WCAG 2.2, AA), and what it is.
CONTRAST = """() => {
  const channel = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = (element) => {
    for (let at = element; at !== null; at = at.parentElement) {
      const rect = at instanceof SVGElement ? at.querySelector(':scope > rect') : null;
      const colour = parse(rect ? getComputedStyle(rect).fill : getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.matches('script') || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const ink = light(parse(element instanceof SVGElement ? style.fill : style.color));
    const paper = light(behind(element));
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (ratio < 4.5) low.push(`${walker.currentNode.data.trim()}: ${ratio.toFixed(2)}`);
  }
  return low;
}"""


def test_everything_can_be_done_from_the_keyboard(browser: Any, tmp_path: Path) -> None:
    film = tour_film("fork-copy-fork")
    tab = Opened(browser, tmp_path / "tour.html", film).tab
    tab.keyboard.press("End")
    assert tab.inner_text("#where") == f"step {len(film.steps) - 1} of {len(film.steps) - 1}"
    tab.keyboard.press("Escape")
    assert tab.locator(".badge:not(.sample)").count() == 0
    reached: list[str] = []
    for _ in range(60):
        tab.keyboard.press("Tab")
        reached.append(
            tab.evaluate("document.activeElement.className.baseVal ?? document.activeElement.className")
        )
        if reached[-1].startswith("cell"):
            break
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowDown")
    asked = tab.evaluate("document.activeElement.dataset.ask")
    tab.keyboard.press("Enter")
    assert tab.locator(".badge:not(.sample)").count() > 0
    assert tab.locator(f'.subject[data-ask="{asked}"]').count() > 0
    assert tab.evaluate("document.activeElement.dataset.ask") == asked
    assert "Made in step" in tab.inner_text("#hint")
    for _ in range(60):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.matches('g.part')"):
            break
    assert "anon_vma" in tab.inner_text("#hint")
    tab.keyboard.press("/")
    tab.keyboard.type("process 2")
    tab.keyboard.press("Enter")
    assert "process 2" in tab.inner_text("#words").lower()


def test_reduced_motion_is_respected_and_otherwise_a_walk_takes_its_time(
    browser: Any, tmp_path: Path
) -> None:
    film = tour_film("fork-copy-fork")
    number = next(i for i, step in enumerate(film.steps) if step.op == "fork")
    still = Opened(browser, tmp_path / "still.html", film)
    moving = Opened(browser, tmp_path / "moving.html", film, reduced_motion="no-preference")
    lit_at_once = """() => {
      document.querySelector('.subject').click();
      return document.querySelectorAll('.badge[data-slot="0"]').length;
    }"""
    for opened in (still, moving):
        for _ in range(number):
            opened.tab.keyboard.press("ArrowRight")
    everything = len(still.badges(0))
    assert everything > 1
    assert still.tab.evaluate(lit_at_once) == everything
    assert still.tab.evaluate("document.getAnimations().length") == 0
    assert moving.tab.evaluate(lit_at_once) == 0
    moving.tab.locator('.badge[data-slot="0"]').nth(everything - 1).wait_for()


def test_a_large_history_is_folded_and_opens(browser: Any, tmp_path: Path) -> None:
    history = workload("aim7", {"children": "200", "pages": "600"}).history()
    film = shoot(history, [load("anon_vma"), load("cow_context")], PROFILES[REFERENCE])
    assert len(film.steps) <= 201
    opened = Opened(browser, tmp_path / "large.html", film)
    opened.tab.keyboard.press("End")
    opened.tab.keyboard.press("ArrowLeft")
    opened.tab.click('[data-ask^="f"] >> nth=0')
    assert len(opened.badges(0)) > 0
    assert opened.complaints == []
    assert (tmp_path / "large.html").stat().st_size < 3_000_000


RECORDING = Path(str(files("rmaplab"))) / "data" / "recordings" / "pipeline.parquet"


@pytest.fixture(scope="module")
def recorded() -> Film:
    history = read_history(RECORDING)
    return shoot(history, [load("anon_vma"), load("cow_context_prototype")], PROFILES[REFERENCE], shot=Shot(steps=80))


def test_the_whole_history_leads_to_a_moment_and_to_a_process(browser: Any, tmp_path: Path, recorded: Film) -> None:
    opened = Opened(browser, tmp_path / "whole.html", recorded, viewport={"width": 1280, "height": 900})
    tab = opened.tab
    assert tab.is_visible("#overview")
    assert opened.words("#whole .who") == [str(life.pid) for life in recorded.lives]
    track = tab.locator("#whole .track").first.bounding_box()
    y = track["y"] + track["height"] / 2

    def step() -> int:
        return int(tab.inner_text("#where").split()[1])

    def at(part: float) -> int:
        """The step that has the event there."""
        event = recorded.first - 1 + part * (recorded.last - recorded.first + 1)
        return next(number for number, one in enumerate(recorded.steps) if one.events >= event)

    tab.mouse.move(track["x"] + track["width"] * 0.25, y)
    tab.mouse.down()
    assert abs(step() - at(0.25)) <= 1
    tab.mouse.move(track["x"] + track["width"] * 0.75, y)
    tab.mouse.up()
    assert abs(step() - at(0.75)) <= 1
    tab.mouse.move(track["x"] + track["width"] * 0.5, y)  # the button is up
    assert abs(step() - at(0.75)) <= 1
    child = next(life for life in recorded.lives if life.depth == 1)
    tab.click(f"#whole .who >> text='{child.pid}'")
    assert recorded.steps[step()].events >= child.born > recorded.steps[step() - 1].events
    assert tab.input_value("#find") == f"process {child.pid}"
    assert opened.complaints == []


def test_the_whole_history_marks_where_a_design_misses_mappings(browser: Any, tmp_path: Path, recorded: Film) -> None:
    opened = Opened(browser, tmp_path / "whole.html", recorded)
    steps = [number for number, step in enumerate(recorded.steps) if any(one[1] for one in step.apart)]
    titles = opened.tab.eval_on_selector_all("#whole .misses", "all => all.map(one => one.title)")
    assert [int(title.split()[1].rstrip(":")) for title in titles] == steps
    assert steps
    assert opened.words("#whole .held p")[1].startswith("b cow_context_prototype at most ")


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_whole_history_fits_its_width_and_is_accessible(
    browser: Any, tmp_path: Path, recorded: Film, width: int, scheme: str
) -> None:
    opened = Opened(
        browser, tmp_path / "w.html", recorded, viewport={"width": width, "height": 800}, color_scheme=scheme
    )
    for _ in range(6):
        opened.tab.keyboard.press("ArrowRight")
    assert opened.tab.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.tab.evaluate(CONTRAST) == []
    found = Axe().run(opened.tab).response["violations"]
    assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found] == []


def test_a_tour_has_no_overview(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, tmp_path / "tour.html", tour_film("page-life"))
    assert not opened.tab.is_visible("#overview")
