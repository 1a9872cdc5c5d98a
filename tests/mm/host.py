# SPDX-License-Identifier: GPL-2.0-or-later
"""The witness: the running kernel, which executes the events of the machine.

`Host` plays the events of a history in real processes (host_driver.py), in a part of their address space
where nothing else is, and reads back the resulting state of the kernel: the VMAs with flags from
/proc/PID/smaps, and the mapped frames from /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
`compare` compares a machine with it.  Where they differ, the kernel is right, or is another version.

Needs root (page frame numbers), and no swap: the witness cannot say what reclaim would do.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final, TextIO

from rmaplab.check.histories import ARENA
from rmaplab.check.truth import entry_name
from rmaplab.mm import abi
from rmaplab.mm import vma as vm
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import PTE_ANON, PTE_SHIFT, PTE_SWAP, PTE_ZERO
from rmaplab.mm.vma import PAGE_SHIFT, PAGE_SIZE, VMA
from rmaplab.trace.calls import DOES
from rmaplab.trace.events import FAULT_WRITE, Event

# Quiet: above any program that is not position independent, below all others.
ARENA_PAGES: Final = 512
BELOW_FENCE: Final = 64 << 20  # bytes under the fence that are looked at
_LOOKS: Final = 100  # at what the kernel has, until two of them see the same

PLAYABLE: Final = ("mmap", "munmap", "mprotect", "mremap", "madvise", "mlock", "munlock", "fault", "fork", "exit")
# What the witness is asked for; without swap, MADV_PAGEOUT does nothing there.
ADVICE: Final = (
    abi.MADV_DONTNEED, abi.MADV_DONTNEED, abi.MADV_FREE, abi.MADV_DONTFORK, abi.MADV_DOFORK, abi.MADV_WIPEONFORK,
    abi.MADV_KEEPONFORK, abi.MADV_POPULATE_READ, abi.MADV_POPULATE_WRITE, abi.MADV_MERGEABLE,
    abi.MADV_UNMERGEABLE, abi.MADV_RANDOM, abi.MADV_SEQUENTIAL, abi.MADV_NORMAL, abi.MADV_DONTDUMP,
    abi.MADV_DODUMP, abi.MADV_COLD, abi.MADV_WILLNEED, abi.MADV_NOHUGEPAGE, abi.MADV_REMOVE,
    abi.MADV_DONTNEED_LOCKED, 99,
)  # fmt: skip

# The letters of smaps' VmFlags line (fs/proc/task_mmu.c show_smap_vma_flags()) that a program's own calls
# decide; soft-dirty and what only shows the configuration of the kernel is left out.
_VM_FLAGS: Final = {
    "rd": vm.VM_READ, "wr": vm.VM_WRITE, "ex": vm.VM_EXEC, "sh": vm.VM_SHARED, "mr": vm.VM_MAYREAD,
    "mw": vm.VM_MAYWRITE, "me": vm.VM_MAYEXEC, "ms": vm.VM_MAYSHARE, "gd": vm.VM_GROWSDOWN,
    "lo": vm.VM_LOCKED, "sr": vm.VM_SEQ_READ, "rr": vm.VM_RAND_READ, "dc": vm.VM_DONTCOPY,
    "de": vm.VM_DONTEXPAND, "lf": vm.VM_LOCKONFAULT, "ac": vm.VM_ACCOUNT, "nr": vm.VM_NORESERVE,
    "wf": vm.VM_WIPEONFORK, "dd": vm.VM_DONTDUMP, "hg": vm.VM_HUGEPAGE, "nh": vm.VM_NOHUGEPAGE,
    "mg": vm.VM_MERGEABLE, "dp": vm.VM_DROPPABLE,
}  # fmt: skip

_PRESENT: Final = 1 << 63
_SWAPPED: Final = 1 << 62
_OF_FILE: Final = 1 << 61  # of a file, or shared anonymous memory
_MAPPED_ONCE: Final = 1 << 56
_PFN: Final = (1 << 55) - 1


class HostUnavailable(RuntimeError):
    """The kernel cannot be a witness here; the message says why."""


class HostVMA:
    """A line of /proc/PID/smaps: start, end, offset in the file in bytes, flags (vm_flags)."""

    def __init__(self, start: int, end: int, offset: int, flags: int, has_file: bool) -> None:
        self.start: Final = start
        self.end: Final = end
        self.offset: Final = offset
        self.flags: Final = flags
        self.has_file: Final = has_file


class _Process:
    def __init__(self, stream: TextIO, pid: int, fence: int) -> None:
        self.stream: Final = stream
        self.pid: Final = pid
        self.fence: Final = fence
        self.pagemap: Final = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
        self.memory: Final = os.open(f"/proc/{pid}/mem", os.O_RDONLY)

    def ask(self, order: str) -> int:
        self.stream.write(order + "\n")
        self.stream.flush()
        line = self.stream.readline()
        if not line:
            raise HostUnavailable(f"the process for `{order}` has died")
        return int(line)

    def entries(self, addr: int, nr_pages: int) -> tuple[int, ...]:
        data = os.pread(self.pagemap, nr_pages * 8, addr >> PAGE_SHIFT << 3)
        return struct.unpack(f"{len(data) // 8}Q", data)

    def close(self) -> None:
        os.close(self.pagemap)
        os.close(self.memory)
        self.stream.close()


class Host:
    """Processes of the running kernel, by the numbers that a history gives them.

    `files` are mapped by an event's number: 0 is a file on disk, 1 one in memory (memfd_create()).
    """

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise HostUnavailable("only root may see page frame numbers in /proc/PID/pagemap")
        if len(Path("/proc/swaps").read_text().splitlines()) > 1:
            raise HostUnavailable("there is swap, so pages may leave unasked")
        self._directory: Final = tempfile.TemporaryDirectory(prefix="rmaplab-witness-")
        path = f"{self._directory.name}/socket"
        self._listener: Final = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self.processes: dict[int, _Process] = {}
        size = 2 * ARENA  # no mapping of a test's reaches behind a file's end
        disk = os.open(f"{self._directory.name}/file", os.O_RDWR | os.O_CREAT)
        memory = os.memfd_create("witness")
        self._files: Final = (disk, memory)
        for fd in self._files:
            os.ftruncate(fd, size)
        driver = str(Path(__file__).with_name("host_driver.py"))
        # All its memory from brk(): where Python or libc would map an area of their own, one would appear below
        # the fence in the middle of a test.
        own = {"LC_ALL": "C", "PYTHONMALLOC": "malloc", "MALLOC_MMAP_MAX_": "0"}
        self._driver: Final = subprocess.Popen(
            [sys.executable, "-P", "-s", "-S", driver, path], pass_fds=self._files, env=own
        )
        self._welcome()
        self._zero_frame: Final = self._find_zero_frame()

    def _welcome(self) -> None:
        if not select.select([self._listener], [], [], 10)[0]:
            raise HostUnavailable("the witness does not start")
        link, _ = self._listener.accept()
        stream: Any = link.makefile("rw", buffering=1)
        link.close()
        _, number, pid, fence = stream.readline().split()
        self.processes[int(number)] = _Process(stream, int(pid), int(fence))

    def _find_zero_frame(self) -> int:
        flags = abi.MAP_PRIVATE | abi.MAP_ANONYMOUS | abi.MAP_FIXED
        self.play(Event("mmap", 1, ARENA, PAGE_SIZE, abi.PROT_READ, flags))
        self.play(Event("fault", 1, ARENA, PAGE_SIZE))
        (entry,) = self.pagemap(1, ARENA, 1)
        self.play(Event("munmap", 1, ARENA, PAGE_SIZE))
        if not entry & _PFN:
            raise HostUnavailable("/proc/PID/pagemap hides page frame numbers")
        return entry & _PFN

    def close(self) -> None:
        """End all processes."""
        for process in self.processes.values():
            process.close()
        self._driver.wait(10)
        self._listener.close()
        for fd in self._files:
            os.close(fd)
        self._directory.cleanup()

    def fence(self) -> int:
        """Where the kernel's own placement starts, downwards."""
        return self.processes[1].fence

    def play(self, event: Event) -> int:
        """Do what `event` says; returns what the kernel did."""
        process = self.processes[event.pid]
        e = event
        if event.op == "fault":
            for addr in range(e.addr, e.addr + max(e.length, 1), PAGE_SIZE):
                result = process.ask(f"touch {addr} {int(e.flags & FAULT_WRITE != 0)}")
                if result:
                    return result
            return 0
        if event.op == "fork":
            process.stream.write(f"fork {e.pid2}\n")
            process.stream.flush()
            self._welcome()
            process.stream.readline()
            return 0
        if event.op == "exit":
            gone = os.pidfd_open(process.pid)
            process.stream.write("exit\n")
            process.stream.flush()
            select.select([gone], [], [], 10)
            os.close(gone)
            process.close()
            del self.processes[event.pid]
            return 0
        fd = self._files[e.file] if e.file >= 0 else 2**64 - 1
        call = DOES[event.op]
        return process.ask("call " + " ".join(str(word) for word in (call.number, *call.arguments(e, fd))))

    def vmas(self, pid: int) -> list[HostVMA]:
        """All VMAs, ascending."""
        found: list[HostVMA] = []
        head: list[str] = []
        for line in Path(f"/proc/{self.processes[pid].pid}/smaps").read_text().splitlines():
            if line.startswith("VmFlags:"):
                flags = sum(_VM_FLAGS.get(letters, 0) for letters in line.split()[1:])
                start, end = (int(word, 16) for word in head[0].split("-"))
                found.append(HostVMA(start, end, int(head[2], 16), flags, head[4] != "0"))
            elif line[0] in "0123456789abcdef":
                head = line.split()
        return found

    def pagemap(self, pid: int, addr: int, nr_pages: int) -> tuple[int, ...]:
        """Entries of /proc/PID/pagemap.

        There is no swap, so what looks swapped out is on its way to another frame (compaction).  Who migrates it may
        have lost its CPU half-way, for seconds where many want it.  Whoever touches the page waits
        (migration_entry_wait() in mm/migrate.c): the process itself, or where it may not, who traces it.
        """
        process = self.processes[pid]
        entries = process.entries(addr, nr_pages)
        for i in [i for i, entry in enumerate(entries) if entry & _SWAPPED]:
            page = addr + (i << PAGE_SHIFT)
            if process.ask(f"touch {page} 0"):
                os.pread(process.memory, 1, page)
            entries = process.entries(addr, nr_pages)
        return entries

    def is_zero_page(self, entry: int) -> bool:
        """Is it the page of zeros that reads of fresh anonymous memory map?"""
        return entry & _PFN == self._zero_frame and entry & _PRESENT != 0


def compare(host: Host, machine: Machine) -> list[str]:
    """Where the machine's VMAs and pages are not the kernel's, a sentence each; nothing where they agree.

    The kernel moves pages to other frames when it likes, also while some places that map one have been looked at and
    others have not.  So a difference counts if all is as it was when it was looked at before.
    """
    before: list[object] = []
    for _ in range(_LOOKS):
        comparison = _Comparison(host, machine)
        for pid in sorted(host.processes):
            comparison.compare_process(pid)
        if not comparison.wrong or comparison.seen == before:
            break
        before = comparison.seen
    return comparison.wrong


class _Comparison:
    """Frames of the kernel and pages of the machine have to correspond one to one, over all processes."""

    def __init__(self, host: Host, machine: Machine) -> None:
        self.wrong: Final[list[str]] = []
        self.seen: Final[list[object]] = []  # of the kernel
        self._host: Final = host
        self._machine: Final = machine
        self._page_of: Final[dict[int, int]] = {}  # by frame
        self._frame_of: Final[dict[int, int]] = {}  # by page

    def compare_process(self, pid: int) -> None:
        fence = self._host.processes[pid].fence
        ours = [vma for vma in self._machine.mm_of(pid).tree if _is_watched(vma.start, fence)]
        theirs = [vma for vma in self._host.vmas(pid) if _is_watched(vma.start, fence)]
        shown = [_show(v.start, v.end, v.offset if v.has_file else 0, v.flags) for v in theirs]
        expected = [_show(v.start, v.end, v.pgoff << PAGE_SHIFT if v.file else 0, v.flags) for v in ours]
        self.seen.append(shown)
        if shown != expected:
            lost = [line for line in shown if line not in expected]
            extra = [line for line in expected if line not in shown]
            self.wrong.append(f"process {pid}: the kernel has VMAs {lost}, the machine {extra}")
            return
        for vma in ours:
            entries = self._host.pagemap(pid, vma.start, vma.nr_pages)
            self.seen.append(entries)
            for i, entry in enumerate(entries):
                self._compare_page(pid, vma, vma.start + (i << PAGE_SHIFT), entry)

    def _compare_page(self, pid: int, vma: VMA, addr: int, theirs: int) -> None:
        ours = vma.mm.page_table.get(addr)
        where = f"process {pid}, {addr:#x}"
        zero = self._host.is_zero_page(theirs)
        anon = theirs & (_PRESENT | _OF_FILE) == _PRESENT and not zero
        if (anon, zero, theirs & _SWAPPED != 0) != (ours & PTE_ANON != 0, ours & PTE_ZERO != 0, ours & PTE_SWAP != 0):
            name = "the zero page" if zero else "an anonymous page" if anon else f"pagemap entry {theirs:#x}"
            self.wrong.append(f"{where}: the kernel has {name}, the machine {entry_name(ours)}")
        elif anon:
            frame, page = theirs & _PFN, ours >> PTE_SHIFT
            if (self._page_of.setdefault(frame, page), self._frame_of.setdefault(page, frame)) != (page, frame):
                self.wrong.append(f"{where}: page {page} is not shared by the same places as the kernel's frame")
            count = self._machine.folios.mapcount.m[page]
            if (theirs & _MAPPED_ONCE != 0) != (count == 1):
                once = "once" if theirs & _MAPPED_ONCE else "more than once"
                self.wrong.append(f"{where}: the kernel maps the page {once}, the machine {count} times")


def _is_watched(addr: int, fence: int) -> bool:
    return ARENA <= addr < ARENA + (ARENA_PAGES << PAGE_SHIFT) or fence - BELOW_FENCE <= addr < fence


def _show(start: int, end: int, offset: int, flags: int) -> str:
    letters = " ".join(name for name, flag in _VM_FLAGS.items() if flags & flag)
    return f"{start:#x}-{end:#x} +{offset:#x} {letters}"
