# SPDX-License-Identifier: GPL-2.0-or-later
"""The notebook in docs/ runs, and what it shows is what comes out.

`python tests/library/test_notebook.py` puts in what comes out now.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "follow-a-page.ipynb"


def run(path: Path) -> Any:
    """The notebook after a run from its first cell on, without what differs from run to run."""
    notebook = nbformat.read(path, as_version=4)
    os.environ["PYTHONPATH"] = os.pathsep.join(where for where in sys.path if where)  # the kernel sees what we see
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": path.parent}}).execute()
    for cell in notebook.cells:
        cell.metadata.clear()
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def shown(notebook: Any) -> list[list[Any]]:
    """What the cells print and show; of drawn pixels, that there are some."""
    return [
        [
            output.text if output.output_type == "stream" else
            {kind: "" if kind == "image/png" else data for kind, data in output.get("data", {}).items()}
            for output in cell.outputs
        ]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]  # fmt: skip


def test_the_notebook_shows_what_comes_out() -> None:
    stored = shown(nbformat.read(NOTEBOOK, as_version=4))
    assert shown(run(NOTEBOOK)) == stored, "look at what differs; if it is meant, this file run as a program stores it"


if __name__ == "__main__":
    nbformat.write(run(NOTEBOOK), NOTEBOOK)
