# SPDX-License-Identifier: GPL-2.0-or-later
"""Every interleaving of a few tasks: a stateless model checker.

`explore` runs a scenario (see execution.py for what a step is) again and again, from its beginning, until no order
that could matter is left.  `wander` tries random orders of scenarios that are too large for that, `replay` one given
order, and `estimate` gives the number of orders.

The search goes back and forth along one path; a strategy (strategy.py) decides which tasks to try at each of its
states: all, or those left after a reduction.

What a scenario builds is built once, and put back before each execution, if the scenario says what it is
(`Execution.subject`); after a failure another is built (`_Stage`).

Invariant: `_Search.stack[d]` is the state before step d of the current path; the same path gives the same steps again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from mypy_extensions import i64

from rmaplab.sync.errors import Finding
from rmaplab.sync.execution import ACQUIRE, AGE, NEWEST, TRY, Driver, Execution, Step, Task
from rmaplab.sync.path import NONE, Node, preemptions_of
from rmaplab.sync.snapshot import Snapshot
from rmaplab.sync.strategy import All, SourceSets, Strategy, WithinBound

__all__ = [
    "ACQUIRE", "AGE", "TRY", "Execution", "Failure", "Outcome", "Scenario", "Step", "Task", "estimate", "explore",
    "perform", "replay", "wander",
]  # fmt: skip


class Scenario:
    """What is to be tried: `build` makes the objects and adds the tasks to the execution; the function
    that it returns is called after the last step, and raises if what it finds is not allowed.  If `build` raises, that
    is a failure whose path has no steps."""

    def __init__(self, name: str, build: Callable[[Execution], Callable[[], None]]) -> None:
        self.name: Final = name
        self.build: Final = build


class _Stage:
    """Where the executions of a scenario take place, one after the other.  What broke something stays as it is, to be
    explained.

    execution: the last one, also if the scenario raised as it was built
    check:     what the scenario has to say about its end
    """

    def __init__(self, scenario: Scenario, begin: Callable[[], Execution], awaits: bool = False) -> None:
        self.scenario: Final = scenario
        self.begin: Final = begin
        self.awaits: Final = awaits
        self.execution = begin()
        self.places: Final = self.execution.places
        self.check: Callable[[], None] = _nothing
        self._start: Snapshot | None = None
        self._fresh = True

    def set(self) -> None:
        """An execution is about to begin."""
        if self._start is not None:
            self._start.restore()
            self.execution.again()
            return
        if not self._fresh:
            self.execution.stop()
            self.places.again()
            self.execution = self.begin()
            self.execution.places = self.places
        self._fresh = False
        execution = self.execution
        execution.awaits = self.awaits
        self.check = self.scenario.build(execution)
        if execution.subject is not None:
            bodies = [task.body for task in execution.tasks]
            self._start = Snapshot([execution.subject, bodies, self.check], [execution], execution.meet)

    def clear(self, broke: bool) -> None:
        """It is over."""
        self.execution.unwind()
        if broke:
            self._start = None


def _nothing() -> None:
    """There is nothing to say."""


class Failure:
    """An execution that broke something: what, the path that leads there, and every step on it.

    preemptions: how often the path takes the CPU away from a task that could go on, where a search found it
    """

    def __init__(self, error: Exception, path: list[int], execution: Execution, preemptions: int = 0) -> None:
        self.error: Final = error
        self.path: Final = path
        self.preemptions: Final = preemptions
        self.trace: Final = list(execution.trace)
        self.names: Final = [task.name for task in execution.tasks]
        self.subject: Final = execution.subject


class Outcome:
    """What an exploration found.

    executions: interleavings run to their end
    pruned:     executions given up because all that was left had been tried elsewhere
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
    begin: Callable[[], Execution] = Execution,
) -> Outcome:
    """Run `scenario` in every order that can matter (`reduce` False: in every order).

    limit:         give up after so many executions (0: never)
    preemptions:   try only orders that take the CPU away from a task that could go on at most so often
    stop_at_first: stop at the first failure
    begin:         makes an execution, which has the memory model
    """
    outcome = Outcome()
    strategy: Strategy = All(preemptions)
    if reduce:
        strategy = SourceSets() if preemptions < 0 else WithinBound(preemptions)
    search = _Search(strategy)
    stage = _Stage(scenario, begin, reduce)
    while True:
        failure: Exception | None = None
        pruned = False
        try:
            stage.set()
            strategy.begins(len(stage.execution.tasks))
            search.begin(stage.execution)
            stage.execution.start()
            stage.execution.run(search)
            pruned = search.pruned
            if not pruned:
                stage.check()
        except Exception as error:
            failure = error
        execution = stage.execution
        search.end(execution)
        strategy.ended(search.stack, execution)
        outcome.steps += len(execution.trace)
        if pruned:
            outcome.pruned += 1
        else:
            outcome.executions += 1
        outcome.lock_order |= execution.lock_order
        if failure is not None:
            path = search.path(len(execution.trace))
            stack = search.stack[: len(path)]
            taken = preemptions_of(stack, stack[-1].chosen) if stack else 0
            outcome.failures.append(Failure(failure, path, execution, taken))
        stage.clear(failure is not None)
        if (failure is not None and stop_at_first) or (limit and outcome.executions >= limit):
            break
        if not search.next():
            outcome.exhausted = True
            break
    execution.stop()
    return outcome


def perform(
    scenario: Scenario, choose: Callable[[Execution], int], begin: Callable[[], Execution] = Execution
) -> Failure | None:
    """Run `scenario` once.  Before each step `choose` looks at the execution and says which task goes on (and how old
    the value is that it loads: AGE); -1 ends it there.  What `choose` does to the scenario's objects passes by the
    scheduler.  Returns the failure, if it fails.
    """
    execution = begin()
    taken: list[int] = []
    error: Exception | None = None
    try:
        check = scenario.build(execution)
        execution.start()
    except Exception as wrong:
        error = wrong
    try:
        while error is None:
            taking = choose(execution)
            if taking < 0:
                break
            age, number = divmod(taking, AGE)
            if number >= len(execution.tasks) or not execution.enabled(execution.tasks[number]):
                raise ValueError(
                    f"the path does not fit {scenario.name}: after {len(taken)} steps, task {number} cannot go on"
                )
            task = execution.tasks[number]
            if age not in execution.ages(task, []):
                raise ValueError(
                    f"the path does not fit {scenario.name}: after {len(taken)} steps, task {number} cannot load a"
                    f" value that is {age} stores old"
                )
            taken.append(taking)
            error = _error_of(partial(execution.step, task, age))
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


def replay(
    scenario: Scenario, path: Sequence[int], begin: Callable[[], Execution] = Execution
) -> Failure | None:
    """Run exactly the path of a failure (or of anything else).  Returns the failure, if it fails."""
    rest = iter(path)
    return perform(scenario, lambda execution: next(rest, -1), begin)


def wander(
    scenario: Scenario,
    count: int,
    seed: int,
    *,
    changes: int = 3,
    stop_at_first: bool = True,
    begin: Callable[[], Execution] = Execution,
) -> Outcome:
    """Run `scenario` in `count` random orders: every task has a random priority, who has the highest goes on, and
    `changes` times, at random steps, the running one gets the lowest (PCT: Burckhardt et al., ASPLOS 2010; a bug
    that needs d steps in an order is found with a probability of at least 1 / (tasks * steps ** (d - 1)) each time,
    with changes = d - 1).  Every other run goes on with anyone at each step instead.  Nothing is ever exhausted."""
    outcome = Outcome()
    longest = 1
    for number in range(count):
        walk = _Walk(random.Random(f"{seed}/{number}"), changes if number % 2 == 0 else -1, longest)
        failure = perform(scenario, walk.choose, begin)
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
        number = self.dice.choice(able) if self.uniform else self._by_priority(execution, able)
        ages = execution.ages(execution.tasks[number], [])
        return number + AGE * (ages[0] if len(ages) == 1 else self.dice.choice(ages))

    def _by_priority(self, execution: Execution, able: list[int]) -> int:
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
    stage = _Stage(scenario, Execution)
    for number in range(walks):
        dice = random.Random(f"{seed}/{number}")
        weight = 1.0
        broke = False
        try:
            stage.set()
            execution = stage.execution
            execution.start()
            while True:
                able = [task for task in execution.tasks if execution.enabled(task)]
                if not able:
                    break
                weight *= len(able)
                execution.step(able[0] if len(able) == 1 else dice.choice(able))
        except Exception:
            broke = True  # an interleaving that breaks something ends there
        stage.clear(broke)
        total += weight
    stage.execution.stop()
    return total / walks


class _Search(Driver):
    """Depth-first search along one path.

    pruned: the execution was given up
    """

    def __init__(self, strategy: Strategy) -> None:
        self.strategy: Final = strategy
        self.stack: Final[list[Node]] = []
        self.pruned = False
        self._depth: i64 = 0
        self._followed: i64 = 0  # steps of the path that are taken again

    def path(self, length: int) -> list[int]:
        """The first `length` steps of the last run: tasks, and how old the values are that they load (AGE)."""
        return [node.chosen + AGE * node.ages[node.age] for node in self.stack[:length]]

    def begin(self, execution: Execution) -> None:
        """An execution begins."""
        self.pruned = False
        self._depth = 0
        self._followed = max(0, len(self.stack) - 1)
        execution.known = [node.steps for node in self.stack]
        execution.keep(self.stack[-1].mark if self.stack else 0)

    def end(self, execution: Execution) -> None:
        """It is over, maybe by a step that broke something: another order may break something else."""
        if 0 < self._depth <= len(execution.trace):
            self.strategy.took(self.stack, execution, self._depth - 1)

    def choose(self, execution: Execution) -> int:
        """Follow the path, then go on to the end."""
        stack = self.stack
        strategy = self.strategy
        depth: i64 = self._depth
        if depth > self._followed:
            strategy.took(stack, execution, depth - 1)
        tasks = execution.tasks
        if depth == len(stack):
            steps: list[Step | None] = []
            enabled: i64 = 0
            for task in tasks:
                steps.append(task.pending)
                if execution.enabled(task):
                    enabled |= i64(1) << task.number
            if not enabled:
                for task in tasks:
                    if task.idle:
                        self.pruned = True
                        return -1
                waiting = execution.waiting()
                if waiting:
                    raise Finding("deadlock: " + waiting)
                return -1
            node = Node(steps, enabled, strategy.asleep(stack, steps), execution.mark())
            node.choose(stack[-1].chosen if stack else -1)
            stack.append(node)
            if node.chosen < 0:
                self.pruned = True
                return -1
            strategy.reached(stack)
        else:
            node = stack[depth]
            task = tasks[node.chosen]
            before, now = node.steps[node.chosen], task.pending
            if before is None or now is None or not now.is_again(before) or execution.mark() != node.mark:
                raise RuntimeError(
                    f"step {depth + 1}, of {task.name}, is not what it was after the same steps before"
                )
        number: i64 = node.chosen
        if not node.ages:
            node.ages = (
                execution.ages(tasks[number], strategy.clock_of(number))
                if execution.weak
                else NEWEST
            )
        self._depth = depth + 1
        return number + AGE * node.ages[node.age]

    def next(self) -> bool:
        """Go back to the last state where something is left to try, and choose it.  False if there is none."""
        stack = self.stack
        while stack:
            node = stack[-1]
            if node.age + 1 < len(node.ages):
                node.age += 1
                self.strategy.back_to(len(stack) - 1)
                return True
            node.ages = NONE
            node.age = 0
            if node.chosen >= 0:
                node.done |= i64(1) << node.chosen
                self.strategy.left(node)
            self.strategy.back_to(len(stack) - 1)
            number = node.left()
            while number >= 0 and not self.strategy.allows(stack, number):
                node.done |= i64(1) << number
                number = node.left()
            if number >= 0:
                node.chosen = number
                return True
            stack.pop()
        return False
