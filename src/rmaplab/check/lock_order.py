# SPDX-License-Identifier: GPL-2.0-or-later
"""The order in which locks may be taken, and a check of it.

`ORDER` is the part of the comment at the top of mm/rmap.c ("Lock ordering in mm") that has to do with anonymous
memory, outermost first.  A design's own locks take the place of anon_vma->rwsem: a walk takes them with the folio
locked and takes page-table locks inside.  The exception is PG_maplock of 2.5, a bit in each page, which two rivals
have: code that adds or removes an entry takes it with the page table locked, and no lock is taken inside.

An attempt that does not wait (lock_vma_under_rcu(), folio_trylock()) may be made in any order; a wait for a lock
while such a lock is held may not.  Only a task that changes a VMA ever waits for its lock.

`AGAINST` are the pairs that Linux takes the other way round, where no circle comes of it: `cycle()` counts them.

`NESTING` are the classes of which one task may hold two: Linux says so to lockdep at the same places.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

DESIGN: Final = "the design's"

ORDER: Final = (
    "mmap_lock",
    "folio lock",
    "vma_lock",  # vma_start_write()
    DESIGN,  # anon_vma->rwsem
    "page_table_lock",
    "page map lock",  # pte_chain_lock(), rmap_lock()
    "zone lock",
)

NESTING: Final = {
    "mmap_lock": "dup_mmap() takes the child's in the parent's (mmap_write_lock_nested())",
    "vma_lock": "one mmap_lock covers all VMAs that are locked under it (vma_start_write())",
    "folio lock": "a migration holds the old folio and the new one, which nobody else can see yet",
    "page_table_lock": "copy_pte_range() and move_ptes() take a second one (SINGLE_DEPTH_NESTING)",
    "anon_vma rwsem": "those of a chain are taken in the order of their addresses (anon_vma_own_lock.py)",
    "page map lock": "a list goes from the old page of a migration to the new one, which nobody else can see yet",
}

Pair = tuple[str, str]

AGAINST: Final[dict[Pair, str]] = {
    ("vma_lock", "folio lock"): "UFFDIO_MOVE waits for a folio with both VMAs locked for reading (mm/userfaultfd.c"
    " move_pages_ptes()); nobody who has a folio locked waits for a VMA's lock",
}


def _level(lock: str) -> int:
    return ORDER.index(lock if lock in ORDER else DESIGN)


def out_of_order(pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs (held, taken) that the order forbids."""
    return sorted(
        {
            (held, taken)
            for held, taken in pairs
            if (held not in NESTING if held == taken else _level(held) > _level(taken))
            and (held, taken) not in AGAINST
        }
    )


def cycle(pairs: Iterable[Pair]) -> list[str]:
    """Classes of locks that are taken in a circle somewhere, in its order; none if there is no circle."""
    after: dict[str, set[str]] = {}
    for held, taken in pairs:
        if held != taken:
            after.setdefault(held, set()).add(taken)
    for start in sorted(after):
        path = [start]
        if _leads_back(after, path, {start}):
            return path
    return []


def _leads_back(after: dict[str, set[str]], path: list[str], seen: set[str]) -> bool:
    for lock in sorted(after.get(path[-1], ())):
        if lock == path[0]:
            path.append(lock)
            return True
        if lock not in seen:
            seen.add(lock)
            path.append(lock)
            if _leads_back(after, path, seen):
                return True
            path.pop()
    return False


def complaints(pairs: Sequence[Pair]) -> list[str]:
    """Violations of the lock order and cycles in it, a sentence each."""
    said = [
        f"{taken} is taken while another {taken} is held, and nothing orders the two"
        if held == taken
        else f"{taken} is taken while {held} is held: mm/rmap.c has them the other way round"
        for held, taken in out_of_order(pairs)
    ]
    circle = cycle(pairs)
    if circle:
        said.append(f"locks are taken in a circle: {' -> '.join(circle)}")
    return said
