# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel modules: found by name in a tree, as `make modules_install` or a package leaves it, and decompressed.

A module's file is NAME.ko, or that compressed by xz, zstd or gzip (kernel/module/decompress.c); "-" in a file's name
is "_" in the module's.  Below lib/debug is debug information by the same names.  What is not found is taken to be built
in: the guest says if it is not (guest.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from rmaplab.kernel.errors import KernelUnavailable
from rmaplab.kernel.image import BROKEN, plain

# What a guest may need; what is built in is not there.
DISK: Final = ("virtio", "virtio_ring", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk")
MODULES: Final = ("qemu_fw_cfg", "brd")

_DEPENDS: Final = re.compile(rb"\0depends=([^\0]*)\0")  # in a module's section .modinfo
_SUFFIXES: Final = ("", ".xz", ".zst", ".gz")


def read(tree: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Contents of those modules of `names` that are in `tree`, each after those of the tree that it depends on.

    :raises KernelUnavailable: a file cannot be read or decompressed
    """
    paths: dict[str, Path] = {}
    for path in sorted(tree.rglob("*.ko*")):
        stem, _, suffix = path.name.partition(".ko")
        if suffix in _SUFFIXES and "/lib/debug/" not in f"/{path.relative_to(tree)}":
            paths.setdefault(stem.replace("-", "_"), path)
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name not in paths or name in ordered:
            return
        path = paths[name]
        try:
            contents = plain(path.read_bytes())
        except BROKEN as error:
            raise KernelUnavailable(f"module {path} cannot be read ({error}): give the tree of this kernel.") from None
        depends = _DEPENDS.search(contents)
        for other in depends.group(1).decode().split(",") if depends else ():
            add(other.replace("-", "_"))
        ordered[name] = contents

    for name in names:
        add(name)
    return ordered
