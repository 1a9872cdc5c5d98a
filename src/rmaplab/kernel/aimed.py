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
from rmaplab.trace.script import PAGE, Layout, Process, Script

_ARENA: Final = 0x10_0000_0000
_LAYOUT: Final = Layout(0xF_0000_0000, 3 * PAGE, 0xF_0000_0000, 0x12_0000_0000)
_ORIGINS: Final = {"": _ARENA, "stack": _LAYOUT.stack, "heap": _LAYOUT.heap}  # of the pages that a process counts


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
            yield name, _Aimed(Setting(**{word: int(value) for word, value in (s.split("=") for s in settings)}), lines)


AIMED: Final = dict(_read(files("rmaplab").joinpath("kernel/aimed.txt").read_text(encoding="utf-8")))


def setting(name: str) -> Setting:
    """What a guest is set to for it."""
    return AIMED[name].setting


def history(name: str) -> list[Event]:
    """The events to ask for."""
    script = Script(_LAYOUT, abi.MAP_FIXED)
    processes = {"p1": script.spawn()}
    for line in AIMED[name].lines:
        who, _, verbs = line.strip().partition(" ")
        who, _, where = who.partition(".")
        for verb in verbs.split("; "):
            _do(processes, who, _ORIGINS[where], *verb.split())
    return script.events


def _do(processes: dict[str, Process], who: str, origin: int, verb: str, *words: str) -> None:
    process = processes[who].in_pages(origin)
    if verb == "merge_same":
        process.world.do(Event("ksm", process.pid, pid2=process.pid))
    elif verb == "another":
        another = processes[words[0]] = Process(process.world, process.world.new_pid())
        another.exec()
    elif verb == "fork" and words:
        processes[words[0]] = process.fork(*map(_number, words[1:]))
    else:
        given = [word.partition("=") for word in words]
        getattr(process, verb)(
            *(_number(name) for name, is_named, _ in given if not is_named),
            **{name: _number(value) for name, is_named, value in given if is_named},
        )


def _number(word: str) -> int:
    """A number, or flags by their names in mm/abi.py, joined by `|`."""
    total = 0
    for part in word.split("|"):
        total |= int(part) if part.lstrip("-").isdigit() else getattr(abi, part)
    return total
