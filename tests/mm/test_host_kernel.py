# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine against the kernel that this runs on, event by event.

Both do the same random events; after each one the result, the VMAs with their flags, and the pages with who
shares them have to be the same (host.py).
"""

import os
import random
import warnings
from collections.abc import Iterator

import pytest

from mm.host import ADVICE, ARENA_PAGES, PLAYABLE, Host, HostUnavailable, compare
from rmaplab.check.histories import ARENA, ODD_FIELDS, Author, Flags, header, make_odd
from rmaplab.mm.abi import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    PROT_READ,
    PROT_WRITE,
)
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, Profile, profile_for
from rmaplab.mm.vma import TASK_SIZE
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.trace.events import FAULT_WRITE, Event
from rmaplab.trace.play import Player

PAGE = 4096
START = Event("exec", 1, 0x7FF0_0000_0000, 3 * PAGE, offset=0x7FF1_0000_0000)


@pytest.fixture
def host() -> Iterator[Host]:
    try:
        host = Host()
    except HostUnavailable as why:
        warnings.warn(f"nothing was compared with the running kernel: {why}", stacklevel=1)
        pytest.skip(str(why))
    yield host
    host.close()


def own_profile() -> Profile:
    release = os.uname().release
    profile, own = profile_for(release)
    if not own:
        warnings.warn(f"nothing was compared with the running kernel: no profile for {release}", stacklevel=1)
        pytest.skip(f"no profile for {release}")
    return profile


def stays_in_the_arena(event: Event) -> bool:
    """Whether a call with odd arguments may be asked for: what the kernel does not refuse is about the arena, and about
    no more memory than it would lend."""
    refused = TASK_SIZE + PAGE  # as a length, or an address
    addr, length, end = event.addr, event.length, ARENA + ARENA_PAGES * PAGE
    if any(ARENA_PAGES * PAGE < size < TASK_SIZE for size in (length, event.length2)):
        return False
    inside = ARENA <= addr and addr + length <= end
    if event.op == "madvise":  # goes on behind a hole
        return inside or addr + length >= 1 << 64
    if event.op == "mremap" and event.flags & (MREMAP_FIXED | MREMAP_DONTUNMAP):
        inside = inside and ARENA <= event.addr2 and event.addr2 + event.length2 <= end
        return inside or event.addr2 >= refused or event.length2 >= refused
    return inside or addr >= refused or (addr >= ARENA and length >= refused)


def first_difference(
    host: Host, profile: Profile, seed: int, steps: int, ops: tuple[str, ...] = PLAYABLE, odd: float = 0.0
) -> str:
    """What the kernel does differently, "" if nothing.  `odd`: the share of calls with odd arguments."""
    machine = Machine(profile, [AnonVmaRmap])
    author = Author(machine, random.Random(seed), ops, processes=4, choices=Flags(advice=tuple(ADVICE)), sharing=0)
    author.begin(START)
    machine.mm_of(1).mmap_base = host.fence()
    dice = random.Random(seed)
    step = 0
    while step < steps:
        asked = author.propose()
        if asked is not None and asked.op in ODD_FIELDS and dice.random() < odd:
            make_odd(asked, dice)
            if not stays_in_the_arena(asked):
                continue
        if asked is None:
            continue
        step += 1
        result = host.play(asked)
        event = author.play(asked)
        wrong = [] if result == event.result else [f"the kernel returns {result:#x}, the machine {event.result:#x}"]
        wrong += compare(host, machine)
        if wrong:
            return f"step {step}, {event}: {'; '.join(wrong)}"
    return ""


@pytest.mark.parametrize("seed", range(6))
def test_the_kernel_does_what_the_machine_does(host: Host, seed: int) -> None:
    assert first_difference(host, own_profile(), seed, 350) == ""


@pytest.mark.parametrize("seed", range(2))
def test_the_kernel_merges_and_moves_as_the_machine_does(host: Host, seed: int) -> None:
    """Few kinds of events, and so more merges, in fewer processes."""
    ops = ("mmap", "munmap", "mprotect", "mremap", "mremap", "fault", "madvise")
    assert first_difference(host, own_profile(), 100 + seed, 350, ops) == ""


@pytest.mark.parametrize("seed", range(6))
def test_the_kernel_refuses_odd_arguments_as_the_machine_does(host: Host, seed: int) -> None:
    assert first_difference(host, own_profile(), 200 + seed, 350, odd=0.6) == ""


def test_another_kernels_rules_are_told_apart(host: Host) -> None:
    """The witness can fail: a machine with the rules of another version is found out."""
    other = PROFILES["6.18" if own_profile().name == "6.1" else "6.1"]
    assert first_difference(host, other, 1, 350) != ""


@pytest.fixture
def shared(host: Host) -> Player:
    """Two processes, of the host, too, that share two pages."""
    player = Player(Machine(own_profile(), [AnonVmaRmap]), header(), batch=False)
    rw, flags = PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
    player.do(START)
    for event in (
        Event("mmap", 1, ARENA, 2 * PAGE, rw, flags),
        Event("fault", 1, ARENA, 2 * PAGE, flags=FAULT_WRITE),
        Event("fork", 1, pid2=2),
    ):
        player.do(event)
        host.play(event)
    return player


def test_sharing_is_compared_not_only_presence(host: Host, shared: Player) -> None:
    """After a fork the child copies one page of two; a machine in which it copied the other is found out."""
    assert compare(host, shared.machine) == []
    shared.do(Event("fault", 2, ARENA, PAGE, flags=FAULT_WRITE))
    host.play(Event("fault", 2, ARENA + PAGE, PAGE, flags=FAULT_WRITE))
    wrong = compare(host, shared.machine)
    assert any("not shared by the same places" in sentence for sentence in wrong)
    assert any("more than once" in sentence for sentence in wrong)


def test_a_page_that_is_being_migrated_is_waited_for(
    host: Host, shared: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long who migrates it is kept from going on: until it is touched, it is in no frame."""
    process = host.processes[1]
    entries, ask = process.entries, process.ask
    orders: list[str] = []

    def on_their_way(addr: int, nr_pages: int) -> tuple[int, ...]:
        return entries(addr, nr_pages) if orders else (1 << 62,) * nr_pages

    def noted(order: str) -> int:
        orders.append(order)
        return ask(order)

    monkeypatch.setattr(process, "entries", on_their_way)
    monkeypatch.setattr(process, "ask", noted)
    assert compare(host, shared.machine) == []
    assert orders == [f"touch {ARENA} 0", f"touch {ARENA + PAGE} 0"]


def test_pages_that_are_migrated_between_two_looks_are_looked_at_again(
    host: Host, shared: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = host.processes[2].entries
    looks: list[int] = []

    def moving(addr: int, nr_pages: int) -> tuple[int, ...]:
        """Somewhere else at each of the first looks."""
        looks.append(addr)
        return tuple(entry + max(0, 5 - len(looks)) for entry in entries(addr, nr_pages))

    monkeypatch.setattr(host.processes[2], "entries", moving)
    assert compare(host, shared.machine) == [] and len(looks) == 5
