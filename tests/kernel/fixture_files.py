# SPDX-License-Identifier: GPL-2.0-or-later
"""The files in fixtures/, which kernel/fixtures.py wrote: read, and held against the model.

Where execve() puts a stack and mmap() a mapping is a matter of chance (address space randomisation), and so are the
values that follow from it: two files are compared without them.
"""

from __future__ import annotations

import re
from pathlib import Path

from rmaplab.check.histories import header
from rmaplab.kernel.answers import event_line, of_model, parse_event
from rmaplab.kernel.driver import Setting
from rmaplab.kernel.lockstep import in_guest
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import Profile, profile_for
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.trace.events import Event
from rmaplab.trace.play import Player

_CHANCE = re.compile(r"0x7[0-9a-f]{8,11}\b")


def without_chance(text: str) -> str:
    """`text` without what differs from run to run, and without the comment."""
    return _CHANCE.sub("0x7…", text.partition("\n")[2])


def model_differs(
    path: Path, design: type[ReverseMap] = AnonVmaRmap, profile: Profile | None = None
) -> list[str]:
    """Where the model does not say what the file says: lines of either, marked - (file) and + (model).  `profile`: in
    place of that of the kernel's release."""
    release, its, events, expected = read(path)
    machine = Machine(profile or profile_for(release)[0], [design], large_folios=its.large_folios)
    if its.mappings:
        machine.max_map_count = its.mappings
    player = Player(machine, in_guest(header()), batch=False)
    in_exec = False
    for event in events:
        in_exec = event.op == "exec" or (in_exec and event.op == "fault")
        machine.large_folios = 0 if in_exec else its.large_folios  # what execve() builds has none
        got = player.do(event)
        if got != event.result:
            return [f"- {event_line(event)}", f"+ result {got:#x}"]
    lines = of_model(machine)
    if lines == expected:
        return []
    return [f"- {line}" for line in expected if line not in lines] + [
        f"+ {line}" for line in lines if line not in expected
    ]


def read(path: Path) -> tuple[str, Setting, list[Event], list[str]]:
    """Release, setting, events, and lines of state of a file."""
    lines = path.read_text().splitlines()
    release = lines[0].rpartition(" ")[2]
    events = [parse_event(line) for line in lines[1:] if not line.startswith("|")]
    large = re.search(r"folios of up to (\d+) pages", lines[0])
    order = int(large.group(1)).bit_length() - 1 if large else 0
    crowded = re.search(r"(\d+) mappings at most", lines[0])
    its = Setting(order, int(crowded.group(1)) if crowded else 0)
    return release, its, events, [line for line in lines[1:] if line.startswith("|")]
