# SPDX-License-Identifier: GPL-2.0-or-later
"""What a tour of a race is: a scenario of `rmaplab race`, and whose turn it is until when.

No path is stored: each turn lets a CPU go on until it has done what the turn names, so that a tour bears with
a step more or less in the code that it shows, and says so where it no longer fits.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from rmaplab.check import race_mutants
from rmaplab.check.race import SEQUENTIAL, Model
from rmaplab.mm.machine import Machine
from rmaplab.prose import in_one_line, read_page

_TURN: Final = re.compile(r"CPU (\d+), (?:to its end|until: (.*?))(; ask)?(; oldest value)?")


class Turn(NamedTuple):
    """A CPU goes on.

    until: words of the last step that it takes; "" if it comes to its end
    say:   a few sentences about what just happened
    ask:   ask the design at once which entries map the folio
    old:   the last step loads the oldest value that it may
    """

    cpu: int
    until: str
    say: str
    ask: bool = False
    old: bool = False


class RaceTour(NamedTuple):
    """A guided tour of a race; `about` is said before anything has happened, `end` with the last turn.

    design: as `--rmap` takes it
    breaks: how the sentence begins that says what is broken in the end; "" if nothing is
    without: an ordering that is taken away; then memory is weak
    """

    name: str
    title: str
    about: str
    scenario: str
    design: str
    turns: tuple[Turn, ...]
    end: str
    breaks: str
    machine: type[Machine] = Machine
    without: str = ""

    def memory(self) -> Model:
        """The memory model in which it happens."""
        return Model("weak", [self.without]) if self.without else SEQUENTIAL


def read_race(name: str) -> RaceTour:
    """The tour of NAME.md: each heading is a turn, the last one the end."""
    title, facts, about, (*parts, (_, end)) = read_page(f"explore/tours/{name}.md")
    turns = []
    for heading, words in parts:
        turn = _TURN.fullmatch(heading)
        assert turn is not None, f"{name}: {heading}: whose turn is it, and until when?"
        cpu, until, ask, old = turn.groups()
        turns.append(Turn(int(cpu), until or "", in_one_line(words), bool(ask), bool(old)))
    machine = getattr(race_mutants, facts["machine"]) if "machine" in facts else Machine
    return RaceTour(
        name, title, about, facts["scenario"], facts["design"], tuple(turns), in_one_line(end),
        facts.get("breaks", ""), machine, facts.get("without", ""),
    )  # fmt: skip
