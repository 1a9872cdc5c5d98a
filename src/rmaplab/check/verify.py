# SPDX-License-Identifier: GPL-2.0-or-later
"""Random histories by the thousand, every design against the page tables.

    plan = Plan(designs=("anon_vma", "cow_context"), seed=1, steps=100_000, every=1)
    found = verify(plan)

Work comes in *histories* of some hundred events, each written by an `Author` (check/histories.py) while
a machine plays it.  A history depends on the seed and its own number only, so it makes no difference
which process plays it, or in what order: any number of processes find the same.  Its number determines its kind:

- most are watched in lockstep, by `anon_vma`, which leads, `cow_context`, designs that are not in
  `rmaplab.rmap.DESIGNS`, and one of the others in turn: more designs cost no more, and each is seen less;
- one design alone watches every fourth, each in turn: its own rule decides what merges, and reclaim and migration
  rely on its own walks;
- every third has large folios;
- every fifth is played twice more, with faults in runs and one by one (check/batching.py).

After every `every`-th event, and after the last, a `Checker` compares every design with the page tables.  The
first history that fails, by number, is cut after the failing step, shortened as far as leaving out events allows,
and returned; histories with higher numbers are ignored.  A design may be *excused*: its misses are counted, and the
first instance kept, but the search goes on.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final

import msgspec

from rmaplab.check import batching
from rmaplab.check.coverage import ENOUGH, Reached, missing
from rmaplab.check.finding import Search
from rmaplab.check.histories import Author, header
from rmaplab.check.lockstep import Checker, Counts
from rmaplab.check.processes import workers
from rmaplab.errors import in_a_line
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.rmap import DESIGNS, load
from rmaplab.trace.events import Event
from rmaplab.verdict import judge

LENGTH: Final = 500  # events of a history
_FULL: Final = 64  # checks of which one walks everything
_ALWAYS: Final = ("anon_vma", "cow_context")
_ORDER: Final = tuple(DESIGNS)

Told = Callable[[str, int, int], None]  # what is being done, events done, events in all


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of a verification.

    designs: as `rmaplab.rmap.load` takes them
    steps:   events in all (0: as many as fit in `seconds`)
    seconds: of time that may pass (0: no matter)
    every:   check after so many events of a history (0: never, which only tests the machine)
    pages:   size of the arena of each history (0: various)
    large_folios: highest order, in all histories (0: various)
    jobs:    processes that play
    excused: names of designs whose incompleteness is a finding and no failure
    """

    designs: tuple[str, ...]
    profile: str = REFERENCE
    seed: int = 1
    steps: int = 0
    seconds: float = 0
    every: int = 1
    pages: int = 0
    large_folios: int = 0
    length: int = LENGTH
    jobs: int = 1
    excused: frozenset[str] = frozenset()

    def classes(self) -> list[type[ReverseMap]]:
        """The designs, those that merge least first, as lockstep needs them (rmap/__init__.py)."""
        known = {DESIGNS[name]: i for i, name in enumerate(_ORDER)}
        return sorted((load(spec) for spec in self.designs), key=lambda design: known.get(design, len(known)))


class Setup:
    """The machine of one history."""

    def __init__(self, plan: Plan, number: int) -> None:
        rng = random.Random(f"{plan.seed}/{number}")
        designs = plan.classes()
        self.alone: Final = len(designs) > 1 and number % 4 == 3
        if self.alone:
            designs = [designs[number // 4 % len(designs)]]
        else:
            known = {DESIGNS[name] for name in _ORDER if name not in _ALWAYS}
            in_turn = [design for design in designs if design in known]
            if in_turn:
                shared = number - number // 4  # how many shared ones came before
                left_out = {*in_turn} - {in_turn[shared % len(in_turn)]}
                designs = [design for design in designs if design not in left_out]
        self.designs: Final = designs
        self.profile: Final = PROFILES[plan.profile]
        self.large_folios: Final = plan.large_folios or (rng.choice((2, 3, 4)) if number % 3 == 2 else 0)
        self.pages: Final = plan.pages or rng.choice((12, 24, 48, 96))
        self.processes: Final = rng.choice((2, 4, 6, 8))
        self.homing: Final = 0.4 if number % 9 == 5 else 0.0
        self.rng: Final = rng

    def machine(self) -> Machine:
        return Machine(self.profile, self.designs, large_folios=self.large_folios)


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """A history that shows something wrong.

    history: its number; step: the event of it after which it showed, from 0
    kind:    as a `Difference` has it, "broken" if the machine or a design raised, or "batched"
    designs: that watched, the first of them leading
    events:  the history, up to the step that failed
    """

    history: int
    step: int
    kind: str
    what: str
    design: str
    designs: list[str]
    large_folios: int = 0
    events: list[Event] = []


class Ran(msgspec.Struct):
    """The result of one history."""

    number: int
    steps: int = 0
    compared: int = 0  # events also played in runs and one by one
    counts: Counts = msgspec.field(default_factory=Counts)
    reached: dict[str, int] = {}
    failure: Failure | None = None
    excused: dict[str, int] = {}
    examples: dict[str, Failure] = {}


class Verified(msgspec.Struct):
    """The result of all histories.

    reached:  how often an operation had an effect, by case (check/coverage.py)
    excused:  how often an excused design missed something, by "design: kind"; `examples` has the first
    failure:  the first history that failed, shortened
    original: how long it was before
    """

    histories: int = 0
    steps: int = 0
    compared: int = 0
    counts: Counts = msgspec.field(default_factory=Counts)
    reached: dict[str, int] = {}
    excused: dict[str, int] = {}
    examples: dict[str, Failure] = {}
    failure: Failure | None = None
    original: int = 0
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether nothing failed.

        :raises NothingLookedAt: nothing did, and no walk was checked
        """
        nothing = f"of {self.steps:,} events that were played, none was checked: ask for more steps, time or checks"
        return judge(self.counts.folios, self.failure is not None or bool(self.without_effect), nothing)

    @property
    def without_effect(self) -> list[str]:
        """Cases that a run of sufficient length did not reach: an operation silently does nothing."""
        return missing(self.reached) if self.steps >= ENOUGH and self.counts.checks else []

    def add(self, ran: Ran) -> None:
        self.histories += 1
        self.steps += ran.steps
        self.compared += ran.compared
        _add_up(self.counts, ran.counts)
        for case, count in ran.reached.items():
            self.reached[case] = self.reached.get(case, 0) + count
        for key, count in ran.excused.items():
            self.excused[key] = self.excused.get(key, 0) + count
        for key, example in ran.examples.items():
            self.examples.setdefault(key, example)


def _add_up(total: Counts, more: Counts) -> None:
    for name in ("checks", "folios", "skipped", "entries", "invariants", "leaks"):
        setattr(total, name, getattr(total, name) + getattr(more, name))
    for design, walks in more.designs.items():
        so_far = total.designs.get(design)
        if so_far is None:
            total.designs[design] = walks
            continue
        for name in walks.__struct_fields__:
            if name not in ("worst", "lengths"):
                setattr(so_far, name, getattr(so_far, name) + getattr(walks, name))
        so_far.worst = max(so_far.worst, walks.worst)
        for length, count in walks.lengths.items():
            so_far.lengths[length] = so_far.lengths.get(length, 0) + count


# One history


def run_history(plan: Plan, number: int, steps: int) -> Ran:
    """History `number` of the plan, `steps` events long at most."""
    setup = Setup(plan, number)
    machine = setup.machine()
    author = Author(machine, setup.rng, pages=setup.pages, processes=setup.processes, homing=setup.homing)
    checker = Checker(machine, full=_FULL)
    reached = Reached(machine)
    ran = Ran(number, counts=checker.counts, reached=reached.counts)
    events: list[Event] = []
    try:
        for event in author.proposals(steps):
            events.append(event)
            if plan.every:
                reached.begin(event)
            author.play(event)
            if plan.every:
                reached.end(event)
            checker.note(event)
            ran.steps += 1
            if plan.every and (ran.steps % plan.every == 0 or ran.steps == steps):
                _check(plan, setup, checker, ran, events, ran.steps == steps)
            if ran.failure is not None:
                break
    except HistoryError:
        raise
    except Exception as error:  # whatever a design or the machine raises is a finding
        ran.steps = len(events)
        _found(plan, setup, ran, events, "broken", in_a_line(error), setup.designs[0].name)
        return ran
    if number % 5 == 4 and ran.failure is None:
        ran.compared = len(events)
        what = batching.difference(events, header(), setup.machine)
        if what:
            _found(plan, setup, ran, events, "batched", what, "")
    return ran


def _check(plan: Plan, setup: Setup, checker: Checker, ran: Ran, events: list[Event], last: bool) -> None:
    for found in checker.check(ran.steps - 1, events[-1], last):
        if found.is_error:
            _found(plan, setup, ran, events, found.kind, found.what, found.design)


def _found(plan: Plan, setup: Setup, ran: Ran, events: list[Event], kind: str, what: str, design: str) -> None:
    names = [watching.name for watching in setup.designs]
    failure = Failure(
        ran.number, len(events) - 1, kind, what, design, names, setup.large_folios, list(events)
    )  # fmt: skip
    if design in plan.excused:
        key = f"{design}: {kind}"
        ran.excused[key] = ran.excused.get(key, 0) + 1
        ran.examples.setdefault(key, failure)
    elif ran.failure is None:
        ran.failure = failure


# Shortening


class _Batched(Search):
    """For histories that come out differently in runs and one by one."""

    def shown(self, events: Sequence[Event]) -> str:
        return batching.difference(events, self.header, self.machine)


def search_for(kind: str, design: str, machine: Callable[[], Machine], reference: str = "anon_vma") -> Search:
    """A search for a shorter history that shows `kind` (of a `Failure`) in `design`."""
    if kind == "batched":
        return _Batched(machine, header(), None)
    if kind == "broken":
        return Search(machine, header(), None)
    return Search(machine, header(), lambda found: found.kind == kind and found.design in (design, ""), reference)


def shortened(plan: Plan, failure: Failure) -> Failure:
    """The same failure, with as few events and designs as show it."""
    setup = Setup(plan, failure.history)
    designs = [d for d in setup.designs if d is setup.designs[0] or d.name == failure.design]

    def machine() -> Machine:
        return Machine(setup.profile, designs, large_folios=setup.large_folios)

    search = search_for(failure.kind, failure.design, machine)
    events = search.shortest(failure.events)
    what = search.shown(events)
    if not what:  # it took the designs that are left out
        return failure
    names = [design.name for design in designs]
    return msgspec.structs.replace(failure, what=what, step=len(events) - 1, designs=names, events=events)


# All histories


def verify(plan: Plan, told: Told = lambda what, done, total: None) -> Verified:
    """Play histories until the budget is used up, or one fails."""
    begun = time.monotonic()
    verified = Verified()
    if plan.jobs == 1:
        number = 0
        while (left := _left(plan, number, begun)) and verified.failure is None:
            _take(verified, run_history(plan, number, left), plan, told)
            number += 1
    else:
        _verify_side_by_side(plan, begun, verified, told)
    if verified.failure is not None:
        verified.original = len(verified.failure.events)
        verified.failure = shortened(plan, verified.failure)
    verified.seconds = time.monotonic() - begun
    return verified


def _left(plan: Plan, number: int, begun: float) -> int:
    """The number of events that history `number` may have; 0 ends the run."""
    if plan.seconds and time.monotonic() - begun >= plan.seconds:
        return 0
    return min(plan.length, max(0, plan.steps - number * plan.length)) if plan.steps else plan.length


def _take(verified: Verified, ran: Ran, plan: Plan, told: Told) -> None:
    verified.add(ran)
    verified.failure = ran.failure
    told(f"verifying, {verified.histories:,} histories", verified.steps, plan.steps or verified.steps)


def _verify_side_by_side(plan: Plan, begun: float, verified: Verified, told: Told) -> None:
    # Results are taken in the order of their numbers, so that the first failure is the same for any number
    # of processes; a few histories more than there are processes wait, so that none is idle.
    waiting: deque[Future[Ran]] = deque()
    number = 0
    with workers(plan.jobs) as pool:
        while verified.failure is None:
            while len(waiting) < 3 * plan.jobs and (left := _left(plan, number, begun)):
                waiting.append(pool.submit(run_history, plan, number, left))
                number += 1
            if not waiting:
                return
            _take(verified, waiting.popleft().result(), plan, told)
        pool.shutdown(cancel_futures=True)
