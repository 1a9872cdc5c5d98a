# SPDX-License-Identifier: GPL-2.0-or-later
"""The picture as text: what `rmaplab show` prints, in the same words as the page (page/words.js)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rmaplab.explore.parts import (
    DOOMED,
    KSM,
    MACHINE,
    MISSED,
    Area,
    Cell,
    Cpu,
    DesignLine,
    Film,
    Folded,
    Folio,
    Holding,
    Part,
    Process,
    Space,
    State,
    states,
)
from rmaplab.mm.picture import hexa
from rmaplab.mm.vma import PAGE_SHIFT
from rmaplab.printable import plural

NOT_ASKED = (
    "There are too many pages here to have asked for each: this one was not. A narrower window asks for more."
)
UNOWNED = 1 << 40  # above every pid
_FEW = 8  # unmapped pages of a VMA that are shown one by one


def show(film: Film, number: int) -> Iterator[str]:
    """Lines: step `number` of `film`, and who maps the folio that the step asks for."""
    step = film.steps[number]
    state = states(film)[number]
    yield f"{film.title}, step {number} of {len(film.steps) - 1}"
    yield step.words
    if step.say:
        yield step.say
    if step.wrong:
        yield wrong_line(step.wrong)
    yield from cpus(state)
    yield from address_spaces(state)
    for slot, design in enumerate(film.designs):
        yield ""
        yield from structures(state, slot, design)
    folio = state.get(step.ask)
    if isinstance(folio, Folio):
        yield ""
        yield from answers(film, state, folio)
    yield ""
    yield from changes(film, number)


# Races


def wrong_line(wrong: str) -> str:
    return f"Broken: {wrong}."


def cpus(state: State) -> Iterator[str]:
    found = [part for part in state.values() if isinstance(part, Cpu)]
    if found:
        yield ""
    for cpu in found:
        yield f"CPU {cpu.number} {cpu.name}: {cpu_line(cpu)}"


def cpu_line(cpu: Cpu) -> str:
    """What a CPU holds, and its next step."""
    holds = f"holds {', '.join(cpu.holds)}; " if cpu.holds else ""
    if not cpu.next:
        return f"{holds}has come to its end"
    return f"{holds}{'has to wait before it ' if cpu.waits else 'next '}{cpu.next}"


# Address spaces


def address_spaces(state: State) -> Iterator[str]:
    spaces = [part for part in state.values() if isinstance(part, Space)]
    for space in sorted(spaces, key=lambda space: space.pids or [UNOWNED + space.id]):
        yield ""
        yield space_title(state, space)
        for id in space.areas:
            if id < 0:
                yield f"  {-id:,} more {'VMA' if id == -1 else 'VMAs'}"
                continue
            area = state[f"V{id}"]
            assert isinstance(area, Area)
            for reason in area.apart:
                yield f"    not merged: {reason}"
            odd = offset_line(area)
            yield f"  {area_line(area)}{f' ({odd})' if odd else ''}"
            yield f"    {'  '.join(face(cell, state) for cell in all_cells(area))}"
    for part in state.values():
        if isinstance(part, Folded):
            yield ""
            yield folded_line(part)


def folded_line(folded: Folded) -> str:
    of = f"of process {folded.parent}" if folded.parent else "without a parent here"
    return (
        f"{folded.processes:,} more {'process' if folded.processes == 1 else 'processes'} {of}:"
        f" {plural(folded.areas, 'VMA')}, {plural(folded.pages, 'page')}"
    )


def space_title(state: State, space: Space) -> str:
    pids = space.pids
    if not pids:
        return f"Address space {space.id} of no process"
    title = f"Process {pids[0]}" if len(pids) == 1 else f"Processes {', '.join(map(str, pids))}"
    process = state.get(f"p{pids[0]}")
    if isinstance(process, Process):
        title += f" {process.name}" if process.name else ""
        title += f" child of {process.parent}" if process.parent else ""
    return title


def area_line(area: Area) -> str:
    return f"V{area.id} {hexa(area.start)}–{hexa(area.end)} {area.rights} {area.backing}"


def offset_line(area: Area) -> str:
    """What is unusual about the page offset of a VMA; "" if nothing is."""
    if not area.prepared:
        return "not known to the reverse map yet"
    return "" if area.pgoff << PAGE_SHIFT == area.start else f"page offset {hexa(area.pgoff)}"


def all_cells(area: Area) -> list[Cell]:
    """The cells of a VMA with its unmapped pages between them, which have the kind ""."""
    pages = (area.end - area.start) >> PAGE_SHIFT
    unmapped = pages - sum(cell.count for cell in area.cells) - area.more
    cells: list[Cell] = []

    def gap(start: int, end: int) -> None:
        if unmapped <= _FEW:
            cells.extend(Cell(page, 1, "", 0, 0, 0) for page in range(start, end))
        elif start < end:
            cells.append(Cell(start, end - start, "", 0, 0, 0))

    at = 0
    for cell in area.cells:
        gap(at, cell.page)
        cells.append(cell)
        at = cell.page + cell.count
    if area.more:
        cells.append(Cell(at, pages - at, "more", 0, 0, 0))
    else:
        gap(at, pages)
    return cells


def face(cell: Cell, state: State) -> str:
    """The text on a cell."""
    many = "" if cell.count == 1 else f"+{cell.count - 1:,}"
    match cell.kind:
        case "":
            return "·" if cell.count == 1 else f"· {cell.count:,}"
        case "more":
            return "…"
        case "Z":
            return f"zero{many}"
        case "F":
            return f"file{many}"
        case "S":
            return f"swap {cell.pfn}{many}"
    folio = state.get(f"f{cell.head}")
    shared = f" ×{folio.mapcount:,}" if isinstance(folio, Folio) and folio.mapcount > 1 else ""
    migrating = "→" if cell.kind == "M" else ""
    missed = " missed" if cell.marks & MISSED else " will be missed" if cell.marks & DOOMED else ""
    return f"{migrating}{cell.pfn}{many}{' ksm' if cell.marks & KSM else ''}{shared}{missed}"


# Designs


def structures(state: State, slot: int, design: DesignLine) -> Iterator[str]:
    """What a design holds: its drawings as indented lists."""
    holding = state.get(f"{slot}/")
    assert isinstance(holding, Holding)
    yield f"{design.name} {holding_line(holding)}"
    groups: dict[str, dict[str, Part]] = {}
    for key, part in state.items():
        if isinstance(part, Part) and key.startswith(f"{slot}/"):
            groups.setdefault(part.group, {})[key] = part
    sorts = list(design.about)
    for group in sorted(groups, key=lambda group: _order(group, sorts)):
        yield f"  {group.partition('|')[2]}"
        yield from _indented(groups[group])


def _order(group: str, sorts: list[str]) -> tuple[int, int, str]:
    sort = group.partition("|")[0].partition(".")[0]
    return (sorts.index(sort) if sort in sorts else -1, len(group), group)


def _indented(parts: dict[str, Part]) -> Iterator[str]:
    below: dict[str, list[str]] = {}
    for key, part in sorted(parts.items(), key=lambda item: (item[1].y, item[1].x)):
        below.setdefault(part.above if part.above in parts else "", []).append(key)
    todo = [(key, 2) for key in reversed(below.get("", []))]
    while todo:
        key, depth = todo.pop()
        part = parts[key]
        side = {"l": "left ", "r": "right "}.get(part.side, "")
        yield f"{'  ' * depth}{side}{part_line(part)}"
        todo += [(child, depth + 1) for child in reversed(below.get(key, []))]


def part_line(part: Part) -> str:
    return ", ".join([part.label, *(f"{name} {value}" for name, value in part.facts)])


def holding_line(holding: Holding) -> str:
    held = [f"{count:,} {name} ({size:,} B)" for name, count, size in holding.objects if count]
    return f"holds {', '.join(held)}" if held else "holds nothing"


# Walks


def answers(film: Film, state: State, folio: Folio) -> Iterator[str]:
    """The walk of each design for a folio."""
    yield folio_line(film, folio)
    if not folio.walks:
        yield f"  {NOT_ASKED}"
        return
    for slot, design in enumerate(film.designs):
        yield f"  {design.name}"
        for number, line in enumerate(walk_lines(film, state, folio, slot), 1):
            yield f"    {number}. {line}"
        yield f"    {walk_summary(film, folio, slot)}"


def folio_line(film: Film, folio: Folio) -> str:
    """A folio before any walk."""
    size = "" if folio.pages == 1 else f", {plural(folio.pages, 'page')}"
    flags = f" ({folio.flags})" if folio.flags else ""
    anchors = [
        f"{key.partition('/')[2]} in {design.name}"
        for key, design in zip(folio.anchors, film.designs, strict=True)
        if key
    ]
    points = f" It points to {', '.join(anchors)}." if anchors else ""
    return (
        f"Folio {folio.pfn}{size}{flags}: page offset {hexa(folio.index)},"
        f" mapped {plural(folio.mapcount, 'time')}.{points}"
    )


def walk_lines(film: Film, state: State, folio: Folio, slot: int) -> Iterator[str]:
    """The walk of a design, a line per place, in its order."""
    number, base = folio.walks[slot]
    for place in film.answers[number].places:
        page = base + place.page
        area = state.get(f"V{place.vma}")
        if isinstance(area, Area):
            where = f"{owner_of(state, area.mm)}, V{area.id}, page {page}, {hexa(area.start + (page << PAGE_SHIFT))}"
        else:
            where = f"V{place.vma} of a folded process, page {page}"
        yield f"{where}: {'maps it' if place.hit else 'does not map it'}"


def owner_of(state: State, mm: int) -> str:
    space = state.get(f"m{mm}")
    if not isinstance(space, Space):
        return "a folded process"
    pids = space.pids
    if not pids:
        return f"address space {mm}"
    return f"process {pids[0]}" if len(pids) == 1 else f"processes {', '.join(map(str, pids))}"


def walk_summary(film: Film, folio: Folio, slot: int) -> str:
    """What a walk held and counted, and how much of it is folded."""
    answer = film.answers[folio.walks[slot][0]]
    places = len(answer.places) + answer.more
    hits = sum(place.hit for place in answer.places) + answer.more_hits
    work = ", ".join(f"{name} {count:,}" for name, count in answer.work)
    waits = f" Now it would have to wait: {', '.join(answer.waits)}." if answer.waits else ""
    if not places:
        return f"Visits nothing.{f' Counted: {work}.' if work else ''}{waits}"
    held = ", ".join(answer.held) or "no lock"
    more = f" {answer.more:,} of the places are folded." if answer.more else ""
    return (
        f"Visits {plural(places, 'place')}, {hits:,} of which {'maps' if hits == 1 else 'map'} it, holding {held}."
        f"{more} Counted: {work}.{waits}"
    )


# Changes


def changes(film: Film, number: int) -> Iterator[str]:
    """What a step did, participant by participant."""
    step = film.steps[number]
    marks = {"born": "+", "changed": "±", "gone": "−"}
    owners: Iterable[tuple[int, str]] = [
        (MACHINE, "The machine"),
        *enumerate(design.name for design in film.designs),
    ]
    for slot, owner in owners:
        notes = [note for note in step.notes if note.slot == slot]
        effort = next((effort for effort in step.efforts if effort.slot == slot), None)
        if not notes and effort is None:
            continue
        yield owner
        for note in notes:
            yield f"  {marks[note.what]} {note.words}"
        if effort is not None and effort.work:
            yield f"  Work: {', '.join(f'{name} {count:,}' for name, count in effort.work)}."
        if effort is not None and effort.locks:
            locks = [
                f"{name} {'exclusively' if write else 'shared'}{'' if count == 1 else f' ×{count:,}'}"
                for name, count, write in effort.locks
            ]
            yield f"  Locks: {', '.join(locks)}."
    if step.folded_notes:
        yield f"{step.folded_notes:,} more changes are folded."
