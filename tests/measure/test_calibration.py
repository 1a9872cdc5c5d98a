# SPDX-License-Identifier: GPL-2.0-or-later
"""Costs are found in programs, programs are the same to both players, and wrong costs are found out.

What a kernel takes is not asserted here: `rmaplab calibrate --check` does that, on a machine that is quiet.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmaplab.commands.frame import run as _main
from rmaplab.measure.calibration import races
from rmaplab.measure.calibration.calibrate import COVERED, STAND_INS, START, choose, predict, rows_of, rules
from rmaplab.measure.calibration.cgroup import Group
from rmaplab.measure.calibration.errors import CalibrationError
from rmaplab.measure.calibration.fit import Row, fit
from rmaplab.measure.calibration.host import PRIMITIVES, Host
from rmaplab.measure.calibration.program import ARENA, Program
from rmaplab.measure.calibration.programs import FITTED, HELD_OUT, reclaims_shared
from rmaplab.measure.cost import load_costs, write_costs
from rmaplab.mm.profile import PROFILES
from rmaplab.trace.script import PAGE, Process

needs_kernel = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler"
)
KINDS = ["faults", "nodes", "locks", "pages", "objects"]


def programs(seed: int, costs: dict[str, float], noise: float = 0.0, number: int = 25) -> list[Row]:
    """Programs that do all kinds of work, and take what that costs."""
    random = np.random.default_rng(seed)
    rows = []
    for i in range(number):
        counts = {kind: int(random.integers(0, 1000)) for kind in costs}
        counts["faults"] += 1
        ns = sum(count * costs[kind] for kind, count in counts.items())
        rows.append(Row(str(i), counts, max(ns, 1.0) * float(random.normal(1, noise))))
    return rows


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.floats(1, 10_000), min_size=len(KINDS), max_size=len(KINDS)))
def test_the_fit_finds_the_costs_that_made_the_times(seed: int, ns: list[float]) -> None:
    costs = dict(zip(KINDS, ns, strict=True))
    found = fit(programs(seed, costs), {})
    assert found.costs == pytest.approx(costs, rel=1e-6)
    assert (found.groups, found.weak) == ([], [])
    assert [r.ratio for r in found.residuals] == pytest.approx([1.0] * 25)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.floats(20, 500), min_size=len(KINDS), max_size=len(KINDS)))
def test_noise_and_a_wrong_start_move_the_costs_little(seed: int, ns: list[float]) -> None:
    costs = dict(zip(KINDS, ns, strict=True))
    rows = programs(seed, costs, noise=0.02, number=100)
    found = fit(rows, {}, {kind: 2 * cost for kind, cost in costs.items()})
    total = sum(costs.values())
    assert all(abs(found.costs[kind] - cost) < 0.1 * total for kind, cost in costs.items())
    assert all(0.85 < r.ratio < 1.15 for r in found.residuals)


def test_what_is_known_is_not_fitted() -> None:
    costs = {"faults": 500.0, "nodes": 10.0, "locks": 7.0}
    found = fit(programs(1, costs), {"locks": 7.0})
    assert found.costs == pytest.approx({"faults": 500.0, "nodes": 10.0})


def test_kinds_that_no_program_tells_apart_are_one() -> None:
    rows = [
        Row(row.program, {**row.counts, "twins": 3 * row.counts["nodes"]}, row.ns)
        for row in programs(1, {"faults": 30.0, "nodes": 40.0})
    ]
    found = fit(rows, {})
    assert found.groups == [["nodes", "twins"]]
    assert found.costs == pytest.approx({"faults": 30.0, "nodes": 10.0, "twins": 10.0})
    found = fit(rows, {}, {"nodes": 7.0, "twins": 1.0})  # what they begin with says in which proportion
    assert found.costs == pytest.approx({"faults": 30.0, "nodes": 28.0, "twins": 4.0}, rel=0.05)


def test_a_kind_that_the_programs_hardly_show_stays_where_it_began_and_is_called_weak() -> None:
    rows = [Row(r.program, {**r.counts, "whispers": i % 2}, r.ns) for i, r in enumerate(programs(1, {"faults": 500.0}))]
    found = fit(rows, {}, {"whispers": 30.0})
    assert found.weak == ["whispers"]
    assert found.costs["whispers"] == pytest.approx(30.0, rel=0.2)
    assert found.costs["faults"] == pytest.approx(500.0, rel=0.01)


def test_a_cost_is_never_negative() -> None:
    rows = [Row("a", {"x": 10, "y": 1}, 100.0), Row("b", {"x": 10, "y": 9}, 60.0), Row("c", {"x": 10}, 90.0)]
    assert min(fit(rows, {}).costs.values()) == 0.0


# Programs


def test_a_script_counts_only_what_is_timed() -> None:
    s = Program("some")
    s.mmap(8, at=0)
    s.write(0, 2)
    with s.timed():
        s.write(0, 8)  # two of them are there
    s.write(0, 8)
    assert s.counts(rules())["pages zeroed"] == 6
    assert s.counts(rules())["faults"] == 6


def test_a_child_does_its_work_when_it_is_waited_for() -> None:
    s = Program("family")
    s.warm(0, 4)
    with s.child():
        s.write(0)
        s.munmap(1, 1)
    s.write(1)
    s.wait()
    ops = [(event.op, event.pid) for event in s.history()][-5:]
    assert ops == [("fork", 1), ("fault", 1), ("fault", 2), ("munmap", 2), ("exit", 2)]


@pytest.mark.parametrize("kernel", PROFILES)
def test_every_program_can_be_played_by_the_rules_of_every_kernel(kernel: str) -> None:
    small = [s for s in choose(FITTED, []) if len(s.history()) < 300]
    counts = [s.counts(PROFILES[kernel]) for s in [*small, *choose(HELD_OUT, ["reclaim", "fork loop"])]]
    assert len(counts) > 20
    assert all(counts)


@needs_kernel
def test_the_kernel_reclaims_what_the_model_reclaims() -> None:
    """The player sees that the pages are gone; the model has to walk to each place, twice."""
    script = reclaims_shared(2, 3, 40)
    counts = script.counts(rules())
    assert counts["pages freed"] == 40
    assert counts["rmap walks"] == 80
    assert counts["rmap places visited"] == 80 * 6
    assert counts["rmap places that mapped"] == 80 * 3
    with Host() as host:
        if host.group is None:
            assert rows_of(host, [script], 1, lambda *_: None) == []
            pytest.skip("needs the right to make a memory cgroup")
        place = host.group.directory
        (row,) = rows_of(host, [script], 1, lambda *_: None)
        assert row.counts == counts
        unwanted = Program("reclaim of what is wanted")
        unwanted.warm(0, 40)
        with unwanted.timed():
            unwanted.reclaim(0, 40)
        with pytest.raises(CalibrationError, match="40 of 40 pages were not reclaimed"):
            host.times([unwanted], 1, lambda *_: None, 1)
    assert not place.exists()


def test_all_that_programs_count_has_a_cost_in_the_shipped_profile() -> None:
    costs = load_costs()
    for script in choose(HELD_OUT, []):
        assert {key for key in script.counts(rules()) if costs.cost_of(key) is None} == set(), script.name
    assert set(COVERED) <= {key for key, cost in costs.costs.items() if cost == 0}


def test_held_out_programs_are_not_among_the_fitted() -> None:
    names = [s.name for s in choose(FITTED, [])]
    assert len(set(names)) == len(names)
    assert not set(names) & {s.name for s in choose(HELD_OUT, [])}
    assert set(STAND_INS.values()) <= {*START, *PRIMITIVES.values(), "lock anon_vma root rwsem"}


# Predictions


def test_a_prediction_holds_within_its_bounds_and_a_wrong_cost_does_not() -> None:
    costs = load_costs()
    scripts = choose(HELD_OUT, ["fork loop", "server", "allocator"])
    rows = [Row(s.name, s.counts(rules()), 0.0) for s in scripts]
    rows = [row._replace(ns=r.predicted) for row, r in zip(rows, predict(costs, rows).rows, strict=True)]
    assert predict(costs, rows).holds
    for key, factor in (("faults", 5.0), ("pages zeroed", 8.0), ("alloc mm_struct", 30.0)):
        wrong = msgspec.structs.replace(costs, costs={**costs.costs, key: costs.costs[key] * factor})
        assert not predict(wrong, rows).holds, key


def test_one_program_outside_its_bounds_is_enough() -> None:
    rows = [Row(str(i), {"faults": 100}, 100 * load_costs().costs["faults"]) for i in range(9)]
    assert predict(load_costs(), rows).holds
    found = predict(load_costs(), [*rows, rows[0]._replace(program="odd", ns=rows[0].ns * 2.1)])
    assert (found.median, found.holds) == (1.0, False)
    assert [row.program for row in found.outside] == ["odd"]


# The kernel


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibration") / "mine.json"
    arguments = ["calibrate", "-o", str(path), "--repeats", "1"]
    chosen = ("first writes to 64", "mmap of 100 VMAs", "fork with 0 VMAs", "exit with 0 VMAs", "copy on write of 64")
    for name in chosen:
        arguments += ["--programs", name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(races, "STEPS", 2)  # what a handover costs does not matter here
        assert _main(arguments) == 0
    return path


@needs_kernel
def test_a_calibration_writes_a_profile_that_can_be_used(small_run: Path) -> None:
    costs = load_costs(str(small_run))
    assert {residual.program for residual in costs.residuals} == {
        "first writes to 64 pages", "mmap of 100 VMAs", "fork with 0 VMAs, 0 pages in each",
        "exit with 0 VMAs, 0 pages in each", "copy on write of 64 pages",
    }  # fmt: skip
    assert all(residual.measured > 0 for residual in costs.residuals)
    assert costs.origins["faults"].startswith("fitted")
    assert costs.origins["entries moved"] == "assumed"  # no program showed it
    assert costs.origins["context switch"] == "measured"
    for key, least in (("vma tree nodes visited", 0.0), ("contexts visited", 0.5), ("cold line", 10.0)):
        assert costs.origins[key] == "measured" and least <= costs.costs[key] < costs.costs["faults"]
    assert costs.origins["handover"] == ("fitted" if len(os.sched_getaffinity(0)) > 1 else "assumed")
    assert set(costs.origins) == set(costs.costs)


@needs_kernel
def test_a_profile_that_is_wrong_by_far_fails_the_check(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = load_costs(str(small_run))
    wrong = msgspec.structs.replace(good, costs={key: 20 * cost + 1000 for key, cost in good.costs.items()})
    write_costs(tmp_path / "wrong.json", wrong)
    capsys.readouterr()
    arguments = ["calibrate", "--check", "--costs", str(tmp_path / "wrong.json"), "--repeats", "1", "--json"]
    status = _main([*arguments, "--programs", "fork loop", "--programs", "stacks"])
    told = msgspec.json.decode(capsys.readouterr().out)
    assert status == 1
    assert told["command"] == "calibrate"
    assert told["holds"] is False
    assert told["inputs"]["profile"] == wrong.name
    assert {row["program"] for row in told["differences"]} == {"fork loop with copy on write", "stacks of threads"}
    assert told["figures"]["median"] > 2


@needs_kernel
def test_who_may_not_make_a_cgroup_is_not_asked_to_reclaim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Group, "make", lambda: None)
    with Host() as host:
        reclaiming = [script for script in choose(FITTED, []) if script.reclaims]
        assert reclaiming and host.able(reclaiming) == []
        with pytest.raises(CalibrationError, match="there is no cgroup to reclaim from"):
            host.times(reclaiming[:1], 1, lambda what, done, total: None, rounds=1)


@needs_kernel
def test_the_kernel_does_all_that_programs_ask_of_it() -> None:
    with Host() as host:
        scripts = host.able([*choose(FITTED, []), *choose(HELD_OUT, [])])
        assert all(ns > 0 for ns in host.times(scripts, 1, lambda what, done, total: None, rounds=1))


@needs_kernel
def test_what_the_kernel_refuses_is_a_sentence() -> None:
    s = Program("impossible")
    with s.timed():
        Process(s.world, 1).munmap(ARENA + 1, PAGE)
    with Host() as host, pytest.raises(CalibrationError, match="does not do what the program 'impossible' asks"):
        host.times([s], 1, lambda what, done, total: None)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert _main(["calibrate", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    return printed.err


def test_without_a_compiler_one_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "there is no C compiler 'no-such-compiler': install one" in refused([], capsys)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--costs", "x.json"], "--costs names the profile that --check is to check"),
        (["--check", "--costs", "x.json", "-o", "y.json"], "leave out -o or --costs"),
        (["--check", "--costs", "x.json"], "there is no cost profile 'x.json'"),
        (["--programs", "nonsense"], "no program is left to fit costs to"),
        (["--check", "--costs", "linux-6.18-2cpu", "--programs", "nonsense"], "no program that is held out"),
    ],
)
def test_what_makes_no_sense_is_said_to(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in " ".join(refused(arguments, capsys).split())


