# SPDX-License-Identifier: GPL-2.0-or-later
"""What `race` is told: the steps that each scenario announces to the scheduler, with each design without known gaps.

An announcement that is left out, or names less than it should, makes no scenario fail: it takes interleavings away.
So the steps are kept, as a digest for each scenario (announced_steps.json), of three orders: CPU after CPU, the last
CPU first, and a step of each in turn.  Who changes what the machine, a design or a scenario announces says in the
commit why, and writes them anew:

    python tests/check/test_announced_steps.py
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rmaplab.check.scenarios import names, scenario
from rmaplab.rmap import DESIGNS
from rmaplab.sync.interleave import Execution, Step, perform

KEPT = Path(__file__).with_name("announced_steps.json")
COMPLETE = ("anon_vma", "anon_vma_lazy", "cow_context", "lineage", "pte_chain")


def cpu_after_cpu(execution: Execution) -> int:
    return next((task.number for task in execution.tasks if execution.enabled(task)), -1)


def last_cpu_first(execution: Execution) -> int:
    return next((task.number for task in reversed(execution.tasks) if execution.enabled(task)), -1)


def in_turn(execution: Execution) -> int:
    last = execution.trace[-1].task if execution.trace else -1
    able = [task.number for task in execution.tasks if execution.enabled(task)]
    return next((number for number in able if number > last), able[0] if able else -1)


def steps_of(name: str, design: str, order: Callable[[Execution], int]) -> list[str]:
    seen: list[Execution] = []

    def choose(execution: Execution) -> int:
        if not seen:
            seen.append(execution)
        return order(execution)

    failure = perform(scenario(name, DESIGNS[design]), choose)
    outcome = "" if failure is None else str(failure.error)
    return [*(announced(step) for step in seen[0].trace), outcome]


def announced(step: Step) -> str:
    subject = type(step.subject).__name__
    places = f"{step.place.number} {-1 if step.also is None else step.also.number}"
    return f"{step.task} {step.kind} {step.mode} {places} {step.first} {step.last} {subject} {step.what}"


def digest(name: str) -> str:
    told = hashlib.sha256()
    for design in COMPLETE:
        for order in (cpu_after_cpu, last_cpu_first, in_turn):
            told.update("\n".join(steps_of(name, design, order)).encode())
    return told.hexdigest()[:12]


def kept() -> dict[str, str]:
    found: dict[str, str] = json.loads(KEPT.read_text())
    return found


@pytest.mark.parametrize("part", range(8))
def test_scenarios_announce_the_steps_that_they_did(part: int) -> None:
    wanted = {name: known for name, known in kept().items() if name in names()[part::8]}
    assert {name: digest(name) for name in wanted} == wanted


def test_the_steps_of_every_scenario_are_kept() -> None:
    assert list(kept()) == sorted(names())


if __name__ == "__main__":
    KEPT.write_text(json.dumps({name: digest(name) for name in sorted(names())}, indent=0) + "\n")
