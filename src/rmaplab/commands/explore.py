# SPDX-License-Identifier: GPL-2.0-or-later
"""`rmaplab explore`: a page that shows a history step by step; and how `show` finds its film."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from rmaplab.check.race import Model, RaceError, run
from rmaplab.check.scenarios import exists
from rmaplab.commands import options
from rmaplab.commands.envelope import print_json
from rmaplab.errors import CannotRun
from rmaplab.explore.parts import STEPS, Film, Shot
from rmaplab.explore.tours import RACES, TOURS
from rmaplab.measure import sources
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.profile import REFERENCE
from rmaplab.output import check_output, write_output
from rmaplab.printable import plural
from rmaplab.terminal import say
from rmaplab.workloads import FAMILIES

DESIGNS = ("anon_vma", "cow_context")  # where nothing else was asked for

LISTED = 20  # differences

What = Annotated[
    list[str],
    typer.Argument(
        metavar="F | WORKLOAD [NAME=VALUE]... | RACE | TOUR",
        help="A recording, a workload, a scenario of `rmaplab race` with the --path of an execution or one design"
        f" for which to look for a failing one, or a guided tour ({', '.join((*TOURS, *RACES))}).",
        hidden=True,
    ),
]


@dataclass(frozen=True)
class Asked:
    """What a film is asked for: the options that `explore` and `show` have in common."""

    rmap: options.Designs = None
    profile: options.ProfileName = ""
    path: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="Of a race: which execution (default: one that fails).",
        ),
    ] = ""
    memory: options.MemoryModel = options.Memory.sc
    seed: options.Seed = 1
    json: options.Json = False


class Inputs(msgspec.Struct, frozen=True):
    """What a film depends on."""

    history: str
    designs: list[str]
    profile: str
    seed: int


class Figures(msgspec.Struct, frozen=True, tag_field="of", tag="explore"):
    """What the page shows: events from `first` to `last`, in so many steps and bytes."""

    events: int
    first: int
    last: int
    steps: int
    nbytes: int


def command(
    what: What,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PAGE", help="The HTML page to write.", readable=False)
    ],
    first: Annotated[
        int,
        typer.Option("--from", min=1, metavar="N", help="Begin to show at event N."),
    ] = 1,
    last: Annotated[
        int, typer.Option("--to", min=0, metavar="N", help="End at event N (0: the last).")
    ] = 0,
    steps: Annotated[
        int,
        typer.Option(min=1, max=2000, metavar="N", help="Fold a history to at most N steps.", hidden=True),
    ] = STEPS,
    asked: Asked = Asked(),
) -> bool:
    """Write one self-contained HTML page that shows a history step by step, in designs side by side: a recording F, a
    workload, a scenario of `rmaplab race`, or one of the guided tours that --help-all lists.

    \b
    Examples:
      rmaplab explore fork-copy-fork -o tour.html
      rmaplab explore sort.parquet --from 200 --to 400 -o sort.html
      rmaplab explore "restore / fork" --rmap cow_context_prototype -o race.html
    """
    from rmaplab.explore.html import page

    check_output(output)
    film = film_of(what, asked, Shot(first, last, steps))
    if film.cpus and (first, last) != (1, 0):
        raise RaceError("a race is shown from its first step to its last: leave --from and --to out")
    text = page(film)
    write_output(output, text)
    if asked.json:
        figures = Figures(film.events, film.first, film.last, len(film.steps), len(text.encode()))
        print_json("explore", inputs_of(film, asked.seed), not film.differences, figures, film.differences[:LISTED])
    else:
        shown = plural(len(film.steps) - 1, "step")
        if not film.cpus and film.last - film.first + 1 >= len(film.steps):
            shown += f" for {film.last - film.first + 1:,} events"
        print(f"{output}: {shown}, {len(text.encode()):,} bytes", file=sys.stderr)
    return holds(film)


def film_of(what: Sequence[str], asked: Asked, shot: Shot, page: tuple[int, int] | None = None) -> Film:
    """The film of a history or a race; `page`: (pid, address) that every design is asked for."""
    name = what[0] if len(what) == 1 and not os.path.exists(what[0]) else ""
    if name in RACES or exists(name) or " / " in name or asked.path:
        if page is not None:
            raise RaceError("--ask is for histories; in a race the folio that it is about is asked for")
        return _film_of_race(name, asked)
    from rmaplab.explore.film import shoot

    tour = TOURS.get(name)
    if tour is None and not os.path.exists(what[0]) and what[0] not in FAMILIES and "." not in what[0]:
        raise CannotRun(_unknown(what[0]))
    history = sources.find(what, asked.seed)[0] if tour is None else tour.history()
    kernel = options.profile(asked.profile, history.header.kernel)
    designs = [options.design(spec) for spec in options.designs(asked.rmap, tour.designs if tour else DESIGNS).values()]
    if len(history) == 0:
        raise HistoryError("there is nothing to see in a history without events")
    last = shot.last or len(history)
    first = shot.first or last
    if not 1 <= first <= last <= len(history):
        raise HistoryError(f"this history has {plural(len(history), 'event')}, and none from {first} to {last}")
    return shoot(history, designs, kernel, shot=Shot(first, last, shot.steps), tour=tour, ask=page)


def _unknown(name: str) -> str:
    tours = [*TOURS, *RACES]
    near = get_close_matches(name, [*tours, *FAMILIES], 1)
    return (
        f"{name!r} is no file, tour, workload or race{f'; did you mean {near[0]!r}?' if near else '.'} Tours:"
        f" {', '.join(tours)}. `rmaplab run --list` has the workloads, `rmaplab race --list` the races."
    )


def _film_of_race(name: str, asked: Asked) -> Film:
    from rmaplab.explore.race import shoot_race, shoot_tour

    tour = RACES.get(name)
    if tour is None and not exists(name):
        raise RaceError(f"there is no scenario called {name!r}; rmaplab race --list prints them all")
    if asked.profile not in ("", REFERENCE):
        raise RaceError(f"races run by the rules of {REFERENCE} alone")
    if tour is not None:
        if asked.rmap or asked.path:
            raise RaceError("a guided tour of a race has its design and its path: leave --rmap and --path out")
        return shoot_tour(tour, options.design(tour.design))
    rmap = options.listed(asked.rmap)
    if len(rmap) != 1:
        raise RaceError("a race is one design's: name it with --rmap")
    design = options.design(rmap[0])
    path = asked.path
    if not path:
        print("looking for an interleaving that fails", file=sys.stderr)
        broken = run(name, design, memory=Model(asked.memory.value)).broken
        if not broken:
            raise RaceError(
                f"{design.name} keeps its obligations in every interleaving of {name!r}, so there is no failure to"
                " show; give the --path of one"
            )
        path = broken[0].path
        if not path:
            raise RaceError(f"{name} with {design.name} has nothing to show: {broken[0].error}")
    return shoot_race(name, design, path, Model(asked.memory.value))


def holds(film: Film) -> bool:
    """Whether the machine's results are the history's, and a race breaks no obligation; what does not is said."""
    for difference in film.differences[:LISTED]:
        say(difference)
    return not film.differences


def inputs_of(film: Film, seed: int) -> Inputs:
    return Inputs(film.title, [design.name for design in film.designs], film.profile, seed)
