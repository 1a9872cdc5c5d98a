# SPDX-License-Identifier: GPL-2.0-or-later
"""Progress of long work on stderr: a bar on a terminal, an occasional line elsewhere.

Work that takes a second or less reports nothing, and nothing is ever written to stdout.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_QUIET: Final = 1.5  # seconds until the bar appears
_REFRESH: Final = 0.2  # seconds between two of its states
_LINE_EVERY: Final = 15.0  # seconds between two lines where there is no terminal


class Meter:
    """A context manager that is told what is being done, how much of it is done, and of how much."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bar: Final = _bar(console) if console.is_terminal else None
        self._task: TaskID | None = None
        self._calls = 0
        self._next = time.monotonic() + (_QUIET if self._bar else _LINE_EVERY)

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """For events, of which a second has thousands: of 64 calls one tells."""
        self._calls += 1
        if self._calls & 63:  # asking for the time is dearer than most events
            return
        self.tell(what, done, total)

    def tell(self, what: str, done: int, total: int, of: str = "events") -> None:
        """The same where each thing done takes its time; `of` is what is counted."""
        now = time.monotonic()
        if now < self._next:
            return
        if self._bar is None:
            print(f"rmaplab: {what}, {done:,} of {total:,} {of}", file=sys.stderr, flush=True)
            self._next = now + _LINE_EVERY
            return
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task(what, total=total)
        self._bar.update(self._task, description=what, completed=done, total=total)
        self._bar.refresh()
        self._next = now + _REFRESH


def _bar(console: Console) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, transient=True, auto_refresh=False,
    )  # fmt: skip
