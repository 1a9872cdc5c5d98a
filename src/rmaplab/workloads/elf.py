# SPDX-License-Identifier: GPL-2.0-or-later
"""How a dynamically linked process starts: private file mappings that get pages of their own.

For every object the loader reserves the whole span with one read-only MAP_PRIVATE mapping of the file,
maps text, constants and data over parts of it with MAP_FIXED, and anonymous memory for .bss at the end;
relocations write to the data pages, and mprotect then makes the relocated constants (RELRO) read-only,
which splits the data segment.  The pages that relocations copied are anonymous, yet their VMA's vm_pgoff
is an offset in the file: the case that KERNEL.md section 3 calls a TODO of the prototype.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Final

from rmaplab.mm.abi import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_EXEC, PROT_READ
from rmaplab.trace.events import Event
from rmaplab.workloads.workload import (
    AREA,
    HEAP,
    PAGE,
    READ_WRITE,
    STACK,
    STACK_BYTES,
    Count,
    Pages,
    Processes,
    Workload,
    fork,
    leave,
    mmap,
    mprotect,
    read,
    start,
    write,
)

_SHELL: Final = 1
_RESERVE: Final = MAP_PRIVATE
_OVER: Final = MAP_PRIVATE | MAP_FIXED
_HEADERS: Final = 1  # pages of ELF headers, notes and symbols, mapped read-only at the start


class Elf(Workload, frozen=True, kw_only=True):
    """A shell forks and executes programs; each maps its libraries, relocates, protects, and works."""

    parameters: ClassVar[dict[str, str]] = {
        "processes": "programs started, one after the other",
        "alive": "programs that are left running at the same time; older ones exit",
        "libraries": "shared objects that each maps",
        "text": "pages of code of each object",
        "constants": "pages of read-only data of each object",
        "relro": "pages that relocations write and mprotect then makes read-only",
        "data": "pages of writable data, all written",
        "bss": "pages of .bss, all written",
        "heap": "pages of heap that the program writes",
    }

    processes: Processes = 150
    alive: Processes = 50
    libraries: Pages = 20
    text: Pages = 64
    constants: Pages = 16
    relro: Pages = 4
    data: Pages = 4
    bss: Pages = 2
    heap: Count = 32

    def span(self) -> int:
        return self.libraries * self._object_pages() * PAGE

    def _object_pages(self) -> int:
        return _HEADERS + self.text + self.constants + self.relro + self.data + self.bss + 1

    def files(self) -> list[str]:
        return [f"lib{i}.so" for i in range(self.libraries)]

    def events(self) -> Iterator[Event]:
        yield from self._program(_SHELL)
        for pid in range(2, self.processes + 2):
            yield fork(_SHELL, pid)
            yield from self._program(pid)
            if pid - self.alive > 1:
                yield leave(pid - self.alive)

    def _program(self, pid: int) -> Iterator[Event]:
        """execve, the loader's work, and some of the program's own."""
        yield start(pid)
        yield write(pid, STACK + STACK_BYTES - 3 * PAGE, 2)
        for library in range(self.libraries):
            yield from self._load(pid, AREA + library * self._object_pages() * PAGE, library)
        if self.heap:
            yield Event("brk", pid, addr=HEAP + self.heap * PAGE, result=HEAP + self.heap * PAGE)
            yield write(pid, HEAP, self.heap)

    def _load(self, pid: int, base: int, file: int) -> Iterator[Event]:
        text = base + _HEADERS * PAGE
        constants = text + self.text * PAGE
        relro = constants + self.constants * PAGE
        data = relro + self.relro * PAGE
        bss = data + self.data * PAGE
        in_file = self._object_pages() - 1 - self.bss
        yield mmap(pid, base, in_file + self.bss, PROT_READ, _RESERVE, file)
        yield mmap(pid, text, self.text, PROT_READ | PROT_EXEC, _OVER, file, text - base)
        yield mmap(pid, constants, self.constants, PROT_READ, _OVER, file, constants - base)
        yield mmap(pid, relro, self.relro + self.data, READ_WRITE, _OVER, file, relro - base)
        yield mmap(pid, bss, self.bss, READ_WRITE, _OVER | MAP_ANONYMOUS)
        yield read(pid, base, 1)
        yield write(pid, relro, self.relro)
        yield mprotect(pid, relro, self.relro, PROT_READ)
        yield write(pid, data, self.data + self.bss)
        yield read(pid, text, max(1, self.text // 4))
