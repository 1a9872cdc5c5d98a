# SPDX-License-Identifier: GPL-2.0-or-later
"""/proc/PID/maps is read, and compared with an address space."""

import os

import pytest

from rmaplab.mm.abi import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.trace.history import FileEntry, MapsRow
from rmaplab.trace.maps import MapsDifference, compare_maps, maps_of, parse_maps

TEXT = """\
00400000-00402000 r-xp 00001000 fe:00 7                                  /bin/a program with spaces
00500000-00501000 rw-p 00000000 00:00 0                                  [heap]
7f0000000000-7f0000004000 rw-s 00000000 00:01 9                          /dev/zero (deleted)
7f0000010000-7f0000012000 r--p 00000000 00:00 0                          [vvar]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""


def test_rows_hold_what_decides_geometry() -> None:
    assert parse_maps(TEXT.splitlines()) == [
        MapsRow(0x400000, 0x402000, "r-xp", 0x1000, "file"),
        MapsRow(0x500000, 0x501000, "rw-p", 0, "anon"),
        MapsRow(0x7F0000000000, 0x7F0000004000, "rw-s", 0, "file"),
        MapsRow(0x7F0000010000, 0x7F0000012000, "r--p", 0, "special"),
    ]


def test_a_file_may_have_inode_0() -> None:
    """The first System V segment of an IPC namespace has identifier 0, which is its inode."""
    text = "7f0000000000-7f0000004000 rw-s 00000000 00:01 0                          /SYSV00000000 (deleted)"
    assert parse_maps([text]) == [MapsRow(0x7F0000000000, 0x7F0000004000, "rw-s", 0, "file")]


def test_other_text_is_refused() -> None:
    with pytest.raises(ValueError, match="not a line of /proc/PID/maps"):
        parse_maps(["hello"])


def test_this_process_has_a_stack() -> None:
    assert any(row.perms == "rw-p" and row.start <= id(os) < row.end for row in maps_of(os.getpid()))


def test_an_address_space_is_compared() -> None:
    machine = Machine(PROFILES[REFERENCE], [AnonVmaRmap])
    machine.exec(1, 0x7FFFFFFDE000, 0x21000, 0x7FFFFFFDE000, 0)
    mm = machine.mm_of(1)
    fixed = MAP_FIXED | MAP_PRIVATE
    machine.mmap(mm, 0x400000, 0x2000, PROT_READ, fixed, FileEntry(0).open(), 0x1000)
    machine.mmap(mm, 0x500000, 0x1000, PROT_READ | PROT_WRITE, fixed | MAP_ANONYMOUS, None, 0)
    machine.mmap(mm, 0x600000, 0x2000, PROT_READ, fixed, FileEntry(1, "vvar", "[vvar]").open(), 0)
    shared = MAP_FIXED | MAP_SHARED
    machine.mmap(mm, 0x700000, 0x4000, PROT_READ | PROT_WRITE, shared, FileEntry(2, "shmem").open(), 0)
    rows = [
        MapsRow(0x400000, 0x402000, "r--p", 0x1000, "file"),
        MapsRow(0x500000, 0x501000, "rw-p", 0, "anon"),
        MapsRow(0x600000, 0x602000, "r--p", 0, "special"),
        MapsRow(0x700000, 0x704000, "rw-s", 0, "file"),
        MapsRow(0x7FFFFFFDE000, 0x7FFFFFFFF000, "rw-p", 0, "anon"),
    ]
    assert compare_maps(rows, mm) == []
    machine.mprotect(mm, 0x701000, 0x1000, PROT_READ)
    assert compare_maps(rows[1:], mm) == [
        MapsDifference("replayed", rows[0]),
        MapsDifference("recorded", rows[3]),
        MapsDifference("replayed", MapsRow(0x700000, 0x701000, "rw-s", 0, "file")),
        MapsDifference("replayed", MapsRow(0x701000, 0x702000, "r--s", 0x1000, "file")),
        MapsDifference("replayed", MapsRow(0x702000, 0x704000, "rw-s", 0x2000, "file")),
    ]
    assert str(compare_maps(rows, mm)[0]) == "only recorded: 700000-704000 rw-s 00000000 file"
