# SPDX-License-Identifier: GPL-2.0-or-later
"""Building the library: a tree's mm/vma.c with its tools/testing/vma around it, and our shim.

Nothing is written into the tree.  Which fields and functions it has is read from its headers, so that a developer's
own tree builds as well.  Libraries are kept in the user's cache, named by what they were made from.
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

from rmaplab.kernel.errors import KernelUnavailable
from rmaplab.kernel.packages import Archive
from rmaplab.kernel.setup import cache
from rmaplab.kernel.versions import NATIVE, SUITES

HERE: Final = Path(__file__).parent
_NEEDED: Final = ("tools/testing/vma/vma_internal.h", "tools/testing/shared/maple-shim.c", "mm/vma.c", "mm/vma_exec.c")
_PARTS: Final = re.compile(
    r"[^/]*/(mm/vma[^/]*|lib/|include/|arch/x86/include/|tools/|Documentation/litmus-tests/|Makefile$)"
)
_SOURCES: Final = (
    "tools/testing/shared/maple-shim.c", "tools/testing/shared/linux.c", "tools/lib/slab.c", "tools/lib/find_bit.c",
    "tools/lib/bitmap.c", "tools/lib/hweight.c", "tools/lib/vsprintf.c",
)  # fmt: skip
_INCLUDED: Final = (
    "tools/testing/shared", "tools/testing/vma", "tools/include", "tools/arch/x86/include", "lib", "",
)  # fmt: skip
_OPTIONS: Final = (
    "-O2 -w -shared -fPIC -D_LGPL_SOURCE -DNUM_VMA_FLAG_BITS=64 -DNUM_MM_FLAG_BITS=64".split()
)
# What a tree has or lacks: a macro of native.c, the file that tells, and what to look for in it.
_FEATURES: Final = (
    ("HAVE_ANON_PGOFF", "include/linux/mm_types.h", "__vm_anon_pgoff_lo"),
    ("HAVE_KEEP_SOURCE", "mm/vma.h", "bool keep_source"),
    ("HAVE_BITMAP_MMAP", "mm/vma.h", "unsigned long len, vma_flags_t vma_flags, unsigned long pgoff"),
    ("HAVE_VMA_STATE_INIT", "mm/vma_init.c", "vma_state_init"),
)
# What tools/testing/shared/shared.mk would generate.
_GENERATED: Final = {
    "autoconf.h": '#include "bit-length.h"\n#define CONFIG_XARRAY_MULTI 1\n',
    "map-shift.h": "#define XA_CHUNK_SHIFT 3\n",
    "bit-length.h": "#define CONFIG_64BIT 1\n#define CONFIG_PHYS_ADDR_T_64BIT 1\n",
}


def sources(version: str, say: Callable[[str], None]) -> Path:
    """The tree of Debian's linux-source package of `version`, as much of it as is needed; fetched once.

    :raises KernelUnavailable: it cannot be had
    """
    if version not in NATIVE:
        raise KernelUnavailable(
            f"the VMA code of {version} is not built in user space: --version is one of {', '.join(NATIVE)}; or give"
            " --source."
        )
    target = cache() / "sources" / version
    if (target / "mm" / "vma.c").exists():
        return target
    archive = Archive(cache() / "apt", SUITES[version])
    package = archive.search(rf"^linux-source-{re.escape(version)}$")[f"linux-source-{version}"]
    say(f"linux-source-{version}: {package.size / 1e6:.0f} MB to download, about 200 MB to keep in {target}")
    path = archive.download(package, say)
    partial = target.with_name(f".{version}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        subprocess.run(["dpkg-deb", "-x", str(path), str(partial / "package")], check=True, capture_output=True)
        (tar,) = (partial / "package").rglob("linux-source-*.tar.xz")
        say(f"unpacking {tar.name}")
        with tarfile.open(tar) as packed:
            packed.extraction_filter = lambda member, _: member  # apt has checked it; and 3.11.2 knows no `filter`
            packed.extractall(partial, (member for member in packed if _PARTS.match(member.name)))
        (tree,) = (partial / name.name for name in partial.iterdir() if name.name.startswith("linux-source"))
        tree.rename(target)
        path.unlink()
    except (OSError, ValueError, tarfile.TarError, subprocess.CalledProcessError) as error:
        raise KernelUnavailable(f"{path.name} could not be unpacked ({error}): remove it and try again.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def release_of(tree: Path) -> str:
    """What the tree calls itself: "7.3.4"."""
    makefile = tree / "Makefile"
    text = makefile.read_text() if makefile.exists() else ""
    found = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) = *(\S*)$", text, re.MULTILINE))
    if "VERSION" not in found or "PATCHLEVEL" not in found:
        raise KernelUnavailable(f"{tree} is no tree of Linux's sources: its Makefile names no version.")
    return f"{found['VERSION']}.{found['PATCHLEVEL']}.{found.get('SUBLEVEL') or 0}{found.get('EXTRAVERSION', '')}"


def build(tree: Path) -> Path:
    """The library of a tree, compiled if the cache has none of the same sources.

    :raises KernelUnavailable: it is no such tree, something is missing, or it does not compile
    """
    missing = next((name for name in _NEEDED if not (tree / name).is_file()), None)
    if missing is not None:
        raise KernelUnavailable(
            f"{tree} has no {missing}: give a tree of Linux's sources from 7.2 on, whose VMA code builds in user space."
        )
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise KernelUnavailable("a C compiler is missing, which builds mm/vma.c: install gcc.")
    path = cache() / "native" / f"{release_of(tree)}-{_made_from(tree)}.so"
    if path.exists():
        return path
    scratch = path.with_suffix(f".{os.getpid()}")
    (scratch / "generated").mkdir(parents=True, exist_ok=True)
    try:
        for name, text in _GENERATED.items():
            (scratch / "generated" / name).write_text(text)
        have = [f"-D{name}" for name, file, what in _FEATURES if what in _text(tree / file)]
        include = [f"-I{scratch}", f"-I{HERE}", *(f"-I{tree / directory}" for directory in _INCLUDED)]
        files = [str(HERE / "native.c"), *(str(tree / name) for name in _SOURCES)]
        library = scratch / "native.so"
        command = [compiler, *_OPTIONS, *have, *include, "-o", str(library), *files, "-lurcu", "-lpthread"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            errors = [line for line in run.stderr.splitlines() if "error" in line or "cannot find" in line]
            raise KernelUnavailable(
                f"mm/vma.c of {tree} does not build in user space"
                f" ({(errors or run.stderr.splitlines() or ['no reason given'])[0]}): install gcc and liburcu-dev, or"
                " give a tree that is nearer to 7.3."
            )
        library.rename(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _made_from(tree: Path) -> str:
    """A digest of what is compiled, as far as anybody would change it."""
    digest = hashlib.sha256()
    files = [*sorted(tree.glob("mm/vma*")), *sorted(tree.glob("tools/testing/vma/**/*.h")), tree / "lib/maple_tree.c"]
    for file in [*files, HERE / "native.c", HERE / "shim.h"]:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
