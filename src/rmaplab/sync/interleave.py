# SPDX-License-Identifier: GPL-2.0-or-later
"""Every interleaving of a few tasks: a stateless model checker.

`explore` runs a scenario (see execution.py for what a step is) again and again, from its beginning, until no order
that could matter is left.  `wander` tries random orders of what is too large for that, `replay` one given order,
and `estimate` says how many there are.

Reduction: two steps are *dependent* if they are on the same object in modes that do not commute; two executions
that differ in the order of independent steps only are the same.  Source sets with sleep sets (Abdulla, Aronis,
Jonsson, Sagonas: source-DPOR, POPL 2014; after Flanagan and Godefroid, POPL 2005): when a step turns out to race
with an earlier one (dependent, and not ordered by anything between them), some task that can begin the other
order is tried where the earlier one was taken, unless one that can is tried there anyway.

With a bound on preemptions, orders that this leaves out may be the only ones within the bound.  There every pending
step is compared, its task is tried at the step that it races with and at the beginning of that block of steps, too,
and sleep sets are not used (Coons, Musuvathi and McKinley, OOPSLA 2013).

Invariants
- `_Search.stack[d]` is the state before step d of the current path; the steps of the path and what happened
  before what (vector clocks) are kept with it, so that running the path again costs nothing but running it.
- A step whose reversal with a racing one is impossible, because it had to wait for that one, is no race with it: an
  acquisition and the release before it, a wait and what ended it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from rmaplab.sync.errors import Finding
from rmaplab.sync.execution import (
    ACQUIRE,
    DEFER,
    DOWNGRADE,
    POISON,
    READ,
    RELEASE,
    TOUCH,
    TRY,
    WAIT,
    WRITE,
    Execution,
    Step,
    Task,
)

__all__ = [
    "ACQUIRE", "TRY", "Execution", "Failure", "Outcome", "Scenario", "Step", "Task", "estimate", "explore", "perform",
    "replay", "wander",
]  # fmt: skip


class Scenario:
    """What is to be tried: `build` makes the objects and adds the tasks to the execution; the function
    that it returns is called after the last step, and raises if what it finds is not allowed."""

    def __init__(self, name: str, build: Callable[[Execution], Callable[[], None]]) -> None:
        self.name: Final = name
        self.build: Final = build


class Failure:
    """An execution that broke something: what, the path that leads there, and every step on it."""

    def __init__(self, error: Exception, path: list[int], execution: Execution) -> None:
        self.error: Final = error
        self.path: Final = path
        self.trace: Final = list(execution.trace)
        self.names: Final = [task.name for task in execution.tasks]
        self.subject: Final = execution.subject


class Outcome:
    """What an exploration found.

    executions: interleavings run to their end
    pruned:     executions given up because all that was left had been tried elsewhere, or for the bound
    steps:      steps taken in all
    exhausted:  nothing is left to try (within `preemptions`, if that was given)
    """

    def __init__(self) -> None:
        self.executions = 0
        self.pruned = 0
        self.steps = 0
        self.exhausted = False
        self.failures: list[Failure] = []
        self.lock_order: set[tuple[str, str]] = set()


def explore(
    scenario: Scenario,
    *,
    reduce: bool = True,
    limit: int = 0,
    preemptions: int = -1,
    stop_at_first: bool = True,
) -> Outcome:
    """Run `scenario` in every order that can matter (`reduce` False: in every order).

    limit:         give up after so many executions (0: never)
    preemptions:   try only orders that take the CPU away from a task that could go on at most so often
    stop_at_first: stop at the first failure
    """
    outcome = Outcome()
    search = _Search(reduce, preemptions)
    while True:
        execution = Execution()
        failure: Exception | None = None
        pruned = False
        check = scenario.build(execution)
        search.begin(len(execution.tasks))
        try:
            execution.start()
            pruned = search.run(execution)
            if not pruned:
                check()
        except Exception as error:
            failure = error
        search.look_ahead(execution)
        outcome.steps += len(execution.trace)
        if pruned:
            outcome.pruned += 1
        else:
            outcome.executions += 1
        outcome.lock_order |= execution.lock_order
        if failure is not None:
            outcome.failures.append(Failure(failure, search.path(len(execution.trace)), execution))
        execution.stop()
        if failure is not None and stop_at_first:
            return outcome
        if limit and outcome.executions >= limit:
            return outcome
        if not search.next():
            outcome.exhausted = True
            return outcome


def perform(scenario: Scenario, choose: Callable[[Execution], int]) -> Failure | None:
    """Run `scenario` once.  Before each step `choose` looks at the execution and says which task goes on; -1 ends
    it there.  What `choose` does to the scenario's objects passes by the scheduler.  Returns the failure, if it fails.
    """
    execution = Execution()
    check = scenario.build(execution)
    taken: list[int] = []
    error = _error_of(execution.start)
    try:
        while error is None:
            number = choose(execution)
            if number < 0:
                break
            if number >= len(execution.tasks) or not execution.enabled(execution.tasks[number]):
                raise ValueError(
                    f"the path does not fit {scenario.name}: after {len(taken)} steps, task {number} cannot go on"
                )
            taken.append(number)
            error = _error_of(partial(execution.step, execution.tasks[number]))
        if error is None:
            error = _error_of(partial(_come_to_rest, execution, check))
        return None if error is None else Failure(error, taken, execution)
    finally:
        execution.stop()


def _come_to_rest(execution: Execution, check: Callable[[], None]) -> None:
    """After the last step of a path: it is over, nobody can go on, or there is more to come."""
    waiting = [task for task in execution.tasks if not task.done]
    if not waiting:
        check()
    elif not any(execution.enabled(task) for task in waiting):
        raise Finding("deadlock: " + execution.waiting())


def _error_of(act: Callable[[], None]) -> Exception | None:
    try:
        act()
    except Exception as error:
        return error
    return None


def replay(scenario: Scenario, path: Sequence[int]) -> Failure | None:
    """Run exactly the path of a failure (or of anything else).  Returns the failure, if it fails."""
    rest = iter(path)
    return perform(scenario, lambda execution: next(rest, -1))


def wander(
    scenario: Scenario, count: int, seed: int, *, changes: int = 3, stop_at_first: bool = True
) -> Outcome:
    """Run `scenario` in `count` random orders: every task has a random priority, who has the highest goes on, and
    `changes` times, at random steps, the running one gets the lowest (PCT: Burckhardt et al., ASPLOS 2010; a bug
    that needs d steps in an order is found with a probability of at least 1 / (tasks * steps ** (d - 1)) each time,
    with changes = d - 1).  Every other run goes on with anyone at each step instead.  Nothing is ever exhausted."""
    outcome = Outcome()
    longest = 1
    for number in range(count):
        walk = _Walk(random.Random(f"{seed}/{number}"), changes if number % 2 == 0 else -1, longest)
        failure = perform(scenario, walk.choose)
        longest = max(longest, walk.steps)
        outcome.executions += 1
        outcome.steps += walk.steps
        outcome.lock_order |= walk.lock_order
        if failure is not None:
            outcome.failures.append(failure)
            if stop_at_first:
                break
    return outcome


class _Walk:
    """One random order; `changes` -1: anyone at each step."""

    def __init__(self, dice: random.Random, changes: int, longest: int) -> None:
        self.dice: Final = dice
        self.turns: Final = [dice.randrange(longest) for _ in range(changes)]
        self.uniform: Final = changes < 0
        self.priorities: Final[list[float]] = []
        self.steps = 0
        self.lock_order: set[tuple[str, str]] = set()

    def choose(self, execution: Execution) -> int:
        self.lock_order = execution.lock_order
        able = [task.number for task in execution.tasks if execution.enabled(task)]
        if not able:
            return -1
        self.steps += 1
        if self.uniform:
            return self.dice.choice(able)
        while len(self.priorities) < len(execution.tasks):
            self.priorities.append(1.0 + self.dice.random())
        for _ in range(self.turns.count(self.steps - 1)):
            self.priorities[self._first(able)] = -float(self.steps) - self.dice.random()
        return self._first(able)

    def _first(self, able: list[int]) -> int:
        best = able[0]
        for number in able:
            if self.priorities[number] > self.priorities[best]:
                best = number
        return best


def estimate(scenario: Scenario, walks: int, seed: int) -> float:
    """How many interleavings there are without any reduction or bound: the mean, over random runs, of the product of
    the numbers of tasks that could go on at each step (Knuth, Math. Comp. 29, 1975).  Unbiased, and rough."""
    total = 0.0
    for number in range(walks):
        dice = random.Random(f"{seed}/{number}")
        execution = Execution()
        scenario.build(execution)
        weight = 1.0
        try:
            execution.start()
            while True:
                able = [task for task in execution.tasks if execution.enabled(task)]
                if not able:
                    break
                weight *= len(able)
                execution.step(able[0] if len(able) == 1 else dice.choice(able))
        except Exception:
            pass  # an interleaving that breaks something ends there
        execution.stop()
        total += weight
    return total / walks


_NONE: Final[list[int]] = []


class _Node:
    """A state on the current path: who could go on, who has to be tried, who need not be.

    sleep: steps with which nothing is left to try from here
    """

    def __init__(self, steps: list[Step | None], enabled: list[bool], sleep: list[Step]) -> None:
        self.steps: Final = steps
        self.enabled: Final = enabled
        self.sleep: Final = sleep
        self.backtrack: Final[list[int]] = []
        self.done: Final[list[int]] = []
        self.chosen = -1

    def try_too(self, number: int) -> None:
        """Have `number` tried here; if it cannot go on here, whoever can."""
        if self.enabled[number]:
            if number not in self.backtrack:
                self.backtrack.append(number)
            return
        for other, able in enumerate(self.enabled):
            if able and other not in self.backtrack:
                self.backtrack.append(other)

    def is_asleep(self, number: int) -> bool:
        for step in self.sleep:
            if step.task == number:
                return True
        return False


class _Search:
    """The path that was taken last, with what has to be tried beside it."""

    def __init__(self, reduce: bool, preemptions: int) -> None:
        self.reduce: Final = reduce
        self.preemptions: Final = preemptions
        self.stack: Final[list[_Node]] = []
        # By depth: the steps of the path (a step that queued is one of kind QUEUE), and for each the last step of
        # every task that happened before it or is it, plus one.
        self.steps: Final[list[Step]] = []
        self.clocks: Final[list[list[int]]] = []
        self.until: Final[
            list[int]
        ] = []  # of a spin lock's acquisition: depth of its owner's last step before the end
        self.ends: Final[list[tuple[int, int]]] = []  # (depth, acquisition whose `until` was set there)
        self.by_key: Final[dict[int, list[int]]] = {}  # depths of the steps on an object, ascending
        self.poisoned: Final[dict[int, int]] = {}  # how many of those free it
        self.by_task: list[list[int]] = []  # and of those of a task
        self.before_all: list[int] = []  # the clock of a task that has taken no step

    def path(self, length: int) -> list[int]:
        """The tasks of the first `length` steps of the last run."""
        return [node.chosen for node in self.stack[:length]]

    # Running

    def begin(self, number: int) -> None:
        """So many tasks are going to run."""
        if not self.by_task:
            self.by_task = [[] for _ in range(number)]
            self.before_all = [0] * number

    def run(self, execution: Execution) -> bool:
        """Follow the path, then go on to the end; True if the execution was given up."""
        stack = self.stack
        bounded = self.preemptions >= 0
        depth = 0
        last = -1
        switches = 0
        while True:
            tasks = execution.tasks
            new = depth == len(stack)
            if new:
                enabled = [execution.enabled(task) for task in tasks]
                if True not in enabled:
                    waiting = execution.waiting()
                    if waiting:
                        raise Finding("deadlock: " + waiting)
                    return False
                node = self._new_node(tasks, enabled, last)
                stack.append(node)
                if node.chosen < 0:
                    return True
                if bounded and self.reduce:
                    self._look_ahead_within_bound(node.steps)
            else:
                node = stack[depth]
            number = node.chosen
            if bounded and last >= 0 and number != last and node.enabled[last]:
                switches += 1
                if switches > self.preemptions:
                    del stack[depth + 1 :]
                    return True
            try:
                execution.step(tasks[number])
            finally:  # also of a step that breaks something: another order may break something else
                if self.reduce and depth == len(self.steps) and depth < len(execution.trace):
                    self._take(execution, depth)
            last = number
            depth += 1

    def _new_node(self, tasks: list[Task], enabled: list[bool], last: int) -> _Node:
        asleep: list[Step] = []
        if self.stack and self.reduce and self.preemptions < 0:
            above = self.stack[-1]
            taken = self.steps[-1]
            asleep = [s for s in above.sleep if s.task != taken.task and not s.depends_on(taken)]
        node = _Node([task.pending for task in tasks], enabled, asleep)
        if 0 <= last < len(enabled) and enabled[last] and not node.is_asleep(last):
            node.chosen = last
        else:
            for number, able in enumerate(enabled):
                if able and not node.is_asleep(number):
                    node.chosen = number
                    break
        if self.reduce:
            if node.chosen >= 0:
                node.backtrack.append(node.chosen)
        else:
            node.backtrack.extend([n for n, able in enumerate(enabled) if able])
        return node

    def next(self) -> bool:
        """Go back to the last state where something is left to try, and choose it.  False if there is none."""
        stack = self.stack
        sleeping = self.reduce and self.preemptions < 0
        while stack:
            node = stack[-1]
            if node.chosen >= 0:
                node.done.append(node.chosen)
                step = node.steps[node.chosen]
                if step is not None and sleeping:
                    node.sleep.append(step)
            for number in node.backtrack:
                if number not in node.done and not node.is_asleep(number):
                    node.chosen = number
                    self._forget(len(stack) - 1)
                    return True
            stack.pop()
        return False

    def _forget(self, depth: int) -> None:
        """The steps from `depth` on are to be taken anew."""
        while len(self.steps) > depth:
            step = self.steps.pop()
            self.clocks.pop()
            self.until.pop()
            self.by_key[step.key].pop()
            if step.also >= 0:
                self.by_key[step.also].pop()
            if step.mode == POISON or step.mode == DEFER:
                self.poisoned[step.key] -= 1
            self.by_task[step.task].pop()
        while self.ends and self.ends[-1][0] >= depth:
            at = self.ends.pop()[1]
            if at < depth:
                self.until[at] = -1

    # What happened before what

    def _take(self, execution: Execution, depth: int) -> None:
        """The step of `depth` was taken: find what it races with, and note what happened before it."""
        step = execution.trace[depth]
        number = step.task
        clock = self._clock_of(number)
        if self.preemptions < 0:
            for before in self._races(step, clock):
                self._reverse(before, step, clock, depth)
        happened = clock
        for key in self._keys_of(step):
            for before in reversed(self.by_key.get(key, _NONE)):
                other = self.steps[before]
                if step.clashes_on(key, other):
                    if happened[other.task] <= before:
                        end = self.until[before]
                        happened = _join(happened, self.clocks[end if end >= 0 else before])
                    if self._covers(other, step, key):
                        break
        happened = list(happened)
        happened[number] = depth + 1
        self.by_key.setdefault(step.key, []).append(depth)
        if step.also >= 0:
            self.by_key.setdefault(step.also, []).append(depth)
        if step.mode == POISON or step.mode == DEFER:
            self.poisoned[step.key] = self.poisoned.get(step.key, 0) + 1
        self.by_task[number].append(depth)
        self.steps.append(step)
        self.clocks.append(happened)
        self.until.append(-1)
        for key in execution.released:
            for before in reversed(self.by_key[key]):
                kind = self.steps[before].kind
                if kind == ACQUIRE or kind == TRY:
                    self.until[before] = depth
                    self.ends.append((depth, before))
                    break

    def _clock_of(self, number: int) -> list[int]:
        """What happened before the next step of task `number`, its object left aside."""
        own = self.by_task[number]
        return self.clocks[own[-1]] if own else self.before_all

    def _keys_of(self, step: Step) -> list[int]:
        """The objects on which earlier steps may be in its way."""
        also = step.also
        if also < 0 or (step.also_mode == TOUCH and not self.poisoned.get(also)):
            return [step.key]
        return [step.key, also]

    def _covers(self, other: Step, step: Step, key: int) -> bool:
        """Is whatever may be in the way of `step` before `other`, which is, before that as well?"""
        return (
            other.mode_on(key) == WRITE
            and step.mode_on(key) != POISON
            and step.mode_on(key) != DEFER
            and not self.poisoned.get(key)
        )

    def _races(self, step: Step, clock: list[int]) -> list[int]:
        """Depths of the steps that `step` races with, the latest first."""
        found: list[int] = []
        seen = clock
        own = self.by_task[step.task]
        newest = own[-1] if own else -1
        for key in self._keys_of(step):
            for before in reversed(self.by_key.get(key, _NONE)):
                other = self.steps[before]
                if other.task == step.task or not step.clashes_on(key, other):
                    continue
                if seen[other.task] <= before:
                    if self._had_to_wait(step, other, before, newest):
                        continue
                    found.append(before)
                    seen = _join(seen, self.clocks[before])
                if self._covers(other, step, key):
                    break
        return found

    def _had_to_wait(self, step: Step, other: Step, before: int, newest: int) -> bool:
        """Could `step` not have come before `other`, which was taken at depth `before`?"""
        kind = step.kind
        if kind == ACQUIRE:
            if other.kind == RELEASE:
                return step.mode == READ or other.mode == WRITE
            return other.kind == DOWNGRADE
        if kind == WAIT:
            if newest >= before:
                return False
            return not self.stack[before].enabled[step.task]
        return False

    # What else has to be tried

    def _reverse(self, before: int, step: Step, clock: list[int], depth: int) -> None:
        """Have an order tried in which `step`, about to be or just taken at `depth`, comes before that of depth
        `before`: the steps between that did not happen after that one, then `step`."""
        node = self.stack[before]
        racing = self.steps[before].task
        firsts: list[int] = [-1] * len(node.enabled)
        for at in range(before + 1, depth):
            if self.clocks[at][racing] <= before:
                task = self.steps[at].task
                if firsts[task] < 0:
                    firsts[task] = at
        beginners: list[int] = []
        for task, first in enumerate(firsts):
            if first >= 0 and self._begins(self.clocks[first], firsts, task):
                beginners.append(task)
        mine = False
        if firsts[step.task] < 0:
            mine = self._begins(clock, firsts, step.task)
            if mine:
                for at in range(before + 1, depth):
                    if step.depends_on(self.steps[at]) and self.clocks[at][racing] <= before:
                        mine = False
                        break
            if mine:
                beginners.append(step.task)
        for task in beginners:
            if task in node.backtrack:
                return
        choice = -1
        for task in beginners:
            if node.enabled[task] and (choice < 0 or task == step.task):
                choice = task
        node.try_too(choice if choice >= 0 else step.task)

    def _begins(self, clock: list[int], firsts: list[int], task: int) -> bool:
        """Does none of the first steps of other tasks come before what has this clock?"""
        for other, first in enumerate(firsts):
            if first >= 0 and other != task and clock[other] > first:
                return False
        return True

    def look_ahead(self, execution: Execution) -> None:
        """The execution is over: what could have come next may race with what did come."""
        if not self.reduce:
            return
        if self.preemptions >= 0:
            self._look_ahead_within_bound([task.pending for task in execution.tasks])
            return
        depth = len(self.steps)
        broke = self.steps[-1] if self.steps else None  # if a step was not even allowed, it is both taken and pending
        for task in execution.tasks:
            step = task.pending
            if step is not None and not task.done and step is not broke:
                clock = self._clock_of(task.number)
                for before in self._races(step, clock):
                    self._reverse(before, step, clock, depth)

    def _look_ahead_within_bound(self, steps: list[Step | None]) -> None:
        for number, step in enumerate(steps):
            if step is None:
                continue
            for before in self._races(step, self._clock_of(number)):
                node = self.stack[before]
                node.try_too(number)
                start = before
                while start > 0 and self.stack[start - 1].chosen == node.chosen:
                    start -= 1
                self.stack[start].try_too(number)


def _join(one: list[int], other: list[int]) -> list[int]:
    joined = list(one)
    for i in range(len(other)):
        if other[i] > joined[i]:
            joined[i] = other[i]
    return joined
