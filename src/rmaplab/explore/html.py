# SPDX-License-Identifier: GPL-2.0-or-later
"""One self-contained page from a film.

The page is templates/explorer.html with everything in it: style, script (the modules of page/, one by one), and
the film as gzip in base64, which can hold nothing that a browser would take for markup.  Its content security
policy lets run only what is in it, by hash, and lets it load nothing at all.

Invariant: the same film gives the same bytes.
"""

from __future__ import annotations

import gzip
import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from typing import Final

import msgspec
from markupsafe import Markup

from rmaplab.explore.parts import Film
from rmaplab.pages import render

MODULES: Final = (  # each after those it imports
    "film", "words", "draw", "lanes", "overview", "spaces", "structures", "main",
)  # fmt: skip

_IMPORT: Final = re.compile(r"^import \{[^}]*\} from \"\./\w+\.js\";\n", re.MULTILINE)
_EXPORT: Final = re.compile(r"^export ", re.MULTILINE)


def page(film: Film) -> str:
    """The page, complete."""
    script = _script()
    style = _source("page.css")
    return render(
        "explorer.html",
        script_hash=_hash(script),
        style_hash=_hash(style),
        style=Markup(style),
        script=Markup(script),
        film=b64encode(gzip.compress(msgspec.json.encode(film), mtime=0)).decode(),
    )


def _source(name: str) -> str:
    return files("rmaplab.explore").joinpath("page", name).read_text(encoding="utf-8")


def _script() -> str:
    """The modules as one: their names are distinct, so that imports and exports can simply go."""
    return "".join(_EXPORT.sub("", _IMPORT.sub("", _source(f"{module}.js"))) for module in MODULES)


def _hash(text: str) -> str:
    """How a content security policy names an inline script or style."""
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
