# SPDX-License-Identifier: GPL-2.0-or-later
"""A small program that does to memory what makes a reverse map work: `python -m rmaplab.example`.

It faults, forks, copies on write, splits, moves and grows mappings, in its children and in itself, with
nothing but the standard library, in well under a second.  `make demo` records it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from functools import partial
from typing import Final

PAGE: Final = mmap.PAGESIZE
MREMAP_MAYMOVE: Final = 1
MREMAP_FIXED: Final = 2

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = _libc.mremap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def _map(nr_pages: int) -> int:
    addr = _libc.mmap(
        None, nr_pages * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0
    )
    assert isinstance(addr, int)
    return addr


def _write(addr: int, nr_pages: int, step: int = 1) -> None:
    for page in range(0, nr_pages, step):
        ctypes.memset(addr + page * PAGE, page & 0xFF, 8)


def _move(source: int, nr_pages: int, target: int) -> None:
    """Move pages over what is at `target`."""
    _libc.mremap(source, nr_pages * PAGE, nr_pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target)


def _fork(act: Callable[[], None]) -> None:
    """Do `act` in a child, and see that it went well."""
    pid = os.fork()
    if pid == 0:
        act()
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise SystemExit("a child of the example failed")


def _descend(area: int, spare: int, depth: int) -> None:
    """In a child: copy some of what was inherited, let a child of this one do the same, then move a part
    away, fork while it is there, and take it home."""
    _write(area, 64, 2)
    if depth:
        _fork(partial(_descend, area, spare, depth - 1))
    _move(area + 16 * PAGE, 16, spare + 32 * PAGE)
    _fork(partial(_write, spare + 32 * PAGE, 16, 3))
    _move(spare + 32 * PAGE, 16, area + 16 * PAGE)
    _write(area + 16 * PAGE, 16)
    _libc.mprotect(area + 40 * PAGE, 8 * PAGE, mmap.PROT_READ)


def main() -> None:
    area = _map(64)
    spare = _map(64)
    _write(area, 64)
    for depth in range(3):
        _fork(partial(_descend, area, spare, depth))
        _write(area, 64, 4)
    _move(area + 8 * PAGE, 24, spare + 8 * PAGE)  # splits both, in the process that all others came from
    _fork(partial(_write, spare + 8 * PAGE, 24))
    _write(spare + 8 * PAGE, 24, 5)
    with mmap.mmap(-1, 16 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as growing:
        for nr_pages in (32, 64, 128):  # as realloc() does
            growing[:: 2 * PAGE] = bytes(len(growing) // (2 * PAGE))
            growing.resize(nr_pages * PAGE)
    print("example: forked, copied, split, moved and grew")


if __name__ == "__main__":
    main()
