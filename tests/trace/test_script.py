# SPDX-License-Identifier: GPL-2.0-or-later
"""A script writes down what a process does; each operation has a verb, and a verb says all that its operation can."""

from __future__ import annotations

import inspect

import msgspec
import pytest

from rmaplab.mm.abi import MAP_FIXED, MREMAP_FIXED, MREMAP_MAYMOVE, PROT_READ
from rmaplab.mm.errors import HistoryError
from rmaplab.trace.events import OPERATIONS, OPS, Event, Operation
from rmaplab.trace.history import Header
from rmaplab.trace.script import PAGE, Process, Script

AT = 0x7F00_0000_0000


def said(script: Script, process: Process) -> dict[str, Event]:
    """An event of each verb, with every argument of the verb given, by operation."""
    other = script.spawn()
    given = {
        "addr": AT, "length": PAGE, "at": AT, "prot": PROT_READ, "flags": 1, "file": 2, "offset": PAGE, "advice": 4,
        "new_length": 2 * PAGE, "to": AT + 8 * PAGE, "name": "heap", "source": AT + PAGE, "how": 3, "number": 5,
        "other": other, "other_addr": AT + PAGE, "pid": 77, "layout": None,
    }  # fmt: skip
    script.number_of_name("")  # so that a name is not number 0
    found: dict[str, Event] = {}
    for name, verb in inspect.getmembers(process, inspect.ismethod):
        if name.startswith("_") or name == "in_pages":
            continue
        verb(**{parameter: given[parameter] for parameter in inspect.signature(verb).parameters})
        found[script.events[-1].op] = script.events[-1]
    return found


@pytest.mark.parametrize("operation", OPERATIONS, ids=OPS)
def test_every_operation_has_a_verb_that_says_all_its_fields(operation: Operation) -> None:
    script = Script()
    event = said(script, script.spawn())[operation.name]
    unsaid = {field for field in operation.fields if field not in msgspec.structs.asdict(event)}
    assert not unsaid
    default = Event(operation.name, 1)
    results = {"result"} - ({"result"} if operation.name in ("mmap", "mremap", "brk") else set())
    for field in {*operation.fields} - results:
        if (operation.name, field) != ("fault", "flags"):  # the last that inspect finds is the write
            assert getattr(event, field) != getattr(default, field), field


def test_pages_of_an_arena_are_addresses_and_lengths() -> None:
    script = Script(fixed=MAP_FIXED)
    process = script.spawn().in_pages(AT)
    assert process.mmap(4, at=2) == 2
    process.write(2)
    child = process.fork()
    assert child.mremap(2, 1, to=9) == 9
    mapped, written, forked, moved = script.events[1:]
    assert (mapped.addr, mapped.length, mapped.flags & MAP_FIXED) == (AT + 2 * PAGE, 4 * PAGE, MAP_FIXED)
    assert (written.addr, written.length) == (AT + 2 * PAGE, PAGE)
    assert (forked.pid, forked.pid2, moved.pid) == (1, 2, 2)
    assert (moved.addr, moved.addr2, moved.flags) == (AT + 2 * PAGE, AT + 9 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED)


def test_a_script_cannot_choose_an_address() -> None:
    with pytest.raises(HistoryError, match="says where"):
        Script().spawn().mmap(PAGE)


def test_a_script_is_a_history() -> None:
    script = Script()
    script.spawn().set_name(AT, PAGE, "heap")
    history = script.history(Header(recorder="by hand"))
    assert list(history) == script.events
    assert history.header.names == ["heap"]
