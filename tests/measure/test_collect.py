# SPDX-License-Identifier: GPL-2.0-or-later
"""What is counted, and what is kept out of it."""

from __future__ import annotations

from rmaplab.check.lockstep import Checker, Walks
from rmaplab.measure.collect import Aside, design_figures, machine_figures
from rmaplab.measure.figures import Locks
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.trace.play import Player
from rmaplab.workloads.aim7 import Aim7


def aim7() -> Machine:
    history = Aim7(children=3, pages=5).history()
    machine = Machine(PROFILES[REFERENCE], [AnonVmaRmap])
    Player(machine, history.header).play(history)
    return machine


def test_what_happens_aside_is_counted_there_and_nowhere_else() -> None:
    machine = aim7()
    design = machine.designs[0]
    before = design_figures(design, Walks(), Aside(machine).work("anon_vma"), None).work
    aside = Aside(machine)
    for _ in range(2):
        with aside:
            Checker(machine).check(0)
    assert design_figures(design, Walks(), aside.work("anon_vma"), None).work == before
    walked = aside.work("anon_vma")
    folios = 2 * (2 + 3 * 5 + 5)  # each time: the stack's arguments, the children's copies, the parent's own
    assert walked.tallies["walks"] == folios
    assert walked.locks == [Locks("anon_vma root rwsem", 0, folios)]


def test_an_aside_that_fails_is_still_aside() -> None:
    machine = aim7()
    walks = machine.designs[0].ledger.tallies["walks"]
    aside = Aside(machine)
    try:
        with aside:
            list(machine.designs[0].walk(512))
            raise RuntimeError
    except RuntimeError:
        pass
    assert walks.count == 0
    assert aside.work("anon_vma").tallies["walks"] == 1


def test_the_machine_counts_what_it_went_through() -> None:
    figures = machine_figures(aim7(), events=99)
    assert figures.events == 99
    assert (figures.mms.made, figures.mms.peak, figures.mms.at_end) == (4, 4, 4)
    assert figures.vmas.at_end == 4 * 2  # a stack and the VMA, in each
    assert figures.pages.at_end == 2 + 4 * 5
    assert figures.work.tallies["pages copied"] == 3 * 5


def test_objects_are_counted_by_type_and_in_slab_pages() -> None:
    figures = design_figures(aim7().designs[0], Walks(), Aside(aim7()).work("anon_vma"), None)
    held = {o.type: o for o in figures.objects}
    # Four processes with two families each; a child has a chain to its parent's anon_vma and to its own.
    assert held["anon_vma"].at_end == 4 * 2
    assert held["anon_vma_chain"].at_end == 2 + 3 * 2 * 2
    for o in held.values():
        assert o.allocated == o.peak == o.at_end
        assert 4096 * o.end_pages >= o.size * o.at_end
