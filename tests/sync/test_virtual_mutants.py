# SPDX-License-Identifier: GPL-2.0-or-later
"""Bugs put back into virtual time, one at a time: each is found by a test that passes without it.

A bug is an edit of the source text, which is then run interpreted.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from importlib import resources

import pytest

from rmaplab.sync.locks import SpinLock
from sync import test_virtual as checks
from sync import test_waking as waking

SOURCE = (resources.files("rmaplab.sync") / "virtual.py").read_text()

MUTANTS: dict[str, tuple[str, str, Callable[[], object]]] = {
    "a hand-over is lost": (
        "        elif state.waiters:\n            self._grant(state, state.waiters.pop(0))",
        "        elif state.waiters:\n            state.waiters.pop(0)",
        lambda: checks.test_a_global_locks_throughput_is_flat(SpinLock),
    ),
    "the last comes first": (
        "self._grant(state, state.waiters.pop(0))",
        "self._grant(state, state.waiters.pop())",
        lambda: checks.test_a_spin_lock_is_first_come_first_served(),
    ),
    "a reader counts twice": (
        "        state.readers += 1\n        state.reader_owned = True\n        if waiting:",
        "        state.readers += 2\n        state.reader_owned = True\n        if waiting:",
        lambda: checks.test_any_mixture_comes_to_its_end_excludes_and_is_the_same_again(2),
    ),
    "a reader does not count": (
        "        state.readers += 1\n        state.reader_owned = True\n        if waiting:",
        "        state.reader_owned = True\n        if waiting:",
        lambda: checks.test_readers_without_writers_are_linear(8),
    ),
    "readers exclude each other": (
        "        if waiting and state.readers > 0:",
        "        if state.readers > 0:",
        lambda: checks.test_readers_without_writers_are_linear(8),
    ),
    "a writer looks at no reader": (
        "        if state.writer is None and state.readers == 0 and state.handoff is None:",
        "        if state.writer is None and state.handoff is None:",
        lambda: checks.test_any_mixture_comes_to_its_end_excludes_and_is_the_same_again(7),
    ),
    "readers overtake a waiting writer": (
        "        if waiting and state.readers > 0:\n            return False",
        "        if False:\n            return False",
        lambda: checks.test_a_stream_of_readers_does_not_starve_a_writer(),
    ),
    "nobody asks for a hand-off": (
        "                state.handoff = _queue(state)[0]",
        "                pass",
        lambda: checks.test_who_is_passed_over_for_long_gets_the_lock_handed(),
    ),
    "a writer spins on an owner that sleeps": (
        "                self._stop_spinning(state)  # nobody spins on an owner that sleeps",
        "                pass",
        lambda: checks.test_a_writer_spins_while_the_owner_runs_and_sleeps_when_it_sleeps(),
    ),
    "a downgrade lets nobody in": (
        "                if state.waiters:\n                    self._mark_wake(state, _READ_OWNED)\n"
        "                self._spin",
        "                self._spin",
        lambda: checks.test_readers_are_let_in_together_when_a_writer_downgrades(),
    ),
    "work is charged twice": (
        "        self.counted = total\n        nodes",
        "        nodes",
        lambda: checks.test_with_one_cpu_time_is_the_sum_of_work(),
    ),
    "work before the run is charged": (
        "        self.ledgers.append(ledger)\n        self.counted = self._count()",
        "        self.ledgers.append(ledger)",
        lambda: checks.test_with_one_cpu_time_is_the_sum_of_work(),
    ),
    "what is counted first in the middle has no price": (
        "        if entries != self.priced:",
        "        if self.priced < 0:",
        lambda: checks.test_with_one_cpu_time_is_the_sum_of_work(),
    ),
    "frees are free": (
        "                    self.pools.append(_PricedPool(pool, alloc, free))",
        "                    self.pools.append(_PricedPool(pool, alloc, 0))",
        lambda: checks.test_with_one_cpu_time_is_the_sum_of_work(),
    ),
    "operations are not in the order of time": (
        "        while events and events[0].at <= task.time:\n            self._announce(task.time, task)",
        "        while False:\n            self._announce(task.time, task)",
        lambda: checks.test_tasks_that_compute_and_lock_are_machines_and_a_repairman(4, 2.0),
    ),
    "a lock is free before it is given back": (
        "        if events and events[0].at <= time:\n            self._push(time, _Release",
        "        if False:\n            self._push(time, _Release",
        lambda: checks.test_tasks_that_compute_and_lock_are_machines_and_a_repairman(4, 2.0),
    ),
    "a cache line is everywhere": (
        "        task.time = end\n        return True",
        "        return True",
        lambda: checks.test_a_handed_over_lock_costs_its_cache_line_each_time(),
    ),
    "a tree stays where it was": (
        "                task.time += moving\n",
        "                pass\n",
        lambda: checks.test_what_a_lock_protects_moves_with_it(),
    ),
    "a grace period waits for nobody": (
        "                if task.rcu_depth:\n                    task.rcu_waited_for = True",
        "                if False:\n                    task.rcu_waited_for = True",
        lambda: checks.test_a_grace_period_waits_for_a_reader_that_others_interrupt(),
    ),
    "a grace period waits for readers that come later": (
        "            if task is not None and task.rcu_entered <= self.now:",
        "            if task is not None:",
        lambda: checks.test_a_grace_period_waits_for_the_readers_that_were_there(0.0),
    ),
    "a grace period is over at once": (
        "        self.period_ends = self.now + self.grace_period",
        "        self.period_ends = self.now",
        lambda: checks.test_a_grace_period_waits_for_the_readers_that_were_there(500_000.0),
    ),
    "nobody's time slice ends": (
        "                self._yield_cpu(task)\n\n    def spend",
        "                pass\n\n    def spend",
        lambda: checks.test_who_waits_for_a_cpu_waits_its_turn(),
    ),
    "a pinned task goes anywhere": (
        "        if task.pinned >= 0:\n            cpu = self.cpus[task.pinned]",
        "        if False:\n            cpu = self.cpus[task.pinned]",
        lambda: checks.test_a_pinned_task_stays_where_it_is(),
    ),
    "who waits for a sequence count costs its CPU nothing": (
        "                self.spun += pause",
        "                pass",
        lambda: checks.test_a_reader_of_a_sequence_count_spins_until_it_is_even(),
    ),
    "who flushes waits for nobody": (
        "            task.time += taken\n",
        "            pass\n",
        lambda: checks.test_who_takes_entries_away_interrupts_who_runs_in_the_space_and_waits(),
    ),
    "who is interrupted goes on": (
        "                    there.interrupted += self.interrupt\n",
        "                    pass\n",
        lambda: checks.test_who_takes_entries_away_interrupts_who_runs_in_the_space_and_waits(),
    ),
    "idle CPUs are interrupted": (
        "(freed_tables or (there is not None and there.space is not None))",
        "True",
        lambda: checks.test_an_idle_cpu_keeps_its_space_and_flushes_by_itself_unless_tables_were_freed(False),
    ),
    "an idle CPU flushes freed tables when it comes to it": (
        "(freed_tables or (there is not None and there.space is not None))",
        "(there is not None and there.space is not None)",
        lambda: checks.test_an_idle_cpu_keeps_its_space_and_flushes_by_itself_unless_tables_were_freed(True),
    ),
    "a CPU keeps all spaces that it ran in": (
        "            last.cpus.remove(cpu.number)",
        "            pass",
        lambda: checks.test_a_cpu_forgets_a_space_when_it_runs_in_another(),
    ),
    "a process is nowhere until it says so": (
        "        if task.space is not None:\n            _load(cpu, task.space)\n",
        "",
        lambda: checks.test_who_takes_entries_away_interrupts_who_runs_in_the_space_and_waits(),
    ),
    "deferred flushes are forgotten": (
        "task.unflushed and (task.unflushed_dirty or not if_dirty)",
        "task.unflushed and task.unflushed_dirty and not if_dirty",
        lambda: checks.test_deferred_flushes_are_one(False),
    ),
    "nobody waits for a flush before he writes out": (
        "task.unflushed and (task.unflushed_dirty or not if_dirty)",
        "task.unflushed and not if_dirty",
        lambda: checks.test_deferred_flushes_are_one(True),
    ),
    "who gives a lock back takes the next before it wakes a sleeper": (
        "            if not task.interrupted:\n                return",
        "            return",
        lambda: waking.test_who_wakes_a_sleeper_does_so_before_anything_else(),
    ),
    "a holder of a spin lock may sleep": (
        '            raise Finding(f"{task.name} sleeps ({what}) while it holds a spin lock")',
        "            pass",
        lambda: checks.test_nobody_sleeps_with_a_spin_lock_or_in_an_rcu_section(),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after, check = MUTANTS[name]
    assert SOURCE.count(before) == 1, "the source has changed: say where the bug goes now"
    mutant = types.ModuleType("mutant")
    exec(compile(SOURCE.replace(before, after), f"virtual.py where {name}", "exec"), mutant.__dict__)
    for module in (checks, waking):
        monkeypatch.setattr(module, "VirtualTime", mutant.VirtualTime)
    monkeypatch.setattr(checks, "FEW", True)
    with pytest.raises((AssertionError, ValueError, IndexError, RecursionError, pytest.fail.Exception)):
        check()


def test_nothing_is_found_without_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    same = types.ModuleType("same")
    exec(compile(SOURCE, "virtual.py", "exec"), same.__dict__)
    for module in (checks, waking):
        monkeypatch.setattr(module, "VirtualTime", same.VirtualTime)
    monkeypatch.setattr(checks, "FEW", True)
    for _, _, check in MUTANTS.values():
        check()
