# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's first root: a cpio archive (format "newc") with the init program and a few modules.

Models Documentation/driver-api/early-userspace/buffer-format.rst.  Written here because it is a page of
code, and the host then needs no cpio.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from typing import Final

_DIRECTORIES: Final = ("dev", "proc", "sys", "files", "swap", "root", "cgroup")
_DEVICES: Final = {"dev/console": (5, 1), "dev/ttyS1": (4, 65), "dev/null": (1, 3)}


def archive(files: Mapping[str, bytes]) -> bytes:
    """An archive of `files` (path without leading slash: contents), directories and devices."""
    entries: list[bytes] = []
    for name in _DIRECTORIES:
        entries.append(_entry(len(entries) + 1, name, stat.S_IFDIR | 0o755, b"", (0, 0)))
    for name, device in _DEVICES.items():
        entries.append(_entry(len(entries) + 1, name, stat.S_IFCHR | 0o600, b"", device))
    for name, contents in files.items():
        entries.append(_entry(len(entries) + 1, name, stat.S_IFREG | 0o755, contents, (0, 0)))
    entries.append(_entry(0, "TRAILER!!!", 0, b"", (0, 0)))
    return b"".join(entries)


def _entry(inode: int, name: str, mode: int, contents: bytes, device: tuple[int, int]) -> bytes:
    path = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(contents), 0, 0, *device, len(path), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    return _padded(header + path) + _padded(contents)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
