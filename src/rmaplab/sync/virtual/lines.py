# SPDX-License-Identifier: GPL-2.0-or-later
"""Cache lines.

One that several CPUs change (a lock, a reference count) is in one place at a time: a CPU that changes it after another
one did waits for it, and for all earlier requests.  Data that are read more often than written stay in the caches of
all who read them since the last write: they come over once to each, and not at all where only readers had them.
"""

from __future__ import annotations

from mypy_extensions import i64

from rmaplab.sync.locks import Data, Word
from rmaplab.sync.virtual.task import Task


def move(word: Word, task: Task, handover: i64) -> bool:
    """`task` changes `word`, whose line takes `handover` to come from another CPU; did it have to come?"""
    last = word.cpu
    if last == task.cpu:
        return False
    word.cpu = task.cpu
    if last < 0:
        return False
    start = task.time
    if word.line_free > start:
        start = word.line_free
    task.time = start + handover
    word.line_free = task.time
    return True


def comes(data: Data, cpu: int, write: bool) -> bool:
    """`cpu` gets at `data`, to change it if `write`; has it to come from another CPU, which wrote to it?"""
    writer = data.writer
    far = writer >= 0 and writer != cpu and cpu not in data.copies
    if write:
        if writer != cpu or data.copies:
            data.copies.clear()
            data.writer = cpu
    elif writer >= 0 and writer != cpu:
        data.copies.add(cpu)
    return far
