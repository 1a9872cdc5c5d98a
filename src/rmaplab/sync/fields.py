# SPDX-License-Identifier: GPL-2.0-or-later
"""What an access without a common lock is about: a field of an object."""

from __future__ import annotations

from typing import Final

# Two attributes of which one element is meant: the one of a page in a column, and that of a design in its slot.
OF_PAGE: Final = "m"
OF_DESIGN: Final = "rmap"

# An attribute that is not one: all of an object that has `frozen()`, a copy that stays as it is.
WHOLE: Final = ""


def look(subject: object, field: str, index: int) -> object:
    """The value as it is: of an attribute, of an element of one (OF_PAGE, OF_DESIGN), or the object (WHOLE)."""
    if field == WHOLE:
        return subject
    if field == OF_PAGE:
        return subject.m[index]  # type: ignore[attr-defined]
    if field == OF_DESIGN:
        return subject.rmap[index]  # type: ignore[attr-defined]
    return getattr(subject, field)
