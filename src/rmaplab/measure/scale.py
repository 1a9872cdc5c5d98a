# SPDX-License-Identifier: GPL-2.0-or-later
"""Scaling of a workload: a history as parallel programs, on simulated CPUs, in virtual time.

A machine that one design watches is given a scheduler in virtual time (sync/virtual/).  Each strand of the
history (trace/parallel.py) is a task; each event is an operation with a latency.  Time passes by the counted work of
the machine and the design, at the costs of a cost profile, and by waiting.

Every figure follows from the history, the kernel profile, the cost profile, the design, the number of CPUs and the
version, and from nothing else: the same run gives the same figures to the last digit.

All times are nanoseconds.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np

from rmaplab.measure.cost import CostProfile, counts_of
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import Profile
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.sync.virtual import PICOSECONDS, Task, VirtualTime
from rmaplab.sync.virtual.figures import Figures
from rmaplab.trace.events import Event
from rmaplab.trace.history import Header
from rmaplab.trace.parallel import Parallel, Strand
from rmaplab.trace.play import Player

_COLLECT_AFTER: Final = 5_000_000  # objects more than there were

TIMINGS: Final = ("fast", "recorded")

Progress = Callable[[str, int, int], None]


class Latency(msgspec.Struct, frozen=True):
    """How long one kind of operation took, waiting included."""

    operation: str
    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


class LockFigures(msgspec.Struct, frozen=True):
    """All locks of one class.

    acquired:  times taken; refused: tries in vain
    contended: times that somebody had to wait
    waited:    in all; longest_wait: at most
    held:      in all, by all
    moved:     times that the lock's cache line came from another CPU; moving: how long that took
    """

    name: str
    type: str
    acquired: int
    refused: int
    contended: int
    waited: float
    longest_wait: float
    held: float
    moved: int
    moving: float


class Contention(msgspec.Struct, frozen=True):
    """Who waited for whom: operation `waiter` for a lock that `holder` had when the wait began."""

    name: str
    type: str
    waiter: str
    holder: str
    count: int
    waited: float
    longest: float


class Hold(msgspec.Struct, frozen=True):
    """How long an operation held locks of a class, in all."""

    name: str
    write: bool
    operation: str
    held: float


class Utilisation(msgspec.Struct, frozen=True):
    """Where the time of the CPUs went, as parts of 1."""

    working: float
    spinning: float
    switching: float
    idle: float


class Deferred(msgspec.Struct, frozen=True):
    """Objects that waited for a grace period: at most so many at once."""

    type: str
    peak: int


class Point(msgspec.Struct, frozen=True):
    """One design on one number of CPUs.

    tasks:       that began in all; at_once: at most at one time, so that no more CPUs have anything to do
    seconds:     virtual time from the first operation to the end of the last task
    operations:  events done by processes and kernel threads
    throughput:  operations per second of virtual time
    work:        seconds of counted work, by all; deferred: of that, what grace periods did
    shootdowns:  flushes for which other CPUs were interrupted; interrupts: how many CPUs in all; shooting: seconds that
        this took of those who flushed
    peak_pages:  slab pages of the design, at most
    most_vmas:   VMAs at most
    differences: events whose result is not the recorded one; skipped: of processes that were gone
    """

    design: str
    cpus: int
    tasks: int
    at_once: int
    operations: int
    seconds: float
    throughput: float
    work: float
    deferred: float
    utilisation: Utilisation
    latencies: list[Latency]
    locks: list[LockFigures]
    contention: list[Contention]
    holds: list[Hold]
    lock_operations: int
    grace_periods: int
    held_back: list[Deferred]
    shootdowns: int
    interrupts: int
    shooting: float
    peak_pages: int
    most_vmas: int
    differences: int
    skipped: int


class Plan(NamedTuple):
    """How a history is to be run.

    timing: "fast": each strand goes on as soon as it can; "recorded": no event before its recorded time
    """

    profile: Profile
    costs: CostProfile
    timing: str = "fast"
    large_folios: int = 0
    trace: bool = False


class Run:
    """One design on one number of CPUs; `go` runs it, `point` says what came of it."""

    def __init__(self, header: Header, parallel: Parallel, plan: Plan, design: type[ReverseMap], cpus: int) -> None:
        self._gaps: Final[set[str]] = set()
        self._costs: Final = plan.costs
        self.time: Final = VirtualTime(cpus, self._cost_of, trace=plan.trace)
        self.machine: Final = Machine(plan.profile, [design], scheduler=self.time, large_folios=plan.large_folios)
        self.player: Final = Player(self.machine, header)
        self._parallel: Final = parallel
        self._recorded: Final = plan.timing == "recorded"
        self._cpus: Final = cpus
        self._done: Final[set[int]] = set()
        self._waiting: Final[dict[int, list[Task]]] = {}
        self._is_set_up = False
        self._tasks = 0
        self._operations = 0
        self._differences = 0
        self._skipped = 0
        self.began = 0
        self._progress: Progress | None = None

    def _cost_of(self, key: str) -> float:
        cost = self._costs.cost_of(key)
        if cost is None:
            self._gaps.add(key)
            return 0.0
        return cost

    def unpriced(self) -> set[str]:
        """Kinds of work that were done and have no cost."""
        done: set[str] = set()
        for ledger in (self.machine.ledger, self.machine.leader.ledger):
            done |= {key for key, count in counts_of(ledger).items() if count}
        return self._gaps & done

    def set_up(self) -> None:
        """What comes before time begins; `go` does it if nobody has.

        :raises HistoryError: an event is impossible
        """
        if not self._is_set_up:
            self._is_set_up = True
            self.player.play(self._parallel.set_up)

    def go(self, progress: Progress | None = None) -> Point:
        """:raises HistoryError: an event is impossible"""
        machine = self.machine
        self._progress = progress
        self.set_up()
        for ledger in (machine.ledger, machine.leader.ledger):
            self.time.watch(ledger)
        self.began = self.time.work.total()
        for strand in self._parallel.strands:
            self._begin(strand)
        # A history has millions of objects, none of them garbage; and what the run leaves goes by its references, but
        # for little, so to look through all that is there seldom finds anything.
        gc.freeze()
        thresholds = gc.get_threshold()
        gc.set_threshold(_COLLECT_AFTER, *thresholds[1:])
        try:
            self.time.run()
        finally:
            gc.set_threshold(*thresholds)
            gc.freeze()  # so that nobody looks through it all now; it is old, as what was there before
            gc.unfreeze()
        machine.reap()
        return self._point()

    def _begin(self, strand: Strand) -> None:
        self._tasks += 1
        process = self.machine.processes.get(strand.pid)
        space = None if process is None else process.mm.cpumask
        self.time.spawn(strand.name, lambda: self._live(strand), strand.cpu, space)

    def _live(self, strand: Strand) -> None:
        """A strand from its beginning to its end."""
        time = self.time
        done = self._done
        machine = self.machine
        kernel_thread = strand.pid == 0
        for step in strand.steps:
            event = step.event
            if self._recorded:
                time.sleep_until(event.time * PICOSECONDS)
            for number in step.after:
                while number not in done:
                    task = time.current
                    assert task is not None
                    self._waiting.setdefault(number, []).append(task)
                    time.sleep()
            if kernel_thread and not {event.pid, event.pid2 or event.pid} <= machine.processes.keys():
                self._skipped += 1
            else:
                try:
                    self._operate(event)
                except Exception as error:
                    error.add_note(f"at event {step.number}: {event}")
                    raise
            if step.begins is not None:
                self._begin(step.begins)
            done.add(step.number)
            for waiting in self._waiting.pop(step.number, ()):
                time.wake(waiting)

    def _operate(self, event: Event) -> None:
        time = self.time
        time.begin(event.op)
        if self.player.do(event) != event.result:
            self._differences += 1
        time.end()
        self._operations += 1
        if event.op in ("exec", "start"):  # a new address space
            time.runs_in(self.machine.mm_of(event.pid).cpumask)
        if self.machine.spaces.late:
            time.begin("mmput")
            self.machine.reap()
            time.end()
        if self._progress is not None:
            what = f"{self.machine.leader.name} on {self._cpus} CPUs"
            self._progress(what, self._operations, self._parallel.nr_steps)

    def _point(self) -> Point:
        time = self.time
        seconds = time.ended / PICOSECONDS / 1e9
        design = self.machine.leader
        return Point(
            design=design.name,
            cpus=self._cpus,
            tasks=self._tasks,
            at_once=time.core.most_tasks,
            operations=self._operations,
            seconds=seconds,
            throughput=self._operations / seconds if seconds else 0.0,
            work=(time.work.total() - self.began) / PICOSECONDS / 1e9,
            deferred=time.work.deferred / PICOSECONDS / 1e9,
            utilisation=_utilisation(time),
            latencies=_latencies(time.figures),
            locks=_locks(time.figures),
            contention=_contention(time.figures),
            holds=_holds(time.figures),
            lock_operations=time.figures.lock_operations,
            grace_periods=time.rcu.count,
            held_back=[Deferred(what, peak) for what, peak in sorted(time.rcu.most_held.items())],
            shootdowns=time.tlbs.shootdowns,
            interrupts=time.tlbs.interrupts,
            shooting=time.tlbs.shooting / PICOSECONDS / 1e9,
            peak_pages=sum(entry.peak_pages for entry in design.footprint()),
            most_vmas=self.machine.vma_pool.peak,
            differences=self._differences,
            skipped=self._skipped,
        )


def _utilisation(time: VirtualTime) -> Utilisation:
    ended = time.ended
    cpus = time.cpus.all
    total = ended * len(cpus)
    if not total:
        return Utilisation(0.0, 0.0, 0.0, 0.0)
    idle = 0
    for cpu in cpus:
        idle += int(cpu.idle)
        if cpu.task is None:
            idle += max(0, ended - int(cpu.idle_since))
    switching = sum(int(cpu.switching) for cpu in cpus)
    spinning = int(time.cpus.spun)
    working = total - idle - switching - spinning
    return Utilisation(working / total, spinning / total, switching / total, idle / total)


def _latencies(seen: Figures) -> list[Latency]:
    found = []
    for operation, latencies in zip(seen.operations, seen.latencies, strict=True):
        if latencies:
            values = np.array(latencies, dtype=np.int64) / PICOSECONDS
            p50, p90, p99 = (float(p) for p in np.percentile(values, (50, 90, 99)))
            found.append(Latency(operation, len(values), float(values.mean()), p50, p90, p99, float(values.max())))
    return sorted(found, key=lambda latency: -latency.mean * latency.count)


def _locks(seen: Figures) -> list[LockFigures]:
    found = []
    for figures in seen.classes.values():
        waits = figures.waits.values()
        held = sum(int(held.time) for held in (*figures.read, *figures.written))
        found.append(
            LockFigures(
                name=figures.name,
                type=figures.type,
                acquired=figures.acquired,
                refused=figures.refused,
                contended=sum(wait.count for wait in waits),
                waited=sum(int(wait.total) for wait in waits) / PICOSECONDS,
                longest_wait=max((int(wait.longest) for wait in waits), default=0) / PICOSECONDS,
                held=held / PICOSECONDS,
                moved=figures.moved,
                moving=figures.moving / PICOSECONDS,
            )
        )
    return sorted(found, key=lambda lock: (-lock.waited, lock.name))


def _contention(seen: Figures) -> list[Contention]:
    found = []
    for figures in seen.classes.values():
        for (write, waiter, holder), wait in figures.waits.items():
            suffix = "" if figures.type != "rwsem" else ":W" if write else ":R"
            found.append(
                Contention(
                    name=figures.name,
                    type=figures.type + suffix,
                    waiter=seen.operations[waiter] or "other",
                    holder=seen.operations[holder] or "other",
                    count=wait.count,
                    waited=wait.total / PICOSECONDS,
                    longest=wait.longest / PICOSECONDS,
                )
            )
    return sorted(found, key=lambda entry: (-entry.waited, entry.name, entry.waiter, entry.holder))


def _holds(seen: Figures) -> list[Hold]:
    found = [
        Hold(figures.name, write, seen.operations[operation] or "other", held.time / PICOSECONDS)
        for figures in seen.classes.values()
        for write, all_held in ((True, figures.written), (False, figures.read))
        for operation, held in enumerate(all_held)
        if held.time
    ]
    return sorted(found, key=lambda hold: (-hold.held, hold.name, hold.operation))


# The Universal Scalability Law


class Law(msgspec.Struct, frozen=True):
    """X(N) = rate * N / (1 + contention * (N - 1) + coherency * N * (N - 1)) (N. Gunther, 1993).

    peak_cpus: where that is greatest; 0 if it grows for ever
    r_squared: how well it fits
    """

    rate: float
    contention: float
    coherency: float
    peak_cpus: float
    r_squared: float

    def throughput(self, cpus: float) -> float:
        return self.rate * cpus / (1 + self.contention * (cpus - 1) + self.coherency * cpus * (cpus - 1))


def fit(cpus: Sequence[int], throughputs: Sequence[float]) -> Law | None:
    """The law that comes closest, with neither coefficient negative; None for fewer than three points.

    N / X is linear in 1, N - 1 and N (N - 1): non-negative least squares, relative to what was seen.
    """
    from scipy.optimize import nnls  # slow to import

    if len(cpus) < 3 or min(throughputs) <= 0:
        return None
    n = np.array(cpus, dtype=np.float64)
    x = np.array(throughputs, dtype=np.float64)
    columns = np.stack([np.ones_like(n), n - 1, n * (n - 1)], axis=1) * (x / n)[:, None]
    found, _ = nnls(columns, np.ones_like(n))
    if found[0] <= 0:
        return None
    a, b, c = (float(value) if value > 1e-9 * found[0] else 0.0 for value in found)  # less is rounding
    law = Law(1 / a, b / a, c / a, 0.0, 0.0)
    if law.coherency > 0:
        peak = float(np.sqrt(max(0.0, 1 - law.contention) / law.coherency))
        law = msgspec.structs.replace(law, peak_cpus=peak)
    predicted = np.array([law.throughput(float(count)) for count in n])
    spread = float(((x - x.mean()) ** 2).sum())
    missed = float(((x - predicted) ** 2).sum())
    return msgspec.structs.replace(law, r_squared=1 - missed / spread if spread else 1.0)
