# SPDX-License-Identifier: GPL-2.0-or-later
"""What bench/ measures of the explorer's page, in Chromium: `python -m bench.explore`.

Prints JSON: bytes of the page of a history of 200 steps in 10 processes, seconds until it can be used, seconds a
step takes to be drawn and laid out (median), seconds until the page of a history of a million events can be used,
and seconds of CPU time to make that page.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter, process_time
from typing import Any

from rmaplab.explore.film import shoot
from rmaplab.explore.html import page
from rmaplab.mm.abi import PROT_READ
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.rmap.cow_context import CowContextRmap
from rmaplab.trace.history import Header, History
from rmaplab.trace.script import PAGE, READ_WRITE, Process, Script
from rmaplab.workloads.prefork import Prefork
from rmaplab.workloads.workload import AREA, AWAY

STEPS = 200
PROCESSES = 10
AREAS = 4
PAGES = 16
EVENTS = 1_000_000
ROUNDS = 3
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

# Goes to each step by the slider and has the browser lay the page out; milliseconds each took.
EACH_STEP = """async () => {
  const slider = document.getElementById('slider');
  const times = [];
  for (let step = 0; step <= Number(slider.max); step++) {
    const before = performance.now();
    slider.value = String(step);
    slider.dispatchEvent(new Event('input'));
    document.body.offsetHeight;
    times.push(performance.now() - before);
    await new Promise((done) => setTimeout(done));
  }
  return times;
}"""


def family() -> History:
    """STEPS events in PROCESSES processes that share, copy, split and move a few mappings."""
    random = Random(1)
    places = [AREA + i * 64 * PAGE for i in range(AREAS)]
    script = Script()
    processes = [script.spawn()]
    for place in places:
        processes[0].mmap(PAGES * PAGE, at=place)
        processes[0].write(place, PAGES * PAGE)
    away: set[tuple[Process, int]] = set()
    while len(script.events) < STEPS:
        process = random.choice(processes)
        place = random.choice(places)
        there = place - AREA + AWAY
        act = random.randrange(4)
        if len(processes) < PROCESSES and len(script.events) % 8 == 0:
            child = process.fork()
            away |= {(child, moved) for parent, moved in away if parent == process}
            processes.append(child)
        elif act == 0:
            source, target = (there, place) if (process, place) in away else (place, there)
            away ^= {(process, place)}
            process.mremap(source, PAGES * PAGE, to=target)
        else:
            at = (there if (process, place) in away else place) + random.randrange(PAGES) * PAGE
            if act == 1 and len(script.events) + 1 < STEPS:
                process.mprotect(at, PAGE, PROT_READ)
                process.mprotect(at, PAGE, READ_WRITE)
            else:
                process.write(at)
    return script.history(Header(recorder="bench", command="ten processes"))


def million() -> History:
    """About EVENTS events of a server with workers."""
    few = 1000
    each = len(Prefork(requests=few).history()) / few
    return Prefork(requests=int(EVENTS / each) + 1).history()


def write_page(history: History, path: Path) -> int:
    film = shoot(history, [AnonVmaRmap, CowContextRmap], PROFILES[REFERENCE])
    path.write_text(page(film), encoding="utf-8")
    return path.stat().st_size


def opened(browser: Any, path: Path) -> tuple[Any, float]:
    """A tab with the page, and seconds until it could be used."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    before = perf_counter()
    tab.goto(path.as_uri())
    tab.wait_for_selector("html[data-ready]", timeout=120_000)
    return tab, perf_counter() - before


def main() -> int:
    chromium = shutil.which("chromium")
    if chromium is None:
        print("the explorer's page is measured in Chromium: apt-get install chromium", file=sys.stderr)
        return 2
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        small, large = Path(directory, "small.html"), Path(directory, "large.html")
        nbytes = write_page(family(), small)
        begun = process_time()
        write_page(million(), large)
        writes = process_time() - begun
        browser = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        ready: list[float] = []
        steps: list[float] = []
        opens: list[float] = []
        for _ in range(ROUNDS):
            tab, seconds = opened(browser, small)
            ready.append(seconds)
            steps += tab.evaluate(EACH_STEP)
            tab.close()
            tab, seconds = opened(browser, large)
            opens.append(seconds)
            tab.close()
        browser.close()
    print(
        json.dumps(
            {
                "nbytes": nbytes,
                "ready": median(ready),
                "step": median(steps) / 1000,
                "opens": median(opens),
                "writes": writes,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
