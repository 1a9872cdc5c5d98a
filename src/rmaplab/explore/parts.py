# SPDX-License-Identifier: GPL-2.0-or-later
"""What pictures are made of: records that the page, the terminal and notebooks share.

Keys name parts across all steps: "p7" a process by pid, "m3" an address space, "V12" a VMA, "f513" a folio by
the pfn of its first page, "c0" a CPU of a race, "+7" the children of process 7 that are folded into one; and for
the design in slot 0 "0/…", where the rest is the design's own business, with "0/" for its totals.

Invariants
- a key that vanishes and comes back is another object, though its number may be used again.
- parts are compared by value; `x`, `y` and `born` do not belong to an object's identity, and their changes are not
  reported.
"""

from __future__ import annotations

from typing import Final

import msgspec

from rmaplab.mm.picture import Item

MACHINE: Final = -1  # the slot of what belongs to no design

STEPS: Final = 200  # of a film, by default

# Marks of a cell.
WRITABLE: Final = 1
EXCLUSIVE: Final = 2
KSM: Final = 4
DOOMED: Final = 8  # an entry that a walk is going to miss
MISSED: Final = 16  # one that it has missed


class Process(msgspec.Struct, tag="process", tag_field="is"):
    """A process.  `parent` is 0 if no fork of this history made it."""

    pid: int
    parent: int
    mm: int
    name: str = ""
    born: int = 0


class Space(msgspec.Struct, tag="space", tag_field="is"):
    """An address space.

    pids:  who runs in it; nobody while a fork makes it, and while it is taken down
    areas: ids of its VMAs by address; -n stands for n VMAs that are folded
    pages: pages for which its page table has an entry
    """

    id: int
    pids: list[int]
    areas: list[int]
    pages: int
    born: int = 0


class Folded(msgspec.Struct, tag="folded", tag_field="is"):
    """Children of one process that are not shown: their number, VMAs and mapped pages."""

    parent: int
    processes: int
    areas: int
    pages: int
    born: int = 0


class Cell(msgspec.Struct, array_like=True):
    """Pages of a VMA that are alike.

    page:  the first one, counted from the VMA's start
    count: how many
    kind:  A anonymous page, Z the zero page, F page of the page cache, S swapped out, M under migration
    pfn:   of the first one; for S the swap slot
    head:  pfn of the folio that `pfn` belongs to
    marks: WRITABLE, EXCLUSIVE, KSM, DOOMED, MISSED
    """

    page: int
    count: int
    kind: str
    pfn: int
    head: int
    marks: int


class Area(msgspec.Struct, tag="area", tag_field="is"):
    """A VMA.

    pgoff:  page offset of its start (see mm/vma.py)
    cells:  what its page table has; unmapped pages have none
    more:   cells that are folded: the pages in them
    apart:  why it is not merged with the VMA that ends where it starts, if there is one
    why:    how it was made, or what is unusual about it
    """

    id: int
    mm: int
    start: int
    end: int
    pgoff: int
    rights: str
    backing: str
    prepared: bool
    cells: list[Cell]
    more: int = 0
    apart: list[str] = []
    why: str = ""
    born: int = 0


class Folio(msgspec.Struct, tag="folio", tag_field="is"):
    """An anonymous folio.

    anchors: for each design, the key of what the folio points to ("" where it has nothing of the kind)
    walks:   for each design, (number of an `Answer`, page number that its places count from); none where there
             are too many folios to ask for each
    """

    pfn: int
    pages: int
    index: int
    mapcount: int
    flags: str
    anchors: list[str]
    walks: list[tuple[int, int]]
    born: int = 0


class Place(msgspec.Struct, array_like=True):
    """A place of a walk, in the order of the visit.

    vma:   its id
    page:  number of the page in the VMA, less the base that the folio names
    hit:   whether the folio is mapped there
    via:   keys of the design's objects that led there
    """

    vma: int
    page: int
    hit: bool
    via: list[str]


class Answer(msgspec.Struct):
    """What a design answers when asked for a folio; adjacent folios share one.

    held:  locks and sections that the walk holds at its places
    trail: keys of the design's objects that it looked at, in order
    work:  what it counted
    more:  further places, and how many of them map the folio
    waits: in a race: locks of other CPUs for which it would have to wait
    """

    places: list[Place]
    held: list[str]
    trail: list[str]
    work: list[tuple[str, int]]
    more: int = 0
    more_hits: int = 0
    waits: list[str] = []


class Part(Item, tag="part", tag_field="is"):
    """An object of a design, and where it is drawn."""

    x: float = 0.0
    y: float = 0.0
    born: int = 0


def part_of(item: Item) -> Part:
    """A design's object as a part of a picture, not placed yet."""
    return Part(*msgspec.structs.astuple(item))


class Holding(msgspec.Struct, tag="holding", tag_field="is"):
    """Totals of what a design holds: (type, objects, bytes)."""

    objects: list[tuple[str, int, int]]
    born: int = 0


class Cpu(msgspec.Struct, tag="cpu", tag_field="is"):
    """A CPU in a race.

    holds: locks and sections, the oldest first
    next:  what it is about to do, "" at its end
    waits: whether it has to wait now
    """

    number: int
    name: str
    holds: list[str]
    next: str
    waits: bool
    born: int = 0


AnyPart = Cpu | Process | Space | Folded | Area | Folio | Part | Holding
State = dict[str, AnyPart]


class Note(msgspec.Struct, array_like=True):
    """Something that a step did to an object: born, changed or gone; `slot` says whose it is."""

    slot: int
    what: str
    key: str
    words: str


class Effort(msgspec.Struct, array_like=True):
    """What a participant did in a step: work by name, and locks as (which, how often, exclusively)."""

    slot: int
    work: list[tuple[str, int]]
    locks: list[tuple[str, int, bool]]


class Step(msgspec.Struct, omit_defaults=True):
    """One step.

    events: played so far, this step included
    words:  the operation in words; say: what a guided tour adds
    ask:    key of the folio that a tour asks for here
    apart:  designs that do not find what others find, or visit more: (slot, mappings missed, places visited), over the
            folios that are asked for
    cpu:    in a race: which one took the step; did: what it did, operation by operation
    wrong:  in a race: the obligation that this step breaks
    put, gone: parts that are new or changed, and keys that went
    """

    events: int
    op: str
    pid: int
    words: str
    say: str = ""
    ask: str = ""
    put: dict[str, AnyPart] = {}
    gone: list[str] = []
    notes: list[Note] = []
    efforts: list[Effort] = []
    folded_notes: int = 0
    apart: list[tuple[int, int, int]] = []
    cpu: int = -1
    did: list[str] = []
    wrong: str = ""


class Shot:
    """The part of a history to show: events `first` to `last` (counted from 1), in at most `steps` steps."""

    def __init__(self, first: int = 1, last: int = 0, steps: int = STEPS) -> None:
        self.first: Final = first
        self.last: Final = last
        self.steps: Final = steps


class Life(msgspec.Struct, array_like=True):
    """A process in the overview: `depth` below the first, `born` and `ended` by event (0: it lives on)."""

    pid: int
    parent: int
    depth: int
    born: int
    ended: int
    name: str = ""


class DesignLine(msgspec.Struct):
    """A design as the page introduces it; `about` explains each drawing by its group's id."""

    name: str
    about: dict[str, str]


class Film(msgspec.Struct):
    """A history as pictures, from which the page is made.

    differences: results that the machine does not reproduce, a sentence each
    lives:       of a history: its processes, each after its parent; more_lives: how many are not among them
    cpus:        in a race: what runs on each
    path:        in a race: who took each operation, as `rmaplab race` writes it
    """

    title: str
    origin: str
    profile: str
    leader: str
    designs: list[DesignLine]
    events: int
    first: int
    last: int
    steps: list[Step]
    answers: list[Answer]
    differences: list[str] = []
    lives: list[Life] = []
    more_lives: int = 0
    cpus: list[str] = []
    path: str = ""


def states(film: Film) -> list[State]:
    """The state after each step."""
    state: State = {}
    result = []
    for step in film.steps:
        state = {key: part for key, part in state.items() if key not in step.gone}
        state.update(step.put)
        result.append(state)
    return result
