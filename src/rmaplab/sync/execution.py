# SPDX-License-Identifier: GPL-2.0-or-later
"""One run of a few tasks, step by step: the tasks that wait, those that may go on, and forbidden accesses.

Tasks are ordinary functions that take locks, enter RCU sections and announce their accesses to shared state
through the `Scheduler` that they were given.  Each of these operations is a *step*: the task announces it and
stops; somebody (interleave.py) decides who goes on, and `Execution.step` performs the announced operation and
lets that task run to its next one.  `Execution.run` asks a `Driver` where the task stops, and so switches greenlets
only when another one is to go on.

Memory model: sequential consistency, plus RCU.  Steps are atomic and happen in one order that all tasks see.

Locks
- A task takes a spin lock if it is free.
- A reader-writer semaphore is fair to writers (kernel/locking/rwsem.c): a writer that finds readers inside
  queues; from then on no reader comes in and no attempt succeeds before the first in the queue has had the lock.
  Linux lets a reader steal the lock past a writer that has only begun to wait; that is the order in which this
  reader came first, and is tried as such.
- The release of a spin lock is no step: it can never be too early.  If another task may *see* that a lock is held,
  because it uses trylock or queues, the release is a step (rwsems, and classes of locks that are declared `tried`).

RCU: `rcu_call` hands an object to a grace period, which may be over as soon as every reader that was inside when it
began has left.  So only they may still access the object, and only until they leave: any other access might
come too late, and is an error at once.  So the ends of grace periods need no exploration.

Freed objects are poisoned: a step on one is an error, whatever the step.  So is reliance on a lock (assert_held()) that
the task does not hold: if the lock covers a single step, no interleaving would show that it is missing.  So is anything
that may sleep (might_sleep(), locks that put who waits to sleep) under a spin lock or in an RCU section, also where
nobody makes it wait.

Invariants
- A step's object is known before the step is taken, so conflicts are known exactly.  Code that touches shared state
  without announcing it is not checked.
- The same path (the numbers of the tasks chosen) always gives the same execution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

import greenlet
from mypy_extensions import i64

from rmaplab.sync.errors import Finding
from rmaplab.sync.fields import EVERYTHING, OF_PAGE, VERSION, ends_of, is_way, look
from rmaplab.sync.locks import Lock, RwSemaphore, Scheduler
from rmaplab.sync.memory import Location
from rmaplab.sync.order import ONCE, PLAIN
from rmaplab.sync.places import Freed, Place, Places

NEWEST: Final = [0]
AGE: Final = 256  # a step of a path: the number of its task, and that times how old a value it loads
UPDATE: Final = 16  # added to the order of an atomic

# What a step does
POINT: Final = 0
ACQUIRE: Final = 1
ENTER: Final = 2
LEAVE: Final = 3
CALL: Final = 4
FREE: Final = 5
WAIT: Final = 6
RELEASE: Final = 7
QUEUE: Final = 8
TRY: Final = 9
DOWNGRADE: Final = 10
ASK: Final = 11

_VERBS: Final = (
    "", "takes", "enters", "leaves", "defers the free of", "frees", "waits for", "gives back", "queues for", "tries",
    "downgrades", "asks whether anybody has",
)  # fmt: skip

# How it does it to its object
READ: Final = 0
WRITE: Final = 1
ADD: Final = 2  # a change that nobody looks at the result of: it commutes with others of its kind
TOUCH: Final = 3  # only asks that the object be there
POISON: Final = 4
DEFER: Final = 5  # poison, but not for those that are in an RCU section by then
NOTHING: Final = 6

# Of each mode, those that it does not commute with: eight bits each, in one number, which is quicker than a tuple.
_POISONS: Final = 1 << POISON | 1 << DEFER
_CONFLICTS: Final = (
    (1 << WRITE | 1 << ADD | _POISONS) << 8 * READ
    | (1 << READ | 1 << WRITE | 1 << ADD | _POISONS) << 8 * WRITE
    | (1 << READ | 1 << WRITE | _POISONS) << 8 * ADD
    | _POISONS << 8 * TOUCH
    | (1 << READ | 1 << WRITE | 1 << ADD | 1 << TOUCH | _POISONS) << 8 * POISON
    | (1 << READ | 1 << WRITE | 1 << ADD | 1 << TOUCH | _POISONS) << 8 * DEFER
)


class Step:
    """One operation by one task on one object, or on two.

    also:   of a part, the whole that it is freed with, which has to be there; of a call, RCU
    full:   of an atomic that is a full barrier: what stands for all of these
    inside: taken within an RCU section.  Whether that began before a call or after it makes a difference; when
            within the section an object is come by does not.
    owner, field, index: of a step on a field
    first, last: of the elements that it looks at or changes, if its object has such
    begun, changes: of a load that only asks whether a count is still this one, and how often it had changed
    note:   what it found, if that was old (race.py adds what would have forbidden it)

    A path that is followed again has the same steps: those that are on the same objects are not made anew
    (`Execution.known`).  What a path knows of its steps (path.py) is kept with them.
    """

    def __init__(
        self,
        task: int,
        kind: int,
        what: str,
        subject: object,
        place: Place,
        mode: int,
        also: Place | None = None,
        inside: bool = False,
        owner: object = None,
        field: str = "",
        index: int = 0,
    ) -> None:
        self.task: Final = task
        self.kind: Final = kind
        self.what: Final = what
        self.subject: Final = subject
        self.place: Final = place
        self.mode: Final[i64] = mode
        self.also: Final = also
        self.also_mode: Final[i64] = ADD if kind == CALL else TOUCH
        self.inside: Final = inside
        self.owner: Final = owner
        self.field: Final = field
        self.index: Final = index
        self.full: Place | None = None
        self.lock: LockState | None = None
        self.location: Location | None = None  # of a load that may return an old value (weak.py)
        self.order = 0
        self.first: i64 = 0
        self.last: i64 = EVERYTHING
        self.begun = -1
        self.changes = 0
        self.note = ""
        # On a path: the step before it of its task, and on each of its places, with whose steps were there.
        self.depth: i64 = -1
        self.clock: i64 = 0
        self.loose: i64 = 0
        self.until: Step | None = None  # of a spin lock's acquisition: its owner's last step under it
        self.before: Step | None = None
        self.prior: Step | None = None
        self.prior_also: Step | None = None
        self.prior_full: Step | None = None
        self.tasks: i64 = 0
        self.tasks_also: i64 = 0
        self.tasks_full: i64 = 0

    @property
    def write(self) -> bool:
        return self.mode == WRITE

    @property
    def loads(self) -> bool:
        """Does it only load?  Who asks for a lock conflicts with whoever takes it, for reading as well."""
        return self.mode == READ or self.kind == ASK

    def may_be_old(self) -> bool:
        """Could it have come after a store, or a grace period's begin, that it came before, and gone as it went?"""
        return self.kind == ENTER or (self.location is not None and (self.loads or self.order >= UPDATE))

    def depends_on(self, other: Step) -> bool:
        """Can it matter which of the two comes first?"""
        if other.is_on(self.place) and self.clashes_at(self.place, other):
            return True
        also = self.also
        if also is not None and other.is_on(also) and self.clashes_at(also, other):
            return True
        full = self.full
        return full is not None and other.is_on(full) and self.clashes_at(full, other)

    def is_on(self, place: Place) -> bool:
        return place is self.place or place is self.also or place is self.full

    def clashes_at(self, place: Place, other: Step) -> bool:
        """Can it, because of `place`, which both are on?"""
        mode, its = self.mode_at(place), other.mode_at(place)
        if i64(_CONFLICTS) >> (mode * 8 + its) & 1 == 0:
            return False
        if (
            (self.last < other.first or other.last < self.first)
            and place is self.place
            and place is other.place
        ):
            return mode == its  # changes come one after the other, wherever
        if mode == DEFER:
            return its == DEFER or not other.inside
        return its != DEFER or not self.inside

    def is_again(self, other: Step) -> bool:
        """Is it the same step of another execution?"""
        return self is other or (
            self.place is other.place and self.kind == other.kind and self.mode == other.mode
        )

    def is_still(self, kind: int, what: str, mode: int, inside: bool) -> bool:
        """Is it this one, if it is on the same object?  What tasks made is another each time."""
        also = self.also
        return (
            self.kind == kind
            and self.mode == mode
            and self.inside == inside
            and not self.place.fresh
            and (also is None or not also.fresh)
            and self.what == what
        )

    def mode_at(self, place: Place) -> i64:
        """How it is on one of its places."""
        if self.place is place:
            return self.mode
        return WRITE if self.full is place else self.also_mode

    def earlier(self, place: Place) -> Step | None:
        """The step before it on one of its places."""
        if self.place is place:
            return self.prior
        return self.prior_full if self.full is place else self.prior_also

    def words(self) -> str:
        return f"{_VERBS[self.kind]} {self.what}".strip()


class LockState:
    """Who holds a lock in an execution, and which writers queue for it.

    name:  of its class
    place: its own, and `whole`, that of what it is freed with
    tried: somebody who does not wait for it may see that it is held
    sleeps: who waits for it does
    """

    def __init__(self, execution: Execution, lock: Lock, place: Place, whole: Place | None) -> None:
        self.execution: Final = execution
        self.name: Final = lock.lock_class.name
        self.place: Final = place
        self.whole: Final = whole
        self.tried: Final = isinstance(lock, RwSemaphore) or lock.lock_class.tried
        self.sleeps: Final = isinstance(lock, RwSemaphore) or lock.lock_class.sleeps
        self.asked: Final = lock.lock_class.asked
        self.writer = -1
        self.readers: Final[list[int]] = []
        self.queue: Final[list[int]] = []

    def reset(self) -> None:
        """Nobody has it."""
        self.writer = -1
        if self.readers:
            self.readers.clear()
        if self.queue:
            self.queue.clear()

    @property
    def held(self) -> bool:
        return self.writer >= 0 or len(self.readers) > 0


class Stack:
    """A greenlet that runs the bodies of tasks, one after the other: to begin a greenlet takes longer than a dozen
    steps.

    hub:   the greenlet that goes on when a body has ended
    wrong: what that body raised
    """

    def __init__(self, hub: Any) -> None:
        self.hub: Final = hub
        self.green: Final = greenlet.greenlet(self._serve)
        self.body: Callable[[], object] | None = None
        self.wrong: Exception | None = None
        self.stopping = False

    def _serve(self) -> None:
        while self.body is not None:
            try:
                self.body()
            except Exception as error:
                self.wrong = error
            except greenlet.GreenletExit:
                if not self.stopping:
                    return
            self.body = None
            self.hub.switch()


class Task:
    """One thread of control."""

    def __init__(self, number: int, name: str, body: Callable[[], object]) -> None:
        self.number: Final = number
        self.name: Final = name
        self.body: Final = body
        self.held: Final[list[tuple[object, bool]]] = []
        self.reset()

    def reset(self) -> None:
        """It has not begun."""
        self.stack: Stack | None = None
        self.green: Any = None
        self.pending: Step | None = None
        self.done = False
        self.rcu_depth = 0
        self.ready: Callable[[], bool] | None = None
        self.queued = False  # behind the readers of the rwsem that it is about to take
        self.acted = 0  # how often it did more than look
        self.looks_at: object = None  # the sequence count that it last began to read
        self.looks_since = 0  # ... and how often it had acted then
        self.idle = False  # it looked in vain (`Execution.awaits`)
        if self.held:
            self.held.clear()

    def at_end(self) -> bool:
        """It ran, and announced no step more."""
        return self.pending is None


class Driver:
    """Who decides."""

    def choose(self, execution: Execution) -> int:
        """The number of the task that takes the next step (and how old the value is that it loads: AGE), -1: none."""
        raise NotImplementedError


class Execution(Scheduler):
    """One run of a scenario.  Create it, build the scenario's objects with it as their scheduler, add the
    tasks, and `start`.  Until then, and after the end, operations pass through.

    awaits: a task that did nothing but look, under a sequence count that then had changed, does not look again
    entire: names of accesses that are about all of an object, also where they are about a part of it
    """

    def __init__(self) -> None:
        self.awaits = False
        self.entire: frozenset[str] = frozenset()
        self.weak = (
            False  # else what designs keep in a VMA is looked at and changed along with the step before
        )
        self.tasks: Final[list[Task]] = []
        self.stacks: Final[list[Stack]] = []  # that no task runs on
        self.trace: Final[list[Step]] = []
        self.hub: Any = None
        self.driver: Driver | None = None
        self.current: Task | None = None
        self.running: Task | None = None  # who went on last, also while somebody decides
        self.halted = False  # by the driver's decision
        self.wrong: Exception | None = None  # ... or by what broke as it decided
        self.known: list[
            list[Step | None]
        ] = []  # what tasks announced at the states of a path that is followed again
        self.places = Places()  # of all executions of a search
        self._states: Final[list[LockState]] = []  # of locks that were there before tasks began
        self.rcu: Final = object()
        self.subject: object = None  # what the scenario built: all of its state can be reached from here
        self.released: Final[list[Place]] = []  # the spin locks given back since the last step
        self.lock_order: Final[set[tuple[str, str]]] = set()

    def meet(self, found: list[object]) -> None:
        """These objects are there before the tasks begin: they have the same places from run to run."""
        self.places.meet([*found, self.rcu])
        for each in found:
            if isinstance(each, Lock):
                self._states.append(self._state(each))

    def mark(self) -> i64:
        """How far what a memory model keeps of an execution has come."""
        return 0

    def keep(self, mark: i64) -> None:
        """The steps that led up to this mark in the last execution are taken again."""

    def again(self) -> None:
        """Another run is to begin, with all objects as they were (snapshot.py)."""
        for task in self.tasks:
            task.reset()
        for state in self._states:
            state.reset()
        self.places.again()
        self.released.clear()
        self.trace.clear()
        self.known = []
        self.driver = None
        self.current = None
        self.running = None
        self.halted = False
        self.wrong = None

    def add(self, name: str, body: Callable[[], object]) -> None:
        self.tasks.append(Task(len(self.tasks), name, body))

    # What tasks call

    def acquire(self, lock: object, write: bool) -> None:
        task = self.current
        if task is None:
            return
        state = self._state(lock)
        for held, _ in task.held:
            if held is lock:
                raise Finding(
                    f"{task.name} takes {state.name} while it holds it: it waits for itself for ever"
                )
            if len(self.trace) >= len(self.known):
                self.lock_order.add((class_of(held), state.name))
        if state.sleeps:
            self.might_sleep(state.name)
        self._announce_lock(task, ACQUIRE, lock, state, WRITE if write else READ)
        task.held.append((lock, write))

    def try_acquire(self, lock: object, write: bool) -> bool:
        task = self.current
        if task is None:
            return True
        state = self._state(lock)
        if not state.tried:
            raise RuntimeError(f"{state.name} is tried, and its class was not declared so")
        self._announce_lock(task, TRY, lock, state, WRITE)
        if state.writer >= 0 or state.queue or (write and state.readers):
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
        at = -1
        for number, (held, how) in enumerate(task.held):
            if held is lock and how == write:
                at = number
        if at < 0:
            raise Finding(f"{task.name} gives back {class_of(lock)}, which it does not hold like that")
        state = self._state(lock)
        if state.tried:
            self._announce_lock(task, RELEASE, lock, state, WRITE if write else READ)
        else:
            self.released.append(state.place)
        del task.held[at]
        if write:
            state.writer = -1
        else:
            state.readers.remove(task.number)

    def looked(self, lock: object) -> None:
        task = self.current
        if task is not None:
            task.acted -= 1

    def downgrade(self, lock: object) -> None:
        task = self.current
        if task is None:
            return
        if (lock, True) not in task.held:
            raise Finding(f"{task.name} downgrades {class_of(lock)}, which it does not hold for writing")
        state = self._state(lock)
        self._announce_lock(task, DOWNGRADE, lock, state, WRITE)
        task.held.remove((lock, True))
        task.held.append((lock, False))
        state.writer = -1
        state.readers.append(task.number)

    def is_locked(self, lock: object) -> bool:
        task = self.current
        if task is None:
            return False
        state = self._state(lock)
        step = Step(task.number, ASK, state.name, lock, state.place, WRITE, state.whole, task.rcu_depth > 0)
        self.locate(step, state, lock, "held", 0)
        task.pending = step
        self._pause(task)
        return bool(self.loaded(state, "held", 0))

    def assert_held(self, lock: object, write: bool) -> None:
        task = self.current
        if task is not None:
            for held, exclusively in task.held:
                if held is lock and (exclusively or not write):
                    return
            how = " for writing" if write and isinstance(lock, RwSemaphore) else ""
            raise Finding(f"{task.name} relies on {class_of(lock)}, which it does not hold{how}")

    def might_sleep(self, what: str) -> None:
        task = self.current
        if task is None:
            return
        if task.rcu_depth:
            raise Finding(f"{task.name} may sleep for {what} within an RCU section")
        for held, _ in task.held:
            if not self._state(held).sleeps:
                raise Finding(f"{task.name} may sleep for {what} while it holds {class_of(held)}, a spin lock")

    def rcu_enter(self) -> None:
        task = self.current
        if task is not None:
            if task.rcu_depth == 0:
                self._announce(task, ENTER, "an RCU section", self.rcu, READ)
            task.rcu_depth += 1

    def rcu_leave(self) -> None:
        task = self.current
        if task is not None:
            if task.rcu_depth == 0:
                raise Finding(f"{task.name} leaves an RCU section that it is not in")
            if task.rcu_depth == 1:
                # Whoever calls before that waits for it, whoever calls after it does not need to: the same.
                self._announce(task, LEAVE, "the RCU section", self.rcu, NOTHING)
                for place in self.places.freed:
                    freed = place.freed
                    if freed is not None and task.number in freed.readers:
                        freed.readers.remove(task.number)
            task.rcu_depth -= 1

    def rcu_call(self, what: str, subject: object, then: Callable[[], None] | None = None) -> None:
        """Free `subject` after a grace period.  Nothing is used again meanwhile, so `then` need not be called."""
        task = self.current
        if task is not None:
            self._announce(task, CALL, what, subject, DEFER, self.rcu)

    def slab_free(self, what: str, subject: object, then: Callable[[], None]) -> None:
        """Nothing is used again while tasks run, so that whoever has a stale pointer is found out."""
        if self.current is None:
            then()
        else:
            self.rcu_call(what, subject)

    def free(self, what: str, subject: object) -> None:
        """Free `subject` now."""
        task = self.current
        if task is not None:
            self._announce(task, FREE, what, subject, POISON)

    def reuses(self) -> bool:
        """As slab_free()"""
        return self.current is None

    def touch(self, what: str, subject: object) -> None:
        task = self.current
        if task is not None:
            self._announce(task, POINT, what, subject, TOUCH)

    def point(self, what: str, subject: object, write: bool = False) -> None:
        task = self.current
        if task is not None:
            self._announce(task, POINT, what, subject, WRITE if write else READ)

    def point_in(self, whole: object, what: str, subject: object, write: bool = False) -> None:
        task = self.current
        if task is not None:
            self._announce(task, POINT, what, subject, WRITE if write else READ, whole)

    def load(self, what: str, subject: object, field: str, index: int, order: int, whole: object) -> object:
        task = self.current
        if task is not None and (self.weak or not is_way(field)):
            self._announce_location(task, POINT, what, subject, field, index, READ, order, whole)
            return self.loaded(subject, field, index)
        return look(subject, field, index)

    def loaded(self, subject: object, field: str, index: int) -> object:
        """What the load that was announced returns."""
        return look(subject, field, index)

    def load_changed(self, what: str, subject: object, field: str, order: int, begun: int) -> bool:
        task = self.current
        if task is None:
            return look(subject, field, 0) != begun
        step = self._announce_location(task, POINT, what, subject, field, 0, READ, order, None, begun)
        found = cast(int, self.loaded(subject, field, 0))
        if not self.weak:
            step.changes = found - begun
        if self.awaits and found != begun and task.looks_at is subject and task.looks_since == task.acted:
            task.idle = True
            self._announce(task, POINT, "would look again", task, NOTHING)
        return found != begun

    def store(self, what: str, subject: object, field: str, index: int, order: int, whole: object) -> None:
        task = self.current
        if task is not None and (self.weak or not is_way(field)):
            self._announce_location(task, POINT, what, subject, field, index, WRITE, order, whole)

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
        if task is not None and (self.weak or not is_way(field)):
            mode = ADD if order == PLAIN else WRITE
            self._announce_location(task, POINT, what, subject, field, index, mode, order + UPDATE, None)

    def wait_load(self, what: str, subject: object, field: str, ready: Callable[[], bool]) -> object:
        task = self.current
        if task is None:
            return getattr(subject, field)
        task.ready = ready
        self._announce_location(task, WAIT, what, subject, field, 0, READ, ONCE, None)
        task.ready = None
        task.looks_at = subject
        task.looks_since = task.acted
        return self.loaded(subject, field, 0)

    def wait(self, what: str, subject: object, ready: Callable[[], bool]) -> None:
        task = self.current
        if task is not None:
            self.might_sleep(what)
            self._wait(task, what, subject, ready)

    def _wait(self, task: Task, what: str, subject: object, ready: Callable[[], bool]) -> None:
        task.ready = ready
        self._announce(task, WAIT, what, subject, READ)
        task.ready = None

    def chunk(self) -> int:
        return 1 if self.current is not None else 0

    # Running

    def _state(self, lock: object) -> LockState:
        """What the lock itself remembers, if it was of this execution that it did."""
        its = cast(Lock, lock)
        state = its.state
        if isinstance(state, LockState) and state.execution is self:
            return state
        place = self.places.of(lock)
        made = LockState(self, its, place, None if its.whole is None else self.places.of(its.whole))
        its.state = made
        return made

    def _known(self, task: Task) -> Step | None:
        """What the task announced here when the path was taken before."""
        depth: i64 = len(self.trace)
        return self.known[depth][task.number] if depth < len(self.known) else None

    def _announce_lock(self, task: Task, kind: int, lock: object, state: LockState, mode: int) -> None:
        inside = task.rcu_depth > 0
        step = self._known(task)
        if step is None or step.lock is not state or not step.is_still(kind, state.name, mode, inside):
            step = Step(task.number, kind, state.name, lock, state.place, mode, state.whole, inside)
            step.lock = state
        task.acted += 1
        task.pending = step
        self._pause(task)

    def _announce(
        self, task: Task, kind: int, what: str, subject: object, mode: int, whole: object = None
    ) -> None:
        inside = task.rcu_depth > 0
        if kind != POINT or (mode != TOUCH and mode != READ):
            task.acted += 1
        step = self._known(task)
        if step is None or step.subject is not subject or not step.is_still(kind, what, mode, inside):
            also = None if whole is None else self.places.of(whole)
            step = Step(task.number, kind, what, subject, self.places.of(subject), mode, also, inside)
        task.pending = step
        self._pause(task)

    def _announce_location(
        self,
        task: Task,
        kind: int,
        what: str,
        subject: object,
        field: str,
        index: int,
        mode: int,
        order: int,
        whole: object,
        begun: int = -1,
    ) -> Step:
        """A step on one field: an object of its own, which is freed with `whole` or the subject, a page's with it."""
        inside = task.rcu_depth > 0
        part = 0
        if field == VERSION:
            part = index
            index = 0
        if mode != READ:
            task.acted += 1
        step = self._known(task)
        if (
            step is None
            or step.owner is not subject
            or step.index != index
            or step.field != field
            or not step.is_still(kind, what, mode, inside)
        ):
            place = self.places.of(subject)
            also = place
            if field == OF_PAGE:
                also = self.places.of(index)
            elif whole is not None:
                also = self.places.of(whole)
            own = self.places.of_field(place, field, index)
            shown = index if field == OF_PAGE else subject
            step = Step(task.number, kind, what, shown, own, mode, also, inside, subject, field, index)
            if part and what not in self.entire:
                step.first, step.last = ends_of(part)
        step.order = order
        step.begun = begun
        step.changes = 0
        step.note = ""
        if self.weak:
            self.locate(step, subject, subject, field, index)
        task.pending = step
        self._pause(task)
        return step

    def _pause(self, task: Task) -> None:
        """`task` announced a step: come back when it has been taken."""
        self.current = None
        green = self.hub
        if self.driver is not None:
            if self.weak:
                self._settle()
            following: Task | None = None
            try:
                following = self._decide(self.driver)
            except Exception as error:
                self.wrong = error
            if following is None:
                self.halted = True
            elif following is task:
                task.pending = None
                self.current = task
                return
            else:
                following.pending = None
                self.running = following
                green = following.green
        green.switch()
        self.current = task

    def _decide(self, driver: Driver) -> Task | None:
        """Have steps taken up to one after which a task goes on, which is returned; None if none shall."""
        while True:
            taking = driver.choose(self)
            if taking < 0:
                return None
            task = self.tasks[taking % AGE]
            if self._take(task, taking // AGE):
                return task

    def _settle(self) -> None:
        """A task has come to its next step, or to its end."""

    def locate(self, step: Step, subject: object, whole: object, field: str, index: int) -> None:
        """`step` is about a field of `subject`, which is `whole`, or tells of it."""

    def ages(self, task: Task, clock: list[int]) -> list[int]:
        """How old the value may be that the task's next step loads: 0 is the newest.  `clock`: for each task, how many
        steps of the path came before the task's next, none if that is not known."""
        return NEWEST

    def enabled(self, task: Task) -> bool:
        step = task.pending
        if task.done or task.idle or step is None:
            return False
        kind = step.kind
        if kind == ACQUIRE:
            state = step.lock
            assert state is not None
            if state.writer >= 0:
                return False
            if step.mode == READ:
                return not state.queue
            if state.readers:
                # It may come and queue; whether it does matters only to who comes after it.
                return not task.queued and isinstance(step.subject, RwSemaphore)
            return not state.queue or state.queue[0] == task.number
        if kind == WAIT:
            ready = task.ready
            return ready is None or ready()
        return True

    def must_wait(self, task: Task) -> bool:
        """Can it not get what it announced, be it that it may queue for it?"""
        if not self.enabled(task):
            return True
        step = task.pending
        assert step is not None
        return (
            step.lock is not None and step.kind == ACQUIRE and step.mode == WRITE and bool(step.lock.readers)
        )

    def start(self) -> None:
        """Let every task run to its first step."""
        self.hub = greenlet.getcurrent()
        for task in list(self.tasks):
            stack = self.stacks.pop() if self.stacks else Stack(self.hub)
            stack.body = task.body
            task.stack = stack
            task.green = stack.green
            self._resume(task)

    def run(self, driver: Driver) -> None:
        """Take steps as the driver decides, until it says that none is left."""
        self.driver = driver
        while not self.halted:
            task = self._decide(driver)
            if task is None:
                return
            self._resume(task)
        if self.wrong is not None:
            raise self.wrong

    def _resume(self, task: Task) -> None:
        """Let `task` go on, and after it those that are decided on, until one ends or nothing more is to be done."""
        task.pending = None
        self.running = task
        self.current = task
        try:
            task.green.switch()
        finally:
            self._settle()
        self.current = None
        if self.running is not None and self.running.at_end():
            self._end(self.running)

    def _end(self, task: Task) -> None:
        task.done = True
        stack = task.stack
        if stack is not None:
            self.stacks.append(stack)
            error = stack.wrong
            if error is not None:
                stack.wrong = None
                raise error
        if task.held:
            raise Finding(f"{task.name} ends while it holds {class_of(task.held[0][0])}")
        if task.rcu_depth:
            raise Finding(f"{task.name} ends within an RCU section")

    def step(self, task: Task, age: int = 0) -> None:
        """Perform what `task` announced, and let it run to its next step; a load may return an old value (`ages`)."""
        if self._take(task, age):
            self._resume(task)

    def _take(self, task: Task, age: int) -> bool:
        """Perform what `task` announced.  False if it is not through with it: it queues."""
        step = task.pending
        assert step is not None
        kind = step.kind
        if self.released:
            self.released.clear()
        if kind == ACQUIRE:
            state = step.lock
            assert state is not None
            if step.mode == READ:
                state.readers.append(task.number)
            elif state.readers:
                state.queue.append(task.number)
                task.queued = True
                self.trace.append(
                    Step(step.task, QUEUE, step.what, step.subject, step.place, WRITE, step.also, step.inside)
                )
                self._look(task, step)
                return False
            else:
                state.writer = task.number
                if task.queued:
                    task.queued = False
                    del state.queue[0]
        self.trace.append(step)
        self._look(task, step)
        if kind == FREE:
            self.places.free(step.place, Freed(step.what, task.name, [], False))
        elif kind == CALL:
            readers = [reader.number for reader in self.tasks if reader.rcu_depth > 0]
            self.places.free(step.place, Freed(step.what, task.name, readers, True))
        if step.location is not None:
            self._perform(task, step, age)
        # A section's depth changes in the task itself, just after it resumes: nothing runs in between.
        return True

    def _perform(self, task: Task, step: Step, age: int) -> None:
        """Access the location of a step."""

    def _look(self, task: Task, step: Step) -> None:
        """Are the objects still there?"""
        freed = step.place.freed
        if freed is not None:
            self._look_at(task, step, freed)
        if step.also is not None:
            freed = step.also.freed
            if freed is not None:
                self._look_at(task, step, freed)

    def _look_at(self, task: Task, step: Step, freed: Freed) -> None:
        if task.number not in freed.readers or step.kind == CALL or step.kind == FREE:
            raise Finding(f"use after free: {task.name} {step.words()} after {freed.words}")

    def stop(self) -> None:
        """It is over."""
        self.unwind()
        for stack in self.stacks:
            stack.green.switch()
        self.stacks.clear()

    def unwind(self) -> None:
        """Let go of tasks that did not come to their end; others may run in their place."""
        for task in self.tasks:
            stack = task.stack
            if stack is not None and not task.done:
                task.done = True
                self.current = None
                stack.stopping = True
                stack.green.throw()
                stack.stopping = False
                stack.wrong = None
                self.stacks.append(stack)

    def waiting(self) -> str:
        """Who waits for what, if nobody can go on; "" if all have come to their end."""
        return "; ".join([self._waits(task) for task in self.tasks if not task.done])

    def _waits(self, task: Task) -> str:
        step = task.pending
        what = "nothing" if step is None else step.what
        holds = ", ".join([class_of(lock) for lock, _ in task.held])
        return f"{task.name} waits for {what}" + (f" and holds {holds}" if holds else "")


def class_of(lock: object) -> str:
    return cast(Lock, lock).lock_class.name
