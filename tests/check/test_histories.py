# SPDX-License-Identifier: GPL-2.0-or-later
"""Random histories: repeatable, playable, various; and designs that hold on them."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histories import lockstep, random_history
from rmaplab.check.histories import ARENA, OPERATIONS, Author, header, settle, shortest
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.rmap.cow_context import CowContextRmap
from rmaplab.rmap.page_scan import PageScanRmap
from rmaplab.trace.events import OPS, Event
from rmaplab.trace.play import Player


def errors(history: list[Event], designs: list[type[ReverseMap]], every: int = 1, large_folios: int = 0) -> list[str]:
    machine = Machine(PROFILES[REFERENCE], designs, large_folios=large_folios)
    player = Player(machine, header(), batch=False)
    found, _ = lockstep(machine, history, lambda _, event: player.do(event), every)
    return [d.what for d in found if d.is_error]


def test_the_same_seed_writes_the_same_history() -> None:
    assert random_history(random.Random(3), 200) == random_history(random.Random(3), 200)
    assert random_history(random.Random(3), 200) != random_history(random.Random(4), 200)


def settled(history: list[Event]) -> list[Event]:
    return settle(history, Player(Machine(PROFILES[REFERENCE], [AnonVmaRmap]), header(), batch=False))


def test_a_history_plays_again_with_the_same_results() -> None:
    history = random_history(random.Random(1), 400)
    assert settled(history) == history


def test_every_operation_is_written_and_does_something() -> None:
    done: Counter[str] = Counter()
    for seed in range(4):
        history = random_history(random.Random(seed), 500)
        done.update(event.op for event in history if event.result >= 0)
    assert {op for op in OPERATIONS if done[op] >= 3} == set(OPERATIONS)
    assert set(OPERATIONS) == set(OPS) - {"mark"}


def test_histories_meet_what_is_hard() -> None:
    """Folios mapped in several processes, displaced VMAs, copied pages of files, swap, KSM, failures."""
    met: Counter[str] = Counter()
    for seed in (2, 3, 4):
        machine = Machine(PROFILES[REFERENCE], [AnonVmaRmap])
        author = Author(machine, random.Random(seed))
        author.begin()
        for _ in range(500):
            event = author.next()
            met["failure"] += event.result < 0
            met["shared thrice"] += bool((machine.folios.mapcount.v >= 3).any())
            met["swapped out"] += bool(machine.swap)
            met["ksm"] += bool(machine.ksm_pages)
            for mm in machine.mms.values():
                for vma in mm.tree:
                    if vma.prepared and ARENA <= vma.start < ARENA + (48 << 12):
                        met["displaced"] += vma.file is None and vma.pgoff != vma.start >> 12
                        met["file private"] += vma.file is not None
    hard = ("failure", "shared thrice", "swapped out", "ksm", "displaced", "file private")
    assert min(met[what] for what in hard) > 20


def test_an_unknown_operation_is_refused() -> None:
    machine = Machine(PROFILES[REFERENCE], [AnonVmaRmap])
    with pytest.raises(HistoryError, match=r"cannot write \['reboot'\]"):
        Author(machine, random.Random(0), ops=("mmap", "reboot"))


def test_settling_leaves_out_what_has_become_impossible() -> None:
    start = Event("exec", 1, ARENA - (600 << 12), 3 << 12, offset=ARENA)
    assert settled([start, Event("fork", 1, pid2=2), Event("exit", 2), Event("exit", 2)]) == [
        start,
        Event("fork", 1, pid2=2),
        Event("exit", 2),
    ]


def test_the_shortest_history_is_short() -> None:
    """What it takes to have two address spaces of which one was made by exec: the first exec, and another."""

    def fails(history: list[Event]) -> bool:
        return sum(event.op == "exec" for event in history) >= 2

    history = random_history(random.Random(9), 300)
    assert fails(history)
    assert [event.op for event in shortest(history, fails, settled)] == ["exec", "exec"]


@settings(max_examples=15)
@given(st.builds(random_history, st.randoms(use_true_random=False), st.integers(1, 40)))
def test_designs_hold_on_drawn_histories(history: list[Event]) -> None:
    assert errors(history, [AnonVmaRmap, CowContextRmap, PageScanRmap]) == []


@pytest.mark.parametrize("seed", range(4))
def test_designs_hold_on_long_histories(seed: int) -> None:
    history = random_history(random.Random(1000 + seed), 350)
    assert errors(history, [AnonVmaRmap, CowContextRmap, PageScanRmap], every=5) == []


@pytest.mark.parametrize("design", [CowContextRmap, PageScanRmap])
def test_a_design_that_leads_holds(design: type[ReverseMap]) -> None:
    history = random_history(random.Random(77), 300, designs=(design,))
    assert errors(history, [design], every=5) == []


@pytest.mark.parametrize("large_folios", [2, 4])
def test_designs_hold_with_large_folios(large_folios: int) -> None:
    machine = Machine(PROFILES[REFERENCE], [AnonVmaRmap, CowContextRmap, PageScanRmap], large_folios=large_folios)
    author = Author(machine, random.Random(21))
    history = [author.begin()] + [author.next() for _ in range(300)]
    assert errors(history, [AnonVmaRmap, CowContextRmap, PageScanRmap], 5, large_folios) == []
    assert machine.nr_large > 0
