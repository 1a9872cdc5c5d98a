# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables and pictures of docs/answer.md, from what `make results` left in build/.

    python scripts/answer.py

A table stands in the page between two comments, and is replaced there.  All figures come from the rows of two
campaigns, docs/results.toml and docs/hard.toml; only the number of the dead is counted here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import matplotlib.pyplot as plt

from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES
from rmaplab.rmap import load
from rmaplab.rmap.context import ContextRmap
from rmaplab.sweep.campaign import Campaign
from rmaplab.trace.play import Player
from rmaplab.workloads import workload

ROOT: Final = Path(__file__).parent.parent
PICTURES: Final = ROOT / "docs" / "pictures"
REFERENCE: Final = "anon_vma"
PAIR: Final = ("cow_context", "lineage")
FARTHEST: Final = 1.25  # walk over anon_vma's that is drawn
COLOURS: Final = {REFERENCE: "tab:grey", "cow_context": "tab:orange", "lineage": "tab:blue"}


class Results:
    """The figures of a campaign, by history, number of CPUs (0: replayed) and design."""

    def __init__(self, directory: Path) -> None:
        campaign = Campaign(directory)
        plan = campaign.plan()
        self.version: Final = plan.version
        self.of: Final[dict[tuple[str, int], dict[str, dict[str, float]]]] = {}
        rows: list[dict[str, Any]] = list(campaign.rows(plan.points, plan.version))
        for row in rows:
            place = self.of.setdefault((row["history"].removesuffix(".parquet"), row["cpus"]), {})
            place.setdefault(row["design"], {})[f"{row['group']}: {row['figure']}"] = row["value"]
        self.left: Final = sum(campaign.outcome(point, plan.version) is None for point in plan.points)

    def histories(self) -> list[str]:
        """Those that were replayed."""
        return [history for history, cpus in self.of if not cpus]

    def designs(self) -> list[str]:
        """Those that watched the replayed ones, as the campaign names them."""
        return [name for name in next(self.of[history, 0] for history in self.histories()) if name]

    def figure(self, history: str, design: str, what: str) -> float:
        """`what`: missed, places (per mapping), walk (ns), memory (KiB) or time (ms)."""
        found = self.of[history, 0][design]
        if what == "missed":
            return found["walks: places missed"]
        if what == "places":
            return found["walks: places"] / found["walks: places that map"]
        if what == "walk":
            return found["time: walks and visits"] / found["walks: walks"] * 1e6
        return found["memory: peak" if what == "memory" else "time: history"]

    def ratio(self, history: str, design: str, what: str) -> float:
        return self.figure(history, design, what) / self.figure(history, REFERENCE, what)

    def throughputs(self, design: str) -> dict[str, dict[int, float]]:
        """Over the reference's, by history and number of CPUs."""
        found: dict[str, dict[int, float]] = {}
        for (history, cpus), of in self.of.items():
            if cpus and design in of and REFERENCE in of:
                rates = [of[name]["scale: throughput"] for name in (design, REFERENCE)]
                found.setdefault(history, {})[cpus] = rates[0] / rates[1]
        return found


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(heads)} |",
        f"| --- |{' ---: |' * (len(heads) - 1)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def number(value: float, digits: int = 2) -> str:
    """1.0004 is more than 1.00, and says so."""
    text = f"{value:.{digits}f}"
    return f"{value:.4f}" if text == f"{1:.{digits}f}" and value > 1 else text


def bars(results: Results) -> list[str]:
    """What the successor had to reach, for every design."""
    rows = [["bar", "0", "1.05", "1.0", "1.1", "0.25", "1.0", "0.1", "1.0", "1.0"]]
    for design in results.designs():
        histories = results.histories()
        missed = sum(results.figure(history, design, "missed") for history in histories)
        row = [f"`{design}`", f"{missed:,.0f}"]
        row.append("" if missed else number(max(results.figure(h, design, "places") for h in histories)))
        for what in ("walk", "memory", "time"):
            ratios = [results.ratio(history, design, what) for history in histories]
            row += ["", ""] if missed and what == "walk" else [number(median(ratios), 3), number(max(ratios))]
        throughputs = [ratio for of in results.throughputs(design).values() for ratio in of.values()]
        row.append(number(min(throughputs)) if throughputs else "")
        rows.append(row)
    heads = ["design", "missed", "places per mapping", "walk, median", "most", "memory, median", "most",
             "time, median", "most", "throughput, least"]  # fmt: skip
    return table(heads, rows)


def each(results: Results) -> list[str]:
    """Every history, the two designs with contexts."""
    rows = []
    for history in results.histories():
        row = [history]
        for what in ("walk", "memory", "time"):
            row += [number(results.ratio(history, design, what)) for design in PAIR]
        rows.append([*row, *(number(results.figure(history, name, "places")) for name in (REFERENCE, *PAIR))])
    middles = ["**median**"]
    greatest = ["**greatest**"]
    for what in ("walk", "memory", "time"):
        for design in PAIR:
            ratios = [results.ratio(history, design, what) for history in results.histories()]
            middles.append(f"**{number(median(ratios), 3)}**")
            greatest.append(f"**{number(max(ratios))}**")
    for name in (REFERENCE, *PAIR):
        places = [results.figure(history, name, "places") for history in results.histories()]
        middles.append(f"**{number(median(places))}**")
        greatest.append(f"**{number(max(places))}**")
    heads = ["history", "walk: `cow_context`", "`lineage`", "memory: `cow_context`", "`lineage`",
             "time: `cow_context`", "`lineage`", "places per mapping: anon_vma", "`cow_context`",
             "`lineage`"]  # fmt: skip
    return table(heads, [*rows, middles, greatest])


def scaling(results: Results, design: str) -> list[str]:
    """Throughput over the reference's, by CPUs."""
    throughputs = results.throughputs(design)
    counts = sorted({cpus for of in throughputs.values() for cpus in of})
    rows = [
        [history, *(number(of[cpus], 3) if cpus in of else "" for cpus in counts)]
        for history, of in throughputs.items()
    ]
    return table(["workload", *map(str, counts)], rows)


def the_dead(generations: int) -> dict[str, list[int]]:
    """Contexts without an address space after each generation of a chain of forks."""
    machine = Machine(PROFILES["7.3"], [load(name) for name in PAIR])
    chain = workload("forkchain", {"generations": generations, "vmas": 2, "pages": 2})
    player = Player(machine, chain.history().header)
    found: dict[str, list[int]] = {name: [] for name in PAIR}
    for event in chain.events():
        player.do(event)
        if event.op == "exit":
            for design in machine.designs:
                assert isinstance(design, ContextRmap)
                found[design.name].append(design.context_pool.live - len(machine.mms))
    return found


def save(figure: Any, name: str) -> None:
    figure.savefig(PICTURES / name, metadata={"Date": None})
    plt.close(figure)


def draw_ratios(results: Results) -> None:
    histories = sorted(results.histories(), key=lambda history: results.ratio(history, "lineage", "walk"))
    figure, panels = plt.subplots(1, 3, figsize=(11, 6), sharey=True, layout="constrained")
    limits = {"walk": (1.0, 1.1), "memory": (0.25, 1.0), "time": (0.1, 1.0)}
    for panel, (what, (middle, most)) in zip(panels, limits.items(), strict=True):
        for design in PAIR:
            ratios = [results.ratio(history, design, what) for history in histories]
            panel.plot(ratios, range(len(histories)), "o", color=COLOURS[design], label=design, alpha=0.8)
            for row, ratio in enumerate(ratios):
                if what == "walk" and ratio > FARTHEST:  # too far away to draw
                    panel.text(FARTHEST, row, f"{ratio:.2f} \u2192", ha="right", va="center", color=COLOURS[design])
            panel.axvline(median(ratios), color=COLOURS[design], linewidth=1, linestyle="--")
        panel.axvline(1, color=COLOURS[REFERENCE], linewidth=2)
        panel.axvline(most, color="black", linewidth=1, linestyle=":")
        panel.set_title(f"{what} (bars: {middle:g} in the median, {most:g})", fontsize=10)
        panel.grid(True, axis="y", alpha=0.3)
        if what == "walk":
            panel.set_xlim(0.95, FARTHEST)
        else:
            panel.set_xscale("log")
    names = [history.replace("willitscale processes=4 case=", "") for history in histories]
    panels[0].set_yticks(range(len(histories)), names)
    panels[1].set_xlabel("over anon_vma's (grey line); dashed: median of the design; dotted: bar anywhere")
    panels[2].legend()
    save(figure, "ratios.svg")


def draw_throughput(hard: Results) -> None:
    three = ("storm related=1", "pressure", "zygote")
    shown = [history for history in hard.throughputs("lineage") if history.startswith(three)]
    figure, (panels,) = plt.subplots(1, len(shown), figsize=(4 * len(shown), 4), layout="constrained", squeeze=False)
    for panel, history in zip(panels, shown, strict=True):
        for design in (REFERENCE, "lineage"):
            counts = sorted(cpus for name, cpus in hard.of if name == history and cpus)
            rates = [hard.of[history, cpus][design]["scale: throughput"] for cpus in counts]
            panel.plot(counts, rates, "o-", color=COLOURS[design], label=design)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(counts[::2], [f"{cpus}" for cpus in counts[::2]])
        panel.set_title(history, fontsize=8)
        panel.set_xlabel("CPUs")
        panel.grid(True, alpha=0.3)
    panels[0].set_ylabel("operations per second of virtual time")
    panels[0].legend()
    save(figure, "throughput.svg")


def draw_the_dead(generations: int) -> None:
    figure, panel = plt.subplots(figsize=(7, 4), layout="constrained")
    for design, counts in the_dead(generations).items():
        label = f"{design}: at most {max(counts)}"
        panel.plot(range(1, len(counts) + 1), counts, "-", color=COLOURS[design], label=label, linewidth=1)
    panel.set_xscale("log")
    panel.set_yscale("symlog", linthresh=2)
    panel.set_ylim(-0.5, generations)
    panel.set_yticks([0, 1, 2, 10, 100, generations], ["0", "1", "2", "10", "100", f"{generations}"])
    panel.set_xlabel("generations: each process forks a child and exits")
    panel.set_ylabel("contexts without an address space")
    panel.legend()
    panel.grid(True, alpha=0.3)
    save(figure, "dead.svg")


def replaced(text: str, name: str, lines: Sequence[str]) -> str:
    """`text` with these lines in place of what stood there."""
    begin, end = f"<!-- {name} -->", "<!-- end -->"
    before, found, rest = text.partition(begin)
    if not found:
        raise SystemExit(f"docs/answer.md has no place for the table {name!r}: {begin}, and {end} after it")
    return before + found + "\n\n" + "\n".join(lines) + "\n\n" + end + rest.partition(end)[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "results", metavar="DIR")
    parser.add_argument("--hard", type=Path, default=ROOT / "build" / "hard", metavar="DIR")
    asked = parser.parse_args()
    plt.switch_backend("Agg")
    plt.rcParams["svg.hashsalt"] = "rmaplab"  # the same figures give the same file
    results, hard = Results(asked.results), Results(asked.hard)
    page = ROOT / "docs" / "answer.md"
    text = page.read_text()
    text = replaced(text, "bars", bars(results))
    text = replaced(text, "each", each(results))
    text = replaced(text, "hard", each(hard))
    text = replaced(text, "scaling", scaling(hard, "lineage"))
    page.write_text(text)
    draw_ratios(results)
    draw_throughput(hard)
    draw_the_dead(500)
    print(f"figures of {results.version} and {hard.version}; points that are not done: {results.left}, {hard.left}")


if __name__ == "__main__":
    main()
