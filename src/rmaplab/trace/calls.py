# SPDX-License-Identifier: GPL-2.0-or-later
"""The system calls that a recorder follows, and a driver of a real kernel makes: one table for all of them.

A call has as many registers as the kernel saves, but only as many *parameters* as it is defined with
(SYSCALL_DEFINEn in mm/); the other registers hold leftovers.  So the table names
each parameter, by the field of the event that it becomes ("" where it decides nothing here), and no recorder
looks at more.  To follow another call, add a row, and, if it is an operation of its own, a case in
`Reducer.call`.
"""

from __future__ import annotations

from typing import Final

from rmaplab.mm.abi import (
    MADV_DODUMP,
    MADV_DOFORK,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_HUGEPAGE,
    MADV_KEEPONFORK,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    MADV_NORMAL,
    MADV_RANDOM,
    MADV_SEQUENTIAL,
    MADV_UNMERGEABLE,
    MADV_WIPEONFORK,
)
from rmaplab.trace.events import OPS, Event

__all__ = ["BY_NUMBER", "CALLS", "CHANGING", "DOES", "LOCKING_ADVICE", "Call"]

# Advice that changes VMAs, for which madvise() takes mmap_lock for writing (mm/madvise.c get_lock_mode()).
LOCKING_ADVICE: Final = frozenset((
    MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_DONTFORK, MADV_DOFORK, MADV_MERGEABLE, MADV_UNMERGEABLE,
    MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTDUMP, MADV_DODUMP, MADV_WIPEONFORK, MADV_KEEPONFORK,
))  # fmt: skip


_NARROW: Final = frozenset(("prot", "flags", "file"))


class Call:
    """A system call.

    number:      on x86-64 (arch/x86/entry/syscalls/syscall_64.tbl)
    op:          the operation that it is; "": none
    parameters:  fields of the event, in the order of the parameters
    half_way:    works its way through a range, and what it did before it failed stays done
    skipped:     may change VMAs, and has no operation: it is counted
    masks:       of the parameters: rights, flags and identifiers have 32 bits
    """

    def __init__(
        self,
        name: str,
        number: int,
        op: str = "",
        parameters: tuple[str, ...] = (),
        half_way: bool = False,
        skipped: bool = False,
    ) -> None:
        self.name: Final = name
        self.number: Final = number
        self.op: Final = op
        self.parameters: Final = parameters
        self.half_way: Final = half_way
        self.skipped: Final = skipped
        self.masks: Final = [0xFFFFFFFF if field in _NARROW else -1 for field in parameters]

    def registers(self, values: list[int]) -> list[int]:
        """What the parameters are, of what the registers hold."""
        return [value & mask for mask, value in zip(self.masks, values, strict=False)]

    def arguments(self, event: Event, descriptor: int = -1) -> list[int]:
        """What the call is given to do `event`; `descriptor`: of its file."""
        return [
            descriptor if field == "file" else int(getattr(event, field)) if field else 0 for field in self.parameters
        ]


_RANGE: Final = ("addr", "length")
_SKIPPED: Final = {
    "io_setup": 206, "io_destroy": 207, "remap_file_pages": 216, "mbind": 237, "migrate_pages": 256,
    "move_pages": 279, "userfaultfd": 323, "process_madvise": 440, "set_mempolicy_home_node": 450,
    "map_shadow_stack": 453, "mseal": 462,
}  # fmt: skip

# Of these, those that make, change or take away VMAs.
CHANGING: Final = frozenset(("io_setup", "io_destroy", "remap_file_pages", "mbind", "userfaultfd", "map_shadow_stack"))

CALLS: Final = {
    call.name: call
    for call in (
        Call("mmap", 9, "mmap", (*_RANGE, "prot", "flags", "file", "offset")),
        Call("mprotect", 10, "mprotect", (*_RANGE, "prot"), half_way=True),
        Call("munmap", 11, "munmap", _RANGE),
        Call("brk", 12, "brk", ("addr",)),
        Call("mremap", 25, "mremap", (*_RANGE, "length2", "flags", "addr2")),
        Call("madvise", 28, "madvise", (*_RANGE, "flags"), half_way=True),
        Call("shmat", 30, "mmap", ("file", "addr", "flags")),
        Call("shmdt", 67, "munmap", ("addr",)),
        Call("mlock", 149, "mlock", _RANGE, half_way=True),
        Call("munlock", 150, "munlock", _RANGE, half_way=True),
        Call("mlockall", 151, "mlockall", ("flags",)),
        Call("munlockall", 152, "munlockall"),
        Call("prctl", 157, "name", ("flags", "flags", "addr", "length", "offset")),
        Call("mlock2", 325, "mlock", (*_RANGE, "flags"), half_way=True),
        Call("pkey_mprotect", 329, "mprotect", (*_RANGE, "prot", ""), half_way=True),
        Call("clone", 56, "fork", ("flags",)),
        Call("fork", 57, "fork"),
        Call("vfork", 58, "fork"),
        Call("clone3", 435, "fork"),
        Call("execve", 59, "exec"),
        Call("execveat", 322, "exec"),
        Call("ptrace", 101, "", ("flags",)),
        # Last, in a register that they do not have: the soft limit that the second or third leads to, if it was read.
        Call("setrlimit", 160, "", ("flags", "addr", "", "", "", "length")),
        Call("prlimit64", 302, "", ("flags", "flags", "addr", "", "", "length")),
        Call("unshare", 272, "", ("flags",)),
        *(Call(name, number, skipped=True) for name, number in _SKIPPED.items()),
    )
}
BY_NUMBER: Final = {call.number: call for call in CALLS.values()}

# The call that does an operation, where one does all of it.
DOES: Final = {op: CALLS["mlock2" if op == "mlock" else op] for op in OPS if op in CALLS and op != "fork"}
