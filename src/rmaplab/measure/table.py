# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables of results: Arrow underneath, so that pandas, Polars and DuckDB take them as they are.

    >>> table = Table.of_rows([{"design": "anon_vma", "bytes": 1024}, {"design": "cow_context", "bytes": 352}])
    >>> table["bytes"]
    [1024, 352]
    >>> table
    design       bytes
    anon_vma     1,024
    cow_context    352

`polars.DataFrame(table)`, `pandas.DataFrame.from_arrow(table)` and `duckdb.sql("select * from table")` read it through
the Arrow PyCapsule interface; `table.arrow` is the pyarrow.Table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any, Final

import pyarrow as pa

_WIDTH: Final = 100  # columns of a terminal
_FEW: Final = 6  # rows that can stand side by side


class Table:
    """Rows with the same columns; None where a value is not known."""

    def __init__(self, arrow: pa.Table) -> None:
        self.arrow: Final = arrow

    @classmethod
    def of_rows(cls, rows: Iterable[Mapping[str, Any]]) -> Table:
        return cls(pa.Table.from_pylist([dict(row) for row in rows]))

    @property
    def columns(self) -> list[str]:
        """Their names."""
        return list(self.arrow.column_names)

    def __len__(self) -> int:
        """Rows."""
        return int(self.arrow.num_rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows, each a dictionary."""
        return iter(self.arrow.to_pylist())

    def __getitem__(self, column: str) -> list[Any]:
        """The values of a column."""
        return list(self.arrow.column(column).to_pylist())

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.arrow.__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        """Aligned text; a table of few rows that is wider than a terminal stands on its side."""
        rows = [[_words(value) for value in row.values()] for row in self]
        right = [pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in self.arrow.schema.types]
        upright = _aligned([self.columns, *rows], right)
        if len(rows) > _FEW or len(upright.partition("\n")[0]) <= _WIDTH:
            return upright
        lying = [list(line) for line in zip(self.columns, *rows, strict=True)]
        return _aligned(lying, [False, *[True] * len(rows)])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        body = "".join(
            f"<tr>{''.join(f'<td>{escape(_words(value))}</td>' for value in row.values())}</tr>" for row in self
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _aligned(lines: list[list[str]], right: list[bool]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            word.rjust(width) if to_right else word.ljust(width)
            for word, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def _words(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
