# SPDX-License-Identifier: GPL-2.0-or-later
"""From programs to a cost profile, and from a profile to predictions of programs that it has not seen."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, median
from typing import Final, NamedTuple

import msgspec

from rmaplab.measure.calibration import races
from rmaplab.measure.calibration.errors import CalibrationError
from rmaplab.measure.calibration.fit import Row, fit
from rmaplab.measure.calibration.host import PRIMITIVES, ROUNDS, Host, Progress, machine
from rmaplab.measure.calibration.program import Program
from rmaplab.measure.cost import HANDOVER, WAKE_UP, WAKING, CostProfile, Residual, price
from rmaplab.mm.profile import Profile, profile_for
from rmaplab.verdict import judge

# Counted beside other work that has a cost: the nodes that a walk visits, say.
COVERED: Final = (
    "anon_vmas reused", "places visited", "walks", "root VMAs upgraded",
    "VMAs linked by an upgrade", "pages given a new address",
)  # fmt: skip

# Where costs begin that the programs tell apart badly: round numbers, of the order that they have on machines of today.
START: Final = {
    "syscalls": 500, "faults": 500, "pages zeroed": 500, "pages copied": 700, "pages freed": 100, "pages reused": 50,
    "entries copied at fork": 50, "entries zapped": 50, "entries moved": 20, "entries protected": 50,
    "leaves made": 700, "leaves freed": 200, "tlb flushes": 300,
    "vma tree changes": 400, "vmas copied at fork": 100,
    "alloc vm_area_struct": 200, "free vm_area_struct": 200, "alloc mm_struct": 30000, "free mm_struct": 30000,
    "alloc anon_vma": 100, "free anon_vma": 100, "alloc anon_vma_chain": 100, "free anon_vma_chain": 100,
    "interval tree nodes visited": 10, "rmap walks": 300, "rmap places visited": 100,
    "rmap places that mapped": 50,
}  # fmt: skip

# What is between two CPUs, and what it costs where there is one only, and it cannot be measured.
BETWEEN_CPUS: Final = {"handover": 100, "wake up": 3000, "waking": 1000, "shootdown": 3000, "interrupt": 1000}

# What no kernel has, or no program can show, and what stands for it.  Objects come from a slab cache like any other; a
# lock that nobody contends is two atomic operations, as is a reference that is taken and given back.  Remap trees and
# the tree of VMAs are maple trees both; what a walk follows a pointer to is an object; a word in the line of a lock
# that is held takes a store; a look at an entry that is none of the folio's is what its user would have done there.
STAND_INS: Final = {
    "alloc *": "alloc anon_vma",
    "free *": "free anon_vma",
    "lock *": "lock anon_vma root rwsem",
    "rcu deferred frees": "free anon_vma",
    "remap tree nodes visited": "vma tree nodes visited",
    "anonmms visited": "contexts visited",
    "references to mm_structs": "lock anon_vma root rwsem",
    "vma index nodes visited": "contexts visited",
    "vma index entries changed": "contexts visited",
    "entries looked at in vain": "rmap places visited",
    "pointers added": "interval tree nodes visited",
    "pointers removed": "interval tree nodes visited",
    "chain slots looked at": "rcu read sections",
    "pages that Linux would have copied": "pages copied",
    "page-table entries looked at": "entries protected",
}

MEDIAN: Final = (0.8, 1.25)  # of predicted over measured
EACH: Final = (0.5, 2.0)


class Prediction(NamedTuple):
    """What a profile says of programs, and what they took."""

    rows: list[Residual]

    @property
    def median(self) -> float:
        return median(row.ratio for row in self.rows)

    @property
    def outside(self) -> list[Residual]:
        """Programs that are predicted worse than EACH allows."""
        return [row for row in self.rows if not EACH[0] <= row.ratio <= EACH[1]]

    @property
    def holds(self) -> bool:
        wrong = bool(self.rows) and (bool(self.outside) or not MEDIAN[0] <= self.median <= MEDIAN[1])
        return judge(len(self.rows), wrong, "none of these programs can be run on this machine")


def choose(programs: Sequence[Callable[[], Program]], wanted: Sequence[str]) -> list[Program]:
    """The programs whose names contain one of `wanted`; all of them if that is empty."""
    return [script for script in (program() for program in programs) if is_wanted(script.name, wanted)]


def is_wanted(name: str, wanted: Sequence[str]) -> bool:
    return not wanted or any(word in name for word in wanted)


def rows_of(host: Host, scripts: Sequence[Program], repeats: int, progress: Progress) -> list[Row]:
    """Counts by the model, times by the kernel."""
    counts = []
    scripts = host.able(scripts)
    for number, script in enumerate(scripts):
        progress("playing programs on the model", number, len(scripts))
        counts.append(script.counts(rules()))
    times = host.times(scripts, repeats, progress)
    return [Row(script.name, count, ns) for script, count, ns in zip(scripts, counts, times, strict=True)]


def release() -> str:
    """The kernel that runs here."""
    return platform.release()


def rules() -> Profile:
    """The rules of the kernel that runs here, or of the nearest that is known."""
    return profile_for(release())[0]


def calibrate(host: Host, scripts: Sequence[Program], repeats: int, progress: Progress) -> CostProfile:
    """Measure this machine's kernel.

    repeats: runs of each program in each of the ROUNDS rounds
    :raises CalibrationError: it cannot be measured
    """
    if not scripts:
        raise CalibrationError("no program is left to fit costs to: --programs takes parts of their names")
    direct: dict[str, float] = {}
    alone = len(host.cpus) == 1
    for done, (primitive, key) in enumerate(PRIMITIVES.items()):
        progress("timing what a kernel does all the time", done, len(PRIMITIVES))
        if not (alone and key in BETWEEN_CPUS):
            direct[key] = host.primitive(primitive)
    lock = direct.pop("lock")
    if not alone:
        direct[WAKE_UP] = median(host.wake_ups())
    rows = rows_of(host, scripts, repeats, progress)
    locks = {key for row in rows for key in row.counts if key.startswith("lock ")} | {"lock anon_vma root rwsem"}
    known = direct | dict.fromkeys(locks, lock) | dict.fromkeys(COVERED, 0.0)
    found = fit(rows, known, START)
    costs = known | found.costs
    assumed = START | BETWEEN_CPUS
    for key in set(assumed) - set(costs):  # only part of the programs ran, or there is one CPU only
        costs[key] = float(assumed[key])
    origins = dict.fromkeys(costs, "assumed")
    origins |= dict.fromkeys([*direct, *locks], "measured") | dict.fromkeys(COVERED, "counted elsewhere")
    origins |= dict.fromkeys(found.costs, "fitted") | dict.fromkeys(found.weak, "fitted, weakly")
    so_far = CostProfile(
        name=f"linux-{'.'.join(release().split('.')[:2])}-{len(host.cpus)}cpu",
        machine=machine(),
        kernel=release(),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        how=f"rmaplab calibrate: processor time of {len(rows)} programs on one CPU, the least of {ROUNDS} medians of"
        f" {repeats} runs each; counts by the model of {rules().name} with anon_vma; non-negative least squares, each"
        " program weighing the same; handover fitted to a race in virtual time",
        costs={key: round(cost, 2) for key, cost in sorted(costs.items())},
        stand_ins={key: other for key, other in STAND_INS.items() if other in costs and key not in costs},
        origins=dict(sorted(origins.items())),
        groups=found.groups,
        residuals=[Residual(r.program, round(r.measured), round(r.predicted)) for r in found.residuals],
    )
    if alone:
        return so_far
    (writers,) = races.measure(host, [races.WRITERS], ROUNDS, progress)
    return with_handover(host, so_far, writers, progress)


def with_handover(host: Host, costs: CostProfile, writers: Mapping[str, float], progress: Progress) -> CostProfile:
    """The same with a handover that is fitted, in virtual time, to the slow-down of races.WRITERS."""
    progress("fitting handovers in virtual time", 0, 1)
    (slow_down,) = writers.values()
    fitted = races.with_cost(costs, HANDOVER, races.fit_handover(costs, slow_down, rules(), len(host.cpus)))
    return msgspec.structs.replace(fitted, origins={**costs.origins, HANDOVER: "fitted"})


def predict(costs: CostProfile, rows: Sequence[Row]) -> Prediction:
    """What `costs` say of programs that were measured."""
    return Prediction([Residual(row.program, row.ns, price(costs, row.counts).ns) for row in rows])


def predict_races(
    host: Host, costs: CostProfile, chosen: Sequence[races.Race], repeats: int, progress: Progress
) -> Prediction:
    """What `costs` say of contention, in virtual time.

    Where a hypervisor runs two CPUs on two threads of one core, a cache line comes over in a fifth of the time, and a
    sleeper sooner, too; and it may change its mind by the minute.  So what is between CPUs is that of now: waking is
    measured again, before the races and after them, and the handover fitted to a race that is none of these.
    """
    before = host.wake_ups(), host.primitive("waking")
    writers, *measured = races.measure(host, [races.WRITERS, *chosen], min(repeats, ROUNDS), progress)
    after = host.wake_ups(), host.primitive("waking")
    wake_ups = [mean(pair) for pair in zip(before[0], after[0], strict=True)]
    usual = median(wake_ups)
    now = races.with_cost(races.with_cost(costs, WAKE_UP, usual), WAKING, mean((before[1], after[1])))
    now = with_handover(host, now, writers, progress)
    spread = [wake_up / usual for wake_up in wake_ups]
    return Prediction(races.predict(now, chosen, measured, rules(), len(host.cpus), spread, progress))
