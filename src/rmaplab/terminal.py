# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes to the terminal: data on stdout, progress and refusals on stderr.

Text that comes from elsewhere, as the header of a history or the name of a file, may hold anything: escape codes and
newlines of it are shown, and do not reach the terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from rmaplab.printable import printable

if TYPE_CHECKING:
    from rich.console import Console


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


class Grid:
    """A table of text: a first column, and columns of numbers.  A number is never cut: where the terminal is too
    narrow, the columns fold into several tables, each with the first column."""

    def __init__(self, *headings: str) -> None:
        """A heading may have several lines."""
        self.headings: Final = headings
        self.rows: Final[list[Sequence[str]]] = []

    def add_row(self, *cells: str) -> None:
        self.rows.append((*cells, *[""] * (len(self.headings) - len(cells))))

    def print(self, out: Console, gap: bool = True) -> None:
        """Print it within the width of `out`, as far as a first column and one of numbers fit into that; with a `gap`
        between tables."""
        widths = [
            max(len(line) for line in (*heading.split("\n"), *(row[i] for row in self.rows)))
            for i, heading in enumerate(self.headings)
        ]
        columns = list(range(1, len(widths)))
        while True:
            fitting = 0
            used = widths[0]
            while fitting < len(columns) and (not fitting or used + 3 + widths[columns[fitting]] <= out.width):
                used += 3 + widths[columns[fitting]]
                fitting += 1
            self._print_columns(columns[:fitting], widths, out)
            columns = columns[fitting:]
            if not columns:
                return
            if gap:
                out.print()

    def _print_columns(self, columns: Sequence[int], widths: Sequence[int], out: Console) -> None:
        def line(first: str, cells: Sequence[str]) -> str:
            padded = (f"   {cell:>{widths[i]}}" for i, cell in zip(columns, cells, strict=True))
            return f"{first:{widths[0]}}{''.join(padded)}".rstrip()

        names = [self.headings[i].split("\n") for i in (0, *columns)]
        height = max(len(lines) for lines in names)
        for row in zip(*([""] * (height - len(lines)) + lines for lines in names), strict=True):
            out.print(line(row[0], row[1:]), style="bold", soft_wrap=True)
        total = widths[0] + sum(3 + widths[i] for i in columns)
        out.print(("─" if has_unicode(out) else "-") * total, soft_wrap=True)
        for cells in self.rows:
            out.print(line(cells[0], [cells[i] for i in columns]), soft_wrap=True)


def has_unicode(out: Console) -> bool:
    """Whether lines and bars can be drawn."""
    return out.encoding.lower().startswith("utf")


def bar(share: float, width: int, unicode: bool = True) -> str:
    """A bar of `share` (0 to 1) of `width` columns; the least bit of something shows.

    >>> bar(0.5, 4), bar(0.01, 4), bar(0, 4)
    ('██', '▏', '')
    """
    eighths = min(8 * width, -int(-share * 8 * width // 1))
    if not unicode:
        return "#" * -(-eighths // 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
