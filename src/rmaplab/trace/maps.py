# SPDX-License-Identifier: GPL-2.0-or-later
"""/proc/PID/maps: read it, and compare it with an address space of the machine.

Models show_map_vma() in fs/proc/task_mmu.c.  A row is a VMA; what is compared is everything that decides
geometry: bounds, rights, sharing, and the offset in the file.  Left out are [vsyscall], which is no VMA, and
names and inodes, which a recording may not hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from rmaplab.mm.vma import MM, PAGE_SHIFT, VM_EXEC, VM_MAYSHARE, VM_READ, VM_WRITE, VMA
from rmaplab.trace.history import MapsRow

__all__ = ["MapsDifference", "compare_maps", "maps_of", "parse_maps", "row_of"]

_ROW: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) (\S+) (\d+) *(.*)")


class MapsDifference(msgspec.Struct, frozen=True):
    """A row that only one side has."""

    side: str  # "recorded" or "replayed"
    row: MapsRow

    def __str__(self) -> str:
        row = self.row
        return f"only {self.side}: {row.start:x}-{row.end:x} {row.perms} {row.offset:08x} {row.backing}"


def parse_maps(lines: Iterable[str]) -> list[MapsRow]:
    """The rows of /proc/PID/maps.

    :raises ValueError: a line is not one of that file
    """
    rows: list[MapsRow] = []
    for line in lines:
        match = _ROW.match(line)
        if match is None:
            raise ValueError(f"not a line of /proc/PID/maps: {line!r}")
        start, end, perms, offset, device, inode, name = match.groups()
        if name == "[vsyscall]":
            continue
        # A file may have inode 0, as the first System V segment of an IPC namespace; but not device 0, too.
        anonymous = int(inode) == int(device.replace(":", ""), 16) == 0
        backing = "special" if name.startswith(("[vdso", "[vvar")) else "anon" if anonymous else "file"
        rows.append(MapsRow(int(start, 16), int(end, 16), perms, int(offset, 16), backing))
    return rows


def maps_of(pid: int) -> list[MapsRow]:
    """What the process `pid` has mapped now."""
    # Of what may end a line elsewhere, the kernel escapes "\n" alone (fs/proc/task_mmu.c show_map_vma()).
    return parse_maps(Path(f"/proc/{pid}/maps").read_bytes().decode(errors="replace").split("\n")[:-1])


def row_of(vma: VMA) -> MapsRow:
    """The line that Linux would print for `vma`."""
    perms = "".join(
        letter if vma.flags & flag else "-"
        for letter, flag in (("r", VM_READ), ("w", VM_WRITE), ("x", VM_EXEC))
    ) + ("s" if vma.flags & VM_MAYSHARE else "p")
    backing = "anon"
    if vma.file is not None:
        backing = "special" if vma.file.closes and not vma.file.is_shmem else "file"
    offset = vma.pgoff << PAGE_SHIFT if backing == "file" else 0
    return MapsRow(vma.start, vma.end, perms, offset, backing)


def compare_maps(rows: list[MapsRow], mm: MM) -> list[MapsDifference]:
    """Where `mm` differs from `rows`, by address.  None: the geometry is the same."""
    recorded = set(rows)
    replayed = {row_of(vma) for vma in mm.tree}
    differences = [MapsDifference("recorded", row) for row in recorded - replayed]
    differences += [MapsDifference("replayed", row) for row in replayed - recorded]
    return sorted(differences, key=lambda difference: (difference.row.start, difference.side))
