# SPDX-License-Identifier: GPL-2.0-or-later
"""Work beside other work: the same comes of it, whatever happens to the process that does it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial

import pytest

from rmaplab.errors import CannotRun
from rmaplab.measure import comparison
from rmaplab.measure.beside import Beside, Told
from rmaplab.measure.comparison import Plan, compare
from rmaplab.measure.result import Comparison
from rmaplab.mm.errors import InvariantError
from rmaplab.mm.profile import PROFILES, REFERENCE
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import MM
from rmaplab.rmap import DESIGNS
from rmaplab.rmap.cow_context import CowContextRmap
from rmaplab.workloads import workload


def count(told: Told) -> tuple[int, int]:
    """Counts to three; in which process."""
    for done in range(1, 4):
        told(done)
    return 3, os.getpid()


def ends(how: Callable[[], object], told: Told) -> int:
    """Counts to one, and goes no further if it is in another process than `here`."""
    told(1)
    if os.getpid() != HERE:
        how()
    return HERE


HERE = os.getpid()


def fail() -> None:
    raise ValueError("for a reason")


FORKED: list[int] = []


@pytest.fixture(autouse=True)
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """FORKED are the processes that the test forked; the test runner has others."""
    FORKED.clear()
    fork = os.fork

    def noted() -> int:
        pid = fork()
        FORKED.append(pid)
        return pid

    monkeypatch.setattr(os, "fork", noted)


def no_child_is_left() -> bool:
    return all(is_gone(pid) for pid in FORKED)


def is_gone(pid: int) -> bool:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


def test_it_happens_in_another_process_and_says_how_far_it_is() -> None:
    told: list[int] = []
    beside = Beside("counted", count)
    counted, pid = beside.result(told.append)
    assert (counted, told) == (3, [1, 2, 3])
    assert pid != HERE
    assert not beside.runs()
    beside.stop()
    assert no_child_is_left()


def test_what_raises_there_is_done_here() -> None:
    def raises(told: Told) -> None:
        told(1)
        fail()

    told: list[int] = []
    beside = Beside("failed", raises)
    with pytest.raises(ValueError, match="for a reason") as raised:
        beside.result(told.append)
    assert [entry.name for entry in raised.traceback[-2:]] == ["raises", "fail"]
    assert told == [1, 1]
    beside.stop()
    assert no_child_is_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_is_interrupted_there_says_nothing_and_it_is_done_here(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = signal.signal(number, signal.default_int_handler)  # as the program rmaplab does
    try:
        beside = Beside("ended", partial(ends, lambda: os.kill(os.getpid(), number)))
        assert beside.result(lambda done: None) == HERE
    finally:
        signal.signal(number, kept)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (signal.SIGKILL, "the process that ended was killed by signal 9 (out of memory?)"),
        (signal.SIGALRM, "the process that ended was killed by signal 14"),
    ],
)
def test_who_is_killed_there_is_told_of(number: signal.Signals, sentence: str) -> None:
    beside = Beside("ended", partial(ends, lambda: os.kill(os.getpid(), number)))
    with pytest.raises(CannotRun) as error:
        beside.result(lambda done: None)
    assert str(error.value) == sentence
    beside.stop()
    assert no_child_is_left()


def test_who_is_not_wanted_any_more_is_ended() -> None:
    beside = Beside("waited", lambda told: signal.pause())
    assert beside.runs()
    beside.stop()
    assert not beside.runs()
    assert no_child_is_left()


def test_where_other_threads_run_or_no_process_is_to_be_had_it_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert Beside("counted", count).result(lambda done: None) == (3, HERE)
    finally:
        done.set()
        thread.join()

    def full() -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "fork", full)
    before = sorted(os.listdir("/proc/self/fd"))
    assert Beside("counted", count).result(lambda done: None) == (3, HERE)
    assert sorted(os.listdir("/proc/self/fd")) == before


ORPHANS = """
import itertools, os
from rmaplab.measure.beside import Beside
def work(told):
    for done in itertools.count():
        told(done)
print("as it began")
two = [Beside("counts", work) for _ in range(2)]
os.kill(os.getpid(), 9)
"""


def test_processes_end_with_the_one_that_began_them_and_what_was_printed_appears_once() -> None:
    # Whoever is left would keep the pipe open, and this would wait for ever.
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ran = subprocess.run(
        [sys.executable, "-c", ORPHANS], env=buffered, capture_output=True, text=True, check=False, timeout=120
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (-signal.SIGKILL, "as it began\n", "")


# Comparisons

HISTORY = workload("remapper", {"moves": "60"}).history()


class Breaks(CowContextRmap):
    """Comes to an end where it leads, for the tests."""

    name = "breaks"

    def mm_forked(self, parent: MM, child: MM) -> None:
        if self.slot == 0:
            raise InvariantError("as it was told to")
        super().mm_forked(parent, child)


def compared(jobs: int, *designs: type[ReverseMap]) -> tuple[Comparison, list[str], dict[str, int]]:
    """What `designs` come to, what began in a process of its own, and how far what was told to be."""
    began: list[str] = []
    told: dict[str, int] = {}

    class Seen(Beside[comparison._Own]):
        def __init__(self, what: str, work: Callable[[Told], comparison._Own]) -> None:
            began.append(what)
            super().__init__(what, work)

    def progress(what: str, done: int, total: int) -> None:
        assert told.get(what, 0) < done <= total
        told[what] = done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "Beside", Seen)
        plan = Plan(list(designs), PROFILES[REFERENCE], check=False, jobs=jobs)
        found = compare(HISTORY, plan, progress)
    assert no_child_is_left()
    return found, began, told


def test_a_comparison_finds_the_same_with_any_number_of_processes() -> None:
    designs = [DESIGNS[name] for name in ("anon_vma", "cow_context", "anonmm")]
    found, began, told = compared(1, *designs)
    assert began == []
    total = found.figures.machine.events
    assert told == {"playing": total, "playing with cow_context alone": total, "playing with anonmm alone": total}
    beside, began, told_beside = compared(3, *designs)
    assert began == ["played with cow_context alone", "played with anonmm alone"]
    assert told_beside == told
    assert beside == found


def test_a_comparison_that_fails_leaves_no_process() -> None:
    def progress(what: str, done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    plan = Plan([DESIGNS["anon_vma"], DESIGNS["cow_context"]], PROFILES[REFERENCE], jobs=2)
    with pytest.raises(KeyboardInterrupt):
        compare(HISTORY, plan, progress)
    assert no_child_is_left()


def test_what_breaks_beside_is_found_as_it_is_here() -> None:
    designs = [DESIGNS["anon_vma"], Breaks, DESIGNS["anonmm"]]
    found, _, _ = compared(1, *designs)
    beside, began, _ = compared(2, *designs)
    assert began[0] == "played with breaks alone"
    assert beside == found
    assert [(each.kind, each.what, each.design) for each in found.differences] == [
        ("broken", "as it was told to", "breaks")
    ]
    assert [design.vmas is None for design in found.figures.designs] == [False, True, False]
