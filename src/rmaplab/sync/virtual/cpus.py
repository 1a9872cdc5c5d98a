# SPDX-License-Identifier: GPL-2.0-or-later
"""CPUs, and the tasks that get one (kernel/sched/core.c, fair.c, seen from far away).

A task has a CPU to itself until it sleeps, or has used up its time slice at the end of an operation while others are
ready.  It goes to an idle CPU, its last one if possible, else waits its turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from random import Random
from typing import Final

from mypy_extensions import i64

from rmaplab.sync.locks import CpuMask
from rmaplab.sync.virtual.agenda import Agenda, Event
from rmaplab.sync.virtual.prices import CONTEXT_SWITCH, MICROSECOND, WAKE_UP, WAKING, Work
from rmaplab.sync.virtual.task import Task

SLICE: Final = (
    3000 * MICROSECOND
)  # sysctl_sched_base_slice on a machine with 8 or more CPUs (kernel/sched/fair.c)


class Cpu:
    """One simulated CPU.

    task:      who runs here
    loaded:    the address space that was here last
    queue:     tasks that are ready and pinned here
    idle, switching: for how long it had nothing to do, and was busy with changing tasks
    """

    def __init__(self, number: int) -> None:
        self.number: Final = number
        self.task: Task | None = None
        self.loaded: CpuMask | None = None
        self.queue: Final[deque[Task]] = deque()
        self.listed_idle = True
        self.idle_since: i64 = 0
        self.idle: i64 = 0
        self.switching: i64 = 0

    def load(self, space: CpuMask) -> None:
        """It runs in `space` from now on; it had kept the last address space while it idled or ran kernel threads
        (switch_mm_irqs_off())."""
        last = self.loaded
        if last is not space:
            if last is not None:
                last.cpus.remove(self.number)
            space.cpus.append(self.number)
            self.loaded = space


class Cpus:
    """All CPUs, and the tasks that are ready for one.

    waking: what it takes to interrupt another CPU
    waker:  who gives a lock back, and wakes those who get it
    spun:   time for which CPUs did nothing but wait
    """

    def __init__(self, count: int, agenda: Agenda, work: Work, slice: int, spread: Sequence[float]) -> None:
        if count < 1:
            raise ValueError(f"{count} CPUs cannot run anything: at least 1 is possible")
        self.all: Final = [Cpu(number) for number in range(count)]
        self.waking: Final[i64] = work.price(WAKING)
        self.waker: Task | None = None
        self.spun: i64 = 0
        self._agenda: Final = agenda
        self._slice: Final[i64] = slice
        self._context_switch: Final[i64] = work.price(CONTEXT_SWITCH)
        self._wake_up: Final[i64] = work.price(WAKE_UP)
        self._spread: Final = list(spread)
        self._random: Final = Random(1)
        self._idle: Final[list[int]] = list(range(count))  # a heap; may hold some that are not idle any more
        self._ready: Final[deque[Task]] = deque()

    def need_resched(self, task: Task) -> bool:
        """Has `task` used up its time slice while somebody waits for its CPU?"""
        return task.time - task.slice_began >= self._slice and (
            len(self._ready) > 0 or len(self.all[task.cpu].queue) > 0
        )

    def make_ready(self, task: Task) -> None:
        """`task` could go on now (try_to_wake_up())."""
        cpu = self._idle_cpu_for(task)
        if cpu is not None:
            waker = self.waker
            if waker is not None and waker.cpu != cpu.number:
                waker.interrupted += self.waking  # it sends an interrupt
            cost = self._wake_up
            if self._spread:
                cost = round(int(cost) * self._random.choice(self._spread))
            self._enter(task, cpu, cost)
            return
        task.ready_since = self._agenda.now
        if task.pinned >= 0:
            self.all[task.pinned].queue.append(task)
        else:
            self._ready.append(task)

    def leave(self, task: Task) -> None:
        """`task`, whose clock is right, gives up its CPU."""
        task.running = False
        cpu = self.all[task.cpu]
        cpu.task = None
        cpu.idle_since = task.time
        agenda = self._agenda
        now = agenda.now
        agenda.now = task.time
        for owned in task.held.semaphores:
            owned.owner_sleeps()
        next: Task | None = None
        if cpu.queue and (not self._ready or cpu.queue[0].ready_since <= self._ready[0].ready_since):
            next = cpu.queue.popleft()
        elif self._ready:
            next = self._ready.popleft()
        if next is not None:
            self._enter(next, cpu, self._context_switch)
        elif not cpu.listed_idle:
            cpu.listed_idle = True
            heappush(self._idle, cpu.number)
        agenda.now = now

    def spin_until_now(self, task: Task) -> None:
        """`task` did nothing but wait, on its CPU."""
        now = self._agenda.now
        self.spun += now - task.time
        task.time = now

    def _idle_cpu_for(self, task: Task) -> Cpu | None:
        if task.pinned >= 0:
            cpu = self.all[task.pinned]
            return cpu if cpu.task is None else None
        if task.cpu >= 0:
            cpu = self.all[task.cpu]
            if cpu.task is None:
                return cpu
        while self._idle:
            number = self._idle[0]
            cpu = self.all[number]
            if cpu.task is None:
                return cpu
            heappop(self._idle)
            cpu.listed_idle = False
        return None

    def _enter(self, task: Task, cpu: Cpu, cost: i64) -> None:
        """`task` goes on, on `cpu`, which was idle or was just left."""
        cpu.task = task
        if task.space is not None:
            cpu.load(task.space)
        now = self._agenda.now
        cpu.idle += now - cpu.idle_since
        cpu.switching += cost
        task.cpu = cpu.number
        task.running = True
        at = now + cost
        if at < task.time:
            at = task.time
        task.time = at
        task.slice_began = at
        self._agenda.push(at, task)


class Alarm(Event):
    """The time that a task waited for has come."""

    def __init__(self, cpus: Cpus, task: Task) -> None:
        super().__init__()
        self._cpus: Final = cpus
        self._task: Final = task

    def happen(self) -> None:
        self._cpus.make_ready(self._task)


class Call(Event):
    """Somebody calls a task that may be asleep."""

    def __init__(self, cpus: Cpus, task: Task) -> None:
        super().__init__()
        self._cpus: Final = cpus
        self._task: Final = task

    def happen(self) -> None:
        task = self._task
        if task.asleep:
            task.asleep = False
            self._cpus.make_ready(task)
        else:
            task.woken = True
