# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux's memory model, step by step: which older values a load may return.

LKMM (tools/memory-model/linux-kernel.cat, lock.cat) judges finished executions.  Here the same rules are kept while
an execution grows, so that each step knows what it may do:

- A location keeps all its stores, in their coherence order.  A load chooses any, and a store any place among them,
  that what follows does not forbid.
- An access knows what must have executed *before* it: its dependencies, what fences, acquire and release order, the
  store of another thread that it read from.  This is the relation xb of linux-kernel.cat.
- A store carries what has to *propagate* to a CPU before it does (cumul-fence): what its thread had stored before
  smp_wmb(), or knew at all before a release or full fence.
- Two rules bring them together.  An access that a store overwrites (a load that returned an older value, a store that
  is coherence-before) executed before any access of its own thread that knows of this store, and before any full
  fence, of whatever thread, in front of which it was known.
- A step after which something would execute before itself does not happen.

Readers and grace periods are judged at the end by the rule rcu-order, not by when they ran: a cycle with at least as
many grace periods as read-side sections is forbidden.

What it leaves out is load buffering: threads run in program order, so no load returns what is stored later because
of it; that is, executions in which program order and reads-from together have a cycle.  And SRCU, and the races
of plain accesses.

Threads run one operation at a time.  Stores and fences go first: whatever others do next, they neither gain nor lose by
it.  What is left to choose is which load goes next, and what it returns; a state that was reached before in another
order is not tried again.

Invariants
- Bit `64 * thread + n` stands for the n-th event of a thread in every set, whatever the order in which threads ran.
- `before` is transitively closed, and nothing is before itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from litmus.operations import (
    ACQUIRE,
    MB,
    NORETURN,
    RELEASE,
    Fence,
    IsLocked,
    Lock,
    Number,
    Operation,
    Program,
    Read,
    Unlock,
    Update,
    Value,
    Write,
)

_EVENTS: Final = 64  # of a thread, at most
INITIAL: Final = -1  # the store that no thread did

# The rules that can be switched off one by one, to see which test needs them.
RULES: Final = (
    "acquire", "address", "atomicity", "coherence", "control", "cumulativity", "data", "full fence", "lock", "rcu",
    "release", "rmb", "unlock-lock", "wmb",
)  # fmt: skip
_OVERTAKING: Final = "overtaking"


class _Store:
    """A store, or what a location held at first."""

    __slots__ = ("data", "event", "held", "known", "own", "sees", "value")

    def __init__(self, event: int, value: Number) -> None:
        self.event: Final = event
        self.value: Final = value
        self.known = 0  # stores that propagate before it, itself included
        self.data = 0  # loads that its address and value depend on
        # Of an unlock: its thread's accesses before it, the stores that they did, and those that they knew
        self.held = 0
        self.own = 0
        self.sees = 0


class _Thread:
    """Where a thread is, and what it has to respect.  All but `results` are sets of events."""

    __slots__ = (
        "after_load", "after_store", "all", "base", "before_atomic", "events", "handed", "known", "loads", "locks",
        "own", "release", "results", "spin", "stores", "unlocked", "updated",
    )  # fmt: skip

    def __init__(self) -> None:
        self.results: tuple[Value, ...] = ()  # of its operations so far
        self.events = 0
        self.all = 0
        self.loads = 0  # that smp_rmb() orders
        self.stores = 0
        self.base = 0  # executes before whatever comes
        self.after_load = 0  # before the loads that come
        self.after_store = 0  # before the stores that come
        self.locks = 0  # rcu_read_lock()
        self.known = 0  # stores that have propagated here
        self.own = 0  # those of its own, and what propagates before them
        self.release = 0  # what propagates before the stores that come
        self.before_atomic: tuple[int, int] = (0, 0)  # accesses and stores known before smp_mb__before_atomic()
        self.updated: tuple[int, int] = (0, 0)  # … up to the last atomic operation
        self.spin: tuple[int, int] = (0, 0)  # … up to the last spin_lock()
        self.unlocked: tuple[int, int, int] = (0, 0, 0)  # … before the last spin_unlock(), and its own stores
        self.handed: tuple[int, int] = (0, 0)  # … before unlocks that a spin_lock() here came after

    def copy(self) -> _Thread:
        other = _Thread.__new__(_Thread)
        for name in _Thread.__slots__:
            setattr(other, name, getattr(self, name))
        return other


class _Cycle(Exception):
    """A step that LKMM forbids."""


class _State:
    """An execution so far."""

    def __init__(self, threads: int, initial: Mapping[str, Number], without: frozenset[str]) -> None:
        self.without: Final = without
        self.initial: Final = initial
        self.threads = [_Thread() for _ in range(threads)]
        self.stores: dict[str, list[_Store]] = {}
        self.replaced: set[tuple[str, int]] = set()  # stores that an atomic operation replaced: nothing comes between
        self.before: dict[int, int] = {}  # of each event
        self.place: dict[int, tuple[str, int]] = {}  # of each access: location, and the event that it reads or is
        self.sources: dict[int, int] = {}  # of loads from other threads: what propagated here with it
        self.fences: dict[int, int] = {}  # of full fences, grace periods, rcu_read_unlock(): stores known before
        self.sections: list[tuple[int, int]] = []  # rcu_read_lock() and rcu_read_unlock()
        self.open: dict[int, list[int]] = {}
        self.periods: list[int] = []

    def copy(self) -> _State:
        other = _State.__new__(_State)
        other.without = self.without  # type: ignore[misc]
        other.initial = self.initial  # type: ignore[misc]
        other.threads = list(self.threads)
        other.stores = {name: list(stores) for name, stores in self.stores.items()}
        other.replaced = set(self.replaced)
        other.before = dict(self.before)
        other.place = dict(self.place)
        other.sources = dict(self.sources)
        other.fences = dict(self.fences)
        other.sections = list(self.sections)
        other.open = {number: list(locks) for number, locks in self.open.items()}
        other.periods = list(self.periods)
        return other

    def key(self) -> object:
        """What makes it another state than others."""
        return (
            tuple(thread.results for thread in self.threads),
            tuple((name, tuple(store.event for store in stores)) for name, stores in sorted(self.stores.items())),
            tuple(sorted(self.place.items())),
        )

    def at(self, location: str) -> list[_Store]:
        stores = self.stores.get(location)
        if stores is None:
            stores = self.stores[location] = [_Store(INITIAL, self.initial.get(location, 0))]
        return stores

    # Order

    def _event(self, number: int) -> int:
        thread = self.threads[number]
        event = number * _EVENTS + thread.events
        thread.events += 1
        if thread.events > _EVENTS:
            raise ValueError(f"a thread has more than {_EVENTS} events")
        return event

    def _closed(self, events: int) -> int:
        """These events, and all before them."""
        found = events
        rest = events
        while rest:
            low = rest & -rest
            found |= self.before[low.bit_length() - 1]
            rest ^= low
        return found

    def _edge(self, first: int, second: int) -> None:
        """:raises _Cycle: `second` executes before `first` already"""
        if self.before[first] >> second & 1 or first == second:
            raise _Cycle
        if self.before[second] >> first & 1:
            return
        more = self.before[first] | 1 << first
        for event, before in self.before.items():
            if event == second or before >> second & 1:
                self.before[event] = before | more

    def _later(self, location: str, event: int) -> int:
        """The stores that are coherence-after one."""
        found = 0
        for store in reversed(self.stores[location]):
            if store.event == event:
                break
            found |= 1 << store.event
        return found

    def _overwritten(self, known: int, number: int) -> int:
        """Accesses, of one thread or (-1) of all, that one of the known stores overwrites."""
        found = 0
        for event, (location, store) in self.place.items():
            if (number < 0 or event // _EVENTS == number) and known & self._later(location, store):
                found |= 1 << event
        return found

    def _access(self, event: int, number: int, location: str, store: int) -> None:
        """An access is there; so it has its place among all that knows of a store which overwrites it."""
        self.place[event] = (location, store)
        later = self._later(location, store)
        if not later:
            return
        for load, known in list(self.sources.items()):
            if load // _EVENTS == number and load != event and known & later:
                self._edge(event, load)
        for fence, known in list(self.fences.items()):
            if known & later:
                self._edge(event, fence)

    def _full(self, number: int, left: int, known: int, *, sink: bool = False) -> int:
        """A full fence behind `left`, before which these stores were known."""
        event = self._event(number)
        self.before[event] = self._closed(left | self.threads[number].locks | self._overwritten(known, -1))
        if self.before[event] >> event & 1:
            raise _Cycle
        self.fences[event] = known
        if not sink:
            self.threads[number].all |= 1 << event
        return event

    def _fence(self, number: int, left: int, known: int) -> None:
        """… and in front of all that comes."""
        if "full fence" not in self.without:
            thread = self.threads[number]
            thread.base |= 1 << self._full(number, left, known)
            thread.release |= known

    # Accesses

    def load(self, number: int, location: str, store: _Store, address: int, order: str) -> int:
        """A load that returns what `store` stored.  :raises _Cycle: it must not"""
        thread = self.threads[number]
        event = self._event(number)
        if "coherence" not in self.without:
            self._coherent(number, location, store.event, 0)
        before = thread.base | thread.locks
        if order != NORETURN:
            before |= thread.after_load
        if "address" not in self.without:
            before |= address
        if store.event != INITIAL:
            if store.event // _EVENTS == number:
                before |= store.data
            else:
                before |= 1 << store.event | self._overwritten(store.known, number)
        closed = self._closed(before)
        self.before[event] = closed
        if store.event != INITIAL and store.event // _EVENTS != number:
            self.sources[event] = store.known
            thread.known |= store.known
        self._access(event, number, location, store.event)
        thread.all |= 1 << event
        if order != NORETURN:
            thread.loads |= 1 << event
        if order == ACQUIRE and "acquire" not in self.without:
            thread.base |= 1 << event
        return event

    def _coherent(self, number: int, location: str, store: int, strictly: int) -> None:
        """A thread's accesses to a location follow its coherence order."""
        order = [each.event for each in self.stores[location]]
        here = order.index(store)
        for event, (where, other) in self.place.items():
            if where == location and event // _EVENTS == number and order.index(other) + strictly > here:
                raise _Cycle

    def places(self, number: int, location: str) -> list[int]:
        """Where in the coherence order a thread's store may go."""
        return [
            index + 1
            for index, store in enumerate(self.at(location))
            if (location, store.event) not in self.replaced
        ]

    def store(
        self, number: int, location: str, index: int, value: Number, depends: int, data: int, release: bool,
        source: _Store | None = None,
    ) -> _Store:  # fmt: skip
        """A store at a place of the coherence order; `depends`: the loads that it must come after; `source`: what
        the load of the same atomic operation read.  :raises _Cycle: it must not"""
        thread = self.threads[number]
        event = self._event(number)
        store = _Store(event, value)
        self.at(location).insert(index, store)
        if "coherence" not in self.without:
            self._coherent(number, location, event, 1)
        before = thread.base | thread.locks | thread.after_store | depends
        for other, (where, _) in self.place.items():
            if where == location and other // _EVENTS == number:
                before |= 1 << other
        if _OVERTAKING in self.without:
            before |= thread.all & ~thread.stores
        store.known = thread.release
        if release and "release" not in self.without:
            before |= thread.all
            store.known |= thread.own if "cumulativity" in self.without else thread.known
        if source is not None:
            store.known |= source.known
        store.known |= 1 << event
        store.data = data
        self.before[event] = self._closed(before)
        self._access(event, number, location, event)
        thread.all |= 1 << event
        thread.stores |= 1 << event
        thread.own |= store.known
        thread.known |= store.known
        return store

    # Operations

    def fence(self, number: int, kind: str) -> None:
        thread = self.threads[number]
        if kind == "mb":
            self._fence(number, thread.all, thread.known)
        elif kind == "rmb" and "rmb" not in self.without:
            thread.after_load |= thread.loads
        elif kind == "wmb" and "wmb" not in self.without:
            thread.after_store |= thread.stores
            thread.release |= thread.own
        elif kind == "before-atomic":
            thread.before_atomic = (thread.all, thread.known)
        elif kind == "after-atomic" and thread.updated[0]:
            self._fence(number, *thread.updated)
        elif kind == "after-spinlock" and thread.spin[0]:
            self._fence(number, *thread.spin)
        elif kind == "after-unlock-lock" and thread.handed[0]:
            self._fence(number, *thread.handed)
        elif kind == "rcu-lock":
            event = self._event(number)
            self.before[event] = 0
            self.open.setdefault(number, []).append(event)
            thread.locks |= 1 << event
        elif kind == "rcu-unlock":
            if not self.open.get(number):
                raise ValueError("rcu_read_unlock() without rcu_read_lock()")
            event = self._full(number, thread.all, thread.known, sink=True)
            self.sections.append((self.open[number].pop(), event))
        elif kind == "sync-rcu":
            event = self._full(number, thread.all, thread.known)
            thread.base |= 1 << event
            thread.release |= thread.known
            self.periods.append(event)

    def update(
        self, number: int, location: str, store: _Store, new: Number | None, operation: Update | Lock
    ) -> int:
        """An atomic read-modify-write that reads from `store`; returns its load."""
        thread = self.threads[number]
        full = False
        operands = 0
        if isinstance(operation, Lock):
            order = ACQUIRE if "lock" not in self.without else ""
        else:
            order = operation.order
            operands = operation.operands
            full = order == MB and new is not None and "full fence" not in self.without
            if thread.before_atomic[0]:
                self._fence(number, *thread.before_atomic)
        if new is None and order != NORETURN:
            order = ""
        saved = thread.base
        if full:
            thread.base |= 1 << self._full(number, thread.all, thread.known)
        load = self.load(number, location, store, operation.location.after, order)
        if full:
            thread.base = saved
        if new is not None:
            stores = self.at(location)
            index = next(place for place, other in enumerate(stores) if other.event == store.event) + 1
            if (location, store.event) in self.replaced:
                raise _Cycle
            if "atomicity" not in self.without:
                self.replaced.add((location, store.event))
            depends = self._depends(operation.location.after, operands, operation.control)
            written = self.store(
                number, location, index, new, depends, operation.location.after | operands | 1 << load,
                order == RELEASE, store,
            )  # fmt: skip
            if full:
                thread.base |= 1 << self._full(number, 1 << written.event, written.known)
                thread.release |= written.known
        if not isinstance(operation, Lock):
            thread.updated = (thread.all, thread.known)
        elif new is not None:
            self._locked(thread, store)
        return load

    def _depends(self, address: int, data: int, control: int) -> int:
        found = 0
        for name, loads in (("address", address), ("data", data), ("control", control)):
            if name not in self.without:
                found |= loads
        return found

    def _locked(self, thread: _Thread, store: _Store) -> None:
        """A spin lock was taken that `store` had given back."""
        thread.spin = (thread.all, thread.known)
        if "unlock-lock" in self.without:
            return
        held, known, own = thread.unlocked
        thread.base |= held
        thread.release |= own | store.own
        thread.handed = (thread.handed[0] | held | store.held, thread.handed[1] | known | store.sees)

    def unlock(self, number: int, location: str, depends: int) -> None:
        thread = self.threads[number]
        before = (thread.all, thread.known, thread.own)
        stores = self.at(location)
        store = self.store(number, location, len(stores), 0, depends, 0, "lock" not in self.without)
        store.held, store.sees, store.own = before
        thread.unlocked = before

    # RCU

    def allowed(self) -> bool:
        """The rule of grace periods, at the end (rcu-order of linux-kernel.cat)."""
        if "rcu" in self.without or not self.periods:
            return True

        def link(first: int, second: int) -> bool:
            return bool(self.before[second] >> first & 1)

        order = {(period, period) for period in self.periods}
        while True:
            more = set(order)
            for period in self.periods:
                for lock, unlock in self.sections:
                    if link(period, unlock) or any(link(period, a) and link(b, unlock) for a, b in order):
                        more.add((period, lock))
                    if link(lock, period) or any(link(lock, a) and link(b, period) for a, b in order):
                        more.add((unlock, period))
            more |= {(a, d) for a, b in order for c, d in order if link(b, c)}
            if more == order:
                return not any(link(b, a) for a, b in order)
            order = more


class Lkmm:
    """The memory model (operations.Memory).

    without:    rules (RULES) that are left out
    overtaking: may a store execute before an earlier load of its thread, as LKMM has it?
    """

    nothing: Final = 0

    def __init__(self, without: Sequence[str] = (), *, overtaking: bool = True) -> None:
        unknown = set(without) - set(RULES)
        if unknown:
            raise ValueError(f"there is no rule {sorted(unknown)[0]!r}: there are {', '.join(RULES)}")
        self.without: Final = frozenset(without) | (frozenset() if overtaking else frozenset([_OVERTAKING]))
        self.states = 0  # in the last exploration

    def explore(
        self,
        initial: Mapping[str, Number],
        programs: Sequence[Callable[[], Program]],
        ended: Callable[[Mapping[str, Number]], None],
    ) -> None:
        next_of: dict[tuple[int, tuple[Value, ...]], Operation | None] = {}
        seen: set[object] = set()
        stack = [_State(len(programs), initial, self.without)]
        while stack:
            state = stack.pop()
            key = state.key()
            if key in seen:
                continue
            seen.add(key)
            waiting: dict[int, Operation] = {}
            for number, thread in enumerate(state.threads):
                place = (number, thread.results)
                if place not in next_of:
                    next_of[place] = _next(programs[number], thread.results)
                operation = next_of[place]
                if operation is not None:
                    waiting[number] = operation
            if not waiting:
                if state.allowed():
                    for number, thread in enumerate(state.threads):
                        _next(programs[number], thread.results)  # leaves the registers as they are at the end
                    ended({name: stores[-1].value for name, stores in state.stores.items()} | _rest(initial, state))
                continue
            first = next((n for n, operation in waiting.items() if isinstance(operation, Write | Fence | Unlock)), -1)
            for number, operation in waiting.items() if first < 0 else [(first, waiting[first])]:
                stack.extend(_after(state, number, operation))
        self.states = len(seen)


def _rest(initial: Mapping[str, Number], state: _State) -> dict[str, Number]:
    return {name: value for name, value in initial.items() if name not in state.stores}


def _next(program: Callable[[], Program], results: tuple[Value, ...]) -> Operation | None:
    """What a thread does after its operations had these results; None at its end."""
    running = program()
    try:
        operation = next(running)
        for result in results:
            operation = running.send(result)
    except StopIteration:
        return None
    return operation


def _after(state: _State, number: int, operation: Operation) -> Iterator[_State]:
    """The states that a step may lead to."""
    done = Value(0, 0)
    if isinstance(operation, Fence):

        def fence(new: _State) -> Value:
            new.fence(number, operation.kind)
            return done

        yield from _try(state, number, fence)
        return
    location = str(operation.location.number)
    if isinstance(operation, Write):
        depends = state._depends(operation.location.after, operation.value.after, operation.control)
        data = operation.location.after | operation.value.after
        release = operation.order == RELEASE
        for index in state.places(number, location):

            def write(new: _State, index: int = index) -> Value:
                new.store(number, location, index, operation.value.number, depends, data, release)
                return done

            yield from _try(state, number, write)
    elif isinstance(operation, Unlock):

        def unlock(new: _State) -> Value:
            new.unlock(number, location, operation.location.after)
            return done

        yield from _try(state, number, unlock)
    else:
        for store in list(state.at(location)):

            def load(new: _State, store: _Store = store) -> Value | None:
                carried = 0
                if store.event != INITIAL and store.event // _EVENTS == number:
                    carried = store.data
                if isinstance(operation, Read | IsLocked):
                    order = operation.order if isinstance(operation, Read) else ""
                    event = new.load(number, location, store, operation.location.after, order)
                    return Value(store.value, 1 << event | carried)
                if isinstance(operation, Update):
                    event = new.update(number, location, store, operation.change(store.value), operation)
                    return Value(store.value, 1 << event | carried)
                free = store.value == 0
                if not free and not operation.tries:
                    return None
                event = new.update(number, location, store, 1 if free else None, operation)
                return Value(int(free), 1 << event)

            yield from _try(state, number, load)


def _try(state: _State, number: int, step: Callable[[_State], Value | None]) -> Iterator[_State]:
    new = state.copy()
    new.threads[number] = new.threads[number].copy()
    try:
        result = step(new)
    except _Cycle:
        return
    if result is not None:
        new.threads[number].results += (result,)
        yield new
