# SPDX-License-Identifier: GPL-2.0-or-later
"""What a tour is: a history, and what to say at each event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from rmaplab.trace.events import Event
from rmaplab.trace.history import FileEntry, Header, History
from rmaplab.trace.script import Process, Script


class Beat(NamedTuple):
    """One event of a tour.

    say: a few sentences about what just happened
    ask: (pid, address) of a page for which every design is asked at once
    """

    event: Event
    say: str
    ask: tuple[int, int] | None = None


class Guide(Script):
    """Leads a tour: after each thing that a process does, something is said about it."""

    def __init__(self) -> None:
        super().__init__()
        self.beats: Final[list[Beat]] = []

    def say(self, words: str, ask: tuple[Process, int] | None = None) -> None:
        """About the last event; `ask` for a page of a process."""
        assert len(self.beats) == len(self.events) - 1, "one event, one say"
        self.beats.append(Beat(self.events[-1], words, None if ask is None else (ask[0].pid, ask[1])))


class Tour(NamedTuple):
    """A guided tour; `about` is said before anything has happened."""

    name: str
    title: str
    about: str
    designs: tuple[str, ...]
    beats: tuple[Beat, ...]
    files: tuple[str, ...] = ()

    @classmethod
    def told(
        cls, name: str, title: str, about: str, designs: tuple[str, ...], tell: Callable[[Guide], None],
        files: tuple[str, ...] = (),
    ) -> Tour:  # fmt: skip
        """A tour whose beats `tell` says to a guide."""
        guide = Guide()
        tell(guide)
        return cls(name, title, about, designs, tuple(guide.beats), files)

    def history(self) -> History:
        files = [FileEntry(number, name=name) for number, name in enumerate(self.files)]
        header = Header(recorder="a guided tour", command=self.title, files=files)
        return History(header, [beat.event for beat in self.beats])
