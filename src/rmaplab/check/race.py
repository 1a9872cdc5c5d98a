# SPDX-License-Identifier: GPL-2.0-or-later
"""`rmaplab race`: scenarios under every interleaving, and the form of a failure.

A failure is a path: which CPU takes each step.  Written as text ("0x5 1x12 0x3": five steps of CPU 0, twelve
of CPU 1, ...) it can be kept, mailed and replayed; shown as a timeline it has a column for each CPU.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from itertools import groupby
from textwrap import wrap
from typing import Final

import msgspec

from rmaplab.check.lock_order import complaints
from rmaplab.check.scenarios import exists, names, scenario
from rmaplab.check.world import World
from rmaplab.errors import CannotRun, in_a_line
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import MM, VMA
from rmaplab.mm.vma_tree import VMATree
from rmaplab.rmap.context import CowContext
from rmaplab.sync.execution import ACQUIRE, POINT, QUEUE, TOUCH, TRY
from rmaplab.sync.interleave import (
    AGE,
    Execution,
    Failure,
    Scenario,
    Step,
    estimate,
    explore,
    perform,
    wander,
)
from rmaplab.sync.locks import RwSemaphore, SpinLock
from rmaplab.sync.seqcount import SequenceCount
from rmaplab.sync.weak import WeakExecution
from rmaplab.verdict import judge

_PART: Final = re.compile(r"(?P<task>\d{1,2})(~(?P<age>\d{1,2}))?x(?P<count>\d{1,6})", re.ASCII)
_NUMBER: Final = re.compile(r"(?<!line )\b(0x[0-9a-f]+|\d+)\b")  # a line is a place in a design's file
_PROBES = 40  # random interleavings that the number of all of them is estimated from


class RaceError(CannotRun):
    """There is no such scenario, or a path does not fit it."""


class TimelineStep(msgspec.Struct, frozen=True):
    """One step: which CPU, and what it does to what."""

    cpu: int
    what: str


class Model:
    """A memory model that executions follow.

    weakened: names of orderings that are taken away (weak memory only)
    used:     orderings that were met so far, and what each is in the kernel
    """

    def __init__(self, name: str, weakened: Iterable[str] = ()) -> None:
        self.name: Final = name
        self.weak: Final = name == "weak"
        self.weakened: Final = frozenset(weakened)
        self.used: Final[dict[str, str]] = {}

    def begin(self) -> Execution:
        if not self.weak:
            return Execution()
        execution = WeakExecution(self.weakened)
        execution.memory.used = self.used
        return execution


SEQUENTIAL: Final = Model("sc")


class Broken(msgspec.Struct, frozen=True):
    """An obligation that was broken: the sentence, the path that leads there, and its steps.

    What broke before the CPUs began, while the scenario was set up, has no path; its steps are events of one CPU.
    """

    error: str
    path: str
    timeline: list[TimelineStep]


class Verdict(msgspec.Struct, frozen=True):
    """The result of one scenario with one design.

    orders:        interleavings that there are without reduction and bound, estimated from a few random ones
    interleavings: executions run to their end
    pruned:        executions given up because what was left had been tried
    exhausted:     nothing is left to try within the bound
    random:        this many random interleavings were tried instead
    preemptions:   the bound: how often a CPU may be taken away; -1: as often as one likes
    memory:        the model: sc, sequential consistency, or weak, loads of old values
    orderings:     those that were met under weak memory, and what each is in the kernel
    cpus:          what runs on each
    lock_order:    pairs of lock classes: who held one took the other
    seconds:       of CPU time
    """

    scenario: str
    design: str
    memory: str
    orderings: dict[str, str]
    cpus: list[str]
    preemptions: int
    orders: float
    interleavings: int
    pruned: int
    steps: int
    exhausted: bool
    random: int
    lock_order: list[tuple[str, str]]
    broken: list[Broken]
    seconds: float

    @property
    def holds(self) -> bool:
        wrong = not (self.exhausted or self.random > 0) or bool(self.broken)
        return judge(self.interleavings, wrong, f"no interleaving of {self.scenario} was tried")


def chosen(patterns: Sequence[str]) -> list[str]:
    """The scenarios whose names contain one of `patterns`; all if there are none.  One that is not among them may be
    put together in full: "user / operation + operation + ..."."""
    found = [name for name in names() if not patterns or any(pattern in name for pattern in patterns)]
    found += [pattern for pattern in patterns if pattern not in found and exists(pattern)]
    if not found:
        raise RaceError(
            f"no scenario's name contains {' or '.join(repr(p) for p in patterns)}; --list prints them all"
        )
    return found


def run(
    name: str,
    design: type[ReverseMap],
    *,
    limit: int = 0,
    preemptions: int = -1,
    reduce: bool = True,
    every_failure: bool = False,
    random: int = 0,
    seed: int = 0,
    memory: Model = SEQUENTIAL,
) -> Verdict:
    """Try the interleavings of one scenario, or with `random` that many random ones."""
    begun = time.process_time()
    what = scenario(name, design)
    if random:
        preemptions = -1
        outcome = wander(what, random, seed, stop_at_first=not every_failure, begin=memory.begin)
    else:
        outcome = explore(
            what,
            reduce=reduce,
            limit=limit,
            preemptions=preemptions,
            stop_at_first=not every_failure,
            begin=memory.begin,
        )
    for failure in outcome.failures:
        name_ordering(failure, what, memory)
    return Verdict(
        scenario=name,
        design=design.name,
        memory=memory.name,
        orderings=dict(sorted(memory.used.items())),
        cpus=cpus(name),
        preemptions=preemptions,
        orders=estimate(what, _PROBES, seed),
        interleavings=outcome.executions,
        pruned=outcome.pruned,
        steps=outcome.steps,
        exhausted=outcome.exhausted,
        random=random,
        lock_order=sorted(outcome.lock_order),
        broken=[explain(failure) for failure in outcome.failures],
        seconds=time.process_time() - begun,
    )


def lock_complaints(verdicts: Sequence[Verdict]) -> list[str]:
    """Violations of the lock order, over all scenarios of each design, a sentence each."""
    said: list[str] = []
    for design in dict.fromkeys(v.design for v in verdicts):
        pairs = {pair for v in verdicts if v.design == design for pair in v.lock_order}
        said += [f"{design}: {complaint}" for complaint in complaints(sorted(pairs))]
    return said


def kinds(verdicts: Iterable[Verdict]) -> list[list[Verdict]]:
    """Those that are broken, by what breaks: sentences that differ in numbers and in what runs on the CPUs alone are
    equal.  Of each kind the one with the fewest steps comes first."""
    found: dict[str, list[Verdict]] = {}
    for v in verdicts:
        if v.broken:
            said = v.broken[0].error
            for task in sorted(v.cpus, key=len, reverse=True):
                said = re.sub(rf"\b{re.escape(task)}\b", "*", said)
            found.setdefault(_NUMBER.sub("*", said), []).append(v)
    for kind in found.values():
        shortest = min(range(len(kind)), key=lambda i: len(kind[i].broken[0].timeline))
        kind.insert(0, kind.pop(shortest))
    return [*found.values()]


def cpus(name: str) -> list[str]:
    user, _, rest = name.partition(" / ")
    return [user, *rest.split(" + ")]


def write_path(path: Sequence[int]) -> str:
    """[0, 0, 1] as "0x2 1x1"; a step that loads a value two stores old is "1~2x1"."""
    counted = [(*divmod(taken, AGE), len(list(steps))) for taken, steps in groupby(path)]
    return " ".join(f"{task}~{age}x{count}" if age else f"{task}x{count}" for age, task, count in counted)


def read_path(text: str) -> list[int]:
    """The path that `write_path` wrote as `text`.

    :raises RaceError: it wrote no such text
    """
    path: list[int] = []
    for word in text.split():
        part = _PART.fullmatch(word)
        if part is None or not 0 < int(part["count"]) <= 100_000:
            raise RaceError(f"{word!r} is no part of a path: one looks like 0x5 1x12, CPU times steps")
        path += [int(part["task"]) + AGE * int(part["age"] or 0)] * int(part["count"])
    return path


def run_path(name: str, design: type[ReverseMap], path: str, memory: Model = SEQUENTIAL) -> Broken | None:
    """Replay a path exactly.  Returns what it breaks, None if it breaks nothing.

    :raises RaceError: the path does not fit the scenario
    :raises NothingLookedAt: it breaks nothing, and ends before the tasks do
    """
    what = scenario(name, design)
    steps = iter(read_path(path))
    left: list[str] = []  # tasks that have not come to their end when the path has

    def choose(execution: Execution) -> int:
        number = next(steps, -1)
        if number < 0:
            left.extend(task.name for task in execution.tasks if not task.done)
        return number

    try:
        failure = perform(what, choose, memory.begin)
    except ValueError as error:
        raise RaceError(str(error)) from error
    judge(
        0 if left else 1,
        failure is not None,
        f"the path ends before {' and '.join(left)} came to an end, so the obligations were not looked at",
    )
    if failure is None:
        return None
    name_ordering(failure, what, memory)
    return explain(failure)


def name_ordering(failure: Failure, scenario: Scenario, memory: Model) -> None:
    """Say at the step that shows it which ordering would have forbidden what the step found: the first that is not
    possible when the orderings that were taken away are in place, or the last, which then does not break anything."""
    if not memory.weakened or not failure.path:
        return
    taken = 0

    def choose(execution: Execution) -> int:
        nonlocal taken
        if taken == len(failure.path):
            return -1
        age, number = divmod(failure.path[taken], AGE)
        task = execution.tasks[number]
        if not execution.enabled(task) or age not in execution.ages(task, []):
            return -1
        taken += 1
        return failure.path[taken - 1]

    perform(scenario, choose, WeakExecution)
    step = failure.trace[min(taken, len(failure.path) - 1)]
    orderings = " and ".join(f"{name}, {memory.used.get(name, 'an ordering')}" for name in sorted(memory.weakened))
    step.note += f" (forbidden by {orderings})"


def explain(failure: Failure) -> Broken:
    """Describe the failure."""
    if not failure.path and isinstance(failure.subject, World):
        events = [TimelineStep(0, str(event)) for event in failure.subject.events]
        return Broken(f"set-up: {in_a_line(failure.error)}", "", events)
    label = Labels(failure.subject)
    timeline = [TimelineStep(step.task, label.step(step)) for step in failure.trace]
    return Broken(in_a_line(failure.error), write_path(failure.path), timeline)


_COUNTERS: Final = frozenset(["mm_users", "sequence count"])  # announced without a verb
_WIDTH: Final = 100  # of a timeline, in columns


class Labels:
    """Names for the objects of a scenario.

    names: by id(), of objects that are kept from going away
    """

    def __init__(self, world: object) -> None:
        self.names: Final[dict[int, str]] = {}
        self._keep: Final[list[object]] = []
        self.learn(world)

    def learn(self, world: object) -> None:
        """Name the objects that exist now; objects that are gone keep their names."""
        if isinstance(world, World):
            for pid, process in world.machine.processes.items():
                self.add_mm(process.mm, f"process {pid}")
            for pfn, lock in world.machine.folio_locks.items():
                self.add(lock, f"lock of folio {pfn}")

    def add(self, subject: object, name: str) -> None:
        self.names[id(subject)] = name
        self._keep.append(subject)

    def add_mm(self, mm: MM, owner: str) -> None:
        self.add(mm.tree, f"VMA tree of {owner}")
        self.add(mm.mmap_lock, f"mmap_lock of {owner}")
        self.add(mm.users_word, f"mm_users of {owner}")
        for leaf in mm.page_table.leaves.values():
            self.add(leaf.lock, f"page-table lock of {owner}")
        for vma in mm.tree:
            self.add(vma.lock, f"lock of VMA {vma.start:#x} of {owner}")
        for state in mm.rmap:
            if isinstance(state, CowContext):
                for part in (state, state.remaps):
                    self.add(part, f"context of {owner}")
                self.add(state.lock, f"lock of the context of {owner}")
                self.add(state.moves, f"sequence count of the context of {owner}")

    def step(self, step: Step) -> str:
        """Describe the step: its operation and its object, and whether it found an old value."""
        return f"{self._act(step)}{step.note}"

    def _act(self, step: Step) -> str:
        name = self.name(step.subject)
        words = step.words()
        if isinstance(step.subject, RwSemaphore | SpinLock) and step.kind != POINT:
            verb = words.removesuffix(step.what)
            if isinstance(step.subject, SpinLock) or step.kind not in (ACQUIRE, QUEUE, TRY):
                return f"{verb}{name}"
            return f"{verb}{name} for {'writing' if step.write or step.kind == QUEUE else 'reading'}"
        thing, comma, how = words.partition(", ")
        if name.startswith(thing) or thing in _COUNTERS:
            return f"{'changes' if step.write else 'reads'} {name or thing}{comma}{how}"
        if step.mode == TOUCH:
            words = f"uses {words}"
        return f"{words}: {name}" if name and name not in words else words

    def name(self, subject: object) -> str:
        known = self.names.get(id(subject))
        if known is not None:
            return known
        if isinstance(subject, int):
            return f"page {subject}"
        if isinstance(subject, VMA):
            return f"VMA {subject.start:#x}-{subject.end:#x} of mm {subject.mm.id}"
        if isinstance(subject, VMATree):
            return "VMA tree of an address space that is gone"
        if isinstance(subject, CowContext):
            return f"context {subject.number}"
        if isinstance(subject, SequenceCount):
            return "sequence count of a context"
        if isinstance(subject, RwSemaphore | SpinLock):
            return subject.lock_class.name
        return ""


def timeline(broken: Broken, heads: Sequence[str]) -> list[str]:
    """The lines of a timeline, a column for each CPU."""
    room = max(24, (_WIDTH - 5) // len(heads) - 2)
    lines = [
        "     " + "  ".join(f"{f'CPU {i}: {name}':{room}.{room}}" for i, name in enumerate(heads)).rstrip()
    ]
    last = -1
    for number, step in enumerate(broken.timeline, 1):
        if last >= 0 and step.cpu != last:
            lines.append("")
        last = step.cpu
        parts = wrap(step.what, room, subsequent_indent="  ", break_on_hyphens=False)
        for i, part in enumerate(parts):
            lines.append((f"{number:4} " if i == 0 else "     ") + " " * ((room + 2) * step.cpu) + part)
    lines.append("")
    lines.append(f"     {broken.error}")
    return lines
