# SPDX-License-Identifier: GPL-2.0-or-later
"""Compiles mm/, rmap/, sync/ and a few modules more with mypyc where that is possible; pyproject.toml says the rest.

The compiled code is the interpreted code: where there is no C compiler, or it fails, the Python files
are installed as they are and everything works, only slower.  The environment variable RMAPLAB_COMPILE
decides otherwise: 0 does not try, 1 turns a failure into an error.
"""

from __future__ import annotations

import ast
import os
import re
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
MODULES = ("check/truth", "check/walks", "check/obligations", "check/histories", "measure/collect", "trace/batches",
           "trace/calls", "trace/play", "trace/reduce", "trace/spaces", "trace/timeline")
# No code that runs often; and mypyc knows no subclass of ValueError, nor keeps what lists of a msgspec.Struct hold.
LEFT_ALONE = {"__init__", "errors", "picture"}


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


def docstrings(file: Path) -> dict[tuple[str, str], str]:
    """Docstrings of a source file, by class ("": none) and function ("": the class, or the module, itself)."""
    tree = ast.parse(file.read_text())
    found = {("", ""): ast.get_docstring(tree) or ""}
    for node in tree.body:
        members: list[tuple[str, ast.stmt]] = [("", node)]
        if isinstance(node, ast.ClassDef):
            found[node.name, ""] = ast.get_docstring(node) or ""
            members = [(node.name, member) for member in node.body]
        for owner, member in members:
            if isinstance(member, ast.FunctionDef):
                found[owner, member.name] = ast.get_docstring(member) or ""
    return found


def keep_docstrings(generated: Path) -> None:
    """Put docstrings into a C file that mypyc wrote, behind the signatures that it writes alone: it has no option for
    them, and without them help() says nothing of compiled code."""
    module = re.fullmatch(r"__native_(rmaplab\w+)\.c", generated.name)
    if module is None:
        return
    path = Path("src", *module[1].split("___"))
    known = docstrings(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))
    classes = sorted({owner for owner, _ in known}, key=len)
    owner = ""

    def text(key: tuple[str, str]) -> str:
        text = known.get(key, "").encode()
        return "".join(chr(c) if 32 <= c < 127 and c not in b'"\\?' else f"\\{c:03o}" for c in text)

    lines = []
    for line in generated.read_text().splitlines(keepends=True):
        if table := re.match(r"static PyMethodDef (\w+?)_methods\[\] = {", line):
            owner = next((name for name in reversed(classes) if table[1].endswith(f"___{name}")), "")
        elif doc := re.search(r'PyDoc_STR\("(\w+)\(.*?\\n--\\n\\n(?="\))', line):
            key = (doc[1], "") if ".tp_doc" in line else (owner, doc[1])
            line = line[: doc.end()] + text(key) + line[doc.end() :]
        elif "NULL, /* docstring */" in line:
            line = f'    PyDoc_STR("{text(("", ""))}"),\n'
        lines.append(line)
    generated.write_text("".join(lines))


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
        made = mypycify(modules, opt_level="1", debug_level="0", multi_file=True)
    except SystemExit:
        if WISH == "1":
            raise
        say("mypyc refused the code (its complaints stand above); installing the interpreted code")
        return []
    for source in {source for extension in made for source in extension.sources}:
        keep_docstrings(Path(source))
    return made


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildOrInterpret})
