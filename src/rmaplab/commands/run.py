# SPDX-License-Identifier: GPL-2.0-or-later
"""`rmaplab run`: run a built-in workload through designs."""

from __future__ import annotations

from typing import Annotated

import typer

from rmaplab.commands.compare import Asked
from rmaplab.errors import CannotRun
from rmaplab.measure import sources
from rmaplab.workloads import FAMILIES


def command(
    name: Annotated[
        str, typer.Argument(metavar="WORKLOAD", help=f"One of {', '.join(FAMILIES)}.", show_default=False)
    ] = "",
    parameters: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="Its parameters.", hidden=True)
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Print the workloads, their parameters and defaults.")
    ] = False,
    asked: Asked = Asked(check=False),  # noqa: B008 (frozen)
) -> bool:
    """Run a built-in workload through designs (default: anon_vma).

    \b
    Example:
      rmaplab run zygote apps=5 restarts=10 --rmap cow_context
    """
    if list_:
        print(_families())
        return True
    if not name:
        raise CannotRun(f"run needs a workload: {', '.join(FAMILIES)} (--list prints their parameters)")
    given = parameters or []
    return asked.compare("run", [name, *given], lambda: sources.from_workload(name, given, asked.seed), ["anon_vma"])


def _families() -> str:
    """The workloads and their parameters."""
    lines: list[str] = []
    for name, family in FAMILIES.items():
        lines.append(f"{name}: {(family.__doc__ or '').splitlines()[0]}")
        default = family()
        for parameter, what in family.parameters().items():
            lines.append(f"  {f'{parameter}={getattr(default, parameter)}':20} {what}")
    return "\n".join(lines)
