# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel that can be started unpacked is; any other image is left to unpack itself."""

import gzip
import lzma
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from kernel.packing import zstd
from rmaplab.kernel.image import startable, unpacked


def elf(*notes: tuple[bytes, int]) -> bytes:
    """An ELF file of one segment, which has these notes: owner, type."""
    body = b"".join(struct.pack("<III4s8s", len(owner), 8, kind, owner, b"") for owner, kind in notes)
    start = b"\x7fELF\x02\x01".ljust(32, b"\0") + struct.pack("<QQIHHH", 64, 0, 0, 64, 56, 1)
    return start.ljust(64, b"\0") + struct.pack("<IIQQQQQQ", 4, 0, 120, 0, 0, len(body), len(body), 4) + body


def bzimage(kernel: bytes, pack: Callable[[bytes], bytes], size: int | None = None) -> bytes:
    payload = pack(kernel) + (len(kernel) if size is None else size).to_bytes(4, "little")
    setup = bytearray(1024)
    setup[0x1F1] = 1  # sectors of set-up code after the first
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, 0x20F)
    struct.pack_into("<II", setup, 0x248, 32, len(payload))
    return bytes(setup) + bytes(32) + payload


PVH = elf((b"GNU\0", 3), (b"Xen\0", 6), (b"Xen\0", 18))


@pytest.mark.parametrize("pack", [zstd, gzip.compress, lzma.compress])
def test_a_kernel_with_an_entry_point_for_pvh_guests_is_started_unpacked(
    pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    image = tmp_path / "vmlinuz"
    image.write_bytes(bzimage(PVH, pack))
    chosen = startable(image, tmp_path)
    assert chosen != image
    assert chosen.read_bytes() == PVH


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"MZ no image",
        bzimage(elf((b"Xen\0", 6), (b"GNU\0", 18)), gzip.compress),  # no such entry point: its own note, another's type
        bzimage(PVH, lambda data: b"\x02\x21\x4c\x18" + data),  # lz4
        bzimage(PVH, lambda data: gzip.compress(data)[:-9]),
        bzimage(PVH, lambda data: gzip.compress(data)[:20] + b"\xff" * 99),
        bzimage(PVH, zstd)[:-40],
        bzimage(PVH, gzip.compress, size=7),
        bzimage(b"not ELF", gzip.compress),
        bzimage(PVH[:80], gzip.compress),
        bzimage(PVH, gzip.compress)[:0x210],
    ],
)
def test_any_other_image_unpacks_itself(contents: bytes, tmp_path: Path) -> None:
    image = tmp_path / "vmlinuz"
    image.write_bytes(contents)
    assert startable(image, tmp_path) == image


def test_an_image_whose_length_is_wrong_is_not_unpacked() -> None:
    assert unpacked(bzimage(PVH, gzip.compress)) == PVH
    assert unpacked(bzimage(PVH, gzip.compress, size=len(PVH) + 1)) is None
