# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel memory, and where the fields of its structures are.

Types and symbols come from drgn, which reads them from the kernel's own debug information; so do all
offsets and sizes below.  What changes with every step is read here: a structure is one slice of bytes and one
unpacking of it, and where the guest's memory is a file that we map, no monitor is asked.  A snapshot takes
milliseconds this way.

Valid for x86-64, 6.1 and newer (maple tree; see include/linux/mm_types.h, include/linux/rmap.h).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from typing import Any, Final

from rmaplab.kernel.errors import KernelUnavailable

_POINTER: Final = struct.Struct("<Q")
_ENTRIES: Final = struct.Struct("<512Q")
PAGE_SIZE: Final = 4096
PTE_FRAME: Final = 0x000F_FFFF_FFFF_F000  # physical address in a page-table entry
_PRESENT: Final = 1
_HUGE: Final = 0x80


class BadAddress(Exception):
    """A pointer leads nowhere: what it was read from is damaged, or changes while we read."""


class Memory:
    """Reads kernel memory at kernel addresses.

    program: a drgn.Program with debug information
    ram:     the guest's physical memory from address 0 in parts of equal size, if we have it
    """

    def __init__(self, program: Any, ram: Sequence[mmap.mmap] = ()) -> None:
        from drgn import FaultError

        self._fault: Final[type[Exception]] = FaultError
        self.program: Final = program
        self._ram: Final = [memoryview(part) for part in ram]
        self._part: Final = len(ram[0]) if ram else 1
        self._size: Final = self._part * len(ram)
        self.direct_map: Final[int] = program["page_offset_base"].value_()
        self.vmemmap: Final[int] = program["vmemmap_base"].value_()
        self._large_pages: dict[int, int] = {}  # virtual >> 21 -> physical, of the vmemmap

    def read(self, address: int, size: int) -> bytes | memoryview:
        """`size` bytes at the kernel address `address`."""
        if self._size:
            at = address - self.direct_map
            if not 0 <= at < self._size:
                at = self._physical(address)
            if 0 <= at < self._size:
                part, at = divmod(at, self._part)
                return self._ram[part][at : at + size]
        try:
            data: bytes = self.program.read(address, size)
        except (self._fault, OverflowError) as error:
            raise BadAddress(f"{address:#x} is not kernel memory: {error}") from None
        return data

    def _physical(self, address: int) -> int:
        """Physical address behind the array of struct page; -1 for what lies elsewhere."""
        if not 0 <= address - self.vmemmap < 1 << 40:
            return -1
        number = address >> 21
        base = self._large_pages.get(number)
        if base is None:
            base = self._walk(address)
            self._large_pages[number] = base
        return base + (address & 0x1FFFFF) if base >= 0 else -1

    def _walk(self, address: int) -> int:
        """Where the 2 MiB page of `address` is; -1 if it is not one."""
        table = self.program["init_mm"].pgd.value_()
        for shift in (39, 30, 21):
            entry = self.word(table + (address >> shift & 511) * 8)
            if not entry & _PRESENT:
                return -1
            if entry & _HUGE:
                return (entry & PTE_FRAME & -(1 << shift)) + (address & ((1 << shift) - 1) & ~0x1FFFFF)
            table = self.direct_map + (entry & PTE_FRAME)
        return -1

    def word(self, address: int) -> int:
        value: int = _POINTER.unpack_from(self.read(address, 8))[0]
        return value

    def table(self, physical: int) -> tuple[int, ...]:
        """The 512 entries of the page table at a physical address."""
        return _ENTRIES.unpack_from(self.read(self.direct_map + physical, PAGE_SIZE))


class Record:
    """A structure's fields, read together.

        fields = Record(program, "struct anon_vma", "root", "refcount", ...)
        root, refcount, ... = fields.at(memory, address)

    A field may be a path ("rb_root.rb_root.rb_node"); integers of 1, 2, 4 and 8 bytes and pointers are known,
    structures that consist of one of these (atomic_t, memdesc_flags_t), and the first element of an array of them.
    """

    def __init__(self, program: Any, type_name: str, *names: str) -> None:
        kind = structure(program, type_name)
        self.size: Final[int] = kind.size
        self.offset: Final[dict[str, int]] = {}
        self.code: Final[dict[str, str]] = {}  # of module struct
        parts: list[tuple[int, str]] = []
        for name in names:
            offset, code = _locate(program, kind, name)
            self.offset[name] = offset
            self.code[name] = code
            parts.append((offset, code))
        # One format with padding; fields are asked for in any order, and unpacked in that of their offsets.
        order = sorted(range(len(parts)), key=lambda i: parts[i][0])
        text, at = "<", 0
        for i in order:
            offset, code = parts[i]
            text += f"{offset - at}x{code}"
            at = offset + struct.calcsize(code)
        self._struct: Final = struct.Struct(text)
        self._order: Final = tuple(order.index(i) for i in range(len(parts)))
        self._sorted: Final = order == list(range(len(parts)))

    def at(self, memory: Memory, address: int) -> tuple[int, ...]:
        values = self._struct.unpack_from(memory.read(address, self._struct.size))
        return values if self._sorted else tuple(values[i] for i in self._order)


def structure(program: Any, type_name: str) -> Any:
    """A drgn.Type.  :raises KernelUnavailable: the kernel has none of that name"""
    try:
        return program.type(type_name)
    except LookupError:
        raise KernelUnavailable(f"this kernel has no {type_name}: it cannot be read.") from None


def has_symbol(program: Any, name: str) -> bool:
    """Whether there is a variable or function of that name."""
    try:
        program[name]
    except KeyError:
        return False
    return True


def symbol(program: Any, *names: str) -> Any:
    """The first of `names` that is a symbol.  :raises KernelUnavailable: none is"""
    for name in names:
        if has_symbol(program, name):
            return program[name]
    raise KernelUnavailable(f"this kernel has no {' or '.join(names)}: it cannot be read.")


def has_field(program: Any, type_name: str, name: str) -> bool:
    """Whether a structure has a field."""
    return bool(structure(program, type_name).has_member(name))


def one_of(program: Any, type_name: str, *names: str) -> str:
    """The first of `names` that is a field of the structure.  :raises KernelUnavailable: none is"""
    for name in names:
        if has_field(program, type_name, name):
            return name
    raise KernelUnavailable(f"this kernel's {type_name} has neither {' nor '.join(names)}: it cannot be read.")


def _locate(program: Any, kind: Any, path: str) -> tuple[int, str]:
    """Offset in bytes and struct code of a field."""
    import drgn

    offset = 0
    for name in path.split("."):
        if not kind.has_member(name):
            raise KernelUnavailable(f"this kernel's {kind.type_name()} has no field {name}: it cannot be read.")
        member = kind.member(name)
        offset += member.bit_offset // 8
        kind = member.type
        while kind.kind == drgn.TypeKind.TYPEDEF:
            kind = kind.type
    signed = getattr(kind, "is_signed", False)
    while kind.kind in (drgn.TypeKind.STRUCT, drgn.TypeKind.ARRAY):  # atomic_t, refcount_t, pgoff_t, other wrappers
        kind = kind.type if kind.kind == drgn.TypeKind.ARRAY else kind.members[0].type
        while kind.kind == drgn.TypeKind.TYPEDEF:
            kind = kind.type
        signed = getattr(kind, "is_signed", False)
    code = {1: "B", 2: "H", 4: "I", 8: "Q"}[kind.size]
    return offset, code.lower() if signed else code
