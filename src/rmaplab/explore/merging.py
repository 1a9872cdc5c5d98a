# SPDX-License-Identifier: GPL-2.0-or-later
"""Why two adjacent VMAs are not merged.

Evaluates the conditions of mm/merge.py one by one, and says which do not hold.  A merge is tried only when something
changes (a mapping, its rights, its place): two VMAs that could merge stay apart until then, which is an answer, too.
"""

from __future__ import annotations

from rmaplab.mm.machine import Machine
from rmaplab.mm.picture import Picture, hexa
from rmaplab.mm.vma import VM_ACCESS_FLAGS, VM_SOFTDIRTY, VM_SPECIAL, VMA


def rights(vma: VMA) -> str:
    """As /proc/PID/maps shows them."""
    return "".join(letter if vma.flags & bit else "-" for letter, bit in (("r", 1), ("w", 2), ("x", 4))) + (
        "s" if vma.flags & 8 else "p"
    )


def backing(vma: VMA) -> str:
    """What is mapped, in a word."""
    if vma.file is None:
        return "anonymous"
    if vma.file.name:
        return vma.file.name
    return "shared memory" if vma.file.is_shmem else f"file {vma.file.id}"


def why_apart(machine: Machine, pictures: list[Picture], prev: VMA, next: VMA) -> list[str]:
    """Reasons why `prev` and `next`, which starts where `prev` ends, are not merged, each with its rule."""
    reasons: list[str] = []
    differing = (prev.flags ^ next.flags) & ~VM_SOFTDIRTY
    if differing & VM_ACCESS_FLAGS:
        reasons.append(f"the rights differ ({rights(prev)} and {rights(next)})")
    if differing & ~VM_ACCESS_FLAGS:
        reasons.append(f"other flags differ (vm_flags {hexa(differing & ~VM_ACCESS_FLAGS)})")
    if prev.file is not next.file:
        reasons.append(f"they map different things ({backing(prev)} and {backing(next)})")
    if prev.policy != next.policy:
        reasons.append("the NUMA policies differ")
    if prev.uffd != next.uffd:
        reasons.append("they are registered with different userfaultfds")
    if prev.name != next.name:
        reasons.append("the names differ")
    if next.flags & VM_SPECIAL or prev.flags & VM_SPECIAL:
        reasons.append("special mappings never merge")
    expected = prev.pgoff + prev.nr_pages
    if next.pgoff != expected:
        reasons.append(
            f"the page offsets do not go on: V{prev.id} ends before {hexa(expected)}, V{next.id} begins at"
            f" {hexa(next.pgoff)}"
        )
    leader = machine.leader
    refused = not leader.can_join(prev, next) or not (
        leader.can_merge(next, prev, False) or leader.can_merge(prev, next, False)
    )
    if refused:
        reasons.append(f"{leader.name}: {pictures[leader.slot].why_apart(prev, next)}")
    if not reasons:
        reasons.append("nothing forbids it, but a merge is tried only when one of them changes")
    return reasons
