# SPDX-License-Identifier: GPL-2.0-or-later
"""What an access without a common lock is about: a field of an object."""

from __future__ import annotations

from typing import Final

# Two attributes of which one element is meant: the one of a page in a column, and that of a design in its slot.
OF_PAGE: Final = "m"
OF_DESIGN: Final = "rmap"

# And the leaf with a number, of a page table; where an entry for 2 MiB may be in its place, it says what is mapped.
OF_LEAF: Final = "leaves"
OF_PMD: Final = "pmds"

# An entry of a leaf of a page table, where somebody reads it without the leaf's lock.
OF_ENTRY: Final = "entries"

# Attributes that are none.  All of an object that has `frozen()`, a copy that stays as it is; and the pointer to it
# where each change makes a new one (a tree whose nodes are replaced, as those of a maple tree are): what the pointer
# leads to is fresh.
WHOLE: Final = ""
VERSION: Final = "contents"

# Of what each change makes anew one may look at, or change, a part: the elements with some numbers.  The `index` of
# an access that is about such a part (0: about all of it).
_LENGTH: Final = 48
EVERYTHING: Final = (1 << 62) - 1  # above the numbers of all elements; what compiled code holds without an object


def part(first: int, last: int) -> int:
    """Elements `first` to `last`; what is looked up there stays the same as long as only others change."""
    return (first << _LENGTH) + last - first + 1


def ends_of(index: int) -> tuple[int, int]:
    """(first, last) of the part that `index` stands for."""
    first = index >> _LENGTH
    return first, first + (index & ((1 << _LENGTH) - 1)) - 1


def is_way(field: str) -> bool:
    """Is it read without a lock only to get to one?  Under sequential consistency nothing comes of when that is."""
    return field == OF_DESIGN or field == OF_LEAF


def look(subject: object, field: str, index: int) -> object:
    """The value as it is: of an attribute, of an element of one (OF_PAGE, OF_DESIGN, OF_LEAF, OF_PMD), or the object
    (WHOLE, VERSION)."""
    if field == WHOLE or field == VERSION:
        return subject
    if field == OF_PAGE or field == OF_ENTRY:
        return subject.m[index]  # type: ignore[attr-defined]
    if field == OF_DESIGN:
        return subject.rmap[index]  # type: ignore[attr-defined]
    if field == OF_LEAF or field == OF_PMD:
        return subject.leaves.get(index)  # type: ignore[attr-defined]
    return getattr(subject, field)
