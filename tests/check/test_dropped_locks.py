# SPDX-License-Identifier: GPL-2.0-or-later
"""A lock that is not taken is found, also where all that it covers is one step: what relies on it says so.

A bug is an edit of the source text of one file; scenarios then run from a copy of the package, interpreted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

RUN = """
import sys
from rmaplab.check.scenarios import scenario
from rmaplab.rmap import DESIGNS
from rmaplab.sync.interleave import explore
outcome = explore(scenario(sys.argv[2], DESIGNS[sys.argv[1]]), limit=20)
print(*[text for failure in outcome.failures for text in (failure.error, failure.error.__context__)])
"""

UNLINK = "            if above is not None:\n                self._unlink(gone, above)\n"
KSM = "                rwsem.down_read()\n                try:\n                    addr = place.addr\n"
ZAPPED = "    left = -1\n    if entry and "

# Where the bug is, what becomes what, the design and the scenario that show it, and what is said to be missing.
DROPPED: dict[str, tuple[str, str, str, str, str, str]] = {
    "a record is made without the context's lock": (
        "rmap/cow_context.py",
        '            context.lock.lock()\n            self.records_change(context, "add record"',
        '            self.records_change(context, "add record"',
        "cow_context",
        "referenced / mremap away",
        "cow_context lock",
    ),
    "a child leaves its parent's list without the parent's lock": (
        "rmap/context.py",
        "            above = self.lock_parent(gone)\n" + UNLINK + "                above.lock.unlock()\n",
        "            above = gone.parent\n" + UNLINK,
        "cow_context",
        "referenced / exit of the child",
        "cow_context lock",
    ),
    "a child joins its parent's list without the parent's lock": (
        "rmap/context.py",
        "        above.lock.lock()\n        first = above.first_child\n",
        "        first = above.first_child\n",
        "cow_context",
        "referenced / fork",
        "cow_context lock",
    ),
    "a walk for a KSM page does not lock": (
        "rmap/anon_vma.py",
        KSM,
        KSM.replace("rwsem.down_read()", "pass"),
        "anon_vma",
        "referenced / KSM page forked",
        "anon_vma root rwsem",
    ),
    "a geometry changes without the anon_vma's lock": (
        "rmap/anon_vma.py",
        "            rwsem.down_write()\n\n    def _unlock_geometry",
        "            pass\n\n    def _unlock_geometry",
        "anon_vma",
        "referenced / mprotect that splits",
        "anon_vma root rwsem",
    ),
    "a page table is changed without its lock": (
        "mm/memory.py",
        ZAPPED,
        "    leaf.lock.unlock()\n" + ZAPPED,
        "anon_vma",
        "referenced / munmap",
        "page_table_lock",
    ),
    "a VMA is split without its lock": (
        "mm/merge.py",
        "    start_write(vma)\n    start_write(new)\n",
        "    start_write(new)\n",
        "anon_vma",
        "referenced / mprotect that splits",
        "vma_lock",
    ),
    "a VMA is moved without its lock": (
        "mm/mremap.py",
        "    start_write(vma)\n\n    new_vma, merged",
        "\n    new_vma, merged",
        "anon_vma",
        "referenced / mremap away",
        "vma_lock",
    ),
}


def failures(package: Path, design: str, scenario: str) -> str:
    """What the scenario says in the copy of the package."""
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", RUN, design, scenario]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package without what is compiled."""
    copy = tmp_path_factory.mktemp("mutant") / "rmaplab"
    with resources.as_file(resources.files("rmaplab")) as source:
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return copy


@pytest.mark.parametrize("name", DROPPED)
def test_a_dropped_lock_is_found(name: str, package: Path) -> None:
    file, before, after, design, scenario, missing = DROPPED[name]
    assert failures(package, design, scenario) == ""
    path = package / file
    text = path.read_text()
    assert text.count(before) == 1, "the source has changed: say where the bug goes now"
    path.write_text(text.replace(before, after))
    try:
        assert f"relies on {missing}, which it does not hold" in failures(package, design, scenario)
    finally:
        path.write_text(text)
