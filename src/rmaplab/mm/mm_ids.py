# SPDX-License-Identifier: GPL-2.0-or-later
"""Which address spaces map a large folio, as far as it remembers: two of them.

Models folio_add_return_large_mapcount() and folio_sub_return_large_mapcount() of include/linux/rmap.h, with the fields
_large_mapcount, _mm_id, _mm_id_mapcount and _mm_ids of struct folio.  A third address space is counted in the sum only,
and gets no slot by mapping more unless one is free by then.

Invariants
- a slot counts no more than the entries of its address space that map the folio, and is free at 0.
- a folio that is not shared is mapped by one address space at most; the reverse does not hold: who was not counted may
  be gone.

Locking: FOLIO_MM_IDS_LOCK_BITNUM, within the page-table lock of the entry; here each call is one step.
"""

from __future__ import annotations


class MmIds:
    """Of one large folio.

    mapcount: entries that map any page of it
    ids, counts: by slot, an address space (0: free) and its entries
    shared: more than one address space may map it (FOLIO_MM_IDS_SHARED_BITNUM)
    """

    def __init__(self) -> None:
        self.mapcount = 0
        self.ids = [0, 0]
        self.counts = [0, 0]
        self.shared = False

    def add(self, mm: int, count: int) -> None:
        """`count` more entries of address space `mm` map the folio."""
        others = self.mapcount
        self.mapcount += count
        ids = self.ids
        if mm in ids:
            self.counts[ids.index(mm)] += count
        elif 0 in ids:
            slot = ids.index(0)
            ids[slot] = mm
            self.counts[slot] = count
            if others:
                self.shared = True

    def sub(self, mm: int, count: int) -> None:
        """`count` entries of address space `mm` are gone."""
        self.mapcount -= count
        ids = self.ids
        if mm in ids:
            slot = ids.index(mm)
            self.counts[slot] -= count
            if self.counts[slot] > 0:
                return
            ids[slot] = 0
            self.counts[slot] = 0
        if self.mapcount in self.counts:
            self.shared = False

    def slots(self) -> list[tuple[int, int]]:
        """The address spaces that are counted, each with its entries."""
        return [(mm, count) for mm, count in zip(self.ids, self.counts, strict=True) if mm]
