# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures: answers of kernels to the aimed histories, as text to review.

A file has a comment that names the kernel, a line for each event with its result, and after the last event the
state as answers.py writes it.
"""

from __future__ import annotations

from collections.abc import Iterator

from rmaplab.kernel.aimed import AIMED, history, setting
from rmaplab.kernel.answers import of_kernel
from rmaplab.kernel.coverage import Coverage
from rmaplab.kernel.lockstep import Disagreement, Lockstep, Witness
from rmaplab.mm.folio import MAX_ORDER


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
    its = setting(name)
    large = f", folios of up to {1 << its.large_folios} pages" if its.large_folios else ""
    crowded = f", {its.mappings} mappings at most" if its.mappings else ""
    title = f"# {name}{large}{crowded}, answered by Linux {witness.profile.release}"
    lines = [title, *map(str, lockstep.played), *state]
    return "\n".join(lines) + "\n", None


def answers(witness: Witness, coverage: Coverage | None = None) -> Iterator[tuple[str, str, Disagreement | None]]:
    """name, text and disagreement of every aimed history that the kernel can do."""
    for name in possible_names(witness.has_large_folios):
        yield (name, *answer(witness, name, coverage))


def possible_names(mthp: bool) -> list[str]:
    """The aimed histories that a kernel can do which has large folios of any size, or of 2 MiB only."""
    return [name for name in AIMED if mthp or setting(name).large_folios in (0, MAX_ORDER)]
