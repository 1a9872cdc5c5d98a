# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of `race --memory weak` under litmus tests: judged by herd7's answers (answers.py), and on many
more tests by the rules that herd7 has judged (lkmm.py)."""

from __future__ import annotations

import pytest

from litmus import answers
from litmus.generated import generate
from litmus.lkmm import Lkmm
from litmus.program import Litmus, Outcome, parse, run
from litmus.race_memory import RaceMemory

KNOWN = answers.load()


def outcomes(asked: Litmus, *weakened: str, reduce: bool = True) -> set[Outcome]:
    return run(asked, RaceMemory(weakened, reduce=reduce))


def test_outcomes_are_those_of_herd() -> None:
    for seed in answers.SEEDS:
        asked = parse(generate(seed))
        found = outcomes(asked)
        known = KNOWN[asked.name]
        assert found <= known.outcomes, f"{asked.name}: what herd7 calls impossible is not seen"
        assert known.without_overtaking <= found, f"{asked.name}: what it calls possible is seen"


@pytest.mark.parametrize("first", range(1000, 1500, 100))
def test_outcomes_are_those_of_the_rules(first: int) -> None:
    for seed in range(first, first + 100):
        asked = parse(generate(seed))
        found = outcomes(asked)
        assert found <= run(asked, Lkmm()), asked.name
        # smp_mb() stands in for barriers that order less
        assert "smp_mb__" in generate(seed) or run(asked, Lkmm(overtaking=False)) <= found, asked.name


def test_the_reduction_of_orders_loses_no_outcome() -> None:
    compared = 0
    for seed in range(2000, 2060):
        text = generate(seed)
        if "spin_lock" in text or "P2" in text:
            continue  # too many orders without reduction
        compared += 1
        assert outcomes(parse(text), reduce=False) == outcomes(parse(text)), text
    assert compared > 5


PUBLISH = "P0(int *x, int *y) { WRITE_ONCE(*x, 1); %s }\n"
LOOK = "P1(int *x, int *y) { int r0; int r1; r0 = %s; %s r1 = READ_ONCE(*x); }\nexists (1:r0=1 /\\ 1:r1=0)"
RELEASE, PLAIN = "smp_store_release(y, 1);", "WRITE_ONCE(*y, 1);"
SIDES = """
P0(int *x, int *y, int *v) { int r0; int r1; WRITE_ONCE(*x, 1); %s r1 = READ_ONCE(*y); }
P1(int *x, int *y, int *w) { int r0; int r1; WRITE_ONCE(*y, 1); %s r1 = READ_ONCE(*x); }
exists (0:r1=0 /\\ 1:r1=0)"""


@pytest.mark.parametrize(
    ("ordering", "text"),
    [
        ("load", PUBLISH % RELEASE + LOOK % ("smp_load_acquire(y)", "")),
        ("store", PUBLISH % RELEASE + LOOK % ("READ_ONCE(*y)", "smp_rmb();")),
        ("smp_rmb()", PUBLISH % RELEASE + LOOK % ("READ_ONCE(*y)", "smp_rmb();")),
        ("smp_wmb()", PUBLISH % ("smp_wmb(); " + PLAIN) + LOOK % ("smp_load_acquire(y)", "")),
        ("smp_mb()", SIDES % ("smp_mb();", "smp_mb();")),
        ("atomic", SIDES % ("r0 = atomic_inc_return(v);", "r0 = atomic_inc_return(w);")),
    ],
)
def test_an_ordering_that_is_taken_away_shows_what_lkmm_forbids(ordering: str, text: str) -> None:
    asked = parse(f"C test\n{{}}\n{text}\n")
    allowed = run(asked, Lkmm())
    assert outcomes(asked) == allowed
    found = outcomes(asked, ordering)
    assert any(asked.condition(dict(outcome)) for outcome in found - allowed)
