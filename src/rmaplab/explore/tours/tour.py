# SPDX-License-Identifier: GPL-2.0-or-later
"""What a tour is: a history, and what to say at each event."""

from __future__ import annotations

from typing import NamedTuple

from rmaplab.trace.events import Event
from rmaplab.trace.history import FileEntry, Header, History


class Beat(NamedTuple):
    """One event of a tour.

    say: a few sentences for somebody who has just seen it happen
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
