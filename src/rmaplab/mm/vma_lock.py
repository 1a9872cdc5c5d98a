# SPDX-License-Identifier: GPL-2.0-or-later
"""What the lock of a VMA is made of: a reference count and two sequence numbers.

Models mm/mmap_lock.c (vma_start_read(), lock_vma_under_rcu(), __vma_start_write(), __vma_exclude_readers_for_detach())
and include/linux/mmap_lock.h (vma_refcount_put(), vma_mark_attached(), vma_end_write_all()) of 7.3.  Elsewhere in the
machine the lock is one rwsem (locking.py), and no VMA is used again; here its memory may be another VMA's at once
(SLAB_TYPESAFE_BY_RCU).

    vm_refcnt    0: detached; 1: attached; one more for each reader, EXCLUDED more while a writer keeps new ones out
    vm_lock_seq  mm_lock_seq of the mm when a writer locked the VMA last: locked for writing as long as they are equal

Invariants
- Whoever has a VMA locked for reading finds in it what its last writer left, and nobody changes it.
- Whoever gives back a VMA that a writer waits for wakes it through the mm, which has to be there still: it is the
  caller's own, or he holds it.

Locking: writers have mmap_lock for writing, which is not modelled: there is one.
"""

from __future__ import annotations

from typing import Final, cast

from mypy_extensions import mypyc_attr

from rmaplab.sync.locks import Scheduler
from rmaplab.sync.order import (
    ACQUIRE,
    FULL,
    RELEASE,
    atomic,
    atomic_inc,
    read_once,
    read_plain,
    smp_load_acquire,
    smp_store_release,
    write_once,
)

EXCLUDED: Final = 1 << 30


class Space:
    """Of struct mm_struct: its one VMA (None: no more), mm_lock_seq, which is odd while mmap_lock is held for
    writing, and mm_count."""

    def __init__(self) -> None:
        self.vma: Area | None = None
        self.mm_lock_seq = 0
        self.mm_count = 1


class Area:
    """Of struct vm_area_struct."""

    def __init__(self, mm: Space, vm_start: int) -> None:
        self.vm_mm = mm
        self.vm_start = vm_start
        self.vm_refcnt = 1
        self.vm_lock_seq = -1


@mypyc_attr(allow_interpreted_subclasses=True)
class VmaLocks:
    """The functions, under one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler: Final = scheduler

    # Readers

    def lock_vma_under_rcu(self, mm: Space, addr: int) -> Area | None:
        """The VMA that begins at `addr`, locked for reading; None: there is none, or it is changing."""
        self.scheduler.rcu_enter()
        vma = cast("Area | None", read_once(self.scheduler, "mas_walk()", mm, "vma", mm.vma))
        if vma is not None and not self._start_read(mm, vma):
            vma = None
        self.scheduler.rcu_leave()
        if vma is not None and self.start_of(vma) != addr:
            self.end_read(vma, mm)
            return None
        return vma

    def start_of(self, vma: Area) -> object:
        """vma->vm_start, by who has it locked."""
        return read_plain(self.scheduler, "vma->vm_start", vma, "vm_start", vma.vm_start)

    def _start_read(self, mm: Space, vma: Area) -> bool:
        """vma_start_read()"""
        scheduler = self.scheduler
        atomic(scheduler, "__refcount_inc_not_zero_limited_acquire()", vma, "vm_refcnt", 0, ACQUIRE, _may_be_read)
        if not _may_be_read(vma.vm_refcnt):
            return False
        vma.vm_refcnt += 1
        found = cast(Space, read_plain(scheduler, "vma->vm_mm", vma, "vm_mm", vma.vm_mm))
        if found is not mm:
            self.give_back(vma, found)
            return False
        locked = read_plain(scheduler, "vma->vm_lock_seq", vma, "vm_lock_seq", vma.vm_lock_seq)
        if locked == smp_load_acquire(scheduler, "raw_read_seqcount()", mm, "mm_lock_seq", mm.mm_lock_seq):
            self.end_read(vma, mm)
            return False
        return True

    def give_back(self, vma: Area, other: Space) -> None:
        """The VMA is one of another mm, which may go as soon as nobody has the VMA (`err_unstable`)."""
        atomic_inc(self.scheduler, "mmgrab()", other, "mm_count")
        other.mm_count += 1
        self.end_read(vma, other)
        self.drop(other)

    def end_read(self, vma: Area, mm: Space) -> None:
        """vma_refcount_put()"""
        atomic(self.scheduler, "vma_refcount_put()", vma, "vm_refcnt", 0, RELEASE)
        vma.vm_refcnt -= 1
        if vma.vm_refcnt >= EXCLUDED:
            self.scheduler.touch("vma_writer_wait", mm)

    def drop(self, mm: Space) -> None:
        """mmdrop()"""
        atomic(self.scheduler, "mmdrop()", mm, "mm_count")
        mm.mm_count -= 1
        if mm.mm_count == 0:
            self.scheduler.free("mm_struct", mm)

    # Writers

    def begin_write(self, mm: Space) -> None:
        """mm_lock_seqcount_begin(), in mmap_write_lock()"""
        write_once(self.scheduler, "mm_lock_seqcount_begin()", mm, "mm_lock_seq")
        mm.mm_lock_seq += 1

    def start_write(self, vma: Area) -> None:
        """Readers are out, and stay out until end_write() (__vma_start_write())."""
        self._exclude_readers(vma, 1)
        write_once(self.scheduler, "set vma->vm_lock_seq", vma, "vm_lock_seq")
        vma.vm_lock_seq = vma.vm_mm.mm_lock_seq
        self._let_readers_in(vma)

    def end_write(self, mm: Space) -> None:
        """vma_end_write_all()"""
        smp_store_release(self.scheduler, "vma_end_write_all()", mm, "mm_lock_seq")
        mm.mm_lock_seq += 1

    def move_start(self, vma: Area, addr: int) -> None:
        """The VMA, which is locked for writing, begins elsewhere."""
        write_once(self.scheduler, "set vma->vm_start", vma, "vm_start")
        vma.vm_start = addr

    def unlink(self, vma: Area) -> None:
        """It leaves its tree, and nobody can lock it any more (vma_mark_detached())."""
        write_once(self.scheduler, "vma_iter_clear()", vma.vm_mm, "vma")
        vma.vm_mm.vma = None
        atomic(self.scheduler, "vma_mark_detached()", vma, "vm_refcnt", 0, FULL)
        vma.vm_refcnt -= 1
        if vma.vm_refcnt:
            self._exclude_readers(vma, 0)
            self._let_readers_in(vma)

    def use_again(self, vma: Area, mm: Space, addr: int) -> None:
        """Its memory is a VMA of `mm` (vm_area_alloc(), vma_iter_store_new(), vma_mark_attached())."""
        scheduler = self.scheduler
        write_once(scheduler, "vma_init()", vma, "vm_mm")
        vma.vm_mm = mm
        self.move_start(vma, addr)
        write_once(scheduler, "vma_lock_init()", vma, "vm_lock_seq")
        vma.vm_lock_seq = -1
        smp_store_release(scheduler, "vma_iter_store_new()", mm, "vma")
        mm.vma = vma
        smp_store_release(scheduler, "vma_mark_attached()", vma, "vm_refcnt")
        vma.vm_refcnt = 1

    def _exclude_readers(self, vma: Area, left: int) -> None:
        """No new ones come, and those that are there have left (__vma_start_exclude_readers())."""
        atomic(self.scheduler, "refcount_add_not_zero()", vma, "vm_refcnt", 0, FULL)
        vma.vm_refcnt += EXCLUDED
        self.scheduler.wait_load("readers to leave", vma, "vm_refcnt", _Left(vma, EXCLUDED + left).ready)

    def _let_readers_in(self, vma: Area) -> None:
        """__vma_end_exclude_readers()"""
        atomic(self.scheduler, "refcount_sub_and_test()", vma, "vm_refcnt", 0, RELEASE)
        vma.vm_refcnt -= EXCLUDED


def _may_be_read(count: object) -> bool:
    return isinstance(count, int) and 0 < count < EXCLUDED


class _Left:
    """What a writer waits for."""

    def __init__(self, vma: Area, count: int) -> None:
        self.vma: Final = vma
        self.count: Final = count

    def ready(self) -> bool:
        return self.vma.vm_refcnt == self.count
