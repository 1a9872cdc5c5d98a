# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory over a history: peaks, lines, fields elsewhere, and VMAs."""

from __future__ import annotations

import pytest

from rmaplab.measure.comparison import Plan, compare
from rmaplab.measure.memory import MOMENTS, Memory, curve, maple_nodes
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.rmap import DESIGNS, specs
from rmaplab.trace.history import Header
from rmaplab.trace.script import PAGE, Script
from rmaplab.workloads import workload


def quiet(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def memory() -> Memory:
    history = workload("storm", {"processes": "3", "rounds": "4", "vmas": "40"}).history()
    plan = Plan([DESIGNS[name] for name in specs(["all"], ())], PROFILES[REFERENCE], check=False)
    return compare(history, plan, quiet).figures.memory


def test_each_design_has_a_line_and_its_peak_is_the_highest_of_it(memory: Memory) -> None:
    assert [design.design for design in memory.designs] == list(DESIGNS)
    assert 1 < len(memory.events) <= MOMENTS + 2
    for design in memory.designs:
        assert len(design.line) == len(memory.events)
        assert design.peak.total == max(design.line)
        assert design.end.total == design.line[-1]


def test_fields_are_counted_with_the_structures_that_have_them(memory: Memory) -> None:
    by_name = {design.design: design for design in memory.designs}
    for design in by_name.values():
        peak = design.peak
        assert peak.fields == design.vma_fields * peak.vmas + design.mm_fields * peak.processes
    assert by_name["anon_vma"].vma_fields == 24  # a pointer and a list head
    assert by_name["anon_vma_lazy"].vma_fields == 24
    assert by_name["cow_context"].vma_fields == 8
    assert by_name["page_scan"].peak.total == 0


def test_the_rivals_hold_what_their_rules_say(memory: Memory) -> None:
    peaks = {design.design: design.peak for design in memory.designs}
    assert peaks["anonmm"].objects == {"anonmm": 40 * peaks["anonmm"].processes}
    assert peaks["pte_chain"].objects["pte_chain"] % 64 == 0
    assert peaks["anon_vma_lazy"].total < peaks["anon_vma"].total


def test_vmas_are_counted_by_each_designs_own_rule(memory: Memory) -> None:
    assert [vmas.design for vmas in memory.vmas] == list(DESIGNS)
    for vmas in memory.vmas:
        assert vmas.struct_bytes == vmas.vmas * 192  # vm_area_struct, with the per-VMA lock
        assert vmas.node_bytes == 256 * vmas.nodes > 0


@pytest.mark.parametrize(("vmas", "nodes"), [(0, 0), (1, 1), (16, 1), (17, 3), (160, 11), (161, 14)])
def test_a_maple_tree_has_leaves_of_sixteen_and_nodes_of_ten(vmas: int, nodes: int) -> None:
    assert maple_nodes(vmas) == nodes


def test_a_curve_is_as_high_as_its_parts() -> None:
    assert curve([0, 1, 2, 4, 8, 8, 0], 7) == " ▁▂▄██ "
    assert curve([0, 0]) == ""
    assert curve(list(range(100)), 4) == "▂▄▆█"


def test_vmas_of_processes_are_told_by_pid() -> None:
    """A space of the model has a number of its own, which is no pid."""
    script = Script()
    parent = script.spawn(pid=4711)
    for page in range(8):
        parent.mmap(PAGE, at=0x7F0000000000 + 2 * page * PAGE)
    parent.fork(pid=4800)
    plan = Plan([DESIGNS["anon_vma"]], PROFILES[REFERENCE], check=False)
    memory = compare(script.history(Header(recorder="a test")), plan, quiet).figures.memory
    assert memory.processes == {4711: 9, 4800: 9}
