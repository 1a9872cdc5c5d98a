# SPDX-License-Identifier: GPL-2.0-or-later
"""A specification stands for the combinations of its axes, and says what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmaplab.rmap import DESIGNS
from rmaplab.sweep.errors import SweepError
from rmaplab.sweep.points import Compare, Race, Scale, Verify
from rmaplab.sweep.spec import Spec, read_spec
from rmaplab.trace.history import write_history
from rmaplab.workloads.forkchain import ForkChain


def spec(directory: Path, text: str) -> Spec:
    path = directory / "campaign.toml"
    path.write_text(text)
    return read_spec(path)


def test_lists_and_ranges_are_axes_and_the_last_goes_fastest(tmp_path: Path) -> None:
    points = spec(
        tmp_path,
        """
        [[compare]]
        history = ["forkchain", "aim7 children=2"]
        designs = ["anon_vma", "cow_context"]
        seed = "3..5"
        """,
    ).points
    assert [(p.history, p.seed) for p in points if isinstance(p, Compare)] == [
        (history, seed) for history in ("forkchain", "aim7 children=2") for seed in (3, 4, 5)
    ]
    assert {p.designs for p in points if isinstance(p, Compare)} == {("anon_vma", "cow_context")}


def test_where_a_parameter_is_a_list_a_list_of_lists_is_the_axis(tmp_path: Path) -> None:
    points = spec(
        tmp_path,
        """
        [[verify]]
        designs = [["anon_vma"], ["anon_vma", "cow_context"]]
        steps = 10
        """,
    ).points
    assert [p.designs for p in points if isinstance(p, Verify)] == [("anon_vma",), ("anon_vma", "cow_context")]


def test_all_designs_are_meant_by_all(tmp_path: Path) -> None:
    points = spec(
        tmp_path,
        """
        [[compare]]
        history = "forkchain"
        designs = "all"
        [[compare]]
        history = "forkchain"
        designs = [["anon_vma"], ["all"], ["pte_chain", "all"]]
        [[scale]]
        history = "storm"
        design = "all"
        cpus = 2
        """,
    ).points
    compared = [point.designs for point in points if isinstance(point, Compare)]
    pte_chain_first = ("pte_chain", *(name for name in DESIGNS if name != "pte_chain"))
    assert compared == [tuple(DESIGNS), ("anon_vma",), pte_chain_first]  # what is named twice is done once
    assert [point.design for point in points if isinstance(point, Scale)] == list(DESIGNS)


def test_a_scenario_is_all_whose_names_contain_it(tmp_path: Path) -> None:
    points = spec(tmp_path, '[[race]]\nscenario = "unmap / munmap"\ndesign = "anon_vma"\n').points
    names = [point.scenario for point in points if isinstance(point, Race)]
    assert "unmap / munmap" in names and "unmap / munmap in the child" in names


def test_a_point_that_is_named_twice_is_done_once(tmp_path: Path) -> None:
    text = '[[verify]]\ndesigns = ["anon_vma"]\nsteps = 10\nseed = [1, 1]\n'
    assert len(spec(tmp_path, text + text).points) == 1


def test_the_key_depends_on_the_contents_of_files(tmp_path: Path) -> None:
    design = tmp_path / "mine.py"
    text = '[[race]]\nscenario = "unmap / munmap in the child"\ndesign = "mine.py"\n'
    keys = []
    for comment in ("one", "two"):
        design.write_text(
            f"# {comment}\nfrom rmaplab.rmap.anon_vma import AnonVmaRmap\nclass Mine(AnonVmaRmap):\n    name = 'mine'\n"
        )
        (point,) = spec(tmp_path, text).points[:1]
        assert list(point.files) == ["mine.py"]
        keys.append(point.key())
    assert keys[0] != keys[1]


def test_two_recordings_of_one_name_are_not_taken_for_one(tmp_path: Path) -> None:
    for directory, times in (("a", 1), ("b", 2), ("c", 1)):
        (tmp_path / directory).mkdir()
        write_history(tmp_path / directory / "h.parquet", ForkChain(generations=times + 1).history())
    text = '[[compare]]\nhistory = ["a/h.parquet", "{}/h.parquet"]\ndesigns = ["anon_vma"]\n'
    with pytest.raises(SweepError, match=r"two recordings are called h\.parquet: give one of them another name"):
        spec(tmp_path, text.format("b"))
    assert len(spec(tmp_path, text.format("c")).points) == 2  # the same recording


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no point"),
        ("name = 3", "`name` has to be text"),
        ("[[compare]", "is not TOML"),
        ("[[melt]]\nx = 1", "no 'melt' to sweep over"),
        ("[compare]\nhistory = 'aim7'", "two brackets"),
        ("[[compare]]\nhistory = 'aim7'", "designs"),
        ("[[compare]]\nhistory = 'aim7'\ndesigns = ['anon_vma']\nspeed = 3", "speed"),
        ("[[compare]]\nhistory = 'aim7'\ndesigns = ['anon_vma']\nseed = 'x'", "seed"),
        ("[[compare]]\nhistory = 'aim7'\ndesigns = ['anon_vma']\nseed = []", "seed has no value"),
        ("[[compare]]\nhistory = 'aim8'\ndesigns = ['anon_vma']", "did you mean 'aim7'"),
        ("[[compare]]\nhistory = 'gone.parquet'\ndesigns = ['anon_vma']", "there is no file"),
        ("[[compare]]\nhistory = ''\ndesigns = ['anon_vma']", "empty"),
        ("[[compare]]\nhistory = 'aim7'\ndesigns = ['anon']", "no design is called"),
        ("[[compare]]\nhistory = 'aim7'\ndesigns = []", "needs designs"),
        ("[[compare]]\nhistory = 'aim7'\ndesigns = ['anon_vma']\nprofile = '5.4'", "no profile '5.4'"),
        ("[[compare]]\nhistory = 'aim7'\ndesigns = ['anon_vma']\nfiles = {}", "files is not a parameter"),
        ("[[verify]]\nsteps = 0\ndesigns = ['anon_vma']", "needs steps"),
        ("[[race]]\nscenario = 'lunch'\ndesign = 'anon_vma'", "no scenario's name contains"),
        ("[[verify]]\nsteps = 5\ndesigns = ['anon_vma']\nseed = '1..999999'", "more than"),
    ],
)
def test_what_makes_no_sense_is_said(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SweepError) as error:
        spec(tmp_path, text)
    assert said in str(error.value)
    assert "campaign.toml" in str(error.value)
