# SPDX-License-Identifier: GPL-2.0-or-later
"""Histories as text: a line names a process and what it does, in the words of trace/script.py.

    >>> script = Script()
    >>> lines = Lines(script, 0x7F0000000000, stack=0x7FFC6F8D3000)
    >>> lines.perform("p1 exec; munmap stack 33; mmap 4 at=0; write 0 4; fork p2")
    >>> lines.perform("p2 mremap 1 2 to=8; madvise 0 1 MADV_FREE|MADV_COLD")
    >>> [event.op for event in script.events]
    ['exec', 'munmap', 'mmap', 'fault', 'fork', 'mremap', 'madvise']

    PROCESS VERB ARGUMENTS; VERB ARGUMENTS…

A verb is a method of `Process`, with its arguments in order, or as NAME=VALUE.  Addresses and lengths are pages; a
place has a name (`stack+30`), and so have the constants of mm/abi.py.  `fork p2` names the child, `exec` begins a
process that has no parent.  `ksm` alone has ksmd scan everything, where there is one (kernel/driver.py).
"""

from __future__ import annotations

import re
from typing import Final

from rmaplab.mm import abi
from rmaplab.trace.events import Event
from rmaplab.trace.script import PAGE, Process, Script

_OFFSET: Final = re.compile(r"[+-]?\d+$")


class Lines:
    """Writes what lines say to `script`; addresses count pages from `origin`, `places` have names (all bytes)."""

    def __init__(self, script: Script, origin: int, **places: int) -> None:
        self._script: Final = script
        self._origin: Final = origin
        self._places: Final = places
        self._processes: Final[dict[str, Process]] = {}

    def perform(self, line: str) -> None:
        name, _, verbs = line.strip().partition(" ")
        for verb in verbs.split("; "):
            self._do(name, *verb.split())

    def place(self, words: str) -> tuple[int, int]:
        """PROCESS ADDRESS: the pid and the address, in bytes."""
        name, addr = words.split()
        return self._processes[name].pid, self._origin + self._number(addr) * PAGE

    def _do(self, name: str, verb: str, *words: str) -> None:
        if name not in self._processes:
            self._processes[name] = Process(self._script, self._script.new_pid(), self._origin, PAGE)
        process = self._processes[name]
        if verb == "fork" and words:
            self._processes[words[0]] = process.fork(*map(self._number, words[1:]))
        elif verb == "ksm":
            self._script.do(Event("ksm", process.pid, pid2=process.pid))
        else:
            given = [word.rpartition("=") for word in words]
            getattr(process, verb)(
                *(self._number(value) for argument, _, value in given if not argument),
                **{argument: self._number(value) for argument, _, value in given if argument},
            )

    def _number(self, word: str) -> int:
        """A number, a page of a place, or flags joined by `|`."""
        offset = _OFFSET.search(word)
        name = word[: offset.start()] if offset else word
        number = int(offset[0]) if offset else 0
        if name in self._places:
            return (self._places[name] - self._origin) // PAGE + number
        for flag in filter(None, name.split("|")):
            number |= getattr(abi, flag)
        return number
