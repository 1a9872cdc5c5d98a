# SPDX-License-Identifier: GPL-2.0-or-later
"""Random histories that are hard on a reverse map.

`Author` writes one event after the other, looking at a machine that plays them, so that it can aim: at the
boundaries of VMAs, at places from which something was moved away, at pages that two processes share.  All
of it happens in few pages, because bugs live where offsets meet again:

- every address lies in an arena of `pages` pages, every file offset stands for an address of it, and the
  page offset of each stack does, too, so that page offsets of unlike origin collide;
- moves go to places that were left earlier, and come back;
- lengths are a few pages, so that ranges cut VMAs, span several, and end beyond them;
- processes fork, and forks fork, while few pages are shared by many.

An author with the same random numbers and the same machine writes the same history.  Its events carry the
result that its machine gave.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Final, TypeVar

import msgspec

from rmaplab.mm import abi
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import PTE_ANON, PTE_EXCLUSIVE
from rmaplab.mm.vma import (
    PAGE_SHIFT,
    PAGE_SIZE,
    TASK_SIZE,
    VM_ACCESS_FLAGS,
    VM_MERGEABLE,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    VMA,
)
from rmaplab.trace.events import FAULT_WRITE, Event
from rmaplab.trace.history import FileEntry, Header
from rmaplab.trace.play import Player

ARENA: Final = 0x10_001E_8000  # the 24th page begins another leaf of page tables
_STACK: Final = ARENA - (600 << PAGE_SHIFT)
_LOWEST: Final = ARENA - (1000 << PAGE_SHIFT)
FILES: Final = (FileEntry(0, "file"), FileEntry(1, "shmem"))

_RW: Final = abi.PROT_READ | abi.PROT_WRITE
_PROTS: Final = (_RW, _RW, _RW, _RW, abi.PROT_READ, abi.PROT_NONE, _RW | abi.PROT_EXEC, abi.PROT_WRITE)
_ANON: Final = abi.MAP_PRIVATE | abi.MAP_ANONYMOUS
ADVICE: Final = (
    abi.MADV_DONTNEED, abi.MADV_DONTNEED, abi.MADV_FREE, abi.MADV_DONTFORK, abi.MADV_DOFORK, abi.MADV_WIPEONFORK,
    abi.MADV_KEEPONFORK, abi.MADV_POPULATE_READ, abi.MADV_POPULATE_WRITE, abi.MADV_MERGEABLE,
    abi.MADV_UNMERGEABLE, abi.MADV_RANDOM, abi.MADV_NORMAL, abi.MADV_DONTDUMP, abi.MADV_DODUMP, abi.MADV_COLD,
    abi.MADV_PAGEOUT, abi.MADV_WILLNEED, abi.MADV_NOHUGEPAGE, 99,
)  # fmt: skip



class Flags(msgspec.Struct, frozen=True):
    """What an author gives to system calls.

    prots:  for mmap and mprotect
    advice: for madvise
    mmap:   what is turned round in the flags of mmap, each with its share
    """

    prots: tuple[int, ...] = _PROTS
    advice: tuple[int, ...] = ADVICE
    mmap: tuple[tuple[int, float], ...] = (
        (abi.MAP_GROWSDOWN, 0.04), (abi.MAP_POPULATE, 0.08), (abi.MAP_LOCKED, 0.03), (abi.MAP_NORESERVE, 0.03),
        (abi.MAP_STACK, 0.02),
    )  # fmt: skip


USUAL: Final = Flags()
# Also those that decide little, and those that fail.
EVERY_FLAG: Final = Flags(
    (*_PROTS, *_PROTS, _RW | abi.PROT_SEM, _RW | abi.PROT_GROWSDOWN, _RW | abi.PROT_GROWSUP),
    (*ADVICE, *ADVICE, abi.MADV_DONTNEED_LOCKED, abi.MADV_SEQUENTIAL, abi.MADV_HUGEPAGE, abi.MADV_REMOVE,
     abi.MADV_COLLAPSE),
    (*USUAL.mmap, (abi.MAP_NONBLOCK, 0.02), (abi.MAP_PRIVATE ^ abi.MAP_DROPPABLE, 0.08),
     (abi.MAP_SHARED ^ abi.MAP_SHARED_VALIDATE, 0.04)),
)  # fmt: skip

# How often each operation is tried; what an arena of few pages turns into depends on it: mappings have
# to live long enough to be forked and moved, and processes to be many but mortal.
_WEIGHTS: Final = {
    "mmap": 14, "munmap": 6, "mprotect": 8, "madvise": 6, "mlock": 2, "munlock": 2, "mlockall": 1,
    "munlockall": 1, "mremap": 18, "brk": 2, "name": 2, "fault": 30, "fork": 6, "exit": 4, "exec": 1,
    "swap_out": 5, "migrate": 3, "referenced": 1, "ksm": 5, "uffd_move": 4,
}  # fmt: skip
OPERATIONS: Final = tuple(_WEIGHTS)

# A result with which the player asks the machine for everything: where a mapping goes, whether a page can
# be touched.
_UNKNOWN: Final = -abi.EFAULT


_LENGTHS: Final = (1, 1, 2, 2, 3, 4, 6, 9)  # of ranges, in an arena of up to ...
_PAGES: Final = 48  # ... so many pages; in larger ones they are longer, so that as much of it is used
_TRIES: Final = 16  # at a page that is as wanted

_T = TypeVar("_T")


class Dice:
    """Random numbers at little cost: choices take most of an author's time.

    rng: whose `random` decides, and nothing else of it
    """

    def __init__(self, rng: random.Random) -> None:
        self.random: Final = rng.random

    def choice(self, of: Sequence[_T]) -> _T:
        """One of `of`, which is not empty."""
        return of[int(self.random() * len(of))]

    def randrange(self, start: int, stop: int | None = None) -> int:
        """A number from `start` up to below `stop`, or below `start` and not below 0."""
        if stop is None:
            return int(self.random() * start)
        return start + int(self.random() * (stop - start))


# Of which system calls an argument can be odd, and which.
ODD_FIELDS: Final = {
    **dict.fromkeys(("munmap", "mprotect", "madvise", "mlock", "munlock", "name"), ("addr", "length")),
    "mmap": ("addr", "length", "offset"), "mremap": ("addr", "length", "addr2", "length2"), "brk": ("addr",),
}  # fmt: skip


def make_odd(event: Event, dice: random.Random) -> None:
    """Let an address or a length, or two, be what few programs would give, and mremap() have any flags."""
    fields = ODD_FIELDS[event.op]
    for field in dice.sample(fields, min(len(fields), dice.choice((1, 1, 2)))):
        value: int = getattr(event, field)
        end = 1 << 64
        nothing = 0 if field.startswith("length") else value - 1  # who may map what lies at 0?
        odd = [nothing, value + 1, value + 0xFFF, value | 1 << 63, end - PAGE_SIZE, end - 1]
        if field != "offset":  # what lies behind a file's end is not the machine's
            odd += [1, value + PAGE_SIZE, TASK_SIZE, TASK_SIZE + PAGE_SIZE, event.addr]
        setattr(event, field, dice.choice(odd) % end)
    if event.op == "mremap" and dice.random() < 0.3:
        event.flags ^= 1 << dice.randrange(4)


def header() -> Header:
    """A header for histories of an `Author`."""
    return Header(recorder="random", files=list(FILES), names=["", "heap", "stack"])


class Author:
    """Writes a history, one event at a time, and plays it on `machine`.

    ops:       operations to choose among
    pages:     size of the arena
    processes: at most so many live at once
    choices:   the flags
    sharing:   the share of forks that share the address space (CLONE_VM)
    homing:    the share of events that bring pages back to where their page offset says, beside memory that nobody has
               touched yet: what chance alone does not meet in 50,000 steps.  0 draws no number for it
    """

    def __init__(
        self,
        machine: Machine,
        rng: random.Random,
        ops: Sequence[str] = OPERATIONS,
        pages: int = 48,
        processes: int = 6,
        choices: Flags = USUAL,
        sharing: float = 0.1,
        homing: float = 0.0,
    ) -> None:
        unknown = set(ops) - set(_WEIGHTS)
        if unknown:
            raise HistoryError(f"an author cannot write {sorted(unknown)}; known are {sorted(_WEIGHTS)}")
        self.machine = machine
        self.player = Player(machine, header(), batch=False)
        self._rng = Dice(rng)
        self._ops = tuple(ops)
        self._weights = list(accumulate(_WEIGHTS[op] for op in ops))
        self._pages = pages
        self._scale = max(1, pages // _PAGES)
        self._processes = processes
        self._choices = choices
        self._sharing = sharing
        self._homing = homing
        self._left: list[int] = [ARENA]  # places that something was moved or unmapped from
        self._next_pid = 1
        self._heap = ARENA + ((pages + 600) << PAGE_SHIFT)
        self._writers: dict[str, Callable[[int], Event | None]] = {
            "mmap": self._mmap, "munmap": self._munmap, "mprotect": self._mprotect, "madvise": self._madvise,
            "mlock": self._mlock, "munlock": self._munlock, "mlockall": self._mlockall,
            "munlockall": self._munlockall, "mremap": self._mremap, "brk": self._brk, "name": self._name,
            "fault": self._fault, "fork": self._fork, "exit": self._exit, "exec": self._exec,
            "swap_out": self._reclaim, "migrate": self._reclaim, "referenced": self._reclaim,
            "ksm": self._ksm, "uffd_move": self._uffd_move,
        }  # fmt: skip

    def begin(self, event: Event | None = None) -> Event:
        """The first event: a process, or `event`, which starts process 1."""
        first = self.first()
        return self.play(first if event is None else event)

    def first(self) -> Event:
        """The first event, not played."""
        return self._new_process(self._take_pid())

    def next(self) -> Event:
        """One more event, played, with its result."""
        while True:
            event = self.propose()
            if event is not None:
                return self.play(event)

    def propose(self) -> Event | None:
        """One more event, not played; None if what was chosen cannot be done now.  Reclaim's writer leaves
        the operation open."""
        op = self._ops[bisect(self._weights, self._rng.random() * self._weights[-1])]
        pid = self._rng.choice(list(self.machine.processes))  # in the order in which they began
        event = self._homecoming(pid) if self._homing and self._rng.random() < self._homing else None
        if event is None:
            event = self._writers[op](pid)
        if event is not None and not event.op:
            event.op = op
        return event

    def proposals(self, steps: int) -> Iterator[Event]:
        """So many events, each of which is to be played before the next is asked for."""
        yield self.first()
        while steps > 1:
            event = self.propose()
            if event is not None:
                steps -= 1
                yield event

    def play(self, event: Event) -> Event:
        """Play what was proposed, and give it its result."""
        event.result = 0 if event.op == "fault" and event.length > PAGE_SIZE else _UNKNOWN
        event.result = self.player.do(event)
        return event

    # Where

    def _vmas(self, pid: int) -> list[VMA]:
        return self.machine.mm_of(pid).tree.overlapping(_LOWEST, self._heap + (16 << PAGE_SHIFT))

    def _addr(self) -> int:
        """Any page of the arena; rather one that something left."""
        if self._rng.random() < 0.5:
            return self._rng.choice(self._left[-8:])
        return ARENA + (self._rng.randrange(self._pages) << PAGE_SHIFT)

    def _length(self) -> int:
        return self._rng.choice(_LENGTHS) * self._scale << PAGE_SHIFT

    def _range(self, pid: int) -> tuple[int, int]:
        """address, length: as a VMA has them, or cutting it, or beyond it, or anywhere."""
        rng = self._rng
        vmas = self._vmas(pid)
        if not vmas or rng.random() < 0.15:
            return self._addr(), self._length()
        i = rng.randrange(len(vmas))
        start, end = vmas[i].start, vmas[i].end
        how = rng.random()
        if how < 0.3:
            return start, end - start
        if how < 0.45 and i + 1 < len(vmas):
            end = vmas[i + 1].end if rng.random() < 0.5 else vmas[i + 1].start + PAGE_SIZE
        elif how < 0.55:
            end += PAGE_SIZE
        cuts = range(start, end + 1, PAGE_SIZE)
        first = rng.choice(cuts[:-1])
        last = rng.choice(cuts[cuts.index(first) + 1 :])
        return (start, last - start) if rng.random() < 0.3 else (first, last - first)

    def _leave(self, addr: int) -> None:
        self._left.append(addr)

    # What

    def _mmap(self, pid: int) -> Event:
        rng = self._rng
        if rng.random() < 0.2:
            event = self._bridge(pid)
            if event is not None:
                return event
        kind = rng.random()
        file, offset = -1, 0
        addr = self._addr()
        if kind < 0.6:
            flags = _ANON
        elif kind < 0.65:
            flags = abi.MAP_SHARED | abi.MAP_ANONYMOUS
        else:
            flags = abi.MAP_PRIVATE if kind < 0.93 else abi.MAP_SHARED
            file = rng.choice((0, 0, 1))
            offset = addr if rng.random() < 0.5 else self._addr()
        flags |= rng.choice((abi.MAP_FIXED, abi.MAP_FIXED, abi.MAP_FIXED_NOREPLACE, 0))
        for flag, chance in self._choices.mmap:
            if rng.random() < chance:
                flags ^= flag
        length, prot = self._length(), rng.choice(self._choices.prots)
        return Event("mmap", pid, addr, length, prot, flags, file=file, offset=offset)

    def _bridge(self, pid: int) -> Event | None:
        """Anonymous memory that exactly fills the gap above some VMA, and is like it: all three may merge."""
        rng = self._rng
        vmas = self._vmas(pid)
        gaps = [(a, b) for a, b in pairwise(vmas) if 0 < b.start - a.end <= 16 * PAGE_SIZE]
        if not gaps:
            return None
        below, above = rng.choice(gaps)
        prot = below.flags & VM_ACCESS_FLAGS
        return Event("mmap", pid, below.end, above.start - below.end, prot, _ANON | abi.MAP_FIXED)

    def _munmap(self, pid: int) -> Event:
        addr, length = self._range(pid)
        self._leave(addr)
        return Event("munmap", pid, addr, length)

    def _mprotect(self, pid: int) -> Event:
        """Rights at random, or those of the VMA above, with which it may then merge."""
        addr, length = self._range(pid)
        prot = self._rng.choice(self._choices.prots)
        above = self.machine.mm_of(pid).tree.at(addr + length)
        if above is not None and self._rng.random() < 0.4:
            prot = above.flags & VM_ACCESS_FLAGS
        return Event("mprotect", pid, addr, length, prot)

    def _madvise(self, pid: int) -> Event:
        addr, length = self._range(pid)
        return Event("madvise", pid, addr, length, flags=self._rng.choice(self._choices.advice))

    def _mlock(self, pid: int) -> Event:
        addr, length = self._range(pid)
        return Event("mlock", pid, addr, length, flags=self._rng.choice((0, abi.MLOCK_ONFAULT, 2)))

    def _munlock(self, pid: int) -> Event:
        addr, length = self._range(pid)
        return Event("munlock", pid, addr, length)

    def _mlockall(self, pid: int) -> Event:
        return Event("mlockall", pid, flags=self._rng.choice((1, 2, 3, 5, 6, 7, 4)))

    def _munlockall(self, pid: int) -> Event:
        return Event("munlockall", pid)

    def _mremap(self, pid: int) -> Event:
        rng = self._rng
        addr, length = self._range(pid)
        how = rng.random()
        flags = abi.MREMAP_MAYMOVE
        to = 0
        if how < 0.65:
            flags |= abi.MREMAP_FIXED
            vma = self.machine.mm_of(pid).tree.at(addr)
            to = self._addr()
            if vma is not None and rng.random() < 0.3:  # home, to where its page offset says
                home = (vma.pgoff << PAGE_SHIFT) + addr - vma.start
                if ARENA <= home < ARENA + (self._pages << PAGE_SHIFT):
                    to = home
        elif how < 0.75:
            flags = 0
        if rng.random() < 0.15:
            flags |= abi.MREMAP_DONTUNMAP
        new_length = length
        if rng.random() < 0.35 and not flags & abi.MREMAP_DONTUNMAP:
            new_length = max(PAGE_SIZE, length + rng.randrange(-3, self._room(pid, addr)) * PAGE_SIZE)
        if rng.random() < 0.03:
            length = 0
        self._leave(addr)
        return Event("mremap", pid, addr, length, flags=flags, length2=new_length, addr2=to)

    def _homecoming(self, pid: int) -> Event | None:
        """The next step of: move touched pages away, map one that nobody touches beside their home, move them back."""
        tree = self.machine.mm_of(pid).tree
        top = ARENA + (self._pages << PAGE_SHIFT)
        prepared = [vma for vma in self._vmas(pid) if vma.prepared and vma.file is None and vma.start >= ARENA]
        for vma in prepared:
            home, length = vma.pgoff << PAGE_SHIFT, vma.end - vma.start
            end = home + length
            if home == vma.start or not ARENA <= home < end < top or tree.overlapping(home, end):
                continue
            beside = tree.at(end)
            if beside is None:
                prot = vma.flags & VM_ACCESS_FLAGS
                return Event("mmap", pid, end, PAGE_SIZE, prot, _ANON | abi.MAP_FIXED)
            if not beside.prepared and beside.flags == vma.flags:
                how = abi.MREMAP_MAYMOVE | abi.MREMAP_FIXED
                return Event("mremap", pid, vma.start, length, flags=how, length2=length, addr2=home)
        at_home = [vma for vma in prepared if vma.pgoff << PAGE_SHIFT == vma.start and vma.end < top]
        if not at_home:
            return None
        vma = self._rng.choice(at_home)
        to, length = self._heap - ((1 + len(prepared)) << 6 + PAGE_SHIFT), vma.end - vma.start
        if tree.overlapping(to, to + length):
            return None
        how = abi.MREMAP_MAYMOVE | abi.MREMAP_FIXED
        return Event("mremap", pid, vma.start, length, flags=how, length2=length, addr2=to)

    def _room(self, pid: int, addr: int) -> int:
        """Pages to grow by; none for shared anonymous memory, which ends where its first mapping did: what
        is beyond gets SIGBUS, and the machine knows no sizes of files."""
        vma = self.machine.mm_of(pid).tree.at(addr)
        anonymous = vma is not None and vma.file is not None and vma.file.id not in {f.id for f in FILES}
        return 1 if anonymous else 4

    def _brk(self, pid: int) -> Event:
        start = self.machine.mm_of(pid).start_brk
        return Event("brk", pid, start + self._rng.randrange(-1, 8) * PAGE_SIZE)

    def _name(self, pid: int) -> Event:
        addr, length = self._range(pid)
        return Event("name", pid, addr, length, file=self._rng.randrange(3))

    def _fault(self, pid: int) -> Event:
        rng = self._rng
        write = rng.random() < 0.7
        flags = FAULT_WRITE if write else 0
        allowing = VM_WRITE if write else VM_READ
        vmas = [vma for vma in self._vmas(pid) if vma.flags & allowing]
        if vmas and rng.random() < 0.6:  # a run of pages, all of which can be touched
            vma = rng.choice(vmas)
            first = rng.randrange(vma.nr_pages)
            length = min(vma.nr_pages - first, rng.randrange(1, 8 * self._scale)) << PAGE_SHIFT
            return Event("fault", pid, vma.start + (first << PAGE_SHIFT), length, flags=flags)
        addr, length = self._range(pid)
        if rng.random() < 0.1:
            addr -= rng.randrange(1, 4) * PAGE_SIZE  # perhaps just below a stack
        else:
            addr += rng.randrange(length >> PAGE_SHIFT) << PAGE_SHIFT
        return Event("fault", pid, addr, PAGE_SIZE, flags=flags)

    def _take_pid(self) -> int:
        self._next_pid += 1
        return self._next_pid - 1

    def _fork(self, pid: int) -> Event | None:
        if len(self.machine.processes) >= self._processes:
            return None
        flags = 0
        if self._rng.random() < self._sharing:
            flags = abi.CLONE_VM | (abi.CLONE_VFORK if self._rng.random() < 0.5 else 0)
        return Event("fork", pid, flags=flags, pid2=self._take_pid())

    def _exit(self, pid: int) -> Event | None:
        return Event("exit", pid) if len(self.machine.processes) > 1 else None

    def _exec(self, pid: int) -> Event | None:
        """In an old process, or in one that no other is related to."""
        if self._rng.random() < 0.4:
            if len(self.machine.processes) >= self._processes:
                return None
            pid = self._take_pid()
        return self._new_process(pid)

    def _new_process(self, pid: int) -> Event:
        """Its stack lies below the arena, and has the page offset of a place in the arena."""
        offset = ARENA + (self._rng.randrange(self._pages) << PAGE_SHIFT)
        return Event("exec", pid, _STACK, 3 * PAGE_SIZE, offset=offset, addr2=self._heap)

    def _reclaim(self, pid: int) -> Event:
        addr, length = self._range(pid)
        return Event("", pid, addr, length)

    def _ksm(self, pid: int) -> Event | None:
        """Two pages that are there; or first the advice that lets them be merged."""
        rng = self._rng
        other = rng.choice(list(self.machine.processes))
        pair = []
        for which in (pid, other):
            vmas = [vma for vma in self._vmas(which) if vma.prepared]
            vma, addr = self._page(vmas, PTE_ANON)
            if vma is None:
                return None
            if not vma.flags & (VM_MERGEABLE | VM_SHARED):
                return Event("madvise", which, vma.start, vma.end - vma.start, flags=abi.MADV_MERGEABLE)
            pair.append(addr)
        return Event("ksm", pid, pair[0], pid2=other, addr2=pair[1])

    def _page(self, vmas: list[VMA], kind: int) -> tuple[VMA | None, int]:
        """A page of one of `vmas` whose entry is of a kind, 0: where nothing is; None if a few tries find none."""
        rng = self._rng
        if vmas:
            for _ in range(_TRIES):
                vma = rng.choice(vmas)
                addr = vma.start + (rng.randrange(vma.nr_pages) << PAGE_SHIFT)
                entry = vma.mm.page_table.get(addr)
                if entry & kind if kind else entry == 0:
                    return vma, addr
        return None, 0

    def _uffd_move(self, pid: int) -> Event:
        """A page that is there, to where none is; or anything."""
        rng = self._rng
        vmas = [vma for vma in self._vmas(pid) if vma.file is None and vma.flags & (VM_WRITE | VM_SHARED) == VM_WRITE]
        page, source = self._page([vma for vma in vmas if vma.prepared], PTE_EXCLUSIVE)
        hole, target = self._page(vmas, 0)
        length = rng.choice((1, 1, 2)) << PAGE_SHIFT
        if page is None or hole is None or rng.random() < 0.2:
            source, length = self._range(pid)
            target, _ = self._range(pid)
        self._leave(source)
        return Event("uffd_move", pid, target, length, addr2=source)


def settle(events: Sequence[Event], player: Player) -> list[Event]:
    """`events` with the results that `player` gives them, without those that have become impossible, up to one at which
    the machine or a design raises.

    For histories from which something was taken out: a shorter counter-example, say.
    """
    settled: list[Event] = []
    for event in events:
        copy = msgspec.structs.replace(event)
        try:
            copy.result = player.do(copy)
        except HistoryError:
            continue
        except Exception:
            settled.append(copy)
            break
        settled.append(copy)
    return settled


def shortest(
    events: Sequence[Event], fails: Callable[[list[Event]], bool], again: Callable[[list[Event]], list[Event]]
) -> list[Event]:
    """A history as short as leaving out events can make it, for which `fails` still holds.

    `again` gives what is left its results (settle()).  No single event of the answer can be left out.
    """
    best = list(events)
    chunk = len(best)
    while chunk:
        position = 0
        while position < len(best):
            shorter = again(best[:position] + best[position + chunk :])
            if len(shorter) < len(best) and fails(shorter):
                best = shorter
            else:
                position += chunk
        chunk //= 2
    return best
