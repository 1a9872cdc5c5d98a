# SPDX-License-Identifier: GPL-2.0-or-later
"""Options that several commands share, and what they name.

Lists are given alike everywhere: `--rmap anon_vma,cow_context`, or the option repeated, or both.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rmaplab.errors import CannotRun, in_a_line
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, REFERENCE, Profile, profile_for
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.rmap import DESIGNS, load, specs


class Memory(StrEnum):
    """Memory models."""

    sc = "sc"
    weak = "weak"


Designs = Annotated[
    list[str] | None,
    typer.Option(
        "--rmap",
        metavar="DESIGN,...",
        help="Designs: names, package.module:Class, files, or 'all'.",
    ),
]
ProfileName = Annotated[
    str, typer.Option("--profile", metavar="NAME", help=f"Rules of a kernel: {', '.join(PROFILES)}.")
]
Costs = Annotated[
    str, typer.Option(metavar="NAME|F", help="Costs: a shipped profile, or a file of `calibrate`.")
]
MemoryModel = Annotated[Memory, typer.Option(help="Sequential consistency, or CPUs that reorder.")]
Jobs = Annotated[int, typer.Option(min=0, metavar="N", help="Worker processes (0: one per CPU).")]
Full = Annotated[bool, typer.Option("--full", help="Print all figures as tables, too.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Outputs = Annotated[
    list[Path] | None,
    typer.Option("--output", "-o", metavar="F", help="F.html: a page; F.parquet: the history. Repeatable."),
]

# Rarely asked for.
Leader = Annotated[
    str, typer.Option(metavar="DESIGN", help="Design that VMA merging follows (default: the first).", hidden=True)
]
Check = Annotated[
    bool,
    typer.Option("--check/--no-check", help="Check walks of every design against the page tables.", hidden=True),
]
Every = Annotated[
    int, typer.Option(min=0, metavar="N", help="Check after every N events (0: at 20 moments).", hidden=True)
]
Folios = Annotated[
    int,
    typer.Option(min=0, metavar="N", help="Check at most N folios, other ones each time (0: all).", hidden=True),
]
LargeFolios = Annotated[
    int,
    typer.Option(min=0, max=9, metavar="ORDER", help="Faults allocate folios of up to 2**ORDER pages.", hidden=True),
]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Random seed.", hidden=True)]
Names = Annotated[
    bool, typer.Option("--names", help="Keep names of files and processes, and the command line.", hidden=True)
]


def listed(given: Sequence[str] | None) -> list[str]:
    """The words of an option that is given as a list, repeated, or both; a file's name may have commas.

    >>> listed(["1,2", "4"])
    ['1', '2', '4']
    """
    found: list[str] = []
    for text in given or ():
        found += [text] if os.path.exists(text) else [word for word in text.split(",") if word]
    return found


def design(spec: str) -> type[ReverseMap]:
    """The design that `spec` names.

    :raises CannotRun: there is none, or it is one of the user's own that no machine can build
    """
    try:
        found = load(spec)
    except ValueError as error:
        raise CannotRun(str(error)) from None
    if found not in DESIGNS.values():
        try:
            Machine(PROFILES[REFERENCE], [found])
        except Exception as error:
            raise CannotRun(f"{spec} cannot be built: {in_a_line(error)}") from None
    return found


def designs(given: Sequence[str] | None, otherwise: Sequence[str]) -> dict[str, str]:
    """Name and spec of each design that was asked for, `otherwise` those.

    :raises CannotRun: there is no such design, or two have one name
    """
    found: dict[str, str] = {}
    for spec in specs(listed(given), otherwise):
        name = design(spec).name
        if found.setdefault(name, spec) != spec:
            raise CannotRun(
                f"two of the designs are called {name!r} ({found[name]} and {spec}), so no table could tell them apart"
            )
    return found


def profile(name: str, kernel: str = "") -> Profile:
    """The profile of that name; "": the one for `kernel`, on which a history was recorded.

    :raises CannotRun: there is none
    """
    if not name:
        return profile_for(kernel)[0]
    if name not in PROFILES:
        raise CannotRun(f"there is no profile {name!r} (there are {', '.join(PROFILES)})")
    return PROFILES[name]


def cpus_to_use(jobs: int) -> int:
    """`jobs`, or one per CPU that this process may use."""
    return jobs or len(os.sched_getaffinity(0))
