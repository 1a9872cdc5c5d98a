# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks a machine while a history plays on it: every design, every mapped folio, against the page tables.

    checker = Checker(machine)
    for step, event in enumerate(history):
        play(machine, event)
        differences = checker.check(step, event)

One check asks every design for a walk of every mapped folio and reports
- `incomplete`: an entry maps the folio and the design's walk does not find it;
- `stale`:      a walk visits a VMA that is not there any more, or an address outside it;
- `missing`:    the reference design visits a VMA that this one does not;
- `additional`: this design visits a VMA that the reference does not;
- `invariant`:  the machine itself is broken, so that no answer could be trusted;
- `leak`:       what a design keeps is more or less than what VMAs, folios and entries call for (ReverseMap.audit()).
All but `missing` and `additional` are errors.  These two are differences in policy, and say whether the
place maps the folio.  A difference that was there at the last check already is counted, and not listed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Literal

import msgspec

from rmaplab.check.sameness import compare
from rmaplab.check.truth import MappedFolio, Truth, entry_name, invariants, leaks
from rmaplab.check.walks import Changes, Odd, Walker, is_stale
from rmaplab.mm.machine import Machine
from rmaplab.mm.vma import MM, VMA
from rmaplab.printable import plural
from rmaplab.trace.events import OPERATIONS, Event

Kind = Literal["incomplete", "stale", "missing", "additional", "invariant", "leak"]
ERRORS: frozenset[Kind] = frozenset(("incomplete", "stale", "invariant", "leak"))

_OF_PAGES: Final = frozenset(operation.name for operation in OPERATIONS if operation.of_pages)

_Key = tuple[object, ...]  # what makes two findings one difference


class Difference(msgspec.Struct, frozen=True, omit_defaults=True):
    """One error or difference in policy, and the place that shows it.

    kind:   see the module's text
    step:   the step of the history after which it was found; `event` is that step
    what:   a sentence that says it all
    design: whose walk it is ("" for an invariant of the machine)
    addr:   for one page that shows it: the address, in the VMA start .. end, of process `pid`
    pfn:    that page's folio
    folios: how many folios show the same in this VMA, at this step
    maps:   whether the place maps the folio
    """

    kind: Kind
    step: int
    what: str
    design: str = ""
    event: Event | None = None
    pid: int = 0
    start: int = 0
    end: int = 0
    addr: int = 0
    pfn: int = 0
    folios: int = 0
    maps: bool = False

    @property
    def is_error(self) -> bool:
        """Whether it is an error; otherwise it is a difference in policy."""
        return self.kind in ERRORS


class Walks(msgspec.Struct):
    """Totals of the checked walks of one design.

    walks:     how many
    places:    that they visited
    useful:    of these, how many map the folio
    worst:     most places that one walk visited
    lengths:   how many walks visited so many places
    incomplete, stale, missing, missing_mapping, additional, additional_mapping: folio and place pairs
               in which it differs, counted at every check; `_mapping`: the place maps the folio
    """

    walks: int = 0
    places: int = 0
    useful: int = 0
    worst: int = 0
    incomplete: int = 0
    stale: int = 0
    missing: int = 0
    missing_mapping: int = 0
    additional: int = 0
    additional_mapping: int = 0
    lengths: dict[int, int] = {}


class Counts(msgspec.Struct):
    """How much was checked.

    checks:  moments at which the machine was checked
    folios:  folios that were walked, over all checks; `skipped` is how many were not (see Checker's `limit`)
    entries: page-table entries compared with walks
    invariants, leaks: of these that did not hold
    """

    checks: int = 0
    folios: int = 0
    skipped: int = 0
    entries: int = 0
    invariants: int = 0
    leaks: int = 0
    designs: dict[str, Walks] = {}


class Checker:
    """Compares the designs of a machine with its page tables and with each other.

    reference: name of the design that sameness compares with; no comparison where it does not watch
    limit:     walk at most so many folios a check (0: all of them), other ones at each check; what was
               left out is counted as `skipped`
    full:      walk everything only at each check of this number, and in between what can have changed since the check
               before (check/walks.py).  `note` then has to be told each event that was played.
    """

    def __init__(self, machine: Machine, reference: str = "anon_vma", limit: int = 0, full: int = 1) -> None:
        self.machine = machine
        names = [design.name for design in machine.designs]
        self.reference = machine.designs[names.index(reference)] if reference in names else None
        self.limit = limit
        self.counts = Counts(designs={name: Walks() for name in names})
        self._names = names
        self._walker = Walker(machine, names.index(reference) if reference in names else -1)
        self._changes = Changes(machine, self._walker, full) if full > 1 else None
        self._shown: dict[int, list[_Key]] = {}  # by folio: the differences that its last walks showed
        self._known: dict[_Key, int] = {}  # how many folios show it
        self._said: set[_Key] = set()  # differences of the last check that no folio shows

    def note(self, event: Event) -> None:
        """`event` was played."""
        if self._changes is not None and event.op not in _OF_PAGES:
            self._changes.name(event.pid)
            self._changes.name(event.pid2)

    def check(self, step: int, event: Event | None = None, last: bool = False) -> list[Difference]:
        """All differences that exist now and that the previous check did not list.  Designs are audited where all
        folios are due, and at the `last` check."""
        report = _Report(self.machine, step, event, self.reference.name if self.reference else "")
        try:
            return self._differences(report, last)
        except Exception as error:
            error.add_note(f"in the check after event {step}" + (f": {event}" if event else ""))
            raise

    def _differences(self, report: _Report, last: bool) -> list[Difference]:
        truth = Truth(self.machine)
        self.counts.checks += 1
        for sentence in invariants(self.machine, truth):
            self.counts.invariants += 1
            report.add_sentence("invariant", sentence)
        chosen = self._chosen(truth)
        if last or self._changes is None or self._changes.everything:
            for sentence, name in leaks(self.machine):
                self.counts.leaks += 1
                report.add_sentence("leak", sentence, name)
        known = {*self._known, *self._said}
        self._said = set(report.found)
        self._walk(truth, chosen, report)
        return [found.difference(report) for key, found in report.found.items() if key not in known]

    def _chosen(self, truth: Truth) -> Sequence[int]:
        """Numbers of the folios to walk."""
        total = len(truth)
        if self._changes is not None:
            self._changes.look(truth)
            return self._changes.folios
        if not self.limit or total <= self.limit:
            return range(total)
        self.counts.skipped += total - self.limit
        stride = -(-total // self.limit)
        chosen = range(self.counts.checks % stride, total, stride)
        self.counts.skipped += self.limit - len(chosen)
        return chosen

    def _walk(self, truth: Truth, chosen: Sequence[int], report: _Report) -> None:
        walker = self._walker
        odd = walker.walk(truth, chosen)
        self.counts.folios = walker.folios
        self.counts.entries = walker.entries
        for name, tally in zip(self._names, walker.tallies, strict=True):
            walks = self.counts.designs[name]
            walks.walks, walks.places = tally.walks, tally.places
            walks.useful, walks.worst = tally.useful, tally.worst
            walks.lengths = dict(sorted(tally.lengths.items()))
        if self._shown:
            again = {truth.heads[i] for i in chosen}
            mapped = set(truth.heads)
            for head in [head for head in self._shown if head in again or head not in mapped]:
                for key in self._shown.pop(head):
                    self._known[key] -= 1
                    if self._known[key] == 0:
                        del self._known[key]
        for found in odd:
            keys = set(self._look_closer(found, report))
            self._shown[found.folio.head] = list(keys)
            for key in keys:
                self._known[key] = self._known.get(key, 0) + 1

    def _look_closer(self, odd: Odd, report: _Report) -> Iterator[_Key]:
        """Each difference that the walks of one folio show."""
        folio = odd.folio
        reference = None if self.reference is None else odd.walks[self.machine.designs.index(self.reference)]
        for name, places in zip(self._names, odd.walks, strict=True):
            tally = self.counts.designs[name]
            for place in places:
                if is_stale(place):
                    tally.stale += 1
                    yield report.add("stale", name, place[0], place[1], folio, False)
            for mm, addr, _ in folio.unseen(places):
                tally.incomplete += 1
                vma = mm.tree.at(addr)
                if vma is not None:  # else the machine is broken, which its invariants report
                    yield report.add("incomplete", name, vma, addr, folio, True)
            if reference is None or reference is places:
                continue
            missing, additional = compare(reference, places)
            for place in missing:
                maps = folio.mapped_at(place)
                tally.missing += 1
                tally.missing_mapping += maps
                yield report.add("missing", name, place[0], place[1], folio, maps)
            for place in additional:
                maps = folio.mapped_at(place)
                tally.additional += 1
                tally.additional_mapping += maps
                yield report.add("additional", name, place[0], place[1], folio, maps)


class _Found:
    """A difference that grows: the first folio that shows it, and the number of others."""

    def __init__(self, kind: Kind, design: str, vma: VMA, addr: int, folio: MappedFolio, maps: bool) -> None:
        self.kind = kind
        self.design = design
        self.vma = vma
        self.addr = addr
        self.folio = folio
        self.maps = maps
        self.folios = 1

    def difference(self, report: _Report) -> Difference:
        vma = self.vma
        pid = report.pid_of(vma.mm)
        others = f" (and {plural(self.folios - 1, 'more folio')})" if self.folios > 1 else ""
        where = f"{self.addr:#x} in VMA {vma.start:#x}-{vma.end:#x} of process {pid}"
        there = "maps it" if self.maps else f"has {entry_name(vma.mm.page_table.get(self.addr))}"
        reference = report.reference
        sentence = {
            "incomplete": f"{where} maps folio {self.folio.head}{others}, and {self.design} does not find it",
            "stale": f"{self.design} visits {where} for folio {self.folio.head}{others}, which is not there any more",
            "missing": f"{reference} visits {where} for folio {self.folio.head}{others}, "
            f"{self.design} does not; the place {there}",
            "additional": f"{self.design} visits {where} for folio {self.folio.head}{others}, "
            f"{reference} does not; the place {there}",
        }[self.kind]
        return Difference(
            self.kind,
            report.step,
            sentence,
            self.design,
            report.event,
            pid,
            vma.start,
            vma.end,
            self.addr,
            self.folio.head,
            self.folios,
            self.maps,
        )


class _Sentence:
    """A difference that no folio shows."""

    def __init__(self, kind: Kind, sentence: str, design: str) -> None:
        self.kind = kind
        self.sentence = sentence
        self.design = design

    def difference(self, report: _Report) -> Difference:
        return Difference(self.kind, report.step, self.sentence, self.design, report.event)


class _Report:
    """The differences of one check, equal ones merged."""

    def __init__(self, machine: Machine, step: int, event: Event | None, reference: str) -> None:
        self.machine = machine
        self.step = step
        self.event = event
        self.reference = reference
        self.found: dict[_Key, _Found | _Sentence] = {}

    def add(self, kind: Kind, design: str, vma: VMA, addr: int, folio: MappedFolio, maps: bool) -> _Key:
        key: _Key = (kind, design, vma.mm.id, vma.id, maps)
        found = self.found.get(key)
        if isinstance(found, _Found):
            found.folios += 1
        else:
            self.found[key] = _Found(kind, design, vma, addr, folio, maps)
        return key

    def add_sentence(self, kind: Kind, sentence: str, design: str = "") -> None:
        self.found[kind, sentence] = _Sentence(kind, sentence, design)

    def pid_of(self, mm: MM) -> int:
        """The first process that runs in `mm`; 0 if none does."""
        return min((p.pid for p in self.machine.processes.values() if p.mm is mm), default=0)
