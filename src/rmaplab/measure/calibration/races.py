# SPDX-License-Identifier: GPL-2.0-or-later
"""Contention: processes that share a hierarchy of anon_vmas against such that do not.

A race lets processes do something again and again, each on one CPU.  The related ones are forked from one parent, whose
VMAs they inherit, and with them its root locks; the unrelated ones do the same, each forked from a parent of its own.
What sharing costs is how much longer a turn takes: the slow-down.  It is measured on the kernel (player.c, race) and
predicted in virtual time, with the same processes on as many simulated CPUs and costs from a profile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Final, NamedTuple

import msgspec

from rmaplab.measure.calibration.host import Host, Progress
from rmaplab.measure.calibration.program import Program, faulting
from rmaplab.measure.calibration.programs import many
from rmaplab.measure.cost import HANDOVER, CostProfile, Residual
from rmaplab.mm import abi
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import Profile
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.sync.virtual import PICOSECONDS, VirtualTime
from rmaplab.trace.history import FileEntry, Header
from rmaplab.trace.play import Player
from rmaplab.trace.script import READ_WRITE

SECONDS: Final = 0.3  # that one race is watched
TURNS: Final = 4  # that each racer is simulated for, at least, after
WARM_UP: Final = 1
MOST: Final = 2000.0  # nanoseconds: no handover is dearer
STEPS: Final = 10  # of the search for it

Turn = Callable[[Program], None]


class Race(NamedTuple):
    """Processes that take turns.

    set_up:  what their parent does before
    turns:   of each racer: what it is called, and what it does
    watched: milliseconds of virtual time, at least, that are simulated: the more, the more chance there is in who
             meets whom
    """

    name: str
    set_up: Turn
    turns: list[tuple[str, Turn]]
    watched: float

    def related(self) -> list[Program]:
        """One family."""
        return [self._family(self.turns)]

    def unrelated(self) -> list[Program]:
        """A family for each racer."""
        return [self._family([turn]) for turn in self.turns]

    def _family(self, turns: Sequence[tuple[str, Turn]]) -> Program:
        script = Program(self.name)
        self.set_up(script)
        for _, turn in turns:
            with script.racer():
                turn(script)
        return script


def _fork_and_exit(script: Program) -> None:
    script.fork_and_exit()


def _reclaim(script: Program) -> None:
    """Write to pages, and have them reclaimed: without swap by MADV_FREE, which lets MADV_PAGEOUT unmap them."""
    there = 1500
    script.write(there, 128)
    script.madvise(there, 128, abi.MADV_FREE)
    script.madvise(there, 128, abi.MADV_PAGEOUT)


def _unmap(script: Program) -> None:
    """A child unmaps what it inherited, page by page, which splits the VMA each time."""
    with script.child():
        for page in range(0, 400, 2):
            script.munmap(page, 1)
    script.wait()


def _protect(script: Program) -> None:
    """Split an inherited VMA and merge it again."""
    for _ in range(20):
        script.mprotect(8, 8, abi.PROT_READ)
        script.mprotect(8, 8, READ_WRITE)


def _one_vma(script: Program) -> None:
    script.mmap(2048, at=0)
    script.write(0, 400)


def _vmas(script: Program) -> None:
    many(script, 500)


# What `handover` is fitted to, before it is held against RACES.
WRITERS: Final = Race("2 that split and merge", _one_vma, [("mprotect", _protect)] * 2, 1)
RACES: Final = (
    Race("2 that fork and exit, 500 VMAs", _vmas, [("fork", _fork_and_exit)] * 2, 5),
    Race("4 that fork and exit, 500 VMAs", _vmas, [("fork", _fork_and_exit)] * 4, 5),
    Race("munmap against reclaim", _one_vma, [("munmap", _unmap), ("reclaim", _reclaim)], 20),
    Race("fork and exit against reclaim", _one_vma, [("fork", _fork_and_exit), ("reclaim", _reclaim)], 5),
)


def measure(host: Host, races: Sequence[Race], repeats: int, progress: Progress) -> list[dict[str, float]]:
    """The slow-down of each kind of turn in each race, on the kernel: medians over `repeats` of all of them in turn."""
    found: list[list[dict[str, float]]] = [[] for _ in races]
    for repeat in range(repeats):
        for done, (race, its) in enumerate(zip(races, found, strict=True)):
            progress("racing on the kernel", repeat * len(races) + done, len(races) * repeats)
            among = host.race(race.related(), SECONDS)
            its.append(_slow_downs(race, among, host.race(race.unrelated(), SECONDS)))
    return [{kind: median(run[kind] for run in its) for kind in its[0]} for its in found]


def _slow_downs(race: Race, related: Sequence[float], unrelated: Sequence[float]) -> dict[str, float]:
    """By kind of turn: time of a turn among relatives over that among strangers, means over those who do the same."""
    sums: dict[str, tuple[float, float]] = {}
    for (kind, _), among, apart in zip(race.turns, related, unrelated, strict=True):
        a, b = sums.get(kind, (0.0, 0.0))
        sums[kind] = (a + among, b + apart)
    return {kind: a / b for kind, (a, b) in sums.items()}


def simulate(
    race: Race, costs: CostProfile, profile: Profile, cpus: int, spread: Sequence[float] = ()
) -> dict[str, float]:
    """The same in virtual time, where a wake-up takes so many times its cost as one of `spread` says."""
    related = turn_times(race.related(), costs, profile, cpus, race.watched, spread)
    unrelated = turn_times(race.unrelated(), costs, profile, cpus, race.watched, spread)
    return _slow_downs(race, related, unrelated)


def turn_times(
    scripts: Sequence[Program],
    costs: CostProfile,
    profile: Profile,
    cpus: int,
    watched: float,
    spread: Sequence[float] = (),
) -> list[float]:
    """Nanoseconds that a turn of each racer takes, in `watched` milliseconds of virtual time at least; those of one
    script are relatives."""
    time = VirtualTime(cpus, lambda key: costs.cost_of(key) or 0.0, spread=spread)
    machines = [Machine(profile, [AnonVmaRmap], scheduler=time) for _ in scripts]
    runners: list[_Racer] = []
    for script, machine in zip(scripts, machines, strict=True):
        player = Player(machine, Header(recorder="", files=[FileEntry(0)]))
        for event in script.history():
            player.play(faulting(machine, event))
        for pid, _ in script.racers:
            machine.fork(1, pid)
        runners += [_Racer(time, player, script, number) for number in range(len(script.racers))]
    for machine in machines:
        time.watch(machine.ledger)
        time.watch(machine.leader.ledger)
    for number, runner in enumerate(runners):
        runner.all, runner.watched = runners, round(watched * 1e6) * PICOSECONDS
        time.spawn(f"racer {number}", runner.run, number % cpus)
    time.run()
    return [runner.turn for runner in runners]


class _Racer:
    """A process that takes its turns until all racers have taken theirs."""

    def __init__(self, time: VirtualTime, player: Player, script: Program, number: int) -> None:
        self.all: Sequence[_Racer] = ()
        self.watched = 0  # picoseconds
        self.turns = 0
        self.turn = 0.0  # nanoseconds
        self._time: Final = time
        self._player: Final = player
        self._events: Final = script.racers[number][1]

    def run(self) -> None:
        began = 0
        while self._time.clock() < self.watched or any(r.turns < WARM_UP + TURNS for r in self.all):
            if self.turns <= WARM_UP:
                began = self._time.clock()
            for event in self._events:
                for part in faulting(self._player.machine, event):
                    self._time.begin(part.op)
                    self._player.do(part)
                    self._time.end()
            self.turns += 1
        self.turn = (self._time.clock() - began) / PICOSECONDS / (self.turns - WARM_UP)


def fit_handover(costs: CostProfile, slow_down: float, profile: Profile, cpus: int) -> float:
    """The cost of a handover that predicts this slow-down of WRITERS: what it takes until a line that is written under
    a lock has come from another CPU.  Between nothing and MOST, by halving."""
    low, high = 0.0, MOST
    for _ in range(STEPS):
        middle = (low + high) / 2
        (predicted,) = simulate(WRITERS, with_cost(costs, HANDOVER, middle), profile, cpus).values()
        low, high = (middle, high) if predicted < slow_down else (low, middle)
    return (low + high) / 2


def with_cost(costs: CostProfile, key: str, cost: float) -> CostProfile:
    return msgspec.structs.replace(costs, costs={**costs.costs, key: round(cost, 2)})


def predict(
    costs: CostProfile,
    races: Sequence[Race],
    slow_downs: Sequence[dict[str, float]],
    profile: Profile,
    cpus: int,
    spread: Sequence[float],
    progress: Progress,
) -> list[Residual]:
    """Measured slow-downs against predicted ones; both are no times but ratios."""
    rows = []
    for done, (race, measured) in enumerate(zip(races, slow_downs, strict=True)):
        progress("racing in virtual time", done, len(races))
        predicted = simulate(race, costs, profile, cpus, spread)
        for kind, times in measured.items():
            name = f"{race.name}: {kind}" if len(measured) > 1 else race.name
            rows.append(Residual(name, times, predicted[kind]))
    return rows
