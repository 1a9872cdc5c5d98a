# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that are there complete or not at all: written beside their place, and moved there."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file; whatever happens meanwhile, `path` holds all of `content`, or what it held before."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
