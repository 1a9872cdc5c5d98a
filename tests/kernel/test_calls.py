# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of calls and flags in docs/kernel.md says what the machine has, and what lockstep asks for."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rmaplab.check.histories import OPERATIONS, Author
from rmaplab.kernel.aimed import AIMED, history
from rmaplab.kernel.lockstep import choices, possible
from rmaplab.kernel.setup import cache
from rmaplab.mm import abi
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.trace.events import OPS, Event

ROOT = Path(__file__).parents[2]
MACHINE = "".join(path.read_text() for path in (ROOT / "src/rmaplab/mm").glob("*.py") if path.stem != "abi")
CALL = {"madvise": "MADV_", "mlock": "MLOCK_", "mlockall": "MCL_", "mremap": "MREMAP_", "fork": "CLONE_"}
KINDS = ("MAP_SHARED", "MAP_PRIVATE", "MAP_SHARED_VALIDATE", "MAP_DROPPABLE")
LEFT_OUT = {"name", "referenced"}  # of what an author can write, what no driver of a guest can do
NUMBERS = {name: value for name, value in vars(abi).items() if isinstance(value, int)}
TABLE = (ROOT / "docs/kernel.md").read_text().partition("## Calls and flags")[2].partition("\n## ")[0]
ROWS = [
    tuple(cell.strip(" `") for cell in line.strip("|").split("|"))
    for line in TABLE.splitlines()
    if line.startswith("| ") and not line.startswith(("| call", "| ---"))
]


def uses(event: Event) -> Iterator[tuple[str, str]]:
    """What the event asks for: call and flag, of each."""
    yield event.op, ""
    if event.op in ("mmap", "mprotect"):
        for name, value in NUMBERS.items():
            if name.startswith("PROT_") and (event.prot & value or event.prot == value):
                yield event.op, name
    if event.op == "mmap":
        for name, value in NUMBERS.items():
            if name in KINDS:
                if event.flags & abi.MAP_TYPE == value:
                    yield event.op, name
            elif name.startswith("MAP_") and name != "MAP_TYPE" and event.flags & value:
                yield event.op, name
    prefix = CALL.get(event.op)
    for name, value in NUMBERS.items():
        if prefix and name.startswith(prefix):
            if event.flags == value if prefix == "MADV_" else event.flags & value:
                yield event.op, name


@pytest.fixture(scope="module")
def asked() -> dict[tuple[str, str], str]:
    """By call and flag: "random" if random histories ask for it, "aimed" if only aimed ones do."""
    found = {use: "aimed" for name in AIMED for event in history(name) for use in uses(event)}
    profile = PROFILES[REFERENCE]
    ops = [op for op in OPERATIONS if op not in LEFT_OUT]
    for seed in range(12):
        machine = Machine(profile, [AnonVmaRmap])
        author = Author(machine, random.Random(seed), ops, choices=choices(profile))
        author.begin()
        for _ in range(400):
            event = author.propose()
            if event is None or not possible(machine, event):
                continue
            found.update(dict.fromkeys(uses(event), "random"))
            try:
                author.play(event)
            except HistoryError:
                continue
    return found


def test_each_row_says_what_the_machine_has(asked: dict[tuple[str, str], str]) -> None:
    for call, flag, machine, _, _ in ROWS:
        has = call in OPS if not flag else flag == "PROT_NONE" or re.search(rf"\b{flag}\b", MACHINE) is not None
        assert machine == ("yes" if has else "no"), (call, flag)


def test_each_row_says_what_lockstep_asks_for_or_why_not(asked: dict[tuple[str, str], str]) -> None:
    for call, flag, _, lockstep, remark in ROWS:
        assert lockstep == asked.get((call, flag), "no"), (call, flag)
        assert lockstep != "no" or remark, (call, flag)


def test_whatever_is_asked_for_and_all_that_the_machine_knows_has_a_row(asked: dict[tuple[str, str], str]) -> None:
    rows = {(call, flag) for call, flag, *_ in ROWS}
    assert asked.keys() <= rows
    assert set(OPS) - {"mark"} <= {call for call, _ in rows}
    flags = {flag for _, flag in rows}
    known = {name for name in NUMBERS if name.startswith(("PROT_", "MAP_", *CALL.values()))}
    assert known - {"MAP_TYPE"} <= flags


def test_whatever_linux_has_has_a_row() -> None:
    headers = cache() / "sources" / REFERENCE / "include/uapi"
    if not headers.exists():
        pytest.skip("no sources of Linux here: rmaplab kernel native fetches them")
    text = "".join(
        (headers / name).read_text() for name in ("linux/mman.h", "asm-generic/mman-common.h", "asm-generic/mman.h")
    )
    names = set(re.findall(r"#define ((?:PROT|MAP|MREMAP|MADV|MLOCK|MCL)_\w+)", text))
    names = {name for name in names if not re.search(r"_(TYPE|FILE|MASK|SHIFT)$|MAP_HUGE_", name)}
    assert names <= {flag for _, flag, *_ in ROWS}


