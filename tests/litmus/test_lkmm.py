# SPDX-License-Identifier: GPL-2.0-or-later
"""Litmus tests: read, run, and the rules of LKMM held against herd7's answers (answers.py)."""

from __future__ import annotations

import json

import pytest

from litmus import answers, generated, program
from litmus.lkmm import RULES, Lkmm
from litmus.program import LitmusError, parse, run

KNOWN = answers.load()
# A test whose outcome is forbidden by this rule and by no other.
NEEDED = {
    "acquire": """
P0(int *x, int *y) { WRITE_ONCE(*x, 1); smp_store_release(y, 1); }
P1(int *x, int *y) { int r0; int r1; r0 = smp_load_acquire(y); r1 = READ_ONCE(*x); }
exists (1:r0=1 /\\ 1:r1=0)""",
    "address": """
P0(int *x, int **p) { WRITE_ONCE(*x, 1); rcu_assign_pointer(*p, x); }
P1(int *x, int **p) { int *r0; int r1; r0 = rcu_dereference(*p); r1 = READ_ONCE(*r0); }
exists (1:r0=x /\\ 1:r1=0)""",
    "atomicity": """
P0(int *x) { int r0; r0 = xchg_relaxed(x, 1); }
P1(int *x) { int r0; r0 = xchg_relaxed(x, 2); }
exists (0:r0=0 /\\ 1:r0=0)""",
    "coherence": """
P0(int *x) { WRITE_ONCE(*x, 1); }
P1(int *x) { int r0; int r1; r0 = READ_ONCE(*x); r1 = READ_ONCE(*x); }
exists (1:r0=1 /\\ 1:r1=0)""",
    "control": """
P0(int *x, int *y) { WRITE_ONCE(*x, 2); smp_wmb(); WRITE_ONCE(*y, 1); }
P1(int *x, int *y) { int r0; r0 = READ_ONCE(*y); if (r0) { WRITE_ONCE(*x, 1); } }
exists (x=2 /\\ 1:r0=1)""",
    "cumulativity": """
P0(int *x) { WRITE_ONCE(*x, 1); }
P1(int *x, int *y) { int r0; r0 = READ_ONCE(*x); smp_store_release(y, 1); }
P2(int *x, int *y) { int r0; int r1; r0 = READ_ONCE(*y); smp_rmb(); r1 = READ_ONCE(*x); }
exists (1:r0=1 /\\ 2:r0=1 /\\ 2:r1=0)""",
    "data": """
P0(int *x, int *y) { WRITE_ONCE(*x, 2); smp_wmb(); WRITE_ONCE(*y, 1); }
P1(int *x, int *y) { int r0; r0 = READ_ONCE(*y); WRITE_ONCE(*x, r0); }
exists (x=2 /\\ 1:r0=1)""",
    "full fence": """
P0(int *x, int *y) { int r0; WRITE_ONCE(*x, 1); smp_mb(); r0 = READ_ONCE(*y); }
P1(int *x, int *y) { int r0; WRITE_ONCE(*y, 1); smp_mb(); r0 = READ_ONCE(*x); }
exists (0:r0=0 /\\ 1:r0=0)""",
    "lock": """
P0(int *x, int *y, spinlock_t *s) { WRITE_ONCE(*x, 1); spin_lock(s); WRITE_ONCE(*y, 1); spin_unlock(s); }
P1(int *x, int *y, spinlock_t *s)
{ int r0; int r1; spin_lock(s); r0 = READ_ONCE(*y); spin_unlock(s); r1 = READ_ONCE(*x); }
exists (1:r0=1 /\\ 1:r1=0)""",
    "rcu": """
P0(int *x, int *y) { int r0; int r1; rcu_read_lock(); r0 = READ_ONCE(*y); r1 = READ_ONCE(*x); rcu_read_unlock(); }
P1(int *x, int *y) { WRITE_ONCE(*x, 1); synchronize_rcu(); WRITE_ONCE(*y, 1); }
exists (0:r0=1 /\\ 0:r1=0)""",
    "release": """
P0(int *x, int *y) { WRITE_ONCE(*x, 1); smp_store_release(y, 1); }
P1(int *x, int *y) { int r0; int r1; r0 = READ_ONCE(*y); smp_rmb(); r1 = READ_ONCE(*x); }
exists (1:r0=1 /\\ 1:r1=0)""",
    "rmb": """
P0(int *x, int *y) { WRITE_ONCE(*x, 1); smp_wmb(); WRITE_ONCE(*y, 1); }
P1(int *x, int *y) { int r0; int r1; r0 = READ_ONCE(*y); smp_rmb(); r1 = READ_ONCE(*x); }
exists (1:r0=1 /\\ 1:r1=0)""",
    "unlock-lock": """
P0(spinlock_t *s, spinlock_t *t, int *x, int *y)
{ spin_lock(s); WRITE_ONCE(*x, 1); spin_unlock(s); spin_lock(t); WRITE_ONCE(*y, 1); spin_unlock(t); }
P1(int *x, int *y) { int r0; int r1; r0 = READ_ONCE(*y); smp_rmb(); r1 = READ_ONCE(*x); }
exists (1:r0=1 /\\ 1:r1=0)""",
    "wmb": """
P0(int *x, int *y) { WRITE_ONCE(*x, 1); smp_wmb(); WRITE_ONCE(*y, 1); }
P1(int *x, int *y) { int r0; int r1; r0 = smp_load_acquire(y); r1 = READ_ONCE(*x); }
exists (1:r0=1 /\\ 1:r1=0)""",
}


def written(body: str, initial: str = "") -> program.Litmus:
    return parse(f"C test\n\n{{{initial}}}\n{body}\n")


def seen(asked: program.Litmus, *without: str) -> bool:
    """Is the outcome that the test asks for among those of our rules?"""
    return program.holds(asked, run(asked, Lkmm(without)))[0] > 0


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_forbids_something(rule: str) -> None:
    asked = written(NEEDED[rule])
    assert not seen(asked)
    assert seen(asked, rule)


@pytest.mark.parametrize("seed", answers.SEEDS)
def test_outcomes_are_those_of_herd(seed: int) -> None:
    asked = parse(generated.generate(seed))
    known = KNOWN[asked.name]
    found = run(asked, Lkmm())
    assert found <= known.outcomes, "what herd7 calls impossible is not seen"
    assert known.without_load_buffering <= found, "what it calls possible is seen, but for load buffering"
    in_turn = run(asked, Lkmm(overtaking=False))
    assert known.without_overtaking <= in_turn <= found


# No generated test needs cumulativity, and two of the kernel's do.
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "cumulativity"])
def test_without_a_rule_some_generated_test_has_an_outcome_that_herd_forbids(rule: str) -> None:
    assert any(
        not run(asked, Lkmm([rule])) <= KNOWN[asked.name].outcomes
        for asked in map(parse, map(generated.generate, answers.SEEDS))
    )


def test_the_answers_are_for_the_tests_that_are_generated() -> None:
    fixture = json.loads(answers.FIXTURE.read_text())
    assert fixture["generated"] == answers.digest(), "run litmus/answers.py, which asks herd7 anew"
    assert len(KNOWN) == len(answers.SEEDS) + 47
    verdicts = [known.verdict for known in KNOWN.values()]
    assert min(verdicts.count("Never"), verdicts.count("Sometimes")) > 100


def test_load_buffering_is_left_out() -> None:
    asked = written("""
P0(int *x, int *y) { int r0; r0 = READ_ONCE(*x); WRITE_ONCE(*y, 1); }
P1(int *x, int *y) { int r0; r0 = READ_ONCE(*y); WRITE_ONCE(*x, 1); }
exists (0:r0=1 /\\ 1:r0=1)""")
    assert not seen(asked)


def test_an_if_orders_stores_within_it_and_none_after_it() -> None:
    writer = "P0(int *x, int *y) { WRITE_ONCE(*x, 2); smp_wmb(); WRITE_ONCE(*y, 1); }"
    within = "P1(int *x, int *y) { int r0; r0 = READ_ONCE(*y); if (r0) { WRITE_ONCE(*x, 1); } }"
    after = "P1(int *x, int *y) { int r0; r0 = READ_ONCE(*y); if (r0) { barrier(); } WRITE_ONCE(*x, 1); }"
    question = "exists (x=2 /\\ 1:r0=1)"
    assert not seen(written(f"{writer}\n{within}\n{question}"))
    assert seen(written(f"{writer}\n{after}\n{question}"))


def test_the_initial_state_has_numbers_and_pointers() -> None:
    initial = "int x = 2; int *p = &x; q=x; atomic_t v = ATOMIC_INIT(-3);"
    asked = written("P0(int *x) { WRITE_ONCE(*x, 1); }\nexists (x=1)", initial)
    assert asked.initial == {"x": 2, "p": "x", "q": "x", "v": -3}


def test_a_filter_says_which_states_count() -> None:
    body = """
P0(int *x) { WRITE_ONCE(*x, 1); }
P1(int *x) { int r0; int r1; r0 = READ_ONCE(*x); r1 = READ_ONCE(*x); }
locations [x; 1:r1]
filter (1:r0=1)
exists (1:r1=1 \\/ ~(x=1))"""
    assert run(written(body), Lkmm()) == {(("1:r0", 1), ("1:r1", 1), ("x", 1))}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", "a litmus test has a line `C name`"),
        ("C a\n{}\nP0(int *x) { for (;;) { } }\nexists (x=1)", "is not known here"),
        ("C a\n{}\nP0(int *x) { frobnicate(x); }\nexists (x=1)", "frobnicate() is not known here."),
        ("C a\n{}\nP0(int *x) { int }\nexists (x=1)", "not C as pycparser knows it"),
        ("C a\n{}\nP0(int *x) { WRITE_ONCE(*x, 1); }\nmaybe (x=1)", "begins with none of exists"),
        ("C a\n{}\nP0(int *x) { WRITE_ONCE(*x, 1); }\nexists (x 1)", "`=` is missing after `x`"),
        ("C a\n{int x[3];}\nP0(int *x) { WRITE_ONCE(*x, 1); }\nexists (x=1)", "is no initial state that is known here"),
    ],
)
def test_what_is_not_known_is_said(text: str, said: str) -> None:
    with pytest.raises(LitmusError) as caught:
        run(parse(text), Lkmm())
    assert said in str(caught.value)


def test_a_rule_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no rule 'nonsense'"):
        Lkmm(["nonsense"])
