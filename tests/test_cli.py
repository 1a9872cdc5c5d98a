# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line from outside: what it prints, where, and with which exit status it ends."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from acts import fork, leave, mmap, start, write
from rmaplab.commands import VERBS, frame
from rmaplab.commands.frame import main
from rmaplab.mm.profile import REFERENCE
from rmaplab.trace.events import Event
from rmaplab.trace.history import Header, History, read_history, write_history
from rmaplab.trace.record import RecordError
from rmaplab.workloads import FAMILIES
from rmaplab.workloads.workload import AREA

SMALL = {
    "aim7": ["children=5", "pages=4"],
    "bgsave": ["pages=300", "saves=2", "writes=20"],
    "elf": ["processes=2", "libraries=2"],
    "forkchain": ["generations=5", "vmas=2"],
    "ksm": ["guests=2", "helpers=3", "vmas=2", "pages=4"],
    "prefork": ["workers=3", "requests=30", "vmas=2"],
    "reclaim": ["processes=3", "steps=60", "vmas=3"],
    "pressure": ["processes=2", "rounds=2", "vmas=4"],
    "remapper": ["buffers=3", "moves=30", "children=2"],
    "storm": ["rounds=2", "vmas=4"],
    "willitscale": ["case=fork1", "rounds=2", "vmas=4"],
    "zygote": ["apps=3", "restarts=1", "vmas=5", "own_vmas=4"],
}


def rmaplab(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """What the program does, in this process; it has to end with `status`, and never with a traceback."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        patch.setenv("COLUMNS", "100")
        main(arguments)
    return _checked(arguments, status, end.value.code, out.getvalue(), err.getvalue())


def rmaplab_apart(*arguments: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "rmaplab", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100", **environment},
        check=False,
    )
    return _checked(arguments, status, done.returncode, done.stdout, done.stderr)


def _checked(
    arguments: tuple[str, ...], wanted: int, status: Any, out: str, err: str
) -> subprocess.CompletedProcess[str]:
    assert "Traceback" not in err, err
    assert status == wanted, out + err
    return subprocess.CompletedProcess(arguments, status, out, err)


def refused(*arguments: str) -> str:
    """What the program says where it cannot run: one line on stderr, nothing on stdout, exit status 2."""
    done = rmaplab(*arguments, status=2)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("rmaplab: ")
    return done.stderr.removeprefix("rmaplab: ").rstrip("\n")


def report(*arguments: str, status: int = 0) -> dict[str, Any]:
    told = json.loads(rmaplab(arguments[0], "--json", *arguments[1:], status=status).stdout)
    assert isinstance(told, dict)
    return told


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A history in a file: a process that forks a child, which copies two pages."""
    path = tmp_path / "history.parquet"
    events = [start(1), mmap(1, AREA, 8), write(1, AREA, 8), fork(1, 2), write(2, AREA, 2), leave(1)]
    write_history(path, History(Header(recorder="by hand", command="example"), events))
    return path


# What it says about itself


def test_version_says_how_it_was_built() -> None:
    assert rmaplab_apart("--version").stdout.split()[2] in ("(compiled)", "(interpreted)")


# Examples of a help text that need more than seconds, a kernel, a cluster, or what other examples wrote.
LONG = (
    "compare -o make.html", "verify --time", "verify --mutants", "reproduce --all", "--scheduler", "kernel", "results",
    'race --rmap cow_context "restore / "', "race --random", "make.parquet", "mine.json", "sweep campaign.toml",
)  # fmt: skip


def examples(verb: str) -> list[str]:
    """The commands that `rmaplab VERB --help` shows, as printed."""
    return re.findall(r"^    (rmaplab .*)$", rmaplab(*verb.split(), "--help").stdout, re.MULTILINE)


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS])
def test_help_fits_a_screen_and_shows_an_example(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert any(example.startswith(f"rmaplab {verb} ") for example in examples(verb))
    done = rmaplab_apart(*verb.split(), "--help", COLUMNS="80").stdout.splitlines()
    assert len(done) <= 24
    assert max(map(len, done)) <= 80


def test_what_help_leaves_out_is_shown_by_help_all() -> None:
    short, full = (rmaplab("compare", option).stdout for option in ("--help", "--help-all"))
    assert "Show 8 more" in short and "--folios" not in short
    assert "--folios" in full and "A recording, a workload, or a command" in full and "--help-all" not in full


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS if not verb.name.startswith(("kernel", "calibrate"))])
def test_examples_work_as_printed(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = Path(__file__).parent.parent / "src/rmaplab/data/recordings/pipeline.parquet"
    for name in ("sort.parquet", "redis.parquet", "history.parquet"):
        shutil.copy(shipped, tmp_path / name)
    (tmp_path / "mine.py").write_text(DESIGN_OF_ONES_OWN)
    monkeypatch.chdir(tmp_path)
    for example in examples(verb):
        if any(long in example for long in LONG):
            continue
        arguments = shlex.split(example)[1:]
        if "record" in arguments:
            rmaplab_apart(*arguments)
            continue
        shown = (verb == "explore" and "race.html" in example) or "cow_context_prototype" in example
        rmaplab(*arguments, status=1 if shown else 0)


def test_an_overview_is_a_screen() -> None:
    for arguments in (["--help"], ["kernel", "--help"], ["kernel"], []):
        lines = rmaplab(*arguments).stdout.splitlines()
        assert len(lines) <= 30
        assert max(map(len, lines)) <= 80


def test_run_lists_the_workloads_and_their_parameters() -> None:
    text = rmaplab("run", "--list").stdout
    for name, family in FAMILIES.items():
        assert name in text
        for parameter in family.parameters():
            assert parameter in text


# The main job


@pytest.mark.parametrize("name", FAMILIES)
def test_every_workload_holds(name: str) -> None:
    found = report("compare", name, *SMALL[name], "--every", "1", "--folios", "0")
    assert found["holds"] is True
    assert found["figures"]["checks"]["moments"] > 0
    assert not [d for d in found["differences"] if d["error"]]


def test_json_has_what_scripts_rely_on() -> None:
    found = report("compare", "forkchain", *SMALL["forkchain"], "--seed", "7")
    assert [*found] == ["command", "version", "inputs", "holds", "figures", "differences"]
    assert found["command"] == "compare"
    inputs = found["inputs"]
    assert inputs["history"]["name"] == "forkchain seed=7 generations=5 vmas=2 pages=16 writes=2"
    assert inputs["designs"] == ["anon_vma", "cow_context", "cow_context_prototype"]
    assert (inputs["leader"], inputs["profile"], inputs["seed"]) == ("anon_vma", REFERENCE, 7)
    for design in found["figures"]["designs"]:
        assert [*design] == ["design", "objects", "work", "walks", "walk_work", "vmas", "operations"]
        assert design["walks"]["places"] >= design["walks"]["useful"] > 0
        assert design["vmas"]["made"] > 0
        for o in design["objects"]:
            assert o["allocated"] >= o["peak"] >= o["at_end"]


@pytest.mark.parametrize("how", [[], ["--json"]])
def test_the_same_inputs_give_the_same_bytes(how: list[str]) -> None:
    here = rmaplab("compare", "reclaim", *SMALL["reclaim"], *how).stdout
    apart = rmaplab_apart("compare", "reclaim", *SMALL["reclaim"], *how, PYTHONHASHSEED="7").stdout
    assert here == apart


def test_tables_fit_100_columns_and_need_no_colour() -> None:
    text = rmaplab("compare", "zygote", *SMALL["zygote"]).stdout
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "\nVerdict   holds" in text


def test_checking_does_not_change_what_was_counted() -> None:
    seen = [
        report("compare", "reclaim", *SMALL["reclaim"], *how)["figures"]
        for how in (["--no-check"], ["--every", "1"], ["--every", "7", "--folios", "3"])
    ]
    for figures in seen:
        for design in figures["designs"]:
            del design["walks"], design["walk_work"]
        for time in figures["times"]["designs"]:
            del time["walks"], time["visits"]
        del figures["checks"], figures["counted"]
    assert seen[0] == seen[1] == seen[2]


def test_a_leader_decides_what_merges() -> None:
    found = report("compare", "elf", *SMALL["elf"], "--leader", "cow_context")
    assert found["inputs"]["leader"] == "cow_context"


def test_a_recording_can_be_replayed_and_compared(recording: Path) -> None:
    replayed = report("replay", str(recording), "--rmap", "anon_vma")
    compared = report("compare", str(recording))
    assert replayed["inputs"]["history"] == compared["inputs"]["history"]
    assert len(compared["inputs"]["history"]["sha256"]) == 64
    assert replayed["figures"]["machine"]["events"] == 6


def test_a_workload_can_be_kept_and_replayed(tmp_path: Path) -> None:
    kept = tmp_path / "kept.parquet"
    ran = report("run", "forkchain", *SMALL["forkchain"], "-o", str(kept))
    replayed = report("replay", str(kept))
    assert ran["figures"] == replayed["figures"]


def test_a_command_is_recorded_and_compared(tmp_path: Path) -> None:
    """Its own output goes to stderr, so that stdout holds the report alone."""
    kept = tmp_path / "kept.parquet"
    compared = rmaplab_apart(
        "compare", "--json", "-o", str(kept), "--", "sh", "-c", "echo hello; true | true"
    )
    assert "hello" in compared.stderr
    found = json.loads(compared.stdout)
    assert found["inputs"]["history"]["recorder"] in ("bpf", "perf", "strace")
    assert found["figures"]["machine"]["mms"]["made"] >= 3
    assert report("replay", str(kept))["inputs"]["history"]["sha256"] == found["inputs"]["history"]["sha256"]


def test_record_lets_the_command_have_stdout(tmp_path: Path) -> None:
    recorded = rmaplab_apart("record", "-o", str(tmp_path / "f.parquet"), "--", "echo", "hello")
    assert recorded.stdout == "hello\n"
    assert "recorded" in recorded.stderr
    told = json.loads(
        rmaplab_apart("record", "--json", "-o", str(tmp_path / "f.parquet"), "--", "echo", "hello").stdout
    )
    assert told["holds"] is True
    assert told["figures"]["processes"] == 1


@pytest.mark.parametrize(
    ("ends", "status", "told"), [("exit 0", 0, "exit 0"), ("exit 7", 7, "exit 7"), ("kill -TERM $$", 143, "signal 15")]
)
def test_record_ends_as_the_command_did_and_says_how(tmp_path: Path, ends: str, status: int, told: str) -> None:
    recorded = rmaplab_apart("record", "-o", str(tmp_path / "f.parquet"), "--", "sh", "-c", ends, status=status)
    assert f"sh ended with {told}" in recorded.stderr


def test_a_recording_that_cannot_be_vouched_for_does_not_hold(tmp_path: Path, recording: Path) -> None:
    history = read_history(recording)
    for name, value, why in (
        ("lost", 3, "3 events were lost"),
        ("complete", False, "the program was not seen to its end"),
        ("unfollowed", {"a 32-bit program": 1}, "a 32-bit program is not followed, and was seen (1 times)"),
        ("skipped", {"io_setup": 2}, "io_setup may change VMAs, is not modelled, and was called (2 times; "),
    ):
        header = msgspec.structs.replace(history.header, order="locks", **{name: value})
        write_history(tmp_path / "doubtful.parquet", History(header, list(history)))
        found = report("compare", str(tmp_path / "doubtful.parquet"), status=1)
        (doubt,) = [difference["what"] for difference in found["differences"] if difference["kind"] == "recording"]
        assert found["holds"] is False and doubt.startswith(why)
        text = rmaplab("compare", str(tmp_path / "doubtful.parquet"), status=1).stdout
        assert "order known from mmap_lock, maps of 0 of 2 processes compared" in " ".join(text.split())


def test_the_example_is_played_where_nothing_can_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise RecordError("perf is forbidden, and there is no strace")

    monkeypatch.setattr("rmaplab.trace.record.record", forbidden)
    done = rmaplab("compare", "--", sys.executable, "-m", "rmaplab.example")
    assert "so here is the recording of it that comes with rmaplab" in done.stderr
    assert done.stdout.startswith("History   example.parquet, a recording of python")


# A design of one's own

DESIGN_OF_ONES_OWN = """
from rmaplab.rmap.anon_vma import AnonVmaRmap

class Mine(AnonVmaRmap):
    name = "mine"
"""

DESIGN = """
from rmaplab.mm.reverse_map import ReverseMap

class {name}(ReverseMap):
    name = {called!r}
    def walk(self, pfn):
        return iter(())
"""


def test_a_design_that_misses_a_page_does_not_hold(tmp_path: Path) -> None:
    (tmp_path / "blind.py").write_text(DESIGN.format(name="Blind", called="blind"))
    found = report("run", "aim7", *SMALL["aim7"], "--check", "--rmap", str(tmp_path / "blind.py"), status=1)
    assert found["holds"] is False
    difference = found["differences"][0]
    assert (difference["kind"], difference["design"], difference["error"]) == ("incomplete", "blind", True)
    assert "blind does not find it" in difference["what"]


def test_designs_are_told_apart_by_name(tmp_path: Path) -> None:
    (tmp_path / "same.py").write_text(DESIGN.format(name="Same", called="anon_vma"))
    said = refused("compare", "aim7", "--rmap", "anon_vma", "--rmap", str(tmp_path / "same.py"))
    assert said.startswith("two of the designs are called 'anon_vma'")


# What does not hold


def test_a_result_that_the_machine_does_not_give_is_reported_with_its_event(tmp_path: Path) -> None:
    path = tmp_path / "odd.parquet"
    odd = mmap(1, AREA, 1)
    odd.result = -12
    write_history(path, History(Header(recorder="by hand"), [start(1), odd]))
    done = rmaplab("replay", str(path), status=1)
    said = " ".join(done.stdout.split())
    assert "after event 1: mmap of process 1 at 0x7f0000000000 returned -ENOMEM when it was recorded" in said
    assert "\nVerdict   does not hold\n" in done.stdout


def test_differences_by_the_rules_of_another_kernel_are_said_to_be_so(tmp_path: Path) -> None:
    path = tmp_path / "odd.parquet"
    odd = mmap(1, AREA, 1)
    odd.result = -12
    write_history(path, History(Header(recorder="by hand", kernel="6.18.44"), [start(1), odd]))
    words = "played by the rules of 6.1, not of Linux 6.18.44, which may be why:"
    assert words in rmaplab("replay", str(path), "--profile", "6.1", status=1).stdout
    assert "may be why" not in rmaplab("replay", str(path), status=1).stdout


# What cannot run


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["compare"], "compare needs one of: a recording, a workload, or -- and a command"),
        (["compare", "zygot"], "there is no workload 'zygot'; did you mean 'zygote'?"),
        (["compare", "./none.parquet"], "there is no file ./none.parquet"),
        (["compare", sys.executable], f"{sys.executable} is a program, not a recording: rmaplab record -o F"),
        (["replay", __file__], f"{__file__} is a program, not a recording: rmaplab record -o F"),
        (["compare", __file__], f"{__file__} is a program, not a recording: rmaplab record -o F"),
        (["compare", "sh", "server.sh"], "sh is a command, not a workload: rmaplab record -o F -- CMD records one"),
        (
            ["compare", "aim7", "--", "true"],
            "compare needs one of: a recording, a workload, or -- and a command",
        ),
        (["compare", "aim7", "children"], "'children' is no parameter: say NAME=VALUE"),
        (["compare", "aim7", "child=3"], "aim7 has no parameter 'child'; did you mean 'children'?"),
        (["compare", "aim7", "children=x"], "aim7: children=x has to be a whole number from 1 to 10000 (children"),
        (["compare", "aim7", "--profile", "2.4"], "there is no profile '2.4' (there are 7.3, "),
        (["compare", "aim7", "--leader", "me"], "the leader 'me' is not one of the designs (anon_vma, "),
        (["run", "aim7", "--every", "-1"], "Invalid value for '--every'"),
        (["run", "aim7", "--evry", "1"], "No such option: --evry"),
        (["compare", "--", "no_such_command"], "there is no command 'no_such_command' that can be run"),
        (["run"], "run needs a workload: "),
        (["replay"], "Missing argument 'F'"),
        (["frobnicate"], "there is no command 'frobnicate'. See rmaplab --help."),
        (["compar"], "there is no command 'compar'; did you mean 'compare'?"),
        (["kernel", "rum"], "there is no command 'kernel rum'; did you mean 'kernel run'?"),
        (["run", "aim7", "-o", "."], "-o .: end it in .html for a page, or in .parquet for the history"),
        (["scale", "aim7", "--trace", "/"], "/ is a directory: give the name of a file in it"),
        (["replay", "/"], "/: "),
        (["run", "aim7", "-o", "/nowhere/f.parquet"], "cannot write /nowhere/f.parquet: there is no directory"),
        (["explore", "fork-copyfork", "-o", "f.html"], "'fork-copyfork' is no file, tour, workload or race; did you"),
        (["show", "pagelife"], "'pagelife' is no file, tour, workload or race; did you mean 'page-life'? Tours: page-"),
        (["record", "-o", "f.parquet"], "record needs a command, after --"),
        (["run", "aim7", "--rmap", "nothing_such"], ""),
        (["run", "aim7", "--rmap", "no.such.module:Class"], ""),
        (["run", "aim7", "--rmap", "./no_such_file.py"], ""),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(*arguments).startswith(sentence)


def test_scale_says_where_it_drew(tmp_path: Path) -> None:
    plot, trace = tmp_path / "storm.svg", tmp_path / "storm.json"
    done = rmaplab(
        "scale", "storm", "rounds=1", "vmas=2", "--cpus", "1", "--plot", str(plot), "--trace", str(trace)
    )
    assert done.stderr.splitlines()[-2:] == [f"rmaplab: the picture is {plot}", f"rmaplab: the timeline is {trace}"]


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libparquet.so: failed to map segment from shared object"),
        ImportError("libparquet.so: cannot allocate memory in static TLS block"),
        RuntimeError("can't start new thread"),
    ],
)
def test_what_finds_no_room_is_one_sentence(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise error

    monkeypatch.setattr(frame, "_job", lambda arguments: fail)
    monkeypatch.setattr("resource.getrlimit", lambda limit: (512_000_000, 512_000_000))
    said = refused("replay", "f.parquet")
    assert said == f"there is not enough memory ({error}); `ulimit -v` allows 500000 KiB"


def test_a_design_that_breaks_a_rule_on_simulated_cpus_is_one_sentence(tmp_path: Path) -> None:
    design = tmp_path / "twice.py"
    design.write_text(
        "from rmaplab.rmap.anon_vma import AnonVmaRmap\n"
        "class Twice(AnonVmaRmap):\n"
        "    name = 'twice'\n"
        "    def vma_forked(self, parent, child):\n"
        "        super().vma_forked(parent, child)\n"
        "        self.fields_of(child).anon_vma.root.rwsem.up_write()\n"
    )
    said = refused("scale", "storm", "rounds=1", "vmas=2", "--cpus", "2", "--rmap", str(design))
    assert said.startswith("twice on 2 CPUs: ")
    assert "gives back anon_vma root rwsem, which it does not hold, in vma_forked(), line 6 of twice.py." in said
    assert said.endswith(f"What led there: rmaplab race --rmap {design}")


RAISES = """
import random
from rmaplab.rmap.anon_vma import AnonVmaRmap

class Raises(AnonVmaRmap):
    name = "raises"
    def mm_fork_end(self, parent, child):
        random.choice([])
"""
IN_WALK = RAISES.replace("mm_fork_end(self, parent, child)", "walk(self, pfn)")


@pytest.mark.parametrize(
    ("text", "arguments", "where"),
    [
        (RAISES, ["compare", "history.parquet"], "mm_fork_end(), line 8 of raises.py, at event 3: fork pid=1 "),
        (RAISES, ["replay", "history.parquet"], "mm_fork_end(), line 8 of raises.py, at event 3: fork pid=1 "),
        (RAISES, ["scale", "history.parquet", "--cpus", "1"], "mm_fork_end(), line 8 of raises.py, at event 3: fork "),
        (RAISES, ["run", "forkchain", "generations=3"], "mm_fork_end(), line 8 of raises.py, at event 41: fork "),
        (IN_WALK, ["compare", "history.parquet"], "walk(), line 8 of raises.py, in the check after event 0: exec "),
    ],
)  # fmt: skip
def test_a_mistake_in_a_design_is_one_sentence_with_its_event(
    text: str, arguments: list[str], where: str, tmp_path: Path, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("raises.py").write_text(text)
    said = refused(*arguments, "--rmap", "./raises.py")
    assert said.startswith(f"raises raised IndexError: Cannot choose from an empty sequence, in {where}")


def test_a_design_that_cannot_be_loaded_says_where(tmp_path: Path) -> None:
    design = tmp_path / "broken.py"
    design.write_text("def size():\n    return {}['x']\n\n\nSIZE = size()\n")
    said = refused("compare", "forkchain", "--rmap", str(design))
    assert said == f"{design}: cannot be loaded (KeyError: 'x', in size(), line 2 of broken.py)"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda data: data[: len(data) // 2], "is not a Parquet file, or was cut short"),
        (lambda data: b"", "is not a Parquet file, or was cut short"),
        (lambda data: data[:60] + bytes(40) + data[100:], "is damaged"),
    ],
)
def test_a_damaged_recording_is_one_sentence(recording: Path, damage: Any, sentence: str) -> None:
    recording.write_bytes(damage(recording.read_bytes()))
    assert sentence in refused("replay", str(recording))


def test_a_recording_of_the_future_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "future.parquet"
    write_history(path, History(Header(recorder="by hand", version=99), [start(1)]))
    assert "format version 99" in refused("replay", str(path))


@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        (
            [start(1), write(1, AREA, 1)],
            "event 1: fault of process 1: touches 0x7f0000000000, where nothing is mapped",
        ),
        ([start(1), leave(2)], "event 1: exit of process 2: there is no process 2"),
        ([start(1), leave(1), leave(1)], "event 2: exit of process 1: there is no process 1"),
        ([start(1), fork(1, 1)], "event 1: fork of process 1: there is a process 1 already"),
        ([mmap(1, AREA, 1)], "event 0: mmap of process 1: there is no process 1"),
        ([Event("exec", 1, addr=1, length=4096)], "event 0: exec of process 1: the stack's start 0x1 is "),
    ],
)
def test_an_impossible_event_is_one_sentence(tmp_path: Path, events: list[Event], sentence: str) -> None:
    path = tmp_path / "odd.parquet"
    write_history(path, History(Header(recorder="by hand"), events))
    assert refused("replay", str(path)).startswith(sentence)


MINUTES = "compare bgsave pages=2000000 --every 1"


@pytest.mark.parametrize(
    ("number", "command"),
    [
        (signal.SIGINT, MINUTES),
        (signal.SIGTERM, MINUTES),
        (signal.SIGHUP, MINUTES),
        (signal.SIGINT, "race --barriers anon_vma --jobs 2"),
        (signal.SIGTERM, "verify --mutants --jobs 2"),
    ],
)
def test_an_interrupt_is_one_sentence(number: signal.Signals, command: str) -> None:
    """While it works, and while others work for it: stderr is closed when all have ended."""
    with subprocess.Popen(
        [sys.executable, "-m", "rmaplab", *command.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            process.communicate(timeout=3)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert out == ""
    assert err == "rmaplab: interrupted, so there is no result\n"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interrupt_before_it_has_begun_is_one_sentence_too(name: str) -> None:
    """While the program is being imported, where an exception could be swallowed."""
    program = f"""
import os, signal, sys
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "rmaplab.commands.frame":
            os.kill(os.getpid(), signal.{name})
sys.meta_path.insert(0, Finder())
sys.argv = ["rmaplab", "--version"]
from rmaplab.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "rmaplab: interrupted, so there is no result\n"


def test_a_closed_pipe_is_no_traceback() -> None:
    done = subprocess.run(
        f"{sys.executable} -m rmaplab run aim7 children=5 pages=5 --json | true; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout in ("0\n", "141\n")  # written before its reader had gone, or not; never a verdict


def test_a_full_disk_is_one_sentence() -> None:
    done = subprocess.run(
        f"{sys.executable} -m rmaplab run aim7 children=5 pages=5 > /dev/full",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "rmaplab: No space left on device\n"
