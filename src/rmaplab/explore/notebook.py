# SPDX-License-Identifier: GPL-2.0-or-later
"""Pictures of a machine for notebooks, and for a terminal when printed.

    look(machine)                       all address spaces
    look(machine).design("anon_vma")    what a design holds

Each has `_repr_svg_`, so that Jupyter draws it, and prints as the text of `rmaplab show`.

Invariant: a picture is of the moment at which it was taken, and taking it counts nothing in the machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from xml.etree.ElementTree import Element, SubElement, tostring

from rmaplab.explore import text
from rmaplab.explore.camera import Camera
from rmaplab.explore.parts import Area, DesignLine, Film, Part, Space, State, Step
from rmaplab.measure.collect import Aside
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.machine import Machine

_LETTER: Final = 7.0  # width of a letter
_LINE: Final = 17
_PLACES: Final = 24  # of a walk, drawn one by one
_WIDTH: Final = 700.0  # where places go on below
_STYLE: Final = (
    "text{font:11px ui-monospace,monospace;fill:currentColor}.b{font-weight:bold}"
    "rect,path{fill:none;stroke:currentColor}.s{stroke-width:3}.u{stroke-dasharray:3 3}"
)


def look(machine: Machine) -> Spaces:
    """A picture of what `machine` is now."""
    camera = Camera(machine, {})
    with Aside(machine):
        state = camera.picture([], 0)
    designs = [
        DesignLine(design.name, dict(picture.about))
        for design, picture in zip(machine.designs, camera.pictures, strict=True)
    ]
    film = Film(
        "",
        "",
        machine.profile.name,
        machine.leader.name,
        designs,
        0,
        0,
        0,
        [Step(0, "", 0, "")],
        camera.answers,
    )
    return Spaces(film, state)


class Spaces:
    """All address spaces."""

    def __init__(self, film: Film, state: State) -> None:
        self._film: Final = film
        self._state: Final = state

    def design(self, name: str) -> Structures:
        """What one design holds."""
        names = [design.name for design in self._film.designs]
        if name not in names:
            raise HistoryError(
                f"no design called {name!r} watches this machine: there are {', '.join(names)}"
            )
        return Structures(self._film, self._state, names.index(name))

    def __str__(self) -> str:
        return "\n".join(text.address_spaces(self._state)).strip() or "no process"

    def __repr__(self) -> str:
        return str(self)

    def _repr_svg_(self) -> str:
        root, y, width = _drawing(), 4.0, 0.0
        spaces = [part for part in self._state.values() if isinstance(part, Space)]
        for space in sorted(spaces, key=lambda space: space.pids or [text.UNOWNED + space.id]):
            _words(root, 4, y, text.space_title(self._state, space), "b")
            y += _LINE
            for id in space.areas:
                area = self._state.get(f"V{id}")
                if isinstance(area, Area):
                    right, y = _draw_area(root, y, self._state, area)
                    width = max(width, right)
            y += 6
        return _finish(root, width, y)


def _draw_area(root: Element, y: float, state: State, area: Area) -> tuple[float, float]:
    odd = text.offset_line(area)
    line = f"{text.area_line(area)}{f' ({odd})' if odd else ''}"
    _words(root, 20, y, line)
    y += _LINE
    x = 20.0
    for cell in text.all_cells(area):
        face = text.face(cell, state)
        width = len(face) * _LETTER + 10
        kind = "u" if cell.kind == "" else "s" if "×" in face else ""
        _box(root, x, y, width, _LINE, kind)
        _words(root, x + 5, y, face)
        x += width + 5
    return max(x, 20 + len(line) * _LETTER), y + _LINE + 6


class Structures:
    """What a design holds."""

    def __repr__(self) -> str:
        return str(self)

    def __init__(self, film: Film, state: State, slot: int) -> None:
        self._film: Final = film
        self._state: Final = state
        self._slot: Final = slot

    def __str__(self) -> str:
        return "\n".join(text.structures(self._state, self._slot, self._film.designs[self._slot]))

    def _repr_svg_(self) -> str:
        root, y, width = _drawing(), 4.0, 0.0
        groups: dict[str, dict[str, Part]] = {}
        for key, part in self._state.items():
            if isinstance(part, Part) and key.startswith(f"{self._slot}/"):
                groups.setdefault(part.group, {})[key] = part
        for group, parts in groups.items():
            title = group.partition("|")[2]
            _words(root, 4, y, title, "b")
            right, y = _draw_parts(root, y + _LINE + 2, parts)
            width = max(width, right, len(title) * _LETTER)
        return _finish(root, width, y)


def _draw_parts(root: Element, y: float, parts: dict[str, Part]) -> tuple[float, float]:
    lines = {
        key: [part.label, *(f"{name} {value}" for name, value in part.facts)] for key, part in parts.items()
    }
    width = max(len(line) for told in lines.values() for line in told) * _LETTER + 12
    height = max(len(told) for told in lines.values()) * _LINE + 4.0
    where = {key: (4 + part.x * (width + 12), y + part.y * (height + 22)) for key, part in parts.items()}
    for key, part in parts.items():
        left, top = where[key]
        _box(root, left, top, width, height, "")
        for number, line in enumerate(lines[key]):
            _words(root, left + 6, top + number * _LINE, line, "" if number else "b")
        if part.above in where:
            above, bottom = where[part.above]
            SubElement(root, "path", d=f"M{above + width / 2} {bottom + height}L{left + width / 2} {top}")
    right = max(left for left, _ in where.values()) + width
    return right, max(top for _, top in where.values()) + height + 14


# Walks


def draw_walk(title: str, rows: Iterable[tuple[str, list[tuple[str, bool]], str]]) -> str:
    """A row for each design: its name, the places that it visits and whether they map the page, and what it counted.

    Places are boxes in the order of the walk, drawn through where they map it and dashed where not.
    """
    root, y, width = _drawing(), 4.0, len(title) * _LETTER
    _words(root, 4, y, title, "b")
    y += _LINE + 8
    for name, places, counted in rows:
        _words(root, 4, y, name, "b")
        y += _LINE
        x = 20.0
        for place, maps in places[:_PLACES]:
            if x > 20:
                SubElement(root, "path", d=f"M{x - 16:g} {y + _LINE / 2:g}h12m-5 -4l5 4l-5 4")
            wide = len(place) * _LETTER + 10
            _box(root, x, y, wide, _LINE, "s" if maps else "u")
            _words(root, x + 5, y, place)
            x += wide + 20
            if x > _WIDTH:
                width, x, y = max(width, x), 20.0, y + _LINE + 8
        if len(places) > _PLACES:
            _words(root, x, y, f"and {len(places) - _PLACES:,} more")
            x += 14 * _LETTER
        y += _LINE + 4
        _words(root, 20, y, counted)
        y += _LINE + 8
        width = max(width, x, 20 + len(counted) * _LETTER)
    return _finish(root, width, y)


# SVG


def _drawing() -> Element:
    root = Element("svg", xmlns="http://www.w3.org/2000/svg")
    SubElement(root, "style").text = _STYLE
    return root


def _words(root: Element, x: float, y: float, words: str, kind: str = "") -> None:
    SubElement(root, "text", {"x": f"{x:g}", "y": f"{y + 13:g}", "class": kind}).text = words


def _box(root: Element, x: float, y: float, width: float, height: float, kind: str) -> None:
    place: Iterable[tuple[str, float]] = (("x", x), ("y", y), ("width", width), ("height", height))
    SubElement(root, "rect", {name: f"{value:g}" for name, value in place} | {"rx": "3", "class": kind})


def _finish(root: Element, width: float, height: float) -> str:
    root.set("width", f"{width + 8:g}")
    root.set("height", f"{height + 8:g}")
    root.set("viewBox", f"0 0 {width + 8:g} {height + 8:g}")
    return tostring(root, encoding="unicode")
