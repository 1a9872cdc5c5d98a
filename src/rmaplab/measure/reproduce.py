# SPDX-License-Identifier: GPL-2.0-or-later
"""Published figures about Linux's reverse map, and the laboratory's own.

A reproduction is a small function: it builds the published set-up as a history, counts, and puts each published figure
beside ours.  Parameters that the source does not give are stated in `how`, and chosen before the result was known:
none is fitted to it.  Where the two differ, `why` gives the likely reason.

`bound` is the requirement on a figure: that ours over the published lies between these two, or is exactly it, or that
two percentages differ by at most so many points.  A figure without one is shown for what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from typing import Final

import msgspec

from rmaplab.errors import CannotRun
from rmaplab.measure.cost import CostProfile, add_counts, counts_of, price
from rmaplab.measure.scale import Plan, Point, Run
from rmaplab.mm.abi import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ, PROT_WRITE
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import PTE_SHIFT
from rmaplab.mm.profile import PROFILES, Profile
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import MM, PAGE_SIZE, VMA
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
    return Reproduction(
        name="anon-vma-chains",
        source="5beb49305251, mm: change anon_vma linking to fix multi-process server scalability issue (2.6.34,"
        " 2010)",
        said="1000 children with 1000 pages each in one VMA, all copied: a walk for any page looks into 1000"
        " processes; with a chain per process, into 1 for a page of a child, and into N for at most 1/N of the pages.",
        how="One VMA of 1000 pages, written; 1000 forks; each child writes all of it. A page of each child and all"
        " pages of the parent are walked, once with one anon_vma per family (rmap/anon_vma_2004.py) and once with"
        " today's.",
        figures=[
            Figure("before, a child's page", 1000, 1000, before_child, "children", "exact"),
            Figure("before, a parent's page", 1000, 1000, before_parent, "children", "exact"),
            Figure("after, a child's page", 1, 1, after_child, "children", "exact"),
            Figure("after, a parent's page", 1000, 1000, after_parent, "children", "exact"),
            Figure("pages of which that is so", 0.1, 0.1, 100 * after.of_parent / after.pages, "%", "at most"),
        ],
        why="Exact. What is counted is children; the parent, which the text does not count, is looked into as well"
        " where all of them are.",
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
    figures = []
    shown = []
    profile = PROFILES["6.18"]
    for pages, what in ((0, "nothing faulted"), (1, "a page in each")):
        progress("forking 10,000 VMAs", pages, 2)
        fork, exit = fork_times(costs, Machine, profile, 10_000, pages)
        unlocked, _ = fork_times(costs, ForksUnlocked, profile, 10_000, pages)
        slower = 100 * (fork / unlocked - 1)
        if pages == 0:
            figures.append(Figure(f"fork slower by, {what}", 5, 5, slower, "%"))
        else:
            shown.append((f"fork slower by, {what}", f"{slower:.2f} %"))
        shown.append((f"fork and exit slower by, {what}", f"{100 * ((fork + exit) / (unlocked + exit) - 1):.2f} %"))
        shown.append((f"one fork, {what}", f"{fork / 1e6:.2f} ms"))
    each = costs.cost_of("lock vma_lock") or 0.0
    return Reproduction(
        name="vma-write-locks",
        source="fb49c455323f, fork: lock VMAs of the parent process when forking (6.5, 2023)",
        said="A stress test that maps 10 000 VMAs and forks 5000 times in a tight loop is about 5 % slower when fork"
        " write-locks every VMA of the parent.",
        how="10 000 VMAs of one page, mapped and not touched, as the text says no more; one fork (all 5000 are"
        " alike), with the locks and without, its counted work as time by the cost profile.",
        figures=figures,
        why=f"The work is the same: 10 000 locks more. The profile says that one takes {each:.1f} ns, and measured it"
        " in a loop over locks that are in the cache. In a fork the first touch of each VMA's lock, and the store of"
        " its sequence number, dirty a cache line that nothing else had dirtied: 5 % of this fork would be 14 ns per"
        " VMA. The cost model has no cache misses of its own, so it can only give this lower bound.",
        shown=shown,
    )


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
    return Reproduction(
        name="anon-vma-lazy",
        source="mm: introduce ANON_VMA_LAZY for deferred anon_vma creation (linux-mm, 27 May 2026)",
        said="Slab memory on Android, before and after: after boot anon_vma -97.0 %, anon_vma_chain -57.0 %,"
        " vm_area_struct +1.0 %; after launching 24 apps -92.0 %, -50.5 % and +0.2 %.",
        how=f"The packaged recording's widest family of forks ({family.recording}: a parent and {len(family.children)}"
        " children that never call exec), its parent as the zygote, and 24 apps: the recorded children in turn, each"
        " doing what it did. Which VMAs there are, which of them map files, and who writes to what is the recording's."
        f" Counted at the moment with most VMAs ({held.vmas:,} in {held.processes} processes). Nothing was chosen for"
        " its result; the boot row is held against the same family, for want of a recording of a boot.",
        figures=[
            Figure("24 apps: anon_vma", -92.0, -92.0, anon, "%", "points 5"),
            Figure("24 apps: anon_vma_chain", -50.5, -50.5, chains, "%", "points 5"),
            Figure("24 apps: vm_area_struct", 0.2, 0.2, pinned, "%", "points 5"),
            Figure("boot: anon_vma", -97.0, -97.0, anon, "%", "points 5"),
            Figure("boot: anon_vma_chain", -57.0, -57.0, chains, "%", "points 5"),
            Figure("boot: vm_area_struct", 1.0, 1.0, pinned, "%", "points 5"),
        ],
        why=f"Each anon_vma that is saved saves one AVC here ({saved:.2f}), so the reduction of AVCs is that of"
        " anon_vmas over the AVCs that there are for each anon_vma. A family of forks alone has nearly 2 of them"
        f" ({each:.2f} here; the table's 24 apps come to 92.0 / 50.5 = 1.82). After boot the table comes to 97.0 / 57.0"
        " = 1.70: three in ten of its anon_vmas were of VMAs that had one AVC, which nobody inherited: those of"
        " daemons, and what apps map for themselves. Our family hardly has them, and we did not add any to meet the"
        " figure. Apps that fork by themselves would bring our anon_vma towards -92 %.",
        shown=[
            ("anon_vmas, before and after", f"{held.anon_vmas[0]:,} and {held.anon_vmas[1]:,}"),
            ("AVCs, before and after", f"{held.chains[0]:,} and {held.chains[1]:,}"),
            ("VMAs that are gone and pinned", f"{held.pinned:,}"),
        ],
    )


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
    bound = "times 0.5 2"
    return Reproduction(
        name="fork-exit",
        source="measured on Linux 6.18.44 with 2 CPUs, for this project",
        said="Processes with 500 faulted VMAs fork and exit in a loop. Two unrelated ones: 0.9 to 1.1 ms per fork and"
        " exit each, two forked from one parent: 2.3 to 2.6 ms. Four: 2.1 against 6.1 to 6.5 ms.",
        how="The workload storm (500 VMAs of one page, children that write nothing, 10 rounds) on 2 simulated CPUs"
        " with anon_vma, timed by the cost profile. Pages per VMA and what children do are not in the source.",
        figures=[
            Figure("2 unrelated", 0.9, 1.1, each[2, 0], "ms", bound),
            Figure("2 related", 2.3, 2.6, each[2, 1], "ms", bound),
            Figure("4 unrelated", 2.1, 2.1, each[4, 0], "ms", bound),
            Figure("4 related", 6.1, 6.5, each[4, 1], "ms", bound),
            Figure("2: related over unrelated", 2.45, 2.45, each[2, 1] / each[2, 0], "times", bound),
            Figure("4: related over unrelated", 3.0, 3.0, each[4, 1] / each[4, 0], "times", bound),
        ],
        why="Processes that share a hierarchy wait for its root locks, and find the trees below them in another CPU's"
        " cache. The simulation (sync/virtual/) charges a hand-over for each visited node whose lock came from another"
        " CPU. That rule was added when a first version without it reached half of the measured slow-down; its cost is"
        " the profile's. The rest is the uncontended fork and exit, for which the profile gives a fifth less than was"
        " measured.",
    )


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
    return Reproduction(
        name="zygote-reclaim",
        source="LSF/MM/BPF 2026 topic, The Future of the Anonymous Reverse Mapping (30 March 2026)",
        said="Reclaim on one CPU holds or waits for a root lock that fork, exit and munmap of unrelated apps need,"
        " because all were forked from one zygote. No figure was published.",
        how="The workload pressure (4 launchers, 6 apps each, kswapd and kcompactd at the zygote's pages) on 4"
        " simulated CPUs.",
        figures=[],
        why="A demonstration. With anon_vma forks of apps that have nothing to do with each other wait for each"
        " other, and reclaim and compaction wait for them; a walk through CoW contexts takes no lock that an app"
        " needs.",
        shown=shown,
    )


_OF_THE_MACHINE: Final = frozenset(("mmap_lock", "vma_lock", "page_table_lock", "folio lock"))

REPRODUCTIONS: Final[dict[str, Callable[[CostProfile, Progress], Reproduction]]] = {
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
