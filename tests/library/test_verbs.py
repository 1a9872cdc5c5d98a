# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs of the library, and the tables that they give."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

import rmaplab as rl
from rmaplab.measure.result import TABLES
from rmaplab.measure.table import Table
from rmaplab.trace.history import read_history

RECORDINGS = Path(__file__).resolve().parents[2] / "src" / "rmaplab" / "data" / "recordings"


def test_a_comparison_says_what_the_command_prints() -> None:
    found = rl.compare(RECORDINGS / "pipeline.parquet", ["anon_vma", "cow_context"], costs="default")
    rows = list(found.table())
    assert [row["design"] for row in rows] == ["anon_vma", "cow_context"]
    anon_vma, figures = rows[0], found.figures.designs[0]
    assert anon_vma["exclusive_locks"] == sum(lock.writes for lock in figures.work.locks)
    assert anon_vma["slab_bytes"] == sum(o.peak_pages for o in figures.objects) * 4096
    assert anon_vma["history_ns"] > 0 and anon_vma["holds"]
    memory = found.table("memory")
    peak = max(row["bytes"] for row in memory if row["design"] == "anon_vma")
    assert peak == anon_vma["peak_bytes"]
    with pytest.raises(ValueError, match="there are designs, objects"):
        found.table("nothing")


@pytest.mark.parametrize("what", TABLES)
def test_every_table_is_arrow_by_the_capsule_interface(what: str) -> None:
    found = rl.compare(rl.workload("forkchain", generations=3), "all")
    table = found.table(what)
    assert pa.table(table).to_pylist() == list(table)
    assert len(table) == pa.table(table).num_rows


def test_a_table_prints_aligned_and_is_html() -> None:
    table = Table.of_rows([{"who": "a<b", "count": 1234}, {"who": "c", "count": None}])
    assert repr(table) == "who  count\na<b  1,234\nc"
    assert "<td>a&lt;b</td><td>1,234</td>" in table._repr_html_()
    assert table["count"] == [1234, None]


def test_a_history_is_arrow_too() -> None:
    history = rl.history(RECORDINGS / "pipeline.parquet")
    table = pa.table(history)
    assert table.num_rows == len(history)
    assert table.column("op").to_pylist()[:3] == [event.op for event in history][:3]


def test_a_command_is_recorded(tmp_path: Path) -> None:
    pytest.importorskip("rmaplab.trace.record")
    try:
        history = rl.record(["true"], tmp_path / "true.parquet")
    except rl.CannotRun as refusal:
        pytest.skip(str(refusal))
    assert history == read_history(tmp_path / "true.parquet")


def test_a_source_that_is_none_says_what_would_be() -> None:
    with pytest.raises(rl.CannotRun, match=r"there is no file nowhere.parquet: give a recording, or a workload"):
        rl.compare("nowhere.parquet")
    with pytest.raises(rl.CannotRun, match="did you mean 'workers'"):
        rl.workload("prefork", worker=3)


def test_importing_the_package_imports_its_version_and_nothing_else() -> None:
    code = "import sys, rmaplab; print(*[m for m in sys.modules if m.startswith(('rmaplab.', 'numpy', 'pyarrow'))])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "rmaplab.version"


def test_all_that_is_offered_is_there_and_says_what_it_is() -> None:
    for name in dir(rl):
        value = getattr(rl, name)
        if not name.startswith("_") and callable(value):
            assert value.__doc__, name


def test_what_is_offered_is_what_the_package_lists_and_a_star_brings() -> None:
    names = {*dir(rl)}
    assert {"Machine", "compare", "check", "PAGE", "MADV_DONTNEED", "build_info"} < names
    assert {name for name in names if inspect.ismodule(getattr(rl, name)) or name.startswith("_")} == {"check"}
    brought: dict[str, object] = {}
    exec("from rmaplab import *", brought)
    assert names == {*brought} - {"__builtins__"}


def test_the_package_of_checks_is_a_verb_and_a_package() -> None:
    from rmaplab.check import truth

    assert rl.check.truth is truth  # type: ignore[attr-defined]
