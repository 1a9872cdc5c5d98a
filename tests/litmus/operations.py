# SPDX-License-Identifier: GPL-2.0-or-later
"""What a thread asks of memory, in the terms of Linux's memory model: the language between programs and models.

A program is a generator: it yields operations and is sent the value of each (tools/memory-model/linux-kernel.def has
the kernel's primitives in the same terms).  A memory model (`Memory`) runs several of them side by side, in every way
that it allows.

Dependencies: a value carries what it was computed from (`after`), in whatever shape the model likes as long as `|`
joins two of them.  A load's address, a store's address and value, and `control` of whatever an `if` decides about are
values, so the model sees address, data and control dependencies.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

# Orders of an access
ONCE: Final = "once"  # READ_ONCE(), WRITE_ONCE(), rcu_dereference(), _relaxed
ACQUIRE: Final = "acquire"
RELEASE: Final = "release"
MB: Final = "mb"  # of a read-modify-write: smp_mb() before and after, if it succeeds
NORETURN: Final = "noreturn"  # of a read-modify-write whose value nobody gets

Number: TypeAlias = int | str  # a string is the address of the location of that name
After: TypeAlias = Any


class Value(NamedTuple):
    """A number (or the address of a location), and what it was computed from."""

    number: Number
    after: After


class Read(NamedTuple):
    """Its value is what was read."""

    location: Value
    order: str
    control: After


class Write(NamedTuple):
    location: Value
    value: Value
    order: str
    control: After


class Update(NamedTuple):
    """An atomic read-modify-write: `change` of the old number is the new one, or None if nothing is written (a
    failed cmpxchg(): then no order but that of a read).  `operands`: what the new number depends on besides the old.
    Its value is the old one."""

    location: Value
    change: Callable[[Number], Number | None]
    operands: After
    order: str
    control: After


class Fence(NamedTuple):
    """`kind`: mb, rmb, wmb, barrier, before-atomic, after-atomic, after-spinlock, after-unlock-lock, rcu-lock,
    rcu-unlock, sync-rcu"""

    kind: str


class Lock(NamedTuple):
    """spin_lock(), or spin_trylock() (`tries`: its value is 1 if the lock was taken)"""

    location: Value
    tries: bool
    control: After


class Unlock(NamedTuple):
    location: Value


class IsLocked(NamedTuple):
    """spin_is_locked(): its value is 0 or 1; no order"""

    location: Value
    control: After


Operation: TypeAlias = Read | Write | Update | Fence | Lock | Unlock | IsLocked
Program: TypeAlias = Generator[Operation, Value | None, None]


class Memory(Protocol):
    """A memory model that tries everything it allows."""

    @property
    def nothing(self) -> After:
        """What a constant depends on."""

    def explore(
        self,
        initial: Mapping[str, Number],
        programs: Sequence[Callable[[], Program]],
        ended: Callable[[Mapping[str, Number]], None],
    ) -> None:
        """Run the programs, in all ways or in enough of them that none of their results is missed.

        initial:  what each location holds at first; what is not in it holds 0
        programs: start one anew each
        ended:    called at the end of each execution in which all programs came to their end, with what the
                  locations hold then
        """
