# SPDX-License-Identifier: GPL-2.0-or-later
"""Every `>>>` in a docstring, and on a page of docs/, prints what stands below it.

Docstrings are read from the sources, because compiled modules have none.
"""

from __future__ import annotations

import ast
import doctest
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "rmaplab"
MODULES = [file for file in sorted(PACKAGE.rglob("*.py")) if ">>> " in file.read_text()]
PAGES = [page for page in sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]) if ">>> " in page.read_text()]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def name_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def docstrings(file: Path) -> Iterator[tuple[str, str, int]]:
    """(whose, docstring, line)"""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            if text and ">>> " in text:
                yield getattr(node, "name", "module"), text, getattr(node, "lineno", 1)


def failures(text: str, names: dict[str, object], whose: str, file: Path, line: int) -> str:
    said: list[str] = []
    example = doctest.DocTestParser().get_doctest(text, names, whose, str(file), line)
    assert example.examples
    doctest.DocTestRunner(optionflags=FLAGS).run(example, out=said.append)
    return "".join(said)


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_examples_of_docstrings_print_what_they_say(file: Path) -> None:
    names = vars(import_module(name_of(file)))
    for whose, text, line in docstrings(file):
        assert failures(text, dict(names), whose, file, line) == ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_of_pages_print_what_they_say(page: Path) -> None:
    assert failures(page.read_text().replace("\n```", "\n\n"), {}, page.name, page, 1) == ""
