# SPDX-License-Identifier: GPL-2.0-or-later
"""Random litmus tests in the kernel's C, by seed: the same number always gives the same text.

Two sorts.  A *cycle* is made as diyone7 makes its tests: each process has two accesses, with something between them
that may or may not order them; the last access of one and the first of the next are to the same location, and the
condition asks for the outcome in which each process comes before the next, and the last before the first.  A *medley*
is any few operations.  Both print all registers and locations, so that whole sets of outcomes can be compared.

herd7 tries all executions, so programs stay small: two or three processes, at most two atomic operations on a location.
"""

from __future__ import annotations

import random
from typing import Final

_LOCATIONS: Final = ("x", "y", "z", "v")
_LOADS: Final = (
    "READ_ONCE(*{0})", "READ_ONCE(*{0})", "rcu_dereference(*{0})", "atomic_read({0})", "smp_load_acquire({0})",
)  # fmt: skip
_STORES: Final = (
    "WRITE_ONCE(*{0}, {1});", "WRITE_ONCE(*{0}, {1});", "atomic_set({0}, {1});", "smp_store_release({0}, {1});",
    "rcu_assign_pointer(*{0}, {1});",
)  # fmt: skip
_SWAPS: Final = (
    "xchg{2}({0}, {1})", "atomic_xchg{2}({0}, {1})", "cmpxchg{2}({0}, 0, {1})", "atomic_cmpxchg{2}({0}, 0, {1})",
)  # fmt: skip
_ATOMICS: Final = (
    "{2} = atomic_add_return{1}(1, {0});", "{2} = atomic_fetch_inc{1}({0});", "{2} = atomic_fetch_or{1}(2, {0});",
    "{2} = atomic_sub_return{1}(1, {0});", "{2} = atomic_dec_and_test({0});", "{2} = atomic_add_unless({0}, 1, 0);",
    "{2} = atomic_fetch_add{1}(2, {0});", "atomic_inc({0});", "atomic_add(2, {0});", "atomic_dec({0});",
)  # fmt: skip
_ORDERS: Final = ("", "_relaxed", "_acquire", "_release")
# What may order two accesses, by whether they are loads
_POINTED: Final = {
    (True, True): ("rmb", "address"),
    (True, False): ("data", "control", "address"),
    (False, True): ("mb", "grace"),
    (False, False): ("wmb", "wmb", "mb"),
}
_READERS: Final = ("rcu", "rcu", "grace")
_ANY: Final = (
    "", "mb", "rcu", "grace", "lock", "before-atomic", "after-atomic", "unlock-lock", "after-unlock-lock",
    "after-spinlock", "inside",
)  # fmt: skip


class _Process:
    """One process as it is written."""

    def __init__(self, number: int) -> None:
        self.number: Final = number
        self.lines: Final[list[str]] = []
        self.used: Final[set[str]] = set()
        self.registers = 0

    def register(self) -> str:
        self.registers += 1
        return f"r{self.registers - 1}"

    def say(self, *lines: str) -> None:
        self.lines.extend(lines)

    def text(self) -> str:
        parameters = ", ".join(
            f"{'spinlock_t' if name in 'st' else 'int'} *{name}" for name in sorted(self.used)
        )
        declared = [f"int r{number};" for number in range(self.registers)]
        return f"P{self.number}({parameters})\n{{\n" + "".join(f"\t{line}\n" for line in declared + self.lines) + "}\n"


def generate(seed: int) -> str:
    """The text of the test with that number."""
    dice = random.Random(f"litmus/{seed}")
    if seed % 3 == 0:
        return _medley(dice, f"medley-{seed}")
    return _cycle(dice, f"cycle-{seed}", readers=seed % 12 == 1)


def _text(name: str, processes: list[_Process], locations: list[str], condition: list[str]) -> str:
    seen = [f"{process.number}:r{n}" for process in processes for n in range(process.registers)] + locations
    bodies = "\n".join(process.text() for process in processes)
    asked = " /\\ ".join(condition)
    return f"C {name}\n\n{{}}\n\n{bodies}\nlocations [{'; '.join(seen)}]\nexists ({asked})\n"


def _load(dice: random.Random, process: _Process, location: str, plain: bool = False, at: str = "") -> str:
    """Returns the register."""
    register = process.register()
    process.used.add(location)
    form = _LOADS[0] if plain or at else dice.choice(_LOADS)
    process.say(f"{register} = {form.format(at or location)};")
    return register


def _store(dice: random.Random, process: _Process, location: str, value: str, plain: bool = False) -> None:
    process.used.add(location)
    if not plain and dice.random() < 0.15:
        register = process.register()
        form = dice.choice(_SWAPS).format(location, value, dice.choice(_ORDERS))
        process.say(f"{register} = {form};")
    else:
        process.say((_STORES[0] if plain else dice.choice(_STORES)).format(location, value))


# Cycles


def _cycle(dice: random.Random, name: str, readers: bool) -> str:
    """`readers`: with nothing but RCU sections and grace periods between accesses"""
    count = dice.choice((2, 3, 3, 4) if readers else (2, 2, 2, 3))
    # The edge from each process to the next, on a location of its own: rf, fr or co
    edges = [dice.choice(("rf", "rf", "fr", "fr", "co")) for _ in range(count)]
    values = dict.fromkeys(_LOCATIONS[:count], 0)
    processes = [_Process(number) for number in range(count)]
    condition = []
    for number, process in enumerate(processes):
        into, out = _LOCATIONS[number - 1 if number else count - 1], _LOCATIONS[number]
        first = edges[number - 1] == "rf"  # is the first access a load?
        second = edges[number] == "fr"
        link = dice.choice(_READERS if readers else (*_ANY, *_POINTED[first, second] * 6))
        plain = readers or dice.random() < 0.6
        wrapped = _opens(dice, process, link)
        register = ""
        if first:
            register = _load(dice, process, into, plain or link == "address")
            condition.append(f"{number}:{register}=1")
        else:
            overwrites = edges[number - 1] == "co"
            _store(dice, process, into, "2" if overwrites else "1", plain)
            if overwrites:
                condition.append(f"{into}=2")
        _link(dice, process, link)
        branch = link == "control"
        start = len(process.lines)
        if second:
            at = f"({out} + ({register} ^ {register}))" if link == "address" else ""
            condition.append(f"{number}:{_load(dice, process, out, plain, at)}=0")
        else:
            value = "1"
            if link == "data":
                value = f"({register} ^ {register}) + 1"
            if link == "address":
                process.used.add(out)
                process.say(f"WRITE_ONCE(*({out} + ({register} ^ {register})), 1);")
            else:
                _store(dice, process, out, value, plain)
        if branch:
            inner = process.lines[start:]
            del process.lines[start:]
            process.say(f"if ({register})", "{", *(f"\t{line}" for line in inner), "}")
        process.say(*wrapped)
    return _text(name, processes, sorted(values), condition)


def _opens(dice: random.Random, process: _Process, link: str) -> list[str]:
    """What is in front of the first access; returns what closes it again."""
    if link == "rcu":
        process.say("rcu_read_lock();")
        return ["rcu_read_unlock();"]
    if link in ("inside", "after-spinlock"):
        process.used.add("s")
        if link == "after-spinlock" and dice.random() < 0.5:
            return ["spin_unlock(s);"]
        process.say("spin_lock(s);")
        if link == "after-spinlock":
            process.say("smp_mb__after_spinlock();")
        return ["spin_unlock(s);"]
    if link in ("unlock-lock", "after-unlock-lock"):
        process.used.update(("s", "t"))
        process.say("spin_lock(s);")
        return ["spin_unlock(t);"]
    return []


def _link(dice: random.Random, process: _Process, link: str) -> None:
    """What is between the two accesses."""
    if link in ("mb", "rmb", "wmb"):
        process.say(f"smp_{link}();")
    elif link == "grace":
        process.say("synchronize_rcu();")
    elif link == "lock":
        process.used.add("s")
        process.say("spin_lock(s);", "spin_unlock(s);")
    elif link == "after-spinlock" and not any("spin_lock(" in line for line in process.lines):
        process.say("spin_lock(s);", "smp_mb__after_spinlock();")
    elif link in ("before-atomic", "after-atomic"):
        process.used.add("w")
        operation = dice.choice(("atomic_inc(w);", "(void)atomic_fetch_inc_relaxed(w);", "atomic_add(2, w);"))
        fence = f"smp_mb__{link.replace('-', '_')}();"
        process.say(*((fence, operation) if link == "before-atomic" else (operation, fence)))
    elif link in ("unlock-lock", "after-unlock-lock"):
        process.say("spin_unlock(s);", "spin_lock(t);")
        if link == "after-unlock-lock":
            process.say("smp_mb__after_unlock_lock();")


# Medleys


def _medley(dice: random.Random, name: str) -> str:
    locations = list(_LOCATIONS[: dice.choice((2, 2, 3))])
    atomics = dict.fromkeys(locations, 0)
    processes = [_Process(number) for number in range(dice.choice((2, 2, 3)))]
    for process in processes:
        closes: list[str] = []
        last = ""
        for step in range(dice.choice((2, 2, 3)) if len(processes) == 3 else dice.choice((2, 3, 3))):
            if step:
                process.say(*_between(dice))
            if dice.random() < 0.2 and not closes:
                closes = _region(dice, process)
            last = _any(dice, process, dice.choice(locations), atomics, last)
            if closes and dice.random() < 0.4:
                process.say(*closes)
                closes = []
        process.say(*closes)
    registers = [f"{process.number}:r{n}" for process in processes for n in range(process.registers)]
    wanted = dice.sample(registers, min(len(registers), 3))
    condition = [f"{register}={dice.choice((0, 1, 1, 2))}" for register in wanted] or ["x=1"]
    return _text(name, processes, locations, condition)


def _between(dice: random.Random) -> list[str]:
    return dice.choice(
        ([], [], [], ["smp_mb();"], ["smp_rmb();"], ["smp_wmb();"], ["smp_mb();"], ["synchronize_rcu();"])
        if dice.random() < 0.8
        else ([], ["barrier();"])
    )


def _region(dice: random.Random, process: _Process) -> list[str]:
    if dice.random() < 0.5:
        process.say("rcu_read_lock();")
        return ["rcu_read_unlock();"]
    process.used.add("s")
    process.say("spin_lock(s);")
    return ["spin_unlock(s);"]


def _any(dice: random.Random, process: _Process, location: str, atomics: dict[str, int], last: str) -> str:
    """An operation; returns a register that a later one may depend on."""
    kind = dice.random()
    if kind < 0.4:
        at = f"({location} + ({last} ^ {last}))" if last and dice.random() < 0.25 else ""
        return _load(dice, process, location, at=at)
    if kind < 0.6 and atomics[location] < 2:
        atomics[location] += 1
        process.used.add(location)
        form = dice.choice(_ATOMICS)
        register = process.register() if "{2}" in form else ""
        around = dice.random()
        if around < 0.15:
            process.say("smp_mb__before_atomic();")
        process.say(form.format(location, dice.choice(_ORDERS), register))
        if around > 0.85:
            process.say("smp_mb__after_atomic();")
        return register or last
    value = str(dice.choice((1, 1, 2)))
    if last and dice.random() < 0.2:
        value = f"{last} + 1"
    start = len(process.lines)
    _store(dice, process, location, value, plain=atomics[location] >= 2)
    if last and dice.random() < 0.25:
        inner = process.lines[start:]
        del process.lines[start:]
        process.say(f"if ({last})", "{", *(f"\t{line}" for line in inner), "}")
    return last
