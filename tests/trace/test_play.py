# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's answers are honoured where it was free to choose, and a difference is named where it leads."""

import errno
import random

import pytest

from rmaplab.check.batching import state_of
from rmaplab.mm.abi import MADV_DONTNEED, MAP_DROPPABLE, MREMAP_MAYMOVE
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES
from rmaplab.rmap import DESIGNS
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.trace.events import FAULT_WRITE, Event
from rmaplab.trace.history import FileEntry, Header, History
from rmaplab.trace.play import Player

A = 0x7F0000000000
PAGE = 4096
START = [
    Event("exec", 1, addr=0x7FFFFFFDE000, length=0x21000, offset=0x7FFFFFFDE000),
    Event("mmap", 1, length=2 * PAGE, prot=3, flags=0x22, result=A),
]


def player() -> Player:
    return Player(Machine(PROFILES["6.18"], [AnonVmaRmap]), Header(recorder="by hand"))


def test_what_the_kernel_moved_is_moved_though_it_could_have_grown_where_it_was() -> None:
    """Another thread had the place for a moment."""
    playing = player()
    moved = Event("mremap", 1, A, 2 * PAGE, length2=4 * PAGE, flags=MREMAP_MAYMOVE, result=A + 0x100000)
    playing.play([*START, moved, Event("fault", 1, A + 0x103000, PAGE, flags=FAULT_WRITE)])
    assert playing.differences == []
    assert playing.machine.mm_of(1).tree.at(A) is None


def test_what_grew_where_it_was_does_so_or_differs_and_an_impossible_event_names_that() -> None:
    playing = player()
    in_the_way = Event("mmap", 1, A + 2 * PAGE, PAGE, 3, 0x32, result=A + 2 * PAGE)
    grown = Event("mremap", 1, A, 2 * PAGE, length2=4 * PAGE, flags=MREMAP_MAYMOVE, result=A)
    touched = Event("fault", 1, A + 3 * PAGE, PAGE, flags=FAULT_WRITE)
    said = r"event 4: fault .* nothing is mapped \(it went another way before: event 3"
    with pytest.raises(HistoryError, match=said):
        playing.play([*START, in_the_way, grown, touched])
    assert [difference.got for difference in playing.differences] == [-errno.ENOMEM]
    free = player()
    free.play(History(Header(recorder="by hand"), [*START, grown, touched]))
    assert free.differences == []


@pytest.mark.parametrize(("prot", "start"), [(3, 2), (1, 1)])
def test_a_stack_that_could_have_been_written_to_and_failed_did_not_grow(prot: int, start: int) -> None:
    """Its process may have had a limit.  One that may not be written to has grown before that is refused: mm/mmap.c
    expand_stack() comes before access_error()."""
    playing = player()
    stack = Event("mmap", 1, A + 2 * PAGE, PAGE, prot, 0x132, result=A + 2 * PAGE)
    below = Event("fault", 1, A + PAGE, PAGE, flags=FAULT_WRITE, result=-errno.EFAULT)
    playing.play([START[0], stack, below])
    (vma,) = playing.machine.mm_of(1).tree.overlapping(A, A + 3 * PAGE)
    assert (vma.start - A) // PAGE == start and playing.differences == []


# Not who watches entries, and so is told of each; walks of the last one take long, and it keeps nothing.
WATCHING = [design for name, design in DESIGNS.items() if not design.watches_entries and name != "page_scan"]


def work_of(machine: Machine) -> dict[str, object]:
    """All that a machine and its designs counted."""
    return {
        ledger.owner: (
            {name: tally.count for name, tally in ledger.tallies.items()},
            {name: (pool.live, pool.peak, pool.allocated) for name, pool in ledger.pools.items()},
            {name: (lock.writes, lock.reads) for name, lock in ledger.locks.items()},
        )
        for ledger in (machine.ledger, *(design.ledger for design in machine.designs))
    }


@pytest.mark.parametrize("seed", range(4))
def test_faults_in_no_order_are_as_faults_one_by_one(seed: int) -> None:
    """Three VMAs, of which the last is a file's; some pages were there before, are touched twice, or are shared."""
    rng = random.Random(seed)
    files = [FileEntry(0)]
    events = [
        *START[:1],
        Event("mmap", 1, length=900 * PAGE, prot=3, flags=0x22, result=A),
        Event("mmap", 1, length=700 * PAGE, prot=3, flags=MAP_DROPPABLE | 0x20, result=A + 0x1000 * PAGE),
        Event("mmap", 1, length=800 * PAGE, prot=3, flags=2, file=0, result=A + 0x2000 * PAGE),
    ]
    sizes = (900, 700, 800)
    for _ in range(8):
        pid = 1
        part = rng.randrange(3)
        for _ in range(rng.choice((10, 60, 300))):
            if not rng.randrange(100):
                part = rng.randrange(3)
            addr = A + (0x1000 * part + rng.randrange(sizes[part])) * PAGE
            events.append(Event("fault", pid, addr, PAGE, flags=FAULT_WRITE if rng.randrange(80) else 0))
        if rng.randrange(2):
            events.append(Event("madvise", 1, A + rng.randrange(400) * PAGE, 200 * PAGE, flags=MADV_DONTNEED))
        if not rng.randrange(4):
            child = 2 + len(events)
            events.append(Event("fork", 1, pid2=child))
            events += [Event("fault", child, A + i * PAGE, PAGE, flags=FAULT_WRITE) for i in rng.sample(range(900), 99)]
    header = Header(recorder="by hand", files=files)
    played = []
    for batch in (True, False):
        playing = Player(Machine(PROFILES["7.3"], WATCHING), header, batch=batch)
        playing.play(History(header, events))
        assert playing.differences == []
        played.append((state_of(playing.machine), work_of(playing.machine)))
    for many, one_by_one in zip(*played, strict=True):
        assert many == one_by_one


def test_faults_in_no_order_end_where_they_are_asked_to() -> None:
    """So that who looks now and then looks at what it asked for."""
    playing = player()
    pages = random.Random(1).sample(range(500), 400)
    events = [START[0], Event("mmap", 1, length=500 * PAGE, prot=3, flags=0x22, result=A)]
    events += [Event("fault", 1, A + page * PAGE, PAGE, flags=FAULT_WRITE) for page in pages]
    playing.begin(events)
    for played in (100, 133, 300):
        assert playing.play_to(played)
        assert playing.played == played and playing.last() == events[played - 1]
        assert playing.machine.folios.in_use == played  # two pages of the stack, and no page for two events
