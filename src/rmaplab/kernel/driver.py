# SPDX-License-Identifier: GPL-2.0-or-later
"""A history's events done in a guest, one at a time.

Each process of a history is a worker in the guest.  What an event asks is done with the system calls that a
program would use; two things need preparation or help:

- execve() puts stack and heap where it likes.  Their worker then moves the stack (mremap) to where the event
  wants it and sets the start of its heap (prctl), and what really happened, page offset included, becomes the
  event that the model plays, followed by the move.
- Nor can it say which pages KSM merges: `ksm` lets ksmd scan everything, and what it merged becomes the events.
- No program can have a shared page swapped out.  `swap_out` starts reclaim on the workers' control group; the
  pages that it took become the events that the model plays, and the folios must then be gone everywhere.
- Where reclaim put pages in swap decides which come back as one folio: events tell the model.
- What MADV_FREE gives up is given up at once: no folio waits for others on a list of its CPU.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from rmaplab.kernel.errors import GuestError
from rmaplab.kernel.guest import GROUP, KSM, PEEK, POKE, THP, TOUCH, Guest
from rmaplab.kernel.isomorphism import belongs
from rmaplab.kernel.snapshot import Entry, Page, Snapshot
from rmaplab.mm.abi import (
    CLONE_VM,
    EAGAIN,
    MADV_COLD,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_PAGEOUT,
    MAP_LOCKED,
    MAX_MAP_COUNT,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
)
from rmaplab.mm.folio import MAX_ORDER
from rmaplab.mm.ksm import AS_FOUND, BREAK, FORGET, SPLIT
from rmaplab.mm.vmscan import KEPT, ONCE, PLACED
from rmaplab.trace.calls import DOES
from rmaplab.trace.events import FAULT_WRITE, Event
from rmaplab.trace.history import FileEntry

_MAX_MAP_COUNT: Final = "/proc/sys/vm/max_map_count"
_PR_SET_MM: Final = 35
_PR_SET_MM_START_BRK: Final = 6
_PR_SET_MM_BRK: Final = 7
_FIRST_FILE: Final = 600  # descriptor of the history's file 0
_FILE_SIZE: Final = 1 << 46
_ARGUMENTS: Final = 4  # pages at the end of a stack; which of them execve() touches is a matter of chance
_PAGE: Final = 4096
_MOVE_ALL: Final = 4  # MPOL_MF_MOVE_ALL: also what several processes map
_MIGRATED: Final = 5  # pages at once, as many as the guest takes in one line
_RECLAIMED: Final = 16 * _PAGE
# include/uapi/linux/userfaultfd.h
_UFFD_API: Final = 0xAA
_UFFD_FEATURE_MOVE: Final = 1 << 16
_UFFDIO_API: Final = 0xC018AA3F
_UFFDIO_REGISTER: Final = 0xC020AA00
_UFFDIO_UNREGISTER: Final = 0x8010AA01
_UFFDIO_MOVE: Final = 0xC028AA05
_REGISTER_MISSING: Final = 1

# Operations that are more, or other, than the system call in trace/calls.py: methods of that name; and those that take
# several events.
_OWN: Final = ("exit", "fork", "madvise", "fault", "migrate", "uffd_move")
OPERATIONS: Final = frozenset((*DOES, *_OWN, "exec", "swap_out", "ksm"))


class Setting(msgspec.Struct, frozen=True):
    """What the guest is set to for a history.

    large_folios: highest order of the folios that faults may allocate
    mappings: VMAs that a process may have, without those of its program, which the history does not know; 0: as many as
              the kernel lets it have
    """

    large_folios: int = 0
    mappings: int = 0


ORDINARY: Final = Setting()


class Driver:
    """Does events in `guest`.

    look: reads the memory of processes (by the guest's pids), which is needed after execve() and reclaim
    scans: how often ksmd has scanned everything
    """

    def __init__(
        self, guest: Guest, files: Mapping[int, FileEntry], look: Callable[[Iterable[int]], Snapshot],
        scans: Callable[[], int], setting: Setting = ORDINARY,
    ) -> None:  # fmt: skip
        self.guest: Final = guest
        self.slots: Final[dict[int, int]] = {}  # by the history's pid
        self.pids: Final[dict[int, int]] = {}  # the history's -> the guest's
        self._look: Final = look
        self._scans: Final = scans
        self._orders: Final = range(2, setting.large_folios + 1)
        self._mappings = setting.mappings
        self._locks = False  # has anything been locked?
        self._allow_large("always")
        self._allow_huge("always")
        guest.write_file(f"{GROUP}/cgroup.procs", "1")  # and so all that it makes: swap knows whose pages it has
        self._descriptors: Final[dict[int, int]] = {-1: -1}
        for entry in files.values():
            self._open(entry)
        self._moves: Final = self._can_move()
        self._acts: Final[Mapping[str, Callable[[Event], int]]] = {
            **dict.fromkeys(DOES, self._syscall), **{op: getattr(self, f"_{op}") for op in _OWN}
        }  # fmt: skip

    def known(self) -> frozenset[str]:
        """Operations that can be done."""
        return OPERATIONS if self._moves else OPERATIONS - {"uffd_move"}

    def _open(self, entry: FileEntry) -> None:
        guest = self.guest
        if entry.kind == "shmem":
            descriptor = guest.syscall(0, "memfd_create", guest.poke(0, b"shmem\0"), 0)
        else:
            descriptor = guest.open(0, f"/files/{entry.id}", os.O_RDWR | os.O_CREAT)
        kept = _FIRST_FILE + entry.id
        if descriptor < 0 or guest.syscall(0, "dup2", descriptor, kept) != kept:
            raise GuestError(f"the guest cannot make file {entry.id} ({descriptor})")
        guest.syscall(0, "close", descriptor)
        if guest.syscall(0, "ftruncate", kept, _FILE_SIZE) != 0:
            raise GuestError(f"the guest cannot make file {entry.id} large")
        self._descriptors[entry.id] = kept

    def do(self, event: Event) -> list[Event]:
        """Do `event`.  Returns what happened, with results: one event, except after execve()."""
        if event.op == "exec":
            return self._exec(event)
        if event.op == "swap_out":
            return self._reclaim()
        if event.op == "ksm":
            return self._merge_same()
        if event.op == "madvise" and event.flags == MADV_PAGEOUT:
            before = self._look(self.pids.values())
            event.result = self._madvise(event)
            after = self._look(self.pids.values())
            return [event, *self._placed(before, after), *self._gone_files(before, after)]
        event.result = self._acts[event.op](event)
        if event.op in ("mlock", "mlockall") or (event.op == "mmap" and event.flags & MAP_LOCKED):
            self._locks = True
        if self._locks:
            self._drain()
        if event.op == "fault" and event.result and event.length > _PAGE:
            return self._page_by_page(event)
        return [event, event] if event.op == "migrate" else [event]  # there and back

    def _drain(self) -> None:
        """Let the CPU let go of the pages that mlock() or munlock() noted (mm/swap.c lru_add_drain()): as long as it
        has references to them, a write copies what it would take over."""
        self.guest.syscall(0, "madvise", self.guest.scratch & -_PAGE, _PAGE, MADV_COLD)

    def _allow_large(self, when: str) -> None:
        for order in self._orders:
            if order < MAX_ORDER:
                self.guest.write_file(f"{THP}/hugepages-{4 << order}kB/enabled", when, must=False)  # since 6.8

    def _allow_huge(self, when: str) -> None:
        """Of 2 MiB, for which no stack that execve() builds has room."""
        if MAX_ORDER in self._orders and self.guest.write_file(f"{THP}/hugepages-2048kB/enabled", when, must=False) < 0:
            self.guest.write_file(f"{THP}/enabled", when)

    def end(self) -> None:
        """Let all workers exit."""
        self._allow_large("never")
        self._allow_huge("never")
        self.guest.write_file(_MAX_MAP_COUNT, str(MAX_MAP_COUNT))
        for pid in list(self.slots):
            self._exit(Event("exit", pid))

    # Processes

    def _exec(self, event: Event) -> list[Event]:
        guest, pid = self.guest, event.pid
        self._allow_large("never")  # execve() itself has only small ones on the stack that it builds
        if pid in self.slots:
            guest.exec(self.slots[pid])
        else:
            self.slots[pid], self.pids[pid] = guest.spawn()
        slot = self.slots[pid]
        if event.addr2:
            for what in (_PR_SET_MM_BRK, _PR_SET_MM_START_BRK):
                result = guest.syscall(slot, "prctl", _PR_SET_MM, what, event.addr2, 0, 0)
                if result:
                    raise GuestError(f"the guest does not let its heap begin at {event.addr2:#x} ({result})")
        mm = self._look([self.pids[pid]]).by_pid[self.pids[pid]]
        if self._mappings:
            own = sum(not belongs(vma) for vma in mm.vmas)
            self.guest.write_file(_MAX_MAP_COUNT, str(self._mappings + own))
            self._mappings = 0
        stack = next(vma for vma in mm.vmas if vma.flags & 0x100)
        length = stack.end - stack.start
        start = Event("exec", pid, stack.start, length, offset=stack.pgoff * _PAGE, addr2=mm.start_brk)
        events = [start]
        touched = [Event("fault", pid, stack.end - _ARGUMENTS * _PAGE, _ARGUMENTS * _PAGE, flags=FAULT_WRITE)]
        touched += [
            Event("fault", pid, addr, _PAGE, flags=FAULT_WRITE)
            for addr in sorted(mm.entries)
            if stack.start <= addr < stack.end - _ARGUMENTS * _PAGE
        ]
        for fault in touched:
            events += self.do(fault)
        if event.addr and event.addr != stack.start:
            flags = MREMAP_MAYMOVE | MREMAP_FIXED
            move = Event("mremap", pid, stack.start, length, flags=flags, length2=length, addr2=event.addr)
            events += self.do(move)
        self._allow_large("always")
        return events

    def _fork(self, event: Event) -> int:
        flags = event.flags & CLONE_VM  # a parent that waits for its child could do nothing more
        self.slots[event.pid2], self.pids[event.pid2] = self.guest.fork(self.slots[event.pid], flags)
        return 0

    def _exit(self, event: Event) -> int:
        self.guest.exit(self.slots.pop(event.pid), self.pids.pop(event.pid))
        return 0

    # System calls

    def _call(self, event: Event, name: str, *arguments: int) -> int:
        return self.guest.syscall(self.slots[event.pid], name, *arguments)

    def _syscall(self, event: Event) -> int:
        call = DOES[event.op]
        return self._call(event, call.name, *call.arguments(event, self._descriptors[event.file]))

    def _madvise(self, event: Event) -> int:
        result = self._syscall(event)
        if event.flags == MADV_FREE:
            # The folios wait on a list of their CPU, which keeps a reference, so that a write to one that is not
            # exclusive makes a copy.  What empties the list next is a matter of chance: let move_pages() do it, which
            # moves nothing.
            scratch = self.guest.scratch
            self._call(event, "move_pages", 0, 0, scratch, scratch, scratch, 0)
        return result

    def _fault(self, event: Event) -> int:
        write = int(event.flags & FAULT_WRITE != 0)
        return self.guest.call(self.slots[event.pid], TOUCH, event.addr, event.length, write)

    def _page_by_page(self, event: Event) -> list[Event]:
        """Which pages of a run could not be touched?  Those that could are touched again, which changes nothing."""
        pages = [
            Event("fault", event.pid, event.addr + at, _PAGE, flags=event.flags) for at in range(0, event.length, _PAGE)
        ]
        for page in pages:
            page.result = self._fault(page)
        return pages

    # Users of the reverse map

    def _migrate(self, event: Event) -> int:
        """move_pages(): to one NUMA node, and to the other, so that what was there moves, too.  The call gives up where
        it cannot move a page (mm/migrate.c do_pages_move(): a page of KSM of which the walk misses a place, say), and
        is repeated page by page then: what is there already stays."""
        event.length = min(event.length, _MIGRATED * _PAGE)
        slot, guest = self.slots[event.pid], self.guest
        count = event.length // _PAGE
        guest.call(slot, POKE, 0, *(event.addr + i * _PAGE for i in range(count)))
        nodes, status = guest.scratch + 64, guest.scratch + 128
        for node in (1, 0):
            both = node << 32 | node
            guest.call(slot, POKE, 8, both, both, both)
            result = guest.syscall(slot, "move_pages", 0, count, guest.scratch, nodes, status, _MOVE_ALL)
            for i in range(count if result > 0 else 0):
                at = guest.scratch + 8 * i
                result = min(result, guest.syscall(slot, "move_pages", 0, 1, at, nodes, status, _MOVE_ALL))
            if result < 0:
                raise GuestError(f"move_pages() failed with {result}")
        return 0

    def _merge_same(self) -> list[Event]:
        """Let ksmd scan everything, and say what it merged, in the order in which it did."""
        before = self._look(self.pids.values())
        self.guest.write_file(f"{KSM}/run", "1")
        try:
            self._await_scans()
        finally:
            self.guest.write_file(f"{KSM}/run", "0")
        after = self._look(self.pids.values())
        by_mm = {after.by_pid[guest_pid].address: pid for pid, guest_pid in sorted(self.pids.items(), reverse=True)}
        events = self._split(before, [page.head for page in after.pages.values() if page.order])
        events += self._copied(before, after)
        # In the order of addresses: page frames are a matter of chance.
        first = {
            pfn: sorted((by_mm[mm], addr) for mm, addr in places if mm in by_mm)
            for pfn, places in after.ksm_places.items()
        }  # fmt: skip
        for pfn in sorted(first, key=lambda pfn: first[pfn]):
            places = after.ksm_places[pfn]
            page = before.pages.get(pfn)
            known = set(before.ksm_places.get(pfn, []))
            new = [
                (mm, addr) for mm, addr in reversed(places)
                if (mm, addr) not in known or _page_at(before, mm, addr) != pfn
            ]  # fmt: skip
            if not new and (page is None or not page.ksm):
                continue  # taken in vain (_split()), and others map it still
            cached = None if page is not None else _swapped_at(before, after.pages[pfn].swap)
            if cached is not None:  # nothing mapped it, but the swap cache kept it
                own = cached
            elif page is None or not page.ksm:  # of the first two, the second had the page
                new[:2] = new[1::-1]
                own, new = new[0], new[1:]
            else:
                own = next((mm, addr) for mm, its in before.mms.items() for addr in its.entries
                           if _page_at(before, mm, addr) == pfn)  # fmt: skip
            events += [
                Event("ksm", by_mm[own[0]], own[1], pid2=by_mm[mm], addr2=addr, flags=AS_FOUND) for mm, addr in new
            ]
        pid = min(self.pids)
        return [*events, Event("ksm", pid, pid2=pid, flags=FORGET)]

    def _split(self, before: Snapshot, whole: Iterable[int]) -> list[Event]:
        """For each large folio that was split, which are those that are not `whole`."""
        seen = set(whole)
        events = []
        for pid, guest_pid in self.pids.items():
            for addr, entry in before.by_pid[guest_pid].entries.items():
                page = before.pages[entry.number] if entry.kind == "anon" else None
                if page is not None and page.order and page.head not in seen:
                    seen.add(page.head)
                    events.append(Event("ksm", pid, addr, flags=SPLIT, pid2=pid))
        return events

    def _copied(self, before: Snapshot, after: Snapshot) -> list[Event]:
        """For each page that ksmd took and gave back as a copy.  A later scan may have merged the copy; then others map
        what was taken, a page of KSM that has no place."""
        taken = {pfn for pfn, page in after.pages.items() if page.ksm and not after.ksm_places.get(pfn)}
        events = []
        for pid, guest_pid in self.pids.items():
            now = after.by_pid[guest_pid].entries
            for addr, entry in before.by_pid[guest_pid].entries.items():
                there = now.get(addr)
                if entry.kind != "anon" or there is None or there.kind != "anon" or there.number == entry.number:
                    continue
                copied = not after.pages[there.number].ksm or entry.number in taken
                if copied and not before.pages[entry.number].ksm:
                    taken.discard(entry.number)
                    events.append(Event("ksm", pid, addr, flags=BREAK, pid2=pid))
        return events

    def _await_scans(self) -> None:
        """Three whole scans: one notes what a page contains, one merges what did not change, and the first may have
        begun in the middle."""
        enough = self._scans() + 4
        deadline = time.monotonic() + 300
        while self._scans() < enough:
            if time.monotonic() > deadline:
                raise GuestError("ksmd does not get on with its scans")
            time.sleep(0.001)

    def _reclaim(self) -> list[Event]:
        """Let the kernel reclaim some pages of the workers, and say which."""
        before = self._look(self.pids.values())
        # The result only says whether as much could be reclaimed as was asked for.
        self.guest.write_file(f"{GROUP}/memory.reclaim", str(_RECLAIMED), must=False)
        after = self._look(self.pids.values())
        by_guest_pid = {guest_pid: pid for pid, guest_pid in self.pids.items()}
        dropped = self._dropped(before, after)
        events = list(dropped.values())
        # What is split and gone altogether needs no word: the model knows which folios it splits.
        events += self._split(before, [page.head for page in before.pages.values() if not _torn(page, after)])
        taken: set[int] = set()
        for mm in before.mms.values():
            pid = by_guest_pid[mm.pids[0]]
            now = after.mms[mm.address].entries
            for addr, entry in sorted(mm.entries.items()):
                there = now.get(addr)
                if there is None or entry.kind != "anon" or entry.number in taken:
                    continue
                if _reclaimed(before, after, entry, there):
                    taken.add(entry.number)
                    kept = 0 if before.pages[entry.number].head in dropped else KEPT
                    events.append(Event("swap_out", pid, addr, _PAGE, flags=kept))
        return events + self._placed(before, after) + self._gone_files(before, after)

    def _placed(self, before: Snapshot, after: Snapshot) -> list[Event]:
        """Where in swap lies what has gone there, in runs; only where there are large folios it matters."""
        events: list[Event] = []
        seen: set[int] = set()
        for pid, guest_pid in self.pids.items() if self._orders else ():
            known = before.by_pid[guest_pid].entries
            for addr, entry in sorted(after.by_pid[guest_pid].entries.items()):
                if entry.kind != "swap" or entry.number in seen or (addr in known and known[addr].kind == "swap"):
                    continue
                seen.add(entry.number)
                last = events[-1] if events else Event("swap_out", 0)
                if pid == last.pid and addr == last.addr + last.length:
                    if entry.number == last.offset + last.length // _PAGE:
                        last.length += _PAGE
                        continue
                events.append(Event("swap_out", pid, addr, _PAGE, offset=entry.number, flags=PLACED))
        return events

    def _dropped(self, before: Snapshot, after: Snapshot) -> dict[int, Event]:
        """By first page, each folio of which reclaim dropped what MADV_FREE had given up: all of it, or what its walk
        came to before an entry that was written to since."""
        dropped: dict[int, Event] = {}
        for pid, guest_pid in self.pids.items():
            now = after.by_pid[guest_pid].entries
            for addr, entry in sorted(before.by_pid[guest_pid].entries.items()):
                if entry.kind == "anon" and addr not in now:
                    dropped.setdefault(before.pages[entry.number].head, Event("swap_out", pid, addr, _PAGE, flags=ONCE))
        return dropped

    def _gone_files(self, before: Snapshot, after: Snapshot) -> list[Event]:
        """Shared memory is swapped out of the page cache: its entries are simply gone, as after MADV_DONTNEED."""
        by_guest_pid = {guest_pid: pid for pid, guest_pid in self.pids.items()}
        return [
            event
            for mm in before.mms.values()
            for addr, entry in sorted(mm.entries.items())
            if entry.kind == "file" and addr not in after.mms[mm.address].entries
            for event in self.do(Event("madvise", by_guest_pid[mm.pids[0]], addr, _PAGE, flags=MADV_DONTNEED))
        ]

    def _uffd_move(self, event: Event) -> int:
        """UFFDIO_MOVE by a userfaultfd that watches the VMA of the target for as long as it takes."""
        slot, guest = self.slots[event.pid], self.guest
        mm = self._look([self.pids[event.pid]]).by_pid[self.pids[event.pid]]
        target = next(vma for vma in mm.vmas if vma.start <= event.addr < vma.end)
        watched = (target.start, target.end - target.start)
        descriptor = guest.syscall(slot, "userfaultfd", 0)
        self._uffd(slot, descriptor, _UFFDIO_API, _UFFD_API, _UFFD_FEATURE_MOVE, 0)
        self._uffd(slot, descriptor, _UFFDIO_REGISTER, *watched, _REGISTER_MISSING, 0)
        guest.call(slot, POKE, 0, event.addr, event.addr2, event.length, 0, 0)
        result = guest.syscall(slot, "ioctl", descriptor, _UFFDIO_MOVE, guest.scratch)
        if result == 0:
            result = event.length
        elif result == -EAGAIN:
            result = guest.call(slot, PEEK, 4)  # bytes that did move
        self._uffd(slot, descriptor, _UFFDIO_UNREGISTER, *watched)
        guest.syscall(slot, "close", descriptor)
        return result

    def _can_move(self) -> bool:
        """Whether the kernel knows UFFDIO_MOVE (since 6.8)."""
        guest = self.guest
        descriptor = guest.syscall(0, "userfaultfd", 0)
        guest.call(0, POKE, 0, _UFFD_API, _UFFD_FEATURE_MOVE, 0)
        result = guest.syscall(0, "ioctl", descriptor, _UFFDIO_API, guest.scratch)
        guest.syscall(0, "close", descriptor)
        return result == 0

    def _uffd(self, slot: int, descriptor: int, request: int, *words: int) -> None:
        self.guest.call(slot, POKE, 0, *words)
        result = self.guest.syscall(slot, "ioctl", descriptor, request, self.guest.scratch)
        if result:
            raise GuestError(f"userfaultfd ioctl {request:#x} failed with {result}")


def _swapped_at(snapshot: Snapshot, slot: int) -> tuple[int, int] | None:
    """An address space and address that refer to a place in swap (0: none)."""
    for mm, its in snapshot.mms.items():
        for addr, entry in its.entries.items():
            if slot and entry.kind == "swap" and entry.number == slot:
                return mm, addr
    return None


def _page_at(snapshot: Snapshot, mm: int, addr: int) -> int:
    """The anonymous page at an address; -1 if there is none."""
    entry = snapshot.mms[mm].entries.get(addr)
    return -1 if entry is None or entry.kind != "anon" else entry.number


def _torn(page: Page, after: Snapshot) -> bool:
    """Whether a page of its folio is there by itself."""
    pages = (after.pages.get(page.head + i) for i in range(1 << page.order))
    return any(its is not None and not its.order for its in pages)


def _reclaimed(before: Snapshot, after: Snapshot, entry: Entry, there: Entry) -> bool:
    """Whether reclaim took the page of `entry`, or gave up on it after it had entered or left the swap cache."""
    if there.kind != "anon":
        return True
    return before.pages[entry.number].swapcache != after.pages[there.number].swapcache
