# SPDX-License-Identifier: GPL-2.0-or-later
"""Every interleaving of a few tasks: a stateless model checker.

Tasks are ordinary functions that take locks, enter RCU sections and announce their accesses to shared state
through the `Scheduler` that they were given.  Each of these operations is a *step*: the task announces it and
stops; `Execution` decides who goes on, performs the announced operation, and lets that task run to its next
one.  `explore` runs the scenario again and again, from its beginning, until no order that could matter is left.

Memory model: sequential consistency, plus RCU.  Steps are atomic and happen in one order that all tasks see.

Reduction: dynamic partial-order reduction (Flanagan and Godefroid, POPL 2005) with sleep sets (Godefroid
1996).  Two steps are dependent if they name the same object and one of them writes, or acquire the same lock
and one of them exclusively.  Releasing a lock is not a step of its own: it can never be too early.
With a bound on preemptions, orders that reduction alone would leave out may be the only ones within the
bound: a task is then tried at the beginning of the block of steps that it races with, too, and sleep sets are
not used (Coons, Musuvathi and McKinley, OOPSLA 2013).

RCU: `rcu_call` hands an object to a grace period.  Its end is a task of its own, which may run at any time after
every reader that was inside when it began has left.

Invariants
- A step's object is known before the step is taken, so the reduction is exact: code that touches shared
  state without announcing it is outside of what is checked.
- The same path (the numbers of the tasks chosen) always gives the same execution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import greenlet

from rmaplab.sync.errors import Finding
from rmaplab.sync.locks import Scheduler

POINT: Final = 0
ACQUIRE: Final = 1
ENTER: Final = 2
LEAVE: Final = 3
CALL: Final = 4
FREE: Final = 5
WAIT: Final = 6

_KINDS: Final = ("", "takes", "enters", "leaves", "defers the free of", "frees", "waits for")


class Step:
    """One operation on one object by one task."""

    def __init__(self, task: int, kind: int, what: str, subject: object, key: int, write: bool) -> None:
        self.task: Final = task
        self.kind: Final = kind
        self.what: Final = what
        self.subject: Final = subject
        self.key: Final = key  # number of the object within the execution
        self.write: Final = write

    def depends_on(self, other: Step) -> bool:
        return self.key == other.key and (self.write or other.write)

    def words(self) -> str:
        verb = _KINDS[self.kind]
        return f"{verb} {self.what}".strip()


class LockState:
    """Who holds a lock."""

    def __init__(self) -> None:
        self.writer = -1
        self.readers: list[int] = []


class Task:
    """One thread of control."""

    def __init__(self, number: int, name: str, body: Callable[[], None] | None) -> None:
        self.number: Final = number
        self.name: Final = name
        self.body: Final = body
        self.green: Any = None
        self.pending: Step | None = None
        self.done = False
        self.held: list[tuple[object, bool]] = []
        self.rcu_depth = 0
        self.ready: Callable[[], bool] | None = None
        self.waits_for: list[int] = []  # a grace period: the readers that must leave first

    def run(self) -> None:
        if self.body is not None:
            self.body()

    def at_end(self) -> bool:
        """It ran, and announced no step more."""
        return self.pending is None


class Execution(Scheduler):
    """One run of a scenario.  Create it, build the scenario's objects with it as their scheduler, add the
    tasks, and `start`.  Until then, and after the end, operations pass through."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.trace: list[Step] = []
        self.hub: Any = None
        self.current: Task | None = None
        self.keys: dict[int, int] = {}  # id of an object -> its number
        self.kept: list[object] = []  # keeps those ids from being used again
        self.locks: dict[int, LockState] = {}
        self.freed: dict[int, str] = {}  # number of a freed object -> who freed it
        self.rcu: Final = object()
        self.subject: object = None  # what the scenario built, for who explains a failure
        self.released: list[tuple[int, int, bool]] = []  # task, key, exclusively: since the last step
        self.lock_order: set[tuple[str, str]] = set()

    def add(self, name: str, body: Callable[[], None]) -> None:
        self.tasks.append(Task(len(self.tasks), name, body))

    # What tasks call

    def acquire(self, lock: object, write: bool) -> None:
        task = self.current
        if task is None:
            return
        name = _class_of(lock)
        for held, _ in task.held:
            if held is lock:
                raise Finding(f"{task.name} takes {name} while it holds it: it waits for itself for ever")
            self.lock_order.add((_class_of(held), name))
        self._announce(task, ACQUIRE, name, lock, write)
        task.held.append((lock, write))

    def try_acquire(self, lock: object, write: bool) -> bool:
        task = self.current
        if task is None:
            return True
        self._announce(task, POINT, f"tries {_class_of(lock)}", lock, True)
        key = self._key(lock)
        state = self.locks.get(key)
        if state is None:
            state = LockState()
            self.locks[key] = state
        if state.writer >= 0 or (write and state.readers):
            return False
        if write:
            state.writer = task.number
        else:
            state.readers.append(task.number)
        task.held.append((lock, write))
        return True

    def release(self, lock: object, write: bool) -> None:
        task = self.current
        if task is None:
            return
        if (lock, write) not in task.held:
            raise Finding(f"{task.name} gives back {_class_of(lock)}, which it does not hold like that")
        task.held.remove((lock, write))
        key = self._key(lock)
        state = self.locks[key]
        if write:
            state.writer = -1
        else:
            state.readers.remove(task.number)
        self.released.append((task.number, key, write))

    def downgrade(self, lock: object) -> None:
        task = self.current
        if task is None:
            return
        if (lock, True) not in task.held:
            raise Finding(f"{task.name} downgrades {_class_of(lock)}, which it does not hold for writing")
        task.held.remove((lock, True))
        task.held.append((lock, False))
        key = self._key(lock)
        self.locks[key].writer = -1
        self.locks[key].readers.append(task.number)
        self.released.append((task.number, key, True))

    def rcu_enter(self) -> None:
        task = self.current
        if task is not None:
            if task.rcu_depth == 0:
                self._announce(task, ENTER, "an RCU section", self.rcu, False)
            task.rcu_depth += 1

    def rcu_leave(self) -> None:
        task = self.current
        if task is not None:
            if task.rcu_depth == 0:
                raise Finding(f"{task.name} leaves an RCU section that it is not in")
            if task.rcu_depth == 1:
                self._announce(task, LEAVE, "the RCU section", self.rcu, False)
            task.rcu_depth -= 1

    def rcu_call(self, what: str, subject: object, then: Callable[[], None] | None = None) -> None:
        """Free `subject` after a grace period.  Nothing is used again meanwhile, so `then` need not be called."""
        task = self.current
        if task is None:
            return
        self._announce(task, CALL, what, self.rcu, True)
        period = Task(len(self.tasks), "grace period", None)
        period.waits_for = [t.number for t in self.tasks if t.rcu_depth > 0]
        period.pending = Step(period.number, FREE, what, subject, self._key(subject), True)
        self.tasks.append(period)

    def free(self, what: str, subject: object) -> None:
        """Free `subject` now."""
        task = self.current
        if task is not None:
            self._announce(task, FREE, what, subject, True)

    def point(self, what: str, subject: object, write: bool = False) -> None:
        task = self.current
        if task is not None:
            self._announce(task, POINT, what, subject, write)

    def wait(self, what: str, subject: object, ready: Callable[[], bool]) -> None:
        task = self.current
        if task is not None:
            task.ready = ready
            self._announce(task, WAIT, what, subject, False)
            task.ready = None

    def chunk(self) -> int:
        return 1 if self.current is not None else 0

    # Running

    def _key(self, subject: object) -> int:
        """The number of an object; an int stands for itself (a page by its pfn, say)."""
        identity = -1 - subject if isinstance(subject, int) else id(subject)
        key = self.keys.get(identity)
        if key is None:
            key = len(self.keys)
            self.keys[identity] = key
            self.kept.append(subject)
        return key

    def _announce(self, task: Task, kind: int, what: str, subject: object, write: bool) -> None:
        task.pending = Step(task.number, kind, what, subject, self._key(subject), write)
        self.current = None
        self.hub.switch()
        self.current = task

    def enabled(self, task: Task) -> bool:
        step = task.pending
        if task.done or step is None:
            return False
        if step.kind == ACQUIRE:
            state = self.locks.get(step.key)
            if state is None:
                return True
            return state.writer < 0 and not (step.write and state.readers)
        if task.ready is not None:
            return task.ready()
        if step.kind == FREE and task.waits_for:
            return not any(self.tasks[n].rcu_depth > 0 for n in task.waits_for)
        return True

    def start(self) -> None:
        """Let every task run to its first step."""
        self.hub = greenlet.getcurrent()
        for task in list(self.tasks):
            task.green = greenlet.greenlet(task.run)
            self._resume(task)

    def _resume(self, task: Task) -> None:
        task.pending = None
        self.current = task
        task.green.switch()
        self.current = None
        if task.at_end():
            task.done = True
            if task.held:
                raise Finding(f"{task.name} ends while it holds {_class_of(task.held[0][0])}")
            if task.rcu_depth:
                raise Finding(f"{task.name} ends within an RCU section")

    def step(self, task: Task) -> None:
        """Perform what `task` announced, and let it run to its next step."""
        step = task.pending
        assert step is not None
        self.trace.append(step)
        if step.key in self.freed:
            raise Finding(
                f"{task.name} {step.words()} after {self.freed[step.key]} freed it: use after free"
            )
        if step.kind == ACQUIRE:
            state = self.locks.get(step.key)
            if state is None:
                state = LockState()
                self.locks[step.key] = state
            if step.write:
                state.writer = task.number
            else:
                state.readers.append(task.number)
        elif step.kind == FREE:
            self.freed[step.key] = task.name
            if task.body is None:
                task.done = True
                task.pending = None
                return
        # A section's depth changes in the task itself, just after it resumes: nothing runs in between.
        self._resume(task)

    def stop(self) -> None:
        """Let go of tasks that did not come to their end."""
        for task in self.tasks:
            if task.green is not None and not task.done:
                task.done = True
                self.current = None
                task.green.throw()


def _class_of(lock: object) -> str:
    lock_class = getattr(lock, "lock_class", None)
    return str(getattr(lock_class, "name", lock))


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


class _Node:
    """A state on the current path: who could go on, who has to be tried, who need not be."""

    def __init__(self, steps: list[Step | None], enabled: list[bool], sleep: list[Step]) -> None:
        self.steps: Final = steps
        self.enabled: Final = enabled
        self.sleep: list[Step] = sleep
        self.backtrack: list[int] = []
        self.done: list[int] = []
        self.chosen = -1

    def try_too(self, number: int) -> None:
        """Have `number` tried here; if it cannot go on here, whoever can."""
        if number < len(self.enabled) and self.enabled[number]:
            if number not in self.backtrack:
                self.backtrack.append(number)
            return
        for other, able in enumerate(self.enabled):
            if able and other not in self.backtrack:
                self.backtrack.append(other)


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
    stack: list[_Node] = []
    while True:
        execution = Execution()
        failure: Exception | None = None
        check = scenario.build(execution)
        clocks = _Clocks(preemptions >= 0)
        pruned = False
        try:
            execution.start()
            pruned = _run(execution, stack, clocks if reduce else None, preemptions)
            if not pruned:
                check()
        except Exception as error:
            failure = error
            if reduce:  # what could have come next may race with what did come
                clocks.look_for_races(stack, [task.pending for task in execution.tasks])
        path = [node.chosen for node in stack]
        outcome.steps += len(execution.trace)
        if pruned:
            outcome.pruned += 1
        else:
            outcome.executions += 1
        outcome.lock_order |= execution.lock_order
        if failure is not None:
            outcome.failures.append(Failure(failure, path, execution))
        execution.stop()
        if failure is not None and stop_at_first:
            return outcome
        if limit and outcome.executions >= limit:
            return outcome
        if not _backtrack(stack, preemptions < 0):
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
        if error is None and all(task.done for task in execution.tasks):
            error = _error_of(check)
        return None if error is None else Failure(error, taken, execution)
    finally:
        execution.stop()


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


def _backtrack(stack: list[_Node], sleeping: bool) -> bool:
    """Go back to the last state where something is left to try, and choose it.  False if there is none."""
    while stack:
        node = stack[-1]
        if node.chosen >= 0:
            node.done.append(node.chosen)
            step = node.steps[node.chosen]
            if step is not None and sleeping:
                node.sleep.append(step)
        for number in node.backtrack:
            if number not in node.done and not any(s.task == number for s in node.sleep):
                node.chosen = number
                return True
        stack.pop()
    return False


def _run(execution: Execution, stack: list[_Node], clocks: _Clocks | None, preemptions: int) -> bool:
    """Follow the stack, then go on to the end; True if the execution was given up."""
    depth = 0
    last = -1
    switches = 0
    while True:
        tasks = execution.tasks
        if depth == len(stack):
            enabled = [execution.enabled(task) for task in tasks]
            if not any(enabled):
                waiting = [task for task in tasks if not task.done]
                if waiting:
                    raise Finding("deadlock: " + "; ".join(_waits(execution, task) for task in waiting))
                return False
            sleep: list[Step] = []
            if stack and clocks is not None and preemptions < 0:
                above = stack[-1]
                taken = above.steps[above.chosen]
                assert taken is not None
                sleep = [s for s in above.sleep if s.task != taken.task and not s.depends_on(taken)]
            node = _Node([task.pending for task in tasks], enabled, sleep)
            asleep = [s.task for s in sleep]
            first = -1
            if last >= 0 and last < len(enabled) and enabled[last] and last not in asleep:
                first = last
            else:
                for number, able in enumerate(enabled):
                    if able and number not in asleep:
                        first = number
                        break
            stack.append(node)
            if first < 0:
                return True
            node.chosen = first
            if clocks is not None:
                node.backtrack.append(first)
            else:
                node.backtrack = [n for n, able in enumerate(enabled) if able]
        node = stack[depth]
        if clocks is not None:
            clocks.look_for_races(stack, node.steps)
        number = node.chosen
        if preemptions >= 0:
            if last >= 0 and number != last and node.enabled[last]:
                switches += 1
                if switches > preemptions:
                    del stack[depth + 1 :]
                    return True
        step = node.steps[number]
        assert step is not None
        if clocks is not None:
            clocks.take(step, depth)
        execution.step(tasks[number])
        if clocks is not None:
            for task_number, key, write in execution.released:
                clocks.release(task_number, key, write)
        execution.released.clear()
        last = number
        depth += 1


def _waits(execution: Execution, task: Task) -> str:
    step = task.pending
    what = "nothing" if step is None else step.what
    holds = ", ".join(_class_of(lock) for lock, _ in task.held)
    return f"{task.name} waits for {what}" + (f" and holds {holds}" if holds else "")


class _Clocks:
    """Vector clocks: which steps of the path happened before which (by dependence, not by chance)."""

    def __init__(self, bounded: bool) -> None:
        self.bounded: Final = bounded
        self.task: dict[int, list[int]] = {}
        self.write: dict[int, list[int]] = {}  # by object: all writes so far
        self.read: dict[int, list[int]] = {}  # by object: all reads so far
        self.last_write: dict[int, int] = {}  # by object: depth of the last write
        self.last_reads: dict[int, dict[int, int]] = {}  # by object: depth of each task's read since

    def look_for_races(self, stack: list[_Node], steps: list[Step | None]) -> None:
        """For each task's next step, find the last steps that it races with, and have the other order
        tried there."""
        for number, step in enumerate(steps):
            if step is None:
                continue
            clock = self.task.get(number)
            before = self.last_write.get(step.key, -1)
            if before >= 0:
                self._reverse(stack, before, number, clock)
            if step.write:
                reads = self.last_reads.get(step.key)
                if reads:
                    for before in reads.values():
                        self._reverse(stack, before, number, clock)

    def _reverse(self, stack: list[_Node], before: int, number: int, clock: list[int] | None) -> None:
        node = stack[before]
        if node.chosen == number:
            return
        if clock is not None and node.chosen < len(clock) and clock[node.chosen] > before:
            return  # it happened before this task's last step: the order is forced
        node.try_too(number)
        if self.bounded:
            start = before
            while start > 0 and stack[start - 1].chosen == node.chosen:
                start -= 1
            stack[start].try_too(number)

    def take(self, step: Step, depth: int) -> None:
        clock = self.task.get(step.task, [])
        clock = _join(clock, self.write.get(step.key))
        if step.write:
            clock = _join(clock, self.read.get(step.key))
        clock = clock + [0] * (step.task + 1 - len(clock))
        clock[step.task] = depth + 1
        self.task[step.task] = clock
        if step.write:
            self.write[step.key] = clock
            self.last_write[step.key] = depth
            self.last_reads.pop(step.key, None)
        else:
            self.read[step.key] = _join(clock, self.read.get(step.key))
            self.last_reads.setdefault(step.key, {})[step.task] = depth

    def release(self, task: int, key: int, write: bool) -> None:
        clock = self.task.get(task)
        if clock is not None:
            if write:
                self.write[key] = _join(clock, self.write.get(key))
            else:
                self.read[key] = _join(clock, self.read.get(key))


def _join(one: list[int], other: list[int] | None) -> list[int]:
    if other is None:
        return one
    if len(one) < len(other):
        one, other = other, one
    return [max(a, b) for a, b in zip(one, other, strict=False)] + one[len(other) :]
