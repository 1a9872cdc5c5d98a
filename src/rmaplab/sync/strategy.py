# SPDX-License-Identifier: GPL-2.0-or-later
"""The orders to try: strategies of the search in interleave.py.

Two executions that differ in the order of independent steps only are the same.  Source sets with sleep sets (Abdulla,
Aronis, Jonsson, Sagonas: source-DPOR, POPL 2014; after Flanagan and Godefroid, POPL 2005) leave out the others: when a
step turns out to race with an earlier one (path.py), some task that can begin the other order is tried where the
earlier one was taken, unless one that can is tried there anyway.

A bound on preemptions is one on all orders that are the same: the fewest that any of them takes (bound.py).
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import i64

from rmaplab.sync.bound import Blocks
from rmaplab.sync.execution import Execution, Step
from rmaplab.sync.path import Node, Past, preemptions_of


class Strategy:
    """Who has to be tried at the states of a path.  The search says what it does, in this order: it `begins` an
    execution; at each new state it asks what is `asleep` there, says that it `reached` it, and what step it `took`;
    it `ended`; it `left` a state's choice for good, and goes `back_to` a depth to try another."""

    def begins(self, number: int) -> None:
        """An execution of so many tasks begins, along the path so far."""

    def asleep(self, stack: list[Node], steps: list[Step | None]) -> i64:
        """Tasks (a bit each) that need not be tried at the state after `stack`, where they announced `steps`."""
        return 0

    def reached(self, stack: list[Node]) -> None:
        """The last of `stack` is new, and what goes on there is chosen."""
        raise NotImplementedError

    def clock_of(self, task: int) -> list[int]:
        """For each task, how many steps of the path happened before the next of this one; none if that is not known."""
        return []

    def took(self, stack: list[Node], execution: Execution, depth: int) -> None:
        """The step of `depth` was taken, be it again."""

    def ended(self, stack: list[Node], execution: Execution) -> None:
        """The execution is over: what could have come next may race with what did come."""

    def left(self, node: Node) -> None:
        """Nothing is left to try after the step that was chosen at `node`."""

    def back_to(self, depth: int) -> None:
        """The steps from `depth` on are to be taken anew."""

    def allows(self, stack: list[Node], number: int) -> bool:
        """May task `number` go on at the end of the path?"""
        return True


class All(Strategy):
    """Every order that takes the CPU away from a task that could go on at most `preemptions` times (-1: any number)."""

    def __init__(self, preemptions: int) -> None:
        self.preemptions: Final = preemptions

    def allows(self, stack: list[Node], number: int) -> bool:
        return self.preemptions < 0 or preemptions_of(stack, number) <= self.preemptions

    def reached(self, stack: list[Node]) -> None:
        node = stack[-1]
        for number in range(len(node.steps)):
            if node.can(number):
                node.want(number)


class SourceSets(Strategy):
    """One order of all that are the same: what races on the path decides."""

    def __init__(self, loosely: bool = False) -> None:
        self.past: Final = Past(loosely)

    def begins(self, number: int) -> None:
        self.past.begin(number)

    def reached(self, stack: list[Node]) -> None:
        node = stack[-1]
        node.want(node.chosen)

    def back_to(self, depth: int) -> None:
        self.past.forget(depth)

    def clock_of(self, task: int) -> list[int]:
        clock = self.past.clock_of(task)
        return [self.past.since(clock, other) for other in range(len(self.past.newest))]

    def asleep(self, stack: list[Node], steps: list[Step | None]) -> i64:
        if not stack or not stack[-1].asleep:
            return 0
        taken = self.past.steps[-1]
        asleep: i64 = stack[-1].asleep
        for number, step in enumerate(steps):
            if asleep >> number & 1 and (number == taken.task or step is None or step.depends_on(taken)):
                asleep &= ~(i64(1) << number)
        return asleep

    def took(self, stack: list[Node], execution: Execution, depth: int) -> None:
        past = self.past
        if depth == len(past.steps):
            step = execution.trace[depth]
            clock = past.clock_of(step.task)
            for before in past.races(step, clock, stack):
                self._reverse(stack, before, step, clock)
            past.add(step, clock, execution.released)

    def ended(self, stack: list[Node], execution: Execution) -> None:
        past = self.past
        # if a step was not even allowed, it is both taken and pending
        broke = past.steps[-1] if past.steps else None
        for task in execution.tasks:
            step = task.pending
            if step is not None and not task.done and step is not broke:
                clock = past.clock_of(task.number)
                for before in past.races(step, clock, stack):
                    self._reverse(stack, before, step, clock)

    def left(self, node: Node) -> None:
        node.asleep |= i64(1) << node.chosen

    def _reverse(self, stack: list[Node], before: Step, step: Step, clock: i64) -> None:
        """Have an order tried in which `step`, about to be or just taken at the end of the path, comes before `before`:
        the steps between that did not happen after that one, then `step`."""
        past = self.past
        start: i64 = before.depth
        node = stack[start]
        firsts: list[Step | None] = [None] * len(node.steps)
        waits = False
        for at in range(start + 1, len(past.steps)):
            between = past.steps[at]
            if past.since(between.clock, before.task) <= start:
                if firsts[between.task] is None:
                    firsts[between.task] = between
                if not waits and step.depends_on(between):
                    waits = True
        choice = -1
        for task, first in enumerate(firsts):
            if first is not None and self._begins(first.clock, firsts, task):
                if node.wants(task):
                    return
                if node.can(task) and (choice < 0 or task == step.task):
                    choice = task
        if firsts[step.task] is None and not waits and self._begins(clock, firsts, step.task):
            if node.wants(step.task):
                return
            if node.can(step.task):
                choice = step.task
        node.try_too(choice if choice >= 0 else step.task)

    def _begins(self, clock: i64, firsts: list[Step | None], task: int) -> bool:
        """Does none of the first steps of other tasks come before what has this clock?"""
        for other, first in enumerate(firsts):
            if first is not None and other != task and self.past.since(clock, other) > first.depth:
                return False
        return True


class WithinBound(SourceSets):
    """One order of all that are the same, unless each of them takes more preemptions than the bound.

    An order that no other is the same as within the bound may be found only by way of one beyond it.  With `number`
    tasks, number - 2 preemptions more than the bound make up for that (Marmanis, Kokologiannakis and Vafeiadis, TACAS
    2023).
    """

    def __init__(self, preemptions: int) -> None:
        super().__init__(True)
        self.preemptions: Final = preemptions

    def allows(self, stack: list[Node], number: int) -> bool:
        step = stack[-1].steps[number]
        assert step is not None
        tasks = len(stack[-1].steps)
        return Blocks(self.past, step).fit(self.preemptions + max(0, tasks - 2))
