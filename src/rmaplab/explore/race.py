# SPDX-License-Identifier: GPL-2.0-or-later
"""A race as a film: one execution of a scenario of `rmaplab race`, with a picture after each operation.

The execution is run twice, the same both times: first to learn the outcome, then with the camera, which
marks the entry that will be missed in all pictures.

Invariant: taking a picture is no step.  Walks of the camera between two steps bypass the checker, take no lock,
and count nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from rmaplab.check.race import SEQUENTIAL, Labels, Model, RaceError, name_ordering, read_path, write_path
from rmaplab.check.scenarios import scenario
from rmaplab.check.world import Obligation, World
from rmaplab.explore.camera import FINE, Camera, pids_of
from rmaplab.explore.film import Reel
from rmaplab.explore.parts import Cpu, Film, State, Step
from rmaplab.explore.tours.race import RaceTour
from rmaplab.explore.witness import RCU, Witness
from rmaplab.measure.collect import Aside
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import PTE_SHIFT
from rmaplab.mm.picture import Scope
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import MM
from rmaplab.printable import plural
from rmaplab.sync.interleave import AGE, Execution, Failure, Scenario, Task, perform, replay
from rmaplab.sync.locks import Scheduler

_MM: Final = re.compile(r"\bmm (\d+)")

Part = tuple[int, str, bool]  # steps of the execution, what a tour says about them, whether it asks for the folio


def shoot_race(name: str, design: type[ReverseMap], path: str, memory: Model = SEQUENTIAL) -> Film:
    """The film of one execution of the scenario `name`, in which `path` says who takes each step, as `rmaplab race`
    writes it."""
    choices = read_path(path)
    try:
        film = _Shooting(name, design, Machine, choices, [(1, "", False) for _ in choices], memory).shoot()
    except ValueError as error:
        raise RaceError(str(error)) from error
    if film.steps[-1].wrong:
        film.differences.append(film.steps[-1].wrong)
    return film


def shoot_tour(tour: RaceTour, design: type[ReverseMap]) -> Film:
    """The film of a guided tour, with a step for each of its turns."""
    choices, parts = follow(tour, design)
    film = _Shooting(tour.scenario, design, tour.machine, choices, parts, tour.memory()).shoot()
    film.title = tour.title
    film.origin = f"a guided tour of the race “{tour.scenario}”"
    film.steps[0].say = tour.about
    return film


def follow(tour: RaceTour, design: type[ReverseMap]) -> tuple[list[int], list[Part]]:
    """The path on which each turn of the tour does what it says; the last one ends when all CPUs have.
    Raises RaceError if a turn cannot be."""
    choices: list[int] = []
    parts: list[Part] = []

    labels = Labels(None)

    def turns(execution: Execution) -> Iterator[int]:
        for turn in tour.turns:
            steps = 0
            while True:
                task = execution.tasks[turn.cpu] if turn.cpu < len(execution.tasks) else None
                if task is None or not execution.enabled(task):
                    goal = turn.until or "its end"
                    raise RaceError(f"the tour {tour.name} no longer fits: CPU {turn.cpu} cannot go on to “{goal}”")
                assert task.pending is not None
                did = learn(labels, execution).step(task.pending)
                steps += 1
                age = max(execution.ages(task, [])) if turn.old and turn.until in did else 0
                choices.append(turn.cpu + AGE * age)
                parts[len(parts) - (steps > 1) :] = [(steps, turn.say, turn.ask)]
                yield choices[-1]
                if task.done if turn.until == "" else turn.until in did:
                    break
        steps = 0
        while (number := next((task.number for task in execution.tasks if execution.enabled(task)), -1)) >= 0:
            choices.append(number)
            steps += 1
            yield number
        parts.append((steps, tour.end, False))

    failure = perform(scenario(tour.scenario, design, watching(tour.machine)), by(turns), tour.memory().begin)
    if failure is not None and len(parts) == len(tour.turns):  # it breaks in the last turn, and nobody goes on
        steps, say, ask = parts[-1]
        parts[-1] = (steps, f"{say} {tour.end}", ask)
        return choices, parts
    if len(parts) <= len(tour.turns):
        raise RaceError(f"the tour {tour.name} no longer fits: it ends before “{tour.turns[len(parts) - 1].until}”")
    return choices, parts


def by(plan: Callable[[Execution], Iterator[int]]) -> Callable[[Execution], int]:
    """A chooser for `perform` that follows a plan, which is a generator."""
    running: list[Iterator[int]] = []

    def choose(execution: Execution) -> int:
        if not running:
            running.append(plan(execution))
        return next(running[0], -1)

    return choose


def world_of(execution: Execution | Failure) -> World:
    world = execution.subject
    assert isinstance(world, World)
    return world


def learn(labels: Labels, execution: Execution) -> Labels:
    """Name all that exists now as the drawings do."""
    machine = world_of(execution).machine
    labels.learn(world_of(execution))
    for mm in unowned(machine):
        labels.add_mm(mm, f"address space {mm.id}")
    for mm in watched(machine).made:
        for vma in mm.tree:
            labels.add(vma, f"V{vma.id}")
            labels.add(vma.lock, f"lock of V{vma.id}")
    labels.names.update(machine.leader.picture().locks())
    return labels


def unowned(machine: Machine) -> list[MM]:
    """Address spaces of no process, which a fork is making or an exit takes down."""
    owned = {process.mm.id for process in machine.processes.values()}
    return [mm for mm in watched(machine).made if mm.alive and mm.id not in owned]


class Watched(Witness):
    """The scheduler of a machine in a race: forwards what CPUs do to the checker, and records what walks of the
    camera do between their steps.

    made: all address spaces, also those that are gone; a machine knows only those of processes
    """

    def __init__(self, execution: Execution, made: list[MM]) -> None:
        super().__init__()
        self.execution: Final = execution
        self.made: Final = made
        self.acquired: Final[list[tuple[object, bool]]] = []  # by CPUs

    def _runs(self) -> bool:
        """Does a CPU run, and not the camera?"""
        return self.execution.current is not None

    def acquire(self, lock: object, write: bool) -> None:
        if self._runs():
            self.execution.acquire(lock, write)
            self.acquired.append((lock, write))
            return
        if self.listening:
            self.waits += [(lock, f"CPU {task.number}") for task in holders(self.execution, lock, write)]
        super().acquire(lock, write)

    def try_acquire(self, lock: object, write: bool) -> bool:
        if not self._runs():
            return super().try_acquire(lock, write)
        got = self.execution.try_acquire(lock, write)
        if got:
            self.acquired.append((lock, write))
        return got

    def wait(self, what: str, subject: object, ready: Callable[[], bool]) -> None:
        """The camera waits for nobody: what it sees is what is there now."""
        self.execution.wait(what, subject, ready)

    def wait_load(self, what: str, subject: object, field: str, ready: Callable[[], bool]) -> object:
        return self.execution.wait_load(what, subject, field, ready)


def _by_who_runs(name: str) -> Callable[..., object]:
    """A method of a scheduler that is the checker's while a CPU runs, and that of the camera else."""

    def method(self: Watched, *args: object, **named: object) -> object:
        return getattr(self.execution if self._runs() else super(Watched, self), name)(*args, **named)

    return method


for _name in vars(Scheduler):
    if not _name.startswith("_") and _name not in vars(Watched):
        setattr(Watched, _name, _by_who_runs(_name))


def watched(machine: Machine) -> Watched:
    scheduler = machine.scheduler
    assert isinstance(scheduler, Watched)
    return scheduler


def holders(execution: Execution, lock: object, write: bool) -> list[Task]:
    """The tasks that have to release `lock` first."""
    return [
        task
        for task in execution.tasks
        if any(held is lock and (write or exclusively) for held, exclusively in task.held)
    ]


def watching(machine: type[Machine]) -> type[Machine]:
    """`machine`, with walks of the camera hidden from the checker."""

    class Watching(machine):  # type: ignore[valid-type, misc]
        def __init__(self, *what: object, scheduler: Execution, **how: object) -> None:
            self.made: Final[list[MM]] = []
            super().__init__(*what, scheduler=Watched(scheduler, self.made), **how)

        def new_mm(self) -> MM:
            mm: MM = super().new_mm()
            self.made.append(mm)
            return mm

    return Watching


class _Shooting:
    def __init__(
        self,
        name: str,
        design: type[ReverseMap],
        machine: type[Machine],
        choices: list[int],
        parts: list[Part],
        memory: Model,
    ) -> None:
        self.name: Final = name
        self.design: Final = design
        self.machine: Final = machine
        self.choices: Final = choices
        self.parts: Final = parts
        self.memory: Final = memory
        self.doomed: dict[tuple[int, int], int] = {}
        self.notes: list[str] = []  # what each step of a failure found, if that was old
        self.labels: Final = Labels(None)

    def shoot(self) -> Film:
        failure = replay(self._staged(self.machine), self.choices, self.memory.begin)
        error = None if failure is None else failure.error
        if failure is not None:
            name_ordering(failure, self._staged(self.machine), self.memory)
            self.notes = [step.note for step in failure.trace]
        if failure is not None and isinstance(error, Obligation):
            mms = world_of(failure).machine.mms
            self.doomed = {
                (mm, addr): mms[mm].page_table.get(addr) >> PTE_SHIFT for mm, addr in error.places
            }
        again = perform(self._staged(watching(self.machine)), by(self._film), self.memory.begin)
        steps = self.reel.steps
        if len(steps) <= len(self.parts):  # a step broke it, so the task did not go on to be pictured
            broke = self.execution.trace[-1]
            broke.note = self.notes[-1]
            did = learn(self.labels, self.execution).step(broke)
            step = self._step([self.choices[-1] % AGE], [did])
            step.say = self.parts[len(steps) - 1][1]
            step.events = len(self.choices)
            self._take(self.execution, step)
        if again is not None:
            steps[-1].wrong = self._in_words(again)
        return Film(
            title=self.name,
            origin="rmaplab race",
            profile=self.reel.machine.profile.name,
            leader=self.reel.machine.leader.name,
            designs=self.reel.designs(),
            events=len(self.choices),
            first=1,
            last=len(self.choices),
            steps=steps,
            answers=self.reel.camera.answers,
            cpus=self.cpus,
            path=write_path(self.choices),
        )

    def _in_words(self, failure: Failure) -> str:
        """What is broken, with address spaces called by their processes."""
        scope = Scope([], pids_of(self.reel.machine))
        names = {mm.id: scope.whose(mm) for mm in watched(self.reel.machine).made}
        words = str(failure.error).splitlines()[0]
        return _MM.sub(lambda found: names.get(int(found[1]), found[0]), words)

    def _staged(self, machine: type[Machine]) -> Scenario:
        return scenario(self.name, self.design, machine)

    def _film(self, execution: Execution) -> Iterator[int]:
        """Follow the path, and take a picture after each part of it."""
        self.execution = execution
        machine = world_of(execution).machine
        acquired = watched(machine).acquired
        camera = Camera(machine, {}, FINE)
        camera.doomed = self.doomed
        self.reel = Reel(machine, camera)
        self.cpus = [task.name for task in execution.tasks]
        self._take(execution, Step(0, "begin", 0, "Nothing has happened yet."))
        done = 0
        for number, (count, say, ask) in enumerate(self.parts):
            before = self.reel.counts()
            acquired.clear()
            at = done
            did: list[str] = []
            for choice in self.choices[at : at + count]:
                pending = execution.tasks[choice % AGE].pending
                did.append("" if pending is None else learn(self.labels, execution).step(pending))
                done += 1
                yield choice
                if pending is not None:
                    did[-1] += self.notes[done - 1] if self.notes else pending.note
            self.cpus += [task.name for task in execution.tasks[len(self.cpus) :]]
            step = self._step([choice % AGE for choice in self.choices[at:done]], did)
            step.say = say
            step.events = done
            camera.moved()
            camera.names = learn(self.labels, execution).names
            step.efforts = self.reel.efforts(before, acquired)
            camera.came_true = done == len(self.choices) and number == len(self.parts) - 1
            self._take(execution, step)
            if ask:
                step.ask = f"f{machine.folios.head.m[world_of(execution).head]}"

    def _step(self, choices: list[int], did: list[str]) -> Step:
        """One step for several of the execution."""
        if len(set(choices)) != 1:
            did = [f"CPU {cpu}: {words}" for cpu, words in zip(choices, did, strict=True)]
            return Step(0, "end", 0, "All CPUs come to their end.", did=did)
        cpu = choices[0]
        name = self.cpus[cpu]
        what = did[0] if len(did) == 1 else f"{plural(len(did), 'step')}, up to: {did[-1]}"
        return Step(0, name, 0, f"CPU {cpu}, {name}: {what}.", cpu=cpu, did=did)

    def _take(self, execution: Execution, step: Step) -> None:
        machine = self.reel.machine
        besides = [mm for mm in unowned(machine) if len(mm.tree)]
        with Aside(machine):
            self.reel.take(step, list(machine.processes), 0, besides, self._cpus(execution))

    def _cpus(self, execution: Execution) -> State:
        labels = learn(self.labels, execution)
        state: State = {}
        for task in execution.tasks:
            holds = [f"{self.reel.camera.lock_name(lock)}{'' if write else ' (shared)'}" for lock, write in task.held]
            if task.rcu_depth:
                holds.append(RCU)
            pending = task.pending
            state[f"c{task.number}"] = Cpu(
                task.number,
                task.name,
                holds,
                "" if pending is None else labels.step(pending),
                pending is not None and execution.must_wait(task),
            )
        return state
