# SPDX-License-Identifier: GPL-2.0-or-later
"""Random histories for tests, and histories played in lockstep with checks."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

from rmaplab.check.histories import OPERATIONS, Author
from rmaplab.check.lockstep import Checker, Counts, Difference
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.trace.events import Event


def random_history(
    rng: random.Random,
    steps: int,
    designs: Sequence[type[ReverseMap]] = (AnonVmaRmap,),
    ops: Sequence[str] = OPERATIONS,
    pages: int = 48,
    kernel: str = REFERENCE,
) -> list[Event]:
    """A history of `steps` events, whose results are those of a machine led by the first of `designs`."""
    author = Author(Machine(PROFILES[kernel], designs), rng, ops, pages)
    return [author.begin()] + [author.next() for _ in range(steps - 1)]


def lockstep(
    machine: Machine,
    events: Iterable[Event],
    play: Callable[[Machine, Event], object],
    every: int = 1,
    reference: str = "anon_vma",
    go_on: bool = True,
) -> tuple[list[Difference], Counts]:
    """Plays `events` and checks after every `every`-th of them and after the last.

    Without `go_on` it stops at the first error.  Returns the differences in the order found, and what was
    checked.
    """
    checker = Checker(machine, reference)
    differences: list[Difference] = []
    step = -1
    event: Event | None = None
    for step, event in enumerate(events):
        play(machine, event)
        if step % every == every - 1:
            differences += checker.check(step, event)
            if not go_on and any(d.is_error for d in differences):
                return differences, checker.counts
    if (step + 1) % every:
        differences += checker.check(step, event)
    return differences, checker.counts
