# SPDX-License-Identifier: GPL-2.0-or-later
"""What designs break, as `rmaplab race --report` writes it, and the page that it wrote about the prototype."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rmaplab.check.race import run_path
from rmaplab.check.race_findings import look, markdown, stages
from rmaplab.rmap import load

PROTOTYPE = "cow_context_prototype"
PAGE = Path(__file__).parents[2] / "docs" / "designs" / "cow_context_prototype-races.md"
TIMELINE = re.compile(r"^### (\w+): ([^\n]+)\n\n```\n(.*?)\n\npath: ([0-9x ]+)\n```", re.M | re.S)


def sections() -> list[str]:
    return re.split(r"^## \d+\. .*\n", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]


def test_every_timeline_of_the_page_replays() -> None:
    shown = 0
    for stage, section in zip(stages(load(PROTOTYPE)), sections(), strict=True):
        for kind, scenario, lines, path in TIMELINE.findall(section):
            broken = run_path(scenario, stage.design, path)
            assert broken is not None, (stage.design.name, scenario)
            assert kind == "safe" or broken.error.startswith(f"{kind}: ")
            assert lines.splitlines()[-1].strip() == broken.error
            shown += 1
    assert shown >= 3


@pytest.mark.parametrize(
    ("scenario", "kind", "preemptions"),
    [("restore / fork", "restored", 0), ("unmap / fork of the child", "found", 1)],
)
def test_the_fewest_preemptions_are_found(scenario: str, kind: str, preemptions: int) -> None:
    finding = look(scenario, load(PROTOTYPE))
    assert finding is not None
    assert (finding.obligation, finding.preemptions) == (kind, preemptions)
    assert f"| {scenario} | {kind}" in sections()[0]


def test_a_design_that_breaks_nothing_has_an_empty_page() -> None:
    assert look("restore / munmap", load("anon_vma")) is None
    assert "Breaks nothing." in markdown("anon_vma", [[]], "rmaplab race --rmap anon_vma --report FILE")
