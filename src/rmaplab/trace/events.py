# SPDX-License-Identifier: GPL-2.0-or-later
"""The vocabulary of histories: operations on memory, one event per row.

Recorders, importers, workloads, the random generator and the real kernel's driver all speak it, and
`rmaplab.trace.play` plays it on a machine.  Addresses and lengths are bytes; results are what the system
call returned (an address, 0, or a negative errno).  `OPERATIONS` is the only list of operations: all other
lists derive from it, or tests/trace/test_events.py compares them with it.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Actor = Literal["process", "kswapd", "kcompactd", "ksmd", "recorder"]


class Operation(msgspec.Struct, frozen=True):
    """Something that can happen to memory.

    fields:   of the event, beside `pid`, that it uses
    does:     what it means, and what a field means where its name does not say it
    actor:    who does it: the process itself, a thread of the kernel's, or whoever records
    of_pages: leaves VMAs as they are, but that one may get its first page
    """

    name: str
    fields: tuple[str, ...]
    does: str
    actor: Actor = "process"
    of_pages: bool = False


_RANGE: Final = ("addr", "length", "result")

OPERATIONS: Final = (
    Operation("exec", ("addr", "length", "offset", "addr2"),
              "a new program; addr, length: the stack VMA after it was moved down; offset: the address that its page "
              "offset stands for; addr2: start of the heap (0: not known).  The first event of a process that no fork "
              "made"),
    Operation("fork", ("pid2", "flags"),
              "process pid2 begins; flags: CLONE_VM (it shares the address space), CLONE_VFORK"),
    Operation("exit", (), "the process ends"),
    Operation("mmap", ("addr", "length", "prot", "flags", "file", "offset", "result"), "mmap(2), shmat(2)"),
    Operation("munmap", _RANGE, "munmap(2), shmdt(2)"),
    Operation("mprotect", ("addr", "length", "prot", "result"), "mprotect(2)"),
    Operation("madvise", ("addr", "length", "flags", "result"), "madvise(2); flags: the advice"),
    Operation("mlock", ("addr", "length", "flags", "result"), "mlock(2), mlock2(2); flags: MLOCK_ONFAULT"),
    Operation("munlock", _RANGE, "munlock(2)"),
    Operation("mlockall", ("flags", "result"), "mlockall(2)"),
    Operation("munlockall", ("result",), "munlockall(2)"),
    Operation("mremap", ("addr", "length", "length2", "flags", "addr2", "result"),
              "mremap(2); length2: the new length; addr2: the address that was asked for"),
    Operation("brk", ("addr", "result"), "brk(2)"),
    Operation("name", ("addr", "length", "file", "result"),
              "prctl(2) with PR_SET_VMA_ANON_NAME; file: position of the name in the header's `names` (an empty one "
              "takes it away)"),
    Operation("fault", ("addr", "length", "flags", "result"),
              "a run of pages touched one after the other; flags: FAULT_WRITE; result: 0, or -EFAULT for an access that "
              "gets a signal", of_pages=True),
    Operation("swap_out", ("addr", "length", "flags", "offset"),
              "reclaim of the folios mapped there; flags: what a real kernel's did (mm/vmscan.py); offset: where it put"
              " them in swap", "kswapd", True),
    Operation("migrate", ("addr", "length"), "the folios mapped there move to other frames", "kcompactd", True),
    Operation("referenced", ("addr", "length"), "were the folios mapped there used?", "kswapd", True),
    Operation("ksm", ("addr", "pid2", "addr2", "flags"),
              "two pages with the same contents, merged; flags: what a real kernel's ksmd did (mm/ksm.py)", "ksmd", True),
    Operation("uffd_move", ("addr", "addr2", "length", "result"),
              "UFFDIO_MOVE; addr: destination; addr2: source", of_pages=True),
    Operation("mark", ("offset",),
              "offset: number of a checkpoint; the header may hold /proc/PID/maps of that moment", "recorder"),
)  # fmt: skip

OPS: Final = tuple(operation.name for operation in OPERATIONS)

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

    def __str__(self) -> str:
        """`op pid=1 addr=0x... ...`, without fields that have their default, and without when and where."""
        words = [self.op, f"pid={self.pid}"]
        for name in self.__struct_fields__[2:-2]:
            value = getattr(self, name)
            if value != (-1 if name == "file" else 0):
                words.append(f"{name}={value}" if name == "pid2" or -4096 < value < 10 else f"{name}={value:#x}")
        return " ".join(words)
