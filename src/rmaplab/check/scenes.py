# SPDX-License-Identifier: GPL-2.0-or-later
"""Scenarios with a start of their own: no user of the reverse map, or one that comes by its folio in another way.

Process 1 has one page at HOME; a scene does the rest of the setting up, and says what runs on each CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from rmaplab.check.world import AWAY, HOME, Obligation, World
from rmaplab.mm.abi import (
    MADV_WILLNEED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_EXEC,
    PROT_READ,
)
from rmaplab.mm.gup_fast import pin_fast, write_protect
from rmaplab.mm.ksm_node import StableNode, get_folio, migrate
from rmaplab.mm.page_idle import clear_references
from rmaplab.mm.pagetable import LEAF_SIZE, PTE_ANON, PTE_EXCLUSIVE, PTE_SHIFT
from rmaplab.mm.swap import get_cached
from rmaplab.mm.system import SwapSlot
from rmaplab.mm.vma_lock import Area, Space, VmaLocks
from rmaplab.sync.interleave import Execution
from rmaplab.trace.script import PAGE, READ_WRITE, Process

Check = Callable[[], None] | None  # what has to be true at the end, besides the obligations of all scenarios
_EXCLUSIVE: Final = PTE_ANON | PTE_EXCLUSIVE


class Scene(NamedTuple):
    """`begin` does the rest of the setting up, and adds the tasks.  `huge`: faults may allocate folios of 2 MiB."""

    begin: Callable[[World, Process, Execution], Check]
    huge: bool = False


def _fork(process: Process) -> None:
    process.fork(pid=2)


def _mmap(process: Process) -> None:
    process.mmap(PAGE, at=AWAY)


def _mremap_and_keep(process: Process) -> None:
    process.mremap(HOME, PAGE, to=AWAY, flags=MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP)


def _munmap(process: Process) -> None:
    process.munmap(HOME, PAGE)


def _idle(world: World, pfn: int) -> None:
    clear_references(world.machine, pfn)


def _protect(process: Process, addr: int, rights: int) -> None:
    process.mprotect(addr, PAGE, rights)


def _fork_and_first_fault(world: World, process: Process, execution: Execution) -> Check:
    process.mmap(PAGE, at=AWAY)
    execution.add("fork", lambda: _fork(process))
    execution.add("first fault", lambda: process.write(AWAY))
    return None


def _first_faults_of_neighbours(world: World, process: Process, execution: Execution) -> Check:
    process.mmap(2 * PAGE, at=AWAY)
    process.mprotect(AWAY, PAGE, READ_WRITE | PROT_EXEC)
    execution.add("first fault below", lambda: process.write(AWAY))
    execution.add("first fault above", lambda: process.write(AWAY + PAGE))
    return None


def _first_faults_of_one_huge_entry(world: World, process: Process, execution: Execution) -> Check:
    process.mmap(LEAF_SIZE, at=AWAY)
    execution.add("write", lambda: process.write(AWAY))
    execution.add("read", lambda: process.read(AWAY + PAGE))
    return None


def _fault_in_what_is_mapped(world: World, process: Process, execution: Execution) -> Check:
    execution.add("mmap", partial(_mmap, process))
    execution.add("fault", lambda: process.write(AWAY))
    return None


def _never_forked(world: World, process: Process) -> None:
    """The folio is of a VMA of two pages that nobody has forked."""
    process.fork(pid=2)
    process.mmap(2 * PAGE, at=AWAY)
    process.write(AWAY, 2 * PAGE)
    world.addr = AWAY
    world.isolate()


def _split_before_any_fork(world: World, process: Process, execution: Execution) -> Check:
    _never_forked(world, process)
    execution.add("migrate", world.migrate)
    execution.add("mprotect", partial(_protect, process, AWAY, PROT_READ))
    return None


def _merge_before_any_fork(world: World, process: Process, execution: Execution) -> Check:
    _never_forked(world, process)
    process.mprotect(AWAY + PAGE, PAGE, PROT_READ)
    execution.add("migrate", world.migrate)
    execution.add("mprotect", partial(_protect, process, AWAY + PAGE, READ_WRITE))
    return None


def _found_by_number(world: World, process: Process, execution: Execution) -> Check:
    """The page goes, and another process gets it, while somebody comes by its number."""
    other = world.spawn(2)
    other.mmap(PAGE, at=AWAY)
    pfn = world.mm(1).page_table.get(HOME) >> PTE_SHIFT
    world.machine.refs.watch(pfn)
    execution.add("page_idle", partial(_idle, world, pfn))
    execution.add("munmap", partial(_munmap, process))
    execution.add("first fault", lambda: other.write(AWAY))
    return None


def _pinned_without_lock(world: World, process: Process, execution: Execution) -> Check:
    """Reclaim takes a page that somebody pins meanwhile."""
    machine = world.machine
    mm = world.mm(1)
    pfn = mm.page_table.get(HOME) >> PTE_SHIFT
    machine.refs.watch(pfn)
    machine.get_folio(pfn)
    world.head = pfn

    def pin() -> None:
        world.pinned = pin_fast(machine, mm.page_table, HOME)

    def check() -> None:
        entry = mm.page_table.get(HOME)
        if world.pinned and (entry >> PTE_SHIFT != pfn or entry & _EXCLUSIVE != _EXCLUSIVE):
            raise Obligation(f"pinned: page {pfn} is pinned, and not exclusive any more", [(mm.id, HOME)])

    execution.add("gup_fast", pin)
    execution.add("reclaim", world.reclaim)
    return check


def _found_in_swap_cache(world: World, process: Process, execution: Execution) -> Check:
    """The page leaves the swap cache and is another process's, while somebody finds it there."""
    machine = world.machine
    process.swap_out(HOME)
    process.madvise(HOME, PAGE, MADV_WILLNEED)
    other = world.spawn(2)
    other.mmap(PAGE, at=AWAY)
    [slot] = machine.swap.values()
    machine.refs.watch(slot.cached_pfn)
    execution.add("swap_cache_get_folio", partial(_look_in_swap_cache, world, slot))
    execution.add("munmap", partial(_munmap, process))
    execution.add("first fault", lambda: other.write(AWAY))
    return None


def _look_in_swap_cache(world: World, slot: SwapSlot) -> None:
    pfn = get_cached(world.machine, slot)
    if pfn:
        if world.mm(2).page_table.get(AWAY) >> PTE_SHIFT == pfn:
            raise Obligation(f"found: page {pfn}, which was found in the swap cache, is another process's", [])
        world.machine.put_folio(pfn)


def _stable_node(world: World, process: Process, execution: Execution) -> Check:
    """A page of KSM migrates while ksmd comes by it through its stable node."""
    refs = world.machine.refs
    old, new = 1, 2
    refs.watch(old)
    refs.watch(new)
    node = StableNode(old)
    refs.pages[old].mapping = node

    def check() -> None:
        if node.removed:
            raise Obligation("found: the stable node was removed, and its page is KSM's still", [])

    execution.add("ksmd", partial(_ksmd, world, node))
    execution.add("migrate", partial(migrate, refs, node, new))
    return check


def _ksmd(world: World, node: StableNode) -> None:
    get_folio(world.machine.refs, node)


def _fault_under_vma_lock(locks: VmaLocks, mm: Space, addr: int) -> None:
    """What a fault does that does not take mmap_lock."""
    vma = locks.lock_vma_under_rcu(mm, addr)
    if vma is not None:
        if locks.start_of(vma) != addr or vma.vm_mm is not mm:
            raise Obligation("locked: the VMA that was locked is not the one that was looked for", [])
        locks.end_read(vma, mm)


def _vma_changes(world: World, process: Process, execution: Execution) -> Check:
    """A VMA begins elsewhere while a fault locks it."""
    locks = VmaLocks(execution)
    mm = Space()
    mm.vma = vma = Area(mm, HOME)

    def shrink() -> None:
        locks.begin_write(mm)
        locks.start_write(vma)
        locks.move_start(vma, HOME + PAGE)
        locks.end_write(mm)

    execution.add("lock_vma_under_rcu", partial(_fault_under_vma_lock, locks, mm, HOME))
    execution.add("munmap of its beginning", shrink)
    return None


def _vma_goes(locks: VmaLocks, mm: Space, vma: Area) -> None:
    locks.begin_write(mm)
    locks.start_write(vma)
    locks.unlink(vma)
    locks.end_write(mm)


def _vma_goes_to(locks: VmaLocks, mm: Space, vma: Area, other: Space, exits: bool) -> None:
    """Its memory is a VMA of `other` at once, which `exits` then."""
    _vma_goes(locks, mm, vma)
    locks.use_again(vma, other, AWAY)
    if exits:
        _vma_goes(locks, other, vma)
        locks.drop(other)


def _vma_used_again(world: World, process: Process, execution: Execution) -> Check:
    """A VMA goes while a fault locks it, and another process has its memory for one of its own at once."""
    _lock_what_goes(world, execution, "munmap, and mmap of another", exits=False)
    return None


def _vma_used_again_by_one_that_exits(world: World, process: Process, execution: Execution) -> Check:
    """The same, and the other process exits while the fault has the VMA."""
    _lock_what_goes(world, execution, "munmap, mmap of another, and its exit", exits=True)
    return None


def _lock_what_goes(world: World, execution: Execution, name: str, exits: bool) -> None:
    locks = world.machine.vma_locks(execution)
    mm, other = Space(), Space()
    mm.vma = vma = Area(mm, HOME)
    execution.add("lock_vma_under_rcu", partial(_fault_under_vma_lock, locks, mm, HOME))
    execution.add(name, partial(_vma_goes_to, locks, mm, vma, other, exits))


def _pinned_to_read(world: World, process: Process, execution: Execution) -> Check:
    """KSM makes a page shared that somebody pins to read meanwhile; the entry looks the same before and after."""
    process.mprotect(HOME, PAGE, PROT_READ)
    machine = world.machine
    page_table = world.mm(1).page_table
    pfn = page_table.get(HOME) >> PTE_SHIFT
    machine.refs.watch(pfn)

    def pin() -> None:
        world.pinned = pin_fast(machine, page_table, HOME, write=False)

    def check() -> None:
        if world.pinned and not machine.refs.pages[pfn].exclusive:
            raise Obligation(f"pinned: page {pfn} is pinned, and not exclusive any more", [(1, HOME)])

    execution.add("gup_fast to read", pin)
    execution.add("write_protect_page", partial(write_protect, machine.refs, page_table, HOME))
    return check


def _moves_and_keeps_the_source(world: World, process: Process, execution: Execution) -> Check:
    """What was a prepared VMA is empty, and not prepared (dontunmap_complete()), when somebody writes to it."""
    execution.add("mremap that keeps its source", partial(_mremap_and_keep, process))
    execution.add("write", lambda: process.write(HOME))
    return None


SCENES: Final[dict[str, Scene]] = {
    "fork / first fault in another thread": Scene(_fork_and_first_fault),
    "first fault below / first fault above": Scene(_first_faults_of_neighbours),
    "write to 2 MiB / read of 2 MiB": Scene(_first_faults_of_one_huge_entry, huge=True),
    "mmap / fault in another thread": Scene(_fault_in_what_is_mapped),
    "mremap that keeps its source / write": Scene(_moves_and_keeps_the_source),
    "migrate / mprotect that splits, before any fork": Scene(_split_before_any_fork),
    "migrate / mprotect that merges, before any fork": Scene(_merge_before_any_fork),
    "page_idle / munmap + first fault": Scene(_found_by_number),
    "swap_cache_get_folio / munmap + first fault": Scene(_found_in_swap_cache),
    "gup_fast / reclaim": Scene(_pinned_without_lock),
    "gup_fast to read / write_protect_page": Scene(_pinned_to_read),
    "ksmd / migrate": Scene(_stable_node),
    "lock_vma_under_rcu / munmap of its beginning": Scene(_vma_changes),
    "lock_vma_under_rcu / munmap, and mmap of another": Scene(_vma_used_again),
    "lock_vma_under_rcu / munmap, mmap of another, and its exit": Scene(_vma_used_again_by_one_that_exits),
}
