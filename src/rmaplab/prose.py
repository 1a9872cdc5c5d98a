# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages of Markdown that the code reads: prose, with facts and headings that mean something to who reads it.

    <!-- the licence -->
    # Title

    - name: value

    What comes first.

    ## Heading

    What is said below it.
"""

from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple


class Page(NamedTuple):
    """title, facts and about: what comes first, about as one line
    parts: heading and text of each"""

    title: str
    facts: dict[str, str]
    about: str
    parts: list[tuple[str, str]]


def read_page(path: str) -> Page:
    """The page in a file of this package."""
    text = files("rmaplab").joinpath(path).read_text(encoding="utf-8")
    _, head, *parts = text.replace("\n## ", "\n# ").split("\n# ")
    title, facts, *about = head.strip().split("\n\n", 2)
    return Page(
        title,
        dict(fact.removeprefix("- ").split(": ", 1) for fact in facts.splitlines()),
        in_one_line(" ".join(about)),
        [(heading, words.strip()) for heading, _, words in (part.partition("\n") for part in parts)],
    )


def in_one_line(words: str) -> str:
    """A paragraph without its line breaks."""
    return " ".join(words.split())
