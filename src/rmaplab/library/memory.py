# SPDX-License-Identifier: GPL-2.0-or-later
"""What is in an address space: its VMAs, and the page that an address has."""

from __future__ import annotations

from typing import Final, NamedTuple

from rmaplab.explore.merging import backing, rights
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import (
    PTE_ANON,
    PTE_FILE,
    PTE_GUARD,
    PTE_MIGRATION,
    PTE_SHIFT,
    PTE_SWAP,
    PTE_WRITE,
    PTE_ZERO,
)
from rmaplab.mm.vma import VMA
from rmaplab.printable import plural

_KINDS: Final = (
    (PTE_ANON, "anonymous page"),
    (PTE_MIGRATION, "anonymous page under migration"),
    (PTE_ZERO, "the zero page"),
    (PTE_FILE, "page of the page cache"),
    (PTE_SWAP, "swapped out"),
    (PTE_GUARD, "guard region"),
    (0, "not touched yet"),
)


class Vma(NamedTuple):
    """A virtual memory area, as a line of /proc/PID/maps.

    start, end: bytes; pgoff: page offset, in pages
    rights:     "rw-p"; backing: "anonymous", or what is mapped
    prepared:   the reverse map knows it: it has had an anonymous page
    """

    start: int
    end: int
    rights: str
    backing: str
    pgoff: int
    prepared: bool

    @classmethod
    def of(cls, vma: VMA) -> Vma:
        return cls(vma.start, vma.end, rights(vma), backing(vma), vma.pgoff, vma.prepared)

    def __repr__(self) -> str:
        known = f"page offset {self.pgoff:#x}" if self.prepared else "not known to the reverse map yet"
        return f"<{self.start:#x}-{self.end:#x} {self.rights} {self.backing}, {known}>"


class Page(NamedTuple):
    """What a page-table entry has.

    kind:     "anonymous page", "the zero page", "swapped out", "not touched yet", …
    writable: a write needs no fault
    pfn:      number of the frame of an anonymous page, -1 for all others; head: of its folio's first page
    nr_pages: of its folio
    pgoff:    page offset by which the reverse map finds it
    mapcount: entries that map its folio
    """

    address: int
    kind: str
    writable: bool = False
    pfn: int = -1
    head: int = -1
    nr_pages: int = 0
    pgoff: int = 0
    mapcount: int = 0

    @classmethod
    def at(cls, machine: Machine, vma: VMA, address: int) -> Page:
        """The page at `address`, which is in `vma`."""
        entry = vma.mm.page_table.get(address)
        kind = next(kind for bit, kind in _KINDS if entry & bit or not bit)
        writable = entry & PTE_WRITE != 0
        if not entry & (PTE_ANON | PTE_MIGRATION):
            return cls(address, kind, writable)
        folios, pfn = machine.folios, entry >> PTE_SHIFT
        head = int(folios.head.m[pfn])
        nr_pages, mapcount = folios.nr_pages(head), folios.total_mapcount(head)
        return cls(address, kind, writable, pfn, head, nr_pages, int(folios.index.m[pfn]), mapcount)

    def __str__(self) -> str:
        if self.pfn < 0:
            return f"{self.address:#x}: {self.kind}"
        large = f" of a folio of {plural(self.nr_pages, 'page')}" if self.nr_pages > 1 else ""
        times = "once" if self.mapcount == 1 else f"{self.mapcount:,} times"
        return f"{self.address:#x}: {self.kind}{large}, frame {self.pfn}, page offset {self.pgoff:#x}, mapped {times}"

    def __repr__(self) -> str:
        return f"<{self}>"
