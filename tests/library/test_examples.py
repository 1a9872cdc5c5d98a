# SPDX-License-Identifier: GPL-2.0-or-later
"""Examples in the docstrings of what the library offers run, and print what they say."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

MODULES = (
    "rmaplab",
    "rmaplab.library.machine",
    "rmaplab.library.verbs",
    "rmaplab.measure.table",
    "rmaplab.trace.script",
    "rmaplab.workloads",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name: str) -> None:
    found = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert found.attempted and not found.failed
