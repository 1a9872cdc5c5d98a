# SPDX-License-Identifier: GPL-2.0-or-later
"""Films: what is seen is what is there, what a step did is what it changed, and much is folded."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar
from xml.etree.ElementTree import fromstring

import msgspec
import pytest

from acts import fork, leave, mmap, move, mprotect, start, write
from rmaplab.explore import text
from rmaplab.explore.film import shoot
from rmaplab.explore.html import page
from rmaplab.explore.notebook import look
from rmaplab.explore.parts import Area, Film, Folded, Folio, Holding, Part, Process, Shot, Space, states
from rmaplab.explore.tours import TOURS
from rmaplab.mm.abi import PROT_READ
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.machine import Machine
from rmaplab.mm.picture import Item, Picture, Scope
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import VMA
from rmaplab.rmap import DESIGNS, load
from rmaplab.rmap.page_scan import PageScanRmap
from rmaplab.trace.events import Event
from rmaplab.trace.history import Header, History
from rmaplab.trace.play import Player
from rmaplab.workloads import workload
from rmaplab.workloads.workload import AREA, AWAY

BOTH = ("anon_vma", "cow_context")


def film_of(*events: Event, designs: tuple[str, ...] = BOTH, shot: Shot | None = None) -> Film:
    history = History(Header(recorder="a test"), events)
    return shoot(history, [load(name) for name in designs], PROFILES[REFERENCE], shot=shot)


def at(film: Film, number: int, key: str) -> object:
    return states(film)[number].get(key)


def reasons(film: Film) -> list[str]:
    return [reason for part in states(film)[-1].values() if isinstance(part, Area) for reason in part.apart]


# What is seen


def test_the_same_history_gives_the_same_page() -> None:
    tour = TOURS["mremap"]
    designs = [load(name) for name in tour.designs]
    assert page(shoot(tour.history(), designs, PROFILES[REFERENCE], tour=tour)) == page(
        shoot(tour.history(), designs, PROFILES[REFERENCE], tour=tour)
    )


def test_being_watched_changes_no_counts() -> None:
    history = workload("reclaim", {"processes": "3", "steps": "60", "vmas": "4", "pages": "8"}).history()
    film = shoot(history, [load(name) for name in BOTH], PROFILES[REFERENCE])
    unwatched = Machine(PROFILES[REFERENCE], [load(name) for name in BOTH])
    Player(unwatched, history.header).play(history)
    for slot, ledger in enumerate([unwatched.ledger, *(design.ledger for design in unwatched.designs)], -1):
        seen: dict[str, int] = {}
        for step in film.steps:
            for effort in step.efforts:
                if effort.slot == slot:
                    for name, count in effort.work:
                        seen[name] = seen.get(name, 0) + count
        for name, tally in ledger.tallies.items():
            assert seen.get(name, 0) == tally.count, name


def test_all_walks_of_a_picture_find_every_mapping() -> None:
    film = film_of(
        start(1), mmap(1, AREA, 3), write(1, AREA, 3), fork(1, 2), fork(2, 3), write(2, AREA, 1), leave(1)
    )
    for state in states(film):
        for part in state.values():
            if isinstance(part, Folio):
                for number, _ in part.walks:
                    assert sum(place.hit for place in film.answers[number].places) == part.mapcount


def test_a_fork_is_told_as_what_it_made() -> None:
    film = film_of(start(1), mmap(1, AREA, 2), write(1, AREA, 2), fork(1, 2))
    told = [note.words for note in film.steps[-1].notes]
    assert "process 2 is new" in told
    assert "folio 514: mapcount 1 → 2" in told
    assert any(words.startswith("AVC of V3 in A2 (key") for words in told)
    assert any(words.startswith("cow_context C2 (of process 2") for words in told)
    assert "cow_context C1: refs 1 → 2" in told
    locks = {name: count for effort in film.steps[-1].efforts for name, count, _ in effort.locks}
    assert locks["mmap_lock of process 1"] == 1
    assert locks["root rwsem of A2"] == 2


def test_an_object_says_which_step_made_it() -> None:
    film = film_of(start(1), mmap(1, AREA, 2), write(1, AREA, 2), fork(1, 2))
    area = at(film, 4, "V2")
    assert isinstance(area, Area)
    assert area.born == 2
    anon_vma = at(film, 4, "0/A2")
    assert isinstance(anon_vma, Part)
    assert anon_vma.born == 3


def test_a_binary_tree_is_drawn_the_right_way_round() -> None:
    film = film_of(start(1), mmap(1, AREA, 2), write(1, AREA, 2), *(fork(1, pid) for pid in range(2, 9)))
    parts = {key: part for key, part in states(film)[-1].items() if isinstance(part, Part)}
    sided = [(part, parts[part.above]) for part in parts.values() if part.side]
    assert len(sided) > 6
    for part, above in sided:
        assert part.x < above.x if part.side == "l" else part.x > above.x
        assert part.y == above.y + 1


@pytest.mark.parametrize("name", TOURS)
def test_what_is_drawn_is_what_a_design_says_it_holds(name: str) -> None:
    """Each anon_vma, AVC and context once, none that is gone, in every design that has such."""
    tour = TOURS[name]
    film = shoot(tour.history(), [load(name) for name in DESIGNS], PROFILES[REFERENCE], tour=tour)
    for state in states(film):
        for slot in range(len(DESIGNS)):
            drawn = Counter(
                part.kind for key, part in state.items() if isinstance(part, Part) and key.startswith(f"{slot}/")
            )
            holding = state[f"{slot}/"]
            assert isinstance(holding, Holding)
            held = {kind: count for kind, count, _ in holding.objects}
            for kind in ("anon_vma", "anon_vma_chain", "cow_context", "anonmm"):
                assert drawn[kind] == held.get(kind, 0), kind


# Why two VMAs are two


def test_rights_that_differ_are_why() -> None:
    film = film_of(start(1), mmap(1, AREA, 2), write(1, AREA, 2), mprotect(1, AREA, 1, PROT_READ))
    assert reasons(film) == ["the rights differ (r--p and rw-p)"]


def test_page_offsets_that_do_not_go_on_are_why() -> None:
    film = film_of(
        start(1),
        mmap(1, AREA, 1),
        write(1, AREA, 1),
        move(1, AREA, 1, AWAY),
        mmap(1, AWAY + 0x1000, 1),
    )
    assert any(reason.startswith("the page offsets do not go on") for reason in reasons(film))


def test_the_leaders_rule_is_why() -> None:
    """Two VMAs that each got an anon_vma of its own, before what lay between them was filled."""
    film = film_of(
        start(1),
        mmap(1, AREA, 1),
        write(1, AREA, 1),
        mmap(1, AREA + 0x2000, 1),
        write(1, AREA + 0x2000, 1),
        mmap(1, AREA + 0x1000, 1),
    )
    found = reasons(film)
    assert len(found) == 1
    assert found[0].startswith("anon_vma: both have pages, of different anon_vmas: V2's is A2")


# Much


def test_a_thousand_children_fold_into_one() -> None:
    film = film_of(
        start(1), mmap(1, AREA, 2), write(1, AREA, 2), *(fork(1, pid) for pid in range(2, 1002)),
        shot=Shot(first=1003, last=1003),
    )  # fmt: skip
    state = states(film)[-1]
    shown = [part for part in state.values() if isinstance(part, Process)]
    folded = state["+1"]
    assert isinstance(folded, Folded)
    assert len(shown) + folded.processes == 1001
    assert 1001 in [process.pid for process in shown]  # what the step made is never folded
    assert len(state) < 400
    born = [note.words for note in film.steps[-1].notes if note.what == "born"]
    assert born == ["process 1001 is new"]  # whatever else is new here may only have come into view
    folio = state["f514"]
    assert isinstance(folio, Folio)
    for number, _ in folio.walks:
        answer = film.answers[number]
        assert len(answer.places) + answer.more == 1001
        assert sum(place.hit for place in answer.places) + answer.more_hits == 1001
    many = [part for part in state.values() if isinstance(part, Part) and part.count > 1]
    assert {part.kind for part in many} == {"anon_vma", "anon_vma_chain", "cow_context"}


def test_many_pages_fold_into_ranges() -> None:
    film = film_of(start(1), mmap(1, AREA, 50_000), write(1, AREA, 50_000), shot=Shot(first=3, last=3))
    area = at(film, -1, "V2")
    assert isinstance(area, Area)
    assert [(cell.page, cell.count) for cell in area.cells] == [(0, 50_000)]


def test_a_long_history_is_shown_in_steps_of_many_events() -> None:
    history = workload("forkchain", {"generations": "300"}).history()
    film = shoot(history, [load("anon_vma")], PROFILES[REFERENCE], shot=Shot(steps=50))
    assert len(film.steps) <= 51
    assert film.steps[-1].events == len(history)
    assert f"Then {film.steps[1].events - 1} events of" in film.steps[1].words


def test_a_window_begins_with_what_came_before() -> None:
    whole = film_of(start(1), mmap(1, AREA, 2), write(1, AREA, 2), fork(1, 2))
    window = film_of(start(1), mmap(1, AREA, 2), write(1, AREA, 2), fork(1, 2), shot=Shot(first=4, last=4))
    assert window.steps[0].words == "3 events came before this window."
    assert list(text.changes(whole, 4)) == list(text.changes(window, 1))
    assert list(text.address_spaces(states(whole)[4])) == list(text.address_spaces(states(window)[1]))


# Designs that the explorer does not know


class Forgetful(load("page_scan")):  # type: ignore[misc]
    """Like page_scan, under another name."""

    name = "forgetful"


class SpacesPicture(Picture):
    """One drawing: the address spaces."""

    about: ClassVar[dict[str, str]] = {"spaces": "Each address space that there is."}

    def items(self, scope: Scope) -> dict[str, Item]:
        return {
            f"S{mm.id}": Item("spaces|Address spaces", "mm_struct", f"S{mm.id}", [], scope.whose(mm), mm=mm.id)
            for mm in scope.mms()
        }

    def via(self, pfn: int, vma: VMA, addr: int) -> list[str]:
        return [f"S{vma.mm.id}"]


class Drawn(PageScanRmap):
    name = "drawn"
    drawn_by = f"{__name__}:SpacesPicture"


def test_a_design_of_ones_own_is_drawn_as_it_says() -> None:
    events = [start(1), mmap(1, AREA, 1), write(1, AREA, 1), fork(1, 2)]
    film = shoot(History(Header(recorder="a test"), events), [load("anon_vma"), Drawn], PROFILES[REFERENCE])
    assert film.designs[1].about == SpacesPicture.about
    drawn = {key: part.why for key, part in states(film)[-1].items() if key.startswith("1/") and isinstance(part, Part)}
    assert drawn == {"1/S1": "process 1", "1/S2": "process 2"}
    assert {via for answer in film.answers for place in answer.places for via in place.via} >= {"1/S1", "1/S2"}


def test_an_unknown_design_is_shown_by_its_walks_and_what_it_holds() -> None:
    history = History(Header(recorder="a test"), [start(1), mmap(1, AREA, 1), write(1, AREA, 1), fork(1, 2)])
    designs: list[type[ReverseMap]] = [load("anon_vma"), Forgetful]
    film = shoot(history, designs, PROFILES[REFERENCE])
    state = states(film)[-1]
    assert isinstance(state["1/"], Holding)
    folio = state["f514"]
    assert isinstance(folio, Folio)
    assert len(film.answers[folio.walks[1][0]].places) == 2


# Text and notebooks


@pytest.mark.parametrize("name", TOURS)
def test_every_step_of_a_tour_prints(name: str) -> None:
    tour = TOURS[name]
    film = shoot(tour.history(), [load(name) for name in tour.designs], PROFILES[REFERENCE], tour=tour)
    for number, step in enumerate(film.steps):
        lines = list(text.show(film, number))
        assert lines[1] == step.words
        assert all(beat.say for beat in tour.beats)
        assert any(line.startswith("Folio ") for line in lines) == bool(step.ask)


def test_a_machine_can_be_looked_at_in_a_notebook() -> None:
    machine = Machine(PROFILES[REFERENCE], [load(name) for name in BOTH])
    events = [start(1), mmap(1, AREA, 2), write(1, AREA, 2), fork(1, 2)]
    Player(machine, Header(recorder="a test")).play(events)
    counted = {name: tally.count for name, tally in machine.designs[0].ledger.tallies.items()}
    picture = look(machine)
    assert "514 ×2" in str(picture)
    drawn = [
        element.text for element in fromstring(picture._repr_svg_()).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert drawn.count("514 ×2") == 2
    design = picture.design("cow_context")
    assert "C2, of process 2" in str(design)
    assert "C2" in design._repr_svg_()
    assert counted == {name: tally.count for name, tally in machine.designs[0].ledger.tallies.items()}
    with pytest.raises(HistoryError, match="there are anon_vma, cow_context"):
        picture.design("nobody")


def test_a_film_is_plain_json() -> None:
    film = film_of(start(1), mmap(1, AREA, 1), write(1, AREA, 1))
    assert msgspec.json.decode(msgspec.json.encode(film), type=Film) == film
    assert any(isinstance(part, Space) for part in states(film)[-1].values())
