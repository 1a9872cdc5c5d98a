# SPDX-License-Identifier: GPL-2.0-or-later
"""mremap there and back, in both designs."""

from rmaplab.explore.tours.tour import Beat, Tour
from rmaplab.mm.abi import MREMAP_FIXED, MREMAP_MAYMOVE
from rmaplab.workloads.workload import (
    AREA,
    AWAY,
    PAGE,
    STACK,
    STACK_BYTES,
    fork,
    mmap,
    mremap,
    munmap,
    start,
    write,
)

_MOVE = MREMAP_MAYMOVE | MREMAP_FIXED

TOUR = Tour(
    "mremap",
    "mremap there and back, in both designs",
    "A folio says where it is by a page offset, which stands for the address of its first mapping. mremap moves"
    " memory to another address, and the folios are not told. Each design has its own way to find them all"
    " the same.",
    ("anon_vma", "cow_context"),
    (
        Beat(
            start(1), "A process. Its stack was moved by execve already: see its page offset, and the record."
        ),
        Beat(
            munmap(1, STACK, STACK_BYTES // PAGE),
            "So that the pictures stay small, this process does without its stack. Unmapping it takes the record away.",
        ),
        Beat(mmap(1, AREA, 4), "Four pages…"),
        Beat(
            write(1, AREA, 4),
            "…all written. Page offset and address agree. A walk has nothing to translate.",
            ask=(1, AREA + 0x1000),
        ),
        Beat(
            mremap(1, AREA, 4, 4, _MOVE, AWAY),
            "They move. The new VMA keeps the old page offset, because the folios keep theirs. anon_vma: the key"
            " in the tree is the page offset, so the walk finds the VMA as before, and gets the address from it."
            " cow_context: it would look at the old address; so the move left a record: these page offsets"
            " are to be found so many pages further.",
            ask=(1, AWAY + 0x1000),
        ),
        Beat(
            mmap(1, AREA, 4),
            "Something new is mapped at the old address. Its page offset is the same as that of the memory which"
            " moved away!",
        ),
        Beat(
            write(1, AREA, 2),
            "Two pages are written there. Now two pages of this process have the same index. anon_vma tells them"
            " apart: they belong to different anon_vmas. In cow_context both point to C1, so a walk for one also"
            " looks where the other is: a visit for nothing, which finds another page there.",
            ask=(1, AWAY),
        ),
        Beat(
            fork(1, 2),
            "A fork copies the geometry. The child's AVCs are linked as ever; the child's context gets a copy of"
            " the record, for its own VMA that is displaced. So the visits in vain double, too.",
            ask=(1, AWAY + 0x1000),
        ),
        Beat(
            mremap(1, AREA, 4, 4, _MOVE, AREA + 0x10000),
            "To make room, the newcomer moves on by sixteen pages. That takes a record of its own.",
            ask=(1, AREA + 0x10000),
        ),
        Beat(
            mremap(1, AWAY, 4, 4, _MOVE, AREA),
            "The first four pages come home. Their address is what their page offset says, so the parent's record"
            " of them is dropped. The child's copies are still away, and recorded in the child's context.",
            ask=(1, AREA + 0x1000),
        ),
        Beat(
            mremap(1, AREA + 0x1000, 1, 1, _MOVE, AWAY),
            "A single page from the middle is moved away. The VMA is split in three, each with its page"
            " offset; anon_vma clones the chain for every piece, cow_context records the one piece that is"
            " displaced. (The newcomer's record comes in three now: a remap tree is a map of page offsets, and in the"
            " middle there are two places to look at.)",
            ask=(1, AWAY),
        ),
        Beat(
            mremap(1, AWAY, 1, 1, _MOVE, AREA + 0x1000),
            "It comes back, and the three VMAs are one again: rights, page offsets and anon_vma agree. Nothing is"
            " left of the trip.",
            ask=(1, AREA + 0x1000),
        ),
    ),
)
