# SPDX-License-Identifier: GPL-2.0-or-later
"""What is public in mm/ says what it does, and help() shows it, compiled or not."""

import ast
import inspect
from pathlib import Path

import pytest

from rmaplab.mm.folio import Folios
from rmaplab.mm.machine import Machine
from rmaplab.mm.pagetable import PageTable
from rmaplab.mm.vma_tree import VMATree

SOURCES = sorted((Path(__file__).parents[2] / "src/rmaplab/mm").glob("*.py"))


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.stem)
def test_what_is_public_is_documented(file: Path) -> None:
    silent = []
    for node in ast.parse(file.read_text()).body:
        members: list[ast.stmt] = [node]
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            members += node.body
        for member in members:
            if isinstance(member, ast.ClassDef | ast.FunctionDef) and not member.name.startswith("_"):
                if not ast.get_docstring(member):
                    silent.append(member.name)
    assert silent == []


@pytest.mark.parametrize("cls", [Machine, Folios, PageTable, VMATree], ids=lambda cls: cls.__name__)
def test_help_says_what_the_source_says(cls: type) -> None:
    """mypyc leaves docstrings out by itself: setup.py puts them back."""
    assert inspect.getdoc(cls), cls
    members = {name: member for name, member in vars(cls).items() if callable(member) and name[0] != "_"}
    assert members and [name for name, member in members.items() if not member.__doc__] == []
