# SPDX-License-Identifier: GPL-2.0-or-later
"""The words in which tests of reverse maps tell histories.

world = World("anon_vma")
parent = world.start()
addr = world.map(parent, pages=4)
world.write(parent, addr)
child = world.fork(parent)
assert world.finds("anon_vma", world.page(child, addr)) == {(parent, addr), (child, addr)}
"""

from __future__ import annotations

from rmaplab.mm.abi import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
)
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import PTE_ANON, PTE_SHIFT
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import MM, PAGE_SHIFT, PAGE_SIZE, VMA, File
from rmaplab.rmap import DESIGNS

LOW = 0x10_0000_0000  # where `map` puts mappings unless told otherwise
RW = PROT_READ | PROT_WRITE

Places = set[tuple[MM, int]]


class World:
    """A machine with named designs, and short words for what happens on it."""

    def __init__(self, *names: str, kernel: str = REFERENCE, large_folios: int = 0) -> None:
        designs = [DESIGNS[name] for name in names]
        self.machine = Machine(PROFILES[kernel], designs, large_folios=large_folios)
        self.file = File(1, "/file")
        self._next_pid = 1
        self._pids: dict[int, int] = {}  # by id of the address space
        self._next_addr = LOW

    def design(self, name: str) -> ReverseMap:
        return next(design for design in self.machine.designs if design.name == name)

    def start(self, moved_stack: bool = False) -> MM:
        """A process fresh from exec, with a stack that is at its page offset unless `moved_stack`."""
        pid = self._next_pid
        self._next_pid += 1
        top = 0x7FFF_FFFF_E000
        mm = self.machine.exec(pid, top - (0x5000 if moved_stack else 0), 0x1000, top, 0x5555_5555_0000)
        self._pids[mm.id] = pid
        return mm

    def stack(self, mm: MM) -> int:
        return mm.start_stack - PAGE_SIZE

    def map(
        self,
        mm: MM,
        pages: int = 1,
        at: int = 0,
        file: File | None = None,
        file_page: int = 0,
        prot: int = RW,
    ) -> int:
        """A private mapping, at an address that nothing is near to unless `at` says where."""
        if not at:
            at = self._next_addr
            self._next_addr += (pages + 16) << PAGE_SHIFT
        flags = MAP_PRIVATE | MAP_FIXED | (0 if file is not None else MAP_ANONYMOUS)
        addr = self.machine.mmap(mm, at, pages << PAGE_SHIFT, prot, flags, file, file_page << PAGE_SHIFT)
        assert addr == at
        return addr

    def write(self, mm: MM, addr: int, pages: int = 1) -> None:
        assert self.machine.fault_range(mm, addr, pages, True) == pages

    def read(self, mm: MM, addr: int, pages: int = 1) -> None:
        assert self.machine.fault_range(mm, addr, pages, False) == pages

    def fork(self, mm: MM) -> MM:
        pid = self._next_pid
        self._next_pid += 1
        child = self.machine.fork(self._pids[mm.id], pid)
        self._pids[child.id] = pid
        return child

    def exit(self, mm: MM) -> None:
        self.machine.exit(self._pids.pop(mm.id))

    def unmap(self, mm: MM, addr: int, pages: int = 1) -> None:
        assert self.machine.munmap(mm, addr, pages << PAGE_SHIFT) == 0

    def protect(self, mm: MM, addr: int, pages: int, prot: int) -> None:
        assert self.machine.mprotect(mm, addr, pages << PAGE_SHIFT, prot) == 0

    def move(self, mm: MM, addr: int, pages: int, to: int, keep: bool = False) -> int:
        """mremap() to a fixed address; with `keep` the source stays mapped (MREMAP_DONTUNMAP)."""
        flags = MREMAP_MAYMOVE | MREMAP_FIXED | (MREMAP_DONTUNMAP if keep else 0)
        assert self.machine.mremap(mm, addr, pages << PAGE_SHIFT, pages << PAGE_SHIFT, flags, to) == to
        return to

    def vma(self, mm: MM, addr: int) -> VMA:
        vma = mm.tree.at(addr)
        assert vma is not None
        return vma

    def page(self, mm: MM, addr: int) -> int:
        """pfn of the anonymous page that is mapped at `addr`."""
        entry = mm.page_table.get(addr)
        assert entry & PTE_ANON
        return entry >> PTE_SHIFT

    def finds(self, name: str, pfn: int) -> Places:
        """The places that a walk of the folio of `pfn` visits."""
        head: int = self.machine.folios.head.m[pfn]
        return {(vma.mm, addr) for vma, addr in self.design(name).walk(head)}

    def order(self, name: str, pfn: int) -> list[MM]:
        """The address spaces that a walk visits, in the order of the visit."""
        return [vma.mm for vma, _ in self.design(name).walk(pfn)]

    def maps(self, pfn: int) -> Places:
        """The places whose entries map page `pfn`."""
        return {
            (mm, addr)
            for mm in self.machine.mms.values()
            for addr, entry in zip(*(column.tolist() for column in mm.page_table.anon_entries()), strict=True)
            if entry >> PTE_SHIFT == pfn
        }
