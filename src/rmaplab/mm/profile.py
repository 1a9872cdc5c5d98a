# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel profiles: the rules that differ between kernel versions, and the sizes of objects.

`7.3` is the reference: the kernel that is meant where none is named.  An older one has the rules of the next newer one
where it states no other.  Rules that all of them share are not in a profile.

Sources
- 6.1 and 6.12: the sources of Debian's linux-source-6.1 (6.1.192) and linux-source-6.12 (6.12.117), and the
  BTF in its cloud images of the same versions, for x86-64.
- 6.18: BTF, /proc/slabinfo and the behaviour of a running 6.18.44 on x86-64: each rule that a program without swap on
  one NUMA node can see was tried there with system calls (tests/mm/test_host_rules.py).  The others, swap_uncaches,
  large_swap_in, huge_lazyfree, sticky_flags, clone_reverses and what says so below, are taken from 6.12 or 7.2.
A rule is named with the file and function that has it, or where a version lacks it, would have it.

Sizes
- BTF has the size of a struct; what an object takes in its slab is more (mm/slub.c calculate_sizes(),
  mm/slab_common.c calculate_alignment(); both the same in 6.1 and 6.12 for what follows).  6.18's were read
  from /proc/slabinfo and agree with that reckoning.
- anon_vma is 96 bytes in 6.x.  Its cache has a constructor and is SLAB_TYPESAFE_BY_RCU, so the free
  pointer goes behind the object: 104.
- anon_vma_chain, vm_area_struct, vma_lock and maple_node take just their own size.  The per-VMA lock does not
  exist in 6.1, is an object of its own in 6.12 and part of vm_area_struct (cache-line aligned) in 6.18.
- mm_struct is followed by CPU masks and aligned to cache lines (kernel/fork.c mm_cache_init()): 1096 and one
  mask of 8 bytes (up to 64 possible CPUs) in 6.1, 1344 and two of 8 in 6.12; 1472 and three of 32 bytes
  (CONFIG_NR_CPUS=256) in the 6.18 that was looked at.
- maple_tree is no object of its own, but a part of others (include/linux/maple_tree.h).
A design states the sizes of objects that no kernel has.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Final


@dataclass(frozen=True, eq=False)
class Profile:
    """One kernel.  A rule is one field, with 7.3's as its default; the newest that has another says so in `PROFILES`.
    A profile for sizes measured elsewhere is `dataclasses.replace(profile, release=..., sizes=...)`."""

    name: str
    """What the profile is asked for by: "6.12"."""
    release: str
    """The kernel that rules and sizes were read from: "6.12.117"."""
    sizes: dict[str, int]
    """Bytes that an object takes in its slab, by type; "vma_lock" only where it is an object of its own.  Of
    "maple_tree", the size of the struct."""

    # Rules that decide the geometry of VMAs

    relaxed_anon_merge: bool = True
    """A prepared range may become part of an unprepared neighbour, unless its VMA was inherited in a fork (its chain is
    not singular).  Without it, of two only the neighbour may be the prepared one: never a prepared range and an
    unprepared neighbour.  (is_mergeable_anon_vma(): mm/vma.c since 6.16; 6.12 and 6.1 test the neighbour's chain alone)
    """
    upper_first: bool = False
    """A new mapping goes to the VMA above it first, and the one below joins only if it could take in pages of that;
    otherwise below goes first, and above joins if both agree.
    (mm/mmap.c __mmap_region() in 6.1; mm/vma.c vma_merge_new_range() in 6.12)"""
    close_forbids_merge: bool = False
    """A VMA whose file has a close hook never merges; otherwise it only must not be removed by a merge.
    (mm/mmap.c is_mergeable_vma() in 6.1; mm/vma.c can_merge_remove_vma())"""
    unaccount_unprepared: bool = True
    """mprotect() that takes the right to write from an unprepared anonymous VMA takes VM_ACCOUNT, too.
    (mm/mprotect.c mprotect_fixup(), not in 6.1)"""
    stack_nohugepage: bool = True
    """MAP_STACK means VM_NOHUGEPAGE.  (include/linux/mman.h calc_vm_flag_bits(), not in 6.1)"""
    move_many: bool = True
    """mremap() with MREMAP_FIXED that does not resize may move a range of many VMAs.  Each goes as if it were moved
    alone, in order of address: what the target has in a gap of the source stays, a range that begins with a gap is
    -EFAULT, and an error leaves moved what was moved.  (mm/mremap.c remap_move(), since 6.17)"""
    dontunmap_apart: bool = True
    """The source of MREMAP_DONTUNMAP stays a VMA by itself: unprepared, it does not merge with its own target; and once
    unprepared it has a fresh page offset.
    (mm/vma.c copy_vma() and mm/mremap.c move_vma() in 6.12.117, also in 6.1.192; not yet in 6.18.44)"""
    remap_reserve: bool = True
    """mremap() begins only if there may be four VMAs more, five with MREMAP_DONTUNMAP, whatever it is to do, and moves
    only if there may be two, or three for a locked one that stays mapped.  Before, those that have a target or keep the
    source asked for six, and each move for four.
    (mm/mremap.c check_map_count_against_split_early() and prep_move_vma() in 7.2 and 7.3)"""
    realigns_moves: bool = True
    """Page tables that mremap() moves go whole also where the range begins within one, if nothing else is mapped there.
    (mm/mremap.c try_realign_addr(), since 6.7)"""
    anon_pgoff: bool = True
    """A VMA has a page offset for anonymous pages beside that in its file: the virtual one at which it was mapped, or
    moved to before it was prepared.  VMAs of a file merge, and share a neighbour's anon_vma, only if both go on; and
    what MREMAP_DONTUNMAP leaves whole gets a fresh one, of a file or not.  (mm/vma.h vma_set_anon_pgoff(), mm/vma.c
    __mmap_region(), copy_vma(), needs_adjacent_anon_pgoff() and anon_vma_compatible(), mm/mremap.c
    dontunmap_complete(), since 7.3)"""
    clone_reverses: bool = True
    """anon_vma_clone() makes the new chain from the newest link to the oldest, and so mirrors it; and a fork takes over
    the first unused anon_vma in that order.  (mm/rmap.c anon_vma_clone() and maybe_reuse_anon_vma(), since 7.0; before,
    from the oldest)"""
    sticky_flags: bool = True
    """Flags that a merge does not ask about (VM_SOFTDIRTY, VM_MAYBE_GUARD) are united in its result; else those of the
    caller win, or of the VMA that grows.  VM_MAYBE_GUARD is there: a VMA with it has its entries copied at fork, and
    only an anonymous one is prepared for its markers.
    (include/linux/mm.h VMA_STICKY_FLAGS, mm/vma.c vma_merge_existing_range() and vma_expand() in 7.3.4)"""
    moves_under_anon_vma: bool = False
    """UFFDIO_MOVE locks the folio's anon_vma for writing, beside the folio.
    (mm/userfaultfd.c move_pages_pte() in 6.12, not in 7.2 and 7.3, where all walks have the folio locked; taken
    from 6.12 for 6.18, whose programs cannot see it)"""
    madvise_locks_vma: bool = True
    """MADV_DONTNEED, MADV_FREE and the advice about guard regions lock a single VMA where that is enough.
    (mm/madvise.c try_vma_read_lock() and is_vma_lock_sufficient() in 7.2 and 7.3; the BTF of 6.18.44 has
    MADVISE_VMA_READ_LOCK)"""
    fresh_pgoff: bool = True
    """An anonymous VMA that mremap() moves before it was prepared gets the page offset of its new place.
    (mm/vma.c copy_vma(), in all of them; a profile without it is a bug for the checks to find)"""
    thp_placement: bool = True
    """An anonymous mapping of a multiple of 2 MiB with no hint is placed on a multiple of 2 MiB.
    (mm/mmap.c __get_unmapped_area(), mm/huge_memory.c __thp_get_unmapped_area(); not in 6.1)"""

    # What an entry allows

    swap_in_writable: bool = True
    """A page that is read in for one process alone is mapped writable also where the access was a read.
    (mm/memory.c do_swap_page(); 6.1 asks for FAULT_FLAG_WRITE)"""
    swap_uncaches: bool = True
    """Swap-in goes through the swap cache: a page is exclusive only if its entry says so, and leaves the cache as soon
    as no entry is left, on a read as well, where swap is a synchronous device (as the machine's is).  Before, such a
    page skips the cache for the last entry that refers to it, and is exclusive then.
    (mm/memory.c do_swap_page() and should_try_to_free_swap() in 7.2 and 7.3)"""
    large_swap_in: bool = True
    """Entries that lie in swap as they lie in memory come back as one folio, where swap is a synchronous device.
    (mm/memory.c alloc_swap_folio() since 6.12, thp_swapin_suitable_orders() in 7.2 and 7.3)"""
    mm_ids: bool = True
    """A large folio remembers two address spaces that map it (mm/mm_ids.py).  If it seems to be one's alone, a write to
    a page of it that is not exclusive makes it so and copies nothing; the folio stays with the anon_vma that it has.
    And MADV_COLD, _PAGEOUT and _FREE of a part split it.  Before, such a write copies, and what seems shared is
    estimated.  (include/linux/rmap.h, mm/memory.c __wp_can_reuse_large_anon_folio(), include/linux/mm.h
    folio_maybe_mapped_shared(), since 6.15)"""
    batches: bool = True
    """Entries that map a large folio one after the other, alike in whether they are writable and soft-dirty, are
    handled as one.  mprotect() makes all dirty if one is; reclaim drops all of what MADV_FREE gave up, or, if one is
    dirty, none and leaves all dirty.  Before, entry by entry.  Extra references no longer make such a folio swap-backed
    again.  (mm/mprotect.c change_pte_range(), mm/rmap.c folio_unmap_pte_batch() and try_to_unmap_one(); tried on
    6.18.44, which has both)"""
    clean_writable: bool = True
    """mprotect() that gives the right to write gives it to entries of exclusive pages, clean or dirty.
    (mm/mprotect.c can_change_pte_writable(); 6.1 asks for a dirty entry)"""
    split_to_zero: bool = True
    """Pages of a large folio that are all zeroes are mapped as the zero page when it is split.
    (mm/migrate.c try_to_map_unused_to_zeropage(), since 6.12)"""
    migrated_partly: bool = True
    """A large folio that was migrated counts as partly mapped from then on: unmapping it entry by entry puts the old
    one on the list of those to be split, and the new one inherits that.
    (mm/migrate.c migrate_folio_move() in 6.12.117; 6.18.44 had one NUMA node, where nothing migrates)"""
    migration_splits: bool = True
    """A large folio that is partly mapped is split before it is migrated.
    (mm/migrate.c migrate_pages_batch() in 6.12, not in 6.1)"""
    ksm_unshares: bool = True
    """A page that KSM gives back (MADV_UNMERGEABLE, mremap) is mapped without the right to write, until something
    writes.  (mm/ksm.c break_ksm(): FAULT_FLAG_UNSHARE since 6.2; 6.1 has a write fault)"""
    unmerges_none: bool = True
    """KSM gives pages back also where a VMA allows no access.  In 6.1 they stay merged, and mremap() moves them to
    where no walk looks.  (mm/ksm.c break_ksm(): folio_walk_start() in 6.12; follow_page() in 6.1)"""

    # Folios of 2 MiB that one entry maps (mm/huge_pmd.py)

    mthp: bool = True
    """Faults allocate folios of other sizes than 2 MiB, and advice about a range leaves a large folio whole that the
    range maps whole.  (mm/memory.c alloc_anon_folio() since 6.8, mm/madvise.c madvise_folio_pte_batch() since 6.10)"""
    huge_zero_replaced: bool = True
    """A write to the zero page of 2 MiB gets a folio of that size; before, it splits it.
    (mm/huge_memory.c do_huge_zero_wp_pmd() in 7.2 and 7.3)"""
    huge_writable: bool = True
    """mprotect() that gives the right to write gives it to such an entry of an exclusive folio.
    (mm/huge_memory.c change_huge_pmd() and can_change_pmd_writable(), not in 6.1)"""
    huge_split_dirty: bool = True
    """When such an entry is split, those that take its place are as dirty.  Before, only the folio is.
    (mm/huge_memory.c __split_huge_pmd_locked(), not in 6.1)"""
    huge_lazyfree: bool = False
    """Reclaim drops such an entry of what MADV_FREE gave up whole, or leaves it as it is; else it is split first.
    (mm/rmap.c try_to_unmap_one(), unmap_huge_pmd_locked() in 7.2; in 7.3 nothing calls that any more)"""
    reclaims_tables: bool = True
    """MADV_DONTNEED frees page tables that it leaves empty, so that a later fault may map 2 MiB.
    (mm/memory.c zap_pte_table_if_empty() and its caller, since 6.14)"""

    # What a system call knows

    populates_past_holes: bool = False
    """MADV_POPULATE_READ and _WRITE go VMA by VMA, and report a hole in the end; else they stop there.
    (mm/madvise.c madvise_vma_behavior() in 6.1; madvise_do_behavior() and madvise_populate() in 6.12)"""
    dofork_special: bool = True
    """MADV_DOFORK refuses VM_SPECIAL, not only VM_IO.  (mm/madvise.c madvise_vma_behavior() in 7.2 and 7.3)"""
    droppable: bool = True
    """MAP_DROPPABLE  (mm/mmap.c do_mmap(), not in 6.1)"""
    guard_regions: bool = True
    """MADV_GUARD_INSTALL and MADV_GUARD_REMOVE.  Installing prepares a private VMA, so that fork copies its entries.
    (mm/madvise.c, since 6.13)"""

    def __reduce__(self) -> tuple[Callable[[dict[str, Any]], Profile], tuple[dict[str, Any]]]:
        """How it goes from process to process: a compiled frozen class cannot be set field by field."""
        return _of_fields, ({field.name: getattr(self, field.name) for field in fields(self)},)


def _of_fields(values: dict[str, Any]) -> Profile:
    return Profile(**values)


REFERENCE: Final = "7.3"

_7_3: Final = Profile("7.3", "7.3.4", {
    "vm_area_struct": 192, "mm_struct": 1792, "maple_node": 256, "anon_vma": 96, "anon_vma_chain": 64, "maple_tree": 16,
})  # fmt: skip
_7_2: Final = replace(
    _7_3, name="7.2", release="7.2.13", anon_pgoff=False, huge_lazyfree=True,
)  # fmt: skip
_6_18: Final = replace(
    _7_2, name="6.18", release="6.18.44", sizes={**_7_2.sizes, "mm_struct": 1600, "anon_vma": 104},
    dontunmap_apart=False, remap_reserve=False, clone_reverses=False, sticky_flags=False,
    moves_under_anon_vma=True, swap_uncaches=False, migrated_partly=False, dofork_special=False,
)  # fmt: skip
_6_12: Final = replace(
    _6_18, name="6.12", release="6.12.117",
    sizes={**_6_18.sizes, "vm_area_struct": 176, "vma_lock": 40, "mm_struct": 1408},
    relaxed_anon_merge=False, move_many=False, dontunmap_apart=True, madvise_locks_vma=False, mm_ids=False,
    batches=False, migrated_partly=True, huge_zero_replaced=False, huge_lazyfree=False, reclaims_tables=False,
    guard_regions=False,
)  # fmt: skip
_6_1: Final = replace(
    _6_12, name="6.1", release="6.1.192",
    sizes={**_6_18.sizes, "vm_area_struct": 152, "mm_struct": 1152, "maple_tree": 24},
    upper_first=True, close_forbids_merge=True, unaccount_unprepared=False, stack_nohugepage=False,
    realigns_moves=False, thp_placement=False, swap_in_writable=False, large_swap_in=False, clean_writable=False,
    split_to_zero=False, migrated_partly=False, migration_splits=False, ksm_unshares=False, unmerges_none=False,
    mthp=False, huge_writable=False, huge_split_dirty=False, populates_past_holes=True, droppable=False,
)  # fmt: skip
PROFILES: Final = {profile.name: profile for profile in (_7_3, _7_2, _6_18, _6_12, _6_1)}


def _ordinal(release: str) -> int | None:
    """Releases in order, one apart: 5.19 came before 6.0, and 6.19 before 7.0.  None if `release` names no version."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return None if match is None else int(match.group(1)) * 20 + int(match.group(2))


def profile_for(release: str) -> tuple[Profile, bool]:
    """The profile for the kernel that calls itself `release` (`uname -r`), and whether it is that version's
    own.  If not, it is the nearest known one, the older of two that are equally near (a rule is missing
    before the version that brings it); the reference if `release` names no version.

    >>> profile_for("6.18.44-generic")[0].name
    '6.18'
    """
    wanted = _ordinal(release)
    if wanted is None:
        return PROFILES[REFERENCE], False
    known = {_ordinal(name) or 0: profile for name, profile in PROFILES.items()}
    nearest = min(sorted(known), key=lambda ordinal: abs(wanted - ordinal))  # of two that are equally near, the first
    return known[nearest], nearest == wanted
