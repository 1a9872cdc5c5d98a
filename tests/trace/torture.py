# SPDX-License-Identifier: GPL-2.0-or-later
"""What makes recording hard, in one program: threads that race for addresses, all ways to make a process,
all sorts of mappings, accesses that fail.  Run by test_record.py; needs nothing but Python."""

import ctypes
import mmap
import os
import random
import signal
import sys
import threading
from collections.abc import Callable

PAGE = mmap.PAGESIZE
RW = mmap.PROT_READ | mmap.PROT_WRITE
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
SHARED = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
FIXED = 0x10

libc = ctypes.CDLL(None, use_errno=True)
for name in ("mmap", "mremap", "shmat"):
    getattr(libc, name).restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 4]
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
for name in ("munmap", "mprotect", "madvise", "mlock", "munlock"):
    getattr(libc, name).argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.shmdt.argtypes = [ctypes.c_void_p]


def map_pages(nr_pages: int, prot: int = RW, flags: int = PRIVATE, fd: int = -1) -> int:
    return int(libc.mmap(None, nr_pages * PAGE, prot, flags, fd, 0))


def race(seed: int) -> None:
    """Threads of one address space that map, move, grow and unmap."""
    chosen = random.Random(seed)
    mine: list[tuple[int, int]] = []
    for _ in range(150):
        act = chosen.randrange(5)
        if act < 2 or not mine:
            nr_pages = chosen.randint(1, 12)
            addr = map_pages(nr_pages)
            ctypes.memset(addr, 1, nr_pages * PAGE)
            mine.append((addr, nr_pages))
        elif act == 2:
            addr, nr_pages = mine.pop(chosen.randrange(len(mine)))
            libc.munmap(addr, nr_pages * PAGE, 0)
        elif act == 3:
            addr, nr_pages = mine.pop(chosen.randrange(len(mine)))
            addr = libc.mremap(addr, nr_pages * PAGE, nr_pages * 2 * PAGE, 1, None)
            ctypes.memset(addr, 2, nr_pages * 2 * PAGE)
            mine.append((addr, nr_pages * 2))
        else:
            addr, nr_pages = chosen.choice(mine)
            libc.mprotect(addr, PAGE, mmap.PROT_READ)  # a split
            libc.mprotect(addr, PAGE, RW)  # and a merge


def in_child(act: Callable[[], object]) -> None:
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        act()
        os._exit(0)
    os.waitpid(pid, 0)


def bad_accesses() -> None:
    """Through the kernel first (EFAULT), then for good (SIGSEGV)."""
    hole = map_pages(3)
    libc.munmap(hole + PAGE, PAGE, 0)
    reader, writer = os.pipe()
    os.write(writer, b"x")
    libc.read(reader, ctypes.c_void_p(hole + PAGE), 1)
    ctypes.memset(hole + PAGE, 1, 1)


def sorts_of_memory() -> None:
    map_pages(4, RW, SHARED)
    with open(sys.executable, "rb") as file:
        private = map_pages(6, RW, mmap.MAP_PRIVATE, file.fileno())
        ctypes.memset(private + PAGE, 1, 2 * PAGE)
        map_pages(6, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno())
    memfd = os.memfd_create("torture")
    os.ftruncate(memfd, 8 * PAGE)
    ctypes.memset(map_pages(8, RW, mmap.MAP_SHARED, memfd), 1, 8 * PAGE)
    segment = libc.shmget(0, 4 * PAGE, 0o1600)
    kept = libc.shmat(segment, None, 0)
    ctypes.memset(kept, 1, PAGE)
    libc.shmdt(libc.shmat(segment, None, 0))
    libc.shmctl(segment, 0, None)
    zero = os.open("/dev/zero", os.O_RDWR)
    ctypes.memset(map_pages(2, RW, mmap.MAP_PRIVATE, zero), 1, PAGE)
    named = map_pages(8)
    libc.prctl(
        0x53564D41, 0, named + 2 * PAGE, 2 * PAGE, ctypes.cast(ctypes.c_char_p(b"tortured"), ctypes.c_void_p)
    )
    locked = map_pages(8)
    libc.mlock(locked + PAGE, 3 * PAGE, 0)
    libc.munlock(locked + 2 * PAGE, PAGE, 0)
    advised = map_pages(16)
    ctypes.memset(advised, 1, 16 * PAGE)
    libc.madvise(advised + 4 * PAGE, 4 * PAGE, 10)  # MADV_DONTFORK
    libc.madvise(advised + 10 * PAGE, 2 * PAGE, 18)  # MADV_WIPEONFORK
    libc.madvise(advised, PAGE, 4)  # MADV_DONTNEED
    moved = map_pages(8)
    ctypes.memset(moved, 1, 8 * PAGE)
    libc.mremap(moved + 2 * PAGE, 2 * PAGE, 2 * PAGE, 1 | 2, advised + 13 * PAGE)
    libc.mremap(moved + 4 * PAGE, 2 * PAGE, 2 * PAGE, 1 | 4, None)  # MREMAP_DONTUNMAP


def odd_calls() -> None:
    """Calls that fail half-way, at a hole, beyond the end of memory, or are allowed to root alone."""
    whole = 16 * PAGE
    for hole in (0, 5, 15):
        for advice in (4, 8, 10, 14, 16, 18, 21, 22, 23, 999):
            libc.madvise(holed(hole), whole, advice)
        libc.mprotect(holed(hole), whole, mmap.PROT_READ)
        libc.mlock(holed(hole), whole, 0)
        libc.munlock(holed(hole), whole, 0)
    locked = map_pages(16)
    libc.mlock(locked + 4 * PAGE, 4 * PAGE, 0)
    libc.madvise(locked, whole, 4)  # MADV_DONTNEED
    room = map_pages(32, 0)
    moved = holed(5)
    libc.mprotect(moved, PAGE, mmap.PROT_READ)
    libc.mremap(moved, whole, whole, 1 | 2, room)
    libc.mremap(holed(5), whole, 2 * whole, 1 | 2, room)
    for length in (2**64 - 1, 2**64 - PAGE):
        libc.mlock(locked, length, 0)
    libc.mmap(0, PAGE, RW, PRIVATE | FIXED, -1, 0)
    libc.mremap(locked, PAGE, PAGE, 1 | 2, PAGE)
    libc.mmap(PAGE, PAGE, RW, PRIVATE, -1, 0)  # only a hint


def holed(hole: int) -> int:
    """16 pages, without one of them."""
    addr = map_pages(16)
    ctypes.memset(addr, 1, 16 * PAGE)
    libc.munmap(addr + hole * PAGE, PAGE, 0)
    return addr


def deep(n: int) -> int:
    """Lets the stack grow."""
    buffer = (ctypes.c_char * 65536)()
    return 0 if n == 0 else deep(n - 1) + len(buffer)


threads = [threading.Thread(target=race, args=(seed,)) for seed in range(4)]
for thread in threads:
    thread.start()
in_child(sorts_of_memory)  # forked while they race
for thread in threads:
    thread.join()
sorts_of_memory()
in_child(bad_accesses)
in_child(lambda: deep(20))
in_child(odd_calls)
os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
try:
    os.posix_spawn(
        "/nonexistent", ["nothing"], {}
    )  # an exec that fails, in a child that shares the address space
except FileNotFoundError:
    pass
in_child(lambda: os.execv("/bin/sh", ["sh", "-c", "exit 0 | cat"]))
