# SPDX-License-Identifier: GPL-2.0-or-later
"""Cache lines: one that several CPUs change (a lock, a reference count) is in one place at a time.

A CPU that changes a line after another one did waits for it, and for all earlier requests.
"""

from __future__ import annotations

from mypy_extensions import i64

from rmaplab.sync.locks import Word
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
