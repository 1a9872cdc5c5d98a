# SPDX-License-Identifier: GPL-2.0-or-later
"""`rmaplab kernel setup` with a package manager of our own: what it fetches, and what it says where that fails.

`apt-cache` and `apt-get` are scripts that serve two small packages.  Nothing here boots or downloads anything.
"""

from __future__ import annotations

import errno
import hashlib
import lzma
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rmaplab.cli import main
from rmaplab.kernel import setup
from rmaplab.kernel.errors import KernelUnavailable

RELEASE = "6.12.999+test-cloud-amd64"
IMAGE = f"linux-image-{RELEASE}-unsigned"
DEBUG = f"linux-image-{RELEASE}-dbg"

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="makes Debian packages")


def _package(directory: Path, name: str, files: dict[str, bytes]) -> Path:
    tree = directory / name
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: 6.12.999-1\nArchitecture: amd64\nMaintainer: nobody <a@b>\nDescription: test\n"
    )
    for path, contents in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(contents)
    made = directory / f"{name}_6.12.999-1_amd64.deb"
    subprocess.run(["dpkg-deb", "--build", "-Znone", tree, made], check=True, capture_output=True)
    return made


class Apt:
    """A package manager that knows the packages in `index`, and serves what `served` holds of them."""

    def __init__(self, directory: Path) -> None:
        self.bin, self.index, self.served = directory / "bin", directory / "index", directory / "served"
        for path in (self.bin, self.index, self.served, directory / "made"):
            path.mkdir()
        for name, files in (
            (IMAGE, {f"boot/vmlinuz-{RELEASE}": b"image", "lib/modules/x/brd.ko.xz": lzma.compress(b"module"),
                     "lib/modules/x/other.ko.xz": b"not wanted"}),
            (DEBUG, {f"usr/lib/debug/boot/vmlinux-{RELEASE}": b"debug information"}),
        ):  # fmt: skip
            path = _package(directory / "made", name, files)
            shutil.copy(path, self.served)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            (self.index / name).write_text(
                f"Version: 6.12.999-1\nSize: {path.stat().st_size}\nSHA256: {digest}\nFilename: pool/{path.name}\n"
            )
        search = f'ls {self.index} | grep -e "-dbg$" | sed "s/$/ - /"'
        self.script("apt-cache", f'if [ "$1" = search ]; then {search}; else cat {self.index}/"$3"; fi')
        failed = 'echo "E: no route to host" >&2; exit 100'
        self.script("apt-get", f'cp {self.served}/"${{3%%=*}}"_*.deb . || {{ {failed}; }}')

    def script(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Apt:
    apt = Apt(tmp_path)
    monkeypatch.setenv("PATH", f"{apt.bin}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return apt


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["kernel", *arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert isinstance(end.value.code, int)
        return end.value.code, out, err

    return run


def _leftovers() -> list[str]:
    return sorted(path.name for path in setup.cache().iterdir() if path.name.startswith("."))


def test_only_what_is_needed_is_unpacked_and_sizes_come_first(apt: Apt, run: Run) -> None:
    status, out, err = run("setup")
    assert status == 0
    assert err.splitlines()[0].startswith(f"{RELEASE}: 0 MB to download, at most 650 MB to keep in ")
    kernel = setup.need("6.12")
    assert kernel.release == RELEASE and RELEASE in out
    assert kernel.image.read_bytes() == b"image" and kernel.vmlinux.read_bytes() == b"debug information"
    assert kernel.modules is not None
    assert {path.name: path.read_bytes() for path in kernel.modules.iterdir()} == {"brd.ko": b"module"}
    assert _leftovers() == [] and list((setup.cache() / "downloads").iterdir()) == []


def test_a_second_time_there_is_nothing_to_do(apt: Apt, run: Run) -> None:
    run("setup")
    shutil.rmtree(apt.served)
    assert run("setup")[0] == 0


def test_a_kernel_that_was_kept_with_fewer_modules_gets_the_rest(apt: Apt, run: Run) -> None:
    run("setup")
    kernel = setup.need("6.12")
    assert kernel.modules is not None
    assert setup.modules_of(kernel, setup.MODULES) == {"brd": b"module"}
    (kernel.modules / "brd.ko").unlink()
    (kernel.modules.parent / "modules.kept").write_text("qemu_fw_cfg\n")
    assert setup.modules_of(kernel, ("qemu_fw_cfg",)) == {}  # looked for, and built in
    with pytest.raises(KernelUnavailable, match=r"without all the modules .*\(brd\): run .* --version 6\.12`"):
        setup.modules_of(kernel, ("qemu_fw_cfg", "brd"))
    (apt.served / f"{DEBUG}_6.12.999-1_amd64.deb").unlink()  # which is not needed for this
    assert run("setup")[0] == 0
    assert setup.modules_of(kernel, setup.MODULES) == {"brd": b"module"}
    assert kernel.vmlinux.read_bytes() == b"debug information"
    assert _leftovers() == []


def test_modules_come_after_what_they_depend_on(tmp_path: Path) -> None:
    needs = {"virtio": b"virtio_ring", "virtio_ring": b"", "virtio_blk": b"virtio,virtio_ring,built_in"}
    for name, others in needs.items():
        (tmp_path / f"{name}.ko").write_bytes(b"\x7fELF\0license=GPL\0depends=" + others + b"\0name=x\0")
    kernel = setup.Kernel(tmp_path / "bzImage", tmp_path / "vmlinux", tmp_path)
    assert [*setup.modules_of(kernel, setup.MODULES)] == ["virtio_ring", "virtio", "virtio_blk"]


def test_without_apt(apt: Apt, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    status, _, err = run("setup")
    assert status == 2
    assert "apt is not here: give --image and --vmlinux" in err


def test_without_such_a_package(apt: Apt, run: Run) -> None:
    (apt.index / DEBUG).unlink()
    status, _, err = run("setup")
    assert status == 2
    assert "no kernel 6.12 with debug information: run `apt-get update`" in err


def test_without_the_network(apt: Apt, run: Run) -> None:
    for path in apt.served.iterdir():
        path.unlink()
    status, _, err = run("setup")
    assert status == 2
    assert "could not be downloaded (E: no route to host): try again, it will be resumed" in err
    assert _leftovers() == []


def test_what_was_downloaded_before_an_interruption_is_kept(apt: Apt, run: Run) -> None:
    second = apt.served / f"{DEBUG}_6.12.999-1_amd64.deb"
    second.rename(apt.served / "away")
    assert run("setup")[0] == 2
    assert [path.name for path in (setup.cache() / "downloads").iterdir()] == [f"{IMAGE}_6.12.999-1_amd64.deb"]
    (apt.served / "away").rename(second)
    assert run("setup")[0] == 0


def test_a_truncated_download_is_not_taken(apt: Apt, run: Run) -> None:
    path = apt.served / f"{DEBUG}_6.12.999-1_amd64.deb"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    status, _, err = run("setup")
    assert status == 2
    assert f"{DEBUG} has another SHA-256 than apt's index says" in err
    assert setup.installed("6.12") is None and _leftovers() == []
    path.write_bytes(whole)
    assert run("setup")[0] == 0


def test_a_full_disk_is_said_before_anything_is_fetched(
    apt: Apt, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    status, _, err = run("setup")
    assert status == 2
    assert "has room for 1 MB, and 650 MB are needed for a while" in err


def test_a_disk_that_fills_up_leaves_nothing_half_written(
    apt: Apt, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        status, _, err = run("setup")
    assert status == 2
    assert "(No space left on device): make room there" in err
    assert setup.installed("6.12") is None and _leftovers() == []
    assert run("setup")[0] == 0


def test_a_kernel_that_was_not_fetched(apt: Apt, run: Run) -> None:
    status, _, err = run("compare", "--steps", "1")
    assert status == 2
    assert "run `rmaplab kernel setup --version 6.12`, or give --image and --vmlinux" in err


def test_a_kernel_of_ones_own_needs_both_files(apt: Apt, run: Run, tmp_path: Path) -> None:
    assert "needs both" in run("compare", "--image", str(tmp_path / "bzImage"))[2]
    here = str(apt.index / IMAGE)
    status, _, err = run("compare", "--image", here, "--vmlinux", str(tmp_path / "none"))
    assert status == 2
    assert "there is no file" in err


def test_without_qemu(apt: Apt, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("setup")
    setup.compile_init()
    monkeypatch.setenv("PATH", "/nonexistent")
    status, _, err = run("compare", "--steps", "1")
    assert status == 2
    assert "QEMU is missing: install qemu-system-x86_64" in err


def test_without_drgn(apt: Apt, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("setup")  # which does not need it
    (tmp_path / "dump").write_bytes(b"\x7fELF")
    monkeypatch.setitem(sys.modules, "drgn", None)
    for command in (
        ("compare", "--steps", "1"), ("import", "guest"), ("import", str(tmp_path / "dump")), ("userland", "redis"),
    ):  # fmt: skip
        status, out, err = run(*command)
        assert (status, out) == (2, "")
        assert len(err.splitlines()) == 1
        assert "drgn is missing" in err and "pip install 'rmaplab[kernel]'" in err


class TestWithoutCompiler:
    """Everything that setup runs is there, but for what builds the guest's init."""

    @pytest.fixture
    def tools(self, apt: Apt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A directory that is all of PATH but for apt's."""
        tools = tmp_path / "tools"
        tools.mkdir()
        for name in ("sh", "cp", "cat", "ls", "grep", "sed", "dpkg-deb", "tar"):
            path = shutil.which(name)
            assert path is not None
            (tools / name).symlink_to(path)
        monkeypatch.setenv("PATH", f"{apt.bin}:{tools}")
        return tools

    def test_none_is_there(self, tools: Path, run: Run) -> None:
        status, out, err = run("setup")
        assert (status, out) == (2, "")
        assert err == "rmaplab: a C compiler is missing, which builds the guest's init: install gcc.\n"
        assert setup.installed("6.12") is None and not setup.cache().exists()

    @pytest.mark.parametrize("says", ["", "echo fatal error: no such header >&2;"])
    def test_it_does_not_work(self, says: str, tools: Path, apt: Apt, run: Run) -> None:
        apt.script("gcc", f'while [ "$1" != -o ]; do shift; done; echo half > "$2"; {says} exit 1')
        status, out, err = run("setup")
        assert (status, out) == (2, "")
        assert len(err.splitlines()) == 1
        assert f"does not compile ({'fatal error: no such header' if says else 'no reason given'})" in err
        assert list(setup.cache().iterdir()) == []

    def test_it_is_not_needed_again(self, tools: Path, apt: Apt, run: Run) -> None:
        apt.script("gcc", 'while [ "$1" != -o ]; do shift; done; echo whole > "$2"')
        assert run("setup")[0] == 0
        (apt.bin / "gcc").unlink()
        assert run("setup")[0] == 0


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EACCES, "only root may read this machine's kernel"),
        (errno.EPERM, "only root may read this machine's kernel"),
        (errno.ENOENT, "give a dump, or a guest's QMP socket"),
    ],
)
def test_this_machine_where_its_memory_may_not_be_read(
    number: int, expected: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    drgn = pytest.importorskip("drgn")

    class Program:
        def set_kernel(self) -> None:
            raise OSError(number, os.strerror(number), "/proc/kcore")

    monkeypatch.setattr(drgn, "Program", Program)
    status, out, err = run("import", "live")
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert expected in err and "/proc/kcore" in err
