# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel inside a bzImage, unpacked on the host, where that takes a tenth of the guest's time.

A bzImage carries the kernel as a compressed ELF file (Documentation/arch/x86/boot.rst, payload_offset and
payload_length; its length follows it in four bytes).  QEMU starts such a file at the entry point for PVH guests, which
an ELF note names (arch/x86/platform/pvh/head.S).  What cannot be started so stays a bzImage, which unpacks itself.
"""

from __future__ import annotations

import gzip
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pyarrow


def _zstd(data: bytes) -> bytes:
    with pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "zstd") as stream:
        contents: bytes = stream.read()
    return contents


BROKEN: Final = (OSError, EOFError, lzma.LZMAError, zlib.error)  # what decompressing raises
_HEADER: Final = slice(0x202, 0x206)
_SECTORS, _VERSION, _PAYLOAD = 0x1F1, 0x206, 0x248
_FORMATS: Final[dict[bytes, Callable[[bytes], bytes]]] = {
    b"\x28\xb5\x2f\xfd": _zstd, b"\xfd7zXZ\0": lzma.decompress, b"\x1f\x8b": gzip.decompress,
}  # fmt: skip
_PT_NOTE: Final = 4
_XEN_ELFNOTE_PHYS32_ENTRY: Final = 18


def startable(image: Path, directory: Path) -> Path:
    """What QEMU is to start for this bzImage: a file in `directory` with the kernel in it, or the image itself."""
    kernel = unpacked(image.read_bytes())
    try:
        if kernel is None or _XEN_ELFNOTE_PHYS32_ENTRY not in _xen_notes(kernel):
            return image
    except struct.error:  # headers that point beyond its end
        return image
    path = directory / "kernel"
    path.write_bytes(kernel)
    return path


def unpacked(image: bytes) -> bytes | None:
    """The ELF file in a bzImage, or None: it is no bzImage, or compressed in a way not known here."""
    if len(image) < _PAYLOAD + 8 or image[_HEADER] != b"HdrS" or struct.unpack_from("<H", image, _VERSION)[0] < 0x208:
        return None
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    start = ((image[_SECTORS] or 4) + 1) * 512 + offset
    size = int.from_bytes(image[start + length - 4 : start + length], "little")
    try:
        kernel = plain(image[start : start + length - 4])
    except BROKEN:
        return None
    return kernel if len(kernel) == size and kernel.startswith(b"\x7fELF\x02\x01") else None


def plain(data: bytes) -> bytes:
    """`data`, decompressed if its first bytes say that it is compressed.  :raises BROKEN: it cannot be"""
    return next((do for magic, do in _FORMATS.items() if data.startswith(magic)), bytes)(data)


def _xen_notes(elf: bytes) -> Iterator[int]:
    """Types of the notes named "Xen" in a 64-bit ELF file."""
    (headers,), (size, count) = struct.unpack_from("<Q", elf, 32), struct.unpack_from("<HH", elf, 54)
    for at in range(headers, headers + size * count, size):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", elf, at)
        end = offset + length if kind == _PT_NOTE else offset
        while offset + 12 <= end:
            name, description, note = struct.unpack_from("<III", elf, offset)
            if elf[offset + 12 : offset + 12 + name] == b"Xen\0":
                yield note
            offset += 12 + (name + 3 & ~3) + (description + 3 & ~3)
