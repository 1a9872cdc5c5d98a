# SPDX-License-Identifier: GPL-2.0-or-later
"""A world that is put back is the one that was built."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from rmaplab.check.scenarios import names, scenario
from rmaplab.rmap import DESIGNS
from rmaplab.sync.interleave import Execution, Scenario, explore
from rmaplab.sync.snapshot import Snapshot
from rmaplab.sync.weak import WeakExecution

# Each preparation once, and one that ends amid a migration.
STARTS = [name for name in names() if name.startswith("migrate /") and " + " not in name] + [
    "restore / fork",
]


def state(snapshot: Snapshot) -> list[object]:
    """All that it found, in the order in which it found it: objects by their identity, numbers by their value."""

    def known(value: object) -> object:
        return value if isinstance(value, int | str) else id(value)

    return [
        [(id(owner), name, known(value)) for owner, name, value in snapshot._attributes],
        [(id(found), list(map(known, items))) for found, items in snapshot._lists],
        [
            (id(found), [(known(key), known(value)) for key, value in entries.items()])
            for found, entries in snapshot._dicts
        ],
        [(id(found), set(map(known, members))) for found, members in snapshot._sets],
        [(id(found.obj), elements.tobytes()) for found, elements in snapshot._arrays],
    ]


def run_to_the_end(execution: Execution) -> None:
    execution.start()
    while able := [task for task in execution.tasks if execution.enabled(task)]:
        execution.step(able[-1])
    execution.stop()


@pytest.mark.parametrize("begin", [Execution, WeakExecution])
@pytest.mark.parametrize(
    "design",
    ["anon_vma", "cow_context", "anon_vma_own_lock", "anon_vma_lazy", "unshare_on_remap", "anonmm", "pte_chain"],
)
def test_every_world_is_put_back_as_it_was_built(design: str, begin: type[Execution]) -> None:
    for name in STARTS:
        execution = begin()
        scenario(name, DESIGNS[design]).build(execution)
        snapshot = Snapshot(execution, [])
        before = state(snapshot)
        run_to_the_end(execution)
        assert state(Snapshot(execution, [])) != before
        snapshot.restore()
        assert state(Snapshot(execution, [])) == before, name


@pytest.mark.parametrize("begin", [Execution, WeakExecution])
@pytest.mark.parametrize("design", ["anon_vma", "cow_context"])
@pytest.mark.parametrize("name", ["migrate / exit of the child", "restore / fork", "referenced / munmap"])
def test_a_world_that_is_put_back_is_searched_as_one_that_is_built_anew(
    name: str, design: str, begin: type[Execution]
) -> None:
    what = scenario(name, DESIGNS[design])

    def build(execution: Execution) -> Callable[[], None]:
        check = what.build(execution)
        execution.subject = None
        return check

    put_back = explore(what, begin=begin)
    anew = explore(Scenario(name, build), begin=begin)
    assert put_back.exhausted and not put_back.failures
    found = [(each.executions, each.pruned, each.steps) for each in (put_back, anew)]
    assert found[0] == found[1]
    assert found[0][0] > 1


class Hidden:
    """A number where a snapshot does not find it."""

    number = 0


def test_a_world_that_was_not_put_back_is_noticed() -> None:
    def build(execution: Execution) -> Callable[[], None]:
        execution.subject = cell = object()

        def body() -> None:
            Hidden.number += 1
            if Hidden.number > 2:
                execution.touch("a cell", cell)
            execution.point("a cell", cell, True)

        execution.add("one", body)
        execution.add("other", body)
        return lambda: None

    outcome = explore(Scenario("hidden state", build))
    assert "is not what it was after the same steps before" in str(outcome.failures[0].error)


def test_what_a_snapshot_does_not_know_it_refuses() -> None:
    with pytest.raises(TypeError, match=r"cannot put back .* a bytearray"):
        Snapshot([bytearray(1)], [])


def test_records_arrays_and_dictionaries_are_put_back() -> None:
    class Thing:
        def __init__(self) -> None:
            self.numbers = np.zeros(2, np.int64)
            self.names = {"a": [1], "b": {2}}

    thing = Thing()
    numbers = thing.numbers
    snapshot = Snapshot(thing, [])
    thing.numbers[0] = 7
    thing.numbers = np.ones(1, np.int64)
    thing.names["a"].append(3)  # type: ignore[attr-defined]
    thing.names["b"].add(4)  # type: ignore[attr-defined]
    del thing.names["a"]
    thing.other = thing  # type: ignore[attr-defined]
    snapshot.restore()
    assert thing.numbers is numbers and numbers.tolist() == [0, 0]
    assert thing.names == {"a": [1], "b": {2}}
    assert not hasattr(thing, "other")


def test_verdicts_are_those_of_worlds_that_are_built_each_time() -> None:
    """The same interleavings, steps and prunings, whether the world is put back or built."""

    def built_each_time(execution: Execution, name: str, design: str) -> Callable[[], None]:
        check = scenario(name, DESIGNS[design]).build(execution)
        execution.subject = None
        return check

    for name in ("unmap / copy", "migrate / fork", "restore / exit of the child", "referenced / mremap away"):
        for design in ("anon_vma", "cow_context"):
            anew = explore(Scenario(name, partial(built_each_time, name=name, design=design)))
            back = explore(scenario(name, DESIGNS[design]))
            assert (anew.executions, anew.pruned, anew.steps) == (back.executions, back.pruned, back.steps)
            assert anew.exhausted and back.exhausted and anew.lock_order == back.lock_order
