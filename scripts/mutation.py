# SPDX-License-Identifier: GPL-2.0-or-later
"""A mutation run: which changes of mm/, rmap/ and sync/locks.py does no check notice?

    python scripts/mutation.py --sample 80 --seed 1 -o build/mutation.json      (make test-mutation)

The changes are chosen at random among all that the operators of Cosmic Ray can make (arithmetic, comparisons,
conditions, constants, loops, exceptions), and among all calls that can be left out (a lock, say), which it has no
operator for.  mm/, rmap/ and sync/ are compiled, and Cosmic Ray's own runner changes sources in place and tries one
mutant at a time: so each goes into a copy of the sources here, which is run interpreted, and several copies are worked
at side by side.

A mutant is tried on what is most likely to notice it first: tests of its module, random histories, races, tests of
its folder, all others that have to do with it.  The first that fails, or takes much longer than without it, kills it.
What survives is written down as a difference, to be judged: does it change behaviour at all?

A mutant may loop for ever or eat all memory, and its tests start processes of their own.  scripts/bounded.py ends all
of them: when a stage is over, when the run is interrupted, and when it is killed.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, NamedTuple

import parso
from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names

from bounded import Bounded

ROOT: Final = Path(__file__).resolve().parent.parent
SUBJECTS: Final = ("mm/*.py", "rmap/*.py", "rmap/pictures/*.py", "sync/locks.py")
COPIED: Final = ("src", "tests", "docs", "README.md", "pyproject.toml")
SLOWER: Final = 5.0  # times that a stage may take what it takes without a mutant ...
LEAST: Final = 90.0  # ... or so many seconds, if that is more


class LeaveOutCall(Operator):  # type: ignore[misc]
    """A statement that is one call, and does nothing."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type == "atom_expr" and node.parent.type == "simple_stmt" and node.children[-1].type == "trailer":
            if node.children[-1].children[0].value == "(":
                yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        left = parso.parse("pass").children[0]
        left.prefix = node.get_first_leaf().prefix
        return left

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


class Mutant(NamedTuple):
    """One change: the `occurrence`-th that the operator can make to the file, which is at `line`."""

    path: str
    operator: str
    occurrence: int
    line: int


class Fate(NamedTuple):
    """What became of a mutant: `killed_by` a stage, or by none."""

    mutant: Mutant
    killed_by: str
    seconds: float
    difference: str


def operators() -> dict[str, Any]:
    found = {name: get_operator(name) for name in operator_names()}
    plain = {name: kind() for name, kind in found.items() if not kind.arguments()}
    return {**plain, "rmaplab/LeaveOutCall": LeaveOutCall()}


def mutants_of(path: str) -> dict[tuple[int, int], list[Mutant]]:
    """All changes of a file by position, but those of annotations, which nobody evaluates."""
    tree = parso.parse((ROOT / path).read_text())
    notes = [(note.start_pos, note.end_pos) for note in annotations(tree)]
    found: dict[tuple[int, int], list[Mutant]] = {}
    for name, operator in operators().items():
        occurrence = 0
        for node in ast_nodes(tree):
            for start, _ in operator.mutation_positions(node):
                if not any(first <= start < last for first, last in notes):
                    found.setdefault(start, []).append(Mutant(path, name, occurrence, start[0]))
                occurrence += 1
    return found


def annotations(tree: Any) -> Iterator[Any]:
    for node in ast_nodes(tree):
        if node.type == "annassign":
            yield node.children[1]
        elif node.type == "tfpdef":
            yield node.children[2]
        elif node.type == "funcdef" and node.annotation is not None:
            yield node.annotation


def sample(count: int, seed: int, files: Sequence[str]) -> list[Mutant]:
    """Positions at random, and one change of each at random."""
    positions = [changes for path in files for changes in mutants_of(path).values()]
    dice = random.Random(seed)
    return [dice.choice(changes) for changes in dice.sample(positions, min(count, len(positions)))]


def subjects(patterns: Sequence[str]) -> list[str]:
    source = ROOT / "src/rmaplab"
    files = [file for pattern in SUBJECTS for file in sorted(source.glob(pattern))]
    named = [str(file.relative_to(ROOT)) for file in files if file.stem not in ("__init__", "errors")]
    return [path for path in named if not patterns or any(pattern in path for pattern in patterns)]


# Stages

Stage = tuple[str, list[str]]  # its name, and what is run

_PYTEST: Final = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
# Scenarios with one operation, and threads, with one preemption: a tenth of what `rmaplab race` tries.
_RACES: Final = [
    "-c",
    "import sys; from rmaplab.check.race import run; from rmaplab.check.scenarios import names;"
    " from rmaplab.rmap import load;"
    " wanted = [name for name in names() if ' + ' not in name or '/ reuse +' in name or '/ copy +' in name];"
    " sys.exit(not all(run(name, load(d), preemptions=1).holds for d in sys.argv[1:] for name in wanted))",
]
_KERNEL: Final = ("tests/kernel/test_answers.py", "tests/kernel/test_random_answers.py")
_WORK: Final = ("tests/measure/test_same_figures.py", "tests/check/test_announced_steps.py")
_DRAWN: Final = ("tests/explore", "tests/library")
_REST: Final = ("tests/check/test_lockstep.py", "tests/check/test_coverage.py", "tests/trace/test_recordings.py",
                "tests/kernel/test_takeover.py", "tests/workloads", *_DRAWN)  # fmt: skip


def stages(path: str) -> list[Stage]:
    """What is to notice a change of this file, the quickest and likeliest first."""
    folder, stem = Path(path).parent.name, Path(path).stem
    own = sorted(str(f.relative_to(ROOT)) for f in (ROOT / "tests" / folder).glob(f"test_{stem}*.py"))
    verify = ["-m", "rmaplab", "verify", "--jobs", "1"]
    raced = [stem] if stem in ("anon_vma_lazy", "pte_chain", "lineage") else ["anon_vma", "cow_context"]
    answered = folder == "mm" or stem.startswith(("anon_vma", "interval_tree"))
    return [
        *([(f"tests of {stem}", [*_PYTEST, *own])] if own else []),
        *([("pictures", [*_PYTEST, *_DRAWN])] if "picture" in path else []),
        *([("answers of kernels", [*_PYTEST, *_KERNEL, "-k", "the_model"])] if answered else []),
        ("figures and steps", [*_PYTEST, *_WORK]),
        ("verify", [*verify, "--steps", "1500", "--seed", "5"]),
        ("tests of rmap", [*_PYTEST, "tests/rmap", "tests/check/test_ksm_histories.py"]),
        ("tests of mm", [*_PYTEST, "tests/mm", "-k", "not running"]),  # without a running kernel beside it
        ("verify, other rules", [*verify, "--steps", "6000", "--seed", "6", "--profile", "6.12"]),
        (f"race of {' and '.join(raced)}", [*_RACES, *raced]),
        ("the rest", [*_PYTEST, *_REST]),
    ]


class Workshop:
    """A copy of the sources, in which one mutant after the other is tried."""

    def __init__(self, directory: Path) -> None:
        self.directory: Final = directory
        self.bounded: Final = Bounded()
        self.writes = 0
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, directory / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
            else:
                shutil.copy(source, directory / name)

    def run(self, stage: Stage, limit: float) -> tuple[bool, float]:
        """Did it pass, and how long did it take?"""
        environment = {**os.environ, "PYTHONPATH": str(self.directory / "src"), "PYTHONHASHSEED": "0"}
        begun = time.monotonic()
        passed = self.bounded.run([sys.executable, *stage[1]], limit, self.directory, environment) == 0
        return passed, time.monotonic() - begun

    def write(self, path: str, text: str) -> None:
        """With a time of its own, by which compiled code is told from what it was compiled of."""
        file = self.directory / path
        file.write_text(text)
        self.writes += 1
        when = 1_000_000_000 + self.writes
        os.utime(file, (when, when))

    def try_out(self, mutant: Mutant, limits: dict[str, float], otherwise: float) -> Fate:
        original = (self.directory / mutant.path).read_text()
        changed = mutate_code(original, operators()[mutant.operator], mutant.occurrence)
        lines = difflib.unified_diff(original.splitlines(), changed.splitlines(), lineterm="", n=1)
        difference = "\n".join(list(lines)[2:])
        begun = time.monotonic()
        killed_by = ""
        self.write(mutant.path, changed)
        for stage in stages(mutant.path):
            limit = limits.get(stage[0], otherwise)
            passed, seconds = self.run(stage, limit)
            if not passed:
                killed_by = stage[0] + (" (too slow)" if seconds >= limit else "")
                break
        self.write(mutant.path, original)
        return Fate(mutant, killed_by, time.monotonic() - begun, difference)


def limits(workshop: Workshop, paths: Sequence[str]) -> dict[str, float]:
    """How long each stage may take; all of them pass without a mutant."""
    found: dict[str, float] = {}
    for stage in {stage[0]: stage for path in paths for stage in stages(path)}.values():
        passed, seconds = workshop.run(stage, 3600.0)
        if not passed:
            raise SystemExit(f"{stage[0]} fails without any mutant: python {' '.join(stage[1])}")
        found[stage[0]] = max(LEAST, SLOWER * seconds)
        print(f"{seconds:7.1f} s  {stage[0]}", file=sys.stderr, flush=True)
    return found


def known(output: Path, seed: int) -> list[Fate]:
    """What an earlier run with the same seed has found."""
    told = json.loads(output.read_text()) if output.exists() else {"seed": None}
    if told["seed"] != seed:
        return []
    return [Fate(Mutant(*fate[0]), *fate[1:]) for fate in told["tried"]]


def try_all(
    chosen: Sequence[Mutant],
    fates: list[Fate],
    workshops: Sequence[Workshop],
    pool: ThreadPoolExecutor,
    given: argparse.Namespace,
) -> None:
    """Add what becomes of each mutant to `fates`, and tell; the output is written after each."""
    allowed = {} if given.limit else limits(workshops[0], [mutant.path for mutant in chosen])
    shops: SimpleQueue[Workshop] = SimpleQueue()
    for shop in workshops:
        shops.put(shop)

    def try_one(mutant: Mutant) -> Fate:
        shop = shops.get()
        try:
            return shop.try_out(mutant, allowed, given.limit)
        finally:
            shops.put(shop)

    for done in as_completed([pool.submit(try_one, mutant) for mutant in chosen]):
        fate = done.result()
        fates.append(fate)
        given.output.write_text(json.dumps({"seed": given.seed, "tried": fates}, indent=1))
        where = f"{fate.mutant.path}:{fate.mutant.line} {fate.mutant.operator}"
        print(f"{len(fates):4} {fate.killed_by or 'SURVIVED'}, {fate.seconds:.0f} s: {where}", flush=True)
        if not fate.killed_by:
            print(fate.difference, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=80, metavar="N", help="mutants to try")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="random seed of the sample")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="mutants tried side by side")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="files whose path contains this")
    parser.add_argument(
        "--limit", type=float, default=0.0, metavar="SECONDS",
        help="give each stage so long, and take it for granted that all pass without a mutant (default: measure)",
    )  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, default=Path("build/mutation.json"), metavar="F")
    given = parser.parse_args()
    chosen = sample(given.sample, given.seed, subjects(given.only))
    if not chosen:
        raise SystemExit(f"no file's path contains {' or '.join(given.only)}, so there is nothing to change")
    given.output.parent.mkdir(parents=True, exist_ok=True)
    fates = known(given.output, given.seed)  # of a run that was interrupted
    chosen = [mutant for mutant in chosen if mutant not in [fate.mutant for fate in fates]]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="rmaplab-mutation-") as scratch:
        workshops = [Workshop(Path(scratch, str(number))) for number in range(given.jobs)]
        pool = ThreadPoolExecutor(given.jobs)
        try:
            try_all(chosen, fates, workshops, pool, given)
        finally:  # interrupted, too: what is under way ends, and nothing else begins
            for shop in workshops:
                shop.bounded.close()
            pool.shutdown(cancel_futures=True)
    killed = sum(bool(fate.killed_by) for fate in fates)
    print(f"{killed} of {len(fates)} killed; judge the others: docs/verification.md says how")


if __name__ == "__main__":
    main()
