# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel's answers as text that can be reviewed, kept, and compared with.

An event is a line, and the state after it is a block of lines in which objects have names by order of
appearance: anon_vmas A1, A2, ..., pages p1, ..., swap slots s1, ...  Tests write the model's state in the same way, so
that "the same text" means "isomorphic" (tests/kernel/fixture_files.py).

    exec pid=1 addr=0x7ffc... ...
    | 1: 0x7fff00000-0x7fff21000 pgoff 0x7ffffffdf rw- anon A1 chain A1
    |    0x7fff1f000 p1 mapcount 1 exclusive writable index 0x7fffffffe anon_vma A1
    | A1: root A1 parent A1 refcount 1 children 1 active 1 tree 1:0x7fff00000

Many entries in a row that are alike are one line: 0x1000000000-0x10001ff000 p4-p515 ... index 0x1000000-0x10001ff ...
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from rmaplab.kernel import snapshot as real
from rmaplab.kernel.isomorphism import belongs, refcount_of_kernel
from rmaplab.mm.vma import PAGE_SIZE
from rmaplab.trace.events import Event

_ENTRY: Final = re.compile(r"\|    (0x[0-9a-f]+) ((?:swap )?[ps]?)(\d*)(.*?)(?: index (0x[0-9a-f]+)( .*))?")
_MANY: Final = 64  # entries in a row that are one line if they are alike


class _Names:
    """Names of objects, by order of appearance."""

    def __init__(self, prefix: str) -> None:
        self._prefix: Final = prefix
        self.known: Final[dict[int, str]] = {}

    def __call__(self, number: int) -> str:
        return self.known.setdefault(number, f"{self._prefix}{len(self.known) + 1}")


class State:
    """State as lines: what kernel and model have in common."""

    def __init__(self) -> None:
        self.anon_vmas: Final = _Names("A")
        self.pages: Final = _Names("p")
        self.slots: Final = _Names("s")
        self.lines: Final[list[str]] = []

    def vma(
        self, pid: int, start: int, end: int, pgoff: int, anon_pgoff: int, flags: int, chain: list[int], own: int
    ) -> None:
        anonymous = f" anon {anon_pgoff:#x}" if anon_pgoff != pgoff else ""
        links = " ".join(self.anon_vmas(anon_vma) for anon_vma in chain)
        chains = f" anon {self.anon_vmas(own)} chain {links}" if chain else ""
        self.lines.append(f"| {pid}: {start:#x}-{end:#x} pgoff {pgoff:#x}{anonymous} flags {flags:#x}{chains}")

    def page(self, addr: int, number: int, values: str, index: int, anon_vma: int, ksm: bool) -> None:
        origin = "of KSM" if ksm else f"index {index:#x} anon_vma {self.anon_vmas(anon_vma)}"
        self.lines.append(f"|    {addr:#x} {self.pages(number)} {values} {origin}")

    def entry(self, addr: int, text: str) -> None:
        self.lines.append(f"|    {addr:#x} {text}")

    def anon_vma(self, number: int, root: int, parent: int, counts: tuple[int, int, int], tree: list[str]) -> None:
        names = self.anon_vmas
        self.lines.append(
            f"| {names(number)}: root {names(root)} parent {names(parent)} refcount {counts[0]} children {counts[1]}"
            f" active {counts[2]} tree {' '.join(tree)}"
        )


def render(events: Iterable[Event], snapshot: real.Snapshot, pids: Mapping[int, int]) -> str:
    """Events and the kernel's state after them."""
    return "\n".join([*map(str, events), *of_kernel(snapshot, pids)])


def of_kernel(snapshot: real.Snapshot, pids: Mapping[int, int]) -> list[str]:
    """The lines of a snapshot; `pids` are the history's processes and the kernel's."""
    state = State()
    named: dict[int, str] = {}
    seen: set[int] = set()
    for pid, guest_pid in sorted(pids.items()):
        mm = snapshot.by_pid[guest_pid]
        if mm.address in seen:
            continue
        seen.add(mm.address)
        for vma in filter(belongs, mm.vmas):
            chain = [snapshot.avcs[avc].anon_vma for avc in reversed(vma.chain)]
            state.vma(pid, vma.start, vma.end, vma.pgoff, vma.anon_pgoff, vma.flags, chain, vma.anon_vma)
            named[vma.address] = f"{pid}:{vma.start:#x}"
            for addr in range(vma.start, vma.end, PAGE_SIZE):
                entry = mm.entries.get(addr)
                if entry is None:
                    continue
                if entry.kind == "anon":
                    page = snapshot.pages[entry.number]
                    values = page_values(page.mapcount, page.order, entry.exclusive, entry.writable, page.swapcache)
                    values += " huge" * entry.huge
                    state.page(addr, entry.number, values, page.index, page.anon_vma, page.ksm)
                elif entry.kind == "swap":
                    state.entry(addr, f"swap {state.slots(entry.number)}{' exclusive' if entry.exclusive else ''}")
                else:
                    state.entry(addr, entry.kind + " huge" * entry.huge)
    for number in reachable(state, lambda a: (snapshot.anon_vmas[a].root, snapshot.anon_vmas[a].parent)):
        its = snapshot.anon_vmas[number]
        tree = [named.get(snapshot.avcs[node.avc].vma, "?") for node in its.tree]
        refcount = refcount_of_kernel(snapshot, its)
        state.anon_vma(number, its.root, its.parent, (refcount, its.num_children, its.num_active_vmas), tree)
    return folded(state.lines)


def digest(lines: list[str]) -> str:
    """A few characters that stand for a state."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:10]


def folded(lines: list[str]) -> list[str]:
    """The same lines, with one for many entries in a row that are alike: of pages one after the other, or of one."""
    folded: list[str] = []
    run: list[tuple[str, ...]] = []
    for line in [*lines, ""]:
        match = _ENTRY.fullmatch(line)
        row = (line, *match.groups("")) if match is not None else ()
        if run and not (row and _continues(run[0], run[-1], row, len(run))):
            folded += [its[0] for its in run] if len(run) < _MANY else [_range(run[0][0], run[-1][0])]
            run = []
        if row:
            run.append(row)
        elif line:
            folded.append(line)
    return folded


def _continues(first: tuple[str, ...], last: tuple[str, ...], row: tuple[str, ...], count: int) -> bool:
    """Is the entry `row` the one after `last` in a run of `count` that begins with `first`?"""
    if int(row[1], 0) != int(last[1], 0) + PAGE_SIZE or row[2::2] != last[2::2]:
        return False
    numbers = [int(of[3] or "0") for of in (first, last, row)]
    index = [int(of[5] or "-1", 0) for of in (last, row)]
    alike = numbers[2] == numbers[0] if count > 1 and numbers[0] == numbers[1] else numbers[2] == numbers[1] + 1
    return (alike or (count == 1 and numbers[2] == numbers[1])) and index[1] == index[0] + (index[0] >= 0)


def _range(first: str, last: str) -> str:
    """One line for all entries from one line to another."""
    words = [one if one == other else f"{one}-{other}" for one, other in zip(first.split(), last.split(), strict=True)]
    return "|    " + " ".join(words[1:])


def page_values(mapcount: int, order: int, exclusive: bool, writable: bool, cached: bool) -> str:
    """A page in words."""
    words = [f"mapcount {mapcount}", *([f"of {1 << order} pages"] if order else [])]
    flags = (("exclusive", exclusive), ("writable", writable), ("swapcache", cached))
    words += [word for word, holds in flags if holds]
    return " ".join(words)


def reachable(state: State, above: Callable[[int], tuple[int, int]]) -> list[int]:
    """All anon_vmas named so far, and those above them, in the order of their names."""
    done = 0
    while done < len(state.anon_vmas.known):
        for number in list(state.anon_vmas.known)[done:]:
            done += 1
            for other in above(number):
                state.anon_vmas(other)
    return list(state.anon_vmas.known)
