# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes to the terminal: data on stdout, progress and refusals on stderr.

Text that comes from elsewhere, as the header of a history or the name of a file, may hold anything: escape codes and
newlines of it are shown, and do not reach the terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Final

from rmaplab.printable import printable

if TYPE_CHECKING:
    from rich.console import Console


_GAP: Final = 3  # columns of a terminal between two of a table


def say(sentence: str) -> None:
    """Progress, or why something cannot be done: a line on stderr."""
    print(f"rmaplab: {printable(sentence)}", file=sys.stderr, flush=True)


def console(width: int | None = None) -> Console:
    """Where tables go: stdout, `width` columns or as many as the terminal has; markup is text, :words: too.

    What nobody reads any more is a BrokenPipeError.
    """
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise

    return Terminal(width=width, highlight=False, markup=False, emoji=False)


class Grid:
    """A table of text: a first column, and columns of numbers.

    Nothing is ever cut.  Where the terminal is too narrow, the columns fold into several tables, each with the first
    column; where that takes most of the width, its cells stand on lines of their own.
    """

    def __init__(self, *headings: str, left: Collection[str] = ()) -> None:
        """A heading may have several lines.  `left`: headings of columns of words, which begin at the left."""
        self.headings: Final = headings
        self.left: Final = left
        self.rows: Final[list[Sequence[str]]] = []

    def add_row(self, *cells: str) -> None:
        self.rows.append((*cells, *[""] * (len(self.headings) - len(cells))))

    def print(self, out: Console, title: str = "", gap: bool = True) -> None:
        """Print it within the width of `out`, as far as its widest column fits into that; with a `gap` between
        tables."""
        if title:
            out.print(title, style="bold")
        widths = [
            max(len(line) for line in (*heading.split("\n"), *(row[i] for row in self.rows)))
            for i, heading in enumerate(self.headings)
        ]
        stacked = widths[0] > out.width // 2 and widths[0] + sum(_GAP + width for width in widths[1:]) > out.width
        if stacked:
            widths[0] = 0
        columns = list(range(1, len(widths)))
        while True:
            fitting = 0
            used = widths[0]
            while fitting < len(columns) and (not fitting or used + _GAP + widths[columns[fitting]] <= out.width):
                used += _GAP + widths[columns[fitting]]
                fitting += 1
            self._print_columns(columns[:fitting], widths, out, stacked)
            columns = columns[fitting:]
            if not columns:
                return
            if gap:
                out.print()

    def _print_columns(self, columns: Sequence[int], widths: Sequence[int], out: Console, stacked: bool) -> None:
        def print_line(first: str, cells: Sequence[str], style: str = "") -> None:
            if stacked and first:
                out.print(first, style=style, soft_wrap=True)
                first = ""
            text = f"{first:{widths[0]}}"
            for i, cell in zip(columns, cells, strict=True):
                text += f"{'':{_GAP}}{cell:{'<' if self.headings[i] in self.left else '>'}{widths[i]}}"
            out.print(text.rstrip(), style=style, soft_wrap=True)

        names = [self.headings[i].split("\n") for i in (0, *columns)]
        height = max(len(lines) for lines in names)
        for row in zip(*([""] * (height - len(lines)) + lines for lines in names), strict=True):
            print_line(row[0], row[1:], "bold")
        total = widths[0] + sum(_GAP + widths[i] for i in columns)
        out.print(("─" if has_unicode(out) else "-") * total, soft_wrap=True)
        for cells in self.rows:
            print_line(cells[0], [cells[i] for i in columns])


def print_text(text: str, indent: int, out: Console, hang: int = 2) -> None:
    """Print a paragraph, its first line indented by `indent`, the others by `hang` more."""
    first, others = " " * indent, " " * (indent + hang)
    for part in wrap(
        text, max(40, out.width - 1), initial_indent=first, subsequent_indent=others, break_on_hyphens=False
    ):
        out.print(part, soft_wrap=True)


def print_fact(label: str, text: str, out: Console) -> None:
    """Print a paragraph with a word in the margin that says what it is about."""
    print_text(f"{label:9} {text}", 0, out, hang=10)


def print_verdict(holds: bool, out: Console) -> None:
    """Print the answer, by which a command ends."""
    print_fact("Verdict", "holds" if holds else "does not hold", out)


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
