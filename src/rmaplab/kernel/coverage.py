# SPDX-License-Identifier: GPL-2.0-or-later
"""The cases that a history reached in the kernel, as seen in its structures, not in the model's code.

VMAs and anon_vmas keep their addresses, so two snapshots show the changes: which VMA grew over which in a merge, and
whose anon_vma a first fault or a fork took.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from rmaplab.kernel.snapshot import Mm, Snapshot, Vma
from rmaplab.mm.vma import VM_GROWSDOWN

LARGE: Final = (
    "large folio: mapped whole", "large folio: mapped in part", "large folio: shared by processes",
    "large folio: in two VMAs", "large folio: split", "large folio: first page mapped nowhere and exclusive",
    "large folio: first page mapped nowhere and not exclusive", "large folio: to swap", "large folio: from swap",
)  # fmt: skip
# Of a merge: those of mm/vma.c (vma_merge_new_range(), vma_merge_existing_range()), which are the eight cases of
# vma_merge() in 6.1 in the order 2, 3, 1, 7, 5, 8, 4, 6.
CASES: Final = (
    "merge: the lower VMA takes a hole", "merge: the upper VMA takes a hole",
    "merge: the lower VMA takes a hole and the upper VMA", "merge: the lower VMA takes a whole VMA",
    "merge: the lower VMA takes the beginning of a VMA", "merge: the upper VMA takes a whole VMA",
    "merge: the upper VMA takes the end of a VMA", "merge: the lower VMA takes two VMAs",
    "merge: an unprepared VMA imports a chain",
    "first fault: a neighbour's anon_vma is shared", "first fault: a neighbour's chain is not singular",
    "first fault: a new anon_vma", "fork: a new anon_vma", "fork: an unused anon_vma is taken over",
    "chain: four forks deep", "chain: the anon_vma of a dead parent", "stack: page offset is not its address",
    "page: in the root of a family of another process", "page: shared", "swap: an entry shared by processes",
    "file: private pages copied", "KSM: a page of several places", "KSM: a page that fork copied",
    "KSM: a place that does not hold any more",
    *LARGE,
)  # fmt: skip
_TAKES_WHAT_LIES_THERE: Final = frozenset(("munmap", "exit", "exec"))


class Coverage:
    """Counts how often each of CASES was reached."""

    def __init__(self) -> None:
        self.reached: Final[Counter[str]] = Counter()
        self.steps: Final[Counter[str]] = Counter()  # by operation

    def missing(self, has_large_folios: bool = True) -> list[str]:
        """What was not, of what a kernel with or without large folios can reach."""
        return [case for case in CASES if not self.reached[case] and (has_large_folios or case not in LARGE)]

    def see(self, op: str, before: Snapshot | None, after: Snapshot) -> None:
        """A step, and the state before and after it."""
        self.steps[op] += 1
        reached: set[str] = set()
        self._states(after, reached)
        if before is not None:
            self._split(before, after, reached)
        if before is not None and op not in _TAKES_WHAT_LIES_THERE:
            for address, mm in after.mms.items():
                if address in before.mms:
                    self._merges(before.mms[address], mm, reached)
                    self._prepared(before, mm, reached)
                elif op == "fork":
                    for vma in mm.vmas:
                        if vma.anon_vma:
                            known = vma.anon_vma in before.anon_vmas
                            reached.add(f"fork: {'an unused anon_vma is taken over' if known else 'a new anon_vma'}")
        self.reached.update(reached)

    def _split(self, before: Snapshot, after: Snapshot, reached: set[str]) -> None:
        for pfn, page in before.pages.items():
            if page.order and pfn in after.pages and not after.pages[pfn].order:
                reached.add("large folio: split")
        if not any(page.order for page in (*before.pages.values(), *after.pages.values())):
            return
        for address, mm in before.mms.items():
            now = after.mms[address].entries if address in after.mms else {}
            for addr, entry in mm.entries.items():
                there = now.get(addr)
                if there is None or "swap" not in (entry.kind, there.kind):
                    continue
                if entry.kind == "anon" and before.pages[entry.number].order:
                    reached.add("large folio: to swap")
                if there.kind == "anon" and after.pages[there.number].order:
                    reached.add("large folio: from swap")

    def _merges(self, before: Mm, after: Mm, reached: set[str]) -> None:
        old = {vma.address: vma for vma in before.vmas}
        for vma in after.vmas:
            was = old.get(vma.address)
            if was is None or was.start < vma.start or was.end > vma.end:
                continue
            if vma.end > was.end and not vma.flags & VM_GROWSDOWN:
                over = [other for other in before.vmas if was.end <= other.start < vma.end]
                hole = not over or over[0].start > was.end
                if hole:
                    what = "a hole and the upper VMA" if over else "a hole"
                elif len(over) > 1:
                    what = "two VMAs"
                else:
                    what = "a whole VMA" if over[0].end <= vma.end else "the beginning of a VMA"
                reached.add(f"merge: the lower VMA takes {what}")
            elif vma.start < was.start and not vma.flags & VM_GROWSDOWN:
                under = [other for other in before.vmas if vma.start < other.end <= was.start]
                whole = under and under[-1].start >= vma.start
                what = "a hole" if not under else "a whole VMA" if whole else "the end of a VMA"
                reached.add(f"merge: the upper VMA takes {what}")
            if (vma.start, vma.end) != (was.start, was.end) and vma.anon_vma and not was.anon_vma:
                reached.add("merge: an unprepared VMA imports a chain")

    def _prepared(self, before: Snapshot, after: Mm, reached: set[str]) -> None:
        for i, vma in enumerate(after.vmas):
            was = before.vmas.get(vma.address)
            if was is None or was.anon_vma or not vma.anon_vma or (was.start, was.end) != (vma.start, vma.end):
                continue
            if vma.anon_vma in before.anon_vmas:
                reached.add("first fault: a neighbour's anon_vma is shared")
                continue
            reached.add("first fault: a new anon_vma")
            for neighbour in (*after.vmas[max(0, i - 1) : i], *after.vmas[i + 1 : i + 2]):
                touches = neighbour.start == vma.end or neighbour.end == vma.start
                if touches and len(neighbour.chain) > 1 and _continues(vma, neighbour):
                    reached.add("first fault: a neighbour's chain is not singular")

    def _states(self, after: Snapshot, reached: set[str]) -> None:
        for vma in after.vmas.values():
            if len(vma.chain) > 4:
                reached.add("chain: four forks deep")
            if any(not after.anon_vmas[after.avcs[avc].anon_vma].num_active_vmas for avc in vma.chain):
                reached.add("chain: the anon_vma of a dead parent")
            if vma.flags & VM_GROWSDOWN and vma.pgoff != vma.start >> 12:
                reached.add("stack: page offset is not its address")
            if vma.inode and vma.anon_vma:
                reached.add("file: private pages copied")
        if any(page.mapcount > 1 for page in after.pages.values()):
            reached.add("page: shared")
        self._folios(after, reached)
        slots: Counter[int] = Counter()
        for mm in after.mms.values():
            for vma in mm.vmas:
                own = vma.anon_vma and after.anon_vmas[vma.anon_vma].root
                for addr in range(vma.start, vma.end, 4096) if vma.anon_vma and mm.entries else ():
                    entry = mm.entries.get(addr)
                    if entry is not None and entry.kind == "anon" and len(vma.chain) > 1:
                        if after.pages[entry.number].anon_vma == own:
                            reached.add("page: in the root of a family of another process")
                    elif entry is not None and entry.kind == "swap":
                        slots[entry.number] += 1
        if any(count > 1 for count in slots.values()):
            reached.add("swap: an entry shared by processes")


    def _folios(self, after: Snapshot, reached: set[str]) -> None:
        """What KSM's pages and large folios are mapped by."""
        for pfn, places in after.ksm_places.items():
            mapped = sum(
                mm in after.mms and getattr(after.mms[mm].entries.get(addr), "number", -1) == pfn for mm, addr in places
            )
            if mapped > 1:
                reached.add("KSM: a page of several places")
            if mapped < after.pages[pfn].mapcount:
                reached.add("KSM: a page that fork copied")
            if mapped < len(places):
                reached.add("KSM: a place that does not hold any more")
        parts: Counter[int] = Counter()
        for page in after.pages.values():
            if page.order:
                parts[page.head] += 1
                if page.mapcount > 1:
                    reached.add("large folio: shared by processes")
                if page.head not in after.pages:
                    how = "exclusive" if page.first_exclusive else "not exclusive"
                    reached.add(f"large folio: first page mapped nowhere and {how}")
        for head, count in parts.items():
            reached.add(f"large folio: mapped {'whole' if count == 1 << after.pages[head].order else 'in part'}"
                        if head in after.pages else "large folio: mapped in part")  # fmt: skip
        for mm in after.mms.values():
            seen: dict[int, int] = {}
            for vma in mm.vmas if parts else ():
                for addr in range(vma.start, vma.end, 4096) if vma.anon_vma else ():
                    entry = mm.entries.get(addr)
                    if entry is not None and entry.kind == "anon" and after.pages[entry.number].order:
                        if seen.setdefault(after.pages[entry.number].head, vma.start) != vma.start:
                            reached.add("large folio: in two VMAs")


def _continues(vma: Vma, neighbour: Vma) -> bool:
    return neighbour.inode == vma.inode and neighbour.pgoff - vma.pgoff == neighbour.start - vma.start >> 12
