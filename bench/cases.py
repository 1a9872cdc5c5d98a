# SPDX-License-Identifier: GPL-2.0-or-later
"""What bench/ measures in the model, a process a case: `python -m bench.cases CASE ARGUMENT ROUNDS`.

Prints JSON: whether the model is compiled, and one value a round, in seconds unless the case says otherwise.
The same code runs compiled and interpreted; the caller decides by the module search path.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from random import Random
from time import perf_counter, process_time

import rmaplab
from rmaplab.check.processes import collect_often
from rmaplab.check.scenarios import scenario
from rmaplab.check.verify import Plan, run_history
from rmaplab.measure.cost import load_costs
from rmaplab.measure.scale import Plan as ScalePlan
from rmaplab.measure.scale import Run
from rmaplab.measure.sources import history_for
from rmaplab.mm.abi import (
    MAP_ANONYMOUS,
    MAP_FIXED_NOREPLACE,
    MAP_PRIVATE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
)
from rmaplab.mm.machine import Machine
from rmaplab.mm.profile import PROFILES, REFERENCE, profile_for
from rmaplab.mm.reverse_map import ReverseMap
from rmaplab.mm.vma import MM, PAGE_SIZE
from rmaplab.rmap.anon_vma import AnonVmaRmap
from rmaplab.rmap.cow_context import CowContextRmap
from rmaplab.sync.interleave import Execution, explore
from rmaplab.sync.locks import RwSemaphore, SpinLock
from rmaplab.sync.virtual import VirtualTime
from rmaplab.sync.weak import WeakExecution
from rmaplab.sync.work import Ledger, LockClass, Tally
from rmaplab.trace.history import read_history
from rmaplab.trace.play import Player
from rmaplab.workloads.prefork import Prefork

LOCKSTEP: list[type[ReverseMap]] = [AnonVmaRmap, CowContextRmap]
ALONE: list[type[ReverseMap]] = [AnonVmaRmap]  # what the kernel itself does
READ_WRITE = PROT_READ | PROT_WRITE
PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
BASE = 0x7F00_0000_0000
AWAY = 0x7E00_0000_0000
STACK = 0x7FFC_0000_0000


def machine_with_process(designs: list[type[ReverseMap]]) -> tuple[Machine, MM]:
    machine = Machine(PROFILES[REFERENCE], designs)
    machine.exec(1, STACK, 0x21000, STACK, 0)
    return machine, machine.mm_of(1)


def map_touched(machine: Machine, mm: MM, addr: int, nr_pages: int) -> None:
    """Map `nr_pages` private anonymous pages at `addr` and write to each."""
    if machine.mmap(mm, addr, nr_pages * PAGE_SIZE, READ_WRITE, PRIVATE, None, 0) != addr:
        raise AssertionError(f"could not map {nr_pages} pages at {addr:#x}")
    if machine.fault_range(mm, addr, nr_pages, True) != nr_pages:
        raise AssertionError(f"could not touch {nr_pages} pages at {addr:#x}")


def islands(designs: list[type[ReverseMap]], size: int) -> tuple[Machine, MM]:
    """`size` VMAs of one touched page each, holes between them, as in kernel.c."""
    machine, mm = machine_with_process(designs)
    for i in range(size):
        map_touched(machine, mm, BASE + 2 * i * PAGE_SIZE, 1)
    return machine, mm


def fork_and_exit(machine: Machine, rounds: int) -> list[float]:
    seconds = []
    for child in range(2, rounds + 3):
        start = perf_counter()
        machine.fork(1, child, 0)
        machine.exit(child)
        seconds.append(perf_counter() - start)
    return seconds[1:]


def fork_vmas(size: int, rounds: int) -> list[float]:
    machine, _ = islands(ALONE, size)
    return fork_and_exit(machine, rounds)


def fork_vmas_lockstep(size: int, rounds: int) -> list[float]:
    machine, _ = islands(LOCKSTEP, size)
    return fork_and_exit(machine, rounds)


def fork_pages(size: int, rounds: int) -> list[float]:
    machine, mm = machine_with_process(ALONE)
    map_touched(machine, mm, BASE, size)
    return fork_and_exit(machine, rounds)


def resident() -> int:
    """Bytes of memory that this process has resident."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def page_bytes(size: int, rounds: int) -> list[float]:
    """In bytes: what the process grows by for each of `size` mapped pages."""
    machine, mm = machine_with_process(LOCKSTEP)
    gc.collect()
    before = resident()
    map_touched(machine, mm, BASE, size)
    gc.collect()
    return [(resident() - before) / size] * rounds


def _among(size: int, rounds: int, operation: Callable[[Machine, MM, int], None]) -> list[float]:
    """Processor seconds of one `operation` on a random VMA among `size`, averaged over many."""
    machine, mm = islands(LOCKSTEP, size)
    random = Random(1)
    seconds = []
    for _ in range(rounds):
        places = [BASE + 2 * random.randrange(size) * PAGE_SIZE for _ in range(500)]
        start = process_time()
        for addr in places:
            operation(machine, mm, addr)
        seconds.append((process_time() - start) / len(places))
    return seconds


def mmap(size: int, rounds: int) -> list[float]:
    def operation(machine: Machine, mm: MM, addr: int) -> None:
        hole = addr + PAGE_SIZE
        machine.mmap(mm, hole, PAGE_SIZE, PROT_READ, PRIVATE, None, 0)
        machine.munmap(mm, hole, PAGE_SIZE)

    return _among(size, rounds, operation)


def mprotect(size: int, rounds: int) -> list[float]:
    def operation(machine: Machine, mm: MM, addr: int) -> None:
        machine.mprotect(mm, addr, PAGE_SIZE, PROT_READ)
        machine.mprotect(mm, addr, PAGE_SIZE, READ_WRITE)

    return _among(size, rounds, operation)


def mremap(size: int, rounds: int) -> list[float]:
    def operation(machine: Machine, mm: MM, addr: int) -> None:
        flags = MREMAP_MAYMOVE | MREMAP_FIXED
        away = addr - BASE + AWAY
        machine.mremap(mm, addr, PAGE_SIZE, PAGE_SIZE, flags, away)
        machine.mremap(mm, away, PAGE_SIZE, PAGE_SIZE, flags, addr)

    return _among(size, rounds, operation)


def fault(size: int, rounds: int) -> list[float]:
    def operation(machine: Machine, mm: MM, addr: int) -> None:
        hole = addr + PAGE_SIZE
        machine.mmap(mm, hole, PAGE_SIZE, READ_WRITE, PRIVATE, None, 0)
        machine.fault(mm, hole, True)
        machine.munmap(mm, hole, PAGE_SIZE)

    return _among(size, rounds, operation)


def events(size: int, rounds: int) -> list[float]:
    """Processor seconds an event takes in a history of `size` requests to a server with a fixed state."""
    result = []
    for _ in range(rounds):
        history = Prefork(requests=size).history()
        todo = list(history)
        player = Player(Machine(PROFILES[REFERENCE], LOCKSTEP), history.header)
        start = process_time()
        player.play(todo)
        result.append((process_time() - start) / len(todo))
    return result


def replay(path: str, rounds: int) -> list[float]:
    """Seconds from the file to the end of its replay."""
    seconds = []
    for _ in range(rounds):
        start = perf_counter()
        history = read_history(path)
        profile, _ = profile_for(history.header.kernel)
        Player(Machine(profile, LOCKSTEP), history.header).play(history)
        seconds.append(perf_counter() - start)
    return seconds


def verify(every: int, rounds: int) -> list[float]:
    """Seconds that a step of `rmaplab verify` takes, two designs in lockstep, about 200 pages; `every` 0: never
    held against the page tables, 1: after every step."""
    plan = Plan(designs=("anon_vma", "cow_context"), every=every, pages=200)
    result = []
    for _ in range(rounds):
        start = process_time()
        # Of these numbers, histories are watched by both, without large folios, and played once (check/verify.py).
        steps = sum(run_history(plan, number, 500).steps for number in (0, 1, 6, 10, 12, 13))
        result.append((process_time() - start) / steps)
    return result


# One of each user, with as many steps as is usual, and enough interleavings that to build its world takes a small part.
WHOLE = (
    "referenced / mremap onto another",
    "unmap / mremap onto another",
    "migrate / exit of the child",
    "restore / fork, and its child forks",
)
# Few enough steps that plain search ends within seconds.
PLAIN = ("referenced / madvise in the child", "referenced / KSM page unshared")


def race(repetitions: int, rounds: int, begin: type[Execution] = Execution) -> list[float]:
    """Seconds that an interleaving of whole scenarios takes, each run so often with two designs."""
    collect_often()
    scenarios = [scenario(name, design) for name in WHOLE for design in LOCKSTEP]
    result = []
    for _ in range(rounds):
        tried = 0
        start = process_time()
        for _ in range(repetitions):
            for each in scenarios:
                outcome = explore(each, begin=begin)
                tried += outcome.executions + outcome.pruned
        result.append((process_time() - start) / tried)
    return result


def race_weak(repetitions: int, rounds: int) -> list[float]:
    """The same, where loads may return old values."""
    return race(repetitions, rounds, WeakExecution)


def race_reduction(number: int, rounds: int) -> list[float]:
    """In times: interleavings of one of the scenarios of few steps, over those that reduction leaves."""
    each = scenario(PLAIN[number], AnonVmaRmap)
    plain = explore(each, reduce=False)
    reduced = explore(each)
    if not (plain.exhausted and reduced.exhausted) or plain.failures or reduced.failures:
        raise AssertionError(f"{each.name} was not tried to its end, or does not hold")
    return [plain.executions / (reduced.executions + reduced.pruned)] * rounds


def locks(cpus: int, rounds: int) -> list[float]:
    """Processor seconds that taking and giving back a lock takes in virtual time: each task has a lock of its own and
    takes one that all share every tenth time."""
    costs = {"handover": 100.0, "context switch": 1000.0, "wake up": 2000.0, "steps": 1.0}
    result = []
    for _ in range(rounds):
        time = VirtualTime(cpus, lambda key: costs.get(key, 0.0))
        ledger = Ledger("bench")
        steps = ledger.tally("steps")
        time.watch(ledger)
        shared = RwSemaphore(LockClass("shared"), time)

        def task(seed: int, time: VirtualTime = time, steps: Tally = steps, shared: RwSemaphore = shared) -> None:
            own = SpinLock(LockClass("own"), time)
            random = Random(seed)
            for turn in range(400_000 // cpus):
                own.lock()
                steps.count += random.randrange(1000)
                own.unlock()
                if turn % 10 == 0:
                    shared.down_write()
                    steps.count += random.randrange(10)
                    shared.up_write()

        for seed in range(cpus):
            time.spawn(str(seed), partial(task, seed))
        start = process_time()
        time.run()
        result.append((process_time() - start) / time.figures.lock_operations)
    return result


def scaled(what: str, cpus: int) -> tuple[float, int]:
    """Processor seconds of a run of `rmaplab scale`, set-up left out, and how many operations it had."""
    header, parallel, _ = history_for(what.split(), cpus, 1)
    run = Run(header, parallel, ScalePlan(PROFILES[REFERENCE], load_costs()), AnonVmaRmap, cpus)
    run.set_up()
    start = process_time()
    point = run.go()
    return process_time() - start, point.operations


def storm(cpus: int, rounds: int) -> list[float]:
    """Processor seconds an operation of a storm, of which there are equally many on any number of CPUs."""
    result = []
    for _ in range(rounds):
        seconds, operations = scaled(f"storm vmas=20 rounds={2048 // cpus}", cpus)
        result.append(seconds / operations)
    return result


def zygote(size: int, rounds: int) -> list[float]:
    """Processor seconds of a zygote's run on 256 CPUs that has at least `size` operations."""
    result = []
    for _ in range(rounds):
        apps = size // 290  # operations that one of them has
        seconds, operations = scaled(f"zygote apps=256 restarts={apps - 256}", 256)
        if operations < size:
            raise AssertionError(f"{operations} operations are fewer than {size}")
        result.append(seconds)
    return result


SIZED = (
    fork_vmas,
    fork_vmas_lockstep,
    fork_pages,
    page_bytes,
    mmap,
    mprotect,
    mremap,
    fault,
    events,
    verify,
    race,
    race_reduction,
    race_weak,
    locks,
    storm,
    zygote,
)


def main() -> None:
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)  # as rmaplab itself sets it (rmaplab.commands.frame.main())
    name, argument, rounds = sys.argv[1:]
    if name == "replay":
        values = replay(argument, int(rounds))
    else:
        values = {case.__name__: case for case in SIZED}[name](int(argument), int(rounds))
    print(json.dumps({"build": rmaplab.build_info(), "values": values}))


if __name__ == "__main__":
    main()
