# SPDX-License-Identifier: GPL-2.0-or-later
"""Pictures of a design's objects, their links and names, for rmaplab.explore to draw.

`Picture` itself shows a design of which only the interface is known: no objects.  A design that has something to show
overrides `ReverseMap.picture()`, and returns a subclass.  Objects are called by the numbers that the design gives
them (A1, C2); a number that is free may be used again.

Invariant: a picture changes nothing, and counts nothing.  It may be taken between any two steps of a race, also in the
middle of a change by the design.
"""

from __future__ import annotations

from typing import ClassVar, Final

import msgspec
from mypy_extensions import mypyc_attr

from rmaplab.mm.vma import MM, VMA

MANY: Final = 24  # objects of one sort that are shown one by one


class Item(msgspec.Struct):
    """An object of a design.

    group: "id|title" of the drawing that it belongs to; the title is for people
    kind:  its type, in the kernel's words
    label: what it is called; facts: what it holds, as (name, value); why: a sentence that says why it is there
    above: key of the item that it hangs under in its drawing; side: "l" or "r" in a binary tree
    area:  id of the VMA that it is for; mm: id of the address space; 0 if neither
    count: objects that it stands for, where some are folded
    """

    group: str
    kind: str
    label: str
    facts: list[tuple[str, str]]
    why: str
    above: str = ""
    side: str = ""
    area: int = 0
    mm: int = 0
    count: int = 1


class Scope:
    """What is looked at: VMAs, those that an operation touched first, and who runs in which address space.

    pids: of the processes, by the id of their address space
    """

    def __init__(self, vmas: list[VMA], pids: dict[int, list[int]]) -> None:
        self.vmas: Final = vmas
        self.pids: Final = pids

    def mms(self) -> list[MM]:
        """The address spaces of the VMAs, in the same order."""
        return list({vma.mm.id: vma.mm for vma in self.vmas}.values())

    def whose(self, mm: MM | None) -> str:
        """Whose address space it is, in words; None is one that is gone."""
        pids = None if mm is None else self.pids.get(mm.id)
        if mm is None or (pids is None and not mm.alive):
            return "an address space that is gone"
        if pids is None:
            return f"address space {mm.id}"
        return f"process {pids[0]}" if len(pids) == 1 else f"processes {', '.join(map(str, pids))}"


@mypyc_attr(allow_interpreted_subclasses=True)
class Picture:
    """A design as it is looked at.

    about: what each sort of drawing shows, by the id of its group (for a group "tree.A1|…", by "tree"), in the order in
           which to draw them
    """

    about: ClassVar[dict[str, str]] = {}

    def __init__(self, design: object) -> None:
        """`design` is the ReverseMap; a subclass keeps it."""

    def items(self, scope: Scope) -> dict[str, Item]:
        """The design's objects by key, each after the one that it hangs under; where there are many, those
        that concern `scope`, and how many there are besides."""
        return {}

    def anchor(self, pfn: int) -> str:
        """Key of what the folio whose first page is `pfn` points to; "" if it is nothing."""
        return ""

    def key(self, thing: object) -> str:
        """Key of an object that the design told the scheduler of (ReverseMap.point()); "" if it is none of its own."""
        return ""

    def via(self, pfn: int, vma: VMA, addr: int) -> list[str]:
        """Keys of the objects that lead a walk for `pfn` to this place."""
        return []

    def locks(self) -> dict[int, str]:
        """What to call the locks of the design, by id()."""
        return {}

    def why_apart(self, prev: VMA, next: VMA) -> str:
        """Why the design keeps these two adjacent VMAs from being one; only asked if it does."""
        return "the design says no"


def more(group: str, kind: str, count: int) -> Item:
    """What stands for `count` objects that are not shown."""
    why = f"{count:,} objects of this kind are not drawn, because they concern what is folded."
    return Item(group, kind, f"{count:,} more", [], why, count=count)


def pages(first: int, last: int) -> str:
    """A closed range of page offsets."""
    return hexa(first) if first == last else f"{hexa(first)}–{hexa(last)}"


def hexa(number: int) -> str:
    """An address, a page offset or a set of flags."""
    return f"-0x{-number:x}" if number < 0 else f"0x{number:x}"


def signed(number: int) -> str:
    """A distance in pages."""
    return f"+{hexa(number)}" if number >= 0 else f"−0x{-number:x}"
