# SPDX-License-Identifier: GPL-2.0-or-later
"""Correctness: page-table truth, comparison of designs with it and with each other, random histories, bugs put
in on purpose, and the running kernel as a witness.

truth       the mappings in the page tables, and the invariants of the machine
sameness    the VMAs that two walks visit
lockstep    all of it, while a history plays
histories   random histories that are hard on a reverse map
verify      thousands of random histories on all CPUs, and the shortest that fails (batching: in runs, one by one)
mutants     designs and machines that lack one rule each (race_mutants: those that only a race shows)
mutation    a search for each of them, which finds nothing without it
processes   work in parts, on all CPUs

The package is a verb of the library, too: `rmaplab.check(machine)` is `machine.check()`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Protocol, TypeVar

from rmaplab.errors import CannotRun

_Found = TypeVar("_Found", covariant=True)


class _CanBeChecked(Protocol[_Found]):
    def check(self) -> _Found: ...


class _Verb(ModuleType):
    """A module that can be called."""

    def __call__(self, machine: _CanBeChecked[_Found]) -> _Found:
        if not hasattr(machine, "check"):
            raise CannotRun(f"check(): machine has to be a Machine, not {machine!r}")
        return machine.check()


sys.modules[__name__].__class__ = _Verb
