# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that commands write: whole or not at all, and never in place of what is not a file of its own.

A regular file is written beside its place and moved there, so that whatever happens meanwhile the place holds all of
the new content or what it held before.  A symbolic link stays one: what it leads to is written.  What is neither
(/dev/null, /dev/stdout, a FIFO) is written to directly, and only when the content is complete.  A disk and a socket are
refused.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from rmaplab.errors import CannotRun


class CannotWrite(CannotRun, OSError):
    """A file cannot be written; what was there before is unchanged."""


def check_output(path: str | os.PathLike[str]) -> None:
    """See that `path` can be written, before there is something to write.

    :raises CannotWrite: it is a directory, or in none, or nothing to write to, or may not be written
    """
    target = _target(path)
    if target.is_dir():
        raise CannotWrite(f"{path} is a directory: give the name of a file in it")
    if not target.parent.is_dir():
        raise CannotWrite(f"cannot write {path}: there is no directory {target.parent}")
    if target.is_symlink() and not _is_name_of_open_file(target):
        raise CannotWrite(f"cannot write {path}: {os.strerror(errno.ELOOP)}")
    if target.is_block_device() or target.is_socket():
        raise CannotWrite(f"cannot write {path}: it is a block device or a socket")
    if not os.access(target.parent if _is_replaced(target) else target, os.W_OK):
        raise CannotWrite(f"cannot write {path}: {os.strerror(errno.EACCES)}")


def write_output(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Write `content`; text is UTF-8.

    :raises CannotWrite: as `check_output`, or the disk is full
    """
    check_output(path)
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    target = _target(path)
    # A name that nobody can have taken before, not even as a link, and that is not longer than the target's may be.
    scratch = target.with_name(f".rmaplab-{os.urandom(8).hex()}") if _is_replaced(target) else target
    try:
        try:
            with scratch.open("wb" if scratch is target else "xb") as file:
                file.write(data)
                if scratch is not target:
                    file.flush()
                    os.fsync(file.fileno())
            if scratch is not target:
                if target.exists():
                    scratch.chmod(stat.S_IMODE(target.stat().st_mode))
                scratch.replace(target)
        finally:
            if scratch is not target:
                scratch.unlink(missing_ok=True)
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {error.strerror or error}; nothing was left there") from None


def _target(path: str | os.PathLike[str]) -> Path:
    """Where symbolic links lead, but for names of files that are open."""
    return Path(path if _is_name_of_open_file(path) else os.path.realpath(path))


def _is_replaced(target: Path) -> bool:
    """Whether a new file takes the place: there is none, or a regular one that nothing else gives a name."""
    return not _is_name_of_open_file(target) and (not target.exists() or target.is_file())


def _is_name_of_open_file(path: str | os.PathLike[str]) -> bool:
    """/dev/stdout, /proc/self/fd/1: a rename would take such a name away, and leave the file as it is."""
    return os.path.abspath(path).startswith(("/dev/std", "/dev/fd/", "/proc/"))
