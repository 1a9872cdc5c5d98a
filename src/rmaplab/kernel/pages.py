# SPDX-License-Identifier: GPL-2.0-or-later
"""struct page and struct folio: the places of their fields, in each generation.

Two things changed: what was `compound_head` of a tail page is `compound_info`, whose value may be a mask in place of
a pointer; and flags, order, index and counts of a folio have moved.  Which holds is decided by the debug information
and by the value read, never by a version.

From include/linux/mm_types.h, include/linux/page-flags.h (_compound_head(), prep_compound_tail()) and include/linux/
rmap.h (folio_add_return_large_mapcount()).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from rmaplab.kernel.memory import Memory, Record, has_field, one_of, symbol

Int64s = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

FIELDS: Final = ("flags", "head", "mapping", "index", "mapcount", "private")
_MASKS: Final = 0xFFFF_FFFF_0000_0000  # no vmemmap is up there, and no folio so large that its mask is below
_MM_ID: Final = 0x7FFF_FFFF
_SHARED: Final = 1 << 63  # FOLIO_MM_IDS_SHARED_BITNUM


class FolioCounts(NamedTuple):
    """How often a large folio is mapped, where the kernel keeps that in one place.

    mapped: by an entry, of a page or of all of it; whole: by an entry of all of it
    slots:  the address spaces that it counts by themselves: (mm_id, how often)
    shared: more than one may map it
    """

    mapped: int
    whole: int
    slots: tuple[tuple[int, int], ...]
    shared: bool


class PageLayout:
    """Offsets, flags and rules of one kernel."""

    def __init__(self, memory: Memory) -> None:
        program = memory.program
        self._vmemmap: Final = memory.vmemmap
        index = one_of(program, "struct page", "__folio_index", "index")
        compound = one_of(program, "struct page", "compound_info", "compound_head")
        self.record: Final = Record(
            program, "struct page", "flags", compound, "mapping", index, "_mapcount", "private"
        )
        offset = self.record.offset
        self.size: Final = self.record.size
        self.offset: Final = dict(zip(FIELDS, offset.values(), strict=True))
        self.dtype: Final = np.dtype(
            {
                "names": list(FIELDS),
                "formats": ["<i4" if name == "mapcount" else "<u8" for name in FIELDS],
                "offsets": [self.offset[name] for name in FIELDS],
                "itemsize": self.size,
            }
        )
        self.anon_exclusive: Final = _flag(program, "PG_anon_exclusive")
        self.in_swapcache: Final = _flag(program, "PG_swapcache") | _flag(program, "PG_swapbacked")
        self.head_flag: Final = _flag(program, "PG_head")
        self.double_map: Final = _flag(program, "PG_double_map")
        # zero_pfn is a function where there is a page for each colour.
        self.zero_pfn: Final[int] = symbol(program, "zero_page_pfn", "zero_pfn").value_()
        # In the first tail page: the order in the lowest byte of a word, and how often the folio is mapped.
        self._order: Final = one_of(program, "struct folio", "_folio_order", "_flags_1")
        self._whole: Final = one_of(program, "struct folio", "_entire_mapcount", "_total_mapcount")
        names = [self._order, self._whole]
        self.counts_mapped: Final = has_field(program, "struct folio", "_large_mapcount")
        self.counts_mms: Final = has_field(program, "struct folio", "_mm_ids")
        names += ["_large_mapcount"] * self.counts_mapped + ["_mm_ids", "_mm_id_mapcount"] * self.counts_mms
        folio = self._folio = Record(program, "struct folio", *names)
        formats: dict[str, Any] = {"flags": "<u8", "order": "u1", "whole": "<i4"}
        at = {"flags": self.size, "order": folio.offset[self._order], "whole": folio.offset[self._whole]}
        if self.counts_mapped:
            formats["mapped"], at["mapped"] = "<i4", folio.offset["_large_mapcount"]
        if self.counts_mms:
            formats["mm_ids"], at["mm_ids"] = "<u8", folio.offset["_mm_ids"]
            width = "<i2" if folio.code["_mm_id_mapcount"] == "h" else "<i4"
            formats["mm_mapcounts"], at["mm_mapcounts"] = (width, (2,)), folio.offset["_mm_id_mapcount"]
        self.tail_offset: Final = {name: offset - self.size for name, offset in at.items()}
        self.tail_dtype: Final = np.dtype(
            {
                "names": [*formats],
                "formats": [*formats.values()],
                "offsets": [*self.tail_offset.values()],
                "itemsize": self.size,
            }
        )

    def address(self, pfn: int) -> int:
        """Where the struct page of `pfn` is."""
        return self._vmemmap + pfn * self.size

    def head_of(self, pfn: int, info: int) -> int:
        """The first page of the folio that `pfn` is in; `info`: the field `head` of its struct page."""
        if not info & 1:
            return pfn
        head = self.address(pfn) & info if info >= _MASKS else info - 1
        return (head - self._vmemmap) // self.size

    def heads_of(self, pfns: Int64s, infos: Words) -> Int64s:
        """The same for many."""
        base, size = np.uint64(self._vmemmap), np.uint64(self.size)
        addresses = base + pfns.astype(np.uint64) * size
        heads = np.where(infos >= np.uint64(_MASKS), addresses & infos, infos - np.uint64(1))
        return np.where(infos & np.uint64(1) != 0, ((heads - base) // size).astype(np.int64), pfns)

    def order(self, memory: Memory, head: int) -> int:
        """Of a large folio."""
        return int(bytes(memory.read(self.address(head) + self._folio.offset[self._order], 1))[0])

    def tail(self, memory: Memory, head: int) -> Any:
        """The first tail page of a large folio, as `tail_dtype` has it."""
        return np.frombuffer(memory.read(self.address(head + 1), self.size), dtype=self.tail_dtype)[0]

    def whole(self, tail: Any) -> tuple[int, bool]:
        """By how many entries all of the folio is mapped, and whether each of its pages counts one more for these
        (PG_double_map)."""
        return int(tail["whole"]) + 1, int(tail["flags"]) & self.double_map != 0

    def counts(self, tail: Any) -> FolioCounts | None:
        """What the first tail page says about how the folio is mapped; None where the kernel does not count it."""
        if not self.counts_mapped:
            return None
        slots: list[tuple[int, int]] = []
        shared = False
        if self.counts_mms:
            ids = int(tail["mm_ids"])
            shared = ids & _SHARED != 0
            for id, count in zip((ids & _MM_ID, ids >> 32 & _MM_ID), tail["mm_mapcounts"].tolist(), strict=True):
                if id:
                    slots.append((id, count + 1))
        return FolioCounts(int(tail["mapped"]) + 1, int(tail["whole"]) + 1, tuple(slots), shared)


def _flag(program: Any, name: str) -> int:
    try:
        return 1 << int(program.constant(name).value_())
    except LookupError:
        return 0  # PG_double_map went in 6.2
