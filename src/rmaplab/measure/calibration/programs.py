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

from rmaplab.measure.calibration.script import ARENA, LEAF, RW, Script
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


def fork_in_generation(generation: int, vmas: int, how: Callable[[Script], Script] = forks) -> Script:
    """A VMA of the n-th generation has n + 1 chains."""
    s = Script(f"{_name(how)} in generation {generation}, {vmas} VMAs")
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


def fork_beside(siblings: int, vmas: int, how: Callable[[Script], Script] = forks) -> Script:
    """Each interval tree has a node for each relative."""
    s = Script(f"{_name(how)} beside {siblings} relatives, {vmas} VMAs")
    many(s, vmas)
    for _ in range(siblings):
        with s.child(stays=True):
            pass
    return how(s)


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


def reclaims_shared(sharing: int, copied: int, pages: int, apart: bool = False) -> Script:
    """Reclaim of pages that so many of a process's children share with it, while others have copies.  Who shares comes
    last, so that no walk ends before.  `apart`: each page in a VMA of its own, so that a walk has to look for it."""
    how = ", a VMA for each" if apart else ""
    s = Script(f"reclaim of {pages} pages that {sharing} children share and {copied} have copied{how}")
    s.map(ARENA, pages + 1)
    s.write(ARENA, pages + 1)
    if apart:
        for i in range(0, pages, 2):
            s.protect(ARENA + i * PAGE_SIZE, 1, abi.PROT_READ)
    s.advise(ARENA, pages, abi.MADV_FREE)
    for _ in range(copied):
        with s.child(stays=True):
            s.write(ARENA, pages)
    for _ in range(sharing):
        with s.child(stays=True):
            pass
    with s.timed():
        s.reclaim(ARENA, pages)
    return s


FITTED: Final[tuple[Callable[[], Script], ...]] = (
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


def fork_loop() -> Script:
    """A process forks again and again; child and parent each write to a part of what they share."""
    s = Script("fork loop with copy on write")
    random = Random(1)
    many(s, 20, 32, touched=32)
    with s.timed():
        for _ in range(6):
            with s.child():
                for i in range(0, 20, 2):
                    s.write(place(i, 32), 8)
            for i in random.sample(range(20), 4):
                s.write(place(i, 32) + 16 * PAGE_SIZE, 12)
            s.wait()
    return s


def allocator() -> Script:
    """Blocks of all sizes come and go, some are trimmed, some grow."""
    s = Script("allocator")
    random = Random(2)
    room = 256 * PAGE_SIZE
    live: dict[int, int] = {}
    with s.timed():
        for number in range(300):
            addr = ARENA + number * room
            pages = random.choice((1, 2, 4, 4, 8, 16, 33, 64))
            s.map(addr, pages)
            s.write(addr, max(1, pages * random.randint(1, 4) // 4))
            live[addr] = pages
            if random.random() < 0.3:
                grown = random.choice(sorted(live))
                if live[grown] < 64:
                    s.grow(grown, live[grown], 2 * live[grown])
                    live[grown] *= 2
                    s.write(grown, live[grown])
            if random.random() < 0.2:
                trimmed = random.choice(sorted(live))
                s.advise(trimmed, live[trimmed], abi.MADV_DONTNEED)
            while len(live) > 40:
                gone = random.choice(sorted(live))
                s.unmap(gone, live.pop(gone))
    return s


def realloc() -> Script:
    """An array doubles where there is no room for it, so that it moves."""
    s = Script("growing array")
    with s.timed():
        for turn in range(12):
            addr, pages = ARENA + turn * (1 << 26), 4
            s.map(addr, pages)
            s.write(addr, pages)
            while pages < 512:
                to = addr + (1 << 23)
                s.remap(addr, pages, 2 * pages, abi.MREMAP_MAYMOVE | abi.MREMAP_FIXED, to, to)
                s.write(to + pages * PAGE_SIZE, pages)
                addr, pages = to, 2 * pages
            s.unmap(addr, pages)
    return s


def server() -> Script:
    """Workers of a server serve a few requests each."""
    s = Script("prefork server")
    random = Random(3)
    many(s, 40, 16, touched=16)
    with s.timed():
        for _ in range(6):
            with s.child():
                for _ in range(20):
                    s.read(place(random.randrange(40), 16), 3)
                    s.write(place(random.randrange(40), 16) + random.randrange(14) * PAGE_SIZE, 2)
                    s.map(AWAY, 8)
                    s.write(AWAY, 8)
                    s.unmap(AWAY, 8)
            s.wait()
    return s


def shell() -> Script:
    """Children that throw their memory away, as execve does, and load a program: map it, protect it, use it."""
    s = Script("shell")
    many(s, 30, 8, touched=4)
    with s.timed():
        for _ in range(6):
            with s.child():
                s.unmap(ARENA, 30 * 9)
                for library in range(4):
                    at = AWAY + library * LEAF
                    s.map(at, 64, abi.PROT_READ, FILE, 0)
                    s.map(at + 16 * PAGE_SIZE, 16, RW, FILE, 0, 16 * PAGE_SIZE)
                    s.map(at + 32 * PAGE_SIZE, 16, RW)
                    s.write(at + 16 * PAGE_SIZE, 6)
                    s.write(at + 32 * PAGE_SIZE, 3)
                    s.protect(at + 16 * PAGE_SIZE, 4, abi.PROT_READ)
                s.map(ARENA, 64)
                s.write(ARENA, 40)
            s.wait()
    return s


def threads() -> Script:
    """Stacks of threads: reserved, guarded, used a little, given back."""
    s = Script("stacks of threads")
    stack = 32 * LEAF // 4
    with s.timed():
        for turn in range(5):
            for thread in range(16):
                at = ARENA + thread * stack
                s.map(at, 2048, abi.PROT_NONE)
                s.protect(at + PAGE_SIZE, 2047, RW)
                s.write(at + 2040 * PAGE_SIZE, 3 + turn)
            for thread in range(16):
                s.unmap(ARENA + thread * stack, 2048)
    return s


def collector() -> Script:
    """A garbage collector guards blocks, opens those that are used, and drops others."""
    s = Script("garbage collector")
    random = Random(4)
    s.map(ARENA, 1024)
    s.write(ARENA, 1024)
    with s.timed():
        for _ in range(4):
            s.protect(ARENA, 1024, abi.PROT_READ)
            for block in random.sample(range(64), 24):
                s.protect(ARENA + block * 16 * PAGE_SIZE, 16, RW)
                s.write(ARENA + block * 16 * PAGE_SIZE, 16)
            for block in random.sample(range(64), 8):
                s.advise(ARENA + block * 16 * PAGE_SIZE, 16, abi.MADV_DONTNEED)
            s.protect(ARENA, 1024, RW)
            s.write(ARENA, 1024)
    return s


def zygote() -> Script:
    """Apps live on while others start, copy, lose a part of what they inherited, and end."""
    s = Script("zygote")
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
                    s.unmap(place(i, 4), 2)
                with s.child():
                    s.write(place(7, 4), 4)
                s.wait()
            s.wait()
    return s


def cold_memory() -> Script:
    """Pages that their owner does not want are reclaimed in the midst of its relatives."""
    s = Script("reclaim among relatives")
    s.map(ARENA, 512)
    s.write(ARENA, 512)
    for _ in range(6):
        with s.child(stays=True):
            s.write(ARENA, 400)
    with s.child(), s.timed():
        s.write(ARENA, 300)
        s.advise(ARENA, 300, abi.MADV_FREE)
        s.advise(ARENA, 300, abi.MADV_PAGEOUT)
        s.write(ARENA, 100)
    s.wait()
    return s


def shared_cold_memory() -> Script:
    """Memory is short where a server's workers share most of what it had loaded."""
    s = Script("reclaim of what workers share")
    s.map(ARENA, 300)
    s.write(ARENA, 300)
    s.advise(ARENA, 300, abi.MADV_FREE)
    for worker in range(20):
        with s.child(stays=True):
            s.write(ARENA + worker % 3 * 100 * PAGE_SIZE, 80)
    with s.timed():
        s.reclaim(ARENA, 300)
        s.write(ARENA, 50)
    return s


def example() -> Script:
    """The recording of rmaplab.example that comes with rmaplab, but for its stack: a Python that starts, then forks,
    copies, splits, moves and grows."""
    with resources.as_file(resources.files("rmaplab") / "data/recordings/example.parquet") as path:
        history = read_history(path)
    s = Script("rmaplab.example, as it was recorded")
    with s.timed():
        Retelling(s, list(history)).tell()
    return s


class Retelling:
    """A recorded history in which every child ends before its parent goes on, told as a script.

    Left out are the stack and the vDSO (player.c has its own) and what is shared; the heap is mapped and unmapped
    where brk(2) moved its end.
    """

    def __init__(self, script: Script, events: list[Event]) -> None:
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
        s, pages = self._script, -(-e.length // PAGE_SIZE)
        if e.op == "mmap":
            s.map(e.result, pages, e.prot & 7, e.flags & ~abi.MAP_GROWSDOWN, min(e.file, 0), e.offset)
        elif e.op == "munmap":
            s.unmap(e.addr, pages)
        elif e.op == "mprotect":
            s.protect(e.addr, pages, e.prot)
        elif e.op == "mremap":
            to = e.result
            fixed = 0 if to == e.addr else abi.MREMAP_MAYMOVE | abi.MREMAP_FIXED
            s.remap(e.addr, pages, -(-e.length2 // PAGE_SIZE), fixed, to if fixed else 0, to)
        elif e.op == "fault":
            (s.write if e.flags & FAULT_WRITE else s.read)(e.addr & ~(PAGE_SIZE - 1), max(pages, 1))
        elif e.op == "brk" and e.result:
            old, new = (-(-end // PAGE_SIZE) * PAGE_SIZE for end in (self._brk[e.pid], e.result))
            self._brk[e.pid] = e.result
            if new > old:
                s.map(old, (new - old) // PAGE_SIZE)
            elif new < old:
                s.unmap(new, (old - new) // PAGE_SIZE)


HELD_OUT: Final[tuple[Callable[[], Script], ...]] = (
    fork_loop, allocator, realloc, server, shell, threads, collector, zygote, cold_memory, shared_cold_memory, example,
)  # fmt: skip
