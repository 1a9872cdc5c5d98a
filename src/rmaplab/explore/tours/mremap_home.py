# SPDX-License-Identifier: GPL-2.0-or-later
"""mremap there and back, in both designs."""

from rmaplab.explore.tours.tour import Guide, Tour
from rmaplab.trace.script import PAGE, SMALL_PROGRAM
from rmaplab.workloads.workload import AREA, AWAY


def _tell(tour: Guide) -> None:
    p1 = tour.spawn()
    tour.say("A process. Its stack was moved by execve already: see its page offset, and the record.")

    p1.munmap(SMALL_PROGRAM.stack, SMALL_PROGRAM.length)
    tour.say(
        "So that the pictures stay small, this process does without its stack. Unmapping it takes the record away.",
    )

    p1.mmap(4 * PAGE, at=AREA)
    tour.say("Four pages…")

    p1.write(AREA, 4 * PAGE)
    tour.say(
        "…all written. Page offset and address agree. A walk has nothing to translate.",
        ask=(p1, AREA + 0x1000),
    )

    p1.mremap(AREA, 4 * PAGE, to=AWAY)
    tour.say(
        "They move. The new VMA keeps the old page offset, because the folios keep theirs. anon_vma: the key"
        " in the tree is the page offset, so the walk finds the VMA as before, and gets the address from it."
        " cow_context: it would look at the old address; so the move left a record: these page offsets"
        " are to be found so many pages further.",
        ask=(p1, AWAY + 0x1000),
    )

    p1.mmap(4 * PAGE, at=AREA)
    tour.say(
        "Something new is mapped at the old address. Its page offset is the same as that of the memory which"
        " moved away!",
    )

    p1.write(AREA, 2 * PAGE)
    tour.say(
        "Two pages are written there. Now two pages of this process have the same index. anon_vma tells them"
        " apart: they belong to different anon_vmas. In cow_context both point to C1, so a walk for one also"
        " looks where the other is: a visit for nothing, which finds another page there.",
        ask=(p1, AWAY),
    )

    p1.fork()
    tour.say(
        "A fork copies the geometry. The child's AVCs are linked as ever; the child's context gets a copy of"
        " the record, for its own VMA that is displaced. So the visits in vain double, too.",
        ask=(p1, AWAY + 0x1000),
    )

    p1.mremap(AREA, 4 * PAGE, to=AREA + 0x10000)
    tour.say(
        "To make room, the newcomer moves on by sixteen pages. That takes a record of its own.",
        ask=(p1, AREA + 0x10000),
    )

    p1.mremap(AWAY, 4 * PAGE, to=AREA)
    tour.say(
        "The first four pages come home. Their address is what their page offset says, so the parent's record"
        " of them is dropped. The child's copies are still away, and recorded in the child's context.",
        ask=(p1, AREA + 0x1000),
    )

    p1.mremap(AREA + 0x1000, PAGE, to=AWAY)
    tour.say(
        "A single page from the middle is moved away. The VMA is split in three, each with its page"
        " offset; anon_vma clones the chain for every piece, cow_context records the one piece that is"
        " displaced. (The newcomer's record comes in three now: a remap tree is a map of page offsets, and in the"
        " middle there are two places to look at.)",
        ask=(p1, AWAY),
    )

    p1.mremap(AWAY, PAGE, to=AREA + 0x1000)
    tour.say(
        "It comes back, and the three VMAs are one again: rights, page offsets and anon_vma agree. Nothing is"
        " left of the trip.",
        ask=(p1, AREA + 0x1000),
    )


TOUR = Tour.told(
    "mremap",
    "mremap there and back, in both designs",
    "A folio names its place by a page offset, which is that of the address of its first mapping. mremap moves"
    " memory to another address, and leaves the folios as they are. Each design has its own way to find them all"
    " the same.",
    ("anon_vma", "cow_context"),
    _tell,
)
