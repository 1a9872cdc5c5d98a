# SPDX-License-Identifier: GPL-2.0-or-later
"""What a comparison found: figures, differences, a verdict, and all of it as tables.

Tables are in long form, a row per design, or per design and thing that is counted.
Bytes are bytes, times are nanoseconds, all else is counts.  A value is None where it was not measured.

`designs`
    what each design comes to: peak memory of its objects and with the fields it has in vm_area_struct and mm_struct,
    locks taken, walks and the places they visited, mappings missed, VMAs by its own merge rule, time where there was a
    cost profile
`objects`
    memory by type of object; slab_bytes: pages of slabs that hold the peak
`locks`, `work`
    what the history made each design, and the machine, do
`walks`
    the checker's walks
`memory`
    bytes that each design holds, over the history
`vmas`
    VMAs and what they take, for each merge rule that was played
`differences`
    what does not agree
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from rmaplab.measure.figures import DesignFigures, MachineFigures
from rmaplab.measure.memory import Memory
from rmaplab.measure.table import Table
from rmaplab.measure.times import Times
from rmaplab.mm.vma import PAGE_SIZE
from rmaplab.trace.events import Event
from rmaplab.verdict import NothingLookedAt, judge

Row = dict[str, Any]


class Difference(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that two parties do not agree on.

    kind:    "incomplete", "stale", "missing", "additional", "invariant" (see check/lockstep.py);
             "broken": the machine could not go on with what its leader told it;
             "result": the machine returned something else than the kernel;
             "geometry": its VMAs are not those of /proc/PID/maps
             "recording": the history may not be what happened
    error:   whether the history does not hold because of it
    event:   number of the event after which it showed, from 0
    shortest: a history of its own that shows the same, for the first place that each design misses
    """

    kind: str
    what: str
    event: int
    error: bool
    design: str = ""
    place_maps: bool = False
    shortest: list[Event] = []


class Checks(msgspec.Struct, frozen=True):
    """How much was checked.

    moments: at which the designs were checked; folios: walked, and `skipped` for want of time
    entries: page-table entries held against the walks; results: of system calls held against the kernel's
    maps:    address spaces held against /proc/PID/maps
    """

    moments: int
    folios: int
    skipped: int
    entries: int
    results: int
    maps: int


class Figures(msgspec.Struct, frozen=True, omit_defaults=True):
    """All figures of a comparison.

    counted: differences by kind, where `differences` lists the first of each kind only
    memory:  what each design held over the history, and what it costs elsewhere
    times:   what the counted work takes, where a cost profile was named
    """

    machine: MachineFigures
    designs: list[DesignFigures]
    checks: Checks
    counted: dict[str, int]
    memory: Memory
    times: Times | None = None


class Comparison(msgspec.Struct, frozen=True):
    """What a comparison found.

    `found.table()` has a row for each design, `found.table("memory")` the bytes that each holds over the history.
    """

    figures: Figures
    differences: list[Difference]

    @property
    def holds(self) -> bool:
        """Whether no difference is an error.

        :raises NothingLookedAt: the history has no events, or it was to be checked and no folio was mapped when it was
        """
        checks = self.figures.checks
        wrong = any(difference.error for difference in self.differences)
        if checks.moments and not checks.folios:
            return judge(0, wrong, f"no anonymous page was mapped at any of {checks.moments} moments")
        return judge(checks.results, wrong, "the history has no events")

    def table(self, what: str = "designs") -> Table:
        """The figures as a table ; `what`: "designs", "objects", "locks", "work", "walks", "memory",
        "vmas", "differences".

        :raises ValueError: there is no such table
        """
        if what not in TABLES:
            raise ValueError(f"there is no table {what!r}: there are {', '.join(TABLES)}")
        return Table.of_rows(TABLES[what](self))

    def __repr__(self) -> str:
        return f"<comparison: {self._verdict()}>\n{self.table()!r}"

    def _repr_html_(self) -> str:
        return f"<p>{self._verdict()}</p>{self.table()._repr_html_()}"

    def _verdict(self) -> str:
        try:
            return "holds" if self.holds else "does not hold"
        except NothingLookedAt as nothing:
            return str(nothing)


# Tables


def _designs(found: Comparison) -> Iterator[Row]:
    memory = {design.design: design for design in found.figures.memory.designs}
    times = {design.design: design for design in found.figures.times.designs} if found.figures.times else {}
    for design in found.figures.designs:
        held, walks, name = memory.get(design.design), design.walks, design.design
        row: Row = {
            "design": name,
            "holds": not any(difference.error and difference.design == name for difference in found.differences),
            "object_bytes": sum(o.peak * o.size for o in design.objects),
            "slab_bytes": sum(o.peak_pages for o in design.objects) * PAGE_SIZE,
            "peak_bytes": held.peak.total if held else None,
            "exclusive_locks": sum(lock.writes for lock in design.work.locks),
            "shared_locks": sum(lock.reads for lock in design.work.locks),
            "walks": walks.walks,
            "places": walks.places,
            "mappings_missed": walks.incomplete,
            "vmas": design.vmas.peak if design.vmas else None,
        }
        if times:
            row["history_ns"], row["walks_ns"] = times[name].history.ns, times[name].whole_walks
        yield row


def _objects(found: Comparison) -> Iterator[Row]:
    for design in found.figures.designs:
        for o in design.objects:
            yield {
                "design": design.design, "type": o.type, "bytes_each": o.size, "made": o.allocated, "peak": o.peak,
                "at_end": o.at_end, "slab_bytes": o.peak_pages * PAGE_SIZE,
            }  # fmt: skip


def _works(found: Comparison) -> list[tuple[str, Any]]:
    return [("machine", found.figures.machine.work), *((d.design, d.work) for d in found.figures.designs)]


def _locks(found: Comparison) -> Iterator[Row]:
    for who, work in _works(found):
        for lock in work.locks:
            yield {"who": who, "lock": lock.lock, "exclusive": lock.writes, "shared": lock.reads}


def _work(found: Comparison) -> Iterator[Row]:
    for who, work in _works(found):
        for name, count in work.tallies.items():
            yield {"who": who, "what": name, "count": count}


def _walks(found: Comparison) -> Iterator[Row]:
    def row(design: DesignFigures) -> Row:
        w = design.walks
        return {
            "design": design.design, "walks": w.walks, "places": w.places, "that_map": w.useful, "worst": w.worst,
            "missed": w.incomplete, "stale": w.stale, "missing": w.missing, "additional": w.additional,
        }  # fmt: skip

    return map(row, found.figures.designs)


def _memory(found: Comparison) -> Iterator[Row]:
    memory = found.figures.memory
    for design in memory.designs:
        for event, held in zip(memory.events, design.line, strict=True):
            yield {"design": design.design, "event": event, "bytes": held}


def _vmas(found: Comparison) -> Iterator[Row]:
    for vmas in found.figures.memory.vmas:
        yield {
            "rule_of": vmas.design, "vmas": vmas.vmas, "struct_bytes": vmas.struct_bytes,
            "nodes": vmas.nodes, "node_bytes": vmas.node_bytes,
        }  # fmt: skip


def _differences(found: Comparison) -> Iterator[Row]:
    for d in found.differences:
        yield {"kind": d.kind, "design": d.design, "event": d.event, "error": d.error, "what": d.what}


TABLES: Final[dict[str, Callable[[Comparison], Iterator[Row]]]] = {
    "designs": _designs,
    "objects": _objects,
    "locks": _locks,
    "work": _work,
    "walks": _walks,
    "memory": _memory,
    "vmas": _vmas,
    "differences": _differences,
}
