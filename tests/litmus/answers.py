# SPDX-License-Identifier: GPL-2.0-or-later
"""What herd7 says of litmus tests, as a fixture: `herd.json`, so that models are held against it where herd7 is not.

It has the 47 tests of Linux 7.3 (of which only names and answers are here; the tests are in the kernel's sources) and
the generated ones of `SEEDS`.  States are written as values in the order of `observed`.  `load buffering` are those
states which herd7 allows only in executions where program order and reads-from have a cycle together, `overtaking`
those of the others that it allows only where a store executes before an earlier load of its process.

`RMAPLAB_KERNEL=1 PYTHONPATH=tests python -m litmus.answers` asks herd7 anew and writes the fixture.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from litmus import herd
from litmus.generated import generate
from litmus.program import Outcome

FIXTURE = Path(__file__).parent / "herd.json"
SEEDS = range(300)
ORIGIN = (
    "Answers of herd7 (herdtools7 7.58, CeCILL-B) with tools/memory-model of Linux 7.3 (GPL-2.0): facts about tests,"
    " and none of their text."
)


class Known(NamedTuple):
    """herd7's answer: all outcomes, those that need no load buffering, and those of them that need no overtaking."""

    verdict: str
    outcomes: set[Outcome]
    without_load_buffering: set[Outcome]
    without_overtaking: set[Outcome]


def outcomes(states: list[list[tuple[str, int | str]]]) -> set[Outcome]:
    return {tuple((name, value) for name, value in state) for state in states}


def of_herd(everything: herd.Answer, some: herd.Answer, fewest: herd.Answer) -> Known:
    return Known(everything.verdict, outcomes(everything.states), outcomes(some.states), outcomes(fewest.states))


def digest() -> str:
    """Of the generated tests' text: another generator makes other tests, and needs other answers."""
    return hashlib.sha256("".join(generate(seed) for seed in SEEDS).encode()).hexdigest()


def load() -> dict[str, Known]:
    """The fixture, by the tests' names."""
    return {name: _known(entry) for name, entry in json.loads(FIXTURE.read_text())["tests"].items()}


def _known(entry: dict[str, Any]) -> Known:
    names = entry["observed"].split()

    def read(lines: list[str]) -> set[Outcome]:
        return {tuple(zip(names, map(_number, line.split()), strict=True)) for line in lines}

    fewest = read(entry["states"])
    some = fewest | read(entry.get("overtaking", []))
    return Known(entry["verdict"], some | read(entry.get("load buffering", [])), some, fewest)


def _number(word: str) -> int | str:
    return int(word) if word.lstrip("-").isdigit() else word


def ask() -> dict[str, Known]:
    """Of herd7.  :raises KernelUnavailable: it, or the kernel's sources, cannot be had"""
    judge = herd.set_up(print)
    model = herd.model(print)
    with tempfile.TemporaryDirectory() as scratch:
        paths = herd.kernel_tests(print)
        for seed in SEEDS:
            path = Path(scratch, f"{seed}.litmus")
            path.write_text(generate(seed))
            paths.append(path)
        everything = judge.ask(paths, model)
        some = judge.ask(paths, model, herd.NO_LOAD_BUFFERING)
        fewest = judge.ask(paths, model, herd.NO_OVERTAKING)
    return {name: of_herd(answer, some[name], fewest[name]) for name, answer in everything.items()}


def write(answers: dict[str, Known]) -> None:
    tests = {}
    for name, known in answers.items():
        observed = [word for word, _ in next(iter(known.outcomes), ())]
        entry: dict[str, Any] = {"verdict": known.verdict, "observed": " ".join(observed)}
        entry["states"] = _lines(known.without_overtaking)
        if known.without_load_buffering != known.without_overtaking:
            entry["overtaking"] = _lines(known.without_load_buffering - known.without_overtaking)
        if known.outcomes != known.without_load_buffering:
            entry["load buffering"] = _lines(known.outcomes - known.without_load_buffering)
        tests[name] = entry
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in tests.items())
    FIXTURE.write_text(
        f'{{"origin": {json.dumps(ORIGIN)},\n"generated": {json.dumps(digest())},\n"tests": {{\n{lines}\n}}}}\n'
    )


def _lines(some: set[Outcome]) -> list[str]:
    return sorted(" ".join(str(value) for _, value in outcome) for outcome in some)


if __name__ == "__main__":
    write(ask())
