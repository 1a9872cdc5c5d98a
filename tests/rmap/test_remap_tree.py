# SPDX-License-Identifier: GPL-2.0-or-later
"""The remap tree against a set of (page offset, offset) pairs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rmaplab.rmap.remap_tree import RemapMemory, RemapTree
from rmaplab.sync.work import Ledger

CHANGES = st.lists(
    st.tuples(st.booleans(), st.integers(0, 30), st.integers(1, 12), st.integers(-3, 3)), max_size=60
)


@given(changes=CHANGES, first=st.integers(0, 30), length=st.integers(1, 12))
def test_it_holds_what_a_set_of_pairs_would(
    changes: list[tuple[bool, int, int, int]], first: int, length: int
) -> None:
    ledger = Ledger("test")
    tree = RemapTree(RemapMemory(ledger, 256))
    pairs: set[tuple[int, int]] = set()
    for add, start, count, offset in changes:
        change = {(pgoff, offset) for pgoff in range(start, start + count)}
        if add:
            tree.add(start, start + count - 1, offset)
            pairs |= change
        else:
            tree.remove(start, start + count - 1, offset)
            pairs -= change
        said = [(p, o) for f, last, o in tree.ranges() for p in range(f, last + 1)]
        assert sorted(said) == sorted(pairs)
        for i in range(len(tree.firsts) - 1):
            assert tree.lasts[i] < tree.firsts[i + 1]
            touches = tree.lasts[i] + 1 == tree.firsts[i + 1]
            assert not (touches and tree.entries[i].values == tree.entries[i + 1].values)
        last = first + length - 1
        assert tree.offsets(first, last) == sorted({o for p, o in pairs if first <= p <= last})
    tree.clear()
    assert all(pool.live == 0 for pool in ledger.pools.values())


def test_an_empty_tree_takes_no_memory_and_a_first_range_one_node() -> None:
    ledger = Ledger("test")
    tree = RemapTree(RemapMemory(ledger, 256))
    nodes = ledger.pools["maple_node"]
    assert nodes.live == 0
    tree.add(5, 9, 100)
    assert nodes.live == 1
    tree.add(5, 9, 200)
    assert ledger.pools["kmalloc-32"].live == 1  # two offsets do not fit into the entry itself
    tree.remove(5, 9, 100)
    assert ledger.pools["kmalloc-32"].live == 0
    tree.remove(5, 9, 200)
    assert nodes.live == 0


def test_nodes_grow_with_the_number_of_ranges() -> None:
    ledger = Ledger("test")
    tree = RemapTree(RemapMemory(ledger, 256))
    for i in range(1000):
        tree.add(10 * i, 10 * i + 3, 7)
    # 2001 slots, 16 a leaf, 10 a branch
    assert ledger.pools["maple_node"].live == 126 + 13 + 2 + 1
    assert tree.depth == 4


def test_where_a_bit_says_that_a_range_is_at_home_as_well_two_places_need_no_array() -> None:
    ledger = Ledger("test")
    tree = RemapTree(RemapMemory(ledger, 256, home_marked=True))
    tree.add(5, 9, 100)
    tree.add(5, 9, 0)
    assert tree.offsets(5, 9) == [0, 100] and "kmalloc-32" not in ledger.pools
    tree.add(5, 9, 200)
    assert ledger.pools["kmalloc-32"].live == 1
    tree.remove(5, 9, 0)
    assert ledger.pools["kmalloc-32"].live == 1
    tree.remove(5, 9, 200)
    assert ledger.pools["kmalloc-32"].live == 0
