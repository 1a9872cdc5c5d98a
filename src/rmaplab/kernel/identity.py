# SPDX-License-Identifier: GPL-2.0-or-later
"""The identity of a kernel, and the sizes of its objects.

A kernel says its release itself, and its slab caches say how large an object is in them.  The rules come from
the profile of its version, or of the nearest known one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from rmaplab.kernel.memory import has_symbol
from rmaplab.mm.profile import Profile, profile_for

# Object of a profile -> symbol that points to its struct kmem_cache.
_CACHES: Final = {
    "vm_area_struct": "vm_area_cachep", "vma_lock": "vma_lock_cachep", "mm_struct": "mm_cachep",
    "maple_node": "maple_node_cache", "anon_vma": "anon_vma_cachep", "anon_vma_chain": "anon_vma_chain_cachep",
}  # fmt: skip


def release_of(program: Any) -> str:
    """`uname -r` of the kernel."""
    text: str = program["init_uts_ns"].name.release.string_().decode()
    return text


def sizes_of(program: Any) -> dict[str, int]:
    """Bytes that an object takes in a slab, by type."""
    sizes = {}
    for name, symbol in _CACHES.items():
        if has_symbol(program, symbol):  # no "vma_lock" before per-VMA locks, nor since they are part of the VMA
            sizes[name] = int(program[symbol].size)
    return sizes


def profile_of(program: Any) -> tuple[Profile, list[str]]:
    """The kernel's profile with its own object sizes, and what there is to say about it."""
    release = release_of(program)
    known, exact = profile_for(release)
    notes = []
    if not exact:
        notes.append(f"there is no profile for {release}: {known.name}'s rules are used, the nearest known")
    sizes = dict(known.sizes)
    for name, size in sizes_of(program).items():
        if sizes.get(name) != size:
            notes.append(f"{name} takes {size} bytes in {release}, {sizes.get(name)} in profile {known.name}")
        sizes[name] = size
    return replace(known, release=release, sizes=sizes), notes
