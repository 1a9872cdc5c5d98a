# SPDX-License-Identifier: GPL-2.0-or-later
"""Hands on a guest: a word of its memory that is overwritten, a file of it that is read."""

from __future__ import annotations

import os
import struct

from rmaplab.kernel.guest import PEEK, Guest
from rmaplab.kernel.memory import Memory


def write_word(memory: Memory, address: int, value: int) -> None:
    """Overwrite a word of the guest's memory, to see whether somebody notices."""
    data = memory.read(address, 8)
    assert isinstance(data, memoryview), f"{address:#x} is not in memory that is mapped here"
    struct.pack_into("<Q", data, 0, value & 0xFFFF_FFFF_FFFF_FFFF)


def read_file(guest: Guest, path: str) -> str:
    """What process 1 reads from a file."""
    descriptor = guest.open(0, path, os.O_RDONLY)
    assert descriptor >= 0, f"{path}: {os.strerror(-descriptor)}"
    contents = b""
    while (got := guest.syscall(0, "read", descriptor, guest.scratch, 4096)) > 0:
        words = [guest.call(0, PEEK, i) for i in range(-(-got // 8))]
        contents += struct.pack(f"<{len(words)}Q", *words)[:got]
    guest.syscall(0, "close", descriptor)
    return contents.decode()
