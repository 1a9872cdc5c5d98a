# SPDX-License-Identifier: GPL-2.0-or-later
"""The page's script by itself: its types hold, its logic does what film.test.mjs says, and it makes no markup."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from rmaplab.explore import html

HERE = Path(__file__).parent
PAGE = Path(html.__file__).parent / "page"
MODULES = sorted(PAGE.glob("*.js"))


def tool(name: str) -> str:
    """Where a program is; without it the test is skipped, unless nothing may be."""
    found = shutil.which(name)
    if found is None and "RMAPLAB_REQUIRE_BROWSER" not in os.environ:
        pytest.skip(f"NOT TESTED: the page's script, because there is no {name}")
    return found or name


def test_types_hold() -> None:
    options = (
        "--checkJs --allowJs --noEmit --strict --target es2022 --module es2022 --lib es2022,dom,dom.iterable"
    )
    result = subprocess.run(
        [tool("tsc"), *options.split(), *MODULES], capture_output=True, text=True, check=False
    )
    assert result.stdout == ""
    assert result.returncode == 0


def test_logic(tmp_path: Path) -> None:
    """In a copy where Node takes .js files for modules."""
    (tmp_path / "package.json").write_text('{"type": "module"}')
    for module in MODULES:
        target = tmp_path / "src/rmaplab/explore/page" / module.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(module, target)
    target = tmp_path / "tests/explore/film.test.mjs"
    target.parent.mkdir(parents=True)
    shutil.copy(HERE / "film.test.mjs", target)
    result = subprocess.run(
        [tool("node"), "--test", target], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


def test_every_module_is_on_the_page() -> None:
    assert sorted(html.MODULES) == [module.stem for module in MODULES]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
@pytest.mark.parametrize(
    "way", ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser"]
)
def test_no_markup_is_made_from_text(module: Path, way: str) -> None:
    assert way not in module.read_text(encoding="utf-8")
