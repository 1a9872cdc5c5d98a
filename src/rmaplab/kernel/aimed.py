# SPDX-License-Identifier: GPL-2.0-or-later
"""Small histories, each aimed at one rule: what random ones reach seldom is here by construction.

`rmaplab kernel compare` does them before the random ones, and tests/kernel/fixtures has what kernels answered.
aimed.txt has the histories, and says how they are written.  What a call returns is for the kernel to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import Final, NamedTuple

from rmaplab.kernel.driver import Setting
from rmaplab.mm import abi
from rmaplab.trace.events import Event
from rmaplab.trace.script import PAGE, Layout, Script
from rmaplab.trace.text import Lines

_ARENA: Final = 0x10_0000_0000
_LAYOUT: Final = Layout(0xF_0000_0000, 3 * PAGE, 0xF_0000_0000, 0x12_0000_0000)


class _Aimed(NamedTuple):
    setting: Setting
    lines: list[str]


def _read(text: str) -> Iterator[tuple[str, _Aimed]]:
    """Name and rest of each history in `text`."""
    lines: list[str] = []
    for line in text.splitlines():
        line = line.partition("#")[0].rstrip()
        if line.startswith(" "):
            lines.append(line)
        elif line:
            name, *settings = line.split(", ")
            lines = []
            values = dict(setting.split("=") for setting in settings)
            yield name, _Aimed(Setting(**{word: int(value) for word, value in values.items()}), lines)


AIMED: Final = dict(_read(files("rmaplab").joinpath("kernel/aimed.txt").read_text(encoding="utf-8")))


def setting(name: str) -> Setting:
    """What a guest is set to for it."""
    return AIMED[name].setting


def history(name: str) -> list[Event]:
    """The events to ask for."""
    script = Script(_LAYOUT, abi.MAP_FIXED)
    lines = Lines(script, _ARENA, stack=_LAYOUT.stack, heap=_LAYOUT.heap)
    for line in ("p1 exec", *AIMED[name].lines):
        lines.perform(line)
    return script.events
