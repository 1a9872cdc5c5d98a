# SPDX-License-Identifier: GPL-2.0-or-later
"""What a scheduler is told of: batches of TLB flushes in reclaim, and reads of counts that no lock keeps."""

from __future__ import annotations

from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import PTE_SHIFT
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.mm.vma import PAGE_SIZE
from rmaplab.rmap import load
from rmaplab.sync.execution import Execution
from rmaplab.sync.locks import CpuMask, Scheduler

HOME = 0x10000000
PRIVATE_ANONYMOUS = 0x22
FIXED = 0x10


class Flushes(Scheduler):
    """Counts the entries whose flush is deferred, up to each flush that all of them wait for."""

    def __init__(self) -> None:
        self.deferred = 0
        self.batches: list[int] = []

    def flush_later(self, space: CpuMask, dirty: bool) -> None:
        self.deferred += 1

    def flush_deferred(self, if_dirty: bool = False) -> None:
        if self.deferred and not if_dirty:
            self.batches.append(self.deferred)
            self.deferred = 0


def machine_with(pages: int, scheduler: Scheduler) -> Machine:
    machine = Machine(PROFILES[REFERENCE], [load("anon_vma")], scheduler=scheduler)
    mm = machine.exec(1, 0x7FFFFFFF0000, PAGE_SIZE, 0x7FFFFFFF0000, 0)
    machine.mmap(mm, HOME, pages * PAGE_SIZE, 3, PRIVATE_ANONYMOUS | FIXED, None, 0)
    machine.fault_range(mm, HOME, pages, True)
    return machine


def test_reclaim_flushes_tlbs_once_for_each_batch_of_31_folios() -> None:
    """shrink_folio_list() calls try_to_unmap_flush() before it frees a full folio_batch, and at its end."""
    flushes = Flushes()
    machine = machine_with(70, flushes)
    machine.swap_out(machine.mm_of(1), HOME, 70)
    assert flushes.batches == [31, 31, 8]


def test_a_mapcount_that_no_lock_keeps_is_read_in_a_step() -> None:
    """folio_mapcount() is an atomic_read(): others map and unmap meanwhile."""
    execution = Execution()
    machine = machine_with(1, execution)
    head = machine.mm_of(1).page_table.get(HOME) >> PTE_SHIFT
    seen: list[int] = []
    execution.add("reader", lambda: seen.append(machine.mapcount(head)))
    execution.start()
    execution.step(execution.tasks[0])
    assert [step.what for step in execution.trace] == ["read mapcount"]
    assert seen == [1]
