# SPDX-License-Identifier: GPL-2.0-or-later
"""Guided tours of races: what the race checker found, and bugs of Linux that it finds again."""

from __future__ import annotations

from rmaplab.check.race_mutants import FaultsDuringFork
from rmaplab.explore.tours.race import RaceTour, Turn

_MUTANTS = "rmaplab.check.race_mutants:"

FORK = RaceTour(
    "race-fork",
    "The race of a fork with a walk, children before parents",
    "A page moves to another frame. Its two entries, in processes 1 and 2, are migration entries already (→512),"
    " and a task that touches them waits. CPU 0 restores them: it walks the contexts to find every one. On CPU 1,"
    " process 2 forks. In which order should a walk visit contexts? Here children come before their parent, as the"
    " prototype of CoW contexts has it for all but the first context; everything else is as in cow_context.",
    "restore / fork of the child",
    f"{_MUTANTS}ChildrenFirst",
    (
        Turn(
            0,
            "first child: context of process 2",
            "The walk begins at C1, to which the folio points, and goes down first: C2 has no child. So C2 is the"
            " first context to visit, and nothing is below it. At this moment, that is true.",
            ask=True,
        ),
        Turn(
            0,
            "read VMA",
            "It found the VMA of process 2 and is about to take the page-table lock, to restore the entry there. No"
            " lock keeps others out: the walk is inside an RCU section, which only keeps memory from being freed.",
        ),
        Turn(
            1,
            "link child context",
            "CPU 1 gets in between: process 2 forks. The new context C3 is linked below C2, where the walk has"
            " already been.",
        ),
        Turn(
            1,
            "",
            "The fork copies the entries of process 2. What it finds is a migration entry, so a migration entry is"
            " what the child gets. Process 5 now waits for the page, too. A walk that began now would find all"
            " three (see a1, a2, a3). But ours began before.",
            ask=True,
        ),
        Turn(
            0,
            "change mapcount",
            "CPU 0 goes on and restores the entry of process 2: 513 is the new frame. It will not look below C2 again.",
        ),
        Turn(
            0,
            "",
            "It visits C1, restores the entry of process 1, and comes to its end. C3 was never visited. Process 5"
            " waits for a page that has moved long ago. Nobody will wake it: there is no second walk.",
        ),
    ),
    "C3 was never visited: it appeared behind the walk. Process 5 waits for ever. If a parent comes before its"
    " children this cannot happen: a fork that copies an entry before the walk comes to the parent has linked the"
    " child's context before, so the walk finds it below; one that comes later copies a restored entry. cow_context"
    " visits parents first.",
    "restored",
)

MIGRATION = RaceTour(
    "race-migration",
    "The migration entry that is never found",
    "Two processes share a page that is being migrated: both entries are migration entries (→512). CPU 0 restores"
    " them with the walk of the prototype of CoW contexts, as its source has it. To save work that walk stops"
    " early: if the folio was mapped by at most one entry before and after a look, nobody else can have it. Can"
    " nobody?",
    "restore / fork of the child",
    "cow_context_prototype",
    (
        Turn(
            0,
            "visit context",
            "The page was moved to frame 513, which no entry maps yet: all that did are migration entries, and"
            " those do not count as mappings. The walk comes to C1, the context that the folio points to.",
        ),
        Turn(
            0,
            "read mapcount",
            "Before it looks, it reads the mapcount of 513: none. “Nobody else maps it”, so far.",
        ),
        Turn(
            0,
            "change mapcount",
            "It finds the entry of process 1 and restores it. Now the page is mapped once.",
            ask=True,
        ),
        Turn(
            0,
            "",
            "After the look it reads the mapcount again: one, that of the entry just restored. At most one before,"
            " at most one after: the walk ends, and never looks at process 2, whose entry is left behind.",
        ),
        Turn(
            1,
            "",
            "And then process 2 forks, and hands what it has to its child: process 5 waits for the same frame,"
            " which may be somebody else's by now.",
        ),
    ),
    "This needs no race at all: every migration of a page that two processes share loses the second entry. The"
    " mapcount says how many entries map the page now, not how many will once all are restored. We found it on"
    " the first day, by asking for each walk's answer to be held against the page tables.",
    "restored",
)

_MREMAP = (
    "A page that process 1 had moved to 0x20000000 is being migrated (→512), and CPU 0 walks to restore the"
    " entries. At the same time, on CPU 1, process 1 moves the page back to 0x10000000, where its page offset says"
    " it is. A walk looks there first, and then at the places of which there is a record."
)

_BEFORE_MREMAP = Turn(
    0,
    "changes mm_users",
    "The walk is at C1, process 1, and has not looked anywhere yet.",
)

MREMAP_LOST = RaceTour(
    "race-mremap",
    "mremap under a walk: looked at both places, found at neither",
    f"{_MREMAP} In this variant of cow_context, nothing tells the walk that entries were moved meanwhile.",
    "restore / mremap back",
    f"{_MUTANTS}NoRetryAfterMove",
    (
        _BEFORE_MREMAP,
        Turn(
            1,
            "takes page-table lock of process 1",
            "mremap covers the old address with a VMA again (V5 grows), and is about to move the entry. It has the"
            " page-table lock of the target.",
        ),
        Turn(
            0,
            "look up VMA",
            "The walk looks at the address of the page offset, 0x10000000, where a VMA is again.",
        ),
        Turn(0, "takes page-table lock of process 1", "There is no entry yet: a visit in vain."),
        Turn(
            0,
            "read VMA: V4",
            "It reads the record and goes on to the other place, 0x20000000. It has not locked that page table yet.",
        ),
        Turn(
            1,
            "takes page-table lock of process 1",
            "In this moment, mremap moves the entry: from where the walk is going to look to where it has looked.",
        ),
        Turn(
            1,
            "",
            "mremap finishes: the VMA at 0x20000000 is gone, and so is the record.",
        ),
        Turn(
            0,
            "reads sequence count",
            "The walk finds no entry at 0x20000000 either. It compares the sequence count of C1, and nothing has"
            " changed, because this mremap did not count while it moved entries.",
        ),
    ),
    "The rest of the walk restores process 2 and ends. The entry of process 1 was at one of two places all the"
    " time, and the walk looked at both: each time at the wrong moment. What saves it, shows the next tour.",
    "restored",
)

MREMAP_RETRY = RaceTour(
    "race-mremap-retry",
    "mremap under a walk, and the retry that saves it",
    f"{_MREMAP} This is cow_context as it is: each context has a sequence count, odd while entries of its process"
    " are on the move.",
    "restore / mremap back",
    "cow_context",
    (
        _BEFORE_MREMAP,
        Turn(
            1,
            "change VMA tree",
            "mremap covers the old address with a VMA again (V5 grows). The sequence count is odd while it does so.",
        ),
        Turn(1, "changes sequence count", "Even again: the VMA is in its tree. No entry was moved yet."),
        Turn(
            0,
            "read VMA: V5",
            "The walk waits for an even count, remembers it, and looks at 0x10000000. There is not even a"
            " page-table page yet: in vain.",
        ),
        Turn(
            0,
            "read VMA: V4",
            "It reads the record and goes on to 0x20000000. It has not locked that page table yet.",
        ),
        Turn(
            1,
            "takes page-table lock of process 1",
            "mremap is about to move the entry. Before it went to the page tables it made the count odd.",
        ),
        Turn(
            1,
            "",
            "It moves the entry, makes the count even, drops the VMA and the record. The entry is behind the walk.",
        ),
        Turn(
            0,
            "reads sequence count",
            "No entry at 0x20000000 either. But the count is not what it was: this context has to be looked at again.",
        ),
        Turn(
            0,
            "change mapcount",
            "So it is, and the entry is found at 0x10000000.",
            ask=True,
        ),
    ),
    "The walk goes on to process 2 and ends. All entries are restored, though nobody waited for a lock: the price"
    " is a second look where entries moved meanwhile.",
    "",
)

DESTINATION = RaceTour(
    "race-destination-first",
    "The destination before the source (Linux 3.2)",
    "A bug that Linux once had, put back into anon_vma: mremap moves a page, and the walk visits the VMA that it"
    " moves to before the one that it moves from. Commit 948f017b093a has put the source first. The page is being"
    " migrated (→512): CPU 0 restores the entries, while on CPU 1 process 1 moves the first of its two pages to"
    " 0x20000000.",
    "restore / mremap away",
    f"{_MUTANTS}DestinationFirst",
    (
        Turn(
            0,
            "takes lock of folio 513",
            "CPU 0 is ready to walk. It has not taken the lock of the family's root yet.",
        ),
        Turn(
            1,
            "change VMA tree",
            "mremap makes V4 for the destination, and puts it into the tree of A1. V2, V3 and V4 have the same page"
            " offset there. Here V4 comes before V2, as in Linux before the fix; since then it comes behind.",
            ask=True,
        ),
        Turn(
            1,
            "takes page-table lock of process 1",
            "mremap has locked the page table of the source and is about to lock that of the destination. It takes"
            " no rmap lock: a walk that visits the source first, and finds the entry gone, finds it at the destination."
            " That is the idea.",
        ),
        Turn(
            0,
            "change mapcount",
            "The walk takes the lock of the root, which nobody holds. First it comes to process 2, and restores the"
            " entry there.",
        ),
        Turn(
            0,
            "takes page-table lock of process 1",
            "Then to V4, the destination: its page table is empty. In vain.",
        ),
        Turn(
            1,
            "takes page-table lock of process 1",
            "Now mremap moves the entry, from V2 to V4. Nobody keeps it from doing so: it has both page-table locks.",
        ),
        Turn(
            0,
            "",
            "Then the walk comes to V2, the source, and the entry has just gone. It has looked at both places.",
        ),
    ),
    "The source was visited after the destination, and the entry moved in between. The other way round, a walk can"
    " come too late for the source but not for the destination. Where a merge makes the order impossible (the"
    " destination was there before), mremap takes the lock of the root: the rule that 38a76013ad80 brought in Linux"
    " 3.7, of which the next tour tells.",
    "restored",
)

LOCKS = RaceTour(
    "race-rmap-locks",
    "A move into a VMA that was there before (Linux 3.7)",
    "Source before destination: that works where mremap makes a new VMA. But if the moved page merges with a VMA"
    " that was there before, the order in the tree is what it is. So Linux takes the lock of the root while it"
    " moves entries (need_rmap_locks, commit 38a76013ad80). Here it does not. The second page of process 1, moved"
    " away before, comes home, where its VMA merges. It is being migrated (→513).",
    "restore / mremap that merges",
    f"{_MUTANTS}MovesWithoutLock",
    (
        Turn(0, "takes lock of folio 514", "CPU 0 is ready to walk, and has no lock of the reverse map yet."),
        Turn(
            1,
            "change VMA tree",
            "V5 grows over the place to which the page comes home. In the tree of A1 it stands before V4, from"
            " which the page comes: its interval begins earlier.",
            ask=True,
        ),
        Turn(
            1,
            "takes page-table lock of process 1",
            "mremap has locked one page table and wants the other. With need_rmap_locks it would hold the lock of"
            " the root by now.",
        ),
        Turn(
            0,
            "takes page-table lock of process 1",
            "The walk has taken the root's lock and looked at process 2, which does not have this page. At V5, the"
            " destination, there is no entry yet.",
        ),
        Turn(1, "takes page-table lock of process 1", "mremap moves the entry from V4 to V5, behind the walk."),
        Turn(0, "", "At V4, the source, the walk finds nothing any more, and comes to its end."),
    ),
    "With the lock of the root, mremap would have waited until the walk was over, or the walk until all entries had"
    " moved.",
    "restored",
)

FIRST_FAULTS = RaceTour(
    "race-first-faults",
    "A fresh anon_vma, linked without its lock (Linux 2.6.28)",
    "Process 1 has two adjacent VMAs that nobody has touched yet. Two of its threads do, each one of them, at the"
    " same time. The first makes an anon_vma; and since that is fresh, and nobody knows it yet, it links its VMA"
    " without taking the lock. Commit d9d332e0874f takes it. Who could know a fresh anon_vma?",
    "first faults of two neighbours, in two threads",
    f"{_MUTANTS}LinkedWithoutLock",
    (
        Turn(
            0,
            "takes mmap_lock",
            "The first fault in V3. To prepare a VMA both threads hold mmap_lock for reading only, so they do not"
            " keep each other out.",
        ),
        Turn(
            0,
            "takes page-table lock",
            "Its neighbour has none, so it has made A2 and set it in the VMA. All that is left is to insert V3 into the"
            " tree of A2. To insert is to read the tree and to write it.",
        ),
        Turn(
            1,
            "takes root rwsem of A2",
            "The other thread faults in V4. It looks for an anon_vma that it can share with a neighbour, and finds"
            " A2: that is who. It takes the lock, as one should, and inserts V4.",
        ),
        Turn(1, "", "Its page is mapped, and points to A2.", ask=True),
        Turn(
            0,
            "insert into the tree",
            "The first thread writes the tree as it had read it, with V3 alone. What was inserted meanwhile is lost.",
        ),
        Turn(0, "", "Its page is mapped, too."),
    ),
    "The page in V4 points to A2, whose tree does not have V4. No walk will ever find it: it can be neither swapped"
    " out nor moved.",
    "found",
)

FORK_FAULT = RaceTour(
    "race-fork-fault",
    "A first fault during a fork (Linux 6.5)",
    "Process 1 has two VMAs; in V3 nobody has touched a page yet. One thread forks, another touches V3. Since 6.4,"
    " faults take only the lock of their VMA, not mmap_lock, and the fork holds mmap_lock alone. Commit"
    " fb49c455323f has fork lock every VMA. Here it does not.",
    "fork / first fault in another thread",
    "anon_vma",
    (
        Turn(
            0,
            "change mapcount",
            "The fork has copied V2: the VMA was linked into the trees first, and then its entry was copied.",
        ),
        Turn(
            0,
            "read vma->anon_vma: V3",
            "Then V3. It asks whether V3 has an anon_vma. No: it never had a page, so there is nothing to link.",
        ),
        Turn(
            1,
            "",
            "In this moment the other thread touches V3: it gets an anon_vma, A3, and a page, which points to it.",
        ),
        Turn(
            0,
            "read vma->anon_vma: V3",
            "The fork asks once more, this time whether there are entries to copy: is there an anon_vma? Now there is.",
        ),
        Turn(0, "", "So it copies the entry, into a VMA that is in no tree.", ask=True),
    ),
    "Process 2 maps a page of A3, and is not in the tree of A3. The walk finds process 1 alone. If the page is"
    " reclaimed, or moved, process 2 does not notice.",
    "found",
    FaultsDuringFork,
)

FRESH = RaceTour(
    "race-fresh-anon-vma",
    "A fresh anon_vma, published by a plain store (Linux 7.3-rc4)",
    "Process 1 has two adjacent VMAs that nobody has touched yet, and two of its threads fault in one each. The first"
    " makes an anon_vma, fills in its fields, and stores the pointer in its VMA; the other reads that pointer without a"
    " lock. In every interleaving this is right. But a CPU may let others see its stores in another order. Commit"
    " b6ac0b3f6013 makes the store a release; here it is a plain one.",
    "first faults of two neighbours, in two threads",
    "anon_vma",
    (
        Turn(
            0,
            "publish vma->anon_vma",
            "The first fault, in V3: it finds no neighbour with an anon_vma, makes A2, fills in its root, and stores"
            " the pointer to it in V3.",
        ),
        Turn(
            0,
            "gives back root rwsem",
            "It holds the lock of A2 while it does so. That helps only who takes the lock, too.",
        ),
        Turn(
            1,
            "neighbour's vma->anon_vma",
            "The other thread faults in V4, looks at its neighbour, and sees the pointer to A2. It has taken no lock"
            " that the first has had for writing.",
        ),
        Turn(1, "anon_vma->root", "To lock A2 it reads which anon_vma is the root.", old=True),
    ),
    "For this CPU the field still holds what was there before: the store of the pointer came first.",
    "first fault above reads root before it is initialised",
    without="publish vma->anon_vma",
)

RACES = (MIGRATION, FORK, MREMAP_LOST, MREMAP_RETRY, DESTINATION, LOCKS, FIRST_FAULTS, FORK_FAULT, FRESH)
