# SPDX-License-Identifier: GPL-2.0-or-later
"""Walking only what a step can have changed finds exactly the errors that walking everything finds."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from rmaplab.check.histories import Author
from rmaplab.check.lockstep import ERRORS, Checker
from rmaplab.check.mutants import MUTANTS, Mutant
from rmaplab.check.truth import Truth
from rmaplab.check.walks import _picture
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.rmap import DESIGNS

NEVER = 10**9  # checks: that a check walks everything once in a while is left out here
Errors = set[tuple[object, ...]]


class Blinkered(Checker):
    """Takes every address space to be as it was."""

    def _chosen(self, truth: Truth) -> Sequence[int]:
        assert self._changes is not None
        self._changes._named.clear()
        self._changes._vmas = {mm.id: _picture(mm) for mm in truth.mms}
        return super()._chosen(truth)


def errors(checker: Checker) -> Errors:
    """All errors that are there now, whichever check found them."""
    # Leaks are only looked for where everything is walked.
    return {key for key in [*checker._known, *checker._said] if key[0] in ERRORS and key[0] != "leak"}


def first_difference(
    machine: Machine, author: Author, reference: str, steps: int, kind: type[Checker] = Checker, every: int = 1
) -> tuple[int, int, Errors]:
    """Play a random history, checked both ways: how many errors were seen, the first step at which the two ways see
    different ones (-1: none), and which."""
    changed = kind(machine, reference, full=NEVER)
    everything = Checker(machine, reference)
    changed.note(author.begin())
    seen = 0
    for step in range(1, steps):
        try:
            changed.note(author.next())
        except Exception:  # some mutants break the machine, and then it is over
            break
        if step % every:
            continue
        changed.check(step)
        everything.check(step)
        seen += len(errors(everything))
        if errors(changed) != errors(everything):
            return seen, step, errors(changed) ^ errors(everything)
    assert changed.counts.folios <= everything.counts.folios
    return seen, -1, set()


@pytest.mark.parametrize("large_folios", [0, 4])
@pytest.mark.parametrize("every", [1, 7])
def test_all_designs_show_the_same_errors(large_folios: int, every: int) -> None:
    """The prototype is incomplete by itself: much is seen."""
    machine = Machine(PROFILES[REFERENCE], list(DESIGNS.values()), large_folios=large_folios)
    seen, step, which = first_difference(machine, Author(machine, random.Random(every)), "anon_vma", 300, every=every)
    assert seen > 10 and (step, which) == (-1, set())


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutants_show_the_same_errors(mutant: Mutant) -> None:
    for seed in range(2):
        machine = mutant.build()
        author = Author(machine, random.Random(seed), mutant.ops, mutant.pages, mutant.processes)
        _, step, which = first_difference(machine, author, mutant.names(machine)[1], 150)
        assert (step, which) == (-1, set())


def test_less_is_walked() -> None:
    machine = Machine(PROFILES[REFERENCE], [DESIGNS["anon_vma"], DESIGNS["cow_context"]])
    author = Author(machine, random.Random(1))
    changed = Checker(machine, full=64)
    everything = Checker(machine)
    changed.note(author.begin())
    for step in range(400):
        changed.note(author.next())
        for checker in (changed, everything):
            assert not any(difference.is_error for difference in checker.check(step))
    assert changed.counts.folios < everything.counts.folios / 2


def test_who_does_not_look_at_address_spaces_misses_errors() -> None:
    """That the two ways agree says something: with one of the reasons to look again taken away, they do not."""
    [mutant] = [mutant for mutant in MUTANTS if mutant.name == "SplitWithoutClone"]
    machine = mutant.build()
    author = Author(machine, random.Random(0), mutant.ops, mutant.pages, mutant.processes)
    _, step, which = first_difference(machine, author, mutant.names(machine)[1], 300, Blinkered)
    assert step > 0 and which
