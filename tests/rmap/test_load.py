# SPDX-License-Identifier: GPL-2.0-or-later
"""How a design is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmap.world import PAGE, World
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.rmap import DESIGNS, EXCUSED, STANDARD, load, specs
from rmaplab.rmap.anon_vma import AnonVmaRmap

OWN = """
from collections.abc import Iterator
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import VMA

class {name}(ReverseMap):
    name = "{name}"

    def walk(self, pfn: int) -> Iterator[tuple[VMA, int]]:
        return iter(())
"""


def test_the_designs_that_come_with_it_have_a_fixed_order_and_their_own_names() -> None:
    assert list(DESIGNS) == [
        "anon_vma",
        "anon_vma_own_lock",
        "anon_vma_lazy",
        "cow_context",
        "lineage",
        "cow_context_prototype",
        "unshare_on_remap",
        "anonmm",
        "pte_chain",
        "page_scan",
    ]
    assert set(STANDARD) < set(DESIGNS)
    assert specs(["all"], ()) == list(DESIGNS)
    assert specs(None, STANDARD) == list(STANDARD)
    assert all(design.name == name for name, design in DESIGNS.items())
    assert load("anon_vma") is AnonVmaRmap


def test_a_design_says_itself_what_is_not_expected_of_it() -> None:
    assert EXCUSED == {"cow_context_prototype"}
    assert [name for name, design in DESIGNS.items() if design.scans_memory] == ["page_scan"]


def test_a_design_is_found_by_module_and_class() -> None:
    assert load("rmaplab.rmap.anon_vma:AnonVmaRmap") is AnonVmaRmap


def test_a_design_is_found_in_a_file_and_runs_on_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OWN.format(name="Mine"))
    mine = load(str(path))
    assert mine.name == "Mine" and issubclass(mine, ReverseMap)
    world = World("anon_vma", mine)
    process = world.spawn()
    addr = process.written(PAGE)
    process.fork()
    assert world.finds("Mine", process.pfn(addr)) == set()


def test_a_file_with_two_designs_needs_a_class(tmp_path: Path) -> None:
    path = tmp_path / "two.py"
    path.write_text(OWN.format(name="One") + OWN.format(name="Two"))
    assert load(f"{path}:Two").name == "Two"
    with pytest.raises(ValueError, match=r"2 subclasses of ReverseMap \(One, Two\)"):
        load(str(path))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("anonvma", "no design is called 'anonvma': give one of anon_vma, anon_vma_own_lock, anon_vma_lazy"),
        ("nowhere.py", "there is no file 'nowhere.py'"),
        ("no.such.module:X", "cannot import 'no.such.module'"),
        ("rmaplab.rmap:Nothing", "module 'rmaplab.rmap' has no 'Nothing'"),
        ("rmaplab.mm.vma:VMA", "is not a design: it must be a subclass"),
    ],
)
def test_what_cannot_be_found_says_what_would_be_right(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(spec)


def test_a_file_that_does_not_run_says_why(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("import nothing_of_this_name\n")
    with pytest.raises(ValueError, match="nothing_of_this_name"):
        load(str(path))
    path.write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"no subclass of ReverseMap"):
        load(str(path))
    with pytest.raises(ValueError, match="has no 'Mine'"):
        load(f"{path}:Mine")


def test_a_file_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "first_of_mine.py").write_text(OWN.format(name="First"))
    path = tmp_path / "second.py"
    path.write_text("from first_of_mine import First\n\n\nclass Second(First):\n    name = 'second'\n")
    assert load(str(path)).name == "second"
