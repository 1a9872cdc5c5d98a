# SPDX-License-Identifier: GPL-2.0-or-later
"""`rmaplab compare`, the main job; and what `run` and `replay` share with it."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Final

import typer

from rmaplab.commands import options
from rmaplab.commands.envelope import print_json
from rmaplab.commands.record import output_of_commands_to_stderr
from rmaplab.errors import CannotRun
from rmaplab.measure import sources
from rmaplab.measure.answer import print_answer
from rmaplab.measure.comparison import FOLIOS, Plan, compare, priced
from rmaplab.measure.cost import load_costs
from rmaplab.measure.progress import Meter
from rmaplab.measure.report import Inputs, Report, print_report
from rmaplab.measure.sources import Source
from rmaplab.output import check_output, write_output
from rmaplab.rmap import DESIGNS, EXCUSED, STANDARD
from rmaplab.terminal import console, say
from rmaplab.trace.history import History, write_history
from rmaplab.trace.record import RecordError, record

# What `compare` compares, unless told otherwise.  page_scan looks at every page table for every walk, which
# takes as long as it sounds, and could only agree with the page tables that all are checked against anyway.
COMPARED: Final = tuple(name for name in STANDARD if not DESIGNS[name].scans_memory)
MORE: Final = "--full prints all tables, --json all figures; -o page.html draws them"


def command(
    context: typer.Context,
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[F | WORKLOAD [NAME=VALUE]... | -- CMD...]",
            help="A recording, a workload, or a command to record.",
        ),
    ] = None,
    rmap: options.Designs = None,
    leader: options.Leader = "",
    profile: options.ProfileName = "",
    check: options.Check = True,
    every: options.Every = 0,
    folios: options.Folios = FOLIOS,
    large_folios: options.LargeFolios = 0,
    seed: options.Seed = 1,
    costs: options.Costs = "",
    outputs: options.Outputs = None,
    names: options.Names = False,
    full: options.Full = False,
    json: options.Json = False,
) -> bool:
    """Compare designs on one history: memory, work, locks, and whether walks find every mapping.

    \b
    Examples:
      rmaplab compare -o make.html -o make.parquet -- make -j2
      rmaplab compare sort.parquet --rmap anon_vma,cow_context
      rmaplab compare forkchain generations=200 --json
    """
    argv: list[str] = context.obj
    if bool(what) == bool(argv):
        raise CannotRun("compare needs one of: a recording, a workload, or -- and a command")
    asked = Asked(rmap, COMPARED, leader, profile, check, every, folios, large_folios, seed, costs, outputs)
    if what:
        history, source = sources.find(what, seed)
        again = [*what]
    else:
        history, source = _from_command(argv, asked.histories, names)
        again = [str(next(iter(asked.histories), "RECORDING"))]
    return asked.compare("compare", again, history, source, full, json)


class Asked:
    """How a history is to be compared: what `compare`, `run` and `replay` have in common.

    Whatever is wrong with it is said before a command is run.
    """

    def __init__(
        self,
        rmap: Sequence[str] | None,
        otherwise: Sequence[str],
        leader: str,
        profile: str,
        check: bool,
        every: int,
        folios: int,
        large_folios: int,
        seed: int,
        costs: str,
        outputs: Sequence[Path] | None,
    ) -> None:
        self.histories: Final = [path for path in outputs or () if path.suffix == ".parquet"]
        self._pages: Final = [path for path in outputs or () if path.suffix == ".html"]
        for path in outputs or ():
            if path not in self.histories and path not in self._pages:
                raise CannotRun(f"-o {path}: end it in .html for a page, or in .parquet for the history")
            check_output(path)
        found = options.designs(rmap, otherwise)
        names = list(found)
        if leader and leader not in found and leader not in found.values():
            raise CannotRun(f"the leader {leader!r} is not one of the designs ({', '.join(names)})")
        first = next((i for i, (name, spec) in enumerate(found.items()) if leader in (name, spec)), 0)
        # To name the prototype makes its misses errors: a command that repeats this names what was named here.
        self._named: Final = [] if not rmap and tuple(otherwise) == COMPARED else [*found.values()]
        self._profile: Final = profile
        self._costs: Final = load_costs(costs)
        self._seed: Final = seed
        self._plan: Final = Plan(
            [options.design(spec) for spec in found.values()],
            options.profile(profile),
            first,
            every,
            folios,
            check,
            large_folios=large_folios,
            excused=frozenset() if rmap else EXCUSED,
        )

    def compare(
        self, command: str, what: Sequence[str], history: History, source: Source, full: bool, json: bool
    ) -> bool:
        """Compare, print what was found, and write what was asked for; `what` is what a user calls the history."""
        plan = self._plan._replace(profile=options.profile(self._profile, source.kernel))
        with Meter() as meter:
            found = priced(compare(history, plan, meter), self._costs)
        names = [design.name for design in plan.designs]
        inputs = Inputs(
            source,
            names,
            names[plan.leader],
            plan.profile.name,
            plan.large_folios,
            self._seed,
            plan.every,
            plan.folios,
            self._costs.name,
        )
        told = Report(inputs, found.holds, found.figures, found.differences)
        self._write(told, what, history)
        if json:
            print_json(command, inputs, told.holds, told.figures, told.differences)
        else:
            out = console()
            if full:
                print_report(told, out)
            print_answer(told, MORE, out)
        return told.holds


    def _write(self, told: Report, what: Sequence[str], history: History) -> None:
        for path in self.histories:
            write_history(path, history)
        if self._pages:
            from rmaplab.measure.page import page  # what draws is slow to import

            words: list[object] = ["rmaplab", "compare", *what, "--profile", told.inputs.profile]
            words += ["--rmap", ",".join(self._named)] if self._named else []
            words += ["--seed", self._seed, "--every", self._plan.every, "--folios", self._plan.folios]
            words += ["--large-folios", self._plan.large_folios, "--costs", told.inputs.costs]
            words += ["--leader", told.inputs.leader, "--check" if self._plan.check else "--no-check"]
            text = page(told, [shlex.join(map(str, [*words, "-o", "page.html"]))])
            for path in self._pages:
                write_output(path, text)
                say(f"the page is {path}")


def _from_command(argv: Sequence[str], kept: Sequence[Path], names: bool) -> tuple[History, Source]:
    """Record a command; what it prints goes to stderr, because stdout is for the report."""
    with tempfile.TemporaryDirectory(prefix="rmaplab-") as directory:
        path = next(iter(kept), Path(directory, f"{Path(argv[0]).name}.parquet"))
        try:
            with output_of_commands_to_stderr(True):
                record(argv, path, names=names, say=say)
        except RecordError as error:
            if list(argv[1:]) != ["-m", "rmaplab.example"] or shutil.which(argv[0]) is None:
                raise
            say(f"{error}; so here is the recording of it that comes with rmaplab")
            with resources.as_file(
                resources.files("rmaplab") / "data/recordings/example.parquet"
            ) as packaged:
                return sources.from_file(str(packaged))
        return sources.from_file(str(path))
