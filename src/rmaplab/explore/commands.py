# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands `rmaplab explore` and `rmaplab show`; cli.py mounts them and says how histories are found.

What draws is imported when a job runs: igraph takes a second to import where it finds matplotlib, and the other
commands shall not wait for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import typer

import rmaplab
from rmaplab.check.race import RaceError, run
from rmaplab.check.scenarios import exists
from rmaplab.explore.parts import STEPS, Answer, AnyPart, Film, Shot, Step, states
from rmaplab.explore.tours import RACES, TOURS
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.profile import PROFILES, REFERENCE, Profile
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.rmap import specs
from rmaplab.trace.history import History

DESIGNS = ("anon_vma", "cow_context")  # where nothing else was asked for

LISTED = 20  # differences

Job = Callable[[], int]
What = Annotated[
    list[str],
    typer.Argument(
        metavar="F | WORKLOAD [NAME=VALUE]... | RACE | TOUR",
        help="A recording, a workload, a scenario of `rmaplab race` with the --path of an execution or one design"
        f" for which to look for a failing one, or a guided tour ({', '.join((*TOURS, *RACES))}).",
    ),
]
Designs = Annotated[
    list[str] | None,
    typer.Option(
        "--rmap",
        metavar="DESIGN",
        help="A design: its name, package.module:Class, a file, or all. May be repeated.",
    ),
]
ProfileName = Annotated[
    str,
    typer.Option("--profile", metavar="NAME", help=f"The kernel whose rules apply: {', '.join(PROFILES)}."),
]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Seed of what is chosen at random.")]
PathOfRace = Annotated[
    str,
    typer.Option(
        metavar="PATH", help="Of a race: who takes each step, as `rmaplab race` prints it (default: one that fails)."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


class Finders(NamedTuple):
    """What cli.py knows how to find.

    history: of a recording or a workload, with the seed
    profile: the one asked for ("": the history's own)
    design:  a design by name, module or file
    """

    history: Callable[[Sequence[str], int], History]
    profile: Callable[[str, History], Profile]
    design: Callable[[str], type[ReverseMap]]


class Inputs(msgspec.Struct, frozen=True):
    history: str
    designs: list[str]
    profile: str
    seed: int


class Told(msgspec.Struct, frozen=True):
    """What `--json` prints, in the shape that all commands share."""

    command: str
    version: str
    inputs: Inputs
    holds: bool
    figures: ExploreFigures | ShowFigures
    differences: list[str]


class ExploreFigures(msgspec.Struct, frozen=True, tag_field="of", tag="explore"):
    events: int
    first: int
    last: int
    steps: int
    nbytes: int


class ShowFigures(msgspec.Struct, frozen=True, tag_field="of", tag="show"):
    """`step` and the `state` after it; a folio's `walks` count into `answers`."""

    step: Step
    state: dict[str, AnyPart]
    answers: list[Answer]


def mount(app: typer.Typer, finders: Finders) -> None:
    """Add the commands to `app`."""

    @app.command("explore", short_help="Write a page that shows a history step by step.")
    def _explore(
        what: What,
        output: Annotated[
            Path, typer.Option("--output", "-o", metavar="PAGE", help="The HTML page to write.")
        ],
        rmap: Designs = None,
        profile: ProfileName = "",
        first: Annotated[
            int,
            typer.Option("--from", min=1, metavar="N", help="Begin at event N; what came before is played."),
        ] = 1,
        last: Annotated[
            int, typer.Option("--to", min=0, metavar="N", help="End at event N (0: the last).")
        ] = 0,
        steps: Annotated[
            int,
            typer.Option(min=1, max=2000, metavar="N", help="At most so many; longer histories are folded."),
        ] = STEPS,
        path: PathOfRace = "",
        seed: Seed = 1,
        json: Json = False,
    ) -> Job:
        """Write one self-contained HTML page that shows a history step by step, in designs side by side.

        \b
        Examples:
          rmaplab explore fork-copy-fork -o tour.html
          rmaplab explore sort.parquet --from 200 --to 400 -o sort.html
          rmaplab explore "restore / fork" --rmap cow_context_prototype -o race.html
        """
        ask = _Asked(what, rmap, profile, seed, path, Shot(first, last, steps))

        def job() -> int:
            from rmaplab.explore.html import page

            film = _film(finders, ask)
            if film.cpus and (first, last) != (1, 0):
                raise RaceError("a race is shown from its first step to its last: leave --from and --to out")
            text = page(film)
            _write(output, text)
            if json:
                figures = ExploreFigures(
                    film.events, film.first, film.last, len(film.steps), len(text.encode())
                )
                _print_json("explore", film, seed, figures)
            else:
                print(f"{output}: {len(film.steps) - 1} steps, {len(text.encode()):,} bytes", file=sys.stderr)
            return _status(film)

        return job

    @app.command("show", short_help="Print one step of a history as text.")
    def _show(
        what: What,
        at: Annotated[int, typer.Option(min=0, metavar="N", help="After event N (0: the last).")] = 0,
        ask: Annotated[
            str, typer.Option(metavar="PID:ADDRESS", help="Ask every design who maps the page there.")
        ] = "",
        rmap: Designs = None,
        profile: ProfileName = "",
        path: PathOfRace = "",
        seed: Seed = 1,
        json: Json = False,
    ) -> Job:
        """Print what a history's machine and its designs look like after event N, and what that event did. Of a
        race, N counts the steps of the CPUs.

        \b
        Examples:
          rmaplab show fork-copy-fork --at 7 --ask 2:0x7f0000000000
          rmaplab show race-fork --at 5
        """
        asked = _Asked(what, rmap, profile, seed, path, Shot(at, at, 1), _place(ask))

        def job() -> int:
            from rmaplab.explore.text import show

            film = _film(finders, asked)
            number = at if film.cpus and at else len(film.steps) - 1
            if number >= len(film.steps):
                raise RaceError(f"step {at} is no part of this race, which has {len(film.steps) - 1}")
            if json:
                _print_json("show", film, seed, ShowFigures(film.steps[number], states(film)[number], film.answers))
            else:
                print("\n".join(show(film, number)))
            return _status(film)

        return job


class _Asked(NamedTuple):
    """What a film is asked for."""

    what: Sequence[str]
    rmap: Sequence[str] | None
    profile: str
    seed: int
    path: str
    shot: Shot
    page: tuple[int, int] | None = None


def _film(finders: Finders, asked: _Asked) -> Film:
    what = asked.what
    name = what[0] if len(what) == 1 and not os.path.exists(what[0]) else ""
    if name in RACES or exists(name) or " / " in name or asked.path:
        return _film_of_race(finders, name, asked)
    from rmaplab.explore.film import shoot

    tour = TOURS.get(name)
    history = finders.history(what, asked.seed) if tour is None else tour.history()
    kernel = finders.profile(asked.profile, history)
    designs = [finders.design(name) for name in specs(asked.rmap, tour.designs if tour else DESIGNS)]
    if len(history) == 0:
        raise HistoryError("there is nothing to see in a history without events")
    shot = asked.shot
    last = shot.last or len(history)
    if not 1 <= (shot.first or last) <= last <= len(history):
        raise HistoryError(
            f"events {shot.first or last} to {last} are no part of this history, which has {len(history):,}"
        )
    shot = Shot(shot.first or last, last, shot.steps)
    return shoot(history, designs, kernel, shot=shot, tour=tour, ask=asked.page)


def _film_of_race(finders: Finders, name: str, asked: _Asked) -> Film:
    from rmaplab.explore.race import shoot_race, shoot_tour

    tour = RACES.get(name)
    if tour is None and not exists(name):
        raise RaceError(f"there is no scenario called {name!r}; rmaplab race --list prints them all")
    if asked.profile not in ("", REFERENCE):
        raise RaceError(f"races run by the rules of {REFERENCE} alone")
    if asked.page is not None:
        raise RaceError("--ask is for histories; in a race the folio that it is about is asked for")
    if tour is not None:
        if asked.rmap or asked.path:
            raise RaceError("a guided tour of a race has its design and its path: leave --rmap and --path out")
        return shoot_tour(tour, finders.design(tour.design))
    if asked.rmap is None or len(asked.rmap) != 1:
        raise RaceError("a race is one design's: name it with --rmap")
    design = finders.design(asked.rmap[0])
    path = asked.path
    if not path:
        print("looking for an interleaving that fails", file=sys.stderr)
        broken = run(name, design).broken
        if not broken:
            raise RaceError(
                f"{design.name} keeps its obligations in every interleaving of {name!r}, so there is no failure to"
                " show; give the --path of one"
            )
        path = broken[0].path
    return shoot_race(name, design, path)


def _status(film: Film) -> int:
    """1 if the machine's results are not the history's, or a race breaks an obligation."""
    for difference in film.differences[:LISTED]:
        print(f"rmaplab: {difference}", file=sys.stderr)
    return 1 if film.differences else 0


def _place(ask: str) -> tuple[int, int] | None:
    if not ask:
        return None
    pid, _, addr = ask.partition(":")
    try:
        return int(pid), int(addr, 0) & ~0xFFF
    except ValueError:
        raise HistoryError(f"{ask!r} is no page: say PID:ADDRESS, as in 2:0x7f0000000000") from None


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _print_json(command: str, film: Film, seed: int, figures: ExploreFigures | ShowFigures) -> None:
    told = Told(
        command,
        f"{rmaplab.__version__} ({rmaplab.build_info()})",
        Inputs(film.title, [design.name for design in film.designs], film.profile, seed),
        not film.differences,
        figures,
        film.differences[:LISTED],
    )
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(told), indent=2).decode() + "\n")
