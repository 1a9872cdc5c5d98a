# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenarios with a start of their own: no user of the reverse map, or one that comes by its folio in another way.

Process 1 has one page at HOME; a scene does the rest of the setting up, and says what runs on each CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from rmaplab.check.world import AWAY, HOME, World
from rmaplab.mm.abi import PROT_EXEC, PROT_READ
from rmaplab.mm.page_idle import clear_references
from rmaplab.mm.pagetable import PTE_SHIFT
from rmaplab.sync.interleave import Execution
from rmaplab.trace.script import PAGE, READ_WRITE, Process


def _fork(process: Process) -> None:
    process.fork(pid=2)


def _mmap(process: Process) -> None:
    process.mmap(PAGE, at=AWAY)


def _munmap(process: Process) -> None:
    process.munmap(HOME, PAGE)


def _idle(world: World, pfn: int) -> None:
    clear_references(world.machine, pfn)


def _protect(process: Process, addr: int, rights: int) -> None:
    process.mprotect(addr, PAGE, rights)


def _fork_and_first_fault(world: World, process: Process, execution: Execution) -> None:
    process.mmap(PAGE, at=AWAY)
    execution.add("fork", lambda: _fork(process))
    execution.add("first fault", lambda: process.write(AWAY))


def _first_faults_of_neighbours(world: World, process: Process, execution: Execution) -> None:
    process.mmap(2 * PAGE, at=AWAY)
    process.mprotect(AWAY, PAGE, READ_WRITE | PROT_EXEC)
    execution.add("first fault below", lambda: process.write(AWAY))
    execution.add("first fault above", lambda: process.write(AWAY + PAGE))


def _fault_in_what_is_mapped(world: World, process: Process, execution: Execution) -> None:
    execution.add("mmap", partial(_mmap, process))
    execution.add("fault", lambda: process.write(AWAY))


def _never_forked(world: World, process: Process) -> None:
    """The folio is of a VMA of two pages that nobody has forked."""
    process.fork(pid=2)
    process.mmap(2 * PAGE, at=AWAY)
    process.write(AWAY, 2 * PAGE)
    world.addr = AWAY
    world.isolate()


def _split_before_any_fork(world: World, process: Process, execution: Execution) -> None:
    _never_forked(world, process)
    execution.add("migrate", world.migrate)
    execution.add("mprotect", partial(_protect, process, AWAY, PROT_READ))


def _merge_before_any_fork(world: World, process: Process, execution: Execution) -> None:
    _never_forked(world, process)
    process.mprotect(AWAY + PAGE, PAGE, PROT_READ)
    execution.add("migrate", world.migrate)
    execution.add("mprotect", partial(_protect, process, AWAY + PAGE, READ_WRITE))


def _found_by_number(world: World, process: Process, execution: Execution) -> None:
    """The page goes, and another process gets it, while somebody comes by its number."""
    other = world.spawn(2)
    other.mmap(PAGE, at=AWAY)
    pfn = world.mm(1).page_table.get(HOME) >> PTE_SHIFT
    world.machine.refs.watch(pfn)
    execution.add("page_idle", partial(_idle, world, pfn))
    execution.add("munmap", partial(_munmap, process))
    execution.add("first fault", lambda: other.write(AWAY))


SCENES: Final[dict[str, Callable[[World, Process, Execution], None]]] = {
    "fork / first fault in another thread": _fork_and_first_fault,
    "first fault below / first fault above": _first_faults_of_neighbours,
    "mmap / fault in another thread": _fault_in_what_is_mapped,
    "migrate / mprotect that splits, before any fork": _split_before_any_fork,
    "migrate / mprotect that merges, before any fork": _merge_before_any_fork,
    "page_idle / munmap + first fault": _found_by_number,
}
