# SPDX-License-Identifier: GPL-2.0-or-later
"""Written histories stay what they are, to the last byte: figures, tours and what kernels answered depend on it.

A digest stands for all events.  A change of a history is meant to change its digest: put in the one that the test
prints, and say in the commit why.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec
import pytest

from rmaplab.explore.tours import TOURS
from rmaplab.kernel.aimed import AIMED, history
from rmaplab.trace.events import Event
from rmaplab.workloads import workload

WORKLOADS = {
    "aim7 children=9 pages=30": "dd0e5267f8eb",
    "bgsave pages=900 saves=3 writes=30": "754334077fcb",
    "elf processes=9 alive=4": "e511c93539ab",
    "forkchain generations=9": "dcf8c50a6e43",
    "ksm guests=3 helpers=4": "6369fbbfd2c5",
    "prefork workers=5 requests=300 lifetime=7": "0a5ae7b0dd00",
    "pressure rounds=4 processes=3": "a6af934af81a",
    "pressure rounds=4 processes=3 related=0": "ed260c7d41dc",
    "reclaim steps=300 processes=5": "6f2bb20d0abb",
    "remapper buffers=5 moves=300 children=5": "553e676c3134",
    "storm rounds=4 processes=3": "8c82268d2d47",
    "storm rounds=4 processes=3 related=0": "324b63b4ef92",
    "willitscale rounds=4 case=brk1": "ef1dc40d5fc1",
    "willitscale rounds=4 case=fork1": "88b2263fcf26",
    "zygote apps=5 restarts=6 vmas=30": "968a60aa75d7",
}


def digest(events: Iterable[Event]) -> str:
    return hashlib.sha256(msgspec.json.encode(list(events))).hexdigest()[:12]


@pytest.mark.parametrize("words", WORKLOADS)
def test_a_workload(words: str) -> None:
    name, *parameters = words.split()
    values = dict(parameter.split("=") for parameter in parameters)
    assert digest(workload(name, values).events()) == WORKLOADS[words]


def test_tours() -> None:
    assert digest(beat.event for tour in TOURS.values() for beat in tour.beats) == "488ca6b3ed68"


def test_what_is_aimed_at_one_rule() -> None:
    """Up to results, which are the kernel's to give."""
    events = [event for name in AIMED for event in history(name)]
    for event in events:
        event.result = 0
    assert digest(events) == "95a2597c503a"
