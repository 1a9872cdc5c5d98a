# SPDX-License-Identifier: GPL-2.0-or-later
"""The state of everything that can be reached from an object, to go back to it.

Each execution of a scenario begins with the same small world.  To put that back as it was takes a fraction of the time
that it takes to build another, and leaves nothing for the garbage collector.

Objects keep their identity.  What a snapshot puts back is the attributes of instances that can be assigned to, and what
is in lists, dicts, sets and arrays; it looks through tuples, bound methods and partial functions.  Code has no state:
modules, classes and functions, with what their closures hold, stay as they are.

Invariant: what a snapshot does not know how to put back it refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from gc import get_referents
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, Final

import numpy as np

from rmaplab.sync.work import LockClass, Tally

# Immutable, with nothing but their like inside; and counts of work that is done, by which nobody decides.
_PLAIN: Final = frozenset(
    [
        int, bool, float, str, bytes, type(None), range, object, ModuleType, FunctionType, BuiltinFunctionType, Tally,
        LockClass,
    ]
)  # fmt: skip
# Immutable, whatever is inside.
_BEHIND_A_VIEW: Final = type(get_referents(memoryview(b""))[0])
_CONTAINERS: Final = (tuple, frozenset, MethodType, partial, memoryview, _BEHIND_A_VIEW)
_COLLECTIONS: Final = frozenset([list, dict, set, np.ndarray, *_CONTAINERS])

# Of the classes met so far, the attributes of instances that can be assigned to.
_WRITABLE: Final[dict[type, list[str]]] = {}


class Snapshot:
    """Of all that can be reached from `root`, but for what `lasting` holds.

    meet: is told of all these objects, without lists and the like, before their state is kept
    """

    def __init__(
        self, root: object, lasting: Sequence[object], meet: Callable[[list[object]], None] | None = None
    ) -> None:
        self._attributes: Final[list[tuple[object, str, object]]] = []
        self._lists: Final[list[tuple[list[object], list[object]]]] = []
        self._dicts: Final[list[tuple[dict[object, object], dict[object, object]]]] = []
        self._sets: Final[list[tuple[set[object], set[object]]]] = []
        self._arrays: Final[list[tuple[memoryview, memoryview]]] = []  # of numbers
        seen: dict[int, object] = {id(other): other for other in lasting}
        left: list[object] = [root]
        states: list[object] = []
        while left:
            found = left.pop()
            kind = type(found)
            if kind in _PLAIN or id(found) in seen or isinstance(found, type):
                continue
            seen[id(found)] = found
            states.append(found)
            left.extend(get_referents(found))
            if kind.__dictoffset__:
                left.append(getattr(found, "__dict__", None))
        if meet is not None:
            meet([found for found in states if type(found) not in _COLLECTIONS])
        for found in states:
            self._keep(found, type(found))

    def _keep(self, found: object, kind: type) -> None:
        if kind is list:
            items: Any = found
            self._lists.append((items, items.copy()))
        elif kind is dict:
            entries: Any = found
            self._dicts.append((entries, entries.copy()))
        elif kind is set:
            members: Any = found
            self._sets.append((members, members.copy()))
        elif kind is np.ndarray:
            array: Any = found
            if array.flags.writeable:
                self._arrays.append((array.data, array.copy().data))
        elif not isinstance(found, _CONTAINERS):
            names = _WRITABLE.get(kind)
            if names is None:
                names = _writable(found, kind)
                _WRITABLE[kind] = names
            for name in names:
                self._attributes.append((found, name, getattr(found, name)))

    def restore(self) -> None:
        """Put everything back."""
        for owner, name, value in self._attributes:
            setattr(owner, name, value)
        for items, kept in self._lists:
            if items:
                items.clear()
            if kept:
                items.extend(kept)
        for entries, known in self._dicts:
            if entries:
                entries.clear()
            if known:
                entries.update(known)
        for members, those in self._sets:
            members.clear()
            members.update(those)
        for array, elements in self._arrays:
            array[:] = elements


def _writable(found: object, kind: type) -> list[str]:
    """The attributes of a compiled class or a record that can be assigned to; those of any other are in
    a dictionary, which is an object that is reached as well."""
    declared = getattr(kind, "__mypyc_attrs__", getattr(kind, "__struct_fields__", None))
    if declared is None and not hasattr(found, "__dict__"):
        raise TypeError(f"a snapshot cannot put back {found!r}, a {kind.__name__}")
    names: list[str] = []
    for name in declared or ():
        if name != "__dict__":
            value = getattr(found, name)
            try:
                setattr(found, name, value)
            except AttributeError:  # Final
                continue
            names.append(name)
    return names
