# SPDX-License-Identifier: GPL-2.0-or-later
"""A page's life under anon_vma: mapped, touched, shared, copied, swapped, gone."""

from rmaplab.explore.tours.tour import Guide, Tour
from rmaplab.trace.script import PAGE, SMALL_PROGRAM
from rmaplab.workloads.workload import AREA


def _tell(tour: Guide) -> None:
    p1 = tour.spawn()
    tour.say(
        "A process begins. Its stack is there already, with two pages of arguments: the one VMA has an anon_vma."
        " The link between the two is an anon_vma_chain, AVC for short: a node in its"
        " interval tree.",
    )

    p1.munmap(SMALL_PROGRAM.stack, SMALL_PROGRAM.length)
    tour.say(
        "So that the pictures stay small, this process does without its stack and"
        " unmaps it. The anon_vma goes with it.",
    )

    p1.mmap(4 * PAGE, at=AREA)
    tour.say(
        "Four pages are mapped, and nothing more happens. A VMA without a page needs no reverse map: no"
        " anon_vma, no AVC. The dotted cells are pages that no page table has.",
    )

    p1.read(AREA)
    tour.say(
        "A read finds the zero page, which belongs to nobody and is never reclaimed. Still nothing to map"
        " in reverse.",
    )

    p1.write(AREA)
    tour.say(
        "The first write is where it begins: the VMA gets an anon_vma (A1), and the new folio points"
        " to it and remembers a page offset. Ask the page: from the folio to A1, into its tree, to the VMA,"
        " to the address. That is a walk. While it lasts, it holds the lock of A1's family.",
        ask=(p1, AREA),
    )

    p1.write(AREA + 0x1000, 2 * PAGE)
    tour.say(
        "Two more pages of the same VMA point to the same A1. A page costs no object of its own: what"
        " tells them apart is the page offset.",
        ask=(p1, AREA + 0x2000),
    )

    p2 = p1.fork()
    tour.say(
        "A fork shares all pages, write-protected (×2). Now A1 has a second AVC, to the child's VMA, put there"
        " before a single entry was copied. The child also gets an anon_vma of its own, A2, below A1, for"
        " pages that it will copy. The walk for the old page visits both VMAs, the parent's first.",
        ask=(p1, AREA),
    )

    p2.write(AREA)
    tour.say(
        "The child writes, and gets a copy: a new folio, which points to A2. So a walk for the"
        " copy looks at the child only.",
        ask=(p2, AREA),
    )

    p1.referenced(AREA)
    tour.say(
        "Reclaim asks whether the parent's page was used. The walk goes through A1 and visits the child, too,"
        " though the child has a copy now and does not map the page: a place that does not map it, shown"
        " grey. Such visits are what the design pays for keeping one tree for many pages.",
        ask=(p1, AREA),
    )

    p1.swap_out(AREA + 0x1000)
    tour.say(
        "The second page is reclaimed. The walk found both mappings, and both page tables now hold a"
        " swap entry instead. The folio is gone; its contents are on disk.",
    )

    p2.write(AREA + 0x1000)
    tour.say(
        "The child touches the swapped page. Others may still refer to it in swap, so the folio that"
        " comes back could be anybody's: had it stayed shared it would point to the root, A1, from which the"
        " whole family is found. A write gives the child its own copy straight away.",
    )

    p1.munmap(AREA, 4 * PAGE)
    tour.say(
        "The parent unmaps everything. Its AVC leaves the trees, but A1 stays: the child still maps a"
        " folio that points to it.",
        ask=(p2, AREA + 0x2000),
    )

    p2.exit()
    tour.say("The child exits, and with its last AVC everything goes that was made for these pages.")


TOUR = Tour.told(
    "page-life",
    "A page's life under anon_vma",
    "Linux has to know, for every page of private memory, which page tables map it: to swap it out, to move"
    " it, to see if it is in use. This tour follows one page from its first write to its end, and shows"
    " what the reverse map, anon_vma, keeps for it. Press → for the next step, and click any page to ask for it.",
    ("anon_vma",),
    _tell,
)
