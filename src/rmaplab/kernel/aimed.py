# SPDX-License-Identifier: GPL-2.0-or-later
"""Small histories, each aimed at one rule: what random ones reach seldom is here by construction.

`rmaplab kernel compare` does them before the random ones, and tests/kernel/fixtures has what kernels answered.
Addresses and lengths are pages of one arena, but of the stack and the heap where that is said.  What a call returns is
for the kernel to say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rmaplab.kernel.driver import ORDINARY, Setting
from rmaplab.mm import abi
from rmaplab.trace.events import Event
from rmaplab.trace.script import PAGE, READ_WRITE, Layout, Process, Script

_ARENA: Final = 0x10_0000_0000
_LAYOUT: Final = Layout(0xF_0000_0000, 3 * PAGE, 0xF_0000_0000, 0x12_0000_0000)
_ARENA_ABOVE_STACK: Final = (_ARENA - _LAYOUT.stack) // PAGE
_RW: Final = READ_WRITE
_ANON: Final = abi.MAP_PRIVATE | abi.MAP_ANONYMOUS | abi.MAP_FIXED
_MOVE: Final = abi.MREMAP_MAYMOVE | abi.MREMAP_FIXED


def _stack(process: Process) -> Process:
    """Pages of the stack, counted from its lower end."""
    return process.in_pages(_LAYOUT.stack)


def _heap(process: Process) -> Process:
    return process.in_pages(_LAYOUT.heap)


def _another(process: Process) -> Process:
    """A process that no fork made."""
    another = Process(process.world, process.world.new_pid())
    another.exec()
    return another.in_pages(_ARENA)


def _merge_same(process: Process) -> None:
    """KSM scans all.  Pages that were written to are equal where their numbers are, modulo 4."""
    process.world.do(Event("ksm", process.pid, pid2=process.pid))


AIMED: Final[dict[str, Callable[[Process], None]]] = {}
SETTINGS: Final[dict[str, Setting]] = {}  # of those that need one


def _aimed(write: Callable[[Process], None]) -> Callable[[Process], None]:
    AIMED[write.__name__] = write
    return write


def _aimed_large(write: Callable[[Process], None]) -> Callable[[Process], None]:
    """With folios of up to 16 pages."""
    SETTINGS[write.__name__] = Setting(large_folios=4)
    return _aimed(write)


def _aimed_crowded(write: Callable[[Process], None]) -> Callable[[Process], None]:
    """With room for eight mappings, the stack among them."""
    SETTINGS[write.__name__] = Setting(mappings=8)
    return _aimed(write)


def setting(name: str) -> Setting:
    """What a guest is set to for it."""
    return SETTINGS.get(name, ORDINARY)


def history(name: str) -> list[Event]:
    """The events to ask for."""
    script = Script(_LAYOUT, abi.MAP_FIXED)
    AIMED[name](script.spawn().in_pages(_ARENA))
    return script.events


# Merges of a new mapping


@_aimed
def lower_takes_hole(p1: Process) -> None:
    p1.mmap(2, at=0)
    p1.write(0)
    p1.mmap(2, at=2)
    p1.write(3)


@_aimed
def upper_takes_hole(p1: Process) -> None:
    p1.mmap(2, at=2)
    p1.write(2)
    p1.mmap(2, at=0)
    p1.write(0)


@_aimed
def hole_joins_two(p1: Process) -> None:
    p1.mmap(1, at=0)
    p1.mmap(1, at=2)
    p1.mmap(1, at=1)


@_aimed
def hole_between_unprepared_and_prepared(p1: Process) -> None:
    p1.mmap(1, at=0)
    p1.warm(2, 1)
    p1.mmap(1, at=1)
    p1.write(0)


@_aimed
def hole_between_two_families(p1: Process) -> None:
    p1.warm(0, 1)
    p1.warm(2, 1)
    p1.warm(1, 1)


# Flags


@_aimed
def mapped_as_a_stack(p1: Process) -> None:
    p1.mmap(2, at=0, flags=_ANON | abi.MAP_STACK)


@_aimed
def unprepared_gives_back_what_it_reserved(p1: Process) -> None:
    p1.mmap(4, at=0)
    p1.mprotect(0, 1, abi.PROT_READ)
    p1.write(2)
    p1.mprotect(2, 1, abi.PROT_READ)


# Merges within what is mapped


@_aimed
def lower_takes_whole(p1: Process) -> None:
    p1.warm(0, 4)
    p1.mprotect(2, 2, abi.PROT_READ)
    p1.mprotect(2, 2, _RW)


@_aimed
def lower_takes_beginning(p1: Process) -> None:
    p1.warm(0, 4)
    p1.mprotect(0, 2, abi.PROT_READ)
    p1.mprotect(2, 1, abi.PROT_READ)


@_aimed
def upper_takes_end(p1: Process) -> None:
    p1.warm(0, 4)
    p1.mprotect(2, 2, abi.PROT_READ)
    p1.mprotect(1, 1, abi.PROT_READ)


@_aimed
def upper_takes_whole(p1: Process) -> None:
    p1.warm(0, 4)
    p1.mprotect(0, 2, abi.PROT_READ)
    p1.mprotect(0, 2, _RW)


@_aimed
def lower_takes_two(p1: Process) -> None:
    p1.warm(0, 6)
    p1.mprotect(2, 2, abi.PROT_READ)
    p1.mprotect(2, 2, _RW)


@_aimed
def lower_takes_two_and_their_chain(p1: Process) -> None:
    p1.mmap(1, at=0)
    p1.mmap(1, at=1, prot=abi.PROT_READ)
    p1.warm(2, 1)
    p1.mprotect(1, 1, _RW)
    p1.write(0)


@_aimed
def lower_unprepared_takes_prepared(p1: Process) -> None:
    p1.mmap(2, at=0, prot=_RW | abi.PROT_EXEC)
    p1.mmap(2, at=2)
    p1.write(2)
    p1.mprotect(2, 2, _RW | abi.PROT_EXEC)


@_aimed
def lower_prepared_takes_unprepared(p1: Process) -> None:
    p1.mmap(2, at=0)
    p1.write(0)
    p1.mmap(2, at=2, prot=_RW | abi.PROT_EXEC)
    p1.mprotect(2, 2, _RW)


@_aimed
def locked_and_unlocked(p1: Process) -> None:
    p1.mmap(4, at=0)
    p1.write(1)
    p1.mlock(1, 2)
    p1.munlock(1, 2)
    p1.mlock(0, 1)


# First faults


@_aimed
def neighbours_anon_vma(p1: Process) -> None:
    p1.mmap(2, at=0)
    p1.mmap(2, at=2, prot=_RW | abi.PROT_EXEC)
    p1.write(0)
    p1.write(2)
    p1.mprotect(2, 2, _RW)


@_aimed
def neighbour_in_child_is_not_singular(p1: Process) -> None:
    p1.mmap(2, at=0)
    p1.write(0)
    p1.mmap(2, at=2, prot=_RW | abi.PROT_EXEC)
    p2 = p1.fork()
    p2.write(2)
    p2.mprotect(2, 2, _RW)


# Forks


@_aimed
def child_copies(p1: Process) -> None:
    p1.warm(0, 3)
    p2 = p1.fork()
    p2.write(0)
    p1.write(1)


@_aimed
def last_mapper_takes_over(p1: Process) -> None:
    p1.warm(0, 2)
    p2 = p1.fork()
    p1.exit()
    p2.write(0)


@_aimed
def fork_exit_fork(p1: Process) -> None:
    p1.warm(0, 2)
    parent = p1
    for generation in range(2, 7):
        child = parent.fork()
        parent.exit()
        child.write(generation % 2)
        parent = child


@_aimed
def five_generations(p1: Process) -> None:
    p1.mmap(6, at=0)
    p1.write(0)
    family = [p1]
    for generation in range(1, 6):
        family.append(family[-1].fork())
        family[-1].write(generation)
    family[2].exit()
    family[3].exit()
    family[-1].fork().write(0, 6)


@_aimed
def grandchildren_of_a_root(p1: Process) -> None:
    p1.mmap(2, at=0)
    p1.write(0)
    p2 = p1.fork()
    p1.fork()
    p4 = p2.fork()
    p2.exit()
    p4.fork()
    p1.exit()


@_aimed
def not_for_children(p1: Process) -> None:
    p1.warm(0, 6)
    p1.madvise(0, 2, abi.MADV_DONTFORK)
    p1.madvise(4, 2, abi.MADV_WIPEONFORK)
    p2 = p1.fork()
    p2.write(4)


@_aimed
def shared_address_space(p1: Process) -> None:
    p1.mmap(2, at=0)
    p2 = p1.fork(abi.CLONE_VM)
    p2.write(0)
    p2.fork()
    p1.exit()
    p2.write(0)


@_aimed
def child_execs(p1: Process) -> None:
    p1.warm(0, 2)
    p2 = p1.fork()
    p2.exec()
    p1.write(0)


# Splits and unmaps


@_aimed
def hole_in_the_middle(p1: Process) -> None:
    p1.warm(0, 5)
    p2 = p1.fork()
    p1.munmap(2, 1)
    p1.write(1)
    p2.munmap(0, 1)


@_aimed
def mapped_over(p1: Process) -> None:
    p1.warm(0, 5)
    p1.mmap(2, at=1)
    p1.write(1)


# Moves


@_aimed
def there_and_back(p1: Process) -> None:
    p1.warm(0, 2)
    p1.mremap(0, 2, to=10)
    p2 = p1.fork()
    p1.mremap(10, 2, to=0)
    p2.mremap(10, 2, to=20)


@_aimed
def unfaulted_gets_fresh_page_offset(p1: Process) -> None:
    p1.mmap(2, at=0)
    p1.mremap(0, 2, to=10)
    p1.write(10)


@_aimed
def part_moves_home_beside_the_rest(p1: Process) -> None:
    p1.warm(0, 4)
    p1.mremap(1, 2, to=10)
    p1.mremap(10, 2, to=1)


@_aimed
def moved_beside_unfaulted(p1: Process) -> None:
    p1.mmap(4, at=0)
    p1.write(2, 2)
    p1.mremap(2, 2, to=10)
    p1.mmap(1, at=2, prot=abi.PROT_READ)
    p1.mremap(10, 2, to=4)


@_aimed
def moved_over_another(p1: Process) -> None:
    p1.warm(0, 3)
    p1.warm(10, 3)
    p1.fork()
    p1.mremap(0, 2, to=11)


@_aimed
def many_moved_at_once(p1: Process) -> None:
    p1.mmap(8, at=0)
    p1.write(0, 8)
    p1.mprotect(2, 2, abi.PROT_READ)
    p1.munmap(5, 1)
    p1.mmap(1, at=25)  # stays in the gap of what comes there
    p1.mremap(0, 8, to=20)
    p1.mmap(2, at=41)
    p1.mremap(40, 4, to=60)


@_aimed
def files_that_do_not_move_with_others(p1: Process) -> None:
    p1.mmap(2, at=0, file=0)
    p1.write(0)
    p1.mmap(2, at=2)
    p1.write(3)
    p1.mremap(0, 4, to=20)
    p1.mremap(0, 1, to=20)
    p1.munmap(4, 1)
    p1.mmap(2, at=30)
    p1.mmap(2, at=33, file=0)
    p1.mremap(30, 5, to=40)


@_aimed
def grows_and_shrinks(p1: Process) -> None:
    p1.warm(0, 2)
    p1.mremap(0, 2, 4, flags=0)
    p1.write(3)
    p1.mremap(0, 4, 1, flags=0)
    p1.mremap(0, 1, 3, to=10)


@_aimed
def moved_and_left_behind(p1: Process) -> None:
    p1.warm(0, 2)
    p1.mremap(0, 2, to=10, flags=_MOVE | abi.MREMAP_DONTUNMAP)
    p1.write(0)
    p1.mmap(2, at=20)
    p1.mremap(20, 2, to=22, flags=_MOVE | abi.MREMAP_DONTUNMAP)
    p1.write(20)


# Too many mappings


@_aimed_crowded
def room_for_one_more(p1: Process) -> None:
    for at in range(0, 10, 2):
        p1.warm(at, 1)
    p1.warm(20, 3)
    p1.munmap(21, 1)
    p1.mprotect(20, 1, abi.PROT_READ)
    p1.mmap(1, at=40)
    p1.mmap(1, at=42)
    p1.madvise(0, 1, abi.MADV_DONTFORK)
    p1.munmap(0, 3)
    p1.mprotect(4, 1, abi.PROT_READ)
    p1.mlock(20, 3)


@_aimed_crowded
def moves_with_little_room(p1: Process) -> None:
    p1.warm(0, 5)
    for at in (10, 12, 14):
        p1.mmap(1, at=at)
        p1.mremap(1, 3, to=30)
        p1.mremap(30, 3, to=1)
        p1.mremap(1, 1, to=20, flags=_MOVE | abi.MREMAP_DONTUNMAP)
        p1.munmap(20, 1)
        p1.mremap(0, 5, 4, flags=0)
        p1.mremap(0, 4, 5, flags=0)
    p1.mlock(0, 5)
    p1.mremap(1, 1, to=20, flags=_MOVE | abi.MREMAP_DONTUNMAP)


# Files


@_aimed
def private_file(p1: Process) -> None:
    p1.mmap(4, at=0, file=0, offset=7)
    p1.read(0, 2)
    p1.write(1, 2)
    p2 = p1.fork()
    p2.mremap(1, 2, to=10)
    p2.write(10)


@_aimed
def shared_memory(p1: Process) -> None:
    p1.mmap(3, at=0, flags=abi.MAP_SHARED | abi.MAP_ANONYMOUS | abi.MAP_FIXED)
    p1.write(0)
    p2 = p1.fork()
    p1.mremap(0, 0, 2, to=10)
    p1.read(10)
    p2.write(1)


# Stack and heap


@_aimed
def stack_is_cut_and_moved(p1: Process) -> None:
    _stack(p1).mprotect(30, 1, abi.PROT_READ)
    p1.fork()
    _stack(p1).mremap(31, 2, to=_ARENA_ABOVE_STACK)
    p1.write(0)


@_aimed
def stack_grows(p1: Process) -> None:
    _stack(p1).write(-3)
    p1.mmap(2, at=0, flags=_ANON | abi.MAP_GROWSDOWN)
    p1.write(-2)


@_aimed
def heap(p1: Process) -> None:
    _heap(p1).brk(3)
    _heap(p1).write(0, 2)
    p2 = p1.fork()
    _heap(p1).brk(5)
    _heap(p2).brk(1)


# Reclaim, migration, and what goes away


@_aimed
def swapped_and_forked(p1: Process) -> None:
    p1.warm(0, 3)
    p1.madvise(0, 3, abi.MADV_PAGEOUT)
    p1.read(0)
    p2 = p1.fork()
    p1.read(1)
    p2.write(1)
    p1.write(2)
    p2.read(2)


@_aimed
def migrated_while_shared(p1: Process) -> None:
    p1.warm(0, 3)
    p2 = p1.fork()
    p2.migrate(0, 3)
    p2.write(0)
    p1.migrate(0, 3)


@_aimed
def dropped(p1: Process) -> None:
    p1.warm(0, 4)
    p2 = p1.fork()
    p1.madvise(0, 2, abi.MADV_DONTNEED)
    p1.madvise(2, 2, abi.MADV_FREE)
    p1.read(0)
    p2.write(2)


@_aimed
def droppable(p1: Process) -> None:
    p1.mmap(4, at=0, flags=abi.MAP_DROPPABLE | abi.MAP_ANONYMOUS | abi.MAP_FIXED)
    p1.write(0, 2)
    p2 = p1.fork()
    p2.write(0)
    p1.mlock(0, 4)
    for advice in (abi.MADV_KEEPONFORK, abi.MADV_DODUMP, abi.MADV_MERGEABLE, abi.MADV_PAGEOUT):
        p1.madvise(0, 4, advice)
    p1.write(1)
    p1.mmap(2, at=10, flags=abi.MAP_DROPPABLE | abi.MAP_ANONYMOUS | abi.MAP_FIXED | abi.MAP_LOCKED)
    p1.mlockall(abi.MCL_FUTURE)
    p1.mmap(2, at=20, flags=abi.MAP_DROPPABLE | abi.MAP_ANONYMOUS | abi.MAP_FIXED)


@_aimed_large
def droppable_in_large_folios(p1: Process) -> None:
    p1.mmap(32, at=0, flags=abi.MAP_DROPPABLE | abi.MAP_ANONYMOUS | abi.MAP_FIXED)
    p1.write(0)
    p1.write(16, 16)
    p1.madvise(20, 4, abi.MADV_PAGEOUT)
    p1.madvise(0, 16, abi.MADV_PAGEOUT)


@_aimed
def populated(p1: Process) -> None:
    p1.mmap(4, at=0, flags=_ANON | abi.MAP_POPULATE)
    p1.mmap(4, at=10)
    p1.madvise(10, 2, abi.MADV_POPULATE_READ)
    p1.madvise(12, 2, abi.MADV_POPULATE_WRITE)


@_aimed
def populated_around_a_hole(p1: Process) -> None:
    p1.mmap(2, at=0)
    p1.mmap(2, at=4)
    p1.madvise(0, 6, abi.MADV_POPULATE_WRITE)
    p1.mmap(2, at=10)
    p1.madvise(8, 4, abi.MADV_POPULATE_READ)


@_aimed
def read_ahead_from_swap(p1: Process) -> None:
    p1.warm(0, 3)
    p1.madvise(0, 3, abi.MADV_PAGEOUT)
    p1.madvise(0, 2, abi.MADV_WILLNEED)
    p1.read(0)
    p1.write(1)
    p1.read(2)


@_aimed
def clean_page_becomes_writable_again(p1: Process) -> None:
    p1.warm(0, 2)
    p1.madvise(0, 1, abi.MADV_PAGEOUT)
    p1.read(0)
    p1.mprotect(0, 2, abi.PROT_READ)
    p1.mprotect(0, 2, _RW)


@_aimed
def freed_while_locked_elsewhere(p1: Process) -> None:
    p1.warm(0, 2)
    p1.mlock(0, 1)
    p2 = p1.fork()
    p2.madvise(0, 2, abi.MADV_FREE)
    p1.madvise(0, 2, abi.MADV_FREE)
    p1.munlock(0, 1)
    p2.exit()
    p1.madvise(0, 2, abi.MADV_PAGEOUT)


# KSM


@_aimed
def merged(p1: Process) -> None:
    p1.mmap(12, at=0)
    p1.write(0, 9)
    p1.madvise(0, 12, abi.MADV_MERGEABLE)
    _merge_same(p1)
    p1.write(4)
    p1.write(9, 2)
    _merge_same(p1)


@_aimed
def merged_and_forked(p1: Process) -> None:
    p1.warm(0, 8)
    p1.madvise(0, 8, abi.MADV_MERGEABLE)
    _merge_same(p1)
    p2 = p1.fork()
    p2.write(0)
    _merge_same(p1)
    p1.exit()
    p2.write(1)


@_aimed
def merged_while_shared(p1: Process) -> None:
    p1.warm(0, 8)
    p2 = p1.fork()
    p1.madvise(0, 8, abi.MADV_MERGEABLE)
    _merge_same(p1)
    p1.write(0)
    p2.madvise(0, 4, abi.MADV_MERGEABLE)
    _merge_same(p1)


@_aimed
def merged_across_processes(p1: Process) -> None:
    p2 = _another(p1)
    for process in (p1, p2):
        process.warm(0, 2)
        process.madvise(0, 2, abi.MADV_MERGEABLE)
    _merge_same(p1)
    p1.exit()
    p2.write(0)


@_aimed
def merged_and_found_nowhere(p1: Process) -> None:
    """Process 1 keeps a page of KSM's whose only places were process 2's: reclaim gives it room in swap, and no walk
    finds it."""
    p1.mmap(8, at=0)
    p1.write(0)
    p1.write(4)
    p1.mmap(2, at=20)
    p1.write(21)
    p1.madvise(20, 2, abi.MADV_MERGEABLE)  # ksmd has something to scan when process 2 is gone
    p2 = p1.fork()
    p2.madvise(0, 8, abi.MADV_MERGEABLE)
    _merge_same(p1)
    p2.exit()
    _merge_same(p1)
    p1.madvise(0, 8, abi.MADV_PAGEOUT)
    p1.read(0, 5)


@_aimed
def merged_and_given_back(p1: Process) -> None:
    p1.warm(0, 12)
    p1.madvise(0, 12, abi.MADV_MERGEABLE)
    _merge_same(p1)
    p1.madvise(0, 4, abi.MADV_UNMERGEABLE)
    p1.write(0)
    p1.mremap(8, 4, to=20)
    p1.write(21)


@_aimed
def merged_and_not_accessible(p1: Process) -> None:
    p1.warm(0, 8)
    p1.madvise(0, 8, abi.MADV_MERGEABLE)
    _merge_same(p1)
    p1.mprotect(0, 2, abi.PROT_NONE)
    p1.madvise(0, 1, abi.MADV_UNMERGEABLE)
    p1.mremap(1, 1, to=20)
    p2 = p1.fork()
    p2.mprotect(20, 1, _RW)
    p2.write(20)


@_aimed
def merged_where_writes_are_seen(p1: Process) -> None:
    """A new program's stack is the one VMA whose first writes are tracked (no VM_SOFTDIRTY)."""
    for page in (2, 6, 10):
        _stack(p1).write(page)
    _stack(p1).madvise(0, 12, abi.MADV_MERGEABLE)
    _merge_same(p1)
    _stack(p1).madvise(0, 12, abi.MADV_UNMERGEABLE)
    _stack(p1).mprotect(0, 12, abi.PROT_READ)
    _stack(p1).mprotect(0, 12, _RW)
    _stack(p1).write(2)


@_aimed
def freed_while_shared_or_merged(p1: Process) -> None:
    p1.mmap(8, at=0)
    p1.write(0, 6)
    p1.madvise(0, 6, abi.MADV_MERGEABLE)
    _merge_same(p1)
    p1.write(4)
    p2 = p1.fork()
    p1.madvise(0, 6, abi.MADV_FREE)
    p2.madvise(0, 6, abi.MADV_FREE)
    p1.madvise(0, 6, abi.MADV_PAGEOUT)
    p2.exit()
    p1.madvise(0, 6, abi.MADV_FREE)
    p1.madvise(0, 6, abi.MADV_PAGEOUT)


# Large folios


@_aimed_large
def large_folio(p1: Process) -> None:
    p1.mmap(40, at=0)
    p1.write(1)
    p1.read(20)
    p1.write(21)
    p1.write(35)


@_aimed_large
def large_folio_that_fits(p1: Process) -> None:
    p1.mmap(11, at=3)
    p1.write(9)
    p1.write(3)
    p1.write(13)
    p1.mmap(16, at=16)
    p1.madvise(16, 16, abi.MADV_NOHUGEPAGE)
    p1.write(20)


@_aimed_large
def large_folio_of_a_file(p1: Process) -> None:
    p1.mmap(16, at=0, file=0)
    p1.write(5)


@_aimed_large
def large_folio_copied(p1: Process) -> None:
    p1.mmap(16, at=0)
    p1.write(0)
    p2 = p1.fork()
    p2.write(3)
    p1.write(4)
    p2.exit()
    p1.write(5)


@_aimed_large
def large_folio_unmapped_in_part(p1: Process) -> None:
    p1.mmap(32, at=0)
    p1.write(0)
    p1.write(16)
    p1.munmap(4, 4)
    p2 = p1.fork()
    p2.munmap(0, 20)
    p1.exit()


@_aimed_large
def large_folio_moved_in_part(p1: Process) -> None:
    p1.mmap(16, at=0)
    p1.write(0)
    p1.mremap(4, 4, to=40)
    p2 = p1.fork()
    p1.mremap(40, 4, to=4)
    p2.write(41)


@_aimed_large
def large_folio_protected_in_part(p1: Process) -> None:
    p1.mmap(16, at=0)
    p1.write(0)
    p1.mprotect(4, 4, abi.PROT_READ)
    p1.fork()
    p1.mprotect(4, 4, _RW)
    p1.write(5)


@_aimed_large
def large_folio_cut_by_advice(p1: Process) -> None:
    p1.mmap(32, at=0)
    p1.write(0, 3)
    p1.write(20)
    p1.madvise(2, 4, abi.MADV_FREE)
    p1.fork()
    p1.madvise(18, 4, abi.MADV_COLD)


@_aimed_large
def large_folio_migrated(p1: Process) -> None:
    p1.mmap(32, at=0)
    p1.write(0, 2)
    p1.write(16, 16)
    p2 = p1.fork()
    p1.migrate(0, 1)
    p2.migrate(18, 2)
    p1.write(17)


@_aimed_large
def large_folio_merged(p1: Process) -> None:
    p1.mmap(32, at=0)
    p1.write(0, 8)
    p1.write(16)
    p1.madvise(0, 32, abi.MADV_MERGEABLE)
    _merge_same(p1)


@_aimed_large
def large_folio_of_zeroes_to_merge(p1: Process) -> None:
    p1.mmap(16, at=0)
    p1.write(2)
    p1.mmap(1, at=32)
    p1.madvise(32, 1, abi.MADV_POPULATE_WRITE)
    p1.madvise(0, 16, abi.MADV_MERGEABLE)
    p1.madvise(32, 1, abi.MADV_MERGEABLE)
    _merge_same(p1)


@_aimed_large
def large_folios_on_heap_and_stack(p1: Process) -> None:
    _heap(p1).brk(20)
    _heap(p1).write(0)
    _stack(p1).write(2)
    _stack(p1).write(-3)


# UFFDIO_MOVE out of a large folio: its first page decides whether it is split, the page itself whether it moves


@_aimed_large
def large_folio_from_which_pages_move(p1: Process) -> None:
    p1.mmap(16, at=0)
    p1.mmap(16, at=32)
    p1.write(5)
    p1.write(9)
    p1.uffd_move(33, 5, 2)
    p1.uffd_move(5, 9, 1)
    p1.write(34)


@_aimed_large
def first_page_gone_that_was_exclusive(p1: Process) -> None:
    p1.mmap(16, at=0)
    p1.mmap(16, at=32)
    p1.write(0, 16)
    p1.madvise(0, 1, abi.MADV_DONTNEED)
    p1.uffd_move(33, 5, 1)
    p1.warm(64, 16)
    p1.madvise(64, 1, abi.MADV_DONTNEED)
    p2 = p1.fork()
    p1.uffd_move(37, 69, 1)
    p2.uffd_move(37, 70, 1)


@_aimed_large
def first_page_gone_that_was_shared(p1: Process) -> None:
    p1.mmap(16, at=0)
    p1.mmap(16, at=32)
    p1.write(0, 16)
    p1.madvise(4, 12, abi.MADV_DONTFORK)
    p2 = p1.fork()
    p1.uffd_move(33, 5, 1)
    p2.exit()
    p1.uffd_move(33, 6, 1)
    p1.madvise(0, 1, abi.MADV_DONTNEED)
    p1.uffd_move(33, 7, 1)


@_aimed_large
def first_page_exclusive_and_others_shared(p1: Process) -> None:
    p1.mmap(16, at=0)
    p1.mmap(16, at=32)
    p1.write(0, 16)
    p1.madvise(0, 4, abi.MADV_DONTFORK)
    p2 = p1.fork()
    p2.uffd_move(33, 5, 1)
    p1.uffd_move(33, 1, 1)


# Large folios and mlock


@_aimed_large
def large_folio_locked_and_split(p1: Process) -> None:
    p1.mmap(32, at=0)
    p1.write(0)
    p1.write(16)
    p1.mlock(0, 16)
    p1.mlock(20, 4)
    p1.madvise(18, 4, abi.MADV_DONTFORK)
    p2 = p1.fork()
    p2.madvise(2, 2, abi.MADV_COLD)
    p1.munlock(0, 16)
    p1.madvise(2, 2, abi.MADV_COLD)
    p1.munlock(20, 2)
    p2.madvise(17, 2, abi.MADV_COLD)
    p1.migrate(17, 1)


@_aimed_large
def zeroes_kept_by_who_locks_them_first(p1: Process) -> None:
    p1.mmap(16, at=0)
    p1.write(0)
    p1.mlock(0, 16)
    p1.fork()
    p1.migrate(0, 1)
    p1.mmap(16, at=32)
    p1.write(32)
    p3 = p1.fork()
    p3.mlock(32, 16, flags=abi.MLOCK_ONFAULT)
    p1.migrate(32, 1)


@_aimed_large
def large_folios_populated_by_locks(p1: Process) -> None:
    p1.mmap(32, at=0)
    p1.write(3)
    p1.mlock(0, 24)
    p1.mmap(16, at=40, flags=_ANON | abi.MAP_LOCKED)
    p1.munmap(44, 2)
    p1.madvise(56, 1, abi.MADV_DONTNEED)
    p2 = p1.fork()
    p1.write(5)
    p2.write(6)
    p2.mlockall(abi.MCL_CURRENT)
    p1.mremap(0, 16, to=80)
    p2.write(7)


# Large folios and swap


@_aimed_large
def large_folio_swapped_out(p1: Process) -> None:
    p1.mmap(32, at=0)
    p1.write(0, 8)
    p1.write(16, 16)
    p1.madvise(0, 32, abi.MADV_PAGEOUT)
    p1.read(0)
    p1.write(2, 4)
    p2 = p1.fork()
    p1.write(3)
    p2.read(16, 3)
    p2.write(17, 2)
    p1.exit()
    p2.write(30)


@_aimed_large
def large_folio_swapped_out_in_part(p1: Process) -> None:
    p1.mmap(32, at=0)
    p1.write(0, 8)
    p1.madvise(4, 2, abi.MADV_DONTNEED)
    p1.madvise(0, 16, abi.MADV_PAGEOUT)
    p1.write(16)
    p1.migrate(16, 1)
    p1.madvise(16, 16, abi.MADV_PAGEOUT)
    p1.read(16)


@_aimed_large
def large_folio_not_swapped_out_while_shared(p1: Process) -> None:
    p1.mmap(32, at=0)
    p1.write(0, 16)
    p1.write(16)
    p2 = p1.fork()
    p1.madvise(0, 16, abi.MADV_PAGEOUT)
    p2.madvise(20, 4, abi.MADV_PAGEOUT)
    p2.munmap(0, 4)
    p1.madvise(0, 16, abi.MADV_PAGEOUT)
    p1.exit()
    p2.madvise(4, 28, abi.MADV_PAGEOUT)


@_aimed_large
def large_folio_freed(p1: Process) -> None:
    p1.mmap(32, at=0)
    p1.write(0)
    p1.write(16, 16)
    p1.madvise(0, 32, abi.MADV_FREE)
    p1.write(21)
    p1.madvise(0, 32, abi.MADV_PAGEOUT)
    p1.madvise(16, 16, abi.MADV_PAGEOUT)


@_aimed_large
def large_folio_freed_while_shared(p1: Process) -> None:
    p1.mmap(32, at=0)
    p1.write(0, 16)
    p1.write(16, 16)
    p1.madvise(16, 16, abi.MADV_PAGEOUT)
    p2 = p1.fork()
    p1.madvise(0, 32, abi.MADV_FREE)
    p1.madvise(0, 32, abi.MADV_PAGEOUT)
    p2.exit()
    p1.madvise(0, 32, abi.MADV_PAGEOUT)


@_aimed_large
def large_folio_of_three(p1: Process) -> None:
    p1.mmap(16, at=0)
    p1.write(0)
    p2 = p1.fork()
    p3 = p1.fork()  # finds no slot free
    p2.munmap(0, 16)
    p1.write(1)
    p3.munmap(0, 8)
    p1.munmap(8, 8)  # nobody that is counted has all that is left
    p1.write(2)
    p3.exit()
    p1.write(3)


@_aimed_large
def large_folio_inherited(p1: Process) -> None:
    p1.mmap(16, at=0)
    p1.write(0)
    p2 = p1.fork()
    p1.munmap(0, 15)
    p2.write(0)
    p1.exit()
    p2.write(1, 3)
    p2.fork()
    p2.write(1)


@_aimed_large
def large_folio_left_to_its_last_page(p1: Process) -> None:
    p1.mmap(16, at=0)
    p1.write(0)
    p2 = p1.fork()
    p2.exit()
    p1.munmap(0, 14)
    p1.write(14)
    p1.munmap(14, 1)
    p1.write(15)


@_aimed_large
def large_folio_cut_while_shared(p1: Process) -> None:
    p1.mmap(16, at=0)
    p1.write(0)
    p2 = p1.fork()
    p1.munmap(0, 8)
    p2.munmap(8, 8)
    p1.madvise(8, 4, abi.MADV_PAGEOUT)
    p1.madvise(8, 4, abi.MADV_FREE)
    p1.madvise(8, 8, abi.MADV_COLD)


@_aimed_large
def large_folio_freed_in_batches(p1: Process) -> None:
    p1.mmap(16, at=0)
    p1.write(0, 16)
    p1.fork().exit()
    p1.write(0, 8)
    p1.madvise(0, 16, abi.MADV_FREE)
    p1.write(12)  # the third batch of four
    p1.madvise(0, 16, abi.MADV_PAGEOUT)


@_aimed_large
def large_folio_made_dirty_by_mprotect(p1: Process) -> None:
    p1.mmap(16, at=0)
    p1.write(0, 16)
    p1.fork().exit()
    p1.write(0, 8)
    p1.madvise(0, 16, abi.MADV_FREE)
    p1.write(12)
    p1.mprotect(0, 16, abi.PROT_READ)
    p1.mprotect(0, 16, _RW)
    p1.madvise(0, 16, abi.MADV_PAGEOUT)


# Guard regions


@_aimed
def guarded(p1: Process) -> None:
    p1.mmap(8, at=0)
    p1.write(0, 3)
    p1.madvise(2, 3, abi.MADV_GUARD_INSTALL)
    p1.write(2)
    p1.read(4)
    p1.madvise(0, 8, abi.MADV_DONTNEED)
    p1.madvise(0, 8, abi.MADV_POPULATE_WRITE)
    p1.mprotect(3, 2, abi.PROT_READ)
    p1.madvise(0, 8, abi.MADV_FREE)
    p1.mlock(0, 8)
    p1.madvise(5, 1, abi.MADV_GUARD_INSTALL)
    p1.madvise(3, 1, abi.MADV_GUARD_REMOVE)
    p1.read(3)


@_aimed
def guarded_and_forked(p1: Process) -> None:
    p1.mmap(4, at=0)
    p1.madvise(1, 1, abi.MADV_GUARD_INSTALL)
    p1.mmap(4, at=10, file=0)
    p1.madvise(11, 1, abi.MADV_GUARD_INSTALL)
    p1.read(10)
    p1.mmap(4, at=20, flags=abi.MAP_SHARED | abi.MAP_ANONYMOUS | abi.MAP_FIXED)
    p1.write(20)
    p1.madvise(21, 2, abi.MADV_GUARD_INSTALL)
    p2 = p1.fork()
    p2.write(1)
    p2.write(11)
    p2.write(21)
    p2.madvise(11, 1, abi.MADV_GUARD_REMOVE)
    p2.write(11)


@_aimed
def guarded_and_merged(p1: Process) -> None:
    p1.mmap(2, at=0)
    p1.madvise(0, 1, abi.MADV_GUARD_INSTALL)
    p1.mmap(2, at=2)
    p1.write(3)
    p1.mprotect(1, 2, abi.PROT_READ)
    p1.mmap(2, at=10)
    p1.write(10)
    p1.mremap(0, 1, to=12)
    p1.munmap(12, 1)
