# SPDX-License-Identifier: GPL-2.0-or-later
"""Every workload is deterministic, plays as it says, and shows what it was made to show."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmaplab.check.truth import Truth
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.rmap.cow_context import CowContextRmap
from rmaplab.trace.play import Player
from rmaplab.workloads import FAMILIES, Workload, WorkloadError, workload
from rmaplab.workloads.aim7 import Aim7
from rmaplab.workloads.bgsave import BgSave
from rmaplab.workloads.elf import Elf
from rmaplab.workloads.forkchain import ForkChain
from rmaplab.workloads.ksm import Ksm
from rmaplab.workloads.prefork import Prefork
from rmaplab.workloads.pressure import Pressure
from rmaplab.workloads.reclaim import Reclaim
from rmaplab.workloads.remapper import Remapper
from rmaplab.workloads.storm import Storm
from rmaplab.workloads.will_it_scale import WillItScale
from rmaplab.workloads.workload import AREA
from rmaplab.workloads.zygote import Zygote

small = st.integers(1, 6)
few = st.integers(0, 40)
long = st.integers(1, 90)  # runs of pages that the machine handles in one go, and some that it does not
seeds = st.integers(0, 1000)
WORKLOADS: dict[str, st.SearchStrategy[Workload]] = {
    "aim7": st.builds(Aim7, seed=seeds, children=small, pages=long),
    "bgsave": st.builds(
        BgSave,
        seed=seeds,
        pages=st.integers(1, 600),
        saves=small,
        writes=few,
        run=small,
        last=st.integers(0, 100),
    ),
    "elf": st.builds(Elf, seed=seeds, processes=small, alive=small, libraries=small, text=small, relro=long),
    "forkchain": st.builds(ForkChain, seed=seeds, generations=small, vmas=small, pages=long, writes=long),
    "ksm": st.builds(
        Ksm, seed=seeds, guests=small, helpers=small, vmas=small, pages=long, same=st.integers(0, 100), writes=few
    ),
    "prefork": st.builds(
        Prefork,
        seed=seeds,
        workers=small,
        requests=few,
        lifetime=small,
        vmas=small,
        pages=long,
        scratch=long,
    ),
    "reclaim": st.builds(Reclaim, seed=seeds, processes=small, steps=few, vmas=small, pages=long, scan=long),
    "remapper": st.builds(
        Remapper, seed=seeds, buffers=small, pages=long, growths=st.integers(0, 3), moves=few, children=small
    ),
    "pressure": st.builds(
        Pressure,
        seed=seeds,
        processes=small,
        related=st.integers(0, 1),
        rounds=small,
        vmas=small,
        pages=long,
        writes=few,
        unmaps=few,
        scan=long,
    ),
    "storm": st.builds(
        Storm, seed=seeds, processes=small, related=st.integers(0, 1), rounds=small, vmas=small, pages=long, writes=few
    ),
    "willitscale": st.builds(
        WillItScale,
        case=st.sampled_from(["page_fault1", "mmap1", "brk1", "fork1"]),
        processes=small,
        related=st.integers(0, 1),
        rounds=small,
        pages=long,
        vmas=few,
    ),
    "zygote": st.builds(
        Zygote, seed=seeds, apps=small, restarts=small, vmas=small, pages=long, own_vmas=few, own_pages=long
    ),
}
any_workload = st.one_of(*WORKLOADS.values())


def played(workload: Workload, batch: bool = True, large_folios: int = 0) -> tuple[Machine, Player]:
    history = workload.history()
    machine = Machine(PROFILES[REFERENCE], [AnonVmaRmap, CowContextRmap], large_folios=large_folios)
    player = Player(machine, history.header, batch=batch)
    player.play(history)
    return machine, player


def state(machine: Machine) -> dict[str, Any]:
    """Everything that a machine is and counted, in values that can be compared."""
    folios = machine.folios
    live = folios.live()
    return {
        "processes": {pid: process.mm.id for pid, process in machine.processes.items()},
        "vmas": {
            mm.id: [
                (
                    v.id,
                    v.start,
                    v.end,
                    v.pgoff,
                    v.flags,
                    v.prepared,
                    v.name,
                    v.file and v.file.id,
                )
                for v in mm.tree
            ]
            for mm in machine.mms.values()
        },
        "entries": {
            (mm.id, number): leaf.v.tolist()
            for mm in machine.mms.values()
            for number, leaf in sorted(mm.page_table.leaves.items())
        },
        "folios": [
            column.v[live].tolist()
            for column in (folios.head, folios.order, folios.flags, folios.mapcount, folios.index)
        ],
        "counts": [
            {
                "pools": [
                    (pool.name, pool.live, pool.peak, pool.allocated) for pool in ledger.pools.values()
                ],
                "tallies": {name: tally.count for name, tally in ledger.tallies.items()},
                "locks": {name: (lock.writes, lock.reads) for name, lock in ledger.locks.items()},
            }
            for ledger in (machine.ledger, *(design.ledger for design in machine.designs))
        ],
        "walks": [
            [(vma.mm.id, vma.id, addr) for vma, addr in design.walk(int(pfn))]
            for design in machine.designs
            for pfn in np.unique(folios.head.v[live])
            if folios.mapcount.v[pfn]
        ],
    }


def test_each_has_a_strategy_and_a_sentence_on_each_parameter() -> None:
    assert WORKLOADS.keys() == FAMILIES.keys()
    for family in FAMILIES.values():
        assert [*family.parameters()] == [name for name in family.__struct_fields__ if name != "seed"]


@given(any_workload)
def test_the_same_parameters_give_the_same_events(workload: Workload) -> None:
    assert list(workload.events()) == list(msgspec.structs.replace(workload).events())


@given(any_workload)
def test_the_machine_gives_every_result_that_the_workload_expects(workload: Workload) -> None:
    assert played(workload)[1].differences == []


@given(any_workload, st.sampled_from((0, 0, 2, 9)))
def test_batched_and_one_by_one_end_in_the_same_state(workload: Workload, large_folios: int) -> None:
    batched, _ = played(workload, large_folios=large_folios)
    one_by_one, _ = played(workload, batch=False, large_folios=large_folios)
    assert state(batched) == state(one_by_one)


@pytest.mark.parametrize("name", FAMILIES)
def test_seeds_matter_where_something_is_drawn(name: str) -> None:
    one, other = (list(workload(name, {"seed": seed}).events()) for seed in ("1", "2"))
    assert (one == other) == (name in ("aim7", "elf", "forkchain", "storm", "willitscale"))


def walk(machine: Machine, pid: int, addr: int) -> int:
    """Places that the first design visits for the page that `pid` has at `addr`."""
    pfn = machine.mm_of(pid).page_table.get(addr) >> 12
    return len(list(machine.designs[0].walk(pfn)))


def test_aim7_finds_a_childs_page_in_one_place_and_the_parents_in_all() -> None:
    machine, _ = played(Aim7(children=30, pages=3))
    assert walk(machine, 17, AREA) == 1
    assert walk(machine, 1, AREA) == 31


def test_forkchain_does_not_grow() -> None:
    """A child takes over the anon_vma of an ancestor that is gone (7a3ef208e662)."""
    short, long = (played(ForkChain(generations=n, vmas=2))[0] for n in (10, 60))
    held = [[(o.type, o.objects) for o in machine.designs[0].footprint()] for machine in (short, long)]
    assert held[0] == held[1]


def test_bgsave_copies_what_the_parent_writes_and_only_that() -> None:
    machine, _ = played(BgSave(pages=1000, saves=1, writes=100, run=1, last=50))
    copied = machine.ledger.tallies["pages copied"].count
    assert 0 < copied <= 50
    assert machine.folios.in_use == 1000 + 2 + copied  # two pages of the stack
    assert len(machine.processes) == 2


def test_zygote_apps_share_what_they_did_not_write() -> None:
    machine, _ = played(Zygote(apps=4, restarts=3, vmas=10, pages=4, own_vmas=0, copies=50))
    assert len(machine.processes) == 5
    shared = [folio for folio in Truth(machine).mapped_folios() if len(folio.entries) == 5]
    assert shared


def test_prefork_replaces_workers() -> None:
    machine, _ = played(Prefork(workers=3, requests=60, lifetime=5, vmas=2, pages=4))
    assert len(machine.processes) == 4
    assert max(machine.processes) > 4


def test_remapper_leaves_pages_whose_offset_is_not_their_address() -> None:
    machine, _ = played(Remapper(buffers=4, moves=40, home=30, children=2))
    moved = [v for mm in machine.mms.values() for v in mm.tree if v.prepared and v.pgoff != v.start >> 12]
    assert len(moved) > len(machine.mms)  # more than everybody's stack


def test_elf_splits_relro_and_copies_pages_of_private_files() -> None:
    machine, _ = played(Elf(processes=2, alive=2, libraries=3))
    mm = machine.mm_of(2)
    copied = [vma for vma in mm.tree if vma.file is not None and vma.prepared]
    assert len(copied) == 3 * 2  # RELRO and data, of each library
    assert all(vma.pgoff != vma.start >> 12 for vma in copied)


def test_reclaim_swaps_out_and_faults_bring_back() -> None:
    machine, _ = played(Reclaim(steps=400))
    tallies = machine.ledger.tallies
    assert tallies["rmap walks"].count > 0
    assert tallies["rmap places visited"].count >= tallies["rmap places that mapped"].count > 0


@pytest.mark.parametrize(
    ("name", "values", "sentence"),
    [
        ("zygot", {}, "there is no workload 'zygot'; did you mean 'zygote'?"),
        ("quux", {}, "there is no workload 'quux' (there are aim7, bgsave, "),
        ("aim7", {"child": "3"}, "aim7 has no parameter 'child'; did you mean 'children'?"),
        ("aim7", {"children": "many"}, "aim7: children=many has to be a whole number from 1 to 10000 (children"),
        ("aim7", {"children": "10001"}, "aim7: children=10001 has to be a whole number from 1 to 10000 (children"),
        ("aim7", {"pages": "0"}, "aim7: pages=0 has to be a whole number from 1 to 10000000 ("),
        ("zygote", {"restarts": "-1"}, "zygote: restarts=-1 has to be a whole number of at least 0 ("),
        ("zygote", {"seed": "one"}, "zygote: seed=one has to be a whole number"),
        ("zygote", {"vmas": "9000000", "pages": "9000000"}, "zygote: the mappings take "),
    ],
)
def test_what_does_not_exist_is_said_with_what_does(name: str, values: dict[str, str], sentence: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        workload(name, values)
    assert str(caught.value).startswith(sentence)
