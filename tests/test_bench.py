# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line of `python -m bench`: it says what it would measure, and measures nothing that was not asked for."""

from __future__ import annotations

import pytest
from bench.__main__ import PARTS, arguments


def test_help_names_every_part_and_measures_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        arguments(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) <= 30
    assert all(f"  {part} " in said for part in PARTS)


def test_all_parts_are_measured_unless_some_are_named() -> None:
    assert arguments([]).only is None
    assert arguments(["--only", "race", "--only", "scale"]).only == ["race", "scale"]


def test_a_part_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        arguments(["--only", "rase"])
    assert ended.value.code == 2
    assert "invalid choice: 'rase'" in capsys.readouterr().err
