# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the objects of a design are drawn: forests laid out by igraph (Reingold and Tilford's algorithm).

A unit is the distance between two neighbours.  What is no tree (records, chains) is a list, which the page
sets as text flows, so that only trees get places here.

Invariant: of two objects on one level the one that comes first is drawn further left, and a left child of a
binary tree left of its parent, even if it has no sibling.
"""

from __future__ import annotations

from collections.abc import Mapping

import igraph

from rmaplab.explore.parts import Part

LISTS = ("chains", "records", "shifts")
FOLD = 24  # objects of one drawing that are shown one by one


def fold(parts: dict[str, Part], mms: set[int]) -> dict[str, Part]:
    """Leave out of each large drawing what belongs to no shown address space, and say how many those are.

    What lies between a shown object and the top of its drawing stays.
    """
    groups: dict[str, list[str]] = {}
    for key, part in parts.items():
        groups.setdefault(part.group, []).append(key)
    result: dict[str, Part] = {}
    for group, keys in groups.items():
        if len(keys) <= FOLD:
            for key in keys:
                result[key] = parts[key]
            continue
        kept: set[str] = set()
        wanted = [key for key in keys if parts[key].mm in mms][:FOLD] or keys[:FOLD]
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
            kind = parts[keys[0]].kind
            result[f"{group.partition('|')[0]}…{above}{side}"] = Part(
                group,
                kind,
                f"{count:,} more",
                [],
                f"{count:,} objects of this kind that belong to processes which are folded.",
                above=above,
                side=side,
                count=count,
            )
    return result


def drop_crowded(parts: dict[str, Part], most: int) -> dict[str, Part]:
    """At most `most` drawings of one sort (trees of anon_vmas, say); one part says how many are left out."""
    seen: dict[str, list[str]] = {}
    for part in parts.values():
        sort = part.group.partition("|")[0].partition(".")[0]
        groups = seen.setdefault(sort, [])
        if part.group not in groups:
            groups.append(part.group)
    dropped = {group for groups in seen.values() for group in groups[most:]}
    result = {key: part for key, part in parts.items() if part.group not in dropped}
    for sort, groups in seen.items():
        if len(groups) > most:
            count = len(groups) - most
            first = next(part for part in parts.values() if part.group == groups[-1])
            result[f"{sort}…"] = Part(
                f"{sort}.more|{count:,} more", first.kind, f"{count:,} more", [],
                f"{count:,} more drawings like these are folded.", count=count,
            )  # fmt: skip
    return result


def place(parts: Mapping[str, Part]) -> None:
    """Give each part of a tree its place."""
    groups: dict[str, dict[str, Part]] = {}
    for key, part in parts.items():
        if part.group.partition("|")[0].partition(".")[0] not in LISTS:
            groups.setdefault(part.group, {})[key] = part
    for members in groups.values():
        _place_forest(members)


def _place_forest(parts: dict[str, Part]) -> None:
    numbers = {key: number for number, key in enumerate(parts)}
    edges: list[tuple[int, int]] = []
    roots: list[int] = []
    size = len(numbers)
    children: dict[str, list[str]] = {}
    for key, part in parts.items():
        if part.above in numbers:
            children.setdefault(part.above, []).append(key)
        else:
            roots.append(numbers[key])
    for above, below in children.items():
        sides = [parts[key].side for key in below]
        if sides == ["r"]:  # an empty place keeps an only child on its side
            edges.append((numbers[above], size))
            size += 1
        edges += [(numbers[above], numbers[key]) for key in sorted(below, key=lambda key: parts[key].side)]
        if sides == ["l"]:
            edges.append((numbers[above], size))
            size += 1
    if size == 1:
        next(iter(parts.values())).x = 0.0
        return
    graph = igraph.Graph(size, edges)
    places = graph.layout_reingold_tilford(mode="all", root=roots).coords
    left = min(x for x, _ in places)
    top = min(y for _, y in places)
    for key, part in parts.items():
        x, y = places[numbers[key]]
        part.x = round(x - left, 2)
        part.y = round(y - top, 2)
