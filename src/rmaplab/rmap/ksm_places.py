# SPDX-License-Identifier: GPL-2.0-or-later
"""Places where KSM mapped its pages, as a design remembers them.

Models the list of struct ksm_rmap_item below a stable node (mm/ksm.c): a page of KSM has no index, so a walk uses the
places where it was merged, each with a link to the copies that forks made of it (rmap_item->anon_vma there).

Invariant: of each page, no two places are the same; the newest comes last.

Locking: the caller's (KSM adds and removes a place with the folio's lock held); a walk holds it, too.
"""

from __future__ import annotations

from typing import Final

from rmaplab.mm.folio import Int64s
from rmaplab.mm.vma import MM


class KsmPlace:
    """struct ksm_rmap_item: `addr` in `mm`; `anchor` is what new pages of the VMA there pointed to."""

    def __init__(self, mm: MM, addr: int, anchor: object) -> None:
        self.mm: Final = mm
        self.addr: Final = addr
        self.anchor: Final = anchor


class KsmPlaces:
    """The places of all pages, by pfn."""

    def __init__(self) -> None:
        self._places: Final[dict[int, list[KsmPlace]]] = {}

    def add(self, pfn: int, place: KsmPlace) -> None:
        """KSM maps the page there, too (stable_tree_append())."""
        self._places.setdefault(pfn, []).append(place)

    def remove(self, pfn: int, mm: MM, addr: int) -> list[KsmPlace]:
        """KSM forgets the place (remove_rmap_item_from_tree()).  Returns it, if it was known."""
        places = self._places.get(pfn, [])
        for i in range(len(places)):
            if places[i].mm is mm and places[i].addr == addr:
                return [places.pop(i)]
        return []

    def freed(self, pfn: int) -> list[KsmPlace]:
        """The page is free.  Returns the places that it had."""
        return self._places.pop(pfn, [])

    def all_freed(self, pfns: Int64s) -> list[KsmPlace]:
        """The same for many pages."""
        found: list[KsmPlace] = []
        if self._places:
            for i in range(len(pfns)):
                found += self.freed(int(pfns[i]))
        return found

    def newest_first(self, pfn: int) -> list[KsmPlace]:
        """The places of a page, in the order of a walk."""
        return self._places.get(pfn, [])[::-1]

    def every(self) -> list[KsmPlace]:
        """The places of all pages."""
        return [place for places in self._places.values() for place in places]
