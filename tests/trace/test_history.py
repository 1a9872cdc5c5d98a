# SPDX-License-Identifier: GPL-2.0-or-later
"""A history survives its file, and nothing but a history is read as one."""

import os
import resource
import signal
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmaplab.output import CannotWrite
from rmaplab.trace.events import OPS, Event
from rmaplab.trace.history import (
    FORMAT_VERSION,
    Checkpoint,
    FileEntry,
    Header,
    History,
    HistoryFormatError,
    MapsRow,
    Rows,
    empty_columns,
    read_history,
    write_history,
)

HEADER = Header(
    recorder="perf",
    kernel="6.12.1",
    files=[FileEntry(0), FileEntry(1, "shmem", "/memfd:x")],
    names=["", "heap of mine"],
    processes={10: "sh"},
    checkpoints=[Checkpoint(0, 10, [MapsRow(0x1000, 0x3000, "rw-p", 0, "anon")])],
    skipped={"mbind": 2},
    seconds=0.5,
)
FAULT = Event("fault", 10, 0x7F0000001000, 0x2000, flags=1, time=5, cpu=1)

words = st.integers(0, 2**64 - 1)
events = st.builds(
    Event,
    op=st.sampled_from([op for op in OPS if op != "mark"]),
    pid=st.integers(1, 2**31 - 1),
    addr=words,
    length=words,
    prot=st.integers(0, 2**32 - 1),
    flags=st.integers(0, 2**32 - 1),
    addr2=words,
    length2=words,
    file=st.sampled_from([0, 1]),
    offset=words,
    pid2=st.integers(0, 2**31 - 1),
    result=st.integers(-(2**63), 2**63 - 1),
    time=st.integers(0, 2**63 - 1),
    cpu=st.integers(-1, 2**15 - 1),
)


@given(st.lists(events, max_size=20))
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[Event]) -> None:
    path = tmp_path_factory.mktemp("history") / "h.parquet"
    history = History(HEADER, rows)
    write_history(path, history)
    again = read_history(path)
    assert again == history
    assert list(again) == rows


def test_the_same_history_gives_the_same_bytes(tmp_path: Path) -> None:
    rows = [msgspec.structs.replace(FAULT, time=i) for i in range(1000)]
    for name in ("a", "b"):
        write_history(tmp_path / name, History(HEADER, rows))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_any_reader_of_parquet_can_read_it(tmp_path: Path) -> None:
    write_history(tmp_path / "h.parquet", History(HEADER, [FAULT]))
    table = pq.read_table(tmp_path / "h.parquet")
    assert table.to_pylist()[0]["op"] == "fault"
    assert b'"kernel":"6.12.1"' in pq.read_metadata(tmp_path / "h.parquet").metadata[b"rmaplab"]


def test_what_cannot_be_held_is_refused() -> None:
    for wrong in (Event("dance", 1), Event("fault", 2**40), Event("fault", 1, -4096)):
        with pytest.raises(ValueError, match="cannot be held"):
            History(HEADER, [wrong])


def test_a_summary_counts() -> None:
    history = History(HEADER, [FAULT, msgspec.structs.replace(FAULT, pid=11, time=10**9 + 5)])
    summary = history.summary()
    assert (summary["events"], summary["faults"], summary["processes"], summary["seconds"]) == (2, 4, 2, 1.0)


# Writing


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = [msgspec.structs.replace(FAULT, addr=int(addr)) for addr in rng.integers(0, 2**62, 5000)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        with pytest.raises(CannotWrite, match=r"cannot write .*: File too large; nothing was left"):
            write_history(tmp_path / "h.parquet", History(HEADER, rows))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotWrite, match="there is no directory"):
        write_history(tmp_path / "nowhere" / "h.parquet", History(HEADER))


def test_a_failed_write_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "h.parquet").mkdir()
    with pytest.raises(CannotWrite):
        write_history(tmp_path / "h.parquet", History(HEADER))
    assert [entry.name for entry in tmp_path.iterdir()] == ["h.parquet"]


# What is no history


def rewritten(path: Path, header: object = None, **columns: object) -> Path:
    """A Parquet file like a history's, but with another header or other columns."""
    write_history(path, History(HEADER, [FAULT]))
    table = pq.read_table(path)
    for name, column in columns.items():
        index = table.schema.get_field_index(name)
        table = table.remove_column(index)
        if column is not None:
            table = table.add_column(index, name, pa.array(column))
    text = msgspec.json.encode(HEADER) if header is None else header
    metadata = {} if text == b"" else {b"rmaplab": text}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(HistoryFormatError) as error:
        read_history(path)
    text = str(error.value)
    assert text.startswith(str(path)) and text.endswith((".", "one", "wrote."))
    return text


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "h.parquet"
    write_history(path, History(HEADER, [FAULT] * 100))
    whole = path.read_bytes()
    for size in (0, 1, 3, 4, 100, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "not a Parquet file, or was cut short" in refusal(path)


def test_every_flipped_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "h.parquet"
    history = History(HEADER, [msgspec.structs.replace(FAULT, time=i, addr=i << 12) for i in range(50)])
    write_history(path, history)
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[at] ^= 0x55
        path.write_bytes(damaged)
        try:
            again = read_history(path)
        except HistoryFormatError:
            continue
        assert np.array_equal(again.columns["addr"], history.columns["addr"]), f"byte {at} went unnoticed"


@pytest.mark.parametrize("nr_rows", [b"\x62", b"\x66"])  # 49 and 51, as the footer writes them
def test_a_footer_that_counts_other_rows_is_noticed(tmp_path: Path, nr_rows: bytes) -> None:
    path = tmp_path / "h.parquet"
    write_history(path, History(HEADER, [FAULT] * 50))
    whole = path.read_bytes()
    size = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    at = whole.index(b"\x16\x64\x19", size) + 1  # num_rows, before row_groups
    path.write_bytes(whole[:at] + nr_rows + whole[at + 1 :])
    assert "is damaged" in refusal(path)


def test_text_is_no_history(tmp_path: Path) -> None:
    path = tmp_path / "h.parquet"
    path.write_text("hello\n" * 100)
    assert "not a Parquet file" in refusal(path)


def test_foreign_parquet_is_no_history(tmp_path: Path) -> None:
    assert "no `rmaplab` header" in refusal(rewritten(tmp_path / "h.parquet", header=b""))


def test_a_newer_format_says_update(tmp_path: Path) -> None:
    header = b'{"version": %d, "recorder": ["of another shape"]}' % (FORMAT_VERSION + 1)
    assert "Update rmaplab" in refusal(rewritten(tmp_path / "h.parquet", header=header))


@pytest.mark.parametrize(
    "header", [b"{", b"[]", b'{"version": 1}', b"\xff", b'{"version": 1, "recorder": 7}']
)
def test_a_damaged_header_is_noticed(tmp_path: Path, header: bytes) -> None:
    assert "damaged header" in refusal(rewritten(tmp_path / "h.parquet", header=header))


def test_columns_of_other_types_are_named(tmp_path: Path) -> None:
    assert "addr is double instead of uint64" in refusal(rewritten(tmp_path / "h.parquet", addr=[1.0]))
    assert "time is missing" in refusal(rewritten(tmp_path / "h.parquet", time=None))


def test_a_file_without_operations_is_named(tmp_path: Path) -> None:
    assert "op is missing" in refusal(rewritten(tmp_path / "h.parquet", op=None))


def test_names_that_are_not_utf_8_or_not_printable_are_written_escaped(tmp_path: Path) -> None:
    header = msgspec.structs.replace(
        HEADER, command="a\x1b[2J", names=["", "b\nc"], processes={10: os.fsdecode(b"d\xff")},
        files=[FileEntry(0, "file", "e\u0085"), FileEntry(1)], ended="exit 0",
    )  # fmt: skip
    write_history(tmp_path / "h.parquet", History(header, [FAULT]))
    again = read_history(tmp_path / "h.parquet").header
    assert (again.command, again.names[1], again.processes[10]) == (r"a\x1b[2J", r"b\nc", r"d\udcff")
    assert again.files[0].name == r"e\x85"


def test_missing_values_are_noticed(tmp_path: Path) -> None:
    path = rewritten(tmp_path / "h.parquet", pid=pa.array([None], pa.int32()))
    assert "without a value for pid" in refusal(path)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"op": ["dance"]}, "unknown operation 'dance'"),
        ({"pid": pa.array([0], pa.int32())}, "process number that is not positive"),
        ({"pid2": pa.array([-1], pa.int32())}, "negative second process number"),
        ({"time": pa.array([-1], pa.int64())}, "negative time"),
        ({"file": pa.array([7], pa.int32())}, "file that its header does not list"),
        ({"op": ["name"], "file": pa.array([2], pa.int32())}, "name that its header does not list"),
        ({"op": ["mark"], "offset": pa.array([4], pa.uint64())}, "checkpoint that its header does not list"),
    ],
)
def test_values_out_of_range_are_named(tmp_path: Path, changes: dict[str, object], what: str) -> None:
    assert what in refusal(rewritten(tmp_path / "h.parquet", **changes))


def test_an_unknown_kind_of_file_is_named(tmp_path: Path) -> None:
    header = msgspec.json.encode(msgspec.structs.replace(HEADER, files=[FileEntry(0, "tape")]))
    assert "unknown kind 'tape'" in refusal(rewritten(tmp_path / "h.parquet", header=header))


def test_rows_are_columns_but_for_the_last_few_and_batches_go_where_they_belong() -> None:
    rows, chunk = Rows(), 1 << 16
    for number in range(2 * chunk + 5):
        rows.append(Event("brk", 1, addr=number))
        assert len(rows._events) <= chunk
    rows.nr_batched = 2  # of three
    rows.append(Event("exit", 1))
    batch = empty_columns(3)
    batch["op"][:], batch["length"][:] = OPS.index("fault"), (1, 2, 3)
    rows.nr_batched = 3
    assert len(rows) == 2 * chunk + 9
    rows.extend(batch)
    rows.lengthen(7)
    rows.append(Event("munlockall", 1))
    rows.correct(3, "addr", 77)
    told = list(rows)
    assert [event.addr for event in told[:5]] == [0, 1, 2, 77, 4] and len(rows) == len(told)
    assert [(event.op, event.length) for event in told[-5:]] == [
        ("fault", 1), ("fault", 2), ("exit", 0), ("fault", 10), ("munlockall", 0)
    ]  # fmt: skip
