# SPDX-License-Identifier: GPL-2.0-or-later
"""Work is counted where it is done, one by one as well as in one go."""

from __future__ import annotations

import pytest

from mm.space import Space


def counted(space: Space, *names: str) -> list[int]:
    return [space.machine.ledger.tallies[name].count for name in names]


def test_system_calls_are_counted_and_faults_are_not(model: Space) -> None:
    before = counted(model, "syscalls")[0]
    model.mmap(4, 0)
    model.write(0, 4)
    model.mprotect(0, 1, 1)
    model.munmap(3, 1)
    child = model.fork()
    child.exit()
    assert counted(model, "syscalls")[0] - before == 5


# The arena's 24th page begins another leaf.
@pytest.mark.parametrize(("pages", "leaves"), [(1, 1), (24, 1), (100, 2)])
def test_a_leaf_comes_with_its_first_entry_and_goes_with_its_last(model: Space, pages: int, leaves: int) -> None:
    model.mmap(pages, 0)
    allocated, freed = counted(model, "leaves made", "leaves freed")
    model.write(0, pages)
    assert counted(model, "leaves made", "leaves freed") == [allocated + leaves, freed]
    model.munmap(0, pages)
    assert counted(model, "leaves made", "leaves freed") == [allocated + leaves, freed + leaves]


@pytest.mark.parametrize("pages", [1, 300])
def test_pages_are_freed_by_the_last_who_maps_them(model: Space, pages: int) -> None:
    model.mmap(pages, 0)
    model.write(0, pages)
    before = counted(model, "pages freed")[0]
    child = model.fork()
    child.munmap(0, pages)
    assert counted(model, "pages freed")[0] == before
    model.munmap(0, pages)
    assert counted(model, "pages freed")[0] == before + pages


def test_the_tlb_is_flushed_where_an_entry_changed_or_went(model: Space) -> None:
    model.mmap(8, 0)
    before = counted(model, "tlb flushes")[0]
    model.write(0, 4)
    model.mprotect(4, 4, 1)
    assert counted(model, "tlb flushes")[0] == before  # nothing was there
    model.mprotect(0, 2, 1)
    assert counted(model, "tlb flushes")[0] == before + 1
    model.fork()
    assert counted(model, "tlb flushes")[0] == before + 2
    model.write(2, 2)  # two pages are copied, each in place of what was there
    assert counted(model, "tlb flushes")[0] == before + 4
    model.munmap(0, 8)
    assert counted(model, "tlb flushes")[0] == before + 5


def test_fork_copies_the_tree_of_vmas_at_once(model: Space) -> None:
    for i in range(5):
        model.mmap(1, 2 * i)
    changes, copied = counted(model, "vma tree changes", "vmas copied at fork")
    model.fork()
    nr_vmas = len(model.machine.mm_of(2).tree)
    assert counted(model, "vma tree changes", "vmas copied at fork") == [changes, copied + nr_vmas]
