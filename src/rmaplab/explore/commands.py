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
from rmaplab.explore.parts import STEPS, Answer, AnyPart, Film, Shot, Step, states
from rmaplab.explore.tours import TOURS, Tour
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.profile import PROFILES, Profile
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.trace.history import History

DESIGNS = ("anon_vma", "cow_context")  # where nothing else was asked for

LISTED = 20  # differences

Job = Callable[[], int]
What = Annotated[
    list[str],
    typer.Argument(
        metavar="F | WORKLOAD [NAME=VALUE]... | TOUR",
        help=f"A recording, a workload, or a guided tour ({', '.join(TOURS)}).",
    ),
]
Designs = Annotated[
    list[str] | None,
    typer.Option(
        "--rmap",
        metavar="DESIGN",
        help="A design: its name, package.module:Class, or a file. May be repeated.",
    ),
]
ProfileName = Annotated[
    str,
    typer.Option("--profile", metavar="NAME", help=f"The kernel whose rules apply: {', '.join(PROFILES)}."),
]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Seed of what is chosen at random.")]
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
        seed: Seed = 1,
        json: Json = False,
    ) -> Job:
        """Write one self-contained HTML page that shows a history step by step, in designs side by side.

        \b
        Examples:
          rmaplab explore fork-copy-fork -o tour.html
          rmaplab explore sort.parquet --from 200 --to 400 -o sort.html
        """

        def job() -> int:
            from rmaplab.explore.html import page

            film = _film(finders, what, rmap, profile, seed, Shot(first, last, steps))
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
        seed: Seed = 1,
        json: Json = False,
    ) -> Job:
        """Print what a history's machine and its designs look like after event N, and what that event did.

        \b
        Example:
          rmaplab show fork-copy-fork --at 7 --ask 2:0x7f0000000000
        """

        def job() -> int:
            from rmaplab.explore.text import show

            film = _film(finders, what, rmap, profile, seed, Shot(at, at, 1), _place(ask))
            if json:
                _print_json("show", film, seed, ShowFigures(film.steps[-1], states(film)[-1], film.answers))
            else:
                print("\n".join(show(film, len(film.steps) - 1)))
            return _status(film)

        return job


def _film(
    finders: Finders,
    what: Sequence[str],
    rmap: Sequence[str] | None,
    profile: str,
    seed: int,
    shot: Shot,
    ask: tuple[int, int] | None = None,
) -> Film:
    from rmaplab.explore.film import shoot

    tour: Tour | None = None
    if len(what) == 1 and what[0] in TOURS and not os.path.exists(what[0]):
        tour = TOURS[what[0]]
        history = tour.history()
    else:
        history = finders.history(what, seed)
    kernel = finders.profile(profile, history)
    designs = [finders.design(name) for name in rmap or (tour.designs if tour else DESIGNS)]
    if len(history) == 0:
        raise HistoryError("there is nothing to see in a history without events")
    last = shot.last or len(history)
    if not 1 <= (shot.first or last) <= last <= len(history):
        raise HistoryError(
            f"events {shot.first or last} to {last} are no part of this history, which has {len(history):,}"
        )
    return shoot(
        history, designs, kernel, shot=Shot(shot.first or last, last, shot.steps), tour=tour, ask=ask
    )


def _status(film: Film) -> int:
    """1 if the machine's results are not the history's."""
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
