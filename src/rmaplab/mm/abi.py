# SPDX-License-Identifier: GPL-2.0-or-later
"""Constants of the system-call interface, with the values that x86-64 Linux gives them.

From include/uapi/asm-generic/{mman-common.h,mman.h,errno-base.h,errno.h}, include/uapi/linux/{mman,sched}.h.
"""

from __future__ import annotations

from typing import Final

PROT_NONE: Final = 0
PROT_READ: Final = 1
PROT_WRITE: Final = 2
PROT_EXEC: Final = 4
PROT_SEM: Final = 8
PROT_GROWSDOWN: Final = 0x01000000
PROT_GROWSUP: Final = 0x02000000

MAP_SHARED: Final = 0x1
MAP_PRIVATE: Final = 0x2
MAP_SHARED_VALIDATE: Final = 0x3
MAP_DROPPABLE: Final = 0x8
MAP_TYPE: Final = 0xF
MAP_FIXED: Final = 0x10
MAP_ANONYMOUS: Final = 0x20
MAP_GROWSDOWN: Final = 0x100
MAP_LOCKED: Final = 0x2000
MAP_NORESERVE: Final = 0x4000
MAP_POPULATE: Final = 0x8000
MAP_NONBLOCK: Final = 0x10000
MAP_STACK: Final = 0x20000
MAP_FIXED_NOREPLACE: Final = 0x100000

MREMAP_MAYMOVE: Final = 1
MREMAP_FIXED: Final = 2
MREMAP_DONTUNMAP: Final = 4

MADV_NORMAL: Final = 0
MADV_RANDOM: Final = 1
MADV_SEQUENTIAL: Final = 2
MADV_WILLNEED: Final = 3
MADV_DONTNEED: Final = 4
MADV_FREE: Final = 8
MADV_REMOVE: Final = 9
MADV_DONTFORK: Final = 10
MADV_DOFORK: Final = 11
MADV_MERGEABLE: Final = 12
MADV_UNMERGEABLE: Final = 13
MADV_HUGEPAGE: Final = 14
MADV_NOHUGEPAGE: Final = 15
MADV_DONTDUMP: Final = 16
MADV_DODUMP: Final = 17
MADV_WIPEONFORK: Final = 18
MADV_KEEPONFORK: Final = 19
MADV_COLD: Final = 20
MADV_PAGEOUT: Final = 21
MADV_POPULATE_READ: Final = 22
MADV_POPULATE_WRITE: Final = 23
MADV_DONTNEED_LOCKED: Final = 24
MADV_COLLAPSE: Final = 25
MADV_GUARD_INSTALL: Final = 102
MADV_GUARD_REMOVE: Final = 103

MLOCK_ONFAULT: Final = 1
MCL_CURRENT: Final = 1
MCL_FUTURE: Final = 2
MCL_ONFAULT: Final = 4

CLONE_VM: Final = 0x100
CLONE_VFORK: Final = 0x4000

EPERM: Final = 1
ENOENT: Final = 2
EBADF: Final = 9
EAGAIN: Final = 11
ENOMEM: Final = 12
EACCES: Final = 13
EFAULT: Final = 14
EBUSY: Final = 16
EEXIST: Final = 17
EINVAL: Final = 22
EOVERFLOW: Final = 75
EOPNOTSUPP: Final = 95

MAX_MAP_COUNT: Final = 65530  # sysctl vm.max_map_count, as the kernel sets it
MMAP_MIN_ADDR: Final = 0x10000  # sysctl vm.mmap_min_addr, as most distributions set it; see System.mmap_min_addr
STACK_LIMIT: Final = 8 << 20  # RLIMIT_STACK as the kernel sets it (_STK_LIM), and most systems leave it
STACK_GUARD_GAP: Final = 256 << 12  # mm/mmap.c stack_guard_gap
