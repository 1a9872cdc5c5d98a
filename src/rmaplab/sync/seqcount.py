# SPDX-License-Identifier: GPL-2.0-or-later
"""Sequence counters (include/linux/seqlock.h, seqcount_t)."""

from __future__ import annotations

from typing import Final, cast

from rmaplab.sync.locks import Scheduler
from rmaplab.sync.order import ONCE, smp_rmb, smp_wmb, write_once


class SequenceCount:
    """Writers, who are serialised by something else, make it odd while they change what it covers; a reader that saw it
    odd, or changed, has to read again.

    name: of what it is a part, for its orderings
    """

    def __init__(self, scheduler: Scheduler | None, name: str) -> None:
        self.scheduler: Final = scheduler
        self.name: Final = name
        self.sequence = 0

    def read_begin(self) -> int:
        """The count to compare with later, once no writer is at it (read_seqcount_begin())."""
        if self.scheduler is None:
            return self.sequence
        sequence = self.scheduler.wait_load("sequence count to be even", self, "sequence", self.is_even)
        smp_rmb(self.scheduler, f"{self.name}: read_seqcount_begin()")
        return cast(int, sequence)

    def is_even(self) -> bool:
        return self.sequence & 1 == 0

    def read_retry(self, begun: int) -> bool:
        """Did anything change since `begun` (read_seqcount_retry())?"""
        if self.scheduler is None:
            return self.sequence != begun
        smp_rmb(self.scheduler, f"{self.name}: read_seqcount_retry()")
        return self.scheduler.load_changed("sequence count", self, "sequence", ONCE, begun)

    def write_begin(self) -> None:
        """write_seqcount_begin()"""
        if self.scheduler is not None:
            write_once(self.scheduler, "sequence count", self, "sequence")
        self.sequence += 1
        if self.scheduler is not None:
            smp_wmb(self.scheduler, f"{self.name}: write_seqcount_begin()")

    def write_end(self) -> None:
        """write_seqcount_end()"""
        if self.scheduler is not None:
            smp_wmb(self.scheduler, f"{self.name}: write_seqcount_end()")
            write_once(self.scheduler, "sequence count", self, "sequence")
        self.sequence += 1
