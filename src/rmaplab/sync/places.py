# SPDX-License-Identifier: GPL-2.0-or-later
"""What steps are on: objects, and fields of objects.

A path that is taken again, with all objects as they were or with others that were built alike, is on the same places.
Objects that were there before the tasks began are known by the order in which they were met; those that tasks made, by
the order in which steps come to them.

Invariant: two steps of one search are on the same thing if and only if they have the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mypy_extensions import i64


class Freed:
    """Who freed what, and who may still come to it: the readers that its grace period waits for."""

    def __init__(self, what: str, by: str, readers: list[int], deferred: bool) -> None:
        self.words: Final = f"{by} freed that {what}" + (", a grace period later" if deferred else "")
        self.readers: Final = readers


class Place:
    """An object, a field, or an element of one.

    fresh: tasks made it, so it is another object in each execution
    freed: in this execution
    newest, tasks, poisons: of the steps on it of a path (path.py): the last Step, whose they are (a bit each), and how
                            many of them free it
    """

    def __init__(self, number: int, fresh: bool) -> None:
        self.number: Final = number
        self.fresh: Final = fresh
        self.freed: Freed | None = None
        self.newest: object = None
        self.tasks: i64 = 0
        self.poisons: i64 = 0
        self.fields: Final[dict[str, Place]] = {}
        self.elements: Final[dict[str, dict[int, Place]]] = {}


class Places:
    """All places of a search.

    freed: those of what was freed in this execution
    """

    def __init__(self) -> None:
        self.freed: Final[list[Place]] = []
        self._numbers = 0
        self._met: dict[int, int] = {}  # ids of objects that were there -> which it was
        self._lasting: Final[dict[int, Place]] = {}  # ... and its place
        self._fresh: Final[list[Place]] = []  # of objects that tasks made, in order
        self._integers: Final[dict[int, Place]] = {}
        self._by_id: Final[dict[int, Place]] = {}
        self._made: Final[list[int]] = []  # ids of those in this execution
        self._kept: Final[list[object]] = []  # keeps these ids from being used again

    def meet(self, found: Sequence[object]) -> None:
        """These objects are there before the tasks begin."""
        self._by_id.clear()
        self._met = {id(each): number for number, each in enumerate(found)}

    def again(self) -> None:
        """Another execution begins; what tasks made is gone."""
        for place in self.freed:
            place.freed = None
        self.freed.clear()
        for identity in self._made:
            del self._by_id[identity]
        self._made.clear()
        self._kept.clear()

    def of(self, subject: object) -> Place:
        """An int stands for itself (a page by its pfn, say)."""
        if isinstance(subject, int):
            place = self._integers.get(subject)
            if place is None:
                place = self._new(False)
                self._integers[subject] = place
            return place
        identity = id(subject)
        place = self._by_id.get(identity)
        if place is None:
            which = self._met.get(identity, -1)
            if which >= 0:
                place = self._lasting.get(which)
                if place is None:
                    place = self._new(False)
                    self._lasting[which] = place
            else:
                number = len(self._made)
                if number == len(self._fresh):
                    self._fresh.append(self._new(True))
                place = self._fresh[number]
                self._made.append(identity)
                self._kept.append(subject)
            self._by_id[identity] = place
        return place

    def of_field(self, whole: Place, field: str, index: int) -> Place:
        """A field, or an element with a number, of the object that has the place `whole`."""
        if index == 0:
            place = whole.fields.get(field)
            if place is None:
                place = self._new(whole.fresh)
                whole.fields[field] = place
            return place
        elements = whole.elements.get(field)
        if elements is None:
            elements = {}
            whole.elements[field] = elements
        place = elements.get(index)
        if place is None:
            place = self._new(whole.fresh)
            elements[index] = place
        return place

    def free(self, place: Place, freed: Freed) -> None:
        place.freed = freed
        self.freed.append(place)

    def _new(self, fresh: bool) -> Place:
        self._numbers += 1
        return Place(self._numbers - 1, fresh)
