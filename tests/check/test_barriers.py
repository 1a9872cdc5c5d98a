# SPDX-License-Identifier: GPL-2.0-or-later
"""Weak memory over the designs: the bug that shipped, and the orderings without which a scenario breaks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rmaplab.check.barriers import barriers
from rmaplab.check.race import Model, explain, name_ordering, run, run_path
from rmaplab.check.race_mutants import outcome
from rmaplab.check.scenarios import scenario
from rmaplab.check.weak_mutants import WEAKENED
from rmaplab.commands.frame import main
from rmaplab.rmap import load
from rmaplab.sync.interleave import explore, replay

FIRST_FAULTS = "first fault below / first fault above"
NOT_MERGED = "migrate / mprotect that merges"


@pytest.mark.parametrize("ordering", ["publish vma->anon_vma", "neighbour's vma->anon_vma"])
def test_a_fresh_anon_vma_needs_a_release_and_a_dependency(ordering: str) -> None:
    """b6ac0b3f6013 (7.3-rc5): __anon_vma_prepare() published it by a plain store."""
    scene = scenario(FIRST_FAULTS, load("anon_vma"))
    assert explore(scene, begin=Model("weak").begin).failures == []
    without = Model("weak", [ordering])
    [failure] = explore(scene, begin=without.begin).failures
    assert "reads root before it is initialised" in str(failure.error)
    again = replay(scene, failure.path, Model("weak", [ordering]).begin)
    assert again is not None and str(again.error) == str(failure.error)


def test_no_interleaving_shows_it_under_sequential_consistency() -> None:
    outcome = explore(scenario(FIRST_FAULTS, load("anon_vma")))
    assert outcome.exhausted and outcome.failures == []


@pytest.mark.parametrize(
    ("scene", "ordering", "why"),
    [
        ("referenced / fork", "link child context", "reads mm before it is initialised"),
        ("referenced / fork", "first child", "reads mm before it is initialised"),
        (NOT_MERGED, "moves: read_seqcount_begin()", "its migration entry was not found"),
        (NOT_MERGED, "moves: read_seqcount_retry()", "its migration entry was not found"),
        (NOT_MERGED, "moves: write_seqcount_end()", "its migration entry was not found"),
    ],
)
def test_a_context_needs_what_publishes_it_and_what_guards_moves(scene: str, ordering: str, why: str) -> None:
    design = load("cow_context")
    assert explore(scenario(scene, design), limit=200, begin=Model("weak").begin).failures == []
    [failure] = explore(scenario(scene, design), limit=200, begin=Model("weak", [ordering]).begin).failures
    assert why in explain(failure).error


def test_the_timeline_says_since_when_a_value_was_old_and_what_would_have_forbidden_it() -> None:
    [mutant] = [each for each in WEAKENED if each.name == "anon-vma-put-anon-vma"]
    memory = Model("weak", [mutant.weakened])
    scene = scenario(mutant.scene, load("anon_vma"))
    [failure] = explore(scene, begin=memory.begin).failures
    assert not any("forbidden" in step.what for step in explain(failure).timeline)
    name_ordering(failure, scene, memory)
    [told] = [step.what for step in explain(failure).timeline if "(forbidden by " in step.what]
    assert told.startswith("asks whether anybody has anon_vma root rwsem (old since step ")
    assert told.endswith("(forbidden by put_anon_vma(), fully ordered atomic)")


def test_a_field_that_is_read_too_early_names_the_ordering_as_well() -> None:
    broken = run("referenced / fork", load("cow_context"), memory=Model("weak", ["link child context"])).broken[0]
    assert broken.timeline[-1].what.endswith("(forbidden by link child context, smp_store_release())")


@pytest.mark.parametrize("design", ["anon_vma", "cow_context"])
@pytest.mark.parametrize("scene", ["referenced / fork", "restore / exit of the child", "unmap / copy"])
def test_designs_hold_under_weak_memory(design: str, scene: str) -> None:
    verdict = run(scene, load(design), memory=Model("weak"))
    assert verdict.holds and verdict.exhausted and verdict.memory == "weak" and verdict.orderings


def test_orderings_are_told_apart_by_need() -> None:
    found = barriers("anon_vma", [FIRST_FAULTS])
    assert found.missing == []
    assert {ordering.name for ordering in found.orderings if ordering.needed} == {
        "publish vma->anon_vma",
        "neighbour's vma->anon_vma",
        "pmd_install()",
        "pmdp_get_lockless()",
    }


def test_a_path_says_how_old_the_values_are() -> None:
    scene = "referenced / fork"
    broken = run(scene, load("cow_context"), memory=Model("weak", ["link child context"])).broken[0]
    assert run_path(scene, load("cow_context"), broken.path, Model("weak", ["link child context"])) == broken


def test_the_command_prints_a_table_of_orderings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as status:
        main(["race", "--barriers", "anon_vma", "first fault below"])
    out = capsys.readouterr().out
    assert status.value.code == 0 and "smp_store_release()" in out and "without neighbour's vma->anon_vma" in out
    with pytest.raises(SystemExit) as status:
        main(["race", "--barriers", "anon_vma", "first fault below", "--json"])
    assert status.value.code == 0 and json.loads(capsys.readouterr().out)["holds"] is True
    with pytest.raises(SystemExit) as status:
        main(["race", "--barriers", "anon_vma", "no such thing"])
    assert status.value.code == 2


def test_any_number_of_processes_prints_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """Also of scenarios that are left out."""
    printed = []
    for jobs in ("1", "2"):
        with pytest.raises(SystemExit):
            main(["race", "--barriers", "cow_context_prototype", "first fault", "--limit", "20", "--jobs", jobs])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and "Left out, since they break" in printed[0]


def test_needed_orderings_become_litmus_tests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "litmus"
    with pytest.raises(SystemExit) as status:
        main(["race", "--barriers", "anon_vma", "first fault below", "--litmus", str(folder)])
    assert status.value.code == 0 and capsys.readouterr().out
    published = folder / "anon-vma-publish-vma-anon-vma.litmus"
    assert "smp_store_release(pointer, field);" in published.read_text()
    assert "WRITE_ONCE(*pointer, field);" in published.with_stem(f"{published.stem}-without").read_text()
    assert len(list(folder.iterdir())) == 8
    asked = ["--barriers", "anon_vma", "first fault below"]
    for wrong in (["--litmus", str(folder)], [*asked, "--litmus", str(published)]):
        with pytest.raises(SystemExit) as status:
            main(["race", *wrong])
        assert status.value.code == 2 and "rmaplab:" in capsys.readouterr().err


def test_what_breaks_anyway_tells_nothing_of_orderings() -> None:
    found = barriers("cow_context_prototype", ["restore / first fault", "referenced / fork"], 100)
    assert found.broken == ["restore / first fault"] and found.missing == []
    assert "link child context" in {ordering.name for ordering in found.orderings if ordering.needed}


@pytest.mark.parametrize(
    ("design", "ordering", "why"),
    [
        ("anon_vma", "pmd_install()", "reads lock before it is initialised"),
        ("cow_context", "change VMA tree", "reads contents before it is initialised"),
        ("anon_vma_lazy", "free root VMA", "use after free"),
    ],
)
def test_pointers_to_page_tables_and_trees_and_grace_periods_order(design: str, ordering: str, why: str) -> None:
    [mutant] = [
        each for each in WEAKENED if each.original is load(design) and each.weakened == ordering
    ]
    [failure] = outcome(mutant, 1000).failures
    assert why in str(failure.error)
