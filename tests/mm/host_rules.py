# SPDX-License-Identifier: GPL-2.0-or-later
"""A program that tries rules of a profile on the kernel that runs it, and prints what it saw as JSON.

Each is named by its field of Profile; what could not be tried is left out.  It maps at fixed places, of memory that
madvise() lets have folios of 2 MiB, and changes nothing but itself.
"""

import ctypes
import json
import os
import re
import resource
import struct

PAGE, HUGE, BASE = 4096, 2 << 20, 0x10_0000_0000
READ, READ_WRITE, PRIVATE_FIXED = 1, 3, 0x32
DONTNEED, FREE, DONTFORK, DOFORK, HUGEPAGE, PAGEOUT = 4, 8, 10, 11, 14, 21
MAYMOVE, FIXED, DONTUNMAP = 1, 2, 4

libc = ctypes.CDLL(None, use_errno=True)
for name, words in (("mmap", "ppiiil"), ("mremap", "pppip"), ("madvise", "ppi"), ("mprotect", "ppi")):
    of = {"p": ctypes.c_size_t, "i": ctypes.c_int, "l": ctypes.c_long}
    getattr(libc, name).argtypes = [of[word] for word in words]
libc.mmap.restype = libc.mremap.restype = ctypes.c_size_t
seen: dict[str, bool] = {}


def area(number: int, start: int = 0, length: int = HUGE) -> int:
    """Fresh memory in area `number`."""
    at = BASE + number * 32 * HUGE + start
    assert libc.mmap(at, length, READ_WRITE, PRIVATE_FIXED, -1, 0) == at
    libc.madvise(at, length, HUGEPAGE)
    return at


def write(addr: int) -> None:
    ctypes.c_char.from_address(addr).value = b"x"


def huge(addr: int) -> bool:
    """Does one entry map the folio there, which is all of its VMA?"""
    found = False
    with open("/proc/self/smaps") as lines:
        for line in lines:
            bounds = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
            if bounds:
                found = int(bounds[1], 16) <= addr < int(bounds[2], 16)
            elif found and line.startswith("AnonHugePages:"):
                return int(line.split()[1]) == HUGE >> 10
    return False


def entries(addr: int) -> tuple[int, ...]:
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(addr // PAGE * 8)
        return struct.unpack("512Q", file.read(4096))


def split(number: int) -> int:
    """A folio of 2 MiB, all written to, with an entry for each page."""
    at = area(number)
    write(at)
    libc.mprotect(at, PAGE, READ)
    libc.mprotect(at, PAGE, READ_WRITE)
    for page in range(512):
        write(at + page * PAGE)
    return at


def present(addr: int) -> int:
    return sum(entry >> 63 for entry in entries(addr))


with open("/proc/self/maps") as maps:
    vdso = re.search(r"([0-9a-f]+)-([0-9a-f]+) .*\[vdso\]", maps.read())
if vdso is not None:
    start, end = (int(word, 16) for word in vdso.groups())
    libc.madvise(start, end - start, DONTFORK)
    seen["dofork_special"] = libc.madvise(start, end - start, DOFORK) != 0

at = area(0)
write(at)
if huge(at):
    libc.mprotect(at, HUGE, READ)
    libc.mprotect(at, HUGE, READ_WRITE)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    write(at)
    seen["huge_writable"] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt == faults

    at = area(1)
    ctypes.c_char.from_address(at).value  # noqa: B018
    write(at)
    seen["huge_zero_replaced"] = huge(at)

    at = split(2)
    libc.madvise(at, HUGE, FREE)
    write(at + 12 * PAGE)
    libc.madvise(at, HUGE, PAGEOUT)  # drops what is clean, also without swap
    kept = present(at) == 512
    at = split(3)
    libc.madvise(at, HUGE, FREE)
    write(at + 12 * PAGE)
    libc.mprotect(at, HUGE, READ)
    libc.mprotect(at, HUGE, READ_WRITE)
    libc.madvise(at + 12 * PAGE, PAGE, DONTNEED)
    libc.madvise(at, HUGE, PAGEOUT)
    if kept == (present(at) == 511):
        seen["batches"] = kept

    at = split(4)
    libc.madvise(at + 5 * PAGE, PAGE, DONTNEED)
    libc.madvise(at, HUGE, DONTNEED)
    write(at)
    seen["reclaims_tables"] = huge(at)

    at = area(5, HUGE // 2, HUGE // 2)
    write(at)
    to = at + 8 * HUGE
    assert libc.mremap(at, HUGE // 2, HUGE // 2, MAYMOVE | FIXED | DONTUNMAP, to) == to
    below = area(5, 0, HUGE // 2)
    write(below)
    seen["realigns_moves"] = huge(below)

    at = split(6)
    before = entries(at)[2]
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    write(at + 2 * PAGE)
    if before & (1 << 55) - 1:  # root sees frames
        seen["mm_ids"] = entries(at)[2] == before

limit = int(open("/proc/sys/vm/max_map_count").read())
if limit <= 1 << 17:
    source = area(7, 0, 4 * PAGE)
    with open("/proc/self/maps") as maps:
        room = limit - (sum(1 for _ in maps) - 1)  # [vsyscall] is no VMA of ours
    for i in range(room - 5):  # 6 would be enough before, 4 are now
        libc.mmap(area(9) + HUGE + 2 * i * PAGE, PAGE, READ_WRITE, PRIVATE_FIXED, -1, 0)
    seen["remap_reserve"] = libc.mremap(source, 4 * PAGE, 4 * PAGE, MAYMOVE | FIXED, source + HUGE) == source + HUGE

print(json.dumps(seen))
