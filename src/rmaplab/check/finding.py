# SPDX-License-Identifier: GPL-2.0-or-later
"""The shortest history that shows something wrong.

`Search` leaves out events as long as what is left still shows it.  A recording in which a design misses a mapping is
slimmed before that (`shortest_history`): it is cut after the event where a walk first missed an entry, then reduced to
the process that lost the page and its ancestors, and to the accesses to that very page.  A step that makes the design
see again is not taken.

Nothing is drawn at random, and no clock decides when to stop, so the same history gives the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from rmaplab.check.histories import settle, shortest
from rmaplab.check.lockstep import Checker, Difference
from rmaplab.errors import in_a_line
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.machine import Machine
from rmaplab.mm.vma import PAGE_SIZE
from rmaplab.trace.events import Event
from rmaplab.trace.history import Header, History
from rmaplab.trace.play import Player

_BUDGET: Final = 400_000  # events to play in search of a shorter history


class Search:
    """Searches for a shorter history that shows the same.

    machine: makes a new one, watched by the designs that matter
    header:  of the histories
    shows:   whether a difference is of the kind that is looked for; None: the machine or a design has to raise
    reference: the design that others are compared with
    batch:   apply faults in runs, which is faster for recordings

    It makes do with what it has when it has played `_BUDGET` events.
    """

    def __init__(
        self,
        machine: Callable[[], Machine],
        header: Header,
        shows: Callable[[Difference], bool] | None,
        reference: str = "anon_vma",
        batch: bool = False,
    ) -> None:
        self.machine: Final = machine
        self.header: Final = header
        self._shows: Final = shows
        self._reference: Final = reference
        self._batch: Final = batch
        self._budget = _BUDGET

    def shortest(self, events: Sequence[Event]) -> list[Event]:
        """`events` without those that what is shown does not need."""
        return shortest(events, self.fails, self.again)

    def better(self, events: list[Event], slim: Callable[[list[Event]], list[Event]]) -> list[Event]:
        """What `slim` makes of `events`, if it still shows the same; else `events`."""
        slimmer = self.again(slim(events))
        return slimmer if self.fails(slimmer) else events

    def again(self, events: list[Event]) -> list[Event]:
        """`events` as they go without those that were left out."""
        self._budget -= len(events)
        return settle(events, self._player())

    def fails(self, events: list[Event]) -> bool:
        """Is it shown, at the last of `events`?"""
        self._budget -= len(events)
        return self._budget >= 0 and self.shown(events) != ""

    def shown(self, events: Sequence[Event]) -> str:
        """What `events` show, in a sentence; empty if it is nothing that is looked for."""
        player = self._player()
        try:
            for event in events:
                player.do(event)
            differences = Checker(player.machine, self._reference).check(len(events) - 1)
        except HistoryError:
            return ""
        except Exception as error:
            return in_a_line(error) if self._shows is None else ""
        return next((found.what for found in differences if self._shows is not None and self._shows(found)), "")

    def _player(self) -> Player:
        return Player(self.machine(), self.header, batch=self._batch)


def shortest_history(history: History, difference: Difference, machine: Callable[[], Machine]) -> list[Event]:
    """The shortest history found that shows `difference` on a new machine, which `machine` makes.

    The machine's designs are the leader and the one that misses something: an entry at the same address, in whatever
    process.
    """

    def shows(found: Difference) -> bool:
        same = (found.kind, found.design) == (difference.kind, difference.design)
        return same and found.start <= difference.addr < found.end

    search = Search(machine, history.header, shows, batch=True)
    events = [
        event for _, event in zip(range(difference.step + 1), history, strict=False) if event.op != "mark"
    ]
    for slim in (
        lambda events: _family_only(events, difference.pid),
        lambda events: _page_only(events, difference.addr),
    ):
        events = search.better(events, slim)
    return search.shortest(events)


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
