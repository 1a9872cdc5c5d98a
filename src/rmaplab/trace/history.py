# SPDX-License-Identifier: GPL-2.0-or-later
"""Histories as files: Parquet with one row per event, and a header that states their origin.

Columns are the fields of `Event`, in that order, under the types in `_TYPES`; `op` is dictionary-encoded
text.  The header is JSON in the file's key-value metadata, under the key `rmaplab`.  Anything that reads Parquet
can read both.

Invariants
- The same history gives the same bytes (with the same version of pyarrow).
- A file appears whole or not at all (output.py).
- pyarrow is imported by what reads or writes a file: it takes a fifth of the time in which a command begins.
- What `read_history` returns has only known operations, processes with positive numbers, and files, names
  and checkpoints that the header lists.  The machine decides whether the events are *possible*.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from rmaplab.errors import CannotRun
from rmaplab.mm.abi import MMAP_MIN_ADDR, STACK_LIMIT
from rmaplab.mm.vma import (
    VM_DONTDUMP,
    VM_DONTEXPAND,
    VM_IO,
    VM_MIXEDMAP,
    VM_PFNMAP,
    File,
)
from rmaplab.output import write_output
from rmaplab.printable import plural, printable
from rmaplab.trace.calls import CHANGING
from rmaplab.trace.events import OPS, Event

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "CODE", "FORMAT_VERSION", "Checkpoint", "FileEntry", "Header", "History", "HistoryFormatError",
    "MapsRow", "Rows", "empty_columns", "parts_of", "read_history", "write_history",
]  # fmt: skip

FORMAT_VERSION: Final = 1

Column = npt.NDArray[Any]

_TYPES: Final[dict[str, type[np.generic]]] = {
    "op": np.int8,  # an index into OPS; in the file, the word itself
    "pid": np.int32,
    "addr": np.uint64,
    "length": np.uint64,
    "prot": np.uint32,
    "flags": np.uint32,
    "addr2": np.uint64,
    "length2": np.uint64,
    "file": np.int32,
    "offset": np.uint64,
    "pid2": np.int32,
    "result": np.int64,
    "time": np.int64,
    "cpu": np.int16,
}
CODE: Final = {op: code for code, op in enumerate(OPS)}
_NAMES: Final = np.array(OPS, dtype=object)  # by code
_CHUNK: Final = 1 << 16  # rows kept as objects, at most
_PART: Final = 1 << 12  # rows turned into objects at a time
_REWRITE: Final = "Record it again, or copy the file again from where it is intact."


class HistoryFormatError(CannotRun):
    """A file is not a history that this version can read; the message says what to do."""


class FileEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that was mapped.

    id:   what `Event.file` refers to
    kind: "file"; "ramfs": one in a file system that looks for addresses itself;
          "shmem": lives in the page cache only (shared anonymous memory, memfd, /dev/shm);
          "sysv": the same with a close hook (shmat); "device": maps frames, not pages; "vdso", "vvar": what
          the kernel maps into every process
    name: its path, only where asked
    """

    id: int
    kind: str = "file"
    name: str = ""

    def open(self) -> File:
        """The machine's view of it."""
        is_shmem, special, closes = FILE_KINDS[self.kind]
        return File(self.id, self.name, is_shmem, special, closes, self.kind == "ramfs")


# is_shmem, vm_flags that its mmap handler adds, has a close hook.  The vDSO and its data have one
# (mm/mmap.c special_mapping_vmops), which also keeps them from merging.
FILE_KINDS: Final[dict[str, tuple[bool, int, bool]]] = {
    "file": (False, 0, False),
    "ramfs": (False, 0, False),
    "shmem": (True, 0, False),
    "sysv": (True, 0, True),
    "device": (False, VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP, False),
    "vdso": (False, 0, True),
    "vvar": (False, VM_IO | VM_DONTDUMP | VM_PFNMAP | VM_MIXEDMAP, True),
}


class MapsRow(msgspec.Struct, frozen=True, array_like=True):
    """A line of /proc/PID/maps, reduced to geometry.

    start, end: bytes
    perms:      "rw-p"
    offset:     bytes, in the file; 0 for anonymous memory
    backing:    "anon", "file", or "special" (the vDSO and its data)
    """

    start: int
    end: int
    perms: str
    offset: int
    backing: str


class Checkpoint(msgspec.Struct, frozen=True):
    """/proc/PID/maps of `pid` at the `mark` event whose offset is `number`."""

    number: int
    pid: int
    maps: list[MapsRow]


class Header(msgspec.Struct, kw_only=True):
    """What a history says about itself.

    recorder:  "bpf", "perf", "strace", "import of perf script", "import of strace", or a workload's name
    rmaplab:   version that wrote it
    kernel:    release of the kernel that it was recorded on ("6.18.44"), by which the machine picks a profile
    mmap_min_addr: below which no mapping is placed or grows there, in bytes: sysctl vm.mmap_min_addr, or more
    max_map_count: sysctl vm.max_map_count there; 0: not recorded
    stack_limit: bytes that a stack may have: the largest RLIMIT_STACK that was seen
    command:   name of the program; the whole command line only where asked
    date:      ISO 8601, UTC
    faults:    "recorded", or "synthesised: " and by which policy
    files:     what was mapped; names:  texts that `name` events refer to by position
    processes: names of processes by pid, only where asked
    checkpoints: /proc/PID/maps at `mark` events
    lost:      events that the recorder knows it lost; not 0 means that the history has holes
    complete:  nothing was lost, and the program was seen to its end
    ended:     how: "exit 0", "signal 2"
    skipped:   system calls that were seen and have no event, by name
    unfollowed: what was seen that a recorder does not follow, and how often: "32-bit program" and so on
    order:     of what changed an address space: "locks": as mmap_lock was taken; "inferred"; "": not recorded
    threads:   that were made, beside each process's first
    pid_namespaces: that were made
    seconds:   how long the program ran while it was recorded
    seconds_unrecorded: the same without a recorder, where measured
    """

    version: int = FORMAT_VERSION
    recorder: str
    rmaplab: str = ""
    kernel: str = ""
    mmap_min_addr: int = MMAP_MIN_ADDR
    max_map_count: int = 0
    stack_limit: int = STACK_LIMIT
    command: str = ""
    date: str = ""
    faults: str = "recorded"
    files: list[FileEntry] = []
    names: list[str] = []
    processes: dict[int, str] = {}
    checkpoints: list[Checkpoint] = []
    lost: int = 0
    complete: bool = True
    ended: str = ""
    skipped: dict[str, int] = {}
    unfollowed: dict[str, int] = {}
    order: str = ""
    threads: int = 0
    pid_namespaces: int = 0
    seconds: float | None = None
    seconds_unrecorded: float | None = None

    @property
    def doubts(self) -> list[str]:
        """Why the history may not be what happened: a clause each.  None: it can be vouched for."""
        doubts = []
        if self.lost:
            doubts.append(f"{self.lost:,} events were lost")
        elif not self.complete:
            doubts.append("the program was not seen to its end")
        for what, times in self.unfollowed.items():
            doubts.append(f"{what} is not followed, and was seen ({times:,} times)")
        if not self.checkpoints:
            for call in sorted(CHANGING & self.skipped.keys()):
                doubts.append(
                    f"{call} may change VMAs, is not modelled, and was called ({self.skipped[call]:,} times; "
                    "record with --check to see whether it matters)"
                )
        return doubts


def _printable(header: Header) -> Header:
    """The header with texts that JSON can have: what a program calls itself or maps need not be UTF-8."""
    fields = {field: getattr(header, field) for field in header.__struct_fields__}
    return msgspec.structs.replace(
        header,
        **{field: printable(value) for field, value in fields.items() if isinstance(value, str)},
        names=[printable(name) for name in header.names],
        processes={pid: printable(name) for pid, name in header.processes.items()},
        files=[FileEntry(entry.id, entry.kind, printable(entry.name)) for entry in header.files],
        skipped={printable(name): times for name, times in header.skipped.items()},
        unfollowed={printable(name): times for name, times in header.unfollowed.items()},
    )


class Rows:
    """Events as they come: one by one, or as the columns of a batch; all but the last few are kept as columns.

    nr_alone:   events that came one by one
    nr_batched: rows that the batch has so far which is being made
    """

    def __init__(self) -> None:
        self.nr_alone = 0
        self.nr_batched = 0
        self._events: list[Event] = []
        self._before: list[int] = []  # of each of these: rows of the batch that come before it
        self._parts: list[dict[str, Column]] = []
        self._nr_parted = 0  # rows in parts
        self._later: dict[tuple[int, str], int] = {}

    def __len__(self) -> int:
        return self._nr_parted + len(self._events) + self.nr_batched

    def __iter__(self) -> Iterator[Event]:
        return iter(History.of_columns(Header(recorder=""), self.columns()))

    def append(self, event: Event) -> None:
        if len(self._events) >= _CHUNK and not self.nr_batched:
            self._part()
        self._events.append(event)
        self._before.append(self.nr_batched)
        self.nr_alone += 1

    def extend(self, batch: dict[str, Column]) -> None:
        """The columns of the batch, complete."""
        alone = _columns_of(self._events)
        place = np.array(self._before, dtype=np.int64) + np.arange(len(self._events))
        nr_rows = len(self._events) + len(batch["op"])
        of_batch = np.ones(nr_rows, dtype=bool)
        of_batch[place] = False
        part = empty_columns(nr_rows)
        for name, column in part.items():
            column[place] = alone[name]
            column[of_batch] = batch[name]
        self._parts.append(part)
        self._nr_parted += nr_rows
        self._events, self._before, self.nr_batched = [], [], 0

    def lengthen(self, length: int) -> None:
        """The last row of the last batch is longer by `length`."""
        self._parts[-1]["length"][-1] += np.uint64(length)

    def correct(self, number: int, name: str, value: int) -> None:
        """Let field `name` of row `number` be `value`."""
        self._later[number, name] = value

    def _part(self) -> None:
        if self._events:
            self.extend(empty_columns(0))

    def columns(self) -> dict[str, Column]:
        """All of them."""
        self._part()
        parts = self._parts or [empty_columns(0)]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in _TYPES}
        for (number, name), value in self._later.items():
            columns[name][number] = value
        self._parts = [columns]
        return columns


def empty_columns(nr_rows: int) -> dict[str, Column]:
    """So many rows of defaults."""
    columns: dict[str, Column] = {name: np.zeros(nr_rows, dtype=kind) for name, kind in _TYPES.items()}
    columns["file"][:] = columns["cpu"][:] = -1
    return columns


def _columns_of(rows: list[Event]) -> dict[str, Column]:
    """:raises ValueError: a value is outside of its column's range"""
    columns: dict[str, Column] = {}
    by_field = list(zip(*map(msgspec.structs.astuple, rows), strict=True)) or [()] * len(_TYPES)
    for (name, kind), values in zip(_TYPES.items(), by_field, strict=True):
        try:
            columns[name] = np.array([CODE[op] for op in values] if name == "op" else values, dtype=kind)
        except (KeyError, OverflowError) as error:
            raise ValueError(f"an event's {name} cannot be held in a history ({error})") from None
    return columns


class History:
    """A header, and events held as columns.

    Iterating gives the events in order.  pandas, Polars and DuckDB read the events as a table, through the Arrow
    PyCapsule interface.
    """

    def __init__(self, header: Header, events: Iterable[Event] = ()) -> None:
        self.header: Final = header
        self.columns: Final = _columns_of(list(events))

    @classmethod
    def of_columns(cls, header: Header, columns: dict[str, Column]) -> History:
        """A history of columns that already have the right types; `op` holds indices into OPS."""
        history = cls(header)
        history.columns.update(columns)
        return history

    def __len__(self) -> int:
        return len(self.columns["op"])

    def __iter__(self) -> Iterator[Event]:
        """The events in order."""
        for part in parts_of(self):
            yield from map(Event, *part)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, History):
            return NotImplemented
        return self.header == other.header and all(
            np.array_equal(column, other.columns[name]) for name, column in self.columns.items()
        )

    def arrow(self) -> pa.Table:
        """The events, a row each, as they stand in a file."""
        import pyarrow as pa

        arrays = [
            pa.DictionaryArray.from_arrays(pa.array(column, pa.int32()), pa.array(OPS))
            if name == "op"
            else pa.array(column)
            for name, column in self.columns.items()
        ]
        return pa.Table.from_arrays(arrays, schema=_schema())

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.arrow().__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        by = f", by {self.header.recorder}" if self.header.recorder else ""
        size = f"{plural(len(self), 'event')}, {plural(len(np.unique(self.columns['pid'])), 'process')}"
        return f"<history of {self.header.command or 'a program'}{by}: {size}>"

    @property
    def evidence(self) -> str:
        """What a recording can vouch for, in a line; "" of what was not recorded."""
        header = self.header
        if not header.order:
            return ""
        ops = self.columns["op"]
        forked = np.count_nonzero(ops == CODE["fork"])
        known = set(self.columns["pid2"][ops == CODE["fork"]].tolist())
        nr_processes = int(forked) + len(set(self.columns["pid"][ops == CODE["exec"]].tolist()) - known)
        parts = [
            "order known from mmap_lock" if header.order == "locks" else "order inferred",
            f"maps of {len(header.checkpoints):,} of {plural(nr_processes, 'process')} compared",
            plural(header.threads, "more thread") if header.threads else "",
            plural(header.pid_namespaces, "PID namespace") if header.pid_namespaces else "",
            "; ".join(header.doubts) or "all calls followed, nothing lost",
        ]
        return ", ".join(part for part in parts if part)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file (Parquet), for the commands and for others.

        :raises CannotWrite: the directory is missing or read-only, or the disk is full
        """
        write_history(path, self)

    def summary(self) -> dict[str, Any]:
        """What is in it, in figures."""
        columns = self.columns
        counts = np.bincount(columns["op"], minlength=len(OPS))
        faults = columns["op"] == CODE["fault"]
        time = columns["time"]
        return {
            "events": len(self),
            "by_op": {op: int(count) for op, count in zip(OPS, counts, strict=True) if count},
            "processes": len(np.unique(columns["pid"])),
            "faults": int(columns["length"][faults].sum()) >> 12,
            "seconds": (int(time.max()) - int(time.min())) / 1e9 if len(self) else 0.0,
            "checkpoints": len(self.header.checkpoints),
            "lost": self.header.lost,
            "complete": self.header.complete,
        }


def parts_of(events: Iterable[Event]) -> Iterator[list[Any]]:
    """Events in order, some at a time, as a list for each field; of when and where they came about, which nobody needs
    to play them, as a sequence that makes an object of what is asked for."""
    if isinstance(events, History):
        for start in range(0, len(events), _PART):
            columns = {name: column[start : start + _PART] for name, column in events.columns.items()}
            when = [columns.pop(name).data for name in ("time", "cpu")]
            yield [_NAMES[columns.pop("op")].tolist(), *map(_values, columns.values()), *when]
    else:
        part = [list(field) for field in zip(*map(msgspec.structs.astuple, events), strict=True)]
        if part:
            yield part


def _values(column: Column) -> list[int]:
    """What is in a column, of which most are the same all along: those that few operations use."""
    values: list[int] = column[:1].tolist() * len(column) if (column == column[0]).all() else column.tolist()
    return values


@cache
def _schema() -> pa.Schema:
    """Of the events' table."""
    import pyarrow as pa

    return pa.schema([
        pa.field(name, pa.dictionary(pa.int32(), pa.string()) if kind is np.int8 else pa.from_numpy_dtype(kind))
        for name, kind in _TYPES.items()
    ])  # fmt: skip


def write_history(path: str | os.PathLike[str], history: History) -> None:
    """Write `history` to `path`, whole or not at all.

    :raises CannotWrite: the directory is missing or read-only, or the disk is full
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    # By way of memory: pyarrow's threads must not meet a Python file, or they may outlive the interpreter.
    sink = pa.BufferOutputStream()
    # Dictionaries for what repeats, differences for the time: half the size of the default.
    with pq.ParquetWriter(
        sink, _schema(), compression="zstd", compression_level=9, write_page_checksum=True,
        use_dictionary=[name for name in _TYPES if name != "time"],
        column_encoding={"time": "DELTA_BINARY_PACKED"}, store_schema=False,
    ) as writer:  # fmt: skip
        writer.write_table(history.arrow())
        writer.add_key_value_metadata({"rmaplab": msgspec.json.encode(_printable(history.header)).decode()})
    write_output(path, sink.getvalue().to_pybytes())


def read_history(path: str | os.PathLike[str]) -> History:
    """Read a history, and see that it is one.

    :raises HistoryFormatError: it is not; the message says what to do
    :raises OSError: there is no such file, or it may not be read
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    contents = pa.BufferReader(Path(path).read_bytes())
    try:
        reader = pq.ParquetFile(contents, page_checksum_verification=True)
        if "op" in reader.schema_arrow.names:
            reader = pq.ParquetFile(contents, read_dictionary=["op"], page_checksum_verification=True)
        metadata = reader.metadata.metadata or {}
    except (pa.ArrowException, OSError):
        raise HistoryFormatError(f"{path} is not a Parquet file, or was cut short. {_REWRITE}") from None
    if b"rmaplab" not in metadata:
        raise HistoryFormatError(
            f"{path} is a Parquet file, but not a history: it has no `rmaplab` header. "
            "Give a file that `rmaplab record` wrote."
        )
    header = _read_header(path, metadata[b"rmaplab"])
    schema = reader.schema_arrow.remove_metadata()
    if not schema.equals(_schema()):
        raise HistoryFormatError(
            f"{path} has other columns than a history: {_difference(schema)}. {_REWRITE}"
        )
    damaged = HistoryFormatError(f"{path} is damaged: its contents do not match their checksums. {_REWRITE}")
    nr_rows = reader.metadata.num_rows
    row = 0
    try:
        columns: dict[str, Column] = {name: np.empty(nr_rows, dtype=kind) for name, kind in _TYPES.items()}
        # A part at a time: what it is decoded into need not be found, and cleared, for the whole.
        for batch in reader.iter_batches(_CHUNK, use_threads=False):
            if row + len(batch) > nr_rows:
                raise damaged
            for name, values in zip(_TYPES, batch.columns, strict=True):
                if values.null_count:
                    raise HistoryFormatError(f"{path} has rows without a value for {name}. {_REWRITE}")
                found = _codes(path, values) if name == "op" else values.to_numpy()
                columns[name][row : row + len(batch)] = found
            row += len(batch)
    except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError):
        raise damaged from None
    if row < nr_rows:
        raise damaged
    _check_values(path, header, columns)
    return History.of_columns(header, columns)


def _read_header(path: str | os.PathLike[str], text: bytes) -> Header:
    try:
        version = msgspec.json.decode(text, type=_Version).version
        if version > FORMAT_VERSION:
            raise HistoryFormatError(
                f"{path} has format version {version}, and this rmaplab reads up to {FORMAT_VERSION}. "
                "Update rmaplab, or record again with this one."
            )
        header = msgspec.json.decode(text, type=Header)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HistoryFormatError(f"{path} has a damaged header ({error}). {_REWRITE}") from None
    for entry in header.files:
        if entry.kind not in FILE_KINDS:
            raise HistoryFormatError(f"{path} maps a file of unknown kind {entry.kind!r}. {_REWRITE}")
    return header


class _Version(msgspec.Struct):
    version: int


def _difference(schema: pa.Schema) -> str:
    """The first way in which `schema` is not ours."""
    for field in _schema():
        index = schema.get_field_index(field.name)
        if index < 0:
            return f"{field.name} is missing"
        if schema.field(index).type != field.type:
            return f"{field.name} is {schema.field(index).type} instead of {field.type}"
    return f"{', '.join(schema.names)} instead of {', '.join(_TYPES)}, or values may be missing"


def _codes(path: str | os.PathLike[str], column: pa.DictionaryArray) -> Column:
    """Indices into OPS, whatever order the file's dictionary has."""
    words = column.dictionary.to_pylist()
    indices = column.indices.to_numpy(zero_copy_only=False)
    inside = (indices >= 0) & (indices < len(words))
    codes = np.array([CODE.get(word, -1) for word in words] or [-1], dtype=np.int8)[np.where(inside, indices, 0)]
    unknown = np.flatnonzero(~inside | (codes < 0))
    if len(unknown):
        used = int(indices[unknown[0]])
        word = words[used] if inside[unknown[0]] else used
        raise HistoryFormatError(
            f"{path} has an unknown operation {word!r}. Update rmaplab, or record again with this one."
        )
    return codes


def _check_values(path: str | os.PathLike[str], header: Header, columns: dict[str, Column]) -> None:
    op = columns["op"]
    named = op == CODE["name"]
    files = np.array([entry.id for entry in header.files], dtype=np.int64)
    marks = np.array([checkpoint.number for checkpoint in header.checkpoints], dtype=np.uint64)
    file = columns["file"]
    for what, bad in (
        ("a process number that is not positive", columns["pid"] <= 0),
        ("a negative second process number", columns["pid2"] < 0),
        ("a negative time", columns["time"] < 0),
        ("a file that its header does not list", ~named & (file != -1) & ~np.isin(file, files)),
        ("a name that its header does not list", named & ((file < 0) | (file >= len(header.names)))),
        ("a checkpoint that its header does not list",
         (op == CODE["mark"]) & (len(marks) > 0) & ~np.isin(columns["offset"], marks)),
    ):  # fmt: skip
        if bad.any():
            raise HistoryFormatError(f"{path}, event {int(np.flatnonzero(bad)[0])}: {what}. {_REWRITE}")
