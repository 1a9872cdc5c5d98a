# SPDX-License-Identifier: GPL-2.0-or-later
"""How Sphinx builds the site: `make docs`.

Pages are Markdown (MyST).  The reference of the library comes from docstrings, that of the commands from their
`--help-all`; both are read from the sources beside this file, interpreted, because compiled modules have no docstrings.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
SOURCES = str(ROOT / "src")
sys.path.insert(0, SOURCES)

project = "rmaplab"
author = "the rmaplab developers"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # tests/library/test_notebook.py sees that what is stored is what comes out
exclude_patterns = ["**/.*"]
html_theme = "furo"
html_title = "rmaplab"
html_copy_source = False
html_show_copyright = False
default_role = "code"  # what docstrings put between backquotes
autodoc_member_order = "bysource"


def help_of(*words: str) -> str:
    """What `rmaplab WORDS` prints on 80 columns."""
    done = subprocess.run(
        [sys.executable, "-m", "rmaplab", *words],
        env={**os.environ, "PYTHONPATH": SOURCES, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    )
    return "\n".join(line.rstrip() for line in done.stdout.splitlines())


def verbs_in(text: str) -> list[list[str]]:
    """The commands that a help text lists, in its order, as words."""
    _, _, listed = text.partition("\nCommands:\n")
    listed, _, _ = listed.partition("\n\n")
    return [line.strip().partition("  ")[0].split() for line in listed.splitlines()]


def write_commands(app: Sphinx) -> None:
    """reference/commands.md: what each command says of itself."""
    target = Path(app.srcdir, "reference", "commands.md")
    if not target.parent.is_dir():  # another site, of a test
        return
    top = help_of("--help")
    page = ["# Commands", "", "```text", top, "```", ""]
    for verb in verbs_in(top):
        page += [f"## rmaplab {' '.join(verb)}", "", "```text", help_of(*verb, "--help-all"), "```", ""]
    written = "\n".join(page)
    if not target.exists() or target.read_text() != written:
        target.write_text(written)


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", write_commands)
