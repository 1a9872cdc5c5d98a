# SPDX-License-Identifier: GPL-2.0-or-later
"""Many random histories in lockstep, in several guests at a time.

A step is mostly waiting: for the guest's answer, for the monitor.  So more guests than processors pay.  Histories are
numbered by their seeds, and which guest does which does not matter to what they find.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.util import Finalize
from typing import Any, Final

import msgspec

from rmaplab.kernel.coverage import Coverage
from rmaplab.kernel.lockstep import Disagreement, Witness, random_histories
from rmaplab.kernel.setup import Kernel

HISTORY: Final = 500  # steps

_witness: Witness | None = None  # of this process, booted when there is something to do


class Done(msgspec.Struct):
    """What came of one history; `found` as Builtins, so that it can be sent."""

    seed: int
    steps: int
    found: Any
    reached: dict[str, int]


def _play(kernel: Kernel, command_line: str, accelerator: str, seed: int, steps: int) -> Done:
    global _witness
    if _witness is None:
        _witness = Witness(kernel, command_line, accelerator)
        Finalize(None, _witness.guest.close, exitpriority=10)  # QEMU ends with this process
    coverage = Coverage()
    found, done = random_histories(_witness, seed, steps, lambda _: None, coverage, steps)
    return Done(seed, done, None if found is None else msgspec.to_builtins(found), dict(coverage.reached))


def campaign(
    kernel: Kernel, command_line: str, accelerator: str, seed: int, steps: int, jobs: int, coverage: Coverage,
    say: Callable[[str], None],
) -> tuple[Disagreement | None, int]:  # fmt: skip
    """Histories of HISTORY steps with seeds from `seed` on, in `jobs` guests, until there were `steps` or one
    disagrees.  Returns the disagreement and the number of steps."""
    # Not forked: what drgn and QEMU's sockets hold must not be shared.
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))
    with pool:
        waiting: set[Future[Done]] = set()
        asked = done = 0
        while asked < steps or waiting:
            while asked < steps and len(waiting) < jobs:
                share = min(HISTORY, steps - asked)
                waiting.add(pool.submit(_play, kernel, command_line, accelerator, seed, share))
                seed += 1
                asked += share
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                result = future.result()
                done += result.steps
                coverage.reached.update(result.reached)
                if result.found is not None:
                    pool.shutdown(cancel_futures=True)
                    return msgspec.convert(result.found, Disagreement), done
                if done % (10 * HISTORY) == 0:
                    say(f"{done} of {steps} steps, seeds up to {seed - 1}")
    return None, done
