# SPDX-License-Identifier: GPL-2.0-or-later
"""Compiles mm/, rmap/, sync/ and a few modules more with mypyc where that is possible; pyproject.toml says the rest.

The compiled code is the interpreted code: where there is no C compiler, or it fails, the Python files
are installed as they are and everything works, only slower.  The environment variable RMAPLAB_COMPILE
decides otherwise: 0 does not try, 1 turns a failure into an error.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_ext import build_ext

WISH = os.environ.get("RMAPLAB_COMPILE", "")
PACKAGES = ("sync", "mm", "rmap")
MODULES = ("check/truth", "check/walks", "check/histories", "trace/play")
LEFT_ALONE = {"__init__", "errors"}  # no code that runs often, and mypyc knows no subclass of ValueError


def say(sentence: str) -> None:
    print(f"rmaplab: {sentence}", file=sys.stderr)


def compiler_works() -> bool:
    """Can an extension module be compiled and linked here (compiler and Python's headers present)?"""
    cc = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "probe.c")
        source.write_text("#include <Python.h>\nint probe;\n")
        include = sysconfig.get_path("include")
        result = source.with_suffix(".so")
        command = [*cc.split(), "-shared", "-fPIC", f"-I{include}", str(source), "-o", str(result)]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            return False


class BuildOrInterpret(build_ext):
    """build_ext that installs the interpreted code where the C compiler fails half way."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:
            if WISH == "1":
                raise
            say(f"compiling failed ({error}); installing the interpreted code")
            for output in self.get_outputs():
                Path(output).unlink(missing_ok=True)
            self.extensions = []

    def build_extensions(self) -> None:
        """Compile the C files of one extension side by side; setuptools takes them one after the other."""
        one_by_one = self.compiler.compile

        def side_by_side(sources: list[str], **how: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return [o for objects in pool.map(lambda s: one_by_one([s], **how), sources) for o in objects]

        self.compiler.compile = side_by_side
        super().build_extensions()


def extensions() -> list[Any]:
    """The extension modules to build, none where the interpreted code shall be installed."""
    if WISH == "0" or not {"bdist_wheel", "build_ext", "build", "editable_wheel"} & set(sys.argv):
        return []
    if not compiler_works():
        if WISH == "1":
            raise SystemExit("rmaplab: RMAPLAB_COMPILE=1, but no C compiler that finds Python.h")
        say("no C compiler that finds Python.h; installing the interpreted code")
        return []
    from mypyc.build import mypycify

    files = [file for package in PACKAGES for file in sorted(Path("src/rmaplab", package).rglob("*.py"))]
    modules = [str(file) for file in files if file.stem not in LEFT_ALONE]
    modules += [f"src/rmaplab/{module}.py" for module in MODULES]
    try:
        return mypycify(modules, opt_level="1", debug_level="0", multi_file=True)
    except SystemExit:
        if WISH == "1":
            raise
        say("mypyc refused the code (its complaints stand above); installing the interpreted code")
        return []


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildOrInterpret})
