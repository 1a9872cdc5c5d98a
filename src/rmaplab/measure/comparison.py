# SPDX-License-Identifier: GPL-2.0-or-later
"""The main job: one history, all designs, checked against the page tables and against each other.

One machine carries all designs in lockstep, and VMA geometry follows one of them, the leader.  At a
number of moments, evenly spread over the history, a `Checker` walks the mapped folios in every design;
its walks are also what the report says about walks.  A design whose own rule would have merged other VMAs has
one more machine to itself, for the number of VMAs alone, in a process beside this one where there is a CPU for it
(beside.py); one that agreed with the leader each time has the leader's, as long as no walk of the machine's own
(reclaim, migration, KSM) could have missed something by it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Final, NamedTuple

import msgspec

from rmaplab.check import lockstep
from rmaplab.check.finding import shortest_history
from rmaplab.check.lockstep import Checker
from rmaplab.measure.beside import Beside, Told
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
    jobs:    processes that play, where a design has a machine to itself
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
    jobs: int = 1
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
    counts: list[Counts | None] = []
    others: list[Vmas] = []
    with _Alone(history, plan, machine, progress) as alone:
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
                alone.progress("playing", played, total)
        except InvariantError as error:
            found.add_broken(str(error), player.played, machine.leader.name)
            alone.in_doubt |= player.played < total
        for doubt in history.header.doubts:
            found.add(Difference("recording", doubt, 0, error=True))
        for result in player.differences:
            found.add(Difference("result", result.what, result.number, error=True))
        for geometry in player.geometry:
            found.add(Difference("geometry", geometry.what, geometry.number, error=True))
        for slot, design in enumerate(machine.designs):
            if design is machine.leader:
                counts.append(vma_counts(machine))
            elif not plan.alone:
                counts.append(None)
            elif not alone.is_needed(slot):
                counts.append(vma_counts(machine))
                others.append(sampler.vmas(design))
            else:
                own = alone.outcome(slot)
                counts.append(own.counts)
                if own.vmas is None:
                    found.add_broken(own.broken, own.event, design.name)
                else:
                    others.append(own.vmas)
    designs = [
        design_figures(
            design, checker.counts.designs[design.name], aside.work(design.name), vmas, operations.of(design.name)
        )
        for design, vmas in zip(machine.designs, counts, strict=True)
    ]
    checked = checker.counts
    checks = Checks(checked.checks, checked.folios, checked.skipped, checked.entries, total, player.marks)
    counted = dict(sorted(found.counted.items()))
    figures = Figures(machine_figures(machine, total), designs, checks, counted, sampler.memory(others))
    return Comparison(figures, found.listed)


class _Own(NamedTuple):
    """VMAs where one design decides by itself what may merge, also as memory; or why it did not get to the end, and at
    which event."""

    counts: Counts | None = None
    vmas: Vmas | None = None
    broken: str = ""
    event: int = 0


def _play_alone(history: History, plan: Plan, slot: int, told: Told) -> _Own:
    machine = plan.machine(plan.designs[slot])
    player = Player(machine, history.header, batch=plan.batch)
    sampler = Sampler(machine, len(history))
    try:
        player.begin(history)
        while player.played < len(history):
            player.play_to(min(sampler.due, len(history)))
            sampler.look(player.played)
            told(player.played)
    except InvariantError as error:
        return _Own(broken=str(error), event=player.played)
    return _Own(vma_counts(machine), sampler.vmas(machine.leader))


class _Alone:
    """Designs with a machine to themselves: each begins when it is known to need one, as long as no more than
    `plan.jobs` processes play, this one among them; what has not begun when it is asked for is played here.

    in_doubt: nobody can know what a design would have done from the leader's machine
    """

    def __init__(self, history: History, plan: Plan, machine: Machine, progress: Progress) -> None:
        self.in_doubt = bool((history.columns["op"] == CODE["ksm"]).any())
        self._history: Final = history
        self._plan: Final = plan
        self._machine: Final = machine
        self._progress: Final = progress
        self._waiting: Final = [slot for slot in range(len(plan.designs)) if plan.alone and slot != plan.leader]
        self._begun: Final[dict[int, Beside[_Own]]] = {}

    def __enter__(self) -> _Alone:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for begun in self._begun.values():
            begun.stop()

    def is_needed(self, slot: int) -> bool:
        """May its VMAs be others than those that the leader made so far?  Once they may, they may for ever."""
        machine = self._machine
        return self.in_doubt or machine.walks.count > 0 or machine.designs[slot] not in machine.agreeing

    def progress(self, what: str, done: int, total: int) -> None:
        """Tells it, and lets those begin for which there is a CPU, as long as this process has work of its own."""
        free = self._plan.jobs - 1 - sum(begun.runs() for begun in self._begun.values()) if done < total else 0
        for slot in [slot for slot in self._waiting if free > 0 and self.is_needed(slot)][:free]:
            self._waiting.remove(slot)
            self._begun[slot] = Beside(f"played with {self._machine.designs[slot].name} alone", self._work(slot))
        self._progress(what, done, total)

    def _work(self, slot: int) -> Callable[[Told], _Own]:
        return partial(_play_alone, self._history, self._plan, slot)

    def outcome(self, slot: int) -> _Own:
        """What comes of it for one that needs it."""

        def told(done: int) -> None:
            self.progress(f"playing with {self._machine.designs[slot].name} alone", done, len(self._history))

        if slot not in self._waiting:
            return self._begun[slot].result(told)
        self._waiting.remove(slot)
        return self._work(slot)(told)


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
