# SPDX-License-Identifier: GPL-2.0-or-later
"""How much of a file an ELF segment maps, from the program headers (fs/binfmt_elf.c elf_load())."""

from __future__ import annotations

import os
import struct
from functools import cache
from typing import Final

from rmaplab.mm.vma import PAGE_MASK, PAGE_SIZE

_LOAD: Final = 1  # PT_LOAD
_HEADER: Final = struct.Struct("<16sHHIQQQIHHH")  # Elf64_Ehdr, up to e_phnum
_SEGMENT: Final = struct.Struct("<IIQQQQQQ")  # Elf64_Phdr


def length_of_segment(path: str, key: str, offset: int) -> int:
    """Bytes, in whole pages, that the segment at page `offset` of the program at `path` maps of it; 0: not known.

    key: "major:minor inode …" of the file that was mapped, which may be another one than what is there now
    """
    try:
        return _lengths(path, key).get(offset, 0)
    except (OSError, struct.error, ValueError):
        return 0


@cache
def _lengths(path: str, key: str) -> dict[int, int]:
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        numbers = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x} {status.st_ino}"
        if not key.startswith(numbers + " "):
            return {}
        header = _HEADER.unpack(file.read(_HEADER.size))
        if header[0][:6] != b"\x7fELF\x02\x01":
            return {}
        file.seek(header[5])
        table = file.read(header[9] * header[10])
    lengths: dict[int, int] = {}
    for number in range(header[10]):
        kind, _, start, _, _, size, _, _ = _SEGMENT.unpack_from(table, number * header[9])
        if kind == _LOAD:
            page = start & PAGE_MASK
            lengths.setdefault(page, (start + size - page + PAGE_SIZE - 1) & PAGE_MASK)
    return lengths
