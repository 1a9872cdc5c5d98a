# SPDX-License-Identifier: GPL-2.0-or-later
"""The shortest history in which a design misses a mapping.

A recording is cut after the event where a walk first missed an entry, reduced to the process that lost the
page and its ancestors, then to the accesses to that very page, and from what is left events are taken out
as long as the design still misses something.  A step that makes it see again is not taken.

Nothing is drawn at random, and no clock decides when to stop, so the same history gives the same answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from rmaplab.check.histories import settle, shortest
from rmaplab.check.lockstep import Checker, Difference
from rmaplab.mm.errors import HistoryError, InvariantError
from rmaplab.mm.machine import Machine
from rmaplab.mm.vma import PAGE_SIZE
from rmaplab.trace.events import Event
from rmaplab.trace.history import Header, History
from rmaplab.trace.play import Player

_BUDGET: Final = 300_000  # events to play in search of a shorter history


def shortest_history(history: History, difference: Difference, machine: Callable[[], Machine]) -> list[Event]:
    """The shortest history found that shows `difference` on a new machine, which `machine` makes.

    The machine's designs are the leader and the one that misses something.
    """
    search = _Search(history.header, machine, difference)
    events = [
        event for _, event in zip(range(difference.step + 1), history, strict=False) if event.op != "mark"
    ]
    for slim in (
        lambda events: _family_only(events, difference.pid),
        lambda events: _page_only(events, difference.addr),
    ):
        events = search.better(events, slim)
    return shortest(events, search.fails, search.again)


class _Search:
    """Plays candidates until it has used up its budget."""

    def __init__(self, header: Header, machine: Callable[[], Machine], wanted: Difference) -> None:
        self._header: Final = header
        self._machine: Final = machine
        self._wanted: Final = wanted
        self._budget = _BUDGET

    def better(self, events: list[Event], slim: Callable[[list[Event]], list[Event]]) -> list[Event]:
        """What `slim` makes of `events`, if the design still misses something there; else `events`."""
        slimmer = self.again(slim(events))
        return slimmer if self.fails(slimmer) else events

    def again(self, events: list[Event]) -> list[Event]:
        """`events` as they go without those that were left out."""
        self._budget -= len(events)
        return settle(events, self._player())

    def fails(self, events: list[Event]) -> bool:
        """Does the design miss an entry at the same address, in whatever process, after the last of `events`?"""
        self._budget -= len(events)
        if self._budget < 0:
            return False
        player = self._player()
        try:
            player.play(events)
        except (HistoryError, InvariantError):
            return False
        wanted = self._wanted
        return any(
            found.kind == wanted.kind
            and found.design == wanted.design
            and found.start <= wanted.addr < found.end
            for found in Checker(player.machine).check(len(events))
        )

    def _player(self) -> Player:
        return Player(self._machine(), self._header)


def _family_only(events: list[Event], pid: int) -> list[Event]:
    """Events of `pid` and its ancestors."""
    parents = {event.pid2: event.pid for event in events if event.op == "fork"}
    family = {pid}
    while pid in parents and parents[pid] not in family:
        pid = parents[pid]
        family.add(pid)
    return [event for event in events if event.pid in family and (event.op != "fork" or event.pid2 in family)]


def _page_only(events: list[Event], addr: int) -> list[Event]:
    """The same, but of all faults only those at `addr`."""
    kept = []
    for event in events:
        if event.op == "fault":
            if not event.addr <= addr < event.addr + event.length:
                continue
            event = msgspec.structs.replace(event, addr=addr, length=PAGE_SIZE)
        kept.append(event)
    return kept


def line(event: Event) -> str:
    """The event as one line of text."""
    words = [event.op, f"pid={event.pid}"]
    for name in event.__struct_fields__[2:]:
        value = getattr(event, name)
        if name not in ("time", "cpu") and value != (-1 if name == "file" else 0):
            words.append(f"{name}={value}" if name == "pid2" or -4096 < value < 10 else f"{name}={value:#x}")
    return " ".join(words)
