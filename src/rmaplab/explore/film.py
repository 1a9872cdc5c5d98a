# SPDX-License-Identifier: GPL-2.0-or-later
"""A history as a film: plays it, and takes a picture after each step.

A long history is shown through a *window* of events, or as a whole in steps that begin where something happens
(explore/overview.py); events before the window are played, too.

Invariants
- the same history, designs and window give the same film, byte for byte.
- the work and the locks of a step are the history's own: those of the camera's walks are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from rmaplab.explore import words
from rmaplab.explore.camera import COARSE, FINE, Camera
from rmaplab.explore.overview import TELLING, cut, lives, weight
from rmaplab.explore.parts import MACHINE, DesignLine, Effort, Film, Folio, Life, Shot, State, Step
from rmaplab.explore.tours import Tour
from rmaplab.explore.witness import Witness
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import PTE_ANON, PTE_MIGRATION, PTE_SHIFT
from rmaplab.mm.profile import Profile
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import MM
from rmaplab.printable import plural, printable
from rmaplab.sync.locks import RwSemaphore, SpinLock
from rmaplab.sync.work import Ledger
from rmaplab.trace.events import Event
from rmaplab.trace.history import History
from rmaplab.trace.play import Player

NOTES: Final = 60  # per step

Played = Iterator[tuple[int, Event]]


def shoot(
    history: History,
    designs: Sequence[type[ReverseMap]],
    profile: Profile,
    *,
    shot: Shot | None = None,
    tour: Tour | None = None,
    ask: tuple[int, int] | None = None,
) -> Film:
    """The film of `history`, watched by `designs`.

    tour: has the words for each event
    ask:  (pid, address) of a page to ask for at the last step
    """
    shooting = _Shooting(history, designs, profile, tour, shot or Shot())
    film = shooting.shoot()
    if ask is not None:
        film.steps[-1].ask = shooting.reel.folio_at(*ask)
    return film


class Reel:
    """The steps of a film, as they are taken."""

    def __init__(self, machine: Machine, camera: Camera) -> None:
        self.machine: Final = machine
        self.camera: Final = camera
        self.steps: Final[list[Step]] = []
        self._ledgers: Final = [machine.ledger, *(design.ledger for design in machine.designs)]
        self._state: State = {}
        self._pids: set[int] = set()
        self._born: Final[dict[str, int]] = {}  # by key: the step that made it, 0 where that is not known

    def designs(self) -> list[DesignLine]:
        return [
            DesignLine(design.name, dict(picture.about))
            for design, picture in zip(self.machine.designs, self.camera.pictures, strict=True)
        ]

    def take(
        self, step: Step, busy: list[int], touched: int, unowned: Iterable[MM] = (), besides: State | None = None
    ) -> None:
        """Take the picture after `step`, and write down what is different in it.  `besides` is in it, too."""
        now = self.camera.picture(busy, touched, unowned)
        now.update(besides or {})
        pids = set(self.machine.processes)
        number = len(self.steps)
        before = self._state
        partly = words.sorts_in_part(before) | words.sorts_in_part(now)

        def whole(key: str) -> bool:
            sort = words.sort_of(key)
            if sort == "p":  # of processes it is always known
                return (int(key[1:]) in pids) != (int(key[1:]) in self._pids)
            return sort not in partly

        for key, part in now.items():
            if key not in before:
                self._born[key] = number if whole(key) else 0
            part.born = self._born[key]
            if before.get(key) != part:
                step.put[key] = part
        step.gone = [key for key in before if key not in now]
        step.apart = self._apart(now)
        found = words.notes(before, now, whole) if number else []
        step.notes = found[:NOTES]
        step.folded_notes = len(found) - len(step.notes)
        self._pids = pids
        self._state = now
        self.steps.append(step)

    def _apart(self, state: State) -> list[tuple[int, int, int]]:
        """Where walks of the designs differ: which miss mappings that another finds, and which visit more places."""
        slots = range(len(self.camera.pictures))
        missed = [0 for _ in slots]
        visited = [0 for _ in slots]
        for part in state.values():
            if isinstance(part, Folio) and part.walks:
                answers = [self.camera.answers[number] for number, _ in part.walks]
                hits = [sum(place.hit for place in answer.places) + answer.more_hits for answer in answers]
                for slot, answer in enumerate(answers):
                    missed[slot] += max(hits) - hits[slot]
                    visited[slot] += len(answer.places) + answer.more
        fewest = min(visited, default=0)
        return [(slot, missed[slot], visited[slot]) for slot in slots if missed[slot] or visited[slot] > fewest]

    def folio_at(self, pid: int, addr: int) -> str:
        entry = self.machine.mm_of(pid).page_table.get(addr)
        if not entry & (PTE_ANON | PTE_MIGRATION):
            raise HistoryError(f"process {pid} has no anonymous page at {addr:#x} to ask for")
        return f"f{self.machine.folios.head.m[entry >> PTE_SHIFT]}"

    # Work

    def counts(self) -> list[Counts]:
        return [Counts(ledger) for ledger in self._ledgers]

    def efforts(self, before: list[Counts], taken: Sequence[tuple[object, bool]] | None) -> list[Effort]:
        """The work of each participant since `before`; `taken`: locks one by one, where they were watched."""
        efforts = []
        for slot, (ledger, old) in enumerate(zip(self._ledgers, before, strict=True), MACHINE):
            now = Counts(ledger)
            work = [
                (name, count - old.work.get(name, 0))
                for name, count in now.work.items()
                if count != old.work.get(name, 0)
            ]
            if taken is None:
                locks = Counter({key: count - old.locks.get(key, 0) for key, count in now.locks.items()})
            else:
                locks = self._named(taken, ledger)
            found = [(name, count, write) for (name, write), count in sorted(locks.items()) if count]
            if work or found:
                efforts.append(Effort(slot, work, found))
        return efforts

    def _named(self, taken: Sequence[tuple[object, bool]], ledger: Ledger) -> Counter[tuple[str, bool]]:
        """How often each lock of `ledger` was taken, by name and mode."""
        names: dict[int, str] = {}
        counts: Counter[tuple[str, bool]] = Counter()
        for lock, write in taken:
            if isinstance(lock, RwSemaphore | SpinLock) and lock.lock_class in ledger.locks.values():
                if id(lock) not in names:
                    names[id(lock)] = self.camera.lock_name(lock)
                counts[names[id(lock)], write] += 1
        return counts

class _Shooting:
    def __init__(
        self,
        history: History,
        designs: Sequence[type[ReverseMap]],
        profile: Profile,
        tour: Tour | None,
        shot: Shot,
    ) -> None:
        self.history: Final = history
        self.tour: Final = tour
        self.total: Final = len(history)
        self.last: Final = min(shot.last or self.total, self.total)
        self.first: Final = max(1, min(shot.first, self.last))
        self.ends: Final = cut(history, self.first, self.last, shot.steps)
        # A witness sees every lock by itself, and makes the machine do everything page by page: where a step
        # covers many events, nobody would read it.
        single = len(self.ends) == self.last - self.first + 1
        self.witness: Final = Witness() if single else None
        self.machine: Final = Machine(profile, designs, scheduler=self.witness)
        # In a tour every event has a sentence; otherwise a run of faults is one step.
        self.player: Final = Player(self.machine, history.header, batch=tour is None)
        detail = FINE if single else COARSE
        self.reel: Final = Reel(self.machine, Camera(self.machine, history.header.processes, detail))

    def shoot(self) -> Film:
        played = self.player.steps(self.history)
        before = 0
        while before < self.first - 1:
            before, _ = next(played)
        self._begin(before)
        if self.witness is not None:
            self._one_by_one(played, self.witness)
        else:
            self._many_by_many(played)
        header = self.history.header
        known: list[Life] = []
        more = 0
        if self.tour is None:
            known, more = lives(self.history, self.first, self.last)
            for life in known:
                life.name = header.processes.get(life.pid, "")
        return Film(
            title=self.tour.title if self.tour else printable(header.command) or "a history",
            origin=header.recorder,
            profile=self.machine.profile.name,
            leader=self.machine.leader.name,
            designs=self.reel.designs(),
            events=self.total,
            first=self.first,
            last=self.reel.steps[-1].events,
            steps=self.reel.steps,
            answers=self.reel.camera.answers,
            differences=[str(difference) for difference in self.player.differences],
            lives=known,
            more_lives=more,
        )

    # Steps

    def _begin(self, before: int) -> None:
        told = (
            f"{plural(before, 'event')} came before this window."
            if before
            else "Nothing has happened yet."
        )
        step = Step(before, "begin", 0, told, say=self.tour.about if self.tour else "")
        self.reel.take(step, [], 0)

    def _one_by_one(self, played: Played, witness: Witness) -> None:
        while True:
            counts = self.reel.counts()
            witness.forget()
            witness.held.clear()
            witness.listening = True
            got = next(played, None)
            witness.listening = False
            if got is None:
                return
            number, event = got
            step = Step(number, event.op, event.pid, words.tell(event, self.history.header.names))
            self.reel.camera.moved()
            step.efforts = self.reel.efforts(counts, witness.taken)
            if self.tour is not None:
                beat = self.tour.beats[number - 1]
                step.say = beat.say
                self.reel.take(step, [event.pid, event.pid2], event.addr)
                if beat.ask is not None:
                    step.ask = self.reel.folio_at(*beat.ask)
            else:
                self.reel.take(step, [event.pid, event.pid2], event.addr)
            if number >= self.last:
                return

    def _many_by_many(self, played: Played) -> None:
        number = self.reel.steps[-1].events
        for end in self.ends:
            if end <= number:  # a run of faults went beyond it
                continue
            counts = self.reel.counts()
            done: list[Event] = []
            for number, event in played:
                done.append(event)
                if number >= end:
                    break
            if not done:
                return
            busy = [pid for pid, _ in Counter(event.pid for event in done).most_common(3)]
            step = Step(number, done[0].op, busy[0], self._told(done))
            step.efforts = self.reel.efforts(counts, None)
            self.reel.take(step, [*busy, done[0].pid2], done[-1].addr)

    def _told(self, done: list[Event]) -> str:
        """A step of many events in words: the first in full if it matters, the others by operation."""
        if len(done) == 1:
            return words.tell(done[0], self.history.header.names)
        if weight(done[0].op) < TELLING:
            return words.tell_many(done)
        first = words.tell(done[0], self.history.header.names)
        return f"{first} Then {words.tell_many(done[1:])}"


class Counts:
    """A ledger at one moment: work, and locks taken by class and mode."""

    def __init__(self, ledger: Ledger) -> None:
        self.work: Final = {name: tally.count for name, tally in ledger.tallies.items()}
        self.work.update((f"{name} allocated", pool.allocated) for name, pool in ledger.pools.items())
        self.locks: Final = {
            (name, write): lock.writes if write else lock.reads
            for name, lock in ledger.locks.items()
            for write in (True, False)
        }
