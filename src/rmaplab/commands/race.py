# SPDX-License-Identifier: GPL-2.0-or-later
"""`rmaplab race`: every interleaving of users of the reverse map against what other CPUs do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console

from rmaplab.check.barrier_litmus import litmus_tests
from rmaplab.check.barriers import LIMIT, Barriers, scenes
from rmaplab.check.barriers import barriers as barriers_of
from rmaplab.check.processes import side_by_side
from rmaplab.check.race import (
    Broken,
    Model,
    RaceError,
    Verdict,
    chosen,
    cpus,
    kinds,
    lock_complaints,
    run,
    run_path,
    timeline,
)
from rmaplab.check.race_findings import look_for_all, markdown, stages
from rmaplab.commands import options
from rmaplab.commands.envelope import print_json
from rmaplab.measure.progress import Meter
from rmaplab.mm.profile import REFERENCE
from rmaplab.output import check_output, write_output
from rmaplab.printable import plural
from rmaplab.rmap import load
from rmaplab.terminal import Grid, console, print_fact, print_text, print_verdict, say
from rmaplab.verdict import judge

DESIGNS: Final = ("anon_vma", "cow_context")  # where nothing else was asked for


class Inputs(msgspec.Struct, frozen=True):
    """What the verdicts depend on.  `preemptions` -1: no bound; `pairs` -1: that of the others."""

    scenarios: list[str]
    designs: list[str]
    profile: str
    preemptions: int
    pairs: int
    limit: int
    random: int
    seed: int
    path: str
    memory: str


class Differences(msgspec.Struct, frozen=True):
    """An obligation that a design broke in a scenario."""

    scenario: str
    design: str
    broken: Broken


def command(
    scenarios: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SCENARIO]...", help="Only scenarios whose names contain this.", hidden=True),
    ] = None,
    rmap: options.Designs = None,
    preemptions: Annotated[
        int,
        typer.Option(
            min=-1,
            metavar="N",
            help="Preempt at most N times (-1: as often as one likes).",
            hidden=True,
        ),
    ] = -1,
    pairs: Annotated[
        int,
        typer.Option(min=-1, metavar="N", help="The same, where two operations are (-1: as others).", hidden=True),
    ] = -1,
    limit: Annotated[
        int, typer.Option(min=0, metavar="N", help="Abandon a scenario after N interleavings (0: never).", hidden=True)
    ] = 0,
    random: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Try N random interleavings instead."),
    ] = 0,
    seed: options.Seed = 1,
    timelines: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Show timelines of at most N kinds of failure per design.", hidden=True),
    ] = 1,
    jobs: options.Jobs = 1,
    memory: options.MemoryModel = options.Memory.sc,
    barriers: Annotated[
        str,
        typer.Option(metavar="DESIGN", help="Take each ordering of a design away under weak memory."),
    ] = "",
    litmus: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --barriers: write each as a litmus test.", hidden=True)
    ] = None,
    path: Annotated[str, typer.Option(metavar="PATH", help="Replay this path of one scenario.", hidden=True)] = "",
    show_names: Annotated[bool, typer.Option("--list", help="Print the names of all scenarios.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write what one design breaks as Markdown.", hidden=True),
    ] = None,
    json: options.Json = False,
) -> bool:
    """Try every interleaving of users of the reverse map with other CPUs.

    A scenario is "USER / OPERATION": a walk that looks for references, unmaps, migrates or restores, while others
    fault, fork, exit, unmap or move.

    \b
    Examples:
      rmaplab race "referenced / fork" --jobs 2
      rmaplab race --rmap cow_context "restore / " --memory weak
      rmaplab race --barriers anon_vma "first"
      rmaplab race --rmap cow_context_prototype "unmap / fork of the child"
    """
    if litmus is not None and not barriers:
        raise RaceError("--litmus writes the orderings that --barriers finds: name a design with that, too")
    jobs = options.cpus_to_use(jobs)
    if barriers:
        return _barriers(barriers, scenarios or [], limit or LIMIT, jobs, timelines, litmus, json)
    names = chosen(scenarios or [])
    if show_names:
        print("\n".join(names))
        return True
    designs = list(options.designs(rmap, DESIGNS).values())
    if path:
        return _replay(names, designs, path, Model(memory.value))
    if report is not None:
        check_output(report)
        return _report(scenarios or [], names, designs, jobs, report)
    inputs = Inputs(names, designs, REFERENCE, preemptions, pairs, limit, random, seed, path, memory.value)
    verdicts = _try_all(inputs, jobs)
    wrong = lock_complaints(verdicts)
    holds = judge(len(verdicts), not all(v.holds for v in verdicts) or bool(wrong), "no scenario was tried")
    if json:
        broken = [Differences(v.scenario, v.design, b) for v in verdicts for b in v.broken]
        print_json("race", inputs, holds, verdicts, broken, lock_order=wrong)
    else:
        _print(inputs, verdicts, wrong, holds, timelines)
    return holds


def _one(work: tuple[str, str, Inputs]) -> Verdict:
    name, design, given = work
    return run(
        name,
        load(design),
        limit=given.limit,
        preemptions=given.pairs if given.pairs >= 0 and " + " in name else given.preemptions,
        random=given.random,
        seed=given.seed,
        memory=Model(given.memory),
    )


def _try_all(inputs: Inputs, jobs: int) -> list[Verdict]:
    work = [(name, design, inputs) for design in inputs.designs for name in inputs.scenarios]
    with Meter() as meter:
        return side_by_side(
            _one, work, jobs, partial(meter.tell, "interleavings", of="scenarios"), lambda item: item[0].count("mremap")
        )


def _report(patterns: list[str], names: list[str], designs: list[str], jobs: int, path: Path) -> bool:
    """Write the page of one design; without patterns, of the scenarios with one operation."""
    if len(designs) != 1:
        raise RaceError(f"a report is about one design, and here are {len(designs)}: name it with --rmap")
    wanted = names if patterns else [name for name in names if " + " not in name]
    with Meter() as meter:
        found = look_for_all(designs[0], wanted, jobs, partial(meter.tell, "findings", of="scenarios"))
    words = ["rmaplab race", *(f'"{pattern}"' for pattern in patterns), f"--rmap {designs[0]} --report FILE"]
    write_output(path, markdown(designs[0], found, " ".join(words)))
    for stage, findings in zip(stages(load(designs[0])), found, strict=True):
        print(f"{stage.design.name}: {len(findings)} of {len(wanted)} scenarios are broken")
    return not found[0]


def _replay(names: list[str], designs: list[str], path: str, memory: Model) -> bool:
    if len(names) != 1 or len(designs) != 1:
        raise RaceError(
            f"a path belongs to one scenario and one design, and here are {len(names)} and {len(designs)}: name them"
        )
    broken = run_path(names[0], load(designs[0]), path, memory)
    if broken is None:
        print(f"{names[0]}, {designs[0]}: this path breaks nothing")
        return True
    print("\n".join(timeline(broken, cpus(names[0]))))
    return False


class Asked(msgspec.Struct, frozen=True):
    """What the table of orderings depends on."""

    design: str
    scenarios: list[str]
    profile: str
    limit: int


def _barriers(
    spec: str, patterns: list[str], limit: int, jobs: int, timelines: int, litmus: Path | None, json: bool
) -> bool:
    """Which orderings does a design need?  Holds if none is missing."""
    tried = [name for name in scenes() if not patterns or any(pattern in name for pattern in patterns)]
    if not tried:
        raise RaceError(f"no scenario of one operation contains {' or '.join(repr(p) for p in patterns)}")
    with Meter() as meter:
        found = barriers_of(spec, tried, limit, jobs, partial(meter.tell, "orderings"))
    holds = judge(
        len(tried) - len(found.broken), bool(found.missing), "all scenarios break under sequential consistency as well"
    )
    if litmus is not None:
        _write_litmus(litmus, found)
    if json:
        print_json("race barriers", Asked(spec, tried, REFERENCE, limit), holds, found, found.missing)
        return holds
    out = console(width=110)
    table = Grid("ordering", "in the kernel", "needed by", "tried", left=("in the kernel", "needed by"))
    for ordering in found.orderings:
        by = ordering.needed.scenario if ordering.needed else "no scenario within the bounds"
        table.add_row(ordering.name, ordering.primitive, by, str(ordering.scenarios))
    table.print(out, found.design)
    out.print()
    unfinished = sum(1 for ordering in found.orderings if not ordering.needed and ordering.unfinished)
    if unfinished:
        out.print(
            f"Of {plural(unfinished, 'ordering')} that no scenario needed, not all scenarios were finished: --limit"
            f" {limit} abandoned some.\n"
        )
    if found.broken:
        out.print(f"Left out, since they break under sequential consistency as well: {', '.join(found.broken)}\n")
    needed = [ordering for ordering in found.orderings if ordering.needed]
    for ordering in needed[:timelines]:
        assert ordering.needed is not None
        out.print(f"without {ordering.name}: {ordering.needed.scenario}")
        for line in timeline(ordering.needed.broken, ordering.needed.cpus):
            out.print(line, soft_wrap=True)
        out.print()
    for ordering in needed[timelines:]:
        assert ordering.needed is not None
        out.print(f"without {ordering.name}: {ordering.needed.broken.error}", soft_wrap=True)
    for shown in found.missing:
        out.print(f"{shown.scenario} breaks with all of them: {shown.broken.error}", soft_wrap=True)
    print_verdict(holds, out)
    return holds


def _write_litmus(folder: Path, found: Barriers) -> None:
    """A file for each ordering that is needed, and one in which it is taken away."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RaceError(f"{folder} cannot be made: {error.strerror}") from error
    for ordering in found.orderings:
        if ordering.needed:
            tests = litmus_tests(found.design, ordering)
            for test in tests:
                write_output(folder / test.name, test.text)
            if not tests:
                say(f"{ordering.name} is no shape that has a litmus test here")


def _print(inputs: Inputs, found: list[Verdict], wrong: list[str], holds: bool, timelines: int) -> None:
    out = console()
    for design in inputs.designs:  # as it was given, which need not be its name
        name = load(design).name
        verdicts = [v for v in found if v.design == name]
        table = Grid("scenario", "bound", "in all", "tried", "steps", "CPU s", "verdict", left=("verdict",))
        for v in verdicts:
            table.add_row(
                v.scenario,
                "none" if v.preemptions < 0 else str(v.preemptions),
                f"{v.orders:,.0f}" if v.orders < 1e6 else f"{v.orders:.0e}",
                f"{v.interleavings:,}",
                f"{v.steps:,}",
                f"{v.seconds:.2f}",
                _verdict(v),
            )
        table.print(out, name)
        failed = kinds(verdicts)
        nr_failed = sum(len(kind) for kind in failed)
        out.print()
        print_text(
            f"{name}: {sum(v.holds for v in verdicts)} of {plural(len(verdicts), 'scenario')}"
            f" {'holds' if len(verdicts) == 1 else 'hold'},"
            f" {nr_failed} {'is' if nr_failed == 1 else 'are'} broken,"
            f" {plural(sum(v.interleavings for v in verdicts), 'interleaving')} tried,"
            f" {sum(v.seconds for v in verdicts):.1f} s of CPU time",
            0,
            out,
        )
        out.print()
        for kind in failed[:timelines]:
            v = kind[0]
            out.print(f"{v.scenario}: the first interleaving that breaks an obligation", soft_wrap=True)
            for line in timeline(v.broken[0], v.cpus):
                out.print(line, soft_wrap=True)
            which = f'"{v.scenario}" --rmap {design}'
            if v.broken[0].path:
                which += f' --path "{v.broken[0].path}"'
            if inputs.memory != "sc":
                which += f" --memory {inputs.memory}"
            out.print(f"     again:  rmaplab race {which}", soft_wrap=True)
            if v.broken[0].path:  # else it broke before there was anything to see
                out.print(f"     see it: rmaplab explore {which} -o race.html", soft_wrap=True)
            _print_equal(kind[1:], out)
            out.print()
        for kind in failed[timelines:]:
            out.print(f"{kind[0].scenario}: {kind[0].broken[0].error}", soft_wrap=True)
            _print_equal(kind[1:], out)
        if len(failed) > timelines:
            out.print(f"\n--timelines {len(failed)} shows how each comes about, and how to see it again\n")
        left = sum(not v.broken and not v.random and not v.exhausted for v in verdicts)
        if left:
            out.print(f"{left} not finished: --limit {inputs.limit} abandoned them, so there is no verdict on them\n")
    for complaint in wrong:
        out.print(complaint, soft_wrap=True)
    if not holds and not wrong and not any(v.broken for v in found):
        print_fact("Verdict", "not finished: nothing is broken, and not everything was tried", out)
    else:
        print_verdict(holds, out)


def _print_equal(others: Sequence[Verdict], out: Console) -> None:
    """Name the other scenarios that break like one that was shown, by what is on the first CPU."""
    if others:
        print_text(f"so {'does' if len(others) == 1 else 'do'} {plural(len(others), 'more scenario')}:", 5, out)
    for user, equal in groupby(sorted(others, key=lambda v: v.cpus[0]), lambda v: v.cpus[0]):
        print_text(f"{user} / {'; '.join(' + '.join(v.cpus[1:]) for v in equal)}", 7, out)


def _verdict(v: Verdict) -> str:
    if v.broken:
        return "BROKEN"
    if v.random:
        return "nothing found"
    return "holds" if v.exhausted else "not finished"
