# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures: answers of kernels to the aimed histories, as text to review.

A file has a comment that names the kernel, a line for each event with its result, and after the last event the
state as answers.py writes it.  Where execve() puts a stack and mmap() a mapping is a matter of chance (address
space randomisation), and so are the values that follow from it: two files are compared without them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rmaplab.check.histories import header
from rmaplab.kernel.aimed import AIMED, history, setting
from rmaplab.kernel.answers import event_line, of_kernel, of_model, parse_event
from rmaplab.kernel.coverage import Coverage
from rmaplab.kernel.driver import Setting
from rmaplab.kernel.lockstep import Disagreement, Lockstep, Witness, in_guest
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import Profile, profile_for
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.trace.events import Event
from rmaplab.trace.play import Player

_CHANCE: Final = re.compile(r"0x7[0-9a-f]{8,11}\b")


def answer(
    witness: Witness, name: str, coverage: Coverage | None = None
) -> tuple[str, Disagreement | None]:
    """The text for one aimed history, and whether the model disagreed on the way."""
    lockstep = Lockstep(witness, coverage=coverage, setting=setting(name))
    try:
        for event in history(name):
            if lockstep.possible(event):
                found = lockstep.step(event)
                if found is not None:
                    return "", found
        assert lockstep.snapshot is not None
        state = of_kernel(lockstep.snapshot, lockstep.driver.pids)
    finally:
        lockstep.end()
    its = setting(name)
    large = f", folios of up to {1 << its.large_folios} pages" if its.large_folios else ""
    crowded = f", {its.mappings} mappings at most" if its.mappings else ""
    title = f"# {name}{large}{crowded}, answered by Linux {witness.profile.release}"
    lines = [title, *map(event_line, lockstep.played), *state]
    return "\n".join(lines) + "\n", None


def answers(witness: Witness, coverage: Coverage | None = None) -> Iterator[tuple[str, str, Disagreement | None]]:
    """name, text and disagreement of every aimed history that the kernel can do."""
    for name in possible_names(witness.has_large_folios):
        yield (name, *answer(witness, name, coverage))


def possible_names(has_large_folios: bool) -> list[str]:
    """The aimed histories that a kernel with or without large folios can do."""
    return [name for name in AIMED if has_large_folios or not setting(name).large_folios]


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
