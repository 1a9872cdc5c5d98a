# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's answers are honoured where it was free to choose, and a difference is named where it leads."""

import errno

import pytest

from rmaplab.mm.abi import MREMAP_MAYMOVE
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.trace.events import FAULT_WRITE, Event
from rmaplab.trace.history import Header, History
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
