# SPDX-License-Identifier: GPL-2.0-or-later
"""System calls that fail.

A history holds a negative errno, as the machine returns it.  A person who types a system call expects it to succeed, so
a process handle raises: `errno` as in any OSError, and a sentence that looks at the address space for the reason.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from rmaplab.mm.vma import MM, PAGE_MASK, PAGE_SIZE, VM_READ, VM_WRITE
from rmaplab.trace.events import FAULT_WRITE, Event

_NAMES: Final = {"fault": "access", "name": "prctl", "uffd_move": "UFFDIO_MOVE"}


class SystemCallError(OSError):
    """A system call returned an error, or an access gets SIGSEGV.

    errno: as the system call has it (EFAULT for an access)
    event: the call, with its result, as the machine's history has it
    addr:  of an access, in bytes: where it was, which the event has to the page
    """

    def __init__(self, event: Event, mm: MM, addr: int = 0) -> None:
        number = -event.result
        name = errno.errorcode.get(number, str(number))
        what = f"{_NAMES.get(event.op, event.op)} at {event.addr:#x} by process {event.pid}"
        if event.op == "fault":
            what = f"process {event.pid} gets SIGSEGV for a {_access(event)} at {addr or event.addr:#x}"
        super().__init__(number, f"{name}: {what}: {_why(event, mm) or os.strerror(number).lower()}")
        self.event: Final = event
        self.addr: Final = addr or event.addr


def _access(event: Event) -> str:
    return "write" if event.flags & FAULT_WRITE else "read"


def _why(event: Event, mm: MM) -> str:
    """What is wrong, as far as the address space tells; "" if it does not."""
    if event.op == "fault":
        vma = mm.tree.at(event.addr)
        if vma is None:
            return "nothing is mapped there"
        allowed = vma.flags & (VM_WRITE if event.flags & FAULT_WRITE else VM_READ)
        return "" if allowed else "the rights of the mapping forbid it"
    if event.result == -errno.EINVAL:
        if event.addr & ~PAGE_MASK:
            return f"the address is not a multiple of {PAGE_SIZE}"
        if event.length == 0:
            return "the length is 0"
    if event.result == -errno.EEXIST:
        return "something is mapped there already"
    if event.result in (-errno.ENOMEM, -errno.EFAULT) and event.op not in ("mmap", "brk"):
        addr = event.addr
        for vma in mm.tree.overlapping(event.addr, event.addr + event.length):
            if vma.start > addr:
                break
            addr = vma.end
        if addr < event.addr + event.length:
            return f"nothing is mapped at {addr:#x}"
    return ""
