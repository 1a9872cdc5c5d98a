# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures: answers of kernels to the aimed histories and to random ones, as text to review.

An aimed history is a file: a comment that names the kernel, a line for each event with its result, and after the last
event the state as answers.py writes it.  Random histories share a file.  Each has its comment, where mmap() begins to
look for room after an exec, and after every few steps a digest of the state.
"""

from __future__ import annotations

from collections.abc import Iterator

from rmaplab.kernel.aimed import AIMED, history, setting
from rmaplab.kernel.answers import digest, of_kernel
from rmaplab.kernel.coverage import Coverage
from rmaplab.kernel.driver import Setting
from rmaplab.kernel.lockstep import Disagreement, Lockstep, Witness, random_history
from rmaplab.mm.folio import MAX_ORDER

EVERY = 6  # steps of a random history from one digest to the next


def answer(
    witness: Witness, name: str, coverage: Coverage | None = None
) -> tuple[str, Disagreement | None]:
    """The text for one aimed history, and whether the model disagreed on the way."""
    lockstep = Lockstep(witness, coverage=coverage, setting=setting(name))
    try:
        for event in history(name):
            if lockstep.possible(event):
                found = lockstep.step(event)
                if found is not None:
                    return "", found
        assert lockstep.snapshot is not None
        state = of_kernel(lockstep.snapshot, lockstep.driver.pids)
    finally:
        lockstep.end()
    lines = [_title(name, setting(name), witness), *map(str, lockstep.played), *state]
    return "\n".join(lines) + "\n", None


def random_answer(witness: Witness, seed: int, steps: int) -> tuple[str, Disagreement | None]:
    """The text for the random history of a seed, and whether the model disagreed on the way."""
    history, share = random_history(witness, seed)
    lockstep = history.lockstep
    lines = [_title(f"seed {seed}", lockstep.setting, witness)]
    told = 0
    try:
        for number, found in enumerate(history.steps(steps // share), 1):
            if found is not None:
                return "", found
            for event in lockstep.played[told:]:
                lines.append(str(event))
                if event.op == "exec":
                    lines.append(f"| mmap_base {lockstep.machine.mm_of(event.pid).mmap_base:#x}")
            told = len(lockstep.played)
            if number % EVERY == 0:
                assert lockstep.snapshot is not None
                lines.append(f"| {digest(of_kernel(lockstep.snapshot, lockstep.driver.pids))}")
    finally:
        history.end()
    return "\n".join(lines) + "\n", None


def _title(name: str, its: Setting, witness: Witness) -> str:
    large = f", folios of up to {1 << its.large_folios} pages" if its.large_folios else ""
    crowded = f", {its.mappings} mappings at most" if its.mappings else ""
    return f"# {name}{large}{crowded}, answered by Linux {witness.profile.release}"


def answers(witness: Witness, coverage: Coverage | None = None) -> Iterator[tuple[str, str, Disagreement | None]]:
    """name, text and disagreement of every aimed history that the kernel can do."""
    for name in possible_names(witness.has_large_folios):
        yield (name, *answer(witness, name, coverage))


def possible_names(mthp: bool) -> list[str]:
    """The aimed histories that a kernel can do which has large folios of any size, or of 2 MiB only."""
    return [name for name in AIMED if mthp or setting(name).large_folios in (0, MAX_ORDER)]
