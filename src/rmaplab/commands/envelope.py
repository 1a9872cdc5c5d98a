# SPDX-License-Identifier: GPL-2.0-or-later
"""What `--json` prints, in the one shape that all commands share.

    command      the verb
    version      of rmaplab, and how it was built
    inputs       what the figures depend on: the same inputs give the same figures
    holds        whether what was looked at holds; exit status 1 if not
    figures      what was counted
    differences  what does not hold, or is worth knowing

It is ASCII, so that any encoding of the output leaves it valid.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from rmaplab.version import __version__, build_info

VERSION: Final = f"{__version__} ({build_info()})"

_NOT_ASCII: Final = re.compile(r"[^\x00-\x7f]")


def print_json(
    command: str, inputs: Any, holds: bool, figures: Any, differences: Sequence[Any], **more: Any
) -> None:
    """Print the object; `more` is what one verb has besides."""
    told = {
        "command": command,
        "version": VERSION,
        "inputs": inputs,
        "holds": holds,
        "figures": figures,
        "differences": differences,
        **more,
    }
    try:
        text = msgspec.json.format(msgspec.json.encode(told), indent=2).decode()
    except UnicodeEncodeError:  # the name of a file that is not UTF-8
        text = json.dumps(msgspec.to_builtins(told), indent=2)
    sys.stdout.write(_NOT_ASCII.sub(lambda match: json.dumps(match[0])[1:-1], text) + "\n")
