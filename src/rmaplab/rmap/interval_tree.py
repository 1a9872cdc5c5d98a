# SPDX-License-Identifier: GPL-2.0-or-later
"""The interval tree of an anon_vma.

Models include/linux/interval_tree_generic.h as mm/interval_tree.c instantiates it for anon_vma_chain: a
red-black tree of closed intervals of page offsets, ordered by the first one, in which each node knows
the greatest last offset of its subtree.  The nodes are intrusive: an anon_vma_chain *is* a node.

Invariants
- binary search tree: what is left of a node starts before it; what is right of it starts at or after it.
  So nodes that start alike are visited in the order in which they were inserted.
- `subtree_last` is the maximum of `last` over the node and all below it.
- red-black: the root is black, a red node has no red child, and every path down from a node to a missing
  child passes equally many black nodes.  `red` of a node outside any tree means nothing.
- a node outside any tree has neither parent nor children.

Locking: the caller's; an anon_vma's tree changes and is walked under the root's rwsem.

Work is counted in the tally that the caller names: each node whose key or subtree maximum is looked at
on the way down, on the way up, or while intervals are searched.
"""

from __future__ import annotations

from collections.abc import Iterator

from mypy_extensions import i64, mypyc_attr

from rmaplab.sync.work import Tally


@mypyc_attr(allow_interpreted_subclasses=True)
class IntervalNode:
    """An interval [first, last] of page offsets, and its place in a tree."""

    def __init__(self) -> None:
        self.first: i64 = 0
        self.last: i64 = 0
        self.subtree_last: i64 = 0
        self.red = False
        self.left: IntervalNode | None = None
        self.right: IntervalNode | None = None
        self.parent: IntervalNode | None = None


class IntervalTree:
    """A set of intervals that answers which of them touch a given one."""

    def __init__(self) -> None:
        self.rb_root: IntervalNode | None = None

    def insert(self, node: IntervalNode, first: i64, last: i64, visited: Tally) -> None:
        """Add `node`, which is in no tree, as the interval [first, last]."""
        node.first = first
        node.last = last
        node.subtree_last = last
        parent = self.rb_root
        if parent is None:
            node.red = False
            self.rb_root = node
            return
        count = 0
        while True:
            count += 1
            if parent.subtree_last < last:
                parent.subtree_last = last
            if first < parent.first:
                below = parent.left
                if below is None:
                    parent.left = node
                    break
            else:
                below = parent.right
                if below is None:
                    parent.right = node
                    break
            parent = below
        visited.count += count
        node.parent = parent
        node.red = True
        if parent.red:
            self._fix_red_pair(node, parent)

    def remove(self, node: IntervalNode, visited: Tally) -> None:
        """Take out `node`, which is in this tree."""
        left = node.left
        right = node.right
        parent = node.parent
        if parent is None and left is None and right is None:
            self.rb_root = None
            return
        moved: IntervalNode | None = None  # what took the node's own place, if it had two children
        hole: IntervalNode | None  # what took the place that went away, and who is above that
        above: IntervalNode | None
        if left is None or right is None:
            hole = right if left is None else left
            above = parent
            lost_black = not node.red
            self._replace(node, hole, parent)
        else:
            successor = right
            count = 1
            next_left = successor.left
            while next_left is not None:
                successor = next_left
                next_left = successor.left
                count += 1
            visited.count += count
            moved = successor
            hole = successor.right
            lost_black = not successor.red
            if successor is right:
                above = successor
            else:
                above = successor.parent
                assert above is not None
                above.left = hole
                if hole is not None:
                    hole.parent = above
                successor.right = right
                right.parent = successor
            successor.left = left
            left.parent = successor
            successor.red = node.red
            self._replace(node, successor, parent)
        node.left = None
        node.right = None
        node.parent = None
        if above is not None:
            self._shrink_subtrees(above, moved, visited)
        if lost_black:
            self._fix_missing_black(hole, above)

    def first_touching(self, first: i64, last: i64, visited: Tally) -> IntervalNode | None:
        """The first interval in order that touches [first, last]."""
        root = self.rb_root
        if root is None:
            return None
        visited.count += 1
        if root.subtree_last < first:
            return None
        return _leftmost_touching(root, first, last, visited)

    def next_touching(self, node: IntervalNode, first: i64, last: i64, visited: Tally) -> IntervalNode | None:
        """The first interval after `node` that touches [first, last]; `node` does not start after `last`."""
        while True:
            right = node.right
            if right is not None:
                visited.count += 1
                if right.subtree_last >= first:
                    return _leftmost_touching(right, first, last, visited)
            above = node.parent
            while above is not None and node is above.right:
                node = above
                above = node.parent
            if above is None:
                return None
            visited.count += 1
            if above.first > last:
                return None
            if above.last >= first:
                return above
            node = above

    def touching(self, first: i64, last: i64, visited: Tally) -> Iterator[IntervalNode]:
        """All intervals that touch [first, last], in order."""
        node = self.first_touching(first, last, visited)
        while node is not None:
            yield node
            node = self.next_touching(node, first, last, visited)

    def _replace(self, node: IntervalNode, by: IntervalNode | None, parent: IntervalNode | None) -> None:
        if parent is None:
            self.rb_root = by
        elif parent.left is node:
            parent.left = by
        else:
            parent.right = by
        if by is not None:
            by.parent = parent

    def _lift(self, child: IntervalNode, top: IntervalNode) -> None:
        """Rotate: `child` takes the place of `top`, its parent, which becomes its child."""
        self._replace(top, child, top.parent)
        if top.left is child:
            inner = child.right
            top.left = inner
            child.right = top
        else:
            inner = child.left
            top.right = inner
            child.left = top
        if inner is not None:
            inner.parent = top
        top.parent = child
        child.subtree_last = top.subtree_last
        top.subtree_last = _subtree_last(top)

    def _fix_red_pair(self, node: IntervalNode, parent: IntervalNode) -> None:
        """`node` and `parent` are both red, which is all that is wrong."""
        while True:
            top = parent.parent
            assert top is not None  # a red parent is not the root
            uncle = top.right if top.left is parent else top.left
            if uncle is None or not uncle.red:
                if (top.left is parent) != (parent.left is node):
                    self._lift(node, parent)
                    parent = node
                self._lift(parent, top)
                parent.red = False
                top.red = True
                return
            parent.red = False
            uncle.red = False
            over = top.parent
            if over is None:
                return
            top.red = True
            if not over.red:
                return
            node = top
            parent = over

    def _shrink_subtrees(self, node: IntervalNode, moved: IntervalNode | None, visited: Tally) -> None:
        """Work out `subtree_last` again from `node` up, after something below it went away.

        Up to `moved` it has to be done in any case; above that it is over where nothing changes.
        """
        count = 0
        settled = moved is None
        while True:
            count += 1
            last = _subtree_last(node)
            if node is moved:
                settled = True
            elif settled and last == node.subtree_last:
                break
            node.subtree_last = last
            above = node.parent
            if above is None:
                break
            node = above
        visited.count += count

    def _fix_missing_black(self, node: IntervalNode | None, parent: IntervalNode | None) -> None:
        """Paths through `node`, a child of `parent`, are one black node short."""
        while parent is not None and (node is None or not node.red):
            sibling = parent.right if parent.left is node else parent.left
            assert sibling is not None  # the other side has at least one black node more
            if sibling.red:
                sibling.red = False
                parent.red = True
                self._lift(sibling, parent)
                sibling = parent.right if parent.left is node else parent.left
                assert sibling is not None
            if parent.left is node:
                inner = sibling.left
                outer = sibling.right
            else:
                inner = sibling.right
                outer = sibling.left
            if outer is not None and outer.red:
                outer.red = False
            elif inner is not None and inner.red:
                inner.red = False
                self._lift(inner, sibling)
                sibling = inner
            else:
                sibling.red = True
                node = parent
                parent = node.parent
                continue
            sibling.red = parent.red
            parent.red = False
            self._lift(sibling, parent)
            return
        if node is not None:
            node.red = False


def _subtree_last(node: IntervalNode) -> i64:
    last = node.last
    left = node.left
    if left is not None and left.subtree_last > last:
        last = left.subtree_last
    right = node.right
    if right is not None and right.subtree_last > last:
        last = right.subtree_last
    return last


def _leftmost_touching(node: IntervalNode, first: i64, last: i64, visited: Tally) -> IntervalNode | None:
    """The first interval at or below `node`, of whose subtree some interval ends at or after `first`,
    that touches [first, last]."""
    count = 0
    found: IntervalNode | None = None
    while True:
        count += 1
        left = node.left
        if left is not None and left.subtree_last >= first:
            node = left
            continue
        if node.first > last:
            break
        if node.last >= first:
            found = node
            break
        right = node.right
        if right is None or right.subtree_last < first:
            break
        node = right
    visited.count += count
    return found
