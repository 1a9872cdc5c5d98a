# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's packages of any suite, on a machine that runs another: a package index of our own.

The mirrors are those that the machine's own apt sources name; the suites are the caller's.  Lists, cache and status
lie in a directory of ours, so nothing of the host changes, and no root is needed.  apt checks signatures against the
keyring that Debian installs, goes on with what was downloaded before, and the hash of each package is checked again.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from rmaplab.kernel.errors import KernelUnavailable

_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
_ARCHIVE: Final = re.compile(r"https?://\S*/(debian(?:-security)?)/?")
_NEEDED: Final = {"Package", "Version", "Size", "SHA256"}
# After the host's own configuration, so that its hooks do nothing here, and what it says of proxies holds.
_CONFIGURATION: Final = """\
Dir::Etc::sourcelist "{0}/sources.list";
Dir::Etc::sourceparts "-";
Dir::State "{0}/state";
Dir::State::status "{0}/status";
Dir::Cache "{0}/cache";
APT::Architecture "amd64";
APT::Architectures "amd64";
APT::Sandbox::User "root";
Acquire::Languages "none";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"""


class Package(msgspec.Struct, frozen=True):
    """A package as apt's index describes it; `size` in bytes."""

    name: str
    version: str
    size: int
    sha256: str


class Archive:
    """An index of some of Debian's suites.

    directory: where lists, cache and downloads are
    suites:    names as in Debian's archive ("sid", "trixie-backports", "bookworm-security")
    """

    def __init__(self, directory: Path, suites: Iterable[str]) -> None:
        """:raises KernelUnavailable: this is no machine with apt, or its sources name no Debian mirror"""
        for tool in ("apt-get", "apt-cache", "apt-config", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise KernelUnavailable(
                    f"kernels are fetched as Debian packages, and {tool} is not here: give --image and --vmlinux"
                    " instead."
                )
        self._suites: Final = tuple(suites)
        self._configuration: Final = directory / "apt.conf"
        self.downloads: Final = directory.parent / "downloads"
        for name in ("state/lists/partial", "cache/archives/partial"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        (directory / "status").touch()
        mirrors = _mirrors()
        lines = [
            f"deb [arch=amd64 signed-by={_KEYRING}] {mirrors[kind]} {suite} main"
            for suite in self._suites
            if (kind := "debian-security" if suite.endswith("-security") else "debian") in mirrors
        ]
        (directory / "sources.list").write_text("\n".join(lines) + "\n")
        self._configuration.write_text(_CONFIGURATION.format(directory))
        self._update = self._run("apt-get", "-q", "update")

    def _run(self, tool: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [tool, "-c", str(self._configuration), *arguments]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)

    def search(self, pattern: str) -> dict[str, Package]:
        """The packages whose names match a regular expression, by name; of each its highest version.

        :raises KernelUnavailable: there is none
        """
        found = self._run("apt-cache", "search", "--names-only", pattern).stdout.splitlines()
        names = [line.split()[0] for line in found if line.strip()]
        packages = {}
        if names:
            for record in self._run("apt-cache", "show", "--no-all-versions", *names).stdout.split("\n\n"):
                fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", record, re.MULTILINE))
                if fields.keys() >= _NEEDED:
                    name = fields["Package"]
                    packages[name] = Package(name, fields["Version"], int(fields["Size"]), fields["SHA256"])
        if not packages:
            raise KernelUnavailable(
                f"no package {pattern.strip('^$')} is in Debian's suites {', '.join(self._suites)}"
                f" ({_reason(self._update)}): give --image and --vmlinux instead, or try again."
            )
        return packages

    def download(self, package: Package, say: Callable[[str], None]) -> Path:
        """:raises KernelUnavailable: it did not come, or is not what the index says; what came is kept"""
        self.downloads.mkdir(parents=True, exist_ok=True)
        say(f"downloading {package.name} {package.version}, {package.size / 1e6:.0f} MB")
        run = self._run("apt-get", "-q", "download", f"{package.name}={package.version}", cwd=self.downloads)
        found = sorted(self.downloads.glob(f"{package.name}_*.deb"))
        if run.returncode or not found:
            raise KernelUnavailable(
                f"{package.name} could not be downloaded ({_reason(run)}): try again, it will be resumed."
            )
        path = found[-1]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != package.sha256:
            path.unlink()
            raise KernelUnavailable(
                f"{package.name} has another SHA-256 than apt's index says: it was removed, try again."
            )
        return path


def _reason(run: subprocess.CompletedProcess[str]) -> str:
    """The last line of complaint."""
    lines = [line for line in run.stderr.splitlines() if line.strip() and not line.startswith("W: Download is perf")]
    return lines[-1] if lines else "no reason given"


def _mirrors() -> Mapping[str, str]:
    """Where this machine gets Debian's packages: "debian" and, if named, "debian-security"."""
    run = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)"], capture_output=True, text=True, check=False
    )
    found = {match[1]: match[0] for line in run.stdout.splitlines() if (match := _ARCHIVE.fullmatch(line.strip()))}
    if "debian" not in found:
        raise KernelUnavailable(
            "the apt sources of this machine name no mirror of Debian: give --image and --vmlinux instead."
        )
    return found
