# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine for statements about Linux: one process to begin with, whose arena's pages are numbered from 0.

A call returns what the system call does: a page number, 0, or -errno.  `vmas` is a picture of the arena:
"0-4 rw, 6-8 r".

    space.mmap(4, 0)
    space.write(0)
    space.mprotect(2, 2, R)
    assert space.vmas() == "0-2 rw, 2-4 r"

Witnessed, it does everything in real processes, too (host.py), and fails where results, VMAs or
pages differ: what a test says of Linux, the running kernel has then said itself.
"""

from __future__ import annotations

import os

from mm.host import ARENA_PAGES, Host, HostUnavailable, compare
from rmaplab.check.histories import ARENA
from rmaplab.check.truth import Truth, invariants
from rmaplab.mm.abi import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_EXEC,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)
from rmaplab.mm.profile import PROFILES, REFERENCE, profile_for
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.trace.events import Event
from rmaplab.trace.script import PAGE, Layout
from world import DISK, MEMORY, Process, World

__all__ = [
    "ANON", "DISK", "FILE", "MEMORY", "MOVE", "PAGE", "RW", "RX", "N", "R", "Space", "Witnessed", "at", "begin", "do",
]  # fmt: skip

N, R, RW, RX = PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC
ANON = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
FILE = MAP_PRIVATE | MAP_FIXED
MOVE = MREMAP_MAYMOVE | MREMAP_FIXED
FAR = Layout(0x7FF0_0000_0000, 3 * PAGE, 0x7FF1_0000_0000, 0)  # a stack that no test means


class Witnessed(World):
    """A machine with the running kernel beside it."""

    def __init__(self, *designs: type[ReverseMap]) -> None:
        profile, own = profile_for(os.uname().release)
        if not own:
            raise HostUnavailable(f"no profile for the running kernel, {os.uname().release}")
        self.host = Host()
        super().__init__(*designs, profile=profile, layout=FAR)

    def spawn(self, layout: Layout | None = None) -> Process:
        process = super().spawn(layout)
        process.mm.mmap_base = self.host.fence()
        return process

    def play(self, event: Event) -> int:
        result = super().play(event)
        if event.op != "exec":  # the host's process has begun
            assert self.host.play(event) == result, "the kernel returns something else"
        return result


class Space(Process):
    """A process whose pages a test counts."""

    @property
    def kernel(self) -> str:
        """Whose rules hold."""
        return self.machine.profile.name

    def close(self) -> None:
        """The end of a test: nothing is broken, and the kernel agrees."""
        host = self.world.host if isinstance(self.world, Witnessed) else None
        try:
            broken = invariants(self.machine, Truth(self.machine))
            assert not broken, "\n".join(broken)
            if host is not None:
                wrong = compare(host, self.machine)
                assert not wrong, "\n".join(wrong)
        finally:
            if host is not None:
                host.close()

    def stranger(self) -> Space:
        """A process that is no relative."""
        return self.process(self.at_home.spawn().pid)

    def vmas(self) -> str:
        """The arena's VMAs, as "first-end rights"."""
        shown = []
        for vma in self.mm.tree.overlapping(ARENA, ARENA + ARENA_PAGES * PAGE):
            rights = "".join(letter for bit, letter in ((1, "r"), (2, "w"), (4, "x")) if vma.flags & bit)
            shown.append(f"{(vma.start - ARENA) // PAGE}-{(vma.end - ARENA) // PAGE} {rights}".rstrip())
        return ", ".join(shown)

    def pgoff(self, page: int) -> int:
        """The page offset of a page: that of an anonymous VMA which never moved is its number."""
        vma = self.vma(page)
        start = ARENA // PAGE if vma.file is None else 0
        return vma.pgoff + (at(page) - vma.start) // PAGE - start


def begin(
    kernel: str = REFERENCE,
    witness: bool = False,
    designs: tuple[type[ReverseMap], ...] = (AnonVmaRmap,),
    large_folios: int = 0,
) -> Space:
    """A machine with one process."""
    if witness:
        world: World = Witnessed(*designs)
    else:
        world = World(*designs, profile=PROFILES[kernel], large_folios=large_folios, layout=FAR)
    return Space(world, world.spawn().pid, ARENA, PAGE)


def at(page: int) -> int:
    """The address of a page of the arena."""
    return ARENA + page * PAGE


def do(space: Space, event: Event) -> int:
    """Any event, in bytes; what it returns."""
    return space.at_home.play(event)
