# SPDX-License-Identifier: GPL-2.0-or-later
"""Weak memory: what a load may return when CPUs reorder.

After the view-based operational model of Kang and others (A promising semantics for relaxed-memory concurrency,
POPL 2017), without promises.  A *location* keeps every value that was stored to it, oldest first, each a *message*.
A *view* says, for each location, the oldest message that may still be returned.  A task has one; a load returns any
message that it allows.  Views move with messages:

- a store with release semantics leaves the view of its task in its message; after smp_wmb() any store leaves what the
  task had stored before that; a load with acquire semantics takes over the view that it finds;
- other loads keep what they find aside, until smp_rmb() or smp_mb();
- what is reached through a pointer that was loaded with READ_ONCE() or rcu_dereference() is as new as the message of
  the pointer says (an address dependency), and nothing else is;
- smp_mb() and atomics that return a value also order all of their kind among each other;
- what they order has reached all CPUs: whoever loads a store that was made later, or one made after a load of such a
  store, and so on, finds it so, if it orders its loads at all;
- locks hand over the view of whoever released them; a grace period hands over that of who asked for it, to each reader
  that it does not wait for (the guarantee of RCU in tools/memory-model/Documentation/explanation.txt);
- releases, locks and grace periods hand over what was kept aside as well (they are cumulative).

herd7 judges this (tests/litmus/).  What it leaves out: load buffering, that is, a store that others see before
an earlier load of its own task is done, for which the kernel's model demands a dependency or a fence.  A dependency is
told by the object that is reached, whichever way a task came to it.

Two tasks that store to one location without a lock or an atomic between them race, and that is said (Finding).  Where
it is no mistake (`racing`), a store may also come before others in the order of a location though it is made later
(2+2W), and an atomic reads from any message that no other atomic read from, and comes right after it.

Invariants: a location's last message is what the object holds; the message of a plain store to a fresh object is
preceded by one that says UNINITIALISED.  The messages of a location are in its order, and `at` grows along them; a
view keeps that of a message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mypy_extensions import i64

from rmaplab.sync.errors import Finding
from rmaplab.sync.fields import EVERYTHING, VERSION, WHOLE, look
from rmaplab.sync.order import ACQUIRE, ALL, FULL, ONCE, READS, RELEASE

View = dict[int, int]  # nobody changes one: who knows more has another (join)
NOTHING: Final[View] = {}
_CONTENTS: Final = 1_000_000  # the numbers of what pointers lead to come after those of locations
_APART: Final = 1 << 40  # places of messages, where others may come between
_ATOMICS: Final = {
    ACQUIRE: "atomic with _acquire", RELEASE: "atomic with _release", FULL: "fully ordered atomic"
}  # fmt: skip


class _Uninitialised:
    def __repr__(self) -> str:
        return "what was there before it was initialised"


UNINITIALISED: Final = _Uninitialised()


class Message:
    """A value that was stored: by whom (task, -1 before the tasks began), at which step, under which name, the view
    that it hands over, and what had reached all CPUs before (`gone`).  `content`: where what it points to was stored
    just before, -1: nowhere; `taken`: an atomic read from it; `first`, `last`: the elements that it changed."""

    def __init__(
        self, value: object, at: int, task: int, step: int, what: str, view: View, gone: View, content: int = -1
    ) -> None:
        self.value = value
        self.at: Final = at
        self.taken = False
        self.task: Final = task
        self.step: Final = step
        self.what: Final = what
        self.view = view
        self.gone: Final = gone
        self.content: Final = content
        self.first: i64 = 0
        self.last: i64 = EVERYTHING


class Location:
    """One word of an object that is read or changed without a common lock: in each execution the same one of the object
    that has number `key` in it.

    run: the execution that its messages are of
    """

    def __init__(self, number: int, key: int, field: str, index: int) -> None:
        self.number: Final = number
        self.key: Final = key
        self.field: Final = field
        self.index: Final = index
        self.subject: object = None
        self.messages: Final[list[Message]] = []
        self.run = -1

    def which(self, age: int, first: i64, last: i64) -> int:
        """The message that is so many older than the newest, of those that tell of elements `first` to `last`."""
        number = len(self.messages) - 1
        if self.field != VERSION:
            return number - age
        while True:
            message = self.messages[number]
            if message.first <= last and first <= message.last:
                if age == 0:
                    return number
                age -= 1
            number -= 1

    def now(self) -> object:
        """What the object holds, as a message keeps it."""
        if self.field != WHOLE and self.field != VERSION:
            return look(self.subject, self.field, self.index)
        return self.subject.frozen()  # type: ignore[attr-defined]


class TaskView:
    """What a task knows.

    now:   of each location, the oldest message that it may still load
    aside: what loads found that were not ordered, until smp_rmb() or smp_mb() takes it over
    own:   what it stored, and what those messages hand over
    later: what each store that it makes from now on hands over
    through: by the number of an object, what came with pointers to it
    gone:  what full barriers had brought to all CPUs before whatever it stores
    unlocked, met: `own` and `aside`, when it last gave a lock back
    """

    def __init__(self) -> None:
        self.now = NOTHING
        self.aside = NOTHING
        self.own = NOTHING
        self.later = NOTHING
        self.through: Final[dict[int, View]] = {}
        self.gone = NOTHING
        self.unlocked = NOTHING
        self.met = NOTHING
        self.last = NOTHING  # what came with the last load

    def all(self) -> View:
        """What it knows, and what its loads found."""
        return join(self.now, self.aside)


def join(one: View, other: View) -> View:
    """What either knows: mostly one of the two, which knows it all."""
    if one is other or not other:
        return one
    if not one:
        return other
    most, rest = (one, other) if len(one) >= len(other) else (other, one)
    joined = most
    for location, oldest in rest.items():
        if joined.get(location, 0) < oldest:
            if joined is most:
                joined = dict(most)
            joined[location] = oldest
    return joined


class Memory:
    """All locations, and what each task knows of them.

    Most of a search is steps that are taken again, with the views that they led to before.  So views that are made are
    written down, in the order in which they are made (`mark`), and those of steps that are the same are only read.

    weakened: names of orderings that are taken away
    racing:   stores to one location that nothing orders are no mistake
    used:     names of orderings that were met, with what they are
    """

    def __init__(self, weakened: frozenset[str], racing: bool = False) -> None:
        self.weakened: Final = weakened
        self.racing: Final = racing
        self.used: dict[str, str] = {}
        self.tasks: Final[list[TaskView]] = []
        self.fences = NOTHING  # what all smp_mb() handed over
        self.locks: Final[dict[int, View]] = {}
        self.stored: Final[dict[int, View]] = {}  # by a lock's last holder, before it gave it back
        self._locations: Final[dict[tuple[int, str, int], Location]] = {}
        self._run = 0
        self._contents = 0
        self._views: Final[list[View]] = []
        self._next: i64 = 0  # the view that is made next
        self._same: i64 = 0  # the views up to there are as in the last execution

    def mark(self) -> i64:
        """How many views were made in this execution."""
        return self._next

    def keep(self, mark: i64) -> None:
        """What led to the first `mark` views of the last execution happens again in this one."""
        self._same = min(mark, len(self._views))

    def _write(self, view: View) -> View:
        """A new view was made."""
        if self._next < len(self._views):
            self._views[self._next] = view
        else:
            self._views.append(view)
        self._next += 1
        return view

    def _read(self) -> View:
        """The next view, which is the same as in the last execution."""
        self._next += 1
        return self._views[self._next - 1]

    def join(self, one: View, other: View) -> View:
        """What either knows."""
        return self._read() if self._next < self._same else self._write(join(one, other))

    def _join_newer(self, one: View, old: View, new: View) -> View:
        """What `one` and `new` know, which knows what `old` does."""
        if self._next < self._same:
            return self._read()
        return self._write(new if one is old else join(one, new))

    def _and(self, view: View, location: int, oldest: int) -> View:
        """What `view` knows, and that."""
        if self._next < self._same:
            return self._read()
        known = dict(view)
        known[location] = oldest
        return self._write(known)

    def again(self) -> None:
        """Another execution begins: nothing was stored yet, and nobody knows anything."""
        self._run += 1
        self._contents = 0
        self._next = 0
        self._same = 0
        self.fences = NOTHING
        self.locks.clear()
        self.stored.clear()
        self.tasks[:] = [TaskView() for _ in self.tasks]

    def location(self, subject: object, key: int, field: str, index: int) -> Location:
        """That of the object with this number; its first message is what it holds now."""
        at = (key, field, index)
        found = self._locations.get(at)
        if found is None:
            found = self._locations[at] = Location(len(self._locations), key, field, index)
        self.begin(found, subject)
        return found

    def begin(self, location: Location, subject: object) -> None:
        """Somebody comes to a location of `subject`, maybe for the first time."""
        if location.run != self._run:
            location.run = self._run
            location.subject = subject
            location.messages.clear()
            location.messages.append(Message(location.now(), 0, -1, -1, "", NOTHING, NOTHING))

    def met(self, key: int, field: str, index: int) -> Location | None:
        """That of the object with this number, if anybody came to it."""
        found = self._locations.get((key, field, index))
        return found if found is not None and found.run == self._run else None

    # Loads

    def oldest(self, task: int, location: Location, key: int) -> int:
        """Where the oldest message is that the task may load from a location of object `key`."""
        view = self.tasks[task]
        oldest = view.now.get(location.number, 0)
        through = view.through.get(key)
        if through is not None:
            oldest = max(oldest, through.get(location.number, 0))
        return oldest

    def allowed(self, task: int, location: Location, key: int, first: i64 = 0, last: i64 = EVERYTHING) -> int:
        """How many messages the task may load from it, of those that tell of elements `first` to `last`."""
        oldest = self.oldest(task, location, key)
        messages = location.messages
        if location.field == VERSION:
            newer = 0
            for number in range(oldest + 1, len(messages)):
                if messages[number].first <= last and first <= messages[number].last:
                    newer += 1
            return newer + 1
        if not self.racing:
            return len(messages) - oldest
        return sum([1 for message in messages if message.at >= oldest])

    def places(self, task: int, location: Location, key: int, full: bool = False) -> list[int]:
        """How many messages the task may have its store come before: 0 is none of them.  A store is ordered after all
        earlier loads of its task, and after smp_mb() if it is `full`."""
        places = [0]
        if self.racing:
            oldest = max(self.oldest(task, location, key), self.tasks[task].aside.get(location.number, 0))
            if full:
                oldest = max(oldest, self.fences.get(location.number, 0))
            messages = location.messages
            for before in range(1, len(messages)):
                if messages[-before].at <= oldest:
                    break
                if not messages[-before - 1].taken:
                    places.append(before)
        return places

    def sources(
        self, task: int, location: Location, key: int, full: bool, succeeds: Callable[[object], bool] | None
    ) -> list[int]:
        """How old the messages are that an atomic of the task may read from; `succeeds`: does it store, after that?"""
        if not self.racing:
            return [0]
        messages = location.messages
        places = self.places(task, location, key, full)  # of its store, if it makes one
        found: list[int] = []
        for age in range(self.allowed(task, location, key)):
            if age in places or (succeeds is not None and not succeeds(messages[-1 - age].value)):
                found.append(age)
        return found

    def load(
        self, task: int, location: Location, key: int, number: int, order: int, what: str, pointee: int
    ) -> bool:
        """The task loads message `number`; `pointee`: the object that it points to, -1: none.  False: what it leads to
        may still be what was there before."""
        view = self.tasks[task]
        message = location.messages[number]
        if view.now.get(location.number, 0) < message.at:
            view.now = self._and(view.now, location.number, message.at)
        if order == ACQUIRE:
            self.used[what] = "smp_load_acquire()"
        elif order == ONCE and pointee >= 0:
            self.used[what] = "address dependency"
        weak = what in self.weakened
        handed = self.join(message.view, message.gone)
        if order == ACQUIRE and not weak:
            view.now = self.join(view.now, handed)
        else:
            view.aside = self.join(view.aside, handed)
        view.gone = self.join(view.gone, message.gone)
        last = NOTHING
        if order >= ONCE and not weak:
            last = self.join(handed, view.through.get(key, last))
        view.last = last
        if pointee >= 0:
            self.lead(task, pointee)
        content = message.content
        return content < 0 or content in view.now or content in last

    def is_there(self, task: int, location: Location, key: int) -> bool:
        """Does the task see a field that keeps its first value?"""
        return location.messages[0].value is not UNINITIALISED or self.oldest(task, location, key) > 0

    def lead(self, task: int, pointee: int) -> None:
        """The last load led the task to this object."""
        view = self.tasks[task]
        view.through[pointee] = self.join(view.through.get(pointee, view.last), view.last)

    # Stores

    def store(
        self, task: int, location: Location, order: int, what: str, step: int, name: str, before: int = 0
    ) -> Message:
        """The task stores; the value is to be filled in.  It comes before so many messages (`places`).

        :raises Finding: another task stored there, and nothing orders the two
        """
        other = location.messages[-1]
        if not self.racing and self.tasks[task].now.get(location.number, 0) < other.at:
            raise Finding(
                f"{name} and another task store to the same place, and nothing orders them: {other.what}, {what}"
            )
        if order == RELEASE:
            self.used[what] = "smp_store_release()"
        release = order == RELEASE and what not in self.weakened
        return self._insert(task, location, len(location.messages) - before, release, what, step)

    def update(self, task: int, location: Location, order: int, what: str, step: int, age: int = 0) -> Message:
        """The task changes the newest value atomically, or an older one (`sources`); the new one is to be filled in."""
        view = self.tasks[task]
        if order in _ATOMICS:
            self.used[what] = _ATOMICS[order]
            if what in self.weakened:
                order = ONCE
        if order == FULL:
            self._mb(view)
        number = len(location.messages) - age
        newest = location.messages[number - 1]
        newest.taken = True
        handed = self.join(newest.view, newest.gone)
        if order == FULL or order == ACQUIRE:
            view.now = self.join(view.now, handed)
        else:
            view.aside = self.join(view.aside, handed)
        view.gone = self.join(view.gone, newest.gone)
        view.last = handed if order >= ONCE else NOTHING
        message = self._insert(task, location, number, order == FULL or order == RELEASE, what, step)
        message.view = self.join(message.view, newest.view)  # a release sequence goes on through atomics
        if order == FULL:
            self._mb(view)
        return message

    def _insert(
        self, task: int, location: Location, number: int, release: bool, what: str, step: int
    ) -> Message:
        """A new message, which is to be number `number` of its location."""
        view = self.tasks[task]
        messages = location.messages
        at = messages[number - 1].at + (_APART if self.racing else 1)
        if number < len(messages):
            at = (messages[number - 1].at + messages[number].at) // 2
        content = -1
        if location.field == VERSION:
            self._contents += 1
            content = _CONTENTS + self._contents
            view.now = self._and(view.now, content, 1)
            view.own = self._and(view.own, content, 1)
        view.now = self._and(view.now, location.number, at)
        # A release is cumulative: it hands over what loads found, too, that ordered nothing here.
        handed = self.join(view.now, view.aside) if release else view.later
        if handed.get(location.number, 0) != at:
            handed = self._and(handed, location.number, at)
        message = Message(None, at, task, step, what, handed, view.gone, content)
        messages.insert(number, message)
        view.own = self.join(view.own, handed)
        return message

    def initialise(self, task: int, location: Location, what: str, step: int) -> None:
        """The location is one of a fresh object, and the task has just stored its first value."""
        del location.messages[:]
        location.messages.append(Message(UNINITIALISED, 0, task, step, what, NOTHING, NOTHING))
        self._insert(task, location, 1, False, what, step).value = location.now()

    # Fences, locks, grace periods

    def fence(self, task: int, kind: int, what: str) -> None:
        self.used[what] = "smp_mb()" if kind == ALL else "smp_rmb()" if kind == READS else "smp_wmb()"
        if what in self.weakened:
            return
        view = self.tasks[task]
        if kind == ALL:
            self._mb(view)
        elif kind == READS:
            view.now = self.join(view.now, view.aside)
            view.aside = NOTHING
        else:
            view.later = self.join(view.later, view.own)

    def _mb(self, view: TaskView) -> None:
        last = self.fences
        now = self.fences = view.now = self.join(self.join(view.now, view.aside), last)
        view.aside = NOTHING
        view.later = self._join_newer(view.later, last, now)
        # It has reached all CPUs before whatever the task stores.
        view.gone = self._join_newer(view.gone, last, now)

    def acquire(self, task: int, lock: int) -> None:
        """The task took a lock.  All that it does from now on comes after what it did before it last gave one back,
        and its stores after those of the lock's last holder, also for tasks that hold no lock (po-unlock-lock-po in
        linux-kernel.cat)."""
        view = self.tasks[task]
        view.later = self.join(view.later, view.unlocked)
        view.now = self.join(view.now, view.met)
        handed = self.locks.get(lock)
        if handed is not None:
            view.now = self.join(view.now, handed)
            view.later = self.join(view.later, self.stored[lock])

    def release(self, task: int, lock: int) -> None:
        """The task gives a lock back."""
        view = self.tasks[task]
        known = self.join(view.now, view.aside)
        self.locks[lock] = self.join(self.locks.get(lock, known), known)
        view.unlocked = self.stored[lock] = view.own
        view.met = view.aside

    def take_over(self, task: int, view: View) -> None:
        """What `view` knows has reached all CPUs before whatever the task does from now on."""
        its = self.tasks[task]
        its.now = self.join(its.now, view)
        its.gone = self.join(its.gone, view)
