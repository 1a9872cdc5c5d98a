# SPDX-License-Identifier: GPL-2.0-or-later
"""The state of a guest right after its start, kept in the cache: later ones go on from there, and boot nothing.

QEMU writes the state of its devices (migration to a file, with memory that is shared left where it is), and the memory
is two files.  What is random in a kernel is not kept: whoever goes on gives it a new seed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rmaplab.kernel.setup import cache

_MEMORY: Final = ("memory0", "memory1")
_KEPT: Final = 8  # states: the newest


class Started:
    """Where the state is kept, by all that decides it: QEMU, its command line, and the files that this names.

    command:   QEMU's; it names files of `directory`, which is another one each time
    """

    def __init__(self, command: Sequence[str], directory: Path) -> None:
        told = hashlib.sha256(repr(os.stat(command[0])[6:9:2]).encode())  # its size and when it was made
        for word in command:
            told.update(word.replace(str(directory), "").encode() + b"\0")
            if os.path.isfile(word) and word != command[0]:
                told.update(Path(word).read_bytes())
        self._all: Final = cache() / "started"
        self._own: Final = self._all / told.hexdigest()[:16]
        self.state: Final = self._own / "state"

    def exists(self) -> bool:
        return self.state.exists()

    def copy_to(self, directory: Path) -> None:
        """The memory, for one guest."""
        for name in _MEMORY:
            _copy(self._own / name, directory / name)

    def begin(self) -> Path:
        """A directory for a state that is about to be saved."""
        being_made = self._all / f"{self._own.name}.{os.getpid()}"
        being_made.mkdir(parents=True)
        return being_made

    def end(self, being_made: Path, directory: Path) -> None:
        """The state of the guest in `directory`, which stands still, is there: the memory is to follow."""
        for name in _MEMORY:
            _copy(directory / name, being_made / name)
        try:
            being_made.rename(self._own)
        except OSError:  # somebody was faster
            shutil.rmtree(being_made)
        for old in sorted(self._all.iterdir(), key=os.path.getmtime)[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def discard(self) -> None:
        shutil.rmtree(self._own, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    """Copy a file that is mostly holes."""
    with source.open("rb") as have, target.open("wb") as new:
        size = os.fstat(have.fileno()).st_size
        new.truncate(size)
        at = 0
        while at < size:
            try:
                at = os.lseek(have.fileno(), at, os.SEEK_DATA)
            except OSError:  # nothing but a hole is left
                break
            end = os.lseek(have.fileno(), at, os.SEEK_HOLE)
            os.lseek(new.fileno(), at, os.SEEK_SET)
            while at < end:
                at += os.sendfile(new.fileno(), have.fileno(), at, end - at)
