# SPDX-License-Identifier: GPL-2.0-or-later
"""Design `anon_vma_own_lock`: anon_vma, where each anon_vma has a lock of its own, not its root's.

The other way out of the contention on the root's lock: a lock of the granularity of a mapping, that is, of what
folio->mapping leads to, as files have it (i_mmap_rwsem of struct address_space).  So it was before 2.6.36 ("always lock
the root (oldest) anon_vma", R. van Riel, May 2010).  No code for today's kernel was published; the rules are ours.

Data and invariants are those of anon_vma.py, and what they say about AVCs is all that completeness needs.

Locking
- the rwsem of an anon_vma covers its tree, `num_children` and `num_active_vmas`.  Whether a fork may take it over is
  looked at, and done, under one hold of it.
- who links or unlinks a VMA takes the locks of its chain one after the other.
- who changes the key of a VMA, or moves its entries where a walk could miss them, takes them all, in the order of their
  addresses (here, of their numbers).
- a walk takes one: that of the anon_vma that the folio points to.
"""

from __future__ import annotations

from collections.abc import Sequence

from mypy_extensions import mypyc_attr

from rmaplab.mm.geometry import GeometryChange
from rmaplab.mm.takeover import TakenOver
from rmaplab.mm.vma import VMA
from rmaplab.rmap.anon_vma import AnonVma, AnonVmaRmap, VmaFields, is_unused, rwsem_of
from rmaplab.sync.locks import RwSemaphore


@mypyc_attr(allow_interpreted_subclasses=True)
class AnonVmaOwnLockRmap(AnonVmaRmap):
    """An anon_vma per VMA and process, with an interval tree and a lock of its own."""

    name = "anon_vma_own_lock"
    lock_name = "anon_vma rwsem"

    def _new_child_anon_vma(self, parent: AnonVma) -> AnonVma:
        anon_vma = super()._new_child_anon_vma(parent)
        anon_vma.rwsem = RwSemaphore(self.lock_class, self.scheduler)
        return anon_vma

    def _root_rwsem(self, anon_vma: AnonVma) -> RwSemaphore:
        return rwsem_of(anon_vma)

    # Links, one after the other

    def _link_child(self, fields: VmaFields, vma: VMA, anon_vma: AnonVma, parent: AnonVma) -> None:
        self._lock(anon_vma)
        self._link(fields, vma, anon_vma)
        self._unlock(anon_vma)
        self._count_child(parent, 1)

    def _clone(self, fields: VmaFields, vma: VMA, source: VmaFields) -> None:
        own = fields.anon_vma
        for link in source.chain[::-1] if self.profile.clone_reverses else source.chain:
            anon_vma = link.anon_vma
            self._lock(anon_vma)
            self._link(fields, vma, anon_vma)
            if fields.anon_vma is None and is_unused(anon_vma):
                fields.anon_vma = anon_vma
                anon_vma.num_active_vmas += 1
            self._unlock(anon_vma)
        if own is not None:
            self._lock(own)
            own.num_active_vmas += 1
            self._unlock(own)

    def _unlink_chain(self, fields: VmaFields) -> None:
        emptied: list[AnonVma] = []
        for avc in fields.chain[::-1]:  # the newest first: a parent must be there when its child is freed
            anon_vma = avc.anon_vma
            self._lock(anon_vma)
            anon_vma.remove(avc, self.visited)
            if anon_vma is fields.anon_vma:
                anon_vma.num_active_vmas -= 1
            empty = anon_vma.rb_root is None
            self._unlock(anon_vma)
            if empty:
                self._count_child(anon_vma.parent, -1)
                emptied.append(anon_vma)
        for anon_vma in emptied:
            self._put(anon_vma)
        self._free_chain(fields.chain)

    def _count_child(self, parent: AnonVma, more: int) -> None:
        self._lock(parent)
        parent.num_children += more
        self._unlock(parent)

    # Keys and moves, with all locks of a chain

    def _lock_geometry(self, change: GeometryChange) -> None:
        self._lock_all(change.vmas)

    def _unlock_geometry(self, change: GeometryChange) -> None:
        self._unlock_all(change.vmas)

    def move_lock(self, vma: VMA) -> None:
        self._lock_all([vma])

    def move_unlock(self, vma: VMA) -> None:
        self._unlock_all([vma])

    def _lock_all(self, vmas: Sequence[VMA]) -> None:
        for anon_vma in self._linked(vmas):
            self._lock(anon_vma)

    def _unlock_all(self, vmas: Sequence[VMA]) -> None:
        for anon_vma in self._linked(vmas)[::-1]:
            self._unlock(anon_vma)

    def _linked(self, vmas: Sequence[VMA]) -> list[AnonVma]:
        """Those in the chains of these VMAs, in the order of their locks."""
        found = {
            link.anon_vma.number: link.anon_vma
            for vma in vmas
            if (fields := self.fields_of(vma)) is not None
            for link in fields.chain
        }
        return [found[number] for number in sorted(found)]

    def _assert_locked(self, fields: VmaFields) -> None:
        for link in fields.chain:
            rwsem_of(link.anon_vma).assert_held_write()

    # Memory that is there already

    def take_over(self, found: TakenOver) -> None:
        super().take_over(found)
        for anon_vma in self.anon_vmas:
            if anon_vma is not None and anon_vma.root is not anon_vma:
                anon_vma.rwsem = RwSemaphore(self.lock_class, None)
