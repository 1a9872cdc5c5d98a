# SPDX-License-Identifier: GPL-2.0-or-later
"""Hypothesis drives the machine: right designs hold, and a wrong one is shown by a few events."""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from check.stateful import Histories
from rmaplab.check.histories import ARENA
from rmaplab.check.mutants import ChildNotLinked, RemapNotRecorded
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.rmap import DESIGNS
from rmaplab.rmap.anon_vma import AnonVmaRmap

FEW = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
MANY = settings(FEW, max_examples=2000)


class Large(Histories):
    large_folios: ClassVar[int] = 2


class Rivals(Histories):
    designs: ClassVar[tuple[type[ReverseMap], ...]] = tuple(
        DESIGNS[name] for name in ("anon_vma", "anon_vma_lazy", "anonmm", "pte_chain")
    )


@pytest.mark.parametrize("what", [Histories, Large, Rivals])
def test_right_designs_hold(what: type[Histories]) -> None:
    run_state_machine_as_test(what, settings=FEW)


class ChildLost(Histories):
    designs: ClassVar[tuple[type[ReverseMap], ...]] = (ChildNotLinked,)


class RemapLost(Histories):
    """Whose stack is among the pages that everything happens at: to move it shows what is wrong."""

    designs: ClassVar[tuple[type[ReverseMap], ...]] = (AnonVmaRmap, RemapNotRecorded)
    stack: ClassVar[int] = ARENA


def test_a_wrong_design_is_shown_by_a_few_events() -> None:
    with pytest.raises(AssertionError) as failed:
        run_state_machine_as_test(ChildLost, settings=MANY)
    told = [line.split()[0] for line in str(failed.value).splitlines()]
    assert told[1:] == ["exec", "fork"], told  # the stack is enough


def test_another_is_found_too() -> None:
    with pytest.raises(AssertionError, match="no record of page offsets"):
        run_state_machine_as_test(RemapLost, settings=settings(MANY, phases=[Phase.generate]))
