# SPDX-License-Identifier: GPL-2.0-or-later
"""Work to time: the cost of each kind of counted work on one machine.

Designs and machine count; nothing there knows a nanosecond.  A `CostProfile` says what one unit of each kind takes on
one machine's kernel, and `price` multiplies.  `rmaplab calibrate` measures such a profile; one is shipped in
data/costs, and every report that speaks of time names the profile that it used.

Keys
- a tally's name ("pages zeroed"), `alloc POOL` and `free POOL`, `lock CLASS` (an uncontended acquisition
  and release, for reading or writing)
- costs that only a simulation of several CPUs can count: `HANDOVER`, `CONTEXT_SWITCH`, `WAKE_UP`, `WAKING`,
  `SHOOTDOWN`, `GRACE_PERIOD`

Invariant: no count is dropped silently.  A key has a measured cost, or it stands in for another by a rule that the
profile states, or it is a gap, which `price` lists with its count.  Work that other keys cover already (a walk is
its nodes visited and its locks) has the cost 0, which is stated like any other.

All costs are nanoseconds per unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Final

import msgspec

from rmaplab.errors import CannotRun
from rmaplab.measure.figures import Work
from rmaplab.output import write_output
from rmaplab.sync.work import Ledger

DEFAULT: Final = "linux-6.18-2cpu"

HANDOVER: Final = "handover"  # from a release on one CPU to the acquisition by one that spins on another
CONTEXT_SWITCH: Final = "context switch"  # a task gives its CPU to another that is ready
WAKE_UP: Final = "wake up"  # from waking a sleeper to its running on a CPU that is idle
WAKING: Final = "waking"  # what that takes of who wakes it, on another CPU
SHOOTDOWN: Final = "shootdown"  # other CPUs are interrupted to flush, and waited for
INTERRUPT: Final = "interrupt"  # what that takes of each that is interrupted; old profiles do not say
GRACE_PERIOD: Final = "grace period"  # until all RCU readers have left
COLD_LINE: Final = "cold line"  # to wait for a line that is in no cache; old profiles do not say
REQUIRED: Final = (HANDOVER, CONTEXT_SWITCH, WAKE_UP, WAKING, SHOOTDOWN, GRACE_PERIOD, "syscalls")

# Lines of memory that a unit of work waits for, one after the other, where nothing of it is in a cache: reclaim comes
# to folios that nobody has looked at for long.
COLD_LINES: Final = {
    "rmap walks": 1,  # the folio
    "rmap places visited": 3,  # the entry of the level above, the page of the leaf with its lock, the entry
    "rmap places that mapped": 1,  # the VMA's other line: rights, operations
    "lock anon_vma root rwsem": 2,  # the anon_vma, and its root
    "lock anon_vma rwsem": 1,
    "interval tree nodes visited": 1,  # the anon_vma_chain; the VMA of the last one, which is the next key's, besides
    "places visited": 1,  # the first line of the VMA: its range
    "contexts visited": 2,  # its address space and place in the tree of forks; its records
    "anonmms visited": 1,
    "vma tree nodes visited": 2,  # pivots and slots of a node of 256 bytes
    "remap tree nodes visited": 2,
    "references to mm_structs": 1,  # mm_users
    "chain slots looked at": 1,
}


class CostError(CannotRun):
    """A cost profile cannot be used; the message says why."""


class Residual(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How well the costs tell the time of one program: nanoseconds measured and predicted."""

    program: str
    measured: float
    predicted: float

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted / self.measured


class CostProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What work costs on one machine.

    name:      what reports call it
    machine:   processor, number of CPUs, memory, virtual or not
    kernel:    its release (uname -r)
    date:      of the measurement
    how:       how it was measured and fitted, in a sentence or two
    costs:     nanoseconds a unit, by key
    stand_ins: keys that were not measured, and the key whose cost they take; "alloc *" stands for all that begin so
    origins:   by key: "measured" (a program did nothing else), "fitted", "counted elsewhere" (0: others cover it)
    groups:    keys that no program told apart, so that a unit of each got the same cost
    residuals: the programs of the fit
    """

    name: str
    machine: str
    kernel: str
    date: str
    how: str
    costs: dict[str, float]
    stand_ins: dict[str, str] = {}
    origins: dict[str, str] = {}
    groups: list[list[str]] = []
    residuals: list[Residual] = []

    def cost_of(self, key: str) -> float | None:
        """Nanoseconds a unit of `key`, by its own cost or that of its stand-in; None if there is neither."""
        cost = self.costs.get(key)
        if cost is None:
            stand_in = self.stand_ins.get(key)
            if stand_in is None:
                words = key.split()
                for length in range(len(words) - 1, 0, -1):
                    stand_in = self.stand_ins.get(" ".join([*words[:length], "*"]))
                    if stand_in is not None:
                        break
            cost = None if stand_in is None else self.costs[stand_in]
        return cost


class Time(msgspec.Struct, frozen=True):
    """Counted work as time, uncontended.

    ns:   in all
    parts: nanoseconds by key, the dearest first
    gaps: keys without a cost, and how often they were counted: time that `ns` does not have
    """

    ns: float
    parts: dict[str, float]
    gaps: dict[str, int]


def counts_of(ledger: Ledger) -> dict[str, int]:
    """All that a ledger counted so far, by the keys of a cost profile."""
    counts = {name: tally.count for name, tally in ledger.tallies.items()}
    for name, pool in ledger.pools.items():
        counts[f"alloc {name}"] = pool.allocated
        counts[f"free {name}"] = pool.allocated - pool.live
    for name, lock in ledger.locks.items():
        counts[f"lock {name}"] = lock.writes + lock.reads
    return counts


def counts_of_work(work: Work, live: Mapping[str, int] | None = None) -> dict[str, int]:
    """The same of what a report says was counted.

    live: objects that were there at its end, by type; none if it freed all that it allocated, as a walk does
    """
    counts: dict[str, int] = {}
    for name, count in work.tallies.items():
        pool = name.removesuffix(" allocated")
        if pool == name:
            counts[name] = count
        else:
            counts[f"alloc {pool}"] = count
            counts[f"free {pool}"] = count - (live or {}).get(pool, 0)
    for lock in work.locks:
        counts[f"lock {lock.lock}"] = lock.writes + lock.reads
    return counts


def add_counts(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum of several counts."""
    total: dict[str, int] = {}
    for part in parts:
        for key, count in part.items():
            total[key] = total.get(key, 0) + count
    return total


def price(costs: CostProfile, counts: Mapping[str, int]) -> Time:
    """`counts` (see `counts_of`) as time."""
    parts: dict[str, float] = {}
    gaps: dict[str, int] = {}
    for key, count in counts.items():
        cost = costs.cost_of(key)
        if cost is not None:
            parts[key] = count * cost
        elif count:
            gaps[key] = count
    dearest = dict(sorted(((k, ns) for k, ns in parts.items() if ns), key=lambda part: -part[1]))
    return Time(math.fsum(dearest.values()), dearest, gaps)


def cold(profile: CostProfile) -> CostProfile:
    """The same for work that finds nothing in a cache: each unit waits for its COLD_LINES besides.

    :raises CostError: the profile does not say what a line costs
    """
    line = profile.costs.get(COLD_LINE)
    if line is None:
        raise CostError(f"the cost profile {profile.name} does not say what {COLD_LINE!r} costs: measure it anew")
    waits = {key: (profile.cost_of(key) or 0.0) + lines * line for key, lines in COLD_LINES.items()}
    return msgspec.structs.replace(profile, name=f"{profile.name}, cold", costs=profile.costs | waits)


def load_costs(name_or_path: str = "") -> CostProfile:
    """A cost profile: a shipped one by its name ("" or "default": the default, "cold": the same with cold caches), or a
    file that `rmaplab calibrate -o` wrote.

    :raises CostError: there is none, or it is not one
    """
    if name_or_path == "cold":
        return cold(load_costs())
    shipped = resources.files("rmaplab") / "data" / "costs"
    wanted = DEFAULT if name_or_path in ("", "default") else name_or_path
    try:
        if wanted.endswith(".json") or "/" in wanted:
            data = Path(wanted).read_bytes()
        else:
            data = (shipped / f"{wanted}.json").read_bytes()
    except FileNotFoundError:
        names = sorted(f.name.removesuffix(".json") for f in shipped.iterdir() if f.name.endswith(".json"))
        raise CostError(
            f"there is no cost profile {wanted!r}: name a file that `rmaplab calibrate -o` wrote (it ends in"
            f" .json), or one that is shipped ({', '.join(names)})"
        ) from None
    try:
        profile = msgspec.json.decode(data, type=CostProfile)
    except msgspec.DecodeError as error:
        raise CostError(f"{wanted} is not a cost profile: {error}") from None
    check_costs(profile, wanted)
    return profile


def check_costs(profile: CostProfile, where: str) -> None:
    """:raises CostError: the profile contradicts itself"""

    def wrong(what: str) -> CostError:
        return CostError(f"the cost profile {where} cannot be used: {what}")

    for field in ("name", "machine", "kernel", "date", "how"):
        if not getattr(profile, field):
            raise wrong(f"its {field} is empty")
    for key, cost in profile.costs.items():
        if not math.isfinite(cost) or cost < 0:
            raise wrong(f"{key!r} costs {cost} ns, and a cost is a number of at least 0")
    for key in REQUIRED:
        if key not in profile.costs:
            raise wrong(f"it does not say what {key!r} costs")
    for key, stand_in in profile.stand_ins.items():
        if stand_in not in profile.costs:
            raise wrong(f"{key!r} is to cost what {stand_in!r} costs, which it does not say")
    for what, keys in (("origin", profile.origins), *(("group", group) for group in profile.groups)):
        for key in keys:
            if key not in profile.costs:
                raise wrong(f"it has the {what} of {key!r}, which has no cost")


def write_costs(path: Path, profile: CostProfile) -> None:
    """Write `profile` for people to read and `load_costs` to load; nothing half-written is left behind."""
    check_costs(profile, str(path))
    data = msgspec.json.format(msgspec.json.encode(profile), indent=1) + b"\n"
    write_output(path, data)
