# SPDX-License-Identifier: GPL-2.0-or-later
"""Published figures, done again: what is counted is asserted exactly."""

from __future__ import annotations

import json
import random

import pytest

from histories import lockstep, random_history
from rmaplab.check.histories import header
from rmaplab.commands.frame import run as _main
from rmaplab.measure.cost import load_costs
from rmaplab.measure.reproduce import (
    REPRODUCTIONS,
    Figure,
    ForksUnlocked,
    count_chains,
    fork_times,
    most_held,
    recordings,
    widest_family,
    zygote_history,
)
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.rmap.anon_vma_2004 import AnonVma2004Rmap
from rmaplab.trace.events import Event
from rmaplab.trace.play import Player


def quiet(what: str, done: int, total: int) -> None:
    pass


@pytest.mark.parametrize(("children", "pages"), [(1, 1), (30, 20), (100, 50)])
def test_before_2010_a_walk_looks_into_every_child(children: int, pages: int) -> None:
    found = count_chains(AnonVma2004Rmap, children, pages, quiet)
    assert (found.childs, found.parents) == ({children}, {children})


@pytest.mark.parametrize(("children", "pages"), [(1, 1), (30, 20), (100, 50)])
def test_since_2010_a_walk_for_a_childs_page_looks_into_that_child(children: int, pages: int) -> None:
    found = count_chains(AnonVmaRmap, children, pages, quiet)
    assert found.childs == {1}
    assert found.parents == {children}
    assert found.of_parent * (children + 1) == found.pages  # N for 1 of N pages


@pytest.mark.parametrize("seed", range(3))
def test_one_anon_vma_a_family_was_complete_too(seed: int) -> None:
    history = random_history(random.Random(seed), 120, [AnonVma2004Rmap])
    machine = Machine(PROFILES[REFERENCE], [AnonVma2004Rmap])
    player = Player(machine, header(), batch=False)

    def play(_: Machine, event: Event) -> None:
        player.do(event)

    differences, _ = lockstep(machine, history, play, every=5)
    assert [d.what for d in differences if d.is_error] == []


def test_locking_in_fork_takes_one_lock_a_vma() -> None:
    costs = load_costs()
    each = costs.cost_of("lock vma_lock")
    assert each is not None
    locked, _ = fork_times(costs, Machine, PROFILES["6.18"], 50, 0)
    unlocked, _ = fork_times(costs, ForksUnlocked, PROFILES["6.18"], 50, 0)
    assert locked - unlocked == pytest.approx(51 * each)  # with the stack


def test_the_zygote_does_what_was_recorded_and_so_does_each_app() -> None:
    histories = recordings()
    assert "example" not in histories
    family = widest_family(histories)
    events = zygote_history(histories[family.recording], family, 24)
    apps = {event.pid2 for event in events if event.op == "fork"}
    assert len(apps) == 24
    assert {event.pid for event in events} == apps | {family.parent}
    child = family.children[0]
    recorded = [event for event in histories[family.recording] if event.pid == child and event.op != "fork"]
    first = [event for event in events if event.pid == 1_000_000]
    assert [(e.op, e.addr, e.length) for e in first] == [(e.op, e.addr, e.length) for e in recorded]


def test_lazy_saves_one_link_with_each_anon_vma() -> None:
    histories = recordings()
    family = widest_family(histories)
    history = histories[family.recording]
    held = most_held(history.header, zygote_history(history, family, 9), quiet)
    assert held.results == 0  # every system call returns what it returned when it was recorded
    assert held.anon_vmas[0] - held.anon_vmas[1] == held.chains[0] - held.chains[1] > 0


def test_a_figure_holds_within_its_bound() -> None:
    assert Figure("", 5, 5, 5, "", "exact").holds and not Figure("", 5, 5, 5.1, "", "exact").holds
    assert Figure("", 1, 2, 1.5, "", "exact").holds
    assert Figure("", 0.1, 0.1, 0.1, "%", "at most").holds and not Figure("", 0.1, 0.1, 0.11, "%", "at most").holds
    assert Figure("", -57, -57, -52, "%", "points 5").holds and not Figure("", -57, -57, -51, "%", "points 5").holds
    assert Figure("", 2, 4, 1.5, "ms", "times 0.5 2").holds and not Figure("", 2, 4, 1.4, "ms", "times 0.5 2").holds
    assert Figure("", 2, 4, 100, "ms").holds


def test_the_names_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(["reproduce", "--list"]) == 0
    assert capsys.readouterr().out.split() == list(REPRODUCTIONS)


@pytest.mark.parametrize("words", [["2010"], [], ["--all", "fork-exit"]])
def test_what_is_no_reproduction_is_refused_in_a_sentence(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(["reproduce", *words]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("rmaplab: ") and "Traceback" not in told.err


def test_json_has_published_and_ours(capsys: pytest.CaptureFixture[str]) -> None:
    """The one figure that is not within its bound is named, and makes the exit status 1."""
    assert _main(["reproduce", "anon-vma-lazy", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["command"] == "reproduce" and told["holds"] is False
    assert [difference["what"] for difference in told["differences"]] == ["boot: anon_vma_chain"]
    first = told["figures"][0]["figures"][0]
    assert first["published"] == [-92.0] and first["holds"] and -97 <= first["ours"] <= -87
