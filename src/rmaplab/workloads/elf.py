# SPDX-License-Identifier: GPL-2.0-or-later
"""How a dynamically linked process starts: private file mappings that get pages of their own.

For every object the loader reserves the whole span with one read-only MAP_PRIVATE mapping of the file,
maps text, constants and data over parts of it with MAP_FIXED, and anonymous memory for .bss at the end;
relocations write to the data pages, and mprotect then makes the relocated constants (RELRO) read-only,
which splits the data segment.  The pages that relocations copied are anonymous, yet their VMA's vm_pgoff
is an offset in the file: a TODO of the prototype (docs/kernels/rules.md, section 3).
"""

from __future__ import annotations

from typing import Annotated, Final

from rmaplab.mm.abi import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_EXEC, PROT_READ
from rmaplab.trace.script import PAGE, READ_WRITE, SMALL_PROGRAM, Process, Script
from rmaplab.workloads.workload import AREA, Count, Pages, Processes, Workload, says

_RESERVE: Final = MAP_PRIVATE
_OVER: Final = MAP_PRIVATE | MAP_FIXED
_HEADERS: Final = 1  # pages of ELF headers, notes and symbols, mapped read-only at the start


class Elf(Workload, frozen=True, kw_only=True):
    """A shell forks and executes programs; each maps its libraries, relocates, protects, and works."""

    processes: Annotated[Processes, says("programs started, one after the other")] = 150
    alive: Annotated[Processes, says("programs that are left running at the same time; older ones exit")] = 50
    libraries: Annotated[Pages, says("shared objects that each maps")] = 20
    text: Annotated[Pages, says("pages of code of each object")] = 64
    constants: Annotated[Pages, says("pages of read-only data of each object")] = 16
    relro: Annotated[Pages, says("pages that relocations write and mprotect then makes read-only")] = 4
    data: Annotated[Pages, says("pages of writable data, all written")] = 4
    bss: Annotated[Pages, says("pages of .bss, all written")] = 2
    heap: Annotated[Count, says("pages of heap that the program writes")] = 32

    def span(self) -> int:
        return self.libraries * self._object_pages() * PAGE

    def _object_pages(self) -> int:
        return _HEADERS + self.text + self.constants + self.relro + self.data + self.bss + 1

    def files(self) -> list[str]:
        return [f"lib{i}.so" for i in range(self.libraries)]

    def tell(self, script: Script) -> None:
        shell = script.spawn()
        self._program(shell)
        running: list[Process] = []
        for _ in range(self.processes):
            program = shell.fork()
            program.exec()
            self._program(program)
            running.append(program)
            if len(running) > self.alive:
                running.pop(0).exit()

    def _program(self, program: Process) -> None:
        """The loader's work, and some of the program's own."""
        program.write(SMALL_PROGRAM.stack + SMALL_PROGRAM.length - 3 * PAGE, 2 * PAGE)
        for library in range(self.libraries):
            self._load(program, AREA + library * self._object_pages() * PAGE, library)
        if self.heap:
            program.brk(SMALL_PROGRAM.heap + self.heap * PAGE)
            program.write(SMALL_PROGRAM.heap, self.heap * PAGE)

    def _load(self, program: Process, base: int, file: int) -> None:
        text = base + _HEADERS * PAGE
        constants = text + self.text * PAGE
        relro = constants + self.constants * PAGE
        data = relro + self.relro * PAGE
        bss = data + self.data * PAGE
        end = bss + self.bss * PAGE
        program.mmap(end - base, base, PROT_READ, _RESERVE, file)
        program.mmap(constants - text, text, PROT_READ | PROT_EXEC, _OVER, file, text - base)
        program.mmap(relro - constants, constants, PROT_READ, _OVER, file, constants - base)
        program.mmap(bss - relro, relro, READ_WRITE, _OVER, file, relro - base)
        program.mmap(end - bss, bss, READ_WRITE, _OVER | MAP_ANONYMOUS)
        program.read(base)
        program.write(relro, data - relro)
        program.mprotect(relro, data - relro, PROT_READ)
        program.write(data, end - data)
        program.read(text, max(1, self.text // 4) * PAGE)
