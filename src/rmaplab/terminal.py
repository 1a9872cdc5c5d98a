# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes to the terminal: data on stdout, progress and refusals on stderr.

Text that comes from elsewhere, as the header of a history or the name of a file, may hold anything: escape codes and
newlines of it are shown, and do not reach the terminal.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def printable(text: str) -> str:
    r"""`text` with what is not printable escaped, in one line.

    >>> printable("a\x1b[31m\nb")
    'a\\x1b[31m\\nb'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(sentence: str) -> None:
    """Progress, or why something cannot be done: a line on stderr."""
    print(f"rmaplab: {printable(sentence)}", file=sys.stderr, flush=True)


def console(width: int | None = None) -> Console:
    """Where tables go: stdout, `width` columns or as many as the terminal has; markup is text.

    What nobody reads any more is a BrokenPipeError.
    """
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise

    return Terminal(width=width, highlight=False, markup=False)
