# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers of the system-call interface are those of the running system, and of include/uapi where Python knows none."""

from __future__ import annotations

import errno
import mmap

import pytest

from rmaplab.mm import abi

NUMBERS = {name: value for name, value in vars(abi).items() if name.isupper() and isinstance(value, int)}
# include/uapi/linux/mman.h, asm-generic/mman.h and mman-common.h, linux/sched.h
UAPI = {
    "PROT_NONE": 0, "MAP_NORESERVE": 0x4000,
    "PROT_SEM": 0x8, "PROT_GROWSDOWN": 0x0100_0000, "PROT_GROWSUP": 0x0200_0000, "MAP_SHARED_VALIDATE": 0x3,
    "MAP_DROPPABLE": 0x8, "MAP_TYPE": 0xF, "MAP_FIXED": 0x10, "MAP_GROWSDOWN": 0x100, "MAP_LOCKED": 0x2000,
    "MAP_NONBLOCK": 0x1_0000, "MAP_FIXED_NOREPLACE": 0x10_0000, "MREMAP_MAYMOVE": 1, "MREMAP_FIXED": 2,
    "MREMAP_DONTUNMAP": 4, "MADV_WIPEONFORK": 18, "MADV_KEEPONFORK": 19, "MADV_COLD": 20, "MADV_PAGEOUT": 21,
    "MADV_POPULATE_READ": 22, "MADV_POPULATE_WRITE": 23, "MADV_DONTNEED_LOCKED": 24, "MADV_COLLAPSE": 25,
    "MADV_GUARD_INSTALL": 102, "MADV_GUARD_REMOVE": 103, "MLOCK_ONFAULT": 1, "MCL_CURRENT": 1, "MCL_FUTURE": 2,
    "MCL_ONFAULT": 4, "CLONE_VM": 0x100, "CLONE_VFORK": 0x4000,
}  # fmt: skip
SETTINGS = {"MAX_MAP_COUNT", "MMAP_MIN_ADDR", "STACK_LIMIT", "STACK_GUARD_GAP"}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_that_of_the_system(name: str) -> None:
    value = NUMBERS[name]
    known = [getattr(module, name) for module in (mmap, errno) if hasattr(module, name)]
    known += [UAPI[name]] if name in UAPI else []
    assert known or name in SETTINGS, f"nobody says what {name} is"
    assert all(value == other for other in known), known
