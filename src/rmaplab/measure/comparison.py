# SPDX-License-Identifier: GPL-2.0-or-later
"""The main job: one history, all designs, checked against the page tables and against each other.

One machine carries all designs in lockstep, and VMA geometry follows one of them, the leader.  At a
number of moments, evenly spread over the history, a `Checker` walks the mapped folios in every design;
its walks are also what the report says about walks.  A design that merges VMAs by a rule of its own has
then one more machine to itself, for the number of VMAs alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from rmaplab.check import lockstep
from rmaplab.check.lockstep import Checker
from rmaplab.measure.collect import Aside, design_figures, machine_figures, vma_counts
from rmaplab.measure.cost import CostProfile
from rmaplab.measure.figures import Counts, DesignFigures, MachineFigures
from rmaplab.measure.finding import shortest_history
from rmaplab.measure.memory import Memory, Sampler, Vmas
from rmaplab.measure.table import Table
from rmaplab.measure.tables import table_of
from rmaplab.measure.times import Times, times
from rmaplab.mm.errors import InvariantError
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import Profile
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.trace.events import Event
from rmaplab.trace.history import History
from rmaplab.trace.play import Player
from rmaplab.verdict import NothingLookedAt, judge

MOMENTS: Final = 20  # checks of one history, where nothing else was asked for
FOLIOS: Final = 500  # walked at each of them, where nothing else was asked for
LISTED: Final = 20  # differences of one kind and design that are kept; all are counted

Progress = Callable[[str, int, int], None]  # what is being done, events done, events in all


class Plan(NamedTuple):
    """How a history is to be compared.

    designs: to watch it; leader: index of the one that VMA geometry follows
    every:   check after every so many events; 0: at MOMENTS moments
    folios:  walked at a check; 0: all of them
    check:   with False nothing is walked, so nothing is checked
    alone:   play the history once more for each design that does not lead, to count its VMAs
    batch:   apply consecutive faults as one run
    large_folios: highest order of folios that faults may allocate
    excused: names of designs whose incompleteness is a finding and no error
    """

    designs: list[type[ReverseMap]]
    profile: Profile
    leader: int = 0
    every: int = 0
    folios: int = FOLIOS
    check: bool = True
    alone: bool = True
    batch: bool = True
    large_folios: int = 0
    excused: frozenset[str] = frozenset()

    def machine(self, *designs: type[ReverseMap]) -> Machine:
        """A new machine that `designs` watch, the first of them leading."""
        return Machine(self.profile, designs, large_folios=self.large_folios)


class Difference(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that two parties do not agree on.

    kind:    "incomplete", "stale", "missing", "additional", "invariant" (see check/lockstep.py);
             "broken": the machine could not go on with what its leader told it;
             "result": the machine returned something else than the kernel;
             "geometry": its VMAs are not those of /proc/PID/maps
             "recording": the history may not be what happened
    error:   whether the history does not hold because of it
    event:   number of the event after which it showed, from 0
    shortest: a history of its own that shows the same, for the first place that each design misses
    """

    kind: str
    what: str
    event: int
    error: bool
    design: str = ""
    place_maps: bool = False
    shortest: list[Event] = []


class Checks(msgspec.Struct, frozen=True):
    """How much was checked.

    moments: at which the designs were checked; folios: walked, and `skipped` for want of time
    entries: page-table entries held against the walks; results: of system calls held against the kernel's
    maps:    address spaces held against /proc/PID/maps
    """

    moments: int
    folios: int
    skipped: int
    entries: int
    results: int
    maps: int


class Figures(msgspec.Struct, frozen=True, omit_defaults=True):
    """All figures of a comparison.

    counted: differences by kind, where `differences` lists the first of each kind only
    memory:  what each design held over the history, and what it costs elsewhere
    times:   what the counted work takes, where a cost profile was named
    """

    machine: MachineFigures
    designs: list[DesignFigures]
    checks: Checks
    counted: dict[str, int]
    memory: Memory
    times: Times | None = None


class Comparison(msgspec.Struct, frozen=True):
    """What a comparison found.

    `found.table()` has a row for each design, `found.table("memory")` the bytes that each holds over the history.
    """

    figures: Figures
    differences: list[Difference]

    @property
    def holds(self) -> bool:
        """Whether no difference is an error.

        :raises NothingLookedAt: the history has no events, or it was to be checked and no folio was mapped when it was
        """
        checks = self.figures.checks
        wrong = any(difference.error for difference in self.differences)
        if checks.moments and not checks.folios:
            return judge(0, wrong, f"no anonymous page was mapped at any of {checks.moments} moments")
        return judge(checks.results, wrong, "the history has no events")

    def table(self, what: str = "designs") -> Table:
        """The figures as a table (measure/tables.py); `what`: "designs", "objects", "locks", "work", "walks", "memory",
        "vmas", "differences".

        :raises ValueError: there is no such table
        """
        return table_of(self, what)

    def __repr__(self) -> str:
        return f"<comparison: {self._verdict()}>\n{self.table()!r}"

    def _repr_html_(self) -> str:
        return f"<p>{self._verdict()}</p>{self.table()._repr_html_()}"

    def _verdict(self) -> str:
        try:
            return "holds" if self.holds else "does not hold"
        except NothingLookedAt as nothing:
            return str(nothing)


def priced(found: Comparison, costs: CostProfile) -> Comparison:
    """The same, with the times that `costs` derive from the work."""
    figures = found.figures
    derived = times(costs, figures.machine, figures.designs)
    return Comparison(msgspec.structs.replace(figures, times=derived), found.differences)


def compare(history: History, plan: Plan, progress: Progress) -> Comparison:
    """Play `history` on the designs of `plan`, check them, and count.

    :raises HistoryError: the history is impossible
    """
    total = len(history)
    machine = Machine(plan.profile, plan.designs, plan.leader, large_folios=plan.large_folios)
    player = Player(machine, history.header, batch=plan.batch)
    checker = Checker(machine, limit=plan.folios)
    aside = Aside(machine)
    sampler = Sampler(machine, total)
    found = _Found(history, plan)
    every = plan.every or max(1, total // MOMENTS)
    due = every if plan.check else total + 1
    try:
        for played, event in player.steps(history):
            sampler.look(played)
            if played >= due or (played == total and plan.check):
                with aside:
                    found.add_checked(checker.check(played - 1, event))
                due = played // every * every + every
            progress("playing", played, total)
    except InvariantError as error:
        found.add_broken(str(error), player.played, machine.leader.name)
    for doubt in history.header.doubts:
        found.add(Difference("recording", doubt, 0, error=True))
    for result in player.differences:
        found.add(Difference("result", str(result), result.number, error=True))
    for geometry in player.geometry:
        found.add(Difference("geometry", str(geometry), geometry.number, error=True))

    alone = [vma_counts(machine) if design is machine.leader else None for design in machine.designs]
    others: list[Vmas] = []
    if plan.alone:
        for slot in range(len(alone)):
            if alone[slot] is None:
                alone[slot] = _alone(history, plan, slot, found, progress, others)
    designs = [
        design_figures(design, checker.counts.designs[design.name], aside.work(design.name), vmas)
        for design, vmas in zip(machine.designs, alone, strict=True)
    ]
    counts = checker.counts
    checks = Checks(counts.checks, counts.folios, counts.skipped, counts.entries, total, player.marks)
    counted = dict(sorted(found.counted.items()))
    figures = Figures(machine_figures(machine, total), designs, checks, counted, sampler.memory(others))
    return Comparison(figures, found.listed)


def _alone(
    history: History, plan: Plan, slot: int, found: _Found, progress: Progress, others: list[Vmas]
) -> Counts | None:
    """VMAs where one design decides by itself what may merge, also as memory, in `others`; None if it does not get to
    the end."""
    design = plan.designs[slot]
    machine = plan.machine(design)
    player = Player(machine, history.header, batch=plan.batch)
    sampler = Sampler(machine, len(history))
    try:
        for played, _ in player.steps(history):
            sampler.look(played)
            progress(f"playing with {design.name} alone", played, len(history))
    except InvariantError as error:
        found.add_broken(str(error), player.played, design.name)
        return None
    others.append(sampler.vmas())
    return vma_counts(machine)


class _Found:
    """Differences as they come in: all of them counted, the first of each kind kept."""

    def __init__(self, history: History, plan: Plan) -> None:
        self.listed: Final[list[Difference]] = []
        self.counted: Final[dict[str, int]] = {}
        self._history: Final = history
        self._plan: Final = plan

    def add_checked(self, differences: list[lockstep.Difference]) -> None:
        for found in differences:
            self.add(
                Difference(
                    kind=found.kind,
                    what=found.what,
                    event=found.step,
                    error=found.is_error and found.design not in self._plan.excused,
                    design=found.design,
                    place_maps=found.maps,
                    shortest=self._shortest(found),
                )
            )

    def _shortest(self, found: lockstep.Difference) -> list[Event]:
        if found.kind != "incomplete" or f"incomplete {found.design}" in self.counted:
            return []
        plan = self._plan
        leader = plan.designs[plan.leader]
        watching = [design for design in plan.designs if design.name == found.design and design is not leader]
        return shortest_history(self._history, found, lambda: plan.machine(leader, *watching))

    def add_broken(self, what: str, event: int, leader: str) -> None:
        """The machine could not go on, led by `leader`."""
        self.add(Difference("broken", what, event, leader not in self._plan.excused, leader))

    def add(self, difference: Difference) -> None:
        key = f"{difference.kind} {difference.design}".rstrip()
        self.counted[key] = self.counted.get(key, 0) + 1
        if self.counted[key] <= LISTED:
            self.listed.append(difference)
