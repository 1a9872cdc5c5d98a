# SPDX-License-Identifier: GPL-2.0-or-later
"""One run of a few tasks on CPUs that reorder: an execution whose loads may return old values.

What is announced through order.py, locks and RCU follow memory.py.  Each location is an object of its own to the
search, so tasks that access different fields of one object do not race.  All else (points, waits, counts that are
announced as such) is as under sequential consistency: the newest value, and no view is handed over.

A reader that enters an RCU section either takes over what the grace periods that were asked for before hand over,
or they wait for it: the guarantee of RCU in LKMM, with every grace period as early or as late as it may be.

Invariants
- A load that nothing ordered after the newest store need not return an old value: in another order of the steps, which
  is tried, it comes before that store (`ages`).
- Who reads a sequence count again only learns whether it changed.  Of the stores that say so the oldest allows whatever
  a later one does: views only grow, they only forbid, and what is read next, the count from the beginning, may be each
  of the later ones.
- A location that changes without an announcement is a mistake of the program that is checked, and said.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mypy_extensions import i64

from rmaplab.sync.errors import Finding
from rmaplab.sync.execution import (
    ADD,
    CALL,
    ENTER,
    LEAVE,
    NEWEST,
    POINT,
    UPDATE,
    WAIT,
    WRITE,
    Execution,
    LockState,
    Step,
    Task,
)
from rmaplab.sync.fields import VERSION, WHOLE
from rmaplab.sync.memory import NOTHING, UNINITIALISED, Location, Memory, Message, TaskView, View, join
from rmaplab.sync.order import ALL, FULL, ONCE, PLAIN
from rmaplab.sync.places import Place


class WeakExecution(Execution):
    """`weakened`:    names of orderings that are taken away
    `synchronous`: tasks may wait for grace periods (synchronize_rcu()), so it matters when a reader has left
    `racing`:      stores to one location that nothing orders are no mistake"""

    def __init__(
        self, weakened: frozenset[str] = frozenset(), synchronous: bool = False, racing: bool = False
    ) -> None:
        super().__init__()
        self.weak = True
        self.entire = weakened
        self.memory: Final = Memory(weakened, racing)
        self.calls: Final[
            list[tuple[View, int, int]]
        ] = []  # grace periods: what each hands over, who asked, and when
        self.called: Final[list[Place]] = []  # and what each frees
        self.synchronous: Final = synchronous
        self.waited: Final[list[list[int]]] = []  # the readers that each still waits for
        self.left: Final[list[View]] = []  # what readers knew that left before it, or that it waited for
        self.gone = NOTHING  # what all readers knew when they left
        self.gate: Final = object()
        self.full: Final = object()  # stands for all full barriers
        self.over: Final[set[int]] = set()  # those that somebody has waited for
        self._unfilled: Final[list[tuple[Location, Message]]] = []
        self._loaded: object = None
        self._succeeds: Final[dict[int, Callable[[object], bool] | None]] = {}  # of each task's next atomic

    def meet(self, found: list[object]) -> None:
        super().meet([*found, self.gate, self.full])

    def again(self) -> None:
        super().again()
        self.memory.again()
        self.calls.clear()
        self.called.clear()
        self.waited.clear()
        self.left.clear()
        self.gone = NOTHING
        self.over.clear()
        self._unfilled.clear()

    def mark(self) -> i64:
        return self.memory.mark()

    def keep(self, mark: i64) -> None:
        self.memory.keep(mark)

    def add(self, name: str, body: Callable[[], object]) -> None:
        super().add(name, body)
        self.memory.tasks.append(TaskView())

    # Locations

    def update(
        self,
        what: str,
        subject: object,
        field: str,
        index: int,
        order: int,
        succeeds: Callable[[object], bool] | None = None,
    ) -> None:
        task = self.current
        if task is not None:
            self._succeeds[task.number] = succeeds
            super().update(what, subject, field, index, order, succeeds)

    def loaded(self, subject: object, field: str, index: int) -> object:
        return self._loaded

    def locate(self, step: Step, subject: object, whole: object, field: str, index: int) -> None:
        location = step.location
        if location is None:
            step.location = self.memory.location(subject, self._key(whole), field, index)
        else:  # the step of another execution
            self.memory.begin(location, subject)
        if step.order == UPDATE + FULL and step.what not in self.memory.weakened:
            step.full = self.places.of(self.full)

    def _key(self, subject: object) -> int:
        """The number of the place of an object."""
        return self.places.of(subject).number

    def alike(self, subject: object, field: str, first: int, count: int) -> None:
        task = self.current
        if task is not None:
            key = self._key(subject)
            for index in range(first, first + count):
                location = self.memory.met(key, field, index)
                if location is not None:
                    new = self.memory.update(task.number, location, PLAIN, "", len(self.trace) - 1)
                    self._unfilled.append((location, new))

    def initialised(self, what: str, subject: object, fields: str) -> None:
        task = self.current
        if task is not None:
            for field in fields.split():
                location = self.memory.location(subject, self._key(subject), field, 0)
                self.memory.initialise(task.number, location, what, len(self.trace) - 1)

    def uses(self, what: str, subject: object, field: str) -> None:
        task = self.current
        if task is not None:
            key = self._key(subject)
            location = self.memory.location(subject, key, field, 0)
            if not self.memory.is_there(task.number, location, key):
                raise self._too_early(task, what, field, location.messages[1])

    def _too_early(self, task: Task, what: str, field: str, message: Message) -> Finding:
        return Finding(
            f"{task.name} reads {field} before it is initialised ({what}): {self._who(message)} wrote it"
            f" ({message.what}), and nothing orders that before the pointer that led here"
        )

    def fence(self, what: str, kind: int) -> None:
        task = self.current
        if task is not None:
            if kind == ALL:  # a step, since all of them come one after the other
                self._announce(task, POINT, what, self.full, WRITE)
            self.memory.fence(task.number, kind, what)

    def depends(self, what: str, subject: object) -> None:
        task = self.current
        if task is not None:
            self.memory.used[what] = "address dependency"
            self.memory.lead(task.number, self._key(subject))

    def ages(self, task: Task, clock: list[int]) -> list[int]:
        step = task.pending
        if step is None:
            return [0]
        if step.kind == ENTER:
            return self._grace_periods(task, clock)
        location = step.location
        if location is None or not (step.loads or self.memory.racing):
            return [0]
        newest = location.which(0, step.first, step.last)
        message = location.messages[newest]
        if clock and not self.memory.racing and message.task >= 0 and clock[message.task] <= message.step:
            return [0]
        key = location.key
        if step.order >= UPDATE:
            full = step.order == UPDATE + FULL and step.what not in self.memory.weakened
            return self.memory.sources(task.number, location, key, full, self._succeeds.get(task.number))
        if not step.loads:
            return self.memory.places(task.number, location, key)
        ages = list(range(self.memory.allowed(task.number, location, key, step.first, step.last)))
        if step.begun >= 0:  # of those that are another value, the one that tells least
            same = [age for age in ages if location.messages[newest - age].value == step.begun]
            return same + [age for age in ages if age not in same][-1:]
        if step.kind == WAIT:  # of a sequence count, only those that do not make it wait
            if location.field != "sequence":
                return NEWEST
            return [age for age in ages if not self._is_odd(location.messages[newest - age].value)]
        return ages

    def _is_odd(self, value: object) -> bool:
        return isinstance(value, int) and value & 1 == 1

    def _perform(self, task: Task, step: Step, age: int) -> None:
        location = step.location
        assert location is not None
        memory = self.memory
        if (
            len(self.trace) >= len(self.known)  # else it was looked at when the path was taken before
            and location.field not in (WHOLE, VERSION)
            and location.messages[-1].value != location.now()
        ):
            raise RuntimeError(
                f"{step.what}: {location.field} of {step.subject!r} changed, and nobody announced it"
            )
        if step.loads:
            number = location.which(age, step.first, step.last)
            message = location.messages[number]
            value = message.value
            if value is UNINITIALISED:
                raise self._too_early(task, step.what, location.field, message)
            pointee = -1
            if location.field != WHOLE and value is not None and not isinstance(value, (int, str)):
                pointee = self._key(value)
            key = location.key
            if not memory.load(task.number, location, key, number, step.order, step.what, pointee):
                raise self._too_early(task, step.what, location.field, message)
            self._loaded = location.subject if location.field in (WHOLE, VERSION) and age == 0 else value
            if age:
                next = location.messages[location.which(age - 1, step.first, step.last)]
                step.note = f" (old since step {next.step + 1}: {self._who(next)}, {next.what})"
            return
        number = len(self.trace) - 1
        if step.order >= UPDATE:
            if not memory.is_there(task.number, location, location.key):
                raise self._too_early(task, step.what, location.field, location.messages[1])
            message = location.messages[-1 - age]
            self._loaded = message.value
            succeeds = self._succeeds.get(task.number)
            if succeeds is not None and not succeeds(message.value):
                key = location.key
                memory.load(task.number, location, key, len(location.messages) - 1 - age, ONCE, step.what, -1)
                return
            new = memory.update(task.number, location, step.order - UPDATE, step.what, number, age)
        else:
            new = memory.store(task.number, location, step.order, step.what, number, task.name, age)
            new.first = step.first
            new.last = step.last
        self._unfilled.append((location, new))

    def _who(self, message: Message) -> str:
        return self.tasks[message.task].name if message.task >= 0 else "the scenario"

    def _settle(self) -> None:
        for location, message in self._unfilled:
            message.value = location.now()
            newest = location.messages[-1]
            if newest is not message:  # the object keeps what comes last
                setattr(location.subject, location.field, newest.value)
        self._unfilled.clear()

    # Locks

    def acquire(self, lock: object, write: bool) -> None:
        super().acquire(lock, write)
        task = self.current
        if task is not None:
            self._taken(task, lock)

    def try_acquire(self, lock: object, write: bool) -> bool:
        taken = super().try_acquire(lock, write)
        task = self.current
        if taken and task is not None:
            self._taken(task, lock)
        return taken

    def _taken(self, task: Task, lock: object) -> None:
        state = self._state(lock)
        self.memory.acquire(task.number, state.place.number)
        self._changed(task, state)

    def _changed(self, task: Task, state: LockState) -> None:
        """The word of a lock, which somebody may ask, is another: who took it, or gave it back, knows."""
        if state.asked:
            location = self.memory.location(state, state.place.number, "held", 0)
            self.memory.update(
                task.number, location, PLAIN, state.name, len(self.trace) - 1
            ).value = state.held

    def release(self, lock: object, write: bool) -> None:
        super().release(lock, write)
        task = self.current
        if task is not None:
            state = self._state(lock)
            self.memory.release(task.number, state.place.number)
            self._changed(task, state)

    def downgrade(self, lock: object) -> None:
        super().downgrade(lock)
        task = self.current
        if task is not None:
            self.memory.release(task.number, self._key(lock))

    # Grace periods

    def _grace_periods(self, task: Task, clock: list[int]) -> list[int]:
        """How many of the grace periods, the latest first, may wait for a section that the task enters now."""
        newest = len(self.calls)
        if not newest or (clock and clock[self.calls[-1][1]] <= self.calls[-1][2]):
            return [0]
        view = self.memory.tasks[task.number].now
        ages = [0]
        for age in range(1, newest + 1):
            if newest - age in self.over:
                break
            handed = self.calls[newest - age][0]
            if all(view.get(location, 0) >= oldest for location, oldest in handed.items()):
                break  # the task knows all that came before it: no older one is worth a try
            ages.append(age)
        return ages

    def rcu_leave(self) -> None:
        super().rcu_leave()
        task = self.current
        if self.synchronous and task is not None and task.rcu_depth == 0:
            self._announce(task, POINT, "has left an RCU section", self.gate, ADD)
            view = self.memory.tasks[task.number]
            for number, readers in enumerate(self.waited):
                if task.number in readers:
                    readers.remove(task.number)
                    self.left[number] = join(self.left[number], view.all())

    def synchronize_rcu(self, what: str) -> None:
        """A grace period that the caller waits for, also where nobody may sleep, which herd allows; full barriers
        before and after it.  The machine waits for none: herd judges grace periods by it (tests/litmus)."""
        task = self.current
        if task is None:
            return
        self.memory.fence(task.number, ALL, what)
        token = object()
        self.rcu_call(what, token)
        number = self.called.index(self.places.of(token))
        waited = self.waited[number]
        self._wait(task, "the end of a grace period", self.gate, lambda: not waited)
        self.over.add(number)
        its = self.memory.tasks[task.number]
        its.now = join(its.now, self.left[number])
        self.memory.fence(task.number, ALL, what)

    def _take(self, task: Task, age: int) -> bool:
        step = task.pending
        if step is not None and step.kind == ENTER:
            known = len(self.calls) - age
            for number, (handed, _, _) in enumerate(self.calls):
                if number < known:
                    self.memory.take_over(task.number, handed)
                else:
                    freed = self.called[number].freed
                    assert freed is not None
                    freed.readers.append(task.number)
                    self.waited[number].append(task.number)
        elif step is not None and step.kind == CALL:
            told = NOTHING
            name = f"free {step.what}"
            self.memory.used[name] = "call_rcu()"
            if name not in self.memory.weakened:
                told = self.memory.tasks[task.number].all()
            self.calls.append((told, task.number, len(self.trace)))
            self.called.append(step.place)
            self.left.append(self.gone)
            self.waited.append([reader.number for reader in self.tasks if reader.rcu_depth > 0])
        elif step is not None and step.kind == LEAVE:
            self.gone = join(self.gone, self.memory.tasks[task.number].all())
        return super()._take(task, age)
