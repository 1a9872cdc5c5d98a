# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels to boot: found in Debian's suites, kept in the user's cache, installed nowhere.

A kernel comes in packages: image and modules, together up to 6.x and apart from 7.x on, and `-dbg`, of which only
vmlinux is taken.  The search begins with the -dbg packages, since many images have none, and takes the newest point
release for which all parts are there.  Directories in the cache are named by the kernel's release, and appear there
whole or not at all.
"""

from __future__ import annotations

import hashlib
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
from rmaplab.kernel.packages import Archive, Package
from rmaplab.kernel.versions import SUITES, known

SOURCE: Final = Path(__file__).parent / "guest" / "init.c"
_COMPILE: Final = (
    "-O2 -nostdlib -static -ffreestanding -fno-stack-protector -fno-pic -no-pie -fno-asynchronous-unwind-tables"
    " -mgeneral-regs-only -Wl,-Ttext-segment=0x10000000,--build-id=none"
).split()
KEPT: Final = 750_000_000  # bytes: what the largest of these kernels takes, unpacked


class Kernel(msgspec.Struct, frozen=True):
    """What it takes to boot a kernel and to read it.

    image:   a bzImage
    vmlinux: the same kernel with debug information
    modules: a tree of its modules (modules.py); what is missing there is taken to be built in
    """

    image: Path
    vmlinux: Path
    modules: Path | None = None
    release: str = ""


class Packages(msgspec.Struct, frozen=True):
    """Where the parts of a kernel are; image and modules may be one and the same package."""

    release: str
    image: Package
    modules: Package
    debug: Package


def cache() -> Path:
    """Where kernels are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "rmaplab" / "kernel"


def installed(version: str) -> Kernel | None:
    """The newest kernel of `version` ("7.3") in the cache."""
    found = [path for path in cache().glob(f"{version}.*") if (path / "vmlinux").exists()]
    return _kept(max(found, key=lambda path: _ordering(path.name))) if found else None


def _kept(directory: Path) -> Kernel:
    return Kernel(directory / "vmlinuz", directory / "vmlinux", directory / "modules", directory.name)


def need(version: str) -> Kernel:
    """:raises KernelUnavailable: it is not in the cache"""
    kernel = installed(known(version))
    if kernel is None:
        raise KernelUnavailable(
            f"there is no kernel {version} in {cache()}: run `rmaplab kernel setup --version {version}`,"
            " or give --image and --vmlinux."
        )
    return kernel


def own(image: Path, vmlinux: Path, modules: Path | None) -> Kernel:
    """A kernel of one's own.  :raises KernelUnavailable: a file is missing"""
    for path in (image, vmlinux):
        if not path.is_file():
            raise KernelUnavailable(f"there is no file {path}.")
    if modules is not None and not modules.is_dir():
        raise KernelUnavailable(f"there is no directory {modules}: --modules names a tree of kernel modules.")
    return Kernel(image, vmlinux, modules)


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


def find_packages(archive: Archive, version: str) -> Packages:
    """The newest kernel of `version` of which image, modules and debug information are there.

    :raises KernelUnavailable: there is none
    """
    parts, kinds = "(image|binary|binary-unsigned|modules)", "(-unsigned|-dbg)?"
    found = archive.search(rf"^linux-{parts}-{re.escape(version)}\.[0-9].*-cloud-amd64{kinds}$")

    def first(debug: Package, *names: str) -> Package | None:
        there = (found.get(name) for name in names)
        return next((package for package in there if package is not None and package.version == debug.version), None)

    for name in sorted(found, key=_ordering, reverse=True):
        if not name.endswith("-dbg"):
            continue
        debug, release = found[name], name.removeprefix("linux-image-").removesuffix("-dbg")
        modules = first(debug, f"linux-modules-{release}")
        if modules is not None:
            image = first(debug, f"linux-binary-{release}", f"linux-binary-unsigned-{release}")
        else:
            modules = image = first(debug, f"linux-image-{release}-unsigned", f"linux-image-{release}")
        if image is not None and modules is not None:
            return Packages(release, image, modules, debug)
    raise KernelUnavailable(
        f"none of Debian's packages of kernel {version} has image and debug information: give --image and --vmlinux."
    )


def set_up(version: str, say: Callable[[str], None]) -> Kernel:
    """Fetch what is missing of kernel `version`.

    :raises KernelUnavailable: something is missing; what was fetched so far is kept
    """
    suites = SUITES[known(version)]
    try:
        compile_init()
        try:
            archive = Archive(cache() / "apt", suites)
            packages = find_packages(archive, version)
        except KernelUnavailable as error:
            kernel = installed(version)
            if kernel is None:
                raise
            say(f"whether there is a newer one cannot be told: {error}")
            return kernel
        target = cache() / packages.release
        if not (target / "vmlinux").exists():
            _fetch(archive, packages, target, say)
    except OSError as error:
        raise KernelUnavailable(
            f"cannot write to {cache()} ({error.strerror or error}): make room there, or let XDG_CACHE_HOME name"
            " another directory; what was downloaded is kept."
        ) from None
    return _kept(target)


def _fetch(archive: Archive, packages: Packages, target: Path, say: Callable[[str], None]) -> None:
    wanted = list({package.name: package for package in (packages.image, packages.modules, packages.debug)}.values())
    fetched = sum(package.size for package in wanted)
    needed = fetched + KEPT
    say(f"{packages.release}: {fetched / 1e6:.0f} MB to download, at most {KEPT / 1e6:.0f} MB to keep in {target}")
    downloads = archive.downloads
    there = sum(path.stat().st_size for path in downloads.iterdir()) if downloads.exists() else 0
    free = shutil.disk_usage(cache()).free + there
    if free < needed:
        raise KernelUnavailable(
            f"{cache()} has room for {free / 1e6:.0f} MB, and {needed / 1e6:.0f} MB are needed for a while: make room,"
            " or let XDG_CACHE_HOME name another directory."
        )
    partial = cache() / f".{packages.release}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "modules").mkdir(parents=True)
        paths = [archive.download(package, say) for package in wanted]
        for path in paths:
            say(f"unpacking {path.name}")
            _unpack(path, partial, packages.release)
        for name in ("vmlinuz", "vmlinux"):
            if not (partial / name).exists():
                raise KernelUnavailable(
                    f"the packages of {packages.release} hold no {name}: give --image and --vmlinux."
                )
        partial.rename(target)
        for path in paths:
            path.unlink()
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # whatever went wrong; renamed, it is not there any more


def _unpack(package: Path, target: Path, release: str) -> None:
    """vmlinuz, vmlinux and the tree of modules, out of a package."""
    files = re.compile(rf".*/(vmlinu[zx])(-{re.escape(release)})?")
    modules = re.compile(rf".*lib/modules/{re.escape(release)}/(.*\.ko(\..*)?|modules\..*)")
    process = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process, tarfile.open(fileobj=process.stdout, mode="r|") as archive:
        for member in archive:
            if not member.isfile():
                continue
            if match := files.fullmatch(member.name):
                path = target / match[1]
            elif (match := modules.fullmatch(member.name)) and "/debug/" not in member.name:
                path = target / "modules" / match[1]
            else:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            contents = archive.extractfile(member)
            assert contents is not None
            with path.open("wb") as file:
                shutil.copyfileobj(contents, file, 1 << 20)
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
