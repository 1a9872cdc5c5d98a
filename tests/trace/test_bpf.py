# SPDX-License-Identifier: GPL-2.0-or-later
"""BPF programs: what the assembler makes of a line, against the format of instructions and the kernel's own verifier,
and what the recorder's programs come to, also those for kernels older than the running one."""

import ctypes
import os
import re
import struct
from collections.abc import Callable
from functools import cache

import pytest

from rmaplab.trace import bpf, bpf_events


def fields(text: str, **maps: int) -> list[tuple[int, int, int, int, int]]:
    """Opcode, destination, source, offset and immediate of each instruction."""
    code = bpf.assemble(text, maps)
    return [
        (opcode, registers & 15, registers >> 4, offset, value)
        for opcode, registers, offset, value in struct.iter_unpack("<BBhi", code)
    ]


# Class, source, code and size, as Documentation/bpf/standardization/instruction-set.rst composes an opcode.
LDX, STX, ALU64, JMP, LD = 0x61, 0x63, 0x07, 0x05, 0x18
REGISTER = 0x08  # the second operand is a register (BPF_X)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("r1 = r6", (ALU64 | REGISTER | 0xB0, 1, 6, 0, 0)),
        ("r1 = -1", (ALU64 | 0xB0, 1, 0, 0, -1)),
        ("r2 += -96", (ALU64, 2, 0, 0, -96)),
        ("r2 += r3", (ALU64 | REGISTER, 2, 3, 0, 0)),
        ("r6 &= 255", (ALU64 | 0x50, 6, 0, 0, 255)),
        ("r8 >>= 47", (ALU64 | 0x70, 8, 0, 0, 47)),
        ("r8 = *(u64 *)(r6 + 8)", (LDX | 0x18, 8, 6, 8, 0)),
        ("r8 = *(u32 *)(r6 + 12)", (LDX, 8, 6, 12, 0)),
        ("r8 = *(u16 *)(r6 + 2)", (LDX | 0x08, 8, 6, 2, 0)),
        ("r8 = *(u8 *)(r6 + 1)", (LDX | 0x10, 8, 6, 1, 0)),
        ("*(u64 *)(r10 - 16) = r7", (STX | 0x18, 10, 7, -16, 0)),
        ("*(u32 *)(r10 - 8) = r0", (STX, 10, 0, -8, 0)),
        ("lock *(u64 *)(r0 + 0) += r1", (0xDB, 0, 1, 0, 0)),
        ("call ktime_get_ns", (JMP | 0x80, 0, 0, 0, 5)),
        ("call ringbuf_output", (JMP | 0x80, 0, 0, 0, 130)),
        ("exit", (JMP | 0x90, 0, 0, 0, 0)),
    ],
)
def test_a_line_is_an_instruction(line: str, expected: tuple[int, int, int, int, int]) -> None:
    assert fields(line) == [expected]


def test_a_map_takes_two_instructions_and_is_a_descriptor() -> None:
    """BPF_LD_IMM64 with BPF_PSEUDO_MAP_FD."""
    assert fields("r1 = map seen", seen=77) == [(LD, 1, 1, 0, 77), (0, 0, 0, 0, 0)]


def test_a_jump_counts_instructions_from_the_next_one() -> None:
    text = """
    again:
        r1 = map seen  ; two
        if r1 == 0 goto out
        if r1 != r2 goto again
        if r1 > 5 goto out
        goto again
    out:
        exit
    """
    jumps = [(opcode, offset) for opcode, _, _, offset, _ in fields(text, seen=3) if opcode & 7 == JMP]
    assert jumps[:-1] == [(0x15, 3), (0x5D, -4), (0x25, 1), (0x05, -6)]


@pytest.mark.parametrize("line", ["r1 = r2 + r3", "r1 -= 4", "*(u64 *)(r1) = r2", "jump out"])
def test_what_is_no_instruction_is_named(line: str) -> None:
    with pytest.raises((ValueError, KeyError), match=re.escape(line.split()[1])):
        bpf.assemble(line)


# The running kernel

MAPS = {"followed": (bpf.HASH, 4, bpf_events._KEPT, 16, bpf.NO_PREALLOC), "lost": (bpf.ARRAY, 4, 8, 1, 0)}
PROGRAMS: dict[str, Callable[[], str]] = {
    "a fault": lambda: bpf_events._fault(user=True),
    "a fault of the kernel's": lambda: bpf_events._fault(user=False),
    "a page": lambda: bpf_events._ALLOCATE,
    "a lock, before 6.13": lambda: bpf_events._lock(2),
    "a lock": lambda: bpf_events._lock(1),
    "a call": bpf_events._return,
    "an exec": lambda: bpf_events._EXECUTE,
    "an end": lambda: bpf_events._end(True),
    "an end, before 6.16": lambda: bpf_events._end(False),
    "a task": lambda: bpf_events._new_task(8, 32),
    "a task, where comm comes first": lambda: bpf_events._new_task(24, 40),
}


@cache
def maps() -> dict[str, int]:
    try:
        known = {name: bpf.create_map(*form) for name, form in MAPS.items()}
        known["ring"] = bpf.create_map(bpf.RINGBUF, 0, 0, 4096)
    except OSError as error:
        pytest.skip(f"BPF maps cannot be made here: {error.strerror}")
    return known


def verified(kind: int, code: bytes) -> list[str]:
    """The program as the verifier's log has it, an instruction a line.

    :raises OSError: it refuses the program
    """
    text, licence, log = (ctypes.create_string_buffer(part, len(part) + 1) for part in (code, b"GPL", bytes(1 << 22)))
    attr = struct.pack(
        "<IIQQIIQ", kind, len(code) // 8, ctypes.addressof(text), ctypes.addressof(licence), 2, len(log),
        ctypes.addressof(log),
    )  # fmt: skip
    try:
        os.close(bpf._bpf(bpf._PROG_LOAD, attr))
    except OSError as error:
        raise AssertionError(f"{error.strerror}: {log.value.decode()[-2000:]}") from None
    found = re.findall(r"^(\d+): \(..\) (.*?) *(?:;.*)?$", log.value.decode(), re.M)
    lines = {int(number): line for number, line in found}
    return [lines.get(number, "") for number in range(max(lines) + 1)]


def plain(line: str) -> str:
    """What a line says, in one spelling; jumps and maps have no names in the verifier's log."""
    line = re.sub(r"goto \S+", "goto", re.sub(r"r(\d+) = (map \w+|0x[0-9a-f]{9,})", r"r\1 = map", line))
    line = re.sub(r"\b0x[0-9a-f]+", lambda found: str(int(found[0], 16)), line)
    return re.sub(r"\s+|bpf_|#\d+", "", line)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_verifier_reads_what_was_written(name: str) -> None:
    """It accepts the program, and prints each instruction that it comes by as the source has it."""
    text = PROGRAMS[name]()
    kind = bpf.TRACEPOINT if "task" in name else bpf.RAW_TRACEPOINT
    read = verified(kind, bpf.assemble(text, maps()))
    written: list[str] = []
    for line in text.splitlines():
        line = line.partition(";")[0].strip()
        if line and not line.endswith(":"):
            written += [line, ""] if " = map " in line else [line]
    assert len(read) == len(written)
    for number, line in enumerate(read):
        if line:
            assert plain(line) == plain(written[number]), number
    assert sum(map(bool, read)) > len(written) // 2


def test_values_of_a_map_are_all_there() -> None:
    followed, size = maps()["followed"], bpf_events._KEPT
    assert bpf.values(followed, 4, size, 16) == b""
    for pid in (5, 9):
        bpf.update(followed, pid.to_bytes(4, "little"), pid.to_bytes(size, "little"))
    found = bpf.values(followed, 4, size, 16)
    assert sorted(int.from_bytes(found[at : at + size], "little") for at in (0, size)) == [5, 9]
    assert len(found) == 2 * size
