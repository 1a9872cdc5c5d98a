# SPDX-License-Identifier: GPL-2.0-or-later
"""Every re-introduced bug is found, and nothing is found without one."""

import random
from dataclasses import replace

import pytest

from histories import lockstep
from rmaplab.check.histories import Author, header
from rmaplab.check.lockstep import Checker, Difference
from rmaplab.check.mutants import MUTANTS, Mutant, play
from rmaplab.check.rival_mutants import RIVAL_MUTANTS
from rmaplab.mm.abi import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
)
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import MM
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.rmap.cow_context_prototype import CowContextPrototypeRmap
from rmaplab.trace.events import FAULT_WRITE, Event
from rmaplab.trace.play import Player

FOUND_BY_VERIFY = [mutant for mutant in (*MUTANTS, *RIVAL_MUTANTS) if mutant.shows != "race"]

# A machine whose VMAs keep their page offset when they move before their first fault.
STALE_PGOFF = replace(PROFILES["6.12"], name="6.12 with stale page offsets", fresh_pgoff=False)
PAGE = 4096
BASE = 0x10_0000_0000
RW = PROT_READ | PROT_WRITE
FIXED = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
START = Event("exec", 1, BASE - 700 * PAGE, 3 * PAGE, offset=BASE - 100 * PAGE)


def mapped(pid: int, page: int, pages: int, prot: int = RW) -> Event:
    return Event("mmap", pid, BASE + page * PAGE, pages * PAGE, prot, FIXED)


def file_mapped(pid: int, page: int, pages: int, at: int) -> Event:
    return Event(
        "mmap", pid, BASE + page * PAGE, pages * PAGE, RW, MAP_PRIVATE | MAP_FIXED, file=0, offset=BASE + at * PAGE
    )


def written(pid: int, page: int, pages: int) -> Event:
    return Event("fault", pid, BASE + page * PAGE, pages * PAGE, flags=FAULT_WRITE)


def protected(pid: int, page: int, pages: int, prot: int) -> Event:
    return Event("mprotect", pid, BASE + page * PAGE, pages * PAGE, prot)


def moved(pid: int, page: int, pages: int, to: int) -> Event:
    flags = MREMAP_MAYMOVE | MREMAP_FIXED
    size = pages * PAGE
    return Event("mremap", pid, BASE + page * PAGE, size, flags=flags, length2=size, addr2=BASE + to * PAGE)


# Parent and child refer to one swap entry; the child reads it first, the parent gets the same page.
READ_FROM_SWAP = [
    START,
    mapped(1, 0, 1),
    written(1, 0, 1),
    Event("fork", 1, pid2=2),
    Event("swap_out", 1, BASE, PAGE),
    Event("fault", 2, BASE, PAGE),
    Event("fault", 1, BASE, PAGE),
]

# Histories for what random ones find too seldom, by the mutant's class.
SHORT = {
    "SwappedInAsOwn": READ_FROM_SWAP,
    "SharedSwapEntryOwned": READ_FROM_SWAP,
    # The middle joins an unprepared VMA below with a prepared one above.
    "JoinWithoutClone": [START, mapped(1, 0, 2), mapped(1, 4, 2), written(1, 4, 2), mapped(1, 2, 2)],
    # In a child, a fresh VMA beside an inherited one takes it in, when mprotect() makes them alike.
    "NeighbourNotSingular": [
        START,
        mapped(1, 0, 2),
        written(1, 0, 2),
        mapped(1, 2, 2, PROT_READ),
        Event("fork", 1, pid2=2),
        protected(2, 2, 2, RW),
        written(2, 2, 2),
        protected(2, 0, 2, PROT_READ),
        protected(2, 0, 2, RW),
    ],
    # The range comes home; where it was is then a file mapping of the same page offsets, which a walk that
    # still has the record visits.
    "PrototypeHomecomingNotNoticed": [
        START,
        mapped(1, 0, 2),
        written(1, 0, 2),
        moved(1, 0, 2, 10),
        moved(1, 10, 2, 0),
        file_mapped(1, 10, 2, at=0),
        Event("fork", 1, pid2=2),
    ],
}


# Seeds of random histories that show what few do.
SEEDS = {"DegreeConflated": (118,)}


def replay(mutant: Mutant, history: list[Event]) -> list[Difference]:
    """What a short history shows of the mutant."""
    designs: list[type[ReverseMap]] = [mutant.mutated]
    if not mutant.leads:
        designs = [AnonVmaRmap, mutant.mutated]
        if mutant.original is not AnonVmaRmap:
            designs.append(mutant.original)
    machine = Machine(PROFILES["6.12"], designs)
    player = Player(machine, header(), batch=False)
    names = {type(design): design.name for design in machine.designs}
    reference = names.get(mutant.original, "")
    found, _ = lockstep(machine, history, lambda _, event: player.do(event), reference=reference)
    return [d for d in found if d.design == names[mutant.mutated] and d.kind == mutant.shows]


def identity(mutant: Mutant) -> str:
    return mutant.name


@pytest.mark.parametrize("mutant", FOUND_BY_VERIFY, ids=identity)
def test_a_bug_is_found(mutant: Mutant) -> None:
    short = SHORT.get(identity(mutant))
    if short is not None:
        assert replay(mutant, short)
    else:
        assert any(play(mutant, seed, steps=700).what for seed in SEEDS.get(identity(mutant), range(5)))


@pytest.mark.parametrize("mutant", FOUND_BY_VERIFY, ids=identity)
def test_without_the_bug_nothing_is_found(mutant: Mutant) -> None:
    unchanged = mutant.switched_off()
    short = SHORT.get(identity(mutant))
    if short is not None:
        assert replay(unchanged, short) == []
    elif mutant.original is not CowContextPrototypeRmap:  # which is incomplete by itself
        assert play(unchanged, seed=0, steps=150).what == ""


def vmas(mm: MM) -> list[tuple[int, int, int, int]]:
    return [(vma.start, vma.end, vma.pgoff, vma.flags) for vma in mm.tree]


def test_a_stale_page_offset_shows_in_the_geometry() -> None:
    """Moved before its first fault, a VMA merges with its new neighbour, unless its page offset is stale."""
    history = [START, mapped(1, 0, 2), mapped(1, 10, 2), moved(1, 10, 2, 2)]
    seen = []
    for profile in (PROFILES["6.12"], STALE_PGOFF):
        machine = Machine(profile, [AnonVmaRmap])
        player = Player(machine, header(), batch=False)
        for event in history:
            player.do(event)
        seen.append([(start - BASE, end - BASE) for start, end, _, _ in vmas(machine.mm_of(1)) if start >= BASE])
    assert seen == [[(0, 4 * PAGE)], [(0, 2 * PAGE), (2 * PAGE, 4 * PAGE)]]


def test_a_stale_page_offset_is_caught_by_completeness() -> None:
    """The prototype takes an anonymous VMA to be at its page offset when its first page comes."""
    history = [START, mapped(1, 10, 2), moved(1, 10, 2, 2), written(1, 2, 2), Event("fork", 1, pid2=2)]
    found = []
    for profile in (PROFILES["6.12"], STALE_PGOFF):
        machine = Machine(profile, [AnonVmaRmap, CowContextPrototypeRmap])
        player = Player(machine, header(), batch=False)

        def play(_: Machine, event: Event, player: Player = player) -> int:
            return player.do(event)

        differences, _ = lockstep(machine, history, play)
        found.append({d.kind for d in differences if d.is_error and d.addr >= BASE})
    assert found == [set(), {"incomplete"}]


def test_a_stale_page_offset_is_caught_by_comparison_with_a_right_machine() -> None:
    """As with a kernel: two machines, one history, and the VMAs held against each other."""
    right = Machine(PROFILES["6.12"], [AnonVmaRmap])
    author = Author(right, random.Random(5), ops=("mmap", "munmap", "mremap", "fault"))
    wrong = Player(Machine(STALE_PGOFF, [AnonVmaRmap]), header(), batch=False)
    wrong.do(author.begin())
    for _ in range(300):
        event = author.next()
        wrong.do(event)
        if vmas(right.mm_of(1)) != vmas(wrong.machine.mm_of(1)):
            return
    pytest.fail("300 events, and no VMA differs")


def test_a_checker_without_the_reference_compares_nothing() -> None:
    machine = Machine(PROFILES["6.12"], [CowContextPrototypeRmap])
    assert Checker(machine).reference is None
