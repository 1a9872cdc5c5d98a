# SPDX-License-Identifier: GPL-2.0-or-later
"""Why reuse is safe: the last mapper of a page takes it over."""

from rmaplab.explore.tours.tour import Guide, Tour
from rmaplab.trace.script import PAGE, SMALL_PROGRAM
from rmaplab.workloads.workload import AREA


def _tell(tour: Guide) -> None:
    p1 = tour.spawn()
    tour.say("A process.")

    p1.munmap(SMALL_PROGRAM.stack, SMALL_PROGRAM.length)
    tour.say("So that the pictures stay small, this process does without its stack and unmaps it.")

    p1.mmap(2 * PAGE, at=AREA)
    tour.say("It maps two pages…")

    p1.write(AREA, 2 * PAGE)
    tour.say(
        "…and writes to them. The pages are exclusive: mapped by one entry, and writable.",
        ask=(p1, AREA),
    )

    p2 = p1.fork()
    tour.say(
        "A fork makes them shared, and exclusive no more. Both folios point to the parent's anon_vma, and to"
        " its context: all processes that can map them are at or below those.",
        ask=(p1, AREA),
    )

    p1.write(AREA)
    tour.say(
        "The parent writes. Two map the page, so the parent gets a copy (a new folio), and the old one is left"
        " to the child alone. But it still points to the parent's anon_vma: a walk visits the parent first, in"
        " vain, then the child.",
        ask=(p2, AREA),
    )

    p2.write(AREA)
    tour.say(
        "Now the child writes. It is the only one left, so the page is reused: no copy, and the folio is moved"
        " to the child's own anon_vma and context. The walk is down to one place.",
        ask=(p2, AREA),
    )

    p3 = p2.fork()
    tour.say(
        "Why is it safe? An entry comes into being only by a fault of its own or as a copy of an entry in"
        " a fork. One process had the only entry. Any process that maps it later got it from that process by forks,"
        " so is below it: in the tree of its anon_vma, in the subtree of its context. Nobody outside can.",
        ask=(p2, AREA),
    )

    p2.exit()
    tour.say(
        "The process that took it over goes. The grandchild maps the page, and is found, since it was linked"
        " to that anon_vma (a child context of it) before the entries were copied.",
        ask=(p3, AREA),
    )

    p3.write(AREA)
    tour.say(
        "And the game goes on: the grandchild is the last mapper, writes, and takes the page over in turn.",
        ask=(p3, AREA),
    )


TOUR = Tour.told(
    "reuse",
    "Why reuse is safe",
    "When only one process is left that maps a page, a write does not copy it: the process takes the page"
    " over. From then on the folio points to something of that process alone, so walks get shorter. Is that"
    " safe? Could a walk miss another process that maps it? Watch what the folio points to.",
    ("anon_vma", "cow_context"),
    _tell,
)
