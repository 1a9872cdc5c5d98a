# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel of one's own, given as image, vmlinux and modules, as packages leave them (make test-kernel).

What is wrong with one of the three is one sentence and exit status 2.
"""

from __future__ import annotations

import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernel.packing import zstd
from rmaplab.check.histories import header
from rmaplab.commands.frame import main
from rmaplab.kernel import memory, modules, pages, setup
from rmaplab.kernel.errors import KernelUnavailable
from rmaplab.trace.events import Event
from rmaplab.trace.history import History, write_history

pytestmark = pytest.mark.skipif(
    not os.environ.get("RMAPLAB_KERNEL"), reason="boots kernels: make test-kernel, or RMAPLAB_KERNEL=1"
)


def need(version: str) -> setup.Kernel:
    try:
        return setup.installed(version) or setup.set_up(version, lambda what: None)  # tests read what is printed
    except KernelUnavailable as error:
        if os.environ.get("RMAPLAB_REQUIRE_KERNEL"):
            raise
        pytest.skip(str(error))


def unpacked(
    kernel: setup.Kernel, directory: Path, pack: Callable[[bytes], bytes] = lzma.compress, suffix: str = ".xz",
    names: tuple[str, ...] = modules.MODULES,
) -> tuple[str, ...]:  # fmt: skip
    """The packages of `kernel` as `dpkg-deb -x` leaves them in one directory; and the options that give them."""
    tree, debug = directory / "usr/lib/modules" / kernel.release, directory / "usr/lib/debug/lib/modules/x"
    assert kernel.modules is not None
    for name, contents in modules.read(kernel.modules, names).items():
        for there, data in ((tree, pack(contents)), (debug, b"debug information of a module")):
            path = there / "kernel/drivers" / f"{name}.ko{suffix if there is tree else ''}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    (tree / "vmlinuz").symlink_to(kernel.image)
    (debug / "vmlinux").symlink_to(kernel.vmlinux)
    return "--image", str(tree / "vmlinuz"), "--vmlinux", str(debug / "vmlinux"), "--modules", str(directory)


@pytest.fixture
def short(tmp_path: Path) -> str:
    """A history of one program."""
    path = tmp_path / "short.parquet"
    write_history(path, History(header(), [Event("exec", 1, 0xF_0000_0000, 3 * 4096, addr2=0x12_0000_0000)]))
    return str(path)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["kernel", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(("suffix", "pack"), [(".xz", lzma.compress), (".zst", zstd), (".gz", gzip.compress)])
def test_packages_as_they_are_unpacked(
    suffix: str, pack: Callable[[bytes], bytes], short: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = need("7.3")
    options = unpacked(kernel, tmp_path / "D", pack, suffix)
    assert run("compare", short, *options) == 0
    assert f"{kernel.release}: 1 steps, no difference" in capsys.readouterr().out


class TestRefused:
    def said(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
        assert run("compare", *arguments) == 2
        output = capsys.readouterr()
        assert output.out == "" and len(output.err.strip().splitlines()) == 1
        return output.err

    def test_a_vmlinux_of_another_kernel(self, short: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        options = [*unpacked(need("7.3"), tmp_path / "D")]
        options[3] = str(need("7.2").vmlinux)
        assert "is not the vmlinux of the kernel that was booted" in self.said(capsys, short, *options)

    def test_a_vmlinux_that_is_none(self, short: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        options = [*unpacked(need("7.3"), tmp_path / "D")]
        options[3] = short
        assert "is not the vmlinux of the kernel that was booted" in self.said(capsys, short, *options)

    @pytest.mark.parametrize("missing", modules.MODULES)
    def test_a_module_that_is_missing(
        self, missing: str, short: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        others = tuple(name for name in modules.MODULES if name != missing)
        options = unpacked(need("7.3"), tmp_path / "D", names=others)
        said = self.said(capsys, short, *options)
        assert f"the guest's kernel lacks {missing}, which" in said and f"a tree that has {missing}.ko" in said

    def test_modules_of_another_kernel(self, short: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        options = [*unpacked(need("7.3"), tmp_path / "D")]
        options[5] = str(need("6.12").modules)
        said = self.said(capsys, short, *options)
        assert "does not take" in said and "the tree of the very kernel that --image boots" in said

    def test_an_image_that_is_none(self, short: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        options = [*unpacked(need("7.3"), tmp_path / "D")]
        options[1] = short
        assert "QEMU" in self.said(capsys, short, *options)

    @pytest.mark.parametrize(
        ("missing", "sentence"),
        [
            ("one_of", "this kernel's struct page has neither __folio_index_of_9 nor index_of_9: it cannot be read"),
            ("symbol", "this kernel has no zero_page_pfn_of_9 or zero_pfn_of_9: it cannot be read"),
            ("Record", "this kernel has no struct page_of_9: it cannot be read"),
        ],
    )
    def test_a_structure_that_is_not_known(
        self, missing: str, sentence: str, short: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        """As a kernel would look to us that calls something otherwise."""
        real = getattr(memory, missing)

        def renamed(program: Any, *names: str) -> Any:
            of_type = names[:1] if missing == "one_of" else ()
            if missing == "Record":
                return real(program, f"{names[0]}_of_9", *names[1:])
            return real(program, *of_type, *(f"{name}_of_9" for name in names[len(of_type) :]))

        monkeypatch.setattr(pages, missing, renamed)
        assert sentence in self.said(capsys, short, *unpacked(need("7.3"), tmp_path / "D"))
