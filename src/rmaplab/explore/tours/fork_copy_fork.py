# SPDX-License-Identifier: GPL-2.0-or-later
"""Fork, copy, fork again: how families grow, in both designs."""

from rmaplab.explore.tours.tour import Guide, Tour
from rmaplab.trace.script import PAGE, SMALL_PROGRAM
from rmaplab.workloads.workload import AREA


def _tell(tour: Guide) -> None:
    p1 = tour.spawn()
    tour.say("A process with nothing but its stack.")

    p1.munmap(SMALL_PROGRAM.stack, SMALL_PROGRAM.length)
    tour.say("So that the pictures stay small, this process does without its stack and unmaps it.")

    p1.mmap(3 * PAGE, at=AREA)
    tour.say("It maps three pages, and has not touched them yet.")

    p1.write(AREA, 3 * PAGE)
    tour.say(
        "It writes to them. Under anon_vma the VMA gets A1 and its folios point there. Under cow_context"
        " nothing is made: the folios point to the process's one context, C1.",
        ask=(p1, AREA),
    )

    p2 = p1.fork()
    tour.say(
        "The first child. anon_vma: for each VMA that has pages, one new anon_vma and two AVCs. cow_context:"
        " one object, C2, below C1; the pages are at the address that their index says, so there"
        " is nothing to record.",
        ask=(p1, AREA),
    )

    p2.write(AREA)
    tour.say(
        "The child copies its first page. The copy points to the child's own anon_vma and to C2: a walk"
        " for it need not visit the parent.",
        ask=(p2, AREA),
    )

    p3 = p2.fork()
    tour.say(
        "The child forks. The grandchild's VMA must be found from pages of three generations, so it gets"
        " three AVCs: in A1, in its parent's, and in its own new one. The chain of a VMA is as long as its"
        " line of ancestors. C3 is one object more.",
        ask=(p2, AREA),
    )

    p3.write(AREA + 0x1000)
    tour.say(
        "The grandchild copies the second page. Ask the original of it: all three VMAs are visited in"
        " both designs, and the last of them has a copy by now, so it is a place that does not map it.",
        ask=(p1, AREA + 0x1000),
    )

    p4 = p1.fork()
    tour.say(
        "The first process forks again. C4 comes in front of C2 in C1's list: contexts are visited the newest"
        " child first. In A1's tree all intervals are equal, and equal ones keep the order in which they came.",
        ask=(p1, AREA + 0x2000),
    )

    p2.exit()
    tour.say(
        "The middle process exits. Its AVCs go. Its anon_vma stays where a folio still points to it, and so"
        " does C2, empty, because C3 is below: a dead parent stays while a child lives.",
        ask=(p3, AREA),
    )

    p3.fork()
    tour.say(
        "A fork from process 3. Here anon_vma saves an object: of the anon_vmas that process 3 is linked to,"
        " one has no VMA of its own left and a single child, so the new process takes it over. That keeps chains"
        " short where each generation forks once and goes away.",
        ask=(p3, AREA),
    )

    p1.exit()
    tour.say(
        "The first process goes, the others live on. Its pages are still mapped, and still found.",
        ask=(p4, AREA),
    )


TOUR = Tour.told(
    "fork-copy-fork",
    "Fork, copy, fork again",
    "What happens to the reverse map when processes fork, copy pages, and fork again? On the left"
    " and below are the objects of anon_vma, one per VMA and generation; beside them those of CoW contexts, one"
    " per process.",
    ("anon_vma", "cow_context"),
    _tell,
)
