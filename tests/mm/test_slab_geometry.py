# SPDX-License-Identifier: GPL-2.0-or-later
"""The slab geometry of the ledger is the one that the running kernel shows in /proc/slabinfo."""

import os
from pathlib import Path

import pytest

from rmaplab.sync.work import PAGE_SIZE, Pool, slab_order

# Debug options change the layout of a cache, and these names' sizes are no matter of taste: each is what
# kmem_cache_create() was told, so objects per slab follow from size and CPUs alone.


def slabinfo() -> list[tuple[str, int, int, int]]:
    """name, object size, objects per slab, pages per slab."""
    try:
        text = Path("/proc/slabinfo").read_text()
    except OSError as why:
        pytest.skip(f"/proc/slabinfo cannot be read: {why}")
    rows = []
    for line in text.splitlines()[2:]:
        fields = line.split()
        rows.append((fields[0], int(fields[3]), int(fields[4]), int(fields[5])))
    return rows


def min_objects() -> int:
    """calculate_order(): 4 * (fls(CPUs) + 1)."""
    return 4 * ((os.cpu_count() or 1).bit_length() + 1)


def test_caches_of_the_reverse_map_are_packed_as_the_kernel_packs_them() -> None:
    seen = {name: row for name, *row in slabinfo()}
    names = [name for name in ("vm_area_struct", "anon_vma", "anon_vma_chain", "maple_node") if name in seen]
    if not names:
        pytest.skip("this kernel merged the caches of the reverse map into others")
    for name in names:
        size, objects, pages = seen[name]
        order = slab_order(size, min_objects())
        assert (1 << order, (PAGE_SIZE << order) // size) == (pages, objects), name


def test_most_caches_are_packed_as_the_kernel_packs_them() -> None:
    """All of them, but for the few whose creator asked for something else (SLAB_TYPESAFE_BY_RCU puts a
    pointer behind the object, and kmalloc caches made at boot knew of one CPU only)."""
    rows = slabinfo()
    wrong = [
        (name, size, objects, pages)
        for name, size, objects, pages in rows
        if (1 << slab_order(size, min_objects()), (PAGE_SIZE << slab_order(size, min_objects())) // size)
        != (pages, objects)
    ]
    assert len(wrong) <= len(rows) // 10, wrong


def test_a_pool_counts_and_packs() -> None:
    pool = Pool("anon_vma", 104)
    assert (pool.objects_per_slab, pool.pages_per_slab) == (39, 1)
    pool.alloc(40)
    assert (pool.live, pool.peak, pool.allocated) == (40, 40, 40)
    assert pool.slab_pages(pool.live) == 2
    pool.free(1)
    assert (pool.live, pool.peak) == (39, 40)
    assert pool.slab_pages(pool.live) == 1
    assert pool.slab_pages(0) == 0
    with pytest.raises(AssertionError, match="more objects freed"):
        pool.free(40)
