# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels that run something else than histories: a dump, a monitor's socket, this machine, a guest in which a real
program works (make test-kernel).

What is wrong with a source is one sentence and exit status 2; what is wrong in it is found.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kernel.hands import write_word
from rmaplab.commands.frame import main
from rmaplab.kernel import columns, setup
from rmaplab.kernel.aimed import history
from rmaplab.kernel.consistency import problems
from rmaplab.kernel.errors import KernelUnavailable
from rmaplab.kernel.importer import DESIGNS, Everybody, Reading, State, everyone, read_source
from rmaplab.kernel.lockstep import Lockstep, Witness, attach
from rmaplab.kernel.memory import Memory
from rmaplab.kernel.snapshot import Reader
from rmaplab.kernel.userland import PROGRAMS, running
from rmaplab.kernel.versions import VERSIONS
from rmaplab.rmap import EXCUSED

KERNELS = VERSIONS
needs_kernel = pytest.mark.skipif(
    not os.environ.get("RMAPLAB_KERNEL"), reason="boots kernels: make test-kernel, or RMAPLAB_KERNEL=1"
)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `rmaplab kernel import` says when it cannot: one sentence on stderr, nothing on stdout."""
    with pytest.raises(SystemExit) as ended:
        main(["kernel", "import", *arguments])
    assert ended.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.strip().splitlines()) == 1
    return output.err


class TestNoKernel:
    """Nothing that could be read."""

    def test_nothing_of_that_name(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "neither a socket, nor a file" in said(capsys, "/nowhere/at/all")

    def test_no_such_vmlinux(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "dump").write_bytes(b"\x7fELF")
        assert "there is no file" in said(capsys, str(tmp_path / "dump"), "--vmlinux", str(tmp_path / "none"))

    @pytest.mark.parametrize("start", [b"KDUMP   ", b"makedumpfile"])
    def test_a_compressed_dump_that_drgn_cannot_read(
        self, start: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "dump").write_bytes(start + bytes(5000))
        assert "compressed by kdump" in said(capsys, str(tmp_path / "dump"))

    @pytest.mark.parametrize("contents", [b"", b"not a dump", b"\x7fELF\x02\x01\x01" + bytes(100), bytes(5000)])
    def test_a_file_that_is_no_dump(
        self, contents: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "dump").write_bytes(contents)
        assert "cannot be read" in said(capsys, str(tmp_path / "dump"))

    @pytest.mark.skipif(os.access("/proc/kcore", os.R_OK), reason="this machine's kernel can be read")
    def test_this_machine_without_kcore(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "/proc/kcore" in said(capsys, "live")

    def test_a_socket_that_nobody_serves(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "socket"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            assert "nobody answers" in said(capsys, str(path))

    def test_a_socket_that_speaks_something_else(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "socket"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            server.listen()

            def serve() -> None:
                client, _ = server.accept()
                with client:
                    client.sendall(b"220 mail ready\n")

            thread = threading.Thread(target=serve)
            thread.start()
            assert "not QEMU's monitor" in said(capsys, str(path))
            thread.join()


@pytest.fixture(scope="module")
def witness(witness: Witness) -> Witness:
    """A guest in which five generations live: chains of five links, and pages that they share."""
    lockstep = Lockstep(witness)
    assert all(lockstep.step(event) is None for event in history("five_generations"))
    return witness


@pytest.fixture(scope="module")
def vmlinux(witness: Witness) -> Path:
    return setup.need(witness.profile.name).vmlinux


@pytest.fixture(scope="module")
def dump(witness: Witness, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dump") / "vmcore"
    with witness.guest.stopped():
        witness.guest.monitor("dump-guest-memory", paging=False, protocol=f"file:{path}")
    path.chmod(0o600)
    return path


@needs_kernel
def test_a_dump_that_qemu_compressed_is_refused(
    witness: Witness, vmlinux: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "dump"
    with witness.guest.stopped():
        witness.guest.monitor("dump-guest-memory", paging=False, protocol=f"file:{path}", format="kdump-zlib")
    path.chmod(0o600)
    assert "compressed by kdump" in said(capsys, str(path), "--vmlinux", str(vmlinux))


def summary(state: State) -> tuple[object, ...]:
    assert state.problems == []
    assert state.findings[0].entries > 0
    assert len(state.findings) == len(DESIGNS)
    assert {finding.design for finding in state.findings if finding.missing} <= {*EXCUSED}
    return state.vmas, state.anon_vmas, state.entries, state.ancestry, *state.findings


@needs_kernel
class TestSources:
    """The same guest, however it is looked at."""

    def test_a_dump_and_a_socket_show_what_mapped_memory_shows(
        self, witness: Witness, dump: Path, vmlinux: Path
    ) -> None:
        with witness.guest.stopped():
            here = summary(Reading(witness.memory.program, witness.memory).examined())
        assert summary(read_source(str(dump), vmlinux)) == here
        # The socket that is there for drgn has its client already, the one for control has us: a guest of its own.
        with Witness(setup.need(witness.profile.name)) as other:
            path = str(other.guest.directory / "drgn.sock")
            del other.memory, other.reader  # whoever was there before is gone
            assert summary(read_source(path, vmlinux))
            assert other.guest.monitor("query-status")["running"]
            with pytest.raises(KernelUnavailable):
                read_source(path, next(setup.need(v).vmlinux for v in VERSIONS if v != witness.profile.name))
            assert other.guest.monitor("query-status")["running"]  # also after a failure

    def test_an_address_space_that_no_task_has_is_found_through_its_vmas(self, witness: Witness) -> None:
        """As in the middle of a fork or an exit."""
        with witness.guest.stopped():
            tasks, _ = everyone(witness.memory.program)
            whole, nobody = Everybody(witness.memory).everybody(tasks)
            assert nobody == 0
            for pid, _ in tasks[-3:]:  # workers, which share anon_vmas
                others = [task for task in tasks if task[0] != pid]
                snapshot, between = Everybody(witness.memory).everybody(others)
                assert between == 1
                assert snapshot.vmas.keys() == whole.vmas.keys()
                assert problems(snapshot, columns.read(witness.memory, snapshot)) == []

    def test_a_dump_without_its_vmlinux_is_said_to_be_that(
        self, witness: Witness, dump: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "--vmlinux" in said(capsys, str(dump))
        other = next(version for version in VERSIONS if version != witness.profile.name)
        assert "not the vmlinux" in said(capsys, str(dump), "--vmlinux", str(setup.need(other).vmlinux))

    @pytest.mark.parametrize("size", [100, 2000, 1 << 20, 64 << 20])
    def test_a_dump_that_is_cut_short(
        self, size: int, dump: Path, vmlinux: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        short = tmp_path / "short"
        with dump.open("rb") as file:
            short.write_bytes(file.read(size))
        said(capsys, str(short), "--vmlinux", str(vmlinux))

    @pytest.mark.parametrize("what", ["root", "parent", "page offset", "tree pointer", "mapcount", "index"])
    def test_a_structure_that_is_forged_in_a_dump_is_found(
        self, what: str, witness: Witness, dump: Path, vmlinux: Path, tmp_path: Path
    ) -> None:
        forged = tmp_path / "forged"
        shutil.copyfile(dump, forged)  # sparse where the file system can
        with witness.guest.stopped():
            reading = Reading(witness.memory.program, witness.memory)
            address, change = PLACES[what](reading, witness.memory)
            flip(forged, physical(witness.memory, address), change)
        try:
            state = read_source(str(forged), vmlinux)
        except KernelUnavailable as why:  # a forged pointer may lead to where a pointer has to be, and none is
            assert "is damaged" in str(why)
        else:
            assert state.problems
            assert state.findings == []


def flip(dump: Path, address: int, change: int) -> None:
    """Change the bits `change` of the word at a physical address in an ELF dump."""
    with dump.open("r+b") as file:
        header = file.read(64)
        offset, size, count = (*struct.unpack_from("<Q", header, 32), *struct.unpack_from("<HH", header, 54))
        for i in range(count):
            file.seek(offset + i * size)
            _, _, at, _, first, length, _, _ = struct.unpack("<IIQQQQQQ", file.read(56))
            if first <= address < first + length:
                file.seek(at + address - first)
                (word,) = struct.unpack("<Q", file.read(8))
                file.seek(-8, os.SEEK_CUR)
                file.write(struct.pack("<Q", word ^ change))
                return
    raise AssertionError(f"{address:#x} is not in the dump")


def physical(memory: Memory, address: int) -> int:
    at = memory._physical(address)
    return at if at >= 0 else address - memory.direct_map


def _child(reading: Reading) -> int:
    return next(a.address for a in reading.snapshot.anon_vmas.values() if a.root != a.address)


def _inner(reading: Reading) -> int:
    return next(node.avc for a in reading.snapshot.anon_vmas.values() for node in a.tree if node.left)


def _page(reading: Reading, memory: Memory) -> int:
    pages = reading.columns.pages
    row = int(np.flatnonzero((pages.order == 0) & ~pages.ksm)[0])
    return memory.vmemmap + int(pages.pfn[row]) * Reader(memory).pages.size


PLACES: dict[str, Callable[[Reading, Memory], tuple[int, int]]] = {
    "root": lambda r, m: (_child(r) + Reader(m).offset("anon_vma", "root"), 0x40),
    "parent": lambda r, m: (_child(r) + Reader(m).offset("anon_vma", "parent"), 0x80),
    "page offset": lambda r, m: (
        # Of a file, 7.3 may have any: its pages have an offset of their own.
        max((vma for vma in r.snapshot.vmas.values() if not vma.file), key=lambda vma: len(vma.chain)).address
        + Reader(m).offset("vma", "vm_pgoff"),
        1,
    ),
    "tree pointer": lambda r, m: (_inner(r) + Reader(m).offset("avc", "rb.rb_left"), 0xFFFF_FFFF),
    "mapcount": lambda r, m: (_page(r, m) + Reader(m).offset("page", "mapcount"), 1),
    "index": lambda r, m: (_page(r, m) + Reader(m).offset("page", "index"), 2),
}  # fmt: skip


@needs_kernel
@pytest.mark.parametrize("version", VERSIONS)
def test_redis_is_taken_over_while_it_saves_and_a_damage_in_it_is_found(version: str) -> None:
    try:
        kernel = setup.set_up(version, print)
        with running(PROGRAMS["redis"], kernel, print) as moments:
            guest, what = next(moments)
            memory = Memory(attach(guest, kernel.vmlinux), guest.memory)
            guest, what = next(moments)
            for _ in range(200):
                state = Reading(memory.program, memory).examined()
                if not state.problems:
                    break
                guest.let_go_on(0.003)  # something was half done
            print(what, state.table(), sep="\n")
            summary(state)
            assert state.ancestry.living >= 1  # the child that saves
            assert max(finding.worst for finding in state.findings) >= 2
            for name, place in PLACES.items():
                address, change = place(Reading(memory.program, memory), memory)
                value = memory.word(address)
                write_word(memory, address, value ^ change)
                assert Reading(memory.program, memory).examined().problems, name
                write_word(memory, address, value)
            assert Reading(memory.program, memory).examined().problems == []
    except KernelUnavailable as error:
        if os.environ.get("RMAPLAB_REQUIRE_KERNEL"):
            raise
        pytest.skip(str(error))
