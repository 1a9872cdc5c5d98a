# SPDX-License-Identifier: GPL-2.0-or-later
"""One point of a campaign: a command with all that its result depends on, and the rows that result.

Invariants
- A point's rows depend on the point, the files that it names and rmaplab's version, and on nothing else: not
  on the machine that computes it, the time, or other load.  So they can be kept, and two runs give the same table.
- A file is named in the point by path and by SHA-256: `Files` finds its contents on the machine that computes the
  point.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import ClassVar, Final

import msgspec

from rmaplab.check import race
from rmaplab.check.verify import Plan as VerifyPlan
from rmaplab.check.verify import verify
from rmaplab.measure import scale, sources
from rmaplab.measure.comparison import FOLIOS, Plan, compare, priced
from rmaplab.measure.cost import load_costs
from rmaplab.measure.figures import Work
from rmaplab.measure.result import Difference
from rmaplab.measure.sources import cpu_counts, history_for
from rmaplab.mm.profile import PROFILES, REFERENCE, profile_for
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.rmap import EXCUSED, load
from rmaplab.sweep.errors import SweepError
from rmaplab.version import __version__

_DEPENDS_ON: Final = ("sync", "mm", "rmap", "trace", "workloads", "check", "measure")


@cache
def version() -> str:
    """rmaplab's version, and the beginning of the SHA-256 of all sources that figures depend on: results of
    other code are not taken for the same, also between two versions."""
    digest = hashlib.sha256()
    package = Path(__file__).parent.parent
    for path in [*(path for name in _DEPENDS_ON for path in sorted(package.glob(f"{name}/**/*.py"))), Path(__file__)]:
        digest.update(path.read_bytes())
    return f"{__version__}+{digest.hexdigest()[:8]}"


Files = Callable[[str], str]  # from a file's name in the specification to a path that can be opened



class Row(msgspec.Struct, frozen=True):
    """One figure.

    design: the design that it is about ("": all, or the machine)
    group:  what kind: "memory", "locks", "work", "walks", "walk work", "VMAs", "time", "scale", "checks"
    """

    design: str
    group: str
    figure: str
    value: float
    unit: str = ""


class Outcome(msgspec.Struct, frozen=True):
    """The result of a point: its figures, and what does not hold, a sentence each.

    profile: the kernel whose rules applied
    costs:   the cost profile that turned counts into time ("" where no figure is a time)
    """

    rows: list[Row]
    differences: list[str]
    profile: str
    costs: str = ""


class Point(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="command"):
    """A command and its parameters.

    profile: the kernel whose rules apply ("": the history's own, or the reference)
    files:   SHA-256 of each file that the point names, by name; filled in by spec.py
    """

    several: ClassVar[frozenset[str]] = frozenset()  # fields that are lists, so that a list is one value

    seed: int = 1
    profile: str = ""
    files: dict[str, str] = {}

    def key(self, made_by: str = "") -> str:
        """What the result is kept under: the same for the same point, files and version of rmaplab (`made_by`; this
        one, if empty)."""
        text = msgspec.json.encode([made_by or version(), self], order="deterministic")
        return hashlib.sha256(text).hexdigest()[:20]

    def title(self) -> str:
        """The point in a few words."""
        raise NotImplementedError

    def history_name(self) -> str:
        """The history, without directories."""
        return ""

    def nr_cpus(self) -> int:
        """Simulated CPUs; 0 where nothing runs side by side."""
        return 0

    def named_files(self) -> list[str]:
        """Names in the point that may be those of files."""
        return []

    def expand(self) -> list[Point]:
        """The points that it specifies: itself, or several."""
        return [self]

    def check(self, files: Files) -> None:
        """Raise what `run` would raise for a point that makes no sense."""
        if self.profile and self.profile not in PROFILES:
            raise SweepError(f"there is no profile {self.profile!r} (there are {', '.join(PROFILES)})")

    def run(self, files: Files) -> Outcome:
        raise NotImplementedError


def _design(name: str, files: Files) -> type[ReverseMap]:
    path, colon, attribute = name.partition(":")
    return load(files(path) + colon + attribute if path.endswith(".py") else name)


def _history_name(history: str) -> str:
    first, space, parameters = history.partition(" ")
    return Path(first).name + space + parameters


def _words(history: str, files: Files) -> list[str]:
    """A history as the command line has it; only its first word may be a file."""
    words = history.split()
    if not words:
        raise SweepError("a history is a workload with its parameters, or a file, and this one is empty")
    return [files(words[0]), *words[1:]]


class Compare(Point, frozen=True, kw_only=True, tag="compare"):
    """`rmaplab compare`: designs in lockstep on one history.

    folios: walked at each of 20 moments
    costs:  the cost profile that turns counts into time ("": the one that is shipped)
    """

    several = frozenset({"designs", "excused"})

    history: str
    designs: tuple[str, ...]
    large_folios: int = 0
    folios: int = FOLIOS
    costs: str = ""
    excused: tuple[str, ...] = tuple(EXCUSED)

    def title(self) -> str:
        return f"compare {self.history_name()}, seed {self.seed}"

    def history_name(self) -> str:
        return _history_name(self.history)

    def named_files(self) -> list[str]:
        return [*self.history.split()[:1], self.costs, *(design.partition(":")[0] for design in self.designs)]

    def check(self, files: Files) -> None:
        super().check(files)
        load_costs(files(self.costs))
        sources.find(_words(self.history, files), self.seed)
        self._plan("", files)

    def _plan(self, kernel: str, files: Files) -> Plan:
        classes = [_design(name, files) for name in self.designs]
        if not classes:
            raise SweepError("compare needs designs")
        profile = PROFILES[self.profile] if self.profile else profile_for(kernel)[0]
        return Plan(
            classes,
            profile,
            folios=self.folios,
            large_folios=self.large_folios,
            excused=frozenset(self.excused),
        )

    def run(self, files: Files) -> Outcome:
        history, source = sources.find(_words(self.history, files), self.seed)
        plan = self._plan(source.kernel, files)
        costs = load_costs(files(self.costs))
        found = priced(compare(history, plan, lambda what, done, total: None), costs)
        machine = found.figures.machine
        times = found.figures.times
        assert times is not None
        rows = [
            Row("", "machine", "events", machine.events),
            Row("", "machine", "address spaces", machine.mms.made),
            Row("", "machine", "pages at most", machine.pages.peak),
            Row("", "time", "history, but for the reverse map", times.machine.ns / 1e6, "ms"),
        ]
        for design, time in zip(found.figures.designs, times.designs, strict=True):
            name = design.design
            rows += [
                Row(name, "memory", "peak", 4 * sum(o.peak_pages for o in design.objects), "KiB"),
                Row(name, "memory", "at the end", 4 * sum(o.end_pages for o in design.objects), "KiB"),
                *(Row(name, "memory", f"{o.type} made", o.allocated) for o in design.objects),
                *_work(name, "work", design.work),
                Row(name, "walks", "walks", design.walks.walks),
                Row(name, "walks", "places", design.walks.places),
                Row(name, "walks", "places that map", design.walks.useful),
                Row(name, "walks", "places in the longest", design.walks.worst),
                Row(name, "walks", "places missed", design.walks.incomplete),
                Row(name, "walks", "VMAs that only this visits", design.walks.additional),
                *_work(name, "walk work", design.walk_work),
                Row(name, "time", "history", time.history.ns / 1e6, "ms"),
                Row(name, "time", "walks", time.walks.ns / 1e6, "ms"),
                Row(name, "time", "walks and visits", time.whole_walks / 1e6, "ms"),
                Row(name, "time", "counts without a cost", sum((time.history.gaps | time.walks.gaps).values())),
            ]
            if design.vmas is not None:
                rows += [
                    Row(name, "VMAs", "peak", design.vmas.peak),
                    Row(name, "VMAs", "at the end", design.vmas.at_end),
                ]
        wrong = [] if found.holds else [_sentence(d) for d in found.differences if d.error]
        return Outcome(rows, wrong, plan.profile.name, costs.name)


def _work(design: str, group: str, work: Work) -> Iterator[Row]:
    """Counted work, and locks, all of them and by class."""
    for name, count in work.tallies.items():
        yield Row(design, group, name, count)
    yield Row(design, group, "exclusive locks", sum(lock.writes for lock in work.locks))
    yield Row(design, group, "shared locks", sum(lock.reads for lock in work.locks))


def _sentence(difference: Difference) -> str:
    return f"{difference.design or 'machine'}: {difference.kind} after event {difference.event}: {difference.what}"


class Scale(Point, frozen=True, kw_only=True, tag="scale"):
    """`rmaplab scale`: one design, one history, so many simulated CPUs.

    history: a parameter may be `cpus` or `N*cpus`
    costs, timing, large_folios: as the command has them
    """

    history: str
    design: str
    cpus: int
    costs: str = ""
    timing: str = "fast"
    large_folios: int = 0

    def title(self) -> str:
        return f"scale {self.history_name()}, {self.design}, {self.cpus} CPUs, seed {self.seed}"

    def history_name(self) -> str:
        return _history_name(self.history)

    def nr_cpus(self) -> int:
        return self.cpus

    def named_files(self) -> list[str]:
        return [*self.history.split()[:1], self.costs, self.design.partition(":")[0]]

    def check(self, files: Files) -> None:
        super().check(files)
        cpu_counts(str(self.cpus))
        if self.timing not in scale.TIMINGS:
            raise SweepError(f"there is no timing {self.timing!r} (there are {', '.join(scale.TIMINGS)})")
        load_costs(files(self.costs))
        history_for(_words(self.history, files), self.cpus, self.seed)
        _design(self.design, files)

    def run(self, files: Files) -> Outcome:
        header, parallel, source = history_for(_words(self.history, files), self.cpus, self.seed)
        profile = PROFILES[self.profile] if self.profile else profile_for(source.kernel)[0]
        costs = load_costs(files(self.costs))
        design = _design(self.design, files)
        plan = scale.Plan(profile, costs, self.timing, self.large_folios)
        ran = scale.Run(header, parallel, plan, design, self.cpus)
        point = ran.go()
        name = design.name
        rows = [
            Row(name, "scale", "operations", point.operations),
            Row(name, "scale", "seconds", point.seconds, "s"),
            Row(name, "scale", "throughput", point.throughput, "operations/s"),
            Row(name, "scale", "working", point.utilisation.working),
            Row(name, "scale", "spinning", point.utilisation.spinning),
            Row(name, "scale", "switching", point.utilisation.switching),
            Row(name, "scale", "idle", point.utilisation.idle),
            Row(name, "scale", "lock operations", point.lock_operations),
            Row(name, "scale", "kinds of work without a cost", len(ran.unpriced())),
            Row(name, "scale", "memory", 4 * point.peak_pages, "KiB"),
            *(Row(name, "scale", f"wait for {lock.name}", lock.waited / 1e6, "ms") for lock in point.locks),
            *(Row(name, "scale", f"p50 of {op.operation}", op.p50 / 1e3, "us") for op in point.latencies),
            *(Row(name, "scale", f"p99 of {op.operation}", op.p99 / 1e3, "us") for op in point.latencies),
        ]
        differences = []
        if point.differences:
            differences.append(f"{name}: {point.differences} system calls returned something else than recorded")
        return Outcome(rows, differences, profile.name, costs.name)


class Verify(Point, frozen=True, kw_only=True, tag="verify"):
    """`rmaplab verify`: random histories of one seed."""

    several = frozenset({"designs", "excused"})

    designs: tuple[str, ...]
    steps: int
    every: int = 1
    pages: int = 0
    large_folios: int = 0
    excused: tuple[str, ...] = tuple(EXCUSED)

    def title(self) -> str:
        return f"verify {self.steps:,} steps, seed {self.seed}"

    def history_name(self) -> str:
        return f"random, {self.steps} steps, checked every {self.every}"

    def named_files(self) -> list[str]:
        return [design.partition(":")[0] for design in self.designs]

    def check(self, files: Files) -> None:
        super().check(files)
        if self.steps <= 0:
            raise SweepError("verify needs steps: how many events to try")
        if not self.designs:
            raise SweepError("verify needs designs")
        for name in self.designs:
            _design(name, files)

    def run(self, files: Files) -> Outcome:
        plan = VerifyPlan(
            designs=tuple(_path(name, files) for name in self.designs),
            profile=self.profile or REFERENCE,
            seed=self.seed,
            steps=self.steps,
            every=self.every,
            pages=self.pages,
            large_folios=self.large_folios,
            excused=frozenset(self.excused),
        )
        found = verify(plan)
        counts = found.counts
        rows = [
            Row("", "checks", "histories", found.histories),
            Row("", "checks", "steps", found.steps),
            Row("", "checks", "steps played again in runs and page by page", found.compared),
            Row("", "checks", "moments", counts.checks),
            Row("", "checks", "entries", counts.entries),
        ]
        for name, walks in counts.designs.items():
            rows += [
                Row(name, "walks", "walks", walks.walks),
                Row(name, "walks", "places", walks.places),
                Row(name, "walks", "places that map", walks.useful),
                Row(name, "walks", "places missed", walks.incomplete),
            ]
        if found.holds:  # which it neither does nor does not where nothing was looked at
            return Outcome(rows, [], plan.profile)
        differences = [f"no step came to this: {case}" for case in found.without_effect]
        if found.failure is not None:
            script = "; ".join(map(str, found.failure.events))
            differences.append(f"{found.failure.design or 'machine'}: {found.failure.what} ({script})")
        return Outcome(rows, differences, plan.profile)


def _path(design: str, files: Files) -> str:
    path, colon, attribute = design.partition(":")
    return files(path) + colon + attribute if path.endswith(".py") else design


class Race(Point, frozen=True, kw_only=True, tag="race"):
    """`rmaplab race`: one design under every interleaving of each scenario whose name contains `scenario`."""

    scenario: str
    design: str

    def title(self) -> str:
        return f"race {self.scenario}, {self.design}"

    def history_name(self) -> str:
        return self.scenario

    def named_files(self) -> list[str]:
        return [self.design.partition(":")[0]]

    def expand(self) -> list[Point]:
        return [msgspec.structs.replace(self, scenario=name) for name in race.chosen([self.scenario])]

    def check(self, files: Files) -> None:
        super().check(files)
        race.chosen([self.scenario])
        _design(self.design, files)

    def run(self, files: Files) -> Outcome:
        design = _design(self.design, files)
        verdict = race.run(self.scenario, design)
        rows = [
            Row(design.name, "checks", "interleavings", verdict.interleavings),
            Row(design.name, "checks", "steps", verdict.steps),
            Row(design.name, "checks", "exhausted", int(verdict.exhausted)),
        ]
        differences = [
            f"{design.name}: {self.scenario}: {broken.error} (path {broken.path})" for broken in verdict.broken
        ]
        if not verdict.exhausted:
            differences.append(f"{design.name}: {self.scenario}: not every interleaving was tried")
        return Outcome(rows, differences, REFERENCE)


AnyPoint = Compare | Scale | Verify | Race
KINDS: Final[dict[str, type[Point]]] = {"compare": Compare, "scale": Scale, "verify": Verify, "race": Race}
