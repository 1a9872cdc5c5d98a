# SPDX-License-Identifier: GPL-2.0-or-later
"""A comparison as tables, in long form: one row a design, or one a design and what is counted.

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
from typing import TYPE_CHECKING, Any, Final

from rmaplab.measure.figures import DesignFigures
from rmaplab.measure.table import Table
from rmaplab.mm.vma import PAGE_SIZE

if TYPE_CHECKING:
    from rmaplab.measure.comparison import Comparison

Row = dict[str, Any]


def table_of(found: Comparison, what: str) -> Table:
    """One of `TABLES`.

    :raises ValueError: there is no such table
    """
    if what not in TABLES:
        raise ValueError(f"there is no table {what!r}: there are {', '.join(TABLES)}")
    return Table.of_rows(TABLES[what](found))


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
