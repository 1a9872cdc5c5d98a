# SPDX-License-Identifier: GPL-2.0-or-later
"""Small histories, each aimed at one rule: what random ones reach seldom is here by construction.

`rmaplab kernel compare` does them before the random ones, and tests/kernel/fixtures has what kernels answered.
Addresses are pages of one arena; `_Script` writes events in that unit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rmaplab.mm import abi
from rmaplab.trace.events import FAULT_WRITE, Event

_ARENA: Final = 0x10_0000_0000
_STACK: Final = 0xF_0000_0000
_HEAP: Final = 0x12_0000_0000
_PAGE: Final = 4096
_RW: Final = abi.PROT_READ | abi.PROT_WRITE
_ANON: Final = abi.MAP_PRIVATE | abi.MAP_ANONYMOUS | abi.MAP_FIXED
_MOVE: Final = abi.MREMAP_MAYMOVE | abi.MREMAP_FIXED


class _Script:
    """Events of process 1 unless another is named; `at`, `to` and `pages` count pages of the arena."""

    def __init__(self) -> None:
        self.events = [Event("exec", 1, _STACK, 3 * _PAGE, offset=_STACK, addr2=_HEAP)]

    def _add(self, op: str, pid: int, at: int, pages: int, **fields: int) -> None:
        self.events.append(Event(op, pid, _ARENA + at * _PAGE, pages * _PAGE, **fields))

    def map(self, at: int, pages: int, prot: int = _RW, pid: int = 1, flags: int = _ANON) -> None:
        self._add("mmap", pid, at, pages, prot=prot, flags=flags)

    def map_file(self, at: int, pages: int, offset: int, flags: int = abi.MAP_PRIVATE, pid: int = 1) -> None:
        self._add("mmap", pid, at, pages, prot=_RW, flags=flags | abi.MAP_FIXED, file=0, offset=offset * _PAGE)

    def unmap(self, at: int, pages: int, pid: int = 1) -> None:
        self._add("munmap", pid, at, pages)

    def write(self, at: int, pages: int = 1, pid: int = 1) -> None:
        self._add("fault", pid, at, pages, flags=FAULT_WRITE)

    def read(self, at: int, pages: int = 1, pid: int = 1) -> None:
        self._add("fault", pid, at, pages)

    def protect(self, at: int, pages: int, prot: int, pid: int = 1) -> None:
        self._add("mprotect", pid, at, pages, prot=prot)

    def advise(self, at: int, pages: int, advice: int, pid: int = 1) -> None:
        self._add("madvise", pid, at, pages, flags=advice)

    def lock(self, at: int, pages: int, pid: int = 1, flags: int = 0) -> None:
        self._add("mlock", pid, at, pages, flags=flags)

    def unlock(self, at: int, pages: int, pid: int = 1) -> None:
        self._add("munlock", pid, at, pages)

    def move(self, at: int, pages: int, to: int, pid: int = 1, flags: int = _MOVE, new: int = 0) -> None:
        length = (new or pages) * _PAGE
        self._add("mremap", pid, at, pages, flags=flags, length2=length, addr2=_ARENA + to * _PAGE)

    def resize(self, at: int, pages: int, new: int, pid: int = 1) -> None:
        self._add("mremap", pid, at, pages, length2=new * _PAGE)

    def brk(self, pages: int, pid: int = 1) -> None:
        self.events.append(Event("brk", pid, _HEAP + pages * _PAGE))

    def fork(self, child: int, pid: int = 1, flags: int = 0) -> None:
        self.events.append(Event("fork", pid, flags=flags, pid2=child))

    def exit(self, pid: int) -> None:
        self.events.append(Event("exit", pid))

    def exec(self, pid: int) -> None:
        self.events.append(Event("exec", pid, _STACK, 3 * _PAGE, offset=_STACK, addr2=_HEAP))

    def migrate(self, at: int, pages: int, pid: int = 1) -> None:
        self._add("migrate", pid, at, pages)

    def move_pages(self, at: int, pages: int, to: int, pid: int = 1) -> None:
        """UFFDIO_MOVE"""
        self._add("uffd_move", pid, to, pages, addr2=_ARENA + at * _PAGE)

    def merge_same(self) -> None:
        """KSM scans all.  Pages that were written to are equal where their numbers are, modulo 4."""
        self.events.append(Event("ksm", 1, pid2=1))

    def stack(self, op: str, page: int, pages: int, **fields: int) -> None:
        """Something done to the stack's pages, counted from its lower end."""
        address = _STACK + page * _PAGE
        self.events.append(Event(op, 1, address, pages * _PAGE, **fields))


AIMED: Final[dict[str, Callable[[_Script], None]]] = {}
LARGE_FOLIOS: Final[dict[str, int]] = {}  # of those that need some: their highest order


def _aimed(write: Callable[[_Script], None]) -> Callable[[_Script], None]:
    AIMED[write.__name__] = write
    return write


def _aimed_large(write: Callable[[_Script], None]) -> Callable[[_Script], None]:
    """With folios of up to 16 pages."""
    LARGE_FOLIOS[write.__name__] = 4
    return _aimed(write)


def history(name: str) -> list[Event]:
    """The events to ask for."""
    script = _Script()
    AIMED[name](script)
    return script.events


# Merges of a new mapping


@_aimed
def lower_takes_hole(s: _Script) -> None:
    s.map(0, 2)
    s.write(0)
    s.map(2, 2)
    s.write(3)


@_aimed
def upper_takes_hole(s: _Script) -> None:
    s.map(2, 2)
    s.write(2)
    s.map(0, 2)
    s.write(0)


@_aimed
def hole_joins_two(s: _Script) -> None:
    s.map(0, 1)
    s.map(2, 1)
    s.map(1, 1)


@_aimed
def hole_between_unprepared_and_prepared(s: _Script) -> None:
    s.map(0, 1)
    s.map(2, 1)
    s.write(2)
    s.map(1, 1)
    s.write(0)


@_aimed
def hole_between_two_families(s: _Script) -> None:
    s.map(0, 1)
    s.write(0)
    s.map(2, 1)
    s.write(2)
    s.map(1, 1)
    s.write(1)


# Merges within what is mapped


@_aimed
def lower_takes_whole(s: _Script) -> None:
    s.map(0, 4)
    s.write(0, 4)
    s.protect(2, 2, abi.PROT_READ)
    s.protect(2, 2, _RW)


@_aimed
def lower_takes_beginning(s: _Script) -> None:
    s.map(0, 4)
    s.write(0, 4)
    s.protect(0, 2, abi.PROT_READ)
    s.protect(2, 1, abi.PROT_READ)


@_aimed
def upper_takes_end(s: _Script) -> None:
    s.map(0, 4)
    s.write(0, 4)
    s.protect(2, 2, abi.PROT_READ)
    s.protect(1, 1, abi.PROT_READ)


@_aimed
def upper_takes_whole(s: _Script) -> None:
    s.map(0, 4)
    s.write(0, 4)
    s.protect(0, 2, abi.PROT_READ)
    s.protect(0, 2, _RW)


@_aimed
def lower_takes_two(s: _Script) -> None:
    s.map(0, 6)
    s.write(0, 6)
    s.protect(2, 2, abi.PROT_READ)
    s.protect(2, 2, _RW)


@_aimed
def lower_takes_two_and_their_chain(s: _Script) -> None:
    s.map(0, 1)
    s.map(1, 1, prot=abi.PROT_READ)
    s.map(2, 1)
    s.write(2)
    s.protect(1, 1, _RW)
    s.write(0)


@_aimed
def lower_unprepared_takes_prepared(s: _Script) -> None:
    s.map(0, 2, prot=_RW | abi.PROT_EXEC)
    s.map(2, 2)
    s.write(2)
    s.protect(2, 2, _RW | abi.PROT_EXEC)


@_aimed
def lower_prepared_takes_unprepared(s: _Script) -> None:
    s.map(0, 2)
    s.write(0)
    s.map(2, 2, prot=_RW | abi.PROT_EXEC)
    s.protect(2, 2, _RW)


@_aimed
def locked_and_unlocked(s: _Script) -> None:
    s.map(0, 4)
    s.write(1)
    s.lock(1, 2)
    s.unlock(1, 2)
    s.lock(0, 1)


# First faults


@_aimed
def neighbours_anon_vma(s: _Script) -> None:
    s.map(0, 2)
    s.map(2, 2, prot=_RW | abi.PROT_EXEC)
    s.write(0)
    s.write(2)
    s.protect(2, 2, _RW)


@_aimed
def neighbour_in_child_is_not_singular(s: _Script) -> None:
    s.map(0, 2)
    s.write(0)
    s.map(2, 2, prot=_RW | abi.PROT_EXEC)
    s.fork(2)
    s.write(2, pid=2)
    s.protect(2, 2, _RW, pid=2)


# Forks


@_aimed
def child_copies(s: _Script) -> None:
    s.map(0, 3)
    s.write(0, 3)
    s.fork(2)
    s.write(0, pid=2)
    s.write(1)


@_aimed
def last_mapper_takes_over(s: _Script) -> None:
    s.map(0, 2)
    s.write(0, 2)
    s.fork(2)
    s.exit(1)
    s.write(0, pid=2)


@_aimed
def fork_exit_fork(s: _Script) -> None:
    s.map(0, 2)
    s.write(0, 2)
    for child in range(2, 7):
        s.fork(child, pid=child - 1)
        s.exit(child - 1)
        s.write(child % 2, pid=child)


@_aimed
def five_generations(s: _Script) -> None:
    s.map(0, 6)
    s.write(0)
    for child in range(2, 7):
        s.fork(child, pid=child - 1)
        s.write(child - 1, pid=child)
    s.exit(3)
    s.exit(4)
    s.fork(7, pid=6)
    s.write(0, 6, pid=7)


@_aimed
def grandchildren_of_a_root(s: _Script) -> None:
    s.map(0, 2)
    s.write(0)
    s.fork(2)
    s.fork(3)
    s.fork(4, pid=2)
    s.exit(2)
    s.fork(5, pid=4)
    s.exit(1)


@_aimed
def not_for_children(s: _Script) -> None:
    s.map(0, 6)
    s.write(0, 6)
    s.advise(0, 2, abi.MADV_DONTFORK)
    s.advise(4, 2, abi.MADV_WIPEONFORK)
    s.fork(2)
    s.write(4, pid=2)


@_aimed
def shared_address_space(s: _Script) -> None:
    s.map(0, 2)
    s.fork(2, flags=abi.CLONE_VM)
    s.write(0, pid=2)
    s.fork(3, pid=2)
    s.exit(1)
    s.write(0, pid=2)


@_aimed
def child_execs(s: _Script) -> None:
    s.map(0, 2)
    s.write(0, 2)
    s.fork(2)
    s.exec(2)
    s.write(0)


# Splits and unmaps


@_aimed
def hole_in_the_middle(s: _Script) -> None:
    s.map(0, 5)
    s.write(0, 5)
    s.fork(2)
    s.unmap(2, 1)
    s.write(1)
    s.unmap(0, 1, pid=2)


@_aimed
def mapped_over(s: _Script) -> None:
    s.map(0, 5)
    s.write(0, 5)
    s.map(1, 2)
    s.write(1)


# Moves


@_aimed
def there_and_back(s: _Script) -> None:
    s.map(0, 2)
    s.write(0, 2)
    s.move(0, 2, 10)
    s.fork(2)
    s.move(10, 2, 0)
    s.move(10, 2, 20, pid=2)


@_aimed
def unfaulted_gets_fresh_page_offset(s: _Script) -> None:
    s.map(0, 2)
    s.move(0, 2, 10)
    s.write(10)


@_aimed
def part_moves_home_beside_the_rest(s: _Script) -> None:
    s.map(0, 4)
    s.write(0, 4)
    s.move(1, 2, 10)
    s.move(10, 2, 1)


@_aimed
def moved_beside_unfaulted(s: _Script) -> None:
    s.map(0, 4)
    s.write(2, 2)
    s.move(2, 2, 10)
    s.map(2, 1, prot=abi.PROT_READ)
    s.move(10, 2, 4)


@_aimed
def moved_over_another(s: _Script) -> None:
    s.map(0, 3)
    s.write(0, 3)
    s.map(10, 3)
    s.write(10, 3)
    s.fork(2)
    s.move(0, 2, 11)


@_aimed
def grows_and_shrinks(s: _Script) -> None:
    s.map(0, 2)
    s.write(0, 2)
    s.resize(0, 2, 4)
    s.write(3)
    s.resize(0, 4, 1)
    s.move(0, 1, 10, new=3)


@_aimed
def moved_and_left_behind(s: _Script) -> None:
    s.map(0, 2)
    s.write(0, 2)
    s.move(0, 2, 10, flags=_MOVE | abi.MREMAP_DONTUNMAP)
    s.write(0)
    s.map(20, 2)
    s.move(20, 2, 22, flags=_MOVE | abi.MREMAP_DONTUNMAP)
    s.write(20)


# Files


@_aimed
def private_file(s: _Script) -> None:
    s.map_file(0, 4, offset=7)
    s.read(0, 2)
    s.write(1, 2)
    s.fork(2)
    s.move(1, 2, 10, pid=2)
    s.write(10, pid=2)


@_aimed
def shared_memory(s: _Script) -> None:
    s.map(0, 3, flags=abi.MAP_SHARED | abi.MAP_ANONYMOUS | abi.MAP_FIXED)
    s.write(0)
    s.fork(2)
    s.move(0, 0, 10, new=2)
    s.read(10)
    s.write(1, pid=2)


# Stack and heap


@_aimed
def stack_is_cut_and_moved(s: _Script) -> None:
    s.stack("mprotect", 30, 1, prot=abi.PROT_READ)
    s.fork(2)
    s.stack("mremap", 31, 2, flags=_MOVE, length2=2 * _PAGE, addr2=_ARENA)
    s.write(0)


@_aimed
def stack_grows(s: _Script) -> None:
    s.stack("fault", -3, 1, flags=FAULT_WRITE)
    s.map(0, 2, flags=_ANON | abi.MAP_GROWSDOWN)
    s.write(-2)


@_aimed
def heap(s: _Script) -> None:
    s.brk(3)
    s.events.append(Event("fault", 1, _HEAP, 2 * _PAGE, flags=FAULT_WRITE))
    s.fork(2)
    s.brk(5)
    s.brk(1, pid=2)


# Reclaim, migration, and what goes away


@_aimed
def swapped_and_forked(s: _Script) -> None:
    s.map(0, 3)
    s.write(0, 3)
    s.advise(0, 3, abi.MADV_PAGEOUT)
    s.read(0)
    s.fork(2)
    s.read(1)
    s.write(1, pid=2)
    s.write(2)
    s.read(2, pid=2)


@_aimed
def migrated_while_shared(s: _Script) -> None:
    s.map(0, 3)
    s.write(0, 3)
    s.fork(2)
    s.migrate(0, 3, pid=2)
    s.write(0, pid=2)
    s.migrate(0, 3)


@_aimed
def dropped(s: _Script) -> None:
    s.map(0, 4)
    s.write(0, 4)
    s.fork(2)
    s.advise(0, 2, abi.MADV_DONTNEED)
    s.advise(2, 2, abi.MADV_FREE)
    s.read(0)
    s.write(2, pid=2)


@_aimed
def populated(s: _Script) -> None:
    s.map(0, 4, flags=_ANON | abi.MAP_POPULATE)
    s.map(10, 4)
    s.advise(10, 2, abi.MADV_POPULATE_READ)
    s.advise(12, 2, abi.MADV_POPULATE_WRITE)


@_aimed
def populated_around_a_hole(s: _Script) -> None:
    s.map(0, 2)
    s.map(4, 2)
    s.advise(0, 6, abi.MADV_POPULATE_WRITE)
    s.map(10, 2)
    s.advise(8, 4, abi.MADV_POPULATE_READ)


@_aimed
def read_ahead_from_swap(s: _Script) -> None:
    s.map(0, 3)
    s.write(0, 3)
    s.advise(0, 3, abi.MADV_PAGEOUT)
    s.advise(0, 2, abi.MADV_WILLNEED)
    s.read(0)
    s.write(1)
    s.read(2)


@_aimed
def clean_page_becomes_writable_again(s: _Script) -> None:
    s.map(0, 2)
    s.write(0, 2)
    s.advise(0, 1, abi.MADV_PAGEOUT)
    s.read(0)
    s.protect(0, 2, abi.PROT_READ)
    s.protect(0, 2, _RW)


@_aimed
def freed_while_locked_elsewhere(s: _Script) -> None:
    s.map(0, 2)
    s.write(0, 2)
    s.lock(0, 1)
    s.fork(2)
    s.advise(0, 2, abi.MADV_FREE, pid=2)
    s.advise(0, 2, abi.MADV_FREE)
    s.unlock(0, 1)
    s.exit(2)
    s.advise(0, 2, abi.MADV_PAGEOUT)


# KSM


@_aimed
def merged(s: _Script) -> None:
    s.map(0, 12)
    s.write(0, 9)
    s.advise(0, 12, abi.MADV_MERGEABLE)
    s.merge_same()
    s.write(4)
    s.write(9, 2)
    s.merge_same()


@_aimed
def merged_and_forked(s: _Script) -> None:
    s.map(0, 8)
    s.write(0, 8)
    s.advise(0, 8, abi.MADV_MERGEABLE)
    s.merge_same()
    s.fork(2)
    s.write(0, pid=2)
    s.merge_same()
    s.exit(1)
    s.write(1, pid=2)


@_aimed
def merged_while_shared(s: _Script) -> None:
    s.map(0, 8)
    s.write(0, 8)
    s.fork(2)
    s.advise(0, 8, abi.MADV_MERGEABLE)
    s.merge_same()
    s.write(0)
    s.advise(0, 4, abi.MADV_MERGEABLE, pid=2)
    s.merge_same()


@_aimed
def merged_across_processes(s: _Script) -> None:
    s.exec(2)
    for pid in (1, 2):
        s.map(0, 2, pid=pid)
        s.write(0, 2, pid=pid)
        s.advise(0, 2, abi.MADV_MERGEABLE, pid=pid)
    s.merge_same()
    s.exit(1)
    s.write(0, pid=2)


@_aimed
def merged_and_found_nowhere(s: _Script) -> None:
    """Process 1 keeps a page of KSM's whose only places were process 2's: reclaim gives it room in swap, and no walk
    finds it."""
    s.map(0, 8)
    s.write(0)
    s.write(4)
    s.map(20, 2)
    s.write(21)
    s.advise(20, 2, abi.MADV_MERGEABLE)  # ksmd has something to scan when process 2 is gone
    s.fork(2)
    s.advise(0, 8, abi.MADV_MERGEABLE, pid=2)
    s.merge_same()
    s.exit(2)
    s.merge_same()
    s.advise(0, 8, abi.MADV_PAGEOUT)
    s.read(0, 5)


@_aimed
def merged_and_given_back(s: _Script) -> None:
    s.map(0, 12)
    s.write(0, 12)
    s.advise(0, 12, abi.MADV_MERGEABLE)
    s.merge_same()
    s.advise(0, 4, abi.MADV_UNMERGEABLE)
    s.write(0)
    s.move(8, 4, 20)
    s.write(21)


@_aimed
def merged_and_not_accessible(s: _Script) -> None:
    s.map(0, 8)
    s.write(0, 8)
    s.advise(0, 8, abi.MADV_MERGEABLE)
    s.merge_same()
    s.protect(0, 2, abi.PROT_NONE)
    s.advise(0, 1, abi.MADV_UNMERGEABLE)
    s.move(1, 1, 20)
    s.fork(2)
    s.protect(20, 1, _RW, pid=2)
    s.write(20, pid=2)


@_aimed
def merged_where_writes_are_seen(s: _Script) -> None:
    """A new program's stack is the one VMA whose first writes are tracked (no VM_SOFTDIRTY)."""
    for page in (2, 6, 10):
        s.stack("fault", page, 1, flags=FAULT_WRITE)
    s.stack("madvise", 0, 12, flags=abi.MADV_MERGEABLE)
    s.merge_same()
    s.stack("madvise", 0, 12, flags=abi.MADV_UNMERGEABLE)
    s.stack("mprotect", 0, 12, prot=abi.PROT_READ)
    s.stack("mprotect", 0, 12, prot=_RW)
    s.stack("fault", 2, 1, flags=FAULT_WRITE)


@_aimed
def freed_while_shared_or_merged(s: _Script) -> None:
    s.map(0, 8)
    s.write(0, 6)
    s.advise(0, 6, abi.MADV_MERGEABLE)
    s.merge_same()
    s.write(4)
    s.fork(2)
    s.advise(0, 6, abi.MADV_FREE)
    s.advise(0, 6, abi.MADV_FREE, pid=2)
    s.advise(0, 6, abi.MADV_PAGEOUT)
    s.exit(2)
    s.advise(0, 6, abi.MADV_FREE)
    s.advise(0, 6, abi.MADV_PAGEOUT)


# Large folios


@_aimed_large
def large_folio(s: _Script) -> None:
    s.map(0, 40)
    s.write(1)
    s.read(20)
    s.write(21)
    s.write(35)


@_aimed_large
def large_folio_that_fits(s: _Script) -> None:
    s.map(3, 11)
    s.write(9)
    s.write(3)
    s.write(13)
    s.map(16, 16)
    s.advise(16, 16, abi.MADV_NOHUGEPAGE)
    s.write(20)


@_aimed_large
def large_folio_of_a_file(s: _Script) -> None:
    s.map_file(0, 16, offset=0)
    s.write(5)


@_aimed_large
def large_folio_copied(s: _Script) -> None:
    s.map(0, 16)
    s.write(0)
    s.fork(2)
    s.write(3, pid=2)
    s.write(4)
    s.exit(2)
    s.write(5)


@_aimed_large
def large_folio_unmapped_in_part(s: _Script) -> None:
    s.map(0, 32)
    s.write(0)
    s.write(16)
    s.unmap(4, 4)
    s.fork(2)
    s.unmap(0, 20, pid=2)
    s.exit(1)


@_aimed_large
def large_folio_moved_in_part(s: _Script) -> None:
    s.map(0, 16)
    s.write(0)
    s.move(4, 4, 40)
    s.fork(2)
    s.move(40, 4, 4)
    s.write(41, pid=2)


@_aimed_large
def large_folio_protected_in_part(s: _Script) -> None:
    s.map(0, 16)
    s.write(0)
    s.protect(4, 4, abi.PROT_READ)
    s.fork(2)
    s.protect(4, 4, _RW)
    s.write(5)


@_aimed_large
def large_folio_cut_by_advice(s: _Script) -> None:
    s.map(0, 32)
    s.write(0, 3)
    s.write(20)
    s.advise(2, 4, abi.MADV_FREE)
    s.fork(2)
    s.advise(18, 4, abi.MADV_COLD)


@_aimed_large
def large_folio_migrated(s: _Script) -> None:
    s.map(0, 32)
    s.write(0, 2)
    s.write(16, 16)
    s.fork(2)
    s.migrate(0, 1)
    s.migrate(18, 2, pid=2)
    s.write(17)


@_aimed_large
def large_folio_merged(s: _Script) -> None:
    s.map(0, 32)
    s.write(0, 8)
    s.write(16)
    s.advise(0, 32, abi.MADV_MERGEABLE)
    s.merge_same()


@_aimed_large
def large_folio_of_zeroes_to_merge(s: _Script) -> None:
    s.map(0, 16)
    s.write(2)
    s.map(32, 1)
    s.advise(32, 1, abi.MADV_POPULATE_WRITE)
    s.advise(0, 16, abi.MADV_MERGEABLE)
    s.advise(32, 1, abi.MADV_MERGEABLE)
    s.merge_same()


@_aimed_large
def large_folios_on_heap_and_stack(s: _Script) -> None:
    s.brk(20)
    s.events.append(Event("fault", 1, _HEAP, _PAGE, flags=FAULT_WRITE))
    s.stack("fault", 2, 1, flags=FAULT_WRITE)
    s.stack("fault", -3, 1, flags=FAULT_WRITE)


# UFFDIO_MOVE out of a large folio: its first page decides whether it is split, the page itself whether it moves


@_aimed_large
def large_folio_from_which_pages_move(s: _Script) -> None:
    s.map(0, 16)
    s.map(32, 16)
    s.write(5)
    s.write(9)
    s.move_pages(5, 2, 33)
    s.move_pages(9, 1, 5)
    s.write(34)


@_aimed_large
def first_page_gone_that_was_exclusive(s: _Script) -> None:
    s.map(0, 16)
    s.map(32, 16)
    s.write(0, 16)
    s.advise(0, 1, abi.MADV_DONTNEED)
    s.move_pages(5, 1, 33)
    s.map(64, 16)
    s.write(64, 16)
    s.advise(64, 1, abi.MADV_DONTNEED)
    s.fork(2)
    s.move_pages(69, 1, 37)
    s.move_pages(70, 1, 37, pid=2)


@_aimed_large
def first_page_gone_that_was_shared(s: _Script) -> None:
    s.map(0, 16)
    s.map(32, 16)
    s.write(0, 16)
    s.advise(4, 12, abi.MADV_DONTFORK)
    s.fork(2)
    s.move_pages(5, 1, 33)
    s.exit(2)
    s.move_pages(6, 1, 33)
    s.advise(0, 1, abi.MADV_DONTNEED)
    s.move_pages(7, 1, 33)


@_aimed_large
def first_page_exclusive_and_others_shared(s: _Script) -> None:
    s.map(0, 16)
    s.map(32, 16)
    s.write(0, 16)
    s.advise(0, 4, abi.MADV_DONTFORK)
    s.fork(2)
    s.move_pages(5, 1, 33, pid=2)
    s.move_pages(1, 1, 33)


# Large folios and mlock


@_aimed_large
def large_folio_locked_and_split(s: _Script) -> None:
    s.map(0, 32)
    s.write(0)
    s.write(16)
    s.lock(0, 16)
    s.lock(20, 4)
    s.advise(18, 4, abi.MADV_DONTFORK)
    s.fork(2)
    s.advise(2, 2, abi.MADV_COLD, pid=2)
    s.unlock(0, 16)
    s.advise(2, 2, abi.MADV_COLD)
    s.unlock(20, 2)
    s.advise(17, 2, abi.MADV_COLD, pid=2)
    s.migrate(17, 1)


@_aimed_large
def zeroes_kept_by_who_locks_them_first(s: _Script) -> None:
    s.map(0, 16)
    s.write(0)
    s.lock(0, 16)
    s.fork(2)
    s.migrate(0, 1)
    s.map(32, 16)
    s.write(32)
    s.fork(3)
    s.lock(32, 16, pid=3, flags=abi.MLOCK_ONFAULT)
    s.migrate(32, 1)


@_aimed_large
def large_folios_populated_by_locks(s: _Script) -> None:
    s.map(0, 32)
    s.write(3)
    s.lock(0, 24)
    s.map(40, 16, flags=_ANON | abi.MAP_LOCKED)
    s.unmap(44, 2)
    s.advise(56, 1, abi.MADV_DONTNEED)
    s.fork(2)
    s.write(5)
    s.write(6, pid=2)
    s.events.append(Event("mlockall", 2, flags=1))
    s.move(0, 16, 80)
    s.write(7, pid=2)


# Large folios and swap


@_aimed_large
def large_folio_swapped_out(s: _Script) -> None:
    s.map(0, 32)
    s.write(0, 8)
    s.write(16, 16)
    s.advise(0, 32, abi.MADV_PAGEOUT)
    s.read(0)
    s.write(2, 4)
    s.fork(2)
    s.write(3)
    s.read(16, 3, pid=2)
    s.write(17, 2, pid=2)
    s.exit(1)
    s.write(30, pid=2)


@_aimed_large
def large_folio_swapped_out_in_part(s: _Script) -> None:
    s.map(0, 32)
    s.write(0, 8)
    s.advise(4, 2, abi.MADV_DONTNEED)
    s.advise(0, 16, abi.MADV_PAGEOUT)
    s.write(16)
    s.migrate(16, 1)
    s.advise(16, 16, abi.MADV_PAGEOUT)
    s.read(16)


@_aimed_large
def large_folio_not_swapped_out_while_shared(s: _Script) -> None:
    s.map(0, 32)
    s.write(0, 16)
    s.write(16)
    s.fork(2)
    s.advise(0, 16, abi.MADV_PAGEOUT)
    s.advise(20, 4, abi.MADV_PAGEOUT, pid=2)
    s.unmap(0, 4, pid=2)
    s.advise(0, 16, abi.MADV_PAGEOUT)
    s.exit(1)
    s.advise(4, 28, abi.MADV_PAGEOUT, pid=2)


@_aimed_large
def large_folio_freed(s: _Script) -> None:
    s.map(0, 32)
    s.write(0)
    s.write(16, 16)
    s.advise(0, 32, abi.MADV_FREE)
    s.write(21)
    s.advise(0, 32, abi.MADV_PAGEOUT)
    s.advise(16, 16, abi.MADV_PAGEOUT)


@_aimed_large
def large_folio_freed_while_shared(s: _Script) -> None:
    s.map(0, 32)
    s.write(0, 16)
    s.write(16, 16)
    s.advise(16, 16, abi.MADV_PAGEOUT)
    s.fork(2)
    s.advise(0, 32, abi.MADV_FREE)
    s.advise(0, 32, abi.MADV_PAGEOUT)
    s.exit(2)
    s.advise(0, 32, abi.MADV_PAGEOUT)
