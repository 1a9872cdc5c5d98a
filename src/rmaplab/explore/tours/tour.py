# SPDX-License-Identifier: GPL-2.0-or-later
"""What a tour is: a history, and what to say at each event."""

from __future__ import annotations

from typing import NamedTuple

from rmaplab.prose import in_one_line, read_page
from rmaplab.trace.events import Event
from rmaplab.trace.history import FileEntry, Header, History
from rmaplab.trace.script import SMALL_PROGRAM, Script
from rmaplab.trace.text import Lines
from rmaplab.workloads.workload import AREA, AWAY


class Beat(NamedTuple):
    """One event of a tour.

    say: a few sentences about what just happened
    ask: (pid, address) of a page for which every design is asked at once
    """

    event: Event
    say: str
    ask: tuple[int, int] | None = None


class Tour(NamedTuple):
    """A guided tour; `about` is said before anything has happened."""

    name: str
    title: str
    about: str
    designs: tuple[str, ...]
    beats: tuple[Beat, ...]
    files: tuple[str, ...] = ()

    def history(self) -> History:
        files = [FileEntry(number, name=name) for number, name in enumerate(self.files)]
        header = Header(recorder="a guided tour", command=self.title, files=files)
        return History(header, [beat.event for beat in self.beats])


def read_tour(name: str) -> Tour:
    """The tour of NAME.md: a heading is a line of trace/text.py with one event, and `; ask PROCESS ADDRESS`."""
    title, facts, about, parts = read_page(f"explore/tours/{name}.md")
    script = Script()
    lines = Lines(script, AREA, stack=SMALL_PROGRAM.stack, away=AWAY)
    beats = []
    for number, (heading, words) in enumerate(parts):
        line, _, asked = heading.partition("; ask ")
        lines.perform(line)
        assert len(script.events) == number + 1, f"{name}: {line}: one event, one heading"
        beats.append(Beat(script.events[-1], in_one_line(words), lines.place(asked) if asked else None))
    designs, files = (tuple(filter(None, facts.get(fact, "").split(", "))) for fact in ("designs", "files"))
    return Tour(name, title, about, designs, tuple(beats), files)
