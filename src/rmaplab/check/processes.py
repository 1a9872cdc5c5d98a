# SPDX-License-Identifier: GPL-2.0-or-later
"""Work in parts that know nothing of each other, done by several processes.

Who asks gets what one process would have given it, in the same order.  Processes are spawned: what a thread of this one
holds must not be shared.  They end at once where whoever asked is interrupted or raises, and with it.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import TypeVar

from rmaplab.errors import CannotRun

Part = TypeVar("Part")
Result = TypeVar("Result")
Told = Callable[[int, int], None]  # how many of how many parts are done


@contextmanager
def workers(jobs: int, often: bool = False) -> Iterator[ProcessPoolExecutor]:
    """A pool of `jobs` processes; `often`: they collect_often().

    :raises CannotRun: one of them died, and nobody caught BrokenProcessPool
    """
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_begin, initargs=(often,)) as pool:
        try:
            yield pool
        except BaseException as error:
            for process in list(pool._processes.values()):
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise CannotRun("a worker process died, so there is no result (out of memory?)") from error
            raise


def side_by_side(
    do: Callable[[Part], Result],
    parts: Sequence[Part],
    jobs: int,
    told: Told,
    size: Callable[[Part], int] = lambda part: 0,
) -> list[Result]:
    """What `do` returns for each of `parts`.  Several processes begin with what has the greatest `size`."""
    if jobs == 1:
        collect_often()
        results: list[Result] = []
        for part in parts:
            results.append(do(part))
            told(len(results), len(parts))
        return results
    with workers(min(jobs, max(1, len(parts))), often=True) as pool:
        order = sorted(range(len(parts)), key=lambda number: -size(parts[number]))
        begun = {pool.submit(do, parts[number]): number for number in order}
        found: dict[int, Result] = {}
        for future in as_completed(begun):
            found[begun[future]] = future.result()
            told(len(found), len(parts))
    return [found[number] for number in range(len(parts))]


def collect_often() -> None:
    """Run the garbage collector often: each execution leaves a machine full of reference cycles, and keeping many
    costs more than collecting."""
    gc.freeze()
    gc.set_threshold(2_000, 10, 100)


def _begin(often: bool) -> None:
    """Ctrl-C is for the process that asked, which ends the others; if it was killed, nothing else would."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if often:
        collect_often()
    parent = parent_process()
    assert parent is not None  # it was spawned

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
