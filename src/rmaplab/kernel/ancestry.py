# SPDX-License-Identifier: GPL-2.0-or-later
"""Who was forked from whom, and who first had which page, as far as a kernel still shows it.

The designs with contexts have one for each address space, in the tree that forks made; a page points to that of
the address space that first had it.  A kernel with anon_vma holds neither.  What it shows is:

- parents: a process knows its parent, as long as that lives.
- anon_vmas: fork gives a VMA an anon_vma of its own below its parent's own, which stays when the parent dies.
- chains: whoever has an anon_vma on the chain of a VMA descends from the address space that it was made for, or
  is that.  Only fork brings an anon_vma from one address space to another.

Hence this reconstruction, in which address spaces that died without living descendants of their own (and such
between two others that left no anon_vma) do not appear:

1. A living parent is the parent of its child's address space if the two have an anon_vma in common (else one of
   them has called execve() since).
2. Otherwise the anon_vma above the child's own tells the parent: an address space that uses that anon_vma for
   its own new pages, or one that died.  All anon_vmas that are right above one child's are one's: that of who uses one
   of them, or of one that died.
3. The maker of an anon_vma is who uses it for new pages, or whom step 2 found.  But an anon_vma that nobody used
   any more may have been taken over by a descendant of its maker (anon_vma_clone()).  Those who have it on a
   chain tell: the maker is an ancestor of all of them.  The nearest one that is known takes its place; where
   none is known, one that died is put above them all.

So everybody who may map a page of an anon_vma is below its maker, whatever died in between: this is what
completeness needs.  What cannot be known is whether the real tree had more contexts on the way (a walk would have
visited them, and found nothing), or whether a page of an anon_vma that was taken over was the maker's or the
taker's; see `maker_of`.

From mm/rmap.c anon_vma_fork(), anon_vma_clone(), unlink_anon_vmas().
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from rmaplab.kernel.snapshot import Snapshot


class Ancestry(msgspec.Struct):
    """How the tree was found, in numbers of address spaces, but for the last.

    living:     the address space that they were forked from lives; untold: and no parent says so, only anon_vmas
    dead:       it died, and left anon_vmas
    related:    only chains tell that they have an ancestor in common
    alone:      they share nothing with anybody above them
    ghosts:     address spaces that died, of which some trace is left
    taken_over: anon_vmas whose user is not who made them
    """

    living: int = 0
    untold: int = 0
    dead: int = 0
    related: int = 0
    alone: int = 0
    ghosts: int = 0
    taken_over: int = 0


class Tree:
    """Address spaces by their kernel addresses; those that died have negative numbers.

    above:  address space -> the one that it was forked from
    user:   anon_vma -> the address space that uses it for new pages
    maker:  anon_vma -> the address space that it was made for
    """

    def __init__(self, snapshot: Snapshot, parents: Mapping[int, int]) -> None:
        self._snapshot: Final = snapshot
        self.found: Final = Ancestry()
        self.above: Final[dict[int, int]] = {}
        self.user: Final[dict[int, int]] = {}
        self.maker: Final[dict[int, int]] = {}
        self.members: Final[defaultdict[int, set[int]]] = defaultdict(set)  # anon_vma -> who has it on a chain
        self._nearest: Final[dict[tuple[int, frozenset[int]], int]] = {}
        for vma in snapshot.vmas.values():
            if vma.anon_vma:
                self.user[vma.anon_vma] = vma.mm
            for avc in vma.chain:
                self.members[snapshot.avcs[avc].anon_vma].add(vma.mm)
        self._next_ghost = -1
        self._follow_parents(parents)
        self._follow_anon_vmas()
        self._find_makers()
        self._close()

    def line(self, mm: int) -> list[int]:
        """`mm` and all above it, upwards."""
        line = [mm]
        while line[-1] in self.above:
            line.append(self.above[line[-1]])
        return line

    def top_down(self) -> list[int]:
        """All address spaces, each after the one that it was forked from."""
        nodes = {*self._snapshot.mms, *self.above, *self.above.values(), *self.maker.values()}
        return sorted(nodes, key=lambda mm: (len(self.line(mm)), -mm))

    def maker_of(self, anon_vma: int, mappers: frozenset[int]) -> int:
        """The address space whose page it must have been that `mappers` map now: the user of its anon_vma if
        all of them are below that, else the anon_vma's maker."""
        known = self._nearest.get((anon_vma, mappers))
        if known is None:
            known = self._common(self.user.get(anon_vma, self.maker[anon_vma]), mappers)
            if known is None:
                known = self.maker[anon_vma]
            self._nearest[anon_vma, mappers] = known
        return known

    # 1. and 2.

    def _fresh(self, mm: int) -> list[int]:
        """Those of the address space's own anon_vmas that were made when it was forked: they are the newest on
        their VMA's chain, and others are above them."""
        avcs, anon_vmas = self._snapshot.avcs, self._snapshot.anon_vmas
        return [
            vma.anon_vma for vma in self._snapshot.mms[mm].vmas
            if vma.anon_vma and vma.mm == mm and avcs[vma.chain[0]].anon_vma == vma.anon_vma
            and vma.anon_vma in anon_vmas and anon_vmas[vma.anon_vma].root != vma.anon_vma
        ]  # fmt: skip

    def _follow_parents(self, parents: Mapping[int, int]) -> None:
        shared: set[tuple[int, int]] = set()
        for members in self.members.values():
            for mm in members:
                parent = parents.get(mm)
                if parent in members:
                    shared.add((mm, parent))
        for mm, parent in sorted(shared):
            if mm not in self.line(parent):
                self.above[mm] = parent
                self.found.living += 1

    def _follow_anon_vmas(self) -> None:
        anon_vmas = self._snapshot.anon_vmas
        same: dict[int, int] = {}  # anon_vmas of somebody who died -> another one of the same, or itself

        def find(anon_vma: int) -> int:
            same.setdefault(anon_vma, anon_vma)
            while same[anon_vma] != anon_vma:
                anon_vma = same[anon_vma]
            return anon_vma

        orphans: dict[int, list[int]] = {}
        for mm in self._snapshot.mms:
            right_above = [anon_vmas[anon_vma].parent for anon_vma in self._fresh(mm)]
            users = [self.user[anon_vma] for anon_vma in right_above if anon_vma in self.user]
            parent = self.above.get(mm) or next((user for user in users if mm not in self.line(user)), 0)
            for anon_vma in right_above if parent else ():
                if anon_vma not in self.user:
                    self.maker[anon_vma] = parent  # it lives, but has no such VMA any more
            if mm not in self.above:
                orphans[mm] = right_above
        for right_above in orphans.values():
            unknown = [a for a in right_above if a not in self.user and a not in self.maker]
            for anon_vma in unknown:
                same[find(anon_vma)] = find(unknown[0])
        ghosts: dict[int, int] = {}
        for anon_vma in list(same):
            ghost = ghosts.get(find(anon_vma))
            if ghost is None:
                ghost = ghosts[find(anon_vma)] = self._new_ghost()
            self.maker[anon_vma] = ghost
        for mm, right_above in orphans.items():
            if self._put_below(mm, [self._maker_or_user(anon_vma) for anon_vma in right_above]):
                lives = self.above[mm] > 0
                self.found.living += lives
                self.found.untold += lives
                self.found.dead += not lives
        for ghost in ghosts.values():
            mine = [anon_vmas[a] for a, maker in self.maker.items() if maker == ghost]
            self._put_below(ghost, [self._maker_or_user(a.parent) for a in mine if a.parent != a.address])

    def _maker_or_user(self, anon_vma: int) -> int | None:
        return self.user.get(anon_vma) or self.maker.get(anon_vma)

    def _put_below(self, mm: int, candidates: Iterable[int | None]) -> bool:
        """Put `mm` below the most frequent of `candidates` that is not below it already."""
        for parent, _ in Counter(c for c in candidates if c is not None).most_common():
            if mm not in self.line(parent):
                self.above[mm] = parent
                return True
        return False

    def _new_ghost(self) -> int:
        self._next_ghost -= 1
        self.found.ghosts += 1
        return self._next_ghost + 1

    # 3.

    def _find_makers(self) -> None:
        for anon_vma in self._snapshot.anon_vmas:
            if anon_vma in self.user:
                self.maker[anon_vma] = self.user[anon_vma]
            elif anon_vma not in self.maker and self.members[anon_vma]:
                # Used by nobody, right above nobody's own: whoever it was made for, it was an ancestor of these.
                highest = min(self.members[anon_vma], key=lambda mm: (len(self.line(mm)), mm))
                self.maker[anon_vma] = self.above.get(highest, highest)

    def _close(self) -> None:
        """Let all who have an anon_vma on a chain be below its maker."""
        related: set[int] = set()
        for anon_vma, maker in list(self.maker.items()):
            members = frozenset(self.members[anon_vma])
            ancestor = self._common(maker, members)
            if ancestor is None:
                tops = {self.line(mm)[-1] for mm in (maker, *members)}
                ancestor = self._new_ghost()
                for top in tops:
                    self.above[top] = ancestor
                related |= tops
            if ancestor != maker:
                self.found.taken_over += anon_vma in self.user
                self.maker[anon_vma] = ancestor
        self.found.related = sum(top >= 0 for top in related)
        self.found.alone = sum(mm not in self.above for mm in self._snapshot.mms)

    def _common(self, start: int, mms: frozenset[int]) -> int | None:
        """The nearest address space, from `start` upwards, that all of `mms` descend from."""
        lines = [set(self.line(mm)) for mm in mms]
        for candidate in self.line(start):
            if all(candidate in line for line in lines):
                return candidate
        return None
