# SPDX-License-Identifier: GPL-2.0-or-later
"""Over nothing there is no verdict: whoever comes to one says what it rests on, or that there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmaplab.check.verify import Verified
from rmaplab.commands.frame import main
from rmaplab.kernel.ancestry import Ancestry
from rmaplab.kernel.importer import State
from rmaplab.measure.calibration.calibrate import Prediction
from rmaplab.measure.comparison import Plan, compare
from rmaplab.measure.reproduce import Reproduction
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.sweep.findings import Findings
from rmaplab.trace.events import Event
from rmaplab.trace.history import Header, History, write_history
from rmaplab.verdict import NothingLookedAt, judge

STACK = 0x7FFC_0000_0000
BEGINS = Event("exec", 1, STACK, 0x3000, offset=STACK)
NOTHING_MAPPED = [BEGINS, Event("munmap", 1, STACK, 0x3000)]


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as status:
        main(list(arguments))
    said = capsys.readouterr()
    return int(status.value.code or 0), said.out, said.err


@pytest.fixture
def nothing_mapped(tmp_path: Path) -> str:
    path = tmp_path / "nothing.parquet"
    write_history(path, History(Header(recorder="test"), NOTHING_MAPPED))
    return str(path)


def test_over_nothing_there_is_no_verdict() -> None:
    assert judge(1, False, "nothing")
    assert not judge(1, True, "nothing")
    assert not judge(0, True, "nothing")
    with pytest.raises(NothingLookedAt, match="no scenario was tried; a verdict over nothing is none"):
        judge(0, False, "no scenario was tried")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("verify", "--every", "0", "--steps", "50", "--jobs", "1"), "of 50 events that were played, none was checked"),
        (("verify", "--time", "1e-9", "--jobs", "1"), "of 0 events that were played, none was checked"),
        (("verify", "--time", "1e-9", "--jobs", "1", "--json"), "of 0 events that were played, none was checked"),
    ],
)
def test_verify_says_that_it_looked_at_nothing(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    status, out, err = command(capsys, *arguments)
    assert (status, out) == (2, "") and sentence in err and "Traceback" not in err


def test_a_history_in_which_no_folio_could_be_walked_does_not_hold(
    nothing_mapped: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = command(capsys, "compare", nothing_mapped, "--every", "2")
    assert (status, out) == (2, "") and "no anonymous page was mapped at any of 1 moments" in err
    # Not to walk anything is another question, which the results of the system calls answer.
    assert command(capsys, "replay", nothing_mapped)[0] == 0


def test_a_history_without_events_does_not_hold() -> None:
    plan = Plan([AnonVmaRmap], PROFILES[REFERENCE])
    with pytest.raises(NothingLookedAt, match="the history has no events"):
        _ = compare(History(Header(recorder="test"), []), plan, lambda what, done, total: None).holds


def test_scale_runs_no_history_of_which_no_task_can_do_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "empty.parquet"
    write_history(path, History(Header(recorder="test"), []))
    status, out, err = command(capsys, "scale", str(path), "--cpus", "1")
    assert (status, out) == (2, "") and "Traceback" not in err


def test_nothing_that_comes_to_a_verdict_does_so_over_nothing() -> None:
    for nothing in (
        Verified(),
        State("6.12.0", "6.12", [], 0, 0, 0, 0, {}, {}, [], Ancestry(), []),
        Prediction([]),
        Reproduction("name", "source", "said", "how", [], "why"),
        Findings(None, [], [], [], []),  # type: ignore[arg-type]
    ):
        with pytest.raises(NothingLookedAt):
            _ = nothing.holds
