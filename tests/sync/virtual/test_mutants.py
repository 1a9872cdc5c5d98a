# SPDX-License-Identifier: GPL-2.0-or-later
"""Bugs put back into virtual time, one at a time: each is found by a test that passes without it.

A bug is an edit of the source text of one file; the package is then run from a copy, interpreted.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest

from rmaplab.sync.locks import SpinLock
from sync.virtual import (
    simulation,
    test_cpus,
    test_locks,
    test_prices,
    test_rcu,
    test_rwsem,
    test_scheduler,
    test_tlb,
)

PACKAGE = "rmaplab.sync.virtual"
SOURCES = {
    file.name: file.read_text() for file in resources.files(PACKAGE).iterdir() if file.name.endswith(".py")
}

MUTANTS: dict[str, tuple[str, str, str, Callable[[], object]]] = {
    "a hand-over is lost": (
        "locks.py",
        "            self.grant(first)\n\n\nclass SpinLock",
        "\n\nclass SpinLock",
        lambda: test_locks.test_a_global_locks_throughput_is_flat(SpinLock),
    ),
    "the last comes first": (
        "locks.py",
        "first = self.waiters.pop(0)",
        "first = self.waiters.pop()",
        lambda: test_locks.test_a_spin_lock_is_first_come_first_served(),
    ),
    "a reader counts twice": (
        "rwsem.py",
        "        self.readers += 1\n        self.reader_owned = True\n        if waiting:",
        "        self.readers += 2\n        self.reader_owned = True\n        if waiting:",
        lambda: test_scheduler.test_any_mixture_comes_to_its_end_excludes_and_is_the_same_again(2),
    ),
    "a reader does not count": (
        "rwsem.py",
        "        self.readers += 1\n        self.reader_owned = True\n        if waiting:",
        "        self.reader_owned = True\n        if waiting:",
        lambda: test_locks.test_readers_without_writers_are_linear(8),
    ),
    "readers exclude each other": (
        "rwsem.py",
        "        if waiting and self.readers > 0:",
        "        if self.readers > 0:",
        lambda: test_locks.test_readers_without_writers_are_linear(8),
    ),
    "a writer looks at no reader": (
        "rwsem.py",
        "        if self.writer is None and self.readers == 0 and self.handoff is None:",
        "        if self.writer is None and self.handoff is None:",
        lambda: test_scheduler.test_any_mixture_comes_to_its_end_excludes_and_is_the_same_again(7),
    ),
    "readers overtake a waiting writer": (
        "rwsem.py",
        "        if waiting and self.readers > 0:\n            return False",
        "        if False:\n            return False",
        lambda: test_rwsem.test_a_stream_of_readers_does_not_starve_a_writer(),
    ),
    "nobody asks for a hand-off": (
        "rwsem.py",
        "                self.handoff = self.waiters[0]",
        "                pass",
        lambda: test_rwsem.test_who_is_passed_over_for_long_gets_the_lock_handed(),
    ),
    "a writer spins on an owner that sleeps": (
        "rwsem.py",
        "        self.stop_spinning()  # nobody spins on an owner that sleeps",
        "        pass",
        lambda: test_rwsem.test_a_writer_spins_while_the_owner_runs_and_sleeps_when_it_sleeps(),
    ),
    "a downgrade lets nobody in": (
        "rwsem.py",
        "                if self.waiters:\n                    self._mark_wake(_READ_OWNED)\n"
        "                self._spin",
        "                self._spin",
        lambda: test_rwsem.test_readers_are_let_in_together_when_a_writer_downgrades(),
    ),
    "work is charged twice": (
        "prices.py",
        "        self.charged = total\n        nodes",
        "        nodes",
        lambda: test_prices.test_with_one_cpu_time_is_the_sum_of_work(),
    ),
    "work before the run is charged": (
        "prices.py",
        "        self._ledgers.append(ledger)\n        self.charged = self.total()",
        "        self._ledgers.append(ledger)",
        lambda: test_prices.test_with_one_cpu_time_is_the_sum_of_work(),
    ),
    "what is counted first in the middle has no price": (
        "prices.py",
        "        if entries != self._entries:",
        "        if self._entries < 0:",
        lambda: test_prices.test_with_one_cpu_time_is_the_sum_of_work(),
    ),
    "frees are free": (
        "prices.py",
        "                    self._pools.append(_PricedPool(pool, alloc, free))",
        "                    self._pools.append(_PricedPool(pool, alloc, 0))",
        lambda: test_prices.test_with_one_cpu_time_is_the_sum_of_work(),
    ),
    "operations are not in the order of time": (
        "core.py",
        "        while agenda.due(task.time):",
        "        while False:",
        lambda: test_locks.test_tasks_that_compute_and_lock_are_machines_and_a_repairman(4, 2.0),
    ),
    "a lock is free before it is given back": (
        "locks.py",
        "        if agenda.due(task.time):",
        "        if False:",
        lambda: test_locks.test_tasks_that_compute_and_lock_are_machines_and_a_repairman(4, 2.0),
    ),
    "a cache line is everywhere": (
        "lines.py",
        "    task.time = start + handover\n",
        "",
        lambda: test_locks.test_a_handed_over_lock_costs_its_cache_line_each_time(),
    ),
    "a tree stays where it was": (
        "locks.py",
        "            task.time += moving\n",
        "            pass\n",
        lambda: test_locks.test_what_a_lock_protects_moves_with_it(),
    ),
    "a tree comes from its last reader": (
        "lines.py",
        "    far = writer >= 0 and writer != cpu and cpu not in data.copies\n    if write:",
        "    far = writer >= 0 and writer != cpu and cpu not in data.copies\n    if True:",
        lambda: test_locks.test_what_only_readers_had_does_not_move(),
    ),
    "a copy outlives a write": (
        "lines.py",
        "            data.copies.clear()\n",
        "            pass\n",
        lambda: test_locks.test_what_only_readers_had_does_not_move(),
    ),
    "a grace period waits for nobody": (
        "rcu.py",
        "                if task.reader.depth:\n                    task.reader.awaited = True",
        "                if False:\n                    task.reader.awaited = True",
        lambda: test_rcu.test_a_grace_period_waits_for_a_reader_that_others_interrupt(),
    ),
    "a grace period waits for readers that come later": (
        "rcu.py",
        "            if task is not None and task.reader.entered <= now:",
        "            if task is not None:",
        lambda: test_rcu.test_a_grace_period_waits_for_the_readers_that_were_there(0.0),
    ),
    "a grace period is over at once": (
        "rcu.py",
        "        self._ends = now + self._length",
        "        self._ends = now",
        lambda: test_rcu.test_a_grace_period_waits_for_the_readers_that_were_there(500_000.0),
    ),
    "nobody's time slice ends": (
        "scheduler.py",
        "                self.core.sleep_until(task, task.time)",
        "                pass",
        lambda: test_cpus.test_who_waits_for_a_cpu_waits_its_turn(),
    ),
    "a pinned task goes anywhere": (
        "cpus.py",
        "        if task.pinned >= 0:\n            cpu = self.all[task.pinned]",
        "        if False:\n            cpu = self.all[task.pinned]",
        lambda: test_cpus.test_a_pinned_task_stays_where_it_is(),
    ),
    "who waits for a sequence count costs its CPU nothing": (
        "poll.py",
        "            core.cpus.spun += pause",
        "            pass",
        lambda: test_scheduler.test_a_reader_of_a_sequence_count_spins_until_it_is_even(),
    ),
    "who flushes waits for nobody": (
        "tlb.py",
        "            task.time += taken\n",
        "            pass\n",
        lambda: test_tlb.test_who_takes_entries_away_interrupts_who_runs_in_the_space_and_waits(),
    ),
    "who is interrupted goes on": (
        "tlb.py",
        "                    there.interrupted += self._interrupt\n",
        "                    pass\n",
        lambda: test_tlb.test_who_takes_entries_away_interrupts_who_runs_in_the_space_and_waits(),
    ),
    "idle CPUs are interrupted": (
        "tlb.py",
        "(freed_tables or (there is not None and there.space is not None))",
        "True",
        lambda: test_tlb.test_an_idle_cpu_keeps_its_space_and_flushes_by_itself_unless_tables_were_freed(
            False
        ),
    ),
    "an idle CPU flushes freed tables when it comes to it": (
        "tlb.py",
        "(freed_tables or (there is not None and there.space is not None))",
        "(there is not None and there.space is not None)",
        lambda: test_tlb.test_an_idle_cpu_keeps_its_space_and_flushes_by_itself_unless_tables_were_freed(
            True
        ),
    ),
    "a CPU keeps all spaces that it ran in": (
        "cpus.py",
        "                last.cpus.remove(self.number)",
        "                pass",
        lambda: test_tlb.test_a_cpu_forgets_a_space_when_it_runs_in_another(),
    ),
    "a process is nowhere until it says so": (
        "cpus.py",
        "        if task.space is not None:\n            cpu.load(task.space)\n",
        "",
        lambda: test_tlb.test_who_takes_entries_away_interrupts_who_runs_in_the_space_and_waits(),
    ),
    "deferred flushes are forgotten": (
        "tlb.py",
        "unflushed.cpus and (unflushed.dirty or not if_dirty)",
        "unflushed.cpus and unflushed.dirty and not if_dirty",
        lambda: test_tlb.test_deferred_flushes_are_one(False),
    ),
    "nobody waits for a flush before he writes out": (
        "tlb.py",
        "unflushed.cpus and (unflushed.dirty or not if_dirty)",
        "unflushed.cpus and not if_dirty",
        lambda: test_tlb.test_deferred_flushes_are_one(True),
    ),
    "who gives a lock back takes the next before it wakes a sleeper": (
        "core.py",
        "            if not task.interrupted:\n                return",
        "            return",
        lambda: test_cpus.test_who_wakes_a_sleeper_does_so_before_anything_else(),
    ),
    "a holder of a spin lock may sleep": (
        "task.py",
        '            raise Finding(f"{self.name} sleeps ({what}) while it holds a spin lock")',
        "            pass",
        lambda: test_scheduler.test_nobody_sleeps_with_a_spin_lock_or_in_an_rcu_section(),
    ),
}


def use(sources: dict[str, str], where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tests run `sources` instead of the package."""
    name = f"virtual_{where.name}"
    (where / name).mkdir()
    for file, text in sources.items():
        (where / name / file).write_text(text.replace(PACKAGE, name))
    monkeypatch.syspath_prepend(where)
    for known in [known for known in sys.modules if known.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, known)
    copy = importlib.import_module(name)
    for module in (simulation, test_cpus):
        monkeypatch.setattr(module, "VirtualTime", copy.VirtualTime)
    monkeypatch.setattr(test_locks, "FEW", True)


@pytest.mark.parametrize("name", MUTANTS)
def test_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, before, after, check = MUTANTS[name]
    text = SOURCES[file]
    assert text.count(before) == 1, "the source has changed: say where the bug goes now"
    use({**SOURCES, file: text.replace(before, after)}, tmp_path, monkeypatch)
    with pytest.raises((AssertionError, ValueError, IndexError, RecursionError, pytest.fail.Exception)):
        check()


def test_nothing_is_found_without_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(SOURCES, tmp_path, monkeypatch)
    for *_, check in MUTANTS.values():
        check()
