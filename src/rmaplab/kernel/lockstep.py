# SPDX-License-Identifier: GPL-2.0-or-later
"""The model and a real kernel, step by step: the first difference ends it.

`Witness` is one guest with its reader.  `Lockstep` is one history on it: the guest executes each event, the
machine plays its effects, and after each event results and state are compared
(isomorphism.py).  A new Lockstep on the same guest starts from nothing: the workers of the old one exit.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from rmaplab.check.histories import EVERY_FLAG, ODD_FIELDS, Author, Flags, header, make_odd, shortest
from rmaplab.kernel.coverage import Coverage
from rmaplab.kernel.driver import ORDINARY, Driver, Setting
from rmaplab.kernel.errors import KernelUnavailable
from rmaplab.kernel.guest import THP, Guest
from rmaplab.kernel.identity import profile_of
from rmaplab.kernel.isomorphism import Difference, belongs, difference
from rmaplab.kernel.memory import Memory, symbol
from rmaplab.kernel.modules import MODULES, read
from rmaplab.kernel.setup import Kernel, compile_init, need_drgn
from rmaplab.kernel.snapshot import Mm, Reader, Snapshot
from rmaplab.mm.abi import (
    MADV_COLLAPSE,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_REMOVE,
    MMAP_MIN_ADDR,
    MREMAP_FIXED,
)
from rmaplab.mm.errors import HistoryError, InvariantError
from rmaplab.mm.folio import MAX_ORDER
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import LEAF_SHIFT, LEAF_SIZE, PTE_ANON, PTE_SHIFT
from rmaplab.mm.profile import Profile
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import PAGE_SIZE, TASK_SIZE, VM_DROPPABLE, VM_LOCKED, VM_MERGEABLE, VM_SHARED
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.trace.events import Event
from rmaplab.trace.history import Header
from rmaplab.trace.play import Player

_HUGE_ARENA: Final = 6144  # pages of the arena where folios have 512
_LENT: Final = 1 << 30  # bytes that a guest with 512 MiB may still promise to a process
_GUARDS: Final = (MADV_GUARD_INSTALL, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE)  # what a random history advises as well


class Disagreement(msgspec.Struct, frozen=True):
    """Where a history ended: after `number` events, at `event`.

    requested: what had been asked for so far, `event` included; played: what had happened
    """

    number: int
    event: Event
    difference: Difference
    requested: list[Event]
    played: list[Event]
    setting: Setting = Setting()


class Witness:
    """A guest and eyes to look at it.  A context manager."""

    def __init__(self, kernel: Kernel, command_line: str = "", accelerator: str = "tcg") -> None:
        modules = {} if kernel.modules is None else read(kernel.modules, MODULES)
        self.guest: Final = Guest(
            kernel.image, compile_init(), modules, command_line=command_line, accelerator=accelerator
        )
        try:
            self._open(kernel)
        except BaseException:
            self.guest.close()
            raise

    def _open(self, kernel: Kernel) -> None:
        self.memory = Memory(attach(self.guest, kernel.vmlinux), self.guest.memory)
        self.profile: Profile
        self.notes: list[str]
        self.profile, self.notes = profile_of(self.memory.program)
        self.reader = Reader(self.memory, belongs)
        self._tasks: dict[int, int] = {}
        self.has_large_folios = self.guest.has_file(f"{THP}/hugepages-16kB/enabled")  # since 6.8
        self._has_huge_folios = self.guest.has_file(f"{THP}/enabled")
        self._scans: int = symbol(self.memory.program, "ksm_scan").seqnr.address_of_().value_()

    def __enter__(self) -> Witness:
        return self

    def __exit__(self, *_: object) -> None:
        self.guest.close()

    def look(self, pids: Iterable[int]) -> Snapshot:
        """The state of these processes, with the guest stopped meanwhile."""
        with self.guest.stopped():
            return self.reader.read(self.tasks(pids))

    def can(self, setting: Setting) -> bool:
        """Whether the kernel has folios of the sizes that the setting speaks of."""
        whole = self._has_huge_folios and setting.large_folios == MAX_ORDER
        return not setting.large_folios or self.has_large_folios or whole

    def scans(self) -> int:
        """How often ksmd has scanned everything."""
        return self.memory.word(self._scans)

    def tasks(self, pids: Iterable[int]) -> list[tuple[int, int]]:
        """For each process, its pid and where its task_struct is."""
        return [(pid, self._task(pid)) for pid in pids]

    def forget(self, pid: int) -> None:
        """The process is gone: its number may come again."""
        self._tasks.pop(pid, None)

    def _task(self, pid: int) -> int:
        task = self._tasks.get(pid)
        if task is None:
            from drgn.helpers.linux.pid import find_task

            task = int(find_task(self.memory.program, pid).value_())
            self._tasks[pid] = task
        return task


def attach(guest: Guest, vmlinux: Path) -> Any:
    """A drgn.Program that sees the guest.  :raises KernelUnavailable: `vmlinux` is not the guest's"""
    need_drgn()
    import drgn

    logging.getLogger("drgn").setLevel(logging.CRITICAL)  # what matters of it is in the exceptions below
    program = drgn.Program()
    program.set_qemu_qmp(str(guest.qmp_socket))
    try:
        program.load_debug_info([str(vmlinux)])
        program["page_offset_base"]
    except (LookupError, drgn.MissingDebugInfoError):
        raise KernelUnavailable(
            f"{vmlinux} is not the vmlinux of the kernel that was booted, or has no debug information: give that of the"
            " same build."
        ) from None
    return program


def in_guest(head: Header) -> Header:
    """The header of a history as a guest has it: its files are ramfs's."""
    files = [msgspec.structs.replace(its, kind="ramfs") if its.kind == "file" else its for its in head.files]
    return msgspec.structs.replace(head, files=files)


class Lockstep:
    """One history on guest and machine."""

    def __init__(
        self,
        witness: Witness,
        head: Header | None = None,
        design: type[ReverseMap] = AnonVmaRmap,
        coverage: Coverage | None = None,
        setting: Setting = ORDINARY,
        machine: type[Machine] = Machine,
    ) -> None:
        head = in_guest(head or header())
        self.witness: Final = witness
        if not witness.can(setting):
            setting = msgspec.structs.replace(setting, large_folios=0)
        self.setting: Final = setting
        self.machine: Final = machine(witness.profile, [design], large_folios=setting.large_folios)
        if setting.mappings:
            self.machine.max_map_count = setting.mappings
        self.player: Final = Player(self.machine, head, batch=False)
        files = {entry.id: entry for entry in head.files}
        self.driver: Final = Driver(witness.guest, files, witness.look, witness.scans, setting)
        self.requested: Final[list[Event]] = []
        self.played: Final[list[Event]] = []
        self.snapshot: Snapshot | None = None
        self.coverage: Final = Coverage() if coverage is None else coverage

    def possible(self, event: Event) -> bool:
        """Whether `event` can be asked for: what it is about is no part of the worker's program, nor of the vDSO,
        which the history does not know, and the rest of `possible` holds."""
        if event.op not in self.driver.known() or not possible(self.machine, event):
            return False
        if self.snapshot is None or event.pid not in self.driver.pids or event.op == "exec":
            return True
        ranges = [
            (start, start + length)
            for start, length in ((event.addr, event.length), (event.addr2, event.length2))
            if start + length < 1 << 64  # else it is refused
        ]
        return not any(
            vma.start < end and start < vma.end
            for vma in self.snapshot.by_pid[self.driver.pids[event.pid]].vmas if not belongs(vma)
            for start, end in ranges
        )  # fmt: skip

    def step(self, request: Event) -> Disagreement | None:
        """Do what is asked on both sides and compare."""
        self.requested.append(request)
        gone = self.driver.pids.get(request.pid) if request.op == "exit" else None
        happened = self.driver.do(_copy(request))
        if gone is not None:
            self.witness.forget(gone)
        self.machine.large_folios = 0 if request.op == "exec" else self.setting.large_folios
        for event in happened:
            self.played.append(event)
            found = self._play(event)
            if found is not None:
                return self._disagreement(found)
        pids = self.driver.pids
        before, self.snapshot = self.snapshot, self.witness.look(pids.values())
        self.coverage.see(request.op, before, self.snapshot)
        found = difference(self.machine, self.snapshot, pids)
        return None if found is None else self._disagreement(found)

    def _play(self, event: Event) -> Difference | None:
        """Play what happened; a difference if the result is another one."""
        try:
            got = answer(self.player, event)
        except (HistoryError, InvariantError) as error:
            return Difference(f"process {event.pid}", f"result of {event.op}", _result(event.result), str(error))
        if event.op == "exec":
            pid = self.driver.pids[event.pid]
            self.machine.mm_of(event.pid).mmap_base = _first_place(self.witness.look([pid]).by_pid[pid])
        if got != event.result:
            return Difference(f"process {event.pid}", f"result of {event.op}", _result(event.result), _result(got))
        return None

    def _disagreement(self, found: Difference) -> Disagreement:
        return Disagreement(
            len(self.played) - 1, self.played[-1], found, list(self.requested), list(self.played), self.setting
        )

    def end(self) -> None:
        """The guest is free for another history."""
        for pid in self.driver.pids.values():
            self.witness.forget(pid)
        self.driver.end()


def answer(player: Player, event: Event) -> int:
    """What the machine answers to what happened elsewhere; it is to find out everything for itself."""
    asked = _copy(event)
    if event.op != "fault" or event.length <= 4096:
        asked.result = -14
    return player.do(asked)


def _first_place(mm: Mm) -> int:
    """Where top-down placement begins, below the vDSO if that was placed first."""
    base = mm.mmap_base
    for vma in reversed(mm.vmas):
        if vma.end == base and not belongs(vma):
            base = vma.start
    return base


def _copy(event: Event) -> Event:
    return Event(**{field: getattr(event, field) for field in event.__struct_fields__})


def _result(value: int) -> str:
    import errno

    return f"-{errno.errorcode.get(-value, str(-value))}" if value < 0 else hex(value)


def replay(
    witness: Witness,
    events: Iterable[Event],
    design: type[ReverseMap] | None = None,
    head: Header | None = None,
    coverage: Coverage | None = None,
    setting: Setting = ORDINARY,
) -> Disagreement | None:
    """The first disagreement of a history that was written down; what a guest cannot be asked is left out."""
    lockstep = Lockstep(witness, head, design or AnonVmaRmap, coverage, setting)
    try:
        for event in events:
            if not lockstep.possible(event):
                continue
            found = lockstep.step(event)
            if found is not None:
                return found
        return None
    finally:
        lockstep.end()


def possible(machine: Machine, event: Event) -> bool:
    """Whether `event` can be asked of a guest: the processes that it speaks of are there, and what it would do
    can be followed."""
    there = machine.processes
    if event.op == "exec":
        return True
    if event.pid not in there or (event.op == "fork" and event.pid2 in there):
        return False
    if machine.knows_contents and not _possible_with_large_folios(machine, event):
        return False
    if any(_LENT < length <= TASK_SIZE for length in (event.length, event.length2)):
        return False  # how much memory a kernel lends is not the machine's (__vm_enough_memory())
    if event.op == "swap_out":
        # A page that is in the swap cache and mapped nowhere cannot be seen from page tables when it goes.
        heads = {machine.folios.head.m[slot.cached_pfn] for slot in machine.swap.values() if slot.cached_pfn}
        return all(machine.mapcount(head) for head in heads)
    if event.op == "uffd_move":
        # Registering a VMA would merge it with neighbours that an ordinary VMA does not merge with.  And a source
        # without page table is reported before a target that has a page, but empty ones may be there in a kernel.
        mm = machine.mm_of(event.pid)
        source, target = mm.tree.at(event.addr2), mm.tree.at(event.addr)
        last = (event.addr2 + max(event.length, 1) - 1) >> LEAF_SHIFT
        return (
            source is not None and target is not None and target.file is None and not target.flags & VM_DROPPABLE
            and mm.tree.at(target.start - 1) is None and mm.tree.at(target.end) is None
            and all(number in mm.page_table.leaves for number in range(event.addr2 >> LEAF_SHIFT, last + 1))
        )  # fmt: skip
    if event.op == "madvise" and event.flags == MADV_REMOVE:
        # What it does to a file is not the machine's.
        vmas = machine.mm_of(event.pid).tree.overlapping(event.addr, event.addr + event.length)
        return not any(vma.flags & VM_SHARED for vma in vmas)
    if event.op == "madvise" and event.flags == MADV_COLLAPSE:
        # Nothing is collapsed, as in Linux where no aligned 2 MiB fit into a VMA.
        vmas = machine.mm_of(event.pid).tree.overlapping(event.addr, event.addr + event.length)
        return all((vma.end & -LEAF_SIZE) - vma.start < LEAF_SIZE for vma in vmas)
    if event.op == "mremap":
        if event.addr2 < MMAP_MIN_ADDR and (event.addr2 or event.flags & MREMAP_FIXED):
            return False  # a guest's programs are root's, who may map it
        # The machine knows no sizes: shared anonymous memory ends where its first mapping did.
        vma = machine.mm_of(event.pid).tree.at(event.addr)
        return vma is None or vma.file is None or not vma.file.is_anonymous or event.addr + event.length2 <= vma.end
    if event.op == "ksm":
        # ksmd has nothing to scan where nothing is mergeable.
        return any(vma.flags & VM_MERGEABLE for mm in machine.mms.values() for vma in mm.tree.to_list())
    return not (event.op == "exit" and len(there) == 1)


def _possible_with_large_folios(machine: Machine, event: Event) -> bool:
    """A large folio of which a locked VMA maps some may count as locked or not (docs/kernel.md): reclaim and MADV_FREE
    stay away.  And so does reclaim from what several places share in KSM: read back as a large folio, it would be
    mapped where no walk finds it (docs/findings/ksm-large-swap-in.md)."""
    if event.op == "swap_out" and any(machine.mapcount(pfn) > 1 for pfn in machine.ksm_pages):
        return False
    if event.op == "swap_out" or (event.op == "madvise" and event.flags == MADV_FREE):
        return not _locks_large_folio(machine)
    return True


def _locks_large_folio(machine: Machine) -> bool:
    """Does a locked VMA map a page of a large folio?"""
    if not machine.mlocked:
        return False
    for mm in machine.mms.values():
        for vma in mm.tree.to_list():
            for addr in range(vma.start, vma.end, PAGE_SIZE) if vma.flags & VM_LOCKED else ():
                entry = mm.page_table.get(addr)
                if entry & PTE_ANON and machine.folios.order.m[entry >> PTE_SHIFT] > 0:
                    return True
    return False


def choices(profile: Profile) -> Flags:
    """The flags of which random histories make use."""
    return msgspec.structs.replace(EVERY_FLAG, advice=EVERY_FLAG.advice + _GUARDS * 2 * profile.guard_regions)


class Random:
    """A random history in lockstep.

    ops: operations to choose among, of those that a guest can do (default: all of these)
    odd: the share of system calls of which an address or a length is one that few programs would give
    """

    def __init__(
        self, witness: Witness, seed: int, pages: int = 48, processes: int = 6,
        design: type[ReverseMap] = AnonVmaRmap, ops: Sequence[str] = (), coverage: Coverage | None = None,
        setting: Setting = ORDINARY, machine: type[Machine] = Machine, odd: float = 0.0,
    ) -> None:  # fmt: skip
        self._odd: Final = odd
        self._dice: Final = random.Random(f"odd/{seed}")
        self.lockstep: Final = Lockstep(witness, None, design, coverage, setting, machine)
        known = self.lockstep.driver.known()
        self._author = Author(
            self.lockstep.machine, random.Random(seed), [op for op in ops or sorted(known) if op in known],
            pages=pages, processes=processes, choices=choices(witness.profile),
        )  # fmt: skip
        self._first = True

    def steps(self, count: int) -> Iterator[Disagreement | None]:
        """At most `count` steps; ends after the first disagreement."""
        done = 0
        while done < count:
            event = self._author.first() if self._first else self._author.propose()
            if event is not None and event.op in ODD_FIELDS and self._dice.random() < self._odd:
                make_odd(event, self._dice)
            if event is None or not self.lockstep.possible(event):
                continue
            self._first = False
            found = self.lockstep.step(event)
            done += 1
            yield found
            if found is not None:
                return

    def end(self) -> None:
        self.lockstep.end()


def random_history(
    witness: Witness, seed: int, coverage: Coverage | None = None, design: type[ReverseMap] = AnonVmaRmap
) -> tuple[Random, int]:
    """The history of a seed, and by what its length is to be divided: every third with large folios, where the kernel
    has them, every third with odd arguments, every fifth with room for few mappings, and every eleventh with few
    processes and steps, but room for folios of 2 MiB."""
    setting = Setting(2 + seed // 3 % 3 if seed % 3 == 0 else 0, 6 + seed // 5 % 12 if seed % 5 == 0 else 0)
    pages, processes, share = 48, 6, 1
    if seed % 11 == 0:
        setting, pages, processes, share = Setting(MAX_ORDER), _HUGE_ARENA, 3, 5
    odd = 0.3 if seed % 3 == 1 else 0.0
    return Random(witness, seed, pages, processes, design, coverage=coverage, setting=setting, odd=odd), share


def random_histories(
    witness: Witness, seed: int, steps: int, say: Callable[[str], None], coverage: Coverage | None = None,
    each: int = 500, design: type[ReverseMap] = AnonVmaRmap,
) -> tuple[Disagreement | None, int]:  # fmt: skip
    """Histories of `each` steps, with seeds from `seed` on, until there were `steps` or one disagrees.  Returns the
    disagreement and the number of steps."""
    done = 0
    while done < steps:
        history, share = random_history(witness, seed, coverage, design)
        for found in history.steps(min(each // share, steps - done)):
            done += 1
            if found is not None:
                history.end()
                return found, done
        history.end()
        say(f"{done} of {steps} steps, seed {seed}")
        seed += 1
    return None, done


def minimal(
    witness: Witness,
    found: Disagreement,
    design: type[ReverseMap] = AnonVmaRmap,
    seconds: float = 120.0,
    head: Header | None = None,
) -> Disagreement:
    """The shortest history that ends in a disagreement about the same property, or the shortest that could be
    found in this time."""
    best = found
    deadline = time.monotonic() + seconds

    def fails(events: list[Event]) -> bool:
        nonlocal best
        if time.monotonic() > deadline:
            return False
        again = replay(witness, events, design, head, setting=found.setting)
        if again is not None and again.difference.what == found.difference.what:
            best = again
            return True
        return False

    shortest(found.requested, fails, again=list)
    return best
