# SPDX-License-Identifier: GPL-2.0-or-later
"""Reverse-map designs, one file each.

`DESIGNS` are the ones that come with rmaplab, in the order in which reports list them: those that merge least
come first.  In lockstep the first should lead, because a design is complete only where no VMAs merge that
its own rule would keep apart; each can follow those before it.  `load` finds these and any other design by name,
module, file, or installed entry point.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rmaplab.errors import in_a_line
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.rmap.anon_vma_lazy import AnonVmaLazyRmap
from rmaplab.rmap.anon_vma_own_lock import AnonVmaOwnLockRmap
from rmaplab.rmap.anonmm import AnonMMRmap
from rmaplab.rmap.cow_context import CowContextRmap
from rmaplab.rmap.cow_context_prototype import CowContextPrototypeRmap
from rmaplab.rmap.lineage import LineageRmap
from rmaplab.rmap.page_scan import PageScanRmap
from rmaplab.rmap.pte_chain import PteChainRmap
from rmaplab.rmap.unshare_on_remap import UnshareOnRemapRmap

__all__ = ["ALL", "DESIGNS", "ENTRY_POINT_GROUP", "EXCUSED", "STANDARD", "load", "specs"]

DESIGNS: Final[dict[str, type[ReverseMap]]] = {
    "anon_vma": AnonVmaRmap,
    "anon_vma_own_lock": AnonVmaOwnLockRmap,
    "anon_vma_lazy": AnonVmaLazyRmap,
    "cow_context": CowContextRmap,
    "lineage": LineageRmap,
    "cow_context_prototype": CowContextPrototypeRmap,
    "unshare_on_remap": UnshareOnRemapRmap,
    "anonmm": AnonMMRmap,
    "pte_chain": PteChainRmap,
    "page_scan": PageScanRmap,
}

# What the question is about today.  The others came before or beside it: they are tried where they are named.
STANDARD: Final = ("anon_vma", "cow_context", "cow_context_prototype", "page_scan")

# Designs whose incompleteness is a finding about them, and no failure unless they were asked for by name.
EXCUSED: Final = frozenset(name for name, design in DESIGNS.items() if design.known_to_miss)

ALL: Final = "all"  # as a name: every one of DESIGNS

ENTRY_POINT_GROUP: Final = "rmaplab.designs"


def specs(asked: Sequence[str] | None, otherwise: Sequence[str]) -> list[str]:
    """The designs that were asked for, or those that are meant where none was; "all" is each of DESIGNS.

    >>> specs(["all"], STANDARD) == list(DESIGNS)
    True
    """
    found: list[str] = []
    for spec in asked or otherwise:
        found += [name for name in DESIGNS if name not in found] if spec == ALL else [spec]
    return found


def load(spec: str) -> type[ReverseMap]:
    """The design that `spec` names: a known name ("anon_vma"), "package.module:Class", a file
    ("mine.py", or "mine.py:Class" if it has more than one design), or the name of an entry point in
    the group `rmaplab.designs`.

    >>> load("anon_vma").name
    'anon_vma'

    Raises ValueError with what was wrong and what would be right.
    """
    known = DESIGNS.get(spec)
    if known is not None:
        return known
    place, _, attribute = spec.partition(":")
    if place.endswith(".py"):
        return _from_file(Path(place), attribute)
    if attribute:
        return _from_module(place, attribute)
    from importlib.metadata import entry_points  # a twentieth of the time in which a command begins

    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name == spec:
            return _checked(entry.load(), f"entry point {spec!r}")
    raise ValueError(
        f"no design is called {spec!r}: give one of {', '.join(DESIGNS)}, package.module:Class,"
        f" a .py file, or an entry point of the group {ENTRY_POINT_GROUP}"
    )


def _from_module(module_name: str, attribute: str) -> type[ReverseMap]:
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"cannot import {module_name!r} ({error}): give package.module:Class") from error
    if not hasattr(module, attribute):
        raise ValueError(f"module {module_name!r} has no {attribute!r}: give package.module:Class")
    return _checked(getattr(module, attribute), f"{module_name}:{attribute}")


def _from_file(path: Path, attribute: str) -> type[ReverseMap]:
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}: give the path of a Python file with a design")
    module_name = f"rmaplab_design_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(spec)
    beside = str(path.resolve().parent)  # as for a script: what lies beside it can be imported
    if beside not in sys.path:
        sys.path.append(beside)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{path}: cannot be loaded ({in_a_line(error)})") from error
    if attribute:
        if not hasattr(module, attribute):
            raise ValueError(f"{path} has no {attribute!r}: give {path}:Class")
        return _checked(getattr(module, attribute), f"{path}:{attribute}")
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, ReverseMap) and value.__module__ == module_name
    ]
    if len(own) != 1:
        names = ", ".join(value.__name__ for value in own)
        has = f"{len(own)} subclasses of ReverseMap ({names})" if own else "no subclass of ReverseMap"
        raise ValueError(f"{path} has {has}: there must be one, or give {path}:Class")
    return own[0]


def _checked(found: object, what: str) -> type[ReverseMap]:
    if isinstance(found, type) and issubclass(found, ReverseMap):
        return found
    raise ValueError(f"{what} is not a design: it must be a subclass of rmaplab.mm.reverse_map.ReverseMap")
