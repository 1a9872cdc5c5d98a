# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel writes into ring buffers, on its way to a Reducer, while the recorded command still runs.

One thread empties the rings into temporary files without a name (so that nothing is left of them when we are killed),
as fast as it can.  Another reads the files back, block by block, has a Timeline put the blocks in order, and a Reducer
take them; so memory does not grow with the run, and little is left to do when the command has ended.

Invariant: when a window of time is told, all records of each ring up to its end have been read.  A record may become
visible in its ring a little after the time that it bears; `_SETTLES` is more than that takes.  Nor does a window go
beyond a lock whose call has not returned; and it ends `_FAULT_WAITS` earlier than what was read, so that how a fault
went on is known when it is told.  What breaks this all the same (a call that returns long after its lock) the timeline
notices, and the order counts as inferred.
"""

from __future__ import annotations

import gc
import os
import select
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from rmaplab.trace.batches import Calls, Faults, Mappings, in_order
from rmaplab.trace.reduce import Reducer
from rmaplab.trace.timeline import Timeline

__all__ = ["Collector", "Records", "Ring", "Source", "Stream"]

_WINDOW: Final = 1 << 23  # bytes of a ring that are looked at at a time
_SETTLES: Final = 100_000_000  # ns
_PATIENCE: Final = 5_000_000_000  # ns that a call may take from its lock to its record
_REACHES: Final = 1_000_000_000  # the same, where there is so much to read that locks of late are not looked at
_FAULT_WAITS: Final = 200_000_000  # ns: longer than a fault takes
_DRAIN: Final = 50  # ms between two looks at rings that wake nobody
_NEVER: Final = 1 << 62
Say = Callable[[str], None]


class Ring(Protocol):
    """A ring buffer that the kernel writes.  `descriptor`: readable once it has much; -1: look now and then."""

    @property
    def descriptor(self) -> int: ...

    def drain(self, file: IO[bytes]) -> None:
        """Move all that there is to `file`.

        :raises OSError: the disk is full
        """

    def close(self) -> None: ...


class Records:
    """What calls and tasks did, where it takes more than columns to tell.

    rows:   in the order of time: a tuple each, of the time, of who takes it, and of more
    time:   when they were recorded, in ns
    effect: when they took effect, which may be before that
    """

    def __init__(self, rows: list[Any], time: npt.NDArray[np.int64], effect: npt.NDArray[np.int64]) -> None:
        self.rows: Final = rows
        self.time: Final = time
        self.effect: Final = effect

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: slice) -> Records:
        return Records(self.rows[which], self.time[which], self.effect[which])


Block = Records | Calls | Faults | Mappings  # in the order of time


class Stream:
    """What came through a ring, in the order of time, window by window.

    decode: makes blocks of the start of what was read, and removes that
    known:  all up to this time has been read
    """

    def __init__(self, ring: Ring, decode: Callable[[bytearray], Sequence[Block]]) -> None:
        self.ring: Final = ring
        self.file: Final[IO[bytes]] = tempfile.TemporaryFile(buffering=0)
        self.known = 0
        self.at = 0  # bytes of the file that have been read
        self._decode: Final = decode
        self._data: Final = bytearray()
        self._held: list[Block] = []

    def read(self, until: int) -> None:
        """Read on, if that is needed to know all up to `until`; the ring was emptied after that."""
        if self.known >= until:
            return
        part = os.pread(self.file.fileno(), _WINDOW, self.at)
        self.at += len(part)
        self._data.extend(part)
        for block in self._decode(self._data):
            if len(block):
                self._held.append(block)
                self.known = max(self.known, int(block.time[-1]) - _REACHES)
        if len(part) < _WINDOW:
            self.known = until

    def take(self, end: int) -> Iterator[Block]:
        """What was recorded up to `end`."""
        held, self._held = self._held, []
        for block in held:
            place = int(np.searchsorted(block.time, end, side="right"))
            yield block[:place]
            if place < len(block):
                self._held.append(block[place:])

    def waits(self) -> int:
        """When the first took effect of those records that are still to be taken."""
        return min((int(block.effect.min()) for block in self._held), default=_NEVER)


class Source(Protocol):
    """Where events come from."""

    @property
    def streams(self) -> Sequence[Stream]: ...

    def settled(self, now: int) -> int:
        """When the first took effect of what has no record, nor is known to the timeline; `now`: all before has one."""

    def lost(self) -> int:
        """Events that did not fit into the rings, beside those that a stream told of."""

    def close(self) -> None: ...


class Collector:
    """Collects what `source` sees, from now.

    live: tell the reducer while the command runs; otherwise when it has ended
    """

    def __init__(self, source: Source, timeline: Timeline, reducer: Reducer, live: bool) -> None:
        self._source: Final = source
        self._streams: Final = source.streams
        self._timeline: Final = timeline
        self._reducer: Final = reducer
        self._emptied = 0  # all up to this time is in the files
        self._failure: BaseException | None = None
        # Millions of small objects without cycles would be looked at again and again.
        self._collects_garbage: Final = gc.isenabled()
        gc.disable()
        self._stop: Final = os.eventfd(0, os.EFD_CLOEXEC)
        self._ended: Final = threading.Event()
        self._drainer: Final = threading.Thread(target=self._guard, args=(self._drain,), daemon=True)
        self._teller: Final = threading.Thread(target=self._guard, args=(self._tell_all,), daemon=True)
        self._drainer.start()
        if live:
            self._teller.start()

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # told by stop()
            self._failure = self._failure or error

    def _drain(self) -> None:
        try:  # what is not fetched in time is lost
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -15)
        except OSError:
            pass
        poll = select.poll()
        poll.register(self._stop, select.POLLIN)
        for stream in self._streams:
            if stream.ring.descriptor >= 0:
                poll.register(stream.ring.descriptor, select.POLLIN)
        stopping = False
        while not stopping:
            for descriptor, events in poll.poll(_DRAIN):
                stopping |= descriptor == self._stop
                if events & select.POLLHUP:  # nobody is left to watch
                    poll.unregister(descriptor)
            now = time.monotonic_ns()
            settled = max(self._source.settled(now), now - _PATIENCE)
            for stream in self._streams:
                stream.ring.drain(stream.file)
            self._emptied = min(settled - 1, now - _SETTLES)
        self._emptied = _NEVER

    def _tell_all(self) -> None:
        while self._emptied < _NEVER and self._failure is None:
            self._tell_until(self._emptied)
            self._ended.wait(_DRAIN / 1000)
        self._tell_until(_NEVER)
        self._timeline.tell(self._reducer)

    def _tell_until(self, until: int) -> None:
        """Tell all up to `until`, in windows that end where the stream ends that has been read least far."""
        timeline = self._timeline
        end = 0
        while end < until and self._failure is None:
            for stream in self._streams:
                stream.read(until)
            end = min(stream.known for stream in self._streams)
            rows: list[Any] = []
            touched: list[Faults] = []
            mapped: list[Mappings] = []
            for block in [block for stream in self._streams for block in stream.take(end)]:
                if isinstance(block, Calls):
                    timeline.called(block)
                elif isinstance(block, Faults):
                    touched.append(block)
                elif isinstance(block, Mappings):
                    mapped.append(block)
                else:
                    rows += block.rows
            _say(timeline, rows, Mappings.joined(mapped))
            faults = Faults.joined(touched)
            timeline.touched(faults[in_order(faults.time)])
            known = min(end + 1 - _FAULT_WAITS, *(stream.waits() for stream in self._streams))
            timeline.tell(self._reducer, timeline.settled(known))

    def stop(self, say: Say = lambda text: None) -> None:
        """Watch no longer; returns when the reducer was told everything.

        say: is told how far that is, if it takes long

        :raises OSError: what was seen could not be kept
        """
        os.eventfd_write(self._stop, 1)
        self._drainer.join()
        os.close(self._stop)
        try:
            self._finish(say)
        finally:
            if self._collects_garbage:
                gc.enable()

    def _finish(self, say: Say) -> None:
        self._ended.set()
        self._timeline.lost += self._source.lost()
        # The kernel waits for a grace period for each tracepoint that nobody uses any more: not at our expense.
        threading.Thread(target=self._source.close, daemon=True).start()
        if not self._teller.ident and self._failure is None:
            self._teller.start()
        while self._teller.ident and self._teller.is_alive():
            self._teller.join(1)
            size = sum(os.fstat(stream.file.fileno()).st_size for stream in self._streams)
            done = sum(stream.at for stream in self._streams)
            if self._teller.is_alive() and size:
                say(f"putting {size >> 20} MiB of events in order: {done / size:.0%}")
        if self._failure is not None:
            raise self._failure


def _say(timeline: Timeline, rows: list[Any], mappings: Mappings) -> None:
    """Say all of them, in the order of time; `rows` as those of Records, in any order."""
    rows.sort(key=lambda row: row[0])
    times = np.array([row[0] for row in rows], dtype=np.int64)
    at = 0
    for row, place in zip(rows, np.searchsorted(mappings.time, times).tolist(), strict=True):
        if at < place:
            timeline.mapped_all(mappings[at:place])
            at = place
        row[1](*row)
    if at < len(mappings):
        timeline.mapped_all(mappings[at:])
