# SPDX-License-Identifier: GPL-2.0-or-later
"""Arguments of the wrong type: a sentence says which, and what is expected."""

from __future__ import annotations

from typing import Any

import pytest

import rmaplab as rl
from rmaplab.library.arguments import ArgumentError, explained

SOURCE = "source has to be a History, Workload, Machine, str or PathLike[str], not 5"


@pytest.fixture
def names() -> dict[str, Any]:
    machine = rl.Machine("7.3", "anon_vma")
    process = machine.spawn()
    return {"rl": rl, "m": machine, "p": process, "a": process.mmap(rl.PAGE)}


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("p.write('a')", "Process.write(): addr has to be an int, not 'a'"),
        ("p.write(None)", "Process.write(): addr has to be an int, not None"),
        ("p.ksm(a, 5, a)", "Process.ksm(): other has to be a Process, not 5"),
        ("p.exec(5)", "Process.exec(): layout has to be a Layout or None, not 5"),
        ("m.walk(p, 'a')", "Machine.walk(): addr has to be an int, not 'a'"),
        ("m.do(5)", "Machine.do(): event has to be an Event, not 5"),
        ("rl.Machine(large_folios='a')", "Machine(): large_folios has to be an int, not 'a'"),
        ("rl.compare(5)", f"compare(): {SOURCE}"),
        ("rl.replay(5)", f"replay(): {SOURCE}"),
        ("rl.compare(m, every='a')", "compare(): every has to be an int, not 'a'"),
        (
            "rl.compare(m, 5)",
            "compare(): designs has to be a str, Path, type[ReverseMap] or Sequence[str | Path | type[ReverseMap]],"
            " not 5",
        ),
        ("rl.record(5, 'true.parquet')", "record(): command has to be a str or Sequence[str], not 5"),
        ("rl.workload(5)", "workload(): name has to be a str, not 5"),
        ("rl.check(5)", "check(): machine has to be a Machine, not 5"),
    ],
)
def test_an_argument_of_the_wrong_type_is_named_with_what_is_expected(
    typed: str, said: str, names: dict[str, Any]
) -> None:
    with pytest.raises(rl.CannotRun) as refused:
        eval(typed, names)
    assert str(refused.value) == said


def test_what_python_says_well_enough_it_says(names: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'addr'"):
        eval("p.write()", names)


def test_what_works_is_not_refused(names: dict[str, Any]) -> None:
    names["p"].write(names["a"])
    assert rl.compare(names["m"], designs={"anon_vma": 1}, costs="").holds  # type: ignore[arg-type]


def test_a_mistake_within_a_function_stays_what_it_is() -> None:
    @explained
    def outer(number: int, of: list[int]) -> int:
        return inner(str(number) if number else of)

    @explained
    def inner(text: Any) -> int:
        return int(text + 1)

    with pytest.raises(TypeError) as raised:
        outer(1, [])
    assert not isinstance(raised.value, ArgumentError)
    with pytest.raises(ArgumentError, match=r"outer\(\): of has to be a list\[int\], not None"):
        outer(0, None)  # type: ignore[arg-type]
