# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenarios: operations on a folio on other CPUs during a walk of its mappings.

A scenario is a *user* of the reverse map (docs/kernels/rules.md, section 5: a look for references, an unmapping, a
migration, the restoring half of one) against one or two *operations*, each on a CPU of its own.  The world is as small
as it can be: process 1 has one page at HOME, and process 2 was forked from it, unless an operation needs another
start.  The user begins with a reference to the folio, as if it had isolated it from an LRU list.

Obligations are checked when all CPUs have finished (obligations.py); throughout, there is no deadlock, no use after
free, no release of a lock by a task that does not hold it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Final

from rmaplab.check.scenes import SCENES
from rmaplab.check.world import AWAY, BARE, BEYOND, HOME, World
from rmaplab.mm.abi import MADV_DONTNEED, MADV_MERGEABLE, PROT_READ
from rmaplab.mm.folio import MAX_ORDER
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import LEAF_SIZE, PTE_SHIFT
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.sync.interleave import Execution, Scenario
from rmaplab.trace.script import PAGE, READ_WRITE, Process

_MOVED: Final = BARE._replace(stack=0x7FFC6F8D3000)


class Operation:
    """An operation of process `who`: `prepare` sets the world up for it, `body` performs it.  `huge`: in the world
    whose folio has 2 MiB."""

    def __init__(
        self,
        name: str,
        who: int,
        prepare: Callable[[World], None],
        body: Callable[[Process], object],
        huge: bool = False,
    ) -> None:
        self.name: Final = name
        self.who: Final = who
        self.prepare: Final = prepare
        self.body: Final = body
        self.huge: Final = huge

    def task(self, world: World) -> Callable[[], object]:
        """What runs on its CPU."""
        return partial(self.body, world.process(self.who))


def _nothing(world: World) -> None:
    """The operation needs no preparation."""


def _swapped_and_back(world: World) -> None:
    """The folio is in swap for process 2, and back for process 1."""
    world.process(1).swap_out(HOME)
    world.process(1).read(HOME)


def _moved_away(world: World) -> None:
    world.process(1).mremap(HOME, PAGE, to=AWAY)
    world.addr = AWAY


def _second_page_moved_away(world: World) -> None:
    """HOME has two pages, of which the second, which the folio is, was moved away."""
    world.process(1).write(HOME + PAGE)
    world.process(1).mremap(HOME + PAGE, PAGE, to=AWAY)
    world.addr = AWAY


def _something_away(world: World) -> None:
    _first_fault(world.process(1))


def _merged_by_ksm(world: World) -> None:
    """Processes 1 and 2 each had a copy of their own, which KSM made one."""
    one, other = world.process(1), world.process(2)
    other.write(HOME)
    one.write(HOME)
    for process in (one, other):
        process.madvise(HOME, PAGE, MADV_MERGEABLE)
    one.ksm(HOME, other, HOME)
    if (world.mm(1).page_table.get(HOME) ^ world.mm(2).page_table.get(HOME)) >> PTE_SHIFT:
        raise AssertionError("KSM did not merge the pages of the scenario")


def _merged_by_ksm_and_forked(world: World) -> None:
    _merged_by_ksm(world)
    world.process(1).fork(pid=3)


def _never_shared(world: World) -> None:
    """The folio is one that nobody forked yet, with another beside it."""
    world.process(1).mmap(2 * PAGE, at=AWAY)
    world.process(1).write(AWAY, 2 * PAGE)
    world.addr = AWAY


def _may_be_moved(world: World) -> None:
    """The same, with room for it elsewhere."""
    _never_shared(world)
    world.process(1).mmap(2 * PAGE, at=BEYOND)
    world.process(1).write(BEYOND)


def _child_alone(world: World) -> None:
    world.process(1).munmap(HOME, 2 * PAGE)


def _protected(world: World) -> None:
    world.process(1).mprotect(HOME, PAGE, PROT_READ)


def _first_fault(process: Process) -> None:
    process.mmap(PAGE, at=AWAY)
    process.write(AWAY)


def _given_up(world: World) -> None:
    """Process 2 has a prepared VMA at HOME, and no page."""
    _give_up(world.process(2))


def _give_up(process: Process) -> None:
    process.madvise(HOME, 2 * PAGE, MADV_DONTNEED)


def _there_and_back(process: Process) -> None:
    process.mremap(HOME, PAGE, to=AWAY)
    process.mremap(AWAY, PAGE, to=HOME)


def _arguments_copied(world: World) -> None:
    """A program has its arguments on a stack that has still to move to its place."""
    world.program = world.machine.begin_exec(_MOVED.stack, _MOVED.length, _MOVED.linked)
    world.addr = _MOVED.linked


def _execute(process: Process) -> None:
    world = process.world
    assert isinstance(world, World) and world.program is not None
    world.machine.end_exec(process.pid, world.program, _MOVED.stack, _MOVED.length, _MOVED.heap)


def _huge_alone(world: World) -> None:
    world.process(1).munmap(HOME, LEAF_SIZE)


def _huge_moved_away(world: World) -> None:
    world.process(1).mremap(HOME, LEAF_SIZE, to=AWAY)
    world.addr = AWAY


def _huge_first_fault(process: Process) -> None:
    process.mmap(LEAF_SIZE, at=AWAY)
    process.write(AWAY)


# On a folio of 2 MiB, which one entry maps in processes 1 and 2.
_HUGE: Final = (
    Operation("first fault of 2 MiB", 2, _nothing, _huge_first_fault, True),
    Operation("copy of a page of 2 MiB", 2, _nothing, lambda p: p.write(HOME), True),
    Operation("reuse of 2 MiB", 2, _huge_alone, lambda p: p.write(HOME), True),
    Operation("fork of 2 MiB", 1, _nothing, lambda p: p.fork(pid=3), True),
    Operation("fork with the child's 2 MiB", 2, _nothing, lambda p: p.fork(pid=5), True),
    Operation("exit with 2 MiB", 1, _nothing, Process.exit, True),
    Operation("exit with the child's 2 MiB", 2, _nothing, Process.exit, True),
    Operation("munmap of 2 MiB", 1, _nothing, lambda p: p.munmap(HOME, LEAF_SIZE), True),
    Operation("munmap of a page of 2 MiB", 1, _nothing, lambda p: p.munmap(HOME, PAGE), True),
    Operation("madvise of 2 MiB", 2, _nothing, lambda p: p.madvise(HOME, LEAF_SIZE, MADV_DONTNEED), True),
    Operation("mprotect of a page of 2 MiB", 1, _nothing, lambda p: p.mprotect(HOME, PAGE, PROT_READ), True),
    Operation("mremap of 2 MiB away", 1, _nothing, lambda p: p.mremap(HOME, LEAF_SIZE, to=AWAY), True),
    Operation("mremap of 2 MiB back", 1, _huge_moved_away, lambda p: p.mremap(AWAY, LEAF_SIZE, to=HOME), True),
    Operation("mremap of a page of 2 MiB", 2, _nothing, lambda p: p.mremap(HOME, PAGE, to=AWAY), True),
)  # fmt: skip

OPERATIONS: Final = {
    operation.name: operation
    for operation in (
        Operation("first fault", 2, _nothing, _first_fault),
        Operation("first fault beside it", 2, _nothing, lambda p: p.write(HOME + PAGE)),
        Operation("copy", 2, _nothing, lambda p: p.write(HOME)),
        Operation("reuse", 2, _child_alone, lambda p: p.write(HOME)),
        Operation("fork", 1, _nothing, lambda p: p.fork(pid=3)),
        Operation("first fork", 1, _never_shared, lambda p: p.fork(pid=3)),
        Operation("fork of the child", 2, _nothing, lambda p: p.fork(pid=5)),
        Operation("fork, and its child forks", 1, _nothing, lambda p: p.fork(pid=3).fork(pid=4)),
        Operation("exit of the parent", 1, _nothing, Process.exit),
        Operation("exit of the child", 2, _nothing, Process.exit),
        Operation("munmap", 1, _nothing, lambda p: p.munmap(HOME, PAGE)),
        Operation("munmap with its page table", 1, _nothing, lambda p: p.munmap(HOME, 2 * PAGE)),
        Operation("munmap before any fork", 1, _never_shared, lambda p: p.munmap(AWAY, 2 * PAGE)),
        Operation("munmap in the child", 2, _nothing, lambda p: p.munmap(HOME, PAGE)),
        Operation("munmap of all in the child", 2, _nothing, lambda p: p.munmap(HOME, 2 * PAGE)),
        Operation("mprotect that splits", 1, _nothing, lambda p: p.mprotect(HOME, PAGE, PROT_READ)),
        Operation("mprotect behind the page", 1, _nothing, lambda p: p.mprotect(HOME + PAGE, PAGE, PROT_READ)),
        Operation("mprotect that merges", 1, _protected, lambda p: p.mprotect(HOME, PAGE, READ_WRITE)),
        Operation("mremap away", 1, _nothing, lambda p: p.mremap(HOME, PAGE, to=AWAY)),
        Operation("mremap back", 1, _moved_away, lambda p: p.mremap(AWAY, PAGE, to=HOME)),
        Operation("mremap there and back", 1, _nothing, _there_and_back),
        Operation("mremap before any fork", 1, _never_shared, lambda p: p.mremap(AWAY, PAGE, to=BEYOND)),
        Operation("UFFDIO_MOVE", 1, _may_be_moved, lambda p: p.uffd_move(BEYOND + PAGE, AWAY, PAGE)),
        Operation("mremap onto another", 1, _something_away, lambda p: p.mremap(HOME, PAGE, to=AWAY)),
        Operation(
            "mremap that merges", 1, _second_page_moved_away, lambda p: p.mremap(AWAY, PAGE, to=HOME + PAGE)
        ),
        Operation("mremap in the child", 2, _nothing, lambda p: p.mremap(HOME, PAGE, to=AWAY)),
        Operation("swap-in", 2, _swapped_and_back, lambda p: p.write(HOME)),
        Operation("fault after madvise", 2, _given_up, lambda p: p.write(HOME)),
        Operation("madvise in the child", 2, _nothing, _give_up),
        Operation("exec", 3, _arguments_copied, _execute),
        Operation("KSM page unshared", 2, _merged_by_ksm, lambda p: p.write(HOME)),
        Operation("KSM page forked", 1, _merged_by_ksm, lambda p: p.fork(pid=3)),
        Operation("KSM page's exit of a sharer", 2, _merged_by_ksm, Process.exit),
        Operation("KSM page's exit of a copy", 3, _merged_by_ksm_and_forked, Process.exit),
        *_HUGE,
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

# Of those on 2 MiB, what leaves its entries whole: entries of their own go one by one, and each may meet the walk.
_HUGE_PAIRED: Final = (
    ("munmap of 2 MiB", "mremap of 2 MiB away"),
    ("fork with the child's 2 MiB",),
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
    ("munmap of all in the child", "madvise in the child"),
    ("mremap in the child", "madvise in the child"),
    ("fork of the child", "madvise in the child"),
)

def names() -> list[str]:
    """All scenarios: "user / operation" and "user / operation + operation"."""
    alone = [f"{user} / {operation}" for user in USERS for operation in OPERATIONS if _go_together(user, [operation])]
    two = [pair for firsts, seconds in (_PAIRED, _HUGE_PAIRED) for pair in product(firsts, seconds)] + [*_THREADS]
    pairs = [f"{user} / {one} + {other}" for user in USERS for one, other in two if _go_together(user, [one, other])]
    return alone + pairs + list(SCENES)


def _go_together(user: str, operations: list[str]) -> bool:
    """Neither KSM's pages nor those of a stack that exec moves are migrated, so there is nothing to restore.  Reclaim
    takes the 512 pages of a large folio one by one, which no search comes to the end of; and its world is another."""
    huge = {OPERATIONS[operation].huge for operation in operations}
    if user == "restore" and any(operation.startswith(("KSM", "exec")) for operation in operations):
        return False
    return len(huge) == 1 and not (user == "unmap" and True in huge)


def exists(name: str) -> bool:
    """Can a scenario of that name be put together?  A process that exits does nothing else; nothing is done twice."""
    user, _, rest = name.partition(" / ")
    words = rest.split(" + ")
    if user not in USERS or len({*words}) < len(words) or not all(word in OPERATIONS for word in words):
        return False
    if not _go_together(user, words):
        return False
    doers = [OPERATIONS[word].who for word in words]
    return not any("exit" in word and doers.count(OPERATIONS[word].who) > 1 for word in words)


def is_huge(name: str) -> bool:
    """Has the folio of this scenario 2 MiB?"""
    if name in SCENES:
        return SCENES[name].huge
    return OPERATIONS[name.partition(" / ")[2].split(" + ")[0]].huge


def scenario(name: str, design: type[ReverseMap], machine: type[Machine] = Machine) -> Scenario:
    """The scenario of that name, for one design.

    :raises KeyError: there is none
    """
    if name in SCENES:
        return _staged(name, design, machine)
    user, _, rest = name.partition(" / ")
    begin, act = USERS[user]
    operations = [OPERATIONS[part] for part in rest.split(" + ")]

    def build(execution: Execution) -> Callable[[], None]:
        huge = is_huge(name)
        execution.subject = world = World(execution, design, machine, MAX_ORDER if huge else 0)
        parent = world.spawn(1)
        parent.mmap(LEAF_SIZE if huge else 2 * PAGE, at=HOME)
        parent.write(HOME)
        parent.fork(pid=2)
        for operation in operations:
            operation.prepare(world)
        world.isolate()
        begin(world)
        world.events.clear()
        execution.add(user, partial(act, world))
        for operation in operations:
            execution.add(operation.name, operation.task(world))
        return world.check

    return Scenario(name, build)


def _staged(name: str, design: type[ReverseMap], machine: type[Machine]) -> Scenario:
    """One of SCENES: process 1 has a page at HOME, and the scene says the rest."""

    def build(execution: Execution) -> Callable[[], None]:
        execution.subject = world = World(execution, design, machine, MAX_ORDER if is_huge(name) else 0)
        process = world.spawn(1)
        process.mmap(PAGE, at=HOME)
        process.write(HOME)
        its = SCENES[name].begin(world, process, execution)
        world.events.clear()

        def check() -> None:
            if its is not None:
                its()
            world.check()

        return check

    return Scenario(name, build)
