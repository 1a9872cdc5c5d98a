# SPDX-License-Identifier: GPL-2.0-or-later
"""herd7: fetched, read, and of the same opinion as the fixture (make test-kernel); the kernel's own litmus tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from litmus import answers, herd, program
from litmus.lkmm import RULES, Lkmm
from litmus.race_memory import RaceMemory
from litmus.test_barrier_litmus import ORDERINGS
from rmaplab.check.barrier_litmus import litmus_tests
from rmaplab.check.barriers import Ordering
from rmaplab.errors import CannotRun
from rmaplab.kernel.errors import KernelUnavailable
from rmaplab.kernel.setup import cache

TREE = cache() / "sources" / herd.VERSION
needs_herd = pytest.mark.skipif(
    not os.environ.get("RMAPLAB_KERNEL"), reason="needs herd7 and kernel sources: make test-kernel, or RMAPLAB_KERNEL=1"
)
SAID = """\
Test a Allowed
States 2
1:r0=x; [x]=-1;
1:r0=0; [x]=1;
Ok
Witnesses
Positive: 1 Negative: 3
Condition exists (1:r0=x)
Observation a Sometimes 1 3
Time a 0.00
Hash=0

Test b Allowed
States 0
No
Witnesses
Positive: 0 Negative: 0
Condition exists (x=1)
Observation b Never 0 0
Time b 0.00
Hash=1
"""


def kernel_tests() -> list[Path]:
    try:
        if not os.environ.get("RMAPLAB_KERNEL") and not TREE.exists():
            pytest.skip(f"needs the kernel's litmus tests, which are not in {TREE}: make test-kernel fetches them")
        return herd.kernel_tests(print)
    except KernelUnavailable as error:
        if os.environ.get("RMAPLAB_REQUIRE_KERNEL"):
            raise
        pytest.skip(str(error))


def test_what_herd_prints_is_read() -> None:
    answers = herd.parse(SAID)
    assert answers["a"] == herd.Answer("Sometimes", 1, 3, [[("1:r0", "x"), ("x", -1)], [("1:r0", 0), ("x", 1)]])
    assert answers["b"] == herd.Answer("Never", 0, 0, [])


def test_a_test_without_an_answer_is_said() -> None:
    with pytest.raises(CannotRun, match=r"herd7 has no answer for a\."):
        herd.parse(SAID.replace("Observation a", "Nothing"))


def test_herd_that_cannot_be_fetched_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelUnavailable, match=r"herd7 cannot be fetched \(.*apt-get is not here\): install"):
        herd.set_up(print)
    assert not herd.installed()


def test_the_kernels_own_tests_have_the_outcomes_that_herd_says() -> None:
    known = answers.load()
    paths = kernel_tests()
    assert len(paths) == 47
    for path in paths:
        asked = program.read(path)
        found = program.run(asked, Lkmm())
        answer = known[asked.name]
        assert answer.without_load_buffering <= found <= answer.outcomes, asked.name
        met, unmet = program.holds(asked, found)
        if asked.name != "LB+poonceonces":  # the one that needs load buffering
            assert ("Never" if not met else "Sometimes" if unmet else "Always") == answer.verdict, asked.name


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in ("control", "data")])
def test_the_kernels_own_tests_need_each_rule_but_two(rule: str) -> None:
    known = answers.load()
    tests = map(program.read, kernel_tests())
    assert any(not program.run(asked, Lkmm([rule])) <= known[asked.name].outcomes for asked in tests)


def test_the_memory_of_races_has_outcomes_that_herd_allows() -> None:
    known = answers.load()
    for path in kernel_tests():
        asked = program.read(path)
        found = program.run(asked, RaceMemory())
        assert known[asked.name].without_overtaking <= found <= known[asked.name].outcomes, asked.name


@needs_herd
def test_herd_says_what_the_fixture_says() -> None:
    try:
        asked = answers.ask()
    except KernelUnavailable as error:
        if os.environ.get("RMAPLAB_REQUIRE_KERNEL"):
            raise
        pytest.skip(str(error))
    assert asked == answers.load()


@needs_herd
def test_herd_agrees_with_the_orderings_that_designs_need(tmp_path: Path) -> None:
    """Never with an ordering, Sometimes without."""
    try:
        judge, model = herd.set_up(print), herd.model(print)
    except KernelUnavailable as error:
        if os.environ.get("RMAPLAB_REQUIRE_KERNEL"):
            raise
        pytest.skip(str(error))
    tests = [
        each
        for name, primitive in ORDERINGS.items()
        for each in litmus_tests("design", Ordering(name, primitive, None, 0, 0))
    ]
    for each in tests:
        (tmp_path / each.name).write_text(each.text)
    answers = judge.ask([tmp_path / each.name for each in tests], model)
    verdicts = [answers[each.name.removesuffix(".litmus")].verdict for each in tests]
    assert verdicts == ["Never", "Sometimes"] * len(ORDERINGS)
