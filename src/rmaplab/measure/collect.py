# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the counts of a machine and its designs, and keeps those of an observer out of them.

A history makes a design do work, and so does a checker that walks every folio.  An `Aside`
brackets the actions of observers: it adds up the work that they cause in each design, and resets the counts.

Invariant: with or without observers, and however many, the history's own counts are the same.
"""

from __future__ import annotations

from types import TracebackType
from typing import Final

from rmaplab.check.lockstep import Walks
from rmaplab.measure.figures import Counts, DesignFigures, Locks, MachineFigures, Objects, Work
from rmaplab.mm.machine import Machine
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.sync.work import Ledger, Pool
from rmaplab.trace.play import Watcher


class Aside:
    """A context manager: what is counted inside is added to `work`, and not to the history's counts.

    with aside:
        differences = checker.check(step)
    """

    def __init__(self, machine: Machine) -> None:
        self._machine: Final = machine
        self._accounts: Final = {ledger.owner: _Account(ledger) for ledger in _ledgers(machine)}

    def __enter__(self) -> None:
        for account in self._accounts.values():
            account.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for account in self._accounts.values():
            account.close()

    def work(self, owner: str) -> Work:
        """What was counted inside so far for a design (or "machine")."""
        return self._accounts[owner].work()


class Operations(Watcher):
    """Which operations of a history take the exclusive locks of each design: of classes that it has from its start."""

    def __init__(self, machine: Machine) -> None:
        ledgers = [design.ledger for design in machine.designs]
        self._owners: Final = [ledger.owner for ledger in ledgers for _ in ledger.locks]
        self._locks: Final = [lock for ledger in ledgers for lock in ledger.locks.values()]
        self._before: Final = [lock.writes for lock in self._locks]
        self._counts: Final[list[dict[str, int]]] = [{} for _ in self._locks]  # by operation
        self._op = ""  # of the steps since then

    def look(self, op: str) -> None:
        if op != self._op:
            self._count()
            self._op = op

    def _count(self) -> None:
        """What was taken since the last count, `_op` took."""
        before = self._before
        for i, lock in enumerate(self._locks):
            more = lock.writes - before[i]
            if more:
                before[i] += more
                counts = self._counts[i]
                counts[self._op] = counts.get(self._op, 0) + more

    def of(self, owner: str) -> dict[str, dict[str, int]]:
        """Exclusive locks of a design, by class and operation."""
        self._count()
        each = zip(self._owners, self._locks, self._counts, strict=True)
        return {lock.name: counts for its, lock, counts in each if its == owner and counts}


class _Account:
    """One ledger's part of an `Aside`."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger: Final = ledger
        self._tallies: Final[dict[str, int]] = {}
        self._locks: Final[dict[str, tuple[int, int]]] = {}
        self._before_tallies: dict[str, int] = {}
        self._before_locks: dict[str, tuple[int, int]] = {}
        self._before_pools: dict[str, tuple[int, int]] = {}

    def open(self) -> None:
        ledger = self._ledger
        self._before_tallies = {name: tally.count for name, tally in ledger.tallies.items()}
        self._before_locks = {name: (lock.writes, lock.reads) for name, lock in ledger.locks.items()}
        self._before_pools = {name: (pool.peak, pool.allocated) for name, pool in ledger.pools.items()}

    def close(self) -> None:
        for name, tally in list(self._ledger.tallies.items()):
            before = self._before_tallies.get(name, 0)
            self._add(name, tally.count - before)
            tally.count = before
            if name not in self._before_tallies:  # only an observer made the design count this
                self._ledger.forget(name)
        for name, lock in self._ledger.locks.items():
            writes, reads = self._before_locks.get(name, (0, 0))
            w, r = self._locks.get(name, (0, 0))
            self._locks[name] = (w + lock.writes - writes, r + lock.reads - reads)
            lock.writes, lock.reads = writes, reads
        for name, pool in self._ledger.pools.items():
            peak, allocated = self._before_pools.get(name, (0, 0))
            self._add(_allocations(name), pool.allocated - allocated)
            pool.peak, pool.allocated = peak, allocated

    def _add(self, name: str, count: int) -> None:
        self._tallies[name] = self._tallies.get(name, 0) + count

    def work(self) -> Work:
        locks = [Locks(name, writes, reads) for name, (writes, reads) in sorted(self._locks.items())]
        return Work(dict(sorted(self._tallies.items())), locks)


def _ledgers(machine: Machine) -> list[Ledger]:
    return [machine.ledger, *(design.ledger for design in machine.designs)]


def _allocations(pool: str) -> str:
    return f"{pool} allocated"


def design_figures(
    design: ReverseMap,
    walks: Walks,
    walk_work: Work,
    vmas: Counts | None,
    operations: dict[str, dict[str, int]] | None = None,
) -> DesignFigures:
    """What `design` holds and did so far."""
    allocated = {pool.name: pool.allocated for pool in design.ledger.pools.values()}
    objects = [
        Objects(o.type, o.size, o.objects, o.peak, allocated.get(o.type, 0), o.slab_pages, o.peak_pages)
        for o in design.footprint()
    ]
    return DesignFigures(design.name, objects, _work(design.ledger), walks, walk_work, vmas, operations or {})


def machine_figures(machine: Machine, events: int) -> MachineFigures:
    """What `machine` holds and did so far."""
    pools = machine.ledger.pools
    folios = machine.folios
    return MachineFigures(
        events=events,
        mms=_counts(pools["mm_struct"]),
        vmas=vma_counts(machine),
        pages=Counts(folios.in_use, folios.peak, folios.allocated),
        objects=[
            Objects(
                pool.name,
                pool.size,
                pool.live,
                pool.peak,
                pool.allocated,
                pool.slab_pages(pool.live),
                pool.slab_pages(pool.peak),
            )
            for pool in pools.values()
        ],
        work=_work(machine.ledger),
    )


def vma_counts(machine: Machine) -> Counts:
    """VMAs of all address spaces."""
    return _counts(machine.ledger.pools["vm_area_struct"])


def _counts(pool: Pool) -> Counts:
    return Counts(pool.live, pool.peak, pool.allocated)


def _work(ledger: Ledger) -> Work:
    tallies = {name: tally.count for name, tally in ledger.tallies.items()}
    tallies |= {_allocations(name): pool.allocated for name, pool in ledger.pools.items()}
    locks = [Locks(name, lock.writes, lock.reads) for name, lock in sorted(ledger.locks.items())]
    return Work(dict(sorted(tallies.items())), locks)
