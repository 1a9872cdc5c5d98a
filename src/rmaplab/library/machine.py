# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine to type system calls at.

    >>> import rmaplab as rl
    >>> m = rl.Machine("7.3", ["anon_vma", "cow_context"])
    >>> p = m.spawn()
    >>> a = p.mmap(4 * rl.PAGE)
    >>> p.write(a)
    >>> c = p.fork()
    >>> c.write(a)
    >>> m.walk(p, a)
    {'anon_vma': [(<process 1>, 0x7ffff7ffb000, True), (<process 2>, 0x7ffff7ffb000, False)], ...}

What is typed is a history, too: `m.history()` is all of it, for `compare`, or for a file.

Invariant: the events that were kept, played on a new machine of the same kind, make the same machine.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from rmaplab.check.lockstep import Checker, Difference
from rmaplab.errors import CannotRun
from rmaplab.explore.camera import maps_folio
from rmaplab.explore.notebook import Spaces, Structures, look
from rmaplab.library.arguments import explained_methods
from rmaplab.library.errors import SystemCallError
from rmaplab.library.memory import Page, Vma
from rmaplab.library.places import Place, Walk
from rmaplab.measure.collect import Aside
from rmaplab.measure.table import Table
from rmaplab.mm import machine as mm
from rmaplab.mm.errors import HistoryError
from rmaplab.mm.profile import PROFILES, REFERENCE, Profile
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import MM, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, VMA
from rmaplab.printable import plural
from rmaplab.rmap import load, specs
from rmaplab.trace import script
from rmaplab.trace.events import FAULT_WRITE, Event
from rmaplab.trace.history import FileEntry, Header, History
from rmaplab.trace.play import Player
from rmaplab.verdict import judge

Design = str | Path | type[ReverseMap]  # a name, a file, "package.module:Class", or a class

DEFAULT_DESIGNS: Final = ("anon_vma", "cow_context")
_UNKNOWN: Final = -errno.EFAULT  # with this result the player asks the machine for everything


def designs_of(asked: Design | Sequence[Design]) -> list[type[ReverseMap]]:
    """The classes of designs given by name, file or class; one, or several.

    :raises CannotRun: there is no such design, none was given, or two have the same name
    """
    several = [asked] if isinstance(asked, str | Path | type) else asked
    found: list[type[ReverseMap]] = []
    for design in several:
        try:
            found += [design] if isinstance(design, type) else [load(spec) for spec in specs([str(design)], [])]
        except ValueError as error:
            raise CannotRun(str(error)) from None
    names = [design.name for design in found]
    if not names or len({*names}) < len(names):
        raise CannotRun(f"give at least one design, and each name once, not [{', '.join(names)}]")
    return found


def profile_of(profile: str | Profile) -> Profile:
    """A kernel profile by its name.

    :raises CannotRun: there is none of that name
    """
    if isinstance(profile, Profile):
        return profile
    if profile not in PROFILES:
        names = ", ".join(repr(name) for name in PROFILES)
        raise CannotRun(f"there is no profile {profile!r}: give one of {names}; designs come after it")
    return PROFILES[profile]


@explained_methods
class Process(script.Process):
    """A process of a `Machine`.  Each system call is done at once, and raises SystemCallError where it fails."""

    @property
    def machine(self) -> Machine:
        assert isinstance(self.world, Machine)
        return self.world

    @property
    def alive(self) -> bool:
        """Whether it has not exited."""
        return self.pid in self.machine.machine.processes

    @property
    def mm(self) -> MM:
        """Its address space (mm/vma.py).

        :raises HistoryError: it has exited
        """
        return self.machine.machine.mm_of(self.pid)

    @property
    def vmas(self) -> list[Vma]:
        """Its VMAs, by address."""
        return [Vma.of(vma) for vma in self.mm.tree]

    def page(self, addr: int) -> Page:
        """The page at `addr` (bytes).

        :raises HistoryError: nothing is mapped there
        """
        return Page.at(self.machine.machine, self._vma(addr), addr & PAGE_MASK)

    def _vma(self, addr: int) -> VMA:
        vma = self.mm.tree.at(addr)
        if vma is None:
            raise HistoryError(f"process {self.pid} has nothing mapped at {addr:#x}: its `vmas` say what it has")
        return vma

    def __repr__(self) -> str:
        return f"<process {self.pid}{'' if self.alive else ', exited'}>"


class Checked:
    """What a check found: `differences` between walks, page tables and designs; `holds` if none is an error."""

    def __init__(self, differences: list[Difference], folios: int, designs: int) -> None:
        self.differences: Final = differences
        self.folios: Final = folios
        self.designs: Final = designs

    @property
    def holds(self) -> bool:
        """Every entry that maps a folio is found by every design, and nothing that is gone is visited.

        :raises NothingLookedAt: no folio is mapped
        """
        wrong = any(difference.is_error for difference in self.differences)
        return judge(self.folios, wrong, "no anonymous page is mapped: write to one first")

    def __bool__(self) -> bool:
        return self.holds

    def __repr__(self) -> str:
        looked = f"{plural(self.folios, 'folio')} walked in {plural(self.designs, 'design')}"
        said = "".join(f"\n  {difference.kind}: {difference.what}" for difference in self.differences)
        wrong = any(difference.is_error for difference in self.differences)
        verdict = "does not hold" if wrong else "holds" if self.folios else "says nothing"
        return f"<{verdict}: {looked}{said}>"


@explained_methods
class Machine(script.World):
    """A machine with no process yet, and designs that watch it.

    :param profile: the kernel whose rules hold: "7.3", or a Profile
    :param designs: names ("anon_vma"), files ("mine.py"), "package.module:Class", or classes; one or several.  VMAs
        merge by the rule of the first.
    :param large_folios: highest order of folios that faults may allocate, 0 to 9
    :raises CannotRun: there is no such profile or design

    machine: the machine underneath (mm/machine.py)
    events:  all that happened
    """

    def __init__(
        self,
        profile: str | Profile = REFERENCE,
        designs: Design | Sequence[Design] = DEFAULT_DESIGNS,
        *,
        large_folios: int = 0,
    ) -> None:
        super().__init__()
        self.machine: Final = mm.Machine(profile_of(profile), designs_of(designs), large_folios=large_folios)
        self.events: Final[list[Event]] = []
        self._header = Header(recorder="a machine typed at")
        self._player = Player(self.machine, self._header, batch=False)

    # Processes

    def spawn(self) -> Process:
        """A process that begins with execve(2): it has a stack, and nothing else."""
        process = Process(self, self.new_pid())
        process.exec()
        return process

    def process(self, pid: int) -> Process:
        """The process with this pid.

        :raises HistoryError: there is none, or it has exited
        """
        self.machine.process(pid)
        return Process(self, pid)

    @property
    def processes(self) -> list[Process]:
        """All that live, by pid."""
        return [Process(self, pid) for pid in sorted(self.machine.processes)]

    @property
    def designs(self) -> list[str]:
        """Names of the designs that watch, the leader first; `machine.designs` are the objects."""
        return [design.name for design in self.machine.designs]

    # What happens

    def do(self, event: Event) -> int:
        """Do what `event` says, and keep it, with its result.  `Process` has a verb for each.

        :raises SystemCallError: the system call failed
        :raises HistoryError: it cannot happen at all (the process has exited)
        """
        self._see_that_it_can_be(event)
        space = None if event.op == "exec" else self.machine.mm_of(event.pid)
        if event.op == "fault" and space is not None:
            return self._touch(event, space)
        event.result = _UNKNOWN
        event.result = self._player.do(event)
        self.events.append(event)
        if event.result < 0 and space is not None:
            raise SystemCallError(event, space)
        return event.result

    def _see_that_it_can_be(self, event: Event) -> None:
        """Refuse arguments that no register can hold."""
        for field in ("addr", "length", "prot", "flags", "addr2", "length2", "offset"):
            value: object = getattr(event, field)
            if not isinstance(value, int) or not 0 <= value < 1 << 64:
                raise HistoryError(f"{event.op}: {field} is {value!r}, not a whole number from 0 to 2**64 - 1")

    def _touch(self, event: Event, space: MM) -> int:
        """A range of pages; it ends at the first that gets a signal, which is an event of its own."""
        write = event.flags & FAULT_WRITE != 0
        nr_pages = -(-event.length // PAGE_SIZE)
        touched = self.machine.fault_range(space, event.addr, nr_pages, write)
        if touched:
            event.length = touched << PAGE_SHIFT
            self.events.append(event)
        if touched == nr_pages:
            return 0
        addr = (event.addr & PAGE_MASK) + (touched << PAGE_SHIFT)
        failed = Event("fault", event.pid, addr, PAGE_SIZE, flags=event.flags, result=-errno.EFAULT)
        self.events.append(failed)
        raise SystemCallError(failed, space, max(addr, event.addr))

    def file(self, name: str) -> int:
        """A file to map, for `Process.mmap(file=...)`."""
        entry = FileEntry(len(self._header.files), name=name)
        self._header.files.append(entry)
        self._player.open_file(entry)
        return entry.id

    def number_of_name(self, name: str) -> int:
        if name not in self._header.names:
            self._header.names.append(name)
        return self._header.names.index(name)

    def play(self, history: History, events: int | None = None) -> None:
        """Play a history on this machine, which has no process yet; the first `events` of it if that is given.

        :raises HistoryError: something was typed here before, or the history is impossible
        """
        if self.events:
            raise HistoryError("something has happened on this machine already: replay makes a new one")
        header = history.header
        self._header = msgspec.structs.replace(header, files=list(header.files), names=list(header.names))
        self._player = Player(self.machine, self._header)
        self.events.extend(islice(history, events))
        self._player.play(self.events)
        for event in self.events:
            self.new_pid(max(event.pid, event.pid2, self._newest))

    def history(self) -> History:
        """All that happened, as a history: for `compare`, `rmaplab explore`, or a file."""
        return History(self._header, self.events)

    # Questions

    def walk(self, process: Process | int, addr: int) -> Walk:
        """Where each design looks for the page at `addr` of `process`: a list of (process, address, maps) by design.

        :raises HistoryError: there is no anonymous page; the message says what there is
        """
        if not isinstance(process, Process):
            process = self.process(process)
        if process.machine is not self:
            raise HistoryError(f"{process!r} is a process of another machine")
        page = process.page(addr)
        if page.pfn < 0:
            raise HistoryError(
                f"process {process.pid} has no anonymous page at {addr:#x} ({page.kind}): a walk is for those alone"
            )
        owners = {self.machine.mm_of(pid).id: pid for pid in sorted(self.machine.processes, reverse=True)}
        places: dict[str, list[Place]] = {}
        aside = Aside(self.machine)
        with aside:
            for design in self.machine.designs:
                found = list(design.walk(page.head))
                places[design.name] = [
                    Place(Process(self, owners.get(vma.mm.id, 0)), at, maps_folio(self.machine, vma, at, page.head))
                    for vma, at in found
                ]
        return Walk(page, places, {name: aside.work(name) for name in places})

    def check(self) -> Checked:
        """Walk every mapped folio in every design, and hold the answers against the page tables (check/lockstep.py)."""
        checker = Checker(self.machine)
        with Aside(self.machine):
            differences = checker.check(len(self.events) - 1, self.events[-1] if self.events else None)
        return Checked(differences, checker.counts.folios, len(self.machine.designs))

    def memory(self) -> Table:
        """What each design holds now: a row for each type of object, with bytes that one takes in its slab."""
        return Table.of_rows(
            {"design": design.name, "type": o.type, "bytes_each": o.size, "objects": o.objects, "bytes": o.nbytes}
            for design in self.machine.designs
            for o in design.footprint()
        )

    # Pictures

    def picture(self) -> Spaces:
        """All address spaces now: drawn in a notebook, printed elsewhere."""
        return look(self.machine)

    def design(self, name: str) -> Structures:
        """What a design holds now: drawn in a notebook, printed elsewhere.

        :raises HistoryError: no design of that name watches
        """
        return look(self.machine).design(name)

    def __str__(self) -> str:
        return str(self.picture())

    def _repr_svg_(self) -> str:
        return self.picture()._repr_svg_()

    def __repr__(self) -> str:
        names = ", ".join(design.name for design in self.machine.designs)
        count = plural(len(self.machine.processes), "process")
        return f"<machine, Linux {self.machine.profile.name}, watched by {names}: {count}, {len(self.events):,} events>"
