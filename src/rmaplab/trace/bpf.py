# SPDX-License-Identifier: GPL-2.0-or-later
"""BPF programs without a compiler or a loader: an assembler for the notation of the kernel's verifier, and bpf(2).

Models nothing of memory.  A program is text, a line an instruction, as the verifier's log and `bpftool prog dump
xlated` print it: `r1 = r6`, `r8 = *(u64 *)(r6 + 8)`, `*(u32 *)(r10 - 8) = r0`, `if r0 == 0 goto out`, `call
ktime_get_ns`, `r1 = map NAME`, `out:`, `exit`.  Sources: Documentation/bpf/standardization/instruction-set.rst,
include/uapi/linux/bpf.h, kernel/bpf/ringbuf.c.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import struct
from collections.abc import Mapping
from typing import IO, Final

import numpy as np

__all__ = [
    "ARRAY", "HASH", "NO_PREALLOC", "RAW_TRACEPOINT", "TRACEPOINT", "BpfRing", "assemble",
    "attach_raw_tracepoint", "create_map", "load", "lookup", "update", "values",
]  # fmt: skip

ARRAY, HASH, RINGBUF = 2, 1, 27  # BPF_MAP_TYPE_*
TRACEPOINT, RAW_TRACEPOINT = 5, 17  # BPF_PROG_TYPE_*
NO_PREALLOC: Final = 1  # BPF_F_NO_PREALLOC

_SYS_BPF: Final = 321
_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _PROG_LOAD, _RAW_TRACEPOINT_OPEN, _MAP_LOOKUP_BATCH = 0, 1, 2, 5, 17, 24
_ATTR_SIZE: Final = 144
_BUSY: Final = 1 << 31  # BPF_RINGBUF_BUSY_BIT
_HEADER: Final = 8  # of a record in a ring buffer

# Numbers of helpers (include/uapi/linux/bpf.h ___BPF_FUNC_MAPPER).
_HELPERS: Final = {
    "map_lookup_elem": 1, "map_update_elem": 2, "map_delete_elem": 3, "ktime_get_ns": 5, "get_smp_processor_id": 8,
    "get_current_pid_tgid": 14, "probe_read_user": 112, "probe_read_kernel": 113,
    "ringbuf_output": 130,
}  # fmt: skip
_SIZES: Final = {"u64": 0x18, "u32": 0x00, "u16": 0x08, "u8": 0x10}
_ARITHMETIC: Final = {"=": 0xB0, "+=": 0x00, "&=": 0x50, ">>=": 0x70}
_JUMPS: Final = {"==": 0x10, "!=": 0x50, ">": 0x20}

_libc: Final = ctypes.CDLL(None, use_errno=True)


def assemble(text: str, maps: Mapping[str, int] | None = None) -> bytes:
    """The instructions of a program; `maps`: descriptors, by the names that the program uses.

    :raises ValueError: a line is not an instruction
    """
    lines = [line for line in (line.partition(";")[0].strip() for line in text.splitlines()) if line]
    places: dict[str, int] = {}
    place = 0
    for line in lines:
        if line.endswith(":"):
            places[line[:-1]] = place
        else:
            place += 2 if " = map " in line else 1
    code = b""
    for line in lines:
        if not line.endswith(":"):
            here = len(code) // 8 + 1
            code += _instruction(line, {label: place - here for label, place in places.items()}, maps or {})
    return code


def _instruction(line: str, distance: Mapping[str, int], maps: Mapping[str, int]) -> bytes:
    def code(opcode: int, to: str = "0", of: str = "0", offset: int = 0, value: int = 0) -> bytes:
        return struct.pack("<BBhi", opcode, int(to) | int(of) << 4, offset, value)

    def offset(sign: str, number: str) -> int:
        return int(sign + number)

    if line == "exit":
        return code(0x95)
    if found := re.fullmatch(r"call (\w+)", line):
        return code(0x85, value=_HELPERS[found[1]])
    if found := re.fullmatch(r"goto (\w+)", line):
        return code(0x05, offset=distance[found[1]])
    if found := re.fullmatch(r"if r(\d+) (\S+) (-?\d+) goto (\w+)", line):
        return code(0x05 | _JUMPS[found[2]], found[1], offset=distance[found[4]], value=int(found[3]))
    if found := re.fullmatch(r"if r(\d+) (\S+) r(\d+) goto (\w+)", line):
        return code(0x0D | _JUMPS[found[2]], found[1], found[3], offset=distance[found[4]])
    if found := re.fullmatch(r"r(\d+) = map (\w+)", line):
        return code(0x18, found[1], "1", value=maps[found[2]]) + code(0)
    if found := re.fullmatch(r"r(\d+) = \*\((\w+) \*\)\(r(\d+) ([+-]) (\d+)\)", line):
        return code(0x61 | _SIZES[found[2]], found[1], found[3], offset(found[4], found[5]))
    if found := re.fullmatch(r"\*\((\w+) \*\)\(r(\d+) ([+-]) (\d+)\) = r(\d+)", line):
        return code(0x63 | _SIZES[found[1]], found[2], found[5], offset(found[3], found[4]))
    if found := re.fullmatch(r"lock \*\(u64 \*\)\(r(\d+) \+ (\d+)\) \+= r(\d+)", line):
        return code(0xDB, found[1], found[3], int(found[2]))
    if found := re.fullmatch(r"r(\d+) (\S+) r(\d+)", line):
        return code(0x0F | _ARITHMETIC[found[2]], found[1], found[3])
    if found := re.fullmatch(r"r(\d+) (\S+) (-?\d+)", line):
        return code(0x07 | _ARITHMETIC[found[2]], found[1], value=int(found[3]))
    raise ValueError(f"not an instruction: {line!r}")


def _bpf(command: int, attr: bytes | ctypes.Array[ctypes.c_char]) -> int:
    buffer = ctypes.create_string_buffer(attr, _ATTR_SIZE) if isinstance(attr, bytes) else attr
    result: int = _libc.syscall(_SYS_BPF, command, buffer, _ATTR_SIZE)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def create_map(kind: int, key: int, value: int, entries: int, flags: int = 0) -> int:
    """A map's descriptor; key, value: sizes in bytes.

    :raises OSError: not permitted, or the kernel does not have it
    """
    return _bpf(_MAP_CREATE, struct.pack("<5I", kind, key, value, entries, flags))


def _element(command: int, map: int, key: bytes, value: ctypes.Array[ctypes.c_char]) -> None:
    name = ctypes.create_string_buffer(key, len(key))
    _bpf(command, struct.pack("<IxxxxQQQ", map, ctypes.addressof(name), ctypes.addressof(value), 0))


def update(map: int, key: bytes, value: bytes) -> None:
    """Let `map` have `value` under `key`."""
    _element(_MAP_UPDATE, map, key, ctypes.create_string_buffer(value, len(value)))


def lookup(map: int, key: bytes, size: int) -> bytes:
    """The value, of `size` bytes, that `map` has under `key`."""
    value = ctypes.create_string_buffer(size)
    _element(_MAP_LOOKUP, map, key, value)
    return value.raw


def values(map: int, key: int, value: int, entries: int) -> bytes:
    """All values in `map`, a hash map of that form, one after the other.

    :raises OSError: not permitted, or more of them than `entries`
    """
    keys, found = ctypes.create_string_buffer(key * entries), ctypes.create_string_buffer(value * entries)
    place = ctypes.create_string_buffer(8)
    at, into = ctypes.addressof(place), (ctypes.addressof(keys), ctypes.addressof(found))
    attr = ctypes.create_string_buffer(struct.pack("<QQQQIIQQ", 0, at, *into, entries, map, 0, 0), _ATTR_SIZE)
    try:
        _bpf(_MAP_LOOKUP_BATCH, attr)
    except FileNotFoundError:  # there are no more
        pass
    return ctypes.string_at(found, value * int(struct.unpack_from("<I", attr, 32)[0]))


def load(kind: int, code: bytes) -> int:
    """A program's descriptor.

    :raises OSError: not permitted, or the verifier refuses it
    """
    text = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack("<IIQQ", kind, len(code) // 8, ctypes.addressof(text), ctypes.addressof(licence))
    return _bpf(_PROG_LOAD, attr)


def attach_raw_tracepoint(name: str, program: int) -> int:
    """Run `program` at a tracepoint for as long as the descriptor that this returns is open.

    :raises OSError: not permitted, or there is no such tracepoint
    """
    text = ctypes.create_string_buffer(name.encode())
    return _bpf(_RAW_TRACEPOINT_OPEN, struct.pack("<QI", ctypes.addressof(text), program))


class BpfRing:
    """A ring buffer of records of one size, in bytes, headers of eight included."""

    descriptor: Final = -1  # nothing to wait for: programs wake nobody

    def __init__(self, size: int, record: int) -> None:
        self.map: Final = create_map(RINGBUF, 0, 0, size)
        self._mask: Final = size - 1
        self._record: Final = record
        rights = mmap.PROT_READ | mmap.PROT_WRITE
        self._consumer: Final = mmap.mmap(self.map, mmap.PAGESIZE, mmap.MAP_SHARED, rights)
        # The data are mapped twice, one after the other, so that no record is in two parts.
        self._producer: Final = mmap.mmap(
            self.map, mmap.PAGESIZE + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=mmap.PAGESIZE
        )
        self._data: Final = memoryview(self._producer)[mmap.PAGESIZE :]
        self._tail: Final = memoryview(self._consumer)[:8].cast("Q")
        self._head: Final = memoryview(self._producer)[:8].cast("Q")

    def drain(self, file: IO[bytes]) -> None:
        """Move all records that are complete into `file`.

        :raises OSError: the disk is full
        """
        tail, head = self._tail[0], self._head[0]
        start = tail & self._mask
        part = self._data[start : start + head - tail]
        busy = np.flatnonzero(np.frombuffer(part, dtype=np.uint32)[:: self._record // 4] & _BUSY)
        end = int(busy[0]) * self._record if len(busy) else len(part)
        at = 0
        while at < end:
            at += file.write(part[at:end])
        self._tail[0] = tail + end

    def close(self) -> None:
        for view in (self._data, self._tail, self._head):
            view.release()
        self._producer.close()
        self._consumer.close()
        os.close(self.map)
