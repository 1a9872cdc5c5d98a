# SPDX-License-Identifier: GPL-2.0-or-later
"""Progress of long work: what is counted, up to the last of it."""

from __future__ import annotations

import pytest

from rmaplab.check import mutation
from rmaplab.commands import verify
from rmaplab.measure import progress
from rmaplab.measure.progress import Meter


@pytest.fixture(autouse=True)
def every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time has to pass between two lines."""
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)


def test_of_many_events_one_call_in_64_tells(capsys: pytest.CaptureFixture[str]) -> None:
    with Meter() as meter:
        for done in range(1, 130):
            meter("playing", done, 129)
    assert capsys.readouterr().err.splitlines() == [
        f"rmaplab: playing, {done} of 129 events" for done in (64, 128)
    ]


def test_the_search_for_mutants_tells_of_each_of_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = mutation.Verdict(
        mutant="M", bug="", rule="", origin="", by="verify", after=1, unit="steps", seconds=0, what="", shown=[], off=""
    )
    monkeypatch.setattr(mutation, "look_for", lambda number: found)
    assert verify._look_for_mutants(1, None, True)
    told = capsys.readouterr().err.splitlines()
    total = len(mutation.ALL)
    assert told == [f"rmaplab: looking for mutants, {done} of {total} mutants" for done in range(1, total + 1)]
