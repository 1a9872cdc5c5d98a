# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine and a tree's own mm/vma.c on one history: results and VMAs after each event.

The machine plays an event first; what it answers, and the VMAs that it has then, go to the library, which does the same
and compares (native.c run()).  This goes in batches, since a call costs more than an operation.  Compared are of each
VMA: bounds, both page offsets, flags, and which VMA, anon_vma and file it is, so that which were merged, and how, is
compared as well.  anon_vmas follow mm/rmap.c in both, in the library by a page of code of ours.
"""

from __future__ import annotations

import ctypes
import dataclasses
import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from rmaplab.check.histories import header, shortest
from rmaplab.kernel.errors import KernelUnavailable
from rmaplab.mm import abi
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import Profile
from rmaplab.mm.vma import MM, PAGE_SIZE
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.trace.events import FAULT_WRITE, Event
from rmaplab.trace.history import Header
from rmaplab.trace.play import Player

BATCH: Final = 2000  # operations
HISTORY: Final = 20_000  # events of one random history
_SPACES: Final = 1024
_ROOM: Final = 4096  # VMAs that are shown
_WORDS: Final = 8  # of a VMA as it is described

# native.c, enum of operations
_EXEC, _FORK, _EXIT, _MMAP, _MUNMAP, _MPROTECT, _MADVISE, _MLOCK, _MLOCKALL, _BRK, _MREMAP, _TOUCH, _FILE = range(13)

_ADVICE: Final = (
    abi.MADV_NORMAL, abi.MADV_RANDOM, abi.MADV_SEQUENTIAL, abi.MADV_DONTFORK, abi.MADV_DOFORK, abi.MADV_DONTDUMP,
    abi.MADV_DODUMP, abi.MADV_WIPEONFORK, abi.MADV_KEEPONFORK, abi.MADV_HUGEPAGE, abi.MADV_NOHUGEPAGE,
)  # fmt: skip
_GONE: Final = -1
_UNKNOWN_RESULT: Final = -14  # lets the machine find out everything for itself
_ARGUMENTS: Final = 2 * PAGE_SIZE  # of a program that is started (mm/process.py)

# Random histories: an arena that everything happens in, with the heap in it, and a stack below.
_ARENA: Final = 0x10_0000_0000
_STACK: Final = 0x0F_0000_0000
_PAGES: Final = 48


Progress = Callable[[str, int, int], None]  # what is being done, operations done, of how many


def _quiet(what: str, done: int, total: int) -> None:
    """Nobody watches."""


class Vma(msgspec.Struct, frozen=True):
    """A VMA as either side describes it; vma, anon_vma and file by the machine's numbers, from 1 on (0: none)."""

    start: int
    end: int
    pgoff: int
    anon_pgoff: int
    flags: int
    vma: int
    anon_vma: int
    file: int

    def __str__(self) -> str:
        return (
            f"{self.start:#x}-{self.end:#x} pgoff {self.pgoff:#x} anon {self.anon_pgoff:#x} flags {self.flags:#x}"
            f" VMA {self.vma} anon_vma {self.anon_vma} file {self.file}"
        )


class Disagreement(msgspec.Struct, frozen=True):
    """Where a history ended: results and VMAs of the machine and of mm/vma.c after its last event."""

    events: list[Event]
    results: tuple[int, int]
    machine: list[Vma]
    native: list[Vma]


class Library:
    """The compiled mm/vma.c."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        try:
            self._library: Final = ctypes.CDLL(str(path))
        except OSError as error:
            raise KernelUnavailable(f"{path} cannot be loaded ({error}): remove it and try again.") from None
        for name in ("run", "look"):
            getattr(self._library, name).restype = ctypes.c_long

    def reset(self, profile: Profile) -> None:
        """Begin a new history, with the rules of `profile` for what is above and below mm/vma.c."""
        flags = (profile.clone_reverses, profile.move_many, profile.dontunmap_apart, profile.dontunmap_apart)
        self._library.reset(*map(ctypes.c_long, flags))

    def run(self, operations: array[int], counts: array[int], expected: array[int]) -> tuple[int, int]:
        """How many operations came out as expected, and the result of the last one that was done."""
        result = ctypes.c_long()
        done: int = self._library.run(
            ctypes.c_void_p(operations.buffer_info()[0]), ctypes.c_long(len(counts)),
            ctypes.c_void_p(counts.buffer_info()[0]), ctypes.c_void_p(expected.buffer_info()[0]), ctypes.byref(result),
        )  # fmt: skip
        return done, result.value

    def look(self, space: int) -> list[Vma]:
        """The VMAs of an address space."""
        room = (ctypes.c_uint64 * (_WORDS * _ROOM))()
        count = self._library.look(ctypes.c_long(space), room, ctypes.c_long(_ROOM))
        words = list(room)[: max(count, 0) * _WORDS]
        return [Vma(*words[i : i + _WORDS]) for i in range(0, len(words), _WORDS)]


class Comparison:
    """One history on both sides.  Events that concern no VMA are played on the machine alone."""

    def __init__(self, library: Library, profile: Profile, head: Header | None = None, ask: bool = True) -> None:
        """`ask`: let the machine find out results for itself, places of mappings included."""
        library.reset(profile)
        self.machine: Final = Machine(profile, [AnonVmaRmap])
        self._design: Final = cast(AnonVmaRmap, self.machine.leader)
        head = head or header()
        self._player: Final = Player(self.machine, head, batch=False)
        self._library: Final = library
        self._ask: Final = ask
        self._spaces: Final[dict[int, int]] = {}  # by mm.id
        self._free: Final = list(range(_SPACES - 1, -1, -1))
        self._events: Final[list[Event]] = []
        self._operations = array("q")
        self._counts = array("q")
        self._expected = array("Q")
        self._of: list[tuple[int, int]] = []  # of each operation: its event, its space
        self.done = 0  # operations that agreed
        for entry in head.files:
            file = entry.open()
            if file.special or file.closes:
                self._add(_FILE, 0, (file.id, file.special, file.closes), 0, None)

    def do(self, event: Event) -> Disagreement | None:
        """Play one event; what was found in a batch that came to its end by it."""
        if self._ask:
            event.result = _UNKNOWN_RESULT
        before = None
        if event.op in ("exec", "exit") and event.pid in self.machine.processes:
            before = self.machine.mm_of(event.pid)
        try:
            result = self._player.do(event)
        except HistoryError:
            return None
        self._events.append(event)
        self._translate(event, result)
        if before is not None and not before.alive:
            space = self._spaces.pop(before.id)
            self._add(_EXIT, space, (), 0, None)
            self._free.append(space)
        return self.settle() if len(self._counts) >= BATCH else None

    def _translate(self, event: Event, result: int) -> None:
        op, addr, length = event.op, event.addr, event.length
        if op == "exit":
            return
        mm = self.machine.mm_of(event.pid)
        if op == "exec":
            space = self._spaces[mm.id] = self._free.pop()
            end = addr + length
            arguments = min(_ARGUMENTS, length)
            self._add(_EXEC, space, (addr, end, event.offset + length, arguments, event.addr2), 0, mm)
            return
        space = self._spaces[mm.id]
        if op == "fork":
            child = self.machine.mm_of(event.pid2)
            if child is not mm:
                new = self._spaces[child.id] = self._free.pop()
                self._add(_FORK, space, (new,), 0, child)
        elif op == "mmap":
            place = result if result >= 0 else addr
            pages = (length + PAGE_SIZE - 1) & -PAGE_SIZE
            if result >= 0 and event.flags & abi.MAP_TYPE != abi.MAP_DROPPABLE:
                offset = event.offset // PAGE_SIZE
                self._add(_MMAP, space, (place, pages, event.prot, event.flags, event.file, offset), result, mm)
        elif op == "munmap":
            self._add(_MUNMAP, space, (addr, (length + PAGE_SIZE - 1) & -PAGE_SIZE), result, mm)
        elif op == "mprotect":
            self._add(_MPROTECT, space, (addr, (length + PAGE_SIZE - 1) & -PAGE_SIZE, event.prot), result, mm)
        elif op == "madvise" and event.flags in _ADVICE:
            self._add(_MADVISE, space, (addr, (length + PAGE_SIZE - 1) & -PAGE_SIZE, event.flags), result, mm)
        elif op in ("mlock", "munlock"):
            start, end = addr & -PAGE_SIZE, (addr + length + PAGE_SIZE - 1) & -PAGE_SIZE
            flags = 0x2000 | (0x80000 if event.flags else 0) if op == "mlock" else 0
            self._add(_MLOCK, space, (start, end - start, flags), result, mm)
        elif op in ("mlockall", "munlockall"):
            self._add(_MLOCKALL, space, (event.flags if op == "mlockall" else 0,), result, mm)
        elif op == "brk":
            self._add(_BRK, space, (addr,), result, mm)
        elif op == "mremap":
            pages, new = (length + PAGE_SIZE - 1) & -PAGE_SIZE, (event.length2 + PAGE_SIZE - 1) & -PAGE_SIZE
            place = result if result >= 0 else addr
            self._add(_MREMAP, space, (addr, pages, new, event.flags, event.addr2, place), result, mm)
        elif op == "fault":
            self._add(_TOUCH, space, (addr, max(length, 1), event.flags & FAULT_WRITE), result, mm)

    def _add(self, what: int, space: int, arguments: Sequence[int], result: int, mm: MM | None) -> None:
        self._operations.extend((what, space, *arguments, *(0,) * (6 - len(arguments)), result))
        self._of.append((len(self._events), space))
        if mm is None:
            self._counts.append(_GONE)
            return
        expected, design = self._expected, self._design
        vmas = mm.tree.to_list()
        for vma in vmas:
            fields = design.fields_of(vma)
            own = 0 if fields is None or fields.anon_vma is None else fields.anon_vma.number + 1
            file = 0 if vma.file is None else vma.file.id % 0x8000_0000 + 1
            expected.extend((vma.start, vma.end, vma.pgoff, vma.anon_pgoff, vma.flags, vma.id + 1, own, file))
        self._counts.append(len(vmas))

    def settle(self) -> Disagreement | None:
        """Let the library do what has been gathered."""
        done, result = self._library.run(self._operations, self._counts, self._expected)
        self.done += done
        if done == len(self._counts):
            del self._operations[:], self._counts[:], self._expected[:], self._of[:]
            return None
        number, space = self._of[done]
        first = sum(count for count in self._counts[:done] if count > 0)
        words = self._expected[first * _WORDS : (first + max(self._counts[done], 0)) * _WORDS]
        machine = [Vma(*words[i : i + _WORDS]) for i in range(0, len(words), _WORDS)]
        what = self._operations[done * 9]
        shown = self._operations[done * 9 + 2] if what == _FORK else space
        asked = self._operations[done * 9 + 8]
        native = [] if what == _EXIT else self._library.look(shown)
        return Disagreement(self._events[:number], (asked, result), machine, native)


def random_events(seed: int, processes: int = 5) -> Iterator[Event]:
    """A random history without end.  What it asks for depends on which processes live, and on nothing else there."""
    rng = random.Random(seed)
    number = rng.randrange
    alive = [1]
    unused = list(range(2, processes + 1))

    def start() -> Event:
        return Event(
            "exec", 1, _STACK, 6 * PAGE_SIZE, offset=_STACK + (number(2) << 24), addr2=_ARENA + 8 * PAGE_SIZE
        )

    def page() -> int:
        return _ARENA + number(_PAGES) * PAGE_SIZE if number(5) else _STACK + (number(12) - 4) * PAGE_SIZE

    yield start()
    while True:
        pid = alive[number(len(alive))]
        kind = number(64)
        addr, length = page(), (1 + number(1 + number(8))) * PAGE_SIZE
        if kind < 16:
            prot = (3, 3, 3, 1, 0, 7)[number(6)]
            flags = abi.MAP_FIXED if number(8) else 0
            file = -1 if number(3) else number(2)
            shared = number(8) == 0
            flags |= abi.MAP_SHARED if shared else abi.MAP_PRIVATE
            if file < 0:
                flags |= abi.MAP_ANONYMOUS
                # Beside the stack, which alone is not soft-dirty, something that merges with it.
                if not shared and (addr < _ARENA or number(24) == 0):
                    flags |= abi.MAP_GROWSDOWN
            flags |= (0, 0, 0, 0, 0, 0, abi.MAP_NORESERVE, abi.MAP_LOCKED)[number(8)]
            offset = 0 if file < 0 else (addr - _ARENA & (_PAGES - 1) * PAGE_SIZE) * (number(4) != 0)
            yield Event("mmap", pid, addr, length, prot=prot, flags=flags, file=file, offset=offset)
        elif kind < 22:
            yield Event("munmap", pid, addr, length)
        elif kind < 34:
            yield Event("fault", pid, addr, PAGE_SIZE, flags=FAULT_WRITE)
        elif kind < 42:
            yield Event("mprotect", pid, addr, length, prot=(3, 1, 0, 3)[number(4)])
        elif kind < 46:
            yield Event("madvise", pid, addr, length, flags=_ADVICE[number(len(_ADVICE))])
        elif kind < 50:
            if number(2):
                yield Event("mlock", pid, addr, length, flags=number(4) == 0)
            else:
                yield Event("munlock", pid, addr, length)
        elif kind < 58:
            flags = (0, 1, 1, 3, 3, 3, 5, 7)[number(8)]
            to = page()
            new = length if flags & abi.MREMAP_DONTUNMAP or number(2) else (1 + number(8)) * PAGE_SIZE
            yield Event("mremap", pid, addr, length, flags=flags, addr2=to if flags & 2 else 0, length2=new)
        elif kind < 60:
            yield Event("brk", pid, _ARENA + (8 + number(12)) * PAGE_SIZE)
        elif kind < 62:
            if unused and len(alive) < processes:
                child = unused.pop(number(len(unused)))
                alive.append(child)
                yield Event("fork", pid, pid2=child)
        elif kind == 62:
            if len(alive) > 1:
                alive.remove(pid)
                unused.append(pid)
                yield Event("exit", pid)
        elif number(16) == 0:
            yield Event("mlockall", pid, flags=1 + number(3)) if number(3) else Event("munlockall", pid)


def replay(library: Library, profile: Profile, events: Iterable[Event], head: Header | None = None,
           ask: bool = True) -> tuple[Disagreement | None, int]:  # fmt: skip
    """The first disagreement of a history, and how many operations agreed."""
    comparison = Comparison(library, profile, head, ask)
    for event in events:
        found = comparison.do(_copy(event))
        if found is not None:
            return found, comparison.done
    return comparison.settle(), comparison.done


def campaign(
    library: Library, profile: Profile, seed: int, operations: int, jobs: int = 1, progress: Progress = _quiet
) -> tuple[Disagreement | None, int]:
    """Random histories with seeds from `seed` on, until so many operations were asked for, or one disagrees; in `jobs`
    processes, each with a history of its own.  Second, how many operations agreed."""
    done = 0
    with ProcessPoolExecutor(jobs) if jobs > 1 else nullcontext() as pool:
        ways = [
            (library.path, profile, seed + i, min(HISTORY, operations - first))
            for i, first in enumerate(range(0, operations, HISTORY))
        ]
        played = map(_share, ways) if pool is None else pool.map(_share, ways)
        for i, (found, agreed) in enumerate(played):
            done += agreed
            if found is not None:
                if pool is not None:
                    pool.shutdown(cancel_futures=True)
                return found, done
            progress(f"seed {seed + i}", done, operations)
    return None, done


def _share(way: tuple[Path, Profile, int, int]) -> tuple[Disagreement | None, int]:
    """One random history."""
    path, profile, seed, operations = way
    return replay(Library(path), profile, islice(random_events(seed), operations))


def minimal(library: Library, profile: Profile, found: Disagreement, head: Header | None = None,
            ask: bool = True) -> Disagreement:  # fmt: skip
    """The shortest history that leaving out events of `found` leads to."""
    best = found

    def fails(events: list[Event]) -> bool:
        nonlocal best
        again, _ = replay(library, profile, events, head, ask)
        if again is None:
            return False
        best = again
        return True

    shortest(found.events, fails, again=list)
    return best


def compare(
    library: Library, profile: Profile, seed: int, operations: int, events: Sequence[Event] | None = None,
    head: Header | None = None, jobs: int = 1, progress: Progress = _quiet,
) -> tuple[Disagreement | None, int]:  # fmt: skip
    """A history that was written down, or random ones without it."""
    if events is None:
        return campaign(library, profile, seed, operations, jobs, progress)
    return replay(library, profile, events, head, ask=False)


def drift(
    library: Library, profile: Profile, found: Disagreement, seed: int, operations: int,
    events: Sequence[Event] | None = None, head: Header | None = None,
) -> list[str]:  # fmt: skip
    """In which rules `profile` is not the tree's: each one turned over makes a shortest difference go away, after
    which the next is looked for.  Ends with "?" where there is a difference that no single rule explains."""
    rules: list[str] = []
    while True:
        for field in dataclasses.fields(profile):
            value = getattr(profile, field.name)
            if isinstance(value, bool) and not any(rule.startswith(field.name) for rule in rules):
                other = dataclasses.replace(profile, **cast("dict[str, Any]", {field.name: not value}))
                if replay(library, other, found.events, head, ask=events is None)[0] is None:
                    rules.append(f"{field.name}={not value}")
                    profile = other
                    break
        else:
            return [*rules, "?"]
        again, _ = compare(library, profile, seed, operations, events, head)
        if again is None:
            return rules
        found = minimal(library, profile, again, head, ask=events is None)


def explained(found: Disagreement, drift: Sequence[str]) -> str:
    """A difference on one screen."""
    asked, got = found.results
    lines = [f"After {len(found.events)} events mm/vma.c and the machine differ, at", f"  {found.events[-1]}"]
    if asked != got:
        lines.append(f"  result: {got:#x} in mm/vma.c, {asked:#x} in the machine")
    for name, vmas, others in (("mm/vma.c", found.native, found.machine), ("machine", found.machine, found.native)):
        known = {str(vma) for vma in others}
        lines += [f"  {name}:", *(f"  {' ' if str(vma) in known else '!'} {vma}" for vma in vmas)]
    lines += ["The history:", *(f"  {event}" for event in found.events)]
    rules = [rule for rule in drift if rule != "?"]
    if rules:
        also = "more differs still" if "?" in drift else "all asked for would agree"
        lines.append(f"With {', '.join(rules)} in the profile {also}.")
    return "\n".join(lines)


def _copy(event: Event) -> Event:
    return Event(**{field: getattr(event, field) for field in event.__struct_fields__})
