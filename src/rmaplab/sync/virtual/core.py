# SPDX-License-Identifier: GPL-2.0-or-later
"""The run loop: events happen one after another, and tasks, which are greenlets, go on at theirs.

Invariant: what tasks do to locks takes place in the order of virtual time, at equal times in the order in which it was
announced.  What a task does between two such operations it does at once, at the first: a real machine could have taken
the same steps in that order, because the task holds the same locks.
"""

from __future__ import annotations

from typing import Any, Final

import greenlet
from mypy_extensions import i64

from rmaplab.sync.errors import Finding
from rmaplab.sync.virtual.agenda import Agenda, Event
from rmaplab.sync.virtual.cpus import Alarm, Cpus
from rmaplab.sync.virtual.figures import Figures
from rmaplab.sync.virtual.prices import Work
from rmaplab.sync.virtual.task import Task


class Core:
    """Tasks, whose turn it is, and what every part of the simulation shares.

    current: the task that runs, None outside of any
    ended:   when the last task came to its end
    most_tasks: that were there at one time
    """

    def __init__(self, agenda: Agenda, work: Work, cpus: Cpus, figures: Figures) -> None:
        self.agenda: Final = agenda
        self.work: Final = work
        self.cpus: Final = cpus
        self.figures: Final = figures
        self.current: Task | None = None
        self.ended: i64 = 0
        self.most_tasks = 0
        self._tasks: Final[list[Task]] = []  # that are not done
        self._beginner: Task | None = None  # whose turn it is, for the first time
        self._hub: Any = None  # the greenlet in which `run` was called

    def spawn(self, task: Task, at: i64) -> None:
        self._tasks.append(task)
        if len(self._tasks) > self.most_tasks:
            self.most_tasks = len(self._tasks)
        self.agenda.push(at, Alarm(self.cpus, task))

    def run(self) -> None:
        """Let all tasks run to their ends, and grace periods, too."""
        self._hub = greenlet.getcurrent()
        try:
            while self.agenda.events or self._beginner is not None:
                task = self._beginner
                self._beginner = None
                if task is None:
                    task = _happen(self.agenda, self.agenda.pop())
                if task is not None:
                    if task.green is None:
                        task.green = greenlet.greenlet(self._live)
                    self.current = task
                    task.green.switch()
                    ended = self._who_ran()
                    if ended is not None:
                        self._end(ended)
            if self._tasks:
                raise Finding(f"nobody can go on: {'; '.join(_waiting(task) for task in self._tasks)}")
        finally:
            self._stop()

    def arrive(self, task: Task) -> None:
        """All that happens before the clock of `task`, which runs, happens now."""
        self.work.charge(task)
        agenda = self.agenda
        while agenda.due(task.time):
            agenda.announce(task.time, task)
            self._go_on(task, _happen(agenda, agenda.swap(task)))
            if not task.interrupted:
                return
            # A lock that it had given back went to a sleeper: it woke that one before it came here (wake_up_q()).
            task.time += task.interrupted
            task.interrupted = 0
        agenda.now = task.time

    def spin(self, task: Task) -> None:
        """`task` keeps its CPU and lets events happen until it is its turn."""
        self._go_on(task, None)

    def sleep(self, task: Task) -> None:
        """`task` gives up its CPU until somebody makes it ready and it is its turn."""
        self.cpus.leave(task)
        self._go_on(task, None)

    def sleep_until(self, task: Task, time: i64) -> None:
        self.agenda.push(time, Alarm(self.cpus, task))
        self.sleep(task)

    def _go_on(self, task: Task, next: Task | None) -> None:
        """Let events happen until it is the turn of `task`; now it is the turn of `next` if there is one."""
        agenda = self.agenda
        while next is None:
            if not agenda.events:
                self.current = None
                self._hub.switch()  # which says that nobody can go on
            next = _happen(agenda, agenda.pop())
        if next is not task:
            if next.green is not None:
                self.current = next
                next.green.switch()
            else:
                # A task's first step is taken from the hub, to which it returns at its end.
                self.current = None
                self._beginner = next
                self._hub.switch()
        self.current = task

    def _live(self) -> None:
        """What runs in the greenlet of the task whose turn it is."""
        task = self.current
        assert task is not None
        task.body()
        self.arrive(task)

    def _who_ran(self) -> Task | None:
        """Who came to its end, if the hub was not called for something else (mypy would know that it is not None)."""
        return self.current

    def _end(self, task: Task) -> None:
        self.current = None
        task.done = True
        if task.held.locks:
            raise Finding(f"{task.name} ends while it holds a lock")
        if task.reader.depth:
            raise Finding(f"{task.name} ends within an RCU section")
        if task.time > self.ended:
            self.ended = task.time
        last = self._tasks.pop()
        if last is not task:
            for i in range(len(self._tasks)):
                if self._tasks[i] is task:
                    self._tasks[i] = last
                    break
        self.cpus.leave(task)

    def _stop(self) -> None:
        """Let go of tasks that did not come to their end."""
        self.current = None
        for task in self._tasks:
            if task.green is not None and not task.done:
                task.done = True
                task.green.throw()
        self.current = None


def _happen(agenda: Agenda, event: Event) -> Task | None:
    """Let the event happen now; the task whose turn it is, if it is that of a task."""
    agenda.now = event.at
    if isinstance(event, Task):
        return event
    event.happen()
    return None


def _waiting(task: Task) -> str:
    return f"{task.name} waits for {task.waits_for or 'something'}"
