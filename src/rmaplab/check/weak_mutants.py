# SPDX-License-Identifier: GPL-2.0-or-later
"""Orderings that are taken away: bugs that only weak memory shows.

Each is an ordering that a design, or the machine below it, states (sync/order.py), with a scenario that breaks without
it.  Under sequential consistency none of them does anything, so no interleaving shows that one is missing.
"""

from __future__ import annotations

from typing import Final

from rmaplab.check.mutants import Mutant
from rmaplab.rmap import DESIGNS

# Where Linux has each, or the branch or series that a design is from.
PLACES: Final = {
    "publish vma->anon_vma": "__anon_vma_prepare(), mm/rmap.c: smp_store_release()",
    "neighbour's vma->anon_vma": "reusable_anon_vma(), mm/vma.c: READ_ONCE(), and an address dependency",
    "folio->mapping": "folio_get_anon_vma(), mm/rmap.c: READ_ONCE(), and an address dependency",
    "anon_vma->root": "folio_lock_anon_vma_read(), mm/rmap.c: READ_ONCE(), and an address dependency",
    "put_anon_vma()": "put_anon_vma(), include/linux/rmap.h: atomic_dec_and_test(), and anon_vma_free() of mm/rmap.c",
    "atomic_inc_not_zero() of anon_vma": "folio_get_anon_vma(), mm/rmap.c: atomic_inc_not_zero()",
    "mm_users, mmget_not_zero()": "mmget_not_zero(), include/linux/sched/mm.h: atomic_inc_not_zero()",
    "mm_users, mmput()": "mmput(), kernel/fork.c: atomic_dec_and_test()",
    "change mapcount": "folio_remove_rmap_pte(), mm/rmap.c: atomic_add_negative()",
    "folio_try_get()": "page_idle_get_folio(), mm/page_idle.c: atomic_add_unless()",
    "folio_put_testzero()": "folio_put_testzero(), include/linux/mm.h: atomic_dec_and_test()",
    "folio_test_clear_active()": "folio_migrate_flags(), mm/migrate.c: test_and_clear_bit()",
    "folio_migrate_ksm()": "folio_migrate_ksm(), mm/ksm.c: smp_wmb()",
    "ksm_get_folio()": "ksm_get_folio(), mm/ksm.c: smp_rmb()",
    "stable_node->kpfn": "ksm_get_folio(), mm/ksm.c: READ_ONCE(), and an address dependency",
    "folio_try_share_anon_rmap_pte()": "__folio_try_share_anon_rmap(), include/linux/rmap.h: smp_mb()",
    "__folio_try_share_anon_rmap()": "__folio_try_share_anon_rmap(), include/linux/rmap.h: smp_mb__after_atomic()",
    "gup_must_unshare()": "gup_must_unshare(), mm/internal.h: smp_rmb()",
    "try_grab_folio_fast()": "try_grab_folio_fast(), mm/gup.c: smp_mb__after_atomic()",
    "__refcount_inc_not_zero_limited_acquire()":
        "vma_start_read(), mm/mmap_lock.c: __refcount_inc_not_zero_limited_acquire()",
    "raw_read_seqcount()": "vma_start_read(), mm/mmap_lock.c: raw_read_seqcount(), an smp_load_acquire()",
    "vma_end_write_all()": "vma_end_write_all(), include/linux/mmap_lock.h: a release in mm_lock_seqcount_end()",
    "refcount_sub_and_test()": "__vma_end_exclude_readers(), mm/mmap_lock.c: refcount_sub_and_test()",
    "vma_mark_attached()": "vma_mark_attached(), include/linux/mmap_lock.h: refcount_set_release()",
    "folio_test_clear_unevictable()": "lru_add(), mm/folio.c: test_and_clear_bit(), before folio_set_lru()",
    "folio_trylock()": "folio_trylock(), include/linux/pagemap.h: test_and_set_bit_lock(), of the word that has PG_lru",
    "free anon_vma": "anon_vma_free(), mm/rmap.c: SLAB_TYPESAFE_BY_RCU",
    "change VMA tree": "vma_iter_store_new(), mm/vma.h: rcu_assign_pointer() in lib/maple_tree.c",
    "look up VMA": "mas_walk(), lib/maple_tree.c: rcu_dereference_check()",
    "free vm_area_struct": "vm_area_free(), mm/vma_init.c: SLAB_TYPESAFE_BY_RCU; call_rcu() for a walk",
    "pmd_install()": "pmd_install(), mm/memory.c: smp_wmb()",
    "pmdp_get_lockless()": "___pte_offset_map(), mm/pgtable-generic.c: READ_ONCE(), and an address dependency",
    "remove record": "find_and_unmap_existing(), mm/cow_context.c of the prototype: as add record",
    "update record": "find_and_remap_existing(), mm/cow_context.c of the prototype: as add record",
    "free page table": "pte_free_defer(), mm/pgtable-generic.c: call_rcu()",
    "free mm_struct": "mmdrop(), include/linux/sched/mm.h; call_rcu() for a walk under RCU alone",
    "link child context": "dup_cow_context(), mm/cow_context.c of the prototype: list_add_rcu()",
    "first child": "traverse_contexts(), mm/cow_context.c of the prototype: list_first_or_null_rcu()",
    "next sibling": "traverse_contexts(), mm/cow_context.c of the prototype: list_next_or_null_rcu()",
    "visit context": "walk_context(), mm/cow_context.c of the prototype: READ_ONCE(), and an address dependency",
    "add record": "add_new_remap(), mm/cow_context.c of the prototype: rcu_assign_pointer() in lib/maple_tree.c",
    "read records": "walk_context(), mm/cow_context.c of the prototype: rcu_dereference_check() in lib/maple_tree.c",
    "free cow_context": "drop_cow_context(), mm/cow_context.c of the prototype: kfree_rcu()",
    "write vma->anon_vma": "where ANON_VMA_LAZY upgrades a root VMA: smp_store_release()",
    "read vma->anon_vma": "where a walk of ANON_VMA_LAZY comes to a root VMA: READ_ONCE(), and an address dependency",
    "free root VMA": "where ANON_VMA_LAZY drops the last reference to a root VMA: call_rcu()",
    "read_seqcount_begin()": "read_seqcount_begin(), include/linux/seqlock.h: smp_load_acquire(), as good as smp_rmb()",
    "read_seqcount_retry()": "read_seqcount_retry(), include/linux/seqlock.h: smp_rmb()",
    "write_seqcount_begin()": "write_seqcount_begin(), include/linux/seqlock.h: smp_wmb()",
    "write_seqcount_end()": "write_seqcount_end(), include/linux/seqlock.h: smp_wmb()",
}  # fmt: skip


def place(ordering: str) -> str:
    """Where Linux has it; "" if that is not known.  That of a sequence count says whose it is ("moves: ...")."""
    return PLACES.get(ordering.rpartition(": ")[2], "")


_FIRST_FAULTS: Final = "first fault below / first fault above"
_MAPPED: Final = "mmap / fault in another thread"
_UNMAPPED: Final = "referenced / munmap before any fork"
_TWO_EXIT: Final = "referenced / exit of the parent + exit of the child"
_MOVED: Final = "referenced / mremap before any fork"
_MERGED: Final = "migrate / mprotect that merges"
_FORKED: Final = "referenced / fork"
_BY_NUMBER: Final = "page_idle / munmap + first fault"

# Scenarios, and what breaks in each.
_NEEDED: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "anon_vma": {
        _FIRST_FAULTS: ("publish vma->anon_vma", "neighbour's vma->anon_vma"),
        _MAPPED: ("change VMA tree", "look up VMA"),
        "migrate / first fork": ("pmd_install()", "pmdp_get_lockless()"),
        _UNMAPPED: ("free anon_vma",),
        _TWO_EXIT: ("put_anon_vma()",),
        _BY_NUMBER: (
            "folio_try_get()", "folio_put_testzero()", "folio_test_clear_unevictable()", "folio_trylock()",
        ),
        "gup_fast / reclaim": ("folio_try_share_anon_rmap_pte()", "try_grab_folio_fast()"),
        "gup_fast to read / write_protect_page": ("__folio_try_share_anon_rmap()", "gup_must_unshare()"),
        "ksmd / migrate": (
            "folio_migrate_ksm()", "ksm_get_folio()", "stable_node->kpfn", "folio_test_clear_active()",
        ),
        "lock_vma_under_rcu / munmap of its beginning": (
            "vma_end_write_all()", "raw_read_seqcount()", "refcount_sub_and_test()",
        ),
        "lock_vma_under_rcu / munmap, and mmap of another": (
            "vma_mark_attached()", "__refcount_inc_not_zero_limited_acquire()",
        ),
    },
    "anon_vma_own_lock": {
        "migrate / first fork": ("pmd_install()", "pmdp_get_lockless()"),
    },
    "anon_vma_lazy": {
        _FIRST_FAULTS: ("publish vma->anon_vma", "neighbour's vma->anon_vma"),
        "referenced / first fork": ("write vma->anon_vma", "read vma->anon_vma"),
        "migrate / first fork": ("pmd_install()", "pmdp_get_lockless()"),
        _UNMAPPED: ("change VMA tree", "look up VMA", "free root VMA"),
        _MOVED: ("free vm_area_struct",),
    },
    "pte_chain": {
        _UNMAPPED: ("change VMA tree", "look up VMA"),
        _FIRST_FAULTS: ("pmd_install()", "pmdp_get_lockless()"),
        _MERGED: ("free vm_area_struct",),
    },
    "anonmm": {
        "referenced / first fault": ("change VMA tree", "look up VMA"),
        _FIRST_FAULTS: ("pmd_install()", "pmdp_get_lockless()"),
        "referenced / munmap": ("free vm_area_struct",),
    },
    "cow_context_prototype": {
        _FORKED: ("link child context", "first child", "pmd_install()", "pmdp_get_lockless()"),
        "referenced / first fault": ("change VMA tree", "look up VMA"),
        "referenced / mremap away": ("update record", "read records", "free vm_area_struct"),
        "referenced / exit of the parent": ("free mm_struct",),
    },
    "unshare_on_remap": {
        _FORKED: ("link child context", "first child", "pmd_install()", "pmdp_get_lockless()"),
        "referenced / first fault": ("change VMA tree", "look up VMA"),
    },
    "lineage": {
        _FORKED: ("link child context", "first child", "pmd_install()", "pmdp_get_lockless()"),
        _UNMAPPED: ("change VMA tree", "look up VMA", "free page table"),
        _MOVED: ("add record", "remove record", "read records"),
    },
    "cow_context": {
        _FORKED: ("link child context", "first child", "pmd_install()", "pmdp_get_lockless()"),
        "referenced / first fault": ("change VMA tree", "look up VMA"),
        _MERGED: (
            "moves: read_seqcount_begin()", "moves: read_seqcount_retry()", "moves: write_seqcount_end()",
            "free vm_area_struct",
        ),
        _MOVED: ("add record",),
        "referenced / mremap back": ("remove record", "read records"),
        "referenced / exit of the child": ("free cow_context",),
        "referenced / exit of the parent": ("free mm_struct",),
        "migrate / munmap with its page table": ("free page table",),
    },
}  # fmt: skip

# Orderings that Linux once lacked, with the commits that brought them.
_SHIPPED: Final = {
    ("anon_vma", "publish vma->anon_vma"): "b6ac0b3f6013",
    ("anon_vma", "pmd_install()"): "362a61ad6119",
    ("anon_vma", "folio_try_share_anon_rmap_pte()"): "088b8aa537c2",
    ("anon_vma", "try_grab_folio_fast()"): "088b8aa537c2",
    ("anon_vma", "__folio_try_share_anon_rmap()"): "088b8aa537c2",
    ("anon_vma", "gup_must_unshare()"): "088b8aa537c2",
}

WEAKENED: Final = tuple(
    Mutant(
        place(ordering), DESIGNS[design], DESIGNS[design], "race", _SHIPPED.get((design, ordering), ""), scene=scene,
        memory="weak", weakened=ordering,
    )
    for design, scenes in _NEEDED.items()
    for scene, orderings in scenes.items()
    for ordering in orderings
)  # fmt: skip
