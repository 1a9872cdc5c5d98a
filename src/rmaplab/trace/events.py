# SPDX-License-Identifier: GPL-2.0-or-later
"""The vocabulary of histories: what can happen to memory, one event a row.

Recorders, importers, workloads, the random generator and the real kernel's driver all speak it, and
`rmaplab.trace.play` plays it on a machine.  Addresses and lengths are bytes; results are what the system
call returned (an address, 0, or a negative errno).

| op | fields used |
| --- | --- |
| exec | pid; addr, length: the stack VMA after it was moved down; offset: the address that its page offset stands for; addr2: start of the heap (0: not known). The first event of a process that no fork made. |
| fork | pid, pid2 = child; flags: CLONE_VM (shares the address space), CLONE_VFORK |
| exit | pid |
| mmap | addr, length, prot, flags, file, offset, result |
| munmap, mprotect (prot), madvise (flags = advice), mlock (flags: MLOCK_ONFAULT), munlock | addr, length, result |
| mlockall (flags), munlockall | result |
| mremap | addr, length, length2 = new length, flags, addr2 = new address asked for, result |
| brk | addr, result |
| name | addr, length, file = position of the name in the header's `names` (an empty one takes it away), result (PR_SET_VMA_ANON_NAME) |
| fault | addr, length: a run of pages touched one after the other; flags: FAULT_WRITE; result 0, or -EFAULT for an access that gets a signal |
| swap_out, migrate, referenced | addr, length: what a user of the reverse map does to the folios mapped there; flags of swap_out: what a real kernel's reclaim did (mm/reclaim.py) |
| ksm | pid, addr and pid2, addr2: two pages with the same contents, merged; flags: what a real kernel's ksmd did (mm/ksm.py) |
| uffd_move | addr = destination, addr2 = source, length, result |
| mark | offset = number of a checkpoint: the header may hold /proc/PID/maps of that moment |
"""

from __future__ import annotations

from typing import Final

import msgspec

OPS: Final = (
    "exec", "fork", "exit", "mmap", "munmap", "mprotect", "madvise", "mlock", "munlock", "mlockall",
    "munlockall", "mremap", "brk", "name", "fault", "swap_out", "migrate", "referenced", "ksm",
    "uffd_move", "mark",
)  # fmt: skip

FAULT_WRITE: Final = 1


class Event(msgspec.Struct, omit_defaults=True):
    """One event.  Fields that an operation does not use keep their defaults."""

    op: str
    pid: int
    addr: int = 0
    length: int = 0
    prot: int = 0
    flags: int = 0
    addr2: int = 0
    length2: int = 0
    file: int = -1
    offset: int = 0
    pid2: int = 0
    result: int = 0
    time: int = 0  # nanoseconds since the history began
    cpu: int = -1  # -1: not known
