# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual time: the same code on many simulated CPUs, where time passes only by counted work.

A task is a thread of control with a clock of its own.  Between two calls of the scheduler it did work, which the
watched ledgers counted; those counts times what a unit costs is how far its clock moves.  Nothing else moves it
but waiting: for a lock, for a CPU, for a cache line, for a grace period.  A contended lock parks its task (a
greenlet) and another goes on.  What happens depends on costs, seed and code alone, never on the host.

After Linux 6.12
- rw_semaphore (kernel/locking/rwsem.c): a reader takes a lock that no writer has or waits for; a writer that finds
  it taken spins while the owner runs on a CPU, one spinner at a time, the others behind it (osq_lock()), and
  takes it when it becomes free although others sleep in the queue; it gives up on readers after 10 to 25 us, and
  on an owner that sleeps.  Who sleeps is woken in order, readers together (at most 256), a writer to try again; one
  that tries in vain after 4 ms gets the next turn by hand-off.
- spinlock_t (kernel/locking/qspinlock.c): first come, first served; who waits keeps its CPU.
- the folio lock (mm/filemap.c folio_lock()): first come, first served; who waits sleeps.
- RCU: a grace period ends when all sections that had begun before it are over, and not before its usual length has
  passed.  What it frees is held until then.
- CPUs: a task has one to itself until it sleeps, or has used up its time slice at the end of an operation while
  others are ready.  It goes to an idle CPU, its last one if possible, else waits its turn.

- TLBs (arch/x86/mm/tlb.c): a CPU has an address space loaded from when a task of it runs there until one of another
  does.  Who takes entries away flushes his own CPU, which is counted work, and interrupts and waits for the others that
  have it loaded; not those that idle or run kernel threads, which flush before they return to it (lazy TLB), unless
  page tables were freed.  So processes of one thread do not interrupt each other, but kswapd, kcompactd and ksmd
  interrupt them.  Reclaim defers the flushes for what it unmaps until a dirty folio is written out, or 31 are freed;
  migration does not.

A cache line that several CPUs change (a lock, a reference count) is in one place at a time: who changes it after
another CPU did waits for it, and for all who came before.  What a lock protects moves with it: the nodes of a design's
trees that are visited under a lock of that design which came from another CPU take a hand-over each.

Invariants
- Operations on locks take place in the order of virtual time, at equal times in the order in which they were
  announced.  What a task does between two of them it does at once, at the first: another order of the same steps that a
  real machine could have taken, too, because it holds the same locks.
- The clock of a task never goes back; all times are whole picoseconds, so sums are exact in any order.
- A holder of a spin lock, and a reader within an RCU section, never sleeps.
- Every unit of work is charged once: to the task that did it, or, for what a grace period frees, to `deferred`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from random import Random
from typing import Any, Final, cast

import greenlet
from mypy_extensions import i64

from rmaplab.sync.errors import Finding
from rmaplab.sync.locks import CpuMask, Lock, RwSemaphore, Scheduler, SequenceCount, Word
from rmaplab.sync.work import Ledger, LockClass, Pool, Tally

PICOSECONDS: Final = 1000  # in a nanosecond
_MICROSECOND: Final = 1000 * PICOSECONDS

SLICE: Final = 3000 * _MICROSECOND  # sysctl_sched_base_slice on a machine with 8 or more CPUs (kernel/sched/fair.c)
HANDOFF_AFTER: Final = 4000 * _MICROSECOND  # RWSEM_WAIT_TIMEOUT
WOKEN_AT_ONCE: Final = 256  # MAX_READERS_WAKEUP
LOOK_AGAIN: Final = 100 * PICOSECONDS  # who waits for something that is no lock looks again after this, doubled ...
LOOK_AT_LEAST: Final = 10 * _MICROSECOND  # ... up to this

HANDOVER: Final = "handover"
CONTEXT_SWITCH: Final = "context switch"
WAKE_UP: Final = "wake up"
WAKING: Final = "waking"
GRACE_PERIOD: Final = "grace period"
NODES: Final = ("interval tree nodes visited", "remap tree nodes visited")  # tallies of what moves with its lock
SHOOTDOWN: Final = "shootdown"
INTERRUPT: Final = "interrupt"

CostOf = Callable[[str], float]  # nanoseconds a unit, by the key of a cost profile; 0 for what costs nothing

# Which readers, or which waiter, a wake-up is for (enum rwsem_wake_type).
_ANY: Final = 0
_READERS: Final = 1
_READ_OWNED: Final = 2

_SPIN: Final = 0
_SLEEP: Final = 1
_RWSEM: Final = 2


class Event:
    """Something that happens at a time (`at`), at equal times in the order of `announced`."""

    def __init__(self) -> None:
        self.at: i64 = 0
        self.announced: i64 = 0


class Task(Event):
    """One thread of control, and the event that it goes on: `time` is its clock, `cpu` where it runs or ran last,
    `pinned` the only CPU where it may run (-1: any), `operation` what it is doing."""

    def __init__(self, number: int, name: str, body: Callable[[], None], pinned: int) -> None:
        super().__init__()
        self.number: Final = number
        self.name: Final = name
        self.body: Final = body
        self.pinned: Final = pinned
        self.green: Any = None
        self.time: i64 = 0
        self.cpu = -1
        self.running = False  # on a CPU
        self.asleep = False  # until somebody calls `wake`
        self.woken = False  # somebody did, before it was asleep
        self.done = False
        self.ready_since: i64 = 0
        self.slice_began: i64 = 0
        self.operation = 0
        self.began: i64 = 0  # its operation
        self.space: CpuMask | None = None  # the address space that it runs in; a kernel thread has none
        self.unflushed: Final[list[int]] = []  # CPUs whose flushes it deferred
        self.unflushed_dirty = False
        self.nr_locks = 0
        self.nr_spinlocks = 0
        self.nodes: i64 = 0  # visited so far
        self.semaphores: Final[list[LockState]] = []  # held for writing
        self.waits_for: LockState | None = None
        self.rcu_depth = 0
        self.rcu_entered: i64 = 0  # the last section, or several that follow each other
        self.rcu_left: i64 = 0
        self.rcu_waited_for = False
        self.interrupted: i64 = 0  # by other CPUs, since it was last charged


class Cpu:
    """One simulated CPU."""

    def __init__(self, number: int) -> None:
        self.number: Final = number
        self.task: Task | None = None
        self.loaded: CpuMask | None = None  # the address space that was here last
        self.queue: Final[deque[Task]] = deque()  # ready, and pinned here
        self.listed_idle = True
        self.idle_since: i64 = 0
        self.idle: i64 = 0
        self.switching: i64 = 0


class Waiter:
    """A task that waits for a lock."""

    def __init__(self, task: Task, write: bool, since: i64, holder: int) -> None:
        self.task: Final = task
        self.write: Final = write
        self.since: Final[i64] = since
        self.holder: Final = holder  # operation of who had the lock when the wait began
        self.granted = False
        self.woken = False


class LockState:
    """Who holds a lock and who waits for it; lives in the lock."""

    def __init__(self, kind: int, figures: ClassFigures) -> None:
        self.kind: Final = kind
        self.figures: Final = figures  # of its class
        self.writer: Task | None = None
        self.readers = 0
        self.holder = 0  # operation of who took it last
        self.since: i64 = 0  # when the writer took it
        self.cpu = -1  # that has its cache line
        self.nodes: i64 = -1  # that its writer had visited before it took the lock, if that came from another CPU
        self.line_free: i64 = 0
        self.waiters: list[Waiter] | None = None
        self.spinners: list[Waiter] | None = None  # the first looks at the owner, the others at each other
        self.handoff: Waiter | None = None
        self.reader_owned = False
        self.no_spinning = False  # RWSEM_NONSPINNABLE
        self.deadline = 0  # number of the last time limit for spinning on readers


class ClassFigures:
    """What was seen of the locks of one class.

    acquired:  times taken, also by a try; refused: tries in vain
    moved:     times that the cache line came from another CPU, and how long that took in all
    read, written: for how long each operation, by its number, held them
    """

    def __init__(self, number: int, name: str, kind: int, covers_nodes: bool) -> None:
        self.number: Final = number
        self.name: Final = name
        self.kind: Final = kind
        self.covers_nodes: Final = covers_nodes
        self.acquired = 0
        self.refused = 0
        self.moved = 0
        self.moving: i64 = 0
        self.read: Final[list[Held]] = []
        self.written: Final[list[Held]] = []

    def hold(self, write: bool, operation: int, time: i64) -> None:
        """An operation has had a lock of this class for so long; or it begins at `-time`, or ends at `time`."""
        held = self.written if write else self.read
        while operation >= len(held):
            held.append(Held())
        held[operation].time += time

    @property
    def type(self) -> str:
        return ("spinlock", "folio lock", "rwsem")[self.kind]


class Held:
    """For how long one operation held locks of one class."""

    def __init__(self) -> None:
        self.time: i64 = 0


class WaitFigures:
    """Waits of one operation for another, for one class of locks."""

    def __init__(self) -> None:
        self.count = 0
        self.total: i64 = 0
        self.longest: i64 = 0


class _Release(Event):
    """A lock is given back, or kept for reading only."""

    def __init__(self, state: LockState, task: Task, write: bool, downgrade: bool) -> None:
        super().__init__()
        self.state: Final = state
        self.task: Final = task
        self.write: Final = write
        self.downgrade: Final = downgrade


class _Deadline(Event):
    """A writer that spins on readers gives up, unless something changed meanwhile."""

    def __init__(self, state: LockState, number: int) -> None:
        super().__init__()
        self.state: Final = state
        self.number: Final = number


class _Alarm(Event):
    """The time that a task waited for has come; or (`call`) somebody calls a task that may be asleep."""

    def __init__(self, task: Task, call: bool = False) -> None:
        super().__init__()
        self.task: Final = task
        self.call: Final = call


class _GracePeriod(Event):
    """A grace period begins, or (`ends`) is over."""

    def __init__(self, ends: bool) -> None:
        super().__init__()
        self.ends: Final = ends


class _Deferred:
    """What is freed after a grace period."""

    def __init__(self, what: str, then: Callable[[], None] | None) -> None:
        self.what: Final = what
        self.then: Final = then


class _PricedTally:
    def __init__(self, tally: Tally, cost: i64) -> None:
        self.tally: Final = tally
        self.cost: Final[i64] = cost


class _PricedPool:
    def __init__(self, pool: Pool, alloc: i64, free: i64) -> None:
        self.pool: Final = pool
        self.both: Final[i64] = alloc + free
        self.free: Final[i64] = free


class _PricedLock:
    def __init__(self, lock_class: LockClass, cost: i64) -> None:
        self.lock_class: Final = lock_class
        self.cost: Final[i64] = cost


class VirtualTime(Scheduler):
    """Tasks on `cpus` simulated CPUs.  Build what they share with it as the scheduler, `watch` the ledgers that
    count their work, `spawn` tasks, and `run`.  Until then, and afterwards, operations pass through.

    cost_of: nanoseconds a unit, by key: a tally's name, `alloc POOL`, `free POOL`, `lock CLASS`, and those above
    slice:   picoseconds that a task may keep its CPU while others are ready
    trace:   keep what happened when, for a timeline
    spread:  how many times its cost a wake-up takes: one of these, at random for a seed that is always the same; () if
             all take as long
    """

    def __init__(
        self, cpus: int, cost_of: CostOf, slice: int = SLICE, trace: bool = False, spread: Sequence[float] = ()
    ) -> None:
        if cpus < 1:
            raise ValueError(f"{cpus} CPUs cannot run anything: at least 1 is possible")
        self.cost_of: Final = cost_of
        self.slice: Final[i64] = slice
        self.spread: Final = list(spread)
        self.random: Final = Random(1)
        self.handover: Final[i64] = self.price(HANDOVER)
        self.context_switch: Final[i64] = self.price(CONTEXT_SWITCH)
        self.wake_up: Final[i64] = self.price(WAKE_UP)
        self.waking: Final[i64] = self.price(WAKING)
        self.grace_period: Final[i64] = self.price(GRACE_PERIOD)
        self.shootdown: Final[i64] = self.price(SHOOTDOWN)
        self.interrupt: Final[i64] = self.price(INTERRUPT)
        self.cpus: Final = [Cpu(number) for number in range(cpus)]
        self.idle_cpus: Final[list[int]] = list(range(cpus))  # a heap; may hold some that are not idle any more
        self.ready: Final[deque[Task]] = deque()
        self.tasks: Final[list[Task]] = []  # that are not done
        self.nr_tasks = 0
        self.hub: Any = None
        self.beginner: Task | None = None  # whose turn it is, for the first time
        self.current: Task | None = None
        self.releaser: Task | None = None  # who gives a lock back, and wakes those who get it
        self.events: Final[list[Event]] = []  # a heap
        self.nr_events: i64 = 0
        self.now: i64 = 0  # time of the last event
        self.ended: i64 = 0  # when the last task came to its end
        self.nr_live = 0
        self.switches = 0
        self.lock_operations = 0

        self.ledgers: Final[list[Ledger]] = []
        self.priced = -1  # entries of the ledgers that have a price by now
        self.tallies: list[_PricedTally] = []
        self.pools: list[_PricedPool] = []
        self.locks: list[_PricedLock] = []
        self.node_tallies: list[Tally] = []
        self.nodes: i64 = 0  # visited so far, by all
        self.counted: i64 = 0  # all work so far, in picoseconds
        self.deferred: i64 = 0  # of it, done by grace periods
        self.spun: i64 = 0  # time for which CPUs did nothing but wait for a lock

        self.classes: Final[list[ClassFigures]] = []
        self.class_numbers: Final[dict[str, int]] = {}
        self.operations: Final[list[str]] = [""]
        self.operation_numbers: Final[dict[str, int]] = {"": 0}
        self.latencies: Final[list[list[int]]] = [[]]
        self.waits: Final[dict[tuple[int, bool, int, int], WaitFigures]] = {}  # class, write, operation, holder's

        self.next_period: list[_Deferred] = []
        self.this_period: list[_Deferred] = []
        self.period_asked = False
        self.in_period = False
        self.period_ends: i64 = 0
        self.period_readers = 0
        self.periods = 0
        self.held: Final[dict[str, int]] = {}  # objects that wait for a grace period, by type
        self.most_held: Final[dict[str, int]] = {}
        self.shootdowns = 0  # flushes that other CPUs were interrupted for
        self.interrupts = 0  # how many, in all
        self.shooting: i64 = 0  # how long that took of those who flushed

        self.trace: Final[list[tuple[str, str, int, int, int]] | None] = [] if trace else None

    def price(self, key: str) -> int:
        """Picoseconds a unit."""
        return round(self.cost_of(key) * PICOSECONDS)

    # Setting up

    def watch(self, ledger: Ledger) -> None:
        """Work that `ledger` counts takes time from now on."""
        self.ledgers.append(ledger)
        self.counted = self._count()

    def spawn(self, name: str, body: Callable[[], None], cpu: int = -1, space: CpuMask | None = None) -> Task:
        """A task that begins now, on `cpu` alone or (-1) wherever there is room, in the address space `space`."""
        if cpu >= len(self.cpus):
            raise ValueError(f"{name} cannot run on CPU {cpu}: there are {len(self.cpus)}, counted from 0")
        task = Task(self.nr_tasks, name, body, cpu)
        task.space = space
        self.nr_tasks += 1
        self.nr_live += 1
        self.tasks.append(task)
        at: i64 = self.now
        parent = self.current
        if parent is not None:
            self._charge(parent)
            at = parent.time
        self._push(at, _Alarm(task))
        return task

    def run(self) -> None:
        """Let all tasks run to their ends, and grace periods, too.

        :raises Finding: nobody can go on, or a rule of locking was broken
        """
        self.hub = greenlet.getcurrent()
        try:
            while self.events or self.beginner is not None:
                task = self.beginner
                self.beginner = None
                if task is None:
                    task = self._next()
                if task is not None:
                    if task.green is None:
                        task.green = greenlet.greenlet(self._live)
                    self.current = task
                    task.green.switch()
                    # A task came to its end, the one that ran last.
                    ended = self._who_ran()
                    if ended is not None:
                        self._end(ended)
            if self.nr_live:
                raise Finding(f"nobody can go on: {'; '.join(_waiting(task, self) for task in self.tasks)}")
        finally:
            self._stop()

    def _who_ran(self) -> Task | None:
        return self.current

    def _live(self) -> None:
        """What runs in the greenlet of the task whose turn it is."""
        task = self.current
        assert task is not None
        task.body()
        self._arrive(task)

    def _stop(self) -> None:
        """Let go of tasks that did not come to their end."""
        self.current = None
        for task in self.tasks:
            if task.green is not None and not task.done:
                task.done = True
                task.green.throw()
        self.current = None

    def _end(self, task: Task) -> None:
        self.current = None
        task.done = True
        if task.nr_locks:
            raise Finding(f"{task.name} ends while it holds a lock")
        if task.rcu_depth:
            raise Finding(f"{task.name} ends within an RCU section")
        self.nr_live -= 1
        if task.time > self.ended:
            self.ended = task.time
        last = self.tasks.pop()
        if last is not task:
            for i in range(len(self.tasks)):
                if self.tasks[i] is task:
                    self.tasks[i] = last
                    break
        self._leave_cpu(task)

    # What tasks say about themselves

    def runs_in(self, space: CpuMask) -> None:
        """The task is in this address space from now on."""
        task = self.current
        if task is not None and task.space is not space:
            task.space = space
            _load(self.cpus[task.cpu], space)

    def begin(self, operation: str) -> None:
        """The task begins an operation, whose latency is to be known."""
        task = self.current
        if task is not None:
            number = self.operation_numbers.get(operation)
            if number is None:
                number = len(self.operations)
                self.operations.append(operation)
                self.operation_numbers[operation] = number
                self.latencies.append([])
            self._charge(task)
            task.operation = number
            task.began = task.time

    def end(self) -> None:
        """The operation is over; another task may get the CPU."""
        task = self.current
        if task is not None:
            self._charge(task)
            self.latencies[task.operation].append(task.time - task.began)
            if self.trace is not None:
                self.trace.append((task.name, self.operations[task.operation], task.cpu, task.began, task.time))
            task.operation = 0
            if task.time - task.slice_began >= self.slice and self._others_ready(task):
                self._yield_cpu(task)

    def spend(self, picoseconds: int) -> None:
        """Work that no ledger counts."""
        task = self.current
        if task is not None:
            task.time += picoseconds

    def clock(self) -> int:
        """The time of the task that asks."""
        task = self.current
        if task is None:
            return self.now
        self._charge(task)
        return task.time

    def sleep_until(self, time: int) -> None:
        """The task gives up its CPU until then."""
        task = self.current
        if task is not None:
            self._charge(task)
            if time > task.time:
                self._arrive(task)
                self._sleeps(task, "until a time")
                self._push(time, _Alarm(task))
                self._leave_cpu(task)
                self._others(task)

    def sleep(self) -> None:
        """The task gives up its CPU until somebody calls `wake`."""
        task = self.current
        if task is not None:
            self._arrive(task)
            self._sleeps(task, "until it is woken")
            if task.woken:
                task.woken = False
                return
            task.asleep = True
            self._leave_cpu(task)
            self._others(task)

    def wake(self, task: Task) -> None:
        """`task`, which sleeps, is to go on; if it does not sleep, its next sleep is over at once."""
        at: i64 = self.now
        waker = self.current
        if waker is not None:
            self._charge(waker)
            at = waker.time
        self._push(at, _Alarm(task, call=True))

    # Work

    def work(self) -> int:
        """All work that was counted so far, in picoseconds."""
        return self._count()

    def _price_all(self) -> None:
        self.tallies = []
        self.pools = []
        self.locks = []
        self.node_tallies = []
        for ledger in self.ledgers:
            for name, tally in ledger.tallies.items():
                cost = self.price(name)
                if cost:
                    self.tallies.append(_PricedTally(tally, cost))
                if name in NODES:
                    self.node_tallies.append(tally)
            for name, pool in ledger.pools.items():
                alloc = self.price(f"alloc {name}")
                free = self.price(f"free {name}")
                if alloc or free:
                    self.pools.append(_PricedPool(pool, alloc, free))
            for name, lock_class in ledger.locks.items():
                cost = self.price(f"lock {name}")
                if cost:
                    self.locks.append(_PricedLock(lock_class, cost))

    def _count(self) -> i64:
        entries = 0
        for ledger in self.ledgers:
            entries += ledger.entries
        if entries != self.priced:
            self.priced = entries
            self._price_all()
        total: i64 = 0
        for tally in self.tallies:
            total += i64(tally.tally.count) * tally.cost
        for lock in self.locks:
            total += i64(lock.lock_class.writes + lock.lock_class.reads) * lock.cost
        for pool in self.pools:
            total += i64(pool.pool.allocated) * pool.both - i64(pool.pool.live) * pool.free
        return total

    def _charge(self, task: Task) -> None:
        """Let the clock of `task`, which runs, show the work that was counted since somebody was charged."""
        total = self._count()
        task.time += total - self.counted
        self.counted = total
        nodes: i64 = 0
        for tally in self.node_tallies:
            nodes += i64(tally.count)
        task.nodes += nodes - self.nodes
        self.nodes = nodes
        if task.interrupted:
            task.time += task.interrupted
            task.interrupted = 0

    # Events

    def _push(self, time: i64, event: Event) -> None:
        self._announce(time, event)
        events = self.events
        events.append(event)
        i: i64 = len(events) - 1
        while i > 0:
            up = (i - 1) >> 1
            above = events[up]
            if above.at <= time:  # and was announced before
                break
            events[i] = above
            i = up
        events[i] = event

    def _announce(self, time: i64, event: Event) -> None:
        self.nr_events += 1
        event.at = time
        event.announced = self.nr_events

    def _arrive(self, task: Task) -> None:
        """All that happens before the clock of `task` happens now."""
        self._charge(task)
        events = self.events
        while events and events[0].at <= task.time:
            self._announce(task.time, task)
            self._go_on(task, self._happen(_replace_first(events, task)))
            if not task.interrupted:
                return
            # A lock that it had given back went to a sleeper: it woke that one before it came here (wake_up_q()).
            task.time += task.interrupted
            task.interrupted = 0
        self.now = task.time

    def _others(self, task: Task) -> None:
        """Let events happen until it is the turn of `task`, for which there is one, or will be."""
        self._go_on(task, None)

    def _go_on(self, task: Task, next: Task | None) -> None:
        """The same; it is the turn of `next` if there is one."""
        while True:
            if next is None:
                if not self.events:
                    self.current = None
                    self.hub.switch()  # which says that nobody can go on
                next = self._next()
                continue
            if next is not task:
                self.switches += 1
                self.current = next
                if next.green is None:
                    # A task's first step is taken from the hub, to which it returns at its end.
                    self.current = None
                    self.beginner = next
                    self.hub.switch()
                else:
                    next.green.switch()
            self.current = task
            return

    def _next(self) -> Task | None:
        """Let the next event happen; the task whose turn it is, if it is that of a task."""
        events = self.events
        last = events.pop()
        return self._happen(_replace_first(events, last) if events else last)

    def _happen(self, event: Event) -> Task | None:
        self.now = event.at
        if isinstance(event, Task):
            return event
        if isinstance(event, _Release):
            self._released(event.state, event.task, event.write, event.downgrade)
        elif isinstance(event, _Alarm):
            task = event.task
            if not event.call:
                self._make_ready(task)
            elif task.asleep:
                task.asleep = False
                self._make_ready(task)
            else:
                task.woken = True
        elif isinstance(event, _Deadline):
            if event.number == event.state.deadline:
                event.state.no_spinning = True
                self._stop_spinning(event.state)
        elif isinstance(event, _GracePeriod):
            if event.ends:
                self._end_period()
            else:
                self._begin_period()
        return None

    # CPUs

    def _others_ready(self, task: Task) -> bool:
        """Does anybody wait for the CPU of `task`?"""
        return len(self.ready) > 0 or len(self.cpus[task.cpu].queue) > 0

    def _make_ready(self, task: Task) -> None:
        """`task` could go on now (try_to_wake_up())."""
        cpu = self._idle_cpu_for(task)
        if cpu is not None:
            waker = self.releaser
            if waker is not None and waker.cpu != cpu.number:
                waker.interrupted += self.waking  # it sends an interrupt
            cost = self.wake_up
            if self.spread:
                cost = round(int(cost) * self.random.choice(self.spread))
            self._enter_cpu(task, cpu, cost)
            return
        task.ready_since = self.now
        if task.pinned >= 0:
            self.cpus[task.pinned].queue.append(task)
        else:
            self.ready.append(task)

    def _idle_cpu_for(self, task: Task) -> Cpu | None:
        if task.pinned >= 0:
            cpu = self.cpus[task.pinned]
            return cpu if cpu.task is None else None
        if task.cpu >= 0:
            cpu = self.cpus[task.cpu]
            if cpu.task is None:
                return cpu
        while self.idle_cpus:
            number = self.idle_cpus[0]
            cpu = self.cpus[number]
            if cpu.task is None:
                return cpu
            heappop(self.idle_cpus)
            cpu.listed_idle = False
        return None

    def _enter_cpu(self, task: Task, cpu: Cpu, cost: i64) -> None:
        """`task` goes on, on `cpu`, which was idle or was just left."""
        cpu.task = task
        if task.space is not None:
            _load(cpu, task.space)
        cpu.idle += self.now - cpu.idle_since
        cpu.switching += cost
        task.cpu = cpu.number
        task.running = True
        at = self.now + cost
        if at < task.time:
            at = task.time
        task.time = at
        task.slice_began = at
        self._push(at, task)

    def _leave_cpu(self, task: Task) -> None:
        """`task`, whose clock is right, gives up its CPU."""
        task.running = False
        cpu = self.cpus[task.cpu]
        cpu.task = None
        cpu.idle_since = task.time
        now = self.now
        self.now = task.time
        for state in task.semaphores:
            if state.spinners is not None:
                self._stop_spinning(state)  # nobody spins on an owner that sleeps
        next: Task | None = None
        if cpu.queue and (not self.ready or cpu.queue[0].ready_since <= self.ready[0].ready_since):
            next = cpu.queue.popleft()
        elif self.ready:
            next = self.ready.popleft()
        if next is not None:
            self._enter_cpu(next, cpu, self.context_switch)
        elif not cpu.listed_idle:
            cpu.listed_idle = True
            heappush(self.idle_cpus, cpu.number)
        self.now = now

    def _yield_cpu(self, task: Task) -> None:
        """Its time slice is over."""
        self._arrive(task)
        self._push(task.time, _Alarm(task))
        self._leave_cpu(task)
        self._others(task)

    def _sleeps(self, task: Task, what: str) -> None:
        if task.nr_spinlocks:
            raise Finding(f"{task.name} sleeps ({what}) while it holds a spin lock")
        if task.rcu_depth:
            raise Finding(f"{task.name} sleeps ({what}) within an RCU section")

    # Locks

    def _state(self, lock: Lock) -> LockState:
        state = lock.state
        if state is None:
            lock_class = lock.lock_class
            kind = _RWSEM if isinstance(lock, RwSemaphore) else _SLEEP if lock_class.sleeps else _SPIN
            number = self.class_numbers.get(lock_class.name, -1)
            if number < 0:
                number = len(self.classes)
                self.class_numbers[lock_class.name] = number
                covers = any(
                    lock_class.name in ledger.locks and any(name in ledger.tallies for name in NODES)
                    for ledger in self.ledgers
                )
                self.classes.append(ClassFigures(number, lock_class.name, kind, covers))
            new = LockState(kind, self.classes[number])
            lock.state = new
            return new
        return cast(LockState, state)

    def acquire(self, lock: object, write: bool) -> None:
        task = self.current
        if task is None:
            return
        self._arrive(task)
        state = self._state(cast(Lock, lock))
        self.lock_operations += 1
        if state.kind == _RWSEM:
            if not (self._down_write(state, task) if write else self._down_read(state, task)):
                self._wait(state, task, write)
        elif state.writer is None and not state.waiters:
            state.writer = task
        else:
            self._wait(state, task, True)
        self._take(state, task, write)

    def try_acquire(self, lock: object, write: bool) -> bool:
        task = self.current
        if task is None:
            return True
        self._arrive(task)
        state = self._state(cast(Lock, lock))
        self.lock_operations += 1
        free = state.writer is None and not state.waiters and state.handoff is None
        if free and write:
            free = state.readers == 0
        if not free:
            self._touch(state, task)
            state.figures.refused += 1
            return False
        if write:
            state.writer = task
            state.reader_owned = False
        else:
            state.readers += 1
            state.reader_owned = True
        self._take(state, task, write)
        return True

    def _take(self, state: LockState, task: Task, write: bool) -> None:
        """`task` has the lock."""
        moved = self._touch(state, task)
        state.holder = task.operation
        task.nr_locks += 1
        state.figures.acquired += 1
        if write:
            state.since = task.time
            state.nodes = task.nodes if moved and state.figures.covers_nodes else -1
            if state.kind == _SPIN:
                task.nr_spinlocks += 1
            elif state.kind == _RWSEM:
                task.semaphores.append(state)
        else:
            state.figures.hold(False, task.operation, -task.time)

    def _touch(self, state: LockState, task: Task) -> bool:
        """`task` changes the lock's cache line; was it on another CPU?"""
        last = state.cpu
        if last == task.cpu:
            return False
        state.cpu = task.cpu
        if last < 0:
            return False
        start = task.time
        if state.line_free > start:
            start = state.line_free
        end = start + self.handover
        state.line_free = end
        figures = state.figures
        figures.moved += 1
        figures.moving += end - task.time
        task.time = end
        return True

    def release(self, lock: object, write: bool) -> None:
        task = self.current
        if task is None:
            return
        self._charge(task)
        state = self._state(cast(Lock, lock))
        task.nr_locks -= 1
        if write:
            if state.writer is not task:
                raise Finding(f"{task.name} gives back {state.figures.name}, which it does not hold")
            if state.nodes >= 0:
                moving = (task.nodes - state.nodes) * self.handover
                task.time += moving
                state.figures.moving += moving
            if state.kind == _SPIN:
                task.nr_spinlocks -= 1
            elif state.kind == _RWSEM:
                _drop(task.semaphores, state)
        else:
            self._touch(state, task)
        self._give(state, task, write, False)

    def downgrade(self, lock: object) -> None:
        task = self.current
        if task is None:
            return
        self._charge(task)
        state = self._state(cast(Lock, lock))
        if state.writer is not task:
            raise Finding(f"{task.name} downgrades {state.figures.name}, which it does not hold")
        _drop(task.semaphores, state)
        self._give(state, task, True, True)

    def _give(self, state: LockState, task: Task, write: bool, downgrade: bool) -> None:
        """The lock is given back at the time of `task`: at once if nothing comes before that."""
        time = task.time
        figures = state.figures
        if not write:
            figures.hold(False, task.operation, time)
        else:
            figures.hold(True, task.operation, time - state.since)
            if downgrade:
                figures.hold(False, task.operation, -time)
        events = self.events
        if events and events[0].at <= time:
            self._push(time, _Release(state, task, write, downgrade))
        else:
            self.now = time
            self._released(state, task, write, downgrade)

    def _released(self, state: LockState, task: Task, write: bool, downgrade: bool) -> None:
        self.releaser = task
        self._pass_on(state, task, write, downgrade)
        self.releaser = None

    def _pass_on(self, state: LockState, task: Task, write: bool, downgrade: bool) -> None:
        if write:
            state.writer = None
            if downgrade:
                state.readers += 1
                state.reader_owned = True
                if state.waiters:
                    self._mark_wake(state, _READ_OWNED)
                self._spin_on_readers(state)
                return
        else:
            if state.readers == 0:
                raise Finding(f"{task.name} gives back {state.figures.name}, which nobody holds for reading")
            state.readers -= 1
        if state.kind == _RWSEM:
            if state.readers == 0:
                self._freed(state)
        elif state.waiters:
            self._grant(state, state.waiters.pop(0))

    # rw_semaphore

    def _down_read(self, state: LockState, task: Task) -> bool:
        waiting = bool(state.waiters)
        if state.writer is not None or state.handoff is not None:
            return False
        if waiting and state.readers > 0:
            return False  # a stream of readers does not starve a writer
        state.readers += 1
        state.reader_owned = True
        if waiting:
            self._mark_wake(state, _READ_OWNED)
        if state.readers == 1:
            self._spin_on_readers(state)
        return True

    def _down_write(self, state: LockState, task: Task) -> bool:
        if state.writer is None and state.readers == 0 and state.handoff is None:
            # The fast path; or, with sleepers in the queue, a spinner that need not spin.
            if not state.waiters or (not state.no_spinning and not state.spinners):
                self._own(state, task)
                return True
        return False

    def _own(self, state: LockState, task: Task) -> None:
        state.writer = task
        state.reader_owned = False
        state.no_spinning = False

    def _may_spin(self, state: LockState, task: Task) -> bool:
        """rwsem_can_spin_on_owner()"""
        if state.no_spinning:
            return False
        owner = state.writer
        if owner is not None and not owner.running:
            return False
        return not (task.time - task.slice_began >= self.slice and self._others_ready(task))

    def _spin_on_readers(self, state: LockState) -> None:
        """Readers have the lock: who spins for writing does so for a limited time (rwsem_rspin_threshold())."""
        if state.spinners:
            state.deadline += 1
            limit = (20 + min(state.readers, 30)) * _MICROSECOND // 2
            self._push(self.now + limit, _Deadline(state, state.deadline))

    def _wait(self, state: LockState, task: Task, write: bool) -> None:
        """Wait until the lock is granted."""
        since = task.time
        waiter = Waiter(task, write, since, state.holder)
        task.waits_for = state
        if state.kind == _SPIN:
            _queue(state).append(waiter)
        elif state.kind == _RWSEM and write and self._may_spin(state, task):
            if state.spinners is None:
                state.spinners = []
            state.spinners.append(waiter)
            if len(state.spinners) == 1 and state.reader_owned and state.readers:
                self._spin_on_readers(state)
        else:
            self._sleeps(task, state.figures.name)
            self._enqueue(state, waiter)
            if state.kind == _RWSEM:
                if write and self._try_queued(state, waiter):
                    waiter.granted = True
            if not waiter.granted:
                self._leave_cpu(task)
        if not waiter.granted:
            self._others(task)
            while not waiter.granted and not self._try_queued(state, waiter):
                waiter.woken = False
                self._leave_cpu(task)
                self._others(task)
        task.waits_for = None
        self._add_wait(state, waiter, task)

    def _add_wait(self, state: LockState, waiter: Waiter, task: Task) -> None:
        key = (state.figures.number, waiter.write, task.operation, waiter.holder)
        figures = self.waits.get(key)
        if figures is None:
            figures = WaitFigures()
            self.waits[key] = figures
        waited = task.time - waiter.since
        figures.count += 1
        figures.total += waited
        if waited > figures.longest:
            figures.longest = waited
        if self.trace is not None:
            what = f"waits for {state.figures.name} ({self.operations[waiter.holder]})"
            self.trace.append((task.name, what, task.cpu, waiter.since, task.time))

    def _enqueue(self, state: LockState, waiter: Waiter) -> None:
        """`waiter` goes to the end of the queue, where it sleeps."""
        queue = _queue(state)
        queue.append(waiter)
        if state.kind == _RWSEM and state.writer is None and len(queue) > (1 if waiter.write else 0):
            # rwsem_cond_wake_waiter()
            self._mark_wake(state, _READERS if state.readers else _ANY)

    def _try_queued(self, state: LockState, waiter: Waiter) -> bool:
        """rwsem_try_write_lock(): a writer in the queue tries for itself."""
        if state.handoff is not None and state.handoff is not waiter:
            return False
        if state.writer is not None or state.readers:
            if self.now - waiter.since > HANDOFF_AFTER:
                state.handoff = _queue(state)[0]
            return False
        state.handoff = None
        _queue(state).remove(waiter)
        self._own(state, waiter.task)
        return True

    def _freed(self, state: LockState) -> None:
        """Nobody has the semaphore now: who spins takes it, and who sleeps is woken (rwsem_wake())."""
        waiters = state.waiters
        chosen = state.handoff
        if chosen is not None and chosen.write:
            state.handoff = None
            _queue(state).remove(chosen)
            self._own(state, chosen.task)
            self._grant(state, chosen)
            return
        if state.spinners and chosen is None:
            first = state.spinners.pop(0)
            state.deadline += 1
            self._own(state, first.task)
            self._grant(state, first)
        if waiters:
            if state.writer is None:
                state.no_spinning = False
            self._mark_wake(state, _ANY)

    def _mark_wake(self, state: LockState, kind: int) -> None:
        """rwsem_mark_wake()"""
        waiters = _queue(state)
        first = waiters[0]
        if first.write:
            if kind == _ANY and not first.woken:
                first.woken = True
                self._make_ready(first.task)
            return
        if kind != _READ_OWNED and state.writer is not None:
            if self.now - first.since > HANDOFF_AFTER:
                state.handoff = first
            return
        granted = [waiter for waiter in waiters if not waiter.write]
        if len(granted) > WOKEN_AT_ONCE:
            granted = granted[:WOKEN_AT_ONCE]
            state.waiters = [waiter for waiter in waiters if waiter not in granted]
        else:
            state.waiters = [waiter for waiter in waiters if waiter.write]
        first_readers = state.readers == 0
        state.readers += len(granted)
        state.reader_owned = True
        state.handoff = None
        for waiter in granted:
            self._grant(state, waiter)
        if first_readers:
            self._spin_on_readers(state)

    def _grant(self, state: LockState, waiter: Waiter) -> None:
        """`waiter`, which is in no queue any more, has the lock from now on, and may go on."""
        task = waiter.task
        waiter.granted = True
        if state.kind != _RWSEM:
            state.writer = task
        if task.running:  # it spins
            self.spun += self.now - task.time
            task.time = self.now
            self._push(self.now, task)
        elif not waiter.woken:
            self._make_ready(task)

    def _stop_spinning(self, state: LockState) -> None:
        """Those who spin join the queue and sleep."""
        spinners = state.spinners
        state.spinners = None
        state.deadline += 1
        if spinners is not None:
            for waiter in spinners:
                task = waiter.task
                self.spun += self.now - task.time
                task.time = self.now
                self._enqueue(state, waiter)
                self._leave_cpu(task)

    # RCU

    def rcu_enter(self) -> None:
        task = self.current
        if task is not None:
            if task.rcu_depth == 0 and task.rcu_left <= self.now:
                task.rcu_entered = task.time
            task.rcu_depth += 1

    def rcu_leave(self) -> None:
        task = self.current
        if task is not None:
            if task.rcu_depth == 0:
                raise Finding(f"{task.name} leaves an RCU section that it is not in")
            task.rcu_depth -= 1
            if task.rcu_depth == 0:
                self._charge(task)
                task.rcu_left = task.time
                if task.rcu_waited_for:
                    task.rcu_waited_for = False
                    self._reader_left(task.time)

    def rcu_call(self, what: str, subject: object, then: Callable[[], None] | None = None) -> None:
        task = self.current
        if task is None:
            if then is not None:
                then()
            return
        self._charge(task)
        self.next_period.append(_Deferred(what, then))
        held = self.held.get(what, 0) + 1
        self.held[what] = held
        if held > self.most_held.get(what, 0):
            self.most_held[what] = held
        if not self.in_period and not self.period_asked:
            self.period_asked = True
            self._push(task.time, _GracePeriod(False))

    def _begin_period(self) -> None:
        """Whoever is in a section now has to leave it first."""
        self.period_asked = False
        self.in_period = True
        self.periods += 1
        self.this_period = self.next_period
        self.next_period = []
        self.period_ends = self.now + self.grace_period
        self.period_readers = 0
        for cpu in self.cpus:
            task = cpu.task
            if task is not None and task.rcu_entered <= self.now:
                if task.rcu_depth:
                    task.rcu_waited_for = True
                    self.period_readers += 1
                elif task.rcu_left > self.period_ends:
                    self.period_ends = task.rcu_left
        if self.period_readers == 0:
            self._push(self.period_ends, _GracePeriod(True))

    def _reader_left(self, time: i64) -> None:
        if time > self.period_ends:
            self.period_ends = time
        self.period_readers -= 1
        if self.period_readers == 0:
            self._push(self.period_ends, _GracePeriod(True))

    def _end_period(self) -> None:
        self.in_period = False
        current = self.current
        self.current = None
        for deferred in self.this_period:
            self.held[deferred.what] -= 1
            if deferred.then is not None:
                deferred.then()
        self.current = current
        self.this_period = []
        total = self._count()
        self.deferred += total - self.counted
        self.counted = total
        if self.next_period:
            self._begin_period()

    # What is no lock

    def point(self, what: str, subject: object, write: bool = False) -> None:
        if write and isinstance(subject, Word):
            task = self.current
            if task is not None and subject.cpu != task.cpu:
                if subject.cpu >= 0:
                    self._charge(task)
                    start = task.time
                    if subject.line_free > start:
                        start = subject.line_free
                    task.time = start + self.handover
                    subject.line_free = task.time
                subject.cpu = task.cpu

    def wait(self, what: str, subject: object, ready: Callable[[], bool]) -> None:
        task = self.current
        if ready():
            return
        if task is None:
            raise RuntimeError(f"waiting for {what}, and nobody else runs who could bring it about")
        spins = isinstance(subject, SequenceCount)
        self._arrive(task)
        pause: i64 = LOOK_AGAIN
        while not ready():
            at = task.time + pause
            if spins:
                self.spun += pause
                task.time = at
                self._push(at, task)
                self._others(task)
            else:
                self._sleeps(task, what)
                self._push(at, _Alarm(task))
                self._leave_cpu(task)
                self._others(task)
            if pause < LOOK_AT_LEAST:
                pause *= 2

    # TLBs

    def flush(self, space: CpuMask, freed_tables: bool = False) -> None:
        task = self.current
        if task is not None and _is_elsewhere(space, task.cpu):
            self._arrive(task)
            self._shoot_down(task, list(space.cpus), freed_tables)

    def flush_later(self, space: CpuMask, dirty: bool) -> None:
        # arch_tlbbatch_should_defer(): only what is loaded elsewhere; else there is nothing to wait for.
        task = self.current
        if task is not None and _is_elsewhere(space, task.cpu):
            for cpu in space.cpus:
                if cpu not in task.unflushed:
                    task.unflushed.append(cpu)
            task.unflushed_dirty = task.unflushed_dirty or dirty

    def flush_deferred(self, if_dirty: bool = False) -> None:
        task = self.current
        if task is not None and task.unflushed and (task.unflushed_dirty or not if_dirty):
            self._arrive(task)
            cpus = list(task.unflushed)
            task.unflushed.clear()
            task.unflushed_dirty = False
            self._shoot_down(task, cpus, False)

    def _shoot_down(self, task: Task, cpus: list[int], freed_tables: bool) -> None:
        """Interrupt those of `cpus` that do not flush by themselves, and wait until all have flushed
        (native_flush_tlb_multi())."""
        hit = 0
        for number in cpus:
            there = self.cpus[number].task
            if number != task.cpu and (freed_tables or (there is not None and there.space is not None)):
                hit += 1
                if there is not None:
                    there.interrupted += self.interrupt
        if hit:
            taken = self.shootdown + (hit - 1) * self.waking
            self.shootdowns += 1
            self.interrupts += hit
            self.shooting += taken
            self.spun += taken
            if self.trace is not None:
                self.trace.append((task.name, "waits for other TLBs", task.cpu, task.time, task.time + taken))
            task.time += taken

    def chunk(self) -> int:
        return 0


def _load(cpu: Cpu, space: CpuMask) -> None:
    """`cpu` runs in `space` from now on; it had kept the last address space while it idled or ran kernel threads
    (switch_mm_irqs_off())."""
    last = cpu.loaded
    if last is not space:
        if last is not None:
            last.cpus.remove(cpu.number)
        space.cpus.append(cpu.number)
        cpu.loaded = space


def _is_elsewhere(space: CpuMask, cpu: int) -> bool:
    """Is it loaded on any CPU but `cpu`?"""
    cpus = space.cpus
    return len(cpus) > 1 or (len(cpus) == 1 and cpus[0] != cpu)


def _replace_first(events: list[Event], event: Event) -> Event:
    """Take the first event out of a heap, which is not empty, and put another in.  (heapq would call Python to compare
    them, and tuples that it compares itself have to be made.)"""
    first = events[0]
    at = event.at
    announced = event.announced
    size: i64 = len(events)
    i: i64 = 0
    below: i64 = 1
    while below < size:
        sooner = events[below]
        if below + 1 < size:
            other = events[below + 1]
            if other.at < sooner.at or (other.at == sooner.at and other.announced < sooner.announced):
                sooner = other
                below += 1
        if at < sooner.at or (at == sooner.at and announced < sooner.announced):
            break
        events[i] = sooner
        i = below
        below = 2 * i + 1
    events[i] = event
    return first


def _queue(state: LockState) -> list[Waiter]:
    waiters = state.waiters
    if waiters is None:
        waiters = []
        state.waiters = waiters
    return waiters


def _drop(held: list[LockState], state: LockState) -> None:
    """Take `state` out of what a task holds; mostly it was taken last, or first."""
    if held[-1] is state:
        held.pop()
        return
    for i in range(len(held)):
        if held[i] is state:
            del held[i]
            return


def _waiting(task: Task, time: VirtualTime) -> str:
    state = task.waits_for
    what = "something" if state is None else state.figures.name
    return f"{task.name} waits for {what}"
