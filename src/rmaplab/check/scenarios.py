# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenarios: operations on a folio on other CPUs during a walk of its mappings.

A scenario is a *user* of the reverse map (docs/kernels/rules.md, section 5: a look for references, an unmapping, a
migration, the restoring half of one) against one or two *operations*, each on a CPU of its own.  The world is as small
as it can be: process 1 has one page at HOME, and process 2 was forked from it, unless an operation needs another
start.  The user begins with a reference to the folio, as if it had isolated it from an LRU list.

Obligations, checked when all CPUs have finished
- restored: no process waits for a migration entry that no task will replace.
- counted: each page's mapcount is the number of entries that map it, and no entry maps a free page.  A walk that
  missed a mapping has left the folio mapped, and its caller has given up.
- found: at rest, the design finds every mapping of every folio.
- leaked: all allocated objects can be reached, and reference counts match the references: a walker that drops the
  last reference to an object frees it.
- throughout: no deadlock, no use after free, no release of a lock by a task that does not hold it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np

from rmaplab.check.truth import leaks
from rmaplab.mm.abi import (
    MADV_DONTNEED,
    MADV_MERGEABLE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
)
from rmaplab.mm.machine import Machine
from rmaplab.mm.migrate import migrate_folio, move, unmap
from rmaplab.mm.pagetable import LEAF_SHIFT, PTE_ANON, PTE_MIGRATION, PTE_SHIFT, PTE_SWAP
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.mm.reverse_map import ReverseMap, miscounted
from rmaplab.mm.vma import MM, PAGE_SHIFT, PAGE_SIZE
from rmaplab.mm.vmscan import referenced_folio, swap_out_folio
from rmaplab.sync.interleave import Execution, Scenario

HOME: Final = 0x10000000
AWAY: Final = 0x20000000
BEYOND: Final = 0x30000000
_RW: Final = PROT_READ | PROT_WRITE
_MOVE: Final = MREMAP_MAYMOVE | MREMAP_FIXED


class Obligation(AssertionError):
    """An obligation that was broken.

    places: (mm id, address) of the entries by which it shows
    """

    def __init__(self, words: str, places: list[tuple[int, int]]) -> None:
        super().__init__(words)
        self.places: Final = places


class World:
    """The machine of a scenario, and the folio that it is about."""

    def __init__(
        self, execution: Execution | None, design: type[ReverseMap], machine: type[Machine] = Machine
    ) -> None:
        self.machine: Final = machine(PROFILES[REFERENCE], [design], scheduler=execution)
        self.head = 0
        self.addr = HOME
        self._made = 0

    def mm(self, pid: int) -> MM:
        return self.machine.mm_of(pid)

    def start(self, pid: int) -> MM:
        """A process with nothing mapped."""
        mm = self.machine.exec(pid, 0x7FFFFFFF0000, PAGE_SIZE, 0x7FFFFFFF0000, 0)
        self.machine.munmap(mm, 0x7FFFFFFF0000, PAGE_SIZE)
        return mm

    def map(self, pid: int, addr: int, pages: int = 1) -> None:
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
        self.machine.mmap(self.mm(pid), addr, pages * PAGE_SIZE, _RW, flags, None, 0)

    def write(self, pid: int, addr: int, pages: int = 1) -> None:
        self.machine.fault_range(self.mm(pid), addr, pages, True)

    def move(self, pid: int, source: int, target: int, pages: int = 1) -> None:
        self.machine.mremap(self.mm(pid), source, pages * PAGE_SIZE, pages * PAGE_SIZE, _MOVE, target)

    def unmap(self, pid: int, addr: int, pages: int = 1) -> None:
        self.machine.munmap(self.mm(pid), addr, pages * PAGE_SIZE)

    def fork(self, pid: int, child: int) -> None:
        self.machine.fork(pid, child)

    def protect(self, pid: int, addr: int, prot: int, pages: int = 1) -> None:
        self.machine.mprotect(self.mm(pid), addr, pages * PAGE_SIZE, prot)

    def isolate(self) -> None:
        """Take a reference to the folio at `addr` of process 1, or of process 2 if 1 has none."""
        for pid in (1, 2):
            if pid in self.machine.processes:
                entry = self.mm(pid).page_table.get(self.addr)
                if entry & PTE_ANON:
                    self.head = entry >> PTE_SHIFT
                    self.machine.get_folio(self.head)
                    return
        raise AssertionError("the scenario has no folio to look for")

    # What users do, each in one task

    def look(self) -> None:
        referenced_folio(self.machine, self.head)

    def reclaim(self) -> None:
        swap_out_folio(self.machine, self.head)

    def migrate(self) -> None:
        migrate_folio(self.machine, self.head)

    def begin_migration(self) -> None:
        self.machine.leader.hold(self.head)
        self._made = unmap(self.machine, self.head)

    def finish_migration(self) -> None:
        machine = self.machine
        machine.lock_folio(self.head)
        move(machine, self.head, self._made)
        machine.leader.unhold(self.head)
        machine.unlock_folio(self.head)
        machine.put_folio(self.head)

    def check(self) -> None:
        """The obligations."""
        machine = self.machine
        machine.reap()
        maps: dict[int, list[tuple[MM, int]]] = {}
        waiting: list[tuple[MM, int]] = []
        swapped = 0
        for mm in machine.mms.values():
            for number, leaf in mm.page_table.leaves.items():
                for i in np.flatnonzero(leaf.v).tolist():
                    entry: int = leaf.m[i]
                    addr = (number << LEAF_SHIFT) + (i << PAGE_SHIFT)
                    if entry & PTE_MIGRATION:
                        waiting.append((mm, addr))
                    if entry & PTE_SWAP:
                        swapped += 1
                    if entry & PTE_ANON:
                        maps.setdefault(entry >> PTE_SHIFT, []).append((mm, addr))
        if waiting:
            mm, addr = waiting[0]
            raise Obligation(
                f"restored: {_place(mm, addr)} waits for page {mm.page_table.get(addr) >> PTE_SHIFT} for ever:"
                " its migration entry was not found",
                [(mm.id, addr) for mm, addr in waiting],
            )
        for pfn, places in maps.items():
            where = [(mm.id, addr) for mm, addr in places]
            if machine.folios.order.m[pfn] < 0:
                raise Obligation(f"counted: page {pfn} is free, and {_place(*places[0])} maps it", where)
            mapcount: int = machine.folios.mapcount.m[pfn]
            if mapcount != len(places):
                raise Obligation(f"counted: {len(places)} entries map page {pfn}, whose mapcount is {mapcount}", where)
            seen = {(vma.mm.id, addr) for vma, addr in machine.leader.walk(pfn)}
            for mm, addr in places:
                if (mm.id, addr) not in seen:
                    raise Obligation(
                        f"found: {_place(mm, addr)} maps page {pfn}, but the walk never visits it", [(mm.id, addr)]
                    )
        said = [sentence for sentence, _ in leaks(machine)]
        miscounted(said, "pages in use", -1, machine.folios.in_use, len(maps.keys() | machine.slot_of.keys()))
        miscounted(said, "references to swap", -1, sum(slot.count for slot in machine.swap.values()), swapped)
        if said:
            raise Obligation(f"leaked: {said[0]}", [])


def _place(mm: MM, addr: int) -> str:
    return f"address {addr:#x} of mm {mm.id}"


class Operation:
    """One thing that can happen: `prepare` brings the world about, `body` does it."""

    def __init__(
        self, name: str, who: int, prepare: Callable[[World], None], body: Callable[[World], None]
    ) -> None:
        self.name: Final = name
        self.who: Final = who  # the process that does it
        self.prepare: Final = prepare
        self.body: Final = body


def _nothing(world: World) -> None:
    """The world is as it should be."""


def _swapped_and_back(world: World) -> None:
    """The folio is in swap for process 2, and back for process 1."""
    world.machine.swap_out(world.mm(1), HOME, 1)
    world.machine.fault(world.mm(1), HOME, False)


def _moved_away(world: World) -> None:
    world.move(1, HOME, AWAY)
    world.addr = AWAY


def _second_page_moved_away(world: World) -> None:
    """HOME has two pages, of which the second, which the folio is, was moved away."""
    world.write(1, HOME + PAGE_SIZE)
    world.move(1, HOME + PAGE_SIZE, AWAY)
    world.addr = AWAY


def _something_away(world: World) -> None:
    world.map(1, AWAY)
    world.write(1, AWAY)


def _merged_by_ksm(world: World) -> None:
    """Processes 1 and 2 each had a copy of their own, which KSM made one."""
    world.write(2, HOME)
    world.write(1, HOME)
    for pid in (1, 2):
        world.machine.madvise(world.mm(pid), HOME, PAGE_SIZE, MADV_MERGEABLE)
    if world.machine.ksm_merge(world.mm(1), HOME, world.mm(2), HOME):
        raise AssertionError("KSM did not merge the pages of the scenario")


def _merged_by_ksm_and_forked(world: World) -> None:
    _merged_by_ksm(world)
    world.machine.fork(1, 3)


def _never_shared(world: World) -> None:
    """The folio is one that nobody forked yet, with another beside it."""
    world.map(1, AWAY, 2)
    world.write(1, AWAY, 2)
    world.addr = AWAY


def _child_alone(world: World) -> None:
    world.machine.munmap(world.mm(1), HOME, 2 * PAGE_SIZE)


def _first_fault(world: World) -> None:
    world.map(2, AWAY)
    world.write(2, AWAY)


def _two_generations(world: World) -> None:
    world.machine.fork(1, 3)
    world.machine.fork(3, 4)


def _given_up(world: World) -> None:
    """Process 2 has a prepared VMA at HOME, and no page."""
    world.machine.madvise(world.mm(2), HOME, 2 * PAGE_SIZE, MADV_DONTNEED)


def _there_and_back(world: World) -> None:
    world.move(1, HOME, AWAY)
    world.move(1, AWAY, HOME)


OPERATIONS: Final = {
    operation.name: operation
    for operation in (
        Operation("first fault", 2, _nothing, _first_fault),
        Operation("first fault beside it", 2, _nothing, lambda w: w.write(2, HOME + PAGE_SIZE)),
        Operation("copy", 2, _nothing, lambda w: w.write(2, HOME)),
        Operation("reuse", 2, _child_alone, lambda w: w.write(2, HOME)),
        Operation("fork", 1, _nothing, lambda w: w.fork(1, 3)),
        Operation("first fork", 1, _never_shared, lambda w: w.fork(1, 3)),
        Operation("fork of the child", 2, _nothing, lambda w: w.fork(2, 5)),
        Operation("fork, and its child forks", 1, _nothing, _two_generations),
        Operation("exit of the parent", 1, _nothing, lambda w: w.machine.exit(1)),
        Operation("exit of the child", 2, _nothing, lambda w: w.machine.exit(2)),
        Operation("munmap", 1, _nothing, lambda w: w.unmap(1, HOME)),
        Operation("munmap with its page table", 1, _nothing, lambda w: w.unmap(1, HOME, 2)),
        Operation("munmap before any fork", 1, _never_shared, lambda w: w.unmap(1, AWAY, 2)),
        Operation("munmap in the child", 2, _nothing, lambda w: w.unmap(2, HOME)),
        Operation("mprotect that splits", 1, _nothing, lambda w: w.protect(1, HOME, PROT_READ)),
        Operation(
            "mprotect that merges",
            1,
            lambda w: w.protect(1, HOME, PROT_READ),
            lambda w: w.protect(1, HOME, _RW),
        ),
        Operation("mremap away", 1, _nothing, lambda w: w.move(1, HOME, AWAY)),
        Operation("mremap back", 1, _moved_away, lambda w: w.move(1, AWAY, HOME)),
        Operation("mremap there and back", 1, _nothing, _there_and_back),
        Operation("mremap before any fork", 1, _never_shared, lambda w: w.move(1, AWAY, BEYOND)),
        Operation("mremap onto another", 1, _something_away, lambda w: w.move(1, HOME, AWAY)),
        Operation(
            "mremap that merges", 1, _second_page_moved_away, lambda w: w.move(1, AWAY, HOME + PAGE_SIZE)
        ),
        Operation("mremap in the child", 2, _nothing, lambda w: w.move(2, HOME, AWAY)),
        Operation("swap-in", 2, _swapped_and_back, lambda w: w.write(2, HOME)),
        Operation("fault after madvise", 2, _given_up, lambda w: w.write(2, HOME)),
        Operation("madvise in the child", 2, _nothing, _given_up),
        Operation("KSM page unshared", 2, _merged_by_ksm, lambda w: w.write(2, HOME)),
        Operation("KSM page forked", 1, _merged_by_ksm, lambda w: w.fork(1, 3)),
        Operation("KSM page's exit of a sharer", 2, _merged_by_ksm, lambda w: w.machine.exit(2)),
        Operation("KSM page's exit of a copy", 3, _merged_by_ksm_and_forked, lambda w: w.machine.exit(3)),
    )
}

USERS: Final[dict[str, tuple[Callable[[World], None], Callable[[World], None]]]] = {
    "referenced": (_nothing, World.look),
    "unmap": (_nothing, World.reclaim),
    "migrate": (_nothing, World.migrate),
    "restore": (World.begin_migration, World.finish_migration),
}

# Of each process, what changes most: any of the first against any of the second.  What is left out differs from what is
# here by what it does before and after.
_PAIRED: Final = (
    ("fork", "exit of the parent", "munmap", "mprotect that splits", "mremap away", "mremap back"),
    (
        "copy",
        "fork of the child",
        "exit of the child",
        "munmap in the child",
        "mremap in the child",
        "swap-in",
    ),
)

# Threads: operations of one process that do not wait for each other's mmap_lock.  A fault takes the lock of its VMA
# alone, and madvise() takes mmap_lock for reading.  So fork, which holds mmap_lock for writing, meets faults in VMAs
# that it has not locked yet (vma_start_write() in dup_mmap(), fb49c455323f).
_THREADS: Final = (
    ("copy", "fork of the child"),
    ("reuse", "fork of the child"),
    ("swap-in", "fork of the child"),
    ("fault after madvise", "fork of the child"),
    ("copy", "mremap in the child"),
    ("copy", "munmap in the child"),
    ("copy", "madvise in the child"),
)

# Interleavings are tried without a bound, but where a walk looks again after each of many changes: in one address space
# whose entries move twice, ...  There a CPU is taken away at most so many times.
_MOVES_TWICE: Final = ("mremap there and back", 3)
_MOVES_IN_A_PAIR: Final = 2  # ... and where entries move under a migration, while another operation is at it, too
_SERIALISED: Final = ("anon_vma",)  # designs whose lock keeps their walks apart from all that: no bound is needed


def names() -> list[str]:
    """All scenarios: "user / operation" and "user / operation + operation".  The machine does not migrate KSM's
    pages, so there is nothing to restore."""
    alone = [
        f"{user} / {operation}"
        for user in USERS
        for operation in OPERATIONS
        if not (user == "restore" and operation.startswith("KSM"))
    ]
    pairs = [f"{user} / {one} + {other}" for user in USERS for one in _PAIRED[0] for other in _PAIRED[1]]
    threads = [f"{user} / {one} + {other}" for user in USERS for one, other in _THREADS]
    return alone + pairs + threads


def exists(name: str) -> bool:
    """Can a scenario of that name be put together?  A process that exits does nothing else; nothing is done twice."""
    user, _, rest = name.partition(" / ")
    words = rest.split(" + ")
    if user not in USERS or len({*words}) < len(words) or not all(word in OPERATIONS for word in words):
        return False
    doers = [OPERATIONS[word].who for word in words]
    return not any("exit" in word and doers.count(OPERATIONS[word].who) > 1 for word in words)


def preemption_bound(name: str, design: str = "") -> int:
    """How often a CPU may be taken away in the scenario of that name; -1: as often as one likes."""
    user, _, rest = name.partition(" / ")
    if design in _SERIALISED or user == "referenced":
        return -1
    one, _, other = rest.partition(" + ")
    if one == _MOVES_TWICE[0]:
        return _MOVES_TWICE[1]
    return _MOVES_IN_A_PAIR if user != "unmap" and other and "mremap" in rest else -1


def scenario(name: str, design: type[ReverseMap], machine: type[Machine] = Machine) -> Scenario:
    """The scenario of that name, for one design.  Raises KeyError if there is none."""
    user, _, rest = name.partition(" / ")
    begin, act = USERS[user]
    operations = [OPERATIONS[part] for part in rest.split(" + ")]

    def build(execution: Execution) -> Callable[[], None]:
        world = World(execution, design, machine)
        world.start(1)
        world.map(1, HOME, 2)
        world.write(1, HOME)
        world.machine.fork(1, 2)
        for operation in operations:
            operation.prepare(world)
        world.isolate()
        begin(world)
        execution.add(user, partial(act, world))
        for operation in operations:
            execution.add(operation.name, partial(operation.body, world))
        execution.subject = world
        return world.check

    return Scenario(name, build)
