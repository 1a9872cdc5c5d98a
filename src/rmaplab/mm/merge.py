# SPDX-License-Identifier: GPL-2.0-or-later
"""Splitting and merging VMAs.

Models mm/vma.c: __split_vma(), vma_merge_existing_range(), vma_merge_new_range(), vma_expand(),
vma_shrink(), vma_modify(), and vma_prepare()/vma_complete(), which bracket each change of geometry.

A merge needs: the same flags (except sticky ones), file, policy, userfaultfd context and name; consecutive
page offsets; and the leader's consent, because whether two ranges may share a VMA
depends on the reverse map.

Locking: mmap_lock for writing; the per-VMA locks of all VMAs that change.
"""

from __future__ import annotations

from mypy_extensions import mypyc_attr

from rmaplab.mm import huge_pmd
from rmaplab.mm.abi import ENOMEM
from rmaplab.mm.geometry import Bounds, GeometryChange
from rmaplab.mm.locking import assert_write_locked, start_write
from rmaplab.mm.profile import Profile
from rmaplab.mm.system import System
from rmaplab.mm.vma import (
    MM,
    PAGE_SHIFT,
    VM_MAYWRITE,
    VM_SHARED,
    VM_SPECIAL,
    VM_STICKY,
    VMA,
    File,
)


@mypyc_attr(acyclic=True, free_list_len=1)
class Attributes:
    """What two ranges must share to be one VMA, apart from their place."""

    def __init__(self, flags: int, file: File | None, policy: int = 0, uffd: int = 0, name: str = "") -> None:
        self.flags = flags
        self.file = file
        self.policy = policy
        self.uffd = uffd
        self.name = name

    def match(self, vma: VMA, profile: Profile) -> bool:
        """is_mergeable_vma()"""
        if profile.close_forbids_merge and vma.file is not None and vma.file.closes:
            return False
        return (
            (vma.flags ^ self.flags) & ~VM_STICKY == 0
            and vma.file is self.file
            and vma.policy == self.policy
            and vma.uffd == self.uffd
            and vma.name == self.name
        )


def attributes_of(vma: VMA) -> Attributes:
    """Those that it has now."""
    return Attributes(vma.flags, vma.file, vma.policy, vma.uffd, vma.name)


def _takes_in(
    system: System,
    vma: VMA,
    distance: int,
    pgoff: int,
    anon_pgoff: int,
    attributes: Attributes,
    source: VMA | None,
    growing: bool = False,
) -> bool:
    """May `vma` take in what has these attributes and begins, or ends, at these page offsets, if its own, so many pages
    on, come to them?  Those for anonymous pages are asked about where they are another number and there may be such
    pages (can_vma_merge_left(), can_vma_merge_right(), needs_adjacent_anon_pgoff())."""
    copies = vma.file is not None and vma.flags & (VM_SHARED | VM_MAYWRITE) == VM_MAYWRITE
    return (
        attributes.match(vma, system.profile)
        and vma.pgoff + distance == pgoff
        and (not copies or vma.anon_pgoff + distance == anon_pgoff)
        and system.can_merge(source, vma, growing)
    )


def _stick(new: Attributes, prev: VMA | None, next: VMA | None) -> None:
    """Unite the flags that stick, of what is to be one VMA: in those that it is asked to have, and in its own."""
    for vma in (prev, next):
        if vma is not None:
            new.flags |= vma.flags & VM_STICKY
    for vma in (prev, next):
        if vma is not None:
            vma.flags |= new.flags & VM_STICKY


def _carry_out(system: System, change: GeometryChange) -> None:
    """Make the change, between vma_prepare() and vma_complete()."""
    vma = change.vmas[0]
    tree = vma.mm.tree
    for locked in change.vmas:
        assert_write_locked(locked)
    for locked in change.absorbed:
        assert_write_locked(locked)
    if system.huge:
        for changed, after in zip(change.vmas, change.after, strict=True):
            huge_pmd.adjust(system, changed, after.start)
            huge_pmd.adjust(system, changed, after.end)
    told = change.concerns_prepared()
    if told:
        for design in system.designs:
            design.geometry_begin(change)
    for i in range(len(change.vmas)):
        changed = change.vmas[i]
        after = change.after[i]
        system.vma_changes(changed)
        changed.start = after.start
        changed.end = after.end
        changed.pgoff = after.pgoff
        changed.anon_pgoff = after.anon_pgoff
    # A walk of the tree under RCU sees it all change in one store (vma_iter_store()).
    start, end = change.extent()
    system.tree_changes(vma.mm, start, end)
    for gone in change.absorbed:
        tree.remove(gone)
    for i in range(len(change.vmas) - 1, -1, -1):
        tree.moved(change.vmas[i], change.before[i].start)
    if change.split_off is not None:
        tree.insert(change.split_off)
    if told:
        for design in system.designs:
            design.geometry_end(change)
    for gone in change.absorbed:
        if gone.prepared:
            for design in system.designs:
                design.vma_absorbed(vma, gone)
        system.free_vma(gone)


def change_range(system: System, vma: VMA, start: int, end: int, shift: int = 0) -> None:
    """Give one VMA that is in its tree new bounds (vma_shrink(), expand_downwards()), and page offsets that are
    greater by `shift`."""
    start_write(vma)
    _carry_out(system, GeometryChange([vma], [Bounds(start, end, vma.pgoff + shift, vma.anon_pgoff + shift)], []))


def split(system: System, vma: VMA, addr: int, new_below: bool) -> VMA:
    """Cut `vma` at `addr`; the new VMA is the lower part if `new_below`, else the upper.  Returns it."""
    distance = (addr - vma.start) >> PAGE_SHIFT
    lower = Bounds(vma.start, addr, vma.pgoff, vma.anon_pgoff)
    upper = Bounds(addr, vma.end, vma.pgoff + distance, vma.anon_pgoff + distance)
    part, rest = (lower, upper) if new_below else (upper, lower)
    new = system.copy_vma(vma.mm, vma, part.start, part.end, part.pgoff, part.anon_pgoff)
    if vma.prepared:
        for design in system.designs:
            design.vma_split(vma, new)
        new.prepared = True
    start_write(vma)
    start_write(new)
    change = GeometryChange([vma], [rest], [])
    change.split_off = new
    _carry_out(system, change)
    return new


def split_checked(system: System, vma: VMA, addr: int, new_below: bool) -> int:
    """split_vma(): 0, or -ENOMEM if there are too many mappings."""
    if len(vma.mm.tree) >= system.max_map_count:
        return -ENOMEM
    split(system, vma, addr, new_below)
    return 0


def _join(system: System, vma: VMA, donor: VMA) -> None:
    """`vma` is going to hold pages of `donor` (dup_anon_vma())."""
    if donor.prepared and not vma.prepared:
        start_write(vma)
        for design in system.designs:
            design.vma_joined(vma, donor)
        vma.prepared = True


def _commit(
    system: System, vma: VMA, start: int, end: int, pgoff: int, anon_pgoff: int, neighbour: VMA | None,
    removed: list[VMA],
) -> None:  # fmt: skip
    """Give `vma` its new bounds, up to which `neighbour` grows or shrinks, and drop `removed` (commit_merge())."""
    bounds = Bounds(start, end, pgoff, anon_pgoff)
    if neighbour is None:
        change = GeometryChange([vma], [bounds], removed)
    else:
        shift = (end - neighbour.start) >> PAGE_SHIFT
        beside = Bounds(end, neighbour.end, neighbour.pgoff + shift, neighbour.anon_pgoff + shift)
        change = GeometryChange([vma, neighbour], [bounds, beside], removed)
    _carry_out(system, change)


def merge_existing(system: System, vma: VMA, start: int, end: int, new: Attributes) -> VMA | None:
    """Attributes of [start, end) within `vma` become `new`: let a neighbour with the same take it over.

    Returns the VMA that holds the range now, or None if nothing merged (vma_merge_existing_range()).
    """
    left_side = start == vma.start
    right_side = end == vma.end
    if new.flags & VM_SPECIAL or not (left_side or right_side):
        return None
    tree = vma.mm.tree
    distance = (start - vma.start) >> PAGE_SHIFT
    pgoff = vma.pgoff + distance
    anon_pgoff = vma.anon_pgoff + distance
    nr_pages = (end - start) >> PAGE_SHIFT

    prev = tree.before(vma) if left_side else None
    merge_left = (
        prev is not None
        and prev.end == start
        and _takes_in(system, prev, prev.nr_pages, pgoff, anon_pgoff, new, vma)
    )
    next = tree.after(vma) if right_side else None
    merge_right = (
        next is not None
        and next.start == end
        and _takes_in(system, next, -nr_pages, pgoff, anon_pgoff, new, vma)
    )
    if merge_left and merge_right:
        assert prev is not None and next is not None
        merge_right = system.can_join(prev, next)
    if not merge_left and not merge_right:
        return None

    delete_vma = left_side and right_side
    if delete_vma and vma.file is not None and vma.file.closes:
        return None
    if merge_left and merge_right and next is not None and next.file is not None and next.file.closes:
        merge_right = False

    start_write(vma)
    if system.profile.sticky_flags:
        _stick(new, prev if merge_left else None, next if merge_right else None)
    if merge_left:
        assert prev is not None
        start_write(prev)
        if merge_right:
            assert next is not None
            start_write(next)
            _join(system, prev, next if next.prepared else vma)
            _commit(system, prev, prev.start, next.end, prev.pgoff, prev.anon_pgoff, None, [vma, next])
        elif delete_vma:
            _join(system, prev, vma)
            _commit(system, prev, prev.start, end, prev.pgoff, prev.anon_pgoff, None, [vma])
        else:
            _join(system, prev, vma)
            _commit(system, prev, prev.start, end, prev.pgoff, prev.anon_pgoff, vma, [])
        return prev
    assert next is not None
    start_write(next)
    _join(system, next, vma)
    if delete_vma:
        _commit(system, next, start, next.end, pgoff, anon_pgoff, None, [vma])
    else:
        _commit(system, vma, vma.start, start, vma.pgoff, vma.anon_pgoff, next, [])
    return next


def merge_new(
    system: System,
    mm: MM,
    start: int,
    end: int,
    pgoff: int,
    anon_pgoff: int,
    attributes: Attributes,
    source: VMA | None = None,
    copying: bool = False,
    expand_only: bool = False,
    not_with: VMA | None = None,
) -> VMA | None:
    """Let the VMAs beside the empty range [start, end) take it in.

    source:      whose pages the range is going to hold (a VMA that grows, or is moved), None for a new mapping
    copying:     the pages are to be moved there by mremap (copy_vma())
    expand_only: only the lower neighbour may (VMG_FLAG_JUST_EXPAND, brk)
    not_with:    a VMA that must not (MREMAP_DONTUNMAP of an unprepared VMA: itself)
    Returns the VMA that covers the range now, or None (vma_merge_new_range()).
    """
    if attributes.flags & VM_SPECIAL:
        return None
    tree = mm.tree
    prev = tree.last_from(start)
    next = None if expand_only else tree.first_after(end)
    if prev is not_with:
        prev = None
    if next is not_with:
        next = None
    growing = source is not None and not copying
    nr_pages = (end - start) >> PAGE_SHIFT
    merge_left = (
        prev is not None
        and prev.end == start
        and _takes_in(system, prev, prev.nr_pages, pgoff, anon_pgoff, attributes, source, growing)
    )
    merge_right = (
        next is not None
        and next.start == end
        and _takes_in(system, next, -nr_pages, pgoff, anon_pgoff, attributes, source, growing)
    )
    if merge_left and merge_right:
        assert prev is not None and next is not None
        if system.profile.upper_first and source is None:
            merge_left = system.can_merge(next, prev, False)
        else:
            merge_right = system.can_join(prev, next) and not (next.file is not None and next.file.closes)
    donor = source if copying else None
    if system.profile.sticky_flags:
        _stick(attributes, prev if merge_left else None, next if merge_right else None)
    if merge_left:
        assert prev is not None
        start_write(prev)
        if merge_right:
            assert next is not None
            start_write(next)
            _join(system, prev, next)
            if donor is not None:
                _join(system, prev, donor)
            _commit(system, prev, prev.start, next.end, prev.pgoff, prev.anon_pgoff, None, [next])
        else:
            if donor is not None:
                _join(system, prev, donor)
            _commit(system, prev, prev.start, end, prev.pgoff, prev.anon_pgoff, None, [])
        return prev
    if merge_right:
        assert next is not None
        start_write(next)
        if donor is not None:
            _join(system, next, donor)
        _commit(system, next, start, next.end, pgoff, anon_pgoff, None, [])
        return next
    return None


def modify(system: System, vma: VMA, start: int, end: int, new: Attributes) -> VMA | int:
    """Make [start, end) of `vma` a VMA by itself or part of a neighbour that has the attributes `new`,
    which the caller then sets.  Returns the VMA or a negative errno (vma_modify())."""
    merged = merge_existing(system, vma, start, end, new)
    if merged is not None:
        return merged
    if vma.start < start:
        error = split_checked(system, vma, start, True)
        if error:
            return error
    if vma.end > end:
        error = split_checked(system, vma, end, False)
        if error:
            return error
    return vma
