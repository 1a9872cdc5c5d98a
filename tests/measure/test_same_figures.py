# SPDX-License-Identifier: GPL-2.0-or-later
"""What virtual time says of some runs, to the last picosecond, and what each design does in random histories, to the
last node visited: who makes them faster must not change it.

A digest stands for all figures of a run, all its counts and its timeline.  Costs are made up here, so that no
calibration changes them.  A change of the model, of a design or of the author of random histories changes digests, and
is meant to: put in those that the test prints, and say in the commit why they changed.
"""

from __future__ import annotations

import hashlib
import random
from zlib import crc32

import msgspec
import pytest

from rmaplab.check.histories import Author
from rmaplab.check.truth import Truth
from rmaplab.measure.cost import REQUIRED, CostProfile
from rmaplab.measure.scale import Plan, Run
from rmaplab.measure.sources import history_for
from rmaplab.mm.folio import FOLIO_KSM
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.rmap import DESIGNS, EXCUSED

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
    ("pressure rounds=3 vmas=8 pages=32", "cow_context", 6, 4): "1be7794878d4",
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


# By design: its objects, locks and other counts, and the places of each walk in their order, over random histories.
WORK = {
    "anon_vma": "c53db4aaff15",
    "anon_vma_own_lock": "bd14c9709ebf",
    "anon_vma_lazy": "3b518b1aed10",
    "cow_context": "b32ec8e100c5",
    "lineage": "c31ed70f7099",
    "cow_context_prototype": "7d49086486a6",
    "unshare_on_remap": "0ded97a294a1",
    "anonmm": "8ddd0e5658f1",
    "pte_chain": "1211d25142ce",
    "page_scan": "f545ddf6242f",
}
HISTORIES, STEPS, WALKED = 20, 250, 10  # 5,000 steps; all folios are walked at each tenth


def work(name: str) -> str:
    """The digest of what a design does by itself: its own rule decides merges, and reclaim and migration walk it.
    Where it is known to miss places, anon_vma leads."""
    designs = [DESIGNS[design] for design in (["anon_vma", name] if name in EXCUSED else [name])]
    seen = hashlib.sha256()
    for number in range(HISTORIES):
        profile = PROFILES[tuple(PROFILES)[number % len(PROFILES)]]
        machine = Machine(profile, designs, large_folios=(0, 0, 3)[number % 3])
        design = machine.designs[-1]
        dice = random.Random(f"work/{number}")
        author = Author(machine, dice, pages=(24, 48)[number % 2], homing=(0.0, 0.3)[number % 2])
        author.begin()
        for step in range(1, STEPS):
            author.next()
            if step % WALKED == 0:
                held = [(o.type, o.objects, o.nbytes, o.slab_pages) for o in design.footprint()]
                heads = Truth(machine).heads
                walks = [[(vma.id, addr) for vma, addr in design.walk(head)] for head in heads]
                vmas = [vma for mm in machine.mms.values() for vma in mm.tree.to_list() if vma.prepared]
                own = [head for head in heads if not machine.folios.flags.m[head] & FOLIO_KSM][:4]
                related = [design.related(vma, head) for head in own for vma in vmas]
                seen.update(repr([held, walks, related]).encode())
        for ledger in (machine.ledger, design.ledger):
            counts = sorted((name, tally.count) for name, tally in ledger.tallies.items())
            pools = sorted((name, pool.live, pool.peak, pool.allocated) for name, pool in ledger.pools.items())
            locks = sorted((name, lock.writes, lock.reads) for name, lock in ledger.locks.items())
            seen.update(repr([counts, pools, locks]).encode())
    return seen.hexdigest()[:12]


@pytest.mark.parametrize("design", WORK)
def test_a_design_does_what_it_did(design: str) -> None:
    assert work(design) == WORK[design]


def test_the_work_of_all_designs_is_known() -> None:
    assert list(WORK) == list(DESIGNS)
