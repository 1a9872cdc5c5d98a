# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual time: the same code on many simulated CPUs, where time passes only by counted work.

A task is a thread of control with a clock of its own.  Between two calls of the scheduler it did work, which the
watched ledgers counted; its clock moves by those counts times the cost of a unit.  Nothing else moves it except
waiting: for a lock, for a CPU, for a cache line, for a grace period.  A contended lock parks its task (a
greenlet) and another goes on.  What happens depends on costs, seed and code alone, never on the host.

agenda.py     events, by time
task.py       tasks
prices.py     counted work as time
cpus.py       CPUs, and the tasks that get one
figures.py    figures of locks and operations
core.py       the run loop
lines.py      cache lines
locks.py      the base of all locks; spin locks and folio locks
rwsem.py      rw_semaphore
rcu.py        grace periods
tlb.py        TLBs
poll.py       waits by polling
scheduler.py  VirtualTime, which hands what tasks do to the others

Each file uses only those above it.
"""

from rmaplab.sync.virtual.prices import PICOSECONDS
from rmaplab.sync.virtual.scheduler import VirtualTime
from rmaplab.sync.virtual.task import Task

__all__ = ["PICOSECONDS", "Task", "VirtualTime"]
