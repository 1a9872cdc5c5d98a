# SPDX-License-Identifier: GPL-2.0-or-later
"""`rmaplab replay`: run a recording through designs."""

from __future__ import annotations

from typing import Annotated

import typer

from rmaplab.commands.compare import Asked
from rmaplab.measure import sources


def command(
    recording: Annotated[str, typer.Argument(metavar="F", help="A history that `rmaplab record` wrote.", hidden=True)],
    asked: Asked = Asked(check=False),  # noqa: B008 (frozen)
) -> bool:
    """Run a recording F through designs (default: anon_vma) and print what they hold and do.

    \b
    Example:
      rmaplab replay sort.parquet --rmap anon_vma,cow_context
    """
    return asked.compare("replay", [recording], lambda: sources.from_file(recording), ["anon_vma"])
