# SPDX-License-Identifier: GPL-2.0-or-later
"""The figures of a run: counts, as records that become JSON and tables.

Each figure is a plain count; bytes and pages are in units of 1 and 4096 bytes.  Nothing here was timed.
"""

from __future__ import annotations

import msgspec

from rmaplab.check.lockstep import Walks


class Objects(msgspec.Struct, frozen=True):
    """A type of object that a design (or the machine) holds.

    size:       bytes that one takes in its slab
    at_end, peak, allocated: objects at the end, at most, and ever made
    end_pages, peak_pages:   pages of the slabs that hold as many, packed as densely as SLUB can
    """

    type: str
    size: int
    at_end: int
    peak: int
    allocated: int
    end_pages: int
    peak_pages: int


class Locks(msgspec.Struct, frozen=True):
    """How often the locks of a class were taken."""

    lock: str
    writes: int
    reads: int


class Work(msgspec.Struct, frozen=True):
    """What was counted by one participant: pieces of work by name, and locks."""

    tallies: dict[str, int]
    locks: list[Locks]


class Counts(msgspec.Struct, frozen=True):
    """How many there were at the end, at most at the same time, and ever made."""

    at_end: int
    peak: int
    made: int


class DesignFigures(msgspec.Struct, frozen=True):
    """What one design held and did for a history.

    work:      what the history made it do
    walks:     the checker's walks: places visited, useful ones, and those that only one design visits
    walk_work: what these walks made it do, which is not part of `work`
    vmas:      VMAs of all processes with this design's merge rule, playing the history alone; None where
               that was not played
    operations: exclusive locks by class, and by the operation of the history that took them
    """

    design: str
    objects: list[Objects]
    work: Work
    walks: Walks
    walk_work: Work
    vmas: Counts | None
    operations: dict[str, dict[str, int]] = {}


class MachineFigures(msgspec.Struct, frozen=True):
    """What the machine itself went through.

    events: of the history; vmas: with the leader's merge rule; pages: anonymous ones
    """

    events: int
    mms: Counts
    vmas: Counts
    pages: Counts
    objects: list[Objects]
    work: Work
