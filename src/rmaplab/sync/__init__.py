# SPDX-License-Identifier: GPL-2.0-or-later
"""Synchronisation: the seam between the model and the scheduler that decides what runs next.

The machine and the designs take locks, enter RCU sections and announce steps only through this
package.  Without a scheduler (replay, verify) acquiring a lock is counting it; with one, each of
these operations is handed to the scheduler first, which may park the caller.  Nothing here knows
what a VMA or a folio is.
"""

from rmaplab.sync.locks import Lock, Rcu, RwSemaphore, Scheduler, SpinLock, Word
from rmaplab.sync.seqcount import SequenceCount
from rmaplab.sync.work import Ledger, LockClass, Pool, Tally

__all__ = [
    "Ledger",
    "Lock",
    "LockClass",
    "Pool",
    "Rcu",
    "RwSemaphore",
    "Scheduler",
    "SequenceCount",
    "SpinLock",
    "Tally",
    "Word",
]
