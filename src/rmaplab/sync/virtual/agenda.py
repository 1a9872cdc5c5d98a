# SPDX-License-Identifier: GPL-2.0-or-later
"""The agenda: a heap of events.

Invariant: events happen in the order of their times, those of equal times in the order in which they were announced.
All times are whole picoseconds.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import i64


class Event:
    """Something that happens at a time (`at`), at equal times in the order of `announced`."""

    def __init__(self) -> None:
        self.at: i64 = 0
        self.announced: i64 = 0

    def happen(self) -> None:
        """Do what it stands for."""
        raise NotImplementedError


class Agenda:
    """Events to come.  `now` is the time of the last one that happened.

    (heapq would call Python to compare events, or compare tuples that have to be made first.)
    """

    def __init__(self) -> None:
        self.events: Final[list[Event]] = []
        self.now: i64 = 0
        self._announced: i64 = 0

    def due(self, time: i64) -> bool:
        """Is there an event at `time` or before it?"""
        events = self.events
        return len(events) > 0 and events[0].at <= time

    def announce(self, time: i64, event: Event) -> None:
        """`event` is to happen at `time`, after all that were announced before for the same time."""
        self._announced += 1
        event.at = time
        event.announced = self._announced

    def push(self, time: i64, event: Event) -> None:
        self.announce(time, event)
        events = self.events
        events.append(event)
        i: i64 = len(events) - 1
        while i > 0:
            up = (i - 1) >> 1
            above = events[up]
            if above.at <= time:  # and was announced before
                break
            events[i] = above
            i = up
        events[i] = event

    def pop(self) -> Event:
        """The first event; there is one."""
        last = self.events.pop()
        return self.swap(last) if self.events else last

    def swap(self, event: Event) -> Event:
        """The first event, of which there is one; `event`, which was announced, takes its place in the heap."""
        events = self.events
        first = events[0]
        at = event.at
        announced = event.announced
        size: i64 = len(events)
        i: i64 = 0
        below: i64 = 1
        while below < size:
            sooner = events[below]
            if below + 1 < size:
                other = events[below + 1]
                if other.at < sooner.at or (other.at == sooner.at and other.announced < sooner.announced):
                    sooner = other
                    below += 1
            if at < sooner.at or (at == sooner.at and announced < sooner.announced):
                break
            events[i] = sooner
            i = below
            below = 2 * i + 1
        events[i] = event
        return first
