# SPDX-License-Identifier: GPL-2.0-or-later
"""Neighbouring VMAs that may become one later.

Models mm/vma.c, anon_vma_compatible(): when the first page of a VMA is prepared, a design may want to
treat it like a neighbour if mprotect() can undo all that differs between them.
"""

from __future__ import annotations

from rmaplab.mm.vma import VM_ACCESS_FLAGS, VM_STICKY, VMA


def mergeable_neighbours(vma: VMA) -> list[VMA]:
    """The VMAs beside `vma` with which it may be one later, the next first (find_mergeable_anon_vma())."""
    tree = vma.mm.tree
    found: list[VMA] = []
    after = tree.after(vma)
    if after is not None and may_merge_later(vma, after):
        found.append(after)
    before = tree.before(vma)
    if before is not None and may_merge_later(before, vma):
        found.append(before)
    return found


def may_merge_later(below: VMA, above: VMA) -> bool:
    """Are the two adjacent and alike but for access rights, so that mprotect() could make them one?"""
    return (
        below.end == above.start
        and below.policy == above.policy
        and below.file is above.file
        and (below.flags ^ above.flags) & ~(VM_ACCESS_FLAGS | VM_STICKY) == 0
        and above.pgoff == below.pgoff + below.nr_pages
        and above.anon_pgoff == below.anon_pgoff + below.nr_pages
    )
