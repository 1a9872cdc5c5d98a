# SPDX-License-Identifier: GPL-2.0-or-later
"""Who works points off: processes of this machine, or a Dask cluster.

Both give (number of the point, outcome or error) as they come, and survive a worker that dies: its point goes
to another.  A point on which worker after worker dies is given up.

On a cluster, files travel with the point: nobody needs a file system that all workers see.  Workers need the
same version of rmaplab, and say so where they have another.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path
from typing import Any, Final

from rmaplab.check.processes import workers
from rmaplab.sweep.errors import SweepError
from rmaplab.sweep.points import Outcome, Point, version

DEATHS: Final = 3  # of workers, on one point, before it is given up

Result = tuple[int, "Outcome | str"]  # a string is an error: the point is not done


def work(point: Point, paths: dict[str, str], wanted: str) -> Outcome | str:
    """Do one point, in a process that works.  Returns a sentence if it cannot be done."""
    if wanted != version():
        return f"this worker has rmaplab {version()}, and the sweep {wanted}: install the same"
    try:
        for name, digest in point.files.items():
            if hashlib.sha256(Path(paths[name]).read_bytes()).hexdigest() != digest:
                return f"{name} has changed since the sweep began"
        return point.run(lambda name: paths.get(name, name))
    except Exception as error:  # a design of one's own may raise anything: the other points go on
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def on_this_machine(points: dict[int, Point], find: Callable[[str], str], jobs: int) -> Iterator[Result]:
    """Work `points` off with `jobs` processes."""
    left = dict(points)
    deaths: dict[int, int] = {}
    while left:
        begun: dict[Future[Outcome | str], int] = {}
        waiting = iter(list(left))
        with workers(jobs) as pool:
            try:
                # No more are handed out than are worked on, so that a death can be blamed on one of a few.
                for number in waiting:
                    begun[_submit(pool, left[number], find)] = number
                    if len(begun) < jobs:
                        continue
                    yield from _finished(begun, left)
                while begun:
                    yield from _finished(begun, left)
            except BrokenProcessPool:
                for number in begun.values():
                    deaths[number] = deaths.get(number, 0) + 1
                    if deaths[number] >= DEATHS:
                        del left[number]
                        yield number, f"{DEATHS} processes died while they worked on it (out of memory?)"


def _submit(pool: ProcessPoolExecutor, point: Point, find: Callable[[str], str]) -> Future[Outcome | str]:
    return pool.submit(work, point, {name: find(name) for name in point.files}, version())


def _finished(begun: dict[Future[Outcome | str], int], left: dict[int, Point]) -> Iterator[Result]:
    """Those that are done by now, at least one.  :raises BrokenProcessPool: a process died"""
    done, _ = wait(begun, return_when=FIRST_COMPLETED)
    for future in sorted(done, key=lambda future: begun[future]):
        result = future.result()
        number = begun.pop(future)
        del left[number]
        yield number, result


def on_cluster(points: dict[int, Point], find: Callable[[str], str], address: str) -> Iterator[Result]:
    """Do `points` on the workers of the Dask scheduler at `address`.

    :raises SweepError: there is no such scheduler, or dask.distributed is not installed
    """
    try:
        from distributed import Client, KilledWorker, as_completed
    except ImportError:
        raise SweepError("a cluster needs dask.distributed: pip install 'rmaplab[cluster]'") from None
    try:
        client = Client(address, timeout="5s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise SweepError(f"no Dask scheduler answers at {address} ({error}): start one with `dask scheduler`") from None
    with client:
        contents = {digest: None for point in points.values() for digest in point.files.values()}
        held: dict[str, Any] = {}
        for point in points.values():
            for name, digest in point.files.items():
                if contents[digest] is None:
                    contents[digest] = client.scatter(Path(find(name)).read_bytes(), broadcast=True)
                held[name] = contents[digest]
        numbers = {}
        for number, point in points.items():
            files = {name: held[name] for name in point.files}
            future = client.submit(work_far_away, point, files, version(), key=f"{point.key()}-{number}")
            numbers[future] = number
        for future in as_completed(list(numbers), loop=client.loop):
            try:
                result = future.result()
            except KilledWorker as error:
                result = f"several workers died while they computed it: {error}"
            except Exception as error:
                result = f"it was lost on the cluster: {type(error).__name__}: {error}"
            yield numbers.pop(future), result
            future.release()


def work_far_away(point: Point, contents: dict[str, bytes], wanted: str) -> Outcome | str:
    """Do one point on a machine that has none of its files."""
    return work(point, {name: _file(name, content) for name, content in contents.items()}, wanted)


@cache
def _file(name: str, content: bytes) -> str:
    directory = Path(_directory().name, hashlib.sha256(content).hexdigest()[:16])
    directory.mkdir(exist_ok=True)
    path = directory / Path(name).name
    part = path.with_suffix(f".{threading.get_ident()}")
    part.write_bytes(content)
    os.replace(part, path)  # another thread of this worker may be about to read it
    return str(path)


@cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="rmaplab-sweep-")
