# SPDX-License-Identifier: GPL-2.0-or-later
"""A memory cgroup of our own, below the one that we are in: what is in it can be reclaimed by a write to a file.

That is the way to have the kernel walk the reverse map of pages that several processes share, when one wants it to:
madvise(2) leaves such pages alone, and on a machine with one node nothing migrates.  Who may make one is root, or a
user to whom the group was delegated; others go without.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Final


class Group:
    """`directory` is the group's, `reclaim` the file in it: memory.reclaim, or memory.force_empty before cgroup 2."""

    def __init__(self, directory: Path, reclaim: str) -> None:
        self.directory: Final = directory
        self.reclaim: Final = reclaim

    @staticmethod
    def make() -> Group | None:
        """A new one; None if that cannot be done here."""
        for above in _groups():
            directory = above / f"rmaplab-calibrate-{os.getpid()}"
            try:
                directory.mkdir()
            except OSError:
                continue
            for name in ("memory.reclaim", "memory.force_empty"):
                if os.access(directory / name, os.W_OK):
                    group = Group(directory, name)
                    group._without_swap()
                    return group
            directory.rmdir()
        return None

    def _without_swap(self) -> None:
        """Only what is given up is to go."""
        for name in ("memory.swap.max", "memory.swappiness"):
            with contextlib.suppress(OSError):
                if (self.directory / name).exists():
                    (self.directory / name).write_text("0")

    def environment(self) -> dict[str, str]:
        """What player.c is told."""
        return {"RMAPLAB_GROUP": str(self.directory), "RMAPLAB_RECLAIM": self.reclaim}

    def remove(self) -> None:
        for _ in range(50):  # its last process may be on its way out
            try:
                self.directory.rmdir()
                return
            except OSError:
                time.sleep(0.02)


def _groups() -> list[Path]:
    """Directories of the memory cgroups that this process is in."""
    try:
        own = Path("/proc/self/cgroup").read_text().splitlines()
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return []
    paths = {}
    for line in own:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            paths["cgroup2"] = path
        elif "memory" in controllers.split(","):
            paths["cgroup"] = path
    found = []
    for line in mounts:
        before, after = line.split(" - ", 1)
        kind, _, options = after.split(" ", 2)
        root, place = before.split(" ")[3:5]
        if kind in paths and (kind == "cgroup2" or "memory" in options.split(",")):
            below = paths[kind].removeprefix(root.rstrip("/")).lstrip("/")
            found.append(Path(place, below))
    return found
