# SPDX-License-Identifier: GPL-2.0-or-later
"""Users of the reverse map against operations, in every interleaving; and the checker's own findings."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import msgspec
import pytest

from rmaplab.check.race import (
    Broken,
    Model,
    RaceError,
    TimelineStep,
    Verdict,
    chosen,
    kinds,
    lock_complaints,
    read_path,
    run,
    run_path,
    timeline,
    write_path,
)
from rmaplab.check.race_mutants import SpaceNotKept
from rmaplab.check.rival_mutants import FreedWithSpace, ListedSpaceFreed
from rmaplab.check.scenarios import USERS, is_huge, names
from rmaplab.check.scenes import SCENES, Check, Scene
from rmaplab.check.world import World
from rmaplab.commands.frame import main
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.rmap import load
from rmaplab.rmap.context import CowContext
from rmaplab.rmap.cow_context import CowContextRmap
from rmaplab.sync.interleave import Execution
from rmaplab.trace.script import Process
from rmaplab.verdict import NothingLookedAt

# Scenarios with few interleavings, at least one of each user.
SMALL = [name for name in names() if " + " not in name and "mremap" not in name]


@pytest.mark.parametrize("design", ["anon_vma", "cow_context"])
@pytest.mark.parametrize("name", SMALL)
def test_a_walk_keeps_its_promise_in_every_interleaving(name: str, design: str) -> None:
    verdict = run(name, load(design))
    assert verdict.exhausted
    assert [broken.error for broken in verdict.broken] == []
    assert lock_complaints([verdict]) == []


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("design", ["anon_vma", "cow_context"])
def test_a_walk_keeps_its_promise_while_entries_move(user: str, design: str) -> None:
    """With one preemption; `make test-race` does without that bound (docs/races.md)."""
    for name in chosen([f"{user} / mremap"]):
        if " + " not in name:
            verdict = run(name, load(design), preemptions=1)
            assert verdict.holds, (name, [broken.error for broken in verdict.broken])


@pytest.mark.parametrize(
    "name",
    [
        "unmap / fork + exit of the child",
        "migrate / munmap + copy",
        "restore / fork + fork of the child",
    ],
)
@pytest.mark.parametrize("design", ["anon_vma", "cow_context"])
def test_two_operations_at_a_time_change_nothing(name: str, design: str) -> None:
    assert run(name, load(design)).holds


class ChildrenFirst(CowContextRmap):
    """Visits what is below a context before the context itself, as the prototype does."""

    name = "children first"

    def _parents_first(self, top: CowContext):  # type: ignore[no-untyped-def]
        found = [*super()._parents_first(top)]
        return iter(sorted(found, key=lambda context: -_depth(context)))


def _depth(context: CowContext) -> int:
    return 0 if context.parent is None else 1 + _depth(context.parent)


class NoSecondLook(CowContextRmap):
    """Does not look again where entries moved meanwhile."""

    name = "no second look"

    def need_move_locks(self, source: object, target: object, merged: bool) -> bool:
        return False


def test_a_walk_that_does_not_look_again_misses_what_moves_home() -> None:
    verdict = run("restore / mremap back", NoSecondLook, preemptions=2)
    assert [broken.error.split(":")[0] for broken in verdict.broken] == ["restored"]


def test_a_walk_that_lists_contexts_children_first_misses_the_child_of_a_fork() -> None:
    verdict = run("restore / fork of the child", ChildrenFirst)
    assert [broken.error.split(":")[0] for broken in verdict.broken] == ["restored"]


def test_whether_the_roots_lock_is_held_is_asked_without_it() -> None:
    """wait_for_walks(): put_anon_vma() looks at the lock's word (rwsem_is_locked())."""
    assert run("referenced / munmap before any fork", load("anon_vma"), memory=Model("weak")).holds


@pytest.mark.parametrize("user", ["referenced", "restore"])
def test_a_lazy_walk_needs_the_mm_struct_of_its_root(user: str) -> None:
    name = f"{user} / exit of the parent + exit of the child"
    assert run(name, load("anon_vma_lazy")).holds
    [broken] = run(name, SpaceNotKept).broken
    assert broken.error.startswith(f"use after free: {user} mm_users, mmget_not_zero() after exit of the ")
    assert broken.error.endswith("freed that mm_struct")


@pytest.mark.parametrize("huge", [True, False])
def test_what_a_scenes_folios_are_does_not_depend_on_its_name(huge: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def begin(world: World, process: Process, execution: Execution) -> Check:
        seen.append(world.machine.huge)
        return None

    monkeypatch.setitem(SCENES, "any name", Scene(begin, huge))
    run("any name", load("anon_vma"), limit=1)
    assert {*seen} == {huge}


# Designs that keep an object for each page take thousands of steps for 2 MiB.
ALONE = [name for name in names() if " + " not in name and not is_huge(name)]


def broken_with_one_preemption(design: str) -> dict[str, str]:
    """Of the scenarios with one operation, those that the design breaks, and which obligation."""
    verdicts = [run(name, load(design), preemptions=1) for name in ALONE]
    assert lock_complaints(verdicts) == []
    assert all(v.exhausted or v.broken for v in verdicts)
    return {v.scenario: v.broken[0].error.split(":")[0] for v in verdicts if v.broken}


@pytest.mark.parametrize("design", ["anon_vma_own_lock", "anon_vma_lazy", "unshare_on_remap", "pte_chain"])
def test_a_rival_that_holds(design: str) -> None:
    assert broken_with_one_preemption(design) == {}


def test_anonmm_loses_a_migration_entry_where_mremap_moves_another() -> None:
    moves = [name for name in ALONE if "mremap" in name]
    broken = {name for name in moves if name.startswith(("migrate", "restore"))}
    broken -= {f"{user} / mremap {how}" for user in USERS for how in ("before any fork", "that merges")}
    broken |= {f"{user} / mprotect behind the page" for user in ("migrate", "restore")}  # no lock for the geometry
    found = broken_with_one_preemption("anonmm")
    assert set(found.values()) == {"restored"}
    assert set(found) == broken


@pytest.mark.parametrize(
    ("mutant", "name", "user", "operation", "subject"),
    [
        (FreedWithSpace, "referenced / exit of the parent", "referenced", "exit of the parent", "anonmm"),
        (ListedSpaceFreed, "restore / exit of the child", "restore", "exit of the child", "mm_struct"),
    ],
)
def test_a_use_after_free_names_object_freer_and_toucher(
    mutant: type[ReverseMap], name: str, user: str, operation: str, subject: str
) -> None:
    [broken] = run(name, mutant).broken
    assert broken.error.startswith(f"use after free: {user} ")
    assert broken.error.endswith(f" after {operation} freed that {subject}")


def test_the_prototype_leaves_a_migration_entry_for_ever() -> None:
    verdict = run("restore / fork", load("cow_context_prototype"))
    assert not verdict.holds
    assert verdict.broken[0].error.startswith("restored: ")


def test_a_failure_replays_from_its_path() -> None:
    design = load("cow_context_prototype")
    broken = run("unmap / fork of the child", design).broken[0]
    again = run_path("unmap / fork of the child", design, broken.path)
    assert again == broken


def test_a_path_is_written_shortly() -> None:
    assert write_path([0, 0, 0, 1, 0]) == "0x3 1x1 0x1"
    assert read_path("0x3 1x1 0x1") == [0, 0, 0, 1, 0]


@pytest.mark.parametrize("text", ["x", "0x", "1x0", "0y3", "0x99999999"])
def test_what_is_no_path_is_refused(text: str) -> None:
    with pytest.raises(RaceError, match="no part of a path"):
        read_path(text)


def test_a_path_that_does_not_fit_is_refused() -> None:
    with pytest.raises(RaceError, match="does not fit"):
        run_path("unmap / fork", load("anon_vma"), "7x1")


def test_an_unknown_scenario_is_refused() -> None:
    with pytest.raises(RaceError, match="--list"):
        chosen(["no such thing"])


def test_a_timeline_has_a_column_for_each_cpu() -> None:
    broken = run("unmap / fork of the child", load("cow_context_prototype")).broken[0]
    lines = timeline(broken, ["unmap", "fork of the child"])
    assert lines[0].strip().startswith("CPU 0: unmap ")
    assert "CPU 1: fork of the child" in lines[0]
    assert lines[-1].strip() == broken.error
    assert all(len(line) <= 100 for line in lines[:-1])


# A design of one's own, and verdicts over nothing

OWN = """
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.rmap.cow_context_prototype import CowContextPrototypeRmap

class Right(AnonVmaRmap):
    name = "right"

class Wrong(CowContextPrototypeRmap):
    name = "wrong"

class Namesake(AnonVmaRmap):
    name = "anon_vma"
"""
MISTAKEN = '''

class Mistaken(AnonVmaRmap):
    name = "mistaken"

    def mm_gone(self, mm):
        del self.nothing
'''
UNABLE = """

class Unable(AnonVmaRmap):
    name = "unable"

    def vma_forked(self, parent, child):
        del self.nothing

class Unbuilt(AnonVmaRmap):
    name = "unbuilt"

    def __init__(self, attachment):
        del self.nothing
"""
LOOK = "referenced / exit of the child"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file with designs of one's own, of which a module of the same name can be imported, too."""
    (tmp_path / "mydesigns.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return str(tmp_path / "mydesigns.py")


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as status:
        main(["race", *arguments])
    said = capsys.readouterr()
    return int(status.value.code or 0), said.out, said.err


@pytest.mark.parametrize("spec", ["{own}:Right", "mydesigns:Right"])
def test_a_design_of_ones_own_is_raced_by_file_and_by_module(
    spec: str, own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = command(capsys, LOOK, "--rmap", spec.format(own=own))
    assert status == 0
    assert "right: 1 of 1 scenario holds, 0 are broken" in out


def test_a_wrong_design_of_ones_own_is_found_and_can_be_replayed(own: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = command(capsys, "restore / fork, and its child forks", "--rmap", f"{own}:Wrong")
    assert status == 1 and "wrong: 0 of 1 scenario holds, 1 is broken" in out
    again = shlex.split(out.partition("again:")[2].splitlines()[0])
    assert again[:2] == ["rmaplab", "race"]
    status, out, _ = command(capsys, *again[2:])
    assert status == 1 and "restored: " in out


def test_a_mistake_in_a_design_is_named_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mistaken.py"
    path.write_text(OWN + MISTAKEN)
    line = path.read_text().splitlines().index("        del self.nothing") + 1
    _, out, _ = command(capsys, LOOK, "--rmap", f"{path}:Mistaken")
    assert "AttributeError: " in out and f", in mm_gone(), line {line} of mistaken.py" in out


SLEEPY = """

class Sleepy(AnonVmaRmap):
    name = "sleepy"

    def walk(self, pfn):
        self.rcu.read_lock()
        {call}
        self.rcu.read_unlock()
        yield from super().walk(pfn)

    def folio_mapped(self, vma, addr, pfn, nr_pages):
        super().folio_mapped(vma, addr, pfn, nr_pages)
        self.might_sleep("memory")
"""


@pytest.mark.parametrize(
    ("name", "call", "found"),
    [
        ("referenced / fork", "self.might_sleep('memory')", "referenced may sleep for memory within an RCU section"),
        (
            "first fault below / first fault above",
            "pass",
            "first fault below may sleep for memory while it holds page_table_lock, a spin lock",
        ),
    ],
)
def test_a_design_that_may_sleep_where_nobody_may_is_found(name: str, call: str, found: str, tmp_path: Path) -> None:
    path = tmp_path / "sleepy.py"
    path.write_text(OWN + SLEEPY.format(call=call))
    [broken] = run(name, load(f"{path}:Sleepy")).broken
    assert broken.error == found


def test_equal_failures_are_shown_once_by_the_shortest_and_json_has_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mistaken.py"
    path.write_text(OWN + MISTAKEN)
    of_child, of_parent = "referenced / exit of the child", "referenced / exit of the parent"
    arguments = (of_child, of_parent, "unmap / exit of the child", "--rmap", f"{path}:Mistaken")
    _, out, _ = command(capsys, "--json", *arguments)
    broken = {difference["scenario"]: difference["broken"] for difference in json.loads(out)["differences"]}
    assert len(broken) > 5 and {of_child, of_parent} < broken.keys()
    shortest = min(broken, key=lambda name: len(broken[name]["timeline"]))
    for timelines in ("0", "1"):
        _, out, _ = command(capsys, *arguments, "--timelines", timelines)
        said = " ".join(out.split())
        assert said.count("AttributeError") == 1 and f" {len(broken)} are broken, " in said
        assert f" s of CPU time {shortest}: " in said
        assert f"so do {len(broken) - 1} more scenarios:" in said
        assert " unmap / exit of the child " in said and "; exit of the parent + " in said


def test_failures_that_differ_in_more_than_numbers_and_names_are_kinds_of_their_own() -> None:
    found = run(LOOK, load("anon_vma"))

    def broken(error: str, steps: int) -> Verdict:
        return msgspec.structs.replace(found, broken=[Broken(error, "", [TimelineStep(0, "step")] * steps)])

    first = broken("restored: address 0x10000000 of mm 1 waits for page 512, says referenced", 3)
    same = broken("restored: address 0x20000000 of mm 2 waits for page 7, says exit of the child", 2)
    other = [broken(f"KeyError: 5, in walk(), line {line} of mine.py", 1) for line in (8, 9)]
    assert kinds([found, first, other[0], same, other[1]]) == [[same, first], [other[0]], [other[1]]]


@pytest.mark.parametrize("how", [(), ("--random", "5")])
def test_a_mistake_while_the_scenario_is_set_up_is_a_failure_with_a_timeline(
    how: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mistaken.py"
    path.write_text(OWN + UNABLE)
    status, out, err = command(capsys, LOOK, "--rmap", f"{path}:Unable", *how)
    assert (status, err) == (1, "") and "unable: 0 of 1 scenario holds" in out
    lines = out.splitlines()
    last = next(number for number, line in enumerate(lines) if "set-up: AttributeError" in line)
    assert "in vma_forked()" in lines[last]
    assert lines[last - 2].split(maxsplit=1)[1] == "fork pid=1 pid2=2"
    assert "see it" not in out
    again = shlex.split(out.partition("again:")[2].splitlines()[0])
    assert command(capsys, *again[2:])[0] == 1


def test_a_design_that_cannot_be_built_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mistaken.py"
    path.write_text(OWN + UNABLE)
    status, out, err = command(capsys, LOOK, "--rmap", f"{path}:Unbuilt")
    assert (status, out) == (2, "") and "Unbuilt cannot be built: AttributeError" in err and "in __init__()" in err


def test_what_was_given_up_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = command(capsys, "restore / fork, and its child forks", "--rmap", "anon_vma", "--limit", "2")
    assert status == 1 and "0 are broken" in out
    assert "1 not finished: --limit 2 abandoned them" in out
    assert "\nVerdict   not finished: nothing is broken, and not everything was tried\n" in out


def test_two_designs_of_one_name_are_refused(own: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = command(capsys, LOOK, "--rmap", "anon_vma", "--rmap", f"{own}:Namesake")
    assert (status, out) == (2, "") and "two of the designs are called 'anon_vma'" in err


@pytest.mark.parametrize("path", [" ", "0x1", "0x2 1x2"])
def test_a_path_that_ends_before_the_tasks_do_gives_no_verdict(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = command(capsys, LOOK, "--rmap", "anon_vma", "--path", path)
    assert (status, out) == (2, "")
    assert "the path ends before referenced and exit of the child came to an end" in err


def test_no_interleaving_is_no_verdict() -> None:
    verdict = msgspec.structs.replace(run(LOOK, load("anon_vma")), interleavings=0)
    with pytest.raises(NothingLookedAt, match="no interleaving of referenced / exit of the child"):
        _ = verdict.holds


def test_pairs_of_operations_may_have_a_bound_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    alone, pair = "restore / munmap", "restore / munmap + fork of the child"
    status, out, _ = command(capsys, alone, "--rmap", "anon_vma", "--pairs", "0", "--json")
    bounds = {figures["scenario"]: figures["preemptions"] for figures in json.loads(out)["figures"]}
    assert status == 0 and bounds[alone] == -1 and bounds[pair] == 0


def test_a_name_that_is_wider_than_its_column_is_cut() -> None:
    step = TimelineStep(1, "read " + "anon_vma" * 20)
    lines = timeline(Broken("broken", "", [step]), ["a", "b", "c", "d"])
    assert "".join(line.strip() for line in lines[1:-2]).endswith("anon_vma" * 20) and len(lines) > 5
    assert max(map(len, lines)) <= 105
