# SPDX-License-Identifier: GPL-2.0-or-later
"""A comparison as one object for programs (`--json`) and as tables for people.

The same inputs give the same report, byte for byte: it holds no times and no paths.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from rich.console import Console

from rmaplab.check.lockstep import ERRORS
from rmaplab.measure.figures import Counts, DesignFigures, Objects, Work
from rmaplab.measure.memory import Memory, curve
from rmaplab.measure.result import Difference, Figures
from rmaplab.measure.sources import Source
from rmaplab.measure.times import Times
from rmaplab.terminal import Grid, has_unicode, print_fact, print_text

ERROR_KINDS = (*ERRORS, "broken")
REFERENCE = "anon_vma"  # whose VMAs the others are compared with
_DEAREST = 3  # kinds of work of a design whose time is shown
_SHOWN = 3  # differences of one kind and design in the tables; `--json` has more


class Inputs(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a report depends on; `leader` is the design that VMA geometry follows, `costs` the cost profile, if any."""

    history: Source
    designs: list[str]
    leader: str
    profile: str
    large_folios: int
    seed: int
    every: int
    folios: int
    costs: str = ""


class Report(msgspec.Struct, frozen=True):
    """What a comparison found; `holds` says whether it found nothing wrong."""

    inputs: Inputs
    holds: bool
    figures: Figures
    differences: list[Difference]


def print_report(report: Report, out: Console) -> None:
    """All figures as tables, and the differences; the answer (answer.py) belongs below them."""
    inputs, figures = report.inputs, report.figures
    rules = f"profile {inputs.profile}, seed {inputs.seed}, VMAs merge by the rule of {inputs.leader}"
    if inputs.large_folios:
        rules += f", folios of up to {1 << inputs.large_folios} pages"
    print_fact("Machine", rules, out)
    out.print()
    _print_machine(figures, out)
    _print_memory(figures.designs, out)
    _print_memory_over_time(figures.memory, out)
    _print_matrix("Work done for the history", [(d.design, d.work) for d in figures.designs], out)
    if figures.checks.moments:
        _print_walks(figures.designs, REFERENCE in inputs.designs, out)
        _print_matrix("Work done for these walks", [(d.design, d.walk_work) for d in figures.designs], out)
    if figures.times is not None:
        _print_times(figures.times, figures.checks.moments > 0, out)
    if any(design.vmas for design in figures.designs):
        _print_vmas(figures.designs, out)
    _print_differences(report, out)


def _print(title: str, table: Grid, out: Console) -> None:
    table.print(out, title)
    out.print()


def _print_machine(figures: Figures, out: Console) -> None:
    machine = figures.machine
    table = Grid("", "at the end", "peak", "total")
    rows: list[tuple[str, Counts]] = [
        ("address spaces", machine.mms),
        ("VMAs", machine.vmas),
        ("anonymous pages", machine.pages),
    ]
    table.add_row("events", "", "", f"{machine.events:,}")
    for name, counts in rows:
        table.add_row(name, f"{counts.at_end:,}", f"{counts.peak:,}", f"{counts.made:,}")
    for name, count in machine.work.tallies.items():
        if count and not name.endswith(" allocated"):
            table.add_row(name, "", "", f"{count:,}")
    for lock in machine.work.locks:
        if lock.writes:
            table.add_row(f"{lock.lock} taken, exclusive", "", "", f"{lock.writes:,}")
        if lock.reads:
            table.add_row(f"{lock.lock} taken, shared", "", "", f"{lock.reads:,}")
    _print("What happened", table, out)


def _print_memory(designs: Sequence[DesignFigures], out: Console) -> None:
    table = Grid("design, type", "bytes each", "made", "peak", "KiB", "at the end", "KiB")
    for design in designs:
        if not design.objects:
            table.add_row(f"{design.design}: nothing", "", "", "", "", "", "")
            continue
        table.add_row(design.design)
        for o in design.objects:
            table.add_row(f"  {o.type}", f"{o.size:,}", *_object_cells(o))
        if len(design.objects) > 1:
            peak, end = sum(o.peak_pages for o in design.objects), sum(o.end_pages for o in design.objects)
            table.add_row("  all types", "", "", "", f"{peak * 4:,}", "", f"{end * 4:,}")
    _print("Memory held, in KiB of slab pages", table, out)


def _print_memory_over_time(memory: Memory, out: Console) -> None:
    """Objects with the fields that a design needs elsewhere, where they take most, and their line."""
    table = Grid("design", "KiB", "of which fields", "per process", "per VMA", "per page", "after event")
    for design in memory.designs:
        peak = design.peak
        shares = (f"{peak.total / n:,.1f}" if n else "-" for n in (peak.processes, peak.vmas, peak.pages))
        table.add_row(
            design.design, f"{peak.total / 1024:,.1f}", f"{peak.fields / 1024:,.1f}", *shares, f"{peak.event:,}"
        )
    if not table.rows:
        return
    _print("Peak memory, including fields added to vm_area_struct and mm_struct, in KiB and in bytes", table, out)
    for design in memory.designs:
        line = curve(design.line, min(60, out.width - 23))
        if not has_unicode(out):
            line = line.translate(str.maketrans("▁▂▃▄▅▆▇█", ".:-=+*#@"))
        if line:
            out.print(f"{design.design:22} {line}", no_wrap=True)
    if memory.designs:
        out.print()
    if len(memory.vmas) > 1:
        table = Grid("design", "peak VMAs", "structs, KiB", "maple nodes", "KiB", f"over {memory.vmas[0].design}")
        first = memory.vmas[0]
        for vmas in memory.vmas:
            more = vmas.struct_bytes + vmas.node_bytes - first.struct_bytes - first.node_bytes
            table.add_row(
                vmas.design,
                f"{vmas.vmas:,}",
                f"{vmas.struct_bytes / 1024:,.1f}",
                f"{vmas.nodes:,}",
                f"{vmas.node_bytes / 1024:,.1f}",
                f"{more / 1024:+,.1f} KiB" if more else "nothing",
            )
        _print("Memory elsewhere: VMAs by the merge rule of each design", table, out)


def _object_cells(o: Objects) -> Iterable[str]:
    return f"{o.allocated:,}", f"{o.peak:,}", f"{o.peak_pages * 4:,}", f"{o.at_end:,}", f"{o.end_pages * 4:,}"


def _print_matrix(title: str, works: Sequence[tuple[str, Work]], out: Console) -> None:
    """Kinds of work against designs; what no design did is left out."""
    rows: dict[str, dict[str, int]] = {}
    for design, work in works:
        for name, count in work.tallies.items():
            rows.setdefault(name, {})[design] = count
        for lock in work.locks:
            rows.setdefault(f"{lock.lock} taken, exclusive", {})[design] = lock.writes
            rows.setdefault(f"{lock.lock} taken, shared", {})[design] = lock.reads
    table = Grid("", *(_heading(design) for design, _ in works))
    for name in sorted(rows):
        counts = rows[name]
        if any(counts.values()):
            table.add_row(name, *(f"{counts[design]:,}" if design in counts else "-" for design, _ in works))
    if table.rows:
        _print(title, table, out)


def _print_times(times: Times, walked: bool, out: Console) -> None:
    """What the work takes, and below it what the dearest of each design's history is."""
    designs = times.designs
    table = Grid("microseconds", *(_heading(d.design) for d in designs))
    table.add_row("for the history, the design", *(_us(d.history.ns) for d in designs))
    table.add_row("  the rest of memory management", *[_us(times.machine.ns)] * len(designs))
    dear = sorted({key for d in designs for key in list(d.history.parts)[:_DEAREST]})
    for key in dear:
        table.add_row(f"  of the design: {key}", *(_us(d.history.parts.get(key, 0.0)) for d in designs))
    if walked:
        table.add_row("for these walks, the design", *(_us(d.walks.ns) for d in designs))
        table.add_row("  the folio, and its places' page tables", *(_us(d.visits.ns) for d in designs))
    _print(f"Time derived from this work, uncontended, by the costs {times.costs}", table, out)
    print_fact("Costs", f"measured on Linux {times.kernel}: {times.machine_measured}", out)
    for who, time in (
        ("machine", times.machine),
        *((f"{d.design}, history", d.history) for d in designs),
        *((f"{d.design}, walks", d.walks) for d in designs),
    ):
        if time.gaps:
            gaps = ", ".join(f"{key} ({count:,})" for key, count in time.gaps.items())
            print_fact("Not timed", f"{who}: {gaps}", out)
    out.print()


def _us(ns: float) -> str:
    return f"{ns / 1000:,.1f}" if ns else "-"


def _print_walks(designs: Sequence[DesignFigures], reference: bool, out: Console) -> None:
    """What the walks visited; with a `reference`, also in comparison with it."""
    table = Grid("", *(_heading(design.design) for design in designs))
    walks = [design.walks for design in designs]
    table.add_row("walks", *(f"{w.walks:,}" for w in walks))
    table.add_row("places visited", *(f"{w.places:,}" for w in walks))
    table.add_row("  per walk", *(f"{w.places / w.walks:.2f}" if w.walks else "-" for w in walks))
    table.add_row("  in the longest walk", *(f"{w.worst:,}" for w in walks))
    table.add_row(
        "  that map the folio", *(f"{100 * w.useful / w.places:.1f} %" if w.places else "-" for w in walks)
    )
    table.add_row("mappings missed", *(f"{w.incomplete:,}" for w in walks))
    if reference:
        table.add_row(f"VMAs that {REFERENCE} does not visit", *(f"{w.additional:,}" for w in walks))
        table.add_row(f"VMAs that only {REFERENCE} visits", *(f"{w.missing:,}" for w in walks))
    _print("Walks of a sample of folios", table, out)


def _heading(design: str) -> str:
    """A name as a narrow heading: broken after an underscore where it is long."""
    lines = [""]
    for part in design.replace("_", "_ ").split():
        if lines[-1] and len(lines[-1]) + len(part) > 12:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _print_vmas(designs: Sequence[DesignFigures], out: Console) -> None:
    table = Grid("design", "at the end", "peak", "made")
    for design in designs:
        if design.vmas is not None:
            vmas = design.vmas
            table.add_row(design.design, f"{vmas.at_end:,}", f"{vmas.peak:,}", f"{vmas.made:,}")
    _print("VMAs by the merge rule of each design", table, out)


KINDS = {
    "invariant": "The machine itself is broken",
    "leak": "What a design keeps and nothing calls for, or counts that are wrong",
    "broken": "The machine cannot go on with what this design, leading it, answers",
    "recording": "The recording cannot be vouched for",
    "result": "Results of system calls that differ from the recorded ones",
    "geometry": "VMAs that differ from /proc/PID/maps",
    "incomplete": "Mappings missed",
    "stale": "Places visited that no longer exist",
    "missing": f"VMAs that {REFERENCE} visits and this design does not",
    "additional": f"VMAs that this design visits and {REFERENCE} does not",
}


def _print_differences(report: Report, out: Console) -> None:
    for key, total in report.figures.counted.items():
        kind, _, design = key.partition(" ")
        listed = [d for d in report.differences if d.kind == kind and d.design == design][:_SHOWN]
        of = f" ({design})" if design else ""
        finding = ", a finding" if kind in ERROR_KINDS and not any(d.error for d in listed) else ""
        print_text(f"{KINDS[kind]}{of}: {total:,}{finding}", 0, out)
        for difference in listed:
            print_text(f"after event {difference.event}: {difference.what}", 2, out)
            if difference.shortest:
                print_text("the shortest history found that shows the same:", 4, out)
                for event in difference.shortest:
                    print_text(str(event), 6, out)
        if total > len(listed):
            print_text(f"and {total - len(listed):,} more", 2, out)
        out.print()


def sameness(design: DesignFigures) -> str:
    """How the VMAs that its walks visit differ from the reference's, as the end of "it visits …"."""
    walks = design.walks
    if not walks.missing and not walks.additional:
        return f"exactly the VMAs of {REFERENCE}"
    parts = []
    if walks.additional:
        parts.append(f"{walks.additional:,} VMAs that {REFERENCE} does not ({_mapping(walks.additional_mapping)})")
    if walks.missing:
        parts.append(f"not {walks.missing:,} VMAs that {REFERENCE} visits ({_mapping(walks.missing_mapping)})")
    return ", and ".join(parts)


def _mapping(count: int) -> str:
    return f"of which {count:,} map the folio" if count else "none of them maps the folio"
