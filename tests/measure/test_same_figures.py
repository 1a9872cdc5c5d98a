# SPDX-License-Identifier: GPL-2.0-or-later
"""What virtual time says of some runs, to the last picosecond: who makes it faster must not change it.

A digest stands for all figures of a run, all its counts and its timeline.  Costs are made up here, so that no
calibration changes them.  A change of the model changes digests, and is meant to: put in those that the test prints,
and say in the commit why they changed.
"""

from __future__ import annotations

import hashlib
from zlib import crc32

import msgspec
import pytest

from rmaplab.measure.cost import REQUIRED, CostProfile
from rmaplab.measure.scale import Plan, Run
from rmaplab.measure.sources import history_for
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.rmap import DESIGNS

KEYS = (
    "faults",
    "pages zeroed",
    "pages copied",
    "entries copied at fork",
    "entries zapped",
    "tlb flushes",
    "vmas copied at fork",
    "interval tree nodes visited",
    "rmap places visited",
    "alloc vm_area_struct",
    "free vm_area_struct",
    "alloc anon_vma",
    "free anon_vma",
    "lock vma_lock",
    "lock page_table_lock",
    "lock anon_vma root rwsem",
)
HANDOVERS = {"handover": 60.0, "wake up": 9000.0, "waking": 4000.0, "grace period": 20_000.0}
COSTS = CostProfile(
    name="made up",
    machine="none",
    kernel="none",
    date="2026-11-24",
    how="so that work takes some time",
    costs={key: 5.0 + crc32(key.encode()) % 400 for key in (*KEYS, *REQUIRED)} | HANDOVERS,
)

FIGURES = {
    ("storm rounds=3 vmas=10 pages=30", "anon_vma", 8, 0): "601052f76415",
    ("storm rounds=3 vmas=40 pages=5", "cow_context", 8, 0): "b3225323594b",
    ("zygote apps=8 restarts=6 vmas=30 own_vmas=12", "anon_vma", 16, 0): "60993d4e4f9f",
    ("zygote apps=4 restarts=4 vmas=12 own_vmas=6", "anon_vma_lazy", 3, 0): "f0fa36ae9c93",
    ("pressure rounds=3 vmas=8", "anon_vma", 5, 0): "e2490d1ce818",
    ("pressure rounds=3 vmas=8 pages=32", "cow_context", 6, 4): "e101c7d80580",
    ("reclaim processes=5 steps=150 vmas=5 pages=20", "anon_vma", 5, 0): "cf39ac0c9436",
    ("reclaim processes=5 steps=150 vmas=5 pages=20", "pte_chain", 4, 0): "425fbaa66a29",
    ("prefork workers=5 requests=60 vmas=6 lifetime=5", "anonmm", 4, 0): "f3b27bc05b79",
    ("bgsave pages=600 saves=2 writes=60", "anon_vma", 3, 0): "f303585e601c",
    ("remapper buffers=6 moves=60 children=4", "anon_vma", 4, 0): "c09fc1271737",
}


def figures(what: str, design: str, cpus: int, large_folios: int) -> str:
    header, parallel, _ = history_for(what.split(), cpus, 1)
    plan = Plan(PROFILES[REFERENCE], COSTS, large_folios=large_folios, trace=True)
    run = Run(header, parallel, plan, DESIGNS[design], cpus)
    point = {key: value for key, value in msgspec.to_builtins(run.go()).items() if value}
    ledgers = (run.machine.ledger, run.machine.leader.ledger)
    counts = sorted((name, tally.count) for ledger in ledgers for name, tally in ledger.tallies.items())
    return hashlib.sha256(msgspec.json.encode([point, counts, run.time.figures.trace])).hexdigest()[:12]


@pytest.mark.parametrize(("what", "design", "cpus", "large_folios"), FIGURES)
def test_figures_are_what_they_were(what: str, design: str, cpus: int, large_folios: int) -> None:
    assert figures(what, design, cpus, large_folios) == FIGURES[what, design, cpus, large_folios]
