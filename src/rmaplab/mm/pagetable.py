# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables: a dictionary of leaves, 512 entries each.

Models the last level of Linux's page tables (a leaf is a PTE page: 512 entries, 2 MiB); the upper levels
hold nothing that the reverse map needs.  An entry is one int64: flag bits, and above them a page frame
number (or a swap slot).  Exactly one of the kind bits is set in an entry that is not none.

    bits 0..11   PTE_* flags
    bits 12..    pfn (ANON, MIGRATION), swap slot (SWAP), else 0

Invariants
- PTE_EXCLUSIVE is Linux's PageAnonExclusive() for a present entry, and the exclusive flag of a swap or
  migration entry.  An exclusive page is mapped by one entry only, so the entry can carry the flag.  What a page of a
  large folio keeps of it when that entry goes is in folio.py (`exclusive`).
- PTE_WRITE in an anonymous entry implies PTE_EXCLUSIVE.
- `used` of a leaf is the number of its entries that are not none.
- A leaf exists from the first fault or copy that needs it until no VMA is left in its 2 MiB, with or without entries;
  one that is `huge` (huge_pmd.py) as long as it has entries.

Locking: the page-table lock, one per leaf, for entries.  A reader has to keep the leaf from being freed meanwhile: by
mmap_lock or the VMA's lock, by a lock that the design needs to drop the VMA, or by RCU (unmap_region()).
"""

from __future__ import annotations

from typing import Final, cast

import numpy as np

from rmaplab.mm.folio import Int64s
from rmaplab.sync.fields import OF_LEAF, OF_PMD
from rmaplab.sync.locks import Rcu, Scheduler, SpinLock
from rmaplab.sync.order import ONCE, atomic, initialised, read_once, smp_wmb, uses
from rmaplab.sync.work import Ledger, LockClass

PTE_WRITE: Final = 1
PTE_EXCLUSIVE: Final = 2
PTE_DIRTY: Final = 4
PTE_YOUNG: Final = 8
PTE_ANON: Final = 16  # kind: present, an anonymous page
PTE_ZERO: Final = 32  # kind: present, the zero page
PTE_FILE: Final = 64  # kind: present, a page of the page cache
PTE_SWAP: Final = 128  # kind: swapped out
PTE_MIGRATION: Final = 256  # kind: the page is being migrated
PTE_KSM: Final = 512  # with PTE_ANON or PTE_MIGRATION: the page belongs to KSM
PTE_SOFT_CLEAN: Final = 1024  # not soft-dirty, as KSM maps pages: a first write is seen where that is tracked
PTE_GUARD: Final = 2048  # kind: a guard region's marker (PTE_MARKER_GUARD): whoever touches it gets SIGSEGV
PTE_PRESENT: Final = PTE_ANON | PTE_ZERO | PTE_FILE
PTE_SHIFT: Final = 12  # of pfn or swap slot
PTE_FLAGS: Final = 0xFFF

_FEW: Final = 32  # up to so many it is quicker to look at each than to have NumPy look at all
LEAF_SHIFT: Final = 21  # a leaf spans 2 MiB
LEAF_ENTRIES: Final = 512
LEAF_SIZE: Final = 1 << LEAF_SHIFT  # bytes


class Leaf:
    """512 entries: `v` as a NumPy array, `m` the same memory for single entries.  `huge`: in Linux, one entry of the
    level above stands for them (pmd_trans_huge())."""

    def __init__(self, v: Int64s, used: int, lock: SpinLock) -> None:
        self.v: Final = v
        self.m: Final[memoryview] = v.data
        self.used = used
        self.huge = False
        self.lock: Final = lock

    def present(self, first: int, last: int) -> list[int]:
        """Numbers of the entries in [first, last) that are not none, ascending, as they are now."""
        if last - first <= _FEW:
            return [i for i in range(first, last) if self.m[i]]
        found = self.v[first:last].nonzero()[0]
        if first:
            found += first
        numbers: list[int] = found.tolist()
        return numbers

    def having(self, kind: int, first: int, last: int) -> list[int]:
        """The entries in [first, last) of this kind, or one of these, ascending, as they are now."""
        if last - first <= _FEW:
            return [entry for entry in [self.m[i] for i in range(first, last)] if entry & kind]
        entries = self.v[first:last]
        found: list[int] = entries[entries & kind != 0].tolist()
        return found


class PageTable:
    """The page table of one address space.  Its leaves are counted in `ledger`.

    huge:     a leaf may be huge
    rcu:      under which leaves are locked, if one may be freed while its VMA stays (pte_offset_map())
    pmd_lock: of the level above, for who moves a leaf
    """

    def __init__(
        self,
        lock_class: LockClass,
        scheduler: Scheduler | None,
        ledger: Ledger,
        huge: bool = False,
        rcu: Rcu | None = None,
    ) -> None:
        self.lock_class: Final = lock_class
        self._any_lock: Final = SpinLock(lock_class, None)  # where nobody else is there, of all leaves: it only counts
        self.pmd_lock: Final = SpinLock(lock_class, scheduler)
        self.rcu: Final = rcu
        self._field: Final = OF_PMD if huge else OF_LEAF
        self.scheduler: Final = scheduler
        self._allocated: Final = ledger.tally("leaves made")
        self._freed: Final = ledger.tally("leaves freed")
        self.leaves: dict[int, Leaf] = {}  # by address >> LEAF_SHIFT

    def new_leaf(self, v: Int64s, used: int) -> Leaf:
        """A leaf that is in no table yet (pte_alloc_one())."""
        self._allocated.count += 1
        lock = self._any_lock if self.scheduler is None else SpinLock(self.lock_class, self.scheduler)
        return Leaf(v, used, lock)

    def take_out(self, start: int, end: int, floor: int, ceiling: int) -> list[Leaf]:
        """Take out the leaves that touch [start, end) and lie within [floor, ceiling), where no VMA is left
        (free_pgd_range(), free_pte_range()).  The caller frees them."""
        lowest = -(-floor >> LEAF_SHIFT)
        highest = (ceiling >> LEAF_SHIFT) - 1
        return [self.remove(number) for number in self.numbers(start, end) if lowest <= number <= highest]

    def remove(self, number: int) -> Leaf:
        """Take out one leaf (pmd_clear())."""
        atomic(self.scheduler, "pmd_clear()", self, self._field, number, ONCE)
        self._freed.count += 1
        return self.leaves.pop(number)

    def move(self, old: int, new: int) -> None:
        """The leaf with number `old` gets the number `new`, which nobody has: for a moment it is at neither, as who
        reads without `pmd_lock` sees (pmdp_huge_get_and_clear(), set_pmd_at(); move_normal_pmd())."""
        atomic(self.scheduler, "pmd_clear()", self, self._field, old, ONCE)
        leaf = self.leaves.pop(old)
        atomic(self.scheduler, "pmd_populate()", self, self._field, new, ONCE)
        self.leaves[new] = leaf

    def get(self, addr: int) -> int:
        """The entry at `addr`, 0 if there is none."""
        leaf = self.leaves.get(addr >> LEAF_SHIFT)
        if leaf is None:
            return 0
        entry: int = leaf.m[(addr >> 12) & 511]
        return entry

    def is_huge(self, addr: int) -> bool:
        """Is there a huge leaf for `addr`?"""
        leaf = self.leaves.get(addr >> LEAF_SHIFT)
        return leaf is not None and leaf.huge

    def leaf(self, addr: int) -> Leaf:
        """The leaf for `addr`, made if there is none."""
        number = addr >> LEAF_SHIFT
        leaf = self.leaves.get(number)
        if leaf is None:
            leaf = self.new_leaf(np.zeros(LEAF_ENTRIES, dtype=np.int64), 0)
            return self.install(number, leaf)
        return leaf

    def install(self, number: int, leaf: Leaf) -> Leaf:
        """pmd_install().  Under the lock of the level above, so that who comes second finds the first one's; that lock
        is an atomic here."""
        if self.scheduler is None:
            self.leaves[number] = leaf
            return leaf
        initialised(self.scheduler, "pte_alloc_one()", leaf, "lock")
        smp_wmb(self.scheduler, "pmd_install()")
        atomic(self.scheduler, "pmd_populate()", self, self._field, number, ONCE)
        return self.leaves.setdefault(number, leaf)

    def look_up(self, number: int) -> Leaf | None:
        """The leaf with a number, for who has no lock of the level above (pmdp_get_lockless()); None: there is none."""
        leaf = self.leaves.get(number)
        if self.scheduler is not None:
            seen = read_once(self.scheduler, "pmdp_get_lockless()", self, self._field, leaf, number)
            leaf = cast("Leaf | None", seen)
            if leaf is not None:
                uses(self.scheduler, "pte_lockptr()", leaf, "lock")
        return leaf

    def set(self, addr: int, entry: int) -> None:
        """Store `entry` (0: none) at `addr`."""
        leaf = self.leaf(addr)
        i = (addr >> 12) & 511
        old: int = leaf.m[i]
        leaf.m[i] = entry
        if old == 0:
            if entry != 0:
                leaf.used += 1
        elif entry == 0:
            leaf.used -= 1

    def numbers(self, start: int, end: int) -> list[int]:
        """Numbers of the leaves that exist and touch [start, end), ascending."""
        first = start >> LEAF_SHIFT
        last = (end - 1) >> LEAF_SHIFT
        leaves = self.leaves
        if last - first < len(leaves):
            return [n for n in range(first, last + 1) if n in leaves]
        return sorted([n for n in leaves if first <= n <= last])

    def part(self, number: int, start: int, end: int) -> tuple[int, int, int]:
        """What of leaf `number` lies in [start, end): address of the leaf, first entry, and the one behind the last."""
        base = number << LEAF_SHIFT
        first = (start - base) >> 12 if start > base else 0
        last = (end - base) >> 12 if end < base + LEAF_SIZE else LEAF_ENTRIES
        return base, first, last

    def anon_entries(self) -> tuple[Int64s, Int64s]:
        """Addresses and entries of all anonymous pages mapped (present or under migration)."""
        addrs: list[Int64s] = []
        entries: list[Int64s] = []
        for number in sorted(self.leaves):
            v = self.leaves[number].v
            at = np.flatnonzero(v & (PTE_ANON | PTE_MIGRATION))
            if len(at):
                addrs.append((at.astype(np.int64) << 12) + (number << LEAF_SHIFT))
                entries.append(v[at])
        if not addrs:
            empty = np.zeros(0, dtype=np.int64)
            return empty, empty
        return np.concatenate(addrs), np.concatenate(entries)
