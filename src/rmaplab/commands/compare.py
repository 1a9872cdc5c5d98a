# SPDX-License-Identifier: GPL-2.0-or-later
"""`rmaplab compare`, the main job; and what `run` and `replay` share with it."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Final

import typer

from rmaplab.commands import options
from rmaplab.commands.envelope import print_json
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

# What `compare` compares by default.  page_scan reads every page table for every walk, which takes long, and could only
# agree with the page tables against which all designs are checked anyway.
COMPARED: Final = tuple(name for name in STANDARD if not DESIGNS[name].scans_memory)
MORE: Final = "--full prints all tables, --json all figures; -o page.html draws them"


@dataclass(frozen=True)
class Asked:
    """How a history is to be compared: the options that `compare`, `run`, `replay` and `report` have in common."""

    rmap: options.Designs = None
    leader: options.Leader = ""
    profile: options.ProfileName = ""
    check: options.Check = True
    every: options.Every = 0
    folios: options.Folios = FOLIOS
    large_folios: options.LargeFolios = 0
    seed: options.Seed = 1
    costs: options.Costs = ""
    outputs: options.Outputs = None
    full: options.Full = False
    json: options.Json = False

    def compare(
        self, command: str, what: Sequence[str], find: Callable[[], tuple[History, Source]],
        otherwise: Sequence[str] = COMPARED,
    ) -> bool:  # fmt: skip
        """Compare the designs that were asked for, or those of `otherwise`, print what was found, and write outputs.

        :param what: what a user calls the history, to repeat it
        :param find: gets the history; called when nothing is wrong with the options
        """
        pages = self._outputs(".html")
        for path in self.outputs or ():
            if path not in pages and path not in self.histories:
                raise CannotRun(f"-o {path}: end it in .html for a page, or in .parquet for the history")
            check_output(path)
        found = options.designs(self.rmap, otherwise)
        leader = self.leader or next(iter(found))
        if leader not in found and leader not in found.values():
            raise CannotRun(f"the leader {leader!r} is not one of the designs ({', '.join(found)})")
        first = next(i for i, (name, spec) in enumerate(found.items()) if leader in (name, spec))
        designs = [options.design(spec) for spec in found.values()]
        options.profile(self.profile)
        costs = load_costs(self.costs)
        history, source = find()
        plan = Plan(
            designs, options.profile(self.profile, source.kernel), first, self.every, self.folios, self.check,
            large_folios=self.large_folios, jobs=options.cpus_to_use(0), excused=frozenset() if self.rmap else EXCUSED,
        )  # fmt: skip
        with Meter() as meter:
            figures = priced(compare(history, plan, meter.tell), costs)
        names = [*found]
        inputs = Inputs(
            source, names, names[first], plan.profile.name, self.large_folios, self.seed, self.every, self.folios,
            costs.name,
        )  # fmt: skip
        told = Report(inputs, figures.holds, figures.figures, figures.differences)
        for path in self.histories:
            write_history(path, history)
        if pages:
            from rmaplab.measure.page import page  # what draws is slow to import

            # To name the prototype makes its misses errors: a command that repeats this names what was named here.
            named = [] if not self.rmap and tuple(otherwise) == COMPARED else [*found.values()]
            text = page(told, [self._again(what, named, inputs)])
            for path in pages:
                write_output(path, text)
                say(f"the page is {path}")
        if self.json:
            print_json(command, inputs, told.holds, told.figures, told.differences)
        else:
            out = console()
            if self.full:
                print_report(told, out)
            print_answer(told, MORE, out)
        return told.holds

    @property
    def histories(self) -> list[Path]:
        """Where the history is to be kept."""
        return self._outputs(".parquet")

    def _outputs(self, suffix: str) -> list[Path]:
        return [path for path in self.outputs or () if path.suffix == suffix]

    def _again(self, what: Sequence[str], named: Sequence[str], inputs: Inputs) -> str:
        """The command that makes the same page."""
        words: list[object] = ["rmaplab", "compare", *what, "--profile", inputs.profile]
        words += ["--rmap", ",".join(named)] if named else []
        words += ["--seed", self.seed, "--every", self.every, "--folios", self.folios]
        words += ["--large-folios", self.large_folios, "--costs", inputs.costs]
        words += ["--leader", inputs.leader, "--check" if self.check else "--no-check"]
        return shlex.join(map(str, [*words, "-o", "page.html"]))


def command(
    context: typer.Context,
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[F | WORKLOAD [NAME=VALUE]... | -- CMD...]",
            help="A recording, a workload, or a command to record.", hidden=True,
        ),
    ] = None,
    asked: Asked = Asked(),
    names: options.Names = False,
) -> bool:
    """Compare designs on one history, a recording F, a workload or a command's: memory, work, locks, and whether walks
    find every mapping.

    \b
    Examples:
      rmaplab compare -o make.html -o make.parquet -- make -j2
      rmaplab compare sort.parquet --rmap anon_vma,cow_context
      rmaplab compare forkchain generations=200 --json
    """
    argv: list[str] = context.obj
    if bool(what) == bool(argv):
        raise CannotRun("compare needs one of: a recording, a workload, or -- and a command")
    if what:
        return asked.compare("compare", what, lambda: sources.find(what, asked.seed))
    again = str(next(iter(asked.histories), "RECORDING"))
    return asked.compare("compare", [again], lambda: _from_command(argv, asked.histories, names))


def _from_command(argv: Sequence[str], kept: Sequence[Path], names: bool) -> tuple[History, Source]:
    """Record a command; what it prints goes to stderr, because stdout is for the report."""
    # Recordings are replayed without recorders, which take longer to import than all else.
    from rmaplab.commands.record import output_of_commands_to_stderr
    from rmaplab.trace.record import RecordError, record

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
