# SPDX-License-Identifier: GPL-2.0-or-later
"""Published figures about Linux's reverse map, and the laboratory's own.

A reproduction is a small function, which builds the published set-up as a history and counts, and a page (published/),
which has the published figures and what is to be said.  Parameters that the source does not give are stated in `how`,
and chosen before the result was known: none is fitted to it.  Where the two differ, `why` gives the likely reason.

`bound` is the requirement on a figure: that ours over the published lies between these two, or is exactly it, or that
two percentages differ by at most so many points.  A figure without one is shown for what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from typing import Final

import msgspec

from rmaplab.errors import CannotRun
from rmaplab.measure.cost import CostProfile, Residual, add_counts, counts_of, price
from rmaplab.measure.scale import Plan, Point, Run
from rmaplab.mm.abi import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ, PROT_WRITE
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import PTE_SHIFT
from rmaplab.mm.profile import PROFILES, Profile
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import MM, PAGE_SIZE, VMA
from rmaplab.prose import in_one_line, read_page
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.rmap.anon_vma_2004 import AnonVma2004Rmap
from rmaplab.rmap.anon_vma_lazy import AnonVmaLazyRmap
from rmaplab.rmap.cow_context import CowContextRmap
from rmaplab.trace.events import Event
from rmaplab.trace.history import Header, History, read_history
from rmaplab.trace.parallel import take_apart
from rmaplab.trace.play import Player
from rmaplab.verdict import judge
from rmaplab.workloads import workload

Progress = Callable[[str, int, int], None]  # what is being done, done, in all

_AREA: Final = 0x10_0000_0000
_FIXED: Final = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED


class ReproduceError(CannotRun):
    """There is no such reproduction; the message says which there are."""


class Figure(msgspec.Struct, frozen=True, omit_defaults=True):
    """A published figure and ours.

    low, high: the published figure, where it is a range; the same where it is not
    bound:     what is asked of ours: "exact", "at most", "points 5" (percentages that differ by at most 5 points),
               "times 0.5 2" (ours over the published one's middle), or "" for nothing
    """

    what: str
    low: float
    high: float
    ours: float
    unit: str
    bound: str = ""

    @property
    def published(self) -> float:
        return (self.low + self.high) / 2

    @property
    def ratio(self) -> float:
        """Ours over the published figure."""
        return self.ours / self.published if self.published else float("nan")

    @property
    def holds(self) -> bool:
        kind, _, numbers = self.bound.partition(" ")
        if kind == "exact":
            return self.low <= self.ours <= self.high
        if kind == "at":
            return self.ours <= self.high
        if kind == "points":
            return abs(self.ours - self.published) <= float(numbers)
        if kind == "times":
            least, most = numbers.split()
            return float(least) <= self.ratio <= float(most)
        return True


class Reproduction(msgspec.Struct, frozen=True, omit_defaults=True):
    """One published measurement, done again.

    said: what was published; how: what was done here; why: where ours differs, what we take to be the reason
    shown: figures of ours beside which nothing was published, as (what, value) pairs of text
    """

    name: str
    source: str
    said: str
    how: str
    figures: list[Figure]
    why: str
    shown: list[tuple[str, str]] = []

    @property
    def holds(self) -> bool:
        wrong = not all(figure.holds for figure in self.figures)
        return judge(len(self.figures) + len(self.shown), wrong, f"{self.name} has no figures")


def _beside(name: str, ours: Sequence[float], shown: Sequence[tuple[str, str]] = (), **values: object) -> Reproduction:
    """The reproduction whose page is published/NAME.md, with `ours` beside the figures there, and `values` in its
    sentences."""
    page = read_page(f"measure/published/{name}.md")
    parts = dict(page.parts)
    said, how, why = (in_one_line(parts[heading].format(**values)) for heading in ("Said", "Here", "Why"))
    figures = []
    rows = parts.get("Figures", "").splitlines()[2:]
    for row, value in zip(rows, ours, strict=True):
        what, published, unit, bound = (cell.strip() for cell in row.strip("|").split("|"))
        low, _, high = published.partition(" to ")
        figures.append(Figure(what, float(low), float(high or low), value, unit, bound))
    return Reproduction(name, page.facts["source"], said, how, figures, why, list(shown))


def machine_of(profile: Profile, *designs: type[ReverseMap]) -> tuple[Machine, MM]:
    """A machine with one process, which has a stack page and nothing else."""
    machine = Machine(profile, designs)
    return machine, machine.exec(1, 0x7FFC_0000_0000, PAGE_SIZE, 0x7FFC_0000_0000, 0x5555_5556_0000)


# 2010: chains


class Chains(msgspec.Struct, frozen=True):
    """Children that a walk looks into: for a page of a child, and for one of the parent.  `of_parent` of all `pages`
    are the parent's."""

    childs: set[int]
    parents: set[int]
    of_parent: int
    pages: int


def count_chains(design: type[ReverseMap], children: int, pages: int, progress: Progress) -> Chains:
    """Fork `children`, each of which copies all `pages` of one VMA; walk a page of each process, and all of the
    parent's."""
    machine, parent = machine_of(PROFILES["6.12"], design)
    length = pages * PAGE_SIZE
    machine.mmap(parent, _AREA, length, PROT_READ | PROT_WRITE, _FIXED, None, 0)
    machine.fault_range(parent, _AREA, pages, True)
    spaces = []
    for i in range(children):
        child = machine.fork(1, i + 2)
        machine.fault_range(child, _AREA, pages, True)
        spaces.append(child)
        progress(f"forking with {machine.leader.name}", i, children)

    def visited(mm: MM, page: int) -> int:
        pfn = mm.page_table.get(_AREA + page * PAGE_SIZE) >> PTE_SHIFT
        return len({vma.mm.id for vma, _ in machine.leader.walk(pfn)} - {parent.id})

    of_children = {visited(child, i % pages) for i, child in enumerate(spaces)}
    of_parent = {visited(parent, page) for page in range(pages)}
    return Chains(of_children, of_parent, pages, (children + 1) * pages)


def _anon_vma_chains(costs: CostProfile, progress: Progress) -> Reproduction:
    before = count_chains(AnonVma2004Rmap, 1000, 1000, progress)
    after = count_chains(AnonVmaRmap, 1000, 1000, progress)
    (before_child,), (before_parent,) = before.childs, before.parents
    (after_child,), (after_parent,) = after.childs, after.parents
    return _beside(
        "anon-vma-chains",
        [before_child, before_parent, after_child, after_parent, 100 * after.of_parent / after.pages],
    )


# 2023: locking every VMA in fork


class ForksUnlocked(Machine):
    """A machine whose fork does not lock the VMAs that it copies."""

    def keep_faults_out(self, vma: VMA) -> None:
        pass


def fork_times(costs: CostProfile, kind: type[Machine], profile: Profile, vmas: int, pages: int) -> tuple[float, float]:
    """Nanoseconds that a fork of a process with so many VMAs takes, and its child's exit."""
    machine = kind(profile, [AnonVmaRmap])
    mm = machine.exec(1, 0x7FFC_0000_0000, PAGE_SIZE, 0x7FFC_0000_0000, 0x5555_5556_0000)
    for i in range(vmas):
        addr = _AREA + i * 2 * PAGE_SIZE
        machine.mmap(mm, addr, PAGE_SIZE, PROT_READ | PROT_WRITE, _FIXED, None, 0)
        if pages:
            machine.fault(mm, addr, True)
    times = []
    for act in (lambda: machine.fork(1, 2), lambda: machine.exit(2)):
        before = _counts(machine)
        act()
        times.append(price(costs, {key: n - before.get(key, 0) for key, n in _counts(machine).items()}).ns)
    return times[0], times[1]


def _counts(machine: Machine) -> dict[str, int]:
    return add_counts(counts_of(ledger) for ledger in (machine.ledger, machine.leader.ledger))


def _vma_write_locks(costs: CostProfile, progress: Progress) -> Reproduction:
    ours = []
    shown = []
    profile = PROFILES["6.18"]
    for pages, what in ((0, "nothing faulted"), (1, "a page in each")):
        progress("forking 10,000 VMAs", pages, 2)
        fork, exit = fork_times(costs, Machine, profile, 10_000, pages)
        unlocked, _ = fork_times(costs, ForksUnlocked, profile, 10_000, pages)
        slower = 100 * (fork / unlocked - 1)
        if pages == 0:
            ours.append(slower)
        else:
            shown.append((f"fork slower by, {what}", f"{slower:.2f} %"))
        shown.append((f"fork and exit slower by, {what}", f"{100 * ((fork + exit) / (unlocked + exit) - 1):.2f} %"))
        shown.append((f"one fork, {what}", f"{fork / 1e6:.2f} ms"))
    return _beside("vma-write-locks", ours, shown, each=costs.cost_of("lock vma_lock") or 0.0)


# 2026: ANON_VMA_LAZY


class Family(msgspec.Struct, frozen=True):
    """A process of a recording that forks, and its children that never call exec."""

    recording: str
    parent: int
    children: list[int]


def recordings() -> dict[str, History]:
    """The packaged recordings of programs that people use, by name."""
    found = {}
    with resources.as_file(resources.files("rmaplab") / "data" / "recordings") as directory:
        for path in sorted(directory.glob("*.parquet")):
            if path.stem != "example":  # written for rmaplab
                found[path.stem] = read_history(path)
    return found


def widest_family(histories: dict[str, History]) -> Family:
    """The process with the most children that never call exec: the packaged programs' nearest thing to a zygote."""
    best = Family("", 0, [])
    for name, history in histories.items():
        events = list(history)
        execs = {event.pid for event in events if event.op == "exec"}
        children: dict[int, list[int]] = {}
        for event in events:
            if event.op == "fork" and event.pid2 not in execs:
                children.setdefault(event.pid, []).append(event.pid2)
        for parent, its in children.items():
            if len(its) > len(best.children):
                best = Family(name, parent, its)
    return best


def zygote_history(events: Iterable[Event], family: Family, apps: int) -> list[Event]:
    """What the parent did from its last exec on, and its children, each as often as makes `apps` of them: the recorded
    children in turn.  The copies of a child do what it did, at the same time."""
    copies: dict[int, list[int]] = {child: [] for child in family.children}
    for app in range(apps):
        copies[family.children[app % len(family.children)]].append(1_000_000 + app)
    told: list[Event] = []
    begun = False
    for event in events:
        if event.pid == family.parent:
            if event.op == "exec":
                told = [event]
                begun = True
            elif begun and event.op == "fork":
                told += [msgspec.structs.replace(event, pid2=pid) for pid in copies.get(event.pid2, [])]
            elif begun:
                told.append(event)
        elif event.op != "fork":
            told += [msgspec.structs.replace(event, pid=pid) for pid in copies.get(event.pid, [])]
    return told


class Held(msgspec.Struct, frozen=True):
    """What both designs held at the moment at which there were most VMAs."""

    vmas: int
    processes: int
    anon_vmas: tuple[int, int]
    chains: tuple[int, int]
    pinned: int
    results: int


def most_held(header: Header, events: list[Event], progress: Progress) -> Held:
    """Play `events` on anon_vma and anon_vma_lazy in lockstep."""
    machine = Machine(PROFILES["6.18"], [AnonVmaRmap, AnonVmaLazyRmap])
    eager, lazy = machine.designs
    assert isinstance(eager, AnonVmaRmap) and isinstance(lazy, AnonVmaLazyRmap)
    player = Player(machine, header)
    most = Held(0, 0, (0, 0), (0, 0), 0, 0)
    for played, _ in player.steps(events):
        if machine.vma_pool.live >= most.vmas:
            most = Held(
                machine.vma_pool.live,
                len(machine.mms),
                (eager.anon_vma_pool.live, lazy.anon_vma_pool.live),
                (eager.chain_pool.live, lazy.chain_pool.live),
                lazy.pinned_pool.live,
                len(player.differences),
            )
        progress("playing the zygote", played, len(events))
    return most


def _change(pair: tuple[int, int]) -> float:
    return 100 * (pair[1] / pair[0] - 1)


def _anon_vma_lazy(costs: CostProfile, progress: Progress) -> Reproduction:
    histories = recordings()
    family = widest_family(histories)
    history = histories[family.recording]
    held = most_held(history.header, zygote_history(history, family, 24), progress)
    anon, chains = _change(held.anon_vmas), _change(held.chains)
    pinned = 100 * held.pinned / held.vmas
    each = held.chains[0] / held.anon_vmas[0]
    saved = (held.chains[0] - held.chains[1]) / (held.anon_vmas[0] - held.anon_vmas[1])
    shown = [
        ("anon_vmas, before and after", f"{held.anon_vmas[0]:,} and {held.anon_vmas[1]:,}"),
        ("AVCs, before and after", f"{held.chains[0]:,} and {held.chains[1]:,}"),
        ("VMAs that are gone and pinned", f"{held.pinned:,}"),
    ]
    return _beside(
        "anon-vma-lazy", 2 * [anon, chains, pinned], shown,
        family=family, nr_children=len(family.children), held=held, saved=saved, each=each,
    )  # fmt: skip


# 6.18: fork and exit side by side


def _storm(costs: CostProfile, design: type[ReverseMap], processes: int, related: int, progress: Progress) -> Point:
    values = {"processes": processes, "related": related, "rounds": 10, "vmas": 500, "pages": 1, "writes": 0}
    history = workload("storm", {key: str(value) for key, value in values.items()}).history()
    parallel = take_apart(list(history), recorded=False)
    return Run(history.header, parallel, Plan(PROFILES["6.18"], costs), design, 2).go(progress)


def _fork_exit(costs: CostProfile, progress: Progress) -> Reproduction:
    each = {}
    for processes in (2, 4):
        for related in (0, 1):
            point = _storm(costs, AnonVmaRmap, processes, related, progress)
            each[processes, related] = 1e3 * point.seconds / 10
    ours = [each[2, 0], each[2, 1], each[4, 0], each[4, 1], each[2, 1] / each[2, 0], each[4, 1] / each[4, 0]]
    now, shown = _fork_exit_now(costs, progress)
    found = _beside("fork-exit", ours, shown)
    bound = "times 0.5 2"
    measured = [
        Figure(f"here and now: {row.program}", row.measured, row.measured, row.predicted, "times", bound) for row in now
    ]
    return msgspec.structs.replace(found, figures=found.figures + measured)


def _fork_exit_now(costs: CostProfile, progress: Progress) -> tuple[list[Residual], list[tuple[str, str]]]:
    """How many times slower relatives are than strangers on the kernel that runs here, and in virtual time; or why that
    was not measured."""
    from rmaplab.measure.calibration import calibrate, races
    from rmaplab.measure.calibration.errors import CalibrationError
    from rmaplab.measure.calibration.host import ROUNDS, Host

    chosen = [race for race in races.RACES if calibrate.is_wanted(race.name, ["that fork and exit"])]
    try:
        with Host() as host:
            if len(host.cpus) == 1:
                return [], [("here and now", "not measured: relatives do not meet on one CPU")]
            return calibrate.predict_races(host, costs, chosen, ROUNDS, progress).rows, []
    except CalibrationError as error:
        return [], [("here and now", f"not measured: {error}")]


# The topic: reclaim against relatives


def _zygote_reclaim(costs: CostProfile, progress: Progress) -> Reproduction:
    shown = []
    history = workload("pressure", {"processes": "4", "rounds": "6"}).history()
    parallel = take_apart(list(history), recorded=False)
    for design in (AnonVmaRmap, CowContextRmap):
        point = Run(history.header, parallel, Plan(PROFILES["6.18"], costs), design, 4).go(progress)
        name = point.design
        own = [lock for lock in point.contention if lock.name not in _OF_THE_MACHINE]
        shown.append((f"{name}: operations per second", f"{point.throughput:,.0f}"))
        shown.append((f"{name}: waited for the design's locks", f"{sum(c.waited for c in own) / 1e3:,.0f} us"))
        for contention in own[:3]:
            shown.append(
                (
                    f"  {contention.waiter} waits while {contention.holder} has the {contention.name}",
                    f"{contention.count:,} times, {contention.waited / 1e3:,.0f} us",
                )
            )
    return _beside("zygote-reclaim", [], shown)


_OF_THE_MACHINE: Final = frozenset(("mmap_lock", "vma_lock", "page_table_lock", "folio lock"))

REPRODUCTIONS: Final[dict[str, Callable[[CostProfile, Progress], Reproduction]]] = {  # by the names of their pages
    "anon-vma-chains": _anon_vma_chains,
    "vma-write-locks": _vma_write_locks,
    "anon-vma-lazy": _anon_vma_lazy,
    "fork-exit": _fork_exit,
    "zygote-reclaim": _zygote_reclaim,
}


def chosen(names: Sequence[str]) -> list[str]:
    """:raises ReproduceError: one of `names` is none of them"""
    for name in names:
        if name not in REPRODUCTIONS:
            raise ReproduceError(f"there is no reproduction {name!r} (there are {', '.join(REPRODUCTIONS)})")
    return list(names)


def reproduce(name: str, costs: CostProfile, progress: Progress) -> Reproduction:
    return REPRODUCTIONS[name](costs, progress)
