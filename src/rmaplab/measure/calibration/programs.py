# SPDX-License-Identifier: GPL-2.0-or-later
"""The small programs: those that costs are fitted to, and those that are held out.

Each is there to tell two kinds of work apart: the same operation in several sizes, with and without pages, with pages in
one leaf of the page table or in many, with few relatives or many, alive or gone.  `FITTED` and `HELD_OUT` do not share a
shape: what is held out mixes operations as programs do (an allocator, a server, a shell), where the fitted ones repeat
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from random import Random
from typing import Final

from rmaplab.measure.calibration.script import ANON, ARENA, LEAF, RW, Script
from rmaplab.mm import abi
from rmaplab.mm.vma import PAGE_SIZE
from rmaplab.trace.events import FAULT_WRITE, Event
from rmaplab.trace.history import read_history

AWAY: Final = 0x20_0000_0000  # bytes; where moves go
FILE: Final = abi.MAP_PRIVATE


def place(number: int, pages: int = 1, apart: int = 0) -> int:
    """Where the VMA `number` of many is: a page lies between two, or each begins `apart` bytes from the last."""
    return ARENA + number * (apart or (pages + 1) * PAGE_SIZE)


def many(script: Script, vmas: int, pages: int = 1, apart: int = 0, touched: int = 1) -> None:
    """`vmas` VMAs, of which the first `touched` pages are written."""
    for i in range(vmas):
        script.map(place(i, pages, apart), pages)
        if touched:
            script.write(place(i, pages, apart), touched)


# System calls and accesses


def nothing() -> Script:
    s = Script("system calls that do nothing")
    with s.timed():
        s.do_nothing(2000)
    return s


def map_and_unmap(vmas: int) -> Script:
    s = Script(f"mmap and munmap of a page among {vmas} VMAs")
    many(s, vmas, touched=0)
    with s.timed():
        for _ in range(300):
            s.map(place(vmas + 1), 1)
            s.unmap(place(vmas + 1), 1)
    return s


def map_many(vmas: int) -> Script:
    s = Script(f"mmap of {vmas} VMAs")
    with s.timed():
        many(s, vmas, touched=0)
    return s


def unmap_many(vmas: int, touched: int, at_once: bool) -> Script:
    s = Script(f"munmap of {vmas} VMAs {'at once' if at_once else 'one by one'}, {touched} pages in each")
    many(s, vmas, touched=touched)
    with s.timed():
        if at_once:
            s.unmap(ARENA, 2 * vmas)
        else:
            for i in range(vmas):
                s.unmap(place(i), 1)
    return s


def first_writes(pages: int) -> Script:
    s = Script(f"first writes to {pages} pages")
    s.map(ARENA, pages + 1)
    s.write(ARENA + pages * PAGE_SIZE)
    with s.timed():
        s.write(ARENA, pages)
    return s


def first_reads(pages: int) -> Script:
    s = Script(f"first reads of {pages} pages")
    s.map(ARENA, pages)
    with s.timed():
        s.read(ARENA, pages)
    return s


def writes_after_reads(pages: int) -> Script:
    s = Script(f"writes to {pages} pages that were read before")
    s.map(ARENA, pages + 1)
    s.write(ARENA + pages * PAGE_SIZE)
    s.read(ARENA, pages)
    with s.timed():
        s.write(ARENA, pages)
    return s


def first_pages_of_vmas(vmas: int, apart: int) -> Script:
    s = Script(f"first write to each of {vmas} VMAs{' with a leaf of its own' if apart == LEAF else ''}")
    many(s, vmas, apart=apart, touched=0)
    with s.timed():
        for i in range(vmas):
            s.write(place(i, 1, apart))
    return s


def unmap_pages(pages: int) -> Script:
    s = Script(f"munmap of a VMA with {pages} pages")
    s.map(ARENA, pages)
    s.write(ARENA, pages)
    with s.timed():
        s.unmap(ARENA, pages)
    return s


def drop_pages(pages: int) -> Script:
    s = Script(f"MADV_DONTNEED of {pages} pages")
    s.map(ARENA, pages)
    for _ in range(8):
        s.write(ARENA, pages)
        with s.timed():
            s.advise(ARENA, pages, abi.MADV_DONTNEED)
    return s


def protect_all(pages: int, touched: int) -> Script:
    s = Script(f"mprotect to and fro of a VMA with {touched} pages")
    s.map(ARENA, pages)
    if touched:
        s.write(ARENA, touched)
    with s.timed():
        for _ in range(200 if touched < 100 else 20):
            s.protect(ARENA, pages, abi.PROT_READ)
            s.protect(ARENA, pages, RW)
    return s


def protect_part(touched: int) -> Script:
    s = Script(f"mprotect that splits a VMA with {touched} pages, and merges it again")
    s.map(ARENA, 64)
    if touched:
        s.write(ARENA, touched)
    with s.timed():
        for _ in range(200):
            s.protect(ARENA + 8 * PAGE_SIZE, 8, abi.PROT_READ)
            s.protect(ARENA + 8 * PAGE_SIZE, 8, RW)
    return s


def protect_side(touched: int) -> Script:
    s = Script(f"mprotect that moves the border of two VMAs with {touched} pages")
    s.map(ARENA, 64)
    if touched:
        s.write(ARENA, touched)
    s.protect(ARENA, 8, abi.PROT_READ)
    with s.timed():
        for _ in range(200):
            s.protect(ARENA + 8 * PAGE_SIZE, 8, abi.PROT_READ)
            s.protect(ARENA + 8 * PAGE_SIZE, 8, RW)
    return s


def move(pages: int, touched: int) -> Script:
    s = Script(f"mremap to and fro of a VMA of {pages} pages, {touched} there")
    s.map(ARENA, pages)
    if touched:
        s.write(ARENA, touched)
    with s.timed():
        for _ in range(100 if touched < 100 else 20):
            s.move(ARENA, pages, AWAY)
            s.move(AWAY, pages, ARENA)
    return s


def grow(touched: int) -> Script:
    s = Script(f"mremap that grows and shrinks in place, {touched} pages there")
    s.map(ARENA, 8)
    if touched:
        s.write(ARENA, touched)
    with s.timed():
        for _ in range(200):
            s.grow(ARENA, 8, 16)
            s.grow(ARENA, 16, 8)
    return s


# Processes


def forks(s: Script, times: int = 6) -> Script:
    """Fork and exit of what `s` set up."""
    s.fork_and_exit()
    for _ in range(times):
        with s.timed():
            s.fork_and_exit()
    return s


def only_fork(s: Script, times: int = 6) -> Script:
    for _ in range(times):
        with s.timed(), s.child():
            pass
        s.wait()
    return s


def only_exit(s: Script, times: int = 6) -> Script:
    for _ in range(times):
        with s.child():
            pass
        with s.timed():
            s.wait()
    return s


def fork_vmas(vmas: int, touched: int, apart: int = 0, how: Callable[[Script], Script] = forks) -> Script:
    leaf = ", each with a leaf of its own" if apart == LEAF else ""
    s = Script(f"{_name(how)} with {vmas} VMAs, {touched} pages in each{leaf}")
    many(s, vmas, max(touched, 1), apart, touched)
    return how(s)


def fork_pages(pages: int, how: Callable[[Script], Script] = forks) -> Script:
    s = Script(f"{_name(how)} with {pages} pages in a VMA")
    s.map(ARENA, pages)
    s.write(ARENA, pages)
    return how(s)


def _name(how: Callable[[Script], Script]) -> str:
    return {"forks": "fork and exit", "only_fork": "fork", "only_exit": "exit"}[how.__name__]


def fork_in_generation(generation: int, vmas: int) -> Script:
    """A VMA of the n-th generation has n + 1 chains."""
    s = Script(f"fork and exit in generation {generation}, {vmas} VMAs")
    many(s, vmas)

    def go_down(left: int) -> None:
        if left == 0:
            forks(s)
            return
        with s.child():
            go_down(left - 1)
        s.wait()

    go_down(generation)
    return s


def fork_beside(siblings: int, vmas: int) -> Script:
    """Each interval tree has a node for each relative."""
    s = Script(f"fork and exit beside {siblings} relatives, {vmas} VMAs")
    many(s, vmas)
    for _ in range(siblings):
        with s.child(stays=True):
            pass
    return forks(s)


def copies(pages: int) -> Script:
    s = Script(f"copy on write of {pages} pages")
    s.map(ARENA, pages)
    s.write(ARENA, pages)
    with s.child(), s.timed():
        s.write(ARENA, pages)
    s.wait()
    return s


def takes_over(pages: int) -> Script:
    s = Script(f"writes to {pages} pages of which a child that is gone had a share")
    s.map(ARENA, pages)
    s.write(ARENA, pages)
    for _ in range(3):
        s.fork_and_exit()
        with s.timed():
            s.write(ARENA, pages)
    return s


def copies_of_file(pages: int) -> Script:
    s = Script(f"writes to {pages} pages of a private file mapping")
    s.map(ARENA, pages, abi.PROT_READ, FILE, 0)
    s.read(ARENA, pages)
    s.unmap(ARENA, pages)
    s.map(ARENA, pages, RW, FILE, 0)
    with s.timed():
        s.write(ARENA, pages)
    return s


def walks(relatives: int, pages: int) -> Script:
    """Reclaim of pages, without swap: MADV_FREE lets MADV_PAGEOUT unmap clean pages, which it finds by a walk
    (shrink_folio_list(), try_to_unmap()).  The pages are the first process's, and all but the youngest have copies
    by now: the walk comes to it last."""
    s = Script(f"reclaim of {pages} pages, {relatives + 1} relatives come first")
    s.map(ARENA, pages)
    s.write(ARENA, pages)
    for _ in range(relatives):
        with s.child(stays=True):
            s.write(ARENA, pages)
    with s.child():
        s.advise(ARENA, pages, abi.MADV_FREE)
        with s.timed():
            s.advise(ARENA, pages, abi.MADV_PAGEOUT)
    s.write(ARENA, pages)
    s.wait()
    return s


def reclaims(relatives: int, pages: int, rounds: int = 4) -> Script:
    """The process is the youngest of so many: its tree has its own places only, its lock is the family's."""
    s = Script(f"reclaim of {pages} pages of a process with {relatives} children")
    s.map(ARENA, pages)
    for _ in range(rounds):
        s.write(ARENA, pages)
        for _ in range(relatives):
            with s.child(stays=True):
                s.write(ARENA, pages)
        s.advise(ARENA, pages, abi.MADV_FREE)
        with s.timed():
            s.advise(ARENA, pages, abi.MADV_PAGEOUT)
    return s


FITTED: Final[tuple[Callable[[], Script], ...]] = (
    nothing,
    *(lambda n=n: map_and_unmap(n) for n in (0, 100, 1000)),
    *(lambda n=n: map_many(n) for n in (100, 1000)),
    *(lambda n=n, t=t, a=a: unmap_many(n, t, a) for n, t, a in ((500, 0, False), (500, 1, False), (500, 0, True), (500, 1, True))),
    *(lambda n=n: first_writes(n) for n in (64, 500, 4000)),
    *(lambda n=n: first_reads(n) for n in (500, 4000)),
    *(lambda n=n: writes_after_reads(n) for n in (500, 4000)),
    *(lambda n=n, a=a: first_pages_of_vmas(n, a) for n, a in ((200, 0), (1000, 0), (200, LEAF))),
    *(lambda n=n: unmap_pages(n) for n in (64, 500, 4000)),
    *(lambda n=n: drop_pages(n) for n in (64, 500)),
    *(lambda p=p, t=t: protect_all(p, t) for p, t in ((1, 0), (1, 1), (500, 500), (4000, 4000))),
    *(lambda t=t: protect_part(t) for t in (0, 64)),
    *(lambda t=t: protect_side(t) for t in (0, 64)),
    *(lambda p=p, t=t: move(p, t) for p, t in ((1, 0), (1, 1), (500, 500))),
    *(lambda t=t: grow(t) for t in (0, 8)),
    *(lambda n=n, t=t, h=h: fork_vmas(n, t, 0, h) for n, t in ((0, 0), (100, 0), (500, 0), (100, 1), (500, 1)) for h in (only_fork, only_exit)),
    *(lambda h=h: fork_vmas(100, 1, LEAF, h) for h in (only_fork, only_exit)),
    *(lambda n=n, h=h: fork_pages(n, h) for n in (500, 10000) for h in (only_fork, only_exit)),
    *(lambda g=g: fork_in_generation(g, 200) for g in (1, 3, 6)),
    *(lambda b=b: fork_beside(b, 200) for b in (4, 16)),
    *(lambda n=n: copies(n) for n in (64, 500, 4000)),
    *(lambda n=n: takes_over(n) for n in (64, 500)),
    *(lambda n=n: copies_of_file(n) for n in (64, 500)),
    *(lambda r=r: reclaims(r, 256) for r in (0, 16)),
    *(lambda r=r: walks(r, 256) for r in (1, 4, 16)),
)  # fmt: skip
