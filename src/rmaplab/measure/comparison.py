# SPDX-License-Identifier: GPL-2.0-or-later
"""The main job: one history, all designs, checked against the page tables and against each other.

One machine carries all designs in lockstep, and VMA geometry follows one of them, the leader.  At a
number of moments, evenly spread over the history, a `Checker` walks the mapped folios in every design;
its walks are also what the report says about walks.  A design whose own rule would have merged other VMAs has
then one more machine to itself, for the number of VMAs alone; one that agreed with the leader each time has the
leader's, as long as no walk of the machine's own (reclaim, migration, KSM) could have missed something by it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from rmaplab.check import lockstep
from rmaplab.check.finding import shortest_history
from rmaplab.check.lockstep import Checker
from rmaplab.measure.collect import Aside, Operations, design_figures, machine_figures, vma_counts
from rmaplab.measure.cost import CostProfile
from rmaplab.measure.figures import Counts
from rmaplab.measure.memory import Sampler, Vmas
from rmaplab.measure.result import Checks, Comparison, Difference, Figures
from rmaplab.measure.times import times
from rmaplab.mm.errors import InvariantError
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import Profile
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.trace.events import Event
from rmaplab.trace.history import CODE, History
from rmaplab.trace.play import Player

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
    operations = Operations(machine)
    player = Player(machine, history.header, batch=plan.batch, watcher=operations)
    checker = Checker(machine, limit=plan.folios)
    aside = Aside(machine)
    sampler = Sampler(machine, total)
    found = _Found(history, plan)
    every = plan.every or max(1, total // MOMENTS)
    due = every if plan.check else total + 1
    try:
        player.begin(history)
        while player.played < total:
            player.play_to(min(due, sampler.due, total))
            played = player.played
            sampler.look(played)
            if played >= due or (played == total and plan.check):
                with aside:
                    found.add_checked(checker.check(played - 1, player.last()))
                due = played // every * every + every
            progress("playing", played, total)
    except InvariantError as error:
        found.add_broken(str(error), player.played, machine.leader.name)
    for doubt in history.header.doubts:
        found.add(Difference("recording", doubt, 0, error=True))
    for result in player.differences:
        found.add(Difference("result", result.what, result.number, error=True))
    for geometry in player.geometry:
        found.add(Difference("geometry", geometry.what, geometry.number, error=True))

    alone = [vma_counts(machine) if design is machine.leader else None for design in machine.designs]
    others: list[Vmas] = []
    if plan.alone:
        walked = machine.walks.count or (history.columns["op"] == CODE["ksm"]).any() or player.played < total
        for slot, design in enumerate(machine.designs):
            if design in machine.agreeing and not walked:
                alone[slot] = vma_counts(machine)
                others.append(sampler.vmas(design))
            elif alone[slot] is None:
                alone[slot] = _alone(history, plan, slot, found, progress, others)
    designs = [
        design_figures(
            design, checker.counts.designs[design.name], aside.work(design.name), vmas, operations.of(design.name)
        )
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
        player.begin(history)
        while player.played < len(history):
            player.play_to(min(sampler.due, len(history)))
            sampler.look(player.played)
            progress(f"playing with {design.name} alone", player.played, len(history))
    except InvariantError as error:
        found.add_broken(str(error), player.played, design.name)
        return None
    others.append(sampler.vmas(machine.leader))
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
