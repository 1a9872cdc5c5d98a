# SPDX-License-Identifier: GPL-2.0-or-later
"""Real programs in a guest: their images, and the moments at which their state is taken.

An image is an ext4 file system made of Debian packages: a program, all that its package depends on, and a shell.
apt finds and fetches them as for a machine on which nothing is installed; they are unpacked, not installed (no
maintainer script runs), so no root is needed.  What else a system would have (users, /bin/sh) is written here.
Where a program has to set something up once (initdb), a guest does it when the image is made.  An image is in the
user's cache whole or not at all, named by what it was made from, with the list of its packages beside it.

guest/userland/NAME.sh runs the program under load, and says on the wire when a moment has come.  The guest is
stopped as soon as that is heard, in the middle of whatever its processes do, and goes on afterwards.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import msgspec

from rmaplab.kernel.errors import GuestError, KernelUnavailable
from rmaplab.kernel.guest import Guest
from rmaplab.kernel.modules import DISK, MODULES, read
from rmaplab.kernel.setup import Kernel, cache, compile_init

SCRIPTS: Final = Path(__file__).parent / "guest" / "userland"
MEMORY: Final = 1024  # MiB of a guest
_ROOM: Final = 256  # MiB that an image has beyond what is in it; what is never written takes no space
_BASE: Final = ("dash", "coreutils")
_RECIPE: Final = 1  # to be counted up when images are made in another way
_LEFT_OUT: Final = re.compile(r"usr/share/(doc|man|locale|info|lintian|bug|debconf)/.")
_MERGED: Final = ("bin", "sbin", "lib", "lib64")  # of / with those of /usr
_PATIENCE: Final = 300.0  # seconds until a moment has to come
_ENVIRONMENT: Final = ("PATH=/usr/sbin:/usr/bin", "HOME=/tmp", "LANG=C.UTF-8")
_USERS: Final = {"root": 0, "www-data": 33, "postgres": 500, "nobody": 65534}


class Program(msgspec.Struct, frozen=True):
    """What runs in a guest.

    packages: Debian packages that bring it and what loads it
    moments:  what it does at moments 1, 2, ... of its script
    prepares: the script has something to do when the image is made
    mergeable: KSM may merge its memory
    """

    name: str
    packages: tuple[str, ...]
    moments: tuple[str, ...]
    prepares: bool = False
    mergeable: bool = False


PROGRAMS: Final = {
    program.name: program
    for program in (
        Program(
            "redis", ("redis-server", "redis-tools"),
            ("redis-benchmark at work", "0.3 s into BGSAVE", "BGSAVE with memory short"),
        ),
        Program(
            "postgresql", ("postgresql", "postgresql-contrib"),
            ("pgbench with 24 clients", "2 s later", "2 s later, memory short"), prepares=True,
        ),
        Program(
            "apache", ("apache2-bin", "apache2-utils", "libapache2-mod-php"),
            ("ab with 24 clients, KSM at work", "after a graceful restart", "with memory short"), mergeable=True,
        ),
        Program(
            "compiler", ("gcc", "libc6-dev", "make"),
            ("make -j3", "1.3 s later", "3 s later"),
        ),
    )
}  # fmt: skip


class Package(msgspec.Struct, frozen=True):
    """A package that apt would fetch: file name, bytes."""

    file: str
    size: int


def images() -> Path:
    """Where images are kept."""
    return cache().parent / "userland"


def _made_from(program: Program) -> str:
    digest = hashlib.sha256(repr((program.packages, program.prepares, _BASE, _RECIPE)).encode())
    for name in ("common", program.name):
        digest.update((SCRIPTS / f"{name}.sh").read_bytes())
    return digest.hexdigest()[:12]


def image(program: Program, kernel: Kernel, say: Callable[[str], None]) -> Path:
    """The program's image, made if it is not in the cache.

    :raises KernelUnavailable: it cannot be made; the message says why
    """
    path = images() / f"{program.name}-{_made_from(program)}.img"
    if path.exists():
        return path
    for tool, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg"), ("mke2fs", "e2fsprogs")):
        if _tool(tool) is None:
            raise KernelUnavailable(
                f"{tool} is missing, which the image of {program.name} is made with: install {package} (of a Debian"
                " system, whose packages it is made of)."
            )
    try:
        images().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{program.name}-", dir=images()) as temporary:
            partial = _make(program, Path(temporary), kernel, say)
            for old in images().glob(f"{program.name}-*.img"):
                old.unlink()
            partial.rename(path)
    except OSError as error:
        raise KernelUnavailable(f"the image of {program.name} cannot be made: {error}.") from None
    return path


def _tool(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _make(program: Program, directory: Path, kernel: Kernel, say: Callable[[str], None]) -> Path:
    apt = Apt(directory, images() / "packages")
    wanted = apt.closure((*_BASE, *program.packages))
    megabytes = sum(package.size for package in wanted) / 1e6
    say(
        f"{program.name}: an image of {len(wanted)} packages, {megabytes:.0f} MB to download (less what is there),"
        f" about {4 * megabytes:.0f} MB to keep in {images()}; takes about"
        f" {10 + megabytes / 3 + 60 * program.prepares:.0f} s"
    )
    tree = directory / "tree"
    _make_tree(program, tree)
    for path in apt.fetch((*_BASE, *program.packages)):
        _unpack(path, tree)
    sh = tree / "usr/bin/sh"
    if not sh.is_symlink():
        sh.symlink_to("dash")
    partial = directory / "image"
    used = sum(path.lstat().st_size + 4096 for path in tree.rglob("*") if not path.is_dir())
    run = subprocess.run(
        [
            _tool("mke2fs") or "mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-E",
            "root_owner=0:0", "-d", str(tree), str(partial), f"{(used >> 20) * 11 // 10 + _ROOM}M",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if run.returncode:
        raise KernelUnavailable(
            f"the image of {program.name} cannot be made: {(run.stderr.strip().splitlines() or ['mke2fs failed'])[-1]}."
        )
    if program.prepares:
        say(f"{program.name} sets itself up, in a guest")
        with _running(program, kernel, partial, "prepare", keep=True) as guest:
            _hear(guest, program)
            guest.settle_disk()
    (images() / f"{program.name}.txt").write_text("".join(f"{package.file}\n" for package in wanted))
    return partial


class Apt:
    """apt as on a machine on which nothing is installed.

    directory: for what it needs meanwhile
    archives:  where packages are kept
    """

    def __init__(self, directory: Path, archives: Path) -> None:
        self._archives: Final = archives
        self._empty: Final = directory / "archives"
        (archives / "partial").mkdir(parents=True, exist_ok=True)
        status = directory / "status"
        status.touch()
        options = {
            "Dir::State::status": status, "Dir::Cache::archives": f"{archives}/", "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "", "Debug::NoLocking": 1, "APT::Install-Recommends": 0,
            "APT::Sandbox::User": "root",
        }  # fmt: skip
        self._command: Final = ["apt-get", "-q", "-y", *(f"-o{name}={value}" for name, value in options.items())]

    def closure(self, names: tuple[str, ...]) -> list[Package]:
        """What would be installed.  (apt does not name what it has already, so it is shown none of that.)"""
        lines = self._run(f"-oDir::Cache::archives={self._empty}/", "--print-uris", "install", *names).splitlines()
        found = [re.match(r"'[^']*' (\S+) (\d+)", line) for line in lines]
        return [Package(match[1], int(match[2])) for match in found if match]

    def fetch(self, names: tuple[str, ...]) -> list[Path]:
        """The packages themselves; apt goes on with what is there, and checks their hashes."""
        paths = [self._archives / package.file for package in self.closure(names)]
        self._run("--download-only", "install", *names)
        missing = [path.name for path in paths if not path.exists()]
        if missing:
            raise KernelUnavailable(f"apt did not fetch {missing[0]}: try again, it will be resumed.")
        return paths

    def _run(self, *arguments: str) -> str:
        run = subprocess.run([*self._command, *arguments], capture_output=True, text=True, check=False)
        if run.returncode:
            reason = next((line for line in run.stderr.splitlines() if line.startswith("E:")), "no reason given")
            raise KernelUnavailable(
                f"apt cannot fetch packages ({reason.removeprefix('E: ')}): try again (it will be resumed), or run"
                " `apt-get update`."
            )
        return run.stdout


def _make_tree(program: Program, tree: Path) -> None:
    """What no package brings."""
    for name in ("dev", "proc", "sys", "tmp", "run", "root", "rmaplab", "etc", "var/lib"):
        (tree / name).mkdir(parents=True)
    for name in _MERGED:
        (tree / "usr" / name).mkdir(parents=True)
        (tree / name).symlink_to(f"usr/{name}")
    (tree / "var/run").symlink_to("/run")
    etc = tree / "etc"
    (etc / "passwd").write_text("".join(f"{name}:x:{id}:{id}::/tmp:/bin/sh\n" for name, id in _USERS.items()))
    (etc / "group").write_text("".join(f"{name}:x:{id}:\n" for name, id in _USERS.items()))
    (etc / "hosts").write_text("127.0.0.1 localhost\n")
    for name in ("common", program.name):
        shutil.copy(SCRIPTS / f"{name}.sh", tree / "rmaplab")


def _unpack(package: Path, tree: Path) -> None:
    """A package's files, with /bin and the like in /usr, and without what only people read."""
    process = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
        archive.extraction_filter = lambda member, _: member  # apt has checked it; and 3.11.2 knows no `filter`
        for member in archive:
            name = _merged(member.name)
            if _LEFT_OUT.match(name) or not (member.isreg() or member.issym() or member.islnk()):
                continue
            member.name = name
            member.linkname = _merged(member.linkname) if member.islnk() else member.linkname
            member.mode |= 0o600
            archive.extract(member, tree)
    if process.wait():
        raise KernelUnavailable(f"{package.name} could not be unpacked: remove {package} and try again.")


def _merged(name: str) -> str:
    name = name.removeprefix("./")
    return f"usr/{name}" if name.split("/")[0] in _MERGED else name


@contextmanager
def _running(program: Program, kernel: Kernel, disk: Path, what: str, keep: bool = False) -> Iterator[Guest]:
    modules = {} if kernel.modules is None else read(kernel.modules, (*MODULES, *DISK))
    guest = Guest(kernel.image, compile_init(), modules, memory=MEMORY, disk=disk, keep=keep)
    with guest:
        guest.enter_userland()
        script = f"/rmaplab/{program.name}.sh"
        guest.start("/bin/sh", script, what, environment=_ENVIRONMENT, mergeable=program.mergeable)
        yield guest


def _hear(guest: Guest, program: Program) -> int:
    heard = guest.hear(_PATIENCE)
    if heard < 0:
        raise GuestError(f"{program.name} failed in the guest; its console says:\n{guest.console()[-2000:]}")
    return heard


@contextmanager
def running(program: Program, kernel: Kernel, say: Callable[[str], None]) -> Iterator[Iterator[tuple[Guest, str]]]:
    """A guest in which the program works: yields its moments, at each of which the guest stands still.

    :raises KernelUnavailable: the image cannot be made, or the guest not started
    :raises GuestError: the program failed in it
    """
    disk = image(program, kernel, say)

    def moments(guest: Guest) -> Generator[tuple[Guest, str], None, None]:
        for number, what in enumerate(program.moments, 1):
            heard = _hear(guest, program)
            with guest.stopped():
                if heard != number:
                    raise GuestError(f"{program.name} says that it is moment {heard}, and {number} was to come")
                say(f"{program.name}: {what} ({time.monotonic() - started:.0f} s)")
                yield guest, what

    say(f"{program.name}: starting a guest of {MEMORY} MiB; {len(program.moments)} moments, about 30 to 60 s")
    started = time.monotonic()
    with _running(program, kernel, disk, "work") as guest:
        with closing(moments(guest)) as all_moments:
            yield all_moments
