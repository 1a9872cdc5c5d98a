# SPDX-License-Identifier: GPL-2.0-or-later
"""Histories on simulated CPUs: what is counted, what is waited for, and that the machine is whole afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import resources
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from acts import fork, leave, mmap, start, write
from rmaplab.check.truth import Truth, invariants
from rmaplab.errors import CannotRun
from rmaplab.measure.cost import CostProfile, counts_of, load_costs
from rmaplab.measure.scale import Plan, Point, Run, fit
from rmaplab.measure.scale_report import fewer_tasks, timeline
from rmaplab.measure.sources import cpu_counts, history_for
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.rmap import DESIGNS
from rmaplab.sync.virtual.prices import (
    CONTEXT_SWITCH,
    GRACE_PERIOD,
    HANDOVER,
    PICOSECONDS,
    SHOOTDOWN,
    WAKE_UP,
    WAKING,
)
from rmaplab.trace.events import Event
from rmaplab.trace.parallel import Parallel, Strand, nodes_of, take_apart
from rmaplab.trace.play import Player
from rmaplab.workloads.workload import AREA

COSTS = load_costs()
BOTH = ("anon_vma", "cow_context")


def ran(what: str, cpus: int, design: str = "anon_vma", costs: CostProfile = COSTS, **how: Any) -> tuple[Run, Point]:
    header, parallel, _ = history_for(what.split(), cpus, 1)
    plan = Plan(PROFILES[REFERENCE], costs)._replace(**how)
    run = Run(header, parallel, plan, DESIGNS[design], cpus)
    return run, run.go()


def lock(point: Point, name: str) -> int:
    """How often somebody waited for a lock of this class."""
    return sum(entry.contended for entry in point.locks if entry.name == name)


# The machine is whole

SMALL = (
    "aim7 children=5 pages=20",
    "bgsave pages=200 saves=2 writes=20",
    "elf processes=4 alive=2 libraries=3",
    "forkchain generations=12 vmas=4",
    "prefork workers=5 requests=60 vmas=6 lifetime=5",
    "pressure rounds=3 vmas=8",
    "pressure related=0 rounds=2 vmas=5",
    "reclaim processes=5 steps=150 vmas=5 pages=20",
    "remapper buffers=6 moves=60 children=4",
    "storm rounds=3 vmas=10",
    "willitscale case=fork1 rounds=3 vmas=5",
    "zygote apps=4 restarts=4 vmas=12 own_vmas=6",
)


@pytest.mark.parametrize("design", [name for name in DESIGNS if name not in ("page_scan", "cow_context_prototype")])
@pytest.mark.parametrize("what", SMALL)
def test_at_rest_every_place_is_found_and_the_machine_is_whole(what: str, design: str) -> None:
    run, point = ran(what, 5, design)
    truth = Truth(run.machine)
    assert invariants(run.machine, truth) == []
    for folio in truth.mapped_folios():
        assert folio.unseen(list(run.machine.leader.walk(folio.head))) == []
    assert point.differences == 0
    used = point.utilisation
    assert used.working + used.spinning + used.switching + used.idle == pytest.approx(1)
    assert min(msgspec.structs.astuple(used)) >= 0
    assert point.operations + point.skipped == run._parallel.nr_steps


@pytest.mark.parametrize("design", BOTH)
@pytest.mark.parametrize("order", [0, 4])
def test_large_folios_are_no_obstacle(design: str, order: int) -> None:
    run, point = ran("pressure rounds=3 vmas=8 pages=32", 6, design, large_folios=order)
    assert invariants(run.machine, Truth(run.machine)) == []
    assert point.differences == 0


# Work


def sequential(what: str, design: str) -> Machine:
    header, parallel, _ = history_for(what.split(), 1, 1)
    machine = Machine(PROFILES[REFERENCE], [DESIGNS[design]])
    player = Player(machine, header)
    for event in parallel.set_up:
        player.do(event)
    steps = [step for strand in all_strands(parallel) for step in strand.steps]
    for step in sorted(steps, key=lambda step: step.number):
        player.do(step.event)
    return machine


def all_strands(parallel: Parallel) -> list[Strand]:
    found = list(parallel.strands)
    for strand in found:
        found += [step.begins for step in strand.steps if step.begins is not None]
    return found


@pytest.mark.parametrize("design", BOTH)
@pytest.mark.parametrize(
    ("what", "cpus"),
    [
        ("storm processes=1 rounds=3 vmas=30 pages=20", 1),
        ("storm processes=4 related=0 rounds=3 vmas=20", 4),
        ("willitscale processes=4 related=0 rounds=3 case=page_fault1", 4),
        ("willitscale processes=4 related=0 rounds=3 case=mmap1", 4),
        ("willitscale processes=4 related=0 rounds=3 case=brk1", 4),
        ("willitscale processes=4 related=0 rounds=3 case=fork1", 4),
        ("zygote apps=1 restarts=3 vmas=30 own_vmas=10", 1),
        ("forkchain generations=15", 1),
        ("elf processes=1 alive=1", 2),
        ("remapper children=0 moves=100", 3),
        ("prefork workers=1 requests=50", 2),
    ],
)
def test_where_nobody_waits_the_counts_are_those_of_a_sequential_replay(what: str, cpus: int, design: str) -> None:
    run, point = ran(what, cpus, design)
    assert [entry.contended for entry in point.locks if entry.contended] == []
    machine = sequential(what, design)
    assert counts_of(run.machine.ledger) == counts_of(machine.ledger)
    assert counts_of(run.machine.leader.ledger) == counts_of(machine.leader.ledger)


@pytest.mark.parametrize("design", BOTH)
@pytest.mark.parametrize("what", ["storm processes=3 rounds=3 vmas=10", "pressure rounds=3 vmas=8", "elf processes=3"])
def test_on_one_cpu_time_is_the_sum_of_work(what: str, design: str) -> None:
    run, _ = ran(what, 1, design)
    time = run.time
    switching = sum(int(cpu.switching) for cpu in time.cpus.all)
    idle = sum(int(cpu.idle) for cpu in time.cpus.all)
    worked = time.work.total() - run.began - int(time.work.deferred)
    assert time.ended == worked + switching + int(time.cpus.spun) + idle
    assert time.cpus.spun == 0 or what.startswith("pressure")
    free = msgspec.structs.replace(
        COSTS, costs=COSTS.costs | dict.fromkeys((HANDOVER, CONTEXT_SWITCH, WAKE_UP, SHOOTDOWN, GRACE_PERIOD), 0.0)
    )
    run, point = ran(what, 1, design, free)
    assert run.time.ended == run.time.work.total() - run.began - int(run.time.work.deferred)
    assert point.utilisation.working == 1


_PRINT = """
import sys
from rmaplab.commands.frame import main
main(["scale", "pressure", "rounds=3", "vmas=8", "--cpus", "1,4", "--json"])
"""


def test_figures_do_not_depend_on_the_hash_seed() -> None:
    told = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))}
        done = subprocess.run([sys.executable, "-c", _PRINT], env=environment, capture_output=True, check=True)
        told.append(json.loads(done.stdout))
    assert told[0] == told[1]


# Contention


def test_relatives_wait_for_the_root_lock_and_strangers_for_nothing() -> None:
    _, related = ran("storm rounds=4 vmas=30", 8)
    _, strangers = ran("storm rounds=4 vmas=30 related=0", 8)
    assert lock(related, "anon_vma root rwsem") > 100
    assert strangers.contention == []
    assert related.seconds > 1.1 * strangers.seconds
    assert ran("storm rounds=4 vmas=30", 8, "cow_context")[1].contention == []


def test_reclaim_and_fork_of_relatives_wait_for_each_other_in_anon_vma_alone() -> None:
    _, point = ran("pressure rounds=6", 8)
    pairs = {(entry.waiter, entry.holder) for entry in point.contention if entry.name == "anon_vma root rwsem"}
    walks = {"referenced", "swap_out", "migrate"}
    assert any(waiter in walks and holder == "fork" for waiter, holder in pairs)
    _, point = ran("pressure rounds=6", 8, "cow_context")
    assert {entry.name for entry in point.contention} <= {"page_table_lock", "folio lock", "cow_context lock"}


@pytest.mark.parametrize("design", BOTH)
def test_kernel_threads_alone_shoot_tlbs_down_and_where_there_is_one_cpu_nobody(design: str) -> None:
    _, point = ran("pressure rounds=3 vmas=8", 4, design)
    assert 0 < point.shootdowns <= point.interrupts <= 4 * point.shootdowns
    least = point.shootdowns * COSTS.costs[SHOOTDOWN] / 1e9
    assert point.shooting == pytest.approx(
        least + (point.interrupts - point.shootdowns) * COSTS.costs[WAKING] / 1e9
    )
    for what, cpus in (("pressure rounds=3 vmas=8", 1), ("storm rounds=3 vmas=10", 8), ("elf processes=6 alive=3", 4)):
        _, point = ran(what, cpus, design)
        assert (point.shootdowns, point.interrupts, point.shooting) == (0, 0, 0)


# Strands


def play(events: Sequence[Event]) -> list[tuple[str, list[int], list[tuple[int, ...]]]]:
    parallel = take_apart(events, recorded=True)
    return [
        (strand.name, [step.number for step in strand.steps], [step.after for step in strand.steps])
        for strand in all_strands(parallel)
    ]


def test_a_parent_that_waited_waits_and_one_that_did_not_does_not() -> None:
    waits = [start(1), fork(1, 2), write(2, AREA, 1), leave(2), fork(1, 3)]
    assert play(waits)[0] == ("process 1", [0, 1, 4], [(), (), (3,)])
    goes_on = [start(1), fork(1, 2), mmap(1, AREA, 1), leave(2), fork(1, 3), mmap(1, AREA, 1), fork(1, 4)]
    assert play(goes_on)[0] == ("process 1", [0, 1, 2, 4, 5, 6], [(), (), (), (), (), (3,)])
    assert play(goes_on)[1] == ("process 2", [3], [(2,)])  # killed by its parent, after what that did


def test_kernel_threads_are_strands_of_their_own() -> None:
    acts = [Event("referenced", 2, AREA, 4096), Event("migrate", 1, AREA, 4096)]
    parallel = take_apart([start(1), fork(1, 2), *acts], recorded=True)
    assert [strand.name for strand in parallel.strands] == ["process 1", "kswapd", "kcompactd"]
    assert parallel.strands[1].steps[0].after == (1,)
    acts.append(Event("migrate", 1, AREA + (1 << 15), 4096))
    parallel = take_apart([start(1), fork(1, 2), *acts], recorded=True, nodes=nodes_of(9))
    assert [strand.name for strand in parallel.strands[1:]] == ["kswapd0", "kcompactd0", "kcompactd1"]


def test_a_recording_is_played_on_cpus_with_its_own_timing_or_as_fast_as_it_goes() -> None:
    path = str(resources.files("rmaplab") / "data/recordings/example.parquet")
    header, parallel, _ = history_for([path], 4, 1)
    last = max(step.event.time for strand in all_strands(parallel) for step in strand.steps)
    assert parallel.set_up == []
    fast = Run(header, parallel, Plan(PROFILES[REFERENCE], COSTS), DESIGNS["anon_vma"], 4).go()
    slow = Run(header, parallel, Plan(PROFILES[REFERENCE], COSTS, "recorded"), DESIGNS["anon_vma"], 4).go()
    assert fast.operations == slow.operations == parallel.nr_steps
    assert slow.seconds * 1e9 >= last > fast.seconds * 1e9


# Figures


def test_the_law_is_found_again() -> None:
    cpus = [1, 2, 4, 8, 16, 32, 64]
    x = [1000 * n / (1 + 0.05 * (n - 1) + 0.001 * n * (n - 1)) for n in cpus]
    law = fit(cpus, x)
    assert law is not None
    assert (law.rate, law.contention, law.coherency) == pytest.approx((1000, 0.05, 0.001))
    assert law.peak_cpus == pytest.approx((0.95 / 0.001) ** 0.5)
    assert law.r_squared == pytest.approx(1)
    linear = fit([1, 2, 4], [10.0, 20.0, 40.0])
    assert linear is not None and (linear.contention, linear.coherency) == pytest.approx((0, 0), abs=1e-9)
    assert fit([1, 2], [1.0, 2.0]) is None


def test_waits_add_up() -> None:
    """What the locks say, what the report of waiter and holder says, and latencies tell one story."""
    _, point = ran("storm rounds=4 vmas=30", 8)
    for entry in point.locks:
        pairs = [pair for pair in point.contention if pair.name == entry.name]
        assert sum(pair.count for pair in pairs) == entry.contended
        assert sum(pair.waited for pair in pairs) == pytest.approx(entry.waited)
    busy = sum(latency.mean * latency.count for latency in point.latencies) / 1e9
    used = point.utilisation
    assert busy <= point.seconds * point.cpus * (used.working + used.spinning + used.idle) * 1.001
    assert busy >= point.work * 0.99


def test_a_timeline_is_what_perfetto_reads() -> None:
    run, point = ran("pressure rounds=2 vmas=5", 3, trace=True)
    told = json.loads(timeline(run.time))
    assert told.keys() == {"displayTimeUnit", "traceEvents"}
    names: set[tuple[int, int]] = set()
    rows: dict[tuple[int, int], list[tuple[float, float]]] = {}
    operations = 0
    for event in told["traceEvents"]:
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name") and event["args"]["name"]
            if event["name"] == "thread_name":
                names.add((event["pid"], event["tid"]))
        else:
            assert event["ph"] == "X" and event["name"]
            assert event["ts"] >= 0 and event["dur"] >= 0
            assert event["ts"] + event["dur"] <= point.seconds * 1e6 + 1e-3
            if event["cat"] != "wait":
                rows.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
            operations += event["cat"] == "operation"
    assert rows.keys() <= names
    assert operations >= point.operations
    for (pid, _), spans in rows.items():
        if pid == 1:  # what one process does, it does one after the other
            spans.sort()
            assert all(before[1] <= after[0] + 1e-6 for before, after in pairwise(spans))


def test_cpus_that_can_never_have_a_task_are_named() -> None:
    points = [ran("storm processes=3 rounds=2 vmas=3", cpus)[1] for cpus in (2, 4, 16)]
    assert [point.at_once for point in points] == [points[0].at_once] * 3
    assert fewer_tasks(points) == [cpus for cpus in (2, 4, 16) if cpus > points[0].at_once]
    assert 16 in fewer_tasks(points) and 2 not in fewer_tasks(points)


def test_a_walk_counts_the_references_that_it_takes_to_address_spaces() -> None:
    """One for each process that it looks into; a tree of anon_vmas needs none."""
    for design, references in (("cow_context", 3), ("anon_vma", 0)):
        machine = Machine(PROFILES[REFERENCE], [DESIGNS[design]])
        mm = machine.exec(1, 0x7FFFFFFF0000, 4096, 0x7FFFFFFF0000, 0)
        addr = 0x10000000
        machine.mmap(mm, addr, 4096, 3, 0x32, None, 0)
        machine.fault(mm, addr, True)
        machine.fork(1, 2)
        machine.fork(1, 3)
        list(machine.leader.walk(mm.page_table.get(addr) >> 12))
        counts = counts_of(machine.leader.ledger)
        assert counts.get("references to mm_structs", 0) == references
        assert COSTS.cost_of("references to mm_structs") == COSTS.cost_of("lock anon_vma root rwsem")


def test_numbers_of_cpus() -> None:
    assert cpu_counts("1,2,4") == [1, 2, 4]
    assert cpu_counts("1,...,16") == [1, 2, 4, 8, 16]
    assert cpu_counts("1,…,12,24") == [1, 2, 4, 8, 12, 24]
    for wrong in ("", "0", "two", "4,2", "1,...", "...,4", "5000"):
        with pytest.raises(CannotRun):
            cpu_counts(wrong)


def test_parameters_may_go_with_the_cpus() -> None:
    header, _, source = history_for(["zygote", "apps=2*cpus", "vmas=3"], 4, 1)
    assert "apps=8 " in header.command
    assert "apps=2*cpus " in source.name
    assert "processes=cpus" in history_for(["storm"], 4, 1)[2].name


def test_time_is_whole_picoseconds() -> None:
    run, _ = ran("storm rounds=1 vmas=3", 2)
    assert run.time.work.price("entries zapped") == round(COSTS.costs["entries zapped"] * PICOSECONDS)
