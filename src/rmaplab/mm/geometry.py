# SPDX-License-Identifier: GPL-2.0-or-later
"""A change of geometry: start, end or page offset of one VMA, or of two neighbours, become others.

Models struct vma_prepare (mm/vma.h), which vma_prepare() and vma_complete() (mm/vma.c) share.  The machine creates
one before it changes anything, and calls the designs before and after (ReverseMap.geometry_begin(), geometry_end()).

Invariants: `before` and `after` never change.  Until geometry_begin() has returned, each VMA has the bounds in
`before`; when geometry_end() is called, those in `after`.  All VMAs are of one address space.

Locking: mmap_lock and the locks of all VMAs named here are held for writing, from before the first event to after the
last one.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import mypyc_attr

from rmaplab.mm.errors import InvariantError
from rmaplab.mm.vma import PAGE_SHIFT, VMA


@mypyc_attr(acyclic=True, free_list_len=1)  # made and gone with each change
class Bounds:
    """[start, end) in bytes, and the page offsets of `start` (see VMA), of a VMA at one moment."""

    def __init__(self, start: int, end: int, pgoff: int, anon_pgoff: int) -> None:
        if start >= end or pgoff < 0 or anon_pgoff < 0:
            raise InvariantError(
                f"a VMA would get the range {start:#x}-{end:#x} at page offset {pgoff:#x}, and {anon_pgoff:#x} for"
                " anonymous pages"
            )
        self.start: Final = start
        self.end: Final = end
        self.pgoff: Final = pgoff
        self.anon_pgoff: Final = anon_pgoff

    @property
    def last_anon_pgoff(self) -> int:
        """Page offset of the last page, if it is anonymous."""
        return self.anon_pgoff + ((self.end - self.start) >> PAGE_SHIFT) - 1


def bounds_of(vma: VMA) -> Bounds:
    """Those that it has now."""
    return Bounds(vma.start, vma.end, vma.pgoff, vma.anon_pgoff)


@mypyc_attr(free_list_len=1)
class GeometryChange:
    """One change.

    vmas:      the VMAs whose bounds change: one, or two neighbours between which a boundary moves (adj_next)
    before:    bounds of each of them before the change, in the same order
    after:     and after it
    split_off: the new VMA that gets the rest of the range, where `vmas[0]` is split (insert)
    absorbed:  VMAs whose whole range `vmas[0]` takes in, and which go (remove, remove2)
    """

    def __init__(self, vmas: list[VMA], after: list[Bounds], absorbed: list[VMA]) -> None:
        self.vmas: Final = vmas
        self.before: Final = [bounds_of(vma) for vma in vmas]
        self.after: Final = after
        self.split_off: VMA | None = None
        self.absorbed: Final = absorbed

    def concerns_prepared(self) -> bool:
        """Is one of the VMAs prepared, so that designs need the event?"""
        for vma in self.vmas:
            if vma.prepared:
                return True
        return False

    def extent(self) -> tuple[int, int]:
        """[start, end) of all that changes: what is absorbed or split off is within."""
        start, end = self.before[0].start, self.before[0].end
        for i in range(len(self.vmas)):
            before = self.before[i]
            after = self.after[i]
            start = min(start, min(before.start, after.start))
            end = max(end, max(before.end, after.end))
        return start, end
