# SPDX-License-Identifier: GPL-2.0-or-later
"""Address spaces and virtual memory areas: the data.

Models struct mm_struct and struct vm_area_struct (include/linux/mm_types.h), reduced to the fields that
decide geometry, faults and the reverse map.  The other files of mm/ have the operations.

Invariants
- VMAs of one address space do not overlap, are page aligned, and lie in its tree by start address.
- `anon_pgoff` is the page offset of `start` for anonymous pages, which their folios have as index.  Since 7.3 it is a
  number of its own (__vm_anon_pgoff_lo and _hi): the virtual page offset at which the VMA was mapped, of a file mapping
  as well.  Before, it is `pgoff`.  Where there is no file, the two are equal.
- `pgoff` is the page offset of `start`: in the file for a file mapping, else the virtual page offset
  that the VMA had when its first page was prepared (start >> 12 until then).
- `prepared` says that the VMA may hold anonymous pages: Linux's `vma->anon_vma != NULL`.  The reverse
  map was called (`vma_prepare` and the like) before it became true.

Locking: `mmap_lock` for writing to change any of this; a fault holds the VMA's own lock, or `mmap_lock`
for reading.
"""

from __future__ import annotations

from typing import Final, cast

from rmaplab.mm.pagetable import PageTable
from rmaplab.mm.vma_tree import Range, VMATree
from rmaplab.sync.fields import VERSION, WHOLE, part
from rmaplab.sync.locks import CpuMask, RwSemaphore, Scheduler, Word
from rmaplab.sync.order import depends, read_once

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 4096
PAGE_MASK: Final = ~0xFFF
TASK_SIZE: Final = 0x7FFFFFFFF000  # x86-64 with 4-level page tables

# vm_flags, with Linux's values (include/linux/mm.h).
VM_READ: Final = 0x1
VM_WRITE: Final = 0x2
VM_EXEC: Final = 0x4
VM_SHARED: Final = 0x8
VM_MAYREAD: Final = 0x10
VM_MAYWRITE: Final = 0x20
VM_MAYEXEC: Final = 0x40
VM_MAYSHARE: Final = 0x80
VM_GROWSDOWN: Final = 0x100
VM_PFNMAP: Final = 0x400
VM_LOCKED: Final = 0x2000
VM_IO: Final = 0x4000
VM_SEQ_READ: Final = 0x8000
VM_RAND_READ: Final = 0x10000
VM_STACK_INCOMPLETE_SETUP: Final = VM_SEQ_READ | VM_RAND_READ  # of a stack that exec has still to move
VM_DONTCOPY: Final = 0x20000
VM_DONTEXPAND: Final = 0x40000
VM_LOCKONFAULT: Final = 0x80000
VM_ACCOUNT: Final = 0x100000
VM_NORESERVE: Final = 0x200000
VM_HUGETLB: Final = 0x400000
VM_WIPEONFORK: Final = 0x2000000
VM_DONTDUMP: Final = 0x4000000
VM_MAYBE_GUARD: Final = 0x800
VM_SOFTDIRTY: Final = 0x8000000
VM_MIXEDMAP: Final = 0x10000000
VM_HUGEPAGE: Final = 0x20000000
VM_NOHUGEPAGE: Final = 0x40000000
VM_MERGEABLE: Final = 0x80000000
VM_DROPPABLE: Final = 1 << 40

VM_ACCESS_FLAGS: Final = VM_READ | VM_WRITE | VM_EXEC
VM_STICKY: Final = VM_SOFTDIRTY | VM_MAYBE_GUARD  # VMA_STICKY_FLAGS
VM_SPECIAL: Final = VM_IO | VM_DONTEXPAND | VM_PFNMAP | VM_MIXEDMAP


class File:
    """Something that can be mapped: a regular file, or shared anonymous memory.

    id:       unique in one machine; stands for the inode
    name:     what /proc/PID/maps would show, or "" where the recording keeps no names
    is_shmem: memory that only lives in the page cache (shared anonymous, memfd, /dev/shm)
    special:  vm_flags that its mmap handler adds (VM_PFNMAP | VM_IO for a device, say)
    closes:   its vm_operations have a close hook, so a merge cannot delete a VMA of it
    searches: its file system looks for addresses itself (f_op->get_unmapped_area), as ramfs does; those of disks do not
    """

    def __init__(
        self, id: int, name: str, is_shmem: bool = False, special: int = 0, closes: bool = False, searches: bool = False
    ) -> None:
        self.id: Final = id
        self.name: Final = name
        self.is_shmem: Final = is_shmem
        self.special: Final = special
        self.closes: Final = closes
        self.searches: Final = searches

    @property
    def is_anonymous(self) -> bool:
        """Is it behind shared anonymous memory, and has no name (vma_is_anon_shmem())?"""
        return self.is_shmem and self.id < 0


class VMA(Range):
    """A virtual memory area: [start, end), one set of rights, one backing."""

    def __init__(self, mm: MM, id: int, start: int, end: int, pgoff: int, flags: int, file: File | None) -> None:
        super().__init__(start, end, flags)
        self.mm = mm
        self.id: Final = id
        self.pgoff = pgoff
        self.anon_pgoff = pgoff
        self.file = file
        self.prepared = False
        self.preparing = False  # somebody is telling the designs of its first page
        self.detached = False  # unlinked from its mm's tree, about to go away
        self.policy = 0  # NUMA policy: equal numbers are equal policies
        self.uffd = 0  # userfaultfd context: equal numbers are the same context
        self.name = ""  # prctl(PR_SET_VMA_ANON_NAME)
        self.rmap: list[object | None] = []  # one slot a design
        self.lock: RwSemaphore | None = None  # the per-VMA lock (vm_lock)
        self.write_locked = False  # until mmap_lock is given back (vm_lock_seq)

    @property
    def nr_pages(self) -> int:
        """How many pages it spans (vma_pages())."""
        return (self.end - self.start) >> PAGE_SHIFT

    def frozen(self) -> VMA:
        """What one sees who reads it without a lock now: a copy that stays as it is."""
        then = VMA(self.mm, self.id, self.start, self.end, self.pgoff, self.flags, self.file)
        then.anon_pgoff = self.anon_pgoff
        then.prepared = self.prepared
        then.detached = self.detached
        return then

    def __repr__(self) -> str:
        return (
            f"<VMA mm {self.mm.id} {self.start:#x}-{self.end:#x} pgoff {self.pgoff:#x}"
            f"{' prepared' if self.prepared else ''}>"
        )


class MM:
    """An address space."""

    def __init__(self, id: int, mmap_lock: RwSemaphore, page_table: PageTable) -> None:
        self.id: Final = id
        self.mmap_lock: Final = mmap_lock
        self.page_table: Final = page_table
        self.tree: Final[VMATree[VMA]] = VMATree(VM_GROWSDOWN)
        self.users_word: Final = Word()  # mm_users: processes that run in it, and walks that look into it
        self.users_word.count = 1
        self.cpumask: Final = CpuMask()
        self.rmap: list[object | None] = []  # one slot a design
        self.write_locked: list[VMA] = []  # VMAs whose locks go with mmap_lock (vma_start_write())
        self.alive = True  # false once exit_mmap() has run
        self.mmap_base = 0x7FFFF7FFF000  # top-down placement starts here
        self.start_brk = 0
        self.brk = 0
        self.start_stack = 0
        self.def_flags = 0  # mlockall(MCL_FUTURE)
        self.total_vm = 0  # pages
        self.locked_vm = 0  # pages

    @property
    def users(self) -> int:
        """mm_users"""
        return self.users_word.count

    def __repr__(self) -> str:
        return f"<MM {self.id}: {len(self.tree)} VMAs>"


def vma_lookup(scheduler: Scheduler | None, mm: MM, addr: int) -> VMA | None:
    """The VMA at `addr` of `mm` for who looks under RCU: the tree may be an old one (mas_walk(), which dereferences
    each node)."""
    if scheduler is None:
        return mm.tree.at(addr)
    vma = _tree_of(scheduler, mm, addr, addr + 1).at(addr)
    if vma is not None:
        _leads_to(scheduler, vma)
    return vma


def find_vmas(scheduler: Scheduler | None, mm: MM, start: int, end: int) -> list[VMA]:
    """Those that touch [start, end), for the same (mas_find())."""
    if scheduler is None:
        return mm.tree.overlapping(start, end)
    found = _tree_of(scheduler, mm, start, end).overlapping(start, end)
    for vma in found:
        _leads_to(scheduler, vma)
    return found


def _leads_to(scheduler: Scheduler, vma: VMA) -> None:
    """The node leads to the VMA, and that to the page table: page_vma_mapped_walk() takes vma->vm_mm."""
    depends(scheduler, "look up VMA", vma)
    depends(scheduler, "look up VMA", vma.mm.page_table)


def _tree_of(scheduler: Scheduler, mm: MM, start: int, end: int) -> VMATree[VMA]:
    where = pages_of(start, end)
    return cast("VMATree[VMA]", read_once(scheduler, "look up VMA", mm.tree, VERSION, mm.tree, where, mm.users_word))


def pages_of(start: int, end: int) -> int:
    """The part of a tree of VMAs that has [start, end)."""
    return part(start >> PAGE_SHIFT, (end - 1) >> PAGE_SHIFT)


def seen(scheduler: Scheduler | None, vma: VMA) -> VMA:
    """`vma` as it is, or was, for who holds no lock that keeps it."""
    return cast(VMA, read_once(scheduler, "read VMA", vma, WHOLE, vma))
