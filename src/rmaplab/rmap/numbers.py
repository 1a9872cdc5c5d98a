# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers for objects that pages point to: a column of folios holds numbers, where Linux has pointers (folio->mapping).

Invariant: number 0 is no object; `objects[number]` is None where the number is free or was just taken.
"""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def take_number(objects: list[T | None], free: list[int]) -> int:
    """A number for a new object, which the caller puts into `objects`: the one that was given back last, if any."""
    if free:
        return free.pop()
    objects.append(None)
    return len(objects) - 1
