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

from typing import Final, cast

from mypy_extensions import i64

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
from rmaplab.sync.places import Place

NONE: Final[list[int]] = []
_NO_STEPS: Final[list[Step]] = []


class Node:
    """A state on the current path: who could go on, who has to be tried, who was.  Sets of tasks have a bit each.

    steps:     what each task announced
    enabled:   those that can go on
    asleep:    those with whose steps nothing is left to try from here
    backtrack: those to be tried, in this order; `done`: those of them that were
    mark:      how far the execution had come (Execution.mark())
    ages:      of the chosen one, how old the values may be that it loads (none: not asked yet); `age`: which is tried
    """

    def __init__(self, steps: list[Step | None], enabled: i64, asleep: i64, mark: i64) -> None:
        self.steps: Final = steps
        self.mark: Final[i64] = mark
        self.enabled: Final[i64] = enabled
        self.asleep: i64 = asleep
        self.backtrack: Final[list[int]] = []
        self.wanted: i64 = 0  # the same as `backtrack`
        self.done: i64 = 0
        self.chosen: i64 = -1
        self.ages = NONE
        self.age: i64 = 0

    def choose(self, last: i64) -> None:
        """Have the task that went on `last` go on if that can be, else the first that can."""
        able: i64 = self.enabled & ~self.asleep
        if able:
            if last < 0 or able >> last & 1 == 0:
                last = 0
                while able >> last & 1 == 0:
                    last += 1
            self.chosen = last

    def can(self, number: int) -> bool:
        """Can task `number` go on?"""
        return self.enabled >> number & 1 != 0

    def wants(self, number: int) -> bool:
        """Is task `number` tried here?"""
        return self.wanted >> number & 1 != 0

    def want(self, number: int) -> None:
        """Have task `number`, which can go on, tried here."""
        if not self.wants(number):
            self.wanted |= i64(1) << number
            self.backtrack.append(number)

    def try_too(self, number: int) -> None:
        """Have `number` tried here; if it cannot go on here, whoever can."""
        if self.can(number):
            self.want(number)
            return
        for other in range(len(self.steps)):
            if self.can(other):
                self.want(other)

    def left(self) -> int:
        """The next task to try here, -1: none.  One that is asleep need not be."""
        for number in self.backtrack:
            if (self.done | self.asleep) >> number & 1 == 0:
                return number
        return -1


def preemptions_of(stack: list[Node], number: int) -> int:
    """How often a path takes the CPU away from a task that could go on, if `number` goes on at its last state."""
    taken = 0
    last = -1
    for node in stack:
        chosen = number if node is stack[-1] else node.chosen
        if last >= 0 and chosen != last and node.can(last):
            taken += 1
        last = chosen
    return taken


class Past:
    """The steps of a path by depth (a step that queued is one of kind QUEUE).

    newest: of each task

    A clock says, for each task, the last of its steps that happened before some step or is it, plus one: so many bits
    each, in one number.

    loosely: also keep clocks by which a load does not come before a newer store (`Step.loose`): it could have come
             after it, and returned the old value
    """

    def __init__(self, loosely: bool = False) -> None:
        self.loosely: Final = loosely
        self.steps: Final[list[Step]] = []
        self._ends: Final[list[Step]] = []  # acquisitions whose `until` was set, by when that was
        self.newest: list[Step | None] = []
        self._number: i64 = 0
        self._bits: i64 = 1
        self._mask: i64 = 1

    def begin(self, number: int) -> None:
        """So many tasks are going to run."""
        if not self.newest:
            self.newest = [None] * number
            self._number = number
            self._bits = 62 // max(1, number)
            mask: i64 = 0
            for _ in range(self._bits):  # compiled code would shift a constant as an int of C
                mask += mask + 1
            self._mask = mask

    def since(self, clock: i64, task: i64) -> i64:
        """How many steps of the path there are up to the last one of `task` that `clock` knows."""
        return clock >> task * self._bits & self._mask

    def join(self, clock: i64, other: i64) -> i64:
        """What either knows."""
        joined: i64 = 0
        shift: i64 = 0
        for _ in range(self._number):
            one: i64 = clock >> shift & self._mask
            its: i64 = other >> shift & self._mask
            joined |= (its if its > one else one) << shift
            shift += self._bits
        return joined

    def add(self, step: Step, clock: i64, released: list[Place]) -> None:
        """`step`, which had this clock, was taken, and gave back the spin locks `released`."""
        task: i64 = step.task
        own: i64 = i64(1) << task
        depth: i64 = len(self.steps)
        if depth >= self._mask:
            raise RuntimeError(f"a path of {depth} steps of {self._number} tasks is too long")
        step.depth = depth
        step.until = None
        happened = self._known_by(step, clock, False)
        if self.loosely:
            step.loose = self.loosely_known_by(step)
        place = step.place
        step.prior = cast("Step | None", place.newest)
        step.tasks = place.tasks
        also = step.also
        if also is not None:
            step.prior_also = cast("Step | None", also.newest)
            step.tasks_also = also.tasks
            also.newest = step
            also.tasks |= own
        full = step.full
        if full is not None:
            step.prior_full = cast("Step | None", full.newest)
            step.tasks_full = full.tasks
            full.newest = step
            full.tasks |= own
        place.newest = step
        place.tasks |= own
        if step.mode == POISON or step.mode == DEFER:
            place.poisons += 1
        step.clock = self._with_own(step, happened)
        step.before = self.newest[step.task]
        self.newest[step.task] = step
        self.steps.append(step)
        for given in released:
            before = cast("Step | None", given.newest)
            while before is not None:
                if before.kind == ACQUIRE or before.kind == TRY:
                    before.until = step
                    self._ends.append(before)
                    break
                before = before.earlier(given)

    def forget(self, depth: i64) -> None:
        """The steps from `depth` on are to be taken anew."""
        steps = self.steps
        while len(steps) > depth:
            step = steps.pop()
            place = step.place
            place.newest = step.prior
            place.tasks = step.tasks
            step.prior = None
            also = step.also
            if also is not None:
                also.newest = step.prior_also
                also.tasks = step.tasks_also
                step.prior_also = None
            full = step.full
            if full is not None:
                full.newest = step.prior_full
                full.tasks = step.tasks_full
                step.prior_full = None
            if step.mode == POISON or step.mode == DEFER:
                place.poisons -= 1
            self.newest[step.task] = step.before
            step.before = None
            while self._ends:
                until = self._ends[-1].until
                if until is not step:
                    break
                self._ends.pop().until = None

    def clock_of(self, task: int) -> i64:
        """What happened before the next step of a task, its object left aside."""
        newest = self.newest[task]
        return 0 if newest is None else newest.clock

    def loosely_known_by(self, step: Step) -> i64:
        """What happened before `step`, if it comes next, and it, whatever old values loads could have returned."""
        before = self.newest[step.task]
        return self._with_own(step, self._known_by(step, 0 if before is None else before.loose, True))

    def _with_own(self, step: Step, clock: i64) -> i64:
        """What happened before `step`, which comes next, and it."""
        shift = step.task * self._bits
        own: i64 = len(self.steps) + 1
        return clock & ~(self._mask << shift) | own << shift

    def _known_by(self, step: Step, clock: i64, loosely: bool) -> i64:
        """What happened before it: what its task knows (`clock`), and what its objects went through."""
        others: i64 = ~(i64(1) << step.task)
        place, also, full = step.place, step.also, step.full
        if place.tasks & others != 0:
            clock = self._happened(step, place, clock, loosely)
        if also is not None and also.tasks & others != 0 and self._is_on(step, also):
            clock = self._happened(step, also, clock, loosely)
        if full is not None and full.tasks & others != 0:
            clock = self._happened(step, full, clock, loosely)
        return clock

    def _is_on(self, step: Step, also: Place) -> bool:
        """May earlier steps on its second object be in its way?"""
        return step.also_mode != TOUCH or also.poisons > 0

    def _happened(self, step: Step, place: Place, happened: i64, loosely: bool) -> i64:
        """`happened`, and all steps at `place` that happened before `step`."""
        unseen: i64 = step.changes - 1
        other = cast("Step | None", place.newest)
        while other is not None:
            if other.changes <= 0 and step.clashes_at(place, other):
                if unseen > 0:
                    unseen -= 1
                elif not loosely or not other.may_be_old():
                    if self.since(happened, other.task) <= other.depth:
                        last = other if other.until is None else other.until
                        happened = self.join(happened, last.loose if loosely else last.clock)
                    if self._covers(other, step, place):
                        break
            other = other.earlier(place)
        return happened

    def _covers(self, other: Step, step: Step, place: Place) -> bool:
        """Is whatever may be in the way of `step` before `other`, which is, before that as well?"""
        if (
            other.mode_at(place) != WRITE
            or place.poisons > 0
            or other.first > step.first
            or other.last < step.last
        ):
            return False
        mode = step.mode_at(place)
        return mode != POISON and mode != DEFER

    def races(self, step: Step, clock: i64, stack: list[Node]) -> list[Step]:
        """The steps that `step`, which would have this clock, races with, of each place the latest first."""
        others: i64 = ~(i64(1) << step.task)
        place, also, full = step.place, step.also, step.full
        on_also = also is not None and also.tasks & others != 0 and self._is_on(step, also)
        if place.tasks & others == 0 and not on_also and full is None:
            return _NO_STEPS
        found: list[Step] = []
        seen = self._races_at(step, place, clock, stack, found)
        if also is not None and on_also:
            seen = self._races_at(step, also, seen, stack, found)
        if full is not None:
            self._races_at(step, full, seen, stack, found)
        return found

    def _races_at(self, step: Step, place: Place, seen: i64, stack: list[Node], found: list[Step]) -> i64:
        """Those at `place`, added to `found`, if `step` came after all that is `seen`; returns what that is then."""
        unseen: i64 = step.changes - 1
        other = cast("Step | None", place.newest)
        while other is not None:
            if other.changes <= 0 and step.clashes_at(place, other):
                if unseen > 0:
                    unseen -= 1
                elif other.task != step.task:
                    late = self.since(seen, other.task) <= other.depth
                    if not late or not self._had_to_wait(step, other, stack):
                        if late:
                            found.append(other)
                            seen = self.join(seen, other.clock)
                        if self._covers(other, step, place):
                            break
            other = other.earlier(place)
        return seen

    def _had_to_wait(self, step: Step, other: Step, stack: list[Node]) -> bool:
        """Could `step` not have come before `other`?"""
        kind = step.kind
        if kind == ACQUIRE:
            if other.kind == RELEASE:
                return step.mode == READ or other.mode == WRITE
            return other.kind == DOWNGRADE
        if kind == WAIT:
            newest = self.newest[step.task]
            return (newest is None or newest.depth < other.depth) and not stack[other.depth].can(step.task)
        return False
