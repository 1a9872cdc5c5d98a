# SPDX-License-Identifier: GPL-2.0-or-later
"""The words in which tests of the machine make statements about Linux.

A `Space` is a machine with one process to begin with, number 1, and an arena of pages that are numbered from
0.  A call returns what the system call does: the page number of an address in the arena, 0, or the name of
an errno.  `vmas` is a picture of the arena: "0-4 rw, 6-8 r".

    space.map(0, 4)
    space.write(0)
    space.protect(2, 2, R)
    assert space.vmas() == "0-2 rw, 2-4 r"

Witnessed, it does everything in real processes, too (host.py), and fails where results, VMAs or
pages differ: what a test says of Linux, the running kernel has then said itself.
"""

from __future__ import annotations

import errno
import os

from mm.host import ARENA_PAGES, Host, HostUnavailable, compare
from rmaplab.check.histories import ARENA, header
from rmaplab.check.truth import Truth, invariants
from rmaplab.mm.abi import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_EXEC,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import (
    PTE_ANON,
    PTE_FILE,
    PTE_KSM,
    PTE_MIGRATION,
    PTE_SHIFT,
    PTE_SWAP,
    PTE_ZERO,
)
from rmaplab.mm.profile import PROFILES, REFERENCE, profile_for
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import VMA
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.trace.events import FAULT_WRITE, Event
from rmaplab.trace.play import Player

PAGE = 4096
N, R, RW, RX = PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC
ANON = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
FILE = MAP_PRIVATE | MAP_FIXED
DISK, MEMORY = 0, 1  # files

Result = int | str


class Space:
    """A machine, perhaps with the running kernel beside it."""

    def __init__(
        self,
        kernel: str = REFERENCE,
        witness: bool = False,
        designs: tuple[type[ReverseMap], ...] = (AnonVmaRmap,),
        large_folios: int = 0,
    ) -> None:
        self.host: Host | None = None
        profile = PROFILES[kernel]
        if witness:
            profile, own = profile_for(os.uname().release)
            if not own:
                raise HostUnavailable(f"no profile for the running kernel, {os.uname().release}")
            self.host = Host()
        self.kernel = profile.name
        self.machine = Machine(profile, designs, large_folios=large_folios)
        self.player = Player(self.machine, header(), batch=False)
        self.player.do(Event("exec", 1, 0x7FF0_0000_0000, 3 * PAGE, offset=0x7FF1_0000_0000))
        if self.host is not None:
            self.machine.mm_of(1).mmap_base = self.host.fence()

    def close(self) -> None:
        """The end of a test: nothing is broken, and the kernel agrees."""
        try:
            assert invariants(self.machine, Truth(self.machine)) == []
            if self.host is not None:
                assert compare(self.host, self.machine) == []
        finally:
            if self.host is not None:
                self.host.close()

    def do(self, event: Event) -> Result:
        """Any event; its result is ignored."""
        event.result = -errno.EFAULT
        result = self.player.do(event)
        if self.host is not None:
            assert self.host.play(event) == result, "the kernel returns something else"
        if result < 0:
            return errno.errorcode[-result]
        return (result - ARENA) // PAGE if result else 0

    def place(self, pages: int, prot: int = RW, flags: int = 0) -> int:
        """mmap() of private anonymous memory where the kernel likes; the page number it chose."""
        result = self.do(Event("mmap", 1, 0, pages * PAGE, prot, MAP_PRIVATE | MAP_ANONYMOUS | flags))
        assert isinstance(result, int), f"nothing was mapped: {result}"
        return result

    # System calls, with page numbers

    def map(
        self,
        page: int,
        pages: int,
        prot: int = RW,
        flags: int = ANON,
        file: int = -1,
        offset: int = 0,
        pid: int = 1,
    ) -> Result:
        """mmap(); `offset` in pages."""
        return self.do(Event("mmap", pid, at(page), pages * PAGE, prot, flags, file=file, offset=offset * PAGE))

    def unmap(self, page: int, pages: int, pid: int = 1) -> Result:
        return self.do(Event("munmap", pid, at(page), pages * PAGE))

    def protect(self, page: int, pages: int, prot: int, pid: int = 1) -> Result:
        return self.do(Event("mprotect", pid, at(page), pages * PAGE, prot))

    def advise(self, page: int, pages: int, advice: int, pid: int = 1) -> Result:
        return self.do(Event("madvise", pid, at(page), pages * PAGE, flags=advice))

    def lock(self, page: int, pages: int, flags: int = 0, pid: int = 1) -> Result:
        return self.do(Event("mlock", pid, at(page), pages * PAGE, flags=flags))

    def unlock(self, page: int, pages: int, pid: int = 1) -> Result:
        return self.do(Event("munlock", pid, at(page), pages * PAGE))

    def remap(
        self, page: int, pages: int, new_pages: int, flags: int = MREMAP_MAYMOVE, to: int = 0, pid: int = 1
    ) -> Result:
        event = Event("mremap", pid, at(page), pages * PAGE, flags=flags, length2=new_pages * PAGE, addr2=at(to))
        return self.do(event)

    def move(self, page: int, pages: int, to: int, flags: int = 0, pid: int = 1) -> Result:
        """mremap() to a place of one's choice."""
        return self.remap(page, pages, pages, MREMAP_MAYMOVE | MREMAP_FIXED | flags, to, pid)

    # Accesses

    def write(self, page: int, pages: int = 1, pid: int = 1) -> Result:
        return self._touch(page, pages, FAULT_WRITE, pid)

    def read(self, page: int, pages: int = 1, pid: int = 1) -> Result:
        return self._touch(page, pages, 0, pid)

    def _touch(self, page: int, pages: int, flags: int, pid: int) -> Result:
        for i in range(pages):
            result = self.do(Event("fault", pid, at(page + i), PAGE, flags=flags))
            if result:
                return result
        return 0

    # Processes

    def fork(self, pid: int = 1, child: int = 2, flags: int = 0) -> None:
        self.do(Event("fork", pid, pid2=child, flags=flags))

    def exit(self, pid: int) -> None:
        self.do(Event("exit", pid))

    # What is there

    def vma(self, page: int, pid: int = 1) -> VMA:
        vma = self.machine.mm_of(pid).tree.at(at(page))
        assert vma is not None, f"nothing is mapped at page {page}"
        return vma

    def vmas(self, pid: int = 1) -> str:
        """The arena's VMAs, as "first-end rights"."""
        shown = []
        for vma in self.machine.mm_of(pid).tree.overlapping(ARENA, ARENA + ARENA_PAGES * PAGE):
            rights = "".join(letter for bit, letter in ((1, "r"), (2, "w"), (4, "x")) if vma.flags & bit)
            shown.append(f"{(vma.start - ARENA) // PAGE}-{(vma.end - ARENA) // PAGE} {rights}".rstrip())
        return ", ".join(shown)

    def pgoff(self, page: int, pid: int = 1) -> int:
        """The page offset of a page: that of an anonymous VMA which never moved is its number."""
        vma = self.vma(page, pid)
        start = ARENA // PAGE if vma.file is None else 0
        return vma.pgoff + (at(page) - vma.start) // PAGE - start

    def entry(self, page: int, pid: int = 1) -> str:
        """What the page table has: "", "anon", "ksm", "zero", "file", "swap", "migration"."""
        entry = self.machine.mm_of(pid).page_table.get(at(page))
        if entry & PTE_KSM:
            return "ksm"
        for kind, name in (
            (PTE_ANON, "anon"),
            (PTE_ZERO, "zero"),
            (PTE_FILE, "file"),
            (PTE_SWAP, "swap"),
            (PTE_MIGRATION, "migration"),
        ):
            if entry & kind:
                return name
        return ""

    def has(self, bit: int, page: int, pid: int = 1) -> bool:
        """Is a PTE_* flag set there?"""
        return self.machine.mm_of(pid).page_table.get(at(page)) & bit != 0

    def pfn(self, page: int, pid: int = 1) -> int:
        """The anonymous page mapped there."""
        entry = self.machine.mm_of(pid).page_table.get(at(page))
        assert entry & PTE_ANON, f"no anonymous page at {page}"
        return entry >> PTE_SHIFT

    def mapcount(self, page: int, pid: int = 1) -> int:
        count: int = self.machine.folios.mapcount.m[self.pfn(page, pid)]
        return count


def at(page: int) -> int:
    """The address of a page of the arena."""
    return ARENA + page * PAGE
