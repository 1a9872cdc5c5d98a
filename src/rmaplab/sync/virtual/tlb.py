# SPDX-License-Identifier: GPL-2.0-or-later
"""TLBs in virtual time (arch/x86/mm/tlb.c).

A CPU has an address space loaded from when a task of it runs there until one of another does.  A CPU that clears
entries flushes its own TLB, which is counted work, and interrupts and waits for the others that have the space loaded;
not those that idle or run kernel threads, which flush before they return to it (lazy TLB), unless page tables were
freed.  So processes of one thread do not interrupt each other, but kswapd, kcompactd and ksmd interrupt them.  Reclaim
defers the flushes for what it unmaps until a dirty folio is written out, or 31 are freed; migration does not.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import i64

from rmaplab.sync.locks import CpuMask
from rmaplab.sync.virtual.core import Core
from rmaplab.sync.virtual.prices import INTERRUPT, SHOOTDOWN
from rmaplab.sync.virtual.task import Task


class Tlbs:
    """All TLBs, and what flushing those of other CPUs took.

    shootdowns: flushes that other CPUs were interrupted for
    interrupts: how many CPUs, in all
    shooting:   how long that took of those who flushed
    """

    def __init__(self, core: Core) -> None:
        self.shootdowns = 0
        self.interrupts = 0
        self.shooting: i64 = 0
        self._core: Final = core
        self._shootdown: Final[i64] = core.work.price(SHOOTDOWN)
        self._interrupt: Final[i64] = core.work.price(INTERRUPT)

    def runs_in(self, task: Task, space: CpuMask) -> None:
        """`task` is in this address space from now on."""
        if task.space is not space:
            task.space = space
            self._core.cpus.all[task.cpu].load(space)

    def flush(self, task: Task, space: CpuMask, freed_tables: bool) -> None:
        if _is_elsewhere(space, task.cpu):
            self._core.arrive(task)
            self._shoot_down(task, list(space.cpus), freed_tables)

    def flush_later(self, task: Task, space: CpuMask, dirty: bool) -> None:
        # arch_tlbbatch_should_defer(): only what is loaded elsewhere; else there is nothing to wait for.
        if _is_elsewhere(space, task.cpu):
            unflushed = task.unflushed
            for cpu in space.cpus:
                if cpu not in unflushed.cpus:
                    unflushed.cpus.append(cpu)
            unflushed.dirty = unflushed.dirty or dirty

    def flush_deferred(self, task: Task, if_dirty: bool) -> None:
        unflushed = task.unflushed
        if unflushed.cpus and (unflushed.dirty or not if_dirty):
            self._core.arrive(task)
            cpus = list(unflushed.cpus)
            unflushed.cpus.clear()
            unflushed.dirty = False
            self._shoot_down(task, cpus, False)

    def _shoot_down(self, task: Task, numbers: list[int], freed_tables: bool) -> None:
        """Interrupt those of these CPUs that do not flush by themselves, and wait until all have flushed
        (native_flush_tlb_multi())."""
        cpus = self._core.cpus
        hit = 0
        for number in numbers:
            there = cpus.all[number].task
            if number != task.cpu and (freed_tables or (there is not None and there.space is not None)):
                hit += 1
                if there is not None:
                    there.interrupted += self._interrupt
        if hit:
            taken = self._shootdown + (hit - 1) * cpus.waking
            self.shootdowns += 1
            self.interrupts += hit
            self.shooting += taken
            cpus.spun += taken
            self._core.figures.saw(task, "waits for other TLBs", task.time, task.time + taken)
            task.time += taken


def _is_elsewhere(space: CpuMask, cpu: int) -> bool:
    """Is it loaded on any CPU but `cpu`?"""
    cpus = space.cpus
    return len(cpus) > 1 or (len(cpus) == 1 and cpus[0] != cpu)
