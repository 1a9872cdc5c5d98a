# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels that can be fetched, and their suites of Debian.  Help, defaults and messages derive from this table."""

from __future__ import annotations

from typing import Final

from rmaplab.kernel.errors import KernelUnavailable
from rmaplab.mm.profile import REFERENCE

_MOVING: Final = ("trixie-backports", "forky", "sid")

# The newest first.
SUITES: Final = {
    "7.3": _MOVING,
    "7.2": _MOVING,
    "6.12": ("bookworm-security", "bookworm-backports"),
    "6.1": ("bookworm-security", "bookworm"),
}
VERSIONS: Final = tuple(SUITES)
NATIVE: Final = ("7.3", "7.2")  # whose linux-source packages have a mm/vma.c that builds in user space as one of these
DEFAULT: Final = REFERENCE


def known(version: str) -> str:
    """`version`.  :raises KernelUnavailable: no such kernel can be fetched"""
    if version not in SUITES:
        raise KernelUnavailable(
            f"there is no kernel {version} to fetch: --version is one of {', '.join(VERSIONS)}; or give --image and"
            " --vmlinux."
        )
    return version
