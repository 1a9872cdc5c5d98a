# SPDX-License-Identifier: GPL-2.0-or-later
"""Coverage of a run of random histories: how often each operation had its effect.

An operation that silently does nothing breaks no invariant: the page tables agree with every walk.  So a run counts
effects, as the lockstep with a real kernel does (kernel/coverage.py): from outside, by the state of the machine
before and after an event, and by its counts meanwhile.  A run that is long enough reaches all of `CASES`, or does
not hold.
"""

from __future__ import annotations

from typing import Final

from rmaplab.mm import abi
from rmaplab.mm.folio import FOLIO_LAZYFREE
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import PTE_ANON, PTE_SHIFT
from rmaplab.mm.vma import MM, PAGE_SIZE, VM_DONTCOPY, VM_LOCKED, VM_WIPEONFORK, VMA
from rmaplab.trace.events import Event

# By operation, what has to come of it some time.
CASES: Final[dict[str, tuple[str, ...]]] = {
    "exec": ("makes an address space",),
    "fork": ("shares pages", "wipes a VMA", "leaves out a VMA", "shares the address space"),
    "exit": ("frees pages",),
    "mmap": ("makes a VMA", "merges with a VMA"),
    "munmap": ("drops pages",),
    "mprotect": ("protects entries",),
    "mremap": ("moves entries", "keeps the source"),
    "madvise": ("drops pages", "marks pages as free", "pages out", "populates", "lets KSM merge"),
    "mlock": ("locks a VMA",),
    "munlock": ("unlocks a VMA",),
    "mlockall": ("succeeds",),
    "munlockall": ("succeeds",),
    "brk": ("grows the heap",),
    "name": ("succeeds",),
    "fault": ("makes a page", "copies a page", "reuses a page", "reads from swap"),
    "swap_out": ("takes pages to swap",),
    "migrate": ("moves pages",),
    "referenced": ("finds entries",),
    "ksm": ("merges pages",),
    "uffd_move": ("moves a page",),
}
# Counted, too, and not waited for: whether they are merged at all depends on the kernel and on who leads.
HOMECOMING: Final = "mremap: an unprepared VMA takes in prepared pages"
ENOUGH: Final = 40_000  # steps in which each is reached ten times or more
_POPULATE: Final = (abi.MADV_POPULATE_READ, abi.MADV_POPULATE_WRITE)


def missing(reached: dict[str, int]) -> list[str]:
    """The cases that were not reached."""
    cases = [f"{op}: {what}" for op, effects in CASES.items() for what in effects]
    return [case for case in cases if not reached.get(case)]


class _Figures:
    """What a machine holds and has counted, as far as effects show in it."""

    def __init__(self, machine: Machine) -> None:
        self.in_use: Final = machine.folios.in_use
        self.allocated: Final = machine.folios.allocated
        self.swapped: Final = sum(slot.count for slot in machine.swap.values())
        self.merged: Final = sum(len(places) for places in machine.ksm_pages.values())
        self.vmas: Final = machine.vma_pool.allocated
        self.zapped: Final = machine.entries_zapped.count
        self.moved: Final = machine.entries_moved.count
        self.protected: Final = machine.entries_protected.count
        self.copied: Final = machine.pages_copied.count
        self.reused: Final = machine.pages_reused.count
        self.hits: Final = machine.walk_hits.count


class Reached:
    """Counts, while a history plays on `machine`, how often each case was reached."""

    def __init__(self, machine: Machine) -> None:
        self.counts: Final[dict[str, int]] = {}
        self._machine: Final = machine
        self._before = _Figures(machine)
        self._pages = 0  # of the heap
        self._beside = 0  # an address in an unprepared VMA next to where prepared pages are about to move to

    def begin(self, event: Event) -> None:
        """`event` is about to be played."""
        self._before = _Figures(self._machine)
        self._beside = 0
        if event.pid in self._machine.processes:
            mm = self._machine.mm_of(event.pid)
            self._pages = mm.brk
            if event.op == "mremap" and event.flags & abi.MREMAP_FIXED:
                self._beside = _unprepared_beside(mm, event)

    def end(self, event: Event) -> None:
        """`event` was played."""
        if event.result >= 0:
            for what in self._effects(event, self._before, _Figures(self._machine)):
                self._count(f"{event.op}: {what}")
            if self._beside:
                home = self._machine.mm_of(event.pid).tree.at(event.result)
                if home is not None and home.start <= self._beside < home.end:
                    self._count(HOMECOMING)

    def _count(self, case: str) -> None:
        self.counts[case] = self.counts.get(case, 0) + 1

    def _effects(self, event: Event, before: _Figures, now: _Figures) -> list[str]:
        op = event.op
        if op == "fork":
            return self._forked(event)
        seen = {
            "exec": (("makes an address space", True),),
            "exit": (("frees pages", now.in_use < before.in_use),),
            "mmap": (("makes a VMA", now.vmas > before.vmas), ("merges with a VMA", now.vmas == before.vmas)),
            "munmap": (("drops pages", now.zapped > before.zapped),),
            "mprotect": (("protects entries", now.protected > before.protected),),
            "fault": (
                ("makes a page", now.in_use > before.in_use), ("copies a page", now.copied > before.copied),
                ("reuses a page", now.reused > before.reused), ("reads from swap", now.swapped < before.swapped),
            ),
            "swap_out": (("takes pages to swap", now.swapped > before.swapped),),
            "migrate": (("moves pages", now.allocated > before.allocated),),
            "referenced": (("finds entries", now.hits > before.hits),),
            "ksm": (("merges pages", now.merged > before.merged),),
            "uffd_move": (("moves a page", event.result > 0),),
        }.get(op)  # fmt: skip
        if seen is not None:
            return [what for what, so in seen if so]
        return self._of_a_range(event, before, now)

    def _of_a_range(self, event: Event, before: _Figures, now: _Figures) -> list[str]:
        mm = self._machine.mm_of(event.pid)
        vma = mm.tree.at(event.addr)
        locked = vma is not None and vma.flags & VM_LOCKED != 0
        if event.op == "mremap":
            moved = now.moved > before.moved
            keeps = moved and event.flags & abi.MREMAP_DONTUNMAP != 0
            return [what for what, so in zip(CASES["mremap"], (moved, keeps), strict=True) if so]
        if event.op == "madvise":
            flags = self._machine.folios.flags.v[: self._machine.folios.end]
            effects = zip(
                CASES["madvise"],
                (
                    event.flags == abi.MADV_DONTNEED and now.zapped > before.zapped,
                    event.flags == abi.MADV_FREE and bool((flags & FOLIO_LAZYFREE).any()),
                    event.flags == abi.MADV_PAGEOUT and now.swapped > before.swapped,
                    event.flags in _POPULATE and now.in_use > before.in_use,
                    event.flags == abi.MADV_MERGEABLE,
                ),
                strict=True,
            )
            return [what for what, so in effects if so]
        seen = {
            "mlock": ("locks a VMA", locked),
            "munlock": ("unlocks a VMA", vma is not None and not locked),
            "brk": ("grows the heap", mm.brk > self._pages),
        }.get(event.op, ("succeeds", True))
        return [seen[0]] if seen[1] else []

    def _forked(self, event: Event) -> list[str]:
        if event.flags & abi.CLONE_VM:
            return ["shares the address space"]
        parent, child = self._machine.mm_of(event.pid), self._machine.mm_of(event.pid2)
        effects: list[str] = []
        for vma in parent.tree.to_list():
            pages = _pages(parent, vma)
            copy = child.tree.at(vma.start)
            if vma.flags & VM_DONTCOPY and copy is None:
                effects.append("leaves out a VMA")
            elif pages and copy is not None:
                if vma.flags & VM_WIPEONFORK and not _pages(child, vma):
                    effects.append("wipes a VMA")
                elif not vma.flags & VM_WIPEONFORK and _pages(child, vma) == pages:
                    effects.append("shares pages")
        return list(dict.fromkeys(effects))


def _pages(mm: MM, vma: VMA) -> dict[int, int]:
    """By address, the pages that `mm` maps in the range of `vma`."""
    entries = {addr: mm.page_table.get(addr) for addr in range(vma.start, vma.end, PAGE_SIZE)}
    return {addr: entry >> PTE_SHIFT for addr, entry in entries.items() if entry & PTE_ANON}


def _unprepared_beside(mm: MM, event: Event) -> int:
    """An address in an unprepared VMA that ends or begins where pages of a prepared one are about to move to."""
    source = mm.tree.at(event.addr)
    start, end = event.addr2, event.addr2 + event.length2
    if source is not None and source.prepared:
        below, above = mm.tree.at(start - PAGE_SIZE), mm.tree.at(end)
        if above is not None and not above.prepared and above.start == end:
            return end
        if below is not None and not below.prepared and below.end == start:
            return start - PAGE_SIZE
    return 0
