# SPDX-License-Identifier: GPL-2.0-or-later
"""The model gives the answers that real kernels gave (fixtures/); a broken model does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmaplab.check import mutants
from rmaplab.kernel.answers import event_line, parse_event
from rmaplab.kernel.fixtures import model_differs, possible_names, read, without_chance
from rmaplab.kernel.versions import VERSIONS
from rmaplab.mm.reverse_map import ReverseMap

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("*/*.txt"))


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_model_says_what_the_kernel_said(path: Path) -> None:
    assert model_differs(path) == []


# Of 7.3 and 7.2: lazyfree in batches.
LACKING = {"large_folio_freed"}


@pytest.mark.parametrize("version", VERSIONS)
def test_each_aimed_history_has_answers_of_each_kernel_but_where_a_rule_is_lacking(version: str) -> None:
    answered = {path.stem for path in FIXTURES if path.parent.name == version}
    assert answered | (LACKING if version.startswith("7.") else set()) == set(possible_names(version != "6.1"))


@pytest.mark.parametrize(
    "design",
    [
        mutants.SplitWithoutClone, mutants.JoinWithoutClone, mutants.CopyWithoutClone, mutants.ChildNotLinked,
        mutants.InheritedPointerKept, mutants.NeighbourNotSingular, mutants.KeysLeftBehind,
        mutants.NotUnlinked, mutants.NotTakenOver,
    ],
)  # fmt: skip
def test_a_bug_that_is_put_back_contradicts_the_kernel(design: type[ReverseMap]) -> None:
    assert any(_differs(path, design) for path in FIXTURES)


def _differs(path: Path, design: type[ReverseMap]) -> bool:
    try:
        return model_differs(path, design) != []
    except Exception:  # a broken design may not even get to the end
        return True


def test_an_event_is_what_its_line_says() -> None:
    for path in FIXTURES[:5]:
        _, _, events, _ = read(path)
        assert [parse_event(event_line(event)) for event in events] == events


def test_only_what_chance_decides_is_left_out() -> None:
    text = "# comment\nmmap pid=1 addr=0x1000000000 result=0x7fb12345f000\n| pgoff 0x7ffffffdf\n"
    assert without_chance(text) == "mmap pid=1 addr=0x1000000000 result=0x7…\n| pgoff 0x7…\n"
