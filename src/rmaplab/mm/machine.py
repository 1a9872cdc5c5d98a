# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine: processes, and the system calls that they make.

    >>> from rmaplab.mm.abi import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE
    >>> from rmaplab.mm.profile import PROFILES
    >>> from rmaplab.rmap.anon_vma import AnonVmaRmap
    >>> machine = Machine(PROFILES["7.3"], [AnonVmaRmap])
    >>> mm = machine.exec(1, 0x7FFC00000000, 0x21000, 0x7FFFFFFDE000, 0x555555560000)
    >>> addr = machine.mmap(mm, 0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, None, 0)
    >>> machine.fault(mm, addr, True)
    0

System calls take the address space first and return what Linux returns: an address, 0, or a negative errno.
What cannot happen (a process that does not exist) raises HistoryError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from mypy_extensions import mypyc_attr

from rmaplab.mm import (
    ksm,
    madvise,
    memory,
    migrate,
    mlock,
    mmap,
    mprotect,
    mremap,
    process,
    userfaultfd,
    vmscan,
)
from rmaplab.mm.abi import CLONE_VM, EFAULT
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.locking import lock_of, write_downgrade
from rmaplab.mm.profile import Profile
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.system import System
from rmaplab.mm.vma import MM, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, VM_SHARED, VMA, File
from rmaplab.mm.vma_lock import VmaLocks
from rmaplab.sync.locks import Scheduler


class Process:
    """A process: all threads that share a thread group id."""

    def __init__(self, pid: int, mm: MM, parent: int) -> None:
        self.pid: Final = pid
        self.mm = mm
        self.parent: Final = parent  # pid, 0 if it was not forked in this history


@mypyc_attr(allow_interpreted_subclasses=True)
class Machine(System):
    """Processes and their memory, watched by one or more designs.  check/mutants.py derives machines from it that
    lack a rule.

    profile:      the kernel whose rules hold
    designs:      classes of designs; each gets an instance in `self.designs`
    leader:       index of the design that decides what may merge and whose walks reclaim uses
    large_folios: highest order of anonymous folios that faults may allocate (0 or 1: only single pages, as there are
        no anonymous folios of order 1)
    vma_locks:    what the locks of VMAs are made of, where a scenario looks into them
    """

    vma_locks: ClassVar[type[VmaLocks]] = VmaLocks

    def __init__(
        self,
        profile: Profile,
        designs: Sequence[type[ReverseMap]],
        leader: int = 0,
        scheduler: Scheduler | None = None,
        large_folios: int = 0,
    ) -> None:
        super().__init__(profile, designs, leader, scheduler, large_folios)
        self.processes: dict[int, Process] = {}
        self._asked_for: Process | None = None  # the one of these that was asked for last: mostly it is the next
        self.mms: dict[int, MM] = {}  # live address spaces, by id

    # Processes

    def process(self, pid: int) -> Process:
        """The process `pid`.

        :raises HistoryError: there is none: it was never started, or it has exited
        """
        process = self._asked_for
        if process is None or process.pid != pid:
            process = self.processes.get(pid)
            if process is None:
                raise HistoryError(f"there is no process {pid}: it was never started, or it has exited")
            self._asked_for = process
        return process

    def mm_of(self, pid: int) -> MM:
        """The address space of the process `pid`; HistoryError as in process()."""
        return self.process(pid).mm

    def exec(self, pid: int, stack_start: int, stack_len: int, stack_offset: int, start_brk: int) -> MM:
        """execve(2): `pid` gets a fresh address space with a stack; a process that is not known yet begins here.

        stack_start, stack_len: bytes, where the stack's VMA is after it was moved down
        stack_offset: the address that its page offset stands for, where it began (fs/exec.c setup_arg_pages())
        start_brk: start of the heap; 0 if it is not known

        :raises HistoryError: that stack cannot be
        """
        mm = self.begin_exec(stack_start, stack_len, stack_offset)
        self.end_exec(pid, mm, stack_start, stack_len, start_brk)
        return mm

    def begin_exec(self, stack_start: int, stack_len: int, stack_offset: int) -> MM:
        """The first part of exec(): nobody's address space, with the arguments on a stack that has still to move."""
        mm = process.new_address_space(self, stack_start, stack_len, stack_offset)
        self.mms[mm.id] = mm
        return mm

    def end_exec(self, pid: int, mm: MM, stack_start: int, stack_len: int, start_brk: int) -> None:
        """The second: the stack gets to its place, and `mm` is the address space of `pid`."""
        process.set_up_stack(self, mm, stack_start, stack_len, start_brk)
        known = self.processes.get(pid)
        if known is None:
            self.processes[pid] = Process(pid, mm, 0)
        else:
            old = known.mm
            known.mm = mm
            self._drop(old)

    def fork(self, pid: int, child_pid: int, flags: int = 0) -> MM:
        """fork(2): `child_pid` begins with a copy of `pid`'s address space, or with CLONE_VM in `flags` with that
        itself (vfork(2), threads that are processes).  Returns the child's address space (kernel/fork.c dup_mmap()).

        :raises HistoryError: there is no `pid`, or there is a `child_pid`
        """
        parent = self.process(pid)
        if child_pid in self.processes:
            raise HistoryError(f"there is a process {child_pid} already: a child has a pid of its own")
        self.syscalls.count += 1
        if flags & CLONE_VM:
            mm = parent.mm
            mm.users_word.count += 1
        else:
            mm = process.fork_address_space(self, parent.mm)
            self.mms[mm.id] = mm
        self.processes[child_pid] = Process(child_pid, mm, pid)
        return mm

    def exit(self, pid: int) -> None:
        """The last thread of `pid` is gone."""
        mm = self.process(pid).mm
        self.syscalls.count += 1
        del self.processes[pid]
        self._asked_for = None
        self._drop(mm)

    def _drop(self, mm: MM) -> None:
        if self.spaces.drop(mm):
            self._exit(mm)

    def _exit(self, mm: MM) -> None:
        process.exit_address_space(self, mm)
        del self.mms[mm.id]

    def reap(self) -> None:
        """Let the address spaces go whose last reference a walk gave back (the work of mmput_async())."""
        while self.spaces.late:
            self._exit(self.spaces.late.pop())

    # System calls

    def mmap(
        self,
        mm: MM,
        addr: int,
        length: int,
        prot: int,
        flags: int,
        file: File | None,
        offset: int,
        at: int | None = None,
    ) -> int:
        """mmap(2): map `length` bytes (mm/mmap.c do_mmap()).

        addr, length, offset: bytes; `addr` is a hint without MAP_FIXED
        prot, flags: PROT_* and MAP_* (mm/abi.py); VMAs are populated with MAP_POPULATE or MAP_LOCKED
        file: what is mapped; None means MAP_ANONYMOUS
        at:   where the kernel placed it in a history that is replayed, and taken where the kernel has the choice

        Returns the address or a negative errno: EINVAL, ENOMEM, EPERM (below vm.mmap_min_addr), EEXIST
        (MAP_FIXED_NOREPLACE), EOVERFLOW."""
        self.syscalls.count += 1
        return mmap.mmap(self, mm, addr, length, prot, flags, file, offset, at)

    def munmap(self, mm: MM, addr: int, length: int) -> int:
        """munmap(2): [addr, +length), in bytes, whatever is there (mm/mmap.c __vm_munmap()).  Returns 0, -EINVAL, or
        -ENOMEM where a VMA would have to be split and there are too many."""
        self.syscalls.count += 1
        return mmap.munmap(self, mm, addr, length)

    def brk(self, mm: MM, addr: int) -> int:
        """brk(2): the heap ends at `addr` (bytes).  Returns where it ends now: the old end if that cannot be."""
        self.syscalls.count += 1
        return mmap.brk(self, mm, addr)

    def mprotect(self, mm: MM, addr: int, length: int, prot: int) -> int:
        """mprotect(2): rights `prot` (PROT_*) for [addr, +length), in bytes (mm/mprotect.c do_mprotect_pkey()).

        Returns 0 or a negative errno: EINVAL, ENOMEM (a hole, or too many VMAs), EACCES.  What comes before the place
        of the error has the new rights."""
        self.syscalls.count += 1
        return mprotect.mprotect(self, mm, addr, length, prot)

    def mremap(
        self, mm: MM, addr: int, old_len: int, new_len: int, flags: int, new_addr: int = 0, at: int | None = None
    ) -> int:
        """mremap(2): [addr, +old_len) gets `new_len` bytes, where it is or elsewhere (mm/mremap.c).

        flags:    MREMAP_*; new_addr: where to, with MREMAP_FIXED
        at:       where the kernel placed it in a history that is replayed

        Returns the new address or a negative errno: EINVAL, EFAULT, ENOMEM.  KSM's pages in the range are given back
        first."""
        self.syscalls.count += 1
        return mremap.mremap(self, mm, addr, old_len, new_len, flags, new_addr, at)

    def madvise(self, mm: MM, addr: int, length: int, advice: int) -> int:
        """madvise(2): MADV_* for [addr, +length), in bytes (mm/madvise.c do_madvise()).

        Returns 0 or a negative errno: EINVAL at the first VMA that does not take the advice, what comes before it
        advised; ENOMEM for a hole, the rest advised as well.  Advice that only tunes readahead, and MADV_COLLAPSE,
        change no pages here."""
        self.syscalls.count += 1
        return madvise.madvise(self, mm, addr, length, advice)

    def mlock(self, mm: MM, addr: int, length: int, flags: int = 0) -> int:
        """mlock2(2): keep [addr, +length), in bytes, in memory; `flags`: MLOCK_ONFAULT (mm/mlock.c do_mlock()).

        Returns 0 or a negative errno: EINVAL, ENOMEM for a hole (what comes before it is locked, nothing is populated)
        or for pages that cannot be touched (all is locked, what comes before is populated)."""
        self.syscalls.count += 1
        return mlock.mlock(self, mm, addr, length, flags)

    def munlock(self, mm: MM, addr: int, length: int) -> int:
        """munlock(2): the opposite for [addr, +length), in bytes.  Returns 0, -EINVAL, or -ENOMEM at the first hole."""
        self.syscalls.count += 1
        return mlock.munlock(self, mm, addr, length)

    def mlockall(self, mm: MM, flags: int) -> int:
        """mlockall(2): `flags` are MCL_* (mm/mlock.c apply_mlockall_flags()).  Returns 0 or -EINVAL; a VMA that cannot
        be locked stays as it is."""
        self.syscalls.count += 1
        return mlock.mlockall(self, mm, flags)

    def munlockall(self, mm: MM) -> int:
        """munlockall(2).  Returns 0."""
        self.syscalls.count += 1
        return mlock.munlockall(self, mm)

    def set_name(self, mm: MM, addr: int, length: int, name: str) -> int:
        """prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME) for [addr, +length), in bytes; "" takes a name away.

        Returns 0 or a negative errno: EINVAL, EBADF at the first mapping of a file, ENOMEM for a hole, as madvise()."""
        self.syscalls.count += 1
        return madvise.set_name(self, mm, addr, length, name)

    # Accesses

    def fault(self, mm: MM, addr: int, write: bool) -> int:
        """The program reads or writes at `addr` (handle_mm_fault(), under the VMA's lock where that is enough).  A
        stack grows down to it.  Returns 0, or -EFAULT where the program would get SIGSEGV."""
        vma = self._lock_vma(mm, addr, write)
        if vma is not None:
            error = memory.access_error(vma, write) or memory.fault_vma(self, vma, addr & PAGE_MASK, 1, write, True)
            lock_of(vma).up_read()
            if error <= 0:
                if write and self.knows_contents and not error:
                    memory.note_written(self, mm, addr & PAGE_MASK, 1)
                return error
            self.wait_for_folio(error)
        mm.mmap_lock.down_read()
        vma = mm.tree.at(addr)
        if vma is None:
            mm.mmap_lock.up_read()
            mm.mmap_lock.down_write()
            vma = mmap.expand_stack(self, mm, addr)
            write_downgrade(mm)
        error = -EFAULT if vma is None else memory.access_error(vma, write)
        if vma is not None and not error:
            error = memory.fault_vma(self, vma, addr & PAGE_MASK, 1, write)
            if write and self.knows_contents:
                memory.note_written(self, mm, addr & PAGE_MASK, 1)
        mm.mmap_lock.up_read()
        return error

    def _lock_vma(self, mm: MM, addr: int, write: bool) -> VMA | None:
        """The VMA at `addr`, locked for a fault, unless it takes mmap_lock: there is no VMA, it is changing, or it
        would have to be prepared, for which its neighbours must stay (vmf_anon_prepare())."""
        vma = self.lock_vma_under_rcu(mm, addr)
        prepares = write or (self.huge and vma is not None and vma.file is None)  # also for the zero page of 2 MiB
        if vma is not None and prepares and not vma.prepared and not vma.flags & VM_SHARED:
            lock_of(vma).up_read()
            vma = None
        return vma

    def fault_range(self, mm: MM, addr: int, nr_pages: int, write: bool) -> int:
        """Touch `nr_pages` pages from `addr` upwards, as `fault` would one by one.  Returns how many
        were touched before one failed."""
        addr &= PAGE_MASK
        start = addr
        end = addr + (nr_pages << PAGE_SHIFT)
        one_by_one = memory.chunk(self) != 0 or self.guards
        while addr < end:
            # The first page of each VMA finds out what is wrong, if anything is.
            if self.fault(mm, addr, write):
                break
            addr += PAGE_SIZE
            vma = mm.tree.at(addr - PAGE_SIZE)
            if one_by_one or vma is None or addr >= end or addr >= vma.end:
                continue
            vma = self._lock_vma(mm, addr, write)
            if vma is not None:
                if not memory.access_error(vma, write):
                    rest = (min(end, vma.end) - addr) >> PAGE_SHIFT
                    self.rcu.count_sections(rest - 1)
                    lock_of(vma).lock_class.reads += rest - 1
                    memory.fault_vma(self, vma, addr, rest, write)
                    if write and self.knows_contents:
                        memory.note_written(self, mm, addr, rest)
                    addr += rest << PAGE_SHIFT
                lock_of(vma).up_read()
        return (addr - start) >> PAGE_SHIFT

    def fault_many(self, mm: MM, addrs: list[int], least: int) -> int:
        """Write to `addrs`, one after the other, as `fault` would one by one: to as many, from the first on, as get a
        new page and need nothing else, if these are `least` or more; else to none.  Returns how many."""
        if (
            self.scheduler is not None or self.guards or self.large_folios or self.entry_watchers or self.refs.pages
        ):  # fmt: skip
            return 0
        vma = mm.tree.at(addrs[0])
        if vma is None or not vma.prepared or vma.flags & VM_SHARED or memory.access_error(vma, True):
            return 0
        count = memory.new_pages(self, vma, addrs, least)
        self.rcu.count_sections(count)
        lock_of(vma).lock_class.reads += count
        return count

    # Users of the reverse map

    def referenced(self, mm: MM, addr: int, nr_pages: int) -> int:
        """Entries, wherever, that used the folios of this range since the last time."""
        return vmscan.referenced(self, mm, addr, addr + (nr_pages << PAGE_SHIFT))

    def swap_out(self, mm: MM, addr: int, nr_pages: int, how: int = 0) -> int:
        """Reclaim the folios of this range; returns the pages that became free.  `how`: vmscan.ONCE, vmscan.KEPT"""
        return vmscan.swap_out(self, mm, addr, addr + (nr_pages << PAGE_SHIFT), how)

    def place_in_swap(self, mm: MM, addr: int, nr_pages: int, first: int) -> None:
        """What is in swap in this range lies there in a row, from `first` on, where a real kernel put it."""
        vmscan.place(self, mm, addr, addr + (nr_pages << PAGE_SHIFT), first)

    def migrate(self, mm: MM, addr: int, nr_pages: int) -> int:
        """Migrate the folios of this range; returns the pages that moved."""
        return migrate.migrate(self, mm, addr, addr + (nr_pages << PAGE_SHIFT))

    def ksm_merge(self, mm: MM, addr: int, other_mm: MM, other_addr: int, how: int = 0) -> int:
        """Let KSM merge two pages; `how`: ksm.AS_FOUND; ksm.SPLIT and ksm.BREAK, which are about the first alone;
        ksm.FORGET, about none."""
        if how & ksm.BREAK:
            return ksm.break_at(self, mm, addr & PAGE_MASK)
        if how & ksm.SPLIT:
            return ksm.split_at(self, mm, addr & PAGE_MASK)
        if how & ksm.FORGET:
            return ksm.forget_stale(self)
        return ksm.merge_pages(self, mm, addr & PAGE_MASK, other_mm, other_addr & PAGE_MASK, how)

    def uffd_move(self, mm: MM, target: int, source: int, length: int) -> int:
        """UFFDIO_MOVE: the pages of [source, +length), in bytes, go to `target`, and their page offsets with them
        (mm/userfaultfd.c move_pages()).  Returns the bytes moved, or a negative errno if none were: EINVAL, ENOENT
        (nothing there), EEXIST (something at the target), EBUSY (a page that is shared)."""
        return userfaultfd.move(self, mm, target, source, length)
