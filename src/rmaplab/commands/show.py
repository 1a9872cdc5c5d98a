# SPDX-License-Identifier: GPL-2.0-or-later
"""`rmaplab show`: one step of a history, or of a race, as text."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from rmaplab.check.race import RaceError
from rmaplab.commands.envelope import print_json
from rmaplab.commands.explore import LISTED, Asked, What, film_of, holds, inputs_of
from rmaplab.explore.parts import Answer, AnyPart, Shot, Step, states
from rmaplab.mm.errors import HistoryError
from rmaplab.printable import printable


class Figures(msgspec.Struct, frozen=True, tag_field="of", tag="show"):
    """`step` and the `state` after it; a folio's `walks` count into `answers`."""

    step: Step
    state: dict[str, AnyPart]
    answers: list[Answer]


def command(
    what: What,
    at: Annotated[int, typer.Option(min=0, metavar="N", help="After event N (0: the last).")] = 0,
    ask: Annotated[
        str, typer.Option(metavar="PID:ADDRESS", help="Ask every design which entries map that page.")
    ] = "",
    asked: Asked = Asked(),  # noqa: B008 (frozen)
) -> bool:
    """Print the machine and its designs after event N of a history, and what that event did. In a race, N counts
    the steps of the CPUs.

    \b
    Examples:
      rmaplab show fork-copy-fork --at 7 --ask 2:0x7f0000000000
      rmaplab show race-fork --at 5
    """
    from rmaplab.explore.text import show

    film = film_of(what, asked, Shot(at, at, 1), _place(ask))
    number = at if film.cpus and at else len(film.steps) - 1
    if number >= len(film.steps):
        raise RaceError(f"this race has {len(film.steps) - 1} steps, and no step {at}")
    if asked.json:
        figures = Figures(film.steps[number], states(film)[number], film.answers)
        print_json("show", inputs_of(film, asked.seed), not film.differences, figures, film.differences[:LISTED])
    else:
        print("\n".join(map(printable, show(film, number))))
    return holds(film)


def _place(ask: str) -> tuple[int, int] | None:
    if not ask:
        return None
    pid, _, addr = ask.partition(":")
    try:
        return int(pid), int(addr, 0) & ~0xFFF
    except ValueError:
        raise HistoryError(f"{ask!r} is not a page: say PID:ADDRESS, as in 2:0x7f0000000000") from None
