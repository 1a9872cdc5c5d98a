# SPDX-License-Identifier: GPL-2.0-or-later
"""The interval tree answers what a list would, in the order of insertion at equal keys, and stays balanced."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rmaplab.rmap.interval_tree import IntervalNode, IntervalTree
from rmaplab.sync.work import Tally

OFFSETS = st.integers(0, 40)
# Insert [first, first + length], or (length < 0) take out one of those that are there.
CHANGES = st.lists(st.tuples(OFFSETS, st.integers(-10, 12)), max_size=120)


def expected(listed: list[IntervalNode], first: int, last: int) -> list[IntervalNode]:
    """What touches [first, last], by start; sorted() keeps the order of insertion at equal starts."""
    return [
        node for node in sorted(listed, key=lambda n: n.first) if node.first <= last and node.last >= first
    ]


def assert_sound(node: IntervalNode | None, parent: IntervalNode | None, depth: int = 0) -> int:
    """The invariants that the module states hold below `node`; returns its black height."""
    if node is None:
        return 1
    assert node.parent is parent
    if parent is None:
        assert not node.red, "the root is red"
    elif node.red:
        assert not parent.red, "two red nodes follow each other"
    assert node.left is None or node.left.first <= node.first
    assert node.right is None or node.right.first >= node.first
    below = [child.subtree_last for child in (node.left, node.right) if child is not None]
    assert node.subtree_last == max([node.last, *below])
    left = assert_sound(node.left, node, depth + 1)
    right = assert_sound(node.right, node, depth + 1)
    assert left == right, "paths differ in black nodes"
    return left + (not node.red)


@given(changes=CHANGES, first=OFFSETS, length=st.integers(0, 12))
def test_it_finds_what_a_list_finds_in_the_same_order(
    changes: list[tuple[int, int]], first: int, length: int
) -> None:
    tree = IntervalTree()
    visited = Tally("nodes")
    listed: list[IntervalNode] = []
    for offset, span in changes:
        if span >= 0:
            node = IntervalNode()
            tree.insert(node, offset, offset + span, visited)
            listed.append(node)
        elif listed:
            node = listed.pop(offset % len(listed))
            tree.remove(node, visited)
            assert node.left is None and node.right is None and node.parent is None
        assert_sound(tree.rb_root, None)
        last = first + length
        assert list(tree.touching(first, last, visited)) == expected(listed, first, last)
    while listed:
        tree.remove(listed.pop(), visited)
        assert_sound(tree.rb_root, None)
    assert tree.rb_root is None


def test_nodes_with_equal_keys_are_visited_in_the_order_of_insertion() -> None:
    tree = IntervalTree()
    visited = Tally("nodes")
    nodes = [IntervalNode() for _ in range(50)]
    for node in nodes:
        tree.insert(node, 7, 9, visited)
    assert list(tree.touching(8, 8, visited)) == nodes


def test_the_first_and_the_only_node_cost_nothing() -> None:
    tree = IntervalTree()
    visited = Tally("nodes")
    node = IntervalNode()
    tree.insert(node, 0, 4, visited)
    tree.remove(node, visited)
    assert tree.rb_root is None
    assert visited.count == 0


def test_finding_one_interval_among_many_looks_at_few_nodes() -> None:
    tree = IntervalTree()
    visited = Tally("nodes")
    for i in range(4096):
        tree.insert(IntervalNode(), 10 * i, 10 * i + 5, visited)
    before = visited.count
    assert len(list(tree.touching(20_003, 20_003, visited))) == 1
    assert visited.count - before <= 3 * 2 * 12  # a red-black tree of 4096 nodes is at most 24 deep
