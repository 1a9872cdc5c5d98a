# SPDX-License-Identifier: GPL-2.0-or-later
"""There is one table of operations, and one of system calls; whoever lists either covers it or says what not."""

import msgspec
import pytest

from rmaplab.check import histories
from rmaplab.explore import words
from rmaplab.kernel import driver
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.trace.calls import CALLS, DOES
from rmaplab.trace.events import OPERATIONS, OPS, Event
from rmaplab.trace.history import Header
from rmaplab.trace.play import Player

OF_A_PROCESS = {operation.name for operation in OPERATIONS if operation.actor == "process"}


def test_fields_are_those_of_an_event() -> None:
    fields = {field.name for field in msgspec.structs.fields(Event)}
    for operation in OPERATIONS:
        assert set(operation.fields) <= fields - {"op", "pid", "time", "cpu"}, operation.name


def test_a_call_gives_its_operation_what_it_uses() -> None:
    """What a call's parameters become is among the fields of the operation, unless the reducer works it out."""
    worked_out = {"shmat", "prctl", "clone"}
    fields = {operation.name: set(operation.fields) for operation in OPERATIONS}
    for call in CALLS.values():
        assert call.op in (*OPS, ""), call.name
        if call.op and call.name not in worked_out:
            assert {field for field in call.parameters if field} <= fields[call.op], call.name


def test_every_operation_of_a_process_has_a_call_unless_it_is_none() -> None:
    none = {"fault", "exit", "uffd_move"}
    assert {call.op for call in CALLS.values() if call.op} == OF_A_PROCESS - none


def test_registers_beyond_the_parameters_are_no_arguments() -> None:
    garbage = 0xDEAD_BEEF_0000_0001
    assert CALLS["mlock"].registers([4096, 8192, garbage]) == [4096, 8192]
    assert CALLS["mlock2"].registers([4096, 8192, garbage]) == [4096, 8192, 1]


@pytest.mark.parametrize("op", OPS)
def test_every_operation_is_played_and_told(op: str) -> None:
    player = Player(Machine(PROFILES[REFERENCE], [AnonVmaRmap]), Header(recorder="by hand"))
    with pytest.raises(HistoryError, match="there is no operation 'none'"):
        player.do(Event("none", 1))
    try:
        player.do(Event(op, 1, length=4096))
    except HistoryError as error:
        assert "operation" not in str(error)
    assert not words.tell(Event(op, 1)).startswith(f"Process 1 does {op}")


def test_random_histories_and_the_real_kernel_do_all_but_what_is_named_here() -> None:
    assert set(histories.OPERATIONS) == set(OPS) - {"mark"}
    assert set(OPS) - driver.OPERATIONS == {"mark", "name", "referenced"}


def test_a_call_that_does_an_operation_is_given_its_fields() -> None:
    assert {op for op in OPS if op in CALLS} - {"fork"} == set(DOES)
    for op, call in DOES.items():
        names = [field for field in call.parameters if field]
        event = Event(op, 1, **{field: number + 5 for number, field in enumerate(names)})
        assert call.op == op and call.arguments(event, 9) == [
            9 if field == "file" else getattr(event, field) for field in names
        ]
