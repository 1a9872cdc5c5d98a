# SPDX-License-Identifier: GPL-2.0-or-later
"""`rmaplab kernel setup` with a package manager of the test's: what it fetches, and what it says where that fails.

`apt-cache` and `apt-get` are scripts that serve two small packages.  Nothing here boots or downloads anything.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import lzma
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kernel.packing import zstd
from rmaplab.commands.frame import main
from rmaplab.kernel import modules, setup
from rmaplab.kernel.errors import KernelUnavailable
from rmaplab.kernel.versions import DEFAULT, VERSIONS

RELEASE = "7.3.999+test-cloud-amd64"
IMAGE = f"linux-image-{RELEASE}-unsigned"
DEBUG = f"linux-image-{RELEASE}-dbg"

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="makes Debian packages")


def _package(directory: Path, name: str, files: dict[str, bytes]) -> Path:
    tree = directory / name
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: 7.3.999-1\nArchitecture: amd64\nMaintainer: nobody <a@b>\nDescription: test\n"
    )
    for path, contents in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(contents)
    made = directory / f"{name}_7.3.999-1_amd64.deb"
    subprocess.run(["dpkg-deb", "--build", "-Znone", tree, made], check=True, capture_output=True)
    return made


class Apt:
    """A package manager that knows the packages in `index`, and serves what `served` holds of them."""

    def __init__(self, directory: Path) -> None:
        self.bin, self.index, self.served = directory / "bin", directory / "index", directory / "served"
        self.made = directory / "made"
        for path in (self.bin, self.index, self.served, self.made):
            path.mkdir()
        self.add(IMAGE, {
            f"boot/vmlinuz-{RELEASE}": b"image", f"boot/config-{RELEASE}": b"not wanted",
            f"lib/modules/{RELEASE}/kernel/drivers/block/brd.ko.xz": lzma.compress(b"module"),
            f"lib/modules/{RELEASE}/modules.builtin": b"kernel/drivers/virtio/virtio.ko",
        })  # fmt: skip
        self.add(DEBUG, {
            f"usr/lib/debug/boot/vmlinux-{RELEASE}": b"debug information",
            f"usr/lib/debug/lib/modules/{RELEASE}/kernel/drivers/block/brd.ko": b"not wanted",
        })  # fmt: skip
        search = f'while read -r name; do case "$name" in linux-*) echo "$name - x";; esac; done < {self.index}/names'
        show = f'shift 4; for name; do cat {self.index}/"$name"; echo; done'
        names = f"ls {self.index} > {self.index}/names"
        self.script("apt-cache", f'{names}; [ "$3" = search ] && {{ {search}; exit; }}; {show}')
        failed = 'echo "E: no route to host" >&2; exit 100'
        self.script("apt-get", f"""case "$1" in indextargets) echo http://mirror.example/debian/; exit;; esac
grep -q 'http://mirror.example/debian/ ' "$(dirname "$2")/sources.list" || exit 1
case "$4" in update) exit;; esac
cp {self.served}/"${{5%%=*}}"_*.deb . || {{ {failed}; }}""")
        self.script("apt-config", "exit 0")

    def add(self, name: str, files: dict[str, bytes]) -> None:
        path = _package(self.made, name, files)
        shutil.copy(path, self.served)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        (self.index / name).write_text(
            f"Package: {name}\nVersion: 7.3.999-1\nSize: {path.stat().st_size}\nSHA256: {digest}\n"
        )

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
    assert err.splitlines()[0].startswith(f"rmaplab: {RELEASE}: 0 MB to download, at most 750 MB to keep in ")
    kernel = setup.need("7.3")
    assert kernel.release == RELEASE and RELEASE in out
    assert kernel.image.read_bytes() == b"image" and kernel.vmlinux.read_bytes() == b"debug information"
    assert kernel.modules is not None
    assert sorted(path.name for path in kernel.modules.rglob("*.*")) == ["brd.ko.xz", "modules.builtin"]
    assert modules.read(kernel.modules, modules.MODULES) == {"brd": b"module"}
    assert _leftovers() == [] and list((setup.cache() / "downloads").iterdir()) == []


def test_a_second_time_there_is_nothing_to_do(apt: Apt, run: Run) -> None:
    run("setup")
    shutil.rmtree(apt.served)
    assert run("setup")[0] == 0


def test_image_and_modules_are_packages_of_their_own_since_7(apt: Apt, run: Run) -> None:
    release = "7.3.1000+test-cloud-amd64"
    files = f"usr/lib/modules/{release}"
    apt.add(f"linux-binary-{release}", {f"{files}/vmlinuz": b"image of 7.3"})
    apt.add(f"linux-modules-{release}", {f"{files}/kernel/brd.ko.xz": lzma.compress(b"module of 7.3")})
    apt.add(f"linux-image-{release}", {})
    apt.add(f"linux-image-{release}-dbg", {f"usr/lib/debug/lib/modules/{release}/vmlinux": b"debug information"})
    apt.add("linux-image-7.3.998+test-cloud-amd64-dbg", {})
    apt.add("linux-image-7.3.1001+test-cloud-amd64-dbg", {})  # whose image is not there yet
    assert run("setup", "--version", "7.3")[1].startswith(f"{release} is in ")
    kernel = setup.need("7.3")
    assert kernel.image.read_bytes() == b"image of 7.3" and kernel.vmlinux.read_bytes() == b"debug information"
    assert kernel.modules is not None
    assert modules.read(kernel.modules, modules.MODULES) == {"brd": b"module of 7.3"}


def test_what_can_be_fetched_is_said_from_one_table(apt: Apt, run: Run) -> None:
    status, _, err = run("setup", "--version", "6.13")
    assert status == 2
    assert f"no kernel 6.13 to fetch: --version is one of {', '.join(VERSIONS)}" in err
    assert DEFAULT in VERSIONS


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [(".ko", bytes), (".ko.xz", lzma.compress), (".ko.gz", gzip.compress), (".ko.zst", zstd)],
)  # fmt: skip
def test_modules_come_from_a_tree_after_what_they_depend_on(
    suffix: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    needs = {"virtio": b"virtio_ring", "virtio-ring": b"", "virtio_blk": b"virtio,virtio_ring,built_in"}
    for name, others in needs.items():
        path = tmp_path / "lib" / "modules" / "x" / "kernel" / name / f"{name}{suffix}"
        path.parent.mkdir(parents=True)
        path.write_bytes(pack(b"\x7fELF\0license=GPL\0depends=" + others + b"\0name=x\0"))
    found = modules.read(tmp_path, modules.DISK)
    assert [*found] == ["virtio_ring", "virtio", "virtio_blk"]
    assert all(contents.startswith(b"\x7fELF") for contents in found.values())


@pytest.mark.parametrize("suffix", [".ko.xz", ".ko.gz", ".ko.zst"])
def test_a_module_that_is_damaged(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"brd{suffix}").write_bytes(b"\x1f\x8b nothing of the kind")
    with pytest.raises(KernelUnavailable, match=r"brd.* cannot be read .*: give the tree of this kernel\.$"):
        modules.read(tmp_path, ("brd",))


def test_without_apt(apt: Apt, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    setup.compile_init()
    monkeypatch.setenv("PATH", "/nonexistent")
    status, _, err = run("setup")
    assert status == 2
    assert "apt-get is not here: give --image and --vmlinux" in err


def test_without_such_a_package(apt: Apt, run: Run) -> None:
    (apt.index / DEBUG).unlink()
    status, _, err = run("setup")
    assert status == 2
    assert "none of Debian's packages of kernel 7.3 has image and debug information: give --image" in err


def test_without_an_index(apt: Apt, run: Run) -> None:
    for path in apt.index.iterdir():
        path.unlink()
    fails = '{ echo "E: no route" >&2; exit 1; }'
    apt.script("apt-get", f'[ "$1" = indextargets ] && echo http://mirror.example/debian/ || {fails}')
    status, _, err = run("setup")
    assert status == 2
    assert "Debian's suites trixie-backports, forky, sid (E: no route): give --image" in err


def test_a_machine_that_names_no_mirror_of_debian(apt: Apt, run: Run) -> None:
    apt.script("apt-get", "echo http://mirror.example/ubuntu/")
    status, _, err = run("setup")
    assert status == 2
    assert "the apt sources of this machine name no mirror of Debian" in err


def test_a_kernel_that_is_there_serves_without_an_index(apt: Apt, run: Run) -> None:
    run("setup")
    apt.script("apt-get", "exit 1")
    status, out, err = run("setup")
    assert status == 0
    assert RELEASE in out and "whether there is a newer one cannot be told" in err


def test_without_the_network(apt: Apt, run: Run) -> None:
    for path in apt.served.iterdir():
        path.unlink()
    status, _, err = run("setup")
    assert status == 2
    assert "could not be downloaded (E: no route to host): try again, it will be resumed" in err
    assert _leftovers() == []


def test_what_was_downloaded_before_an_interruption_is_kept(apt: Apt, run: Run) -> None:
    second = apt.served / f"{DEBUG}_7.3.999-1_amd64.deb"
    second.rename(apt.served / "away")
    assert run("setup")[0] == 2
    assert [path.name for path in (setup.cache() / "downloads").iterdir()] == [f"{IMAGE}_7.3.999-1_amd64.deb"]
    (apt.served / "away").rename(second)
    assert run("setup")[0] == 0


def test_a_truncated_download_is_not_taken(apt: Apt, run: Run) -> None:
    path = apt.served / f"{DEBUG}_7.3.999-1_amd64.deb"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    status, _, err = run("setup")
    assert status == 2
    assert f"{DEBUG} has another SHA-256 than apt's index says" in err
    assert setup.installed("7.3") is None and _leftovers() == []
    path.write_bytes(whole)
    assert run("setup")[0] == 0


def test_a_full_disk_is_said_before_anything_is_fetched(
    apt: Apt, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    status, _, err = run("setup")
    assert status == 2
    assert "has room for 1 MB, and 750 MB are needed for a while" in err


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
    assert setup.installed("7.3") is None and _leftovers() == []
    assert run("setup")[0] == 0


def test_a_kernel_that_was_not_fetched(apt: Apt, run: Run) -> None:
    status, _, err = run("compare", "--steps", "1")
    assert status == 2
    assert "run `rmaplab kernel setup --version 7.3`, or give --image and --vmlinux" in err


def test_a_kernel_of_ones_own_needs_both_files(apt: Apt, run: Run, tmp_path: Path) -> None:
    assert "needs both" in run("compare", "--image", str(tmp_path / "bzImage"))[2]
    here = str(apt.index / IMAGE)
    status, _, err = run("compare", "--image", here, "--vmlinux", str(tmp_path / "none"))
    assert status == 2
    assert "there is no file" in err
    status, _, err = run("compare", "--image", here, "--vmlinux", here, "--modules", str(tmp_path / "none"))
    assert status == 2
    assert "none: --modules names a tree" in err


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
        for name in ("sh", "cp", "cat", "ls", "grep", "dirname", "dpkg-deb", "tar"):
            path = shutil.which(name)
            assert path is not None
            (tools / name).symlink_to(path)
        monkeypatch.setenv("PATH", f"{apt.bin}:{tools}")
        return tools

    def test_none_is_there(self, tools: Path, run: Run) -> None:
        status, out, err = run("setup")
        assert (status, out) == (2, "")
        assert err == "rmaplab: a C compiler is missing, which builds the guest's init: install gcc.\n"
        assert setup.installed("7.3") is None and not setup.cache().exists()

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
