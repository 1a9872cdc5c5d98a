# SPDX-License-Identifier: GPL-2.0-or-later
"""Each bug that was put in on purpose is found, within its budget, and nothing is found where it was taken out."""

import io

import pytest
from rich.console import Console

from rmaplab.check import mutation
from rmaplab.check.lineage_mutants import LINEAGE_MUTANTS
from rmaplab.check.mutants import Mutant
from rmaplab.check.race_mutants import RACED, outcome
from rmaplab.check.rival_mutants import RIVAL_MUTANTS
from rmaplab.check.weak_mutants import WEAKENED
from rmaplab.rmap import DESIGNS

SHIPPED = {
    "d0e9fe1758f2", "287d97ac0321", "948f017b093a", "38a76013ad80", "d9d332e0874f", "2555283eb40d", "b800c91a0517",
    "fb49c455323f", "fixed early in 2026", "7a3ef208e662", "a8bef8ff6ea1", "b6ac0b3f6013", "362a61ad6119",
    "f18194275c39", "088b8aa537c2", "657b5146955e", "9bbffee67ffd", "fixed in 3.16",
}  # fmt: skip


_RIVAL_RACED = [mutant for mutant in (*RIVAL_MUTANTS, *LINEAGE_MUTANTS) if mutant.shows == "race"]


def test_all_that_shipped_are_there_and_enough_of_our_own() -> None:
    assert {mutant.origin for mutant in mutation.ALL if mutant.origin} == SHIPPED
    own = [mutant for mutant in mutation.ALL if not mutant.origin]
    assert len(own) >= 15
    assert {mutant.original for mutant in own} == set(DESIGNS.values())
    names = [mutant.name for mutant in mutation.ALL]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("mutant", (*RACED, *_RIVAL_RACED, *WEAKENED), ids=lambda mutant: mutant.name)
def test_a_race_is_found(mutant: Mutant) -> None:
    """And not with the mutation off; that an ordering is missing, not under sequential consistency either."""
    found = outcome(mutant, mutation.INTERLEAVINGS)
    assert found.failures
    for other in mutant.others():
        assert not outcome(other, found.executions + found.pruned).failures


def test_each_design_has_orderings_that_only_weak_memory_misses() -> None:
    """But page_scan, which shares nothing."""
    assert {mutant.original for mutant in WEAKENED} == set(DESIGNS.values()) - {DESIGNS["page_scan"]}
    assert len(WEAKENED) >= 15 and all(mutant.rule for mutant in WEAKENED)


def number_of(name: str) -> int:
    return [mutant.name for mutant in mutation.ALL].index(name)


def test_a_verdict_has_a_script_or_a_timeline() -> None:
    verify = mutation.look_for(number_of("NeverTakenOver"))
    assert verify.holds and verify.by == "verify" and verify.after < 1000
    assert verify.shown[0].startswith("exec pid=1") and len(verify.shown) < 15
    race = mutation.look_for(number_of("ChildFirst"))
    assert race.holds and race.by.startswith("race: restore / fork")
    assert "CPU 0: restore" in race.shown[0] and "CPU 1: fork" in race.shown[0]
    told = io.StringIO()
    mutation.print_table([verify, race], Console(file=told, width=100))
    assert "All 2 are found, and none with the mutation switched off." in told.getvalue()
    page = mutation.markdown([verify, race], "rmaplab verify --mutants")
    assert "| [NeverTakenOver](#nevertakenover) |" in page and "### ChildFirst" in page


def test_what_nothing_finds_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its budget is too small here."""
    monkeypatch.setattr(mutation, "STEPS", 20)
    lost = mutation.look_for(number_of("DegreeConflated"))
    assert not lost.holds and lost.after == 0
    told = io.StringIO()
    mutation.print_table([lost], Console(file=told, width=100))
    assert "NOT FOUND" in told.getvalue() and "a hole in the checker" in told.getvalue()
