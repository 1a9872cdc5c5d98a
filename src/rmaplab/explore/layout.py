# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the objects of a design are drawn: forests laid out by igraph (Reingold and Tilford's algorithm).

A unit is the distance between two neighbours.  Other objects (records, chains) are a list, in the
order of `x`.

Invariant: of two objects below one, the one that comes first is drawn further left; a left child of a binary
tree is drawn left of its parent, and a right one right of it, even if it has no sibling.
"""

from __future__ import annotations

from collections.abc import Mapping

import igraph

from rmaplab.explore.parts import Part, part_of
from rmaplab.mm.picture import MANY, more


def fold(parts: dict[str, Part], mms: set[int]) -> dict[str, Part]:
    """Fold in each large drawing the objects of address spaces that are not shown, into their number.

    Objects between a shown one and the top of its drawing stay.
    """
    groups: dict[str, list[str]] = {}
    for key, part in parts.items():
        groups.setdefault(part.group, []).append(key)
    result: dict[str, Part] = {}
    for group, keys in groups.items():
        if len(keys) <= MANY + 1:
            for key in keys:
                result[key] = parts[key]
            continue
        kept: set[str] = set()
        wanted = [key for key in keys if parts[key].mm in mms][:MANY] or keys[:MANY]
        for key in wanted:
            while key and key not in kept:
                kept.add(key)
                key = parts[key].above
        left_out: dict[tuple[str, str], int] = {}
        home: dict[str, tuple[str, str]] = {}
        for key in keys:
            part = parts[key]
            if key in kept:
                result[key] = part
                continue
            where = home.get(part.above) or (part.above, part.side)
            home[key] = where
            left_out[where] = left_out.get(where, 0) + 1
        for (above, side), count in left_out.items():
            part = part_of(more(group, parts[keys[0]].kind, count))
            part.above = above
            part.side = side
            result[f"{group.partition('|')[0]}…{above}{side}"] = part
    return result


def place(parts: Mapping[str, Part]) -> None:
    """Set the position of each part in its drawing."""
    groups: dict[str, dict[str, Part]] = {}
    for key, part in parts.items():
        groups.setdefault(part.group, {})[key] = part
    for members in groups.values():
        _place_forest(members)


def _place_forest(parts: dict[str, Part]) -> None:
    children: dict[str, list[str]] = {}
    for key, part in parts.items():
        children.setdefault(part.above if part.above in parts else "", []).append(key)
    # igraph draws siblings in the order of their numbers, so they are numbered from left to right; a number
    # without a key is an empty place, which keeps an only child on its side.
    numbers: list[str] = []
    edges: list[tuple[int, int]] = []
    roots: list[int] = []
    todo = [(key, -1) for key in reversed(children.get("", []))]
    while todo:
        key, above = todo.pop()
        number = len(numbers)
        numbers.append(key)
        if above < 0:
            roots.append(number)
        else:
            edges.append((above, number))
        below = sorted(children.get(key, []), key=lambda child: parts[child].side) if key else []
        if len(below) == 1 and parts[below[0]].side:
            below.insert(0 if parts[below[0]].side == "r" else 1, "")
        todo += [(child, number) for child in reversed(below)]
    if not edges:
        for number, key in enumerate(numbers):
            parts[key].x = float(number)
        return
    places = igraph.Graph(len(numbers), edges).layout_reingold_tilford(mode="all", root=roots).coords
    left = min(x for x, _ in places)
    top = min(y for _, y in places)
    for key, (x, y) in zip(numbers, places, strict=True):
        if key:
            parts[key].x = round(x - left, 2)
            parts[key].y = round(y - top, 2)
