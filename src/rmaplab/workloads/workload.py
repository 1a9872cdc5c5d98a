# SPDX-License-Identifier: GPL-2.0-or-later
"""What a built-in history is, and the few words that all of them are written in.

A workload is a record of parameters that can write down its events.  Each function below is one system
call or one run of faults with the result that Linux gives; addresses are chosen by the workload and
mapped with MAP_FIXED_NOREPLACE, so a history says the same on every machine.

Invariants
- The same parameters and the same seed give the same events.
- Every event's result is what Linux 6.12 returns: a replay that differs is a bug of the machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, ClassVar, Final

import msgspec

from rmaplab.mm.abi import (
    MAP_ANONYMOUS,
    MAP_FIXED_NOREPLACE,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
)
from rmaplab.trace.events import FAULT_WRITE, Event
from rmaplab.trace.history import FileEntry, Header, History

PAGE: Final = 4096
MAX_PROCESSES: Final = 10_000
MAX_PAGES: Final = 10_000_000

# Where things are, in every workload.
AREA: Final = 0x7F00_0000_0000  # the mappings under study
PRIVATE: Final = 0x7E00_0000_0000  # what a child maps for itself
AWAY: Final = 0x7D00_0000_0000  # where a move goes
ZONE: Final = 0xF0_0000_0000  # bytes of address space in each of them
HEAP: Final = 0x5555_5555_9000
STACK: Final = 0x7FFC_6F8D_3000  # as execve left one on 6.18 (KERNEL.md, section 2)
STACK_BYTES: Final = 0x21000
STACK_LINKED: Final = 0x7FFF_FFFD_E000  # the address that its page offset stands for

READ_WRITE: Final = PROT_READ | PROT_WRITE
ANONYMOUS: Final = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE

Count = Annotated[int, msgspec.Meta(ge=0)]
Processes = Annotated[int, msgspec.Meta(ge=1, le=MAX_PROCESSES)]
Pages = Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGES)]
Percent = Annotated[int, msgspec.Meta(ge=0, le=100)]
Flag = Annotated[int, msgspec.Meta(ge=0, le=1)]
PerCpu = Annotated[int, msgspec.Meta(ge=0, le=MAX_PROCESSES, title="per CPU")]  # 0: one for each CPU


class Workload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A family of histories; its fields are the parameters, the class docstring says what happens."""

    parameters: ClassVar[dict[str, str]] = {}  # a sentence on each field

    seed: int = 1

    def __post_init__(self) -> None:
        if self.span() > ZONE:
            raise ValueError(
                f"the mappings take {self.span()} bytes, more than the {ZONE} set aside for them"
            )

    def span(self) -> int:
        """Bytes of address space from AREA on that the mappings take."""
        return 0

    def files(self) -> list[str]:
        """Names of the files that are mapped; an event's `file` counts into them."""
        return []

    def history(self) -> History:
        """The history, with a header that says which workload it is."""
        parameters = " ".join(f"{name}={getattr(self, name)}" for name in self.__struct_fields__)
        name = type(self).__name__.lower()
        files = [FileEntry(number, name=file) for number, file in enumerate(self.files())]
        header = Header(recorder=f"workload {name}", command=f"{name} {parameters}", files=files)
        return History(header, self.events())

    def events(self) -> Iterator[Event]:
        """What happens, from the first execve on."""
        raise NotImplementedError(f"{type(self).__name__} does not say what happens")


def places(vmas: int, nr_pages: int) -> range:
    """Addresses of VMAs of `nr_pages` pages each, one page apart, so that none of them merge."""
    step = (nr_pages + 1) * PAGE
    return range(AREA, AREA + vmas * step, step)


def start(pid: int) -> Event:
    """`pid` enters a fresh address space that holds its stack."""
    return Event("exec", pid, addr=STACK, length=STACK_BYTES, offset=STACK_LINKED, addr2=HEAP)


def fork(pid: int, child: int) -> Event:
    return Event("fork", pid, pid2=child)


def leave(pid: int) -> Event:
    return Event("exit", pid)


def mark(pid: int) -> Event:
    """What comes before the first of these is set-up (see trace/parallel.py)."""
    return Event("mark", pid)


def mmap(
    pid: int,
    addr: int,
    nr_pages: int,
    prot: int = READ_WRITE,
    flags: int = ANONYMOUS,
    file: int = -1,
    offset: int = 0,
) -> Event:
    """Map `nr_pages` pages at `addr`; `offset` in a file is in bytes."""
    return Event(
        "mmap",
        pid,
        addr=addr,
        length=nr_pages * PAGE,
        prot=prot,
        flags=flags,
        file=file,
        offset=offset,
        result=addr,
    )


def munmap(pid: int, addr: int, nr_pages: int) -> Event:
    return Event("munmap", pid, addr=addr, length=nr_pages * PAGE)


def mprotect(pid: int, addr: int, nr_pages: int, prot: int) -> Event:
    return Event("mprotect", pid, addr=addr, length=nr_pages * PAGE, prot=prot)


def mremap(pid: int, addr: int, old_pages: int, new_pages: int, flags: int, to: int) -> Event:
    """Change a mapping's size and place; `to` is where it ends up."""
    return Event(
        "mremap",
        pid,
        addr=addr,
        length=old_pages * PAGE,
        length2=new_pages * PAGE,
        flags=flags,
        addr2=to,
        result=to,
    )


def write(pid: int, addr: int, nr_pages: int) -> Event:
    """Write to each of `nr_pages` pages, in order."""
    return Event("fault", pid, addr=addr, length=nr_pages * PAGE, flags=FAULT_WRITE)


def read(pid: int, addr: int, nr_pages: int) -> Event:
    return Event("fault", pid, addr=addr, length=nr_pages * PAGE)


def reclaim(op: str, pid: int, addr: int, nr_pages: int) -> Event:
    """A user of the reverse map (`referenced`, `swap_out` or `migrate`) at work on what is mapped there."""
    return Event(op, pid, addr=addr, length=nr_pages * PAGE)


def warm(pid: int, areas: Iterable[int], nr_pages: int) -> Iterator[Event]:
    """Map `nr_pages` pages at each of `areas`, and write to all of them."""
    for area in areas:
        yield mmap(pid, area, nr_pages)
        yield write(pid, area, nr_pages)


def family(
    first: int, members: Iterable[int], related: bool, areas: Iterable[int], nr_pages: int
) -> Iterator[Event]:
    """`members` begin with the same warm memory: forked from `first`, or each by itself."""
    for pid in members:
        if related:
            yield fork(first, pid)
        else:
            yield start(pid)
            yield from warm(pid, areas, nr_pages)
