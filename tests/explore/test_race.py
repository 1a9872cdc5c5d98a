# SPDX-License-Identifier: GPL-2.0-or-later
"""Races as films: the camera is no step, the tours still show what they say, and the missed entry is marked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest

from rmaplab.check.race import RaceError, run, run_path, write_path
from rmaplab.check.race_mutants import ChildrenFirst
from rmaplab.check.scenarios import is_huge, names, scenario
from rmaplab.check.world import HOME, World
from rmaplab.explore import text
from rmaplab.explore.parts import DOOMED, MISSED, Area, Cell, Cpu, Folio, Space, State, states
from rmaplab.explore.race import by, shoot_race, shoot_tour
from rmaplab.explore.tours import RACES
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.rmap import DESIGNS, load
from rmaplab.sync.interleave import Execution, perform

FORK = "restore / fork of the child"


def at_random(name: str, design: type[ReverseMap], seed: int) -> tuple[str, list[str], Counter[str]]:
    """An execution with nobody watching: its path, its steps, and what the design counted on the way."""
    random = Random(seed)
    path: list[int] = []
    steps: list[str] = []
    counted: Counter[str] = Counter()

    def plan(execution: Execution) -> Iterator[int]:
        assert isinstance(execution.subject, World)
        tallies = execution.subject.machine.leader.ledger.tallies
        before = Counter({name: tally.count for name, tally in tallies.items()})
        last = 0
        while able := [task.number for task in execution.tasks if execution.enabled(task)]:
            if last not in able or random.random() < 0.3:
                last = random.choice(able)
            path.append(last)
            yield last
        steps.extend(step.words() for step in execution.trace)
        counted.update({name: tally.count for name, tally in tallies.items()})
        counted.subtract(before)

    perform(scenario(name, design), by(plan))
    return write_path(path), steps, +counted


@pytest.mark.parametrize("design", [design for design in DESIGNS if design != "page_scan"])
def test_a_camera_can_look_between_any_two_steps_and_changes_nothing(design: str) -> None:
    chosen = load(design)
    few_pages = [name for name in names() if not is_huge(name)]  # a picture has each page
    for seed, name in enumerate(few_pages[len(design) % 7 :: 7]):
        path, steps, counted = at_random(name, chosen, seed)
        film = shoot_race(name, chosen, path)
        assert film.path == path
        assert len(film.steps) == len(steps) + 1
        assert bool(film.steps[-1].wrong) == (run_path(name, chosen, path) is not None)
        again: Counter[str] = Counter()
        for step in film.steps:
            for effort in step.efforts:
                if effort.slot == 0:
                    again.update({what: count for what, count in effort.work if what in counted})
        assert again == counted, name


@pytest.mark.parametrize("name", RACES)
def test_a_tour_still_shows_what_it_says(name: str) -> None:
    """If this fails, code that the tour shows has changed: its turns, or what it says, have to change, too."""
    tour = RACES[name]
    film = shoot_tour(tour, load(tour.design))
    assert len(film.steps) == len(tour.turns) + (1 if tour.without else 2)
    assert all(step.say for step in film.steps)
    wrong = film.steps[-1].wrong
    assert wrong.startswith(tour.breaks) if tour.breaks else wrong == ""
    assert not any(step.wrong for step in film.steps[:-1])
    state = states(film)[-1]
    if tour.without:  # its last turn breaks it, and nobody goes on
        return
    assert all(part.next == "" for part in state.values() if isinstance(part, Cpu))
    missed = [cell for cell, _ in cells(state) if cell.marks & MISSED]
    assert bool(missed) == bool(tour.breaks)
    if missed:  # it was marked while it was not too late
        assert any(cell.marks & DOOMED for state in states(film)[:-1] for cell, _ in cells(state))
    if not tour.machine.__name__.startswith("Faults") and " / " in tour.scenario:
        broken = run_path(tour.scenario, load(tour.design), film.path)
        assert (broken.error[:5] if broken else "") == tour.breaks[:5]


def test_a_tour_that_no_longer_fits_says_so() -> None:
    tour = RACES["race-fork"]
    turn = tour.turns[0]._replace(until="does what nobody does")
    with pytest.raises(RaceError, match="the tour race-fork no longer fits"):
        shoot_tour(tour._replace(turns=(turn,)), load(tour.design))


def test_the_entry_that_is_missed_is_marked_from_its_beginning() -> None:
    broken = run(FORK, ChildrenFirst).broken[0]
    film = shoot_race(FORK, ChildrenFirst, broken.path)
    where = [
        [(area.mm, area.start + 4096 * cell.page, cell.marks & (DOOMED | MISSED)) for cell, area in cells(state)]
        for state in states(film)
    ]
    marked = [[place for place in places if place[2]] for places in where]
    first = next(number for number, places in enumerate(marked) if places)
    assert film.steps[first].did == ["takes page-table lock of process 2"]  # of fork: it copies the entry
    assert marked[first:] == [[(3, HOME, DOOMED)]] * (len(marked) - first - 1) + [[(3, HOME, MISSED)]]
    assert "address 0x10000000 of process 5" in film.steps[-1].wrong
    assert film.differences == [film.steps[-1].wrong]


def test_an_address_space_is_seen_while_a_fork_makes_it() -> None:
    film = shoot_race(FORK, ChildrenFirst, run(FORK, ChildrenFirst).broken[0].path)
    unowned = [
        text.space_title(state, part)
        for state in states(film)
        for part in state.values()
        if isinstance(part, Space) and not part.pids
    ]
    assert set(unowned) == {"Address space 3 of no process"}


def test_what_a_cpu_holds_and_waits_for_is_told() -> None:
    film = shoot_race(FORK, load("anon_vma"), "0x8 1x4")  # the walk is at its first place, the fork has queued
    assert list(text.cpus(states(film)[-1]))[1:] == [
        "CPU 0 restore: holds lock of folio 512, lock of folio 513, root rwsem of A1 (shared), page-table lock of"
        " process 1; next change mapcount: page 513",
        "CPU 1 fork of the child: holds mmap_lock of process 2, mmap_lock of address space 3, lock of V3; has to wait"
        " before it takes root rwsem of A1 for writing",
    ]


def test_a_walk_that_would_have_to_wait_says_for_whom() -> None:
    film = shoot_race("restore / mremap that merges", load("anon_vma"), "1x9")  # entries are being moved
    folio = states(film)[-1]["f512"]
    assert isinstance(folio, Folio)
    number, _ = folio.walks[0]
    assert film.answers[number].waits == ["CPU 1 holds root rwsem of A1"]
    assert text.walk_summary(film, folio, 0).endswith("Now it would have to wait: CPU 1 holds root rwsem of A1.")


def test_a_path_that_does_not_fit_is_refused() -> None:
    for path, sentence in (("0x200", "the path does not fit"), ("0y2", "is no part of a path")):
        with pytest.raises(RaceError, match=sentence):
            shoot_race(FORK, load("cow_context"), path)


def cells(state: State) -> list[tuple[Cell, Area]]:
    return [(cell, part) for part in state.values() if isinstance(part, Area) for cell in part.cells]
