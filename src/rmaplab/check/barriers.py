# SPDX-License-Identifier: GPL-2.0-or-later
"""Which orderings does a design need?  Each is taken away, and every scenario tried under weak memory.

An ordering is what one place of the design or the machine states through sync/order.py: a release store, an address
dependency, an acquire, a fence, an atomic that returns a value.  Without it
- a scenario breaks: it is *needed*, and the timeline shows which load returned what old value;
- none does: *not needed by any scenario within the bounds*, which is all that can be said.

Scenarios that break with all orderings in place show one that is missing, unless they break under sequential
consistency as well: that is another bug, and they tell nothing of orderings.

The scenarios are those of one operation, those with a start of their own, and those that show a mutant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from rmaplab.check.processes import side_by_side
from rmaplab.check.race import SEQUENTIAL, Broken, Model, explain, name_ordering
from rmaplab.check.scenarios import names, scenario
from rmaplab.check.scenes import SCENES
from rmaplab.check.weak_mutants import WEAKENED
from rmaplab.rmap import load
from rmaplab.sync.interleave import explore

LIMIT = 2_000  # interleavings of a scenario


class Shown(msgspec.Struct, frozen=True):
    """A scenario that breaks, and what runs on each CPU."""

    scenario: str
    cpus: list[str]
    broken: Broken


class Ordering(msgspec.Struct, frozen=True):
    """An ordering that a design states.

    primitive: what it is in the kernel
    needed:    the first scenario that breaks without it, None: none did
    scenarios: how many were tried
    unfinished: of these, those that were given up after LIMIT interleavings
    """

    name: str
    primitive: str
    needed: Shown | None
    scenarios: int
    unfinished: int


class Barriers(msgspec.Struct, frozen=True):
    """What the orderings of a design are for.

    missing: scenarios that break with all of them in place, but not under sequential consistency
    broken:  names of those that do, so they are left out
    """

    design: str
    orderings: list[Ordering]
    missing: list[Shown]
    broken: list[str]


def scenes() -> list[str]:
    """The scenarios that are tried."""
    shown = {mutant.scene for mutant in WEAKENED}
    return [name for name in names() if " + " not in name or name in SCENES or name in shown]


def _try(name: str, design: str, memory: Model, limit: int) -> tuple[Shown | None, bool]:
    """What breaks, and whether nothing was left to try."""
    what = scenario(name, load(design))
    outcome = explore(what, limit=limit, begin=memory.begin)
    if outcome.failures:
        failure = outcome.failures[0]
        name_ordering(failure, what, memory)
        return Shown(name, failure.names, explain(failure)), True
    return None, outcome.exhausted


def _meet(work: tuple[str, str, int]) -> tuple[Shown | None, bool, dict[str, str]]:
    """What breaks with all orderings in place, whether that breaks anyway, and the orderings that were met."""
    name, design, limit = work
    memory = Model("weak")
    shown, _ = _try(name, design, memory, limit)
    anyway = shown is not None and _try(name, design, SEQUENTIAL, limit)[0] is not None
    return shown, anyway, memory.used


def _take_away(work: tuple[str, str, list[str], str, int]) -> Ordering:
    """Try the scenarios in which an ordering is met without it, up to the first that breaks."""
    ordering, primitive, met, design, limit = work
    needed: Shown | None = None
    count = unfinished = 0
    for name in met:
        count += 1
        needed, exhausted = _try(name, design, Model("weak", [ordering]), limit)
        unfinished += not exhausted
        if needed is not None:
            break
    return Ordering(ordering, primitive, needed, count, unfinished)


def barriers(
    design: str,
    tried: Sequence[str],
    limit: int = LIMIT,
    jobs: int = 1,
    tell: Callable[[int, int, str], None] = lambda done, total, of: None,
) -> Barriers:
    """Take each ordering of `design` away; `tell` is told how many of how many scenarios and orderings are done."""
    primitives: dict[str, str] = {}
    met: dict[str, list[str]] = {}  # scenarios in which an ordering is met: others do not change without it
    missing: list[Shown] = []
    broken: list[str] = []
    work = [(name, design, limit) for name in tried]
    found = side_by_side(_meet, work, jobs, lambda done, total: tell(done, total, "scenarios"))
    for name, (shown, anyway, used) in zip(tried, found, strict=True):
        if anyway:
            broken.append(name)
        elif shown is not None:
            missing.append(shown)
        else:
            primitives |= used
            for ordering in used:
                met.setdefault(ordering, []).append(name)
    orderings = side_by_side(
        _take_away,
        [(ordering, primitive, met[ordering], design, limit) for ordering, primitive in sorted(primitives.items())],
        jobs,
        lambda done, total: tell(done, total, "orderings"),
        lambda work: len(work[2]),
    )
    return Barriers(load(design).name, orderings, missing, broken)
