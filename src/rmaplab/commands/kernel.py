# SPDX-License-Identifier: GPL-2.0-or-later
"""`rmaplab kernel setup | compare | native | run | import | userland`: the real kernel as witness.

What needs a kernel, QEMU or drgn is imported when it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from rmaplab.commands import options
from rmaplab.commands.envelope import print_json
from rmaplab.kernel.errors import KernelUnavailable
from rmaplab.kernel.versions import DEFAULT, NATIVE, VERSIONS
from rmaplab.output import check_output
from rmaplab.terminal import say
from rmaplab.verdict import judge

if TYPE_CHECKING:
    from rmaplab.kernel.driver import Setting
    from rmaplab.kernel.lockstep import Disagreement
    from rmaplab.kernel.setup import Kernel
    from rmaplab.trace.events import Event
    from rmaplab.trace.history import History


Version = Annotated[str, typer.Option("--version", metavar="V", help=f"Which kernel: {', '.join(VERSIONS)}.")]
Vmlinux = Annotated[Path | None, typer.Option(metavar="FILE", help="The same kernel with debug information.")]
Save = Annotated[Path | None, typer.Option("--save", metavar="F", help="Where to write the history that differs.")]


@dataclass(frozen=True)
class Which:
    """A kernel: one that `kernel setup` fetched, or one of the user's own."""

    version: Version = DEFAULT
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="A kernel of your own: its bzImage.")] = None
    vmlinux: Vmlinux = None
    modules: Annotated[
        Path | None,
        typer.Option(metavar="TREE", help="Its modules, as `make modules_install` leaves them."),
    ] = None

    def kernel(self) -> Kernel:
        from rmaplab.kernel import setup

        setup.need_drgn()
        if self.image is None and self.vmlinux is None:
            return setup.need(self.version)
        if self.image is None or self.vmlinux is None:
            raise KernelUnavailable("a kernel of one's own needs both: --image to boot it, --vmlinux to read it.")
        return setup.own(self.image, self.vmlinux, self.modules)


@dataclass(frozen=True)
class Guest(Which):
    """The same, and how it is booted and asked."""

    command_line: Annotated[
        str, typer.Option(metavar="TEXT", help="Add to the kernel's command line.", hidden=True)
    ] = ""
    accelerator: Annotated[
        str, typer.Option(metavar="NAME", help="QEMU's accelerator: tcg or kvm.", hidden=True)
    ] = "tcg"
    large_folios: Annotated[
        int,
        typer.Option(
            min=0, max=9, metavar="ORDER",
            help="Faults may allocate folios of up to 2**ORDER pages (6.8 on; before, 9 for 2 MiB).", hidden=True,
        ),
    ] = 0
    mappings: Annotated[
        int, typer.Option(min=0, metavar="N", help="Mappings of a process (0: as the kernel has it).", hidden=True)
    ] = 0

    def setting(self) -> Setting:
        """What it is set to for a history."""
        from rmaplab.kernel.driver import Setting

        return Setting(self.large_folios, self.mappings)


def setup(version: Version = DEFAULT) -> bool:
    """Fetch a kernel and its debug information into the cache; nothing is installed.

    \b
    Example:
      rmaplab kernel setup --version 6.1
    """
    from rmaplab.kernel import setup

    kernel = setup.set_up(version, say)
    print(f"{kernel.release} is in {kernel.image.parent}")
    return True


def compare(
    history: Annotated[
        Path | None, typer.Argument(metavar="[F]", help="A history; without one, random ones.", hidden=True)
    ] = None,
    guest: Guest = Guest(),
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Random steps after aimed histories.")] = 3000,
    seed: options.Seed = 1,
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="Guests side by side.")] = 1,
    save: Save = None,
    json: options.Json = False,
) -> bool:
    """Run a history F, or random ones, in a real kernel and in the model, and compare their state after each step.

    \b
    Example:
      rmaplab kernel compare --steps 3000
    """
    from rmaplab.kernel.campaign import campaign
    from rmaplab.kernel.coverage import Coverage
    from rmaplab.kernel.fixtures import answers
    from rmaplab.kernel.lockstep import Witness, minimal, replay
    from rmaplab.trace.history import read_history

    if save is not None:
        check_output(save)
    recorded = None if history is None else read_history(history)
    kernel = guest.kernel()
    with Witness(kernel, guest.command_line, guest.accelerator) as witness:
        release = witness.profile.release
        for note in witness.notes:
            say(note)
        coverage = Coverage()
        if recorded is not None:
            found = replay(witness, recorded, None, recorded.header, coverage, guest.setting())
            done = sum(coverage.steps.values())
        else:
            found = next((bad for _, _, bad in answers(witness, coverage) if bad is not None), None)
            done = 0
            if found is None:
                found, done = campaign(
                    kernel, guest.command_line, guest.accelerator, seed, steps, jobs, coverage,
                    lambda text: say(f"{release}: {text}"),
                )  # fmt: skip
        if found is not None:
            say("making it shorter")
            found = minimal(witness, found, head=None if recorded is None else recorded.header)
    inputs = _inputs(str(history or "random"), ["anon_vma"], witness.profile.name, release, seed)
    if found is not None and save is not None:
        _save(save, recorded, found.requested, release)
    held = judge(done, found is not None, "a guest cannot be asked any event of this history")
    missing = coverage.missing(witness.has_large_folios)
    figures = {"steps": done, "reached": dict(coverage.reached), "not reached": missing}
    if json:
        print_json(
            "kernel compare", inputs, held, figures, [] if found is None else [_as_json(found)]
        )
    elif found is not None:
        print(explained(found))
        if save is not None:
            print(f"The history is in {save}.")
    else:
        what = "steps" if recorded is not None else "random steps and all aimed histories"
        print(f"{release}: {done} {what}, no difference.  Cases reached (number of steps):")
        for case, count in sorted(coverage.reached.items()):
            print(f"  {count:6} {case}")
        for case in missing:
            print(f"       - {case}")
    return held


def native(
    history: Annotated[
        Path | None, typer.Argument(metavar="[F]", help="A history; without one, random ones.", hidden=True)
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--source", metavar="TREE", help="Linux's sources (default: Debian's of --version).")
    ] = None,
    version: Annotated[
        str, typer.Option("--version", metavar="|".join(NATIVE), help="Which kernel's sources.")
    ] = NATIVE[0],
    profile: Annotated[
        str, typer.Option("--profile", metavar="NAME", help="Rules of the machine (default: of the tree's version).")
    ] = "",
    operations: Annotated[int, typer.Option(min=1, metavar="N", help="Random operations.")] = 100_000,
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="Processes that run random histories.")] = 1,
    seed: options.Seed = 1,
    save: Save = None,
    json: options.Json = False,
) -> bool:
    """Run a history F, or random ones, in Linux's own mm/vma.c, built in user space, and in the machine, and compare
    the VMAs after each operation.

    \b
    Example:
      rmaplab kernel native --source ~/linux --operations 1000000 --jobs 2
    """
    from rmaplab.kernel.native import build, compare
    from rmaplab.measure.progress import Meter
    from rmaplab.mm.profile import PROFILES, profile_for
    from rmaplab.trace.history import read_history

    if save is not None:
        check_output(save)
    recorded = None if history is None else read_history(history)
    if profile and profile not in PROFILES:
        raise KernelUnavailable(f"there is no profile {profile}: give one of {', '.join(PROFILES)}.")
    tree = source or build.sources(version, say)
    release = build.release_of(tree)
    rules, exact = (PROFILES[profile], True) if profile else profile_for(release)
    if not exact:
        say(f"there is no profile for {release}: {rules.name}'s rules are used, the nearest known")
    library = compare.Library(build.build(tree))
    events = None if recorded is None else list(recorded)
    head = None if recorded is None else recorded.header
    with Meter() as meter:
        progress = partial(meter.tell, of="operations")
        found, done = compare.compare(library, rules, seed, operations, events, head, jobs, progress)
    drift: list[str] = []
    if found is not None:
        say("making it shorter")
        found = compare.minimal(library, rules, found, head, events is None)
        drift = compare.drift(library, rules, found, seed, operations, events, head)
        if save is not None:
            _save(save, recorded, found.events, release)
    held = judge(done, found is not None, "no event of this history is about VMAs")
    inputs = _inputs(str(history or "random"), ["anon_vma"], rules.name, release, seed)
    if json:
        differences = [] if found is None else [msgspec.to_builtins(found) | {"drift": drift}]
        print_json("kernel native", inputs, held, {"operations": done}, differences)
    elif found is None:
        print(f"{release}: {done} operations in mm/vma.c and in profile {rules.name}, no difference.")
    else:
        print(compare.explained(found, drift))
        if save is not None:
            print(f"The history is in {save}.")
    return held


def run(
    history: Annotated[Path, typer.Argument(metavar="F", help="A history.", hidden=True)],
    guest: Guest = Guest(),
) -> bool:
    """Run a history F in a real kernel, and print what the kernel answers and holds after each step.

    \b
    Example:
      rmaplab kernel run history.parquet
    """
    from rmaplab.kernel.answers import render
    from rmaplab.kernel.lockstep import Lockstep, Witness
    from rmaplab.trace.history import read_history

    recorded = read_history(history)
    with Witness(guest.kernel(), guest.command_line, guest.accelerator) as witness:
        lockstep = Lockstep(witness, recorded.header, setting=guest.setting())
        for event in recorded:
            if not lockstep.possible(event):
                continue
            before = len(lockstep.played)
            lockstep.step(event)
            assert lockstep.snapshot is not None
            print(render(lockstep.played[before:], lockstep.snapshot, lockstep.driver.pids), flush=True)
    return True


def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="QMP socket of a running guest, an ELF dump, 'live' (this machine), or 'guest': one of ours after"
            " a random history.",
        ),
    ],
    version: Version = DEFAULT,
    vmlinux: Vmlinux = None,
    seed: options.Seed = 1,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Random steps, for 'guest'.")] = 500,
    json: options.Json = False,
) -> bool:
    """Import a real kernel's state, and walk all its anonymous pages in each design.

    \b
    Example:
      rmaplab kernel import /run/guest/qmp.sock --vmlinux vmlinux
    """
    from rmaplab.kernel.importer import read_guest, read_source

    if source == "guest":
        state = read_guest(Which(version).kernel(), seed, steps)
    else:
        state = read_source(source, vmlinux)
    for note in state.notes:
        say(note)
    inputs = _inputs(source, [finding.design for finding in state.findings], state.profile, state.release, seed)
    if json:
        print_json("kernel import", inputs, state.holds, msgspec.to_builtins(state), list(state.problems))
    else:
        print(state.table())
    return state.holds


def userland(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME…]", help="redis, postgresql, apache, compiler; without one, all of them."),
    ] = None,
    which: Which = Which(),
    markdown: Annotated[bool, typer.Option("--markdown", help="Print tables for a page.")] = False,
    json: options.Json = False,
) -> bool:
    """Run real programs in a guest, import its state while they work, and walk all their anonymous pages.

    \b
    Example:
      rmaplab kernel userland redis postgresql --markdown
    """
    from rmaplab.kernel import survey, userland

    for name in names or ():
        if name not in userland.PROGRAMS:
            raise KernelUnavailable(f"there is no program {name}: give some of {', '.join(userland.PROGRAMS)}.")
    kernel = which.kernel()
    moments = []
    for name in names or userland.PROGRAMS:
        moments += survey.survey(userland.PROGRAMS[name], kernel, say)
    failed = not all(moment.state.holds for moment in moments)
    holds = judge(len(moments), failed, "no program came to a moment at which it could be read")
    first = moments[0].state
    designs = [finding.design for finding in first.findings]
    inputs = _inputs(list(names or userland.PROGRAMS), designs, first.profile, first.release, None)
    if json:
        wrong = [f"{moment.program}, {moment.what}: {text}" for moment in moments for text in moment.state.problems]
        print_json("kernel userland", inputs, holds, msgspec.to_builtins(moments), wrong)
    else:
        print(survey.markdown(moments) if markdown else survey.text(moments))
    return holds


def _inputs(
    history: str | list[str], designs: list[str], profile: str, release: str, seed: int | None
) -> dict[str, Any]:
    """What the figures depend on."""
    return {"history": history, "designs": designs, "profile": profile, "kernel": release, "seed": seed}


def _save(path: Path, recorded: History | None, events: list[Event], release: str) -> None:
    """Write the history that differs, with the header of the recording, if it is one."""
    from rmaplab.check.histories import header
    from rmaplab.trace.history import History, write_history

    head = header() if recorded is None else recorded.header
    head.kernel = release
    write_history(path, History(head, events))


def explained(found: Disagreement) -> str:
    """A difference on one screen: what either side has, and how one gets there."""
    lines = [
        f"After {len(found.requested)} steps the kernel and the model differ, at",
        f"  {found.event}",
        *str(found.difference).splitlines(),
        f"The history{_options(found.setting)}:",
    ]
    played = found.played
    if len(played) > 30:
        lines.append(f"  ({len(played) - 30} events before these)")
    return "\n".join([*lines, *(f"  {event}" for event in played[-30:])])


def _options(setting: Setting) -> str:
    """How one asks for the same."""
    given = {"--large-folios": setting.large_folios, "--mappings": setting.mappings}
    words = [f"{option} {value}" for option, value in given.items() if value]
    return f", with {' '.join(words)}" if words else ""


def _as_json(found: Disagreement) -> dict[str, Any]:
    return {
        "step": len(found.requested), "event": msgspec.to_builtins(found.event),
        "difference": msgspec.to_builtins(found.difference), "large_folios": found.setting.large_folios,
        "mappings": found.setting.mappings,
        "history": msgspec.to_builtins(found.requested),
    }  # fmt: skip
