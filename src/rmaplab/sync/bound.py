# SPDX-License-Identifier: GPL-2.0-or-later
"""How few preemptions the orders take that are the same as that of a path.

Orders are the same if they differ in the order of independent steps only (path.py).  One with the fewest preemptions
lets each task run as far as it gets before another goes on: who runs further keeps nobody from anything.  So these
orders alone are looked at.

A task that gives way because what it would do next comes after a step of another is preempted: in another order it
could have gone on.  It is not if it takes a lock that another has then, or waits.

Under weak memory a load that comes before a newer store may as well come after it, and return the old value: that costs
nothing (`Step.loose`).
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import i64

from rmaplab.sync.execution import ACQUIRE, QUEUE, RELEASE, WAIT, Step
from rmaplab.sync.path import Past

State = tuple[int, ...]  # for each task, how many of its steps were taken


class Blocks:
    """The steps of a path and `last`, which comes next, by task."""

    def __init__(self, past: Past, last: Step) -> None:
        self.past: Final = past
        self.chains: Final[list[list[Step]]] = [[] for _ in past.newest]
        for step in past.steps:
            self.chains[step.task].append(step)
        last.loose = past.loosely_known_by(last)
        last.depth = len(past.steps)
        self.chains[last.task].append(last)

    def fit(self, most: int) -> bool:
        """Does one of the orders take at most so many preemptions?"""
        chains = self.chains
        begin = tuple([0] * len(chains))
        end = tuple([len(chain) for chain in chains])
        now: list[State] = [begin]
        seen: set[State] = {begin}
        for _ in range(most + 1):
            later: list[State] = []
            while now:
                state = now.pop()
                for task, chain in enumerate(chains):
                    reached = self._run(state, task)
                    if reached == end:
                        return True
                    if reached in seen:
                        continue
                    if reached[task] == len(chain) or self._waits(reached, chain[reached[task]]):
                        seen.add(reached)
                        now.append(reached)
                    else:
                        later.append(reached)
            now = [state for state in later if state not in seen]
            seen.update(now)
        return False

    def _run(self, state: State, task: int) -> State:
        """Where everybody is once `task` ran as far as it gets."""
        past = self.past
        chain = self.chains[task]
        fronts = [self._front(state, other) for other in range(len(state))]
        at = state[task]
        while at < len(chain):
            clock = chain[at].loose
            for other, front in enumerate(fronts):
                if other != task and front < past.since(clock, other):
                    return (*state[:task], at, *state[task + 1 :])
            at += 1
        return (*state[:task], at, *state[task + 1 :])

    def _front(self, state: State, task: int) -> i64:
        """Where in the path the first step of a task is that was not taken; behind its end if all were."""
        chain = self.chains[task]
        return chain[state[task]].depth if state[task] < len(chain) else i64(len(self.past.steps) + 1)

    def _waits(self, state: State, step: Step) -> bool:
        """May it be that `step` cannot be taken, rather than that it comes later?"""
        if step.kind != ACQUIRE:
            return step.kind == WAIT
        for other, chain in enumerate(self.chains):
            if other != step.task:
                for number in range(state[other] - 1, -1, -1):
                    before = chain[number]
                    if before.place is step.place and before.kind != QUEUE:
                        until = before.until
                        if before.kind != RELEASE and (until is None or until.depth >= self._front(state, other)):
                            return True
                        break
        return False
