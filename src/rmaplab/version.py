# SPDX-License-Identifier: GPL-2.0-or-later
"""Which rmaplab this is: its version, and how its core was installed."""

from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec

__version__ = "0.1.0"


def build_info() -> str:
    """How mm/, rmap/ and sync/ were installed: "compiled" by mypyc, or "interpreted".

    The install is all or nothing, so any one of their modules tells.
    """
    spec = find_spec("rmaplab.sync.work")
    if spec is None or spec.origin is None:
        raise ImportError("rmaplab.sync.work is missing: install rmaplab again")
    return "compiled" if spec.origin.endswith(tuple(EXTENSION_SUFFIXES)) else "interpreted"
