# SPDX-License-Identifier: GPL-2.0-or-later
"""The small programs: those that costs are fitted to, and those that are held out.

Each is there to tell two kinds of work apart: the same operation in several sizes, with and without pages, with pages
in one leaf of the page table or in many, with few relatives or many, alive or gone.  `FITTED` and `HELD_OUT` do not
share a shape: what is held out mixes operations as programs do (an allocator, a server, a shell), where the fitted ones
repeat one.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from random import Random
from typing import Final

from rmaplab.measure.calibration.program import ARENA, LEAF, Program
from rmaplab.mm import abi
from rmaplab.trace.events import FAULT_WRITE, Event
from rmaplab.trace.history import read_history
from rmaplab.trace.script import PAGE, READ_WRITE

AWAY: Final = 1 << 24  # pages; where moves go
FILE: Final = abi.MAP_PRIVATE | abi.MAP_FIXED


def place(number: int, pages: int = 1, apart: int = 0) -> int:
    """Where the VMA `number` of many is: a page lies between two, or each begins `apart` pages from the last."""
    return number * (apart or pages + 1)


def many(script: Program, vmas: int, pages: int = 1, apart: int = 0, touched: int = 1) -> None:
    """`vmas` VMAs, of which the first `touched` pages are written."""
    for i in range(vmas):
        script.mmap(pages, at=place(i, pages, apart))
        if touched:
            script.write(place(i, pages, apart), touched)


# System calls and accesses


def map_and_unmap(vmas: int) -> Program:
    s = Program(f"mmap and munmap of a page among {vmas} VMAs")
    many(s, vmas, touched=0)
    with s.timed():
        for _ in range(300):
            s.mmap(1, at=place(vmas + 1))
            s.munmap(place(vmas + 1), 1)
    return s


def map_many(vmas: int) -> Program:
    s = Program(f"mmap of {vmas} VMAs")
    with s.timed():
        many(s, vmas, touched=0)
    return s


def unmap_many(vmas: int, touched: int, at_once: bool) -> Program:
    s = Program(f"munmap of {vmas} VMAs {'at once' if at_once else 'one by one'}, {touched} pages in each")
    many(s, vmas, touched=touched)
    with s.timed():
        if at_once:
            s.munmap(0, 2 * vmas)
        else:
            for i in range(vmas):
                s.munmap(place(i), 1)
    return s


def first_writes(pages: int) -> Program:
    s = Program(f"first writes to {pages} pages")
    s.mmap(pages + 1, at=0)
    s.write(pages)
    with s.timed():
        s.write(0, pages)
    return s


def first_reads(pages: int) -> Program:
    s = Program(f"first reads of {pages} pages")
    s.mmap(pages, at=0)
    with s.timed():
        s.read(0, pages)
    return s


def writes_after_reads(pages: int) -> Program:
    s = Program(f"writes to {pages} pages that were read before")
    s.mmap(pages + 1, at=0)
    s.write(pages)
    s.read(0, pages)
    with s.timed():
        s.write(0, pages)
    return s


def first_pages_of_vmas(vmas: int, apart: int) -> Program:
    s = Program(f"first write to each of {vmas} VMAs{' with a leaf of its own' if apart == LEAF else ''}")
    many(s, vmas, apart=apart, touched=0)
    with s.timed():
        for i in range(vmas):
            s.write(place(i, 1, apart))
    return s


def unmap_pages(pages: int) -> Program:
    s = Program(f"munmap of a VMA with {pages} pages")
    s.warm(0, pages)
    with s.timed():
        s.munmap(0, pages)
    return s


def drop_pages(pages: int) -> Program:
    s = Program(f"MADV_DONTNEED of {pages} pages")
    s.mmap(pages, at=0)
    for _ in range(8):
        s.write(0, pages)
        with s.timed():
            s.madvise(0, pages, abi.MADV_DONTNEED)
    return s


def protect_all(pages: int, touched: int) -> Program:
    s = Program(f"mprotect to and fro of a VMA with {touched} pages")
    many(s, 1, pages, touched=touched)
    with s.timed():
        for _ in range(200 if touched < 100 else 20):
            s.mprotect(0, pages, abi.PROT_READ)
            s.mprotect(0, pages, READ_WRITE)
    return s


def _protect_inside(s: Program) -> Program:
    with s.timed():
        for _ in range(200):
            s.mprotect(8, 8, abi.PROT_READ)
            s.mprotect(8, 8, READ_WRITE)
    return s


def protect_part(touched: int) -> Program:
    s = Program(f"mprotect that splits a VMA with {touched} pages, and merges it again")
    many(s, 1, 64, touched=touched)
    return _protect_inside(s)


def protect_side(touched: int) -> Program:
    s = Program(f"mprotect that moves the border of two VMAs with {touched} pages")
    many(s, 1, 64, touched=touched)
    s.mprotect(0, 8, abi.PROT_READ)
    return _protect_inside(s)


def move(pages: int, touched: int) -> Program:
    s = Program(f"mremap to and fro of a VMA of {pages} pages, {touched} there")
    many(s, 1, pages, touched=touched)
    with s.timed():
        for _ in range(100 if touched < 100 else 20):
            s.mremap(0, pages, to=AWAY)
            s.mremap(AWAY, pages, to=0)
    return s


def grow(touched: int) -> Program:
    s = Program(f"mremap that grows and shrinks in place, {touched} pages there")
    many(s, 1, 8, touched=touched)
    with s.timed():
        for _ in range(200):
            s.mremap(0, 8, 16, flags=0)
            s.mremap(0, 16, 8, flags=0)
    return s


# Processes


def forks(s: Program, times: int = 6) -> Program:
    """Fork and exit of what `s` set up."""
    s.fork_and_exit()
    for _ in range(times):
        with s.timed():
            s.fork_and_exit()
    return s


def only_fork(s: Program, times: int = 6) -> Program:
    for _ in range(times):
        with s.timed(), s.child():
            pass
        s.wait()
    return s


def only_exit(s: Program, times: int = 6) -> Program:
    for _ in range(times):
        with s.child():
            pass
        with s.timed():
            s.wait()
    return s


def fork_vmas(vmas: int, touched: int, apart: int = 0, how: Callable[[Program], Program] = forks) -> Program:
    leaf = ", each with a leaf of its own" if apart == LEAF else ""
    s = Program(f"{_name(how)} with {vmas} VMAs, {touched} pages in each{leaf}")
    many(s, vmas, max(touched, 1), apart, touched)
    return how(s)


def fork_pages(pages: int, how: Callable[[Program], Program] = forks) -> Program:
    s = Program(f"{_name(how)} with {pages} pages in a VMA")
    s.warm(0, pages)
    return how(s)


def _name(how: Callable[[Program], Program]) -> str:
    return {"forks": "fork and exit", "only_fork": "fork", "only_exit": "exit"}[how.__name__]


def fork_in_generation(generation: int, vmas: int, how: Callable[[Program], Program] = forks) -> Program:
    """A VMA of the n-th generation has n + 1 chains."""
    s = Program(f"{_name(how)} in generation {generation}, {vmas} VMAs")
    many(s, vmas)

    def go_down(left: int) -> None:
        if left == 0:
            how(s)
            return
        with s.child():
            go_down(left - 1)
        s.wait()

    go_down(generation)
    return s


def fork_beside(siblings: int, vmas: int, how: Callable[[Program], Program] = forks) -> Program:
    """Each interval tree has a node for each relative."""
    s = Program(f"{_name(how)} beside {siblings} relatives, {vmas} VMAs")
    many(s, vmas)
    for _ in range(siblings):
        with s.child(stays=True):
            pass
    return how(s)


def copies(pages: int) -> Program:
    s = Program(f"copy on write of {pages} pages")
    s.warm(0, pages)
    with s.child(), s.timed():
        s.write(0, pages)
    s.wait()
    return s


def takes_over(pages: int) -> Program:
    s = Program(f"writes to {pages} pages of which a child that is gone had a share")
    s.warm(0, pages)
    for _ in range(3):
        s.fork_and_exit()
        with s.timed():
            s.write(0, pages)
    return s


def copies_of_file(pages: int) -> Program:
    s = Program(f"writes to {pages} pages of a private file mapping")
    s.mmap(pages, 0, abi.PROT_READ, FILE, 0)
    s.read(0, pages)
    s.munmap(0, pages)
    s.mmap(pages, 0, READ_WRITE, FILE, 0)
    with s.timed():
        s.write(0, pages)
    return s


def walks(relatives: int, pages: int) -> Program:
    """Reclaim of pages, without swap: MADV_FREE lets MADV_PAGEOUT unmap clean pages, which it finds by a walk
    (shrink_folio_list(), try_to_unmap()).  The pages are the first process's, and all but the youngest have copies
    by now: the walk comes to it last."""
    s = Program(f"reclaim of {pages} pages, {relatives + 1} relatives come first")
    s.warm(0, pages)
    for _ in range(relatives):
        with s.child(stays=True):
            s.write(0, pages)
    with s.child():
        s.madvise(0, pages, abi.MADV_FREE)
        with s.timed():
            s.madvise(0, pages, abi.MADV_PAGEOUT)
    s.write(0, pages)
    s.wait()
    return s


def reclaims(relatives: int, pages: int, rounds: int = 4) -> Program:
    """The process is the youngest of so many: its tree has its own places only, its lock is the family's."""
    s = Program(f"reclaim of {pages} pages of a process with {relatives} children")
    s.mmap(pages, at=0)
    for _ in range(rounds):
        s.write(0, pages)
        for _ in range(relatives):
            with s.child(stays=True):
                s.write(0, pages)
        s.madvise(0, pages, abi.MADV_FREE)
        with s.timed():
            s.madvise(0, pages, abi.MADV_PAGEOUT)
    return s


def reclaims_shared(sharing: int, copied: int, pages: int, apart: bool = False) -> Program:
    """Reclaim of pages that so many of a process's children share with it, while others have copies.  Who shares comes
    last, so that no walk ends before.  `apart`: each page in a VMA of its own, so that a walk has to look for it."""
    how = ", a VMA for each" if apart else ""
    s = Program(f"reclaim of {pages} pages that {sharing} children share and {copied} have copied{how}")
    s.warm(0, pages + 1)
    if apart:
        for i in range(0, pages, 2):
            s.mprotect(i, 1, abi.PROT_READ)
    s.madvise(0, pages, abi.MADV_FREE)
    for _ in range(copied):
        with s.child(stays=True):
            s.write(0, pages)
    for _ in range(sharing):
        with s.child(stays=True):
            pass
    with s.timed():
        s.reclaim(0, pages)
    return s


FITTED: Final[tuple[Callable[[], Program], ...]] = (
    *(lambda n=n: map_and_unmap(n) for n in (0, 100, 1000)),
    *(lambda n=n: map_many(n) for n in (100, 1000)),
    *(lambda t=t, a=a: unmap_many(500, t, a) for t in (0, 1) for a in (False, True)),
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
    *(
        lambda n=n, t=t, h=h: fork_vmas(n, t, 0, h)
        for n, t in ((0, 0), (100, 0), (500, 0), (100, 1), (500, 1))
        for h in (only_fork, only_exit)
    ),
    *(lambda h=h: fork_vmas(100, 1, LEAF, h) for h in (only_fork, only_exit)),
    *(lambda n=n, h=h: fork_pages(n, h) for n in (500, 10000) for h in (only_fork, only_exit)),
    *(lambda g=g, h=h: fork_in_generation(g, 200, h) for g in (1, 3, 6) for h in (only_fork, only_exit)),
    *(lambda b=b, h=h: fork_beside(b, 200, h) for b in (4, 16) for h in (only_fork, only_exit)),
    *(lambda n=n: copies(n) for n in (64, 500, 4000)),
    *(lambda n=n: takes_over(n) for n in (64, 500)),
    *(lambda n=n: copies_of_file(n) for n in (64, 500)),
    *(lambda r=r: reclaims(r, 256) for r in (0, 16)),
    *(lambda r=r: walks(r, 256) for r in (1, 4, 16)),
    *(lambda n=n: reclaims_shared(n, 0, 500) for n in (0, 8, 64)),
    *(lambda n=n: reclaims_shared(1, n, 500) for n in (8, 64)),
    *(lambda n=n: reclaims_shared(n, 0, 2000, True) for n in (0, 4)),
)  # fmt: skip


# Held out: programs as programs are


def fork_loop() -> Program:
    """A process forks again and again; child and parent each write to a part of what they share."""
    s = Program("fork loop with copy on write")
    random = Random(1)
    many(s, 20, 32, touched=32)
    with s.timed():
        for _ in range(6):
            with s.child():
                for i in range(0, 20, 2):
                    s.write(place(i, 32), 8)
            for i in random.sample(range(20), 4):
                s.write(place(i, 32) + 16, 12)
            s.wait()
    return s


def allocator() -> Program:
    """Blocks of all sizes come and go, some are trimmed, some grow."""
    s = Program("allocator")
    random = Random(2)
    room = 256
    live: dict[int, int] = {}
    with s.timed():
        for number in range(300):
            addr = number * room
            pages = random.choice((1, 2, 4, 4, 8, 16, 33, 64))
            s.mmap(pages, at=addr)
            s.write(addr, max(1, pages * random.randint(1, 4) // 4))
            live[addr] = pages
            if random.random() < 0.3:
                grown = random.choice(sorted(live))
                if live[grown] < 64:
                    s.mremap(grown, live[grown], 2 * live[grown], flags=0)
                    live[grown] *= 2
                    s.write(grown, live[grown])
            if random.random() < 0.2:
                trimmed = random.choice(sorted(live))
                s.madvise(trimmed, live[trimmed], abi.MADV_DONTNEED)
            while len(live) > 40:
                gone = random.choice(sorted(live))
                s.munmap(gone, live.pop(gone))
    return s


def realloc() -> Program:
    """An array doubles where there is no room for it, so that it moves."""
    s = Program("growing array")
    with s.timed():
        for turn in range(12):
            addr, pages = turn * (1 << 14), 4
            s.warm(addr, pages)
            while pages < 512:
                to = addr + (1 << 11)
                s.mremap(addr, pages, 2 * pages, to=to)
                s.write(to + pages, pages)
                addr, pages = to, 2 * pages
            s.munmap(addr, pages)
    return s


def server() -> Program:
    """Workers of a server serve a few requests each."""
    s = Program("prefork server")
    random = Random(3)
    many(s, 40, 16, touched=16)
    with s.timed():
        for _ in range(6):
            with s.child():
                for _ in range(20):
                    s.read(place(random.randrange(40), 16), 3)
                    s.write(place(random.randrange(40), 16) + random.randrange(14), 2)
                    s.warm(AWAY, 8)
                    s.munmap(AWAY, 8)
            s.wait()
    return s


def shell() -> Program:
    """Children that throw their memory away, as execve does, and load a program: map it, protect it, use it."""
    s = Program("shell")
    many(s, 30, 8, touched=4)
    with s.timed():
        for _ in range(6):
            with s.child():
                s.munmap(0, 30 * 9)
                for library in range(4):
                    at = AWAY + library * LEAF
                    s.mmap(64, at, abi.PROT_READ, FILE, 0)
                    s.mmap(16, at + 16, READ_WRITE, FILE, 0, 16)
                    s.mmap(16, at + 32, READ_WRITE)
                    s.write(at + 16, 6)
                    s.write(at + 32, 3)
                    s.mprotect(at + 16, 4, abi.PROT_READ)
                s.mmap(64, at=0)
                s.write(0, 40)
            s.wait()
    return s


def threads() -> Program:
    """Stacks of threads: reserved, guarded, used a little, given back."""
    s = Program("stacks of threads")
    stack = 32 * LEAF // 4
    with s.timed():
        for turn in range(5):
            for thread in range(16):
                at = thread * stack
                s.mmap(2048, at, abi.PROT_NONE)
                s.mprotect(at + 1, 2047, READ_WRITE)
                s.write(at + 2040, 3 + turn)
            for thread in range(16):
                s.munmap(thread * stack, 2048)
    return s


def collector() -> Program:
    """A garbage collector guards blocks, opens those that are used, and drops others."""
    s = Program("garbage collector")
    random = Random(4)
    s.warm(0, 1024)
    with s.timed():
        for _ in range(4):
            s.mprotect(0, 1024, abi.PROT_READ)
            for block in random.sample(range(64), 24):
                s.mprotect(block * 16, 16, READ_WRITE)
                s.write(block * 16, 16)
            for block in random.sample(range(64), 8):
                s.madvise(block * 16, 16, abi.MADV_DONTNEED)
            s.mprotect(0, 1024, READ_WRITE)
            s.write(0, 1024)
    return s


def zygote() -> Program:
    """Apps live on while others start, copy, lose a part of what they inherited, and end."""
    s = Program("zygote")
    many(s, 80, 4, touched=4)
    for _ in range(5):
        with s.child(stays=True):
            for i in range(0, 80, 3):
                s.write(place(i, 4), 2)
    with s.timed():
        for turn in range(4):
            with s.child():
                for i in range(turn, 80, 5):
                    s.write(place(i, 4), 4)
                for i in range(0, 80, 16):
                    s.munmap(place(i, 4), 2)
                with s.child():
                    s.write(place(7, 4), 4)
                s.wait()
            s.wait()
    return s


def cold_memory() -> Program:
    """Pages that their owner does not want are reclaimed in the midst of its relatives."""
    s = Program("reclaim among relatives")
    s.warm(0, 512)
    for _ in range(6):
        with s.child(stays=True):
            s.write(0, 400)
    with s.child(), s.timed():
        s.write(0, 300)
        s.madvise(0, 300, abi.MADV_FREE)
        s.madvise(0, 300, abi.MADV_PAGEOUT)
        s.write(0, 100)
    s.wait()
    return s


def shared_cold_memory() -> Program:
    """Memory is short where a server's workers share most of what it had loaded."""
    s = Program("reclaim of what workers share")
    s.warm(0, 300)
    s.madvise(0, 300, abi.MADV_FREE)
    for worker in range(20):
        with s.child(stays=True):
            s.write(worker % 3 * 100, 80)
    with s.timed():
        s.reclaim(0, 300)
        s.write(0, 50)
    return s


def example() -> Program:
    """The recording of rmaplab.example that comes with rmaplab, but for its stack: a Python that starts, then forks,
    copies, splits, moves and grows."""
    with resources.as_file(resources.files("rmaplab") / "data/recordings/example.parquet") as path:
        history = read_history(path)
    s = Program("rmaplab.example, as it was recorded")
    with s.timed():
        Retelling(s, list(history)).tell()
    return s


class Retelling:
    """A recorded history in which every child ends before its parent goes on, told as a script.

    Left out are the stack and the vDSO (player.c has its own) and what is shared; the heap is mapped and unmapped
    where brk(2) moved its end.
    """

    def __init__(self, script: Program, events: list[Event]) -> None:
        first = events[0]
        self._script: Final = script
        self._first: Final = first.pid
        self._events: Final[dict[int, list[Event]]] = {}
        self._left_out: Final = [range(first.addr - (8 << 20), first.addr + first.length)]
        self._brk: Final = {first.pid: first.addr2}
        for event in events:
            self._events.setdefault(event.pid, []).append(event)

    def tell(self) -> None:
        self._tell(self._first)

    def _tell(self, pid: int) -> None:
        for event in self._events[pid]:
            if event.op == "fork":
                self._brk[event.pid2] = self._brk[pid]
                with self._script.child():
                    self._tell(event.pid2)
                self._script.wait()
            elif event.op == "mmap" and (event.flags & abi.MAP_SHARED or event.file > 1):
                self._left_out.append(range(event.result, event.result + event.length))
            elif event.result >= 0 and not any(event.addr in there for there in self._left_out):
                self._do(event)

    def _do(self, e: Event) -> None:
        s, pages, at = self._script, _pages(e.length), (e.addr - ARENA) // PAGE
        if e.op == "mmap":
            there, flags = (e.result - ARENA) // PAGE, e.flags & ~abi.MAP_GROWSDOWN | abi.MAP_FIXED
            s.mmap(pages, there, e.prot & 7, flags, min(e.file, 0), e.offset // PAGE)
        elif e.op == "munmap":
            s.munmap(at, pages)
        elif e.op == "mprotect":
            s.mprotect(at, pages, e.prot)
        elif e.op == "mremap":
            to = (e.result - ARENA) // PAGE
            s.mremap(at, pages, _pages(e.length2), **({"flags": 0} if to == at else {"to": to}))
        elif e.op == "fault":
            (s.write if e.flags & FAULT_WRITE else s.read)(at, max(pages, 1))
        elif e.op == "brk" and e.result:
            old, new = (_pages(end - ARENA) for end in (self._brk[e.pid], e.result))
            self._brk[e.pid] = e.result
            if new > old:
                s.mmap(new - old, at=old)
            elif new < old:
                s.munmap(new, old - new)


def _pages(length: int) -> int:
    """Bytes as pages, rounded up."""
    return -(-length // PAGE)


HELD_OUT: Final[tuple[Callable[[], Program], ...]] = (
    fork_loop, allocator, realloc, server, shell, threads, collector, zygote, cold_memory, shared_cold_memory, example,
)  # fmt: skip
