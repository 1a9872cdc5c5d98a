# SPDX-License-Identifier: GPL-2.0-or-later
"""Which locks the machine holds when it tells a design of something, as mm/reverse_map.py says."""

from __future__ import annotations

import random

import pytest

from rmap.world import PAGE, World
from rmaplab.check.histories import OPERATIONS, Author
from rmaplab.mm.folio import Int64s
from rmaplab.mm.geometry import GeometryChange
from rmaplab.mm.locking import lock_of
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import LEAF_SHIFT
from rmaplab.mm.profile import PROFILES
from rmaplab.mm.vma import MM, VMA
from rmaplab.rmap.page_scan import PageScanRmap
from rmaplab.sync.locks import Scheduler


class Holds(Scheduler):
    """Knows which locks are held: nothing else runs."""

    def __init__(self) -> None:
        self.held: list[tuple[object, bool]] = []

    def acquire(self, lock: object, write: bool) -> None:
        assert not self.writes(lock) and not (write and self.has(lock)), "waits for itself"
        self.held.append((lock, write))

    def try_acquire(self, lock: object, write: bool) -> bool:
        self.acquire(lock, write)
        return True

    def release(self, lock: object, write: bool) -> None:
        self.held.remove((lock, write))

    def downgrade(self, lock: object) -> None:
        self.held[self.held.index((lock, True))] = (lock, False)

    def writes(self, lock: object) -> bool:
        return (lock, True) in self.held

    def has(self, lock: object) -> bool:
        return self.writes(lock) or (lock, False) in self.held


class Guarded(PageScanRmap):
    """Asserts what the interface says, and keeps a list of what it was told."""

    name = "guarded"

    def lockers(self) -> Holds:
        assert isinstance(self.scheduler, Holds)
        return self.scheduler

    def told(self, event: str, *spaces: MM, vmas: tuple[VMA, ...] = (), write: bool = True) -> None:
        holds = self.lockers()
        for mm in spaces:
            assert holds.writes(mm.mmap_lock) or (not write and holds.has(mm.mmap_lock)), f"{event}: mmap_lock"
        for vma in vmas:
            assert holds.writes(lock_of(vma)), f"{event}: VMA lock"
        TOLD.append(event)

    def of_pages(self, event: str, vma: VMA, addr: int, nr_pages: int) -> None:
        holds = self.lockers()
        assert holds.writes(vma.mm.page_table.leaf(addr).lock), f"{event}: leaf lock"
        assert holds.has(vma.mm.mmap_lock) or holds.has(lock_of(vma)), f"{event}: mmap_lock or VMA lock"
        assert addr >> LEAF_SHIFT == (addr + (nr_pages << 12) - 1) >> LEAF_SHIFT
        TOLD.append(event)

    def mm_created(self, mm: MM) -> None:
        super().mm_created(mm)
        self.told("mm_created")

    def mm_forked(self, parent: MM, child: MM) -> None:
        super().mm_forked(parent, child)
        self.told("mm_forked", parent, child)
        assert not child.tree.to_list()

    def mm_fork_end(self, parent: MM, child: MM) -> None:
        self.told("mm_fork_end", parent, child, vmas=tuple(parent.tree.to_list()))

    def mm_gone(self, mm: MM) -> None:
        super().mm_gone(mm)
        self.told("mm_gone")
        assert mm.users == 0 and not mm.page_table.leaves and not self.lockers().has(mm.mmap_lock)

    def vma_prepare(self, vma: VMA) -> None:
        self.told("vma_prepare", vma.mm, write=False)
        assert not vma.prepared and vma.mm.tree.at(vma.start) is vma

    def vma_forked(self, parent: VMA, child: VMA) -> None:
        self.told("vma_forked", parent.mm, child.mm, vmas=(parent,))

    def vma_split(self, vma: VMA, new: VMA) -> None:
        self.told("vma_split", vma.mm)

    def vma_joined(self, vma: VMA, donor: VMA) -> None:
        self.told("vma_joined", vma.mm, vmas=(vma, donor))

    def geometry_begin(self, change: GeometryChange) -> None:
        self.told("geometry_begin", change.vmas[0].mm, vmas=(*change.vmas, *change.absorbed))
        for vma, before, after in zip(change.vmas, change.before, change.after, strict=True):
            assert (vma.start, vma.end, vma.pgoff) == (before.start, before.end, before.pgoff)
            assert after.start < after.end and before.start < before.end

    def geometry_end(self, change: GeometryChange) -> None:
        self.told("geometry_end", change.vmas[0].mm, vmas=(*change.vmas, *change.absorbed))
        for vma, after in zip(change.vmas, change.after, strict=True):
            assert (vma.start, vma.end, vma.pgoff) == (after.start, after.end, after.pgoff)
            assert vma.mm.tree.at(vma.start) is vma

    def vma_absorbed(self, vma: VMA, gone: VMA) -> None:
        self.told("vma_absorbed", vma.mm, vmas=(vma, gone))
        assert vma.start <= gone.start and gone.end <= vma.end

    def vma_copied(self, source: VMA, new: VMA) -> None:
        self.told("vma_copied", source.mm, vmas=(source,))

    def vma_moved(self, source: VMA, target: VMA, source_addr: int, target_addr: int, nr_pages: int) -> None:
        self.told("vma_moved", source.mm, vmas=(source, target))

    def vma_removed(self, vma: VMA) -> None:
        faults = not vma.detached and vma.mm.users
        self.told("vma_removed", vma.mm, vmas=(vma,) if faults else (), write=False)

    def folio_mapped(self, vma: VMA, addr: int, pfn: int, nr_pages: int) -> None:
        self.of_pages("folio_mapped", vma, addr, nr_pages)

    def folios_mapped(self, vma: VMA, addrs: Int64s, pfns: Int64s) -> None:
        for addr in addrs.tolist():
            self.of_pages("folios_mapped", vma, addr, 1)

    def folio_swapped_in(self, vma: VMA, addr: int, pfn: int, exclusive: bool) -> None:
        self.of_pages("folio_swapped_in", vma, addr, 1)


TOLD: list[str] = []
EVERY = {
    "mm_created", "mm_forked", "mm_fork_end", "mm_gone", "vma_prepare", "vma_forked", "vma_split", "vma_joined",
    "geometry_begin", "geometry_end", "vma_absorbed", "vma_copied", "vma_moved", "vma_removed", "folio_mapped",
    "folio_swapped_in",
}  # fmt: skip


@pytest.mark.parametrize("kernel", ["6.1", "6.12", "6.18"])
def test_the_caller_holds_the_locks_that_the_interface_names(kernel: str) -> None:
    TOLD.clear()
    for seed in range(6):
        machine = Machine(PROFILES[kernel], [Guarded], scheduler=Holds())
        author = Author(machine, random.Random(seed), OPERATIONS, 48)
        author.begin()
        for _ in range(400):
            author.next()
    assert set(TOLD) >= EVERY


def test_a_fork_is_told_from_its_beginning_to_its_end() -> None:
    TOLD.clear()
    process = World(Guarded, scheduler=Holds()).spawn()
    process.write(process.mmap(PAGE))
    TOLD.clear()
    process.fork()
    assert TOLD[0] == "mm_forked" and TOLD[-1] == "mm_fork_end" and set(TOLD[1:-1]) == {"vma_forked"}
