# SPDX-License-Identifier: GPL-2.0-or-later
"""A path through a scenario: its states, the happens-before order of its steps, and the steps that race.

Two steps are *dependent* if they are on the same object in modes that do not commute (execution.py).  Of dependent
steps the earlier happened before the later; two that nothing between them orders race.  Vector clocks say which step
happened before which.

Who reads a sequence count again only learns whether it is still the one that he began with.  It never is again: so of
the changes since then that load depends on the first alone, and once it has found one, on no later change
(`Step.changes`).  Such steps commute from the states in which they are met, so the search need not reverse them.

Invariant: a step whose reversal with a racing one is impossible, because it had to wait for that one, is no race with
it: an acquisition and the release before it, a wait and what ended it.
"""

from __future__ import annotations

from typing import Final

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
    Step,
)

NONE: Final[list[int]] = []


class Node:
    """A state on the current path: who could go on, who has to be tried, who was.

    steps: what each task announced; sleep: steps with which nothing is left to try from here
    ages:  of the chosen one, how old the values may be that it loads (none: not asked yet); `age`: which is tried
    """

    def __init__(self, steps: list[Step | None], enabled: list[bool], sleep: list[Step]) -> None:
        self.steps: Final = steps
        self.enabled: Final = enabled
        self.sleep: Final = sleep
        self.backtrack: Final[list[int]] = []
        self.done: Final[list[int]] = []
        self.chosen = -1
        self.ages = NONE
        self.age = 0

    def choose(self, last: int) -> None:
        """Have the task that went on `last` go on if that can be, else the first that can."""
        enabled = self.enabled
        if 0 <= last < len(enabled) and enabled[last] and not self.is_asleep(last):
            self.chosen = last
            return
        for number, able in enumerate(enabled):
            if able and not self.is_asleep(number):
                self.chosen = number
                return

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


class Past:
    """The steps of a path by depth (a step that queued is one of kind QUEUE).

    clocks: of each step, the last step of every task that happened before it or is it, plus one
    """

    def __init__(self) -> None:
        self.steps: Final[list[Step]] = []
        self.clocks: Final[list[list[int]]] = []
        self._until: Final[
            list[int]
        ] = []  # of a spin lock's acquisition: depth of its owner's last step under it
        self._ends: Final[list[tuple[int, int]]] = []  # (depth, acquisition whose `until` was set there)
        self._by_key: Final[dict[int, list[int]]] = {}  # depths of the steps on an object, ascending
        self._poisoned: Final[dict[int, int]] = {}  # how many of those free it
        self._by_task: list[list[int]] = []  # and of those of a task
        self._before_all: list[int] = []  # the clock of a task that has taken no step

    def begin(self, number: int) -> None:
        """So many tasks are going to run."""
        if not self._by_task:
            self._by_task = [[] for _ in range(number)]
            self._before_all = [0] * number

    def add(self, step: Step, clock: list[int], released: list[int]) -> None:
        """`step`, which had this clock, was taken, and gave back the spin locks `released`."""
        number = step.task
        depth = len(self.steps)
        happened = clock
        for key in self._keys_of(step):
            unseen = step.changes - 1
            for before in reversed(self._by_key.get(key, NONE)):
                other = self.steps[before]
                if step.clashes_on(key, other) and other.changes <= 0:
                    if unseen > 0:
                        unseen -= 1
                        continue
                    if happened[other.task] <= before:
                        end = self._until[before]
                        happened = join(happened, self.clocks[end if end >= 0 else before])
                    if self._covers(other, step, key):
                        break
        happened = list(happened)
        happened[number] = depth + 1
        self._by_key.setdefault(step.key, []).append(depth)
        if step.also >= 0:
            self._by_key.setdefault(step.also, []).append(depth)
        if step.full >= 0:
            self._by_key.setdefault(step.full, []).append(depth)
        if step.mode == POISON or step.mode == DEFER:
            self._poisoned[step.key] = self._poisoned.get(step.key, 0) + 1
        self._by_task[number].append(depth)
        self.steps.append(step)
        self.clocks.append(happened)
        self._until.append(-1)
        for key in released:
            for before in reversed(self._by_key[key]):
                kind = self.steps[before].kind
                if kind == ACQUIRE or kind == TRY:
                    self._until[before] = depth
                    self._ends.append((depth, before))
                    break

    def forget(self, depth: int) -> None:
        """The steps from `depth` on are to be taken anew."""
        while len(self.steps) > depth:
            step = self.steps.pop()
            self.clocks.pop()
            self._until.pop()
            self._by_key[step.key].pop()
            if step.also >= 0:
                self._by_key[step.also].pop()
            if step.full >= 0:
                self._by_key[step.full].pop()
            if step.mode == POISON or step.mode == DEFER:
                self._poisoned[step.key] -= 1
            self._by_task[step.task].pop()
        while self._ends and self._ends[-1][0] >= depth:
            at = self._ends.pop()[1]
            if at < depth:
                self._until[at] = -1

    def clock_of(self, number: int) -> list[int]:
        """What happened before the next step of task `number`, its object left aside."""
        own = self._by_task[number]
        return self.clocks[own[-1]] if own else self._before_all

    def _keys_of(self, step: Step) -> list[int]:
        """The objects on which earlier steps may be in its way."""
        also = step.also
        keys = [step.key]
        if also >= 0 and (step.also_mode != TOUCH or self._poisoned.get(also)):
            keys.append(also)
        if step.full >= 0:
            keys.append(step.full)
        return keys

    def _covers(self, other: Step, step: Step, key: int) -> bool:
        """Is whatever may be in the way of `step` before `other`, which is, before that as well?"""
        return (
            other.mode_on(key) == WRITE
            and other.first <= step.first
            and other.last >= step.last
            and step.mode_on(key) != POISON
            and step.mode_on(key) != DEFER
            and not self._poisoned.get(key)
        )

    def races(self, step: Step, clock: list[int], stack: list[Node]) -> list[int]:
        """Depths of the steps that `step`, which would have this clock, races with, the latest first."""
        found: list[int] = []
        seen = clock
        own = self._by_task[step.task]
        newest = own[-1] if own else -1
        for key in self._keys_of(step):
            unseen = step.changes - 1
            for before in reversed(self._by_key.get(key, NONE)):
                other = self.steps[before]
                if not step.clashes_on(key, other) or other.changes > 0:
                    continue
                if unseen > 0:
                    unseen -= 1
                    continue
                if other.task == step.task:
                    continue
                if seen[other.task] <= before:
                    if self._had_to_wait(step, other, before, newest, stack):
                        continue
                    found.append(before)
                    seen = join(seen, self.clocks[before])
                if self._covers(other, step, key):
                    break
        return found

    def _had_to_wait(self, step: Step, other: Step, before: int, newest: int, stack: list[Node]) -> bool:
        """Could `step` not have come before `other`, which was taken at depth `before`?"""
        kind = step.kind
        if kind == ACQUIRE:
            if other.kind == RELEASE:
                return step.mode == READ or other.mode == WRITE
            return other.kind == DOWNGRADE
        if kind == WAIT:
            if newest >= before:
                return False
            return not stack[before].enabled[step.task]
        return False


def join(one: list[int], other: list[int]) -> list[int]:
    joined = list(one)
    for i in range(len(other)):
        if other[i] > joined[i]:
            joined[i] = other[i]
    return joined
