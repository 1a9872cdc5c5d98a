# SPDX-License-Identifier: GPL-2.0-or-later
"""What one types on a machine of the library happens, fails with a sentence, and is a history."""

from __future__ import annotations

import errno
from pathlib import Path
from xml.etree.ElementTree import fromstring

import pytest

import rmaplab as rl
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.profile import REFERENCE
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.rmap.page_scan import PageScanRmap
from rmaplab.trace.history import read_history

BOTH = ["anon_vma", "cow_context"]


def forked(designs: list[str] | None = None) -> tuple[rl.Machine, rl.Process, rl.Process, int]:
    """A process with a written page of four, and its child, which has copied that page."""
    machine = rl.Machine(REFERENCE, designs or BOTH)
    parent = machine.spawn()
    addr = parent.mmap(4 * rl.PAGE)
    parent.write(addr)
    child = parent.fork()
    child.write(addr)
    return machine, parent, child, addr


def test_a_walk_says_where_each_design_looks_and_what_maps_the_page() -> None:
    machine, parent, child, addr = forked()
    original = machine.walk(parent, addr)
    assert original == {name: [(parent, addr, True), (child, addr, False)] for name in BOTH}
    assert machine.walk(child, addr) == {name: [(child, addr, True)] for name in BOTH}
    assert str(original).splitlines()[1:4] == [
        "  anon_vma visits 2, 1 of which maps it",
        f"    1. process 1 at {addr:#x}: maps it",
        f"    2. process 2 at {addr:#x}: does not map it",
    ]


def test_a_walk_and_a_check_count_nothing() -> None:
    machine, parent, _, addr = forked()

    def counted() -> list[dict[str, int]]:
        ledgers = [design.ledger for design in machine.machine.designs]
        return [{name: tally.count for name, tally in ledger.tallies.items()} for ledger in ledgers]

    before = counted()
    machine.walk(parent, addr)
    assert rl.check(machine)
    assert counted() == before


def test_a_walk_is_drawn_with_a_box_for_each_place() -> None:
    machine, parent, _, addr = forked()
    drawn = fromstring(machine.walk(parent, addr)._repr_svg_())
    kinds = [box.get("class") for box in drawn.iter("{http://www.w3.org/2000/svg}rect")]
    assert kinds == ["s", "u"] * 2
    words = [words.text for words in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert words.count(f"process 2 {addr:#x}") == 2


@pytest.mark.parametrize(
    ("where", "said"),
    [(0, "no anonymous page at .* (not touched yet)"), (64 * rl.PAGE, "nothing mapped at")],
)
def test_a_walk_where_there_is_no_page_says_so(where: int, said: str) -> None:
    machine = rl.Machine()
    process = machine.spawn()
    addr = process.mmap(rl.PAGE)
    with pytest.raises(rl.CannotRun, match=said.replace("(", r"\(").replace(")", r"\)")):
        machine.walk(process, addr + where)


def test_the_zero_page_is_no_anonymous_page() -> None:
    machine = rl.Machine()
    process = machine.spawn()
    addr = process.mmap(rl.PAGE)
    process.read(addr)
    assert process.page(addr).kind == "the zero page"
    with pytest.raises(rl.CannotRun, match="the zero page"):
        machine.walk(process, addr)


def test_a_page_of_a_folio_of_many_is_found_by_its_folio() -> None:
    machine = rl.Machine(REFERENCE, BOTH, large_folios=4)
    process = machine.spawn()
    addr = process.mmap(64 * rl.PAGE)
    process.write(addr + 20 * rl.PAGE)
    page = process.page(addr + 20 * rl.PAGE)
    assert page.nr_pages == 16
    assert all(place.maps for places in machine.walk(process, page.address).values() for place in places)


# Errors


def test_a_system_call_that_fails_raises_with_errno_and_reason() -> None:
    machine = rl.Machine()
    process = machine.spawn()
    addr = process.mmap(2 * rl.PAGE)
    with pytest.raises(rl.SystemCallError, match=r"EINVAL: munmap at 0x3 by process 1: .* multiple of 4096") as raised:
        process.munmap(3, rl.PAGE)
    assert raised.value.errno == errno.EINVAL
    with pytest.raises(OSError, match=f"ENOMEM: mprotect .* nothing is mapped at {addr + 2 * rl.PAGE:#x}"):
        process.mprotect(addr, 3 * rl.PAGE, rl.PROT_READ)
    with pytest.raises(rl.SystemCallError, match=r"EEXIST: .* mapped there already"):
        process.mmap(rl.PAGE, at=addr)


def test_an_access_that_may_not_be_raises_and_what_came_before_it_is_done() -> None:
    machine = rl.Machine()
    process = machine.spawn()
    addr = process.mmap(4 * rl.PAGE)
    process.mprotect(addr + 2 * rl.PAGE, rl.PAGE, rl.PROT_READ)
    with pytest.raises(rl.SystemCallError, match=r"SIGSEGV for a write at .*: the rights of the mapping forbid it"):
        process.write(addr, 4 * rl.PAGE)
    assert [process.page(addr + i * rl.PAGE).kind for i in range(4)] == ["anonymous page"] * 2 + ["not touched yet"] * 2
    with pytest.raises(rl.SystemCallError, match="SIGSEGV for a read at 0x1008: nothing is mapped there") as failed:
        process.read(0x1008)
    assert (failed.value.addr, failed.value.event.addr) == (0x1008, 0x1000)
    with pytest.raises(HistoryError, match=r"mmap: length is -1, not a whole number from 0 to 2\*\*64 - 1"):
        process.mmap(-1)


def test_what_cannot_happen_is_refused() -> None:
    machine, parent, child, addr = forked()
    child.exit()
    assert not child.alive and repr(child) == "<process 2, exited>"
    with pytest.raises(rl.CannotRun, match="no process 2"):
        child.write(addr)
    with pytest.raises(rl.CannotRun, match="no process 7"):
        machine.process(7)
    with pytest.raises(HistoryError, match="replay makes a new one"):
        machine.play(machine.history())
    assert machine.processes == [parent]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"profile": "2.4"}, "there is no profile '2.4': give one of "),
        ({"profile": "anon_vma"}, "designs come after it"),
        ({"profile": 7.3}, "there is no profile 7.3: give one of '7.3', "),
        ({"designs": []}, "at least one design"),
        ({"designs": ["anon_vma", "anon_vma"]}, "each name once, not \\[anon_vma, anon_vma"),
        ({"designs": "anonvma"}, "no design is called 'anonvma': give one of anon_vma"),
        ({"designs": ["mine.py"]}, "there is no file 'mine.py'"),
        ({"large_folios": 12}, "0 .off. to 9 is possible"),
    ],
)
def test_a_machine_that_cannot_be_says_what_could(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(rl.CannotRun, match=said):
        rl.Machine(**wrong)  # type: ignore[arg-type]


def test_designs_are_given_by_name_class_or_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from rmaplab.rmap.page_scan import PageScanRmap\nclass Mine(PageScanRmap):\n    name = 'mine'\n"
    )
    machine = rl.Machine(designs=["anon_vma", PageScanRmap, file])
    assert machine.designs == ["anon_vma", "page_scan", "mine"]
    assert rl.Machine(designs=AnonVmaRmap).designs == ["anon_vma"]


def test_what_no_register_can_hold_is_refused_and_nothing_happens() -> None:
    machine = rl.Machine()
    process = machine.spawn()
    addr = process.mmap(rl.PAGE)
    for act, said in (
        (lambda: process.mmap(-rl.PAGE), "mmap: length is -4096"),
        (lambda: process.write(addr, -1), "fault: length is -1"),
        (lambda: process.mprotect(addr, rl.PAGE, "r"), "mprotect: prot is 'r'"),  # type: ignore[arg-type]
    ):
        with pytest.raises(rl.CannotRun, match=said):
            act()
    assert len(machine.events) == 2


def test_a_process_of_another_machine_is_none_of_this() -> None:
    machine, parent, _, addr = forked()
    with pytest.raises(rl.CannotRun, match="of another machine"):
        rl.Machine().walk(parent, addr)
    assert machine.walk(parent.pid, addr) == machine.walk(parent, addr)


# A history


def test_what_was_typed_is_a_history_that_plays_the_same(tmp_path: Path) -> None:
    machine, parent, child, addr = forked()
    parent.mremap(addr, 2 * rl.PAGE, to=addr + 64 * rl.PAGE)
    parent.mmap(rl.PAGE, file=machine.file("libc.so"), prot=rl.PROT_READ)
    child.set_name(addr, rl.PAGE, "heap")
    parent.swap_out(addr + 64 * rl.PAGE)
    with pytest.raises(rl.SystemCallError):
        child.write(addr - rl.PAGE, 2 * rl.PAGE)
    machine.history().save(tmp_path / "typed.parquet")
    history = read_history(tmp_path / "typed.parquet")
    assert history == machine.history()
    again = rl.replay(history, BOTH, profile=REFERENCE)
    assert str(again) == str(machine)
    assert rl.compare(history, BOTH, profile=REFERENCE).figures.checks.results == len(history)
    assert rl.compare(history, BOTH, profile=REFERENCE).differences == []


def test_replay_stops_where_it_is_told_to_and_goes_on_by_hand() -> None:
    machine = rl.replay(rl.workload("forkchain", generations=5), BOTH, events=50)
    newest = machine.processes[-1]
    child = newest.fork()
    assert child.pid == newest.pid + 1
    assert len(machine.events) == 51
    assert rl.check(machine)


def test_a_check_of_nothing_is_no_verdict() -> None:
    found = rl.check(rl.Machine())
    assert repr(found).startswith("<says nothing: 0 folios")
    with pytest.raises(rl.CannotRun, match="no anonymous page is mapped"):
        assert found


def test_a_check_finds_a_design_that_forgets() -> None:
    class Blind(PageScanRmap):
        name = "blind"

        def walk(self, head):  # type: ignore[no-untyped-def]
            return iter(())

    machine = rl.Machine(designs=["anon_vma", Blind])
    process = machine.spawn()
    found = rl.check(machine)
    assert not found
    assert {difference.kind for difference in found.differences if difference.is_error} == {"incomplete"}
    assert "does not hold: 2 folios walked in 2 designs" in repr(found)
    assert process.alive
