#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel's rules change, over workloads and recordings: `scripts/kernels_side_by_side.py 6.12 7.3`.

Each side is a profile, or a profile with one rule turned over: `7.3` and `7.3/clone_reverses`.  All histories that
come with rmaplab run on both, with `anon_vma` and `cow_context`; the tables are Markdown, on stdout.  The figures are
counts, and the same on every machine.

--large-folios N: faults allocate folios of up to 2**N pages
--rules: which rule makes which difference: each rule in which the sides differ, turned over by itself on the first
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import rmaplab as rl
from rmaplab.measure.result import Comparison
from rmaplab.mm.profile import PROFILES, Profile
from rmaplab.trace.history import History, read_history
from rmaplab.workloads import FAMILIES

RECORDINGS: Final = Path(rl.__file__).parent / "data" / "recordings"
DESIGNS: Final = ["anon_vma", "cow_context"]
ROOT_LOCK: Final = "anon_vma root rwsem"


def side(text: str) -> Profile:
    """The profile that `text` names, with the rule behind "/" turned over."""
    name, _, rule = text.partition("/")
    if name not in PROFILES or (rule and not isinstance(getattr(PROFILES[name], rule, None), bool)):
        raise argparse.ArgumentTypeError(f"{text!r} is no profile ({', '.join(PROFILES)}), nor one with /RULE")
    profile = PROFILES[name]
    return turned(profile, rule) if rule else profile


def turned(profile: Profile, rule: str) -> Profile:
    other: dict[str, Any] = {rule: not getattr(profile, rule)}
    return dataclasses.replace(profile, **other)


def differing(one: Profile, other: Profile) -> list[str]:
    """The rules in which two profiles differ."""
    values = ((field.name, getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one))
    return [name for name, a, b in values if isinstance(a, bool) and a != b]


def histories() -> Iterator[tuple[str, History]]:
    for name in FAMILIES:
        yield name, rl.workload(name).history()
    for path in sorted(RECORDINGS.glob("*.parquet")):
        yield f"{path.stem}, recorded", read_history(path)


def kib(count: int) -> str:
    return f"{count / 1024:,.1f}"


def whole(count: float) -> str:
    return f"{count:,.0f}"


def two(value: float) -> str:
    return f"{value:,.2f}"


def of(found: Comparison, design: str) -> Any:
    return next(figures for figures in found.figures.designs if figures.design == design)


def peak(found: Comparison, design: str) -> int:
    memory = found.figures.memory
    assert memory is not None
    return next(one for one in memory.designs if one.design == design).peak.total


def vma_bytes(found: Comparison) -> int:
    memory = found.figures.memory
    assert memory is not None
    return memory.vmas[0].struct_bytes + memory.vmas[0].node_bytes


def locked(found: Comparison) -> int:
    return sum(lock.writes for lock in of(found, "anon_vma").work.locks if lock.lock == ROOT_LOCK)


def per_walk(design: str, what: str) -> Callable[[Comparison], float]:
    def value(found: Comparison) -> float:
        walks = of(found, design).walks
        count = walks.places if what == "places" else of(found, design).walk_work.tallies.get(what, 0)
        return count / max(walks.walks, 1)

    return value


def pages_in_use(found: Comparison) -> int:
    return found.figures.machine.pages.peak


MEASURES: Final[list[tuple[str, Callable[[Comparison], float], Callable[[Any], str]]]] = [
    ("VMAs, peak", lambda found: found.figures.machine.vmas.peak, whole),
    ("VMAs and their tree, KiB", vma_bytes, kib),
    ("pages, peak", pages_in_use, whole),
    ("anon_vma, KiB", lambda found: peak(found, "anon_vma"), kib),
    ("cow_context, KiB", lambda found: peak(found, "cow_context"), kib),
    ("root lock, exclusive", locked, whole),
    ("places per walk, anon_vma", per_walk("anon_vma", "places"), two),
    ("tree nodes per walk, anon_vma", per_walk("anon_vma", "interval tree nodes visited"), two),
    ("places per walk, cow_context", per_walk("cow_context", "places"), two),
]


def cell(one: float, other: float, text: Callable[[Any], str]) -> str:
    """One figure where both are alike; both with the change in per cent otherwise."""
    if text(one) == text(other):
        return text(one)
    change = f" ({100 * (other - one) / one:+.1f} %)" if one else ""
    return f"{text(one)} → {text(other)}{change}"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sides", nargs=2, type=side, metavar="SIDE")
    parser.add_argument("--large-folios", type=int, default=0, metavar="N")
    parser.add_argument("--rules", action="store_true")
    parser.add_argument("--only", action="append", metavar="NAME", help="a history; repeatable (default: all)")
    asked = parser.parse_args()
    first, second = asked.sides
    rules = differing(first, second)

    def run(history: History, profile: Profile) -> Comparison:
        return rl.compare(history, DESIGNS, profile=profile, large_folios=asked.large_folios)

    print(row("history", *(name for name, _, _ in MEASURES)))
    print(row("---", *("---:" for _ in MEASURES)), flush=True)
    by_rule: dict[str, list[str]] = {rule: [] for rule in rules}
    for name, history in histories():
        if asked.only and name.split(",")[0] not in asked.only:
            continue
        print(f"{name}: {len(history)} events", file=sys.stderr, flush=True)
        one, other = run(history, first), run(history, second)
        print(row(name, *(cell(get(one), get(other), text) for _, get, text in MEASURES)), flush=True)
        for rule in rules if asked.rules else ():
            alone = run(history, turned(first, rule))
            by_rule[rule] += [
                f"{name}: {what} {cell(get(one), get(alone), text)}"
                for what, get, text in MEASURES if text(get(one)) != text(get(alone))
            ]  # fmt: skip
    if asked.rules:
        print()
        print(row("rule, alone", "what it changes"))
        print(row("---", "---"))
        for rule, changes in by_rule.items():
            print(row(f"`{rule}`", "; ".join(changes) or "nothing here"))


if __name__ == "__main__":
    main()
