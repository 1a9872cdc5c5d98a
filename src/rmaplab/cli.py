# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: `rmaplab record | replay | run | compare`, and those of explore/commands.py.

Typer only reads the command line here: each command returns the job that it asked for, and `main` does
it, where every way to fail becomes one sentence on stderr and exit status 2.  Data goes to stdout,
progress to stderr.  Exit status 0: done, and all holds; 1: done, and something does not hold; 2: could
not be done.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console

import rmaplab
from rmaplab.check import commands as check
from rmaplab.check import mutation, verify_report
from rmaplab.check.verify import Plan as VerifyPlan
from rmaplab.check.verify import verify
from rmaplab.errors import CannotRun
from rmaplab.explore import commands as explore
from rmaplab.kernel import cli as kernel
from rmaplab.measure import reproduce_command, scale_command, sources
from rmaplab.measure.calibration import commands as calibration
from rmaplab.measure.comparison import FOLIOS, MOMENTS, Plan, compare, priced
from rmaplab.measure.cost import load_costs
from rmaplab.measure.progress import Meter
from rmaplab.measure.report import Inputs, print_report, report
from rmaplab.measure.sources import Source
from rmaplab.mm.profile import PROFILES, REFERENCE, Profile, profile_for
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.rmap import DESIGNS, STANDARD, load, specs
from rmaplab.sweep import commands as sweep
from rmaplab.trace.history import History, write_history
from rmaplab.trace.record import RecordError, record
from rmaplab.verdict import judge
from rmaplab.workloads import FAMILIES

HOLDS: Final = 0
DOES_NOT_HOLD: Final = 1
COULD_NOT_RUN: Final = 2

# What `compare` compares, unless told otherwise.  page_scan looks at every page table for every walk, which
# takes as long as it sounds, and could only agree with the page tables that all are checked against anyway.
COMPARED: Final = tuple(name for name in STANDARD if name != "page_scan")

_VERSION: Final = f"{rmaplab.__version__} ({rmaplab.build_info()})"

Job = Callable[[], int]


class UsageError(CannotRun):
    """What was asked for cannot be done; the message is one sentence that says why."""


app = typer.Typer(
    name="rmaplab",
    help="A laboratory for the anonymous reverse mapping of Linux.",
    epilog="Exit status: 0 done and all holds, 1 done and something does not hold, 2 could not run.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"rmaplab {_VERSION}")
        raise typer.Exit


@app.callback()
def _rmaplab(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    pass


Designs = Annotated[
    list[str] | None,
    typer.Option(
        "--rmap",
        metavar="DESIGN",
        help="A design: its name, package.module:Class, a file, or 'all' that come with rmaplab. May be repeated.",
    ),
]
Leader = Annotated[
    str, typer.Option(metavar="DESIGN", help="The design that VMA merging follows (default: the first).")
]
ProfileName = Annotated[
    str,
    typer.Option(
        "--profile",
        metavar="NAME",
        help=f"The kernel whose rules apply: {', '.join(PROFILES)} (default: the recording's, else {REFERENCE}).",
    ),
]
Check = Annotated[
    bool,
    typer.Option(
        "--check/--no-check", help="Walk folios in every design and hold them against the page tables."
    ),
]
Every = Annotated[
    int,
    typer.Option(min=0, metavar="N", help=f"Check after every N events (0: at {MOMENTS} moments in all)."),
]
Folios = Annotated[
    int,
    typer.Option(min=0, metavar="N", help="Walk at most N folios at a check, other ones each time (0: all)."),
]
LargeFolios = Annotated[
    int,
    typer.Option(
        min=0,
        max=9,
        metavar="ORDER",
        help="Let faults allocate folios of up to 2**ORDER pages (0: single pages).",
    ),
]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Seed of what is chosen at random.")]
Costs = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Derive times from the work, too, by a cost profile: default, a shipped one, or a file that `rmaplab"
        " calibrate` wrote.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Names = Annotated[
    bool, typer.Option("--names", help="Keep names of files and processes, and the command line.")
]


Recorder = Annotated[
    str, typer.Option(metavar="perf|strace|auto", help="What watches the command (auto: perf, else strace).")
]


@app.command("record", short_help="Run a command and record its memory history.")
def _record(
    context: typer.Context,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="F", help="The history to write (Parquet).")
    ],
    names: Names = False,
    recorder: Recorder = "auto",
    check: Annotated[
        bool, typer.Option("--check", help="Take /proc/PID/maps of each process at its end, too.")
    ] = False,
    json: Json = False,
) -> Job:
    """Run a command, and record the memory history of it and all its children.

    Ends as the command does (128 and the signal's number if a signal ended it), with 1 if the recording cannot be
    vouched for, or with 2 if there is none.

    \b
    Example:
      rmaplab record -o sort.parquet -- sh -c 'ls -l / | sort'
    """
    command: list[str] = context.obj

    def job() -> int:
        if not command:
            raise UsageError("record needs a command, after --")
        with _output_of_commands_to_stderr(json):
            recording = record(command, output, recorder=recorder, check=check, names=names, say=_progress)
        history = recording.history
        summary = history.summary()
        if json:
            told = {
                "command": "record",
                "version": _VERSION,
                "inputs": {"history": {"name": history.header.command, "recorder": history.header.recorder}},
                "holds": not history.header.doubts,
                "figures": {**summary, "ended": history.header.ended, "evidence": history.evidence},
                "differences": history.header.doubts,
            }
            print(msgspec.json.format(msgspec.json.encode(told), indent=2).decode())
        else:
            _progress(
                f"recorded {summary['events']:,} events of {summary['processes']:,} processes "
                f"with {history.header.recorder} in {output}; {command[0]} ended with {history.header.ended}"
            )
            _progress(history.evidence)
        if history.header.doubts:
            return DOES_NOT_HOLD
        return recording.status if recording.status >= 0 else 128 - recording.status

    return job


@app.command("replay", short_help="Run a recording through designs.")
def _replay(
    recording: Annotated[str, typer.Argument(metavar="F", help="A history that `rmaplab record` wrote.")],
    rmap: Designs = None,
    leader: Leader = "",
    profile: ProfileName = "",
    check: Check = False,
    every: Every = 0,
    folios: Folios = FOLIOS,
    large_folios: LargeFolios = 0,
    seed: Seed = 1,
    costs: Costs = "",
    json: Json = False,
) -> Job:
    """Run a recording through designs (anon_vma, unless --rmap names others); print what they hold and did.

    \b
    Example:
      rmaplab replay sort.parquet --rmap anon_vma --rmap cow_context
    """

    def job() -> int:
        history, source = sources.from_file(recording)
        plan = _plan(
            specs(rmap, ["anon_vma"]), leader, _profile(profile, source), check, every, folios, large_folios
        )
        return _compare("replay", history, source, plan, seed, costs, json)

    return job


def _families() -> str:
    """The workloads and their parameters, for a help text."""
    text = "\b\nWorkloads, their parameters and what these are without being told:"
    for name, family in FAMILIES.items():
        text += f"\n\n\b\n{name}: {(family.__doc__ or '').splitlines()[0]}"
        default = family()
        for parameter, what in family.parameters.items():
            text += f"\n  {f'{parameter}={getattr(default, parameter)}':20} {what}"
    return text


@app.command("run", short_help="Run a built-in workload through designs.", epilog=_families())
def _run(
    name: Annotated[str, typer.Argument(metavar="WORKLOAD", help="Its name; see the list below.")],
    parameters: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="Its parameters.")
    ] = None,
    rmap: Designs = None,
    leader: Leader = "",
    profile: ProfileName = "",
    check: Check = False,
    every: Every = 0,
    folios: Folios = FOLIOS,
    large_folios: LargeFolios = 0,
    seed: Seed = 1,
    costs: Costs = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="F", help="Write the history to F, too.")
    ] = None,
    json: Json = False,
) -> Job:
    """Run a built-in workload through designs (anon_vma, unless --rmap names others).

    \b
    Example:
      rmaplab run zygote apps=50 restarts=100 --rmap cow_context
    """

    def job() -> int:
        history, source = sources.from_workload(name, parameters or [], seed)
        if output is not None:
            write_history(output, history)
        plan = _plan(
            specs(rmap, ["anon_vma"]), leader, _profile(profile, source), check, every, folios, large_folios
        )
        return _compare("run", history, source, plan, seed, costs, json)

    return job


@app.command("compare", short_help="Put one history through all designs, side by side.")
def _compare_command(
    context: typer.Context,
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[F | WORKLOAD [NAME=VALUE]... | -- CMD...]",
            help="A recording, a workload, or a command to record.",
        ),
    ] = None,
    rmap: Designs = None,
    leader: Leader = "",
    profile: ProfileName = "",
    check: Check = True,
    every: Every = 0,
    folios: Folios = FOLIOS,
    large_folios: LargeFolios = 0,
    seed: Seed = 1,
    costs: Costs = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="F", help="Keep the recording of CMD in F.")
    ] = None,
    names: Names = False,
    json: Json = False,
) -> Job:
    """Put one history through all designs, side by side: same VMAs? memory, work, locks.

    \b
    Examples:
      rmaplab compare -- make -j2
      rmaplab compare sort.parquet --costs default
      rmaplab compare forkchain generations=200 --json
    """
    command: list[str] = context.obj

    def job() -> int:
        if bool(what) == bool(command):
            raise UsageError("compare needs one of: a recording, a workload, or -- and a command")
        if not what:
            history, source = _from_command(command, output, names)
        else:
            history, source = sources.find(what, seed)
        plan = _plan(
            specs(rmap, COMPARED), leader, _profile(profile, source), check, every, folios, large_folios
        )
        if not rmap:  # what the prototype's own source misses is news, but no failure, unless somebody asked
            plan = plan._replace(excused=frozenset(["cow_context_prototype"]))
        return _compare("compare", history, source, plan, seed, costs, json)

    return job


@app.command("verify", short_help="Try random histories on every design, against the page tables.")
def _verify(
    rmap: Designs = None,
    profile: ProfileName = "",
    seed: Seed = 1,
    steps: Annotated[
        int, typer.Option(min=0, metavar="N", help="Events in all (default: 20,000, or what --time allows).")
    ] = 0,
    seconds: Annotated[
        float, typer.Option("--time", min=0, metavar="SECONDS", help="Begin no history after this long.")
    ] = 0,
    every: Annotated[
        int, typer.Option(min=0, metavar="N", help="Check after every N events (0: never, which gives no verdict).")
    ] = 1,
    pages: Annotated[
        int, typer.Option(min=0, max=2000, metavar="N", help="Pages that a history is about (0: various).")
    ] = 0,
    large_folios: Annotated[
        int, typer.Option(min=0, max=9, metavar="ORDER", help="Highest order of folios (0: various).")
    ] = 0,
    jobs: Annotated[
        int, typer.Option(min=0, metavar="N", help="Processes that play (0: one for each CPU).")
    ] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="F",
            help="Where to save a history that fails (default: verify-failure.parquet); with --mutants, where to"
            " write what shows each, as Markdown.",
        ),
    ] = None,
    mutants: Annotated[
        bool, typer.Option("--mutants", help="Look for bugs that were put in on purpose: each has to be found.")
    ] = False,
    json: Json = False,
) -> Job:
    """Try random histories on every design, and hold each against the page tables after every step.

    The same seed finds the same, on any number of CPUs.  What fails is made as short as it can be, printed, and
    saved for `rmaplab replay`.

    \b
    Examples:
      rmaplab verify
      rmaplab verify --time 600 --every 10
      rmaplab verify --rmap anon_vma --rmap mine.py --seed 7
      rmaplab verify --mutants
    """

    def job() -> int:
        cpus = jobs or len(os.sched_getaffinity(0))
        if mutants:
            return _look_for_mutants(cpus, output, json)
        if profile and profile not in PROFILES:
            raise UsageError(f"there is no profile {profile!r} (there are {', '.join(PROFILES)})")
        _plan(specs(rmap, list(DESIGNS)), "", PROFILES[profile or REFERENCE], True, 1, 0, 0)  # are they designs?
        plan = VerifyPlan(
            designs=tuple(specs(rmap, list(DESIGNS))),
            profile=profile or REFERENCE,
            seed=seed,
            steps=steps or (0 if seconds else 20_000),
            seconds=seconds,
            every=every,
            pages=pages,
            large_folios=large_folios,
            jobs=cpus,
            # As in `compare`: what the prototype's own source misses is news, but no failure.
            excused=frozenset() if rmap else frozenset(["cow_context_prototype"]),
        )
        with Meter() as meter:
            found = verify(plan, meter)
        saved = None
        if found.failure is not None:
            saved = output or Path("verify-failure.parquet")
            verify_report.save(saved, plan, found.failure)
        held = found.holds  # or nothing was looked at, and there is nothing to print
        if json:
            verify_report.print_json(verify_report.as_object(_VERSION, plan, found, saved))
        else:
            verify_report.print_text(plan, found, saved, Console(highlight=False, markup=False))
        return HOLDS if held else DOES_NOT_HOLD

    return job


def _look_for_mutants(jobs: int, output: Path | None, json: bool) -> int:
    with Meter() as meter:
        verdicts = mutation.look_for_all(jobs, meter)
    if output is not None:
        output.write_text(mutation.markdown(verdicts, f"rmaplab verify --mutants -o {output}"))
    holds = judge(len(verdicts), not all(verdict.holds for verdict in verdicts), "no mutant was looked for")
    if json:
        told = {
            "command": "verify",
            "version": _VERSION,
            "inputs": {
                "history": "random",
                "mutants": [verdict.mutant for verdict in verdicts],
                "steps": mutation.STEPS,
                "interleavings": mutation.INTERLEAVINGS,
            },
            "holds": holds,
            "figures": verdicts,
            "differences": [verdict for verdict in verdicts if not verdict.holds],
        }
        verify_report.print_json(told)
    else:
        mutation.print_table(verdicts, Console(highlight=False, markup=False))
    return HOLDS if holds else DOES_NOT_HOLD


# Where histories come from


def _from_command(command: Sequence[str], output: Path | None, names: bool) -> tuple[History, Source]:
    """Record `command`; what it prints goes to stderr, because stdout is for the report."""
    with tempfile.TemporaryDirectory(prefix="rmaplab-") as directory:
        path = output or Path(directory, f"{Path(command[0]).name}.parquet")
        try:
            with _output_of_commands_to_stderr(True):
                record(command, path, names=names, say=_progress)
        except RecordError as error:
            if list(command[1:]) != ["-m", "rmaplab.example"] or shutil.which(command[0]) is None:
                raise
            _progress(f"{error}; so here is the recording of it that comes with rmaplab")
            with resources.as_file(
                resources.files("rmaplab") / "data/recordings/example.parquet"
            ) as packaged:
                return sources.from_file(str(packaged))
        return sources.from_file(str(path))


@contextmanager
def _output_of_commands_to_stderr(wanted: bool) -> Iterator[None]:
    """While inside, programs that are started find our stderr where they look for stdout."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def _progress(sentence: str) -> None:
    print(f"rmaplab: {sentence}", file=sys.stderr, flush=True)


# What is done with them


def _profile(name: str, source: Source) -> Profile:
    if not name:
        return profile_for(source.kernel)[0]
    if name not in PROFILES:
        raise UsageError(f"there is no profile {name!r} (there are {', '.join(PROFILES)})")
    return PROFILES[name]


def _design(spec: str) -> type[ReverseMap]:
    try:
        return load(spec)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _plan(
    designs: Sequence[str],
    leader: str,
    profile: Profile,
    check: bool,
    every: int,
    folios: int,
    large_folios: int,
) -> Plan:
    classes = [_design(spec) for spec in designs]
    names = [design.name for design in classes]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"two of the designs are called {name!r}, so the report could not tell them apart"
            )
    if leader and leader not in designs and leader not in names:
        raise UsageError(f"the leader {leader!r} is not one of the designs ({', '.join(names)})")
    first = 0
    if leader:
        first = designs.index(leader) if leader in designs else names.index(leader)
    return Plan(classes, profile, first, every, folios, check, large_folios=large_folios)


def _compare(
    command: str, history: History, source: Source, plan: Plan, seed: int, costs: str, json: bool
) -> int:
    profile = load_costs(costs) if costs else None
    with Meter() as meter:
        found = compare(history, plan, meter)
    if profile is not None:
        found = priced(found, profile)
    names = [design.name for design in plan.designs]
    inputs = Inputs(
        source,
        names,
        names[plan.leader],
        plan.profile.name,
        plan.large_folios,
        seed,
        plan.every,
        plan.folios,
        profile.name if profile is not None else "",
    )
    told = report(command, _VERSION, inputs, found)
    if json:
        sys.stdout.write(told.json())
    else:
        print_report(told, Console(highlight=False, markup=False))
    return HOLDS if told.holds else DOES_NOT_HOLD


# Pictures

check.mount(app, _design)
calibration.mount(app)
scale_command.mount(app, _design)
reproduce_command.mount(app)
app.add_typer(kernel.app, name="kernel")
sweep.mount(app)
explore.mount(
    app,
    explore.Finders(
        history=lambda what, seed: sources.find(what, seed)[0],
        profile=lambda name, history: _profile(
            name, Source(history.header.command, history.header.recorder, history.header.kernel)
        ),
        design=_design,
    ),
)


# How it ends


def main(arguments: Sequence[str] | None = None) -> None:
    """The program `rmaplab`."""
    # Thousands of VMAs and chains live as long as their machine: looking through them for cycles so often, as
    # the default has it, takes a tenth of a replay.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    sys.exit(_main(list(sys.argv[1:] if arguments is None else arguments)))


def _main(arguments: list[str]) -> int:
    command: list[str] = []
    if "--" in arguments:
        cut = arguments.index("--")
        arguments, command = arguments[:cut], arguments[cut + 1 :]
    try:
        job = app(arguments, prog_name="rmaplab", standalone_mode=False, obj=command)
        status = job() if callable(job) else HOLDS  # --help and --version are done already
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return _say("interrupted, so there is no result")
    except BrokenPipeError:
        # Whoever read stdout has gone; keep the interpreter from writing to it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _say("nobody reads the output any more")
    except typer.TyperException as error:
        return _say(f"{error.format_message()} See rmaplab --help.")
    except CannotRun as error:
        return _say(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"{where}{error.strerror or error}")
    except MemoryError:
        return _say("there is not enough memory for a history of this size")
    except Exception:  # a mistake in a design of one's own, or in rmaplab: its author wants to see where
        traceback.print_exc()
        return COULD_NOT_RUN


def _say(sentence: str) -> int:
    print(f"rmaplab: {sentence}", file=sys.stderr)
    return COULD_NOT_RUN
