# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that came about without a design, as ReverseMap.take_over() presents it.

A running kernel shows its mappings, and the graph of its own reverse map (kernel/importer.py).  It does not show
which faults and forks led there; inferred facts (kernel/ancestry.py) are marked below.

Invariants: an address space comes after the one that it was forked from; a VMA's chain and a tree name each
other; folios are those that some entry maps.  All of it is in the machine already, entries and mapcounts too.

No locking: nothing runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rmaplab.mm.vma import MM, VMA


@dataclass(eq=False)
class FoundAnonVma:
    """An anon_vma as the kernel has it; `root` and `parent` are positions in TakenOver.anon_vmas.

    tree: the VMAs in its interval tree, in order
    """

    root: int
    parent: int
    refcount: int
    num_children: int
    num_active_vmas: int
    tree: list[VMA]


@dataclass(eq=False)
class FoundVma:
    """A prepared VMA.

    own, chain: positions in TakenOver.anon_vmas; the chain begins with the oldest
    shift:      inferred: what to add to its page offset for the page number at which its family began; 0 for
                anonymous memory, whose page offset is that
    """

    vma: VMA
    own: int
    chain: list[int]
    shift: int


@dataclass(eq=False)
class FoundFolio:
    """A folio that is mapped.

    vma, addr: a VMA that maps some of it, and where its first page is there, or would be
    maker:     inferred: the address space that had it first; it may be dead
    anon_vma:  position in TakenOver.anon_vmas; -1 for KSM's
    """

    pfn: int
    nr_pages: int
    vma: VMA
    addr: int
    maker: MM
    anon_vma: int

    def as_made(self) -> VMA:
        """The VMA, as its maker had it."""
        if self.vma.mm is self.maker:
            return self.vma
        vma = self.vma
        copy = VMA(self.maker, vma.id, vma.start, vma.end, vma.pgoff, vma.flags, vma.file)
        copy.anon_pgoff = vma.anon_pgoff
        copy.prepared = True
        copy.rmap = list(vma.rmap)
        return copy


@dataclass(eq=False)
class FoundPlace:
    """A place at which KSM remembers to have mapped its page.

    vma: there; one in no tree if it is gone, in the address space from which others may have a copy
    own: the VMA's anon_vma, then
    """

    pfn: int
    vma: VMA
    addr: int
    own: int


@dataclass(eq=False)
class TakenOver:
    """All of it.

    spaces: address spaces, each with that it was forked from (inferred), and dead ones that are still above others
    vmas:   in the order of their address spaces
    places: of each KSM page, the oldest first
    """

    spaces: list[tuple[MM, MM | None]] = field(default_factory=list)
    vmas: list[FoundVma] = field(default_factory=list)
    folios: list[FoundFolio] = field(default_factory=list)
    places: list[FoundPlace] = field(default_factory=list)
    anon_vmas: list[FoundAnonVma] = field(default_factory=list)
