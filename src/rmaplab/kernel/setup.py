# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels to boot: found through the host's package manager, kept in the user's cache, installed nowhere.

A Debian kernel is two packages: the image (with its modules) and `-dbg` (of which only vmlinux is taken).  apt
knows where they are and what they hash to.  The search begins with the -dbg packages, since some images have
none.  Directories in the cache are named by the kernel's release, and appear there whole or not at all.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from rmaplab.kernel.errors import KernelUnavailable

# What a guest may need; what is built in is not there.
MODULES: Final = (
    "qemu_fw_cfg", "brd", "virtio", "virtio_ring", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci",
    "virtio_blk",
)  # fmt: skip
_DEPENDS: Final = re.compile(rb"\0depends=([^\0]*)\0")  # in a module's section .modinfo
_KEPT_MODULES: Final = "modules.kept"  # says which were looked for
SOURCE: Final = Path(__file__).parent / "guest" / "init.c"
_COMPILE: Final = (
    "-O2 -nostdlib -static -ffreestanding -fno-stack-protector -fno-pic -no-pie -fno-asynchronous-unwind-tables"
    " -mgeneral-regs-only -Wl,-Ttext-segment=0x10000000,--build-id=none"
).split()
VERSIONS: Final = ("6.12", "6.1")
KEPT: Final = 650_000_000  # bytes: what the largest of these kernels takes, unpacked


class Kernel(msgspec.Struct, frozen=True):
    """What it takes to boot a kernel and to read it.

    image:   a bzImage
    vmlinux: the same kernel with debug information
    modules: directory with uncompressed modules by name; what is missing there is taken to be built in
    release: `uname -r`, or "" where only the running kernel can tell
    """

    image: Path
    vmlinux: Path
    modules: Path | None = None
    release: str = ""


class Package(msgspec.Struct, frozen=True):
    """A package as apt's index describes it; size in bytes."""

    name: str
    version: str
    size: int
    sha256: str
    filename: str


def cache() -> Path:
    """Where kernels are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "rmaplab" / "kernel"


def installed(version: str) -> Kernel | None:
    """The newest kernel of `version` ("6.12") in the cache."""
    found = [path for path in cache().glob(f"{version}.*") if (path / "vmlinux").exists()]
    if not found:
        return None
    newest = max(found, key=lambda path: _ordering(path.name))
    return Kernel(newest / "vmlinuz", newest / "vmlinux", newest / "modules", newest.name)


def need(version: str) -> Kernel:
    """:raises KernelUnavailable: it is not in the cache"""
    kernel = installed(version)
    if kernel is None:
        raise KernelUnavailable(
            f"there is no kernel {version} in {cache()}: run `rmaplab kernel setup --version {version}`,"
            " or give --image and --vmlinux."
        )
    return kernel


def need_drgn() -> None:
    """:raises KernelUnavailable: drgn, which reads kernels, is not installed"""
    try:
        import drgn  # noqa: F401
    except ImportError as error:
        raise KernelUnavailable(
            f"drgn is missing, which reads kernels ({error}): run `pip install 'rmaplab[kernel]'`."
        ) from None


def _ordering(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def find_packages(version: str) -> tuple[str, Package, Package]:
    """The newest kernel of `version` for which there is debug information: release, image, debug package.

    :raises KernelUnavailable: there is none, or no apt
    """
    if shutil.which("apt-cache") is None or shutil.which("dpkg-deb") is None:
        raise KernelUnavailable(
            "kernels are fetched as Debian packages, and apt is not here: give --image and --vmlinux instead."
        )
    pattern = rf"^linux-image-{re.escape(version)}\.[0-9].*-cloud-amd64-dbg$"
    names = [line.split()[0] for line in _output("apt-cache", "search", "--names-only", pattern).splitlines()]
    for name in sorted(names, key=_ordering, reverse=True):
        base = name.removesuffix("-dbg")
        debug = _package(name)
        for image_name in (f"{base}-unsigned", base):
            image = _package(image_name)
            if image is not None and debug is not None and image.version == debug.version:
                return base.removeprefix("linux-image-"), image, debug
    raise KernelUnavailable(
        f"apt's index has no kernel {version} with debug information: run `apt-get update`, or add the suites of"
        " Debian 12 (security and backports included), or give --image and --vmlinux."
    )


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _package(name: str) -> Package | None:
    fields: dict[str, str] = {}
    for line in _output("apt-cache", "show", "--no-all-versions", name).splitlines():
        key, _, value = line.partition(": ")
        if key in ("Version", "Size", "SHA256", "Filename"):
            fields[key] = value
    if len(fields) < 4:
        return None
    return Package(name, fields["Version"], int(fields["Size"]), fields["SHA256"], fields["Filename"])


def set_up(version: str, say: Callable[[str], None]) -> Kernel:
    """Fetch what is missing of kernel `version`.

    :raises KernelUnavailable: something is missing; what was fetched so far is kept
    """
    release, image, debug = find_packages(version)
    target = cache() / release
    try:
        compile_init()
        if not (target / "vmlinux").exists():
            _fetch(release, image, debug, target, say)
        elif _modules_kept(target) != MODULES:
            _fetch_modules(release, image, target, say)
    except OSError as error:
        raise KernelUnavailable(
            f"cannot write to {cache()} ({error.strerror or error}): make room there, or let XDG_CACHE_HOME name"
            " another directory; what was downloaded is kept."
        ) from None
    return Kernel(target / "vmlinuz", target / "vmlinux", target / "modules", release)


def _fetch(release: str, image: Package, debug: Package, target: Path, say: Callable[[str], None]) -> None:
    downloads = cache() / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    fetched = image.size + debug.size
    needed = fetched + KEPT
    say(f"{release}: {fetched / 1e6:.0f} MB to download, at most {KEPT / 1e6:.0f} MB to keep in {target}")
    free = shutil.disk_usage(downloads).free + sum(path.stat().st_size for path in downloads.iterdir())
    if free < needed:
        raise KernelUnavailable(
            f"{cache()} has room for {free / 1e6:.0f} MB, and {needed / 1e6:.0f} MB are needed for a while: make room,"
            " or let XDG_CACHE_HOME name another directory."
        )
    partial = cache() / f".{release}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "modules").mkdir(parents=True)
        paths = [_download(package, downloads, say) for package in (image, debug)]
        for path in paths:
            say(f"unpacking {path.name}")
            _unpack(path, partial)
        for name in ("vmlinuz", "vmlinux"):
            if not (partial / name).exists():
                raise KernelUnavailable(f"the packages of {release} hold no {name}: give --image and --vmlinux.")
        partial.rename(target)
        for path in paths:
            path.unlink()
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # whatever went wrong; renamed, it is not there any more


def _modules_kept(directory: Path) -> tuple[str, ...]:
    path = directory / _KEPT_MODULES
    return tuple(path.read_text().split()) if path.exists() else ()


def _fetch_modules(release: str, image: Package, target: Path, say: Callable[[str], None]) -> None:
    """The kernel is there, from when fewer modules were wanted."""
    downloads = cache() / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    say(f"{release}: {image.size / 1e6:.0f} MB to download, for modules that are not kept yet")
    partial = cache() / f".{release}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "modules").mkdir(parents=True)
        path = _download(image, downloads, say)
        _unpack(path, partial)
        for module in (partial / "modules").iterdir():
            module.replace(target / "modules" / module.name)
        (partial / _KEPT_MODULES).replace(target / _KEPT_MODULES)
        path.unlink()
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download(package: Package, directory: Path, say: Callable[[str], None]) -> Path:
    """apt goes on with what is there of a file, and checks its signature chain; the hash is checked again."""
    say(f"downloading {package.name} {package.version}, {package.size / 1e6:.0f} MB")
    run = subprocess.run(
        ["apt-get", "-q", "download", f"{package.name}={package.version}"],
        cwd=directory, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = sorted(directory.glob(f"{package.name}_*.deb"))
    if run.returncode or not found:
        reason = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise KernelUnavailable(
            f"{package.name} could not be downloaded ({reason}): try again, it will be resumed."
        )
    path = found[-1]
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    if digest.hexdigest() != package.sha256:
        path.unlink()
        raise KernelUnavailable(
            f"{package.name} has another SHA-256 than apt's index says: it was removed, try again."
        )
    return path


def _unpack(package: Path, target: Path) -> None:
    """Image, vmlinux and the modules in MODULES, out of a package."""
    process = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process, tarfile.open(fileobj=process.stdout, mode="r|") as archive:
        for member in archive:
            if not member.isfile():
                continue
            name = Path(member.name).name
            module = name.split(".ko")[0]
            contents = archive.extractfile(member)
            assert contents is not None
            if name.startswith(("vmlinuz-", "vmlinux-")):
                with (target / name[:7]).open("wb") as file:
                    shutil.copyfileobj(contents, file, 1 << 20)
            elif ".ko" in name and module in MODULES:
                data = contents.read()
                data = lzma.decompress(data) if name.endswith(".xz") else data
                (target / "modules" / f"{module}.ko").write_bytes(data)
    (target / _KEPT_MODULES).write_text("\n".join(MODULES) + "\n")
    if process.wait():
        package.unlink()
        raise KernelUnavailable(f"{package.name} could not be unpacked: it was removed, try again.")


def compile_init() -> Path:
    """The guest's init, compiled once for each version of its source."""
    source = SOURCE.read_bytes()
    path = cache() / f"init-{hashlib.sha256(source).hexdigest()[:12]}"
    if path.exists():
        return path
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise KernelUnavailable("a C compiler is missing, which builds the guest's init: install gcc.")
    cache().mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    run = subprocess.run(
        [compiler, *_COMPILE, "-o", str(partial), str(SOURCE)], capture_output=True, text=True, check=False
    )
    if run.returncode:
        partial.unlink(missing_ok=True)
        reason = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise KernelUnavailable(
            f"the guest's init does not compile ({reason}): install gcc and libc6-dev for x86-64, or put a working"
            " gcc first in PATH."
        )
    partial.rename(path)
    return path


def modules_of(kernel: Kernel, names: tuple[str, ...]) -> dict[str, bytes]:
    """Contents of those modules that the kernel has as modules, each after those that it depends on.

    :raises KernelUnavailable: the kernel is one of the cache, and some of them were not looked for when it was fetched
    """
    if kernel.modules is None:
        return {}
    paths = {name: kernel.modules / f"{name}.ko" for name in names}
    found = {name: path.read_bytes() for name, path in paths.items() if path.exists()}
    unknown = set(names) - set(found) - set(_modules_kept(kernel.modules.parent))
    if kernel.release and unknown:
        raise KernelUnavailable(
            f"kernel {kernel.release} was fetched without all the modules that are needed here"
            f" ({', '.join(sorted(unknown))}): run `rmaplab kernel setup --version"
            f" {'.'.join(kernel.release.split('.')[:2])}`, which adds them."
        )
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in found and name not in ordered:
            depends = _DEPENDS.search(found[name])
            for other in depends.group(1).decode().split(",") if depends else ():
                add(other)
            ordered[name] = found[name]

    for name in names:
        add(name)
    return ordered
