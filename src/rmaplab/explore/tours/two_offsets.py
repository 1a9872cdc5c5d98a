# SPDX-License-Identifier: GPL-2.0-or-later
"""MAP_PRIVATE: two offsets."""

from rmaplab.explore.tours.tour import Guide, Tour
from rmaplab.trace.script import PAGE, SMALL_PROGRAM
from rmaplab.workloads.workload import AREA


def _tell(tour: Guide) -> None:
    p1 = tour.spawn()
    tour.say("A process. Its stack is recorded in both context designs, since execve moved it.")

    p1.munmap(SMALL_PROGRAM.stack, SMALL_PROGRAM.length)
    tour.say("So that the pictures stay small, this process does without its stack and unmaps it.")

    p1.mmap(4 * PAGE, at=AREA, file=0, offset=0x10000)
    tour.say("Four pages of a library are mapped privately, from page 0x10 of the file on. vm_pgoff is 0x10.")

    p1.read(AREA, 2 * PAGE)
    tour.say(
        "Two pages are read: pages of the page cache. They belong to the file, whose own reverse map finds"
        " them. Nothing for us to do.",
    )

    p1.write(AREA)
    tour.say(
        "A write copies the first page. anon_vma takes vm_pgoff as its index: 0x10. That is fine, its tree is"
        " keyed by vm_pgoff. The prototype does the same, but then the address does not follow from the index:"
        " it needs a record, although nothing was moved. And it does not even come to read it: ask the"
        " page, and the prototype's walk looks at the address of index 0x10, and stops, because only"
        " one process maps the page. It misses the page: a finding about its source. cow_context gives the"
        " VMA a second, anonymous page"
        " offset, which begins as its address. No record; the shift between the two is kept with the VMA.",
        ask=(p1, AREA),
    )

    p1.mmap(4 * PAGE, at=AREA + 0x100000, file=0, offset=0x10000)
    tour.say("The same part of the file is mapped once more, elsewhere.")

    p1.write(AREA + 0x100000)
    tour.say(
        "Its first page is copied, too. The prototype now has two pages of index 0x10 in one context, and two"
        " records that say where those may be. In cow_context each has its own anonymous"
        " page offset, and in anon_vma its own anon_vma: one place each.",
        ask=(p1, AREA),
    )

    p2 = p1.fork()
    tour.say(
        "A fork copies both mappings. The prototype records them in the child, and adds them once more in the"
        " parent, which has them. Now that two processes map the page, its walk does read the records: it looks at"
        " both places in either process, and half of that is in vain.",
        ask=(p1, AREA),
    )

    p2.write(AREA)
    tour.say(
        "The child writes, and its copy is its own: one place for anon_vma and for cow_context; missed by the"
        " prototype again.",
        ask=(p2, AREA),
    )


TOUR = Tour.told(
    "two-offsets",
    "MAP_PRIVATE: two offsets",
    "A private mapping of a file has a page offset that counts pages of the file, not addresses. Its copied"
    " pages are anonymous memory and must be found by the reverse map. What shall their index be? Three designs"
    " answer: anon_vma, the prototype of CoW contexts, and ours.",
    ("anon_vma", "cow_context_prototype", "cow_context"),
    _tell,
    ("/usr/lib/libexample.so",),
)
