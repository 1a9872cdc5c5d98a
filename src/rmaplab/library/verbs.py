# SPDX-License-Identifier: GPL-2.0-or-later
"""What the commands do, as functions: they return objects, where a command prints.

A *source* is where a history comes from: a History, a file that `record` wrote, a workload, or a machine on which
something was typed.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from rmaplab import workloads
from rmaplab.errors import CannotRun
from rmaplab.library.arguments import explained
from rmaplab.library.machine import DEFAULT_DESIGNS, Checked, Design, Machine, designs_of, profile_of
from rmaplab.measure import comparison
from rmaplab.measure.comparison import FOLIOS, Plan, priced
from rmaplab.measure.cost import load_costs
from rmaplab.measure.result import Comparison
from rmaplab.mm.profile import Profile, profile_for
from rmaplab.trace import record as recorder
from rmaplab.trace.history import History
from rmaplab.trace.importing import open_history
from rmaplab.workloads import Workload

Source = History | Workload | Machine | str | os.PathLike[str]


@explained
def history(source: Source) -> History:
    """The history of a source.

    :param source: a file that `record` wrote, a text of `perf script` or strace, a workload, a machine, or a History
    :raises CannotRun: the file is missing, or holds no history
    """
    if isinstance(source, History):
        return source
    if isinstance(source, Workload | Machine):
        return source.history()
    if not Path(source).is_file():
        raise CannotRun(f"there is no file {os.fspath(source)}: give a recording, or a workload as rmaplab.workload()")
    return open_history(source)


@explained
def workload(name: str, **parameters: object) -> Workload:
    """A built-in history by its name, with parameters; those not given have defaults.

    >>> workload("prefork", workers=8)
    Prefork(seed=1, workers=8, requests=4000, lifetime=100, vmas=50, pages=64, scratch=8)

    :raises CannotRun: no such workload, no such parameter, or a value out of range; the message says what there is
    """
    return workloads.workload(name, parameters)


@explained
def record(
    command: str | Sequence[str],
    output: str | os.PathLike[str],
    *,
    names: bool = False,
    check: bool = False,
    tool: str = "auto",
) -> History:
    """Run a command and record the memory history of it and all its children.

    :param command: its words, or a line that is split as a shell would, without its other powers
    :param output: the file to write (Parquet)
    :param names: keep names of files and processes, and the command line
    :param check: take /proc/PID/maps of each process at its end, too
    :param tool: "perf", "strace", or "auto": perf, and strace where perf is not permitted
    :raises CannotRun: no such command, nothing that may record it, or the file cannot be written
    """
    words = shlex.split(command) if isinstance(command, str) else command
    return recorder.record(words, output, recorder=tool, check=check, names=names).history


@explained
def compare(
    source: Source,
    designs: Design | Sequence[Design] = DEFAULT_DESIGNS,
    *,
    profile: str | Profile = "",
    costs: str = "default",
    check: bool = True,
    every: int = 0,
    folios: int = FOLIOS,
    large_folios: int = 0,
) -> Comparison:
    """Compare designs on one history: what `rmaplab compare` does.

    >>> found = compare(workload("forkchain", generations=3))
    >>> found.holds
    True
    >>> found.table()["design"]
    ['anon_vma', 'cow_context']

    :param source: where the history comes from
    :param designs: by name, file or class; VMAs merge by the rule of the first
    :param profile: the kernel whose rules hold; not given: the recording's
    :param costs: the cost profile by which times are derived: "default", a shipped one, or a file of `rmaplab
        calibrate`; "" derives none
    :param check: walk folios in every design and hold them against the page tables
    :param every: check after every so many events; 0: at 20 moments and at the end
    :param folios: folios to walk at each check; 0: all
    :param large_folios: highest order of folios that faults may allocate
    :raises CannotRun: there is no such source, design, profile or cost profile, or the history is impossible
    """
    played = history(source)
    rules = profile_of(profile) if profile else profile_for(played.header.kernel)[0]
    plan = Plan(designs_of(designs), rules, 0, every, folios, check, large_folios=large_folios)
    prices = load_costs(costs) if costs else None
    found = comparison.compare(played, plan, lambda what, done, total: None)
    return found if prices is None else priced(found, prices)


@explained
def replay(
    source: Source,
    designs: Design | Sequence[Design] = DEFAULT_DESIGNS,
    *,
    events: int | None = None,
    profile: str | Profile = "",
    large_folios: int = 0,
) -> Machine:
    """A machine on which a history has happened, to look at and to go on from.

    >>> replay(workload("forkchain", generations=3), "anon_vma").processes
    [<process 3>]

    :param events: so many of the first; not given: all
    :raises CannotRun: as `compare`
    """
    played = history(source)
    rules = profile_of(profile) if profile else profile_for(played.header.kernel)[0]
    machine = Machine(rules, designs, large_folios=large_folios)
    machine.play(played, events)
    return machine


@explained
def check(machine: Machine) -> Checked:
    """Walk every mapped folio in every design, and hold the answers against the page tables.

    At run time `rmaplab.check` is the package of that name, which can be called.

    :returns: what was found; it is true where all holds
    """
    return machine.check()
