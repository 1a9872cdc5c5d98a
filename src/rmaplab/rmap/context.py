# SPDX-License-Identifier: GPL-2.0-or-later
"""CoW contexts: one object per address space, in the tree of forks.

The part that the designs `cow_context_prototype` and `cow_context` share; after mm/cow_context.c of the prototype's
branch (mm_init_cow_context(), dup_cow_context(), drop_cow_context(), traverse_contexts()).

Invariants
- the context of a forked address space is a child of its parent's; one made by exec has no parent.
- a context is alive as long as its address space, one of its children or a KSM place refers to it.  So all
  contexts above a living one exist, though their address spaces may be gone (`mm` is None).
- hence: every process that inherited a page through forks is in the subtree of the context of the address
  space that first had it.

Locking: `lock` of the parent covers its list of children, and `lock` of a context its remap tree.  Both are
read under RCU: an unlinked context keeps its own links, and is freed after a grace period.  A walk takes a
reference to each address space while it looks into it, and skips one whose last user is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Final, cast

from mypy_extensions import mypyc_attr

from rmaplab.mm.reverse_map import Attachment, ReverseMap, miscounted
from rmaplab.mm.vma import MM, PAGE_SHIFT, VMA, find_vmas
from rmaplab.rmap.numbers import take_number
from rmaplab.rmap.remap_tree import RemapMemory, RemapTree
from rmaplab.sync.fields import VERSION
from rmaplab.sync.locks import Data, Rcu, SpinLock
from rmaplab.sync.order import initialised, read_once, smp_store_release, write_once
from rmaplab.sync.seqcount import SequenceCount
from rmaplab.sync.work import LockClass, Pool, Tally


def context_size(maple_tree: int) -> int:
    """Bytes of struct cow_context in a cache of its own, field by field (docs/kernels/rules.md, section 3).
    `maple_tree`: bytes of its remap tree."""
    return (
        8  # the mm: struct mm_struct *
        + 8  # the parent: struct cow_context *
        + 16  # its children: struct list_head
        + 16  # its place among the parent's children: struct list_head
        + 4  # refcount_t
        + 4  # the lock of the list of children: spinlock_t
        + maple_tree
        + 16  # struct rcu_head, for the grace period before it is freed
    )


NOT_BELOW: Final = "the address space is not below the context that the folio points to"


class CowContext(Data):
    """struct cow_context: one address space in the tree of forks."""

    def __init__(
        self, number: int, mm: MM, parent: CowContext | None, lock: SpinLock, remaps: RemapTree
    ) -> None:
        super().__init__()
        self.number: Final = number  # what folios hold
        self.mm: MM | None = mm
        self.parent = parent
        self.root: Final[CowContext | None] = None if parent is None else parent.top()
        self.lock: Final = lock
        self.remaps: Final = remaps
        self.refcount = 1
        self.moves: Final = SequenceCount(lock.scheduler, "moves")  # odd while entries or VMAs of this mm move
        self.first_child: CowContext | None = None  # the newest
        self.next_sibling: CowContext | None = None
        self.previous_sibling: CowContext | None = None

    def top(self) -> CowContext:
        """The context that all of this tree descend from."""
        return self if self.root is None else self.root


@mypyc_attr(allow_interpreted_subclasses=True)
class ContextRmap(ReverseMap):
    """A reverse map that has one CoW context per address space."""

    mm_fields = 8  # a pointer to the context
    spaces_under_rcu = True  # get_mm()
    tables_under_rcu = True
    context_fields: ClassVar[int] = 0  # bytes of a context besides those of context_size()
    highest_apart: ClassVar[bool] = False  # RemapMemory
    home_marked: ClassVar[bool] = False
    tries_locks: ClassVar[bool] = False  # does anybody take the lock of a context only if it is free?
    drawn_by = "rmaplab.rmap.pictures.context:ContextPicture"

    def __init__(self, attachment: Attachment) -> None:
        super().__init__(attachment)
        sizes = attachment.profile.sizes
        size = context_size(sizes["maple_tree"]) + self.context_fields
        self.context_pool: Final[Pool] = self.ledger.pool("cow_context", size)
        self.memory: Final = RemapMemory(self.ledger, sizes["maple_node"], self.highest_apart, self.home_marked)
        self.lock_class: Final[LockClass] = self.ledger.lock_class("cow_context lock", tried=self.tries_locks)
        self.rcu: Final = Rcu(self.ledger, self.scheduler)
        self.walks: Final[Tally] = self.ledger.tally("walks")
        self.visited: Final[Tally] = self.ledger.tally("contexts visited")
        self.look_ups: Final[Tally] = self.ledger.tally("vma tree nodes visited")
        self.places: Final[Tally] = self.ledger.tally("places visited")
        self.contexts: Final[list[CowContext | None]] = [None]  # by number; 0 is no context
        self.free_numbers: Final[list[int]] = []
        self.held: Final[dict[int, CowContext]] = {}  # by pfn: kept for a second walk

    def new_remap_tree(self) -> RemapTree:
        """An empty one, for a new context."""
        return RemapTree(self.memory)

    def make_context(self, number: int, mm: MM, parent: CowContext | None, lock: SpinLock) -> CowContext:
        """One that is in no list yet."""
        return CowContext(number, mm, parent, lock, self.new_remap_tree())

    def context_of(self, mm: MM) -> CowContext:
        """mm->cow_context; it stays known when the mm is gone."""
        return cast(CowContext, mm.rmap[self.slot])

    def heir_of(self, context: CowContext) -> CowContext | None:
        """Who stands for a context that folios alone still know; None for any other."""
        return None

    # An address space

    def mm_created(self, mm: MM) -> None:
        mm.rmap[self.slot] = self._new_context(mm, None)

    def mm_forked(self, parent: MM, child: MM) -> None:
        above = self.context_of(parent)
        context = self._new_context(child, above)
        above.refcount += 1
        above.lock.lock()
        first = above.first_child
        context.next_sibling = first
        if first is not None:
            first.previous_sibling = context
        initialised(self.scheduler, "new context", context, "mm first_child next_sibling")
        smp_store_release(self.scheduler, "link child context", above, "first_child")
        above.lock.assert_held()
        above.first_child = context
        above.lock.unlock()
        child.rmap[self.slot] = context

    def mm_gone(self, mm: MM) -> None:
        context = self.context_of(mm)
        write_once(self.scheduler, "clear context's mm", context, "mm")
        context.mm = None
        self.put(context)

    def _new_context(self, mm: MM, parent: CowContext | None) -> CowContext:
        number = take_number(self.contexts, self.free_numbers)
        context = self.make_context(number, mm, parent, SpinLock(self.lock_class, self.scheduler))
        self.contexts[number] = context
        self.context_pool.alloc()
        return context

    def put(self, context: CowContext) -> None:
        """Drop a reference; what nobody refers to goes, from the bottom up."""
        gone: CowContext | None = context
        while gone is not None:
            gone.refcount -= 1
            if gone.refcount:
                self.still_referred_to(gone)
                return
            above = self.lock_parent(gone)
            if above is not None:
                self._unlink(gone, above)
                above.lock.unlock()
            self.context_pool.free(1 + self.stand_ins(gone))
            self.going(gone)
            self.rcu.call("cow_context", gone, partial(self._free, gone))
            gone = above

    def stand_ins(self, context: CowContext) -> int:
        """How many contexts in whose place it stands are kept, and go with it."""
        return 0

    def going(self, context: CowContext) -> None:
        """Nobody refers to `context` any more; it is freed after a grace period."""

    def still_referred_to(self, context: CowContext) -> None:
        """A reference was dropped, and it was not the last."""

    def lock_parent(self, context: CowContext) -> CowContext | None:
        """The parent, locked, if there is one."""
        above = context.parent
        if above is not None:
            above.lock.lock()
        return above

    def _free(self, context: CowContext) -> None:
        """Nobody looks at `context` any more."""
        context.remaps.clear()
        self.contexts[context.number] = None
        self.free_numbers.append(context.number)

    def _unlink(self, context: CowContext, above: CowContext) -> None:
        above.lock.assert_held()
        before = context.previous_sibling
        after = context.next_sibling
        if before is None:
            write_once(self.scheduler, "unlink child context", above, "first_child")
            above.first_child = after
        else:
            write_once(self.scheduler, "unlink child context", before, "next_sibling")
            before.next_sibling = after
        if after is not None:
            after.previous_sibling = before

    # Counting again

    def audit(self, mms: Sequence[MM], peak_vmas: int) -> list[str]:
        """Every context is reached from an address space, a place of KSM or a migration, or from one below it."""
        references: dict[int, int] = {}
        reached: dict[int, CowContext] = {}
        said: list[str] = []
        referring = [self.context_of(mm) for mm in mms]
        for context, mm in zip(referring, mms, strict=True):
            if context.mm is not mm:
                said.append(f"context {context.number} of mm {mm.id} does not refer to it")
        for user in [*referring, *self.placed(), *self.held.values()]:
            at: CowContext | None = user
            while at is not None:
                references[at.number] = references.get(at.number, 0) + 1
                if at.number in reached:
                    break
                reached[at.number] = at
                at = at.parent  # a child refers to its parent
        found = sum(1 + self.stand_ins(context) for context in reached.values())
        miscounted(said, "contexts in use", -1, self.context_pool.live, found)
        if self.scheduler is None:  # no grace period keeps any
            numbered = sum(context is not None for context in self.contexts)
            miscounted(said, "numbers of contexts in use", -1, numbered, found)
        children: dict[int, int] = {}
        for context in reached.values():
            miscounted(said, "references to context", context.number, context.refcount, references[context.number])
            if context.parent is not None:
                children[context.parent.number] = children.get(context.parent.number, 0) + 1
        for context in reached.values():
            listed = 0
            child = context.first_child
            while child is not None:
                listed += 1
                child = child.next_sibling
            miscounted(said, "children of context", context.number, listed, children.get(context.number, 0))
        return said

    def placed(self) -> list[CowContext]:
        """The contexts that places of KSM refer to, one for each place."""
        return []

    # The walk

    def get_mm(self, context: CowContext) -> MM | None:
        """The address space of `context`, with a reference to it (`spaces.put()` gives it back); None if it is gone or
        going."""
        self.visited.count += 1
        mm = cast("MM | None", read_once(self.scheduler, "visit context", context, "mm", context.mm))
        if mm is not None and self.spaces.get(mm):
            return mm
        return None

    def hold(self, pfn: int) -> None:
        context, _ = self.anchor_of(pfn)
        if context is not None:  # else what mapped the folio has gone since the caller looked
            context.refcount += 1
            self.held[pfn] = context

    def unhold(self, pfn: int) -> None:
        if pfn in self.held:
            self.put(self.held.pop(pfn))

    def anchor_of(self, pfn: int) -> tuple[CowContext | None, int]:
        """The context that page `pfn` points to, and the page offset by which it is found there."""
        raise NotImplementedError

    def first_child(self, context: CowContext) -> CowContext | None:
        """The newest child, for who walks under RCU."""
        child = read_once(self.scheduler, "first child", context, "first_child", context.first_child)
        return cast("CowContext | None", child)

    def next_sibling(self, context: CowContext) -> CowContext | None:
        """The next older child of the same parent, for who walks under RCU."""
        child = read_once(self.scheduler, "next sibling", context, "next_sibling", context.next_sibling)
        return cast("CowContext | None", child)

    def records(self, context: CowContext) -> RemapTree:
        """The remap tree, for who walks under RCU."""
        tree = read_once(self.scheduler, "read records", context.remaps, VERSION, context.remaps, 0, context)
        return cast(RemapTree, tree)

    def records_change(self, context: CowContext, what: str) -> None:
        """The remap tree is about to change, under its lock."""
        smp_store_release(self.scheduler, what, context.remaps, VERSION, 0, context)

    def _forget(self, context: CowContext, first: int, last: int, offset: int) -> None:
        """Page offsets first..last of `context` are not at `offset` any more."""
        context.lock.lock()
        self.records_change(context, "remove record")
        context.lock.assert_held()
        context.remaps.remove(first, last, offset)
        context.lock.unlock()

    def shift_of(self, vma: VMA) -> int | None:
        """What to add to vm_pgoff for such a page offset; None if `vma` cannot have pages."""
        raise NotImplementedError

    def vmas_at(self, mm: MM, start: int, end: int) -> list[VMA]:
        """The VMAs of `mm` that touch [start, end)."""
        self.look_ups.count += mm.tree.levels()
        return find_vmas(self.scheduler, mm, start, end)

    # What the design says of itself

    def why_missed(self, pfn: int, vma: VMA, addr: int) -> str:
        context = self.context_of(vma.mm)
        top, _ = self.anchor_of(pfn)
        above = context
        while above is not top and above.parent is not None:
            above = above.parent
        if above is not top:
            return NOT_BELOW
        displaced = (vma.start >> PAGE_SHIFT) - vma.anon_pgoff - (self.shift_of(vma) or 0)
        pgoff = (addr >> PAGE_SHIFT) - displaced
        if displaced and displaced not in context.remaps.offsets(pgoff, pgoff):
            return "the VMA is displaced, and no record says so"
        return super().why_missed(pfn, vma, addr)
