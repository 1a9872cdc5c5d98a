# SPDX-License-Identifier: GPL-2.0-or-later
"""The VMA tree says what a sorted list says, whatever was inserted, removed or resized before."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmaplab.mm.pagetable import PageTable
from rmaplab.mm.vma import MM, VM_GROWSDOWN, VMA
from rmaplab.mm.vma_tree import VMATree
from rmaplab.sync.locks import RwSemaphore
from rmaplab.sync.work import Ledger

PAGE = 4096
GUARD = 3 * PAGE
SPACE = 4000  # pages that the tests play in


def an_mm() -> MM:
    locks = Ledger("test").lock_class("any")
    return MM(1, RwSemaphore(locks, None), PageTable(locks, None, Ledger("test")))


def a_tree() -> VMATree[VMA]:
    return VMATree(VM_GROWSDOWN)


class Naive:
    """What the tree should be: a list, searched from one end to the other."""

    def __init__(self) -> None:
        self.vmas: list[VMA] = []

    def free_at(self, start: int, end: int) -> bool:
        return all(vma.end <= start or end <= vma.start for vma in self.vmas)

    def gaps(self, low: int, high: int, guard: int) -> list[tuple[int, int]]:
        """Free ranges within [low, high), the guard gap of stacks taken off."""
        found = []
        bottom = low
        for vma in sorted(self.vmas, key=lambda vma: vma.start):
            top = vma.start - (guard if vma.flags & VM_GROWSDOWN else 0)
            found.append((bottom, min(top, high)))
            bottom = max(bottom, vma.end)
        found.append((bottom, high))
        return [(a, b) for a, b in found if b > a]

    def highest_gap(self, length: int, low: int, high: int, guard: int) -> int:
        fitting = [b - length for a, b in self.gaps(low, high, guard) if b - a >= length]
        return max(fitting, default=-1)

    def lowest_gap(self, length: int, low: int, high: int, guard: int) -> int:
        return min((a for a, b in self.gaps(low, high, guard) if b - a >= length), default=-1)


def agree(tree: VMATree[VMA], naive: Naive, rng: random.Random) -> None:
    vmas = sorted(naive.vmas, key=lambda vma: vma.start)
    assert len(tree) == len(vmas)
    assert tree.to_list() == vmas
    assert list(tree) == vmas
    for _ in range(8):
        addr = rng.randrange(SPACE) * PAGE + rng.choice((0, 1, PAGE - 1))
        assert tree.at(addr) is next((v for v in vmas if v.start <= addr < v.end), None)
        assert tree.first_after(addr) is next((v for v in vmas if v.end > addr), None)
        assert tree.last_from(addr) is next((v for v in reversed(vmas) if v.start <= addr), None)
        end = addr + rng.randrange(200) * PAGE
        assert tree.overlapping(addr, end) == [v for v in vmas if v.start < end and v.end > addr and end > addr]
        low = rng.randrange(SPACE) * PAGE
        high = low + rng.randrange(1, SPACE) * PAGE
        length = rng.choice((1, 2, 3, 5, 20, 200)) * PAGE
        assert tree.highest_gap(length, low, high, GUARD) == naive.highest_gap(length, low, high, GUARD)
        assert tree.lowest_gap(length, low, high, GUARD) == naive.lowest_gap(length, low, high, GUARD)
    if vmas:
        i = rng.randrange(len(vmas))
        assert tree.before(vmas[i]) is (vmas[i - 1] if i else None)
        assert tree.after(vmas[i]) is (vmas[i + 1] if i + 1 < len(vmas) else None)


def one_change(tree: VMATree[VMA], naive: Naive, mm: MM, rng: random.Random) -> None:
    what = rng.choice(("insert", "insert", "insert", "remove", "resize"))
    if what == "insert" or not naive.vmas:
        start = rng.randrange(1, SPACE) * PAGE
        end = start + rng.choice((1, 1, 2, 4, 9)) * PAGE
        if naive.free_at(start, end):
            vma = VMA(mm, 0, start, end, start // PAGE, VM_GROWSDOWN if rng.random() < 0.2 else 0, None)
            naive.vmas.append(vma)
            tree.insert(vma)
    elif what == "remove":
        vma = naive.vmas.pop(rng.randrange(len(naive.vmas)))
        tree.remove(vma)
    else:
        vma = rng.choice(naive.vmas)
        start = vma.start + rng.randrange(-2, 3) * PAGE
        end = vma.end + rng.randrange(-2, 3) * PAGE
        others = Naive()
        others.vmas = [v for v in naive.vmas if v is not vma]
        if 0 < start < vma.end and vma.start < end and start < end and others.free_at(start, end):
            old = vma.start
            vma.start, vma.end = start, end
            tree.moved(vma, old)


@given(st.integers(0, 2**32))
def test_a_small_tree_says_what_a_sorted_list_says(seed: int) -> None:
    rng = random.Random(seed)
    tree, naive, mm = a_tree(), Naive(), an_mm()
    for _ in range(40):
        one_change(tree, naive, mm, rng)
        agree(tree, naive, rng)


@pytest.mark.parametrize("seed", range(3))
def test_a_tree_of_many_blocks_says_what_a_sorted_list_says(seed: int) -> None:
    rng = random.Random(seed)
    tree, naive, mm = a_tree(), Naive(), an_mm()
    for step in range(2500):
        one_change(tree, naive, mm, rng)
        if step % 100 == 0:
            agree(tree, naive, rng)
    while naive.vmas:
        vma = naive.vmas.pop(rng.randrange(len(naive.vmas)))
        tree.remove(vma)
        if len(naive.vmas) % 50 == 0:
            agree(tree, naive, rng)


def test_a_filled_tree_is_like_one_made_by_insertion() -> None:
    rng = random.Random(7)
    mm = an_mm()
    naive = Naive()
    for i in range(700):
        start = (i * 5 + 1) * PAGE
        naive.vmas.append(VMA(mm, i, start, start + rng.randrange(1, 6) * PAGE, 0, 0, None))
    tree = a_tree()
    tree.fill(list(naive.vmas))
    agree(tree, naive, rng)
    for _ in range(300):
        one_change(tree, naive, mm, rng)
    agree(tree, naive, rng)


def test_removing_what_is_not_there_is_refused() -> None:
    mm = an_mm()
    tree = a_tree()
    tree.insert(VMA(mm, 0, PAGE, 2 * PAGE, 1, 0, None))
    with pytest.raises(KeyError, match="not in the tree"):
        tree.remove(VMA(mm, 1, PAGE, 2 * PAGE, 1, 0, None))


@pytest.mark.parametrize(("vmas", "levels"), [(0, 1), (7, 1), (8, 2), (50, 2), (60, 3), (512, 4)])
def test_a_look_up_visits_a_node_of_each_level(vmas: int, levels: int) -> None:
    """Up to seven VMAs and the gaps beside them fit the root.  512 are two levels more than 8, by which calibration
    divides (player.c, look_up())."""
    tree, mm = a_tree(), an_mm()
    for number in range(vmas):
        tree.insert(VMA(mm, number, 2 * number * PAGE, (2 * number + 1) * PAGE, 0, 0, None))
    assert tree.levels() == levels
