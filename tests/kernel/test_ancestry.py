# SPDX-License-Identifier: GPL-2.0-or-later
"""Who was forked from whom, told from what an anon_vma kernel leaves behind."""

from __future__ import annotations

from collections.abc import Sequence

from rmaplab.kernel.ancestry import Tree
from rmaplab.kernel.snapshot import AnonVma, Avc, Mm, Snapshot, Vma


class Kernel:
    """A snapshot made by hand: each VMA by its chain, the oldest anon_vma first, and its own one."""

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self._next = 0x1000

    def _address(self) -> int:
        self._next += 0x100
        return self._next

    def anon_vma(self, parent: int = 0) -> int:
        address = self._address()
        above = self.snapshot.anon_vmas.get(parent)
        root = address if above is None else above.root
        self.snapshot.anon_vmas[address] = AnonVma(address, root, parent or address, 1, 0, 0)
        return address

    def mm(self, *vmas: tuple[Sequence[int], int]) -> int:
        """An address space with these VMAs, each (chain, own anon_vma)."""
        mm = Mm(self._address(), 0, 0, 0, 0)
        self.snapshot.mms[mm.address] = mm
        for i, (chain, own) in enumerate(vmas, 1):
            vma = Vma(self._address(), mm.address, i << 20, (i << 20) + 0x1000, i << 8, 0, 0, own, i << 8)
            for anon_vma in reversed(chain):
                avc = Avc(self._address(), vma.address, anon_vma)
                self.snapshot.avcs[avc.address] = avc
                vma.chain.append(avc.address)
            self.snapshot.vmas[vma.address] = vma
            mm.vmas.append(vma)
        return mm.address


def test_a_living_parent_is_believed_if_the_two_share_an_anon_vma() -> None:
    kernel = Kernel()
    a = kernel.anon_vma()
    b = kernel.anon_vma(a)
    parent, child = kernel.mm(([a], a)), kernel.mm(([a, b], b))
    stranger = kernel.mm(([c := kernel.anon_vma()], c))  # the same parent, but it has called execve()
    tree = Tree(kernel.snapshot, {child: parent, stranger: parent})
    assert tree.above == {child: parent}
    assert (tree.found.living, tree.found.alone) == (1, 2)


def test_the_anon_vma_above_its_own_tells_who_it_was_forked_from() -> None:
    kernel = Kernel()
    a = kernel.anon_vma()
    b = kernel.anon_vma(a)
    c = kernel.anon_vma(b)
    top, middle = kernel.mm(([a], a)), kernel.mm(([a, b], b))
    bottom = kernel.mm(([a, b, c], c))
    tree = Tree(kernel.snapshot, {})
    assert tree.above == {middle: top, bottom: middle}
    assert tree.found.untold == 2


def test_two_children_of_a_dead_parent_have_one_context_above_them() -> None:
    kernel = Kernel()
    a, x = kernel.anon_vma(), kernel.anon_vma()  # two VMAs of the dead one's
    b, y = kernel.anon_vma(a), kernel.anon_vma(x)
    c = kernel.anon_vma(a)
    one, other = kernel.mm(([a, b], b), ([x, y], y)), kernel.mm(([a, c], c))
    tree = Tree(kernel.snapshot, {})
    ghost = tree.above[one]
    assert ghost < 0
    assert tree.above == {one: ghost, other: ghost}
    assert (tree.found.dead, tree.found.ghosts) == (2, 1)
    assert tree.maker[a] == tree.maker[x] == ghost


def test_an_anon_vma_without_user_is_a_living_parents_that_has_unmapped_it() -> None:
    kernel = Kernel()
    a, x = kernel.anon_vma(), kernel.anon_vma()
    b, y = kernel.anon_vma(a), kernel.anon_vma(x)
    parent, child = kernel.mm(([a], a)), kernel.mm(([a, b], b), ([x, y], y))  # the parent has no `x` any more
    tree = Tree(kernel.snapshot, {child: parent})
    assert tree.found.ghosts == 0
    assert tree.maker[x] == parent


def taken_over() -> tuple[Kernel, int, int, int]:
    """The top made `a` and died; `second`, its grandchild, took `a` over; `first` is another grandchild."""
    kernel = Kernel()
    root = kernel.anon_vma()
    a = kernel.anon_vma(root)
    b = kernel.anon_vma(a)
    first = kernel.mm(([root, a, b], b))
    second = kernel.mm(([root, a], a))
    return kernel, a, first, second


def test_where_nothing_tells_that_it_was_taken_over_the_tree_is_complete_all_the_same() -> None:
    kernel, a, first, second = taken_over()
    tree = Tree(kernel.snapshot, {})
    assert tree.above[first] == second  # who uses what is above its own; really the two had one dead parent
    assert tree.maker[a] == tree.user[a] == second
    assert tree.found.taken_over == 0


def test_a_page_that_only_its_user_maps_is_the_users_and_a_shared_one_the_makers() -> None:
    kernel, a, first, second = taken_over()
    # Told that `first` hangs below somebody else, only the chains say that the two are related.
    other = kernel.mm(([kernel.snapshot.anon_vmas[a].root], kernel.snapshot.anon_vmas[a].root))
    tree = Tree(kernel.snapshot, {first: other, second: other})
    assert tree.maker_of(a, frozenset({second})) == second
    assert tree.maker_of(a, frozenset({first, second})) == other
    assert tree.found.taken_over == 1


def test_whoever_has_an_anon_vma_on_a_chain_is_below_its_maker() -> None:
    kernel = Kernel()
    a = kernel.anon_vma()
    one = kernel.mm(([a], a))  # took it over: the maker is gone, and so is all that would tell of it
    kernel.mm(([a, b := kernel.anon_vma(a)], b), ([c := kernel.anon_vma()], c))
    third = kernel.mm(([c, d := kernel.anon_vma(c)], d))
    tree = Tree(kernel.snapshot, {one: third})
    for anon_vma, members in tree.members.items():
        for mm in members:
            assert tree.maker[anon_vma] in tree.line(mm)
    assert len(tree.top_down()) == len({*tree.top_down()})
