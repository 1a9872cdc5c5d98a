# SPDX-License-Identifier: GPL-2.0-or-later
"""The page of a tour: Markdown, with a heading for each thing that happens, and below it what is said about it."""

from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple


class Page(NamedTuple):
    """title, facts (`- name: value`), about: what comes first
    parts: heading and words of each"""

    title: str
    facts: dict[str, str]
    about: str
    parts: list[tuple[str, str]]


def read_page(name: str) -> Page:
    """The page of the tour `name`: NAME.md in this folder."""
    text = files("rmaplab").joinpath(f"explore/tours/{name}.md").read_text(encoding="utf-8")
    _, head, *parts = text.replace("\n## ", "\n# ").split("\n# ")
    title, facts, about = head.split("\n\n", 2)
    return Page(
        title,
        dict(fact.removeprefix("- ").split(": ", 1) for fact in facts.splitlines()),
        _said(about),
        [(heading, _said(words)) for heading, _, words in (part.partition("\n") for part in parts)],
    )


def _said(words: str) -> str:
    return " ".join(words.split())
