# SPDX-License-Identifier: GPL-2.0-or-later
"""Design `anon_vma_lazy`: no anon_vma before the first fork, after the series ANON_VMA_LAZY of May 2026.

The series (linux-mm, "mm: introduce ANON_VMA_LAZY for deferred anon_vma creation", 15 patches of 27 May 2026; not
merged) says of itself: a folio's mapping points to a *root VMA* until an anon_vma is needed; fork gives the parent's
VMA a regular anon_vma first; the child's VMA is linked with its parent's anon_vmas, but gets none of its own
(ANON_VMA_TREE_PARENT) until it forks, too; references keep VMAs alive.  It does not say how walks stay complete,
which reviewers asked.  The rules below that answer this are ours, and marked so.

    VMA ──▶ root VMA ◀── folios that this VMA's process mapped first     before the first fork: nothing else
               │
               ▼ once needed
            anon_vma ◀── AVC ── VMA                                      from then on as in anon_vma.py

A VMA is *lazy* as long as its new pages go to a root VMA.  Its chain then has no link of its own: it is empty, or
has what it inherited.

Data
- `RootVma`: the VMA that folios point to.  Two numbers locate its pages: its address space, and the
  difference between an address there and a page offset.  VMAs that were split from it, merged with it or share it as
  a neighbour have the same two (ours).  It cannot be freed as long as folios may point to it, nor can the mm_struct,
  into which a walk looks; those that are kept after their end count as `vm_area_struct, pinned` and
  `mm_struct, pinned`.
- `LazyFields`: a VMA's share (see anon_vma.py), with its root VMA.
- for each page: the number of an anon_vma, or of a root VMA, which is negative.

Invariants (ours)
- All entries for a folio that points to a root VMA without an anon_vma are in one address space, at the folio's
  index plus the root's offset: an operation that would change that (fork, a move, KSM) *upgrades* the root first.
- An upgrade gives the root an anon_vma, and links *every* VMA of that root with it.  From then on walks for
  folios that still point to the root use that anon_vma, for which anon_vma.py argues; no folio is touched.
- A root is freed when no VMA has it, no migration holds it, and its anon_vma, if it has one, is freed.

Locking: roots change under mmap_lock for writing, or as anon_vma_prepare() does it.  A walk that starts at a root
takes no lock (the series promises that): it runs under RCU, looks again where the geometry of the address space
changed meanwhile (mmap_lock_speculate_retry()), and continues in the anon_vma if there was an upgrade meanwhile
(ours).  An upgrade comes before the first entry is copied or moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, cast

from mypy_extensions import mypyc_attr

from rmaplab.mm.folio import FOLIO_KSM, Int64s
from rmaplab.mm.geometry import GeometryChange
from rmaplab.mm.reverse_map import Attachment, miscounted
from rmaplab.mm.takeover import FoundVma, TakenOver
from rmaplab.mm.vma import MM, PAGE_SHIFT, VMA, find_vmas, seen
from rmaplab.rmap.anon_vma import AnonVma, AnonVmaRmap, VmaFields, is_unused
from rmaplab.rmap.neighbours import mergeable_neighbours
from rmaplab.rmap.numbers import take_number
from rmaplab.sync.fields import OF_DESIGN
from rmaplab.sync.order import atomic_inc, depends, initialised, read_once, smp_store_release, write_once
from rmaplab.sync.seqcount import SequenceCount
from rmaplab.sync.work import Pool, Tally


class RootVma:
    """A VMA that folios point to: struct vm_area_struct, as far as a walk needs it after the VMA is gone."""

    def __init__(self, number: int, vma: VMA) -> None:
        self.number: Final = number
        self.mm: Final = vma.mm
        self.offset = _offset(vma)  # address minus page offset, in pages
        self.vma: VMA | None = vma  # None: gone from its tree
        self.pinned = False  # gone, and kept
        self.vmas: list[VMA] = []  # of this address space, that have this root
        self.anon_vma: AnonVma | None = None  # once upgraded
        self.pins = 0  # migrations that are going to walk again, and the anon_vma


class LazyFields(VmaFields):
    """A VMA's share: as long as `anon_vma` is None, `root` takes its new pages.

    forked: it came about by fork.  The chain does not tell: an upgrade that takes over an anon_vma which was inherited
            leaves one link, where anon_vma.py, which decides at fork, always has two.  Whose chain is handed on
            must not depend on that, or else VMAs share in another way than there, and merge with other ones (ours)
    """

    def __init__(self, anon_vma: AnonVma | None, root: RootVma | None, forked: bool) -> None:
        super().__init__(anon_vma)
        self.root: Final = root
        self.forked: Final = forked


class LazySpace:
    """A design's share of an address space.

    changes: odd while VMAs change their bounds (mm->mm_lock_seq)
    roots:   root VMAs that refer to the mm_struct, which is kept for them when its last user is gone (mmgrab(); ours)
    """

    def __init__(self, changes: SequenceCount) -> None:
        self.changes: Final = changes
        self.roots = 0
        self.kept = False


def _offset(vma: VMA) -> int:
    return (vma.start >> PAGE_SHIFT) - vma.anon_pgoff


@mypyc_attr(allow_interpreted_subclasses=True)
class AnonVmaLazyRmap(AnonVmaRmap):
    """Folios point to a VMA, until fork makes that one anon_vma."""

    name = "anon_vma_lazy"
    tables_under_rcu = True  # a walk from a root has no lock that munmap() would have to wait for
    drawn_by = "rmaplab.rmap.pictures.anon_vma_lazy:AnonVmaLazyPicture"

    def __init__(self, attachment: Attachment) -> None:
        super().__init__(attachment)
        self.pinned_pool: Final[Pool] = self.ledger.pool(
            "vm_area_struct, pinned", attachment.profile.sizes["vm_area_struct"]
        )
        self.look_ups: Final[Tally] = self.ledger.tally("vma tree nodes visited")
        self.kept_pool: Final[Pool] = self.ledger.pool("mm_struct, pinned", attachment.profile.sizes["mm_struct"])
        self.upgrades: Final[Tally] = self.ledger.tally("root VMAs upgraded")
        self.linked: Final[Tally] = self.ledger.tally("VMAs linked by an upgrade")
        self.roots: Final[list[RootVma | None]] = [None]  # by number
        self.free_roots: Final[list[int]] = []
        self.roots_of: Final[dict[int, list[RootVma]]] = {}  # by number of the anon_vma that they have
        self.held_roots: Final[dict[int, RootVma]] = {}  # by pfn
        self.found_roots: Final[dict[int, RootVma]] = {}  # in place of anon_vmas that were found: see take_over()

    def _lazy(self, vma: VMA) -> LazyFields | None:
        return cast("LazyFields | None", vma.rmap[self.slot])

    # An address space

    def mm_created(self, mm: MM) -> None:
        mm.rmap[self.slot] = LazySpace(SequenceCount(self.scheduler, "changes"))

    def mm_forked(self, parent: MM, child: MM) -> None:
        self.mm_created(child)

    def mm_gone(self, mm: MM) -> None:
        space = self._space(mm)
        if space.roots:
            space.kept = True
            self.kept_pool.alloc()

    def keeps_space(self, mm: MM) -> bool:
        return self._space(mm).kept

    # A VMA's first page

    def vma_prepare(self, vma: VMA) -> None:
        for neighbour in mergeable_neighbours(vma):
            fields = self._neighbours(neighbour)
            if fields is not None and self._never_forked(fields):
                self._share(vma, fields)
                return
        root = self._new_root(vma)
        self._adopt(vma, LazyFields(None, root, False))

    def _neighbours(self, vma: VMA) -> LazyFields | None:
        """What a neighbour has, which nobody locks."""
        name = "neighbour's vma->anon_vma"
        fields = cast(
            "LazyFields | None", read_once(self.scheduler, name, vma, OF_DESIGN, vma.rmap[self.slot], self.slot)
        )
        if fields is not None and fields.root is not None:
            depends(self.scheduler, name, fields.root)
        return fields

    def _share(self, vma: VMA, fields: LazyFields) -> None:
        """New pages of `vma` go where those of a neighbour do, whose chain has nothing that was inherited."""
        anon_vma = fields.anon_vma
        shared = LazyFields(anon_vma, fields.root, False)
        self._adopt(vma, shared)
        if anon_vma is not None:
            self._lock(anon_vma)
            self._link(shared, vma, anon_vma)
            anon_vma.num_active_vmas += 1
            self._unlock(anon_vma)

    def _adopt(self, vma: VMA, fields: LazyFields) -> None:
        if fields.root is not None:
            atomic_inc(self.scheduler, "get root VMA", fields.root, "vmas")
            fields.root.vmas.append(vma)
        smp_store_release(self.scheduler, "publish vma->anon_vma", vma, OF_DESIGN, self.slot)
        vma.rmap[self.slot] = fields

    def _new_root(self, vma: VMA) -> RootVma:
        self._space(vma.mm).roots += 1
        root = RootVma(take_number(self.roots, self.free_roots), vma)
        self.roots[root.number] = root
        initialised(self.scheduler, "new root VMA", root, "vmas anon_vma")
        return root

    # Upgrade

    def _upgrade(self, vma: VMA) -> None:
        """Give the root of `vma` an anon_vma, if it has none, and link all VMAs of that root with it."""
        fields = self._lazy(vma)
        if fields is None or fields.anon_vma is not None:
            return
        root = fields.root
        assert root is not None
        anon_vma = self._anon_vma_for(fields)
        self.upgrades.count += 1
        self._lock(anon_vma)
        for other in root.vmas:
            its = cast(LazyFields, other.rmap[self.slot])
            its.anon_vma = anon_vma
            anon_vma.num_active_vmas += 1
            self.linked.count += 1
            if all(link.anon_vma is not anon_vma for link in its.chain):
                self._link(its, other, anon_vma)
        self._unlock(anon_vma)
        self.roots_of.setdefault(anon_vma.number, []).append(root)
        root.pins += 1
        smp_store_release(self.scheduler, "write vma->anon_vma", root, "anon_vma")
        root.anon_vma = anon_vma

    def _anon_vma_for(self, fields: LazyFields) -> AnonVma:
        """A new one, or one of the inherited that nobody uses any more: as anon_vma_clone() and
        anon_vma_fork() do it for a child, only later."""
        if not fields.chain:
            return self._new_root_anon_vma()
        for link in fields.chain:
            if is_unused(link.anon_vma):
                self.reused.count += 1
                return link.anon_vma
        inherited = fields.chain[-1].anon_vma
        anon_vma = self._new_child_anon_vma(inherited)
        self._lock(inherited)
        inherited.num_children += 1
        self._unlock(inherited)
        return anon_vma

    # Fork

    def vma_forked(self, parent: VMA, child: VMA) -> None:
        self._upgrade(parent)
        fields = LazyFields(None, self._new_root(child), True)
        self._adopt(child, fields)
        source = cast(LazyFields, parent.rmap[self.slot])
        self._link_all(fields, child, source)

    def _link_all(self, fields: LazyFields, vma: VMA, source: VmaFields) -> None:
        """Link `vma` with all that `source` has links to."""
        if source.chain:
            first = source.chain[0].anon_vma
            self._lock(first)
            for link in source.chain:
                self._link(fields, vma, link.anon_vma)
            if fields.anon_vma is not None:
                fields.anon_vma.num_active_vmas += 1
            self._unlock(first)

    # Split, merge, move: geometry

    def _clone_fields(self, source: VMA, new: VMA) -> None:
        original = cast(LazyFields, source.rmap[self.slot])
        fields = LazyFields(original.anon_vma, original.root, original.forked)
        self._adopt(new, fields)
        self._link_all(fields, new, original)

    def vma_joined(self, vma: VMA, donor: VMA) -> None:
        if _offset(vma) != _offset(donor):
            self._upgrade(donor)  # its pages are going to move
        super().vma_joined(vma, donor)

    def vma_copied(self, source: VMA, new: VMA) -> None:
        self._upgrade(source)
        super().vma_copied(source, new)

    def geometry_begin(self, change: GeometryChange) -> None:
        self._changes(change.vmas[0].mm).write_begin()
        super().geometry_begin(change)

    def geometry_end(self, change: GeometryChange) -> None:
        super().geometry_end(change)
        vma = change.vmas[0]
        fields = self._lazy(vma)
        if fields is not None and fields.root is not None and len(fields.root.vmas) == 1:
            fields.root.offset = _offset(vma)  # an exec'd stack moves down while it is all there is
        self._changes(vma.mm).write_end()

    def _space(self, mm: MM) -> LazySpace:
        return cast(LazySpace, mm.rmap[self.slot])

    def _changes(self, mm: MM) -> SequenceCount:
        return self._space(mm).changes

    # A VMA's end

    def _unlink_all(self, vma: VMA) -> None:
        fields = cast(LazyFields, vma.rmap[self.slot])
        vma.rmap[self.slot] = None
        root = fields.root
        if root is not None:
            root.vmas.remove(vma)
            if root.vma is vma:
                root.vma = None
            root.pins += 1  # the anon_vma may go now, and give the root up
        self._unlink_chain(fields)
        if root is not None:
            root.pins -= 1
            if root.vma is None and not root.pinned and (root.vmas or root.pins):
                root.pinned = True
                self.pinned_pool.alloc()
            self._put_root(root)

    def _free(self, anon_vma: AnonVma) -> None:
        roots = self.roots_of.pop(anon_vma.number, [])
        for root in roots:  # before the grace period that it is there for begins
            write_once(self.scheduler, "clear vma->anon_vma", root, "anon_vma")
            root.anon_vma = None
        super()._free(anon_vma)
        for root in roots:
            root.pins -= 1
            self._put_root(root)

    def _put_root(self, root: RootVma) -> None:
        """Free it if nothing refers to it: no VMA, no migration, no anon_vma."""
        if not root.vmas and not root.pins:
            if root.pinned:
                self.pinned_pool.free()
            if self.scheduler is None:
                self._forget_root(root)
            else:
                self.scheduler.rcu_call("root VMA", root, lambda: self._forget_root(root))

    def _forget_root(self, root: RootVma) -> None:
        """No walk comes from it any more."""
        self.roots[root.number] = None
        self.free_roots.append(root.number)
        space = self._space(root.mm)
        space.roots -= 1
        if space.kept and not space.roots:
            self.kept_pool.free()
            if self.scheduler is not None:
                self.scheduler.free("mm_struct", root.mm.users_word)

    # Folios

    def folio_mapped(self, vma: VMA, addr: int, pfn: int, nr_pages: int) -> None:
        self.anchor.v[pfn : pfn + nr_pages] = self._own_number(vma)

    def folios_mapped(self, vma: VMA, addrs: Int64s, pfns: Int64s) -> None:
        self.anchor.v[pfns] = self._own_number(vma)

    def folio_swapped_in(self, vma: VMA, addr: int, pfn: int, exclusive: bool) -> None:
        fields = cast(LazyFields, vma.rmap[self.slot])
        if exclusive or not fields.chain:
            self.anchor.m[pfn] = self._own_number(vma)
        else:
            self.anchor.m[pfn] = fields.chain[0].anon_vma.root.number

    def folio_reused(self, vma: VMA, pfn: int, nr_pages: int) -> None:
        self.anchor.v[pfn : pfn + nr_pages] = self._own_number(vma)

    def folio_moved(self, vma: VMA, addr: int, pfn: int) -> None:
        self.anchor.m[pfn] = self._own_number(vma)

    def _own_number(self, vma: VMA) -> int:
        """What new pages of `vma` are to hold."""
        fields = cast(LazyFields, vma.rmap[self.slot])
        if fields.anon_vma is not None:
            return fields.anon_vma.number
        assert fields.root is not None
        return -fields.root.number

    def ksm_added(self, vma: VMA, addr: int, pfn: int) -> None:
        self._upgrade(vma)  # KSM goes by anon_vmas
        super().ksm_added(vma, addr, pfn)

    # Memory that is there already

    def take_over(self, found: TakenOver) -> None:
        """An anon_vma that shows no trace of a fork, a move or KSM need not have been made yet: the VMAs that use it
        have a root VMA instead.  That is what the design could hold, not what it would: what was upgraded may have
        lost all traces of why, and who dies at which moment decides what an upgrade takes over, later than in
        anon_vma.  Of upgraded ones, the root VMA is not taken over: folios point to the anon_vma at once, which
        they would be looked for in."""
        self.take_over_spaces(found)
        unmade = self._never_upgraded(found)
        self.found_roots.clear()
        self._take_over_graph(found, unmade)
        for folio in found.folios:
            if folio.anon_vma in unmade:
                number = -self.found_roots[folio.anon_vma].number
                self.anchor.v[folio.pfn : folio.pfn + folio.nr_pages] = number

    def _never_upgraded(self, found: TakenOver) -> set[int]:
        """Anon_vmas, by position, that one address space alone has, for its own new pages, all with one offset."""
        users: dict[int, list[VMA]] = {}
        for known in found.vmas:
            users.setdefault(known.own, []).append(known.vma)
        parents = {its.parent for i, its in enumerate(found.anon_vmas) if its.parent != i}
        by_ksm = {place.own for place in found.places}
        never: set[int] = set()
        for own, vmas in users.items():
            linked = found.anon_vmas[own].tree
            alike = {(vma.mm.id, _offset(vma)) for vma in vmas}
            if len(linked) == len(vmas) and len(alike) == 1 and own not in parents and own not in by_ksm:
                never.add(own)
        return never

    def _found_fields(self, known: FoundVma, own: AnonVma | None) -> VmaFields:
        root: RootVma | None = None
        if own is None:
            root = self.found_roots.get(known.own)
            if root is None:
                root = self.found_roots[known.own] = self._new_root(known.vma)
        fields = LazyFields(own, root, len(known.chain) > 1)
        self._adopt(known.vma, fields)
        return fields

    # The walk

    def hold(self, pfn: int) -> None:
        number: int = self.anchor.m[pfn]
        if number >= 0:
            super().hold(pfn)
            return
        self.rcu.read_lock()
        root = self.roots[-number]
        if root is not None and self.is_mapped(pfn):
            root.pins += 1
            self.held_roots[pfn] = root
        self.rcu.read_unlock()

    def unhold(self, pfn: int) -> None:
        root = self.held_roots.pop(pfn, None)
        if root is None:
            super().unhold(pfn)
        else:
            root.pins -= 1
            self._put_root(root)

    def walk(self, pfn: int) -> Iterator[tuple[VMA, int]]:
        number: int = self.anchor.m[pfn]
        flags: int = self.folios.flags.m[pfn]
        if number >= 0 or flags & FOLIO_KSM:
            yield from super().walk(pfn)
            return
        self.walks.count += 1
        self.rcu.read_lock()
        try:
            # As with an anon_vma: a folio that is mapped by now had its root there when the section began.
            root = self.roots[-number]
            if root is None or not (root in self.held_roots.values() or self.is_mapped(pfn)):
                return
            if self._anon_vma_of(root) is None and self.spaces.get(root.mm):
                try:
                    again = True
                    while again:
                        begun = self._changes(root.mm).read_begin()
                        yield from self._walk_root(root, pfn)
                        again = self._changes(root.mm).read_retry(begun)
                finally:
                    self.spaces.put(root.mm)
            # Upgraded, perhaps while we looked: what was copied or moved since is in the anon_vma's tree.
            anon_vma = self._anon_vma_of(root)
            if anon_vma is not None and not self._get(anon_vma):
                anon_vma = None  # nothing is left that maps the folio, nor a migration entry
        finally:
            self.rcu.read_unlock()
        if anon_vma is not None and self._lock_referenced(anon_vma):
            yield from self._walk_anon(pfn, anon_vma)

    def _walk_root(self, root: RootVma, pfn: int) -> Iterator[tuple[VMA, int]]:
        """Where the folio is as long as nobody forked: in one address space, at one address."""
        first: int = self.folios.index.m[pfn]
        start = (first + root.offset) << PAGE_SHIFT
        end = start + (self.folios.nr_pages(pfn) << PAGE_SHIFT)
        self.look_ups.count += root.mm.tree.levels()
        for vma in find_vmas(self.scheduler, root.mm, start, end):
            fields = self._lazy(vma)
            then = seen(self.scheduler, vma)
            if fields is not None and fields.root is root:
                self.places.count += 1
                yield vma, start if start > then.start else then.start

    def _anon_vma_of(self, root: RootVma) -> AnonVma | None:
        anon_vma = read_once(self.scheduler, "read vma->anon_vma", root, "anon_vma", root.anon_vma)
        return cast("AnonVma | None", anon_vma)

    def related(self, vma: VMA, pfn: int) -> bool:
        # Would the walk visit it?  It does if the VMA has the root, or a link to the anon_vma.
        fields = cast(LazyFields, vma.rmap[self.slot])
        number: int = self.anchor.m[pfn]
        anon_vma: AnonVma | None = None
        if number >= 0:
            anon_vma = self.anon_vmas[number]
        else:
            root = self.roots[-number]
            if root is None or root.anon_vma is None:
                return root is not None and fields.root is root
            anon_vma = root.anon_vma
        return any(link.anon_vma is anon_vma for link in fields.chain)

    # Counting again

    def audit(self, mms: Sequence[MM], peak_vmas: int) -> list[str]:
        """Besides, every root VMA is one that a VMA, a migration or an anon_vma refers to."""
        said = super().audit(mms, peak_vmas)
        vmas: dict[int, int] = {}
        for mm in mms:
            for vma in mm.tree.to_list():
                fields = self._lazy(vma)
                if fields is not None and fields.root is not None:
                    vmas[fields.root.number] = vmas.get(fields.root.number, 0) + 1
        pinned = 0
        spaces: dict[int, int] = {}
        for root in self.roots:
            if root is None or not (root.vmas or root.pins):  # in a grace period
                continue
            held = sum([1 for other in self.held_roots.values() if other is root])
            miscounted(said, "VMAs of root", root.number, len(root.vmas), vmas.get(root.number, 0))
            miscounted(said, "pins of root", root.number, root.pins, held + (root.anon_vma is not None))
            pinned += root.pinned
            spaces[root.mm.id] = spaces.get(root.mm.id, 0) + 1
        miscounted(said, "root VMAs pinned", -1, self.pinned_pool.live, pinned)
        if self.scheduler is None:  # else grace periods have not ended
            living = {mm.id for mm in mms}
            kept = len([id for id in spaces if id not in living])
            miscounted(said, "mm_structs kept by roots", -1, self.kept_pool.live, kept)
            for mm in mms:
                miscounted(said, "roots of mm", mm.id, self._space(mm).roots, spaces.get(mm.id, 0))
        return said

    # Merge rules

    def _same(self, fields: VmaFields, other: VmaFields) -> bool:
        if fields.anon_vma is None or other.anon_vma is None:
            return cast(LazyFields, fields).root is cast(LazyFields, other).root
        return fields.anon_vma is other.anon_vma

    def _never_forked(self, fields: VmaFields) -> bool:
        return not cast(LazyFields, fields).forked
