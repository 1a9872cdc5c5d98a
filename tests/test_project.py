# SPDX-License-Identifier: GPL-2.0-or-later
"""What the project promises about itself: how it is built, installed and laid out."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import rmaplab

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "rmaplab"
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "bench").rglob("*.py")])


def names(files: list[Path]) -> list[str]:
    return [str(file.relative_to(ROOT)) for file in files]


def compiler_works() -> bool:
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    header = Path(sysconfig.get_path("include"), "Python.h")
    return shutil.which(compiler) is not None and header.exists()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a build needs, copied away so that nothing is left behind in the source tree."""
    shutil.copytree(
        ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__")
    )
    for name in ("pyproject.toml", "setup.py", "README.md", "COPYING"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def build(checkout: Path, **environment: str) -> tuple[zipfile.ZipFile, str]:
    """Builds a wheel; returns it and what the build said."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps", "-w", "wheel", "."],
        cwd=checkout,
        env={**os.environ, "RMAPLAB_COMPILE": "", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    (wheel,) = (checkout / "wheel").glob("*.whl")
    return zipfile.ZipFile(wheel), done.stdout + done.stderr


def modules(wheel: zipfile.ZipFile, suffix: str) -> set[str]:
    return {name.split(".")[0] for name in wheel.namelist() if name.endswith(suffix)}


def run_from(wheel: zipfile.ZipFile, where: Path, code: str) -> str:
    """What `code` prints when the wheel's contents come first."""
    wheel.extractall(where)
    environment = {**os.environ, "PYTHONPATH": str(where)}
    return subprocess.check_output(
        [sys.executable, "-c", code], cwd=where, env=environment, text=True
    ).strip()


INFO = "import rmaplab; print(rmaplab.build_info())"


def test_the_installed_build_is_compiled_where_a_compiler_is() -> None:
    if Path(rmaplab.__file__).is_relative_to(ROOT / "src"):
        assert rmaplab.build_info() == "interpreted"
    elif compiler_works() and os.environ.get("RMAPLAB_COMPILE") != "0":
        assert rmaplab.build_info() == "compiled"


def test_without_a_compiler_the_same_code_is_installed_interpreted(checkout: Path, tmp_path: Path) -> None:
    wheel, said = build(checkout, CC="/bin/false")
    assert "rmaplab: no C compiler" in said
    assert not modules(wheel, ".so")
    assert modules(wheel, ".py") >= {
        f"rmaplab/{p.relative_to(PACKAGE).with_suffix('')}" for p in PACKAGE.rglob("*.py")
    }
    assert run_from(wheel, tmp_path / "site", INFO) == "interpreted"


def test_a_compiler_that_fails_half_way_leaves_the_interpreted_code(checkout: Path, tmp_path: Path) -> None:
    if not compiler_works():
        pytest.skip("no C compiler here")
    compiler = tmp_path / "cc"
    compiler.write_text(
        '#!/bin/sh\ncase "$*" in *__native*) echo "out of memory" >&2; exit 1;; esac\nexec cc "$@"\n'
    )
    compiler.chmod(0o755)
    wheel, said = build(checkout, CC=str(compiler))
    assert "rmaplab: compiling failed" in said
    assert not modules(wheel, ".so")
    assert run_from(wheel, tmp_path / "site", INFO) == "interpreted"


def test_a_failure_to_compile_is_an_error_where_it_was_asked_for(checkout: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        build(checkout, CC="/bin/false", RMAPLAB_COMPILE="1")


def test_compiling_can_be_switched_off_and_every_file_is_installed(checkout: Path) -> None:
    wheel, _ = build(checkout, RMAPLAB_COMPILE="0")
    assert not modules(wheel, ".so")
    files = {file for file in PACKAGE.rglob("*") if file.is_file() and file.suffix not in (".pyc", ".so")}
    assert {f"rmaplab/{file.relative_to(PACKAGE)}" for file in files} - set(wheel.namelist()) == set()


@pytest.mark.parametrize("file", SOURCES, ids=names(SOURCES))
def test_a_file_says_its_licence_and_what_it_is(file: Path) -> None:
    text = file.read_text()
    assert text.startswith("# SPDX-License-Identifier: GPL-2.0-or-later\n")
    assert ast.get_docstring(ast.parse(text)), "a file opens with a docstring: what it models, its invariants"


# From the bottom up; a folder uses those below it, and the files beside the folders use only each other.
FOLDERS = (
    "sync", "mm", "rmap", "trace", "workloads", "check", "measure", "explore", "kernel", "sweep", "library", "commands",
)  # fmt: skip
BESIDE = {"errors", "output", "printable", "pages", "prose", "terminal", "verdict", "version"}
FRONT_DOORS = {"rmaplab", "rmaplab.__main__"}  # which lead to everything


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in PACKAGE.rglob("*.py")}


def imports(file: Path) -> set[str]:
    """Modules of rmaplab that `file` imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                found.add(below if below in MODULES else node.module)
    return found & MODULES.keys()


def height(module: str) -> int:
    """Which floor a module is on."""
    folder = module.split(".")[1]
    return -1 if folder in BESIDE else FOLDERS.index(folder)


@pytest.mark.parametrize("module", sorted(MODULES.keys() - FRONT_DOORS - {"rmaplab.example"}))
def test_arrows_point_down(module: str) -> None:
    for used in imports(MODULES[module]):
        assert used not in FRONT_DOORS, f"{module} imports the front door"
        assert height(used) <= height(module), f"{module} reaches up to {used}"


def test_no_file_needs_itself() -> None:
    arrows = {module: imports(file) - FRONT_DOORS for module, file in MODULES.items() if module not in FRONT_DOORS}
    TopologicalSorter(arrows).prepare()  # raises CycleError, which names the files


@pytest.mark.parametrize("lock", ["requirements-dev.lock", "requirements-mutation.lock"])
def test_development_is_pinned_by_name_and_version_alone(lock: str) -> None:
    for line in (ROOT / lock).read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line


def site(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Builds the documentation; a link that leads nowhere ends it with status 1."""
    words = ["-q", "-W", "--keep-going", "-b", "html", "-c", str(ROOT / "docs"), str(source), str(target)]
    return subprocess.run([sys.executable, "-m", "sphinx", *words], capture_output=True, text=True, check=False)


def test_the_site_is_built_and_every_link_in_it_leads_somewhere(tmp_path: Path) -> None:
    built = site(ROOT / "docs", tmp_path / "html")
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "html" / "index.html").exists()


@pytest.mark.parametrize("link", ["[a page](nowhere.md)", "[a file](../src/nowhere.py)", "[a heading](#nowhere)"])
def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path, link: str) -> None:
    (tmp_path / "index.md").write_text(f"# Top\n\n{link}\n")
    assert site(tmp_path, tmp_path / "html").returncode == 1


def test_links_of_the_readme_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (ROOT / link).exists(), f"{page.name}: {link}"
