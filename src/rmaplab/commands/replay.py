# SPDX-License-Identifier: GPL-2.0-or-later
"""`rmaplab replay`: run a recording through designs."""

from __future__ import annotations

from typing import Annotated

import typer

from rmaplab.commands import options
from rmaplab.commands.compare import Asked
from rmaplab.measure import sources
from rmaplab.measure.comparison import FOLIOS


def command(
    recording: Annotated[str, typer.Argument(metavar="F", help="A history that `rmaplab record` wrote.")],
    rmap: options.Designs = None,
    leader: options.Leader = "",
    profile: options.ProfileName = "",
    check: options.Check = False,
    every: options.Every = 0,
    folios: options.Folios = FOLIOS,
    large_folios: options.LargeFolios = 0,
    seed: options.Seed = 1,
    costs: options.Costs = "",
    outputs: options.Outputs = None,
    full: options.Full = False,
    json: options.Json = False,
) -> bool:
    """Run a recording through designs (default: anon_vma) and print what they hold and do.

    \b
    Example:
      rmaplab replay sort.parquet --rmap anon_vma,cow_context
    """
    asked = Asked(rmap, ["anon_vma"], leader, profile, check, every, folios, large_folios, seed, costs, outputs)
    history, source = sources.from_file(recording)
    return asked.compare("replay", [recording], history, source, full, json)
