# SPDX-License-Identifier: GPL-2.0-or-later
"""The work of a comparison becomes time, and the report says by which costs."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest

from rmaplab.commands.frame import run as _main
from rmaplab.measure.comparison import Plan, compare, priced
from rmaplab.measure.cost import CostProfile, counts_of, load_costs, price, write_costs
from rmaplab.measure.result import Comparison
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.rmap import DESIGNS
from rmaplab.trace.play import Player
from rmaplab.workloads import workload

PLAN = Plan([DESIGNS["anon_vma"], DESIGNS["cow_context"]], PROFILES[REFERENCE], alone=False)
HISTORY = workload("forkchain", {"generations": "5"}).history()


def quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def comparison(costs: CostProfile) -> Comparison:
    return priced(compare(HISTORY, PLAN, quiet), costs)


def test_the_time_of_a_history_is_that_of_its_ledgers() -> None:
    costs = load_costs()
    times = comparison(costs).figures.times
    assert times is not None
    machine = Machine(PLAN.profile, PLAN.designs)
    Player(machine, HISTORY.header).play(HISTORY)
    assert times.machine.ns == pytest.approx(price(costs, counts_of(machine.ledger)).ns)
    for design, its in zip(machine.designs, times.designs, strict=True):
        assert its.design == design.name
        assert its.history.ns == pytest.approx(price(costs, counts_of(design.ledger)).ns)
        assert its.walks.ns > 0
        assert its.whole_walks > its.walks.ns
        assert math.fsum(its.history.parts.values()) == pytest.approx(its.history.ns)


def test_nothing_that_a_design_counts_is_without_a_cost() -> None:
    plan = PLAN._replace(designs=list(DESIGNS.values()), excused=frozenset(["cow_context_prototype"]))
    times = priced(compare(HISTORY, plan, quiet), load_costs()).figures.times
    assert times is not None
    gaps = {design.design: design.history.gaps | design.walks.gaps for design in times.designs}
    assert all(not its for its in gaps.values()), gaps
    assert times.machine.gaps == {}


def test_what_has_no_cost_is_listed_in_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    costs = load_costs()
    poor = {key: cost for key, cost in costs.costs.items() if key != "faults"}
    origins = {key: origin for key, origin in costs.origins.items() if key != "faults"}
    write_costs(tmp_path / "poor.json", msgspec.structs.replace(costs, name="poor", costs=poor, origins=origins))
    assert _main(["run", "forkchain", "generations=3", "--costs", str(tmp_path / "poor.json"), "--full"]) == 0
    printed = capsys.readouterr().out
    assert "uncontended, by the costs poor" in printed
    assert "Not timed machine: faults (" in printed


def test_json_carries_the_times_and_the_name_of_the_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(["compare", "forkchain", "generations=3", "--costs", "default", "--json"]) == 0
    told = msgspec.json.decode(capsys.readouterr().out)
    assert told["inputs"]["costs"] == load_costs().name == told["figures"]["times"]["costs"]
    assert [d["design"] for d in told["figures"]["times"]["designs"]] == told["inputs"]["designs"]
    assert _main(["compare", "forkchain", "generations=3", "--json"]) == 0
    told = msgspec.json.decode(capsys.readouterr().out)
    assert told["figures"]["times"]["costs"] == load_costs().name, "time is always there"
    assert told["inputs"]["costs"] == load_costs().name


def test_a_profile_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(["run", "forkchain", "--costs", "pdp-11"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "there is no cost profile 'pdp-11'" in printed.err
