# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux's own mm/vma.c in user space and the machine do the same (make test-kernel).

And what is said where it cannot be built.

RMAPLAB_NATIVE_OPERATIONS: random operations against 7.3 (default 100000)
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import rmaplab
from rmaplab.check.histories import header
from rmaplab.kernel.errors import KernelUnavailable
from rmaplab.kernel.native import build
from rmaplab.kernel.native.compare import Library, campaign, drift, explained, minimal, random_events
from rmaplab.kernel.native.compare import replay as play
from rmaplab.kernel.versions import NATIVE
from rmaplab.mm.profile import PROFILES
from rmaplab.trace.events import FAULT_WRITE, Event
from rmaplab.trace.history import read_history

OPERATIONS = int(os.environ.get("RMAPLAB_NATIVE_OPERATIONS", "100000"))
needs_sources = pytest.mark.skipif(
    not os.environ.get("RMAPLAB_KERNEL"), reason="needs kernel sources: make test-kernel, or RMAPLAB_KERNEL=1"
)
PAGE = 4096
STACK = 0x0F_0000_0000
PROFILE = PROFILES["7.3"]
RECORDINGS = Path(rmaplab.__file__).parent / "data" / "recordings"


def library(version: str) -> Library:
    try:
        return Library(build.build(build.sources(version, print)))
    except KernelUnavailable as error:
        if os.environ.get("RMAPLAB_REQUIRE_KERNEL"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def linux() -> Library:
    return library(NATIVE[0])


def begin() -> Event:
    return Event("exec", 1, STACK, 6 * PAGE, offset=STACK, addr2=STACK + 64 * PAGE)


# Beside the stack, which alone is not soft-dirty, lies something that is: mprotect() makes them one.
STICKY = [
    begin(),
    Event("mprotect", 1, STACK + 5 * PAGE, PAGE, prot=1),
    Event("mmap", 1, STACK + 6 * PAGE, 2 * PAGE, prot=3, flags=0x132),
    Event("mprotect", 1, STACK + 5 * PAGE, PAGE, prot=3),
]


@needs_sources
class TestAgainstLinux:
    def test_random_histories_agree(self, linux: Library) -> None:
        found, done = campaign(linux, PROFILE, 1_000_000, OPERATIONS, jobs=2)
        assert found is None, explained(minimal(linux, PROFILE, found), [])
        assert done >= OPERATIONS

    @pytest.mark.parametrize(
        "rule",
        ["anon_pgoff", "relaxed_anon_merge", "dontunmap_apart", "fresh_pgoff", "unaccount_unprepared", "upper_first"],
    )
    def test_a_rule_that_is_turned_over_is_found(self, rule: str, linux: Library) -> None:
        turned: dict[str, Any] = {rule: not getattr(PROFILE, rule)}
        other = replace(PROFILE, **turned)
        found, _ = campaign(linux, other, 5, 60_000)
        assert found is not None
        short = minimal(linux, other, found)
        assert len(short.events) <= len(found.events) and len(short.events) <= 20
        rules = drift(linux, other, short, 5, 0, short.events, header())
        assert f"{rule}={getattr(PROFILE, rule)}" in rules

    def test_flags_that_stick_are_united(self, linux: Library) -> None:
        assert play(linux, PROFILE, STICKY)[0] is None
        found, _ = play(linux, replace(PROFILE, sticky_flags=False), STICKY)
        assert found is not None
        assert [vma.flags ^ other.flags for vma, other in zip(found.machine, found.native, strict=True)] == [0x8000000]

    def test_a_recorded_history_is_taken_as_it_is(self, linux: Library) -> None:
        """Results and places come from the history: here a mapping that the kernel placed."""
        history = [begin(), Event("mmap", 1, 0, PAGE, prot=3, flags=0x22, result=0x7F00_0000_0000)]
        history.append(Event("fault", 1, 0x7F00_0000_0000, PAGE, flags=FAULT_WRITE))
        history += [Event("fork", 1, pid2=2), Event("exit", 1), Event("munmap", 2, 0x7F00_0000_0000, PAGE)]
        assert play(linux, PROFILE, history, ask=False) == (None, len(history))

    @pytest.mark.parametrize("name", ["redis", "make", "pool", "postgresql", "pipeline"])
    def test_recordings_of_real_programs_agree(self, name: str, linux: Library) -> None:
        recorded = read_history(RECORDINGS / f"{name}.parquet")
        found, done = play(linux, PROFILE, recorded, recorded.header, ask=False)
        assert found is None, explained(found, [])
        assert done > 1000

    def test_what_7_2_does_otherwise_is_said_as_a_rule(self) -> None:
        linux = library("7.2")
        assert campaign(linux, PROFILES["7.2"], 1, 5_000)[0] is None
        found, _ = campaign(linux, PROFILE, 1, 5_000)
        assert found is not None
        assert drift(linux, PROFILE, minimal(linux, PROFILE, found), 1, 5_000) == ["anon_pgoff=False"]


def test_random_events_are_the_same_for_a_seed() -> None:
    first, second = random_events(7), random_events(7)
    assert all(next(first) == next(second) for _ in range(1000))


def test_a_directory_that_is_no_tree_of_linux(tmp_path: Path) -> None:
    with pytest.raises(KernelUnavailable, match=r"has no tools/testing/vma/vma_internal.h: give a tree of Linux's"):
        build.build(tmp_path)
    with pytest.raises(KernelUnavailable, match=r"is no tree of Linux's sources: its Makefile names no version"):
        build.release_of(tmp_path)


def test_a_version_whose_vma_code_stands_in_files_that_are_not_built() -> None:
    with pytest.raises(KernelUnavailable, match=r"of 6\.12 is not built in user space: --version is one of 7\.3, 7\.2"):
        build.sources("6.12", print)


def test_the_release_of_a_tree_is_what_its_makefile_says(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("VERSION = 7\nPATCHLEVEL = 4\nSUBLEVEL = 0\nEXTRAVERSION = -rc2\nNAME = x\n")
    assert build.release_of(tmp_path) == "7.4.0-rc2"


def test_a_tree_that_does_not_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tree = tmp_path / "linux"
    for name in ("tools/testing/vma/vma_internal.h", "tools/testing/shared/maple-shim.c", "mm/vma.c", "mm/vma_exec.c"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    (tree / "lib").mkdir()
    (tree / "lib/maple_tree.c").touch()
    (tree / "Makefile").write_text("VERSION = 7\nPATCHLEVEL = 4\nSUBLEVEL = 0\n")
    with pytest.raises(KernelUnavailable, match=r"does not build in user space \(.+\): install gcc and liburcu-dev"):
        build.build(tree)
    assert [*(tmp_path / "cache").rglob("*.so")] == []
